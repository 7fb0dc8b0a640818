"""A project with real DVC stages, made and run once; tests that spoil it work on a copy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from veilset.quiet import quiet

quiet()

DVC_YAML = """\
stages:
  ingest:
    foreach:
      - first
    do:
      cmd: python toy_stage.py ingest ${item}
      deps:
        - keys/ids.fingerprint
      params:
        - data.name
      outs:
        - data/ingested/${item}
  check:
    foreach:
      - first
    do:
      cmd: python toy_stage.py check ${item}
      deps:
        - data/ingested/${item}
      outs:
        - data/checks/${item}
  protect:
    matrix:
      scheme:
        - plain
        - noise
      drop:
        - first
    cmd: python toy_stage.py protect ${item.scheme} ${item.drop}
    deps:
      - data/ingested/${item.drop}
      - keys/protection.fingerprint
    params:
      - scheme.${item.scheme}
    outs:
      - data/protected/${item.scheme}/${item.drop}
  attack:
    matrix:
      scheme:
        - plain
        - noise
    cmd: python toy_stage.py attack ${item.scheme}
    deps:
      - data/protected/${item.scheme}
      - data/ingested
    outs:
      - data/attacks/${item.scheme}
  train:
    matrix:
      scheme:
        - noise
      model:
        - tiny
      seed:
        - 0
    cmd: python toy_stage.py train ${item.scheme} ${item.model} ${item.seed}
    deps:
      - data/protected/${item.scheme}
    outs:
      - data/models/${item.scheme}-${item.model}-${item.seed}
  evaluate:
    cmd: python toy_stage.py evaluate
    deps:
      - data/ingested
      - data/models
    outs:
      - reports/evaluation.json:
          cache: false
  gate:
    cmd: python toy_stage.py gate
    deps:
      - data/attacks
    outs:
      - reports/verdicts.json
  report:
    cmd: python toy_stage.py report
    deps:
      - reports/verdicts.json
    outs:
      - reports/index.html
"""
PARAMS = (
    "data:\n  name: toy\nscheme:\n  plain: {}\n  noise:\n    strength: 3\n    inner: {a: [1, 2]}\n"
)


def run(root: Path, *command: str) -> None:
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def git(root: Path, *arguments: str) -> None:
    run(root, "git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "project"
    (root / "keys").mkdir(parents=True)
    (root / "keys/protection.fingerprint").write_text("0123456789abcdef\n")
    (root / "keys/ids.fingerprint").write_text("fedcba9876543210\n")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text(PARAMS)
    (root / ".gitignore").write_text("/data/\n/reports/\n/mlflow.db*\n/mlartifacts/\n")
    shutil.copy(Path(__file__).with_name("toy_stage.py"), root)
    git(root, "init", "-q")
    run(root, sys.executable, "-m", "dvc", "init", "-q")
    run(root, sys.executable, "-m", "dvc", "config", "core.check_update", "false")
    run(root, sys.executable, "-m", "dvc", "repro")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "toy")
    return root


@pytest.fixture
def project(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "project", symlinks=True))
