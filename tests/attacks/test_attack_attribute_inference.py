"""Attributes beside the label: inferred where they show, chance where they do not."""

# ruff: noqa: ARG002
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attack_cases import OWNER, Black, Noise, OtherPeople, Planted, Shuffled, build, digit_case
from PIL import Image

from veilset.attacks.attribute_inference import (
    NETWORK,
    AttributeInference,
    AttributeInferenceParams,
    _advantage,
    _balanced,
)
from veilset.attacks.base import NO_ATTRIBUTE, AttackResult, Case
from veilset.attacks.features import area_resize
from veilset.schemes.base import ArrayPool, Pool, Protected, Scheme
from veilset.schemes.plain import Plain
from veilset.schemes.randomness import Stream
from veilset.schemes.registry import make_scheme
from veilset.types import Ids, Images, Labels

FASHION = Path(__file__).parents[2].parent / "shared/datasets/fashion_mnist_10k/test.parquet"


class SideOnly(Planted):
    """Noise, with a thumbnail published beside it."""

    name = "side_only"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        small = area_resize(images, 4, 4)
        return Protected(self.noise(images, ids, stream), side={"thumbnail": small})


def attributed(
    scheme: Scheme[Any], kind: str = "place", targets: int = 400, auxiliary: int = 200,
    rare: float = 0.5, seed: int = 0,
) -> Case:  # fmt: skip
    """Digits of which some have a square: left or right (`place`), or brighter (`light`)."""
    case = digit_case(Plain(), targets=targets, auxiliary=auxiliary, seed=seed)
    rng = np.random.default_rng(seed + 7)
    told: dict[str, str] = {}

    def marked(images: Images, names: list[str]) -> Images:
        made = images.copy()
        for row, name in enumerate(names):
            value = bool(rng.random() < rare)
            told[name] = "yes" if value else "no"
            if kind == "place":
                column = 12 if value else 1
                made[row, 1:4, column : column + 3] = 255
            else:
                made[row] = np.maximum(made[row], 90 if value else 20)
        return made

    originals = marked(case.truth.originals, [str(name) for name in case.truth.ids])
    own = marked(case.attacker.images, [row.tobytes().hex() for row in case.attacker.ids])
    ids = np.array([list(bytes.fromhex(str(name))) for name in case.truth.ids], dtype=np.uint8)
    labels = case.release.labels
    pool = ArrayPool.from_arrays(originals, labels, ids)
    made = scheme.protect(originals, labels, ids, OWNER, pool)
    return Case(
        release=replace(case.release, images=made.images, side=made.side, scheme=scheme),
        attacker=replace(case.attacker, images=own),
        truth=replace(case.truth, originals=originals),
        attributes={"mark": told},
    )


def infer(case: Case, **values: Any) -> AttackResult:
    return AttributeInference(AttributeInferenceParams(**values)).run(case)


@pytest.mark.parametrize(
    "scheme, kind, least",
    [
        (Plain(), "place", 0.95),
        (Shuffled(), "light", 0.95),
        (SideOnly(), "place", 0.8),
        (make_scheme("pixelate", {"block_px": 4}, "test"), "place", 0.9),
        (make_scheme("visualmixer", {"region_px": 8, "n": 4}, "test"), "place", 0.5),
        (make_scheme("negative_positive", {}, "test"), "light", 0.9),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_an_attribute_that_shows_is_inferred(scheme: Scheme[Any], kind: str, least: float) -> None:
    result = infer(attributed(scheme, kind))
    assert result.status == "ok"
    assert result.value >= least
    assert (result.chance, result.gallery, result.risk) == (0.0, 2, "inference")
    assert result.control.low < 0.15
    assert result.oracle.value > 0.9
    assert result.details["accuracy"] == pytest.approx((1 + result.value) / 2)
    assert abs(result.details["accuracy_by_label_alone"] - 0.5) < 0.1


@pytest.mark.parametrize(
    "scheme, kind", [(Noise(), "light"), (Shuffled(), "place"), (Black(), "light"),
                     (OtherPeople(), "light")],
    ids=lambda value: getattr(value, "name", None),
)  # fmt: skip
def test_chance_where_it_does_not_show(scheme: Scheme[Any], kind: str) -> None:
    result = infer(attributed(scheme, kind, targets=700))
    accuracy = result.details["accuracy"]
    # Four standard deviations of a fair coin.
    assert abs(accuracy - 0.5) < 4 * 0.5 / np.sqrt(result.targets)
    assert result.low < 0.1
    assert result.oracle.value > 0.9


def test_a_rare_value_counts_as_much_as_a_frequent_one() -> None:
    case = attributed(Noise(), "light", targets=700, rare=0.15)
    result = infer(case)
    share = np.mean([case.attributes["mark"][str(name)] == "yes" for name in case.truth.ids])
    assert result.targets == 2 * round(share * 700)
    assert abs(result.details["accuracy"] - 0.5) < 4 * 0.5 / np.sqrt(result.targets)


def test_the_network_learns_too() -> None:
    case = attributed(Plain(), "place", targets=240, auxiliary=200)
    values = {"steps": 60, "width": 8, "batch": 32, "versions": 1}
    attack = AttributeInference(AttributeInferenceParams(**values))
    one, two = attack.run(case), attack.run(case)
    assert one.variants[NETWORK] > 0.9
    assert one.to_json() | {"seconds": 0} == two.to_json() | {"seconds": 0}


def test_without_an_attribute_it_says_so_and_names_those_there_are() -> None:
    assert AttributeInference().run(digit_case(Plain())).reason == NO_ATTRIBUTE
    case = attributed(Plain())
    assert AttributeInference().run(replace(case, attributes={})).reason == NO_ATTRIBUTE
    reason = infer(case, attribute="age").reason
    assert "age" in reason
    assert "mark" in reason
    assert reason != NO_ATTRIBUTE


def test_a_single_value_or_few_images_are_nothing_to_infer() -> None:
    case = attributed(Plain(), rare=0.0)
    assert "fewer than 2 values" in infer(case).reason
    assert "auxiliary" in infer(attributed(Plain(), auxiliary=12)).reason


def test_images_without_a_value_are_neither_learnt_from_nor_attacked() -> None:
    case = attributed(Plain(), targets=300)
    told = {name: value for n, (name, value) in enumerate(case.attributes["mark"].items()) if n % 2}
    result = infer(replace(case, attributes={"mark": told}))
    assert 120 <= result.targets <= 150
    assert result.value > 0.9
    shown = set(result.scores["target"])
    assert shown <= set(told)


def test_the_advantage_is_zero_for_guessing_and_one_for_certainty() -> None:
    assert _advantage(0.25, 0.25) == 0.0
    assert _advantage(0.1, 0.25) == 0.0
    assert _advantage(1.0, 0.25) == 1.0
    assert _advantage(0.625, 0.25) == pytest.approx(0.5)
    guessed, wanted = np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1])
    assert _balanced(guessed, wanted, 2) == 0.5


def fashion_case(scheme: Scheme[Any], targets: int = 500, auxiliary: int = 400) -> Case:
    """Clothes released as a single class; what they are is the attribute."""
    if not FASHION.is_file():
        pytest.skip(f"Fashion-MNIST is not at {FASHION}")
    frame = pd.read_parquet(FASHION).head(targets + auxiliary)
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in frame["image"]])
    kinds = frame["label"].to_numpy(dtype=np.int64)
    rows = np.arange(len(frame), dtype=np.int64)
    nobody = np.full(len(rows), "", dtype=object)
    case = build(
        scheme, images[..., None], kinds * 0, nobody, rows[:targets], rows[targets:], None, 0
    )
    names = [*case.truth.ids, *(row.tobytes().hex() for row in case.attacker.ids)]
    told = {str(name): str(kind) for name, kind in zip(names, kinds, strict=True)}
    return replace(case, attributes={"kind": told})


@pytest.mark.parametrize(
    "name, values, low, high",
    [
        ("visualmixer", {"region_px": 8, "n": 4}, 0.58, 0.78),
        ("pixelate", {"block_px": 8}, 0.6, 0.8),
    ],
)
def test_kinds_of_clothes_are_inferred_as_measured_before(
    name: str, values: dict[str, Any], low: float, high: float
) -> None:
    result = infer(fashion_case(make_scheme(name, values, "test")))
    assert low <= result.value <= high
    assert result.gallery == 10
    assert result.status == "ok"
    assert result.control.low <= 0.02
