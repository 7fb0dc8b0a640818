"""The benchmark harness on functions whose speeds are known; nothing here depends on the clock."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import harness
from benchmarks.harness import Case, machine, measured, save, table
from benchmarks.metrics import cases as metric_cases
from benchmarks.schemes import learnt_cases

from veilset.schemes.registry import SCHEMES

Clock = Callable[..., Callable[[], None]]


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Makes functions that take given seconds, in turn, of a clock that only they move."""
    now = [0.0]
    monkeypatch.setattr(harness.time, "process_time", lambda: now[0])

    def make(*seconds: float, calls: list[str] | None = None, name: str = "") -> Callable[[], None]:
        left = list(seconds)

        def run() -> None:
            now[0] += left.pop(0) if len(left) > 1 else left[0]
            if calls is not None:
                calls.append(name)

        return run

    return make


def test_a_ratio_is_how_many_times_the_base_it_takes(takes: Clock) -> None:
    case = Case("slow", "32 px", takes(3.0), takes(0.5), "copy", items=12)
    found = measured(case, rounds=5)
    assert (found.ratio, found.low, found.high) == (6, 6, 6)
    assert found.per_second == 4


def test_a_faster_case_tells_how_many_times_and_items_are_reckoned_in(takes: Clock) -> None:
    # 256 items in 2 s beside one item in 4 s.
    case = Case("fast", "", takes(2.0), takes(4.0), "loop", 256, base_items=1, faster=True)
    assert measured(case, rounds=3).ratio == pytest.approx(512)


def test_the_first_round_is_thrown_away_and_one_slow_one_does_not_count(takes: Clock) -> None:
    case = Case("x", "", takes(900.0, 2.0, 70.0, 2.0), takes(1.0), "copy", 1)
    found = measured(case, rounds=7)
    assert (found.ratio, found.low, found.high) == (2, 2, 2)


def test_both_run_in_turns_of_alternating_order(takes: Clock) -> None:
    calls: list[str] = []
    run, base = (takes(1.0, calls=calls, name=name) for name in "ab")
    measured(Case("x", "", run, base, "copy", 1), rounds=3)
    assert "".join(calls) == "abbaabba"
    assert all(set(pair) == {"a", "b"} for pair in list(pairwise(calls))[::2])


def test_results_are_written_and_shown_with_their_goal(takes: Clock, tmp_path: Path) -> None:
    results = [
        measured(Case("one", "8 px", takes(36.0), takes(2.0), "copy", 1, goal=20), 2),
        measured(Case("two", "8 px", takes(1.0), takes(5.0), "loop", 1, faster=True), 2),
    ]
    path = save("toy", results, tmp_path / "new")
    document = json.loads(path.read_text())
    assert document["machine"] == json.loads(json.dumps(machine()))
    assert [row["ratio"] for row in document["results"]] == [18, 5]
    lines = table(results).splitlines()
    assert "copy / 18.0" in lines[2]
    assert "copy / 20.0" in lines[2]
    assert "loop x 5.0" in lines[3]


def test_several_workers_are_timed_by_the_wall_clock(
    takes: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = iter(range(0, 1000, 7))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: float(next(wall)))
    case = Case("x", "", takes(3.0), takes(1.0), "1 worker", 1, wall=True)
    assert measured(case, rounds=3).ratio == 1


def test_every_scheme_that_learns_is_measured_on_images_like_those_it_learnt_from() -> None:
    found = list(learnt_cases(16, 8, "cpu"))
    learners = {name for name in SCHEMES.names() if SCHEMES[name].learns}
    assert {case.name.removeprefix("protect: ").split(",")[0] for case in found} == learners
    assert len({case.name for case in found}) == len(found)
    for case in found:
        made: Any = case.run()
        assert made.images.shape == (4, 16, 16, 3)
        assert made.images.dtype == np.uint8
        assert (case.items, case.base_items, case.size, case.wall) == (4, 8, "16 px", False)


def test_the_machine_names_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert machine()["gpu"] is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA Toy")
    assert machine()["gpu"] == "NVIDIA Toy"


def test_both_ssims_are_of_the_same_images() -> None:
    (case,) = metric_cases({32: 3})
    ours, theirs = case.run(), case.base()
    # torchmetrics averages over a border that it padded as well.
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=0.1)
    assert len(np.unique(np.asarray(ours))) == case.items == 3
