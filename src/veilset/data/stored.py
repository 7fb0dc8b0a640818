"""A split over several drops that stays on disk: for sets larger than main memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from veilset.data.shards import ImageSet
from veilset.data.splits import choose
from veilset.errors import SourceError
from veilset.types import Ids, IntArray, Labels

_CACHE_BYTES = 16 << 20  # what was verified is not kept: enough for a few neighbouring chunks


class StoredRows:
    """Images, or a column of bytes, in the order of their ids; indexing reads them from disk.

    Every byte comes from a chunk whose hash was compared since its shard last changed: the first
    read of a chunk verifies it, and a shard that changes later is verified anew. Memory does not
    grow with the rows. Safe to use from several threads.

    Attributes:
        shape: (N, H, W, C) of images, (N, ...) of a column.
        dtype: uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, parts: Sequence[ImageSet], split: str, name: str, places: IntArray
    ) -> None:  # fmt: skip
        """Binds rows of open sets; `open_stored` does.

        Args:
            parts: The sets.
            split: A split that all of them have.
            name: `image` or the name of a column.
            places: Where each row is, int64 (N,): rows of the sets, counted one set after another.
        """
        self._parts, self._split, self._name, self._places = parts, split, name, places
        self._ends = np.cumsum([part.count(split) for part in parts])
        none = parts[0].streamed(split, name, slice(0, 0))
        self.shape: tuple[int, ...] = (len(places), *none.shape[1:])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._places)

    def __getitem__(self, rows: slice | IntArray) -> npt.NDArray[np.uint8]:
        """Reads rows, uint8 (len(rows), ...).

        Raises:
            CorruptError: Stored bytes disagree with their hashes.
            IndexError: A row that there is not.
        """
        places = self._places[rows]
        if len(self._parts) == 1:
            return self._parts[0].streamed(self._split, self._name, places)
        found = np.empty((len(places), *self.shape[1:]), dtype=np.uint8)
        holder = np.searchsorted(self._ends, places, side="right")
        for index, part in enumerate(self._parts):
            where = np.flatnonzero(holder == index)
            if len(where):
                start = int(self._ends[index]) - part.count(self._split)
                found[where] = part.streamed(self._split, self._name, places[where] - start)
        return found


class StoredSplit(NamedTuple):
    """One split of several sets, whose images are still on disk.

    Attributes:
        ids: uint8 (N, 16), ascending.
        labels: int64 (N,).
        images: (N, H, W, C).
        column: The further column that was asked for, where the sets have it.
    """

    ids: Ids
    labels: Labels
    images: StoredRows
    column: StoredRows | None


def open_stored(folders: Sequence[Path], split: str, column: str | None = None) -> StoredSplit:
    """Opens what `read_split` and `read_column` would read, in the same order.

    Args:
        folders: The sets, one a drop. A set without this split adds nothing.
        split: Its name.
        column: A further column of bytes, or None.

    Raises:
        SourceError: No set has the split, the sets do not belong together, or only some have the
            column or have it as bytes.
        CorruptError: Stored bytes disagree with their hashes.
    """
    rows = choose(folders, split, cache_bytes=_CACHE_BYTES)
    starts = np.cumsum([0, *(part.count(split) for part in rows.parts)])
    kept = [start + own for start, own in zip(starts, rows.kept, strict=False)]
    places: IntArray = np.concatenate(kept)[rows.order]
    further = None
    if column is not None and rows.has(column):
        _require_alike(rows.parts, column)
        further = StoredRows(rows.parts, split, column, places)
    images = StoredRows(rows.parts, split, "image", places)
    return StoredSplit(rows.ids[rows.order], rows.labels(split), images, further)


def _require_alike(parts: Sequence[ImageSet], column: str) -> None:
    kinds = {part.manifest.columns[column] for part in parts}
    if len(kinds) > 1 or not kinds.pop().startswith("uint8["):
        raise SourceError(
            f"{parts[0].folder} has a column {column!r} that cannot be read from disk along with "
            "the images: protect all drops with the same settings."
        )
