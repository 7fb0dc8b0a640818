"""A small project folder with the evidence files that the report reads, in all their verdicts."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from veilset.attacks.base import OTHER_KIND
from veilset.data.shards import write_set
from veilset.files import write_json, write_table, write_text
from veilset.keys import DEMO_IDS_KEY, DEMO_PROTECTION_KEY
from veilset.release.card import leakage_card
from veilset.release.gate import GateParams
from veilset.report.model import AttackFile
from veilset.schemes.plain import Plain

CLASSES = ("zero", "one", "two", "three")
SECRET_NAME = "scan_of_Mrs_Example.png"
ROLES = {"train": 90, "validation": 20, "test": 40, "auxiliary": 40}
TITLES = {
    "plain": "Plain",
    "pixel_block_mixing": "Pixel block mixing",
    "visualmixer": "VisualMixer",
    "dp_pix": "DP-Pix",
    "image_to_perturbation": "Image to perturbation",
}
TRAINED = ("plain", "dp_pix")
# accuracy, linkage, reconstruction, (outside trainer, public release)
NUMBERS: dict[str, tuple[float, float, float, tuple[str, str]]] = {
    "plain": (0.975, 1.0, 1.0, ("fail", "fail")),
    "pixel_block_mixing": (0.925, 0.93, 0.41, ("fail", "fail")),
    "visualmixer": (0.90, 0.38, 0.06, ("pass", "fail")),
    "dp_pix": (0.55, 0.02, 0.01, ("pass", "pass")),
    "image_to_perturbation": (0.875, 0.05, 0.04, ("undecided", "undecided")),
}


def wilson(share: float, n: int) -> dict[str, float]:
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return {"value": share, "low": round(float(low), 4), "high": round(float(high), 4)}


def result(attack: str, share: float, chance: float, **more: Any) -> dict[str, Any]:
    control, oracle = wilson(chance, 200), wilson(0.985, 200)
    return {
        "attack": attack, "title": attack.replace("_", " ").capitalize(), "risk": "linkability",
        "attacker": "public_release", "knowledge": "K1",
        "knowledge_words": "knows the algorithm and its parameters, not the key",
        "applicable": True, "reason": None, "metric": "rank1",
        "metric_words": "rank-1 in a gallery of 100", **wilson(share, 200), "confidence": 0.95,
        "method": "wilson", "targets": 200, "gallery": 100, "chance": chance, "control": control,
        "oracle": oracle, "residual": wilson(max(0, (share - chance) / (1 - chance)), 200),
        "variant": "region_histogram",
        "variants": {"thumbnail": share * 0.8, "region_histogram": share}, "status": "ok",
        "words": f"{round(200 * share)} of 200 protected images are linked to their original.",
        "details": {"epochs": 12, "mean_ssim": 0.1234}, "seconds": 3.2, "size": "quick", "seed": 0,
    } | more  # fmt: skip


METRICS = {
    "linkage": "rank-1 in a gallery of 100", "reconstruction": "images restored to be recognised",
}  # fmt: skip
NONE = dict.fromkeys(
    ["metric", "metric_words", "value", "low", "high", "targets", "gallery", "chance", "control",
     "oracle", "residual", "variant", "variants", "words", "details", "seconds", "status"]
)  # fmt: skip


def results(scheme: str) -> list[dict[str, Any]]:
    _, linkage, reconstruction, _ = NUMBERS[scheme]
    outside = {"attacker": "outside_trainer", "risk": "inference", "gallery": None}
    weak = scheme == "image_to_perturbation"
    return [
        result("linkage", linkage, 0.01, status="few_targets" if weak else "ok"),
        result("known_pairs", reconstruction / 2, 0.0, risk="singling_out", metric="share",
               metric_words="images restored to be recognised", gallery=None, knowledge="K3",
               knowledge_words="also has pairs of original and protected images"),
        result("reconstruction", reconstruction, 0.0, **outside, metric="share", variant="u_net",
               metric_words="images restored to be recognised",
               words="Restored images are recognised.", knowledge="K2",
               knowledge_words="also has other images of the same kind"),
        result("membership", min(1.0, 0.5 + reconstruction / 4), 0.5, **outside, metric="auc",
               metric_words="area under the ROC curve", variant="loss", seconds=412.0,
               status="weak_oracle" if weak else "ok", words="Members score higher than others."),
        result("denoising", 0.1, 0.01, **outside) if scheme == "dp_pix"
        else elsewhere("denoising", **outside),
        elsewhere("jigsaw"),
        result("person", 0, 0, applicable=False, title="Person in another photograph",
               reason="the set names no persons or groups") | NONE,
    ]  # fmt: skip


def elsewhere(attack: str, **more: Any) -> dict[str, Any]:
    """An attack that is made for schemes of another kind."""
    reason = f"{OTHER_KIND}: it does not suit {attack}"
    return result(attack, 0, 0, **more) | NONE | {"applicable": False, "reason": reason}


def template(scheme: str, verdict: str, attack: str, share: float, limit: float) -> dict[str, Any]:
    figures = wilson(share, 200)
    reason = {
        "pass": "upper bound below the threshold", "fail": "lower bound above the threshold",
        "undecided": "the oracle is weak, so nothing follows from the attack's failure",
    }[verdict]  # fmt: skip
    say = {"pass": "No attack got past its threshold.", "fail": "An attack succeeds.",
           "undecided": "The evidence supports neither a pass nor a fail."}[verdict]  # fmt: skip
    title = attack.capitalize()
    other = {"linkage": "known_pairs", "reconstruction": "membership"}[attack]
    return {
        "verdict": verdict,
        "words": f"{say} The strongest, {title.lower()}, may succeed on up to "
        f"{100 * figures['high']:.1f} % of images.",
        "worst": {"attack": attack, "title": title, **figures, "threshold": limit, "words": "x",
                  "metric_words": METRICS[attack], "chance": 0.01 if attack == "linkage" else 0.0},
        "findings": [
            {"attack": attack, "risk": "linkability", "verdict": verdict, **figures,
             "threshold": limit, "reason": reason, "counts": True},
            {"attack": other, "risk": "inference", "verdict": "pass" if verdict == "pass"
             else "undecided", **wilson(share / 2, 200), "threshold": limit, "reason": reason,
             "counts": True},
        ],
    }  # fmt: skip


def verdicts() -> dict[str, Any]:
    schemes = {}
    for name, (_, linkage, reconstruction, words) in NUMBERS.items():
        keyed = name not in ("plain", "dp_pix")
        schemes[name] = {
            "title": TITLES[name],
            "templates": {
                "outside_trainer": template(name, words[0], "reconstruction", reconstruction, 0.1),
                "public_release": template(name, words[1], "linkage", linkage, 0.1),
            },
            "declared": {
                "keyed": keyed, "reversible": name == "visualmixer", "uses_labels": False,
                "guarantee": "m-neighbour differential privacy, epsilon 8 an image"
                if name == "dp_pix" else None,
                "protects_queries": name != "pixel_block_mixing", "provenance": "reconstruction",
                "source": "Example et al. 2023, section 3",
                "risk_notes": ["Region means survive.", "Region histograms survive."],
            },
            "key_space_bits": 2016.4 if keyed else None,
        }  # fmt: skip
    held = {
        "scheme": "visualmixer", "model": "resnet20",
        **template("visualmixer", "fail", "reconstruction", 0.4, 0.05),
    }  # fmt: skip
    models = {"visualmixer-resnet20": held}
    return {"schema": 1, "suite": "1", "schemes": schemes, "models": models}


def comparison() -> dict[str, Any]:
    """Contrasts for both receivers: DP-Pix and its neighbour differ by too little to tell."""

    def contrast(template: str, one: str, two: str) -> dict[str, Any]:
        place = 1 if template == "public_release" else 2
        rate, other = float(NUMBERS[one][place]), float(NUMBERS[two][place])  # type: ignore[arg-type]
        gap = rate - other
        return {
            "template": template, "scheme": one, "other": two, "attack": "linkage",
            "other_attack": "linkage", "targets": 200, "rate": rate, "other_rate": other,
            "difference": {"value": gap, "low": gap - 0.02, "high": gap + 0.02},
            "p_value": 1e-6, "adjusted": 0.4 if abs(gap) < 0.05 else 1e-5,
        }  # fmt: skip

    return {"schema": 1, "contrasts": [
        contrast(template, one, two)
        for template in ("outside_trainer", "public_release")
        for one, two in combinations(sorted(NUMBERS), 2)
    ]}  # fmt: skip


def card(scheme: str) -> dict[str, Any]:
    """The leakage card of a scheme, as the gate writes it."""
    found = AttackFile.model_validate(attack_file(scheme))
    made = leakage_card(
        found, verdicts()["schemes"][scheme], Plain(), GateParams(max_suite_age=1000),
        asked=[item.attack for item in found.results],
    )  # fmt: skip
    return made | {"scheme": made["scheme"] | {"title": TITLES[scheme]}}


def evaluation_row(scheme: str, model: str, test_on: str, share: float) -> dict[str, Any]:
    size = len(CLASSES)
    confusion = np.full((size, size), 1) + np.diag([int(10 * share)] * size)
    figures = wilson(share, 400)
    loss = 97.5 - 100 * share
    return {
        "scheme": scheme, "model": model, "test_on": test_on,
        "declared": test_on == ("plain" if scheme in ("plain", "pixel_block_mixing")
                                else "protected"),
        "accuracy": share, "low": figures["low"], "high": figures["high"], "n": 400,
        "correct": round(400 * share), "baseline_accuracy": 0.975, "loss_points": loss,
        "loss_low": loss - 1.3, "loss_high": loss + 1.4, "ece": 0.034,
        "per_class": [{"class": name, "n": 10, "accuracy": share, "low": share / 2, "high": 1.0}
                      for name in CLASSES],
        "confusion": confusion.tolist(), "train_seconds": 61.5, "images_per_second": 8123.4,
    }  # fmt: skip


def evaluation() -> dict[str, Any]:
    rows = []
    for scheme, (accuracy, *_) in NUMBERS.items():
        rows.append(evaluation_row(scheme, "small_cnn", "plain", accuracy))
        if scheme != "plain":
            rows.append(evaluation_row(scheme, "small_cnn", "protected", accuracy))
    rows.append(evaluation_row("plain", "resnet18", "plain", 0.97))
    return {"schema": 1, "baseline": "plain", "rows": rows}


def pictures(scheme: str) -> dict[str, np.ndarray]:
    """Digits, what a scheme might make of them, and a blurred guess."""
    data = load_digits()
    rows = [int(np.flatnonzero(data.target == place % 4)[place // 4]) for place in range(8)]
    original = (data.images[rows] * 15.9).astype(np.uint8)
    original = original.repeat(2, axis=1).repeat(2, axis=2)[..., None]
    rng = np.random.default_rng(7)
    noise = rng.integers(0, 256, original.shape, dtype=np.uint8)
    blurred = np.stack([gaussian_filter(image[..., 0], 2.2) for image in original])[..., None]
    mixed = (0.35 * original + 0.65 * noise).astype(np.uint8)
    protected = {"plain": original, "pixel_block_mixing": mixed}.get(scheme, noise)
    reconstruction = original if scheme == "plain" else blurred
    return {
        "original": original, "protected": protected, "reconstruction": reconstruction,
        "labels": np.arange(8) % 4, "order": np.arange(8)[::-1],
    }  # fmt: skip


def index(roles: Mapping[str, int], classes: tuple[str, ...]) -> pd.DataFrame:
    rows = []
    for role, number in {**roles, "duplicate": 3, "quarantined": 2}.items():
        for place in range(number):
            bad = role == "quarantined"
            rows.append({
                "id": None if bad else f"{len(rows):032x}", "name": f"{role}/{place}.png",
                "label": -1 if bad else place % len(classes),
                "class_name": None if bad else classes[place % len(classes)], "group": "",
                "role": role, "width": 16, "height": 16, "mode": "L",
                "duplicate_of": f"{0:032x}" if role == "duplicate" else None,
                "near_duplicate_of": f"{1:032x}" if role == "train" and place < 4 else None,
                "drop": "2024-01", "brightness": 80.0, "reason": "truncated" if bad else None,
            })  # fmt: skip
    return pd.DataFrame(rows)


CHECKS = [
    {"expectation": "expect_column_values_to_be_unique", "column": "id", "severity": "critical",
     "success": True, "observed": 0, "words": "Every image occurs once."},
    {"expectation": "expect_column_values_to_be_between", "column": "brightness",
     "severity": "warning", "success": False, "observed": {"unexpected": 4, "share": 0.021},
     "words": "Images are neither black nor white."},
]  # fmt: skip


def lock() -> dict[str, Any]:
    def stage(deps: list[str], outs: list[str], **params: Any) -> dict[str, Any]:
        entry: dict[str, Any] = {"cmd": "veilset stage"}
        entry["deps"] = [{"path": path, "hash": "md5", "md5": "0" * 32} for path in deps]
        entry["outs"] = [{"path": path, "hash": "md5", "md5": f"{len(path):032x}"} for path in outs]
        return entry | ({"params": {"params.yaml": params}} if params else {})

    stages = {"ingest@2024-01": stage(["data/raw/2024-01"], ["data/ingested/2024-01"], size=16)}
    for name in NUMBERS:
        stages[f"protect@{name}"] = stage(
            ["data/ingested/2024-01"], [f"data/protected/{name}"], seed=1
        )
        stages[f"attack@{name}"] = stage(
            [f"data/protected/{name}/manifest.json"], [f"data/attacks/{name}"]
        )
        stages[f"train@{name}-small_cnn"] = stage(
            [f"data/protected/{name}"], [f"data/models/{name}-small_cnn"], epochs=5
        )
    stages["evaluate"] = stage(["data/models"], ["reports/evaluation.json"])
    return {"schema": "2.0", "stages": stages}


def history(final: float) -> str:
    lines = ["epoch,lr,train_loss,train_accuracy,validation_loss,validation_accuracy"]
    for epoch in range(1, 13):
        reached = final * (1 - np.exp(-epoch / 2.5))
        lines.append(f"{epoch},0.01,{1 / epoch:.4f},{reached + 0.01:.4f},,{reached:.4f}")
    return "\n".join(lines) + "\n"


def write_project(root: Path, *, demo: bool = True, classes: tuple[str, ...] = CLASSES) -> Path:
    """Every file that the report reads, in their contracts' formats."""
    write_into(root, "reports/verdicts.json", verdicts())
    write_into(root, "reports/evaluation.json", evaluation())
    write_into(root, "reports/comparison.json", comparison())
    write_into(root, "data/checks/2024-01/results.json", CHECKS)
    keys = {"protection": DEMO_PROTECTION_KEY.fingerprint, "ids": DEMO_IDS_KEY.fingerprint}
    for kind, fingerprint in keys.items():
        text(root, f"keys/{kind}.fingerprint", (fingerprint if demo else "ab" * 8) + "\n")
    text(
        root,
        "data/quarantine/2024-01/quarantine.csv",
        f"name,reason,detail\n{SECRET_NAME},truncated,x\nb.png,truncated,x\nc.gif,animated,x\n",
    )
    text(root, "dvc.lock", yaml.safe_dump(lock()))
    _ingested(root, classes)
    held = {"attacker": "model_holder", "knowledge": "K5", "title": "Gradient of one image"}
    found = [result("gradient_reconstruction", 0.37, 0.01, **held, words="74 of 200 are betrayed.")]
    attacked = {**attack_file("visualmixer"), "results": found}
    write_into(root, "data/attacks_model/visualmixer/resnet20/results.json", attacked)
    for scheme in NUMBERS:
        _scheme(root, scheme, classes, demo)
    return root


def text(root: Path, name: str, value: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, value)


def write_into(root: Path, name: str, value: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)


def _part(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 256, (rows, 16), dtype=np.uint8)
    images = rng.integers(0, 256, (rows, 16, 16, 1), dtype=np.uint8)
    return ids, np.arange(rows, dtype=np.int64) % 4, images, {}


def _ingested(root: Path, classes: tuple[str, ...]) -> None:
    folder = root / "data/ingested/2024-01"
    folder.parent.mkdir(parents=True, exist_ok=True)
    parts = {role: _part(rows, seed) for seed, (role, rows) in enumerate(ROLES.items())}
    write_set(folder, kind="ingested", dataset="Handwritten digits", classes=classes, parts=parts)
    write_table(folder / "index.parquet", index(ROLES, classes))


def attack_file(scheme: str) -> dict[str, Any]:
    return {"schema": 1, "suite": "1", "scheme": scheme, "scheme_title": TITLES[scheme],
            "dataset": "Handwritten digits", "results": results(scheme)}  # fmt: skip


def _scheme(root: Path, scheme: str, classes: tuple[str, ...], demo: bool) -> None:
    write_into(root, f"data/attacks/{scheme}/results.json", attack_file(scheme))
    write_into(root, f"reports/cards/{scheme}.json", card(scheme))
    np.savez(root / f"data/attacks/{scheme}/examples.npz", **pictures(scheme))
    if scheme in TRAINED:
        _model(root, scheme)
    folder = root / f"data/protected/{scheme}/2024-01"
    folder.parent.mkdir(parents=True, exist_ok=True)
    keyed = DEMO_PROTECTION_KEY.fingerprint if demo else "ab" * 8
    write_set(
        folder, kind="protected", dataset="Handwritten digits", classes=classes,
        parts={"train": _part(8, 99)}, source="9" * 64,
        key_fingerprint=None if scheme in ("plain", "dp_pix") else keyed,
        scheme={"name": scheme, "title": TITLES[scheme], "version": 1,
                "parameters": {} if scheme == "plain" else {"region": 8, "blocks": [4, 4],
                                                            "same_class": True}},
    )  # fmt: skip


def _model(root: Path, scheme: str) -> None:
    text(root, f"data/models/{scheme}-small_cnn/history.csv", history(NUMBERS[scheme][0]))
    write_into(root, f"data/models/{scheme}-small_cnn/model.json", {
        "architecture": "small_cnn", "parameters": 61234, "scheme": scheme, "seed": 0,
        "trained_on": "f" * 64, "precision": "float32", "seconds": 61.5,
    })  # fmt: skip
