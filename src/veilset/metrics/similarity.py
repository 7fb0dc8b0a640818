"""How alike two images are: PSNR and SSIM, an image at a time.

Pooling pixels of several images first gives other figures than averaging the images' own, so both
functions return one value an image and leave the averaging to the caller.
"""

import numpy as np

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
    error = ((a - b) ** 2).mean(axis=(1, 2, 3))
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
    mean_a, mean_b = _smooth(a), _smooth(b)
    variance_a = _smooth(a * a) - mean_a**2
    variance_b = _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    bottom = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return np.asarray((top / bottom).mean(axis=(1, 2, 3)), dtype=np.float64)


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


def _pair(first: Images, second: Images) -> tuple[FloatArray, FloatArray]:
    if first.shape != second.shape or first.ndim != 4:
        raise ValueError(f"two (N, H, W, C) arrays of one shape, not {first.shape}, {second.shape}")
    return np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)


def _smooth(images: FloatArray) -> FloatArray:
    """Gaussian means at the positions where the whole window lies inside the image."""
    side = min(images.shape[1:3])
    size = min(WINDOW, side if side % 2 else side - 1)
    rows, columns = (window_band(n, size) for n in images.shape[1:3])
    # Two products with a banded matrix: far faster than a filter call per image at these sizes.
    planes = np.moveaxis(images, -1, 1)
    return np.moveaxis(rows @ planes @ columns.T, 1, -1)
