"""A disk that is soon full, and the record of what the long tests did."""

import gc
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from veilset.files import write_json

RESULTS: Final = Path(__file__).parents[2] / "benchmarks/results/slow_tests.json"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs of a size that is given as `mount` takes it: `256k`."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    gc.collect()
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


class SlowRecord:
    """Writes what each long test did, whatever folder it lies in, beside earlier runs' results."""

    def __init__(self) -> None:
        self.done: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        entry: dict[str, Any] = {
            "outcome": report.outcome,
            "seconds": round(report.duration, 1),
            "on": datetime.now(UTC).date().isoformat(),
            "device": device(),
        }
        if report.skipped and isinstance(report.longrepr, tuple):
            entry["why"] = report.longrepr[2]
        self.done[report.nodeid] = entry | dict(report.user_properties)

    def pytest_sessionfinish(self) -> None:
        earlier = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        if self.done:
            write_json(RESULTS, {**earlier, **self.done})


def device() -> str:
    """The machine in words."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else cpu}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Records where nothing but long tests run, which is what `make test-slow` asks for."""
    config = session.config
    if config.option.markexpr == "slow" and not config.option.collectonly:
        config.pluginmanager.register(SlowRecord(), "veilset-slow-record")
