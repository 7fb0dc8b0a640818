"""Attacks on one drop alone: what it leaks more than others is seen, and nothing is done twice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from attack_cases import digit_images

from veilset.data.shards import ImageSet, write_set
from veilset.errors import CorruptError
from veilset.keys import Key
from veilset.schemes.pixelate import Pixelate
from veilset.schemes.protect import protect_set
from veilset.stages import attack
from veilset.stages.drop_attack import attack_drop
from veilset.stages.project import Project

COUNTS = {"train": 250, "auxiliary": 100}
FLAT = Pixelate(Pixelate.Parameters(block_px=8))
SETTINGS: dict[str, Any] = {
    "data": {"name": "digits"}, "schemes": ["flat"],
    "scheme": {"flat": {"kind": "pixelate", "block_px": 8}},
    "models": ["small_cnn"], "model": {"small_cnn": {}}, "train": {},
    "attacks": ["linkage"], "attack": {"linkage": {"targets": 200}},
}  # fmt: skip


def put(project: Project, drop: str, first: int, *, lit: bool = False) -> None:
    """A drop of digits made flat; `lit` ones differ in light, which is all that is left of them."""
    images, labels = digit_images()
    if lit:
        light = np.random.default_rng(1).integers(0, 192, (len(images), 1, 1, 1))
        images = (images // 4 + light).astype(np.uint8)
    rng = np.random.default_rng(first)
    rows = np.random.default_rng(0).permutation(len(images))[first:][: sum(COUNTS.values())]
    parts = {
        split: (rng.integers(0, 256, (len(at), 16), dtype=np.uint8), labels[at], images[at],
                {"group": np.full(len(at), "", dtype=object)})
        for split, at in zip(COUNTS, np.split(rows, [COUNTS["train"]]), strict=True)
    }  # fmt: skip
    write_set(project.ingested(drop), kind="ingested", dataset="digits",
              classes=[str(value) for value in range(10)], parts=parts)  # fmt: skip
    protect_set(
        ImageSet.open(project.ingested(drop)), FLAT, Key(b"k" * 32),
        project.protected("flat", drop), project.provenance("flat", drop), dataset="digits",
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two drops alike, and a third that leaks more under the very same scheme."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    names = ["one", "two", "lit"]
    drops = {"names": names, "fit_drops": ["one"], "drops": {one: {"path": "x"} for one in names}}
    (tmp_path / "drops.yaml").write_text(yaml.safe_dump(drops))
    made = Project(tmp_path)
    for number, name in enumerate(names):
        put(made, name, 400 * number, lit=name == "lit")
    return made


def rank1(folder: Path) -> float:
    found = json.loads((folder / "results.json").read_text())["results"][0]
    return float(found["value"])


def test_a_drop_that_leaks_among_others_is_found_alone(project: Project) -> None:
    attack.run(project.root, "flat")
    words = {name: attack_drop(project.root, name, "flat") for name in ("two", "lit")}
    alone = {name: rank1(project.root / f"data/drift/{name}/attacks/flat") for name in words}
    together = rank1(project.attacks("flat"))
    assert alone["lit"] > 0.7, alone
    assert together + 0.2 < alone["lit"], "among the others it is hardly seen"
    assert "fail for public release" in words["lit"]


def test_the_same_twice_is_done_once_and_another_version_anew(project: Project) -> None:
    folder = project.root / "data/drift/two/attacks/flat"
    first = attack_drop(project.root, "two", "flat")
    seen = (folder / "results.json").stat().st_ino
    assert attack_drop(project.root, "two", "flat") == first
    assert (folder / "results.json").stat().st_ino == seen
    (folder / "of.json").write_text("{")  # cut short by a kill
    assert attack_drop(project.root, "two", "flat") == first
    again = (folder / "results.json").stat().st_ino
    assert again != seen
    put(project, "two", 400, lit=True)
    attack_drop(project.root, "two", "flat")
    assert (folder / "results.json").stat().st_ino != again
    assert rank1(folder) > 0.7


def test_what_is_not_there_is_said(project: Project) -> None:
    with pytest.raises(CorruptError, match="manifest"):
        attack_drop(project.root, "four", "flat")
