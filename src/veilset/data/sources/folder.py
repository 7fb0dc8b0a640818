"""A folder of class folders."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from veilset.data.sources.base import located
from veilset.data.sources.confined import fault_of_mode, read_confined
from veilset.data.sources.tree import Member, Parts, TreeSource
from veilset.errors import SourceError


class FolderSource(TreeSource):
    """A folder with a folder per class, with or without split folders above them.

    The order is that of the full names' bytes, however the files were written. Symbolic links are
    not followed: each is an item with the fault `link`, whether it leads to a file or a folder. The
    folder itself may be reached by a link.

    Source: ours; the layout is the ImageFolder convention.
    """

    name = "folder"
    title = "folder with a folder per class"

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is a folder."""
        return path.is_dir()

    def _locate(self) -> Path:
        location = located(self.root, self.params.path)
        if not location.is_dir():
            raise SourceError(f"{location} is not a folder: give a folder of class folders.")
        return location

    def _own_name(self) -> bytes:
        return os.fsencode(self.location.resolve().name) or b"images"

    def _members(self) -> Iterator[Member]:
        for entry in walk(self.location):
            raw = b"/".join(entry.parts)
            read = partial(read_confined, self.location, entry.parts, self.params.max_bytes)
            yield Member(raw, entry.parts, read, entry.fault)


@dataclass(frozen=True)
class Entry:
    """A file, or what stands in its place.

    Attributes:
        parts: Raw components of its path below the top folder.
        folder: It is a folder to descend into.
        fault: Why it is not read (`link`, `special_file`, `unreadable`), or None.
    """

    parts: Parts
    folder: bool
    fault: str | None


def walk(top: Path) -> Iterator[Entry]:
    """Everything below a folder but folders and dot-files, sorted by the bytes of the full names.

    Links are told, not followed. A folder that cannot be listed is one entry, `unreadable`.

    Args:
        top: The folder; it may be a link.

    Raises:
        SourceError: The folder itself cannot be listed.
    """
    try:
        waiting = _listed(top, ())[::-1]
    except OSError as error:
        raise SourceError(f"{top} cannot be listed ({error.strerror}): check it.") from None
    while waiting:
        entry = waiting.pop()
        if not entry.folder:
            yield entry
            continue
        try:
            waiting.extend(_listed(top, entry.parts)[::-1])
        except OSError:
            yield Entry(entry.parts, False, "unreadable")


def _listed(top: Path, parts: Parts) -> list[Entry]:
    with os.scandir(b"/".join((os.fsencode(top), *parts))) as found:
        entries = [_entry(parts, child) for child in found if not child.name.startswith(b".")]
    # A folder sorts as its name and a slash: then whole paths come out in the order of their bytes.
    return sorted(entries, key=lambda entry: entry.parts[-1] + b"/" * entry.folder)


def _entry(parts: Parts, child: os.DirEntry[bytes]) -> Entry:
    here = (*parts, child.name)
    if child.is_dir(follow_symlinks=False):
        return Entry(here, True, None)
    if child.is_file(follow_symlinks=False):
        return Entry(here, False, None)
    try:
        return Entry(here, False, fault_of_mode(child.stat(follow_symlinks=False).st_mode))
    except OSError:
        return Entry(here, False, "unreadable")
