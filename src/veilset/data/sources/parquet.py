"""Parquet files read in record batches, a row group at a time, so that damage stays local."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from veilset.errors import SourceError

_ROWS = 64  # images decoded at once: photographs of several MB must fit as well
_SCALARS = 1 << 16  # rows decoded at once where only labels are wanted


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a file.

    Attributes:
        start: Index of the first row in the file.
        columns: Python values by column name, one list entry a row; None where they are damaged.
        length: How many rows there are.
    """

    start: int
    columns: Mapping[str, list[Any]] | None
    length: int


def opened(path: Path) -> pq.ParquetFile:
    """The file, its footer parsed; page checksums are verified where the file has them.

    Raises:
        SourceError: It is missing or no Parquet file.
    """
    try:
        return pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        # A ValueError, where a column's name is no text.
        reason = " ".join(str(error).split())
        raise SourceError(f"{path} cannot be read as Parquet ({reason}): fetch it again.") from None


def is_parquet(path: Path) -> bool:
    """Whether the file begins with Parquet's mark."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def column_types(file: pq.ParquetFile) -> dict[str, pa.DataType]:
    """Arrow types by column name.

    Raises:
        SourceError: The schema is not one that Arrow can read.
    """
    try:
        return {field.name: field.type for field in file.schema_arrow}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise SourceError(f"The Parquet schema cannot be read ({error}): fetch it again.") from None


def rows_of(path: Path, columns: Sequence[str], *, small: bool = False) -> Iterator[Rows]:
    """Yields the rows of a file in order, in batches.

    A row group that cannot be decoded gives what was decoded of it, then `Rows` without columns
    for its rest.

    Args:
        path: The file.
        columns: Names of the top-level columns to read, at least one.
        small: The columns hold no images, so that a batch may be long.

    Raises:
        SourceError: The file is missing or no Parquet file.
    """
    with opened(path) as file:
        start = 0
        for group in range(file.metadata.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            for rows in _group(file, group, columns, start, _SCALARS if small else _ROWS):
                yield rows
                start = rows.start + rows.length
            if start < end:
                yield Rows(start, None, end - start)
            start = end


def _group(
    file: pq.ParquetFile, group: int, columns: Sequence[str], start: int, size: int
) -> Iterator[Rows]:
    batches = file.iter_batches(size, row_groups=[group], columns=list(columns), use_threads=False)
    while True:
        try:
            batch = next(batches, None)
            values = None if batch is None else {name: _values(batch, name) for name in columns}
        except (OSError, pa.ArrowException, UnicodeDecodeError, ValueError):
            return
        if batch is None or values is None:
            return
        yield Rows(start, values, batch.num_rows)
        start += batch.num_rows


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    return list(batch.column(name).to_pylist())
