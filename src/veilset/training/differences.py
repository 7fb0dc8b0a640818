"""Intervals for the difference of two rates, as two classifiers' accuracies."""

from math import sqrt

from veilset.metrics.statistics import CONFIDENCE, Interval, wilson


def difference_of(first: Interval, second: Interval) -> Interval:
    """The difference of two rates from independent trials.

    Args:
        first: A rate and its limits.
        second: The rate that is subtracted.

    Returns:
        The difference, -1..1, and its limits.

    Source: Newcombe, Statistics in Medicine 17:873-890, 1998, method 10, for Wilson limits: their
    distances from the rates, squared and added; for any others Zou and Donner, Statistics in
    Medicine 27, 2008.
    """
    return _square_and_add(first, second, 0.0)


def difference_of_counts(
    both: int, first_only: int, second_only: int, neither: int, confidence: float = CONFIDENCE
) -> Interval:
    """The difference of two rates from the same trials, e.g. two classifiers on the same images.

    Args:
        both: Trials in which both succeeded.
        first_only: Trials in which only the first succeeded.
        second_only: Trials in which only the second did, the one that is subtracted.
        neither: Trials in which none did.
        confidence: Two-sided, 0..1.

    Returns:
        (first_only - second_only) / n and its limits, -1..1.

    Raises:
        ValueError: There is no trial.

    Source: Newcombe, Statistics in Medicine 17:2635-2650, 1998, method 10: as for independent
    trials, less the correlation of the two, which is taken a little smaller where positive.
    """
    n = both + first_only + second_only + neither
    first = wilson(both + first_only, n, confidence)
    second = wilson(both + second_only, n, confidence)
    return _square_and_add(first, second, _phi(both, first_only, second_only, neither))


def _square_and_add(first: Interval, second: Interval, correlation: float) -> Interval:
    value = first.value - second.value
    low = _length(first.value - first.low, second.high - second.value, correlation)
    high = _length(first.high - first.value, second.value - second.low, correlation)
    return Interval(value, max(value - low, -1.0), min(value + high, 1.0))


def _length(one: float, other: float, correlation: float) -> float:
    return sqrt(max(one * one - 2 * correlation * one * other + other * other, 0.0))


def _phi(both: int, first_only: int, second_only: int, neither: int) -> float:
    """The correlation of two rates, continuity-corrected where positive; 0 where undefined."""
    margins = (
        (both + first_only) * (second_only + neither) * (both + second_only)
        * (first_only + neither)
    )  # fmt: skip
    if margins == 0:
        return 0.0
    excess = float(both * neither - first_only * second_only)
    if excess > 0:
        excess = max(excess - (both + first_only + second_only + neither) / 2, 0.0)
    return excess / sqrt(margins)
