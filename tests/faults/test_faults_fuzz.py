"""Mutated files of every kind: the process lives, and each input is taken whole or refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_cases import quiet_environment
from fuzz_loop import IMAGES, OURS, SOURCES

KINDS = [*IMAGES, *SOURCES, *OURS]


def fuzz(kinds: list[str], inputs: int, seed: int, folder: Path) -> dict[str, dict[str, int]]:
    command = [sys.executable, str(Path(__file__).with_name("fuzz_loop.py")), *kinds]
    done = subprocess.run(
        [*command, str(inputs), str(seed), str(folder)],
        capture_output=True, text=True, check=False,
        # Arrow's own allocator reserves a gigabyte of addresses whenever it likes.
        env=quiet_environment(ARROW_DEFAULT_MEMORY_POOL="system"),
    )  # fmt: skip
    left = ", ".join(str(path) for path in folder.rglob("input"))
    assert done.returncode == 0, f"exit code {done.returncode} (inputs: {left})\n{done.stderr}"
    said: dict[str, dict[str, int]] = json.loads(done.stdout)
    assert list(said) == kinds
    assert {sum(counts.values()) for counts in said.values()} == {inputs}, "one has no outcome"
    return said


def test_mutated_files_are_taken_whole_or_refused(tmp_path: Path) -> None:
    # IDX is read by torchvision, whose import takes longer than all the others.
    said = fuzz([kind for kind in KINDS if kind != "idx"], 140, 0, tmp_path)
    assert all(set(counts) - {"image", "items", "rows"} for counts in said.values())


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutated_files_are_taken_whole_or_refused(
    tmp_path: Path, record_property: Callable[[str, object], None], kind: str
) -> None:
    said = fuzz([kind], 10_000 if kind in IMAGES else 6_000, 1, tmp_path)[kind]
    record_property("inputs", sum(said.values()))
    record_property("outcomes", said)
