"""Compiled loops of the shuffling and mixing schemes: integers only, so bytes are equal anywhere.

They check nothing: whoever calls them passes contiguous arrays and indices that are in range.
Indices are unsigned where speed matters: signed ones are tested for being negative at each use. All
of it is ours; the comparator network is Batcher's merge exchange.
"""

from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilset.compiled import compiled
from veilset.schemes._intrinsics import ACROSS, SQUARE, fetch, from_lanes, join, split, to_lanes
from veilset.types import BoolArray, IntArray

Bytes = npt.NDArray[np.uint8]
Order = npt.NDArray[np.uint16] | npt.NDArray[np.int32]

_LANES: Final = 48
"""Permutations that are sorted side by side: three to six vector registers, in the cache."""

_QUAD: Final = 6**4

_USUAL: Final = 16
"""Lines of a published region, and of half an image of 32 px: loops of known length are faster."""

_AHEAD: Final = 12
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
def _to_lanes(
    words: npt.NDArray[np.uint32],
    rows: IntArray,
    mask: np.uint32,
    keys: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.uint64],
) -> None:
    """Fills a column of keys with each of these rows, the lowest bits being the index.

    Args:
        words: uint32 (R, n).
        rows: The rows to use, at most as many as there are lanes.
        mask: The lowest bits.
        keys: Filled, uint32 (n, lanes).
        starts: Room for the place where each row begins, uint64 (lanes,).
    """
    n, lanes = keys.shape
    flat, out = words.reshape(-1), keys.reshape(-1)
    for lane in range(len(rows)):
        starts[lane] = rows[lane] * n
    if len(rows) == lanes and n % SQUARE == 0:
        for i in range(0, n, SQUARE):
            for lane in range(0, lanes, SQUARE):
                place = np.uint64(i * lanes + lane)
                to_lanes(flat, starts, np.uint64(lane), np.uint64(i), out, place, np.uint64(lanes))
    else:
        for lane in range(len(rows)):
            for i in range(n):
                keys[np.uint64(i), np.uint64(lane)] = flat[starts[lane] + np.uint64(i)]
    for i in range(n):
        line = keys[np.uint64(i)]
        for lane in range(lanes):
            line[lane] = (line[lane] & ~mask) | np.uint32(i)


@compiled
def _from_lanes(keys: npt.NDArray[np.uint32], mask: np.uint32, order: Order) -> None:
    """Fills each of these rows, uint16 (at most lanes, n), with the indices of a column of keys."""
    n, lanes = keys.shape
    flat, out = keys.reshape(-1), order.reshape(-1)
    if len(order) == lanes and n % SQUARE == 0:
        for i in range(0, n, SQUARE):
            for lane in range(0, lanes, SQUARE):
                start, place = np.uint64(lane * n + i), np.uint64(i * lanes + lane)
                from_lanes(flat, place, np.uint64(lanes), mask, out, start, np.uint64(n))
    else:
        for lane in range(len(order)):
            for i in range(n):
                order[lane, i] = keys[np.uint64(i), np.uint64(lane)] & mask


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
    keys, ties = np.zeros((n, _LANES), np.uint32), np.empty(_LANES, np.uint32)
    starts = np.empty(_LANES, np.uint64)
    for low in range(0, len(rows), _LANES):
        stop = min(low + _LANES, len(rows))
        _to_lanes(words, rows[low:stop], mask, keys, starts)
        for k in range(len(pairs)):
            upper, lower = keys[np.uint64(pairs[k, 0])], keys[np.uint64(pairs[k, 1])]
            for lane in range(_LANES):
                one, two = upper[lane], lower[lane]
                upper[lane], lower[lane] = min(one, two), max(one, two)
        ties[:] = 0
        for i in range(1, n):
            before, now = keys[np.uint64(i - 1)], keys[np.uint64(i)]
            for lane in range(_LANES):
                ties[lane] |= np.uint32((now[lane] ^ before[lane]) >> shift == 0)
        for lane in range(stop - low):
            tied[low + lane] = ties[lane] != 0
        _from_lanes(keys, mask, order[low:stop])


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
    if rows == _USUAL:
        for _ in range(_USUAL):
            fetch(flat, start)
            fetch(flat, start + span)
            start += down
        return
    for _ in range(rows):
        fetch(flat, start)
        fetch(flat, start + span)
        start += down


@compiled
def _move_region(  # noqa: PLR0917
    flat: Bytes,
    out: Bytes,
    base: np.uint64,
    down: np.uint64,
    cuts: tuple[int, int],
    tables: npt.NDArray[np.uint32],
    order: Order,
    undo: bool,
) -> None:
    """Moves the blocks of 2 by 2 pixels of a region of a colour image, in all its channels.

    Args:
        flat: The images, uint8.
        out: Where they go, of the same length.
        base: Where the region begins.
        down: Values from one line to the next.
        cuts: Blocks down and across, a multiple of `ACROSS`.
        tables: Room for the blocks of the three channels before and after, uint32 (2, 3 * blocks).
        order: Of each channel, (3, blocks).
        undo: As in `move_blocks`.
    """
    before, after = tables[0], tables[1]
    n, step, across = np.uint64(cuts[0] * cuts[1]), np.uint64(ACROSS), np.uint64(2 * 3 * ACROSS)
    first, pieces = np.uint64(0), cuts[1] // ACROSS
    for line in range(cuts[0]):
        at = base + np.uint64(2 * line) * down
        for _ in range(pieces):
            split(flat, at, at + down, before, first, n)
            at, first = at + across, first + step
    for c in range(3):
        first, drawn = np.uint64(c) * n, order[c]
        if undo:
            for k in range(n):
                after[first + np.uint64(drawn[k])] = before[first + k]
        else:
            for k in range(n):
                after[first + k] = before[first + np.uint64(drawn[k])]
    first = np.uint64(0)
    for line in range(cuts[0]):
        at = base + np.uint64(2 * line) * down
        for _ in range(pieces):
            join(after, first, n, out, at, at + down)
            at, first = at + across, first + step


@compiled
def _is_whole(groups: IntArray) -> bool:
    """Whether these ascending groups of colour images are the three channels of a region."""
    return len(groups) == 3 and groups[0] % 3 == 0 and groups[2] == groups[0] + 2


@compiled
def _move_group(  # noqa: PLR0917
    flat: Bytes,
    out: Bytes,
    base: np.uint64,
    right: np.uint64,
    down: np.uint64,
    block: tuple[int, int],
    to: npt.NDArray[np.uint64],
    by: npt.NDArray[np.uint64],
) -> None:
    """Moves the blocks of a region in one channel: from `base + by[k]` to `base + to[k]`."""
    if block == (2, 2):  # twice as fast as the loop below
        for k in range(len(to)):
            here, there = base + to[k], base + by[k]
            out[here] = flat[there]
            out[here + right] = flat[there + right]
            out[here + down] = flat[there + down]
            out[here + down + right] = flat[there + down + right]
        return
    for y in range(block[0]):
        for x in range(block[1]):
            start = base + np.uint64(y) * down + np.uint64(x) * right
            for k in range(len(to)):  # the longest loop innermost
                out[start + to[k]] = flat[start + by[k]]


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
    fits = block == (2, 2) and channels == 3 and cuts[1] % ACROSS == 0
    tables = np.empty((2, 3 * n if fits else 0), np.uint32)
    fetched, moved = np.int64(-1), 0
    for m in range(len(groups)):
        # A region is a few bytes out of each of many rows, which no processor foresees.
        if m + channels < len(groups) and groups[m + channels] // channels != fetched:
            fetched = groups[m + channels] // channels
            soon = _corner(fetched, corner, grid, sides, source.shape)
            _fetch_region(flat, soon, span, down, sides[0])
            _fetch_region(out, soon, span, down, sides[0])
        if m < moved:
            continue
        base = _corner(groups[m] // channels, corner, grid, sides, source.shape)
        if fits and _is_whole(groups[m : m + 3]):
            moved = m + 3
            _move_region(flat, out, base, down, cuts, tables, order[m:moved], undo)
            continue
        for k in range(n):
            drawn[k] = first[np.uint64(order[m, k])]
        _move_group(flat, out, base + np.uint64(groups[m] % channels), right, down, block, to, by)


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
def _copy_block(
    flat: npt.NDArray[Any],
    there: np.uint64,
    out: npt.NDArray[Any],
    here: np.uint64,
    line: np.uint64,
    height: np.uint64,
    width: np.uint64,
) -> None:
    """Copies a block whose lines are `line` apart; the published shares of 32 px are fastest."""
    one, two = np.uint64(1), np.uint64(2)
    if width == 3 and height == _USUAL:
        for _ in range(_USUAL):
            a, b, c = flat[there], flat[there + one], flat[there + two]
            out[here], out[here + one], out[here + two] = a, b, c
            here, there = here + line, there + line
        return
    for _ in range(height):
        for x in range(width):
            out[here + x] = flat[there + x]
        here, there = here + line, there + line


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
    whole = target.shape[1] * target.shape[2]
    line, size = np.uint64(target.shape[2]), np.uint64(whole)
    flat, out = source.reshape(-1), target.reshape(-1)
    one = np.uint64(1)
    # Where each block begins in an image, and its size: a division is as slow as several copies.
    columns = len(lefts) - 1
    starts = np.empty((len(tops) - 1) * columns, np.uint64)
    heights, widths = np.empty_like(starts), np.empty_like(starts)
    for number in range(len(starts)):
        row, column = number // columns, number % columns
        starts[number] = tops[row] * target.shape[2] + lefts[column]
        heights[number] = tops[row + 1] - tops[row]
        widths[number] = lefts[column + 1] - lefts[column]
    fill = base.reshape(-1)
    lane, filled = max(1, _FILLED // (whole * target.itemsize)), 0
    for k in range(len(block)):
        if to[k] >= filled and filled < len(base):
            # A few images ahead of their blocks: all of them at once would leave the cache again.
            stop = min(to[k] + lane, len(base))
            out[filled * whole : stop * whole] = fill[filled * whole : stop * whole]
            filled = stop
        # Sources lie anywhere, and fetching one takes as long as copying a few: ask for it early.
        if k + _AHEAD < len(block):
            number = block[k + _AHEAD]
            soon = np.uint64(by[k + _AHEAD]) * size + starts[number]
            # Both ends: one in a few lines goes on in the next part of the cache.
            _fetch_region(flat, soon, widths[number] - one, line, heights[number])
        number = block[k]
        here = np.uint64(to[k]) * size + starts[number]
        there = np.uint64(by[k]) * size + starts[number]
        _copy_block(flat, there, out, here, line, heights[number], widths[number])
    out[filled * whole : len(fill)] = fill[filled * whole :]


@compiled
def number_blocks(
    prefixes: npt.NDArray[np.uint64], numbers: npt.NDArray[np.uint64], blocks: npt.NDArray[Any]
) -> None:
    """Writes what a block cipher turns into a keystream: each prefix with each number.

    Args:
        prefixes: uint64 (N or more, 2); the bits that number a block are zero.
        numbers: uint64 (K,).
        blocks: Filled, uint64 (N, K, 2).
    """
    for i in range(len(blocks)):
        first, second = prefixes[i, 0], prefixes[i, 1]
        for j in range(len(numbers)):
            blocks[i, j, 0], blocks[i, j, 1] = first, second | numbers[j]
