"""Recognition of persons: planted leaks, chance, and what was measured on the ORL faces."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attack_cases import Noise, OtherPeople, Shuffled, build, digit_case, pattern_case
from PIL import Image

from veilset.attacks.base import NO_PERSONS, Case
from veilset.attacks.recognition import Recognition, by_person
from veilset.schemes.base import Scheme
from veilset.schemes.plain import Plain
from veilset.schemes.registry import make_scheme

ORL = Path(__file__).parents[2].parent / "shared/datasets/orl_faces"


def test_unprotected_people_are_recognised() -> None:
    result = Recognition().run(pattern_case(Plain()))
    assert result.gallery == 25
    assert result.chance == pytest.approx(0.04)
    assert result.method == "cluster_bootstrap"
    assert result.low > 0.8
    assert result.control.low <= result.control.value < 0.2


def test_people_are_verified_as_well() -> None:
    details = Recognition().run(pattern_case(Plain())).details
    # 125 photographs, each against the 24 other people; in a control one of them is left out.
    assert details["impostor_pairs"] == 125 * 24
    assert details["control_impostor_pairs"] == 125 * 23
    assert details["tar_at_far_0.001"] > 0.5
    assert details["control_tar_at_far_0.001"] < 0.05
    few = Recognition().run(pattern_case(Plain(), persons=6)).details
    assert few["impostor_pairs"] == 30 * 5
    assert "tar_at_far_0.001" not in few


def test_a_shuffle_of_all_pixels_leaves_something_to_recognise() -> None:
    assert Recognition().run(pattern_case(Shuffled(), spread=5)).low > 0.1


def test_noise_is_at_chance() -> None:
    result = Recognition().run(pattern_case(Noise()))
    assert result.low <= result.chance <= result.high
    assert result.oracle.low > 0.8


def test_other_people_are_not_recognised_as_the_right_one() -> None:
    result = Recognition().run(pattern_case(OtherPeople()))
    # A replacement shows the same person with probability 4 of 124.
    assert result.low <= 0.04 <= result.high


def test_without_persons_it_is_not_applicable_and_no_pass() -> None:
    result = Recognition().run(digit_case(Plain(), targets=20))
    assert (result.applicable, result.reason, result.value) == (False, NO_PERSONS, None)


def test_persons_without_a_gallery_are_another_reason() -> None:
    case = pattern_case(Plain())
    case = replace(case, attacker=replace(case.attacker, gallery=None))
    result = Recognition().run(case)
    assert not result.applicable
    assert result.reason != NO_PERSONS


def test_one_photograph_each_is_compared_untuned() -> None:
    case = pattern_case(Plain())
    gallery = case.attacker.gallery
    first = np.unique(gallery.groups.astype(str), return_index=True)[1]
    single = replace(
        gallery, images=gallery.images[first], labels=gallery.labels[first],
        groups=gallery.groups[first],
    )  # fmt: skip
    result = Recognition().run(replace(case, attacker=replace(case.attacker, gallery=single)))
    assert "untuned" in result.variant
    assert result.value > 0.5


def test_a_person_is_as_near_as_the_nearest_photograph() -> None:
    distances = np.array([[3.0, 1.0, 2.0, 5.0]])
    persons, nearest = by_person(distances, np.array(["b", "a", "b", "a"]))
    assert persons.tolist() == ["a", "b"]
    assert nearest.tolist() == [[1.0, 2.0]]


def orl_case(scheme: Scheme[Any], labels_are_people: bool) -> Case:
    if not ORL.is_dir():
        pytest.skip(f"the ORL faces are not at {ORL}")
    frame = pd.concat([pd.read_parquet(ORL / f"{part}.parquet") for part in ("train", "test")])
    images = np.stack([
        np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("L").resize((96, 96)))
        for row in frame["image"]
    ])[..., None]  # fmt: skip
    people = frame["label"].to_numpy(dtype=np.int64)
    number = frame.groupby("label").cumcount().to_numpy()
    names = np.array([f"person {i}" for i in people], dtype=object)
    release, gallery = np.flatnonzero(number >= 5), np.flatnonzero(number < 5)
    labels = people if labels_are_people else people * 0
    nobody = np.empty(0, dtype=np.int64)
    return build(scheme, images, labels, names, release, nobody, gallery, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, values, low, high",
    [
        ("visualmixer", {"region_px": 16, "n": 8}, 0.84, 0.96),
        ("pixel_block_mixing", {"block_height": 48, "block_width": 12}, 0.58, 0.86),
    ],
)
def test_orl_faces_are_recognised_as_measured_before(
    name: str, values: dict[str, Any], low: float, high: float
) -> None:
    """40 people, photographs 1-5 known, 6-10 released as one class; chance 2.5 %."""
    result = Recognition().run(orl_case(make_scheme(name, values, "test"), False))
    assert (result.targets, result.gallery) == (200, 40)
    assert low <= result.value <= high
    assert result.control.low <= 0.025 <= result.control.high
