"""Comparison of schemes: which leaks less than which, on the same targets.

For each receiver every scheme is represented by the attack that its verdict names as the worst. Two
schemes are compared on the images that both attacks were aimed at; p-values of all pairs of one
receiver are corrected together.

Source: ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from veilset.files import read_table, write_json
from veilset.metrics.statistics import Interval, holm, paired_difference, sign_test
from veilset.release.gate import TEMPLATES

MIN_SHARED = 20
"""Fewer shared targets are not compared."""


@dataclass(frozen=True)
class Contrast:
    """Two schemes for one receiver.

    Attributes:
        template: The receiver.
        scheme: The first scheme, whose worst attack is `attack`.
        other: The second, whose worst attack is `other_attack`.
        attack: Name of an attack.
        other_attack: Name of an attack.
        targets: How many images both were attacked on.
        rate: Success on the first scheme, over those images.
        other_rate: Success on the second.
        difference: `rate` - `other_rate` with its interval.
        p_value: Of no difference; two-sided, exact, by itself.
        adjusted: The same by Holm's correction over all pairs of this receiver.
    """

    template: str
    scheme: str
    other: str
    attack: str
    other_attack: str
    targets: int
    rate: float
    other_rate: float
    difference: Interval
    p_value: float
    adjusted: float


def compare_schemes(
    scores: Mapping[str, pd.DataFrame], worst: Mapping[str, Mapping[str, str]]
) -> list[Contrast]:
    """Compares all pairs of schemes for each receiver.

    That each scheme's worst attack was chosen on the same targets makes rates a little too high on
    both sides, most for the scheme with the more attacks.

    Args:
        scores: Raw scores by scheme, as the attack suite writes them.
        worst: By receiver and scheme, the name of the attack that its verdict names.

    Returns:
        A contrast for each pair with enough shared targets, by receiver in the order of `worst`.
    """
    found: list[Contrast] = []
    for template, attacks in worst.items():
        succeeded = {
            name: _successes(scores[name], attack)
            for name, attack in sorted(attacks.items())
            if name in scores
        }
        found += _corrected(
            _contrast(template, (name, attacks[name]), (other, attacks[other]), *pair)
            for (name, one), (other, two) in combinations(succeeded.items(), 2)
            if len((pair := _shared(one, two))[0]) >= MIN_SHARED
        )
    return found


def write_comparison(
    scores: Mapping[str, Path], verdicts: Mapping[str, Mapping[str, Any]], path: Path
) -> None:
    """Compares the schemes of a project and writes `comparison.json`, atomically.

    Args:
        scores: The `scores.parquet` of each scheme; schemes without one are left out.
        verdicts: The block `schemes` of `verdicts.json`.
        path: Where to write.

    Raises:
        CorruptError: Scores cannot be read.
        DiskFullError: The disk has not the room.
    """
    worst: dict[str, dict[str, str]] = {
        template: {
            name: judged["templates"][template]["worst"]["attack"]
            for name, judged in verdicts.items()
            if judged["templates"][template]["worst"]
        }
        for template in TEMPLATES
    }
    tables = {name: read_table(file) for name, file in scores.items() if file.is_file()}
    contrasts = compare_schemes(tables, worst)
    write_json(path, {"schema": 1, "contrasts": [asdict(contrast) for contrast in contrasts]})


def _successes(scores: pd.DataFrame, attack: str) -> pd.DataFrame:
    """Mean success (over repeats) and the person of each target that an attack was aimed at."""
    rows = scores[(scores["attack"] == attack) & (scores["anchor"] == "main")]
    return rows.groupby("target").agg(success=("success", "mean"), group=("group", "first"))


def _shared(one: pd.DataFrame, two: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the targets that both have, in one order."""
    targets = one.index.intersection(two.index).sort_values()
    return one.loc[targets], two.loc[targets]


def _contrast(
    template: str, first: tuple[str, str], second: tuple[str, str], one: pd.DataFrame,
    two: pd.DataFrame,
) -> Contrast:  # fmt: skip
    values = one["success"].to_numpy(float), two["success"].to_numpy(float)
    # An image of nobody in particular is a cluster of its own.
    clusters = one["group"].where(one["group"] != "", "image " + one.index).to_numpy(dtype=str)
    p_value = sign_test(*values, clusters)
    return Contrast(
        template=template, scheme=first[0], other=second[0], attack=first[1],
        other_attack=second[1], targets=len(one), rate=float(values[0].mean()),
        other_rate=float(values[1].mean()), difference=paired_difference(*values, clusters),
        p_value=p_value, adjusted=p_value,
    )  # fmt: skip


def _corrected(contrasts: Iterable[Contrast]) -> Sequence[Contrast]:
    found = list(contrasts)
    adjusted = holm(np.array([contrast.p_value for contrast in found]))
    return [replace(one, adjusted=float(p)) for one, p in zip(found, adjusted, strict=True)]
