"""Reading files below a folder without ever leaving it, whatever their names or links say."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from veilset.data.sources.base import ItemError


def safe_parts(name: bytes) -> tuple[bytes, ...]:
    r"""The components of a relative path.

    Args:
        name: '/'-separated raw bytes; '.' and empty components are dropped.

    Raises:
        ItemError: `escaping_path`: it is empty, absolute (also by a drive letter), holds a zero
            byte, or a '..' between slashes or backslashes.
    """
    parts = tuple(part for part in name.split(b"/") if part not in {b"", b"."})
    climbs = any(b".." in part.split(b"\\") for part in parts)
    rooted = name[:1] in {b"/", b"\\"} or name[1:2] == b":"
    if not parts or climbs or rooted or b"\0" in name:
        raise ItemError("escaping_path")
    return parts


def read_confined(root: Path, parts: Sequence[bytes], limit: int) -> bytes:
    """The bytes of a regular file below a folder; no component may be a link.

    Each component is opened relative to the one before, so that a link put in place meanwhile
    leads nowhere.

    Args:
        root: The folder, which may itself be reached by a link.
        parts: Components of the file's path, from `safe_parts`.
        limit: Largest allowed size in bytes.

    Raises:
        ItemError: `link`, `special_file`, `missing_file`, `too_large` or `unreadable`.
    """
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                outer, folder = folder, _enter(folder, part)
                os.close(outer)
            return _read(folder, parts[-1], limit)
        finally:
            os.close(folder)
    except FileNotFoundError:
        raise ItemError("missing_file") from None
    except OSError:
        raise ItemError("unreadable") from None


def fault_of_mode(mode: int) -> str | None:
    """Why a file of this `st_mode` is not read, or None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return "link" if stat.S_ISLNK(mode) else "special_file"


def _enter(folder: int, part: bytes) -> int:
    mode = os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        raise ItemError("link")
    if not stat.S_ISDIR(mode):
        raise ItemError("missing_file")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(part, flags, dir_fd=folder)


def _read(folder: int, part: bytes, limit: int) -> bytes:
    _require_regular(os.stat(part, dir_fd=folder, follow_symlinks=False), limit)
    # Non-blocking: a pipe that took the file's place must not hang the run.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(part, flags, dir_fd=folder), "rb") as file:
        status = os.fstat(file.fileno())
        _require_regular(status, limit)
        content = file.read(status.st_size + 1)
    if len(content) != status.st_size:
        raise ItemError("unreadable")
    return content


def _require_regular(status: os.stat_result, limit: int) -> None:
    fault = fault_of_mode(status.st_mode)
    if fault is not None:
        raise ItemError(fault)
    if status.st_size > limit:
        raise ItemError("too_large")
