"""How alike two images are: PSNR and SSIM, an image at a time.

Pooling pixels of several images first gives other figures than averaging the images' own, so both
functions return one value an image and leave the averaging to the caller.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from veilset.compiled import compiled
from veilset.types import FloatArray, Images

WINDOW = 11
"""Side of the Gaussian window in pixels."""

SIGMA = 1.5
"""Standard deviation of the Gaussian window in pixels."""

PEAK = 255.0
"""The range of the grey levels."""


def psnr(first: Images, second: Images) -> FloatArray:
    """Peak signal-to-noise ratio of each pair, in decibels.

    Args:
        first: Images (N, H, W, C), grey levels 0..255, uint8 or floating-point.
        second: Images of the same shape.

    Returns:
        float64 (N,); infinite where two images are equal.

    Raises:
        ValueError: The shapes differ or are not (N, H, W, C).

    Source: the textbook definition, 10 log10(255^2 / mean squared difference).
    """
    a, b = _pair(first, second)
    error = (np.subtract(a, b, dtype=np.float64) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(10.0 * np.log10(PEAK**2 / error), dtype=np.float64)


def ssim(first: Images, second: Images) -> FloatArray:
    """Structural similarity of each pair: Gaussian window 11, sigma 1.5, valid region only.

    Images with a side under 11 pixels are scored with the largest odd window that fits; their
    figures are not comparable with those of larger images.

    Args:
        first: Images (N, H, W, C), grey levels 0..255, uint8 or floating-point.
        second: Images of the same shape.

    Returns:
        float64 (N,), at most 1, the mean over window positions and channels.

    Raises:
        ValueError: The shapes differ or are not (N, H, W, C).

    Source: Wang et al., IEEE TIP 13(4), 2004, with population covariances (K1 = .01, K2 = .03).
    """
    a, b = _pair(first, second)
    size = window_size(min(a.shape[1:3]))
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    return _ssim(_flat_rows(a), _flat_rows(b), a.shape[3], gaussian_window(size), c1, c2)


def ssim_either_sign(first: Images, second: Images) -> FloatArray:
    """The larger SSIM of `first` and its negative 255 - `first` against `second`.

    An attack that restores an image as its negative has restored it; the absolute value of SSIM is
    not the same thing.

    Args:
        first: Reconstructions (N, H, W, C), grey levels 0..255.
        second: Originals of the same shape.

    Returns:
        float64 (N,).

    Raises:
        ValueError: The shapes differ or are not (N, H, W, C).

    Source: ours.
    """
    negative = PEAK - np.asarray(first, dtype=np.float64)
    return np.asarray(np.maximum(ssim(first, second), ssim(negative, second)))  # type: ignore[arg-type]


def gaussian_window(size: int = WINDOW, sigma: float = SIGMA) -> FloatArray:
    """A Gaussian window of an odd number of taps that sum to one, float64 (size,)."""
    offsets = np.arange(size) - (size - 1) / 2
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    return np.asarray(weights / weights.sum())


def window_band(length: int, size: int) -> FloatArray:
    """The matrix that takes Gaussian means along a line where the window lies inside it.

    Args:
        length: Pixels of the line.
        size: Taps of the window, odd, at most `length`.

    Returns:
        float64 (length - size + 1, length).

    Source: the textbook definition.
    """
    positions = length - size + 1
    band = np.zeros((positions, length))
    for row in range(positions):
        band[row, row : row + size] = gaussian_window(size)
    return band


def window_size(side: int) -> int:
    """Taps of the window for images whose shorter side has so many pixels: odd, at most 11."""
    return min(WINDOW, side if side % 2 else side - 1)


def _pair(first: Images, second: Images) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Two arrays that can be subtracted without wrapping around, once they are floating-point."""
    if first.shape != second.shape or first.ndim != 4:
        raise ValueError(f"two (N, H, W, C) arrays of one shape, not {first.shape}, {second.shape}")
    a, b = np.asarray(first), np.asarray(second)
    if a.dtype == b.dtype == np.uint8:
        return a, b
    return a.astype(np.float64), b.astype(np.float64)


def _flat_rows(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(N, H, W, C) as (N, H, W * C) in one piece of memory."""
    n, height, width, channels = images.shape
    return np.ascontiguousarray(images).reshape(n, height, width * channels)


@compiled
def _ssim(
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    channels: int,
    weights: FloatArray,
    c1: float,
    c2: float,
) -> FloatArray:
    """SSIM of rows (N, H, W * C): moments down the columns first, then along the rows.

    Channels stay beside one another, so that both loops run over memory as it lies; no image of
    moments is ever written.
    """
    n, height, width = first.shape
    size = len(weights)
    columns = width - (size - 1) * channels
    moments = np.empty((5, width))
    smooth = np.empty((5, columns))
    found = np.empty(n)
    for image in range(n):
        total = 0.0
        for top in range(height - size + 1):
            moments[:] = 0.0
            for tap in range(size):
                weight, row_a, row_b = (
                    weights[tap],
                    first[image, top + tap],
                    second[image, top + tap],
                )
                for j in range(width):
                    x, y = float(row_a[j]), float(row_b[j])
                    moments[0, j] += weight * x
                    moments[1, j] += weight * y
                    moments[2, j] += weight * (x * x)
                    moments[3, j] += weight * (y * y)
                    moments[4, j] += weight * (x * y)
            smooth[:] = 0.0
            for moment in range(5):
                for tap in range(size):
                    weight, start = weights[tap], tap * channels
                    for j in range(columns):
                        smooth[moment, j] += weight * moments[moment, start + j]
            for j in range(columns):
                a, b = smooth[0, j], smooth[1, j]
                above = (2 * a * b + c1) * (2 * (smooth[4, j] - a * b) + c2)
                below = (a * a + b * b + c1) * (smooth[2, j] - a * a + smooth[3, j] - b * b + c2)
                total += above / below
        found[image] = total / ((height - size + 1) * columns)
    return found
