"""The compiled loops against plain Python and NumPy, and the permutations against chance."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from veilset.keys import Key
from veilset.schemes import _permutations
from veilset.schemes._kernels import (
    copy_blocks,
    mix_channels,
    move_blocks,
    network,
    sort_keys,
    words_for,
)
from veilset.schemes._permutations import uniform_permutations
from veilset.schemes.randomness import Stream, derive_stream

STREAM = derive_stream(Key(bytes(range(32))), scheme="t", version=1, parameters="", fitted_hash="")


def some_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8)


@pytest.mark.parametrize("n", range(1, 13))
def test_the_network_sorts_every_sequence_of_zeros_and_ones(n: int) -> None:
    # By the zero-one principle it then sorts everything.
    values = (np.arange(1 << n)[:, None] >> np.arange(n)) & 1
    for i, j in network(n):
        values[:, i], values[:, j] = (
            np.minimum(values[:, i], values[:, j]),
            np.maximum(values[:, i], values[:, j]),
        )
    assert (np.diff(values, axis=1) >= 0).all()


@pytest.mark.parametrize("n", [64, 100, 255, 512])
def test_larger_networks_sort(n: int) -> None:
    values = np.random.default_rng(0).integers(0, n, (200, n))
    for i, j in network(n):
        values[:, [i, j]] = np.sort(values[:, [i, j]], axis=1)
    assert (np.diff(values, axis=1) >= 0).all()
    assert len(network(64)) == 543


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 80), st.integers(1, 70), st.integers(0, 2**32), st.booleans())
@example(64, 200, 0, False)  # most are turned a square at a time, as no uneven n or few rows are
@example(16, 200, 1, True)
@example(512, 100, 2, False)
def test_sorting_equals_numpy_and_finds_every_tie(
    n: int, count: int, seed: int, coarse: bool
) -> None:
    rng = np.random.default_rng(seed)
    low = (n - 1).bit_length()
    high = 1 << 32 if not coarse else 40 << low  # with few values, ties are common
    words = rng.integers(0, min(high, 1 << 32), (count, n), dtype=np.uint32)
    rows = np.sort(rng.choice(count, rng.integers(1, count + 1), replace=False))
    order, tied = np.empty((len(rows), n), np.uint16), np.empty(len(rows), np.bool_)
    sort_keys(words, rows, network(n), order, tied)
    upper = (words[rows].astype(np.int64)) >> low
    assert (order == np.argsort(upper, axis=1, kind="stable")).all()
    assert tied.tolist() == [len(set(row)) < n for row in upper.tolist()]


def test_permutations_are_drawn_anew_until_none_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Stream.bits
    asked = []

    def few(self: Stream, ids: np.ndarray, purpose: str, size: int, start: int = 0) -> np.ndarray:
        bits = plain(self, ids, purpose, size, start)
        asked.append((purpose, len(ids)))
        if purpose == "p/0":
            bits.reshape(len(ids), -1, 4)[..., 1:] &= 0  # eight bits for each of 16: nearly all tie
        return bits

    monkeypatch.setattr(Stream, "bits", few)
    found = uniform_permutations(STREAM, some_ids(9), "p", 4, 16, np.arange(36))
    assert (np.sort(found, axis=1) == np.arange(16)).all()
    assert [purpose for purpose, _ in asked] == ["p/0", "p/1"]
    monkeypatch.undo()
    second = uniform_permutations(STREAM, some_ids(9), "p", 4, 16, np.arange(36))
    assert (second != found).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("n", [2, 16, 512, 513])
def test_no_permutation_depends_on_which_others_are_drawn(n: int) -> None:
    ids = some_ids(30)
    whole = uniform_permutations(STREAM, ids, "p", 5, n, np.arange(150))
    some = np.array([3, 4, 77, 149])
    assert (uniform_permutations(STREAM, ids, "p", 5, n, some) == whole[some]).all()
    alone = uniform_permutations(STREAM, ids[7:8], "p", 5, n, np.arange(5))
    assert (alone == whole[35:40]).all()
    assert (np.sort(whole, axis=1) == np.arange(n)).all()
    assert len(uniform_permutations(STREAM, ids, "p", 5, n, np.arange(0))) == 0


def test_wide_words_are_sorted_and_tie_alike() -> None:
    # The lowest two bits of four words do not count: 20 and 23 tie.
    words = np.array([[20, 23, 1 << 40, 9], [1 << 9, 2 << 9, 3 << 9, 0]], np.uint64)
    order, tied = _permutations._sorted(words, np.array([0, 1]))
    assert tied.tolist() == [True, False]
    assert order[1].tolist() == [3, 0, 1, 2]


def test_all_permutations_of_four_are_equally_likely() -> None:
    found = uniform_permutations(STREAM, some_ids(6000), "p", 4, 4, np.arange(24_000))
    names = {p: k for k, p in enumerate(permutations(range(4)))}
    assert_uniform(np.bincount([names[tuple(p)] for p in found.tolist()], minlength=24), 23)


@pytest.mark.parametrize(("n", "draws"), [(64, 16_000), (256, 8_000), (600, 2_000)])
def test_every_element_comes_to_every_place_equally_often(n: int, draws: int) -> None:
    found = uniform_permutations(STREAM, some_ids(draws // 4), "q", 4, n, np.arange(draws))
    counts = np.stack([np.bincount(found[:, place], minlength=n) for place in range(n)])
    expected = draws / n
    statistic = ((counts - expected) ** 2 / expected).sum() * (n - 1) / n
    assert 1e-4 < chi2.sf(statistic, (n - 1) ** 2) < 1 - 1e-4


def test_pairs_of_neighbouring_places_are_uniform() -> None:
    found = uniform_permutations(STREAM, some_ids(20_000), "r", 1, 8, np.arange(20_000))
    pairs = np.bincount(found[:, 3].astype(int) * 8 + found[:, 4], minlength=64)
    assert (pairs[::9] == 0).all()
    assert_uniform(np.delete(pairs, np.arange(0, 64, 9)), 55)


def assert_uniform(observed: np.ndarray, degrees: int) -> None:
    expected = observed.sum() / len(observed)
    assert chi2.sf(((observed - expected) ** 2 / expected).sum(), degrees) > 1e-4


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([1, 3]),
    st.sampled_from([0.7, 1]),
    st.sampled_from(["u2", "i4"]),
    st.integers(0, 2**32),
)
# Whole regions of 2-px blocks in colour are moved as vectors.
@example((2, 2), (8, 8), (2, 2), 3, 1, "u2", 0)
@example((2, 3), (3, 16), (2, 2), 3, 0.7, "i4", 1)
@example((2, 1), (2, 8), (2, 2), 1, 1, "u2", 2)
@example((1, 2), (3, 12), (2, 2), 3, 1, "u2", 3)
def test_blocks_move_as_in_plain_python(
    grid: tuple[int, int],
    cuts: tuple[int, int],
    block: tuple[int, int],
    channels: int,
    share: float,
    kind: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    high, wide = (grid[i] * cuts[i] * block[i] for i in (0, 1))
    images = rng.integers(0, 256, (2, high + 3, wide + 2, channels), dtype=np.uint8)
    regions, n = grid[0] * grid[1], cuts[0] * cuts[1]
    groups = np.flatnonzero(rng.random(2 * regions * channels) < share)
    order = np.stack([rng.permutation(n) for _ in groups] or [np.zeros(n)]).astype(kind)
    out, expected = images.copy(), images.copy()
    move_blocks(images, out, (2, 1), grid, cuts, block, groups, order, False)
    for group, places in zip(groups.tolist(), order, strict=False):
        image, region, c = (
            group // (regions * channels),
            group // channels % regions,
            group % channels,
        )
        top = 2 + region // grid[1] * cuts[0] * block[0]
        left = 1 + region % grid[1] * cuts[1] * block[1]
        for k, source in enumerate(places.tolist()):
            to = [divmod(k, cuts[1])[i] * block[i] + (top, left)[i] for i in (0, 1)]
            by = [divmod(source, cuts[1])[i] * block[i] + (top, left)[i] for i in (0, 1)]
            expected[image, to[0] : to[0] + block[0], to[1] : to[1] + block[1], c] = images[
                image, by[0] : by[0] + block[0], by[1] : by[1] + block[1], c
            ]
    assert (out == expected).all()
    back = out.copy()
    move_blocks(out, back, (2, 1), grid, cuts, block, groups, order, True)
    assert (back == images).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_channels_are_permuted_by_the_digits_of_the_words(
    count: int, height: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    words = rng.integers(0, 1 << 64, (count, words_for(height * width)), dtype=np.uint64)
    mixed = mix_channels(images, words, undo=False)
    orders = list(permutations(range(3)))
    for image in range(count):
        for p, pixel in enumerate(images[image].reshape(-1, 3).tolist()):
            digit = (int(words[image, p // 8]) * 6**8 >> 64) // 6 ** (p % 8) % 6
            expected = [pixel[c] for c in orders[digit]]
            assert mixed[image].reshape(-1, 3)[p].tolist() == expected
    assert (mix_channels(mixed, words, undo=True) == images).all()


def test_all_permutations_of_channels_are_equally_likely() -> None:
    images = np.broadcast_to(np.array([0, 1, 2], np.uint8), (200, 10, 13, 3)).copy()
    mixed = mix_channels(images, STREAM.words(some_ids(200), "c", words_for(130)), undo=False)
    observed = np.bincount((mixed @ np.array([9, 3, 1])).ravel())
    assert_uniform(observed[observed > 0], 5)
    assert (observed > 0).sum() == 6


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("unit", ["u1", "u4"])
def test_blocks_are_copied_as_slices_are(unit: str, filled: bool) -> None:
    rng = np.random.default_rng(0)
    source, target = (rng.integers(0, 200, (n, 11, 13)).astype(unit) for n in (5, 4))
    tops, lefts = np.array([0, 4, 8, 11]), np.array([0, 5, 10, 13])
    block, to, by = rng.permutation(9), np.sort(rng.integers(0, 3, 9)), rng.integers(0, 5, 9)
    base = rng.integers(0, 200, (4 if filled else 0, 11, 13)).astype(unit)
    expected = base.copy() if filled else target.copy()
    for b, t, s in zip(block, to, by, strict=True):
        rows, columns = slice(*tops[b // 3 :][:2]), slice(*lefts[b % 3 :][:2])
        expected[t, rows, columns] = source[s, rows, columns]
    copy_blocks(source, target, tops, lefts, block, to, by, base)
    assert (target == expected).all()


def test_blocks_of_the_published_shares_are_copied_as_slices_are() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 200, (40, 32, 24)).astype("u4")
    to, block = np.nonzero(rng.random((40, 16)) < 0.5)
    by, target = rng.integers(0, 40, len(to)), np.zeros_like(base)
    copy_blocks(base, target, np.array([0, 16, 32]), np.arange(0, 25, 3), block, to, by, base)
    expected = base.copy()
    for b, t, s in zip(block, to, by, strict=True):
        place = np.s_[16 * (b // 8) : 16 * (b // 8) + 16, 3 * (b % 8) : 3 * (b % 8) + 3]
        expected[t][place] = base[s][place]
    assert (target == expected).all()


def test_images_are_filled_in_before_their_blocks_however_many_there_are() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (3000, 16, 16), dtype=np.uint8)
    to = np.flatnonzero(rng.random(3000) < 0.3)
    block, by = rng.integers(0, 4, len(to)), rng.integers(0, 3000, len(to))
    edges, target = np.array([0, 8, 16]), np.zeros_like(base)
    copy_blocks(base, target, edges, edges, block, to, by, base)
    expected = base.copy()
    for b, t, s in zip(block, to, by, strict=True):
        place = np.s_[8 * (b // 2) : 8 * (b // 2) + 8, 8 * (b % 2) : 8 * (b % 2) + 8]
        expected[t][place] = base[s][place]
    assert (target == expected).all()
