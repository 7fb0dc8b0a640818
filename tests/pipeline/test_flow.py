"""The flow with a real Prefect server, real DVC and a real audit store."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from veilset.quiet import quiet

quiet()

# One worker for all: the flow is run once for them.
pytestmark = pytest.mark.xdist_group("flow")

STAGE = """\
import json, pathlib, sys
name, text = sys.argv[1:]
if text == "fail":
    print("half way", flush=True)
    sys.exit("veilset: The drop is empty: add images.")
print(f"wrote {name}", flush=True)
path = pathlib.Path(name)
path.parent.mkdir(exist_ok=True)
judged = {"verdict": "fail", "words": "Linkage."}
verdicts = {"schema": 1, "schemes": {"noise": {"templates": {"public_release": judged}}}}
path.write_text(json.dumps(verdicts) if "verdicts" in name else text)
"""
DVC_YAML = """\
stages:
  report:
    cmd: python stage.py reports/index.html page
    deps:
      - reports/verdicts.json
    outs:
      - reports/index.html
  gate:
    cmd: python stage.py reports/verdicts.json ${word}
    deps:
      - data/first
    params:
      - word
    outs:
      - reports/verdicts.json
  ingest:
    foreach:
      - first
    do:
      cmd: python stage.py data/${item} x
      outs:
        - data/${item}
"""


def run(root: Path, *command: str) -> None:
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flow") / "project"
    root.mkdir()
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text("word: fine\ndata:\n  name: toy\n")
    (root / ".gitignore").write_text("/data/\n/reports/\n")
    run(root, "git", "init", "-q")
    run(root, sys.executable, "-m", "dvc", "init", "-q")
    run(root, sys.executable, "-m", "dvc", "config", "core.check_update", "false")
    return root


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module")
def done(original: Path, server: None) -> tuple[Any, Any]:
    """The final state and the result of a first run."""
    from veilset.adapters.prefect_pipeline import pipeline

    state = pipeline(root=str(original), return_state=True)
    return state, state.result()


def ask(what: str) -> list[dict[str, Any]]:
    """All records of a kind, as the server tells them."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return list(client._client.post(f"/{what}/filter", json={}).json())


def test_every_stage_runs_once_after_those_it_waits_for(original: Path, done: Any) -> None:
    state, result = done
    assert state.is_completed()
    assert list(result.outcomes.items()) == [
        ("ingest@first", "ran"), ("gate", "ran"), ("report", "ran"),
    ]  # fmt: skip
    assert (original / "reports/index.html").read_text() == "page"
    assert set(result.audit.created) == {"ingest@first", "gate", "report"}
    assert (original / "mlflow.db").is_file()


def test_the_tasks_are_the_stages_and_cache_nothing(done: Any) -> None:
    from prefect.cache_policies import NO_CACHE

    from veilset.adapters.prefect_pipeline import run_stage

    runs = {run["name"]: run["state_type"] for run in ask("task_runs")}
    assert {runs[name] for name in ("ingest@first", "gate", "report")} == {"COMPLETED"}
    assert run_stage.cache_policy is NO_CACHE
    assert run_stage.retries == 0


def test_the_artifacts_tell_verdicts_and_report(original: Path, done: Any) -> None:
    found = {artifact["key"]: artifact["data"] for artifact in ask("artifacts")}
    (row,) = json.loads(found["verdicts"])
    assert row == {"scheme": "noise", "for": "public_release", "verdict": "fail",
                   "words": "Linkage."}  # fmt: skip
    assert (original / "reports/index.html").as_uri() in found["report"]
    assert [row["outcome"] for row in json.loads(found["stages"])] == ["ran", "ran", "ran"]


def test_a_second_run_does_nothing(original: Path, done: Any) -> None:
    from veilset.adapters.prefect_pipeline import pipeline

    result = pipeline(root=str(original))
    assert set(result.outcomes.values()) == {"unchanged"}
    assert set(result.audit.unchanged) == {"ingest@first", "gate", "report"}


def test_a_failing_stage_fails_the_flow_with_its_sentence(
    original: Path, done: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from veilset.adapters.dvc import StageError
    from veilset.adapters.prefect_pipeline import pipeline

    root = Path(shutil.copytree(original, tmp_path / "p", symlinks=True))
    (root / "params.yaml").write_text("word: fail\ndata:\n  name: toy\n")
    with caplog.at_level("INFO"):
        state = pipeline(root=str(root), return_state=True)
    assert state.is_failed()
    with pytest.raises(StageError, match=r"^gate: The drop is empty: add images\.$"):
        state.result()
    lines = [record.getMessage() for record in caplog.records if "task_runs" in record.name]
    assert "half way" in lines, "the task's log is the stage's own output"
    assert not any("wrote reports/index.html" in line for line in lines)


def test_only_io_errors_are_tried_again() -> None:
    from veilset.adapters.prefect_pipeline import is_io_error
    from veilset.errors import BusyError, CheckError, DiskFullError

    class State:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def result(self) -> None:
            raise self.error

    tried = {
        type(e): is_io_error(None, None, State(e))
        for e in (
            BusyError("x"),
            OSError("x"),
            DiskFullError("x"),
            CheckError("x"),
            ValueError("x"),
        )
    }
    assert tried == {BusyError: True, OSError: True, DiskFullError: False, CheckError: False,
                     ValueError: False}  # fmt: skip


@pytest.mark.slow
def test_the_script_runs_without_a_server_started_by_hand(original: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(original, tmp_path / "p", symlinks=True))
    script = Path(__file__).parents[2] / "flows" / "pipeline.py"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")}
    finished = subprocess.run(
        [sys.executable, str(script), str(root)], env=environment, capture_output=True, text=True,
        check=False, timeout=280,
    )  # fmt: skip
    text = finished.stdout + finished.stderr
    assert finished.returncode == 0, text
    assert "Completed" in text
    assert (root / ".prefect").is_dir()
    status = subprocess.run(["git", "status", "--porcelain", ".prefect"], cwd=root,
                            capture_output=True, text=True, check=True)  # fmt: skip
    assert status.stdout == ""
