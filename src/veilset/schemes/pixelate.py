"""Pixelation: every cell of the image shows its mean."""

from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from veilset.compiled import compiled
from veilset.errors import ProtectionError
from veilset.params import Params
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, IntArray, Labels

Bytes = npt.NDArray[np.uint8]

_FEWEST_PIXELS: Final = 2


class PixelateParams(Params):
    """Parameters of pixelation.

    Cells are squares of `block_px`, from the upper left. What is left over at the right and lower
    edge is a smaller cell of its own if it is more than half as wide, and joins its neighbour
    otherwise, so that no cell is a single pixel; an image smaller than a cell is one cell.
    """

    block_px: int = Field(default=4, ge=2, le=512, description="side of a cell in pixels")


class Pixelate(Scheme[PixelateParams]):
    """Replaces every value by the mean of its cell and channel, rounded half up.

    All in integers: floor((2 * sum + pixels) / (2 * pixels)).

    Source: the usual mosaic, as attacked by McPherson, Shokri, Shmatikov (arXiv 1609.00408);
    uneven cells are ours.
    """

    name = "pixelate"
    title = "Pixelation"
    version = 1
    declares = Declaration(
        keyed=False,
        reversible=False,
        guarantee=None,
        protects_queries=True,
        uses_labels=False,
        provenance="ours",
        source="baseline; attacked in McPherson, Shokri, Shmatikov: arXiv 1609.00408 (2016)",
        risk_notes=(
            "The released image is a thumbnail of the original, exact to half a grey level.",
            "There is no key: whoever holds an original makes its release and finds it by "
            "comparison.",
            "Networks trained on mosaics recognise persons in them: 71 % of 530 celebrities at the "
            "first guess in McPherson et al.",
            "Super-resolution makes plausible details from it, which need not be the person's own.",
        ),
    )
    Parameters = PixelateParams

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, ids, stream, pool
        height, width = images.shape[1:3]
        if height * width < _FEWEST_PIXELS:
            raise ProtectionError(
                f"{self.name} cannot protect images of {height} x {width} pixels, whose mean is "
                "the pixel itself: give images of 2 pixels or more."
            )
        out = np.empty(images.shape, dtype=np.uint8)
        rows, columns = (_edges(length, self.params.block_px) for length in (height, width))
        _fill_means(np.ascontiguousarray(images), out, rows, columns)
        return Protected(out)

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """Zero: there is one transform, known to all."""
        del shape
        return 0.0


def _edges(length: int, block: int) -> IntArray:
    """Where the cells along a side begin, and the end of the last, int64 (cells + 1,)."""
    whole, left = divmod(length, block)
    cells = whole + (2 * left > block) or 1
    edges = np.arange(cells + 1, dtype=np.int64) * block
    edges[-1] = length
    return edges


@compiled
def _fill_means(images: Images, out: Images, rows: IntArray, columns: IntArray) -> None:
    """Writes the mean of each cell and channel to all of its pixels."""
    count, height, width, channels = images.shape
    sums = np.empty(width * channels, dtype=np.int64)
    for i in range(count):
        image = images[i].reshape(height, width * channels)
        target = out[i].reshape(height, width * channels)
        for row in range(len(rows) - 1):
            top, low = rows[row], rows[row + 1]
            sums[:] = 0
            for y in range(top, low):
                for x in range(len(sums)):
                    sums[x] += image[y, x]
            _spread_means(sums, target[top], low - top, columns, channels)
            for y in range(top + 1, low):
                target[y] = target[top]


@compiled
def _spread_means(
    sums: IntArray, line: Bytes, height: int, columns: IntArray, channels: int
) -> None:
    """Writes one line of cells that are `height` pixels high, given the sums of their columns."""
    for column in range(len(columns) - 1):
        left, right = columns[column] * channels, columns[column + 1] * channels
        pixels = (columns[column + 1] - columns[column]) * height
        for first in range(left, left + channels):
            total = 0
            for x in range(first, right, channels):
                total += sums[x]
            mean = (2 * total + pixels) // (2 * pixels)
            for x in range(first, right, channels):
                line[x] = mean
