"""Ranks, average precision and galleries against naive references, ties included."""

from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.metrics import average_precision_score, roc_curve

from veilset.metrics.retrieval import (
    average_precision,
    draw_galleries,
    expected_rank,
    pick,
    squared_distances,
    top_k,
    true_accept_rate,
    verification,
)

rows = st.lists(st.integers(0, 3), min_size=2, max_size=5)


def orders(distances: list[int]) -> Iterator[dict[int, int]]:
    """The places of all candidates under every order of the ties."""
    n = len(distances)
    for lots in permutations(range(n)):
        ranked = sorted(range(n), key=lambda j: (distances[j], lots[j]))
        yield {candidate: place for place, candidate in enumerate(ranked)}


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(0, 4), st.integers(1, 5))
def test_ties_count_as_in_a_random_order(distances: list[int], own: int, k: int) -> None:
    own %= len(distances)
    matrix, column = np.array([distances], dtype=float), np.array([own])
    places = [order[own] for order in orders(distances)]
    assert top_k(matrix, column, k)[0] == pytest.approx(np.mean([p < k for p in places]))
    assert expected_rank(matrix, column)[0] == pytest.approx(np.mean(places) + 1)


def test_a_constant_feature_scores_exactly_chance() -> None:
    distances = np.zeros((7, 100))
    assert top_k(distances, np.arange(7), 1) == pytest.approx(0.01)
    assert expected_rank(distances, np.arange(7)) == pytest.approx(50.5)


def test_rounding_makes_no_order_out_of_a_tie() -> None:
    distances = np.full((1, 50), 3.7)
    distances[0, 0] -= 1e-14
    assert top_k(distances, np.array([0]), 1)[0] == pytest.approx(0.02)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30), st.booleans())
def test_average_precision_equals_scikit_learn(seed: int, n: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 4, (3, n)).astype(float) if tied else rng.random((3, n))
    relevant = rng.random((3, n)) < 0.3
    relevant[:, 0] = True
    expected = [
        average_precision_score(hits, -row) for hits, row in zip(relevant, distances, strict=True)
    ]
    np.testing.assert_allclose(average_precision(distances, relevant), expected)


def test_average_precision_needs_something_relevant() -> None:
    with pytest.raises(ValueError, match="relevant"):
        average_precision(np.zeros((1, 3)), np.zeros((1, 3), dtype=bool))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 40), st.integers(2, 60), st.booleans())
def test_galleries_hold_the_own_candidate_once_and_never_the_absent_one(
    seed: int, n: int, size: int, broken: bool
) -> None:
    rng = np.random.default_rng(seed)
    own = np.arange(n)
    absent = np.roll(own, 1) if broken else own
    galleries = draw_galleries(own, n, size, rng, absent)
    assert galleries.shape == (n, min(size, n - (1 if broken else 0)))
    assert (galleries[:, 0] == own).all()
    for target, members in enumerate(galleries):
        assert len(set(members)) == len(members)
        assert not broken or absent[target] not in members


def test_galleries_are_drawn_evenly() -> None:
    own = np.zeros(4000, dtype=np.int64)
    members = draw_galleries(own, 11, 3, np.random.default_rng(0), own)[:, 1:]
    shares = np.bincount(members.ravel(), minlength=11)[1:] / members.size
    np.testing.assert_allclose(shares, 0.1, atol=0.02)


def test_pick_keeps_the_order_of_the_gallery() -> None:
    distances = np.arange(12.0).reshape(3, 4)
    galleries = np.array([[3, 0], [1, 2], [0, 1]])
    assert pick(distances, galleries).tolist() == [[3, 0], [5, 6], [8, 9]]


def test_squared_distances_survive_a_large_common_offset() -> None:
    rng = np.random.default_rng(0)
    a, b = 1e6 + rng.random((5, 8)), 1e6 + rng.random((6, 8))
    np.testing.assert_allclose(squared_distances(a, b), cdist(a, b) ** 2, rtol=1e-6)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        top_k(np.array([[np.nan, 1.0]]), np.array([0]), 1)


scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(scores, scores, st.one_of(st.floats(0, 1), st.fractions(0, 1, max_denominator=30)))
def test_the_true_accept_rate_is_that_of_the_roc_curve(
    own: list[int], impostors: list[int], far: float
) -> None:
    """Integers tie often, and a share of so many impostors is met exactly."""
    truth = np.repeat([1, 0], [len(own), len(impostors)])
    false, true, _ = roc_curve(truth, own + impostors, drop_intermediate=False)
    expected = true[false <= float(far) + 1e-12].max()
    found = true_accept_rate(np.array(own, float), np.array(impostors, float), float(far))
    assert found == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 1e-2, 0.1]))
def test_the_true_accept_rate_of_many_scores_is_that_of_the_roc_curve(
    seed: int, far: float
) -> None:
    rng = np.random.default_rng(seed)
    own, impostors = rng.normal(1.5, 1, 60), rng.normal(0, 1, 3000)
    truth = np.repeat([1, 0], [60, 3000])
    false, true, _ = roc_curve(truth, np.concatenate([own, impostors]), drop_intermediate=False)
    assert true_accept_rate(own, impostors, far) == true[false <= far + 1e-12].max()


def test_the_true_accept_rate_refuses_what_it_cannot_tell() -> None:
    own = np.array([1.0])
    assert true_accept_rate(own, own, 1.0) == 1.0
    assert true_accept_rate(own, own, 0.5) == 0.0
    assert true_accept_rate(own, np.array([1.0 - 1e-14]), 0.0) == 0.0
    for bad in (
        (own, own[:0], 0.1), (own[:0], own, 0.1), (own, own, 1.5), (own, own, -0.1),
        (own, np.array([np.nan]), 0.1), (np.array([np.nan]), own, 0.1), (own, own, np.nan),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"needs|rate|number"):
            true_accept_rate(*bad)


def test_verification_counts_each_pair_once_and_leaves_out_the_absent_one() -> None:
    rng = np.random.default_rng(0)
    distances = rng.random((40, 40))
    own = np.arange(40)
    distances[own, own] = np.where(own < 30, -1.0, 2.0)
    found = verification(distances, own, own)
    assert found == {"impostor_pairs": 40 * 39.0, "tar_at_far_0.001": 0.75}
    # The image that a control was made from is as near as can be, and no impostor.
    absent = np.roll(own, 1)
    distances[own, absent] = -2.0
    assert verification(distances, own, absent) == {
        "impostor_pairs": 40 * 38.0, "tar_at_far_0.001": 0.75,
    }  # fmt: skip
    assert verification(distances, own, own)["tar_at_far_0.001"] == 0.0


def test_too_few_impostors_give_no_rate_rather_than_one_that_means_nothing() -> None:
    distances = np.arange(1.0, 1000.0)[None, :]
    own = np.zeros(1, dtype=np.int64)
    assert verification(distances, own, own) == {"impostor_pairs": 998.0}
    longer = np.arange(1.0, 1002.0)[None, :]
    assert verification(longer, own, own) == {"impostor_pairs": 1000.0, "tar_at_far_0.001": 1.0}
    assert verification(distances, own, own, far=0.01) == {
        "impostor_pairs": 998.0, "tar_at_far_0.01": 1.0,
    }  # fmt: skip
