"""A long training shows itself in MLflow, and the same run is completed by the sync."""

import time
from pathlib import Path
from typing import Any

import pytest

from veilset.adapters.audit_records import LIVE, LIVE_PREFIX
from veilset.adapters.mlflow_audit import check, sync
from veilset.adapters.mlflow_live import live_run
from veilset.training.saved import load_card

SOON = 0.01


def _client(root: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{root / 'mlflow.db'}")


def _runs(root: Path, stage: str) -> list[Any]:
    client = _client(root)
    experiment = client.get_experiment_by_name("toy").experiment_id
    return list(client.search_runs([experiment], filter_string=f"tags.`{LIVE}` = '{stage}'"))


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def _params(root: Path) -> Path:
    (root / "params.yaml").write_text("data: {name: toy}\n")
    return root


def _await(done: Any) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, "nothing appeared within a minute"
        time.sleep(0.05)


def test_figures_appear_while_it_runs(tmp_path: Path) -> None:
    root = _params(tmp_path)
    with live_run(root, "train@a-b-0", after=SOON, sampling=0.1) as live:
        live.log(10, loss=2.5)
        live.log(20, loss=1.5, images_per_second=100.0)
        _await(
            lambda: (root / "mlflow.db").exists() and _client(root).get_experiment_by_name("toy")
        )
        _await(lambda: _runs(root, "train@a-b-0") and _runs(root, "train@a-b-0")[0].data.metrics)
        (run,) = _runs(root, "train@a-b-0")
        assert run.info.status == "RUNNING"
        _await(lambda: any(
            name.startswith("system/") for name in _runs(root, "train@a-b-0")[0].data.metrics
        ))  # fmt: skip
        live.finish("abc")
    (run,) = _runs(root, "train@a-b-0")
    assert run.info.status == "FINISHED"
    history = _client(root).get_metric_history(run.info.run_id, f"{LIVE_PREFIX}loss")
    assert [(point.step, point.value) for point in history] == [(10, 2.5), (20, 1.5)]


def test_a_short_training_makes_no_run(tmp_path: Path) -> None:
    root = _params(tmp_path)
    for after in (3600.0, 0.0):
        started = time.monotonic()
        with live_run(root, "train@a-b-0", after=after) as live:
            live.log(1, loss=1.0)
        assert time.monotonic() - started < 5
    assert not (root / "mlflow.db").exists()


def test_a_training_that_stopped_or_was_killed_is_told(tmp_path: Path) -> None:
    root = _params(tmp_path)

    def stopped() -> None:
        with live_run(root, "train@a-b-0", after=SOON) as live:
            live.log(1, loss=1.0)
            time.sleep(0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    (run,) = _runs(root, "train@a-b-0")
    assert run.info.status == "KILLED"
    # One that was killed outright is left running in the store, until the next begins.
    client = _client(root)
    left = client.create_run(run.info.experiment_id, tags={LIVE: "train@a-b-0"}).info.run_id
    with live_run(root, "train@a-b-0", after=SOON) as live:
        live.log(1, loss=1.0)
        _await(lambda: len(_runs(root, "train@a-b-0")) == 3)
        live.finish("x")
    assert client.get_run(left).info.status == "KILLED"


def test_a_store_that_fails_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/x.db")
    with live_run(_params(tmp_path), "train@a-b-0", after=SOON) as live:
        live.log(1, loss=1.0)
        time.sleep(0.2)
    assert "the training goes on" in capsys.readouterr().out


def test_the_sync_completes_the_same_run(project: Path) -> None:
    stage = "train@noise-tiny-0"
    card = load_card(project / "data/models/noise-tiny-0")
    with live_run(project, stage, after=SOON) as live:
        live.log(1, loss=0.9)
        live.finish(card.weights_sha256)
        time.sleep(0.5)
    (shown,) = _runs(project, stage)
    sync(project)
    (run,) = _runs(project, stage)
    assert run.info.run_id == shown.info.run_id
    assert run.data.tags["veilset.complete"] == "true"
    assert run.data.metrics["final/validation_accuracy"] == 0.75
    assert run.data.metrics[f"{LIVE_PREFIX}loss"] == 0.9
    assert check(project) == ()
    assert not sync(project).created
