"""A DVC project of three short stages, and servers that can be killed."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from veilset.quiet import quiet

STAGE = """\
import json, pathlib, sys, time
name, text, seconds = sys.argv[1:]
print(f"writing {name}", flush=True)
time.sleep(float(seconds))
path = pathlib.Path(name)
path.parent.mkdir(exist_ok=True)
verdicts = {"schema": 1, "schemes": {}}
path.write_text(json.dumps(verdicts) if "verdicts" in name else text)
"""
DVC_YAML = """\
stages:
  ingest:
    foreach:
      - first
    do:
      cmd: python stage.py data/${item} ${word} 0
      params:
        - word
      outs:
        - data/${item}
  gate:
    cmd: python stage.py reports/verdicts.json x ${seconds}
    deps:
      - data/first
    outs:
      - reports/verdicts.json
  report:
    cmd: python stage.py reports/index.html page 0
    deps:
      - reports/verdicts.json
    outs:
      - reports/index.html
"""


def environment(**more: str) -> dict[str, str]:
    """This environment without anybody's servers, with the interpreter's folder on the path."""
    found = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    quiet(found)
    found["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"
    return {**found, **more}


def run(root: Path, *command: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs `python -m` with these words in the project."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=root, env=environment(), capture_output=True,
        text=True, check=False, timeout=200,
    )  # fmt: skip
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


def make_project(root: Path, seconds: float = 0) -> Path:
    """A project whose stages have not run yet."""
    root.mkdir()
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text(f"word: fine\nseconds: {seconds}\ndata:\n  name: toy\n")
    (root / ".gitignore").write_text("/data/\n/reports/\n/mlflow.db*\n/mlartifacts/\n/.prefect/\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    run(root, "dvc", "init", "-q")
    return root


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """A server of a tool, in a group of processes of its own, so that all of it can be killed."""

    def __init__(self, command: list[str], health: str, log: Path, **more: str) -> None:
        self._command, self._health, self._log, self._more = command, health, log, more
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._command], env=environment(**self._more), stdout=log,
                stderr=log, start_new_session=True, cwd=self._log.parent,
            )  # fmt: skip
        latest = time.monotonic() + 150
        while True:
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < latest, f"no server: {self._log.read_text()[-2000:]}"
            try:
                with urllib.request.urlopen(self._health, timeout=2):  # noqa: S310 - our own
                    return
            except OSError:
                time.sleep(0.1)

    def kill(self) -> None:
        """`kill -9` of all of it."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
