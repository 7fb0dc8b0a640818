"""Label-based pixel block mixing: blocks of an image are replaced by those of its class mates."""

import weakref
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from veilset.errors import ProtectionError
from veilset.params import Params
from veilset.schemes._kernels import copy_blocks
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, IntArray, Labels

_TAKE_BYTES: Final = 64 << 20

_SMALL: Final = 32 << 10
"""Images of more bytes are copied all at once: few of them would stay in the cache."""


class PixelBlockMixingParams(Params):
    """Parameters of pixel block mixing.

    The paper's code works at 192 px with blocks 96 px high and 24 px wide: half the height, an
    eighth of the width, 16 blocks. The defaults are the same shares at 32 px; set the block for
    another size. Blocks at the lower and right edge are smaller where they do not divide the image.
    """

    mode: Literal["simultaneous", "released"] = Field(
        default="simultaneous",
        description="simultaneous: donors are originals. released: as the published code does it, "
        "images are overwritten one after another, so later ones draw from mixed ones.",
    )
    block_height: int = Field(default=16, ge=1, le=4096, description="pixels")
    block_width: int = Field(default=4, ge=1, le=4096, description="pixels")
    p_replace: float = Field(
        default=0.5, ge=0, le=1, allow_inf_nan=False,
        description="probability that a block is replaced, taken as the decimal that is written",
    )  # fmt: skip
    n_donors: int = Field(
        default=10, ge=1, le=256, description="images that the blocks of one image are drawn from"
    )
    exclude_self: bool = Field(
        default=True,
        description="an image is never its own donor, and at least one of its blocks is replaced; "
        "false is what the published code does, which releases some images as they are",
    )

    @property
    def threshold(self) -> int:
        """floor(p_replace * 2^64), exactly."""
        return int(Fraction(repr(self.p_replace)) * (1 << 64))


class PixelBlockMixing(Scheme[PixelBlockMixingParams]):
    """Replaces each block, with a probability, by the block at that place of a class mate.

    For each image, `n_donors` images of its label are drawn without replacement out of the pool;
    each block is replaced with probability `p_replace` by the same block of one of them, drawn
    uniformly. All choices are addressed by the image's id. Only training and validation images are
    mixed: mixing tells the label.

    Private information: `donors`, uint8 (N, blocks, 16), the id of the original image whose pixels
    each block shows (the image's own id where it was kept), blocks in row-major order.

    Source: Xiang et al., arXiv 2105.08876; the algorithm after the authors' published code (section
    not known to us), in integers and keyed. `simultaneous` and `exclude_self` are ours.
    """

    name = "pixel_block_mixing"
    title = "Pixel block mixing"
    version = 2
    declares = Declaration(
        keyed=True,
        reversible=False,
        guarantee=None,
        protects_queries=False,
        uses_labels=True,
        provenance="reconstruction",
        source="Xiang, Li, Ren, Zhu, Choo: arXiv 2105.08876 (2021), and its published code",
        risk_notes=(
            "Kept blocks are the image's own pixels, and replaced ones are other people's pixels: "
            "with the defaults half of each image is plain.",
            "A released image is linked to its original by the blocks that were kept.",
            "Persons are recognised from single blocks; smaller blocks do not help.",
            "A block that several images show has the same bytes in each, so images that share a "
            "donor are linked.",
            "Whoever holds the key can find out which image each block came from, and can put "
            "together those originals whose blocks all survive.",
        ),
        shift_safe=True,
    )
    Parameters = PixelBlockMixingParams
    uses_pool = True

    def __init__(self, params: PixelBlockMixingParams | None = None, **values: Any) -> None:
        super().__init__(params, **values)
        self._known: tuple[weakref.ref[Pool], _Classes] | None = None
        self._resolved: tuple[weakref.ref[Pool], Stream, int, IntArray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What is remembered of a pool serves one process.
        return {**self.__dict__, "_known": None, "_resolved": None}

    def refuse(self, labels: Labels) -> str | None:
        """Why these labels cannot be mixed: a class with a single image has no donor."""
        values, counts = np.unique(labels, return_counts=True)
        single = values[counts == 1]
        if len(single) == 0:
            return None
        more = f" (and {len(single) - 1} more classes)" if len(single) > 1 else ""
        return (
            f"class {int(single[0])} has a single image{more}, which would have no donor: add "
            "images of that class, or leave it out"
        )

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """log2 of the ways to fill the blocks of one image, its donors given."""
        if self.params.threshold == 0:
            return 0.0
        blocks = _blocks(shape[:2], self.params)
        ways = self.params.n_donors + (self.params.threshold < 1 << 64)
        return float(blocks * np.log2(ways))

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        blocks = _blocks(images.shape[1:3], self.params)
        classes = self._classes(pool)
        rows = classes.rows_of(ids, labels)
        if self.params.mode == "released":
            sources = self._provenance(pool, classes, stream, blocks)[rows]
        else:
            sources = self._draw(classes, rows, ids, stream, blocks)
        mixed = _mixed(images, rows, sources, self.params, pool)
        return Protected(mixed, private={"donors": classes.ids[sources]})

    def _classes(self, pool: Pool) -> "_Classes":
        """The pool's classes, remembered as long as the same pool is used."""
        if self._known is None or self._known[0]() is not pool:
            classes = _Classes.of(pool)
            reason = self.refuse(classes.labels)
            if reason is not None:
                raise ProtectionError(f"{self.name}: {reason}.")
            self._known = (weakref.ref(pool), classes)
        return self._known[1]

    def _draw(
        self, classes: "_Classes", rows: IntArray, ids: Ids, stream: Stream, blocks: int
    ) -> IntArray:
        """The pool row that each block is taken from, its own where it is kept; (N, blocks)."""
        own = int(self.params.exclude_self)
        candidates = classes.sizes[rows] - own
        drawn = stream.choices(ids, "donors", self.params.n_donors, candidates)
        high = np.minimum(candidates, self.params.n_donors)[:, None]
        pick = stream.integers(ids, "pick", blocks, high)
        place = np.take_along_axis(drawn, pick, axis=1)
        if self.params.exclude_self:
            place += place >= classes.places[rows][:, None]
        donors = classes.members[classes.starts[rows][:, None] + place]
        replaced = stream.events(ids, "replace", blocks, self.params.threshold)
        if self.params.exclude_self and self.params.threshold:
            whole = np.flatnonzero(~replaced.any(axis=1))
            replaced[whole, stream.integers(ids[whole], "at least one", 1, blocks)[:, 0]] = True
        return np.where(replaced, donors, rows[:, None])

    def _provenance(self, pool: Pool, classes: "_Classes", stream: Stream, blocks: int) -> IntArray:
        """For all of the pool, whose original block each block shows after all overwriting."""
        known = self._resolved
        if known is None or known[0]() is not pool or known[1:3] != (stream, blocks):
            rows = np.arange(len(classes.ids))
            drawn = self._draw(classes, rows, classes.ids, stream, blocks)
            known = (weakref.ref(pool), stream, blocks, resolved(drawn))
            self._resolved = known
        return known[3]


@dataclass(frozen=True)
class _Classes:
    """A pool's rows by class.

    Attributes:
        ids: uint8 (N, 16), ascending.
        labels: int64 (N,).
        members: All rows, grouped by class, ascending inside each.
        starts: For each row, where its class begins in `members`.
        sizes: For each row, the images of its class.
        places: For each row, its place among its class.
    """

    ids: Ids
    labels: Labels
    members: IntArray
    starts: IntArray
    sizes: IntArray
    places: IntArray

    @classmethod
    def of(cls, pool: Pool) -> "_Classes":
        ids, labels = pool.ids, pool.labels
        keys = _sortable(ids)
        if not bool((keys[:-1] < keys[1:]).all()):
            raise ProtectionError("the pool's ids must be all different and in ascending order.")
        members = np.argsort(labels, kind="stable")
        _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        starts = (np.cumsum(counts) - counts)[index]
        places = np.empty(len(ids), dtype=np.int64)
        places[members] = np.arange(len(ids))
        return cls(ids, labels, members, starts, counts[index], places - starts)

    def rows_of(self, ids: Ids, labels: Labels) -> IntArray:
        """The pool's rows of these images, which it must hold under the same labels."""
        keys = _sortable(self.ids)
        rows = np.searchsorted(keys, _sortable(ids))
        found = rows < len(keys)
        found[found] = (self.ids[rows[found]] == ids[found]).all(axis=1)
        found[found] = self.labels[rows[found]] == labels[found]
        if not found.all():
            missing = ids[np.argmin(found)].tobytes().hex()
            raise ProtectionError(
                f"image {missing} is not in the pool with its label: the pool must hold all images "
                "of the role that is protected."
            )
        return rows


def _sortable(ids: Ids) -> npt.NDArray[Any]:
    """Ids as byte strings that compare as the ids do; a last byte keeps trailing zeros."""
    padded = np.ones((len(ids), 17), dtype=np.uint8)
    padded[:, :16] = ids
    return padded.view("S17")[:, 0]


def resolved(sources: IntArray) -> IntArray:
    """Follows blocks that were copied from images overwritten before.

    Rows are overwritten in ascending order, so a block taken from an earlier row shows what that
    row shows by then, and one taken from a later row shows that row's original. Chains are followed
    by doubling, in about log2 of the longest chain's length steps and without touching pixels.

    Args:
        sources: The row each block was copied from, its own where it was kept; int64 (N, blocks).

    Returns:
        The row whose original block it shows, int64 (N, blocks).
    """
    found = sources.copy()
    open_row, block = np.nonzero(sources < np.arange(len(sources))[:, None])
    pending = np.zeros(sources.shape, dtype=np.bool_)
    pending[open_row, block] = True
    while len(open_row):
        before = found[open_row, block]
        found[open_row, block], pending[open_row, block] = (
            found[before, block],
            pending[before, block],
        )
        still = pending[open_row, block]
        open_row, block = open_row[still], block[still]
    return found


def _blocks(size: tuple[int, ...], params: PixelBlockMixingParams) -> int:
    """How many blocks an image (H, W) has; those at the lower and right edge may be smaller."""
    return -(-size[0] // params.block_height) * -(-size[1] // params.block_width)


def _mixed(
    images: Images,
    rows: IntArray,
    sources: IntArray,
    params: PixelBlockMixingParams,
    pool: Pool,
) -> Images:
    """The images with each block of another source copied from that row of the pool.

    Donors are taken in ascending order, a bounded number of bytes at a time, so a pool on disk is
    read once from end to end however many donors there are.
    """
    out = np.empty_like(images, order="C")
    target, block = np.nonzero(sources != rows[:, None])
    source = sources[target, block]
    place = np.full(len(pool.ids), -1, dtype=np.int64)
    place[source] = 0
    donors = np.flatnonzero(place == 0)
    place[donors] = np.arange(len(donors))
    index = place[source]
    step = max(1, _TAKE_BYTES // images[:1].nbytes) if len(images) else 1
    for low in range(0, max(1, len(donors)), step):
        pixels = pool.take(donors[low : low + step])
        here = (index >= low) & (index < low + step) if len(donors) > step else slice(None)
        base = images[:0] if low else images
        _copy(out, pixels, params, block[here], target[here], index[here] - low, base)
    return out


def _copy(
    out: Images,
    pixels: Images,
    params: PixelBlockMixingParams,
    block: IntArray,
    target: IntArray,
    source: IntArray,
    base: Images,
) -> None:
    """Fills `out` with `base`, if any, and copies blocks `block[k]` of `pixels[source[k]]` in."""
    if base[:1].nbytes > _SMALL:
        np.copyto(out, base)
        base = base[:0]
    _, height, width, channels = out.shape
    tops = [*range(0, height, params.block_height), height]
    lefts = [*range(0, width, params.block_width), width]
    unit = np.gcd.reduce([8, *(channels * left for left in lefts)])  # the widest integer that fits
    line = (height, width * channels)
    copy_blocks(
        np.ascontiguousarray(pixels).reshape(-1, *line).view(f"u{unit}"),
        out.reshape(-1, *line).view(f"u{unit}"),
        np.array(tops), np.array(lefts) * channels // unit, block, target, source,
        np.ascontiguousarray(base).reshape(-1, *line).view(f"u{unit}"),
    )  # fmt: skip
