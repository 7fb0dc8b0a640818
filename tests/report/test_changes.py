"""Differences of figures between two versions, and how they are laid out."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_project import NUMBERS, attack_file, evaluation, verdicts

from veilset.metrics.statistics import wilson
from veilset.report.changes import DropState, Gap, SchemeState, Snapshot, compare, flat, shift
from veilset.report.changes_page import lines, render_changes
from veilset.report.model import AttackFile, Estimate, EvaluationFile, VerdictFile

shares = st.integers(0, 200).map(lambda hits: share(hits, 200))


def share(hits: int, n: int) -> Estimate:
    found = wilson(hits, n)
    return Estimate(value=hits / n, low=found.low, high=found.high)


def snapshot(title: str = "commit 0123456789ab") -> Snapshot:
    return Snapshot(
        title=title,
        commit="0123456789ab" + 28 * "0",
        settings={"gate": {}, "scheme": {"visualmixer": {"region_px": 8}}, "train": {"epochs": 5}},
        drops={"first": DropState(path="data/raw/first", digest="a" * 12, files=20,
                                  images={"train": 15, "test": 5}, classes=("cat", "dog"))},
        schemes={"visualmixer": SchemeState(title="VisualMixer", version="2",
                                            parameters={"region_px": 8}, key_fingerprint="ab" * 8)},
        code={"src/veilset/attacks": "1" * 12},
        verdicts=VerdictFile.model_validate(verdicts()),
        attacks={name: AttackFile.model_validate(attack_file(name)) for name in NUMBERS},
        evaluation=EvaluationFile.model_validate(evaluation()),
    )  # fmt: skip


def test_interval_of_a_difference_is_newcombes_method_10() -> None:
    """The first example of Newcombe 1998: 56/70 and 48/80."""
    found = shift(share(48, 80), share(56, 70)).difference
    assert found is not None
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (
        pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5),
    )  # fmt: skip


@given(shares, shares)
def test_differences_are_mirrored_and_hold_their_value(one: Estimate, two: Estimate) -> None:
    there, back = shift(one, two), shift(two, one)
    assert there.difference is not None
    assert back.difference is not None
    low, value, high = (there.difference.low, there.difference.value, there.difference.high)
    assert None not in (low, value, high)
    assert low <= value <= high  # type: ignore[operator]
    assert back.difference.low == pytest.approx(-high)  # type: ignore[operator]
    assert there.overlap == back.overlap
    mirrored = {"higher": "lower", "lower": "higher"}
    assert back.direction == mirrored.get(there.direction, there.direction)
    if there.overlap is False:
        assert there.direction in ("higher", "lower")


@given(shares)
def test_a_figure_that_stayed_is_the_same(one: Estimate) -> None:
    assert shift(one, one).direction == "the same"
    assert shift(one, None).direction == shift(None, one).direction == "not comparable"
    bare = Estimate(value=one.value)
    assert shift(one, bare).note == "the figure of the later version has no interval"


def test_settings_are_flat_and_lists_are_values() -> None:
    assert flat({"a": {"b": [1, 2], "c": {}}, "d": None}) == {"a.b": [1, 2], "a.c": {}, "d": None}


def test_equal_versions_have_no_change() -> None:
    found = compare(snapshot(), snapshot("the workspace"))
    assert found.data == ()
    assert found.parameters == {}
    assert {one.shift.direction for one in found.leakage} == {"the same"}
    assert not any(one.moved for one in found.leakage)
    assert "No change in data, settings, keys and code." in found.headline


def test_changes_of_every_kind_are_told() -> None:
    before = snapshot()
    after = replace(
        snapshot("the workspace"),
        settings={"gate": {"min_targets": 300}, "scheme": {"visualmixer": {}},
                  "train": {"epochs": 9}, "resources": {"workers": 4}},
        drops={"first": replace(before.drops["first"], digest="b" * 12, files=21,
                                images={"train": 16, "test": 5}),
               "second": DropState(images={"train": 7})},
        schemes={},
        code={"src/veilset/attacks": "2" * 12},
        keys={"protection": "cd" * 8},
        gaps=(Gap(version="the workspace", what="x.json", why="it is not here."),),
    )  # fmt: skip
    found = compare(before, after)
    data = {one.name: (one.before, one.after) for one in found.data}
    assert data["drop second"] == ("absent", "7 images")
    assert data["drop first: kept images"] == ("20", "21")
    assert data["drop first: raw images, DVC's digest"] == ("a" * 12, "b" * 12)
    assert "drop first: classes" not in data
    told = {one.name: (one.before, one.after) for rows in found.parameters.values() for one in rows}
    assert told == {
        "gate.min_targets": ("not set", "300"),
        "resources.workers": ("not set", "4"),
        "scheme.visualmixer.region_px": ("8", "not set"),
        "train.epochs": ("5", "9"),
        "visualmixer": ("protected", "no set on record"),
        "protection": ("not set", "cd" * 8),
        "src/veilset/attacks": ("1" * 12, "2" * 12),
    }
    cautions = " ".join(found.cautions)
    for said in ("code of the attacks changed", "data changed", "thresholds of the gate changed"):
        assert said in cautions
    text = "\n".join(lines(found))
    page = render_changes(found, "A <set>")
    for said in ("drop second", "gate.min_targets", "x.json", "region_px"):
        assert said in text
        assert said in page
    assert "A &lt;set&gt;" in page


def test_another_suite_and_another_verdict_are_told() -> None:
    before, after = snapshot(), snapshot("the workspace")
    changed = verdicts() | {"suite": "2"}
    changed["schemes"]["visualmixer"]["templates"]["outside_trainer"]["verdict"] = "fail"
    del changed["schemes"]["plain"]
    found = compare(before, replace(after, verdicts=VerdictFile.model_validate(changed)))
    assert "VisualMixer, outside trainer: was pass, is fail." in found.headline
    assert any("no longer there" in said and "Plain" in said for said in found.headline)
    assert any("attack suite is another one (1, then 2)" in said for said in found.cautions)


def test_an_unsound_attack_is_not_compared() -> None:
    found = compare(snapshot(), snapshot("the workspace"))
    weak = [one for one in found.attacks if one.scheme == "image_to_perturbation"
            and one.attack == "Membership"]  # fmt: skip
    assert [one.shift.direction for one in weak] == ["not comparable"]
    assert "not sound" in weak[0].shift.note


def test_versions_without_figures_compare_nothing() -> None:
    empty = Snapshot(title="commit 0")
    found = compare(empty, snapshot("the workspace"))
    assert all(one.shift.difference is None for one in found.leakage)
    assert all(one.accuracy.difference is None for one in found.utility)
    assert "Verdicts: not on record for commit 0, so none is compared." in found.headline
    assert "not available" in render_changes(compare(empty, empty), "x")


def test_attacks_tell_what_verdicts_do_not() -> None:
    """DVC keeps attack results, and verdicts only where git has them."""
    before = replace(snapshot(), verdicts=None)
    found = compare(before, snapshot("the workspace"))
    assert any(said.startswith("Success of attacks: the same for") for said in found.headline)
    assert "<details open>" in render_changes(found, "x")
    assert "<details open>" not in render_changes(compare(snapshot(), snapshot()), "x")
