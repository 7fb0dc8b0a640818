"""Taking single items out of raw drops, whatever holds them.

A folder loses files; a zip, a Parquet file and a table are written anew without some entries or
rows, each atomically. What other kinds hold can only be taken out by whoever packed them. All of it
is ours.
"""

import csv
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from veilset.data.sources.archive import ArchiveSource
from veilset.data.sources.base import Source
from veilset.data.sources.folder import FolderSource, walk
from veilset.data.sources.huggingface import HuggingFaceSource
from veilset.data.sources.parquet import is_parquet, opened
from veilset.data.sources.table import TableSource
from veilset.data.sources.zip_members import zip_members
from veilset.errors import SourceError
from veilset.files import atomic_file

_TABULATOR: Final = {".tsv": "\t"}


def require_separable(source: Source[Any], drop: str) -> None:
    """Refuses a drop from which single items cannot be taken.

    Args:
        source: The drop's source.
        drop: Its name, for the error.

    Raises:
        SourceError: One sentence with what to do instead.
    """
    if isinstance(source, FolderSource | HuggingFaceSource | TableSource):
        return
    if isinstance(source, ArchiveSource) and zipfile.is_zipfile(source.location):
        return
    if source.embedded:
        raise SourceError(
            f"The images of the drop {drop!r} come with an installed package, so that nothing can "
            "be erased from them: remove the drop instead."
        )
    raise SourceError(
        f"Single images cannot be taken out of the drop {drop!r}, which is of the kind "
        f"{source.title}: unpack it elsewhere, delete them there, add the folder as a new drop, "
        f"and remove {drop!r}."
    )


def take_out(source: Source[Any], items: Collection[int]) -> None:
    """Takes items out of what a source reads; the others keep their bytes.

    Args:
        source: It is of no use afterwards: open it anew.
        items: Positions in its order, as `items` yields them.

    Raises:
        SourceError: It changed meanwhile, or an entry that stays cannot be read.
        DiskFullError: The disk has no room; nothing more was changed.
    """
    wanted = frozenset(items)
    for kind, act in _ACTS.items():
        if isinstance(source, kind):
            act(source, wanted)
            return
    require_separable(source, "")


def _from_folder(source: FolderSource, wanted: frozenset[int]) -> None:
    found = [entry.parts for number, entry in enumerate(walk(source.location)) if number in wanted]
    top = os.fsencode(source.location)
    for parts in found:
        path = Path(os.fsdecode(b"/".join((top, *parts))))
        path.unlink()
        _prune(path.parent, source.location)


def _from_zip(source: ArchiveSource, wanted: frozenset[int]) -> None:
    members = enumerate(zip_members(source.location, source.params.max_bytes))
    gone = [member.raw for number, member in members if number in wanted]
    path = source.location
    with zipfile.ZipFile(path) as old:
        entries = old.infolist()
        names = [_raw(info) for info in entries]
        if any(names.count(name) != 1 for name in gone):
            raise SourceError(
                f"{path} holds two entries of one name, of which one is to be erased: pack it "
                "again under different names."
            )
        size = path.stat().st_size
        with _private_file(path, size) as file, zipfile.ZipFile(file, "w") as new:
            for info, name in zip(entries, names, strict=True):
                if name not in gone:
                    _copy_entry(path, old, info, new)


def _raw(info: zipfile.ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def _copy_entry(
    path: Path, old: zipfile.ZipFile, info: zipfile.ZipInfo, new: zipfile.ZipFile
) -> None:
    kept = zipfile.ZipInfo(info.filename, info.date_time)
    kept.compress_type, kept.external_attr = zipfile.ZIP_DEFLATED, info.external_attr
    try:
        with old.open(info) as given, new.open(kept, "w", force_zip64=True) as copy:
            shutil.copyfileobj(given, copy, 1 << 20)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise SourceError(
            f"{path} cannot be written anew, because an entry that stays cannot be read ({error}): "
            "unpack what is sound into a folder, add that as a new drop, and remove this one."
        ) from None


def _from_parquet(source: HuggingFaceSource, wanted: frozenset[int]) -> None:
    start = 0
    for file in source._files:
        rows = frozenset(n - start for n in wanted if start <= n < start + file.rows)
        start += file.rows
        if rows and not file.fault:
            _without_rows(file.path, rows, source.params.image_column)


def _without_rows(path: Path, rows: frozenset[int], image_column: str) -> None:
    """Writes a Parquet file without some rows; all else, the schema's metadata too, stays."""
    start = 0
    try:
        with (
            opened(path) as old,
            _private_file(path, path.stat().st_size) as file,
            pq.ParquetWriter(file, old.schema_arrow, compression=_compression(old)) as new,
        ):
            for group in range(old.metadata.num_row_groups):
                table = old.read_row_group(group)
                keep = [start + at not in rows for at in range(len(table))]
                start += len(table)
                _require_bytes(path, table, keep, image_column)
                if any(keep):
                    new.write_table(table.filter(pa.array(keep)))
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise SourceError(
            f"{path} cannot be written anew ({reason}): fetch the drop again, add it as a new one, "
            "and remove this one."
        ) from None


def _compression(file: pq.ParquetFile) -> str:
    groups = file.metadata.num_row_groups
    name = file.metadata.row_group(0).column(0).compression if groups else "UNCOMPRESSED"
    return "none" if name == "UNCOMPRESSED" else str(name).lower()


def _require_bytes(path: Path, table: pa.Table, keep: list[bool], column: str) -> None:
    if column not in table.column_names:
        return
    gone = table.column(column).filter(pa.array([not one for one in keep]))
    if any(not (one.get("bytes") if isinstance(one, dict) else one) for one in gone.to_pylist()):
        raise SourceError(
            f"{path} names an image file instead of holding it: delete that file by hand, and add "
            "the rest as a new drop."
        )


def _from_table(source: TableSource, wanted: frozenset[int]) -> None:
    rows = list(source._rows())
    gone = {row.path for row in rows if row.number - 1 in wanted}
    kept = {row.path for row in rows if row.number - 1 not in wanted}
    if is_parquet(source.location):
        _without_rows(source.location, wanted, "")
    else:
        _without_lines(source, wanted)
    top = os.fsencode(source.folder)
    for name in gone - kept:
        parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
        path = Path(os.fsdecode(b"/".join((top, *parts))))
        inside = b".." not in parts and not name.startswith(b"/")
        if inside and path.resolve().is_relative_to(source.folder.resolve()):
            path.unlink(missing_ok=True)
            _prune(path.parent, source.folder)


def _without_lines(source: TableSource, wanted: frozenset[int]) -> None:
    path = source.location
    default = _TABULATOR.get(path.suffix.lower(), ",")
    delimiter = source.params.delimiter or default
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as given:
        lines = list(csv.reader(given, delimiter=delimiter, strict=True))
    number = -2  # the header comes before row 0, and empty lines are no rows
    with _private_file(path, 0) as file:
        for line in lines:
            number += bool(line)
            if line and number not in wanted:
                file.write(_line(line, delimiter).encode("utf-8", "surrogateescape"))


def _line(cells: list[str], delimiter: str) -> str:
    line = io.StringIO(newline="")
    csv.writer(line, delimiter=delimiter, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _prune(folder: Path, top: Path) -> None:
    """Removes folders that have become empty: their names may name whom they showed."""
    while folder != top and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


@contextmanager
def _private_file(path: Path, size: int) -> Iterator[IO[bytes]]:
    with atomic_file(path, size=size) as file:
        os.fchmod(file.fileno(), 0o600)
        yield file


_ACTS: Final[dict[type[Source[Any]], Callable[[Any, frozenset[int]], None]]] = {
    FolderSource: _from_folder, ArchiveSource: _from_zip, HuggingFaceSource: _from_parquet,
    TableSource: _from_table,
}  # fmt: skip
