"""The gate: nothing passes by default, and no change for the worse makes anything better."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.attacks.base import NO_NETWORK, NO_PERSONS, OTHER_KIND, SUITE_VERSION
from veilset.errors import CorruptError, SettingsError
from veilset.release.gate import (
    MODEL_HOLDER,
    TEMPLATES,
    GateParams,
    Result,
    Results,
    judge,
    read_results,
    verdicts_of,
    write_verdicts,
)
from veilset.schemes.plain import Plain

Entry = dict[str, Any]
KINDS = {
    "learned_inverse": ("outside_trainer", "singling_out"),
    "recognition": ("outside_trainer", "singling_out"),
    "linkage": ("public_release", "linkability"),
    "membership": ("model_holder", "inference"),
    "gradient_reconstruction": ("model_holder", "singling_out"),
    "feature_reconstruction": ("model_holder", "singling_out"),
    "model_inversion": ("model_holder", "inference"),
}
ORDER: tuple[str, ...] = ("pass", "undecided", "fail")


def result(
    name: str, value: float | None = 0.01, low: float | None = 0.0, high: float | None = 0.03,
    **changes: Any,
) -> Entry:  # fmt: skip
    attacker, risk = KINDS[name]
    values = {
        "attack": name, "title": name, "attacker": attacker, "risk": risk, "applicable": True,
        "metric_words": "rank-1", "value": value, "low": low, "high": high, "chance": 0.01,
        "targets": 500, "status": "ok", "words": f"{name} words.",
    }  # fmt: skip
    return values | changes


def absent(name: str, reason: str = NO_PERSONS) -> Entry:
    return result(name, None, None, None, applicable=False, reason=reason, status=None)


SOUND = [result("learned_inverse"), absent("recognition"), result("linkage")]


def verdict(
    results: list[Entry], template: Any, suite: str = SUITE_VERSION, **params: Any
) -> dict[str, Any]:
    found = Results.model_validate({"suite": suite, "scheme": "s", "results": results})
    return judge(found, template, GateParams(**params))


ON_THE_CNN = [
    result(name) for name in ("membership", "gradient_reconstruction", "feature_reconstruction")
]


def swapped(name: str, **changes: Any) -> list[Entry]:
    return [r | changes if r["attack"] == name else r for r in SOUND]


@pytest.mark.parametrize("template", ["outside_trainer", "public_release"])
def test_sound_results_within_the_limits_pass(template: str) -> None:
    found = verdict(SOUND, template)
    assert found["verdict"] == "pass"
    assert "Passes" in found["words"]
    assert found["worst"]["threshold"] == 0.2


def test_an_attack_made_for_other_schemes_neither_passes_nor_holds_up() -> None:
    elsewhere = absent("learned_inverse", f"{OTHER_KIND}: it adds no noise") | {"attack": "noise"}
    found = verdict([*SOUND, elsewhere], "outside_trainer")
    assert found["verdict"] == "pass"
    assert [f["verdict"] for f in found["findings"] if f["attack"] == "noise"] == ["undecided"]
    assert verdict([elsewhere], "outside_trainer")["verdict"] == "undecided"
    # A required attack has no such excuse.
    required = absent("learned_inverse", f"{OTHER_KIND}: it adds no noise")
    assert verdict([required, *SOUND[1:]], "outside_trainer")["verdict"] == "undecided"


def test_a_leak_fails_in_plain_words() -> None:
    words = "93 of 100 protected images are linked to their original."
    results = swapped("linkage", value=0.93, low=0.9, high=0.95, words=words)
    public = verdict(results, "public_release")
    assert public["verdict"] == "fail"
    assert public["words"] == f"Fails for a public release. {words}"
    assert public["worst"]["attack"] == "linkage"
    # An outside trainer does not hold the originals.
    assert verdict(results, "outside_trainer")["verdict"] == "pass"


def test_a_public_release_must_withstand_the_outside_trainer_as_well() -> None:
    results = swapped("learned_inverse", value=0.9, low=0.8, high=0.95)
    assert verdict(results, "public_release")["verdict"] == "fail"


@pytest.mark.parametrize("missing", ["learned_inverse", "recognition", "linkage"])
def test_a_missing_attack_never_passes(missing: str) -> None:
    results = [r for r in SOUND if r["attack"] != missing]
    found = verdict(results, "public_release")
    assert found["verdict"] == "undecided"
    assert f"{missing}: required, but it was not run" in found["words"]


def test_nothing_at_all_is_undecided_even_if_nothing_is_required() -> None:
    none = {"required_outside_trainer": (), "required_public_release": ()}
    for results in ([], [absent("recognition")]):
        found = verdict(results, "outside_trainer", **none)
        assert found["verdict"] == "undecided"
        assert found["worst"] is None


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"status": "weak_oracle"}, "weak even on unprotected"),
        ({"status": "few_targets"}, "fewer than"),
        ({"targets": 199}, "fewer than"),
        ({"targets": None}, "fewer than"),
        ({"status": None}, "status"),
        ({"status": "excellent"}, "status"),
        ({"status": "diverged", "value": None, "low": None, "high": None}, "diverged"),
        ({"value": None}, "contradict"),
        ({"value": 0.5}, "contradict"),
        ({"high": 0.21}, "holds the threshold"),
        ({"applicable": False, "reason": "too few"}, "not applicable: too few"),
    ],
)
def test_what_supports_no_conclusion_is_undecided_and_says_why(changes: Entry, part: str) -> None:
    found = verdict(swapped("learned_inverse", **changes), "outside_trainer")
    assert found["verdict"] == "undecided"
    assert part in found["words"]


def test_a_model_that_nobody_trained_is_no_reason_to_hold_up_a_verdict() -> None:
    absent_model = absent("learned_inverse", NO_NETWORK) | {"attack": "membership"}
    found = verdict([*SOUND, absent_model], "outside_trainer")
    assert found["verdict"] == "pass"
    counts = {finding["attack"]: finding["counts"] for finding in found["findings"]}
    assert counts == {"learned_inverse": True, "recognition": False, "membership": False}


def test_only_the_absence_of_persons_excuses() -> None:
    reason = "persons are named, but the attacker holds no other photographs of them"
    results = [SOUND[0], absent("recognition", reason), SOUND[2]]
    assert verdict(results, "outside_trainer")["verdict"] == "undecided"
    # Nor can an attack that needs no persons hide behind their absence alone: it is excused by
    # that reason only where it said so, and then something else must have passed.
    assert (
        verdict([absent("learned_inverse"), absent("recognition")], "outside_trainer")["verdict"]
        == "undecided"
    )


def test_old_results_count_no_longer() -> None:
    last, next_one = str(int(SUITE_VERSION) - 1), str(int(SUITE_VERSION) + 1)
    found = verdict(SOUND, "outside_trainer", suite=last)
    assert found["verdict"] == "undecided"
    assert "attack again" in found["words"]
    assert verdict(SOUND, "outside_trainer", suite=last, max_suite_age=1)["verdict"] == "pass"
    for unknown in (next_one, "", "-1", "new"):
        assert verdict(SOUND, "outside_trainer", unknown, max_suite_age=9)["verdict"] != "pass"


def test_a_leak_counts_even_from_an_unsound_attack() -> None:
    for status in ("weak_oracle", "few_targets"):
        results = swapped("learned_inverse", value=0.9, low=0.8, high=0.95, status=status)
        assert verdict(results, "outside_trainer", suite="0")["verdict"] == "fail"


unit = st.floats(0, 1)
statuses = st.sampled_from(["ok", "ok", "ok", "weak_oracle", "few_targets", "diverged", None])


@st.composite
def some_results(draw: st.DrawFn) -> list[Entry]:
    made = []
    for name in draw(st.lists(st.sampled_from(sorted(KINDS)), unique=True)):
        if draw(st.integers(0, 5)) == 0:
            made.append(absent(name, draw(st.sampled_from([NO_PERSONS, "other"]))))
            continue
        low, value, high = sorted([draw(unit), draw(unit), draw(unit)])
        targets = draw(st.sampled_from([10, 500]))
        made.append(result(name, value, low, high, status=draw(statuses), targets=targets))
    return made


templates = st.sampled_from([*TEMPLATES, MODEL_HOLDER])


@settings(max_examples=200, deadline=None)
@given(some_results(), templates, st.data())
def test_raising_a_bound_never_helps(
    results: list[Entry], template: str, data: st.DataObject
) -> None:
    measured = [i for i, r in enumerate(results) if r["high"] is not None]
    before = verdict(results, template)["verdict"]
    if not measured:
        return
    at = data.draw(st.sampled_from(measured))
    old = results[at]
    high = data.draw(st.floats(old["high"], 1))
    value = data.draw(st.floats(old["value"], high))
    low = data.draw(st.floats(old["low"], value))
    worse = [*results]
    worse[at] = old | {"high": high, "value": value, "low": low}
    assert ORDER.index(verdict(worse, template)["verdict"]) >= ORDER.index(before)


@settings(max_examples=200, deadline=None)
@given(some_results(), templates, st.data())
def test_leaving_an_attack_out_never_makes_a_pass(
    results: list[Entry], template: str, data: st.DataObject
) -> None:
    if not results:
        return
    fewer = [*results]
    dropped = fewer.pop(data.draw(st.integers(0, len(results) - 1)))
    required = GateParams().required(template)
    if dropped["attack"] in required:
        assert verdict(fewer, template)["verdict"] != "pass"


@settings(max_examples=200, deadline=None)
@given(some_results(), templates)
def test_a_pass_means_what_it_says(results: list[Entry], template: str) -> None:
    found = verdict(results, template)
    by_name = {r["attack"]: r for r in results}
    if found["verdict"] == "pass":
        for name in GateParams().required(template):
            entry = by_name[name]
            excused = not entry["applicable"] and entry["reason"] == NO_PERSONS
            assert excused or (entry["status"] == "ok" and entry["high"] <= 0.2)
            assert excused or entry["targets"] >= 200
    lows = [
        r["low"]
        for r in results
        if r["low"] is not None and r["status"] != "diverged" and r["attacker"] in TEMPLATES
    ]
    if template == "public_release" and any(low > 0.2 for low in lows):
        assert found["verdict"] == "fail"


def write(tmp_path: Path, text: str, name: str = "results.json") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"suite": "1"}', "[" * 100_000,
     json.dumps({"suite": "1", "scheme": "s", "results": [result("linkage") | {"high": 7}]}),
     json.dumps({"suite": "1", "scheme": "s", "results": [result("linkage", high=float("nan"))]})],
)  # fmt: skip
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(CorruptError, match="attack this scheme again"):
        read_results(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="run the attacks"):
        read_results(tmp_path / "results.json")


def test_verdicts_are_written_with_what_the_scheme_declares(tmp_path: Path) -> None:
    text = json.dumps(
        {"suite": SUITE_VERSION, "scheme": "plain", "shape": [8, 8, 1], "results": SOUND}
    )
    out = tmp_path / "reports/verdicts.json"
    write_verdicts({"plain": write(tmp_path, text)}, {"plain": Plain()}, GateParams(), out)
    found = json.loads(out.read_text())
    assert (found["schema"], found["suite"]) == (1, SUITE_VERSION)
    scheme = found["schemes"]["plain"]
    assert set(scheme["templates"]) == {"outside_trainer", "public_release"}
    assert scheme["declared"]["keyed"] is False
    assert scheme["key_space_bits"] == 0
    finding = scheme["templates"]["outside_trainer"]["findings"][0]
    assert set(finding) == {
        "attack", "risk", "verdict", "value", "low", "high", "threshold", "reason", "counts",
    }  # fmt: skip


def test_a_cnn_has_a_verdict_of_its_own() -> None:
    assert verdict(ON_THE_CNN, "model_holder")["verdict"] == "pass"
    assert verdict(ON_THE_CNN[1:], "model_holder")["verdict"] == "undecided"
    betrayed = [*ON_THE_CNN[1:], result("membership", 0.2, 0.1, 0.3)]
    found = verdict(betrayed, "model_holder")
    assert found["verdict"] == "fail"
    assert "who holds the CNN" in found["words"]
    # The images' receivers do not hold it, and what they can do says nothing of the CNN.
    assert verdict([*SOUND, *betrayed], "public_release")["verdict"] == "pass"
    assert verdict([*ON_THE_CNN, result("linkage", 1.0, 0.9, 1.0)], "model_holder")[
        "verdict"
    ] == "pass"  # fmt: skip


def test_what_a_class_looks_like_counts_only_where_it_is_asked_for() -> None:
    shown = [*ON_THE_CNN, result("model_inversion", 1.0, 0.7, 1.0, targets=10, status="ok")]
    found = verdict(shown, "model_holder")
    assert (found["verdict"], found["worst"]["attack"]) == ("pass", "membership")
    asked = (*GateParams().required_model_holder, "model_inversion")
    assert verdict(shown, "model_holder", required_model_holder=asked)["verdict"] == "fail"


def test_a_verdict_on_a_cnn_only_where_one_was_attacked() -> None:
    def templates(results: list[Entry]) -> set[str]:
        found = Results.model_validate(
            {"suite": SUITE_VERSION, "scheme": "plain", "results": results}
        )
        return set(verdicts_of(found, Plain(), GateParams())["templates"])

    assert templates([*SOUND, absent("membership", NO_NETWORK)]) == set(TEMPLATES)
    assert templates([*SOUND, *ON_THE_CNN]) == {*TEMPLATES, "model_holder"}


def test_verdicts_on_cnns_are_written_beside_those_on_schemes(tmp_path: Path) -> None:
    text = json.dumps({"suite": SUITE_VERSION, "scheme": "plain", "results": ON_THE_CNN})
    out, file = tmp_path / "verdicts.json", write(tmp_path, text)
    write_verdicts({}, {}, GateParams(), out, networks={("plain", "resnet20"): file})
    found = json.loads(out.read_text())["models"]["plain-resnet20"]
    assert (found["scheme"], found["model"], found["verdict"]) == ("plain", "resnet20", "pass")
    with pytest.raises(CorruptError, match="'plain'"):
        write_verdicts({}, {}, GateParams(), out, networks={("visualmixer", "resnet20"): file})


def test_results_of_another_scheme_are_refused(tmp_path: Path) -> None:
    text = json.dumps({"suite": SUITE_VERSION, "scheme": "other", "results": SOUND})
    with pytest.raises(CorruptError, match="other"):
        write_verdicts(
            {"plain": write(tmp_path, text)}, {"plain": Plain()}, GateParams(), tmp_path / "v"
        )
    assert not (tmp_path / "v").exists()


def test_limits_are_checked_by_name() -> None:
    with pytest.raises(SettingsError, match=r"gate\.public_release\.linkability"):
        GateParams.parse({"public_release": {"linkability": 2}}, "gate")
    assert Result.model_validate(result("linkage")).attack == "linkage"
