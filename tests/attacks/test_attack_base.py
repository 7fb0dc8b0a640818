"""The harness: control, oracle, scoring, and that no attack sees the truth."""

# ruff: noqa: ARG002

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from attack_cases import Noise, digit_case, pattern_case
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.attacks.base import (
    Attack,
    AttackParams,
    AttackResult,
    Case,
    Diverged,
    Scores,
    derangement,
    natural_frequency,
    score_candidates,
)
from veilset.errors import SettingsError
from veilset.schemes.plain import Plain


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=2, max_size=40), st.integers(0, 99))
def test_a_derangement_leaves_nobody_in_place_if_it_can(names: list[str], seed: int) -> None:
    groups = np.array(names, dtype=object)
    others = derangement(groups, np.random.default_rng(seed))
    assert sorted(others) == list(range(len(names)))
    assert (others != np.arange(len(names))).all()
    named = [name for name in names if name]
    if named and 2 * max(named.count(name) for name in named) <= len(names):
        same = (groups == groups[others]) & (groups != "")
        assert not same.any()


def test_the_control_shows_other_images_and_remembers_whose() -> None:
    case = pattern_case(Plain(), persons=5)
    broken = case.control(np.random.default_rng(0))
    np.testing.assert_array_equal(broken.truth.originals, case.truth.originals)
    np.testing.assert_array_equal(
        broken.release.images, case.truth.originals[broken.truth.made_from]
    )
    assert (broken.truth.groups != broken.truth.groups[broken.truth.made_from]).all()


def test_the_oracle_shows_the_originals_under_the_plain_scheme() -> None:
    bare = digit_case(Noise(), targets=5).oracle()
    np.testing.assert_array_equal(bare.release.images, bare.truth.originals)
    assert bare.release.scheme.name == "plain"
    assert not bare.release.side


def test_rows_must_agree() -> None:
    case = digit_case(Plain(), targets=5)
    with pytest.raises(ValueError, match="same rows"):
        replace(case, truth=replace(case.truth, ids=case.truth.ids[:3]))


class Answer(Attack[AttackParams, float]):
    """Answers as it is told."""

    name = "answer"
    title = "Answer"
    risk = "inference"
    attacker = "outside_trainer"
    knowledge = "K0"
    cost = "none"
    deed = "answer"
    rates: ClassVar[Mapping[str, float]] = {"main": 0.5, "control": 0.1, "oracle": 1.0}

    def applies(self, case: Case) -> str | None:
        return None

    def _fit(self, *given: Any) -> float:
        return 0.0

    def _chosen(self, fitted: float) -> tuple[str, Mapping[str, float]]:
        return "only", {}

    def _anchor(self, case: Case) -> str:
        if len(case.truth.sources):
            return "control"
        return "oracle" if case.release.scheme.name == "plain" else "main"

    def _measure(self, fitted: float, case: Case, rng: np.random.Generator) -> Scores:
        n = len(case.release.images)
        success = (np.arange(n) < round(self.rates[self._anchor(case)] * n)).astype(float)
        return Scores(pd.DataFrame({"success": success}), 10)


def answering(targets: int = 200, **rates: float) -> AttackResult:
    attack = type("Told", (Answer,), {"rates": Answer.rates | rates})()
    return attack.run(digit_case(Noise(), targets=targets))


def test_a_result_holds_all_anchors() -> None:
    result = answering()
    assert (result.value, result.control.value, result.oracle.value) == (0.5, 0.1, 1.0)
    assert result.residual.value == pytest.approx(0.4 / 0.9)
    assert (result.status, result.chance, result.targets) == ("ok", 0.1, 200)
    assert result.words == "50 of 100 protected images answer."
    assert set(result.scores["anchor"]) == {"main", "control", "oracle"}
    json = result.to_json()
    assert set(json["control"]) == {"value", "low", "high"}
    assert "scores" not in json


def test_a_weak_oracle_is_said_before_few_targets() -> None:
    assert answering(oracle=0.4).status == "weak_oracle"
    assert answering(targets=100, oracle=0.4).status == "weak_oracle"
    assert answering(targets=199).status == "few_targets"


def test_what_is_not_a_number_is_no_privacy() -> None:
    attack = type("Broken", (Answer,), {})()

    def broken(fitted: float, case: Case, rng: np.random.Generator) -> Scores:
        return Scores(pd.DataFrame({"success": [float("nan")] * len(case.release.images)}), 10)

    attack._measure = broken
    result = attack.run(digit_case(Noise(), targets=200))
    assert result.status == "diverged"
    assert result.value is None
    assert "nothing about privacy" in result.words


def test_scoring_undoes_the_order_in_which_the_attack_saw_the_candidates() -> None:
    case = digit_case(Plain(), targets=50)
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(50)
    distances = (np.arange(50)[:, None] != shuffled[None, :]).astype(float)
    frame, size, found = score_candidates(distances, case, shuffled, 10, rng)
    assert (frame["success"] == 1).all()
    assert size == 10
    assert (found == np.arange(50)).all()
    wrong = (np.arange(50)[:, None] != np.arange(50)[None, :]).astype(float)
    assert score_candidates(wrong, case, shuffled, 10, rng)[0]["success"].mean() < 0.3
    with pytest.raises(Diverged):
        score_candidates(np.full((50, 50), np.inf), case, shuffled, 10, rng)


@pytest.mark.parametrize(
    "rate, words",
    [(0, "None of the"), (0.001, "Fewer than 1 of 100"), (0.93, "93 of 100"), (1, "100 of 100")],
)
def test_rates_in_words(rate: float, words: str) -> None:
    assert natural_frequency(rate) == words


def test_effort_changes_defaults_and_the_user_overrides_both() -> None:
    class Params(AttackParams):
        steps: int = 1
        size: int = 2
        FULL: ClassVar[Mapping[str, Any]] = {"steps": 10}

    assert Params.for_effort("quick", {}, "x").steps == 1
    assert Params.for_effort("full", {}, "x").steps == 10
    assert Params.for_effort("full", {"steps": 3}, "x").steps == 3
    with pytest.raises(SettingsError, match=r"x\.step is unknown"):
        Params.for_effort("quick", {"step": 3}, "x")
