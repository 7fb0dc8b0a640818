"""What the perceptual encryptions share: one key for all images or one for each, and lanes."""

from collections.abc import Iterator
from typing import Final, Literal

import numpy as np

from veilset.types import Ids, Images

Keys = Literal["fixed", "per_image"]
"""Whether all images of a release go through one transform, or each through its own."""

KEYS_HELP: Final = (
    "fixed: one transform for all images, which learns best and falls to a few known pairs. "
    "per_image: each image has its own"
)

_LANE_BYTES: Final = 1 << 18
_FIXED: Final = np.zeros((1, 16), dtype=np.uint8)


def lanes(images: Images, ids: Ids, keys: Keys) -> Iterator[tuple[slice, Ids]]:
    """Runs of images whose keystream is made at once, with the ids that address it.

    Args:
        images: uint8 (N, H, W, C).
        ids: uint8 (N, 16).
        keys: `fixed` gives a single run and the id of zeros, so that every image has the
            transform of that id; `per_image` gives runs small enough for the cache.

    Yields:
        A run of the N images, and its ids: uint8 (1, 16) or (length of the run, 16).

    Source: ours.
    """
    if keys == "fixed":
        if len(images):
            yield slice(0, len(images)), _FIXED
        return
    step = max(1, _LANE_BYTES // images[:1].nbytes) if len(images) else 1
    for low in range(0, len(images), step):
        lane = slice(low, min(low + step, len(images)))
        yield lane, ids[lane]
