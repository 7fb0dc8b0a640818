"""Splits over several drops, read as one; an image that came in several drops counts once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from veilset.data.shards import ImageSet
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
    sets = [ImageSet.open(folder) for folder in folders]
    _require_alike(sets)
    parts = [part for part in sets if split in part.splits and part.count(split) > 0]
    if not parts:
        places = ", ".join(str(folder) for folder in folders) or "no folder"
        raise SourceError(f"no image of split {split!r} in {places}: ingest or protect it first.")
    kept = first_seen([part.ids(split) for part in parts])
    if limit is not None:
        kept = _smallest([part.ids(split) for part in parts], kept, limit)
    ids = np.concatenate([part.ids(split)[rows] for part, rows in zip(parts, kept, strict=True)])
    labels = np.concatenate(
        [part.labels(split)[rows] for part, rows in zip(parts, kept, strict=True)]
    )
    order = np.lexsort(ids.T[::-1])
    images = _gather(parts, kept, split, order)
    return ids[order], labels[order], images


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


def _gather(
    parts: Sequence[ImageSet], kept: Sequence[IntArray], split: str, order: npt.NDArray[np.intp]
) -> Images:
    """Reads the kept rows straight into their places."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    images: Images = np.empty((len(order), *parts[0].shape), dtype=np.uint8)
    done = 0
    for part, rows in zip(parts, kept, strict=True):
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            images[place[done : done + len(batch)]] = part.images(split, batch)
            done += len(batch)
    return images
