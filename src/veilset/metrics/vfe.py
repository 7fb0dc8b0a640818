"""Visual feature entropy (VFE) of VisualMixer, in exact integers.

Despite its name it is a gradient energy: the mean, over windows and channels, of the summed squared
differences of neighbouring pixels. The sums are integers in grey levels squared; the floats are
these sums over 255^2, as for images in [0, 1].

Source: Li et al., NDSS 2024 (arXiv 2404.04098), after the authors' published code. That code
measures ImageNet-normalised images; we measure them in [0, 1], because a protection step must not
depend on constants of another data set (ours).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from veilset.types import FloatArray, Images, IntArray

WINDOW: Final = 14
"""Side of the published window, in pixels, and its stride."""

_UNIT: Final = 255 * 255
_LANE_BYTES: Final = 1 << 22


def vfe_released(images: Images, window: int = WINDOW) -> FloatArray:
    """VFE as the published code measures it: windows padded with zeros below and to the right.

    The padding makes it mostly a measure of brightness: a constant image of 0.5 scores 7.

    Args:
        images: uint8 (N, H, W, C).
        window: Side and stride in pixels; a side of the image that is shorter shortens it. What is
            left over at the lower and right edge is not measured.

    Returns:
        float64 (N,), 0 or more, in squared differences of [0, 1] images per window and channel.

    Raises:
        ValueError: `window` is below 1 or the images are not uint8 (N, H, W, C).
    """
    sums, windows = vfe_released_sums(images, window)
    return sums / (windows * _UNIT)


def vfe_released_sums(images: Images, window: int = WINDOW) -> tuple[IntArray, int]:
    """`vfe_released` as integers: its numerator and its denominator / 255^2.

    Returns:
        int64 (N,), the sum over all windows and channels in grey levels squared, and the number of
        windows times channels.

    Raises:
        ValueError: As `vfe_released`.
    """
    _require(images, window)
    _, height, width, channels = images.shape
    high, wide = min(window, height), min(window, width)
    rows, columns = height // high, width // wide
    cut = images[:, : rows * high, : columns * wide]
    sums = np.empty(len(images), dtype=np.int64)
    for part in _parts(cut):
        windows = cut[part].reshape(-1, rows, high, columns, wide, channels)
        sums[part] = (
            _total(_squares(windows, 4))
            + _total(_squares(windows, 2))
            + _total(_energy(windows[:, :, :, :, -1]))
            + _total(_energy(windows[:, :, -1]))
        )
    return sums, rows * columns * channels


def vfe_valid(images: Images) -> FloatArray:
    """Mean squared difference of neighbours inside the image, without padding.

    A uniform permutation of an image's pixels has twice its (unbiased) variance as expectation.

    Args:
        images: uint8 (N, H, W, C), or regions of images.

    Returns:
        float64 (N, C), 0 to 1, per pair of neighbours of [0, 1] images; 0 for a single pixel.

    Raises:
        ValueError: The images are not uint8 (N, H, W, C).
    """
    sums, pairs = vfe_valid_sums(images)
    return sums / (max(pairs, 1) * _UNIT)


def vfe_valid_sums(images: Images) -> tuple[IntArray, int]:
    """`vfe_valid` as integers: its numerator and its denominator / 255^2.

    Returns:
        int64 (N, C), summed squared differences in grey levels, and the number of pairs of
        neighbours: H (W - 1) + W (H - 1).

    Raises:
        ValueError: As `vfe_valid`.
    """
    _require(images, 1)
    _, height, width, channels = images.shape
    sums = np.empty((len(images), channels), dtype=np.int64)
    for part in _parts(images):
        sums[part] = _squares(images[part], 1).sum(axis=(1, 2), dtype=np.int64)
        sums[part] += _squares(images[part], 2).sum(axis=(1, 2), dtype=np.int64)
    return sums, height * (width - 1) + width * (height - 1)


def vfe_region_sums(
    images: Images, tops: Sequence[int], lefts: Sequence[int]
) -> tuple[IntArray, IntArray]:
    """`vfe_valid_sums` of every region of a grid that covers the image.

    Args:
        images: uint8 (N, H, W, C).
        tops: First row of each row of regions, ascending from 0.
        lefts: First column of each column of regions, ascending from 0.

    Returns:
        int64 (N, len(tops), len(lefts), C), summed squared differences of neighbours inside each
        region in grey levels; and int64 (len(tops), len(lefts)), their pairs of neighbours.

    Raises:
        ValueError: As `vfe_valid`.
    """
    _require(images, 1)
    _, height, width, channels = images.shape
    sums = np.empty((len(images), len(tops), len(lefts), channels), dtype=np.int64)
    for part in _parts(images):
        squares = np.zeros((*images[part].shape[:3], channels), dtype=np.int64)
        squares[:, :-1] = _squares(images[part], 1)
        squares[:, [top - 1 for top in tops[1:]]] = 0  # pairs across a border
        right = _squares(images[part], 2)
        right[:, :, [left - 1 for left in lefts[1:]]] = 0
        squares[:, :, :-1] += right
        sums[part] = np.add.reduceat(np.add.reduceat(squares, tops, axis=1), lefts, axis=2)
    high = np.diff([*tops, height])[:, None]
    wide = np.diff([*lefts, width])[None, :]
    return sums, high * (wide - 1) + wide * (high - 1)


def _parts(images: Images) -> list[slice]:
    """Runs of images whose intermediate results stay small."""
    step = max(1, _LANE_BYTES // max(1, images[:1].nbytes * 4))
    return [slice(low, low + step) for low in range(0, len(images), step)]


def _energy(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    return np.square(values.astype(np.int32))


def _squares(values: npt.NDArray[np.uint8], axis: int) -> npt.NDArray[np.int32]:
    """Squared differences of neighbours along an axis; at most 65025 each."""
    return np.square(np.diff(values.astype(np.int32), axis=axis))


def _total(values: npt.NDArray[np.int32]) -> IntArray:
    """The sum of each image, int64 (N,)."""
    flat = values.reshape(len(values), int(np.prod(values.shape[1:])))
    total: IntArray = flat.sum(axis=1, dtype=np.int64)
    return total


def _require(images: Images, window: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 (N, H, W, C), not {images.dtype} {images.shape}")
    if window < 1:
        raise ValueError("a window has at least one pixel")
