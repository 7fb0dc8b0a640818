"""The flows of drops with a real server, worker, DVC, MLflow and git: what comes by itself."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from drop_flow_cases import (
    SCRIPT,
    Service,
    bytes_below,
    copy_of,
    drop_project,
    environment,
    free_port,
    git,
    leave_digits,
    record_of,
    states,
    wait_until,
)
from small_project import SmallProject

from veilset.adapters.prefect_home import ask_this_machine_directly
from veilset.files import locked

pytestmark = [pytest.mark.xdist_group("drop_flow"), pytest.mark.timeout(1500)]

WAIT = 400.0  # seconds that a run may take on a busy machine


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("drop_flow")
    port = free_port()
    project = drop_project(folder / "project", port, ("plain",), notify="custom-webhook/owner")
    service = Service(project, port, folder / "log")
    service.start()
    yield service
    service.kill()


@pytest.fixture(scope="module")
def messages(service: Service) -> Iterator[list[str]]:
    """What the notification block sends."""
    found: list[str] = []

    class Owner(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *values: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Owner)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    block = f"http://127.0.0.1:{server.server_port}"
    code = (
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block\n"
        f"Block(name='owner', url='{block}', json_data={{'said': '{{{{subject}}}}|{{{{body}}}}'}})"
        ".save('owner')"
    )
    settings = environment(PREFECT_API_URL=service.api)
    ask_this_machine_directly(settings)
    subprocess.run([sys.executable, "-c", code], env=settings, check=True, timeout=100)
    yield found
    server.shutdown()


@pytest.fixture(scope="module")
def protected(service: Service, messages: list[str]) -> Service:
    """After a good drop arrived beside bad ones, and all was killed in the middle of its run."""
    place = service.project.root / "data/incoming"
    (place / "notes").mkdir()
    (place / "notes/a.txt").write_text("no image")
    (place / "notes.yaml").write_text("licence: x\nconsent: x\nby: Ann\nname: words\n")
    (place / "silent").mkdir()
    (place / "silent/a.txt").write_text("nobody says where it comes from")
    leave_digits(place, "ward", seed=3)
    root = service.project.root
    wait_until(lambda: states(root).get("ward") == "accepted", WAIT, service.said)
    service.kill()
    assert states(root)["ward"] == "accepted", "it was killed too late"
    service.start()
    # The worker finds at its start that a drop was not finished.
    wait_until(lambda: states(root).get("ward") == "protected", WAIT, service.said)
    wait_until(lambda: _ended(service), WAIT, service.said)
    return service


def _ended(service: Service) -> bool:
    runs = service.runs("drops")
    return not any(run["state_type"] in ("RUNNING", "PENDING") for run in runs)


def test_an_arrival_starts_a_run_that_protects_it(protected: Service) -> None:
    root = protected.project.root
    ward = record_of(root, "ward")
    assert (ward.state, ward.schemes, ward.counts["images"]) == ("protected", ("plain",), 140)
    assert (root / "data/protected/plain/ward/manifest.json").is_file()
    done = [run for run in protected.runs("drops") if run["state_type"] == "COMPLETED"]
    assert done and not any(run["auto_scheduled"] for run in done), "the event started it"
    # Attacked together with the others, and alone.
    row = protected.table()["ward"]
    assert "alone: " in row["verdicts"] and "not attacked" not in row["verdicts"]
    evidence = json.loads((root / "data/drift/ward/attacks/plain/results.json").read_text())
    assert [one["attack"] for one in evidence["results"]] == ["recognition"]
    assert ward.decisions[-1].reasons[0].startswith("plain alone: ")
    names = {run["name"] for run in protected.ask("task_runs")}
    assert {"arrivals", "check ward", "protect@plain-ward", "attack@plain", "attack ward alone",
            "gate", "commit", "push", "audit", "journal"} <= names  # fmt: skip


def test_a_run_whose_process_was_killed_is_marked_and_finished_by_the_next(
    protected: Service,
) -> None:
    runs = [run for run in protected.runs("drops") if run["start_time"]]
    assert [run["state_name"] for run in runs[:2]] == ["Crashed", "Completed"]
    root = protected.project.root
    assert [one.event for one in record_of(root, "ward").decisions] == ["accepted", "protected"]
    assert not list(root.rglob(".*.partial"))


def test_a_bad_drop_beside_it_blocks_nothing(protected: Service) -> None:
    root = protected.project.root
    left = {path.name for path in (root / "data/incoming").iterdir()}
    assert {"silent", ".reasons.json"} <= left and "maria" not in left
    reasons = json.loads((root / "data/incoming/.reasons.json").read_text())
    assert "no note" in reasons["silent"]
    told = "".join(
        artifact["data"] for artifact in protected.ask("artifacts") if artifact["key"] == "drops"
    )
    assert "not taken" in told and "ward" in told and "maria" not in told
    assert states(root)["words"] == "refused", "text alone is no drop"
    assert "maria" not in protected.log.read_text() and "silent" not in protected.log.read_text()


def test_the_owner_is_told_and_no_name_of_an_entry(protected: Service, messages: list[str]) -> None:
    told = "\n".join(messages)
    assert "words: refused (none of its images can be used" in told
    assert "not taken (It has no note" in told
    assert "maria" not in told and "silent" not in told


def test_it_is_committed_pushed_and_on_record(protected: Service) -> None:
    root = protected.project.root
    log = git(root, "log", "--format=%s").splitlines()
    assert "Protected: ward" in log
    assert git(root, "status", "--porcelain", "dvc.lock", "drops.yaml", "data") == ""
    lock = git(root, "show", "HEAD:dvc.lock")
    assert "protect@plain-ward" in lock
    private = {path.parent.name + path.name for path in (root / "remotes/private").rglob("*")}
    raw = git(root, "show", "HEAD:data/raw/ward.dvc").split("md5: ")[1].split()[0]
    assert raw in private
    assert not (root / "remotes/shared/files").is_dir()
    from veilset.adapters.mlflow_audit import check

    assert check(root) == ()


def test_a_scheduled_run_fires(protected: Service) -> None:
    for flow in ("drops", "train"):
        waiting = [run for run in protected.runs(flow) if run["auto_scheduled"]]
        assert len(waiting) >= 3, "the scheduler made no runs"
    first = next(run for run in protected.runs("drops") if run["state_type"] == "SCHEDULED")
    assert first["auto_scheduled"]
    protected.move(first, 1)

    def state() -> str:
        return next(r["state_type"] for r in protected.runs("drops") if r["id"] == first["id"])

    wait_until(lambda: state() == "COMPLETED", WAIT, protected.said)


def test_a_second_run_ends_cleanly_and_says_so(protected: Service) -> None:
    with locked(protected.project.root / "data/drop_run"):
        done = protected.once("--once")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "another run is at work on this project"


def test_the_server_has_its_automations(protected: Service) -> None:
    found = {one["name"].partition(": ")[2]: one for one in protected.ask("automations")}
    assert set(found) == {"an arrival", "runs without a heartbeat"}
    assert found["runs without a heartbeat"]["trigger"]["posture"] == "Proactive"


# -------------------------------------------------------------------------------- the long ones

KILLER = '''
"""Runs the flow once and kills its whole session at a point: stage or step, and when."""
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
root, step, when = sys.argv[2:]
from veilset import journal
from veilset.adapters import git_commit, prefect_drops, prefect_pipeline
import drop_runs

def die():
    os.killpg(0, signal.SIGKILL)

def at(module, name, fits, during):
    real = getattr(module, name)
    def wrapped(*values, **more):
        if not fits(*values):
            return real(*values, **more)
        if when == "before":
            die()
        if when == "during":
            during()
        made = real(*values, **more)
        die()
    setattr(module, name, wrapped)

def soon():
    threading.Timer(0.9, die).start()

if step == "commit":
    at(prefect_drops, "commit_out", lambda *v: "accepted" in v[2],
       lambda: at(git_commit, "_git", lambda *v: v[1] == "commit", die))
elif step == "journal":
    at(prefect_drops, "protected", lambda *v: True,
       lambda: setattr(journal, "write_text", lambda *v: die()))
else:
    at(prefect_pipeline, "reproduce", lambda *v: v[0] == step, soon)
drop_runs.drops(root=root)
'''
POINTS = [
    (step, when)
    for step in ("protect@visualmixer-ward", "attack@plain", "gate", "commit", "journal")
    for when in ("before", "during", "after")
]


@pytest.mark.slow
def test_killed_at_every_step_it_ends_as_if_nothing_had_happened(
    service: Service, tmp_path: Path
) -> None:
    whole = drop_project(tmp_path / "whole", free_port(), ("plain", "visualmixer"), push=False)
    killed = copy_of(whole, tmp_path / "killed")
    for one in (whole, killed):
        (one.root / "data/incoming").mkdir(exist_ok=True)
        leave_digits(one.root / "data/incoming", "ward", seed=3)
    script = tmp_path / "killer.py"
    script.write_text(KILLER)
    settings = environment(PREFECT_API_URL=service.api, PREFECT_HOME=str(tmp_path / "home"))
    ask_this_machine_directly(settings)
    for step, when in POINTS:
        words = [sys.executable, str(script), str(SCRIPT.parent), str(killed.root), step, when]
        with (tmp_path / "log").open("ab") as log:
            done = subprocess.run(
                words, env=settings, stdout=log, stderr=log, start_new_session=True, check=False,
                timeout=WAIT,
            )  # fmt: skip
        said = (tmp_path / "log").read_text()[-3000:]
        assert done.returncode == -9, f"{step} {when}: it was not killed\n{said}"
    for one in (whole, killed):
        by_hand = Service(one, service.port, tmp_path / "x").once("--once")
        assert by_hand.returncode == 0, by_hand.stdout + by_hand.stderr
        assert states(one.root) == {"ward": "protected"}
        last = "Protected: ward" if one is whole else "Drops: what an earlier run left"
        assert git(one.root, "log", "--format=%s").splitlines()[:2] == [
            last,
            "Drops: ward accepted",
        ]
        assert git(one.root, "status", "--porcelain", "dvc.lock", "drops.yaml", "data") == ""
    folders = ("data/protected", "data/provenance", "data/raw", "data/ingested")
    first = bytes_below(*(whole.root / name for name in folders))
    assert first == bytes_below(*(killed.root / name for name in folders))
    assert len([name for name in first if name.startswith("protected/visualmixer/ward")]) > 1
    assert not list(killed.root.rglob(".*.partial")) and not list(killed.root.rglob("*.tmp"))


@pytest.mark.slow
def test_a_drop_that_a_scheme_cannot_protect_is_held_and_stops_nothing(
    service: Service, tmp_path: Path
) -> None:
    schemes = ("plain", "pixel_block_mixing")
    project = drop_project(tmp_path / "project", free_port(), schemes, push=False)
    root = project.root
    project.change("params.yaml", check={"min_train_per_class": 1})
    project.commit()
    (root / "data/incoming").mkdir(exist_ok=True)
    lone = leave_digits(root / "data/incoming", "lone", seed=3)
    for picture in sorted((lone / "9").iterdir())[4:]:
        picture.unlink()
    flow = Service(project, service.port, tmp_path / "x")
    done = flow.once("--once")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "1 held"
    assert "class 9 has a single image" in done.stderr
    reason = "protect@pixel_block_mixing-lone: the scheme cannot protect it"
    assert record_of(root, "lone").decisions[-1].reasons[0].startswith(reason)
    assert "class 9" not in (root / "data/drops.jsonl").read_text()
    assert git(root, "log", "--format=%s").splitlines()[0] == "Drops: lone held"
    assert not list((root / "data/protected").glob("*/lone"))
    assert project.repro("protect", "attack") == [], "a run by hand goes through as well"
    # So many that each class has several in each role.
    leave_digits(root / "data/incoming", "ward", seed=5, each=60)
    done = flow.once("--once")
    assert done.stdout.splitlines()[-1] == "1 protected", done.stderr
    assert states(root) == {"lone": "held", "ward": "protected"}


@pytest.mark.slow
def test_the_server_dies_in_the_middle_and_comes_back(protected: Service) -> None:
    root = protected.project.root
    place = root / "data/incoming"
    leave_digits(place, "night", seed=5)
    wait_until(lambda: states(root).get("night") == "accepted", WAIT, protected.said)
    (server,) = protected.pids("prefect server start")
    subprocess.run(["kill", "-9", str(server)], check=True)
    wait_until(lambda: states(root).get("night") == "protected", WAIT, protected.said)
    assert [record for record in states(root) if record == "night"] == ["night"]
    wait_until(lambda: protected.pids("prefect server start"), 60, protected.said)


@pytest.mark.slow
def test_missed_runs_are_caught_up_once(protected: Service) -> None:
    wait_until(lambda: _ended(protected), WAIT, protected.said)
    missed = [run for run in protected.runs("drops") if run["state_type"] == "SCHEDULED"][:3]
    wait_until(lambda: protected.pids("--worker"), 60, protected.said)
    workers = [str(pid) for pid in protected.pids("--worker")]
    subprocess.run(["kill", "-STOP", *workers], check=True)
    for nights, run in enumerate(missed):
        protected.move(run, 86_400 * (3 - nights))
    protected.kill()
    protected.start()
    ids = {run["id"] for run in missed}

    def names() -> list[str]:
        return sorted(r["state_name"] for r in protected.runs("drops") if r["id"] in ids)

    wait_until(lambda: "Completed" in names(), WAIT, protected.said)
    time.sleep(5)
    assert names() == ["Completed", "Missed", "Missed"]


@pytest.mark.slow
def test_a_run_that_gives_no_sign_of_life_is_marked_by_the_server(protected: Service) -> None:
    root = protected.project.root
    assert protected.process is not None
    leave_digits(root / "data/incoming", "frozen", seed=11)
    wait_until(lambda: states(root).get("frozen") == "accepted", WAIT, protected.said)
    running = next(run for run in protected.runs("drops") if run["state_type"] == "RUNNING")
    # As on a machine that hangs: nobody is there to say that the run has ended.
    alive = {protected.process.pid, *protected.pids("prefect server start")}
    for pid in set(protected.pids("")) - alive:
        os.kill(pid, signal.SIGSTOP)

    def now() -> dict[str, Any]:
        return next(run for run in protected.runs("drops") if run["id"] == running["id"])

    wait_until(lambda: now()["state_name"] == "Crashed", WAIT, protected.said)
    assert "no sign of life" in now()["state"]["message"]
    assert states(root)["frozen"] == "accepted"
    protected.kill()
    protected.start()
    wait_until(lambda: states(root).get("frozen") == "protected", WAIT, protected.said)


@pytest.mark.slow
def test_a_stop_ends_within_a_minute_and_the_next_start_goes_on(protected: Service) -> None:
    root = protected.project.root
    leave_digits(root / "data/incoming", "stopped", seed=9)
    wait_until(lambda: states(root).get("stopped") == "accepted", WAIT, protected.said)
    begun = time.monotonic()
    protected.stop()
    assert time.monotonic() - begun < 90
    assert states(root)["stopped"] == "accepted"
    protected.start()
    wait_until(lambda: states(root).get("stopped") == "protected", WAIT, protected.said)


@pytest.mark.slow
def test_training_follows_its_own_policy(protected: Service) -> None:
    root = protected.project.root
    done = protected.once("--train")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "trained, because nothing was trained yet"
    assert (root / "reports/index.html").is_file()
    assert "Training" in git(root, "log", "--format=%s")
    done = protected.once("--train")
    assert done.stdout.splitlines()[-1] == "no training is due: 0 drops are in none yet"


def test_a_taken_port_is_one_sentence(protected: Service, tmp_path: Path) -> None:
    project = SmallProject(tmp_path / "p")
    project.root.mkdir()
    for name in ("params.yaml", "drops.yaml"):
        (project.root / name).write_bytes((protected.project.root / name).read_bytes())
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(project.root)], env=environment(), text=True,
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"Port {protected.port} of this machine is taken" in done.stderr
