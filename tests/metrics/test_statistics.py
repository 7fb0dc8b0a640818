"""Intervals against SciPy, by simulation, and at their edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from veilset.metrics.statistics import (
    Interval,
    clopper_pearson,
    cluster_bootstrap,
    effective_trials,
    residual_risk,
    wilson,
)

trials = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(max_examples=60, deadline=None)
@given(trials, st.sampled_from([0.8, 0.95, 0.99]))
def test_exact_and_wilson_intervals_equal_scipy(trial: tuple[int, int], confidence: float) -> None:
    k, n = trial
    for ours, method in ((clopper_pearson, "exact"), (wilson, "wilson")):
        found = ours(k, n, confidence)
        expected = binomtest(k, n).proportion_ci(confidence, method)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
        assert found.low <= found.value <= found.high


@pytest.mark.parametrize("k, n", [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    for interval in (wilson, clopper_pearson):
        with pytest.raises(ValueError, match="successes"):
            interval(k, n)


def test_the_bootstrap_covers_a_rate_whose_clusters_go_together() -> None:
    rng = np.random.default_rng(0)
    hits, naive = 0, 0
    for _ in range(200):
        persons = np.repeat(rng.beta(2, 2, 40), 5)
        values = (rng.random(200) < persons).astype(float)
        names = np.repeat(np.arange(40), 5)
        found = cluster_bootstrap(values, names, rng, draws=300)
        plain = wilson(values.sum(), 200)
        hits += found.low <= 0.5 <= found.high
        naive += plain.low <= 0.5 <= plain.high
    # The independent interval is too narrow here; the clustered one is not.
    assert hits >= 184
    assert naive < hits


def test_no_success_is_not_certainty() -> None:
    found = cluster_bootstrap(np.zeros(50), np.repeat(np.arange(10), 5), np.random.default_rng(0))
    assert found.value == found.low == 0
    assert found.high >= wilson(0, 10).high - 1e-12


def test_the_bootstrap_repeats_for_the_same_generator() -> None:
    values = np.random.default_rng(1).random(60)
    names = np.repeat(np.arange(12), 5)
    one, two = (cluster_bootstrap(values, names, np.random.default_rng(4)) for _ in range(2))
    assert one == two


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 20), st.integers(1, 10))
def test_effective_trials_are_in_range(seed: int, clusters: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.random(clusters * size) < 0.5).astype(float)
    assert clusters <= effective_trials(values, np.repeat(np.arange(clusters), size)) <= len(values)


def test_equal_values_in_a_cluster_count_once() -> None:
    values = np.repeat(np.array([0.0, 1.0] * 20), 10)
    assert effective_trials(values, np.repeat(np.arange(40), 10)) < 45


rates = st.tuples(*[st.floats(0, 1)] * 3).map(sorted).map(lambda x: Interval(x[1], x[0], x[2]))


@given(rates, rates)
def test_residual_risk_is_ordered_and_in_range(attack: Interval, control: Interval) -> None:
    found = residual_risk(attack, control)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_residual_risk_of_known_cases() -> None:
    nothing = Interval(0.0, 0.0, 0.0)
    attack = Interval(0.6, 0.5, 0.7)
    assert residual_risk(attack, nothing) == Interval(0.6, 0.5, 0.7)
    assert residual_risk(attack, attack).value == 0
    assert residual_risk(Interval(0.6, 0.6, 0.6), Interval(0.2, 0.2, 0.2)).value == pytest.approx(
        0.5
    )


def test_residual_limits_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth, covered = (0.5 - 0.1) / 0.9, 0
    for _ in range(400):
        attack = wilson(float(rng.binomial(200, 0.5)), 200)
        control = wilson(float(rng.binomial(200, 0.1)), 200)
        found = residual_risk(attack, control)
        covered += found.low <= truth <= found.high
    assert covered >= 372
