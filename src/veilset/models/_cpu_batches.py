"""Compiled loops that make a batch on a CPU: the same bits as the tensor operations, far sooner.

They check nothing: `veilset.models.augment` passes contiguous arrays and rows that are in range.
Indices are flat and unsigned, so that the loops are vectorised.
"""

import numpy as np
import numpy.typing as npt

from veilset.compiled import compiled
from veilset.types import BoolArray, IntArray

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@compiled
def gather(
    images: Bytes, rows: IntArray, down: IntArray, right: IntArray, mirrored: BoolArray, out: Bytes
) -> None:
    """Copies images, mirrored left to right and then shifted; what is missing is reflected.

    Args:
        images: uint8 (N, H, W, C).
        rows: int64 (B,).
        down: Shifts in pixels, int64 (B,), less than H either way.
        right: Shifts in pixels, int64 (B,), less than W either way.
        mirrored: bool (B,).
        out: Filled, uint8 (B, H, W, C).
    """
    height, width, channels = images.shape[1:]
    flat, made = images.reshape(-1), out.reshape(-1)
    line = np.uint64(width * channels)
    comes_from = np.empty(width * channels, np.uint64)
    for b in range(len(rows)):
        shift = right[b]
        for x in range(width):
            at = width - 1 - abs(width - 1 - abs(x - shift))
            at = width - 1 - at if mirrored[b] else at
            for c in range(channels):
                comes_from[x * channels + c] = np.uint64(at * channels + c)
        # From `first` to `last` a line is a plain copy, unless it is mirrored.
        first = np.uint64(max(0, shift) * channels)
        last = np.uint64(min(width, width + shift) * channels)
        if mirrored[b]:
            first, last = line, line
        for y in range(height):
            above = height - 1 - abs(height - 1 - abs(y - down[b]))
            source = np.uint64(rows[b] * height + above) * line
            target = np.uint64(b * height + y) * line
            start = source - np.uint64(shift * channels)
            for k in range(first):
                made[target + k] = flat[source + comes_from[k]]
            for k in range(first, last):
                made[target + k] = flat[start + k]
            for k in range(last, line):
                made[target + k] = flat[source + comes_from[k]]


@compiled
def standardise(pixels: Bytes, mean: Floats, std: Floats, out: Floats) -> None:
    """(pixel / 255 - mean) / std, each operation rounded to float32 as a tensor's is.

    Args:
        pixels: uint8, a multiple of K of them.
        mean: float32 (K,).
        std: float32 (K,).
        out: Filled, float32, as many as pixels.
    """
    flat, made, line = pixels.reshape(-1), out.reshape(-1), len(mean)
    whole = np.float32(255)
    for r in range(len(flat) // line):
        start = np.uint64(r * line)
        for k in range(np.uint64(line)):
            made[start + k] = (np.float32(flat[start + k]) / whole - mean[k]) / std[k]
