"""Exactly uniform keyed permutations, fast: by sorting random words, drawn anew where two tie."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilset.schemes._kernels import Order, network, sort_keys
from veilset.schemes.randomness import Stream
from veilset.types import BoolArray, Ids, IntArray

NETWORK_MAX: Final = 512
"""Most elements that are sorted as 32-bit words; more have words of 64 bits, which seldom tie."""


def uniform_permutations(
    stream: Stream, ids: Ids, purpose: str, groups: int, n: int, numbers: IntArray
) -> Order:
    """Permutations of 0..n-1 for some of the groups of some images.

    A permutation sorts n words of 32 bits (64 bits if n is above `NETWORK_MAX`), the lowest
    b = bits of n - 1 of which give way to the index. Where two agree in all others, it is drawn
    anew from the next round's words. So from uniform bits every permutation is exactly as likely as
    any other, and none depends on which others are asked for.

    Args:
        stream: The keyed randomness; round r has the purpose `<purpose>/<r>`.
        ids: uint8 (N, 16).
        purpose: What the permutations are for.
        groups: Permutations per image.
        n: Elements, 1 to 2^20.
        numbers: Which, int64 (M,), ascending: image * groups + group.

    Returns:
        uint16 or int32 (M, n): the element that comes to each place.
    """
    order, tied = _drawn(stream, ids, f"{purpose}/0", groups, n, numbers)
    left, turn = np.flatnonzero(tied), 1
    while len(left):
        again, tied = _drawn(stream, ids, f"{purpose}/{turn}", groups, n, numbers[left])
        order[left] = again
        left, turn = left[tied], turn + 1
    return order


def _drawn(
    stream: Stream, ids: Ids, purpose: str, groups: int, n: int, numbers: IntArray
) -> tuple[Order, BoolArray]:
    """One round: orders (M, n), and which of them must be drawn anew, bool (M,)."""
    image, group = np.divmod(numbers, groups)
    has = np.zeros(len(ids), dtype=np.bool_)
    has[image] = True
    rows = (np.cumsum(has) - 1)[image] * groups + group
    size = 4 if n <= NETWORK_MAX else 8
    bits = stream.bits(ids[has], purpose, groups * n * size)
    words = np.ascontiguousarray(bits).view(f"<u{size}").astype(f"=u{size}", copy=False)
    return _sorted(words.reshape(-1, n), rows)


def _sorted(words: npt.NDArray[Any], rows: IntArray) -> tuple[Order, BoolArray]:
    """The permutation of each of these rows, and whether words of it tied."""
    n = words.shape[1]
    if words.itemsize == 4:
        order = np.empty((len(rows), n), dtype=np.uint16)
        tied = np.empty(len(rows), dtype=np.bool_)
        sort_keys(words, rows, network(n), order, tied)
        return order, tied
    low = np.uint64((n - 1).bit_length())
    mask = np.uint64((1 << int(low)) - 1)
    keys = (words[rows] & ~mask) | np.arange(n, dtype=np.uint64)
    keys.sort(axis=1)
    same = ((keys[:, 1:] ^ keys[:, :-1]) >> low) == 0
    return (keys & mask).astype(np.int32), np.any(same, axis=1)
