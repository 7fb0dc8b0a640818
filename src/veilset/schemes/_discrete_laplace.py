"""Discrete Laplace noise and other finite laws from integer tables, with their proof.

Two samplers, both fed by keyed bits and free of floating point:

- *Byte laws* (`ByteLaw`): a law of 256 symbols in multiples of 2^-63. A draw takes 16 bits: 15 that
  choose a bucket, and one that is free for a sign. 48 further bits are taken only where the bucket
  does not decide. Its law is known exactly, so what it does to a byte is a finite matrix that is
  enumerated, and the privacy budget is a ratio of two integers of that matrix.
- *Wide noise* (`WideNoise`): discrete Laplace of any scale on sums far beyond a byte. The base-256
  digits of a geometric variable are independent, so each digit is drawn from a table of its own,
  with as many bits as its rarest value asks for (drawn 32 first, the others only when those do not
  decide). Its budget is proven by a bound on the rounding of the tables.

Both are made slightly wider than asked for, so that rounding never exceeds the claimed budget.

Source: ours. The discrete Laplace law as a mechanism: Ghosh, Roughgarden, Sundararajan, STOC 2009.
Independent digits of the geometric law are well known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise
from math import isqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from veilset.compiled import compiled
from veilset.schemes._intrinsics import trailing_zeros
from veilset.schemes.randomness import Stream
from veilset.types import Ids, IntArray

Bytes = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.uint64]

UNIT: Final = 255
"""Grey levels in one unit of intensity; budgets are per unit."""

_MASS_BITS: Final = 63
_FIRST_BITS: Final = 15
_MORE_BITS: Final = _MASS_BITS - _FIRST_BITS
_UNDECIDED: Final = 254
"""In a table of buckets: look at the further bits. The symbol 254, which is rare, always does."""

NARROWER: Final = (40, 36, 32, 28, 24, 20, 16, 12, 8, 7)
"""A law is made for a budget smaller by 2^-k; the first that keeps the claim is taken."""

_WIDER_BITS: Final = 40
_ONES: Final = 0x0101010101010101
_LANE_BITS: Final = 32
_GUARD_BITS: Final = 24
MAX_WIDE_BITS: Final = 4096
"""More bits than this for one digit are refused."""


def exact(value: float) -> Fraction:
    """A parameter as the decimal that is written: 0.1 is 1/10."""
    return Fraction(repr(value))


# ------------------------------------------------------------------------------ byte laws


@dataclass(frozen=True, eq=False)
class ByteLaw:
    """A law of the symbols 0 to 255 in multiples of 2^-63.

    Attributes:
        masses: 256 integers of sum 2^63, none 0.
        table: The symbol that the first 15 bits decide, 254 where they do not; uint8 (32768,).
        starts: First 63-bit number of each symbol, ascending, int64 (256,).
    """

    masses: tuple[int, ...]
    table: Bytes
    starts: IntArray

    @classmethod
    def of(cls, masses: Sequence[int]) -> "ByteLaw":
        """Makes the tables.

        Raises:
            ValueError: There are not 256 positive masses of sum 2^63.
        """
        if len(masses) != 256 or sum(masses) != 1 << _MASS_BITS or min(masses) < 1:
            raise ValueError("a law has 256 positive masses of sum 2^63")
        starts = np.array([0, *accumulate(masses[:-1])], dtype=np.int64)
        first = np.arange(1 << _FIRST_BITS, dtype=np.int64) << _MORE_BITS
        low = np.searchsorted(starts, first, side="right") - 1
        high = np.searchsorted(starts, first + ((1 << _MORE_BITS) - 1), side="right") - 1
        table = np.where(low == high, low, _UNDECIDED).astype(np.uint8)
        return cls(tuple(masses), table, starts)

    @property
    def undecided(self) -> float:
        """The probability that the first bits do not decide."""
        return float((self.table == _UNDECIDED).mean())


@lru_cache(maxsize=512)
def laplace_law(eps: Fraction) -> ByteLaw:
    """The law of |Z| for discrete Laplace noise Z on a byte, |Z| = 255 standing for 255 and more.

    With a fair sign, byte + Z clipped to 0..255 is eps-private per unit of intensity (255 grey
    levels), exactly: the law is the ideal one of a budget smaller by 2^-40 or somewhat more, and
    was enumerated (`holds`).

    Args:
        eps: The budget per unit, above 0: P(Z = k) is proportional to exp(-|k| eps / 255).

    Raises:
        ValueError: Tables of 64 bits cannot hold this budget within 1 %.
    """
    for bits in NARROWER:
        masses = laplace_masses(eps * (1 - Fraction(1, 1 << bits)))
        if holds(noise_channel(masses), eps):
            return ByteLaw.of(masses)
    raise ValueError(
        f"tables of 64 bits hold a noise budget of at most 35, not of {float(eps):g}: with "
        "fewer bits than its tail needs, noise would tell some values apart with certainty"
    )


def laplace_masses(eps: Fraction, bits: int = _MASS_BITS) -> tuple[int, ...]:
    """256 integers of sum 2^bits: the folded law of |Z|, each rounded, the rest given to 0.

    It promises nothing: `holds` tells whether the rounded law keeps a budget.
    """
    with localcontext(prec=60, rounding=ROUND_HALF_EVEN):
        q = _exp(-eps / UNIT)
        unit = 2 * Decimal(1 << bits) * (1 - q) / (1 + q)
        power, masses = Decimal(1), []
        for _ in range(1, UNIT):
            power *= q
            masses.append(int((unit * power).to_integral_value()))
        tail = power * q / (1 + q) * 2 * Decimal(1 << bits)
        masses.append(int(tail.to_integral_value()))
    return ((1 << bits) - sum(masses), *masses)


def noise_channel(masses: Sequence[int]) -> Matrix:
    """The matrix P[x, y] of y = clip(x + Z, 0, 255), in multiples of 1 / (2 sum of masses).

    Args:
        masses: The folded law of |Z|, 256 integers of sum at most 2^63; the sign is fair.

    Returns:
        uint64 (256, 256): row x holds the probabilities of all outputs of input x.
    """
    point = np.array([2 * masses[0], *masses[1:]], dtype=np.uint64)
    beyond = np.cumsum(point[::-1], dtype=np.uint64)[::-1]  # P(Z >= k)
    levels = np.arange(256)
    channel: Matrix = point[np.abs(levels[None, :] - levels[:, None])]
    channel[:, 0] = beyond[levels]
    channel[:, 255] = beyond[255 - levels]
    return channel


def worst_step(channel: Matrix) -> tuple[int, int]:
    """The greatest ratio of two neighbouring rows in any column, as two integers.

    Args:
        channel: uint64 (inputs, outputs), inputs one grey level apart in row order.

    Returns:
        Numerator and denominator; the denominator is 0 where an output is possible for one input
        and impossible for its neighbour.
    """
    high = np.maximum(channel[:-1], channel[1:]).ravel()
    low = np.minimum(channel[:-1], channel[1:]).ravel()
    return worst_pair(high, low)


def worst_pair(high: Matrix, low: Matrix) -> tuple[int, int]:
    """The greatest high / low of pairs (N,), low never above high, compared exactly."""
    order = np.argsort(high)
    high, low = high[order], low[order]
    first = np.flatnonzero(np.concatenate([[True], high[1:] != high[:-1]]))
    least = np.minimum.reduceat(low, first)
    worst = (1, 1)
    for a, b in zip(high[first].tolist(), least.tolist(), strict=True):
        if a * worst[1] > worst[0] * b:
            worst = (a, b)
    return worst


def holds(channel: Matrix, eps: Fraction) -> bool:
    """Whether a channel is eps-private per unit of intensity, decided exactly.

    Neighbouring inputs suffice: the ratio of inputs d levels apart is a product of d such ratios.
    """
    return within(worst_step(channel), eps / UNIT)


def within(ratio: tuple[int, int], exponent: Fraction) -> bool:
    """Whether a ratio of integers is at most exp(exponent)."""
    with localcontext(prec=80):
        # A margin of 1e-60 covers the rounding of exp; it can only make the answer stricter.
        return Decimal(ratio[0]) <= Decimal(ratio[1]) * _exp(exponent) * (1 - Decimal("1e-60"))


def budget(ratio: tuple[int, int], steps: int = UNIT) -> float:
    """`steps` times the logarithm of a ratio, rounded up at the twelfth place; the same anywhere.

    Infinite where the denominator is 0.
    """
    if ratio[1] == 0:
        return float("inf")
    with localcontext(prec=60):
        exact_value = (Decimal(ratio[0]) / Decimal(ratio[1])).ln() * steps
        return float(exact_value.quantize(Decimal("1e-12"), rounding=ROUND_CEILING))


@dataclass(frozen=True, eq=False)
class ByteLaws:
    """Several byte laws side by side, as the kernels take them.

    Attributes:
        tables: uint8 (L, 32768).
        starts: int64 (L, 256).
        undecided: The greatest probability among them that the first bits do not decide.
    """

    tables: Bytes
    starts: IntArray
    undecided: float

    @classmethod
    def of(cls, laws: Sequence[ByteLaw]) -> "ByteLaws":
        """Stacks them."""
        return cls(
            np.stack([law.table for law in laws]),
            np.stack([law.starts for law in laws]),
            max(law.undecided for law in laws),
        )

    def symbols(self, stream: Stream, ids: Ids, purpose: str, count: int) -> Bytes:
        """Draws symbols, the i-th of each image from law i modulo L.

        Args:
            stream: Where the bits come from: `purpose` and `purpose/more`.
            ids: uint8 (N, 16).
            purpose: What the draws are for.
            count: Draws per image.

        Returns:
            uint8 (N, count).
        """
        out = np.empty((len(ids), count), dtype=np.uint8)

        def fill(rows: IntArray, lanes: npt.NDArray[np.uint16], more: IntArray) -> IntArray:
            return _draw_symbols(rows, lanes, self.tables, self.starts, more, out)

        self._feed(stream, ids, purpose, count, fill)
        return out

    def add_noise(
        self, values: Bytes, levels: Bytes, sides: tuple[int, int, int], stream: Stream,
        ids: Ids, purpose: str, out: Bytes,
    ) -> None:  # fmt: skip
        """Adds signed draws to values, clipped to 0..255; each cell has its own law.

        Args:
            values: uint8 (N, H, W, C), contiguous.
            levels: The law of each cell, uint8 (N, cells down, cells across).
            sides: C, and a cell's height and width in pixels; cells at the edge may be smaller.
            stream: Where the bits come from: `purpose` and `purpose/more`.
            ids: uint8 (N, 16).
            purpose: What the noise is for.
            out: Where the sums go, the shape of `values`, contiguous.
        """
        channels, down, across = sides
        shape = (len(values), values.shape[1], values.shape[2] * channels)
        lines, noisy, cell = values.reshape(shape), out.reshape(shape), (down, across * channels)

        def fill(rows: IntArray, lanes: npt.NDArray[np.uint16], more: IntArray) -> IntArray:
            return _add_noise(
                rows, lines, lanes, levels, cell, self.tables, self.starts, more, noisy
            )

        self._feed(stream, ids, purpose, shape[1] * shape[2], fill)

    def _feed(
        self, stream: Stream, ids: Ids, purpose: str, count: int,
        fill: Callable[[IntArray, npt.NDArray[np.uint16], IntArray], IntArray],
    ) -> None:  # fmt: skip
        """Gives `fill` 16 bits a draw, and further words in the order in which an image needs them.

        An image that needs more words than it got is drawn again with as many as it needs; its
        words are the same whatever it is drawn with.
        """
        bits = np.ascontiguousarray(stream.bits(ids, purpose, 2 * count))
        lanes = bits.view("<u2").astype(np.uint16, copy=False)
        expected = int(count * self.undecided) + 1
        room = expected + 4 * isqrt(expected) + 4
        rows = np.arange(len(ids))
        used = fill(rows, lanes, _further(stream, ids, purpose, room))
        rows = np.flatnonzero(used > room)
        if len(rows):
            fill(rows, lanes[rows], _further(stream, ids[rows], purpose, int(used.max())))


def _further(stream: Stream, ids: Ids, purpose: str, count: int) -> IntArray:
    """48 further bits for each undecided draw, int64 (N, count)."""
    words = stream.words(ids, f"{purpose}/more", count)
    return (words >> np.uint64(64 - _MORE_BITS)).astype(np.int64)


@compiled
def _symbol(tables: Bytes, starts: IntArray, law: int, first: int, further: int) -> np.uint64:
    """The symbol of a 63-bit number: how many of the starts after the first are at most it."""
    drawn = (np.int64(first) << _MORE_BITS) | further
    before = tables[law, first - 1] if first else np.uint8(0)
    if before < _UNDECIDED:  # nearly always it is the symbol of the bucket before, or the next
        symbol = np.uint64(before)
        symbol += np.uint64(starts[law, symbol + np.uint64(1)] <= drawn)  # nobody can foresee it
        while symbol < np.uint64(255) and starts[law, symbol + np.uint64(1)] <= drawn:
            symbol += np.uint64(1)
        return symbol
    symbol, step = np.uint64(0), np.uint64(128)
    while step:
        symbol += step * np.uint64(starts[law, symbol + step] <= drawn)
        step >>= np.uint64(1)
    return symbol


@compiled
def _draw_symbols(
    rows: IntArray, lanes: npt.NDArray[np.uint16], tables: Bytes, starts: IntArray, more: IntArray,
    out: Bytes,
) -> IntArray:  # fmt: skip
    count, laws, room = lanes.shape[1], tables.shape[0], more.shape[1]
    used = np.zeros(len(rows), dtype=np.int64)
    for n in range(len(rows)):
        needed = 0
        for i in range(count):
            first = lanes[n, i] >> np.uint16(1)
            symbol = tables[i % laws, first]
            if symbol == _UNDECIDED:
                if needed < room:
                    symbol = np.uint8(_symbol(tables, starts, i % laws, first, more[n, needed]))
                needed += 1
            out[rows[n], i] = symbol
        used[n] = needed
    return used


@compiled
def _add_noise(  # noqa: PLR0917
    rows: IntArray, values: Bytes, lanes: npt.NDArray[np.uint16], levels: Bytes,
    cell: tuple[int, int], tables: Bytes, starts: IntArray, more: IntArray, out: Bytes,
) -> IntArray:  # fmt: skip
    height, width = values.shape[1:]
    down, across = cell
    room = more.shape[1]
    used = np.zeros(len(rows), dtype=np.int64)
    eights = np.zeros((width + 7) // 8, dtype=np.uint64)
    sizes = eights.view(np.uint8)
    cells = np.arange(width) // across
    # Flat arrays and unsigned indices: slices count references, and signed indices are tested.
    flat_values, flat_out = values.reshape(-1), out.reshape(-1)
    flat_lanes, flat_tables = lanes.reshape(-1), tables.reshape(-1)
    for n in range(len(rows)):
        needed = 0
        for y in range(height):
            lane = np.uint64((n * height + y) * width)
            here = np.uint64((rows[n] * height + y) * width)
            for x in range(levels.shape[2]):
                table = np.uint64(levels[rows[n], y // down, x]) << np.uint64(_FIRST_BITS)
                for i in range(np.uint64(x * across), np.uint64(min(x * across + across, width))):
                    draw = np.uint64(flat_lanes[lane + i])
                    sizes[i] = flat_tables[table + (draw >> np.uint64(1))]
            # Eight sizes at once: where a byte of the word is zero, which is an undecided one.
            for run in range(len(eights)):
                zero = eights[run] ^ np.uint64(_UNDECIDED * _ONES)
                found = (zero - np.uint64(_ONES)) & ~zero & np.uint64(0x80 * _ONES)
                while found:
                    i = np.uint64(8 * run) + (trailing_zeros(found) >> np.uint64(3))
                    if needed < room:
                        law = levels[rows[n], y // down, cells[i]]
                        first = flat_lanes[lane + i] >> np.uint16(1)
                        sizes[i] = _symbol(tables, starts, law, first, more[n, needed])
                    needed += 1
                    # Only the lowest is sure: a zero below may borrow from the byte above it.
                    zero |= np.uint64(0xFF) << (trailing_zeros(found) - np.uint64(7))
                    found = (zero - np.uint64(_ONES)) & ~zero & np.uint64(0x80 * _ONES)
            # Bytes throughout, so that it runs on whole vector registers.
            for i in range(np.uint64(width)):
                size, value = sizes[i], flat_values[here + i]
                up = np.uint8(min(value, np.uint8(255 - size)) + size)
                less = np.uint8(max(value, size) - size)
                flat_out[here + i] = less if flat_lanes[lane + i] & np.uint16(1) else up
        used[n] = needed
    return used


# ------------------------------------------------------------------------------ wide noise


@dataclass(frozen=True, eq=False)
class WideNoise:
    """Discrete Laplace noise Z of a large scale; exact on sums from 0 to `bound` after clipping.

    Z is G with probability 1 / (1 + q), and -1 - G otherwise, for geometric G of ratio
    q = exp(-1 / scale). A draw takes 32 bits for the sign and 32 for each digit of G: digits are to
    base 256, and the highest stands for itself and all above, which clipping cannot tell apart.

    Attributes:
        bound: The greatest sum.
        bits: Bits of the thresholds.
        thresholds: For the sign and then each digit from the lowest, the first numbers of all
            values but the first, out of 2^bits.
        tops: The uppermost 32 bits of the thresholds, uint32 (1 + digits, 256).
        counts: How many there are, int64 (1 + digits,).
        guide: Where to start looking by the uppermost 8 bits, int64 (1 + digits, 256).
    """

    bound: int
    bits: int
    thresholds: tuple[tuple[int, ...], ...]
    tops: npt.NDArray[np.uint32]
    counts: IntArray
    guide: IntArray

    @property
    def lanes(self) -> int:
        """Draws of 32 bits for each sum: the sign and the digits."""
        return len(self.thresholds)

    def draw(self, stream: Stream, ids: Ids, purpose: str, count: int) -> IntArray:
        """Draws noise for `count` sums of each image.

        Args:
            stream: Where the bits come from: `purpose` and, very rarely, `purpose/more`.
            ids: uint8 (N, 16).
            purpose: What the noise is for.
            count: Sums per image.

        Returns:
            int64 (N, count); what is beyond the bound stands for all that is.
        """
        size = count * self.lanes
        bits = np.ascontiguousarray(stream.bits(ids, purpose, size * _LANE_BITS // 8))
        words = bits.view("<u4").astype(np.uint32, copy=False)
        lanes = words.reshape(len(ids), count, self.lanes)
        out = np.empty((len(ids), count), dtype=np.int64)
        unsure = _wide(lanes, self.tops, self.counts, self.guide, out)
        rest = (self.bits - _LANE_BITS) // 8
        for n, i in zip(*np.nonzero(unsure), strict=True):
            start = int(i) * self.lanes * rest
            further = stream.bits(ids[n : n + 1], f"{purpose}/more", self.lanes * rest, start)
            out[n, i] = self.exactly(lanes[n, i].tolist(), further.tobytes())
        return out

    def exactly(self, lanes: Sequence[int], further: bytes) -> int:
        """The noise of one draw from all of its bits.

        Args:
            lanes: The first 32 bits of the sign and of each digit.
            further: Their other bits in the same order, big-endian.
        """
        rest = len(further) // self.lanes
        values = []
        for k, (lane, limits) in enumerate(zip(lanes, self.thresholds, strict=True)):
            low = int.from_bytes(further[k * rest : (k + 1) * rest], "big")
            drawn = (int(lane) << (self.bits - _LANE_BITS)) | low
            values.append(sum(limit <= drawn for limit in limits))
        size = sum(value << (8 * k) for k, value in enumerate(values[1:]))
        return -1 - size if values[0] else size

    def mass(self, noise: int) -> Fraction:
        """The probability of this noise, exactly; its size is at most `bound`."""
        negative, size = (1, -1 - noise) if noise < 0 else (0, noise)
        total = Fraction(1)
        for k, limits in enumerate(self.thresholds):
            last = k == len(self.thresholds) - 1
            value = negative if k == 0 else size >> (8 * (k - 1)) if last else digit(size, k - 1)
            edges = (0, *limits, 1 << self.bits)
            total *= Fraction(edges[value + 1] - edges[value], 1 << self.bits)
        return total


def digit(size: int, place: int) -> int:
    """The digit of a number to base 256 at a place, counted from the lowest."""
    return (size >> (8 * place)) & 255


def wide_bits(scale: Fraction, bound: int) -> int:
    """Bits that the thresholds of `wide_noise` need, a multiple of 32.

    The rarest value of the highest digit has a probability of exp(-its first number / scale), and
    those of lower digits have more than exp(-bound / scale) / scale; the further bits make
    rounding much smaller than the 2^-40 by which the scale is widened.
    """
    low_digits, top = _digits(bound)
    nats = Fraction(top << (8 * low_digits)) / scale
    rare = int(nats * 3 / 2) + 2 * int(scale).bit_length() + 8 * (low_digits + 1)
    needed = rare + _WIDER_BITS + _GUARD_BITS
    return max(2, -(-needed // _LANE_BITS)) * _LANE_BITS


def _digits(bound: int) -> tuple[int, int]:
    """How many digits stand below the highest one, and the highest's value beyond the bound."""
    low_digits = (bound.bit_length() - 1) // 8
    return low_digits, (bound >> (8 * low_digits)) + 1


@lru_cache(maxsize=64)
def wide_noise(scale: Fraction, bound: int) -> WideNoise:
    """Discrete Laplace noise of at least this scale for sums from 0 to `bound`.

    For any two sums and any output, the probabilities of clip(sum + Z, 0, bound) differ by at most
    exp(difference / scale), exactly. The ideal law has the scale times 1 + 2^-40; rounding each
    table to multiples of 2^-bits moves each of its masses by a factor of at most 1 + d, so ratios
    move by a factor of at most the product of (1 + d) / (1 - d) over all tables, and that is shown
    here to be less than what the wider scale leaves.

    Args:
        scale: In units of the sums, above 0.
        bound: The greatest sum, 1 or more; greater noise need not be told apart.

    Raises:
        ValueError: The tables would need more than 4096 bits.
    """
    bits = wide_bits(scale, bound)
    if bits > MAX_WIDE_BITS:
        raise ValueError(f"noise this small on sums this large needs {bits} bits, above 4096")
    wider = scale * (1 + Fraction(1, 1 << _WIDER_BITS))
    low_digits, top = _digits(bound)
    with localcontext(prec=bits * 31 // 100 + 30, rounding=ROUND_HALF_EVEN):
        whole = Decimal(1 << bits)
        ratio = _exp(-1 / wider)
        tables = [[whole / (1 + ratio)]]
        for place in range(low_digits + 1):
            powers = [Decimal(1)]
            for _ in range(256 if place < low_digits else top):
                powers.append(powers[-1] * ratio)
            within_digit = 1 - powers[-1] if place < low_digits else Decimal(1)
            tables.append([whole * (1 - power) / within_digit for power in powers[1:]])
            if place < low_digits:
                tables[-1].pop()
            ratio = powers[-1]
        thresholds = tuple(
            tuple(int(edge.to_integral_value()) for edge in table) for table in tables
        )
    _require_rounding(thresholds, bits, scale, wider)
    tops = np.zeros((len(thresholds), 256), dtype=np.uint32)
    guide = np.empty((len(thresholds), 256), dtype=np.int64)
    for k, limits in enumerate(thresholds):
        tops[k, : len(limits)] = [limit >> (bits - _LANE_BITS) for limit in limits]
        guide[k] = np.searchsorted(tops[k, : len(limits)], np.arange(256, dtype=np.uint32) << 24)
    counts = np.array([len(limits) for limits in thresholds], dtype=np.int64)
    return WideNoise(bound, bits, thresholds, tops, counts, guide)


def _require_rounding(
    thresholds: Sequence[Sequence[int]], bits: int, scale: Fraction, wider: Fraction
) -> None:
    """Refuses tables whose rounding exceeds what the wider scale leaves."""
    moved = Fraction(0)
    for limits in thresholds:
        edges = (0, *limits, 1 << bits)
        least = min(high - low for low, high in pairwise(edges))
        # An ideal mass is off by at most one unit; ln((1 + d) / (1 - d)) < 3 d for d below 1/2.
        moved += Fraction(3, least - 1) if least > 3 else Fraction(1)
    if moved > 1 / scale - 1 / wider:
        raise ValueError(f"thresholds of {bits} bits are too coarse for this scale")


@compiled
def _wide(
    lanes: npt.NDArray[np.uint32], tops: npt.NDArray[np.uint32], counts: IntArray, guide: IntArray,
    out: IntArray,
) -> npt.NDArray[np.bool_]:  # fmt: skip
    images, sums, tables = lanes.shape
    unsure = np.zeros((images, sums), dtype=np.bool_)
    for n in range(images):
        for i in range(sums):
            size, negative = np.int64(0), False
            for k in range(tables):
                drawn = lanes[n, i, k]
                low = guide[k, drawn >> np.uint32(24)]
                while low < counts[k] and tops[k, low] <= drawn:
                    low += 1
                if low > 0 and tops[k, low - 1] == drawn:
                    unsure[n, i] = True
                if k == 0:
                    negative = low == 1
                else:
                    size |= np.int64(low) << (8 * (k - 1))
            out[n, i] = -1 - size if negative else size
    return unsure


def _exp(exponent: Fraction) -> Decimal:
    """The exponential to the precision of the context, with ten more places inside."""
    with localcontext() as context:
        context.prec += 10
        return (Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp()
