"""CNNs on CIFAR-10 through the whole pipeline: ingest, protect, train and evaluate by `dvc repro`.

    python studies/cifar_training.py CIFAR_FOLDER [--model resnet20] [--scheme plain] [--epochs 12]

CIFAR_FOLDER holds Parquet files in the Hugging Face layout, `train*` and `test1k*` (lossless ones:
the JPEG test images are left out). The pipeline runs in a clone of this repository, whose place is
printed; give it again by `--project` to go on after an interruption. Writes
`studies/results/cifar_training-<cpu or cuda>.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from veilset.console import run_reporting_errors, say
from veilset.errors import SourceError, TrainingError
from veilset.files import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SHARES = {"train": 0.94, "validation": 0.04, "test": 0.01, "auxiliary": 0.01, "gallery": 0.0}
FIGURES = ("scheme", "model", "test_on", "protected_by", "declared", "runs", "accuracy", "low",
           "high", "n", "loss_points", "loss_low", "loss_high", "ece", "train_seconds",
           "train_time_ratio", "images_per_second", "seeds")  # fmt: skip


def main() -> None:
    """Runs the pipeline up to `evaluate`, prints what came out and writes it."""
    options = _options()
    if not any(options.cifar.glob("test1k*.parquet")):
        raise SourceError(f"{options.cifar} holds no test1k*.parquet: name the folder of CIFAR-10.")
    project = options.project or Path(tempfile.mkdtemp(prefix="veilset-cifar-")) / "project"
    if not project.exists():
        _run(["git", "clone", "--quiet", "--depth", "1", HERE.parent.as_uri(), str(project)], HERE)
        (project / "params.yaml").write_text(yaml.safe_dump(_params(options)))
        (project / "drops.yaml").write_text(yaml.safe_dump(_drops(options.cifar)))
    say(f"The project is {project}.")
    started = time.perf_counter()
    _run([sys.executable, "-m", "dvc", "repro", "evaluate"], project)
    seconds = time.perf_counter() - started
    found = json.loads((project / "reports/evaluation.json").read_text())
    cards = [
        json.loads(path.read_text()) for path in sorted(project.glob("data/models/*/model.json"))
    ]
    rows = [{name: row[name] for name in FIGURES} for row in found["rows"]]
    for row in rows:
        say(
            f"{row['scheme']:>22} {row['model']:>12} on {row['test_on']:<9} {row['accuracy']:.3f} "
            f"[{row['low']:.3f}, {row['high']:.3f}], trained in {row['train_seconds']:.0f} s"
        )
    about = {
        "device": cards[0]["device_name"], "precision": cards[0]["precision"],
        "threads": cards[0]["threads"], "training_images": cards[0]["training_images"],
        "recipe": cards[0]["recipe"], "pipeline_seconds": round(seconds, 1), "rows": rows,
        "contrasts": found["contrasts"],
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"cifar_training-{cards[0]['device']}.json"
    write_json(path, about)
    say(f"written to {path}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar", type=Path, metavar="CIFAR_FOLDER")
    parser.add_argument("--model", action="append", help="repeatable; by default resnet20")
    parser.add_argument("--scheme", action="append", help="besides plain; repeatable")
    parser.add_argument("--seed", action="append", type=int, help="repeatable; by default 0")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, help="by default chosen by the number of images")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--project", type=Path, help="a project of an earlier run, to go on")
    return parser.parse_args()


def _params(options: argparse.Namespace) -> dict[str, Any]:
    models = options.model or ["resnet20"]
    schemes = ["plain", *(options.scheme or [])]
    return {
        "data": {"name": "cifar10"},
        "resources": {"workers": 2, "live_after": 0},
        "ingest": {"size": 32, "channels": 3, "shares": SHARES},
        "check": {},
        "fit": {},
        "schemes": schemes,
        "scheme": {name: {} for name in schemes},
        "attacks": ["linkage"],
        "attack": {},
        "models": models,
        "model": {name: {} for name in models},
        "seeds": options.seed or [0],
        "attacked_models": [],
        "model_attacks": [],
        "train": {"epochs": options.epochs, "batch_size": options.batch_size or "auto",
                  "flip": "auto", "device": options.device},
        "evaluate": {},
        "gate": {},
    }  # fmt: skip


def _drops(cifar: Path) -> dict[str, Any]:
    drop = {"path": str(cifar.resolve()), "source": "huggingface",
            "options": {"files": ["train*", "test1k*"]}}  # fmt: skip
    return {"names": ["cifar10"], "fit_drops": ["cifar10"], "drops": {"cifar10": drop}}


def _run(command: list[str], folder: Path) -> None:
    # The stages' `python` is the one that runs this.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, check=False)
    if done.returncode != 0:
        raise TrainingError(f"{' '.join(command[:4])} failed in {folder}: see what it says above.")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
