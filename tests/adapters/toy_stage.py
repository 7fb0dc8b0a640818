"""One stage of the toy project: writes what the real stage writes, from a seed."""

import json
import sys
from pathlib import Path

import numpy as np

from veilset.data.manifest import Manifest
from veilset.data.shards import ImageSet, write_set

SHAPE = (8, 8, 3)


def ingest(drop: str) -> None:
    generator = np.random.default_rng(len(drop))
    parts = {}
    for split, rows in {"train": 9, "test": 6}.items():
        images = generator.integers(0, 256, (rows, *SHAPE), dtype=np.uint8)
        ids = generator.integers(0, 256, (rows, 16), dtype=np.uint8)
        parts[split] = (ids, np.arange(rows) % 2, images, {})
    write_set(
        Path(f"data/ingested/{drop}"),
        kind="ingested",
        dataset="toy",
        classes=("cat", "dog"),
        parts=parts,
        notes={"held_back": 2},
    )


def check(drop: str) -> None:
    folder = Path(f"data/checks/{drop}")
    (folder / "data_docs").mkdir(parents=True)
    (folder / "data_docs/index.html").write_text("<html>docs</html>")
    results = [{"rule": "quarantine_rate", "observed": 0.125, "success": True}]
    (folder / "results.json").write_text(json.dumps({"schema": 1, "results": results}))
    (folder / "verdict.json").write_text('{"critical_failed": [], "warnings": ["imbalance"]}')


def protect(scheme: str, drop: str) -> None:
    plain = ImageSet.open(Path(f"data/ingested/{drop}"))
    flip = 255 if scheme == "noise" else 0
    part = (plain.ids("train"), plain.labels("train"), plain.images("train") ^ np.uint8(flip), {})
    fingerprint = Path("keys/protection.fingerprint").read_text().strip()
    write_set(
        Path(f"data/protected/{scheme}/{drop}"),
        kind="protected",
        dataset="toy",
        classes=("cat", "dog"),
        parts={"train": part},
        key_fingerprint=fingerprint,
        scheme={
            "name": scheme,
            "title": scheme.title(),
            "version": 1,
            "parameters": {"strength": 3},
            "declaration": {},
            "fitted_hash": "",
        },
    )


def attack(scheme: str) -> None:
    folder = Path(f"data/attacks/{scheme}")
    folder.mkdir(parents=True)
    protected = ImageSet.open(Path(f"data/protected/{scheme}/first")).images("train")
    original = ImageSet.open(Path("data/ingested/first")).images("train")
    anchor = {"value": 0.1, "low": 0.0, "high": 0.2}
    linkage = {
        "attack": "linkage",
        "attacker": "public_release",
        "applicable": True,
        "metric": "rank1",
        "value": 0.5,
        "low": 0.25,
        "high": 0.75,
        "chance": 0.01,
        "control": anchor,
        "oracle": anchor,
        "residual": None,
        "status": "ok",
    }
    skipped = {
        "attack": "person",
        "attacker": "public_release",
        "applicable": False,
        "reason": "no groups",
        "value": None,
    }
    document = {"schema": 1, "scheme": scheme, "results": [linkage, skipped]}
    (folder / "results.json").write_text(json.dumps(document))
    np.savez(
        folder / "examples.npz",
        original=original,
        protected=protected,
        reconstruction=original,
        labels=np.zeros(len(original)),
        order=np.arange(9),
    )


def train(scheme: str, model: str, seed: str) -> None:
    from veilset.models.registry import make_model
    from veilset.training.saved import ModelCard, pack_weights, save_model

    folder = Path(f"data/models/{scheme}-{model}-{seed}")
    folder.mkdir(parents=True)
    weights = pack_weights(make_model("small_cnn", SHAPE, 2, seed=0))
    import hashlib

    root = Manifest.load(Path(f"data/protected/{scheme}/first")).root
    card = ModelCard(
        architecture="small_cnn", parameters={}, classes=("cat", "dog"), shape=SHAPE,
        normalisation={"mean": (0.5,) * 3, "std": (0.25,) * 3}, scheme=scheme, trained_on=(root,),
        training_images=9, seed=0, recipe={"lr": 0.1}, device="cpu", device_name="cpu",
        precision="fp32", threads=1, torch_version="2", accumulation=1, epochs=2, seconds=1.5,
        images_per_second=6.0, weight_count=7, validation_accuracy=0.75,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )  # fmt: skip
    save_model(folder, weights, card)
    (folder / "history.csv").write_text(
        "epoch,lr,train_loss,train_accuracy,validation_loss,validation_accuracy\n"
        "1,0.1,0.9,0.5,1.0,0.5\n2,0.05,0.6,0.625,0.8,0.75\n"
    )


def evaluate() -> None:
    row = {
        "scheme": "noise",
        "model": "tiny",
        "test_on": "plain",
        "declared": True,
        "accuracy": 0.625,
        "low": 0.5,
        "high": 0.75,
        "n": 8,
        "correct": 5,
        "baseline_accuracy": 0.75,
        "loss_points": 12.5,
        "loss_low": 10.0,
        "loss_high": 15.0,
        "ece": 0.125,
        "runs": 1,
        "seeds": [{"seed": 0, "accuracy": 0.625}],
    }
    contrast = {
        "model": "tiny", "scheme": "noise", "other": "plain", "runs": 3, "n": 8, "p_value": 0.02,
        "difference": {"value": -0.125, "low": -0.25, "high": -0.0625}, "adjusted": 0.04,
    }  # fmt: skip
    write(
        "evaluation.json",
        {"schema": 1, "baseline": "plain", "rows": [row], "contrasts": [contrast]},
    )


def gate() -> None:
    worst = {
        "attack": "linkage",
        "value": 0.5,
        "low": 0.25,
        "high": 0.75,
        "threshold": 0.1,
        "chance": 0.01,
    }
    templates = {
        "public_release": {"verdict": "fail", "words": "Linkage is too easy.", "worst": worst},
        "outside_trainer": {"verdict": "pass", "words": "Fine.", "worst": None},
    }
    scheme = {"title": "Noise", "templates": templates, "key_space_bits": 96}
    write("verdicts.json", {"schema": 1, "schemes": {"noise": scheme}})


def report() -> None:
    Path("reports/index.html").write_text("<html>may show originals</html>")


def write(name: str, value: object) -> None:
    Path("reports").mkdir(exist_ok=True)
    (Path("reports") / name).write_text(json.dumps(value))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
