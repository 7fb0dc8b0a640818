"""Drift: random halves of one set raise no alarm, and a planted shift does."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from drop_places import REPOSITORY, picture
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from veilset.adapters.great_expectations_check import CheckParams
from veilset.data.duplicates import features
from veilset.data.ingest import IngestParams, ingest
from veilset.data.sources.registry import open_source
from veilset.drops.drift import (
    Comparison,
    DriftParams,
    Profile,
    class_shift,
    compare,
    known_images,
    number_shift,
    profile_of,
)
from veilset.errors import CheckError
from veilset.keys import DEMO_IDS_KEY
from veilset.types import Images

LIMITS = DriftParams()
DIGITS = load_digits()
PIXELS: Images = (DIGITS.images * 255 / 16).astype(np.uint8)[..., None]
SHIFTS = ("class_shift", "pixels_shift", "aspect_shift", "brightness_shift", "contrast_shift")


def profile(
    pixels: Images, labels: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], classes: int = 10
) -> Profile:
    found = features(pixels)
    grey = pixels.mean(axis=3)
    sides = np.full(len(pixels), float(pixels.shape[1]))
    return Profile(
        classes=tuple(map(str, range(classes))), ids=tuple(f"{one:032x}" for one in ids),
        class_names=tuple(map(str, labels)),
        numbers={"pixels": sides**2, "aspect": sides / sides, "brightness": found.brightness,
                 "contrast": grey.std(axis=(1, 2))},
        features=found, take=lambda at: pixels[at],
    )  # fmt: skip


def of_digits(rows: npt.NDArray[np.int64], change: int = 0) -> Profile:
    pixels = np.clip(PIXELS[rows].astype(int) + change, 0, 255).astype(np.uint8)
    return profile(pixels, DIGITS.target[rows], rows)


def halves(seed: int, images: int) -> tuple[Profile, Profile]:
    order = np.random.default_rng(seed).permutation(len(PIXELS))
    return of_digits(order[:images]), of_digits(order[images:])


def alarms(found: Comparison) -> set[str]:
    limits = {
        "class_shift": LIMITS.max_class_shift, "pixels_shift": LIMITS.max_size_shift,
        "aspect_shift": LIMITS.max_size_shift, "brightness_shift": LIMITS.max_brightness_shift,
        "contrast_shift": LIMITS.max_contrast_shift, "known_share": LIMITS.max_known_share,
        "nearly_known_share": LIMITS.max_nearly_known_share, "unknown_classes": 0,
        "other_classes": 0,
    }  # fmt: skip
    return {name for name, most in limits.items() if getattr(found, name) > most}


@pytest.mark.parametrize("images", [16, 64, 256, 898])
def test_random_parts_of_one_set_raise_no_alarm(images: int) -> None:
    pairs = [halves(seed, images) for seed in range(30)]
    found = [compare(new, [old], LIMITS) for new, old in pairs]
    assert [alarms(one) for one in found] == [set()] * 30
    # Not even beyond chance, but for one of the 150 or so.
    assert sum(getattr(one, name) > 0 for one in found for name in SHIFTS) <= 2


def test_a_distance_counts_as_beyond_chance_as_rarely_as_was_asked() -> None:
    random = np.random.default_rng(1)
    tries = 400
    by_class = by_number = 0
    for _ in range(tries):
        labels = random.integers(0, 10, 1000).astype(str)
        by_class += class_shift(labels[:64], labels[64:], 0.05) > 0
        values = random.normal(size=1000)
        by_number += number_shift(values[:64], values[64:], 0.05) > 0
    # 20 are expected; Smirnov's limit may only be too cautious. Three standard deviations.
    assert 8 <= by_class <= 34
    assert 4 <= by_number <= 34


@pytest.mark.parametrize(("images", "change"), [(64, 40), (400, 20)])
def test_a_change_of_light_is_found(images: int, change: int) -> None:
    order = np.random.default_rng(3).permutation(len(PIXELS))
    found = compare(of_digits(order[:images], change), of_digits_all(order[images:]), LIMITS)
    assert "brightness_shift" in alarms(found)
    assert "class_shift" not in alarms(found)


def of_digits_all(rows: npt.NDArray[np.int64]) -> list[Profile]:
    """Earlier drops: two of them."""
    return [of_digits(rows[::2]), of_digits(rows[1::2])]


def test_other_shares_of_the_classes_are_found_in_64_images() -> None:
    order = np.random.default_rng(4).permutation(len(PIXELS))
    few = order[DIGITS.target[order] < 4]
    found = compare(of_digits(few[:64]), of_digits_all(np.setdiff1d(order, few[:64])), LIMITS)
    assert "class_shift" in alarms(found)
    assert found.unknown_classes == 0


def test_another_size_of_originals_is_found() -> None:
    new, earlier = halves(5, 64)
    new.numbers["pixels"][:] = 4096.0
    assert alarms(compare(new, [earlier], LIMITS)) == {"pixels_shift"}


def test_a_new_class_and_another_list_of_classes_are_found() -> None:
    rows = np.arange(200)
    old = profile(PIXELS[rows], DIGITS.target[rows] % 9, rows)
    new = profile(PIXELS[rows + 200], DIGITS.target[rows + 200], rows + 200)
    assert compare(new, [old], LIMITS).unknown_classes == 1
    assert compare(new, [old], LIMITS).other_classes == 0
    fewer = profile(PIXELS[rows + 200], DIGITS.target[rows + 200], rows + 200, classes=9)
    assert compare(new, [fewer], LIMITS).other_classes == 1


def test_known_and_nearly_known_images_are_told_apart() -> None:
    rows = np.arange(100)
    pixels = np.stack([np.asarray(picture(n), dtype=np.uint8)[..., None] for n in range(150)])
    old = profile(pixels[:100], rows % 10, rows)
    again = pixels[90:150].copy()
    again[10:30, ::2] ^= 1  # less than a grey level apart from 20 pictures of their own
    new = profile(np.concatenate([pixels[:20] ^ 1, again]), np.arange(80) % 10,
                  np.concatenate([np.arange(1000, 1020), np.arange(90, 150)]))  # fmt: skip
    known, nearly = known_images(new, [old], 2.0)
    assert np.flatnonzero(known).tolist() == list(range(20, 30))
    assert np.flatnonzero(nearly).tolist() == list(range(20))
    assert not known_images(new, [old], 0.5)[1].any()


def test_drops_of_different_sizes_cannot_be_compared() -> None:
    small = profile(PIXELS[:50], DIGITS.target[:50], np.arange(50))
    large = profile(PIXELS[:50].repeat(2, 1).repeat(2, 2), DIGITS.target[:50], np.arange(50, 100))
    with pytest.raises(CheckError, match="different sizes"):
        compare(large, [small], LIMITS)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
)
def test_shifts_are_between_0_and_1_whatever_the_samples(one: list[int], two: list[int]) -> None:
    first, second = np.array(one, dtype=np.float64), np.array(two, dtype=np.float64)
    names, others = list(map(str, one)), list(map(str, two))
    assert 0 <= number_shift(first, second, 0.001) <= 1
    assert 0 <= class_shift(names, others, 0.001) <= 1
    assert number_shift(first, first, 0.001) == 0
    assert class_shift(names, names, 0.001) == 0


def test_the_page_names_the_defaults() -> None:
    page = (REPOSITORY / "docs/drops.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    told = CheckParams.parse(yaml.safe_load(block)["check"], "docs/drops.md")
    assert told == CheckParams()
    told_names = set(yaml.safe_load(block)["check"]["drift"])
    assert told_names == set(DriftParams.model_fields) - {"near_threshold"}


def test_a_shift_is_the_same_each_time() -> None:
    new, earlier = halves(6, 64)
    assert compare(new, [earlier], LIMITS) == compare(new, [earlier], LIMITS)


def test_a_profile_is_that_of_the_set_and_is_kept(tmp_path: Path) -> None:
    source = open_source("digits", tmp_path)
    params = IngestParams(size=8, channels=1)
    ingest(source, params, DEMO_IDS_KEY, "digits", tmp_path / "set", tmp_path / "quarantine")
    found = profile_of(tmp_path / "set", tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    written = kept.stat().st_mtime_ns
    again = profile_of(tmp_path / "set", tmp_path / "cache")
    assert kept.stat().st_mtime_ns == written
    assert kept.stat().st_mode & 0o077 == 0
    assert found.ids == again.ids and len(set(found.ids)) == len(found.ids) > 1700
    rows = np.array([0, 700, 1500])
    assert np.array_equal(found.take(rows), again.take(rows))
    grey = found.take(rows)[..., 0].astype(np.float64)
    assert np.allclose(found.numbers["brightness"][rows], grey.mean(axis=(1, 2)))
    assert np.allclose(found.numbers["contrast"][rows], grey.std(axis=(1, 2)))
    assert set(found.numbers["pixels"]) == {64.0}
    assert alarms(compare(found, [again], LIMITS)) == {"known_share"}
    # Another version of the set has another profile, and the old one goes.
    ingest(source, IngestParams(size=16), DEMO_IDS_KEY, "d", tmp_path / "set", tmp_path / "q")
    profile_of(tmp_path / "set", tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] != [kept.name]
    assert len(list((tmp_path / "cache").iterdir())) == 1
