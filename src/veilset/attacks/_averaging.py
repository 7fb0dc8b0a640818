"""Averaging: what several releases of one image under fresh keys give away.

A case holds one release of each image, so this is no attack of the suite. It is the reason why the
ledger adds up the budgets of all releases of an image.
"""

from collections.abc import Sequence

import numpy as np

from veilset.types import FloatArray, Images


def averaged(releases: Sequence[Images]) -> FloatArray:
    """The mean of several releases of the same images, the rows in the same order.

    Where noise is independent and not clipped, the error of k releases is that of one divided by
    the square root of k, and so is that of one release of k times the budget: budgets add up.

    Args:
        releases: Each uint8 (N, H, W, C).

    Returns:
        float64 (N, H, W, C), grey levels 0..255.

    Raises:
        ValueError: There is no release, or their shapes differ.
    """
    if not releases or len({release.shape for release in releases}) != 1:
        raise ValueError("averaging needs releases of the same images, one at least")
    total = np.zeros(releases[0].shape)
    for release in releases:
        total += release
    return np.asarray(total / len(releases))
