# ruff: noqa: ARG002
"""Membership in what a scheme learnt: found where it learnt by heart, chance where it did not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from veilset.attacks.learnt_membership import (
    FEWEST,
    LearntMembership,
    LearntMembershipParams,
    learnt_membership,
)
from veilset.errors import ProtectionError, SettingsError
from veilset.metrics.statistics import Interval
from veilset.params import Params
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.fitted import Lessons, Progress
from veilset.schemes.randomness import Stream
from veilset.schemes.registry import make_scheme
from veilset.types import Ids, Images, Labels

PARAMS = LearntMembershipParams(shadows=8, pool=1000)


class Nothing(Params):
    """No parameters."""


class _Learner(Scheme[Nothing]):
    version = 1
    title = "Learner"
    learns = True
    Parameters = Nothing
    declares = Declaration(
        keyed=False, reversible=False, guarantee=None, protects_queries=True, uses_labels=False,
        provenance="ours", source="a test",
    )  # fmt: skip


class Keeper(_Learner):
    """Keeps what it was fitted on: such an image comes out less changed than others do."""

    name = "keeper"

    def _fit(
        self, lessons: Lessons, progress: Progress | None
    ) -> tuple[Mapping[str, npt.NDArray[Any]], Mapping[str, Any]]:
        return {"kept": lessons.images}, {}

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        kept = {image.tobytes() for image in self.learnt["kept"]}
        own = np.array([image.tobytes() in kept for image in images])
        return Protected(np.where(own[:, None, None, None], images, images ^ 64))


class Averager(_Learner):
    """Learns one number of all images together, which tells nothing of one."""

    name = "averager"

    def _fit(
        self, lessons: Lessons, progress: Progress | None
    ) -> tuple[Mapping[str, npt.NDArray[Any]], Mapping[str, Any]]:
        return {"mean": np.array([lessons.images.mean()])}, {}

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        return Protected(images ^ np.uint8(int(self.learnt["mean"][0]) & 15))


def lessons(count: int = 500, side: int = 8, seed: int = 0) -> tuple[Lessons, Images, Labels]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2 * count + 40, side, side, 1), dtype=np.uint8)
    labels = np.arange(len(images)) % 4
    held = slice(2 * count, None)
    told = Lessons(images[:count], labels[:count], images[held], labels[held], 4)
    return told, images[count : 2 * count], labels[count : 2 * count]


def attacked(scheme: Scheme[Any], params: LearntMembershipParams = PARAMS) -> LearntMembership:
    told, images, labels = lessons()
    return learnt_membership(scheme, scheme.fit(told), told, (images, labels), params)


def test_what_learnt_by_heart_gives_its_images_away() -> None:
    found = attacked(Keeper())
    assert found.rate.value > 0.95
    assert found.sound
    assert found.verdict(0.05) == "fail"
    assert found.control.value < 0.05
    assert (found.members, found.others, found.shadows) == (500, 500, 8)
    few = attacked(Keeper(), PARAMS.model_copy(update={"pool": 400}))
    assert few.verdict(0.05) == "undecided", "200 others cannot tell one false alarm in 100"


def test_one_number_of_all_images_gives_none_away() -> None:
    found = attacked(Averager())
    assert found.rate.low <= 0.01 <= found.rate.high
    assert found.sound
    assert found.verdict(0.05) in ("pass", "undecided")
    assert found.verdict(0.5) == "pass"


def test_the_same_seed_gives_the_same_figures() -> None:
    assert attacked(Keeper()) == attacked(Keeper())
    other = PARAMS.model_copy(update={"seed": 1})
    assert attacked(Averager(), other) != attacked(Averager())


def test_a_weak_oracle_supports_no_pass() -> None:
    low = Interval(0.01, 0.0, 0.03)
    found = LearntMembership(low, low, low, 0.01, 400, 400, 8, "x, y")
    assert found.verdict(0.05) == "undecided"


def test_progress_is_told_and_few_images_are_refused() -> None:
    told, images, labels = lessons(150)
    seen: list[tuple[int, int]] = []
    scheme = Averager()
    learnt_membership(
        scheme, scheme.fit(told), told, (images, labels), PARAMS,
        lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    assert seen == [(n, 8) for n in range(1, 9)]
    few, images, labels = lessons(FEWEST - 1)
    with pytest.raises(ProtectionError, match="needs 100 images"):
        learnt_membership(scheme, scheme.fit(few), few, (images, labels), PARAMS)
    for values in ({"shadows": 5}, {"shadows": 4}, {"pool": 10}):
        with pytest.raises(SettingsError):
            LearntMembershipParams.parse(values, "here")


@pytest.mark.timeout(300)
def test_the_schemes_that_learn_can_be_asked() -> None:
    told, images, labels = lessons(120, side=16)
    for name, values in {
        "mask_desensitization": {"epochs": 1},
        "image_to_perturbation": {
            "classifier_epochs": 1, "feature_epochs": 1, "epochs": 1, "least_steps": 1,
            "width": 8, "base": 8, "fold": 1,
        },
    }.items():  # fmt: skip
        scheme = make_scheme(name, values, "here")
        short = LearntMembershipParams(shadows=6, pool=240)
        try:
            fitted = scheme.fit(told)
        except ProtectionError as error:
            pytest.skip(f"noise teaches {name} nothing: {error}")
        found = learnt_membership(scheme, fitted, told, (images, labels), short)
        assert 0 <= found.rate.low <= found.rate.value <= found.rate.high <= 1
        assert ("class of" in found.variant) <= (name == "image_to_perturbation")
