"""Comparison of schemes: on the same targets, by the attacks that verdicts name, corrected."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from veilset.files import write_table
from veilset.metrics.statistics import holm
from veilset.release.comparison import compare_schemes, write_comparison

NAMES = [f"image-{number}" for number in range(200)]


def scores(rate: float, seed: int, names: list[str] = NAMES, **more: Any) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({
        "attack": "linkage", "anchor": "main", "target": names, "group": "",
        "success": (rng.random(len(names)) < rate).astype(float),
    })  # fmt: skip
    return frame.assign(**more)


def all_by(attack: str, *schemes: str) -> dict[str, dict[str, str]]:
    return {"public_release": dict.fromkeys(schemes, attack)}


def test_a_difference_is_found_with_its_sign_and_no_other_one() -> None:
    found = compare_schemes(
        {"a": scores(0.2, 0), "b": scores(0.8, 1), "c": scores(0.8, 2)},
        all_by("linkage", "a", "b", "c"),
    )
    pairs = {(one.scheme, one.other): one for one in found}
    assert set(pairs) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert pairs["a", "b"].difference.high < -0.4
    assert pairs["a", "b"].adjusted < 1e-6
    assert pairs["b", "c"].adjusted > 0.05
    assert pairs["b", "c"].difference.low < 0 < pairs["b", "c"].difference.high
    assert all(one.targets == 200 for one in found)
    p_values = np.array([one.p_value for one in found])
    assert [one.adjusted for one in found] == pytest.approx(list(holm(p_values)))


def test_rows_are_paired_by_target_and_not_by_place() -> None:
    one = scores(0.5, 3)
    other = one.sample(frac=1, random_state=0).reset_index(drop=True)
    (found,) = compare_schemes({"a": one, "b": other}, all_by("linkage", "a", "b"))
    assert found.p_value == 1.0
    assert found.difference.value == 0.0


def test_only_the_attack_itself_counts_and_repeats_are_averaged() -> None:
    one = scores(0.5, 3)
    noise = [scores(1.0, 4, anchor="oracle"), scores(1.0, 5, attack="recognition")]
    again = pd.concat([one.assign(repeat=0), one.assign(repeat=1), *noise], ignore_index=True)
    (found,) = compare_schemes({"a": again, "b": one}, all_by("linkage", "a", "b"))
    assert (found.rate, found.targets) == (found.other_rate, 200)


def test_each_scheme_stands_for_its_own_worst_attack() -> None:
    both = pd.concat([scores(0.1, 0), scores(0.9, 1, attack="jigsaw")], ignore_index=True)
    (found,) = compare_schemes(
        {"a": both, "b": both}, {"public_release": {"a": "linkage", "b": "jigsaw"}}
    )
    assert (found.attack, found.other_attack) == ("linkage", "jigsaw")
    assert found.rate < 0.2
    assert found.other_rate > 0.8


def test_persons_make_less_sure() -> None:
    person = [f"p{number // 20}" for number in range(200)]
    alone, together = (
        compare_schemes({"a": scores(0.4, 0, group=who), "b": scores(0.6, 1, group=who)},
                        all_by("linkage", "a", "b"))[0]
        for who in ("", person)
    )  # fmt: skip
    assert together.p_value > alone.p_value
    assert together.rate == alone.rate


def test_schemes_without_shared_targets_are_not_compared() -> None:
    others = [f"other-{number}" for number in range(181)] + NAMES[:19]
    tables = {"a": scores(0.1, 0), "b": scores(0.9, 1, others)}
    assert compare_schemes(tables, all_by("linkage", "a", "b")) == []
    assert compare_schemes({"a": tables["a"]}, all_by("linkage", "a", "b")) == []
    assert compare_schemes({}, all_by("linkage")) == []


def test_what_is_written_can_be_recomputed(tmp_path: Path) -> None:
    paths = {}
    for number, name in enumerate(("a", "b", "gone")):
        paths[name] = tmp_path / f"{name}.parquet"
        if name != "gone":
            write_table(paths[name], scores(0.3 + 0.4 * number, number))
    worst = {"outside_trainer": {"worst": None}, "public_release": {"worst": {"attack": "linkage"}}}
    judged = {name: {"templates": worst} for name in paths}
    write_comparison(paths, judged, tmp_path / "comparison.json")
    (found,) = json.loads((tmp_path / "comparison.json").read_text())["contrasts"]
    assert (found["template"], found["scheme"], found["other"]) == ("public_release", "a", "b")
    assert found["difference"]["high"] < 0
