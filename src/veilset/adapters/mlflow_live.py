"""A long training in MLflow while it runs: loss, accuracy, images a second, and the machine's load.

The run is begun by a thread of its own once the training has taken a while, so that short ones pay
nothing for MLflow's start-up. `sync` later completes this very run with what was versioned. The
store must never be in a training's way: whatever goes wrong with it ends the live figures with one
line, and nothing else.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import time
from typing import Any, Final

from veilset.adapters.audit_records import LIVE, LIVE_PREFIX, WEIGHTS, dataset_name
from veilset.adapters.mlflow_audit import open_experiment, quiet_mlflow, tracking_address
from veilset.console import say
from veilset.errors import AuditError, BusyError
from veilset.files import locked

_LOCK_TRIES: Final = 20


@dataclass(frozen=True)
class _Figures:
    values: Mapping[str, float]
    step: int
    at: int


class Live:
    """Where a training tells its figures; each call returns at once."""

    def __init__(self) -> None:
        """Begins with nothing told."""
        self._told: SimpleQueue[_Figures | None] = SimpleQueue()
        self.weights: str | None = None

    def log(self, step: int, **values: float) -> None:
        """Figures under `live/<name>`.

        Args:
            step: Where on the axis, e.g. images trained on.
            **values: The figures.
        """
        self._told.put(_Figures(values, step, int(time() * 1000)))

    def finish(self, weights: str) -> None:
        """The training made weights of this SHA-256: by them `sync` finds the run again."""
        self.weights = weights


@contextmanager
def live_run(root: Path, stage: str, *, after: float, sampling: float = 10.0) -> Iterator[Live]:
    """Shows what happens inside the block in MLflow, if it takes longer than a while.

    Args:
        root: The project's folder.
        stage: The stage's name, as in `dvc.lock`.
        after: Seconds after which the run is begun; 0 for never.
        sampling: Seconds between two looks at the load of processor, memory and GPU.
    """
    live, ended = Live(), threading.Event()

    def follow() -> None:
        if not ended.wait(after):
            _follow(root, stage, live, sampling)

    thread = threading.Thread(target=follow, daemon=True)
    if after > 0:
        thread.start()
    try:
        yield live
    finally:
        ended.set()
        live._told.put(None)
        if after > 0:
            thread.join(timeout=60)


def _follow(root: Path, stage: str, live: Live, sampling: float) -> None:
    """Begins the run, and passes figures on until the training has ended."""
    try:
        _pass_on(root, stage, live, sampling)
    except Exception as error:  # a store may fail in any way, and the training goes on
        reason = " ".join(str(error).split())[:200]
        say(f"MLflow shows {stage} no longer ({reason}); the training goes on.")


def _pass_on(root: Path, stage: str, live: Live, sampling: float) -> None:
    from mlflow.system_metrics.system_metrics_monitor import (  # noqa: PLC0415 - seconds to import
        SystemMetricsMonitor,
    )

    with quiet_mlflow():
        address = tracking_address(root, None)
        client, experiment = _opened(root, address)
        _end_abandoned(client, experiment, stage)
        run_id = client.create_run(experiment, run_name=stage, tags={LIVE: stage}).info.run_id
        make: Any = SystemMetricsMonitor
        monitor = make(run_id, sampling, tracking_uri=address)
        monitor.start()
        try:
            while (told := live._told.get()) is not None:
                _log(client, run_id, told)
        finally:
            with suppress(Exception):  # its last figures
                monitor.finish()
            if live.weights is not None:
                client.set_tag(run_id, WEIGHTS, live.weights)
            status = "KILLED" if live.weights is None else "FINISHED"
            client.set_terminated(run_id, status=status)


def _opened(root: Path, address: str) -> tuple[Any, str]:
    """The client and the experiment; another process may be making the store right now."""
    for _ in range(_LOCK_TRIES):
        try:
            with locked(root / "mlflow.db"):
                return open_experiment(address, dataset_name(root), root)
        except BusyError:
            threading.Event().wait(1.0)
    raise AuditError("the store is busy")


def _end_abandoned(client: Any, experiment: str, stage: str) -> None:
    """Trainings of this stage that were killed: only one at a time trains into its folder."""
    told = f"tags.`{LIVE}` = '{stage}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment], filter_string=told):
        client.set_terminated(run.info.run_id, status="KILLED")


def _log(client: Any, run_id: str, told: _Figures) -> None:
    from mlflow.entities import Metric  # noqa: PLC0415

    figures = [
        Metric(f"{LIVE_PREFIX}{name}", float(value), told.at, told.step)
        for name, value in told.values.items()
    ]
    client.log_batch(run_id, metrics=figures)
