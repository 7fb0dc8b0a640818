"""Writing files so that nobody ever sees half of one, and locks.

Every output appears under its name complete and on disk, or not at all: it is written under a
temporary name, fsynced and renamed. Folders are built beside their place and swapped in whole.
All of it is ours; POSIX only (flock, rename).
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from veilset.errors import BusyError, CorruptError, DiskFullError, VeilsetError

if TYPE_CHECKING:
    import pandas as pd

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_FALLOCATE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_MANY_FILES = 256
_PLAN = "plan"
_SEAL = hashlib.sha256(b"veilset sealed Parquet/1").digest()[:16]
_SEAL_BYTES = 2 * len(_SEAL) + 32
_PARQUET_END = 8  # the footer's length and `PAR1`


# ------------------------------------------------------------------------------------------ files


@contextmanager
def atomic_file(path: Path, mode: str = "wb", *, size: int = 0) -> Iterator[IO[Any]]:
    """Opens a file that appears under its name complete and fsynced, or not at all.

    It is written as `.<name>.<process>.tmp` beside its place, which is removed on any exception.
    What an earlier killed writer of the same file left is removed as well. The parent folder is
    made where it is missing.

    Args:
        path: Where the file shall be; an old one is replaced (a link is replaced, not followed).
        mode: `wb`, or `w` for UTF-8 text with Unix line ends.
        size: Bytes that are known to be needed. They are reserved before the first write, so that
            a full disk is noticed before the work is done; the file may turn out shorter.

    Raises:
        DiskFullError: The disk, quota or file size limit has no room; nothing was changed.
        VeilsetError: The place cannot be written, or fsync failed. A failed fsync is never tried
            again, because the kernel may by then have dropped the bytes it could not write.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"atomic_file writes with mode 'wb' or 'w', not {mode!r}")
    with _clear_errors(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        temporary, handle = _open_temporary(path)
    try:
        with _clear_errors(path, size):
            _reserve(handle, size)
        text: dict[str, Any] = {} if mode == "wb" else {"encoding": "utf-8", "newline": "\n"}
        with _full_disk(path, size), os.fdopen(handle, mode, closefd=False, **text) as file:
            yield file
        with _clear_errors(path, size):
            if size:
                os.ftruncate(handle, os.lseek(handle, 0, os.SEEK_CUR))
            os.fsync(handle)
            temporary.replace(path)
        _keep(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
        # Its bytes were synced by then, so closing can tell of no loss.
        with suppress(OSError):
            os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes atomically. Raises as `atomic_file` does."""
    with atomic_file(path, size=len(data)) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes text atomically as UTF-8. Raises as `atomic_file` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically: keys sorted, indent 1, UTF-8, a newline at the end.

    Raises:
        ValueError: A number is NaN or infinite, which JSON has not.
        DiskFullError: As `atomic_file`.
    """
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The one JSON text of a value: what `write_json` writes and what hashes cover."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_table(path: Path, frame: "pd.DataFrame") -> None:
    """Writes a table atomically as Parquet: no index, no pandas metadata, no compression.

    Equal tables give equal bytes under one version of Arrow (Parquet names its writer's version in
    the footer). The file carries the hash of its own content, which `read_table` verifies.

    Args:
        path: The file.
        frame: Any columns that Arrow knows; the index is not stored.

    Raises:
        ValueError: A column mixes types, named in the message.
        DiskFullError: As `atomic_file`.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415 - half a second that few users of this file need

    table = pa.Table.from_pandas(_plain_objects(frame), preserve_index=False)
    table = table.replace_schema_metadata(None)
    with atomic_file(path) as file, sealed_parquet(file) as sink:
        pq.write_table(
            table, sink, compression="none", store_schema=False, write_page_checksum=True,
            row_group_size=1 << 20, version="2.6", data_page_version="1.0",
        )  # fmt: skip


def read_table(path: Path) -> "pd.DataFrame":
    """Reads what `write_table` wrote, verified as by `read_sealed_parquet`.

    Text is `str`, whole numbers with gaps are `Int64`, everything else is NumPy's type.

    Raises:
        CorruptError: The file is missing, cut short or altered.
    """
    import pandas as pd  # noqa: PLC0415

    table = read_sealed_parquet(path)
    frame: pd.DataFrame = table.to_pandas()
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count and pa.types.is_integer(column.type):
            frame[name] = pd.array(column.to_pylist(), dtype="Int64")
    return frame


@contextmanager
def sealed_parquet(file: IO[bytes]) -> Iterator[Any]:
    """Where to write a Parquet file that carries the SHA-256 of its own bytes.

    Parquet has checksums for its pages and none for its footer, where a flipped bit renames a
    column or changes its type. The hash of all other bytes stands between two marks before the
    footer, a place that no reader of Parquet looks at.

    Args:
        file: A new file, empty, that can be read as well (`atomic_file` gives such).

    Yields:
        What to hand to Arrow's writer.
    """
    sink = _Hashed(file)
    yield sink
    file.flush()
    length = file.tell()
    start = _footer_start(os.pread(file.fileno(), _PARQUET_END, length - _PARQUET_END), length)
    footer = os.pread(file.fileno(), length - start, start)
    file.seek(start)
    file.write(_SEAL + sink.content.digest() + _SEAL + footer)


def read_sealed_parquet(path: Path) -> pa.Table:
    """Reads a Parquet file that `sealed_parquet` wrote: only bytes whose hash was compared.

    Of a file without a seal, written by an earlier version, the pages' checksums are verified.

    Raises:
        CorruptError: The file is missing, cut short or altered.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        data = path.read_bytes()
        _require_seal(data)
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise CorruptError(
            f"{path} cannot be read as a table ({_first_line(error)}): make it again."
        ) from None


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex characters, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(folder: Path, name: str | None = None) -> list[Path]:
    """Removes temporary files whose writer is gone.

    A live writer holds a lock on its temporary file, so another process's work is never touched,
    and a process id that was given out again deceives nobody.

    Args:
        folder: Where to look, not below it.
        name: Only leftovers of this file; by default of all.

    Returns:
        What was removed.
    """
    # The name part is cut as `_temporary_name` cuts it.
    start = f".{_cut(name)}." if name is not None else "."
    with os.scandir(folder) as entries:
        found = [e.path for e in entries if e.name.startswith(start) and _is_temporary(e.name)]
    return [Path(path) for path in found if _remove_orphan(path)]


# ------------------------------------------------------------------------------------------ space


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuses work whose output the disk cannot hold.

    Args:
        folder: Where the output will be; it need not exist yet.
        needed_bytes: How many bytes the output needs.

    Raises:
        DiskFullError: Fewer bytes are free; both numbers are named.
    """
    free = _free_bytes(folder)
    if free is not None and free < needed_bytes:
        raise DiskFullError(
            f"{folder} needs {needed_bytes:,} bytes, but its disk has {free:,} free: make room "
            "or choose another place."
        )


# ------------------------------------------------------------------------------------------ locks


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Holds the exclusive lock of a file or folder, `.<name>.lock` beside it.

    The lock ends with its process, however that ends; no stale lock needs removing by hand. It is
    not re-entrant.

    Raises:
        BusyError: Another run holds it. Nothing is waited for.
        VeilsetError: The lock file cannot be made.
    """
    path = target.parent / f".{target.name}.lock"
    with _clear_errors(path, 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _open_locked(path, target)
    try:
        yield
    finally:
        # Removed while still held: who opened it meanwhile sees that it is gone and opens anew.
        with suppress(OSError):
            path.unlink()
        with suppress(OSError):
            os.close(handle)


@contextmanager
def staged_folder(final: Path, plan: str) -> Iterator[Path]:
    """Builds a folder beside its place and swaps it in whole.

    The folder is built as `.<name>.partial`. When a run is killed or fails, it stays; the next run
    with the same plan finds it again and may keep the finished files in it (all that were written
    by `atomic_file` are complete). Another plan starts anew.

    Args:
        final: Where the folder shall be. An old one stays whole until it is swapped.
        plan: A text that is equal for two runs if and only if they make the same bytes, e.g. a
            hash of the inputs and parameters.

    Yields:
        The folder to build in. Its file `plan` is ours.

    Raises:
        BusyError: Another run builds the same folder.
        DiskFullError: The disk is full; `final` is untouched.
    """
    partial = _partial(final)
    with locked(final):
        with _clear_errors(partial, 0):
            _recover(final)
            sweep(final.parent, final.name)
            _prepare(partial, plan)
        with _full_disk(final, 0):
            yield partial
        with _clear_errors(final, 0):
            for leftover in partial.rglob(".*.tmp"):
                leftover.unlink()
            (partial / _PLAN).unlink()
            _fsync_tree(partial)
            _swap(partial, final)
        _keep(final)
        with _clear_errors(partial, 0):
            _remove(partial)
            _remove(_aside(final))


def leftovers(final: Path) -> tuple[Path, Path]:
    """Where a run that was killed or failed while it built a folder leaves what it had."""
    return _partial(final), _aside(final)


# ------------------------------------------------------------------------------- small parts below


def _cut(name: str) -> str:
    """The part of a name that leaves room for our additions within 255 bytes."""
    return name.encode(errors="surrogateescape")[:200].decode(errors="surrogateescape")


def _is_temporary(name: str) -> bool:
    return re.search(r"\.\d+\.tmp$", name) is not None


def _open_temporary(path: Path) -> tuple[Path, int]:
    """Opens and locks `.<name>.<thread>.tmp`; in a main thread that number is the process id."""
    temporary = path.parent / f".{_cut(path.name)}.{threading.get_native_id()}.tmp"
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        handle = os.open(temporary, flags, 0o666)
        if _lock(handle) and _same_file(handle, temporary):
            return temporary, handle
        os.close(handle)  # A sweeper was faster: it has removed the file or is about to.


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_orphan(path: str) -> bool:
    """Removes a temporary file unless its writer lives."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not _lock(handle) or not _same_file(handle, Path(path)):
            return False
        Path(path).unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _reserve(handle: int, size: int) -> None:
    """Reserves bytes, so that a later write cannot meet a full disk. No-op where unsupported."""
    if size <= 0:
        return
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise


@contextmanager
def _full_disk(path: Path, size: int) -> Iterator[None]:
    """Turns a full disk inside the block into one sentence; lets everything else pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _disk_full(path, size, error) from None
        raise


@contextmanager
def _clear_errors(path: Path, size: int) -> Iterator[None]:
    """Turns the operating system's refusals of our own steps into one sentence."""
    try:
        with _full_disk(path, size):
            yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise VeilsetError(
            f"{path} cannot be written ({reason}), and nothing was changed there: check the place "
            "and its permissions, then run again."
        ) from None


def _disk_full(path: Path, size: int, error: OSError) -> DiskFullError:
    free = _free_bytes(path.parent)
    needs = f"it needs {size:,} bytes, " if size else ""
    return DiskFullError(
        f"{path} was not written: {needs}{'unknown' if free is None else f'{free:,}'} bytes are "
        f"free ({error.strerror}); make room or choose another place, then run again."
    )


def _free_bytes(folder: Path) -> int | None:
    """Free bytes for this user on the disk of a folder or of its nearest existing parent."""
    for place in (folder, *folder.parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            room = os.statvfs(place)
            return room.f_bavail * room.f_frsize
    return None


def _keep(path: Path) -> None:
    """Has the disk keep a name that was just given to something whole."""
    try:
        _fsync_folder(path.parent)
    except OSError as error:
        raise VeilsetError(
            f"{path} was written, but the disk did not confirm that it keeps it "
            f"({error.strerror or error}): check the disk, then run again."
        ) from None


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync_tree(folder: Path) -> None:
    """Puts everything below a folder on disk: file by file, or in one call where they are many."""
    paths = list(folder.rglob("*"))
    if len(paths) > _MANY_FILES and _sync_disk_of(folder):
        return
    for path in [*paths, folder]:
        if path.is_symlink():
            continue
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _c_function(name: str) -> Callable[..., int] | None:
    """A function of the C library that Python does not offer, or None."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    return function if callable(function) else None


def _sync_disk_of(folder: Path) -> bool:
    """Syncs the file system of a folder; False where the system has no such call."""
    syncfs = _c_function("syncfs")
    if syncfs is None:
        return False
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if syncfs(handle) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(handle)
    return True


def _open_locked(path: Path, target: Path) -> int:
    """Opens and locks a lock file, and writes our process id into it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        if not _lock(handle):
            owner = re.sub(rb"\D", b"", os.pread(handle, 20, 0)).decode()
            os.close(handle)
            by = f" (process {owner})" if owner else ""
            raise BusyError(
                f"{target} is being written by another run{by}: wait for it to end, then run again."
            )
        if _same_file(handle, path):
            break
        os.close(handle)  # Its last holder has just removed it: lock the new one.
    # Who holds it is said where the disk has room for that; the lock itself needs none.
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle


def _partial(final: Path) -> Path:
    return final.parent / f".{final.name}.partial"


def _aside(final: Path) -> Path:
    return final.parent / f".{final.name}.old"


def _recover(final: Path) -> None:
    """Finishes a swap during which a run was killed."""
    aside = _aside(final)
    if not os.path.lexists(aside):
        return
    if os.path.lexists(final):
        _remove(aside)
    else:
        aside.rename(final)


def _prepare(partial: Path, plan: str) -> None:
    """Keeps a staging folder of the same plan, or starts an empty one."""
    note = partial / _PLAN
    if note.is_file() and not partial.is_symlink() and note.read_bytes() == plan.encode():
        for leftover in partial.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        return
    _remove(partial)
    partial.mkdir(parents=True)
    write_text(note, plan)


def _swap(partial: Path, final: Path) -> None:
    """Puts a finished folder in its place, an old one beside it. The place is never half."""
    if os.path.lexists(final):
        if _exchange(partial, final):
            return
        final.rename(_aside(final))
    partial.rename(final)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step (Linux); False where the file system cannot."""
    renameat2 = _c_function("renameat2")
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _remove(path: Path) -> None:
    """Removes a file, a link (not what it points to) or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Hashed:
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.content = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        self.content.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _footer_start(end: bytes, length: int) -> int:
    """Where the footer of a Parquet file begins, from its last 8 bytes and its length."""
    return length - _PARQUET_END - int.from_bytes(end[:4], "little")


def _require_seal(data: bytes) -> None:
    """Raises ValueError if a Parquet file has a seal and its bytes are not those that it says."""
    if _SEAL not in data:
        return
    start = _footer_start(data[-_PARQUET_END:], len(data))
    before = max(0, start - _SEAL_BYTES)
    digest = hashlib.sha256(memoryview(data)[:before])
    digest.update(memoryview(data)[max(0, start) :])
    if data[before : max(0, start)] != _SEAL + digest.digest() + _SEAL:
        raise ValueError("its bytes disagree with the hash that it carries")


def _plain_objects(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The frame, after a check that Arrow can store each column without guessing."""
    for position, name in enumerate(frame.columns):
        if not isinstance(name, str):
            raise ValueError(f"column {name!r} has no text as its name")
        try:
            pa.Array.from_pandas(frame.iloc[:0, position])
            pa.array(frame.iloc[:, position], from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"column {name!r} cannot be stored: {_first_line(error)}") from None
    return frame


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


__all__ = [
    "atomic_file", "json_text", "locked", "read_sealed_parquet", "read_table", "require_space",
    "sealed_parquet", "sha256_file", "staged_folder", "sweep", "write_bytes", "write_json",
    "write_table", "write_text",
]  # fmt: skip
