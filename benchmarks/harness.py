"""Compares speeds fairly on a machine that does other things as well.

What is measured and what it is compared with run in turns, many times, and the median of the
ratios of neighbouring runs counts: a slow moment then slows both. Work of one thread is timed by
the processor time of this process, which other programs disturb less. Absolute times are of one
machine and moment; they are shown to give an idea, and nothing is asserted about them.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch

RESULTS: Final = Path(__file__).parent / "results"

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: What is measured.
        size: On what, e.g. `32 px`.
        run: Does it once.
        base: What it is compared with, done once; must take milliseconds, not microseconds.
        against: What the base is, e.g. `copy`.
        items: Items (images, if not said otherwise) in a run.
        base_items: Items in a run of the base, if others.
        faster: The ratio is how many times faster than the base it is; otherwise, how many times
            the base's time it takes.
        goal: The ratio to reach, for the reader.
        wall: Both are timed by the clock on the wall: needed where several threads or processes
            work.
        own_time: Both return the seconds that they took, because not all that they do counts
            (setting up, writing); then `wall` means nothing.
        rate_goal: Items a second to reach on the hardware that was meant, for the reader.
    """

    name: str
    size: str
    run: Run
    base: Run
    against: str
    items: int
    base_items: int | None = None
    faster: bool = False
    goal: float | None = None
    wall: bool = False
    own_time: bool = False
    rate_goal: float | None = None


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        name: As in the case.
        size: As in the case.
        against: As in the case.
        faster: As in the case.
        ratio: Median over all rounds.
        low: Lower quartile.
        high: Upper quartile.
        per_second: Items a second, from the median time.
        goal: As in the case.
        rate_goal: As in the case.
    """

    name: str
    size: str
    against: str
    faster: bool
    ratio: float
    low: float
    high: float
    per_second: float
    goal: float | None
    rate_goal: float | None = None


def measured(case: Case, rounds: int) -> Result:
    """Runs a case and its base in turns; the first round, which may compile, is thrown away.

    Args:
        case: What to compare.
        rounds: At least 2.

    Returns:
        Medians and quartiles of the ratios.
    """
    pairs = [_round(case, turn) for turn in range(rounds + 1)][1:]
    scale = (case.base_items or case.items) / case.items
    ratios = [run * scale / base for run, base in pairs]
    if case.faster:
        ratios = [1 / ratio for ratio in ratios]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Result(
        name=case.name, size=case.size, against=case.against, faster=case.faster, ratio=ratio,
        low=low, high=high, goal=case.goal, rate_goal=case.rate_goal,
        per_second=case.items / statistics.median(run for run, _ in pairs),
    )  # fmt: skip


def _round(case: Case, turn: int) -> tuple[float, float]:
    """Seconds of the case and of its base, in alternating order."""
    if turn % 2:
        base = _seconds(case.base, case)
        return _seconds(case.run, case), base
    run = _seconds(case.run, case)
    return run, _seconds(case.base, case)


def _seconds(run: Run, case: Case) -> float:
    clock = time.perf_counter if case.wall else time.process_time
    start = clock()
    told = run()
    took = cast(float, told) if case.own_time else clock() - start
    return max(took, 1e-9)


def machine() -> dict[str, Any]:
    """What the ratios were measured on."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": _version("numba"),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    """The version of a package that not every benchmark needs, without its import."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(results: Sequence[Result]) -> str:
    """The results as text, a line each."""
    rows = [("what", "size", "ratio", "quartiles", "goal", "items/s")]
    for one in results:
        sign = f"{one.against} x {{}}" if one.faster else f"{one.against} / {{}}"
        rows.append(
            (
                one.name, one.size, sign.format(_short(one.ratio)),
                f"{_short(one.low)} to {_short(one.high)}",
                "" if one.goal is None else sign.format(_short(one.goal)),
                f"{one.per_second:,.0f}"
                + ("" if one.rate_goal is None else f" of {one.rate_goal:,.0f}"),
            )
        )  # fmt: skip
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 3 else f"{value:.2f}"


def save(
    name: str,
    results: Sequence[Result],
    folder: Path = RESULTS,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `<name>.json`: the machine, all results, and further facts where there are any.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    document: dict[str, Any] = {
        "machine": machine(), "results": [asdict(one) for one in results], **(facts or {})
    }  # fmt: skip
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path
