"""Which scheme's data trains the better classifier: paired comparisons on the same test images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from veilset.metrics.statistics import CONFIDENCE, Interval, crossed_mean, holm, sign_test
from veilset.training.evaluation import Answers, comparable, lost, rights


@dataclass(frozen=True)
class UtilityContrast:
    """Two schemes under one model, each in its declared use.

    Attributes:
        model: The model's name in the settings.
        scheme: The first scheme.
        other: The second.
        runs: Seeds of each.
        n: Test images that both answered.
        difference: Accuracy of the first less that of the second, with its interval, -1..1.
        p_value: Of no difference; two-sided. Exact with one seed, when it says nothing of others.
        adjusted: The same by Holm's correction over all pairs of this model.
    """

    model: str
    scheme: str
    other: str
    runs: int
    n: int
    difference: Interval
    p_value: float
    adjusted: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def compare_utility(
    answers: Mapping[tuple[str, str], Sequence[Answers]], confidence: float = CONFIDENCE
) -> list[UtilityContrast]:
    """Compares all pairs of schemes under each model.

    Args:
        answers: By scheme and model, the answers of the classifier of each seed in the scheme's
            declared use.
        confidence: Of the intervals, two-sided.

    Returns:
        A contrast for each pair that answered the same images under as many seeds.

    Source: crossed random effects over seeds and images; McNemar's exact test for one seed.
    """
    found: list[UtilityContrast] = []
    for model in sorted({model for _, model in answers}):
        of_model = {scheme: runs for (scheme, name), runs in answers.items() if name == model}
        found += _corrected(
            _contrast(model, (one, of_model[one]), (two, of_model[two]), confidence)
            for one, two in combinations(sorted(of_model), 2)
            if comparable(of_model[one], of_model[two])
        )
    return found


def _contrast(
    model: str,
    first: tuple[str, Sequence[Answers]],
    second: tuple[str, Sequence[Answers]],
    confidence: float,
) -> UtilityContrast:
    one, two = rights(first[1]).astype(np.float64), rights(second[1]).astype(np.float64)
    runs, n = one.shape
    if runs == 1:
        p_value = sign_test(one[0], two[0], np.arange(n))
    else:
        p_value = crossed_mean(one - two, bounds=(-1, 1), confidence=confidence).p_value
    return UtilityContrast(
        model, first[0], second[0], runs, n, lost(first[1], second[1], confidence), p_value, p_value
    )


def _corrected(contrasts: Iterable[UtilityContrast]) -> list[UtilityContrast]:
    found = list(contrasts)
    adjusted = holm(np.array([contrast.p_value for contrast in found]))
    return [replace(one, adjusted=float(p)) for one, p in zip(found, adjusted, strict=True)]
