"""Applying the protection and comparing: certain without a key, chance where nothing is shared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attack_cases import (
    Black,
    Negative,
    Noise,
    OtherPeople,
    Planted,
    Shuffled,
    build,
    digit_case,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.attacks.apply_and_compare import (
    ApplyAndCompare,
    ApplyAndCompareParams,
    candidate_labels,
    equal_images,
    exactly_first,
    folded,
)
from veilset.attacks.base import AttackResult, Case
from veilset.attacks.features import in_order
from veilset.metrics.statistics import wilson
from veilset.schemes.base import Scheme
from veilset.schemes.fitted import Lessons
from veilset.schemes.plain import Plain
from veilset.schemes.registry import make_scheme

CIFAR = Path(__file__).parents[2].parent / "shared/datasets/cifar10"


def compare(scheme: Scheme[Any], **sizes: int) -> AttackResult:
    return ApplyAndCompare().run(digit_case(scheme, **sizes))


@pytest.mark.parametrize(
    "name, values, least",
    [("plain", {}, 1.0), ("pixelate", {"block_px": 4}, 0.99), ("gaussian_blur", {}, 0.99)],
)
def test_a_transform_without_a_key_is_repeated_exactly(
    name: str, values: dict[str, Any], least: float
) -> None:
    result = compare(make_scheme(name, values, "test"), targets=220, auxiliary=60)
    assert result.status == "ok"
    assert result.value >= least
    assert result.details["exact"] == 1.0
    assert "the same transform" in result.variant
    assert result.control.low <= result.chance <= result.control.high
    assert result.oracle.value == pytest.approx(1.0)


def test_a_published_mask_that_was_learnt_is_applied_as_it_is() -> None:
    case = digit_case(Plain(), targets=200, auxiliary=60)
    images, labels = case.truth.originals, case.release.labels
    lessons = Lessons(images[:150], labels[:150], images[150:], labels[150:], 10)
    scheme = make_scheme(
        "mask_desensitization", {"epochs": 1, "patch_px": 4, "selection": "centre"}, "test"
    )
    scheme = scheme.with_fitted(scheme.fit(lessons))
    result = compare(scheme, targets=200, auxiliary=60)
    assert result.details["exact"] == 1.0
    # Digits that agree in all kept patches tie.
    assert result.value > 0.75


@pytest.mark.parametrize(
    "scheme, least", [(Shuffled, 0.9), (Negative, 0.9)]
)  # fmt: skip
def test_what_two_versions_under_two_keys_share_links_them(
    scheme: type[Planted], least: float
) -> None:
    result = compare(scheme())
    assert result.value >= least
    assert "another key" in result.variant
    assert result.details["repeats"] == 0.0


@pytest.mark.parametrize("name, values", [("pixelate", {"block_px": 4}), ("visualmixer", {})])
def test_originals_let_through_under_a_schemes_name_are_all_found(
    name: str, values: dict[str, Any]
) -> None:
    case = digit_case(make_scheme(name, values, "test"), targets=120, auxiliary=60)
    bare = replace(case, release=replace(case.release, images=case.truth.originals))
    result = ApplyAndCompare().run(bare)
    assert result.value == pytest.approx(1.0)
    assert result.details["unprotected"] == 1.0
    assert result.control.low <= result.chance <= result.control.high
    # A few dark digits are a mean of themselves.
    assert ApplyAndCompare().run(case).details["unprotected"] < 0.02


@pytest.mark.parametrize("scheme", [Noise, OtherPeople])
def test_chance_where_nothing_is_left(scheme: type[Planted]) -> None:
    result = compare(scheme(), targets=600)
    found = wilson(result.value * result.targets, result.targets, 0.999)
    assert found.low <= result.chance <= found.high
    # Two people may be replaced by the same third one.
    assert result.details["exact"] < 0.02
    assert result.oracle.value >= 0.99


def test_equal_bytes_of_all_images_are_a_tie_and_no_find() -> None:
    result = compare(Black(), targets=120)
    assert result.value == pytest.approx(result.chance)
    assert result.details["exact"] == 1.0


@pytest.mark.parametrize(
    "name, values, form, least",
    [
        ("negative_positive", {}, "folded", 0.9),
        ("learnable_encryption", {"keys": "per_image"}, "half-bytes of blocks of 4", 0.9),
        ("learnable_encryption", {"extended": True}, "half-bytes of loose blocks of 4", 0.9),
        ("etc_encryption", {"keys": "per_image"}, "bytes of loose blocks of 4", 0.9),
        ("etc_encryption", {"block_px": 8}, "bytes of loose blocks of 8", 0.9),
    ],
)
def test_ciphers_under_two_keys_are_equal_in_some_form(
    name: str, values: dict[str, Any], form: str, least: float
) -> None:
    result = compare(make_scheme(name, values, "test"))
    assert result.value >= least
    assert result.details["exact"] < 0.05
    assert result.variants[form] > 0.9
    assert result.control.low <= result.chance <= result.control.high


@settings(max_examples=30, deadline=None)
@given(
    side=st.integers(2, 5), channels=st.sampled_from([1, 3]), half=st.booleans(),
    loose=st.booleans(), seed=st.integers(0, 9999),
)  # fmt: skip
def test_a_form_is_the_values_of_each_block_up_to_sign_in_order(
    side: int, channels: int, half: bool, loose: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(side, 3 * side + 1, 2)
    images = rng.integers(0, 256, (2, height, width, channels), dtype=np.uint8)
    expected = []
    for image in images.tolist():
        blocks = []
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                values = [
                    v for row in image[top : top + side] for pixel in row[left : left + side]
                    for v in pixel
                ]  # fmt: skip
                if half:
                    halves = [h for v in values for h in (v & 15, v >> 4)]
                    blocks.append(sorted(min(h, 15 - h) for h in halves))
                else:
                    blocks.append(sorted(min(v, 255 - v) for v in values))
        expected.append(sorted(blocks) if loose else blocks)
    np.testing.assert_array_equal(in_order(images, side, half, loose)[..., 0], expected)


def test_folding_forgets_signs_and_the_order_of_channels() -> None:
    images = np.array([10, 250, 100], dtype=np.uint8).reshape(1, 1, 1, 3)
    assert folded(images).ravel().tolist() == [5, 10, 100]
    np.testing.assert_array_equal(folded(255 - images[..., ::-1]), folded(images))


def test_equal_images_come_first_and_others_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, (30, 1, 2, 1), dtype=np.uint8)
    second = rng.integers(0, 4, (20, 1, 2, 1), dtype=np.uint8)
    equal = equal_images(first, second)
    expected = [[bool((a == b).all()) for b in second] for a in first]
    np.testing.assert_array_equal(equal, expected)
    assert equal.any()
    distances = rng.normal(size=equal.shape)
    before = distances.copy()
    exactly_first(distances, equal)
    assert distances[equal].max() < distances[~equal].min()
    np.testing.assert_array_equal(distances[~equal], before[~equal])


def test_labels_stay_with_the_originals_when_the_correspondence_is_broken() -> None:
    case = digit_case(Plain(), targets=50, auxiliary=20)
    broken = case.control(np.random.default_rng(0))
    assert (broken.release.labels != case.release.labels).any()
    np.testing.assert_array_equal(candidate_labels(broken), case.release.labels)
    np.testing.assert_array_equal(candidate_labels(case), case.release.labels)


def cifar_case(scheme: Scheme[Any], targets: int = 400, auxiliary: int = 400) -> Case:
    if not CIFAR.is_dir():
        pytest.skip(f"CIFAR-10 is not at {CIFAR}")
    import io

    from PIL import Image

    frame = pd.read_parquet(CIFAR / "test1k.parquet").head(targets + auxiliary)
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in frame["image"]])
    rows = np.arange(len(frame), dtype=np.int64)
    nobody = np.full(len(rows), "", dtype=object)
    labels = frame["label"].to_numpy(dtype=np.int64)
    return build(scheme, images, labels, nobody, rows[:targets], rows[targets:], None, 0)


@pytest.mark.parametrize(
    "name, values, low, high",
    [
        pytest.param("pixelate", {"block_px": 8}, 0.99, 1.0, marks=pytest.mark.slow),
        ("visualmixer", {"region_px": 8, "n": 4}, 0.9, 1.0),
        pytest.param("etc_encryption", {}, 0.99, 1.0, marks=pytest.mark.slow),
    ],
)
def test_cifar_photographs_are_linked_as_measured_before(
    name: str, values: dict[str, Any], low: float, high: float
) -> None:
    scheme = make_scheme(name, values, "test")
    result = ApplyAndCompare(ApplyAndCompareParams(versions=2)).run(cifar_case(scheme))
    assert low <= result.value <= high
    assert result.control.low <= result.chance <= result.control.high
