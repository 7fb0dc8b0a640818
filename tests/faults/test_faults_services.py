"""Servers that go away and come back: DVC's remote, MLflow's store, Prefect's API."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_cases import files_of
from toy_project import Server, environment, free_port, make_project, run

from veilset.adapters import mlflow_audit
from veilset.adapters.dvc import reproduce
from veilset.adapters.mlflow_audit import check, sync
from veilset.errors import AuditError

FLOW = Path(__file__).parents[2] / "flows" / "pipeline.py"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("services") / "project")
    run(root, "dvc", "repro", "-q")
    return root


def test_an_unreachable_remote_stops_no_stage_and_loses_nothing(
    project: Path, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    away.write_text("the place where the remote is mounted, when it is")
    run(project, "dvc", "remote", "add", "-q", "-f", "-d", "away", str(away / "remote"))
    # What the pipeline does needs no remote.
    (project / "data/first").unlink()
    assert reproduce("ingest@first", project, lambda _: None) == "restored"
    before = files_of(project / ".dvc/cache")
    refused = run(project, "dvc", "push", ok=False)
    assert refused.returncode != 0
    assert "away" in refused.stdout + refused.stderr
    assert files_of(project / ".dvc/cache") == before
    away.unlink()
    run(project, "dvc", "push", "-q")
    pushed = files_of(away / "remote/files")
    assert len(pushed) == 3
    assert set(pushed.values()) <= set(before.values()), "what was pushed is not what is cached"


# ------------------------------------------------------------------------------------ MLflow


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Server, str]]:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/audit.db",
               "--artifacts-destination", str(tmp_path / "artifacts"), "--port", str(port),
               "--workers", "1"]  # fmt: skip
    server = Server(command, f"{address}/health", tmp_path / "mlflow.log")
    server.start()
    yield server, address
    server.kill()


def test_a_store_that_is_away_is_one_sentence(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By default MLflow tries again for minutes.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for act in (sync, check):
        with pytest.raises(AuditError, match=r"cannot be used.*sync again") as caught:
            act(project, f"http://127.0.0.1:{free_port()}")
        assert "\n" not in str(caught.value)
    assert len(sync(project).created) == 3
    assert check(project) == ()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_store_that_dies_during_the_sync_is_completed_by_the_next(
    project: Path, store: tuple[Server, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, address = store
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    real, seen = mlflow_audit._Store._log_numbers, []

    def dying(self: Any, run_id: str, record: Any) -> None:
        seen.append(record.stage.name)
        if len(seen) == 2:
            server.kill()
        real(self, run_id, record)

    monkeypatch.setattr(mlflow_audit._Store, "_log_numbers", dying)
    with pytest.raises(AuditError, match=f"{address}.*cannot be") as caught:
        sync(project, address)
    assert "\n" not in str(caught.value)
    with pytest.raises(AuditError, match="cannot be"):
        check(project, address)
    monkeypatch.setattr(mlflow_audit._Store, "_log_numbers", real)
    server.start()
    cut = {item.stage: item.words for item in check(project, address)}
    assert cut[seen[1]] == "was cut off while it was recorded"
    report = sync(project, address)
    assert report.unchanged == (seen[0],)
    assert report.rewritten == (seen[1],)
    assert len(report.created) == 1
    assert check(project, address) == ()
    assert len(sync(project, address).unchanged) == 3


# ----------------------------------------------------------------------------------- Prefect


def test_a_prefect_server_that_is_away_is_one_sentence(tmp_path: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}/api"
    settings = environment(PREFECT_API_URL=away, PREFECT_HOME=str(tmp_path / "home"))
    settings["PREFECT_CLIENT_MAX_RETRIES"] = "0"
    done = subprocess.run(
        [sys.executable, str(FLOW), str(tmp_path)], env=settings, capture_output=True, text=True,
        check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    (said,) = [one for one in done.stderr.splitlines() if one.startswith("veilset: ")]
    assert "Prefect's server cannot be reached" in said
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_prefects_server_dies_during_the_flow_and_a_rerun_completes_it(tmp_path: Path) -> None:
    root = make_project(tmp_path / "project", seconds=6)
    port = free_port()
    home = {"PREFECT_HOME": str(tmp_path / "home")}
    words = ["prefect", "server", "start", "--port", str(port)]
    health = f"http://127.0.0.1:{port}/api/health"
    server = Server(words, health, tmp_path / "prefect.log", **home)
    settings = environment(PREFECT_API_URL=f"http://127.0.0.1:{port}/api", **home)
    settings["PREFECT_CLIENT_MAX_RETRIES"] = "1"  # by default it tries again for a minute
    command = [sys.executable, str(FLOW), str(root)]
    server.start()
    try:
        with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True) as flow:  # fmt: skip
            latest = time.monotonic() + 200
            while not (root / "data/first").exists():
                assert flow.poll() is None and time.monotonic() < latest
                time.sleep(0.1)
            server.kill()  # while the next stage runs
            said, _ = flow.communicate(timeout=600)
        assert flow.returncode == 1, said
        assert said.count("veilset: Prefect's server cannot be reached") == 1, said
        assert (root / "data/first").read_text() == "fine"
        server.start()
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False,
                              timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        server.kill()
    assert (root / "reports/index.html").read_text() == "page"
    assert check(root) == ()
