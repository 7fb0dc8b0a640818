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
"""Rows whose squares of both directions fit 32 bits: 2 * 255^2 * (2^14 + 1) < 2^31."""
_RUN: Final = 384
"""Values that short rows are joined to: enough for long loops, and still in the nearest cache."""


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
        size = width * channels
        # Short rows are measured several at a time: longer loops are faster ones.
        rows = max(1, min(height - 1, max(2, _RUN // size)))
        inside = np.full((rows, width, channels), _ALL, dtype=np.uint8)
        inside[:, [left - 1 for left in lefts]] = 0  # -1 is the image's own last column
        _sum_squares(
            np.ascontiguousarray(images).reshape(count, height * size),
            np.array([*tops, height]), np.array([*lefts, width]),
            inside.reshape(rows, size), padded, sums,
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
    """`_grid_sums` of images (N, H * W * C).

    `inside` is 0 in the last column of regions, else 255, and has as many rows as are measured at a
    time. Differences are added up place by place in such a run, which vectorises, and by regions
    at last.
    """
    rows, channels = sums.shape[1], sums.shape[3]
    most, size = inside.shape
    last = size - channels
    added = np.zeros((most, size), np.int32)
    flat, places = added.reshape(-1), inside.reshape(-1)
    # A value without a neighbour counts itself, beside a zero, or nothing.
    alone = np.full(most * size, _ALL, np.uint8) if padded else places.copy()
    edge, every = alone[last], np.uint8(_ALL)
    for image in range(len(images)):
        values = images[image]
        sums[image] = 0
        for row in range(rows):
            bottom = tops[row + 1] - 1
            # The rows that have one below them; a row's last values have the next row's first at
            # their right, which `inside` masks.
            for run, y in enumerate(range(tops[row], bottom, most), 1):
                here, length = values[y * size :], min(most, bottom - y) * size
                _add_squares(
                    flat[:length], here, here[channels:], here[size:], alone, places, every, every
                )
                if run % (_BAND // most) == 0:
                    _add_regions(added, lefts, sums[image, row])
            here = values[bottom * size :]
            _add_squares(flat[:last], here, here[channels:], here, alone, places, edge, np.uint8(0))
            _add_squares(
                flat[last:size], here[last:], here[last:], here[last:], alone[last:],
                places[last:], edge, np.uint8(0),
            )  # fmt: skip
            _add_regions(added, lefts, sums[image, row])


@compiled
def _add_regions(added: npt.NDArray[np.int32], lefts: IntArray, sums: IntArray) -> None:
    """Adds what was added up to the regions (columns, C) that it belongs to, and clears it."""
    columns, channels = sums.shape
    whole = added[0]
    for y in range(1, len(added)):
        row = added[y]
        for x in range(len(whole)):  # vectorises; what comes next does not
            whole[x] += row[x]
    for column in range(columns):
        for x in range(lefts[column], lefts[column + 1]):
            for channel in range(channels):
                sums[column, channel] += whole[x * channels + channel]
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
