"""What can be trained on: images with labels, checked before a training starts.

Images that main memory has no room for stay on disk (`StoredRows`), and are read as they are used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from veilset.data.manifest import Manifest
from veilset.data.splits import read_column, read_split
from veilset.data.stored import StoredRows, open_stored
from veilset.errors import TrainingError
from veilset.types import Ids, Images, IntArray, Labels

LEAST_IMAGES = 8
"""Fewer training images than this are refused."""


MASK: Final = "mask"
"""The column of a released set that says which pixels were kept."""

Mask = npt.NDArray[np.uint8]
"""Which pixels were kept: uint8 (N, H, W), 1 or 0."""


class Samples(NamedTuple):
    """Images and their labels.

    Attributes:
        images: uint8 (N, H, W, C), in memory or on disk.
        labels: int64 (N,).
        mask: Which pixels were kept, uint8 (N, H, W), 1 or 0; None where nothing was masked.
            Networks that read no mask are trained without. On disk where the images are.
    """

    images: Images | StoredRows
    labels: Labels
    mask: Mask | StoredRows | None = None

    @property
    def on_disk(self) -> bool:
        """Whether the images are read as they are used."""
        return isinstance(self.images, StoredRows)


def read_samples(
    folders: Sequence[Path], split: str, *, masks: bool, room: int | None = None
) -> tuple[Ids, Samples]:
    """Reads one split of several image sets as one.

    Args:
        folders: The sets, one a drop.
        split: Its name.
        masks: Whether the masks are read as well, where the sets have any.
        room: Bytes of memory that the images may take: where they need more, they stay on disk.
            None for as many as they need.

    Returns:
        Ids uint8 (N, 16) in ascending order, and the samples in that order.

    Raises:
        SourceError: No set has the split, or the sets do not belong together.
        CorruptError: Stored bytes disagree with their hashes.
    """
    if room is not None and needed(folders, split, masks=masks) > room:
        ids, labels, stored, column = open_stored(folders, split, MASK if masks else None)
        return ids, Samples(stored, labels, column)
    ids, labels, images = read_split(folders, split)
    mask = read_column(folders, split, MASK) if masks else None
    return ids, Samples(images, labels, mask)


def needed(folders: Sequence[Path], split: str, *, masks: bool) -> int:
    """Bytes of memory that the images of a split take at most, with masks where these are read.

    Raises:
        CorruptError: A set has no whole manifest.
    """
    total = 0
    for manifest in map(Manifest.load, folders):
        height, width, channels = manifest.shape
        # Masks become a further channel of a copy of the images.
        parts = 2 * (channels + 1) if masks and MASK in manifest.columns else channels
        total += manifest.splits.get(split, 0) * height * width * parts
    return total


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
    if (train.mask is None) != (validation.mask is None):
        raise TrainingError(
            "training or validation images have masks, but the others have none: make both from "
            "one set."
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
    images, labels, mask = part
    if images.dtype != np.uint8 or len(images.shape) != 4 or images.shape[-1] not in (1, 3):
        raise TrainingError(
            f"{name} images must be uint8 (N, H, W, 1 or 3), not {images.dtype} {images.shape}."
        )
    if labels.dtype != np.int64 or labels.shape != (len(images),):
        raise TrainingError(
            f"{name} labels must be int64 ({len(images)},), not {labels.dtype} {labels.shape}."
        )
    if mask is not None:
        require_mask(mask, images, name)
    if len(images) == 0:
        raise TrainingError(f"there is no {name} image: widen that split.")
    if labels.min() < 0 or labels.max() >= classes:
        odd = int(labels.min() if labels.min() < 0 else labels.max())
        raise TrainingError(
            f"a {name} label is {odd}, but there are {classes} classes (0 to {classes - 1})."
        )


def require_mask(mask: Mask | StoredRows, images: Images | StoredRows, name: str) -> None:
    """Refuses a mask that is none of these images. What a stored one holds is not looked at.

    Raises:
        TrainingError: Wrong dtype, shape or values.
    """
    if mask.dtype != np.uint8 or mask.shape != images.shape[:3]:
        raise TrainingError(
            f"the mask of {name} images must be uint8 {images.shape[:3]}, not {mask.dtype} "
            f"{mask.shape}."
        )
    if not isinstance(mask, StoredRows) and mask.size and mask.max() > 1:
        raise TrainingError(
            f"the mask of {name} images holds {mask.max()}: it says 1 for kept and 0 for masked."
        )


class Pixels:
    """Images that stay on disk, with their masks as a last channel where they have any.

    Attributes:
        shape: (N, H, W, C), C one more with a mask.
    """

    def __init__(self, images: StoredRows, mask: Mask | StoredRows | None) -> None:
        """Binds images (N, H, W, C) and masks (N, H, W)."""
        self._images, self._mask = images, mask
        count, height, width, channels = images.shape
        self.shape = (count, height, width, channels + (mask is not None))

    def __len__(self) -> int:
        """Number of images."""
        return self.shape[0]

    def __getitem__(self, rows: slice | IntArray) -> npt.NDArray[np.uint8]:
        """Reads rows, uint8 (len(rows), H, W, C).

        Raises:
            CorruptError: Stored bytes disagree with their hashes.
            TrainingError: A mask holds more than 0 and 1.
        """
        images = self._images[rows]
        if self._mask is None:
            return images
        mask = self._mask[rows]
        require_mask(mask, images, "stored")
        return with_mask(images, mask)


def with_mask(images: Images, mask: Mask | None) -> npt.NDArray[np.uint8]:
    """Images with their mask as a last channel, uint8 (N, H, W, C + 1), or without one as they are.

    A mask that lies in the images' array moves with them, whatever moves them.
    """
    if mask is None:
        return images
    return np.concatenate([images, mask[..., None]], axis=3)
