"""The journal of drops, and the state of each that follows from it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from veilset.drops.record import (
    DROPS_JOURNAL,
    DropEvent,
    Erasure,
    drop_records,
    enter,
    erased_groups,
    erased_images,
    find_drop,
    read_drops,
    read_events,
)
from veilset.errors import CorruptError, SourceError
from veilset.journal import append_to_journal

START = datetime(2026, 1, 1, tzinfo=UTC)
AFTER = {
    "retried": "arrived", "held": "held", "accepted": "accepted", "approved": "accepted",
    "protected": "protected", "refused": "refused", "removed": "removed",
}  # fmt: skip


def event(kind: str, drop: str = "a", hour: int = 0, **values: Any) -> DropEvent:
    arrived = {"digest": "0" * 64, "licence": "CC BY", "consent": "form", "path": "data/raw/a/drop"}
    own: dict[str, Any] = {
        "added": arrived,
        "protected": {"schemes": ("plain",)},
        "erased": {"erasure": Erasure(subject="image", digest="1" * 32, images=("1" * 32,))},
    }.get(kind, {})
    filled = {"by": "Ann", "reasons": ("why",), **own, **values}
    return DropEvent(event=kind, drop=drop, at=START + timedelta(hours=hour), **filled)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(sorted(AFTER))), max_size=12))
def test_the_last_decision_is_the_state(steps: list[tuple[str, str]]) -> None:
    events = [event("added", "a"), event("added", "b")]
    events += [event(kind, drop, hour) for hour, (drop, kind) in enumerate(steps)]
    for record in drop_records(events):
        own = [kind for drop, kind in steps if drop == record.name]
        assert record.state == (AFTER[own[-1]] if own else "arrived")
        assert [one.event for one in record.decisions] == own
        assert record.schemes == (("plain",) if own[-1:] == ["protected"] else ())


@pytest.mark.parametrize("before", ["held", "accepted", "refused"])
def test_an_erasure_leaves_a_decision_as_it_was(before: str) -> None:
    (record,) = drop_records([event("added"), event(before), event("erased")])
    assert record.state == before
    assert record.erased == 1
    assert "1 images erased" in record.words()


def test_what_was_protected_is_to_be_protected_anew_after_an_erasure() -> None:
    (record,) = drop_records([event("added"), event("protected"), event("erased")])
    assert (record.state, record.schemes) == ("accepted", ())


def test_an_erasure_that_is_on_record_twice_counts_once() -> None:
    (record,) = drop_records([event("added"), event("erased"), event("erased")])
    assert record.erased == 1


def test_a_drop_that_was_listed_by_hand_has_no_state_but_its_erasures_count() -> None:
    events = [event("erased", "byhand"), event("removed", "byhand")]
    assert drop_records(events) == ()
    assert erased_images(events) == {"1" * 32}


def test_only_erased_groups_are_known_as_groups() -> None:
    group = Erasure(subject="group", digest="2" * 32, images=("3" * 32, "4" * 32))
    events = [event("added"), event("erased"), event("erased", erasure=group)]
    assert erased_groups(events) == {"2" * 32}
    assert erased_images(events) == {"1" * 32, "3" * 32, "4" * 32}


@pytest.mark.parametrize(
    ("kind", "missing"),
    [("added", "licence"), ("added", "consent"), ("added", "digest"), ("added", "by"),
     ("approved", "by"), ("removed", "by"), ("held", "reasons"), ("erased", "erasure")],
)  # fmt: skip
def test_a_line_says_all_that_an_audit_asks(kind: str, missing: str) -> None:
    empty: Any = {"reasons": (), "erasure": None}.get(missing, "")
    with pytest.raises(ValidationError):
        event(kind, **{missing: empty})


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    events = (event("added"), event("held"), event("approved"), event("erased"))
    enter(tmp_path, *events[:2])
    enter(tmp_path, *events[2:])
    assert read_events(tmp_path) == events
    assert read_drops(tmp_path) == drop_records(events)
    assert find_drop(tmp_path, "a").state == "accepted"
    with pytest.raises(SourceError, match=r"No drop 'b'.*there are a"):
        find_drop(tmp_path, "b")


def test_no_journal_is_no_drop(tmp_path: Path) -> None:
    assert read_drops(tmp_path) == ()


def test_a_changed_journal_is_refused(tmp_path: Path) -> None:
    enter(tmp_path, event("added"), event("held"))
    path = tmp_path / DROPS_JOURNAL
    path.write_text(path.read_text().replace("Ann", "Eve", 1))
    with pytest.raises(CorruptError):
        read_drops(tmp_path)


@pytest.mark.parametrize("events", [["held"], ["added", "added"]])
def test_a_journal_that_cannot_be_is_refused(events: list[str]) -> None:
    with pytest.raises(CorruptError, match="tells of 'a' being"):
        drop_records([event(kind) for kind in events])


def test_a_line_of_another_version_is_named(tmp_path: Path) -> None:
    line = {**event("added").model_dump(mode="json"), "event": "teleported"}
    append_to_journal(tmp_path / DROPS_JOURNAL, line)
    with pytest.raises(CorruptError, match="newer Veilset"):
        read_drops(tmp_path)
