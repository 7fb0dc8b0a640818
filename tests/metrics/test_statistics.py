"""Intervals against SciPy, by simulation, and at their edges."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import t as scipy_t

from veilset.metrics.statistics import (
    Interval,
    clopper_pearson,
    cluster_bootstrap,
    crossed_mean,
    effective_trials,
    hierarchical_bootstrap,
    holm,
    paired_difference,
    residual_risk,
    sign_test,
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


def test_nested_draws_are_as_sure_as_their_outermost_clusters() -> None:
    # Seeds that agree add images; seeds that do not are worth as many trials as there are seeds.
    rng = np.random.default_rng(0)
    seeds, persons = np.repeat(np.arange(5), 100), np.tile(np.repeat(np.arange(50), 2), 5)
    agreeing = (rng.random(500) < 0.5).astype(np.float64)
    apart = np.repeat([0.0, 1.0, 0.0, 1.0, 1.0], 100)
    close = hierarchical_bootstrap(agreeing, [seeds, persons], np.random.default_rng(1), draws=300)
    wide = hierarchical_bootstrap(apart, [seeds, persons], np.random.default_rng(1), draws=300)
    assert close.high - close.low < 0.2
    assert wide.high - wide.low > 0.6
    assert wide.value == pytest.approx(0.6)


def test_nested_draws_cover_a_rate_with_spread_at_every_level() -> None:
    rng = np.random.default_rng(0)
    seeds, persons = np.repeat(np.arange(12), 40), np.repeat(np.arange(12 * 10), 4)
    covered = 0
    for _ in range(60):
        logit = 0.5 * rng.standard_normal(12)[seeds] + rng.standard_normal(120)[persons]
        values = (rng.random(480) < 1 / (1 + np.exp(-logit))).astype(np.float64)
        found = hierarchical_bootstrap(values, [seeds, persons], rng, draws=200)
        covered += found.low <= 0.5 <= found.high
    assert covered >= 0.9 * 60


def test_nested_draws_keep_to_their_parents() -> None:
    # Persons of the same name in two seeds are two persons; each seed has values of its own.
    seeds, persons = np.array([0, 0, 1, 1]), np.array(["a", "b", "a", "b"])
    values = np.array([0.0, 0.0, 1.0, 1.0])
    found = hierarchical_bootstrap(values, [seeds, persons], np.random.default_rng(0), draws=400)
    # Of two seeds drawn, both are the second one a quarter of the time: all ones.
    assert (found.low, found.high) == (0.0, 1.0)
    again = hierarchical_bootstrap(values, [seeds, persons], np.random.default_rng(0), draws=400)
    assert found == again
    with pytest.raises(ValueError, match="level"):
        hierarchical_bootstrap(values, [], np.random.default_rng(0))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_rule(p_values: list[float]) -> None:
    adjusted = holm(np.array(p_values))
    assert (adjusted >= np.array(p_values) - 1e-12).all()
    for level in (0.01, 0.05, 0.5):
        rejected: set[int] = set()
        for rank, place in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[place] * (len(p_values) - rank) > level:
                break
            rejected.add(int(place))
        assert set(np.flatnonzero(adjusted <= level)) == rejected


def test_holm_of_a_known_case() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    with pytest.raises(ValueError, match="p-value"):
        holm(np.array([1.5]))


pairs = st.tuples(*[st.integers(0, 30)] * 4).filter(sum)


def successes(both: int, first: int, second: int, neither: int) -> tuple[Any, Any, Any]:
    """Success on each target under two schemes, and a cluster for each target."""
    counts = (both, first, second, neither)
    one, two = np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)
    return one, two, np.arange(sum(counts))


@given(pairs)
def test_a_paired_difference_is_that_of_bonett_and_price(counts: tuple[int, ...]) -> None:
    n, p, q = sum(counts) + 2, counts[1] + 1, counts[2] + 1
    middle = (p - q) / n
    reach = 1.959964 * np.sqrt((p + q) / n - middle**2) / np.sqrt(n)
    found = paired_difference(*successes(*counts))
    assert found.value == pytest.approx((counts[1] - counts[2]) / sum(counts))
    assert found.low == pytest.approx(max(-1.0, min(middle - reach, found.value)), abs=1e-6)
    assert found.high == pytest.approx(min(1.0, max(middle + reach, found.value)), abs=1e-6)
    if found.value == 0:
        assert found.low < 0 < found.high


@given(pairs)
def test_the_sign_test_is_mcnemars_and_forgets_order(counts: tuple[int, ...]) -> None:
    one, two, own = successes(*counts)
    differ = counts[1] + counts[2]
    expected = binomtest(counts[1], differ).pvalue if differ else 1.0
    assert sign_test(one, two, own) == sign_test(two, one, own) == pytest.approx(expected)


def test_paired_figures_of_persons_are_less_sure_than_of_as_many_strangers() -> None:
    one, two, own = successes(0, 40, 10, 50)
    persons = np.repeat(np.arange(20), 5)
    assert sign_test(one, two, persons) > sign_test(one, two, own)
    alone, together = (paired_difference(one, two, who) for who in (own, persons))
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
    assert together.value == alone.value


def test_paired_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        ease = np.repeat(rng.random(30), 4)
        one, two = (rng.random((2, 120)) < [0.8 * ease, 0.5 * ease]).astype(float)
        found = paired_difference(one, two, np.repeat(np.arange(30), 4))
        hits += found.low <= 0.15 <= found.high
    assert hits >= 0.92 * 400


def test_nothing_to_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="same targets"):
        paired_difference(np.zeros(0), np.zeros(0), np.zeros(0))
    with pytest.raises(ValueError, match="same targets"):
        paired_difference(np.zeros(2), np.zeros(3), np.zeros(2))


def _crossed(rng: np.random.Generator, repeats: int, targets: int, spread: float) -> Any:
    """Right answers of classifiers of several seeds, whose skill differs, to images of their own
    difficulty; about 80 % are right."""
    skill = rng.normal(0, spread, (repeats, 1))
    return (
        1.4 + skill + rng.normal(0, 1, targets) + rng.normal(0, 1, (repeats, targets)) > 0
    ) * 1.0


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_crossed_intervals_hold_the_truth_as_often_as_they_say(spread: float) -> None:
    rng = np.random.default_rng(5)
    truth = _crossed(rng, 400, 4000, spread).mean()
    found = [crossed_mean(_crossed(rng, 3, 300, spread), bounds=(0, 1)) for _ in range(500)]
    covered = np.mean([one.interval.low <= truth <= one.interval.high for one in found])
    assert 0.925 <= covered <= 0.99


def test_intervals_over_images_alone_miss_the_luck_of_seeds() -> None:
    rng = np.random.default_rng(6)
    truth = _crossed(rng, 400, 4000, 0.3).mean()
    alone = [crossed_mean(_crossed(rng, 1, 300, 0.3), bounds=(0, 1)) for _ in range(500)]
    assert np.mean([one.interval.low <= truth <= one.interval.high for one in alone]) < 0.8


def test_crossed_p_values_are_even_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(7)

    def difference() -> Any:
        hard = rng.normal(0, 1, 200)
        one, two = (
            1.4 + rng.normal(0, 0.2, (3, 1)) + hard + rng.normal(0, 1, (3, 200)) > 0
            for _ in range(2)
        )
        return one * 1.0 - two

    p_values = np.array([crossed_mean(difference(), bounds=(-1, 1)).p_value for _ in range(400)])
    assert (p_values < 0.05).mean() < 0.08
    assert 0.4 < np.median(p_values) < 0.65


def test_one_repeat_is_the_adjusted_wald_interval() -> None:
    values = np.array([[1.0] * 37 + [0.0] * 3])
    found = crossed_mean(values, bounds=(0, 1)).interval
    share = 39 / 44
    reach = 1.959964 * np.sqrt(share * (1 - share) / 43)
    assert found.value == pytest.approx(37 / 40)
    assert (found.low, found.high) == pytest.approx((share - reach, share + reach), abs=1e-6)
    perfect = crossed_mean(np.ones((3, 50)), bounds=(0, 1)).interval
    assert perfect.high == perfect.value == 1
    assert 0.85 < perfect.low < 0.99


def test_crossed_variance_is_that_of_the_analysis_of_variance() -> None:
    values = np.random.default_rng(8).normal(size=(4, 30))
    found = crossed_mean(values, bounds=(-9, 9))
    padded = np.hstack([values, np.tile([-9.0, 9.0], (4, 1))])
    m, r, c = padded.mean(), padded.mean(axis=1), padded.mean(axis=0)
    squares = {
        "repeat": sum(32 * (x - m) ** 2 for x in r) / 3,
        "target": sum(4 * (x - m) ** 2 for x in c) / 31,
        "mixed": sum(
            (padded[i, j] - r[i] - c[j] + m) ** 2 for i in range(4) for j in range(32)
        ) / 93,
    }  # fmt: skip
    total = max(
        squares["repeat"] + squares["target"] - squares["mixed"],
        squares["repeat"], squares["target"],
    )  # fmt: skip
    freedom = total**2 / (
        squares["repeat"] ** 2 / 3 + squares["target"] ** 2 / 31 + squares["mixed"] ** 2 / 93
    )
    reach = scipy_t.ppf(0.975, freedom) * np.sqrt(total / 128)
    assert found.interval.high == pytest.approx(m + reach)


def test_nothing_crossed_is_refused() -> None:
    for values in (np.zeros((0, 5)), np.zeros((3, 0)), np.zeros(5)):
        with pytest.raises(ValueError, match="repeats and targets"):
            crossed_mean(values, bounds=(0, 1))
