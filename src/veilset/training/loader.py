"""The images of a split, over several drops, as arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from veilset.data.shards import ImageSet
from veilset.errors import SourceError, TrainingError
from veilset.types import Ids, Images, IntArray, Labels

LEAST_IMAGES = 8
"""Fewer training images than this are refused."""

_BATCH = 4096


class Samples(NamedTuple):
    """Images and their labels.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
    """

    images: Images
    labels: Labels


def read_split(folders: Sequence[Path], split: str) -> tuple[Ids, Labels, Images]:
    """Reads one split of several image sets as one.

    An id that occurs in several sets is taken once, from the first. The result is in the order of
    the ids, so that it does not depend on how the images came in drops. The images are allocated
    once: memory is that of the result and one batch.

    Args:
        folders: The sets, one a drop. A set without this split adds nothing.
        split: Its name.

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
    kept = _first_seen([part.ids(split) for part in parts])
    ids = np.concatenate([part.ids(split)[rows] for part, rows in zip(parts, kept, strict=True)])
    labels = np.concatenate(
        [part.labels(split)[rows] for part, rows in zip(parts, kept, strict=True)]
    )
    order = np.lexsort(ids.T[::-1])
    images = _gather(parts, kept, split, order)
    return ids[order], labels[order], images


def check_samples(train: Samples, validation: Samples, classes: int) -> None:
    """Refuses what cannot be trained on.

    Args:
        train: Training images.
        validation: Validation images.
        classes: Number of classes that labels may name.

    Raises:
        TrainingError: Wrong dtype or shape, a label out of range, too few images, or one class.
    """
    for name, part in (("training", train), ("validation", validation)):
        _require_form(name, part, classes)
    if train.images.shape[1:] != validation.images.shape[1:]:
        raise TrainingError(
            f"training images are {train.images.shape[1:]}, but validation images are "
            f"{validation.images.shape[1:]}: make both from one set."
        )
    if len(train.images) < LEAST_IMAGES:
        raise TrainingError(
            f"{len(train.images)} training images are too few: {LEAST_IMAGES} are needed at least."
        )
    present = np.unique(train.labels)
    if len(present) < 2:
        raise TrainingError(
            f"all training images are of class {int(present[0])}: nothing can be learnt from one "
            "class, so add images of another."
        )


def _require_form(name: str, part: Samples, classes: int) -> None:
    images, labels = part
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise TrainingError(
            f"{name} images must be uint8 (N, H, W, 1 or 3), not {images.dtype} {images.shape}."
        )
    if labels.dtype != np.int64 or labels.shape != (len(images),):
        raise TrainingError(
            f"{name} labels must be int64 ({len(images)},), not {labels.dtype} {labels.shape}."
        )
    if len(images) == 0:
        raise TrainingError(f"there is no {name} image: widen that split.")
    if labels.min() < 0 or labels.max() >= classes:
        odd = int(labels.min() if labels.min() < 0 else labels.max())
        raise TrainingError(
            f"a {name} label is {odd}, but there are {classes} classes (0 to {classes - 1})."
        )


def _require_alike(sets: Sequence[ImageSet]) -> None:
    for part in sets[1:]:
        if part.shape != sets[0].shape or part.classes != sets[0].classes:
            raise SourceError(
                f"{part.folder} has images {part.shape} of {len(part.classes)} classes, but "
                f"{sets[0].folder} has {sets[0].shape} of {len(sets[0].classes)}, or the classes "
                "have other names: ingest both with the same settings."
            )


def _first_seen(ids: Sequence[Ids]) -> list[IntArray]:
    """For each array of ids the rows whose id no earlier row has, ascending."""
    joined = np.ascontiguousarray(np.concatenate(ids)).view(np.dtype((np.void, 16)))[:, 0]
    first = np.sort(np.unique(joined, return_index=True)[1]).astype(np.int64)
    ends = np.cumsum([len(part) for part in ids])
    starts = ends - [len(part) for part in ids]
    return [
        first[np.searchsorted(first, start) : np.searchsorted(first, end)] - start
        for start, end in zip(starts, ends, strict=True)
    ]


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
