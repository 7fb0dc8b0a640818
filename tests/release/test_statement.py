"""The statement: its frame, its one spelling, and that nothing private has a place in it."""

import json
from typing import Any

import pytest
from pydantic import ValidationError
from release_cases import DAY, Made

from veilset.errors import CorruptError
from veilset.release.ledger import Spent
from veilset.release.statement import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    BudgetFacts,
    Predicate,
    SchemeFacts,
    SetFacts,
    Statement,
    Subject,
    Waiver,
)
from veilset.schemes.composition import Composition
from veilset.schemes.registry import make_scheme, scheme_names

FILES = {"drop-0/train-00000.arrow": "1" * 64, "README.md": "2" * 64}


def statement(case: Made) -> Statement:
    return Statement.of(FILES, case.facts)


def test_its_frame_is_an_in_toto_statement(project: Made) -> None:
    found = json.loads(statement(project).to_bytes())
    assert set(found) == {"_type", "subject", "predicateType", "predicate"}
    assert found["_type"] == STATEMENT_TYPE == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == PREDICATE_TYPE
    assert found["subject"] == [
        {"name": "README.md", "digest": {"sha256": "2" * 64}},
        {"name": "drop-0/train-00000.arrow", "digest": {"sha256": "1" * 64}},
    ]
    assert statement(project).files == FILES


def test_it_tells_what_was_done_found_and_spent(project: Made) -> None:
    waiver = Waiver(reason="r" * 20, name="Ana Roth", date=DAY)
    facts = project.facts.model_copy(update={"waiver": waiver})
    told = json.loads(Statement.of(FILES, facts).to_bytes())["predicate"]
    assert (told["dataset"], told["released"]) == ("faces", "2026-03-01")
    assert told["receiver"] == "outside_trainer"
    assert told["scheme"]["parameters"]["eps_n"] == 8.0
    assert told["scheme"]["declaration"]["keyed"] is True
    assert told["verdicts"]["outside_trainer"]["verdict"] == "pass"
    assert told["verdicts"]["outside_trainer"]["limits"]["singling_out"] == 0.2
    assert told["verdicts"]["public_release"]["verdict"] == "fail"
    assert told["utility"][0]["low"] == 0.85
    assert told["floors"] == {"min_accuracy": None, "max_loss_points": None}
    assert told["budget"] == {
        "metric": "L1 per unit of intensity", "release": 9.0, "releases": 2, "most": 12.0,
        "least": 9.0,
    }  # fmt: skip
    assert told["waiver"] == {"reason": "r" * 20, "name": "Ana Roth", "date": "2026-03-01"}
    assert told["checks"]["drop-1"] == {"critical_failed": [], "warnings": ["imbalance"]}
    assert (told["commit"], told["packages"]["numpy"]) == ("a" * 40, "2.4.6")
    roots = [one["root"] for one in told["sets"]]
    assert roots == [project.sets[name].manifest.root for name in ("drop-0", "drop-1")]


def test_it_comes_back_from_its_bytes(project: Made) -> None:
    made = statement(project)
    assert Statement.from_bytes(made.to_bytes()) == made
    assert Statement.from_bytes(made.to_bytes()).to_bytes() == made.to_bytes()


@pytest.mark.parametrize("name", scheme_names())
def test_the_record_of_every_scheme_fits(name: str) -> None:
    scheme = make_scheme(name, {}, "test")
    found = SchemeFacts.model_validate(json.loads(json.dumps(scheme.record())))
    assert found.name == name
    assert found.declaration.keyed == scheme.declares.keyed
    assert len(found.steps) == (2 if name == Composition.name else 0)


def altered(case: Made, *path: str | int, value: Any) -> bytes:
    found: Any = json.loads(statement(case).to_bytes())
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return (json.dumps(found, sort_keys=True, indent=1) + "\n").encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [(("_type",), "https://in-toto.io/Statement/v2"), (("predicateType",), "other"),
     (("more",), 1), (("predicate", "host"), "h"), (("predicate", "sets", 0, "path"), "/x"),
     (("subject",), []), (("subject", 0, "digest"), {"md5": "0" * 32}),
     (("predicate", "key_fingerprint"), "0" * 64), (("predicate", "commit"), "main"),
     (("predicate", "budget", "release"), float("inf")), (("predicate", "released"), "today")],
)  # fmt: skip
def test_another_layout_is_refused(project: Made, path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(CorruptError, match="use the version that made the release"):
        Statement.from_bytes(altered(project, *path, value=value))


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_statement_is_refused(raw: bytes) -> None:
    with pytest.raises(CorruptError, match="The statement is signed, but has not the layout"):
        Statement.from_bytes(raw)


def test_another_spelling_is_refused(project: Made) -> None:
    raw = json.dumps(json.loads(statement(project).to_bytes())).encode()
    with pytest.raises(CorruptError, match="not spelt"):
        Statement.from_bytes(raw)


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", ".hidden", "a\\b", "a b"]
)
def test_a_subject_lies_inside_the_release(name: str) -> None:
    with pytest.raises(ValidationError, match="no plain place"):
        Subject.model_validate({"name": name, "digest": {"sha256": "0" * 64}})


@pytest.mark.parametrize("folder", ["", "..", "a/b", ".x", "drop-1"])
def test_folders_of_sets_are_plain_and_different(project: Made, folder: str) -> None:
    found = project.facts.model_dump()
    found["sets"][0]["folder"] = folder
    with pytest.raises(ValidationError, match="no plain names"):
        Predicate.model_validate(found)


def test_the_identity_of_all_sets_is_that_of_each(project: Made) -> None:
    facts = project.facts
    assert len(facts.root) == 64
    assert facts.model_copy(update={"sets": facts.sets[:1]}).root != facts.root
    other = facts.sets[0].model_copy(update={"root": "0" * 64})
    assert facts.model_copy(update={"sets": (other, facts.sets[1])}).root != facts.root


def test_a_budget_has_this_release_and_the_totals() -> None:
    spent = Spent(metric="L1", images=5, releases=2, most=3.0, least=1.0)
    assert BudgetFacts.of(("L1", 1.0), spent).model_dump() == {
        "metric": "L1", "release": 1.0, "releases": 2, "most": 3.0, "least": 1.0,
    }  # fmt: skip


def test_no_leak_of_raw_ids_hashes_names_groups_and_paths(project: Made) -> None:
    assert len(project.private) > 500
    text = statement(project).to_bytes().decode()
    assert [word for word in project.private if word in text] == []
    # The keyed digest of the source is there, and not the plain one.
    made = project.sets["drop-0"].manifest
    assert SetFacts.of("drop-0", made).source in text
