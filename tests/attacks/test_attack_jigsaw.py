"""The jigsaw solver: planted shuffles are undone, noise is not, and order tells nothing."""

from typing import Any

import numpy as np
import pytest
from attack_cases import Noise, OtherPeople, Planted, build, digit_case, photographs
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from veilset.attacks._pieces import (
    Changes,
    Region,
    changes,
    match_channels,
    odds,
    puzzle_scores,
    seam_costs,
    solve,
    turn,
)
from veilset.attacks.base import OTHER_KIND, Case
from veilset.attacks.jigsaw import Jigsaw, JigsawParams, Puzzle, UpToChanges, puzzle_of
from veilset.attacks.registry import make_attack
from veilset.metrics.statistics import wilson
from veilset.schemes.base import Scheme
from veilset.schemes.composition import Composition
from veilset.schemes.etc_encryption import EtcEncryption, EtcEncryptionParams
from veilset.schemes.plain import Plain
from veilset.schemes.registry import make_scheme
from veilset.types import FloatArray, Images


def smooth(count: int, side: int, channels: int = 3, seed: int = 0) -> Images:
    """Waves with a little noise: smooth and structured as photographs are, and not periodic."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = np.zeros((count, side, side, channels))
    for _ in range(10):
        down, across, phase = rng.uniform(-12, 12, (3, count, 1, 1, 1))
        tint = rng.normal(0, 25, (count, 1, 1, 1)) + rng.normal(0, 8, (count, 1, 1, channels))
        waves += tint * np.sin(down * y[None, ..., None] + across * x[None, ..., None] + phase)
    seen = 120 + waves + rng.normal(0, 0.5, waves.shape)
    return np.clip(np.rint(seen), 0, 255).astype(np.uint8)


def smooth_case(
    scheme: Scheme[Any], targets: int = 60, auxiliary: int = 40, side: int = 32
) -> Case:
    images = smooth(targets + auxiliary, side)
    order = np.arange(len(images))
    nobody = np.full(len(images), "", dtype=object)
    return build(scheme, images, order % 2, nobody, order[:targets], order[targets:], None, 0)


def assembled(images: Images, region: Region, allowed: Changes, seed: int) -> tuple[Images, Images]:
    """Images whose pieces were permuted and changed at random, and what the solver makes of it."""
    rng = np.random.default_rng(seed)
    pieces = region.cut(images).astype(np.float64)
    shown, made = images.copy(), images.copy()
    for row, image in enumerate(pieces):
        mixed = image[rng.permutation(len(image))]
        for number, piece in enumerate(mixed):
            o, c = rng.integers(len(allowed.moves)), rng.integers(allowed.colours)
            mixed[number] = allowed.recolour(turn(piece - 127.5, o), c) + 127.5
        solution = solve(odds(seam_costs(mixed, allowed), rng), region.grid, allowed)
        region.paste(mixed[None], shown[row : row + 1])
        region.paste(np.rint(solution.applied(mixed[None], allowed)), made[row : row + 1])
    return shown, made


@pytest.mark.parametrize("pieces", [6, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("channels, least", [(1, 0.85), (3, 0.95)])
def test_a_planted_shuffle_is_undone(pieces: int, channels: int, least: float) -> None:
    images, allowed = smooth(6, 8 * pieces, channels), changes(False, False, channels)
    region = Region((0, 0), (pieces, pieces), (8, 8))
    shown, made = assembled(images, region, allowed, 0)
    before = puzzle_scores(shown, images, region, allowed)
    direct, beside, largest = puzzle_scores(made, images, region, allowed)
    assert before[0].mean() < 0.15
    assert before[1].mean() < 0.1
    # Where an image has hardly any contrast, grey pieces leave it open.
    assert beside.mean() > least
    assert np.median(direct) > 0.95
    assert largest.mean() > least - 0.05


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (5, 3)])
def test_turned_negated_and_recoloured_pieces_are_put_right(grid: tuple[int, int]) -> None:
    images = smooth(4, 80)[:, : 16 * grid[0], : 16 * grid[1]]
    allowed, region = changes(True, True, 3), Region((0, 0), grid, (16, 16))
    shown, made = assembled(images, region, allowed, 1)
    assert puzzle_scores(shown, images, region, allowed)[1].mean() < 0.1
    assert puzzle_scores(made, images, region, allowed)[1].mean() > 0.9


def test_noise_cannot_be_assembled() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 48, 48, 3), dtype=np.uint8)
    allowed, region = changes(False, False, 3), Region((0, 0), (6, 6), (8, 8))
    direct, beside, _ = puzzle_scores(
        assembled(images, region, allowed, 0)[1], images, region, allowed
    )
    # By chance one of 36 places, and about one of 36 neighbours.
    assert direct.mean() < 0.08
    assert beside.mean() < 0.08


@pytest.mark.parametrize("allowed", [changes(False, False, 3), changes(True, True, 3)])
def test_the_order_of_the_pieces_is_no_help(allowed: Changes) -> None:
    """Blank pieces in their own order: only lots decide, so none of it may look solved."""
    blank = np.full((36, 8, 8, 3), 90.0)
    right = [
        (solve(odds(seam_costs(blank, allowed), np.random.default_rng(s)), (6, 6), allowed).pieces
         == np.arange(36)).mean()
        for s in range(12)
    ]  # fmt: skip
    assert np.mean(right) < 0.1


def test_the_same_seed_gives_the_same_solution() -> None:
    allowed = changes(True, True, 3)
    pieces = Region((0, 0), (4, 4), (8, 8)).cut(smooth(1, 32))[0].astype(np.float64)
    first, second = (
        solve(odds(seam_costs(pieces, allowed), np.random.default_rng(3)), (4, 4), allowed)
        for _ in range(2)
    )
    for name in ("pieces", "orientations", "colours"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(np.sort(first.pieces), np.arange(16))


# --- The changes are a group, and tables say what they do ---------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 95), st.integers(0, 95), st.integers(0, 2**31))
def test_tables_compose_as_pictures_do(a: int, b: int, seed: int) -> None:
    allowed = changes(True, True, 3)
    image = np.random.default_rng(seed).normal(0, 50, (5, 5, 3))

    def changed(image: FloatArray, way: int) -> FloatArray:
        orientation, colour = divmod(way, allowed.colours)
        return allowed.recolour(turn(image, orientation), colour)

    after = int(allowed.group.after[a, b])
    np.testing.assert_allclose(changed(changed(image, b), a), changed(image, after))
    np.testing.assert_allclose(changed(changed(image, a), int(allowed.group.inverse[a])), image)


def test_seams_of_neighbours_cost_least() -> None:
    images = smooth(3, 32)
    pieces = Region((0, 0), (4, 4), (8, 8)).cut(images).astype(np.float64)
    costs = np.stack([seam_costs(image, changes(False, False, 3)) for image in pieces])
    beside = costs[:, 0, 0, 1, 0]  # piece 1 is right of piece 0
    others = costs[:, 0, 0, 2:, 0]
    assert (beside < others.min(axis=1)).all()
    # Left of is the mirror of right of.
    np.testing.assert_allclose(costs[:, 0, 0, 1], costs[:, 2, 1, 0], rtol=1e-3, atol=1e-3)


def test_channels_permuted_apart_are_brought_together() -> None:
    rng = np.random.default_rng(0)
    texture = rng.normal(0, 30, (9, 8, 8, 1)) + rng.normal(128, 20, (9, 1, 1, 1))
    pieces = texture + rng.normal(0, 3, (9, 8, 8, 3)) + np.array([0.0, 10.0, -10.0])
    mixed = pieces.copy()
    for channel in (1, 2):
        mixed[..., channel] = pieces[rng.permutation(9), :, :, channel]
    np.testing.assert_array_equal(match_channels(mixed), pieces)


def test_candidates_are_compared_in_every_change_of_the_whole() -> None:
    images = smooth(8, 32)
    puzzle = puzzle_of(EtcEncryption(block_px=8), (32, 32, 3))
    assert isinstance(puzzle, Puzzle)
    changed = puzzle.allowed.whole(images.astype(np.float64), 77, True)
    distances = UpToChanges(puzzle, 16).distances(changed, images)
    np.testing.assert_allclose(np.diag(distances), 0.0, atol=1e-3)
    assert (distances.argmin(axis=1) == np.arange(8)).all()


# --- The attack -------------------------------------------------------------------------------


def test_one_transform_for_all_images_is_undone() -> None:
    """The default of EtC: 64 blocks of 4 pixels, 96 changes of each, and no image to spare."""
    result = Jigsaw().run(smooth_case(EtcEncryption()))
    assert result.value > 0.97
    assert result.control.value < 0.1
    assert result.oracle.value > 0.97
    assert result.details["neighbour"] > 0.98
    assert result.details["released_neighbour"] < 0.1
    assert result.details["released_rank1"] < 0.4
    assert result.details["ssim_best_pose"] > 0.95


def test_the_same_seed_gives_the_same_result() -> None:
    case = smooth_case(
        EtcEncryption(keys="per_image", block_px=8), targets=8, auxiliary=20, side=24
    )
    first, second = (Jigsaw().run(case).to_json() for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_images_of_their_own_transform_are_put_together() -> None:
    scheme = EtcEncryption(keys="per_image", block_px=8)
    result = Jigsaw().run(smooth_case(scheme))
    assert result.details["neighbour"] > result.details["released_neighbour"] + 0.3
    assert result.details["control_neighbour"] < 0.1
    assert result.value > result.details["released_rank1"] + 0.3
    assert result.low > 0.3


def test_regions_of_visualmixer_are_put_together() -> None:
    scheme = make_scheme("visualmixer", {"region_px": 32, "n": 4}, "test")
    result = Jigsaw().run(smooth_case(scheme, side=64, targets=30, auxiliary=25))
    assert result.value > 0.95
    assert result.details["direct"] > 0.5
    assert result.details["released_direct"] < 0.2
    assert result.details["ssim"] > result.details["unattacked_ssim"] + 0.3


def test_a_step_of_a_composition_is_attacked() -> None:
    steps = ({"scheme": "masked_image", "eps_n": 30.0}, {"scheme": "etc_encryption", "block_px": 8})
    result = Jigsaw().run(smooth_case(Composition(steps=steps)))
    assert result.applicable
    assert result.low > 10 * result.chance
    assert "direct" not in result.details  # its pieces are not those of the original


def test_without_images_of_her_own_she_still_solves() -> None:
    result = Jigsaw().run(smooth_case(EtcEncryption(), targets=20, auxiliary=3))
    assert result.variant == "assembled/16 px"
    assert result.variants == {}
    assert result.value > 0.95


class NoiseAsEtc(Noise):
    """Noise that claims to be made of permuted blocks."""

    name = "etc_encryption"
    Parameters = EtcEncryptionParams


class OthersAsEtc(OtherPeople):
    """Other images that claim to be made of permuted blocks."""

    name = "etc_encryption"
    Parameters = EtcEncryptionParams


@pytest.mark.parametrize("planted", [NoiseAsEtc, OthersAsEtc])
def test_chance_where_nothing_is_left(planted: type[Planted]) -> None:
    scheme = planted(keys="per_image")
    result = Jigsaw().run(smooth_case(scheme, targets=80, auxiliary=0, side=16))
    found = wilson(result.value * result.targets, result.targets, 0.999)
    assert found.low <= result.chance <= found.high


@pytest.mark.parametrize(
    "scheme, word",
    [(Plain(), "no whole blocks"), (make_scheme("pixelate", {}, "test"), "no whole blocks"),
     (make_scheme("visualmixer", {}, "test"), "too small"),
     (make_scheme("visualmixer", {"mode": "target_vfe"}, "test"), "secret"),
     (make_scheme("learnable_encryption", {"extended": True}, "test"), "no seams"),
     (EtcEncryption(block_px=2), "too small")],
)  # fmt: skip
def test_schemes_of_another_kind_are_left_alone(scheme: Scheme[Any], word: str) -> None:
    reason = Jigsaw().applies(digit_case(scheme, targets=5, auxiliary=0))
    assert reason is not None
    assert reason.startswith(OTHER_KIND)
    assert word in reason


def test_too_large_a_puzzle_is_no_excuse() -> None:
    case = smooth_case(EtcEncryption(), targets=4, auxiliary=0)
    reason = Jigsaw(JigsawParams(pieces=63)).applies(case)
    assert reason is not None
    assert "64 pieces" in reason
    assert not reason.startswith(OTHER_KIND)
    assert Jigsaw(JigsawParams(pieces=64)).applies(case) is None


def test_regions_of_visualmixer_are_its_own() -> None:
    puzzle = puzzle_of(
        make_scheme("visualmixer", {"region_px": 32, "n": "auto"}, "test"), (64, 80, 3)
    )
    assert isinstance(puzzle, Puzzle)
    covered = np.zeros((1, 64, 80, 1), dtype=np.int64)
    for region in puzzle.regions:
        covered[region.window] += 1
    assert (covered == 1).all()
    assert {region.block for region in puzzle.regions if region.corner[1] < 64} == {(4, 4)}


@pytest.mark.parametrize("values", [{"pieces": 3}, {"gallery": 1}, {"together": 0}, {"other": 1}])
def test_parameters_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        JigsawParams(**values)


def test_the_registry_finds_it() -> None:
    assert make_attack("jigsaw", {"pieces": 300}, "test", "full").params.together == 500


@pytest.mark.parametrize(
    "name, count, values, least",
    [("cifar10/test1k.parquet", 40, {"block_px": 4}, 0.97),
     ("orl_faces/test.parquet", 20, {"block_px": 8}, 0.97),
     ("trashnet96/test.parquet", 8, {"block_px": 16, "keys": "per_image"}, 0.5)],
)  # fmt: skip
def test_photographs_are_put_together(
    name: str, count: int, values: dict[str, Any], least: float
) -> None:
    images = photographs(name, count)
    scheme = EtcEncryption(**values)
    order, nobody = np.arange(count), np.full(count, "", dtype=object)
    case = build(scheme, images, order % 2, nobody, order, order[:0], None, 0)
    result = Jigsaw().run(case)
    assert result.details["neighbour"] > least
    assert result.details["released_neighbour"] < 0.05
