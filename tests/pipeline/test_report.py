"""What leaves a project with its reports: in a public page, and in git."""

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_project import SmallProject

from veilset.data.shards import ImageSet
from veilset.files import read_table

# On the worker that has reproduced the project already.
pytestmark = pytest.mark.xdist_group("pipeline")

FIGURES = {"comparison.json", "evaluation.json", "metrics.json", "verdicts.json"}


@pytest.fixture
def project(reproduced: SmallProject, tmp_path: Path) -> SmallProject:
    return SmallProject(Path(shutil.copytree(reproduced.root, tmp_path / "p", symlinks=True)))


def private_words(root: Path) -> set[str]:
    """Ids, names and hashes of raw and ingested images, and where they lie."""
    table = read_table(root / "data/ingested/digits/index.parquet")
    opened = ImageSet.open(root / "data/ingested/digits")
    shards = {one.sha256 for one in opened.manifest.shards}
    chunks = {chunk for one in opened.manifest.shards for chunk in one.chunks}
    found = {*table["id"].dropna(), *table["name"], *shards, *chunks, opened.manifest.root,
             opened.manifest.root[:16], str(root), str(Path.home())}  # fmt: skip
    assert len(found) > 3000
    return found


def test_git_takes_the_figures_and_they_tell_nothing_of_an_image(project: SmallProject) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "reports"], cwd=project.root,
        check=True, text=True, capture_output=True,
    ).stdout.split()  # fmt: skip
    cards = {f"reports/cards/{name}.json" for name in project.read("params.yaml")["schemes"]}
    assert set(listed) == cards | {f"reports/{name}" for name in FIGURES}
    private = private_words(project.root)
    for name in listed:
        text = (project.root / name).read_text(encoding="utf-8")
        assert [word for word in private if word in text] == [], name


def test_a_public_page_tells_nothing_raw(project: SmallProject) -> None:
    said = project.veilset("report", "--public").stdout
    assert "A drop is called as the data set is (digits)" in said
    page = (project.root / "reports/public.html").read_bytes()
    assert [word for word in private_words(project.root) if word.encode() in page] == []
    found = re.findall(rb"base64,([A-Za-z0-9+/=]+)", page)
    shown = {np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))).tobytes() for one in found}
    opened = ImageSet.open(project.root / "data/ingested/digits")
    for split in opened.splits:
        for image in opened.images(split):
            assert image.tobytes() not in page
            assert base64.b64encode(image.tobytes()) not in page
            assert image[..., 0].tobytes() not in shown


def test_versions_are_compared_from_what_git_has(project: SmallProject) -> None:
    project.commit()
    before = (project.root / "reports/verdicts.json").read_text(encoding="utf-8")
    limits = {"singling_out": 1.0, "linkability": 1.0, "inference": 1.0}
    project.change("params.yaml", gate={"outside_trainer": limits, "public_release": limits})
    assert set(project.repro("report")) == {"gate", "report"}
    assert (project.root / "reports/verdicts.json").read_text(encoding="utf-8") != before
    shutil.rmtree(project.root / ".dvc/cache/runs", ignore_errors=True)
    found = json.loads(project.veilset("report", "--against", "HEAD", "--json").stdout)
    assert found["gaps"] == []
    assert set(found["parameters"]) == {"Gate thresholds"}
    assert any(one["before"] == "fail" and one["after"] != "fail" for one in found["leakage"])
    for one in found["leakage"]:
        assert one["limits"][1] in (None, 1.0)
        assert one["shift"]["direction"] in ("the same", "not comparable")
    assert {one["accuracy"]["direction"] for one in found["utility"]} == {"the same"}
    project.commit()
    assert project.repro() == []
