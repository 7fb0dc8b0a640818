"""VisualMixer: shuffles small blocks inside regions, each colour channel on its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from math import lgamma, log
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from veilset.errors import ProtectionError
from veilset.keys import Key
from veilset.metrics.vfe import vfe_region_sums, vfe_released_sums
from veilset.params import Params
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import BoolArray, Ids, Images, IntArray, Labels

_TABLE: Final = ((2, 4, 8, 8), (4, 8, 8, 8), (8, 8, 8, 8))
"""Published granularity: rows for an image's VFE below 1/2, below 1, and from 1 on; columns for a
region's score up to 0.1, 0.5, 0.9 and 1."""

_SCORE_TENTHS: Final = (1, 5, 9)
_FRACTION_BITS: Final = 20
_LANE_BYTES: Final = 1 << 18


class VisualMixerParams(Params):
    """Parameters of VisualMixer.

    Regions are squares of `region_px`, from the upper left. What is left over at the right and
    lower edge is a smaller region of its own if it is at least half as wide, and joins its
    neighbour otherwise; an image smaller than a region is one region. A region's side of L pixels
    is cut into equal sub-blocks whose side is the largest divisor of L that is at most
    `region_px // n`, and at most L // 2: so every region is permuted whole, and only an image of a
    single pixel stays as it is.
    """

    mode: Literal["released"] = Field(
        default="released",
        description="as the published code, with one setting and permutation for each image",
    )
    region_px: int = Field(default=16, ge=2, le=512, description="side of a region in pixels")
    n: int | Literal["auto"] = Field(
        default=8,
        description="sub-blocks along a region's side, 2 to region_px; auto takes 2, 4 or 8 from "
        "the published table by the image's VFE and the region's rank among its VFEs",
    )

    def model_post_init(self, context: Any) -> None:
        """Refuses a number of sub-blocks that a region cannot have."""
        del context
        if self.n != "auto" and not 2 <= self.n <= self.region_px:
            raise ValueError(f"n must be auto or between 2 and region_px ({self.region_px})")


class VisualMixer(Scheme[VisualMixerParams]):
    """Permutes the sub-blocks of each region and channel of each image.

    No value changes and none leaves its region and channel. With `n: auto` the private information
    `granularity`, uint8 (N, regions, C), tells the n of each region and channel; without it such an
    image cannot be recovered, as the VFE of the original is not kept.

    Source: Li et al., NDSS 2024 (arXiv 2404.04098), after the authors' published code with its
    faults mended: each image has settings and permutations of its own and is shuffled once, by a
    keyed generator. Attention is off (a protection step must not need a trained classifier): a
    region's score is the rank of its VFE, ties counting as equal, over regions and channels. VFE is
    measured on [0, 1] images. Uneven regions are ours.
    """

    name = "visualmixer"
    title = "VisualMixer"
    version = 1
    declares = Declaration(
        keyed=True,
        reversible=True,
        guarantee=None,
        protects_queries=True,
        uses_labels=False,
        provenance="reconstruction",
        source="Li, Zhang, Ren, Li, Zhang: VisualMixer, NDSS 2024 (arXiv 2404.04098)",
        risk_notes=(
            "Every region keeps its values in each channel, so the mean of each region gives an "
            "exact thumbnail, and its histogram is exact too.",
            "Persons are recognised from thumbnails and region histograms about as well as from "
            "plain images.",
            "A high VFE does not mean that an image cannot be recovered: any fine texture scores "
            "high.",
            "Sub-blocks keep their inner pixels, and anybody can make pairs to train an inverse.",
            "Whoever holds the key undoes it exactly.",
        ),
    )
    Parameters = VisualMixerParams

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, pool
        if self.params.n != "auto":
            return Protected(self._moved(images, ids, stream, self.params.n, undo=False))
        granularity = self._granularity(images)
        out = self._by_granularity(images, ids, stream, granularity, undo=False)
        return Protected(out, private={"granularity": granularity})

    def recover(
        self,
        images: Images,
        labels: Labels,
        ids: Ids,
        key: Key,
        private: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> Images:
        """Puts every sub-block back.

        Args:
            images: Protected images, uint8 (N, H, W, C).
            labels: Not used.
            ids: The internal ids of the images, uint8 (N, 16).
            key: The key that they were protected with.
            private: With `n: auto` the private information of these images.

        Returns:
            The originals, uint8 (N, H, W, C).

        Raises:
            ProtectionError: `n` is `auto` and `private` has no `granularity`.
        """
        del labels
        stream = self.stream(key)
        if self.params.n != "auto":
            return self._moved(images, ids, stream, self.params.n, undo=True)
        if private is None or "granularity" not in private:
            raise ProtectionError(
                "visualmixer with n: auto cannot be undone by the key alone: give the private "
                "granularity of these images."
            )
        return self._by_granularity(images, ids, stream, private["granularity"], undo=True)

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """log2 of the permutations of one image; with `n: auto`, those of n = 8."""
        n = 8 if self.params.n == "auto" else self.params.n
        tiles = _tiles(shape[:2], self.params.region_px, n)
        logs = (tile.regions * lgamma(tile.blocks + 1) for tile in tiles)
        return float(shape[2] * sum(logs) / log(2))

    def _moved(self, images: Images, ids: Ids, stream: Stream, n: int, *, undo: bool) -> Images:
        """All regions and channels permuted with one n."""
        out = np.empty_like(images)
        size = (images.shape[1], images.shape[2])
        tiles = _tiles(size, self.params.region_px, n)
        step = max(1, _LANE_BYTES // images[:1].nbytes) if len(images) else 1
        for low in range(0, len(images), step):
            lane = slice(low, low + step)
            planes = _planes(images[lane])
            moved = np.empty_like(planes)
            for number, tile in enumerate(tiles):
                groups = tile.regions * planes.shape[1]
                order = stream.permutations(ids[lane], f"shuffle/{n}/{number}", groups, tile.blocks)
                _move_blocks(planes, moved, tile, _inverse(order) if undo else order)
            _unplane(moved, out[lane])
        return out

    def _by_granularity(
        self,
        images: Images,
        ids: Ids,
        stream: Stream,
        granularity: npt.NDArray[np.uint8],
        *,
        undo: bool,
    ) -> Images:
        """Each region and channel permuted with its own n."""
        out = images.copy()
        for n in np.unique(granularity):
            has = np.flatnonzero((granularity == n).any(axis=(1, 2)))
            moved = self._moved(images[has], ids[has], stream, int(n), undo=undo)
            chosen = granularity[has] == n
            if not chosen.all():
                moved = np.where(self._pixels(chosen, images.shape), moved, out[has])
            out[has] = moved
        return out

    def _pixels(self, chosen: BoolArray, shape: tuple[int, ...]) -> BoolArray:
        """(N, regions, C) spread to the pixels of the regions, (N, H, W, C)."""
        rows, columns = (_sides(length, self.params.region_px) for length in shape[1:3])
        grid = chosen.reshape(len(chosen), len(rows), len(columns), shape[3])
        spread: BoolArray = np.repeat(np.repeat(grid, rows, axis=1), columns, axis=2)
        return spread

    def _granularity(self, images: Images) -> npt.NDArray[np.uint8]:
        """The published table's n for each region and channel, uint8 (N, regions, C)."""
        sums, windows = vfe_released_sums(images)
        unit = windows * 255 * 255
        level = (2 * sums >= unit).astype(np.int64) + (sums >= unit)
        rank, last = _ranks(self._region_vfe(images))
        score = sum((10 * rank > tenths * last).astype(np.int64) for tenths in _SCORE_TENTHS)
        table = np.array(_TABLE, dtype=np.uint8)
        granularity: npt.NDArray[np.uint8] = table[level[:, None, None], score]
        return granularity

    def _region_vfe(self, images: Images) -> IntArray:
        """The VFE per pair of neighbours of each region and channel in 2^-20 grey levels squared.

        int64 (N, regions, C). Fixed point, so that regions of different sizes compare exactly the
        same on every machine.
        """
        rows, columns = (_spans(length, self.params.region_px) for length in images.shape[1:3])
        sums, pairs = vfe_region_sums(
            images, [high.start for high in rows], [wide.start for wide in columns]
        )
        vfe = (sums << _FRACTION_BITS) // np.maximum(pairs, 1)[None, :, :, None]
        return vfe.reshape(len(images), len(rows) * len(columns), images.shape[3])


@dataclass(frozen=True)
class _Tile:
    """A rectangle of the image that is a grid of equal regions, each a grid of equal sub-blocks.

    Attributes:
        top: First row.
        left: First column.
        grid: Regions down and across.
        cuts: Sub-blocks of a region down and across.
        block: Height and width of a sub-block in pixels.
    """

    top: int
    left: int
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

    def rows(self, planes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The rectangle of planes (N, C, H, units), the rows of its sub-blocks apart.

        A view (N, C, regions down, sub-blocks down, rows of a sub-block, units).
        """
        (down, across), (rows, columns), (high, wide) = self.grid, self.cuts, self.block
        scale = planes.itemsize
        left, width = self.left // scale, across * columns * wide // scale
        part = planes[:, :, self.top : self.top + down * rows * high, left : left + width]
        step = part.strides
        return np.lib.stride_tricks.as_strided(
            part,
            (*part.shape[:2], down, rows, high, width),
            (step[0], step[1], step[2] * rows * high, step[2] * high, step[2], step[3]),
        )


def _tiles(size: tuple[int, int], region: int, n: int) -> list[_Tile]:
    """The image (H, W) as up to four rectangles of equal regions, from the upper left."""
    return [
        _Tile(
            top, left, (down, across), (high // block[0], wide // block[1]), block
        )
        for top, down, high in _runs(size[0], region)
        for left, across, wide in _runs(size[1], region)
        for block in [(_block_side(high, region, n), _block_side(wide, region, n))]
    ]  # fmt: skip


def _runs(length: int, region: int) -> list[tuple[int, int, int]]:
    """Runs of regions of equal side: first pixel, how many, side."""
    found, first = [], 0
    for side, group in groupby(_sides(length, region)):
        count = sum(1 for _ in group)
        found.append((first, count, side))
        first += count * side
    return found


def _spans(length: int, region: int) -> list[slice]:
    ends = np.cumsum(_sides(length, region)).tolist()
    return [slice(low, high) for low, high in zip([0, *ends[:-1]], ends, strict=True)]


def _sides(length: int, region: int) -> list[int]:
    """Sides of the regions along one side of the image."""
    whole, left = divmod(length, region)
    if whole == 0:
        return [length]
    if left == 0:
        return [region] * whole
    if 2 * left >= region:
        return [region] * whole + [left]
    return [region] * (whole - 1) + [region + left]


def _block_side(side: int, region: int, n: int) -> int:
    """The largest divisor of a region's side that is fine enough and leaves two sub-blocks."""
    most = max(1, min(region // n, side // 2))
    return next(block for block in range(most, 0, -1) if side % block == 0)


def _planes(images: Images) -> npt.NDArray[np.uint8]:
    """(N, H, W, C) to (N, C, H, W): one channel after another is much faster than a transpose."""
    count, height, width, channels = images.shape
    planes = np.empty((count, channels, height, width), dtype=np.uint8)
    for channel in range(channels):
        planes[:, channel] = images[..., channel]
    return planes


def _unplane(planes: npt.NDArray[np.uint8], images: Images) -> None:
    for channel in range(planes.shape[1]):
        images[..., channel] = planes[:, channel]


def _inverse(order: IntArray) -> IntArray:
    """The permutations that undo these, int64 (N, groups, blocks)."""
    back = np.empty_like(order)
    np.put_along_axis(back, order, np.broadcast_to(np.arange(order.shape[2]), order.shape), axis=2)
    return back


def _move_blocks(
    planes: npt.NDArray[np.uint8], moved: npt.NDArray[np.uint8], tile: _Tile, order: IntArray
) -> None:
    """Copies sub-block `order[k]` of each region and channel to place k of `moved`.

    Args:
        planes: uint8 (N, C, H, W), contiguous.
        moved: The same shape; the tile's part of it is written.
        tile: A rectangle of equal regions.
        order: int64 (N, regions * C, blocks): regions in row-major order, channels inside.
    """
    unit = _unit(tile, planes.shape[3])
    source, target = planes.view(unit), moved.view(unit)
    width = source.shape[3]
    first = _first_units(tile, order, source.shape, unit.itemsize)
    rows = tile.rows(target)
    shape = (*rows.shape[:4], tile.grid[1] * tile.cuts[1])
    across = tile.block[1] // unit.itemsize
    flat = source.reshape(-1)
    for down in range(tile.block[0]):
        for right in range(across):
            # Every index is in range by construction; "clip" only spares the check.
            found = np.take(flat, first + (down * width + right), mode="clip")
            rows[:, :, :, :, down, right::across] = found.reshape(shape)


def _unit(tile: _Tile, width: int) -> "np.dtype[Any]":
    """The widest integer that sub-blocks, rows and the tile's left edge consist of."""
    for size in (8, 4, 2):
        if tile.block[1] % size == 0 and width % size == 0 and tile.left % size == 0:
            return np.dtype(f"u{size}")
    return np.dtype("u1")


def _first_units(tile: _Tile, order: IntArray, shape: tuple[int, ...], itemsize: int) -> IntArray:
    """Where the first unit of the sub-block lies that comes to each place.

    Args:
        tile: The rectangle.
        order: int64 (N, regions * C, blocks).
        shape: (N, C, H, units) of the planes.
        itemsize: Bytes of a unit.

    Returns:
        int64 (N, C, down, rows, across, columns), indices into the flat planes.
    """
    (down, across), (rows, columns), (high, wide) = tile.grid, tile.cuts, tile.block
    count, channels, height, width = shape
    wide //= itemsize
    inside = (np.arange(rows)[:, None] * high * width + np.arange(columns) * wide).ravel()
    corner = (
        np.arange(down)[:, None, None] * (rows * high * width)
        + np.arange(across)[:, None] * (columns * wide)
        + np.arange(channels) * (height * width)
        + (tile.top * width + tile.left // itemsize)
    ).ravel()
    first = np.take(inside, order, mode="clip")
    first += corner[:, None]
    first += (np.arange(count) * (channels * height * width))[:, None, None]
    grid = first.reshape(count, down, across, channels, rows, columns)
    return np.ascontiguousarray(grid.transpose(0, 3, 1, 4, 2, 5))


def _ranks(values: IntArray) -> tuple[IntArray, int]:
    """How many values of the same image are smaller, and how many others there are."""
    count = int(np.prod(values.shape[1:]))
    flat = values.reshape(len(values), count)
    order = np.argsort(flat, axis=1, kind="stable")
    ascending = np.take_along_axis(flat, order, axis=1)
    first = np.ones(flat.shape, dtype=np.bool_)
    first[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    smaller = np.maximum.accumulate(np.where(first, np.arange(count), 0), axis=1)
    ranks = np.empty_like(smaller)
    np.put_along_axis(ranks, order, smaller, axis=1)
    return ranks.reshape(values.shape), count - 1
