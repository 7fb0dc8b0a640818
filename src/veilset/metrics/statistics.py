"""Intervals for rates and risks: how sure a figure is.

Nothing here draws by itself: generators are passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from veilset.types import FloatArray, IntArray

CONFIDENCE = 0.95
"""The two-sided confidence of every interval unless another is asked for."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided confidence limits.

    Attributes:
        value: The estimate.
        low: Lower limit, at most `value`.
        high: Upper limit, at least `value`.
    """

    value: float
    low: float
    high: float


def wilson(successes: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """The Wilson score interval of a rate.

    Args:
        successes: 0..n; fractions are allowed (ties count by their probability).
        n: Trials, above 0; an effective number for dependent ones.
        confidence: Two-sided, 0..1.

    Raises:
        ValueError: `n` or `successes` is out of range.

    Source: Wilson, JASA 22, 1927; the interval that Anonymeter reports.
    """
    if n <= 0 or not -1e-9 <= successes <= n * (1 + 1e-9):
        raise ValueError(f"successes must be 0..n with n above 0, not {successes} of {n}")
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    p = min(max(successes / n, 0.0), 1.0)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p))


def clopper_pearson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """The exact interval of a rate: never less than the stated confidence.

    Args:
        successes: 0..n.
        n: Trials, above 0.
        confidence: Two-sided, 0..1.

    Raises:
        ValueError: `n` or `successes` is out of range.

    Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"successes must be 0..n with n above 0, not {successes} of {n}")
    tail = (1 - confidence) / 2
    low = stats.beta.ppf(tail, successes, n - successes + 1) if successes else 0.0
    high = stats.beta.ppf(1 - tail, successes + 1, n - successes) if successes < n else 1.0
    return Interval(successes / n, float(low), float(high))


def cluster_bootstrap(
    values: FloatArray,
    clusters: npt.NDArray[Any],
    rng: np.random.Generator,
    draws: int = 2000,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The interval of a mean of rates when values of one cluster (a person) go together.

    Whole clusters are drawn anew. Because a bootstrap of all zeros or all ones would claim to be
    certain, the result is widened to a Wilson interval at the effective number of trials, which
    the spread between clusters tells (the number of clusters where there is no spread at all).

    Args:
        values: float (N,), 0..1.
        clusters: (N,), any comparable labels.
        rng: Source of the draws.
        draws: Bootstrap repetitions.
        confidence: Two-sided, 0..1.

    Returns:
        The mean of the values and its limits.

    Raises:
        ValueError: There are no values.

    Source: the cluster bootstrap (Davison and Hinkley, 1997, 3.8); the widening is ours.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value")
    sums, sizes = _cluster_sums(values, clusters)
    picks = rng.integers(0, len(sums), (draws, len(sums)))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    mean = float(np.mean(values))
    n = effective_trials(values, clusters)
    wide = wilson(mean * n, n, confidence)
    return Interval(mean, min(float(low), wide.low), max(float(high), wide.high))


def effective_trials(values: FloatArray, clusters: npt.NDArray[Any]) -> float:
    """How many independent trials would give a mean as sure as these clustered ones.

    Args:
        values: float (N,), 0..1.
        clusters: (N,), any comparable labels.

    Returns:
        Between the number of clusters and N.

    Source: the design effect of cluster sampling (Kish, 1965), bounded on both sides by us.
    """
    sums, sizes = _cluster_sums(values, clusters)
    mean, groups, n = float(np.mean(values)), len(sums), len(values)
    if groups < 2 or not 0 < mean < 1:
        return float(groups)
    spread = float((((sums - sizes * mean) / sizes.mean()) ** 2).sum()) / (groups - 1) / groups
    independent = mean * (1 - mean)
    return float(np.clip(independent / spread if spread > 0 else n, groups, n))


def hierarchical_bootstrap(
    values: FloatArray,
    levels: Sequence[npt.NDArray[Any]],
    rng: np.random.Generator,
    draws: int = 1000,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The interval of a mean of rates when values are nested, e.g. seed, then person, then image.

    At every level its members are drawn anew inside the members drawn above, and the values inside
    the innermost ones at last. Like `cluster_bootstrap` the result is widened to a Wilson interval
    at the effective number of trials, here of the innermost clusters.

    Args:
        values: float (N,), 0..1.
        levels: Labels (N,) of each level, the outermost first; a label means the same cluster only
            inside the same cluster above.
        rng: Source of the draws.
        draws: Bootstrap repetitions.
        confidence: Two-sided, 0..1.

    Returns:
        The mean of the values and its limits.

    Raises:
        ValueError: There are no values, or there is no level.

    Source: Davison and Hinkley, Bootstrap Methods (1997), 3.8; the widening is ours. A few
    outermost clusters (three seeds) tell little of the spread between them.
    """
    if not len(values) or not levels:
        raise ValueError("an interval needs at least one value, and nested ones a level")
    member = np.zeros(len(values), dtype=np.int64)
    parents: list[IntArray] = []
    for level in levels:
        _, own = np.unique(level, return_inverse=True)
        _, first, inner = np.unique(
            member * (own.max() + 1) + own, return_index=True, return_inverse=True
        )
        parents.append(member[first])
        member = inner.astype(np.int64)
    order = np.argsort(member, kind="stable")
    tree = [np.bincount(parent) for parent in parents] + [np.bincount(member)]
    means = [values[order[_nested_draw(tree, rng)]].mean() for _ in range(draws)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    mean = float(np.mean(values))
    n = effective_trials(values, member)
    wide = wilson(mean * n, n, confidence)
    return Interval(mean, min(float(low), wide.low), max(float(high), wide.high))


def _nested_draw(tree: Sequence[IntArray], rng: np.random.Generator) -> IntArray:
    """Numbers of the values of one draw; `tree` counts the children of each node, level by level.

    Children of a node have successive numbers, in the order of the nodes.
    """
    nodes = np.zeros(1, dtype=np.int64)
    for counts in tree:
        starts = np.cumsum(counts) - counts
        wanted = counts[nodes]
        within = (rng.random(int(wanted.sum())) * np.repeat(wanted, wanted)).astype(np.int64)
        nodes = np.repeat(starts[nodes], wanted) + within
    return nodes


def paired_difference(
    first: FloatArray,
    second: FloatArray,
    clusters: npt.NDArray[Any],
    confidence: float = CONFIDENCE,
) -> Interval:
    """The interval of the difference of two mean rates on the same targets.

    One more target on which only the first succeeds is assumed, and one on which only the second
    does: so two schemes that agree on every target are not held to be equal for certain.

    Args:
        first: float (N,), 0..1, success on each target.
        second: float (N,), 0..1, on the same targets.
        clusters: (N,), any comparable labels of targets that go together (a person).
        confidence: Two-sided, 0..1.

    Returns:
        mean(first) - mean(second) and its limits, -1..1.

    Raises:
        ValueError: There are no values, or not as many of each.

    Source: Bonett and Price, Journal of Educational and Behavioral Statistics 37, 2012, for
    independent targets; the sums of clusters in place of single differences are ours.
    """
    if not len(first) or not len(first) == len(second) == len(clusters):
        raise ValueError("a paired difference needs the same targets twice, at least one")
    sums, sizes = _cluster_sums(first - second, clusters)
    sums, sizes = np.concatenate([sums, [1.0, -1.0]]), np.concatenate([sizes, [1, 1]])
    middle, n = float(sums.sum() / sizes.sum()), float(sizes.sum())
    spread = sqrt(float(((sums - sizes * middle) ** 2).sum())) / n
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * spread
    low, high = np.clip([middle - reach, middle + reach], -1.0, 1.0)
    value = float(np.mean(first) - np.mean(second))
    return Interval(value, min(float(low), value), max(float(high), value))


@dataclass(frozen=True)
class Crossed:
    """A mean over repeats and targets, e.g. over seeds of a training and test images.

    Attributes:
        interval: The mean and its limits, which cover the draw of both.
        p_value: Of a mean of 0; two-sided.
    """

    interval: Interval
    p_value: float


def crossed_mean(
    values: FloatArray, *, bounds: tuple[float, float], confidence: float = CONFIDENCE
) -> Crossed:
    """The mean of values that were measured on the same targets in each of several repeats.

    With one repeat its limits cover the draw of targets alone: nothing is known of another repeat.

    Args:
        values: float (R, N), a row a repeat, a column a target, e.g. 1 where a classifier of this
            seed is right about this image.
        bounds: The least and the largest possible value, e.g. (0, 1), or (-1, 1) of a difference.
        confidence: Two-sided, 0..1.

    Raises:
        ValueError: There is no repeat or no target.

    Source: the variance of the grand mean of a two-way random effects model, as for readers and
    cases in Dorfman, Berbaum and Metz, Investigative Radiology 27, 1992; degrees of freedom after
    Satterthwaite, Biometrics Bulletin 2, 1946. That two targets of each bound are added, so that
    a mean at a bound has an interval, is after Agresti and Coull, American Statistician 52, 1998
    (of a difference, one of each: Bonett and Price, 2012).
    """
    if values.ndim != 2 or not values.size:
        raise ValueError("a crossed mean needs repeats and targets, one of each at least")
    each = 1 if bounds[0] < 0 else 2
    added = np.tile(np.repeat(bounds, each), (len(values), 1))
    padded = np.hstack([values, added])
    middle, (error, freedom) = float(padded.mean()), _grand_error(padded)
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    low, high = np.clip([middle - reach, middle + reach], *bounds)
    value = float(values.mean())
    p_value = 2 * float(stats.t.sf(abs(middle) / error, freedom))
    return Crossed(Interval(value, min(float(low), value), max(float(high), value)), p_value)


def _grand_error(values: FloatArray) -> tuple[float, float]:
    """Standard error of the mean of (R, N) values, and its degrees of freedom."""
    repeats, targets = values.shape
    rows, columns, middle = values.mean(axis=1), values.mean(axis=0), values.mean()
    by_target = repeats * float(((columns - middle) ** 2).sum()) / (targets - 1)
    if repeats == 1:
        return sqrt(by_target / targets), float("inf")
    by_repeat = targets * float(((rows - middle) ** 2).sum()) / (repeats - 1)
    left = values - rows[:, None] - columns + middle
    both = (repeats - 1) * (targets - 1)
    mixed = float((left**2).sum()) / both
    # The estimate of no component may fall below zero.
    total = max(by_repeat + by_target - mixed, by_repeat, by_target)
    spread = by_repeat**2 / (repeats - 1) + by_target**2 / (targets - 1) + mixed**2 / both
    return sqrt(total / values.size), total**2 / spread


def sign_test(first: FloatArray, second: FloatArray, clusters: npt.NDArray[Any]) -> float:
    """The exact two-sided p-value of no difference between two rates on the same targets.

    Args:
        first: float (N,), success on each target.
        second: float (N,), on the same targets.
        clusters: (N,), any comparable labels of targets that go together (a person).

    Returns:
        0..1; 1 where they differ on no cluster.

    Source: the sign test on sums of clusters; McNemar's exact test (Psychometrika 12, 1947) where
    each target is a cluster of its own and success is 0 or 1.
    """
    sums, _ = _cluster_sums(first - second, clusters)
    up, down = int((sums > 1e-9).sum()), int((sums < -1e-9).sum())
    return float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0


def _cluster_sums(
    values: FloatArray, clusters: npt.NDArray[Any]
) -> tuple[FloatArray, IntArray]:  # fmt: skip
    """The sum of the values of each cluster, and how many there are."""
    _, member = np.unique(clusters, return_inverse=True)
    sums = np.bincount(member, weights=values).astype(np.float64)
    return sums, np.bincount(member).astype(np.int64)


def holm(p_values: FloatArray) -> FloatArray:
    """P-values of several comparisons, adjusted so that their smallest may be believed as well.

    Args:
        p_values: float (M,), 0..1.

    Returns:
        float (M,), 0..1, in the same order, none below its own p-value.

    Raises:
        ValueError: A p-value is not in 0..1.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    found = np.asarray(p_values, dtype=np.float64)
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError("a p-value lies in 0..1")
    order = np.argsort(found, kind="stable")
    steps = found[order] * np.arange(len(found), 0, -1)
    adjusted = np.empty_like(found)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def residual_risk(attack: Interval, control: Interval) -> Interval:
    """Success beyond the control: (attack - control) / (1 - control), with propagated limits.

    Args:
        attack: The rate of the attack and its interval.
        control: The rate of the same attack with the correspondence broken.

    Returns:
        The residual risk, all three figures cut to 0..1.

    Source: Anonymeter (Giomi et al., PoPETs 2023); limits by the method of variance estimates
    recovery (Zou and Donner, 2008), which keeps the asymmetry of the two intervals.
    """
    room = max(1.0 - control.value, 1e-9)
    value = (attack.value - control.value) / room
    by_attack, by_control = 1.0 / room, abs(1.0 - attack.value) / room**2
    down = sqrt(
        (by_attack * (attack.value - attack.low)) ** 2
        + (by_control * (control.high - control.value)) ** 2
    )
    up = sqrt(
        (by_attack * (attack.high - attack.value)) ** 2
        + (by_control * (control.value - control.low)) ** 2
    )
    low, middle, high = np.clip([value - down, value, value + up], 0.0, 1.0)
    return Interval(float(middle), float(low), float(high))
