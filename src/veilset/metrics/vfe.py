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

from veilset.compiled import compiled
from veilset.types import FloatArray, Images, IntArray

WINDOW: Final = 14
"""Side of the published window, in pixels, and its stride."""

_UNIT: Final = 255 * 255
_ALL: Final = 255
_BAND: Final = 1 << 14
"""Rows whose squares of both directions fit 32 bits: 2 * 255^2 * 2^14 < 2^31."""


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
    sums = _grid_sums(cut, range(0, rows * high, high), range(0, columns * wide, wide), padded=True)
    return sums.sum(axis=(1, 2, 3)), rows * columns * channels


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
    _, height, width, _ = images.shape
    sums = _grid_sums(images, [0], [0], padded=False)
    return sums[:, 0, 0], height * (width - 1) + width * (height - 1)


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
    _, height, width, _ = images.shape
    sums = _grid_sums(images, tops, lefts, padded=False)
    high = np.diff([*tops, height])[:, None]
    wide = np.diff([*lefts, width])[None, :]
    return sums, high * (wide - 1) + wide * (high - 1)


def _grid_sums(
    images: Images, tops: Sequence[int], lefts: Sequence[int], *, padded: bool
) -> IntArray:
    """Summed squared differences of every region and channel, int64 (N, rows, columns, C).

    With `padded`, regions have a row and a column of zeros below and to the right.
    """
    count, height, width, channels = images.shape
    sums = np.empty((count, len(tops), len(lefts), channels), dtype=np.int64)
    if images.size:
        inside = np.full((width, channels), _ALL, dtype=np.uint8)
        inside[[left - 1 for left in lefts]] = 0  # -1 is the image's own last column
        _sum_squares(
            np.ascontiguousarray(images).reshape(count, height, width * channels),
            np.array([*tops, height]), np.array([*lefts, width]), inside.reshape(-1), padded, sums,
        )  # fmt: skip
    return sums


@compiled
def _sum_squares(
    images: npt.NDArray[np.uint8],
    tops: IntArray,
    lefts: IntArray,
    inside: npt.NDArray[np.uint8],
    padded: bool,
    sums: IntArray,
) -> None:
    """`_grid_sums` of images (N, H, W * C); `inside` is 0 in the last column of regions, else 255.

    Differences are added up column by column, which vectorises, and by regions at last.
    """
    rows, columns, channels = sums.shape[1:]
    size = images.shape[2]
    last = size - channels
    added = np.zeros(size, np.int32)
    # A value without a neighbour counts itself, beside a zero, or nothing.
    alone = np.full(size, _ALL, np.uint8) if padded else inside.copy()
    edge = alone[last]
    for image in range(len(images)):
        sums[image] = 0
        for row in range(rows):
            for y in range(tops[row], tops[row + 1]):
                here, below, own, its = images[image, y], images[image, y], edge, np.uint8(0)
                if y + 1 < tops[row + 1]:
                    below, own, its = images[image, y + 1], np.uint8(_ALL), np.uint8(_ALL)
                _add_squares(added[:last], here, here[channels:], below, alone, inside, own, its)
                _add_squares(
                    added[last:], here[last:], here[last:], below[last:], alone[last:],
                    inside[last:], own, its,
                )  # fmt: skip
                if (y + 1 - tops[row]) % _BAND == 0 or y + 1 == tops[row + 1]:
                    for column in range(columns):
                        for x in range(lefts[column], lefts[column + 1]):
                            for channel in range(channels):
                                value = added[x * channels + channel]
                                sums[image, row, column, channel] += value
                    added[:] = 0


@compiled
def _add_squares(  # noqa: PLR0917
    added: npt.NDArray[np.int32],
    here: npt.NDArray[np.uint8],
    right: npt.NDArray[np.uint8],
    below: npt.NDArray[np.uint8],
    alone: npt.NDArray[np.uint8],
    inside: npt.NDArray[np.uint8],
    own: np.uint8,
    its: np.uint8,
) -> None:
    """Adds the squared differences of values to those at their right and below, all masked."""
    for x in range(len(added)):
        across = np.int32(here[x] & alone[x]) - np.int32(right[x] & inside[x])
        down = np.int32(here[x] & own) - np.int32(below[x] & its)
        added[x] += across * across + down * down


def _require(images: Images, window: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 (N, H, W, C), not {images.dtype} {images.shape}")
    if window < 1:
        raise ValueError("a window has at least one pixel")
