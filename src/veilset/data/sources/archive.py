"""A zip or tar file of class folders, read without unpacking it."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from veilset.data.sources.base import located
from veilset.data.sources.tar_members import tar_members
from veilset.data.sources.tree import Member, TreeSource
from veilset.data.sources.zip_members import zip_members
from veilset.errors import SourceError

_SUFFIX = re.compile(rb"\.(zip|tar|tgz|tar\.gz)$", re.IGNORECASE)


class ArchiveSource(TreeSource):
    """A .zip, .tar or .tar.gz with the layout of a folder source.

    One outer folder that holds nothing but folders is passed over. A zip's items come in the order
    of their names' bytes, a tar's as they are stored, so that it is read front to back. Nothing is
    written to disk; names that climb, links, devices, encrypted or damaged members, and members of
    more than `max_bytes` (by their header or while reading) are items with a fault. If a tar breaks
    off, its last item is a fault `damaged` that stands for the rest; a gzip stream that ends
    early or fails its checksum is refused as a whole, because any member may be the damaged one.

    Source: ours.
    """

    name = "archive"
    title = ".zip, .tar or .tar.gz of class folders"
    _outer_folder = True

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether its first bytes are those of a zip, gzip or tar file."""
        return path.is_file() and _kind(path) != ""

    def _locate(self) -> Path:
        location = located(self.root, self.params.path)
        self._zipped = _kind(location) == "zip" if location.is_file() else False
        if not self.recognises(location):
            raise SourceError(f"{location} is no .zip, .tar or .tar.gz: give one of these.")
        return location

    def _own_name(self) -> bytes:
        return _SUFFIX.sub(b"", os.fsencode(self.location.name)) or b"images"

    def _members(self) -> Iterator[Member]:
        members = zip_members if self._zipped else tar_members
        return members(self.location, self.params.max_bytes)


def _kind(path: Path) -> str:
    """`zip`, `gzip`, `tar`, or "" for anything else or what cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return ""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    return "tar" if head[257:262] == b"ustar" else ""
