"""The suite's files, and the registry."""

import json
from pathlib import Path
from typing import Any, Never

import numpy as np
import pytest
from attack_cases import Noise, digit_case

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
