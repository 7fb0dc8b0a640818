"""The files of a zip archive, guarded against what a hostile one may claim."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from veilset.data.sources.base import ItemError
from veilset.data.sources.confined import fault_of_mode, safe_parts
from veilset.data.sources.tree import Member, is_hidden
from veilset.errors import SourceError

_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)

# The others inflate a chunk without bound before its size can be seen.
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})

_UTF8 = 0x800
_ENCRYPTED = 0x1


def zip_members(path: Path, max_bytes: int) -> Iterator[Member]:
    """Yields the files of a zip archive, sorted by the bytes of their names.

    Args:
        path: The archive.
        max_bytes: A larger member is a fault.

    Raises:
        SourceError: Its directory is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # Not is_dir(): it fails on a name that begins with a zero byte.
            entries = [info for info in archive.infolist() if not info.orig_filename.endswith("/")]
            overlapping = _overlapping(entries)
            for info in sorted(entries, key=_raw):
                member = _member(archive, info, max_bytes, info.header_offset in overlapping)
                if not is_hidden(member.parts):
                    yield member
    except _BROKEN as error:
        raise SourceError(
            f"{path} cannot be read as a zip archive ({error}): fetch or pack it again."
        ) from None


def _raw(info: zipfile.ZipInfo) -> bytes:
    """The name as stored: zipfile read it as cp437 where it is not declared to be UTF-8."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")


def _member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int, overlaps: bool
) -> Member:
    raw = _raw(info)
    read = partial(_read, archive, info, max_bytes)
    try:
        parts = safe_parts(raw)
    except ItemError as fault:
        return Member(raw, (), read, fault.code)
    return Member(raw, parts, read, "overlapping" if overlaps else _fault(info, max_bytes))


def _fault(info: zipfile.ZipInfo, max_bytes: int) -> str | None:
    """What the directory alone says against reading the entry."""
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) and fault_of_mode(mode):
        return fault_of_mode(mode)
    if info.flag_bits & _ENCRYPTED:
        return "encrypted"
    if info.compress_type not in _METHODS:
        return "unsupported_compression"
    return "too_large" if info.file_size > max_bytes else None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> bytes:
    try:
        with archive.open(info) as file:
            content = file.read(max_bytes + 1)
    except _BROKEN:
        raise ItemError("damaged") from None
    if len(content) > max_bytes:
        raise ItemError("too_large")
    if len(content) != info.file_size:
        raise ItemError("damaged")
    return content


def _overlapping(entries: list[zipfile.ZipInfo]) -> frozenset[int]:
    """Offsets of entries that share bytes: how a small zip holds vast content in small members."""
    found: set[int] = set()
    end, last = 0, -1
    for info in sorted(entries, key=lambda info: (info.header_offset, info.compress_size)):
        if info.header_offset < end:
            found.update({info.header_offset, last})
        stop = info.header_offset + 30 + len(_raw(info)) + info.compress_size
        if stop > end:
            end, last = stop, info.header_offset
    return frozenset(found)
