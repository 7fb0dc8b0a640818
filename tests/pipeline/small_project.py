"""A small copy of this very project: its dvc.yaml and code, the embedded digits, short work."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]

# Hundreds of steps less than the defaults: these tests are about the pipeline, not the figures.
SHORT: dict[str, Any] = {
    "schemes": ["plain", "pixel_block_mixing", "visualmixer"],
    "models": ["small_cnn"],
    "model": {"small_cnn": {}},
    "train": {"epochs": 1},
    "attacks": ["linkage", "recognition", "learned_inverse"],
    "attack": {"linkage": {"targets": 60}, "learned_inverse": {"targets": 60, "steps": 4}},
    "ingest": {"size": 16, "channels": 1},
}


@dataclass(frozen=True)
class SmallProject:
    """A project folder in which commands are run as a user runs them."""

    root: Path

    def run(self, *command: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        result = subprocess.run(
            [sys.executable, "-m", *command], cwd=self.root, env=environment, text=True,
            capture_output=True, check=False, timeout=600,
        )  # fmt: skip
        if ok:
            assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result

    def repro(self, *arguments: str, ok: bool = True) -> list[str]:
        """Runs `dvc repro`; returns the stages that ran, in order."""
        result = self.run("dvc", "repro", *arguments, ok=ok)
        lines = (result.stdout + result.stderr).splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage '")]

    def veilset(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("veilset.cli", *arguments, ok=ok)

    def commit(self) -> None:
        """Commits everything that git does not ignore."""
        git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0")
        for command in (("add", "-A"), ("commit", "-q", "-m", "A change")):
            subprocess.run([*git, *command], cwd=self.root, check=True)

    def change(self, file: str, **values: Any) -> None:
        """Changes top-level blocks of a YAML file."""
        path = self.root / file
        path.write_text(yaml.safe_dump({**self.read(file), **values}), encoding="utf-8")

    def read(self, file: str) -> dict[str, Any]:
        loaded = yaml.safe_load((self.root / file).read_text(encoding="utf-8"))
        assert isinstance(loaded, dict)
        return loaded


def copy_project(root: Path) -> SmallProject:
    """Copies what a fresh clone has and the pipeline needs, and makes its work short."""
    for name in ("dvc.yaml", "drops.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(REPOSITORY / name, root / name)
    (root / "keys").mkdir()
    for path in (REPOSITORY / "keys").glob("*.fingerprint"):
        shutil.copy(path, root / "keys")
    shutil.copytree(REPOSITORY / "data/raw/digits", root / "data/raw/digits")
    (root / "data/attacks_model").mkdir()
    shutil.copy(REPOSITORY / "data/attacks_model/.gitkeep", root / "data/attacks_model")
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "src", root / "src", ignore=skip)
    project = SmallProject(root)
    project.change("params.yaml", **SHORT)
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "gc.auto=0")
    subprocess.run([*git, "init", "-q"], cwd=root, check=True)
    project.run("dvc", "init", "-q")
    shutil.copy(REPOSITORY / ".dvc/config", root / ".dvc/config")
    subprocess.run([*git, "add", "-A"], cwd=root, check=True)
    subprocess.run([*git, "commit", "-q", "-m", "A small project"], cwd=root, check=True)
    return project
