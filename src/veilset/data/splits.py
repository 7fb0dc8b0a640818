"""Splits over several drops, read as one; an image that came in several drops counts once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from veilset.data.shards import CACHE_BYTES, ImageSet
from veilset.errors import SourceError
from veilset.types import Ids, Images, IntArray, Labels

_BATCH = 4096


def read_split(
    folders: Sequence[Path], split: str, limit: int | None = None
) -> tuple[Ids, Labels, Images]:
    """Reads one split of several image sets as one.

    An id that occurs in several sets is taken once, from the first. The result is in the order of
    the ids, so that it does not depend on how the images came in drops. The images are allocated
    once: memory is that of the result and one batch.

    Args:
        folders: The sets, one a drop. A set without this split adds nothing.
        split: Its name.
        limit: At most so many images: those with the smallest ids, which are as good as drawn.

    Returns:
        Ids uint8 (N, 16) in ascending order, labels int64 (N,), images uint8 (N, H, W, C).

    Raises:
        SourceError: No set has the split, or shapes or classes differ between the sets.
        CorruptError: Stored bytes disagree with their hashes.
    """
    rows = choose(folders, split, limit)
    return rows.ids[rows.order], rows.labels(split), _gather(rows, split)


def read_column(
    folders: Sequence[Path], split: str, name: str, limit: int | None = None
) -> npt.NDArray[Any] | None:
    """Reads a further column of the rows that `read_split` returns, in the same order.

    Args:
        folders: As for `read_split`.
        split: As for `read_split`.
        name: The column's name.
        limit: As for `read_split`.

    Returns:
        An array of N rows; None where no set has such a column.

    Raises:
        SourceError: As `read_split`, or only some of the sets have the column.
        CorruptError: Stored bytes disagree with their hashes.
    """
    rows = choose(folders, split, limit)
    if not rows.has(name):
        return None
    values = [
        part.column(split, name)[kept] for part, kept in zip(rows.parts, rows.kept, strict=True)
    ]
    found: npt.NDArray[Any] = np.concatenate(values)[rows.order]
    return found


@dataclass(frozen=True)
class Chosen:
    """Which rows of which sets are read, and the order that sorts them by id once joined."""

    parts: Sequence[ImageSet]
    kept: Sequence[IntArray]
    ids: Ids
    order: npt.NDArray[np.intp]

    def labels(self, split: str) -> Labels:
        """Labels in the order of the ids, int64 (N,)."""
        found = [part.labels(split)[kept] for part, kept in zip(self.parts, self.kept, strict=True)]
        labels: Labels = np.concatenate(found)[self.order]
        return labels

    def has(self, name: str) -> bool:
        """Whether the sets have a further column.

        Raises:
            SourceError: Only some of them have it.
        """
        lacking = [part.folder for part in self.parts if name not in part.manifest.columns]
        if lacking and len(lacking) < len(self.parts):
            raise SourceError(
                f"{lacking[0]} has no column {name!r}, but other drops have: protect all drops "
                "with the same settings."
            )
        return not lacking


def choose(
    folders: Sequence[Path], split: str, limit: int | None = None, cache_bytes: int = CACHE_BYTES
) -> Chosen:
    """Chooses the rows that `read_split` reads, for the same arguments, and reads their ids.

    `cache_bytes` is what each set may keep of its verified bytes. Raises as `read_split`.
    """
    sets = [ImageSet.open(folder, cache_bytes=cache_bytes) for folder in folders]
    _require_alike(sets)
    parts = [part for part in sets if split in part.splits and part.count(split) > 0]
    if not parts:
        places = ", ".join(str(folder) for folder in folders) or "no folder"
        raise SourceError(f"no image of split {split!r} in {places}: ingest or protect it first.")
    kept = first_seen([part.ids(split) for part in parts])
    if limit is not None:
        kept = _smallest([part.ids(split) for part in parts], kept, limit)
    ids = np.concatenate([part.ids(split)[rows] for part, rows in zip(parts, kept, strict=True)])
    return Chosen(parts, kept, ids, np.lexsort(ids.T[::-1]))


def _require_alike(sets: Sequence[ImageSet]) -> None:
    for part in sets[1:]:
        if part.shape != sets[0].shape or part.classes != sets[0].classes:
            raise SourceError(
                f"{part.folder} has images {part.shape} of {len(part.classes)} classes, but "
                f"{sets[0].folder} has {sets[0].shape} of {len(sets[0].classes)}, or the classes "
                "have other names: ingest both with the same settings."
            )


def first_seen(ids: Sequence[Ids]) -> list[IntArray]:
    """For each array of ids the rows whose id no earlier row has, ascending."""
    joined = np.ascontiguousarray(np.concatenate(ids)).view(np.dtype((np.void, 16)))[:, 0]
    first = np.sort(np.unique(joined, return_index=True)[1]).astype(np.int64)
    ends = np.cumsum([len(part) for part in ids])
    starts = ends - [len(part) for part in ids]
    return [
        first[np.searchsorted(first, start) : np.searchsorted(first, end)] - start
        for start, end in zip(starts, ends, strict=True)
    ]


def _smallest(ids: Sequence[Ids], kept: Sequence[IntArray], limit: int) -> list[IntArray]:
    """Of the kept rows those with the smallest ids, at most `limit` in all."""
    joined = np.concatenate([part[rows] for part, rows in zip(ids, kept, strict=True)])
    chosen = np.zeros(len(joined), dtype=np.bool_)
    chosen[np.lexsort(joined.T[::-1])[:limit]] = True
    cuts = np.cumsum([len(rows) for rows in kept])[:-1]
    return [rows[part] for rows, part in zip(kept, np.split(chosen, cuts), strict=True)]


def _gather(chosen: Chosen, split: str) -> Images:
    """Reads the kept rows straight into their places."""
    count = len(chosen.order)
    place = np.empty(count, dtype=np.int64)
    place[chosen.order] = np.arange(count)
    images: Images = np.empty((count, *chosen.parts[0].shape), dtype=np.uint8)
    done = 0
    for part, rows in zip(chosen.parts, chosen.kept, strict=True):
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            images[place[done : done + len(batch)]] = part.images(split, batch)
            done += len(batch)
    return images
