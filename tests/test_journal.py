"""Journals grow, and tell of any change to what is in them."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veilset.errors import BusyError, CorruptError
from veilset.files import locked
from veilset.journal import append_to_journal, read_journal

ENTRIES = ({"event": "made", "by": "Ä. Person"}, {"event": "sent"}, {"event": "withdrawn", "n": 3})


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    append_to_journal(path, *ENTRIES)
    return path


def test_what_is_appended_is_read_in_order(journal: Path) -> None:
    append_to_journal(journal, {"event": "last"})
    assert read_journal(journal) == (*ENTRIES, {"event": "last"})


def test_no_file_is_an_empty_journal(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none.jsonl") == ()


def test_text_with_line_ends_of_any_kind_stays_one_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    entry = {"reason": "one\ntwo\r\x0b\x0c\x1c\x85\u2028\u2029end"}
    append_to_journal(path, entry)
    append_to_journal(path, {"event": "next"})
    assert read_journal(path) == (entry, {"event": "next"})


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("act", ["change", "drop", "double"])
def test_a_line_that_was_tampered_with_is_told(journal: Path, number: int, act: str) -> None:
    lines = journal.read_text().splitlines(keepends=True)
    if act == "drop" and number == len(lines):
        pytest.skip("a journal cut off at its end is a shorter journal")
    at = number - 1
    lines[at : at + 1] = {
        "change": [lines[at].replace("event", "Event")],
        "drop": [],
        "double": [lines[at], lines[at]],
    }[act]
    journal.write_text("".join(lines))
    with pytest.raises(CorruptError, match=r"(?i)line \d+.*restore the file from a commit"):
        read_journal(journal)
    before = journal.read_bytes()
    with pytest.raises(CorruptError):
        append_to_journal(journal, {"event": "more"})
    assert journal.read_bytes() == before


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bit=st.integers(min_value=0))
def test_any_flipped_bit_is_told(journal: Path, bit: int) -> None:
    raw = bytearray(journal.read_bytes())
    at = bit % (8 * len(raw))
    raw[at // 8] ^= 1 << (at % 8)
    other = journal.with_name("flipped.jsonl")
    other.write_bytes(bytes(raw))
    with pytest.raises(CorruptError):
        read_journal(other)


def test_two_writers_at_once_lose_nothing(journal: Path) -> None:
    with locked(journal), pytest.raises(BusyError):
        append_to_journal(journal, {"event": "second"})
    assert read_journal(journal) == ENTRIES


def test_the_name_of_the_link_is_taken(journal: Path) -> None:
    with pytest.raises(ValueError, match="after"):
        append_to_journal(journal, {"after": "x"})


def test_each_line_carries_the_hash_of_the_one_before_and_of_itself(journal: Path) -> None:
    before: list[str] = []
    for line in journal.read_text().splitlines():
        entry = json.loads(line)
        after = entry.pop("after")
        text = json.dumps(entry, sort_keys=True, ensure_ascii=False)
        assert after == hashlib.sha256("\n".join([*before, text]).encode()).hexdigest()
        before = [line]
