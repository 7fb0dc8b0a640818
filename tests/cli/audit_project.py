"""A small project that audits are tried on: real DVC and git, real sets, protected for real.

Its results are made in this process and recorded by `dvc commit`, which saves starting Python for
each stage. Figures of attacks and models are made up, since audits only read them.
"""

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from veilset.data.manifest import Manifest
from veilset.data.shards import ImageSet, write_set
from veilset.drops.record import DropEvent, enter
from veilset.files import write_json
from veilset.keys import new_key, project_key
from veilset.release.history import RELEASES, ReleaseEvent, enter_release
from veilset.release.statement import Waiver
from veilset.schemes.fitted import Fitted, save_fitted
from veilset.schemes.protect import protect_set
from veilset.schemes.registry import make_scheme

SHAPE = (16, 16, 1)
ROWS = {"train": 12, "test": 6}

DVC_YAML = """\
stages:
  ingest:
    foreach: [first]
    do:
      cmd: "false"
      deps: [keys/ids.fingerprint]
      params: [data.name]
      outs: ["data/ingested/${item}"]
  check:
    foreach: [first]
    do:
      cmd: "false"
      deps: ["data/ingested/${item}"]
      outs: ["data/checks/${item}"]
  fit:
    matrix: {scheme: [mixer]}
    cmd: "false"
    params: ["scheme.${item.scheme}", drops.yaml: [fit_drops]]
    outs: ["data/fitted/${item.scheme}"]
  protect:
    matrix: {scheme: [mixer], drop: [first]}
    cmd: "false"
    deps:
      - data/fitted/${item.scheme}
      - data/ingested/${item.drop}
      - keys/protection.fingerprint
      - src/veilset/schemes
    params: ["scheme.${item.scheme}"]
    outs: ["data/protected/${item.scheme}/${item.drop}"]
  attack:
    matrix: {scheme: [mixer]}
    cmd: "false"
    deps: ["data/protected/${item.scheme}"]
    outs: ["data/attacks/${item.scheme}"]
  train:
    matrix: {scheme: [mixer], model: [tiny], seed: [0]}
    cmd: "false"
    deps: ["data/protected/${item.scheme}"]
    outs: ["data/models/${item.scheme}-${item.model}-${item.seed}"]
  evaluate:
    cmd: "false"
    deps: [data/models]
    outs: [reports/evaluation.json: {cache: false}]
  gate:
    cmd: "false"
    deps: [data/attacks]
    params: [gate]
    outs: [reports/verdicts.json: {cache: false}, reports/cards: {cache: false}]
"""
DROPS_YAML = """\
names: [first]
fit_drops: [first]
drops:
  first: {path: data/raw/first, source: folder}
"""


@dataclass(frozen=True)
class AuditProject:
    """A project folder whose versions are made by `make_version`."""

    root: Path

    def git(self, *words: str, at: str = "", by: str = "Ada Byron") -> str:
        environment = {**os.environ, "GIT_AUTHOR_NAME": by, "GIT_AUTHOR_EMAIL": "a@example.org"}
        environment |= {"GIT_COMMITTER_NAME": by, "GIT_COMMITTER_EMAIL": "a@example.org"}
        environment |= {"GIT_AUTHOR_DATE": at, "GIT_COMMITTER_DATE": at} if at else {}
        done = subprocess.run(
            ["git", "-c", "gc.auto=0", *words], cwd=self.root, env=environment, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def dvc(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *words], cwd=self.root, text=True, capture_output=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def commit(self, at: str, by: str = "Ada Byron") -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "A version", at=at, by=by)
        return self.git("rev-parse", "HEAD")

    @property
    def lock(self) -> dict[str, Any]:
        loaded = yaml.safe_load((self.root / "dvc.lock").read_text(encoding="utf-8"))
        assert isinstance(loaded, dict)
        return dict(loaded["stages"])

    def digest(self, stage: str) -> str:
        return str(self.lock[stage]["outs"][0]["md5"])

    def manifest(self) -> Manifest:
        return Manifest.load(self.root / "data/protected/mixer/first")


def make_project(root: Path) -> AuditProject:
    """A project with keys of its own, drop record, releases, and two committed versions."""
    project = AuditProject(root)
    for kind in ("protection", "ids"):
        new_key(kind, root)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "drops.yaml").write_text(DROPS_YAML)
    (root / "requirements.lock").write_text("numpy==2.4.6 \\\n    --hash=x\ntorch==2.15.0\n")
    ignored = "*.key\n/data/*/\n/reports/index.html\n/mlflow.db*\n/mlartifacts/\n.*.lock\n"
    (root / ".gitignore").write_text(ignored)
    (root / "src/veilset/schemes").mkdir(parents=True)
    (root / "src/veilset/schemes/mixing.py").write_text("CODE = 1\n")
    project.git("init", "-q")
    project.dvc("init", "-q")
    added = DropEvent(
        event="added", drop="first", at=datetime(2026, 1, 5, tzinfo=UTC), by="Grace Hopper",
        digest="0" * 64, licence="CC BY 4.0", consent="Form 7, signed", path="data/raw/first",
    )  # fmt: skip
    approved = DropEvent(
        event="approved", drop="first", at=datetime(2026, 1, 6, tzinfo=UTC), by="Mary Somerville",
        reasons=("the shift in brightness is known",),
    )  # fmt: skip
    enter(root, added, approved)
    make_version(project, width=4)
    project.commit("2026-02-01T10:00:00+00:00")
    make_version(project, width=8)
    made = project.commit("2026-03-01T10:00:00+00:00", by="Emmy Noether")
    enter_events(project, made)
    project.commit("2026-03-02T10:00:00+00:00")
    return project


def make_version(project: AuditProject, width: int) -> None:
    """Writes what the stages write under a width of the scheme's blocks, and records it."""
    root = project.root
    block = {"kind": "pixel_block_mixing", "block_height": 8, "block_width": width, "n_donors": 3}
    params = {"data": {"name": "toy"}, "schemes": ["mixer"], "scheme": {"mixer": block},
              "models": ["tiny"], "model": {"tiny": {}}, "gate": {"limit": 0.25}}  # fmt: skip
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    generator = np.random.default_rng(7)
    parts = {}
    for split, rows in ROWS.items():
        images = generator.integers(0, 256, (rows, *SHAPE), dtype=np.uint8)
        ids = generator.integers(0, 256, (rows, 16), dtype=np.uint8)
        parts[split] = (ids, np.arange(rows) % 2, images, {})
    write_set(root / "data/ingested/first", kind="ingested", dataset="toy",
              classes=("cat", "dog"), parts=parts)  # fmt: skip
    put(root / "data/checks/first/verdict.json",
        {"critical_failed": [], "warnings": ["class_imbalance"]})  # fmt: skip
    values = {name: value for name, value in block.items() if name != "kind"}
    scheme = make_scheme("pixel_block_mixing", values, "mixer")
    learnt = Fitted(scheme.name, scheme.version, scheme.params.canonical())
    save_fitted(root / "data/fitted/mixer", learnt)
    protect_set(
        ImageSet.open(root / "data/ingested/first"), scheme, project_key("protection", root),
        root / "data/protected/mixer/first", None, dataset="toy",
    )  # fmt: skip
    put(root / "data/attacks/mixer/results.json", {"scheme": "mixer", "width": width})
    put(root / "data/models/mixer-tiny-0/model.json", {
        "architecture": "small_cnn", "training_images": 12, "validation_accuracy": 0.75,
        "trained_on": [project.manifest().root], "device": "cpu", "torch_version": "2.9",
    })  # fmt: skip
    put_results(root, scheme)
    project.dvc("commit", "-f", "-q")


def put_results(root: Path, scheme: Any) -> None:
    """Evaluation, verdicts and card, with figures that occur nowhere else."""
    row = {
        "scheme": "mixer", "model": "tiny", "test_on": "plain", "declared": True, "runs": 1,
        "accuracy": 0.625, "low": 0.5, "high": 0.71875, "baseline_accuracy": 0.875,
        "loss_points": 12.5, "loss_low": 10.25, "loss_high": 15.75,
        "seeds": [{"seed": 0, "accuracy": 0.625}],
    }  # fmt: skip
    put(root / "reports/evaluation.json", {"rows": [row]})
    finding = {
        "attack": "linkage", "risk": "linkability", "value": 0.5, "low": 0.375, "high": 0.625,
        "threshold": 0.25, "verdict": "fail", "counts": True, "reason": "beyond the limit",
    }  # fmt: skip
    said = {"verdict": "fail", "words": "Linkage is too easy.", "findings": [finding]}
    judged = {"title": "Mixing", "templates": {"public_release": said}}
    put(root / "reports/verdicts.json", {"suite": "2", "schemes": {"mixer": judged}})
    put(root / "reports/cards/mixer.json", {
        "schema": 1, "dataset": "toy", "suite": "2", "demo_key": False, "complete": True,
        "scheme": {"name": scheme.name, "title": scheme.title, "version": scheme.version,
                   "parameters": {}, "digest": "0" * 16},
        "stale": None, "verdicts": {}, "attacks": [], "not_tested": [], "other_kinds": [],
        "key_space_bits": None, "key_space_words": "",
        "repeat": {"attacks": [], "seed": 0, "effort": "quick", "release": None},
    })  # fmt: skip


def enter_events(project: AuditProject, commit: str) -> None:
    """A refusal, a release in spite of the verdict, and its withdrawal."""
    from veilset.adapters.audit_collect import Case, set_roots
    from veilset.adapters.audit_versions import workspace

    case = Case.of(workspace(project.root))
    sets = set_roots(one for one in map(case.protected, case.protected_stages()) if one)
    root = hashlib.sha256("".join(sets).encode()).hexdigest()
    shared = {"dataset": "toy", "scheme": "mixer", "receiver": "public_release", "commit": commit}
    made = {"name": f"toy-mixer-{root[:12]}", "root": root, "sets": sets, "statement": "1" * 64,
            "to": "shared", "by": "Emmy Noether"}  # fmt: skip
    waiver = Waiver(reason="An exercise with noise.", name="Mary Somerville", date=date(2026, 3, 1))
    journal = project.root / RELEASES
    for event, day, more in (
        ("refused", 1, {"reasons": ("the verdict is no pass",)}),
        ("released", 2, {**made, "waiver": waiver}),
        ("withdrawn", 9, {**made, "reasons": ("a person asked for it",)}),
    ):
        at = datetime(2026, 3, day, 12, tzinfo=UTC)
        enter_release(journal, ReleaseEvent(event=event, at=at, **shared, **more))


def put(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)
