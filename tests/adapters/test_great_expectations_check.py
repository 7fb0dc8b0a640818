"""Planted faults in an index table; each must be found by its rule, and by no other."""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from veilset.adapters.great_expectations_check import (
    CheckParams,
    CheckResult,
    Finding,
    check_index,
    find,
    make_rules,
    make_tables,
    raise_if_critical,
    read_verdict,
)
from veilset.errors import CheckError, SettingsError
from veilset.files import read_table, write_table

CLASSES = ("cat", "dog", "owl")
ROLES = ["train"] * 12 + ["validation"] * 3 + ["test"] * 6 + ["auxiliary"] * 3 + ["gallery"] * 3


def clean_index() -> pd.DataFrame:
    rows = len(ROLES)
    labels = np.arange(rows) % 3
    return pd.DataFrame(
        {
            "id": [hashlib.sha256(bytes([i])).hexdigest()[:32] for i in range(rows)],
            "name": [f"secret-person-{i}.png" for i in range(rows)],
            "label": labels.astype(np.int64),
            "class_name": [CLASSES[label] for label in labels],
            "group": "",
            "role": ROLES,
            "width": 32,
            "height": 32,
            "mode": "RGB",
            "duplicate_of": None,
            "near_duplicate_of": None,
            "drop": "first",
            "brightness": 100.0,
            "reason": None,
        }
    )


def plant(frame: pd.DataFrame, row: int, **values: object) -> pd.DataFrame:
    frame = frame.astype(dict.fromkeys(values, object))
    for name, value in values.items():
        frame.loc[row, name] = value
    return frame


def failed(findings: tuple[Finding, ...]) -> dict[str, str]:
    return {f.rule: f.severity for f in findings if not f.success}


def faults(frame: pd.DataFrame, **limits: object) -> dict[str, str]:
    return failed(find(frame, CLASSES, CheckParams.parse(limits, "check")))


def check(frame: pd.DataFrame, folder: Path, **limits: object) -> CheckResult:
    return check_index(frame, CLASSES, CheckParams.parse(limits, "check"), folder / "checks")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> CheckResult:
    return check(clean_index(), tmp_path_factory.mktemp("clean"))


def test_a_clean_drop_passes_every_rule(clean: CheckResult) -> None:
    assert failed(clean.findings) == {}
    raise_if_critical(clean)
    assert read_verdict(clean.output) == {"critical_failed": [], "warnings": []}
    stored = json.loads((clean.output / "results.json").read_text())
    assert stored["success"] is True
    assert [r["rule"] for r in stored["results"]] == [f.rule for f in clean.findings]


FAULTS = {
    "id_unique and across roles": (
        lambda f: plant(f, 20, id=f.loc[0, "id"]),
        {"id_unique": "critical", "exact_duplicates_across_roles": "critical"},
    ),
    "id twice in one role": (lambda f: plant(f, 1, id=f.loc[0, "id"]), {"id_unique": "critical"}),
    "no id": (lambda f: plant(f, 2, id=None), {"id_present": "critical"}),
    "malformed id": (lambda f: plant(f, 2, id="ABC"), {"id_form": "critical"}),
    "label out of range": (
        lambda f: plant(f, 14, label=7),
        {"label_known": "critical", "label_names_class": "critical"},
    ),
    "label of another class": (
        lambda f: plant(f, 13, class_name="owl"),
        {"label_names_class": "critical"},
    ),
    "tiny image": (lambda f: plant(f, 5, width=3), {"width_in_range": "critical"}),
    "huge image": (lambda f: plant(f, 5, height=99999), {"height_in_range": "critical"}),
    "black images": (lambda f: plant(f, 5, brightness=0.0), {"brightness_sane": "warning"}),
    "unknown role": (lambda f: plant(f, 14, role="oops"), {"role_known": "critical"}),
    "refused without a reason": (
        lambda f: plant(f, 14, role="quarantined"),
        {"refusal_has_reason": "critical"},
    ),
    "many refused": (
        lambda f: f.assign(
            role=["quarantined" if i in (12, 13) else r for i, r in enumerate(f["role"])],
            reason=["truncated" if i in (12, 13) else None for i in range(len(f))],
        ),
        {"quarantine_rate": "critical"},
    ),
    "near duplicate across roles": (
        lambda f: plant(f, 16, near_duplicate_of=f.loc[0, "id"]),
        {"near_duplicates_across_roles": "warning"},
    ),
    "near duplicate inside a role": (lambda f: plant(f, 1, near_duplicate_of=f.loc[0, "id"]), {}),
    "a person on both sides": (
        lambda f: plant(plant(f, 0, group="anna"), 22, group="anna"),
        {"groups_shared_with_attacker": "warning"},
    ),
    "many exact duplicates": (
        lambda f: pd.concat(
            [f, f.iloc[:12].assign(role="duplicate", duplicate_of=f["id"][:12])],
            ignore_index=True,
        ),
        {"duplicate_share": "warning"},
    ),
    "a class without training images": (
        lambda f: f.drop(index=[i for i in range(12) if i % 3 == 1]).reset_index(drop=True),
        {"train_images_per_class": "critical", "class_imbalance": "warning"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_by_its_rules_alone(fault: str) -> None:
    spoil, expected = FAULTS[fault]
    assert faults(spoil(clean_index())) == expected


def test_an_imbalanced_drop_is_warned_of() -> None:
    frame = clean_index().drop(index=[1, 4]).reset_index(drop=True)
    assert faults(frame, max_imbalance=1.5) == {"class_imbalance": "warning"}


def test_a_required_role_that_is_empty_is_critical() -> None:
    frame = clean_index()
    frame = frame[frame["role"] != "gallery"].reset_index(drop=True)
    found = faults(frame, required_roles=["train", "gallery"])
    assert found == {"role_gallery_present": "critical"}


def test_the_sentence_names_rule_value_and_limit(tmp_path: Path) -> None:
    frame = clean_index().drop(index=[1, 4, 7]).reset_index(drop=True)
    findings = find(frame, CLASSES, CheckParams(min_train_per_class=3))
    result = CheckResult(findings=findings, output=tmp_path)
    with pytest.raises(CheckError) as caught:
        raise_if_critical(result)
    sentence = str(caught.value)
    for part in ("train_images_per_class", "at least 3", "observed 1", "too few in dog"):
        assert part in sentence
    assert sentence.count("\n") == 0


def test_the_evidence_has_the_same_bytes_twice(clean: CheckResult, tmp_path: Path) -> None:
    again = check(clean_index(), tmp_path)
    assert tree(again.output) == tree(clean.output)


def test_an_index_read_from_parquet_gives_the_same_findings(
    clean: CheckResult, tmp_path: Path
) -> None:
    clean_index().to_parquet(tmp_path / "index.parquet")
    frame = pd.read_parquet(tmp_path / "index.parquet")
    assert find(frame, CLASSES, CheckParams()) == clean.findings


def test_rows_that_could_not_be_decoded_are_gaps_and_no_fault(tmp_path: Path) -> None:
    frame = clean_index()
    unknown = {"id": None, "class_name": None, "mode": None, "brightness": None, "width": None,
               "height": None, "label": -1, "role": "quarantined",
               "reason": "truncated"}  # fmt: skip
    frame = pd.concat([frame, frame.iloc[:1].assign(**unknown)], ignore_index=True)
    frame = frame.astype({"width": "Int64", "height": "Int64", "brightness": "float64"})
    write_table(tmp_path / "index.parquet", frame)
    stored = read_table(tmp_path / "index.parquet")
    assert faults(stored) == {}
    assert faults(plant(stored, 5, width=3)) == {"width_in_range": "critical"}


def test_data_docs_load_nothing_and_tell_no_row(tmp_path: Path) -> None:
    frame = plant(clean_index(), 1, id=clean_index().loc[0, "id"])
    result = check(frame, tmp_path)
    pages = list((result.output / "data_docs").rglob("*.html"))
    assert (result.output / "data_docs" / "index.html") in pages
    text = "".join(page.read_text() for page in pages)
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=.?https?:", text)
    assert not re.search(r"url\(.?https?:|@import", text)
    everything = b"".join(tree(result.output).values()).decode()
    assert frame.loc[0, "id"] not in everything
    assert "secret-person" not in everything
    assert "expect" in text.lower() and "id" in text
    assert sum(page.stat().st_size for page in pages) < 500_000


def test_nothing_is_written_outside_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("work", "temporary", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    check(clean_index(), tmp_path)
    kept = [path for name in ("work", "temporary", "home") for path in (tmp_path / name).rglob("*")]
    assert kept == []
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    (tmp_path / "checks" / "data_docs").mkdir(parents=True)
    (tmp_path / "checks" / "data_docs" / "old.html").write_text("old")
    (tmp_path / ".checks.partial" / "data_docs").mkdir(parents=True)
    (tmp_path / ".checks.partial" / "data_docs" / "killed.html").write_text("killed")
    result = check(plant(clean_index(), 5, width=3), tmp_path)
    assert read_verdict(result.output) == {"critical_failed": ["width_in_range"], "warnings": []}
    assert not {"data_docs/old.html", "data_docs/killed.html"} & set(tree(result.output))


def test_a_table_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="brightness"):
        check(clean_index().drop(columns="brightness"), tmp_path)
    with pytest.raises(CheckError, match="no rows"):
        check(clean_index().iloc[:0], tmp_path)
    assert not (tmp_path / "checks").exists()


def test_every_rule_reads_a_column_that_its_table_has() -> None:
    tables = make_tables(clean_index(), CLASSES)
    rules = make_rules(tables, CLASSES, CheckParams())
    assert len({rule.name for rule in rules}) == len(rules)
    assert all(rule.column in tables[rule.table].columns for rule in rules)
    assert all(rule.control for rule in rules)


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(SettingsError, match="max_quarantine_rate"):
        CheckParams.parse({"max_quarantine_rate": 2}, "params.yaml: check")
