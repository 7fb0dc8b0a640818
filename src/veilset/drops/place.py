"""The drop place: a folder in which each entry is a drop that somebody left.

    <place>/                 0700
      ward_7/ or ward_7.zip  an entry: a folder, an archive or a file that a source reads
      ward_7.yaml            its note, or `drop.yaml` inside the folder; of an archive
                             `ward_7.zip.yaml`
      .reasons.json          what was not taken, and why; 0600, because names may tell of persons
      .taken/<drop>/         entries that were taken, where the policy keeps them

An entry without a note is not taken: nobody said under which licence it came, and copying it may
not have ended. Names of entries go into no log and no record. All of it is ours.
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import Field

from veilset.drops.intake import (
    Arrival,
    Look,
    add_drop,
    look_at,
    settled,
)
from veilset.drops.policy import DropPolicy
from veilset.drops.record import DropRecord
from veilset.errors import SettingsError, SourceError
from veilset.files import write_json, write_text
from veilset.keys import Key
from veilset.params import Params

INSIDE: Final = "drop.yaml"
"""The note of a folder, where it lies in it."""

REASONS: Final = ".reasons.json"

_GITIGNORE: Final = ".gitignore"
_NOTE: Final = ".yaml"
_LONGEST: Final = 64 << 10  # bytes of a note
_KEPT: Final = ".taken"
_LEAVING: Final = ".leaving"


class Note(Params):
    """What whoever leaves an entry says of it.

    Attributes:
        licence: Under which terms the images may be used.
        consent: On what ground they may be processed.
        by: Who answers for it, by full name.
        name: The drop's name; by default one after the date.
        source: Which source reads it; `auto` recognises it.
        options: Further parameters of the source.
        table: Of a folder with a table: the table's path inside it.
    """

    licence: str = Field(min_length=1)
    consent: str = Field(min_length=1)
    by: str = Field(min_length=1)
    name: str | None = None
    source: str = "auto"
    options: dict[str, Any] = Field(default_factory=dict)
    table: str = ""

    def arrival(self) -> Arrival:
        """The same for `add_drop`."""
        return Arrival(
            self.licence, self.consent, self.by, self.name, self.source, self.options, self.table
        )


@dataclass(frozen=True)
class Entry:
    """One entry of the drop place.

    Attributes:
        path: The folder or file.
        note: Where its note is or would be: beside it.
        inside: Where a note inside it is or would be.
    """

    path: Path
    note: Path
    inside: Path


def drop_place(root: Path, policy: DropPolicy) -> Path:
    """The drop place; made where missing; closed to others and to git where it is in the project.

    A place elsewhere belongs to whoever made it, and so do its permissions.
    """
    place = (root / Path(policy.place).expanduser()).absolute()
    if not place.is_dir():
        place.mkdir(parents=True, mode=0o700)
    if place.resolve().is_relative_to(root.resolve()):
        if place.stat().st_mode & 0o077:
            place.chmod(0o700)
        if not (place / _GITIGNORE).exists():
            write_text(place / _GITIGNORE, "*\n")
    return place


def entries(place: Path) -> tuple[Entry, ...]:
    """The entries by name; dot-files and notes are none.

    Args:
        place: The drop place.
    """
    return tuple(
        Entry(path, path.with_name(path.name + _NOTE), path / INSIDE)
        for path in sorted(place.iterdir())
        if not path.name.startswith(".") and not path.name.endswith(_NOTE)
    )


def read_note(entry: Entry, defaults: Mapping[str, Any]) -> Note:
    """What is said of an entry: beside it, else inside it, else by the policy.

    Args:
        entry: The entry.
        defaults: What holds where the note does not say it.

    Raises:
        SourceError: Nothing says under which licence and consent it came, and who answers for it;
            or the note is no note.
    """
    path = next((one for one in (entry.note, entry.inside) if _is_file(one)), None)
    values = dict(defaults) | ({} if path is None else _note_values(path))
    try:
        return Note.parse(values, "its note")
    except SettingsError as error:
        if path is None:
            raise SourceError(
                f"It has no note: say licence, consent and by in {INSIDE} inside it, or beside it "
                f"in a file of its name with {_NOTE} added."
            ) from None
        raise SourceError(f"It is not taken, because {error}") from None


def is_ready(entry: Entry, defaults: Mapping[str, Any]) -> Look | None:
    """What lies there, if the entry has a note; None where there is nothing to take (yet).

    A note inside is left out, because a run puts it beside the entry.
    """
    try:
        read_note(entry, defaults)
        look = look_at(entry.path)
    except SourceError:
        return None
    note = (INSIDE.encode(),)
    return replace(look, files=tuple(one for one in look.files if one.parts != note))


def take_entry(
    root: Path, entry: Entry, policy: DropPolicy, ids_key: Key, track: Callable[[Path], None]
) -> tuple[DropRecord, bool]:
    """Copies an entry into the project as a drop; then, and only then, it leaves the drop place.

    Killed at any moment, it is finished by the next call: the same content is one drop.

    Args:
        root: The project's folder.
        entry: The entry.
        policy: The policy.
        ids_key: Under which the content is hashed.
        track: Puts the raw folder under version control.

    Returns:
        The drop's record, and whether it is new.

    Raises:
        SourceError: It has no note, is still being written, or no source reads it; it stays.
        SettingsError: A name or option is refused; it stays.
        BusyError: Another run adds a drop.
        DiskFullError: The disk has no room.
    """
    said = read_note(entry, policy.defaults).arrival()
    if not _is_file(entry.note) and _is_file(entry.inside):
        # It tells of the images and is none: inside, it would be refused as one.
        settled(entry.path, policy.settle_seconds)
        entry.inside.rename(entry.note)
    before = look_at(entry.path)
    record, new = add_drop(root, entry.path, said, ids_key, track, policy.settle_seconds)
    if look_at(entry.path) != before:
        raise SourceError(
            f"{entry.path} was added as {record.name!r} and changed since: it stays in the drop "
            "place, and the next run takes it as a drop of its own."
        )
    _take_away(entry, record.name, policy)
    return record, new


def finish_taking(place: Path, policy: DropPolicy) -> None:
    """Ends what a run that was killed had begun to take away.

    Args:
        place: The drop place.
        policy: The policy.
    """
    for folder in sorted((place / _KEPT).glob("*")):
        for moved in [path for path in folder.iterdir() if not path.name.endswith(_NOTE)]:
            _move_note(place, moved)
    for folder in sorted((place / _LEAVING).glob("*")):
        for moved in [path for path in folder.iterdir() if not path.name.endswith(_NOTE)]:
            _move_note(place, moved)
        shutil.rmtree(folder)
    if policy.taken == "remove":
        with suppress(OSError):
            (place / _LEAVING).rmdir()


def write_reasons(place: Path, reasons: Mapping[str, str]) -> None:
    """Writes why entries were not taken, by name, for whoever may look into the drop place.

    Args:
        place: The drop place.
        reasons: By the names of the entries; none removes the file.
    """
    path = place / REASONS
    if reasons:
        write_json(path, {printable(name): why for name, why in reasons.items()})
        path.chmod(0o600)
    else:
        path.unlink(missing_ok=True)


def printable(name: str) -> str:
    """A file's name without bytes that are no text."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


# ------------------------------------------------------------------------------- small parts below


def _is_file(path: Path) -> bool:
    """A regular file; a link is none."""
    return path.is_file() and not path.is_symlink()


def _note_values(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST + 1)
        text = raw.decode("utf-8")
        # An alias makes a short text a long one.
        alike = any(isinstance(one, yaml.AliasToken) for one in yaml.scan(text))
        values = None if alike or len(raw) > _LONGEST else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        values = None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise SourceError(
            "Its note is no note: write YAML with licence, consent and by, a line each."
        )
    return values


def _take_away(entry: Entry, drop: str, policy: DropPolicy) -> None:
    """Moves an entry out of sight in one step, then its note, and removes both by policy."""
    place = entry.path.parent
    over = place / (_KEPT if policy.taken == "keep" else _LEAVING)
    over.mkdir(mode=0o700, exist_ok=True)
    folder = next(
        path
        for number in range(1, 1 << 20)
        if not (path := over / (drop if number == 1 else f"{drop}_{number}")).exists()
    )
    folder.mkdir(mode=0o700)
    moved = folder / entry.path.name
    entry.path.rename(moved)
    _move_note(place, moved)
    finish_taking(place, policy)


def _move_note(place: Path, moved: Path) -> None:
    """Moves the note after its entry, unless another entry of the name has come meanwhile."""
    note = place / f"{moved.name}{_NOTE}"
    target = moved.with_name(note.name)
    if _is_file(note) and not (place / moved.name).exists() and not target.exists():
        note.rename(target)
