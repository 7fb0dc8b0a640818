"""A small project with a drop place, its server and worker, and what they say of themselves."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from small_project import REPOSITORY, SmallProject, copy_project

from veilset.adapters.prefect_home import deployment_name
from veilset.drops.record import DropRecord, read_drops
from veilset.quiet import quiet

SCRIPT = REPOSITORY / "flows" / "drops.py"
NOTE = "licence: CC BY\nconsent: form 3\nby: Ann Owner\n"
POLICY = {"settle_seconds": 0.2, "poll_seconds": 0.5, "io_retries": 4, "retry_seconds": 3}
DIGITS = load_digits()
PIXELS = (DIGITS.images * 255 / 16).astype(np.uint8)
# An opener of its own: the one that `urlopen` makes keeps the proxies of whoever was first.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def drop_project(root: Path, port: int, schemes: tuple[str, ...], **policy: Any) -> SmallProject:
    """A committed project in which nothing has run yet."""
    root.mkdir(parents=True)
    project = copy_project(root)
    project.change(
        "params.yaml", schemes=list(schemes), attacks=["recognition"], attack={},
        ingest={"size": 8, "channels": 1}, drop_policy={**POLICY, "port": port, **policy},
    )  # fmt: skip
    project.commit()
    return project


def leave_digits(place: Path, name: str, seed: int, each: int = 14) -> Path:
    """A folder of digits with little noise and, last, its note."""
    random = np.random.default_rng(seed)
    rows = random.permutation(len(PIXELS))
    for digit in range(10):
        for row in rows[DIGITS.target[rows] == digit][:each]:
            noise = random.integers(-9, 10, (8, 8))
            pixels = np.clip(PIXELS[row].astype(int) + noise, 0, 255).astype(np.uint8)
            path = place / "maria" / str(digit) / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (place / "maria.yaml").write_text(f"{NOTE}name: {name}\n")
    return place / "maria"


def states(root: Path) -> dict[str, str]:
    return {record.name: record.state for record in read_drops(root)}


def record_of(root: Path, name: str) -> DropRecord:
    return next(record for record in read_drops(root) if record.name == name)


def bytes_below(*folders: Path) -> dict[str, bytes]:
    """All files below folders, by folder and path."""
    return {
        f"{folder.name}/{path.relative_to(folder)}": path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout


def environment(**more: str) -> dict[str, str]:
    """This environment without anybody's servers, and with a proxy that nobody answers."""
    found = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    quiet(found)
    path = f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"
    # Nothing here may ask it: all servers are on this machine.
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    return {**found, **proxies, "PATH": path, "OMP_NUM_THREADS": "1", **more}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(true: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Waits for something; where it does not come, `what` says what was seen instead."""
    latest = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < latest, f"not within {seconds} s: {what()}"
        time.sleep(0.3)


@dataclass
class Service:
    """`python flows/drops.py` as `make serve` runs it, in a session of its own."""

    project: SmallProject
    port: int
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    heard: str = ""

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        """Starts it, and waits until the worker has deployed both flows."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(self.project.root)], env=environment(),
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_until(self._deployed, 180, self.said)

    def stop(self) -> None:
        """SIGTERM, as systemd sends it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=150)
        self.process = None

    def kill(self) -> None:
        """`kill -9` of all of it, as a power cut does."""
        if self.process is not None:
            for pid in (*self.pids(""), self.process.pid):
                _kill(pid)
            self.process.wait(timeout=30)
        self.process = None

    def pids(self, words: str) -> list[int]:
        """Processes of this session whose command holds these words."""
        assert self.process is not None
        listed = subprocess.run(
            ["ps", "-ww", "-eo", "pid=,sid=,args="], capture_output=True, text=True, check=True
        ).stdout  # fmt: skip
        rows = [line.split(None, 2) for line in listed.splitlines()]
        mine = str(self.process.pid)
        return [int(row[0]) for row in rows if row[1] == mine and words in row[2]]

    def said(self) -> str:
        """What it wrote, its processes, and what came back when it was last asked in vain."""
        log = self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""
        return f"{log}\nprocesses {self.pids('')}; {self.heard}"

    def ask(self, what: str, **asked: Any) -> list[dict[str, Any]]:
        """Records of a kind, as the server tells them."""
        return self.post(f"{what}/filter", asked)

    def post(self, what: str, body: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.api}/{what}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with DIRECT.open(request, timeout=30) as reply:
            return json.loads(reply.read())

    def deployment(self, flow: str) -> str:
        name = deployment_name(self.project.root)
        flows = {one["id"]: one["name"] for one in self.ask("flows")}
        found = self.ask("deployments")
        return next(
            str(one["id"]) for one in found if one["name"] == name and flows[one["flow_id"]] == flow
        )

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """Runs of a deployment, earliest first."""
        asked = {"deployment_id": {"any_": [self.deployment(flow)]}}
        return self.ask("flow_runs", flow_runs=asked, sort="EXPECTED_START_TIME_ASC", limit=100)

    def move(self, run: Mapping[str, Any], seconds_ago: float) -> None:
        """Has a scheduled run be due so many seconds ago."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds_ago))
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": when}}
        self.post(f"flow_runs/{run['id']}/set_state", {"state": state, "force": True})

    def table(self) -> dict[str, dict[str, Any]]:
        """The latest table of drops, by drop."""
        found = self.ask("artifacts", sort="CREATED_DESC")
        rows = next(json.loads(one["data"]) for one in found if one["key"] == "drops")
        return {row["drop"]: row for row in rows}

    def once(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """A run by hand that tells this server."""
        return subprocess.run(
            [sys.executable, str(SCRIPT), str(self.project.root), *words],
            env=environment(PREFECT_API_URL=self.api),
            capture_output=True, text=True, check=False, timeout=500,
        )  # fmt: skip

    def _deployed(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.said()
        try:
            return bool(self.runs("drops") and self.runs("train"))
        except (OSError, StopIteration) as error:
            self.heard = repr(error)
            return False


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def copy_of(project: SmallProject, root: Path) -> SmallProject:
    """A copy of a project, without run records."""
    skip = shutil.ignore_patterns(".prefect", ".*.lock")
    return SmallProject(Path(shutil.copytree(project.root, root, symlinks=True, ignore=skip)))
