"""What can be trained on: images with labels, checked before a training starts."""

from typing import NamedTuple

import numpy as np

from veilset.errors import TrainingError
from veilset.types import Images, Labels

LEAST_IMAGES = 8
"""Fewer training images than this are refused."""


class Samples(NamedTuple):
    """Images and their labels.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
    """

    images: Images
    labels: Labels


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
