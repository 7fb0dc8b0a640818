"""Compiled loops of the shuffling and mixing schemes: integers only, so bytes are equal anywhere.

They check nothing: whoever calls them passes contiguous arrays and indices that are in range.
Indices are unsigned where speed matters: signed ones are tested for being negative at each use. All
of it is ours; the comparator network is Batcher's merge exchange.
"""

from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from veilset.compiled import compiled
from veilset.types import BoolArray, IntArray

Bytes = npt.NDArray[np.uint8]
Order = npt.NDArray[np.uint16] | npt.NDArray[np.int32]

_LANES: Final = 32
"""Permutations that are sorted side by side: two to four vector registers, in the cache."""

_QUAD: Final = 6**4

_AHEAD: Final = 6
"""Blocks that are fetched before they are copied."""

_FILLED: Final = 192 << 10
"""Bytes of images that are filled in at once: they stay in the cache until their blocks come."""


@lru_cache
def network(n: int) -> npt.NDArray[np.int32]:
    """Comparators (i, j), i < j, that sort n values if done one after another, int32 (K, 2).

    Source: Knuth, The Art of Computer Programming 3, 5.2.2, Algorithm M (Batcher).
    """
    pairs: list[tuple[int, int]] = []
    p = top = 1 << ((n - 1).bit_length() - 1) if n > 1 else 0
    while p > 0:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    found = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    found.setflags(write=False)
    return found


@compiled
def sort_keys(
    words: npt.NDArray[np.uint32],
    rows: IntArray,
    pairs: npt.NDArray[np.int32],
    order: Order,
    tied: BoolArray,
) -> None:
    """Turns random words into permutations by sorting them, many at a time.

    The lowest b bits of a word, b those of n - 1, give way to its index; the upper ones decide.

    Args:
        words: uint32 (R, n).
        rows: The rows to use, int64 (M,).
        pairs: `network(n)`.
        order: Filled, uint16 (M, n): the index that comes to each place.
        tied: Filled, bool (M,): two words are equal but for their lowest b bits.
    """
    n = words.shape[1]
    low_bits = 0
    while (n - 1) >> low_bits:
        low_bits += 1
    mask, shift = np.uint32((1 << low_bits) - 1), np.uint32(low_bits)
    # One lane a column: each comparator is then a minimum and a maximum of whole vectors.
    keys = np.empty((n, _LANES), np.uint32)
    for low in range(0, len(rows), _LANES):
        count = min(_LANES, len(rows) - low)
        for lane in range(count):
            row = words[rows[low + lane]]
            for i in range(n):
                keys[np.uint64(i), np.uint64(lane)] = (row[i] & ~mask) | np.uint32(i)
        for k in range(len(pairs)):
            upper, lower = keys[np.uint64(pairs[k, 0])], keys[np.uint64(pairs[k, 1])]
            for lane in range(_LANES):
                one, two = upper[lane], lower[lane]
                upper[lane], lower[lane] = min(one, two), max(one, two)
        for lane in range(count):
            tie, before = False, ~keys[0, lane]
            for i in range(n):
                now = keys[np.uint64(i), np.uint64(lane)]
                order[low + lane, i] = now & mask
                tie |= ((now ^ before) >> shift) == 0
                before = now
            tied[low + lane] = tie


def _fetching(typing: Any, values: Any, index: Any) -> tuple[Any, Any]:
    """For Numba: the types of `_fetch`, and what writes its instruction."""
    del typing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        takes = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], takes)
        # For reading, into the nearest cache, as data.
        builder.call(prefetch, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(values, index), generate


_fetch: Final[Any] = intrinsic(_fetching)
"""`_fetch(values, index)` tells the processor that a value will be read soon; changes nothing."""


@compiled
def _corner(
    region: int,
    corner: tuple[int, int],
    grid: tuple[int, int],
    sides: tuple[int, int],
    shape: tuple[int, int, int, int],
) -> np.uint64:
    """Where the first value of region `image * regions + region` lies in the flat images."""
    height, width, channels = shape[1:]
    image, inside = region // (grid[0] * grid[1]), region % (grid[0] * grid[1])
    top = corner[0] + (inside // grid[1]) * sides[0]
    left = corner[1] + (inside % grid[1]) * sides[1]
    return np.uint64(((image * height + top) * width + left) * channels)


@compiled
def _fetch_region(
    flat: Bytes, start: np.uint64, span: np.uint64, down: np.uint64, rows: int
) -> None:
    """Tells the processor that both ends of so many rows will be used soon."""
    for _ in range(rows):
        _fetch(flat, start)
        _fetch(flat, start + span)
        start += down


@compiled
def move_blocks(  # noqa: PLR0917
    source: Bytes,
    target: Bytes,
    corner: tuple[int, int],
    grid: tuple[int, int],
    cuts: tuple[int, int],
    block: tuple[int, int],
    groups: IntArray,
    order: Order,
    undo: bool,
) -> None:
    """Copies sub-block `order[k]` of a region and channel to place k, or back.

    Args:
        source: uint8 (N, H, W, C).
        target: The same shape; the groups' pixels are written.
        corner: First row and column of the rectangle of regions.
        grid: Regions down and across.
        cuts: Sub-blocks of a region down and across.
        block: Height and width of a sub-block in pixels.
        groups: int64 (M,), (image * regions + region) * C + channel.
        order: uint16 or int32 (M, sub-blocks).
        undo: Copy place k to sub-block `order[k]` instead.
    """
    width, channels = source.shape[2:]
    n = cuts[0] * cuts[1]
    flat, out = source.reshape(-1), target.reshape(-1)
    high, wide = block
    sides = cuts[0] * high, cuts[1] * wide
    right, down = np.uint64(channels), np.uint64(width * channels)
    first, drawn = np.empty(n, np.uint64), np.empty(n, np.uint64)
    for k in range(n):
        first[k] = ((k // cuts[1]) * high * width + (k % cuts[1]) * wide) * channels
    to, by = (drawn, first) if undo else (first, drawn)
    span = np.uint64(sides[1] * channels - 1)
    fetched = np.int64(-1)
    for m in range(len(groups)):
        # A region is a few bytes out of each of many rows, which no processor foresees.
        if m + channels < len(groups) and groups[m + channels] // channels != fetched:
            fetched = groups[m + channels] // channels
            soon = _corner(fetched, corner, grid, sides, source.shape)
            _fetch_region(flat, soon, span, down, sides[0])
            _fetch_region(out, soon, span, down, sides[0])
        base = _corner(groups[m] // channels, corner, grid, sides, source.shape)
        base += np.uint64(groups[m] % channels)
        for k in range(n):
            drawn[k] = first[np.uint64(order[m, k])]
        if high == 2 and wide == 2:  # the published size: twice as fast as the loop below
            for k in range(n):
                here, there = base + to[k], base + by[k]
                out[here] = flat[there]
                out[here + right] = flat[there + right]
                out[here + down] = flat[there + down]
                out[here + down + right] = flat[there + down + right]
            continue
        for y in range(high):
            for x in range(wide):
                start = base + np.uint64((y * width + x) * channels)
                for k in range(n):  # the longest loop innermost
                    out[start + to[k]] = flat[start + by[k]]


def _quads(undo: bool) -> npt.NDArray[np.uint32]:
    """The base-6 digits, a byte each, lowest first, of 0 to 6^4 - 1; uint32 (6^4,)."""
    digits = np.arange(_QUAD)[:, None] // 6 ** np.arange(4) % 6
    if undo:  # of the six permutations, only the two rotations are not their own inverses
        digits = np.array([0, 1, 2, 4, 3, 5])[digits]
    return digits.astype(np.uint8).view(np.uint32)[:, 0]


_DIGITS: Final = {undo: _quads(undo) for undo in (False, True)}


@compiled
def _mix(
    source: Bytes, target: Bytes, words: npt.NDArray[np.uint64], quads: npt.NDArray[np.uint32]
) -> None:
    """`mix_channels` of images (N, 3 * pixels) with a table of digits."""
    scale, quad = np.uint64(_QUAD * _QUAD), np.uint64(_QUAD)
    lower, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    found = np.empty(2 * words.shape[1], np.uint32)
    digits = found.view(np.uint8)
    for image in range(len(source)):
        for j in range(words.shape[1]):
            word = words[image, j]
            value = ((word >> half) * scale + (((word & lower) * scale) >> half)) >> half
            found[2 * j], found[2 * j + 1] = quads[value % quad], quads[value // quad]
        before, after = source[image], target[image]
        for p in range(source.shape[1] // 3):
            at, digit = np.uint64(p) * three, digits[p]
            a, b, c = before[at], before[at + one], before[at + two]
            after[at] = a if digit < 2 else b if digit < 4 else c
            # No `or`: only bitwise operations let the loop be vectorised.
            after[at + one] = (
                b if (digit == 0) | (digit == 5) else a if (digit == 2) | (digit == 4) else c
            )
            after[at + two] = (
                c if (digit == 0) | (digit == 2) else b if (digit == 1) | (digit == 4) else a
            )


def mix_channels(images: Bytes, words: npt.NDArray[np.uint64], *, undo: bool) -> Bytes:
    """Permutes the three channels of every pixel.

    The digits in base 6, lowest first, of floor(w_j * 6^8 / 2^64) number the permutations of pixels
    8 j to 8 j + 7: 0 to 5 are (0 1 2), (0 2 1), (1 0 2), (1 2 0), (2 0 1), (2 1 0), and channel c
    gets the value of channel p[c].

    Args:
        images: uint8 (N, H, W, 3), contiguous.
        words: uint64 (N, `words_for(H * W)`).
        undo: Undo it instead.

    Returns:
        uint8 (N, H, W, 3).
    """
    out = np.empty_like(images)
    flat = (len(images), images[:1].size)
    if images.size:
        _mix(images.reshape(flat), out.reshape(flat), words, _DIGITS[undo])
    return out


def words_for(pixels: int) -> int:
    """Words of an image that `mix_channels` needs."""
    return -(-pixels // 8)


@compiled
def copy_blocks(  # noqa: PLR0917
    source: npt.NDArray[Any],
    target: npt.NDArray[Any],
    tops: IntArray,
    lefts: IntArray,
    block: IntArray,
    to: IntArray,
    by: IntArray,
    base: npt.NDArray[Any],
) -> None:
    """Copies block `block[k]` of `source[by[k]]` into `target[to[k]]`, once that was filled in.

    Args:
        source: (M, H, units), any integers.
        target: (N, H, units).
        tops: First rows of the rows of blocks and the end of the last, int64 (rows + 1,).
        lefts: First units of the columns of blocks and the end of the last, int64 (columns + 1,).
        block: int64 (K,), row-major numbers of blocks.
        to: int64 (K,), ascending.
        by: int64 (K,).
        base: What `target` is to be filled with first, of the same shape; of no images where it
            was filled before.
    """
    columns = len(lefts) - 1
    height, line = source.shape[1], np.uint64(source.shape[2])
    flat, out = source.reshape(-1), target.reshape(-1)
    one, two = np.uint64(1), np.uint64(2)
    fill, size = base.reshape(-1), height * source.shape[2]
    lane, filled = max(1, _FILLED // (size * source.itemsize)), 0
    for k in range(len(block)):
        if to[k] >= filled and filled < len(base):
            # A few images ahead of their blocks: all of them at once would leave the cache again.
            stop = min(to[k] + lane, len(base))
            out[filled * size : stop * size] = fill[filled * size : stop * size]
            filled = stop
        # Sources lie anywhere, and fetching one takes as long as copying a few: ask for it early.
        if k + _AHEAD < len(block):
            row, column = block[k + _AHEAD] // columns, block[k + _AHEAD] % columns
            soon = np.uint64(by[k + _AHEAD] * height + tops[row]) * line + np.uint64(lefts[column])
            for _ in range(tops[row], tops[row + 1]):
                _fetch(flat, soon)
                soon += line
        row, column = block[k] // columns, block[k] % columns
        left, width = np.uint64(lefts[column]), np.uint64(lefts[column + 1] - lefts[column])
        here = np.uint64(to[k] * height + tops[row]) * line + left
        there = np.uint64(by[k] * height + tops[row]) * line + left
        if width == 3:  # an eighth of 32 px in colour: twice as fast as the loop below
            for _ in range(tops[row], tops[row + 1]):
                a, b, c = flat[there], flat[there + one], flat[there + two]
                out[here], out[here + one], out[here + two] = a, b, c
                here, there = here + line, there + line
            continue
        for _ in range(tops[row], tops[row + 1]):
            for x in range(width):
                out[here + x] = flat[there + x]
            here, there = here + line, there + line
    out[filled * size : len(base) * size] = fill[filled * size : len(base) * size]
