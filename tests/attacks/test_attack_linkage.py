"""Linkage catches every planted leak, and nothing where nothing is left."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attack_cases import (
    Black,
    Corner,
    LowestBits,
    Negative,
    Noise,
    OtherPeople,
    Planted,
    Shuffled,
    Side,
    digit_case,
)

from veilset.attacks.base import AttackResult
from veilset.attacks.features import (
    RIDGES,
    Batch,
    BlockVote,
    Pairs,
    _System,
    area_resize,
    features_for,
    protect_as_attacker,
    split_attacker,
)
from veilset.attacks.linkage import Linkage, LinkageParams
from veilset.metrics.statistics import wilson
from veilset.schemes.base import Scheme
from veilset.schemes.plain import Plain
from veilset.schemes.registry import make_scheme


def link(scheme: Planted | Scheme[Any], **sizes: int) -> AttackResult:
    return Linkage(LinkageParams(versions=4)).run(digit_case(scheme, **sizes))


@pytest.mark.parametrize(
    "scheme, least",
    [(Plain, 0.99), (Shuffled, 0.9), (Negative, 0.95), (Corner, 0.8), (LowestBits, 0.5),
     (Side, 0.8)],
)  # fmt: skip
def test_a_planted_leak_is_caught(scheme: type[Planted], least: float) -> None:
    result = link(scheme())
    assert result.status == "ok"
    assert result.value >= least
    assert result.low > 10 * result.chance
    assert result.control.low <= result.chance <= result.control.high
    assert result.oracle.value >= 0.99


@pytest.mark.parametrize("scheme", [Noise, OtherPeople])
def test_chance_where_nothing_is_left(scheme: type[Planted]) -> None:
    result = link(scheme(), targets=600)
    # At 99.9 %, for a test that draws once; over 30 seeds the mean was .0099, as it should.
    found = wilson(result.value * result.targets, result.targets, 0.999)
    assert found.low <= result.chance <= found.high
    assert result.value < 0.03
    assert result.oracle.value >= 0.99


@pytest.mark.parametrize(
    "name, values",
    [
        ("negative_positive", {}),
        ("learnable_encryption", {"extended": True}),
        ("etc_encryption", {"keys": "per_image"}),
        ("etc_encryption", {"block_px": 8}),
    ],
)
def test_no_block_cipher_hides_the_values_of_its_blocks(name: str, values: dict[str, Any]) -> None:
    result = link(make_scheme(name, values, "test"), targets=120)
    assert result.value > 0.9
    assert result.control.low <= result.chance <= result.control.high


def test_black_images_score_exactly_chance() -> None:
    result = link(Black(), targets=120)
    assert result.value == pytest.approx(result.chance)


def test_an_attacker_who_knows_one_person_only_is_no_crash() -> None:
    case = digit_case(Noise(), targets=20, auxiliary=40)
    attacker = replace(case.attacker, groups=np.full(40, "one", dtype=object))
    assert Linkage(LinkageParams(versions=1)).run(replace(case, attacker=attacker)).applicable


def test_the_same_seed_repeats_and_the_right_variant_is_named() -> None:
    one, two = link(Shuffled(), targets=60), link(Shuffled(), targets=60)
    assert one.to_json() | {"seconds": 0} == two.to_json() | {"seconds": 0}
    assert one.status == "few_targets"
    assert max(one.variants, key=lambda name: one.variants[name]) == "histogram"
    assert "histogram" in one.variant


def test_too_few_images_are_not_applicable() -> None:
    result = link(Plain(), auxiliary=10)
    assert not result.applicable
    assert "auxiliary" in result.reason
    assert result.value is None
    assert link(Plain(), targets=2).applicable is False


def test_small_galleries_are_stated() -> None:
    result = link(Plain(), targets=40)
    assert result.gallery == 40
    assert result.chance == pytest.approx(1 / 40)


def test_rank_5_average_precision_and_verification_stand_beside_rank_1() -> None:
    details = link(LowestBits()).details
    assert details["impostor_pairs"] == 240 * 239
    assert details["control_impostor_pairs"] == 240 * 238
    assert details["oracle_tar_at_far_0.001"] == 1.0
    assert 0.2 < details["tar_at_far_0.001"] < 1.0
    assert details["control_tar_at_far_0.001"] < 0.05
    assert details["top5"] > details["average_precision"] > 0.5


def test_few_impostor_pairs_state_no_true_accept_rate() -> None:
    details = link(Plain(), targets=32).details
    assert details["impostor_pairs"] == 32 * 31
    assert not [name for name in details if "tar_at_far" in name]


def test_blocks_vote_for_whom_they_were_copied_from() -> None:
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (20, 16, 16, 1), dtype=np.uint8)
    mixed = np.roll(originals, 1, axis=0)
    mixed[:, :, :12] = originals[:, :, :12]
    distances = BlockVote(4, 4).distances(mixed, originals)
    np.testing.assert_allclose(np.diag(distances), -0.75)
    assert (distances.argmin(axis=1) == np.arange(20)).all()


def test_areas_are_averaged_exactly() -> None:
    images = np.arange(36.0).reshape(1, 6, 6, 1)
    assert area_resize(images, 2, 3)[0, 0, 0, 0] == images[0, :3, :2].mean()
    np.testing.assert_allclose(area_resize(images, 4, 5).mean(), images.mean())
    np.testing.assert_allclose(area_resize(images, 6, 6), images)


def test_region_features_do_not_change_under_a_shuffle_of_regions() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    shuffled = image.copy()
    for row in (0, 8):
        for column in (0, 8):
            region = shuffled[0, row : row + 8, column : column + 8]
            for channel in range(3):
                region[..., channel] = rng.permutation(region[..., channel].ravel()).reshape(8, 8)
    feature = features_for((16, 16, 3), None)["regions_8"]
    np.testing.assert_array_equal(feature(image), feature(shuffled))


def test_the_attacker_protects_under_fresh_keys_and_tunes_on_other_people() -> None:
    case = digit_case(Noise(), targets=5, auxiliary=60)
    rng = np.random.default_rng(0)
    everyone = np.ones(60, dtype=bool)
    made = protect_as_attacker(Noise(), case.attacker, everyone, 2, rng)
    assert (made[0].batch.images != made[1].batch.images).mean() > 0.9
    groups = np.repeat(np.array([f"p{i}" for i in range(12)], dtype=object), 5)
    attacker = type(case.attacker)(**{**vars(case.attacker), "groups": groups})
    fit, tuning = split_attacker(attacker, 0.3, 1000, rng)
    assert not set(groups[fit]) & set(groups[tuning])
    assert (fit ^ tuning).all()


def test_a_penalty_below_rounding_is_passed_over_not_a_crash() -> None:
    # Seen on 92x112 photographs: more columns than pairs, and normal equations in single precision
    # that were not positive definite.
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)
    pairs = Pairs(Batch(images, {}), images, np.arange(40))
    system = _System.of(pairs, pairs, np.arange(256), bits=False)
    rounded = replace(system, square=system.square - 0.5 * 40 * np.eye(256))
    assert rounded.error(RIDGES[0]) == np.inf
    assert np.isfinite(rounded.error(RIDGES[-1]))
