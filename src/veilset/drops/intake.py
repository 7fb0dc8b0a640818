r"""Taking a drop in: a copy of the whole place, or nothing.

    data/raw/<name>/          0700
      .drop.json              what it is, by which an interrupted `add` finds its own work again
      drop/ or drop<.suffix>  the folder or file as it was given; folders 0700, files 0600

The name never comes from the place, because logs and names of stages show it. What
arrives is copied and hashed, and never decoded, unpacked, executed or unpickled here. All of it is
ours.
"""

import hashlib
import hmac
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

from veilset.data.sources.confined import fault_of_mode
from veilset.data.sources.registry import open_source
from veilset.data.sources.table import TableSource
from veilset.drops.listing import list_drop
from veilset.drops.record import DropEvent, DropRecord, enter, find_drop, now, read_drops
from veilset.errors import BusyError, CorruptError, SettingsError, SourceError
from veilset.files import (
    json_text,
    leftovers,
    locked,
    require_space,
    staged_folder,
    write_json,
)  # fmt: skip
from veilset.keys import Key, derive_key
from veilset.settings import load_drops

RAW: Final = Path("data/raw")
ORIGINS: Final = Path("data/drops_origins.json")
"""Where drops came from, by name. Private: a path may name a person."""

CONTENT: Final = "drop"
_MARK: Final = ".drop.json"
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")
_SUFFIX: Final = re.compile(r"(\.tar)?\.[A-Za-z0-9]{1,8}")
_PIECE: Final = 1 << 20

Parts = tuple[bytes, ...]


@dataclass(frozen=True)
class Arrival:
    """What is said of a drop when it is added.

    Attributes:
        licence: Under which terms the images may be used.
        consent: On what ground they may be processed.
        by: Who adds it.
        name: Its name, or None for one after the date.
        source: Which source reads it; `auto` recognises it.
        options: Further parameters of the source.
        table: Of a folder with a table: the table's path inside it; "" for none.
    """

    licence: str
    consent: str
    by: str
    name: str | None = None
    source: str = "auto"
    options: Mapping[str, Any] | None = None
    table: str = ""


@dataclass(frozen=True)
class Seen:
    """A file of the place.

    Attributes:
        parts: Components of its path below the place; none where the place is the file.
        size: Bytes.
        changed: When it was last written, nanoseconds.
    """

    parts: Parts
    size: int
    changed: int


@dataclass(frozen=True)
class Look:
    """What lies in a place at one moment.

    Attributes:
        files: Its regular files, by path.
        left_out: Links and special files, which are not taken.
    """

    files: tuple[Seen, ...]
    left_out: int


def add_drop(
    root: Path, place: Path, said: Arrival, ids_key: Key, track: Callable[[Path], None],
    settle_seconds: float = 2.0,
) -> tuple[DropRecord, bool]:  # fmt: skip
    """Copies a place into `data/raw/<name>`, and has it tracked, listed and recorded.

    Killed at any moment, it leaves nothing that counts or what the next call with the same content
    finishes. Dot-files, links and special files are left out, as the sources do.

    Args:
        root: The project's folder.
        place: A folder, an archive or a file that a source reads; it is only read.
        said: Licence, consent and who answers.
        ids_key: Under which the content is hashed.
        track: Puts the raw folder under version control.
        settle_seconds: The place must not change for so long.

    Returns:
        The drop's record, and whether it is new: the same content is one drop.

    Raises:
        SourceError: There is nothing that a source reads, or it changes while it is looked at.
        SettingsError: A name or option is refused, or the name is taken.
        BusyError: Another run adds a drop.
        DiskFullError: The disk has no room.
    """
    _require_said(said)
    place = place.expanduser()
    raw = root / RAW
    with locked(raw / "drops"):
        for abandoned in raw.glob(".*.partial"):
            shutil.rmtree(abandoned)
        look = settled(place, settle_seconds)
        records = {record.name: record for record in read_drops(root)}
        name, taken = _name(root, said.name, records)
        folder, mark = _copied(root, place, look, said, (name, taken), ids_key, records)
        name = folder.name
        if name in records:
            return records[name], False
        track(folder)
        _note_origin(root, name, place)
        block = {"path": mark["path"], "source": mark["source"]}
        block |= {"options": mark["options"]} if mark["options"] else {}
        list_drop(root, name, block)
        enter(
            root,
            DropEvent(
                event="added", drop=name, at=now(), by=said.by, licence=said.licence,
                consent=said.consent, digest=mark["digest"], counts=mark["counts"],
                path=mark["path"], source=mark["source"], options=mark["options"],
            ),
        )  # fmt: skip
    return find_drop(root, name), True


def settled(place: Path, seconds: float) -> Look:
    """What lies in a place, if nobody is writing there: two looks that agree.

    Raises:
        SourceError: It is missing, empty, no folder or file, or still being written.
    """
    first = look_at(place)
    time.sleep(seconds)
    if look_at(place) != first:
        raise SourceError(
            f"{place} is still being written: it changed within {seconds:g} seconds. Add it when "
            "its writing has finished."
        )
    return first


def look_at(place: Path) -> Look:
    """Names, sizes and times of all that lies in a place; nothing is opened.

    Raises:
        SourceError: It is missing, a link, empty, or cannot be listed.
    """
    try:
        status = place.lstat()
    except OSError as error:
        raise SourceError(f"{place} cannot be added ({error.strerror}): correct it.") from None
    if stat.S_ISREG(status.st_mode):
        return Look((Seen((), status.st_size, status.st_mtime_ns),), 0)
    if not stat.S_ISDIR(status.st_mode):
        raise SourceError(
            f"{place} is a {'link' if stat.S_ISLNK(status.st_mode) else 'special file'}: give a "
            "folder, an archive or a file."
        )
    files: list[Seen] = []
    left_out = 0
    waiting: list[Parts] = [()]
    try:
        while waiting:
            for here, status in _listed(place, waiting.pop()):
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(here)
                elif fault_of_mode(status.st_mode) is None:
                    files.append(Seen(here, status.st_size, status.st_mtime_ns))
                else:
                    left_out += 1
    except OSError as error:
        raise SourceError(f"{place} cannot be listed ({error.strerror}): check it.") from None
    if not files:
        raise SourceError(f"{place} holds no files: put images there.")
    return Look(tuple(sorted(files, key=lambda one: one.parts)), left_out)


def content_digest(hashes: Mapping[Parts, str], ids_key: Key) -> str:
    """The keyed digest of a drop: of each file's path and content, 64 hex digits.

    Args:
        hashes: SHA-256 of each file by its path.
        ids_key: Without it nobody can tell whether a drop is one that they know.
    """
    listing = [[b"/".join(parts).hex(), hashes[parts]] for parts in sorted(hashes)]
    key = derive_key(ids_key, "drop")
    return hmac.digest(key.secret, json_text(listing).encode(), "sha256").hex()


def folder_hashes(content: Path) -> dict[Parts, str]:
    """SHA-256 of each file of a raw drop, by its path below `content`."""
    return {
        one.parts: _hash_of(Path(os.fsdecode(_below(content, one.parts))))
        for one in look_at(content).files
    }


def mark_of(folder: Path) -> dict[str, Any] | None:
    """What `.drop.json` of a raw folder says; None where there is none.

    Raises:
        CorruptError: It is not what was written.
    """
    try:
        mark = json.loads((folder / _MARK).read_text(encoding="utf-8"))
        return {name: mark[name] for name in ("digest", "counts", "path", "source", "options")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise CorruptError(f"{folder / _MARK} is damaged: `dvc checkout {folder}` it.") from None


def write_mark(folder: Path, mark: Mapping[str, Any]) -> None:
    """Writes `.drop.json`, for its owner alone."""
    write_json(folder / _MARK, dict(mark))
    (folder / _MARK).chmod(0o600)


def origin_of(root: Path, name: str) -> str:
    """Where a drop came from, "" where that is not known on this machine."""
    return str(_origins(root).get(name, ""))


def forget_origin(root: Path, name: str) -> None:
    """Takes a drop out of the private list of origins."""
    origins = _origins(root)
    if origins.pop(name, None) is not None:
        _write_origins(root, origins)


# ------------------------------------------------------------------------------- small parts below


class _KnownError(Exception):
    """The content is that of a drop which is here already."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.name)
        self.folder = folder


def _listed(place: Path, parts: Parts) -> list[tuple[Parts, os.stat_result]]:
    with os.scandir(_below(place, parts)) as found:
        return [
            ((*parts, child.name), child.stat(follow_symlinks=False))
            for child in found
            if not child.name.startswith(b".")
        ]


def _require_said(said: Arrival) -> None:
    for what, text in (("licence", said.licence), ("consent", said.consent), ("by", said.by)):
        if not text.strip():
            raise SettingsError(f"--{what} is empty: say it, because audits answer with it.")
    inside = Path(said.table)
    if inside.is_absolute() or ".." in inside.parts:
        raise SettingsError(f"--table {said.table!r} must be a path inside the drop.")


def _name(root: Path, wanted: str | None, records: Collection[str]) -> tuple[str, bool]:
    """The name of a new drop, and whether it is taken: that matters only for other content."""
    there = {path.name for path in (root / RAW).iterdir()}
    taken = set(records) | set(load_drops(root).drops) | there
    if wanted is not None:
        if not _NAME.fullmatch(wanted):
            raise SettingsError(
                f"--name {wanted!r} is not a name: a-z, 0-9 and _ only, at most 48, a letter first."
            )
        # A folder that an interrupted call left under this name may be finished, or replaced.
        unfinished = wanted not in records and (root / RAW / wanted / _MARK).is_file()
        return wanted, wanted in taken and not unfinished
    plain = f"drop_{date.today():%Y%m%d}"
    names = (plain if number == 1 else f"{plain}_{number}" for number in range(1, 1 << 20))
    return next(name for name in names if name not in taken), False


def _copied(
    root: Path, place: Path, look: Look, said: Arrival, named: tuple[str, bool], ids_key: Key,
    records: Mapping[str, DropRecord],
) -> tuple[Path, dict[str, Any]]:  # fmt: skip
    """The raw folder with this content, made now or found, and its mark."""
    name, taken = named
    folder = root / RAW / name
    require_space(folder, sum(one.size for one in look.files))
    try:
        with staged_folder(folder, plan=f"drop {os.urandom(16).hex()}") as staging:
            staging.chmod(0o700)
            content = staging / _content_name(place)
            hashes = _copy(place, content, look)
            if look_at(place) != look:
                raise _changed(place)
            digest = content_digest(hashes, ids_key)
            same = _same(root, digest, records)
            if same is not None:
                raise _KnownError(same)
            if taken:
                raise SettingsError(
                    f"--name {name!r} is taken in {root.resolve()}: choose another."
                )
            source, path = _recognised(root, content, folder / content.name, said)
            mark = {
                "digest": digest, "path": path, "source": source,
                "options": dict(said.options or {}),
                "counts": {
                    "bytes": sum(one.size for one in look.files), "files": len(look.files),
                    "left_out": look.left_out,
                },
            }  # fmt: skip
            write_mark(staging, mark)
    except _KnownError as known:
        _drop_staging(folder)
        mark_found = mark_of(known.folder)
        return known.folder, mark_found if mark_found is not None else {}
    except BaseException:
        _drop_staging(folder)
        raise
    return folder, mark


def _drop_staging(folder: Path) -> None:
    """What was copied for nothing holds images, so it does not stay."""
    with suppress(BusyError):
        shutil.rmtree(leftovers(folder)[0], ignore_errors=True)


def _same(root: Path, digest: str, records: Mapping[str, DropRecord]) -> Path | None:
    """The raw folder of a drop with this content: one on record, or one left half added."""
    for record in records.values():
        if record.digest == digest and record.state != "removed":
            return root / RAW / record.name
    for path in sorted((root / RAW).iterdir()):
        mark = mark_of(path) if path.is_dir() and not path.name.startswith(".") else None
        if mark is not None and mark["digest"] == digest and path.name not in records:
            return path
    return None


def _content_name(place: Path) -> str:
    """`drop`, and of a file its suffix, which some sources go by."""
    if place.is_dir():
        return CONTENT
    found = re.search(rf"{_SUFFIX.pattern}$", place.name)
    return f"{CONTENT}{found.group().lower() if found else ''}"


def _recognised(root: Path, content: Path, final: Path, said: Arrival) -> tuple[str, str]:
    """The source that reads it, and its path in the project once it lies in its place."""
    inside = Path(said.table)
    path = str((content / inside).resolve())
    try:
        source = open_source(
            {"path": path, "source": said.source, "options": dict(said.options or {})}, root
        )
    except SourceError as error:
        # The copy is gone in a moment, and its place says nothing to anybody.
        told = str(error).replace(str(content.resolve()), "the drop")
        raise SourceError(f"No source reads this drop: {told}") from None
    if isinstance(source, TableSource) and content.is_file():
        raise SourceError(
            "The drop is a table without its images: add the folder that holds both, with --table "
            "and the table's path in it."
        )
    return source.name, (final / inside).relative_to(root).as_posix()


def _copy(place: Path, content: Path, look: Look) -> dict[Parts, str]:
    """Copies all files, and gives their SHA-256."""
    if place.is_dir():
        content.mkdir(mode=0o700, exist_ok=True)
    hashes: dict[Parts, str] = {}
    made: set[Parts] = set()
    for one in look.files:
        for depth in range(1, len(one.parts)):
            if one.parts[:depth] not in made:
                made.add(one.parts[:depth])
                Path(os.fsdecode(_below(content, one.parts[:depth]))).mkdir(mode=0o700)
        hashes[one.parts] = _copy_file(place, content, one)
    return hashes


def _copy_file(place: Path, content: Path, one: Seen) -> str:
    digest, left = hashlib.sha256(), one.size
    # Neither a link nor a pipe that took the file's place since it was seen.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    make = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(_below(place, one.parts), flags)
    except OSError:
        raise _changed(place) from None
    with os.fdopen(handle, "rb") as given:
        if fault_of_mode(os.fstat(handle).st_mode) is not None:
            raise _changed(place)
        with os.fdopen(os.open(_below(content, one.parts), make, 0o600), "wb") as copy:
            while piece := given.read(_PIECE):
                digest.update(piece)
                copy.write(piece)
                left -= len(piece)
    if left:
        raise _changed(place)
    return digest.hexdigest()


def _changed(place: Path) -> SourceError:
    return SourceError(
        f"{place} changed while it was read, and nothing was taken: add it when its writing has "
        "finished."
    )


def _below(place: Path, parts: Parts) -> bytes:
    return b"/".join((os.fsencode(place), *parts))


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _origins(root: Path) -> dict[str, str]:
    try:
        found = json.loads((root / ORIGINS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # It is a note for people on this machine, and no part of the record.
    return found if isinstance(found, dict) else {}


def _note_origin(root: Path, name: str, place: Path) -> None:
    _write_origins(root, {**_origins(root), name: str(place.resolve())})


def _write_origins(root: Path, origins: Mapping[str, str]) -> None:
    write_json(root / ORIGINS, dict(origins))
    (root / ORIGINS).chmod(0o600)
