"""What can be trained on: images with labels, checked before a training starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from veilset.data.splits import read_column, read_split
from veilset.errors import TrainingError
from veilset.types import Ids, Images, Labels

LEAST_IMAGES = 8
"""Fewer training images than this are refused."""


MASK: Final = "mask"
"""The column of a released set that says which pixels were kept."""

Mask = npt.NDArray[np.uint8]
"""Which pixels were kept: uint8 (N, H, W), 1 or 0."""


class Samples(NamedTuple):
    """Images and their labels.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        mask: Which pixels were kept, uint8 (N, H, W), 1 or 0; None where nothing was masked.
            Networks that read no mask are trained without.
    """

    images: Images
    labels: Labels
    mask: Mask | None = None


def read_samples(folders: Sequence[Path], split: str, *, masks: bool) -> tuple[Ids, Samples]:
    """Reads one split of several image sets as one.

    Args:
        folders: The sets, one a drop.
        split: Its name.
        masks: Whether the masks are read as well, where the sets have any.

    Returns:
        Ids uint8 (N, 16) in ascending order, and the samples in that order.

    Raises:
        SourceError: No set has the split, or the sets do not belong together.
        CorruptError: Stored bytes disagree with their hashes.
    """
    ids, labels, images = read_split(folders, split)
    mask = read_column(folders, split, MASK) if masks else None
    return ids, Samples(images, labels, mask)


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
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
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


def require_mask(mask: Mask, images: Images, name: str) -> None:
    """Refuses a mask that is none of these images.

    Raises:
        TrainingError: Wrong dtype, shape or values.
    """
    if mask.dtype != np.uint8 or mask.shape != images.shape[:3]:
        raise TrainingError(
            f"the mask of {name} images must be uint8 {images.shape[:3]}, not {mask.dtype} "
            f"{mask.shape}."
        )
    if mask.size and mask.max() > 1:
        raise TrainingError(
            f"the mask of {name} images holds {mask.max()}: it says 1 for kept and 0 for masked."
        )


def with_mask(images: Images, mask: Mask | None) -> npt.NDArray[np.uint8]:
    """Images with their mask as a last channel, uint8 (N, H, W, C + 1), or without one as they are.

    A mask that lies in the images' array moves with them, whatever moves them.
    """
    if mask is None:
        return images
    return np.concatenate([images, mask[..., None]], axis=3)
