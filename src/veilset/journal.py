"""Records that only grow, and in which no line can be changed, dropped or moved unnoticed.

A journal is a text file with a JSON object a line. Each line carries the SHA-256 of the line
before it and of what it says itself, so a reader who trusts the last line trusts all of them. Lines
cut off at the end leave a sound, shorter journal: that only a copy elsewhere shows, which is what
git has of it. All of it is ours.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from veilset.errors import CorruptError
from veilset.files import locked, write_text
from veilset.params import Params

P = TypeVar("P", bound=Params)

_AFTER: Final = "after"


def append_to_journal(path: Path, *entries: Mapping[str, Any]) -> None:
    """Adds lines at the end, all of them or none.

    Args:
        path: The journal; made where missing.
        entries: Plain JSON; the name `after` is taken.

    Raises:
        ValueError: An entry uses a name that is taken, or holds what JSON has not.
        BusyError: Another run writes the journal.
        CorruptError: It is no longer as it was written.
        DiskFullError: The disk has no room; nothing was changed.
    """
    with locked(path):
        lines = _lines(path)
        _entries(path, lines)
        for entry in entries:
            if _AFTER in entry:
                raise ValueError(f"{_AFTER!r} is the journal's own")
            lines.append(_line(entry, lines))
        write_text(path, "".join(f"{line}\n" for line in lines))


def read_journal(path: Path) -> tuple[dict[str, Any], ...]:
    """All entries, oldest first; none where there is no journal.

    Raises:
        CorruptError: It is no longer as it was written; the line is named.
    """
    return _entries(path, _lines(path))


def read_journal_as(path: Path, kind: type[P]) -> tuple[P, ...]:
    """All entries, oldest first, as validated objects.

    Raises:
        CorruptError: It is no longer as it was written, or an entry is of no kind known here.
    """
    entries = read_journal(path)
    try:
        return tuple(kind.model_validate(entry) for entry in entries)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "an entry"
        raise CorruptError(
            f"{path}: {where}: {fault['msg']}. It was written by a newer Veilset, or by hand: "
            "update Veilset, or restore the file from a commit."
        ) from None


def _lines(path: Path) -> list[str]:
    try:
        # Not `splitlines`, which ends lines at characters that JSON leaves as they are.
        *lines, rest = path.read_bytes().decode().split("\n")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptError(f"{path} cannot be read ({error}): restore it from a commit.") from None
    if rest:
        raise _altered(path, len(lines) + 1)
    return lines


def _entries(path: Path, lines: Sequence[str]) -> tuple[dict[str, Any], ...]:
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        # Compared as text, so that no other spelling of the same passes.
        if not isinstance(entry, dict) or line != _line(_said(entry), lines[: number - 1]):
            raise _altered(path, number)
        found.append(_said(entry))
    return tuple(found)


def _said(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != _AFTER}


def _line(entry: Mapping[str, Any], before: Sequence[str]) -> str:
    """The line of an entry that comes after these lines."""
    text = "\n".join([*before[-1:], _text(entry)])
    return _text({**entry, _AFTER: hashlib.sha256(text.encode()).hexdigest()})


def _text(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _altered(path: Path, number: int) -> CorruptError:
    return CorruptError(
        f"{path}, line {number}: it or the line before it is not as it was written. Restore the "
        "file from a commit."
    )
