"""The suite's files, and the registry."""

import json
from pathlib import Path
from typing import Any, Never

import numpy as np
import pandas as pd
import pytest
from attack_cases import Noise, digit_case, pattern_case

import veilset.attacks.suite as suite_module
from veilset.attacks.base import SUITE_VERSION
from veilset.attacks.registry import ATTACKS, attack_names, make_attack
from veilset.attacks.suite import run_suite
from veilset.errors import SettingsError
from veilset.files import read_table
from veilset.release.gate import read_results
from veilset.schemes.plain import Plain

ASKED = {"recognition": {}, "linkage": {"targets": 40, "versions": 1}}


def test_every_attack_is_found_and_says_what_it_is() -> None:
    assert {"linkage", "recognition", "learned_inverse"} <= set(attack_names())
    for name, attack in ATTACKS.items():
        assert attack.name == name
        assert attack.title and attack.cost and attack.deed
        assert attack.risk in ("singling_out", "linkability", "inference")
        assert attack.Parameters.for_effort("full", {}, "x") != attack.Parameters()


def test_unknown_attacks_and_parameters_are_refused_before_anything_runs() -> None:
    with pytest.raises(SettingsError, match="there are"):
        make_attack("guess", {}, "here")
    with pytest.raises(SettingsError, match=r"attack\.linkage\.target is unknown"):
        run_suite(digit_case(Plain(), targets=30), {"linkage": {"target": 3}}, dataset="x")


def test_the_evidence_is_complete_and_repeats(tmp_path: Path) -> None:
    heard = []
    case = digit_case(Plain(), targets=60)
    for name in ("one", "two"):
        run_suite(
            case, ASKED, dataset="digits", scheme_name="mine",
            progress=lambda *step: heard.append(step),
        ).write(tmp_path / name)  # fmt: skip
    values = json.loads((tmp_path / "one/results.json").read_text())
    assert (values["schema"], values["suite"], values["scheme"]) == (1, SUITE_VERSION, "mine")
    assert [r["attack"] for r in values["results"]] == ["recognition", "linkage"]
    assert values["results"][0]["applicable"] is False
    assert values["results"][0]["value"] is None
    assert values["results"][1]["targets"] == 40
    assert heard
    scores = read_table(tmp_path / "one/scores.parquet")
    assert len(scores) == 3 * 40
    assert set(scores.columns) >= {"attack", "anchor", "target", "success"}
    pictures = np.load(tmp_path / "one/examples.npz")
    assert pictures["original"].shape == (8, 16, 16, 1)
    assert pictures["original"].dtype == np.uint8
    np.testing.assert_array_equal(pictures["original"], pictures["reconstruction"])
    for name in ("examples.npz", "scores.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert read_results(tmp_path / "one/results.json").shape == (16, 16, 1)


def test_a_suite_in_which_nothing_applies_still_leaves_evidence(tmp_path: Path) -> None:
    found = run_suite(digit_case(Noise(), targets=30), {"recognition": {}}, dataset="digits")
    found.write(tmp_path)
    assert len(read_table(tmp_path / "scores.parquet")) == 0
    assert np.load(tmp_path / "examples.npz")["original"].shape == (0, 16, 16, 1)


def test_a_failed_write_leaves_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: Any) -> Never:
        raise OSError("full")

    found = run_suite(digit_case(Noise(), targets=30), {"recognition": {}}, dataset="digits")
    monkeypatch.setattr(suite_module, "write_table", full)
    with pytest.raises(OSError, match="full"):
        found.write(tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_repeated_attacks_are_joined_over_seeds_persons_and_images() -> None:
    case = pattern_case(Noise())
    once, thrice = (
        make_attack("linkage", {"targets": 60, "versions": 1, "repeats": count}, "x").run(case)
        for count in (1, 3)
    )
    assert (once.method, thrice.method) == ("cluster_bootstrap", "hierarchical_bootstrap")
    assert thrice.details["repeats"] == 3.0
    assert len(thrice.scores) == 3 * len(once.scores)
    first = thrice.scores[thrice.scores["repeat"] == 0].drop(columns="repeat")
    pd.testing.assert_frame_equal(first.reset_index(drop=True), once.scores)
    main = thrice.scores[thrice.scores["anchor"] == "main"]
    assert thrice.value == pytest.approx(main["success"].mean())
    assert thrice.targets == main["target"].nunique() > 60
    assert thrice.low <= thrice.chance <= thrice.high
    assert thrice.seed == case.attacker.seed
    again = make_attack("linkage", {"targets": 60, "versions": 1, "repeats": 3}, "x").run(case)
    assert again.to_json() | {"seconds": 0} == thrice.to_json() | {"seconds": 0}
