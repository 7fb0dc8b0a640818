"""`kill -9` at moments spread over a whole run: nothing torn, nothing left, a rerun is equal."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_cases import quiet_environment

Record = Callable[[str, object], None]


def kill_loop(kind: str, kills: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    script = Path(__file__).with_name("kill_loop.py")
    done = subprocess.run(
        [sys.executable, str(script), kind, str(kills), str(seed), str(folder)],
        capture_output=True, text=True, check=False, env=quiet_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_survived(found: dict[str, Any], kills: int) -> None:
    assert found["first"] == "", found
    assert found["torn"] == found["outlived"] == found["unequal"] == found["unswept"] == 0, found
    assert found["kills"] == kills
    # Moments are drawn over a little more than the run, so most of them meet work under way; a
    # handful on a machine that is suddenly idle may not.
    assert found["at_work"] >= max(1, kills // 5), f"too few kills met work under way: {found}"
    assert found["at_work"] > 0, found


@pytest.mark.parametrize(
    ("kind", "kills"), [("shards", 20), ("ingest", 6), ("protect", 6), ("journal", 20)]
)
def test_killed_work_leaves_nothing_and_is_done_again_the_same(
    tmp_path: Path, kind: str, kills: int
) -> None:
    assert_survived(kill_loop(kind, kills, tmp_path), kills)


@pytest.mark.parametrize(("kind", "fault"), [("torn", "torn"), ("littering", "unswept")])
def test_the_kill_loop_catches_a_planted_fault(tmp_path: Path, kind: str, fault: str) -> None:
    assert kill_loop(kind, 6, tmp_path)[fault] > 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("kind", "kills"), [("shards", 1000), ("ingest", 200), ("protect", 200), ("journal", 200)]
)
def test_many_kills(tmp_path: Path, record_property: Record, kind: str, kills: int) -> None:
    found = kill_loop(kind, kills, tmp_path, seed=1)
    for name in ("kills", "at_work", "finished", "torn", "unequal", "unswept"):
        record_property(name, found[name])
    assert_survived(found, kills)
