"""The stage `attack_model`: a CNN of the stage `train` is attacked, and the evidence is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from attack_cases import digit_images

from veilset.attacks.base import SUITE_VERSION
from veilset.data.shards import ImageSet, write_set
from veilset.errors import CorruptError, SettingsError
from veilset.keys import Key
from veilset.report.load import read_attacks
from veilset.schemes.plain import Plain
from veilset.schemes.protect import protect_set
from veilset.settings import load_settings
from veilset.stages import attack_model, train
from veilset.stages.project import Project

COUNTS = {"train": 300, "validation": 60, "test": 120, "auxiliary": 150}
SETTINGS: dict[str, Any] = {
    "data": {"name": "digits"},
    "schemes": ["plain"],
    "scheme": {"plain": {}},
    "models": ["tiny"],
    "model": {"tiny": {"kind": "small_cnn", "width": 4}},
    "train": {"epochs": 2, "device": "cpu"},
    "attacks": ["linkage"],
    "model_attacks": ["model_inversion", "membership", "gradient_reconstruction"],
    "attack": {
        "common": {"seed": 5},
        "membership": {"shadows": 6, "questions": 1},
        "model_inversion": {"steps": 5},
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose release has a trained CNN."""
    folder: Path = tmp_path_factory.mktemp("project")
    (folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    drops = {"names": ["one"], "fit_drops": ["one"], "drops": {"one": {"path": "raw"}}}
    (folder / "drops.yaml").write_text(yaml.safe_dump(drops))
    project, rng = Project(folder), np.random.default_rng(0)
    images, labels = digit_images()
    order = np.split(rng.permutation(len(images)), np.cumsum(list(COUNTS.values())))
    parts = {
        split: (rng.integers(0, 256, (len(rows), 16), dtype=np.uint8), labels[rows], images[rows],
                {"group": np.full(len(rows), "", dtype=object)})
        for split, rows in zip(COUNTS, order, strict=False)
    }  # fmt: skip
    write_set(
        project.ingested("one"), kind="ingested", dataset="digits",
        classes=[str(value) for value in range(10)], parts=parts,
    )  # fmt: skip
    protect_set(
        ImageSet.open(project.ingested("one")), Plain(), Key(b"k" * 32),
        project.protected("plain", "one"), project.provenance("plain", "one"), dataset="digits",
    )  # fmt: skip
    train.run(folder, "plain", "tiny", "0")
    return folder


def test_attacks_on_the_cnn_are_run_and_written(root: Path) -> None:
    attack_model.run(root, "plain", "tiny")
    folder = root / "data/attacks_model/plain/tiny"
    written = json.loads((folder / "results.json").read_text())
    assert (written["suite"], written["scheme"]) == (SUITE_VERSION, "plain")
    results = {each["attack"]: each for each in written["results"]}
    assert list(results) == ["model_inversion", "membership", "gradient_reconstruction"]
    assert all(each["applicable"] and each["seed"] == 5 for each in results.values())
    assert results["membership"]["targets"] == COUNTS["train"]
    assert results["membership"]["details"]["non_members"] == 180
    assert results["gradient_reconstruction"]["status"] in {"ok", "weak_oracle"}
    assert len(read_attacks(folder / "results.json").results) == 3
    scores = pd.read_parquet(folder / "scores.parquet")
    assert set(scores["attack"]) == set(results)
    with np.load(folder / "examples.npz") as examples:
        assert examples["original"].shape[1:] == (16, 16, 1)


def test_only_attacks_on_a_cnn_are_chosen(root: Path) -> None:
    settings = load_settings(root)
    assert attack_model.network_attacks(settings) == tuple(SETTINGS["model_attacks"])
    every = attack_model.network_attacks(settings.model_copy(update={"model_attacks": ()}))
    assert set(every) == {*SETTINGS["model_attacks"], "feature_reconstruction"}
    for name, words in (("linkage", "put it into `attacks`"), ("nothing", "model_attacks")):
        with pytest.raises(SettingsError, match=words):
            attack_model.network_attacks(settings.model_copy(update={"model_attacks": (name,)}))


def test_a_cnn_that_was_never_trained_is_named(root: Path) -> None:
    with pytest.raises(CorruptError, match="plain-other-0"):
        attack_model.run(root, "plain", "other")
