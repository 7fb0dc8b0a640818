"""The real pipeline under DVC: what runs, what runs again, what stops it, and what comes out."""

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from small_project import SHORT, SmallProject

from veilset.data.shards import ImageSet

pytestmark = [pytest.mark.xdist_group("pipeline"), pytest.mark.timeout(1200)]


@pytest.fixture
def project(reproduced: SmallProject, tmp_path: Path) -> SmallProject:
    """A copy of the reproduced project that a test may change; its cache is shared by links."""
    copy = tmp_path / "copy"
    shutil.copytree(reproduced.root, copy, symlinks=True, copy_function=_link)
    return SmallProject(copy)


def _link(source: str, target: str) -> None:
    # Files of ours are replaced, never written into; DVC's database is the exception.
    if "/.dvc/tmp/" in source or source.endswith((".yaml", ".lock", ".db")):
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def test_one_protect_stage_a_scheme_and_drop(reproduced: SmallProject) -> None:
    listed = reproduced.run("dvc", "stage", "list", "--name-only").stdout.split()
    for scheme in reproduced.read("params.yaml")["schemes"]:
        assert f"protect@{scheme}-digits" in listed
    assert len(listed) <= 6 + 3 * 4, "start-up is most of the time of small stages"


def test_a_second_run_does_nothing(reproduced: SmallProject) -> None:
    assert reproduced.repro() == []


def test_every_figure_comes_out_with_its_anchors(reproduced: SmallProject) -> None:
    results = json.loads((reproduced.root / "data/attacks/plain/results.json").read_text())
    by_name = {result["attack"]: result for result in results["results"]}
    assert set(by_name) == {"linkage", "recognition", "learned_inverse"}
    assert not by_name["recognition"]["applicable"]
    linkage = by_name["linkage"]
    assert linkage["low"] <= linkage["value"] <= linkage["high"]
    assert linkage["value"] > 0.95, "unprotected images are linked"
    assert linkage["control"]["value"] < 0.2
    verdicts = json.loads((reproduced.root / "reports/verdicts.json").read_text())["schemes"]
    assert verdicts["plain"]["templates"]["public_release"]["verdict"] != "pass"
    page = (reproduced.root / "reports/index.html").read_text()
    assert "No CNN was attacked" in page
    for scheme in reproduced.read("params.yaml")["schemes"]:
        assert scheme in verdicts
        assert verdicts[scheme]["title"] in page


def test_dvc_shows_the_same_figures(reproduced: SmallProject) -> None:
    shown = json.loads(reproduced.run("dvc", "metrics", "show", "--json").stdout)
    figures = json.dumps(shown)
    metrics = json.loads((reproduced.root / "reports/metrics.json").read_text())
    assert metrics["plain"]["accuracy"] is not None
    assert json.dumps(metrics["plain"]["accuracy"]) in figures
    plots = json.loads(reproduced.run("dvc", "plots", "show", "--json").stdout)
    assert "privacy and utility" in json.dumps(plots)


def test_mixed_labels_never_answer_the_test(reproduced: SmallProject) -> None:
    rows = json.loads((reproduced.root / "reports/evaluation.json").read_text())["rows"]
    tested = {(row["scheme"], row["test_on"]) for row in rows}
    assert ("pixel_block_mixing", "protected") not in tested
    assert ("pixel_block_mixing", "plain") in tested
    assert ("visualmixer", "protected") in tested
    released = ImageSet.open(reproduced.root / "data/protected/pixel_block_mixing/digits")
    assert "test" not in [split for split in released.splits if released.count(split)]


def test_what_is_released_names_no_source(reproduced: SmallProject) -> None:
    private = ImageSet.open(reproduced.root / "data/ingested/digits")
    source_ids = {row.tobytes() for split in private.splits for row in private.ids(split)}
    for scheme in ("pixel_block_mixing", "visualmixer"):
        folder = reproduced.root / "data/protected" / scheme / "digits"
        public = ImageSet.open(folder)
        everything = b"".join(p.read_bytes() for p in sorted(folder.iterdir()))
        assert private.manifest.root.encode() not in everything
        assert not any(image_id.hex().encode() in everything for image_id in source_ids)
        assert not {row.tobytes() for s in public.splits for row in public.ids(s)} & source_ids


def test_a_changed_scheme_reruns_only_its_own_stages(project: SmallProject) -> None:
    blocks = project.read("params.yaml")["scheme"]
    project.change("params.yaml", scheme={**blocks, "visualmixer": {"region_px": 8, "n": 4}})
    # What reads all of it runs in other tests.
    ran = project.repro("fit", "protect", "attack", "train")
    own = {
        "fit@visualmixer", "protect@visualmixer-digits", "attack@visualmixer",
        "train@visualmixer-small_cnn-0",
    }  # fmt: skip
    assert set(ran) == own


@pytest.mark.slow
def test_a_cnn_that_is_handed_out_is_attacked_and_judged(project: SmallProject) -> None:
    project.change(
        "params.yaml",
        schemes=["plain", "visualmixer"],
        attacked_models=["small_cnn"],
        model_attacks=["gradient_reconstruction"],
        attack={**SHORT["attack"], "gradient_reconstruction": {"targets": 20}},
    )
    ran = set(project.repro())
    assert {"attack_model@plain-small_cnn", "attack_model@visualmixer-small_cnn"} <= ran
    assert not any(name.startswith(("protect@", "train@")) for name in ran)
    found = json.loads((project.root / "reports/verdicts.json").read_text())["models"]
    assert set(found) == {"plain-small_cnn", "visualmixer-small_cnn"}
    for one in found.values():
        assert one["verdict"] != "pass", "membership is required, and was not run"
        assert {finding["attack"] for finding in one["findings"]} >= {"membership"}
    page = (project.root / "reports/index.html").read_text()
    assert "small_cnn, trained on VisualMixer" in page
    assert "No CNN was attacked" not in page


def test_a_new_drop_reruns_only_what_reads_it(project: SmallProject) -> None:
    folder = project.root / "data/raw/second"
    digits = load_digits()
    for index in range(0, 600):
        place = folder / str(digits.target[index])
        place.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[index] * 15.9).astype(np.uint8)[:, ::-1]
        Image.fromarray(pixels).save(place / f"{index}.png")
    (folder / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    drops = project.read("drops.yaml")
    project.change(
        "drops.yaml",
        names=["digits", "second"],
        drops={**drops["drops"], "second": {"path": "data/raw/second", "source": "folder"}},
    )
    before = (project.root / "data/protected/visualmixer/digits/manifest.json").stat().st_ino
    read_both = {"attack@visualmixer", "train@visualmixer-small_cnn-0"}
    ran = set(project.repro("protect", *read_both))
    assert not {stage for stage in ran if stage.endswith("digits") and "@" in stage}
    assert read_both <= ran
    assert not {stage for stage in ran if stage.startswith("fit")}, "it is not learnt from"
    assert {"ingest@second", "check@second", "protect@visualmixer-second"} <= ran
    after = (project.root / "data/protected/visualmixer/digits/manifest.json").stat().st_ino
    assert before == after, "the old drop was not touched"
    refused = (project.root / "data/quarantine/second/quarantine.csv").read_text().splitlines()
    assert len(refused) == 2
    assert "broken.png" in refused[1]


def test_a_changed_key_reruns_protection_and_not_ingestion(project: SmallProject) -> None:
    before = (project.root / "data/protected/visualmixer/digits/train-00000.arrow").read_bytes()
    project.veilset("key", "new", "protection")
    key = project.root / "keys/protection.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    ran = set(project.repro("protect@visualmixer-digits"))
    assert ran == {"protect@visualmixer-digits"}
    after = (project.root / "data/protected/visualmixer/digits/train-00000.arrow").read_bytes()
    assert before != after
    secret = key.read_text().strip()
    for path in (project.root / "dvc.lock", project.root / "keys/protection.fingerprint"):
        assert secret not in path.read_text()
    key.unlink()
    failed = project.run("dvc", "repro", "-f", "-s", "protect@visualmixer-digits", ok=False)
    assert failed.returncode != 0
    sentences = [line for line in failed.stderr.splitlines() if line.startswith("veilset: ")]
    assert len(sentences) == 1
    assert "keys/protection.key" in sentences[0]


def test_a_critical_check_stops_the_pipeline_with_a_sentence(project: SmallProject) -> None:
    project.change("params.yaml", check={"min_train_per_class": 5000})
    failed = project.run("dvc", "repro", ok=False)
    assert failed.returncode != 0
    sentences = [line for line in failed.stderr.splitlines() if line.startswith("veilset: ")]
    assert len(sentences) == 1
    assert "5,000" in sentences[0] or "5000" in sentences[0]
    assert "Running stage 'protect" not in failed.stdout
    findings = json.loads((project.root / "data/checks/digits/results.json").read_text())
    assert any(
        not found["success"] and found["severity"] == "critical" for found in findings["results"]
    )


def test_a_missing_source_and_a_bad_setting_stop_with_a_sentence(project: SmallProject) -> None:
    for change, words in (
        ({"ingest": {"size": 16, "chanels": 1}}, "ingest.chanels"),
        ({"train": {"epochs": 0}}, "train.epochs"),
    ):
        project.change("params.yaml", **change)
        failed = project.run("dvc", "repro", ok=False)
        assert failed.returncode != 0
        sentences = [line for line in failed.stderr.splitlines() if line.startswith("veilset: ")]
        assert len(sentences) == 1
        assert words in sentences[0]
        project.change("params.yaml", **{key: SHORT[key] for key in change})
    drops = project.read("drops.yaml")["drops"]
    project.change("drops.yaml", drops={"digits": {**drops["digits"], "source": "folder",
                                                   "path": "data/raw/absent"}})  # fmt: skip
    failed = project.run("veilset.stages", "ingest", "digits", ok=False)
    assert failed.returncode == 1
    assert "data/raw/absent" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_mlflow_records_each_result_once(project: SmallProject) -> None:
    first = project.veilset("audit", "sync")
    count = len(project.run("dvc", "stage", "list", "--name-only").stdout.split())
    assert f"{count} stage results recorded" in first.stdout
    second = project.veilset("audit", "sync")
    assert "0 stage results recorded" in second.stdout
    assert "up to date" in project.veilset("audit", "sync", "--if-changed").stdout
    assert "agrees" in project.veilset("audit", "check").stdout
