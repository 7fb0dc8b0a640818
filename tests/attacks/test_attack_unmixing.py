"""Unmixing: own blocks are told from foreign ones, and originals put together, by a release."""

# ruff: noqa: ARG002
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attack_cases import Noise, OtherPeople, build, digit_case
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from veilset.attacks.base import OTHER_KIND, AttackResult, Case
from veilset.attacks.unmixing import (
    Grid,
    Unmixing,
    evidence,
    fit_odds,
    fit_unmixer,
    mixing_step,
    weighted_distances,
)
from veilset.schemes.base import Pool, Protected, Scheme
from veilset.schemes.composition import Composition
from veilset.schemes.pixel_block_mixing import PixelBlockMixing, PixelBlockMixingParams
from veilset.schemes.plain import Plain
from veilset.schemes.randomness import Stream
from veilset.types import FloatArray, Ids, Images, IntArray, Labels

DATASETS = Path(__file__).parents[2].parent / "shared/datasets"


class NoiseMixed(PixelBlockMixing):
    """Says that it mixes blocks, and returns noise."""

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        return Protected(Noise().noise(images, ids, stream))


class OthersMixed(PixelBlockMixing):
    """Says that it mixes blocks, and returns other people's images."""

    _protect = OtherPeople._protect


def smooth_case(scheme: Scheme[Any], targets: int = 240, classes: int = 4, seed: int = 0) -> Case:
    """Smooth random colour images: seams tell much."""
    rng = np.random.default_rng(seed)
    planes = gaussian_filter(rng.normal(0, 1, (targets, 32, 32, 3)), (0, 4, 4, 0), mode="wrap")
    images = np.clip(128 + planes * 45 / planes.std(), 0, 255).astype(np.uint8)
    labels, rows = rng.integers(0, classes, targets), np.arange(targets)
    nobody = np.full(targets, "", dtype=object)
    return build(scheme, images, labels, nobody, rows, rows[:0], None, seed)


def unmixed(case: Case) -> AttackResult:
    return Unmixing().run(case)


def test_smooth_images_are_told_block_by_block_and_put_together() -> None:
    scheme = PixelBlockMixing(block_height=16, block_width=8, p_replace=0.3)
    result = unmixed(smooth_case(scheme))
    details = result.details
    assert result.status == "ok"
    assert result.value > 0.97
    assert result.control.value < 0.05
    assert details["own_block_accuracy"] > 0.95
    assert details["own_block_share"] < 0.75
    # Of the foreign places the own block survives elsewhere in about a quarter.
    assert details["foreign_blocks_put_right"] > 0.15
    assert details["own_blocks_spoilt"] < 0.01
    assert details["reassembled"] > 2 * details["released_whole"] + 0.05
    assert details["psnr"] > details["unattacked_psnr"]


def test_the_defaults_are_unmixed_better_than_read_as_they_are() -> None:
    result = unmixed(smooth_case(PixelBlockMixing()))
    assert result.details["own_block_accuracy"] > 0.85
    assert result.value > result.details["released_rank1"] + 0.1
    assert result.low > 0.8


@pytest.mark.parametrize("scheme", [NoiseMixed, OthersMixed])
def test_chance_where_nothing_is_left(scheme: type[PixelBlockMixing]) -> None:
    result = unmixed(smooth_case(scheme(), targets=500))
    assert result.low <= result.chance + 0.01
    assert result.value < 0.035
    assert result.details["own_block_share"] < 0.01


def test_the_real_scheme_on_digits() -> None:
    scheme = PixelBlockMixing(block_height=8, block_width=4)
    result = unmixed(digit_case(scheme, targets=400))
    assert result.status == "ok"
    assert result.value > 0.5
    assert result.value >= result.details["released_rank1"]
    assert result.control.value < 0.06


def test_a_composition_is_unmixed() -> None:
    steps = ({"scheme": "negative_positive"}, {"scheme": "pixel_block_mixing", "block_width": 8})
    found = mixing_step(Composition(steps=steps))
    assert found is not None
    assert found.params.block_width == 8


def test_it_says_why_it_does_not_apply() -> None:
    case = digit_case(Plain(), targets=5)
    reason = Unmixing().applies(case)
    assert reason is not None
    assert reason.startswith(OTHER_KIND)
    whole = PixelBlockMixing(block_height=64, block_width=64)
    seamless = replace(case, release=replace(case.release, scheme=whole))
    assert "seam" in str(Unmixing().applies(seamless))
    few = smooth_case(PixelBlockMixing(), targets=8, classes=1).take(np.array([0, 1]))
    assert "fewer than 3" in str(Unmixing().applies(few))


def test_only_the_release_is_used() -> None:
    """Other originals, ids and auxiliary images give the same reassembled images."""
    case = smooth_case(PixelBlockMixing(), targets=120)
    one = fit_unmixer(case.release, np.random.default_rng(0))
    solved = one.solve(case.release.images, case.release.labels)
    order = np.random.default_rng(1).permutation(120)
    moved = one.solve(case.release.images[order], case.release.labels[order])
    np.testing.assert_array_equal(moved.pictures, solved.pictures[order])
    np.testing.assert_allclose(moved.own, solved.own[order], atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder, file, side, labelled, sides",
    [("cifar10", "test1k", 32, True, (16, 4)), ("orl_faces", "train", 96, False, (48, 12))],
)
def test_photographs_are_unmixed(
    folder: str, file: str, side: int, labelled: bool, sides: tuple[int, int]
) -> None:
    path = DATASETS / folder / f"{file}.parquet"
    if not path.is_file():
        pytest.skip(f"the shared data set {path} is not here")
    frame = pd.read_parquet(path)
    pictures = [Image.open(io.BytesIO(row["bytes"])).resize((side, side)) for row in frame["image"]]
    images = np.stack([np.asarray(p).reshape(side, side, -1) for p in pictures])[:500]
    labels = frame["label"].to_numpy(dtype=np.int64)[:500] * labelled
    rows, nobody = np.arange(len(images)), np.full(len(images), "", dtype=object)
    scheme = PixelBlockMixing(block_height=sides[0], block_width=sides[1])
    result = unmixed(build(scheme, images, labels, nobody, rows, rows[:0], None, 0))
    assert result.details["own_block_accuracy"] > 0.8
    assert result.value > result.details["released_rank1"] + 0.08
    assert result.value > 0.85


# --- Its parts --------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 40), st.integers(2, 40), st.integers(1, 20), st.integers(1, 20),
    st.sampled_from([1, 3]),
)  # fmt: skip
def test_a_grid_covers_each_pixel_once(
    height: int, width: int, down: int, across: int, channels: int
) -> None:
    scheme = PixelBlockMixing(PixelBlockMixingParams(block_height=down, block_width=across))
    grid = Grid.of(scheme, (height, width, channels))
    place = grid.spread(np.arange(grid.count, dtype=np.float64)[None])[0]
    assert place.shape == (height, width)
    wide = -(-width // across)
    for y, x in ((0, 0), (height - 1, width - 1), (height // 2, width // 3)):
        assert place[y, x] == y // down * wide + x // across
    images = np.arange(height * width).reshape(1, height, width, 1)
    for number in range(grid.count):
        assert (grid.at(images, number).ravel() == images[0][place == number].ravel()).all()
    for kind, p, q in grid.pairs:
        (r, c), (s, d) = divmod(p, wide), divmod(q, wide)
        near = {(0, 1): "right", (1, 0): "down"}.get((s - r, d - c), "far")
        assert kind == near
    assert len(grid.pairs) == grid.count * (grid.count - 1) // 2


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(["right", "down", "far"]))
def test_evidence_of_all_with_all_is_that_of_each_pair(height: int, width: int, kind: Any) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.uniform(0, 255, (2, 3, height, width, 3))
    every = evidence(kind, first[:, None], second[None])
    for i, j in ((0, 0), (2, 1)):
        np.testing.assert_allclose(every[i, j], evidence(kind, first[i], second[j]))


def test_odds_of_a_mixture_are_those_of_the_pure_part() -> None:
    """One third of the pairs has evidence about 0, the rest and all others about 3."""
    rng = np.random.default_rng(0)

    def drawn(count: int, middle: float) -> FloatArray:
        return rng.normal(middle, 1.0, (count, 1))

    together = np.concatenate([drawn(8000, 0.0), drawn(16000, 3.0)])
    odds = fit_odds(together, drawn(24000, 3.0), 1 / 3)
    at = np.array([[-0.5], [0.5], [1.5]])
    wanted = (9 - 6 * at[:, 0]) / 2
    np.testing.assert_allclose(odds(at), wanted, atol=0.6)
    assert odds(np.array([[6.0]]))[0] < -1


def test_weights_say_which_pixels_count() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    other = rng.integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    weights = rng.uniform(0.1, 1, (4, 6, 5))
    made = weighted_distances(one, weights, other)
    i, j = 1, 2
    square = ((one[i].astype(float) - other[j]) ** 2).sum(axis=-1)
    assert made[i, j] == pytest.approx((weights[i] * square).sum() / (3 * weights[i].sum()))


def test_copies_speak_against_a_block() -> None:
    case = smooth_case(PixelBlockMixing(), targets=60, classes=1)
    unmixer = fit_unmixer(case.release, np.random.default_rng(0))
    images = case.release.images.copy()
    images[1, :16, :4] = images[0, :16, :4]
    copies = unmixer._copies(images)
    donors: IntArray = np.unique(images[:, :16, :4].reshape(60, -1), axis=0, return_counts=True)[1]
    assert donors.max() >= 2
    assert copies[0, 0] < 0 < copies[:, 0].max()
