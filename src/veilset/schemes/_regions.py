"""Rectangular regions of an image: uneven grids, their sub-blocks, and a quadtree over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from veilset.types import BoolArray, Images, IntArray


@dataclass(frozen=True)
class Grid:
    """Regions that cover an image without gap or overlap.

    Attributes:
        rows: Heights of the rows of regions in pixels.
        columns: Widths of the columns of regions in pixels.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, size: tuple[int, int], region: int) -> "Grid":
        """Squares of `region` pixels over an image (H, W) from the upper left; see `sides`."""
        return cls(sides(size[0], region), sides(size[1], region))

    @property
    def shape(self) -> tuple[int, int]:
        """Regions down and across."""
        return len(self.rows), len(self.columns)

    @property
    def tops(self) -> list[int]:
        """First rows of the rows of regions."""
        return _starts(self.rows)

    @property
    def lefts(self) -> list[int]:
        """First columns of the columns of regions."""
        return _starts(self.columns)

    @property
    def pixels(self) -> IntArray:
        """Pixels of each region, int64 `shape`."""
        rows, columns = np.array(self.rows), np.array(self.columns)
        found: IntArray = rows[:, None] * columns
        return found

    def doubled(self) -> "Grid":
        """Each two by two regions as one; what is left over at the edge stays as narrow."""
        return Grid(_paired(self.rows), _paired(self.columns))

    def tiles(self, block: int) -> list["Tile"]:
        """Rectangles of equal regions with sub-blocks of at most `block` pixels a side."""
        return [
            Tile(
                corner=(self.tops[first[0]], self.lefts[first[1]]),
                first=first,
                grid=(down, across),
                cuts=(high // inner[0], wide // inner[1]),
                block=inner,
            )
            for row, down, high in _runs(self.rows)
            for column, across, wide in _runs(self.columns)
            for first in [(row, column)]
            for inner in [(block_side(high, block), block_side(wide, block))]
        ]


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image that is a grid of equal regions, each a grid of equal sub-blocks.

    Attributes:
        corner: First row and column in pixels.
        first: First row and column of its regions in the grid of regions.
        grid: Regions down and across.
        cuts: Sub-blocks of a region down and across.
        block: Height and width of a sub-block in pixels.
    """

    corner: tuple[int, int]
    first: tuple[int, int]
    grid: tuple[int, int]
    cuts: tuple[int, int]
    block: tuple[int, int]

    @property
    def regions(self) -> int:
        """Regions in the rectangle."""
        return self.grid[0] * self.grid[1]

    @property
    def blocks(self) -> int:
        """Sub-blocks in a region."""
        return self.cuts[0] * self.cuts[1]

    def part(self, chosen: BoolArray) -> BoolArray:
        """This rectangle's part of (N, rows, columns, C) of the grid of regions."""
        (row, column), (down, across) = self.first, self.grid
        return chosen[:, row : row + down, column : column + across]


def sides(length: int, region: int) -> tuple[int, ...]:
    """Sides of the regions along one side of the image.

    What is left over is a smaller region of its own if it is at least half as wide, and joins its
    neighbour otherwise; an image smaller than a region is one region.
    """
    whole, left = divmod(length, region)
    if whole == 0:
        return (length,)
    if left == 0:
        return (region,) * whole
    if 2 * left >= region:
        return (*(region,) * whole, left)
    return (*(region,) * (whole - 1), region + left)


def block_side(side: int, most: int) -> int:
    """The largest divisor of a region's side up to `most` that leaves two sub-blocks."""
    limit = max(1, min(most, side // 2))
    return next(block for block in range(limit, 0, -1) if side % block == 0)


def quadtree(images: Images, grid: Grid, levels: int, target: int) -> npt.NDArray[np.uint8]:
    """Regions large enough that their variance reaches a target, from the bottom up.

    A uniform permutation of a region's pixels has twice its (unbiased) variance as expected squared
    difference of neighbours. Where that is below the target, the region and its three neighbours
    merge, whatever those are made of, and so on while there are levels.

    Args:
        images: uint8 (N, H, W, C).
        grid: The smallest regions.
        levels: How often regions may merge.
        target: Squared grey levels per pair of neighbours, the mean over channels.

    Returns:
        uint8 (N, *grid.shape): how often the region merged that each smallest region is part of.
    """
    sums, squares, pixels = *_moments(images, grid), grid.pixels
    low = _below(sums, squares, pixels, target)
    whole = np.ones_like(low)
    level = np.zeros(low.shape, dtype=np.uint8)
    for merges in range(1, levels + 1):
        sums, squares, pixels = _merged(sums), _merged(squares), _merged(pixels[None])[0]
        whole = _merged((whole & low).astype(np.int64)) > 0
        low = _below(sums, squares, pixels, target)
        level[spread(whole, merges, grid)] = merges
    return level


def spread(values: npt.NDArray[np.generic], merges: int, grid: Grid) -> npt.NDArray[np.generic]:
    """(N, rows, columns) of regions merged so often to the smallest regions that they consist of.

    Returns:
        (N, *grid.shape).
    """
    step = 1 << merges
    fine = np.repeat(np.repeat(values, step, axis=1), step, axis=2)
    return fine[:, : grid.shape[0], : grid.shape[1]]


def _moments(images: Images, grid: Grid) -> tuple[IntArray, IntArray]:
    """Sums and sums of squares of each region and channel, int64 (N, *grid.shape, C)."""
    wide = images.astype(np.uint32)
    return _totals(wide, grid), _totals(wide * wide, grid)


def _totals(values: npt.NDArray[np.uint32], grid: Grid) -> IntArray:
    rows = np.add.reduceat(values, grid.tops, axis=1, dtype=np.int64)
    return np.add.reduceat(rows, grid.lefts, axis=2)


def _merged(values: IntArray) -> IntArray:
    """Sums over each two by two regions, those at an odd edge alone."""
    rows = np.add.reduceat(values, range(0, values.shape[1], 2), axis=1)
    return np.add.reduceat(rows, range(0, values.shape[2], 2), axis=2)


def _below(sums: IntArray, squares: IntArray, pixels: IntArray, target: int) -> BoolArray:
    """Whether twice the variance, as mean over channels, is below the target; (N, rows, columns).

    In integers: variance = (m * sum of squares - square of sum) / (m (m - 1)) of m pixels.
    """
    spreads = (pixels[..., None] * squares - sums * sums).sum(axis=-1)
    below: BoolArray = 2 * spreads < target * sums.shape[-1] * pixels * (pixels - 1)
    return below


def _starts(lengths: Sequence[int]) -> list[int]:
    ends: list[int] = np.cumsum(lengths).tolist()
    return [0, *ends[:-1]]


def _paired(lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(sum(lengths[i : i + 2]) for i in range(0, len(lengths), 2))


def _runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Runs of equal lengths: first, how many, length."""
    found, first = [], 0
    for length, group in groupby(lengths):
        count = sum(1 for _ in group)
        found.append((first, count, length))
        first += count
    return found
