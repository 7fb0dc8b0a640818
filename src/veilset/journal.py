"""Records that only grow, and in which no line can be changed, dropped or moved unnoticed.

A journal is a text file with a JSON object a line. Each line names the SHA-256 of the line before
it, so a reader who trusts the last line trusts all of them. Lines cut off at the end leave a sound,
shorter journal: that only a copy elsewhere shows, which is what git has of it. All of it is ours.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from veilset.errors import CorruptError
from veilset.files import locked, write_text

_AFTER: Final = "after"
_START: Final = "0" * 64


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
            lines.append(_text({**entry, _AFTER: _digest(lines)}))
        write_text(path, "".join(f"{line}\n" for line in lines))


def read_journal(path: Path) -> tuple[dict[str, Any], ...]:
    """All entries, oldest first; none where there is no journal.

    Raises:
        CorruptError: It is no longer as it was written; the line is named.
    """
    return _entries(path, _lines(path))


def _lines(path: Path) -> list[str]:
    try:
        # Not `splitlines`, which ends lines at characters that JSON leaves as they are.
        return path.read_bytes().decode().split("\n")[:-1]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptError(f"{path} cannot be read ({error}): restore it from a commit.") from None


def _entries(path: Path, lines: Sequence[str]) -> tuple[dict[str, Any], ...]:
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or entry.pop(_AFTER, "") != _digest(lines[: number - 1]):
            raise CorruptError(
                f"{path}, line {number}: it or the line before it is not as it was written. "
                "Restore the file from a commit."
            )
        found.append(entry)
    return tuple(found)


def _digest(before: Sequence[str]) -> str:
    return hashlib.sha256(before[-1].encode()).hexdigest() if before else _START


def _text(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True, ensure_ascii=False, allow_nan=False)
