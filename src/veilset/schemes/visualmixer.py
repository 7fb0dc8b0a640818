"""VisualMixer: shuffles small blocks inside regions, each colour channel on its own."""

from collections.abc import Mapping, Sequence
from math import lgamma, log
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from veilset.errors import ProtectionError
from veilset.keys import Key
from veilset.metrics.vfe import vfe_region_sums, vfe_released_sums
from veilset.params import Params
from veilset.schemes._kernels import mix_channels, move_blocks, words_for
from veilset.schemes._permutations import uniform_permutations
from veilset.schemes._regions import Grid, Tile, quadtree, spread
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import BoolArray, Ids, Images, IntArray, Labels

_TABLE: Final = ((2, 4, 8, 8), (4, 8, 8, 8), (8, 8, 8, 8))
"""Published granularity: rows for an image's VFE below 1/2, below 1, and from 1 on; columns for a
region's score up to 0.1, 0.5, 0.9 and 1."""

_SCORE_TENTHS: Final = (1, 5, 9)
_FRACTION_BITS: Final = 20
_LANE_BYTES: Final = 1 << 20
_TARGET_LANE_BYTES: Final = 1 << 22

_SUB_BLOCKS: Final = (8, 4, 2, 1)
"""Sides of sub-blocks in pixels that `target_vfe` tries: r/8, r/4, r/2 and r cuts of a side r."""

_TRIES: Final = 2


class VisualMixerParams(Params):
    """Parameters of VisualMixer.

    Regions are squares of `region_px` (with `target_vfe`, of `r_min` and its doubles), from the
    upper left. What is left over at the right and lower edge is a smaller region of its own if it
    is at least half as wide, and joins its neighbour otherwise; an image smaller than a region is
    one region. A region's side of L pixels is cut into equal sub-blocks whose side is the largest
    divisor of L that is at most `region_px // n`, and at most L // 2: so every region is permuted
    whole, and only an image of a single pixel stays as it is.
    """

    mode: Literal["released", "target_vfe"] = Field(
        default="released",
        description="released: as the published code, with one setting and permutation for each "
        "image. target_vfe: each region is as large, and cut as finely, as the wanted VFE needs",
    )
    region_px: int = Field(
        default=16, ge=2, le=512, description="released: side of a region in pixels"
    )
    n: int | Literal["auto"] = Field(
        default=8,
        description="released: sub-blocks along a region's side, 2 to region_px; auto takes 2, 4 "
        "or 8 from the published table by the image's VFE and the region's rank among its VFEs",
    )
    target_vfe: int = Field(
        default=2000, ge=1, le=32_512,
        description="target_vfe: wanted VFE of each region, in squared grey levels per pair of "
        "neighbours: twice the variance of pixels that are shuffled one by one",
    )  # fmt: skip
    r_min: int = Field(
        default=8, ge=2, le=512, description="target_vfe: side of the smallest regions in pixels"
    )
    r_max: int = Field(
        default=64, ge=2, le=512,
        description="target_vfe: side of the largest regions in pixels, r_min times a power of 2",
    )  # fmt: skip
    shuffle_channels: bool | None = Field(
        default=None,
        description="permutes the channels of each pixel as well (colour images); by default only "
        "in mode target_vfe",
    )

    @property
    def merges(self) -> int:
        """How often regions may double their side."""
        return (self.r_max // self.r_min).bit_length() - 1

    @property
    def mixes_channels(self) -> bool:
        """Whether the channels of each pixel are permuted."""
        return self.mode == "target_vfe" if self.shuffle_channels is None else self.shuffle_channels

    def model_post_init(self, context: Any) -> None:
        """Refuses a number of sub-blocks or a size that a region cannot have."""
        del context
        if self.n != "auto" and not 2 <= self.n <= self.region_px:
            raise ValueError(f"n must be auto or between 2 and region_px ({self.region_px})")
        if self.r_min << max(0, self.merges) != self.r_max:
            raise ValueError(f"r_max must be r_min ({self.r_min}) times a power of 2")


class VisualMixer(Scheme[VisualMixerParams]):
    """Permutes the sub-blocks of each region and channel of each image.

    No value leaves its region, nor its channel unless channels are shuffled.

    Mode `released`: regions of one size. With `n: auto` the private information `granularity`,
    uint8 (N, regions, C), tells the n of each region and channel; without it such an image cannot
    be recovered, as the VFE of the original is not kept.

    Mode `target_vfe`: regions of `r_min` pixels merge two by two, from the bottom up to `r_max`,
    where twice the original's variance (what a permutation of single pixels is expected to give)
    is below the wanted VFE. Then each region is cut into sub-blocks of 8, 4, 2 or 1 pixels a side,
    at least two by two: the first of these with which the VFE measured on the released image
    reaches the wanted one, each permuted anew once if it does not. A region whose variance does
    not allow it keeps the last. The private information `regions`, uint8 (N, smallest regions, 3),
    tells for each smallest region how often it merged, its sub-blocks' side and which try was kept;
    it is needed to recover.

    Channels are shuffled before the regions are: a uniform permutation of the three for each pixel.

    Source: Li et al., NDSS 2024 (arXiv 2404.04098), after the authors' published code with its
    faults mended: each image has settings and permutations of its own and is shuffled once, by a
    keyed generator. Attention is off (a protection step must not need a trained classifier): a
    region's score is the rank of its VFE, ties counting as equal, over regions and channels. VFE is
    measured on [0, 1] images. Uneven regions are ours. So is all of `target_vfe`, which follows the
    abstract: regions and their sizes according to the wanted VFE, in space and among channels.
    """

    name = "visualmixer"
    title = "VisualMixer"
    version = 2
    declares = Declaration(
        keyed=True,
        reversible=True,
        guarantee=None,
        protects_queries=True,
        uses_labels=False,
        provenance="reconstruction",
        source="Li, Zhang, Ren, Li, Zhang: VisualMixer, NDSS 2024 (arXiv 2404.04098)",
        risk_notes=(
            "Every region keeps its values (in each channel, unless channels are shuffled), so the "
            "mean of each region gives an exact thumbnail, and its histogram is exact too.",
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
        if self.params.mode == "target_vfe":
            return self._reach_target(images, ids, stream)
        if self.params.n != "auto":
            mixed = self._mixed(images, ids, stream, undo=False)
            return Protected(self._moved(mixed, ids, stream, self.params.n, undo=False))
        granularity = self._granularity(images)
        mixed = self._mixed(images, ids, stream, undo=False)
        out = self._by_granularity(mixed, ids, stream, granularity, undo=False)
        return Protected(out, private={"granularity": granularity})

    def recover(
        self,
        images: Images,
        labels: Labels,
        ids: Ids,
        key: Key,
        private: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> Images:
        """Puts every sub-block and channel back.

        Args:
            images: Protected images, uint8 (N, H, W, C).
            labels: Not used.
            ids: The internal ids of the images, uint8 (N, 16).
            key: The key that they were protected with.
            private: With `n: auto` or `mode: target_vfe` the private information of these images.

        Returns:
            The originals, uint8 (N, H, W, C).

        Raises:
            ProtectionError: Private information that is needed is missing.
        """
        del labels
        stream = self.stream(key)
        if self.params.mode == "target_vfe":
            regions = _needed(private, "regions", "mode: target_vfe")
            mixed = self._by_regions(images, ids, stream, regions)
        elif self.params.n == "auto":
            granularity = _needed(private, "granularity", "n: auto")
            mixed = self._by_granularity(images, ids, stream, granularity, undo=True)
        else:
            mixed = self._moved(images, ids, stream, self.params.n, undo=True)
        return self._mixed(mixed, ids, stream, undo=True)

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """log2 of the permutations of one image.

        With `n: auto`, those of n = 8; with `target_vfe`, those of the coarsest cuts of regions of
        the size that has fewest.
        """
        if self.params.mode == "target_vfe":
            moves = min(
                _permutation_bits(grid.tiles(blocks[0]), shape[2])
                for grid, blocks in self._sizes(shape)
            )
        else:
            n = 8 if self.params.n == "auto" else self.params.n
            tiles = Grid.of(shape[:2], self.params.region_px).tiles(self.params.region_px // n)
            moves = _permutation_bits(tiles, shape[2])
        mixes = self.params.mixes_channels and shape[2] == 3
        return moves + (shape[0] * shape[1] * log(6) / log(2) if mixes else 0)

    def _mixed(self, images: Images, ids: Ids, stream: Stream, *, undo: bool) -> Images:
        """The images with the channels of each pixel permuted, where that is asked for."""
        if not self.params.mixes_channels or images.shape[3] != 3:
            return images
        out = np.empty_like(images, order="C")
        words = words_for(images.shape[1] * images.shape[2])
        for lane in _lanes(images, _LANE_BYTES):
            drawn = stream.words(ids[lane], "channels", words)
            out[lane] = mix_channels(np.ascontiguousarray(images[lane]), drawn, undo=undo)
        return out

    def _moved(self, images: Images, ids: Ids, stream: Stream, n: int, *, undo: bool) -> Images:
        """All regions and channels permuted with one n."""
        out = np.empty_like(images, order="C")
        grid = Grid.of(images.shape[1:3], self.params.region_px)
        everything = np.ones((len(images), *grid.shape, images.shape[3]), dtype=np.bool_)
        tiles = grid.tiles(self.params.region_px // n)
        _shuffle(images, out, ids, stream, f"shuffle/{n}", tiles, everything, undo=undo)
        return out

    # ---------------------------------------------------------------------- n: auto

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
        out = np.empty_like(images, order="C")
        grid = Grid.of(images.shape[1:3], self.params.region_px)
        of_region = granularity.reshape(len(images), *grid.shape, images.shape[3])
        for n in np.unique(granularity).tolist():
            tiles = grid.tiles(self.params.region_px // n)
            _shuffle(images, out, ids, stream, f"shuffle/{n}", tiles, of_region == n, undo=undo)
        return out

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
        grid = Grid.of(images.shape[1:3], self.params.region_px)
        sums, pairs = vfe_region_sums(images, grid.tops, grid.lefts)
        vfe = (sums << _FRACTION_BITS) // np.maximum(pairs, 1)[None, :, :, None]
        return vfe.reshape(len(images), pairs.size, images.shape[3])

    # ---------------------------------------------------------------------- target_vfe

    def _sizes(self, shape: Sequence[int]) -> list[tuple[Grid, list[int]]]:
        """For each number of merges the grid of regions, and the sides of sub-blocks to try."""
        grid, sizes = Grid.of((shape[0], shape[1]), self.params.r_min), []
        for merges in range(self.params.merges + 1):
            half = (self.params.r_min << merges) // 2
            sizes.append((grid, [block for block in _SUB_BLOCKS if block <= half]))
            grid = grid.doubled()
        return sizes

    def _reach_target(self, images: Images, ids: Ids, stream: Stream) -> Protected:
        """Mode `target_vfe`, some images at a time."""
        out = np.empty_like(images, order="C")
        smallest = self._sizes(images.shape[1:])[0][0]
        regions = np.zeros((len(images), *smallest.shape, 3), dtype=np.uint8)
        for lane in _lanes(images, _TARGET_LANE_BYTES):
            self._reach_target_of(images[lane], ids[lane], stream, out[lane], regions[lane])
        return Protected(
            out, private={"regions": regions.reshape(len(images), smallest.pixels.size, 3)}
        )

    def _reach_target_of(
        self,
        images: Images,
        ids: Ids,
        stream: Stream,
        out: Images,
        regions: npt.NDArray[np.uint8],
    ) -> None:
        """Fills `out`, and `regions`, uint8 (N, rows, columns, 3)."""
        sizes, channels = self._sizes(images.shape[1:]), images.shape[3]
        smallest = sizes[0][0]
        level = quadtree(images, smallest, self.params.merges, self.params.target_vfe)
        mixed = self._mixed(images, ids, stream, undo=False)
        for merges, (grid, blocks) in enumerate(sizes):
            missing = level[:, :: 1 << merges, :: 1 << merges] == merges
            for block in blocks:
                for attempt in range(_TRIES):
                    has = np.flatnonzero(missing.any(axis=(1, 2)))
                    if len(has) == 0:
                        break
                    chosen = np.repeat(missing[..., None], channels, axis=3)
                    purpose = _target_purpose(merges, block, attempt)
                    _shuffle(
                        mixed, out, ids, stream, purpose, grid.tiles(block), chosen, undo=False
                    )
                    regions[spread(missing, merges, smallest)] = (merges, block, attempt)
                    sums, pairs = vfe_region_sums(out[has], grid.tops, grid.lefts)
                    missing[has] &= sums.sum(axis=3) < self.params.target_vfe * channels * pairs

    def _by_regions(
        self, images: Images, ids: Ids, stream: Stream, regions: npt.NDArray[np.uint8]
    ) -> Images:
        """Undoes the permutations of mode `target_vfe`."""
        out = np.empty_like(images, order="C")
        sizes = self._sizes(images.shape[1:])
        made = regions.reshape(len(images), *sizes[0][0].shape, 3)
        for merges, (grid, blocks) in enumerate(sizes):
            at = made[:, :: 1 << merges, :: 1 << merges]
            for block in blocks:
                for attempt in range(_TRIES):
                    chosen = (at == (merges, block, attempt)).all(axis=3)
                    if chosen.any():
                        spread_out = np.repeat(chosen[..., None], images.shape[3], axis=3)
                        purpose = _target_purpose(merges, block, attempt)
                        tiles = grid.tiles(block)
                        _shuffle(images, out, ids, stream, purpose, tiles, spread_out, undo=True)
        return out


def _target_purpose(merges: int, block: int, attempt: int) -> str:
    return f"target/{merges}/{block}/{attempt}"


def _needed(
    private: Mapping[str, npt.NDArray[Any]] | None, name: str, setting: str
) -> npt.NDArray[np.uint8]:
    if private is None or name not in private:
        raise ProtectionError(
            f"visualmixer with {setting} cannot be undone by the key alone: give the private "
            f"{name} of these images."
        )
    return private[name]


def _permutation_bits(tiles: Sequence[Tile], channels: int) -> float:
    """log2 of the ways to permute all regions and channels."""
    logs = (tile.regions * lgamma(tile.blocks + 1) for tile in tiles)
    return float(channels * sum(logs) / log(2))


def _shuffle(
    images: Images,
    out: Images,
    ids: Ids,
    stream: Stream,
    purpose: str,
    tiles: Sequence[Tile],
    chosen: BoolArray,
    *,
    undo: bool,
) -> None:
    """Permutes the sub-blocks of some regions and channels, or puts them back.

    Args:
        images: uint8 (N, H, W, C).
        out: The same shape, contiguous; only chosen regions and channels are written.
        ids: uint8 (N, 16).
        stream: The keyed randomness; tile t has the purpose `<purpose>/<t>`.
        purpose: What it is for.
        tiles: All tiles of a grid of regions.
        chosen: bool (N, *grid, C).
        undo: Whether to put back.
    """
    for lane in _lanes(images, _LANE_BYTES):
        source = np.ascontiguousarray(images[lane])
        for number, tile in enumerate(tiles):
            numbers = np.flatnonzero(tile.part(chosen[lane]))
            order = uniform_permutations(
                stream, ids[lane], f"{purpose}/{number}", tile.regions * images.shape[3],
                tile.blocks, numbers,
            )  # fmt: skip
            move_blocks(
                source, out[lane], tile.corner, tile.grid, tile.cuts, tile.block, numbers, order,
                undo,
            )  # fmt: skip


def _lanes(images: Images, size: int) -> list[slice]:
    """Runs of images of about `size` bytes: what is done to them stays in the cache."""
    step = max(1, size // max(1, images[:1].nbytes))
    return [slice(low, low + step) for low in range(0, len(images), step)]


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
