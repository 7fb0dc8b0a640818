"""The files of a tar archive, read front to back and guarded against what a hostile one claims."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from veilset.data.sources.base import ItemError
from veilset.data.sources.confined import safe_parts
from veilset.data.sources.tree import Member, is_hidden
from veilset.errors import SourceError

_BROKEN = (
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    OverflowError,
    ValueError,
    LookupError,
    RecursionError,
)

_PIECE = 1 << 20


class ForwardReader:
    """What `tarfile` reads through: forward only, and never more than 1 MiB at once.

    `tarfile` itself takes in a name or comment of any length that a header claims, and follows
    negative sizes backwards without end.

    Args:
        file: The uncompressed stream, at its start.
        path: The archive, for errors.
        jumps: Whether the stream can seek at no cost.
    """

    def __init__(self, file: IO[bytes], path: Path, jumps: bool) -> None:
        self._file = file
        self._path = path
        self._jumps = jumps
        self._position = 0
        self.last = b""

    def tell(self) -> int:
        """Position in the uncompressed stream, in bytes."""
        return self._position

    def read(self, size: int) -> bytes:
        """Up to `size` bytes.

        Raises:
            tarfile.ReadError: More than 1 MiB was asked for: a header lies.
            SourceError: The gzip stream is damaged or ends early. Which members that spoils is
                unknown: its one checksum, at the end, is over all of them.
        """
        if not 0 <= size <= _PIECE:
            raise tarfile.ReadError("a header claims an impossible length")
        try:
            self.last = self._file.read(size)
        except (zlib.error, gzip.BadGzipFile, EOFError) as error:
            raise SourceError(
                f"{self._path} is damaged, and gzip cannot tell where ({error}): fetch it again."
            ) from None
        self._position += len(self.last)
        return self.last

    def seek(self, position: int) -> int:
        """Goes forward; what is read beyond the end is empty.

        Raises:
            tarfile.ReadError: The position lies behind.
        """
        if position < self._position:
            raise tarfile.ReadError("a header points backwards")
        if self._jumps:
            self._position = self._file.seek(position)
        while self._position < position:
            if not self.read(min(_PIECE, position - self._position)):
                break
        return self._position

    def drain(self) -> None:
        """Reads to the end, where gzip's checksum stands."""
        while not self._jumps and self.read(_PIECE):
            pass


def tar_members(path: Path, max_bytes: int) -> Iterator[Member]:
    """Yields the files of a .tar or .tar.gz as they are stored.

    Where the archive breaks off or turns to nonsense, a last member with the fault `damaged`
    stands for the rest; one that is damaged inside its compression is refused as a whole.

    Args:
        path: The archive.
        max_bytes: A larger member is a fault.

    Raises:
        SourceError: It is no tar archive at all, or its compressed bytes are damaged.
    """
    with path.open("rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        with gzip.open(plain) if zipped else plain as file:
            yield from _stream(path, ForwardReader(file, path, not zipped), max_bytes)  # type: ignore[arg-type]


def _stream(path: Path, reader: ForwardReader, max_bytes: int) -> Iterator[Member]:
    archive, info = _first(path, reader)
    while info is not None and not isinstance(info, Member):
        member = _member(info, reader, max_bytes)
        if not info.isdir() and not is_hidden(member.parts):
            yield member
        info = _next(archive, reader)
    if info is not None:
        yield info


def _first(
    path: Path, reader: ForwardReader
) -> tuple[tarfile.TarFile, tarfile.TarInfo | Member | None]:
    try:
        archive = tarfile.open(  # noqa: SIM115 - it holds no resource beside the reader
            fileobj=reader,  # type: ignore[call-overload]
            mode="r:",
            encoding="utf-8",
            errors="surrogateescape",
        )
        first = _next(archive, reader)
        if isinstance(first, Member):
            raise tarfile.ReadError("its first header is damaged")
    except _BROKEN as error:
        raise SourceError(
            f"{path} cannot be read as a tar archive ({error}): fetch or pack it again."
        ) from None
    return archive, first


def _next(archive: tarfile.TarFile, reader: ForwardReader) -> tarfile.TarInfo | Member | None:
    """The next entry, a damaged member for the rest, or None at a proper end."""
    try:
        info = archive.next()
        if info is None:
            # Unlike a proper end, a missing one or a header that is none does not read as zeros.
            proper = bool(reader.last) and not any(reader.last)
            reader.drain()
            return None if proper else _rest()
    except _BROKEN:
        reader.drain()
        return _rest()
    archive.members = []  # type: ignore[attr-defined]  # or it would remember every entry
    return info


def _rest() -> Member:
    return Member(b"(rest of the archive)", (), bytes, "damaged")


def _member(info: tarfile.TarInfo, reader: ForwardReader, max_bytes: int) -> Member:
    raw = info.name.encode("utf-8", "surrogateescape")
    read = partial(_read, info, reader)
    try:
        parts = safe_parts(raw)
    except ItemError as fault:
        return Member(raw, (), read, fault.code)
    return Member(raw, parts, read, _fault(info, max_bytes))


def _fault(info: tarfile.TarInfo, max_bytes: int) -> str | None:
    if info.issym() or info.islnk():
        return "link"
    if not info.isreg() or info.issparse():
        return "special_file"
    return "too_large" if info.size > max_bytes else None


def _read(info: tarfile.TarInfo, reader: ForwardReader) -> bytes:
    pieces = []
    try:
        reader.seek(info.offset_data)
        left = info.size
        while left and (piece := reader.read(min(_PIECE, left))):
            pieces.append(piece)
            left -= len(piece)
    except _BROKEN:
        raise ItemError("damaged") from None
    if left:
        raise ItemError("damaged")
    return b"".join(pieces)
