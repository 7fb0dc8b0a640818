"""`veilset audit dataset|model|scheme|drop|commit|date` on a real project of DVC and git."""

import hashlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_project import AuditProject, make_project, make_version
from cli_run import Run, sentence

from veilset.adapters.audit_runs import find_runs
from veilset.adapters.dvc import read_lock, stage_key
from veilset.adapters.mlflow_audit import sync
from veilset.data.shards import ImageSet, shard_entry
from veilset.drops.record import DROPS_JOURNAL
from veilset.keys import Key, key_path, new_key
from veilset.quiet import quiet
from veilset.release.history import RELEASES

SET = "data/protected/mixer/first"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> AuditProject:
    quiet()
    return make_project(tmp_path_factory.mktemp("audited"))


@pytest.fixture
def project(
    original: AuditProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> AuditProject:
    """A copy to change, which is the current folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("VEILSET_PROTECTION_KEY", raising=False)
    root = Path(shutil.copytree(original.root, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(root)
    return AuditProject(root)


def asked(run: Run, *words: str, code: int = 0) -> dict[str, Any]:
    """The answer as JSON, after its exit code."""
    found, out, err = run("audit", *words, "--json")
    assert found == code, out + err
    answer = json.loads(out)
    assert isinstance(answer, dict)
    assert answer["complete"] == (not answer["missing"]) == (code == 0)
    return answer


def files(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and path.name != "index"
    }


# ------------------------------------------------------------------------------ what is answered


def test_all_of_a_version_is_told(project: AuditProject, run: Run) -> None:
    answer = asked(run, "dataset", "toy/mixer/train")
    (drop,) = answer["drops"]
    assert (drop["name"], drop["state"], drop["licence"]) == ("first", "accepted", "CC BY 4.0")
    assert (drop["consent"], drop["by"]) == ("Form 7, signed", "Grace Hopper")
    assert drop["decisions"] == [
        "approved on 2026-01-06 by Mary Somerville (the shift in brightness is known)"
    ]
    assert (drop["images"], drop["failed"]) == ({"train": 12, "test": 6}, [])
    assert drop["warnings"] == ["class_imbalance"]
    (made,) = answer["protected"]
    manifest = project.manifest()
    assert (made["root"], made["digest"]) == (manifest.root, project.digest("protect@mixer-first"))
    assert made["parameters"]["block_width"] == 8 and made["kind"] == "pixel_block_mixing"
    assert (made["key"], made["images"]) == (manifest.key_fingerprint, {"train": 12})
    recorded = made["recorded"]
    assert (recorded["by"], recorded["commit"]) == (
        "Emmy Noether", project.git("rev-parse", "HEAD~1"),
    )  # fmt: skip
    assert recorded["at"].startswith("2026-03-01T10:00") and recorded["code"] is True
    assert answer["packages"] == {"numpy": "2.4.6", "torch": "2.15.0"}
    (verdict,) = answer["verdicts"]
    assert (verdict["receiver"], verdict["verdict"]) == ("public_release", "fail")
    (attack,) = verdict["attacks"]
    assert (attack["attack"], attack["value"], attack["threshold"]) == ("linkage", 0.5, 0.25)
    (model,) = answer["models"]
    assert (model["name"], model["sets"]) == ("mixer-tiny-0", ["mixer/first"])
    (utility,) = model["utility"]
    assert (utility["accuracy"], utility["loss"], utility["baseline"]) == (0.625, 12.5, 0.875)
    refused, released, withdrawn = answer["releases"]
    assert refused["event"] == "refused" and refused["reasons"] == ["the verdict is no pass"]
    assert refused["this_version"] is None
    assert released["this_version"] is True and released["waived_by"] == "Mary Somerville"
    assert withdrawn["event"] == "withdrawn" and withdrawn["reasons"] == ["a person asked for it"]


def test_the_words_say_all_that_the_json_says(project: AuditProject, run: Run) -> None:
    answer = asked(run, "dataset", "toy/mixer/train", "--reproduce")
    code, out, _ = run("audit", "dataset", "toy/mixer/train", "--reproduce")
    assert code == 0 and "The record is complete." in out
    said = " ".join(out.split())
    told = list(leaves(answer))
    assert len(told) > 60
    missing = [(path, words) for path, words in told if words not in said]
    assert not missing


# Said by a sentence of its own, or what is said in full elsewhere.
_NOT_WORD_FOR_WORD = {
    "question", "value", "complete", "this_version", "code", "declared", "counts", "stage",
    "demo_key", "learns", "reversible",
}  # fmt: skip
_SHARES = {
    ("models", "low"), ("models", "high"), ("models", "accuracy"), ("models", "baseline"),
    ("models", "validation_accuracy"),
}  # fmt: skip


def leaves(value: Any, *path: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every fact of an answer, with how its words should have it."""
    if {*path[-1:]} & _NOT_WORD_FOR_WORD or path[-2:] == ("recorded", "parameters"):
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, *path, key)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, *path)
    elif value not in (None, ""):
        yield path, shown(value, path)


def shown(value: Any, path: tuple[str, ...]) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        points = "loss" in path[-1]
        share = (path[0], path[-1]) in _SHARES
        return f"{value:.1f}" if points else f"{100 * value:.1f} %" if share else f"{value:g}"
    if path[-1] == "commit":
        return str(value)[:12]
    if path[-1] == "at":
        return f"{datetime.fromisoformat(value):%Y-%m-%d %H:%M} UTC"
    if path == ("verdicts", "verdict"):
        return str(value).upper()
    return str(value).replace("_", " ") if path[-1] == "receiver" else str(value)


def test_a_version_is_found_by_each_of_its_names(project: AuditProject, run: Run) -> None:
    by_name = asked(run, "dataset", "toy/mixer/train")
    whole = str(project.lock["train@mixer-tiny-0"]["deps"][0]["md5"])
    digest = project.digest("protect@mixer-first")
    for value in (digest, digest[:7], project.manifest().root[:12].upper(), whole[:9]):
        found = asked(run, "dataset", value)
        assert {**found, "value": "", "subject": ""} == {**by_name, "value": "", "subject": ""}


def test_each_question_finds_its_subject(project: AuditProject, run: Run) -> None:
    model = asked(run, "model", "mixer-tiny-0")
    assert [one["name"] for one in model["models"]] == ["mixer-tiny-0"]
    assert model["verdicts"] and model["drops"][0]["consent"] == "Form 7, signed"
    scheme = asked(run, "scheme", "mixer")
    assert [one["by"] for one in scheme["changes"]] == ["Ada Byron", "Emmy Noether"]
    assert "protect@mixer-first" in scheme["changes"][0]["stages"]
    drop = asked(run, "drop", "first")
    assert [one["scheme"] for one in drop["protected"]] == ["mixer"]
    assert drop["changes"][0]["stages"][0] == "ingest@first"
    assert len(drop["releases"]) == 3 and drop["models"]


def test_a_drop_is_behind_what_a_scheme_learnt_from_it_protects(
    project: AuditProject, run: Run
) -> None:
    root = project.root
    for folder in ("data/ingested", "data/protected/mixer"):
        shutil.copytree(root / folder / "first", root / folder / "second")
    manifest = project.manifest()
    learnt = {**dict(manifest.scheme or {}), "fitted_hash": "ab" * 32}
    (root / "data/protected/mixer/second/manifest.json").chmod(0o644)
    changed = manifest.model_copy(update={"scheme": learnt})
    changed.save(root / "data/protected/mixer/second")
    pipeline = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(pipeline.replace("drop: [first]", "drop: [first, second]"))
    project.dvc("commit", "-f", "-q")
    project.commit("2026-04-01T10:00:00+00:00")
    answer = asked(run, "drop", "first", code=1)
    sets = {one["drop"]: one["fitted_on"] for one in answer["protected"]}
    assert sets == {"first": [], "second": ["first"]}
    assert [one["name"] for one in answer["drops"]] == ["first", "second"]
    assert any("consent of the drop second" in one for one in answer["missing"])
    assert {one["drop"] for one in asked(run, "drop", "second", code=1)["protected"]} == {"second"}


def test_nothing_is_written_and_nothing_raw_is_told(project: AuditProject, run: Run) -> None:
    before = files(project.root)
    told = ""
    for question in (("scheme", "mixer"), ("commit", "HEAD~2"), ("date", "2026-01-01..2026-12-31"),
                     ("dataset", "toy/mixer/train"), ("drop", "first")):  # fmt: skip
        extra = () if question[0] == "date" else ("--reproduce",)
        told += run("audit", *question, *extra, "--json")[1] + run("audit", *question, *extra)[1]
    assert files(project.root) == before
    plain = ImageSet.open(project.root / "data/ingested/first")
    assert plain.manifest.root[:12] not in told
    assert project.digest("ingest@first")[:12] not in told
    assert "0" * 64 not in told, "the keyed digest of the raw drop is in the answer"
    assert not any(bytes(one).hex() in told for one in plain.ids("train"))
    assert key_path("protection", project.root).read_text().strip() not in told
    assert "a@example.org" not in told


# ------------------------------------------------------------------------------ earlier versions


@pytest.mark.parametrize("question", ["commit", "dataset"])
def test_an_earlier_version_is_read_without_being_checked_out(
    project: AuditProject, run: Run, question: str
) -> None:
    old = project.git("show", "HEAD~2:dvc.lock")
    digest = old.partition(f"path: {SET}\n")[2].partition("md5: ")[2].split("md5: ")[0][:12]
    for folder in ("data/protected", "data/ingested", "data/models", "data/checks", "reports"):
        shutil.rmtree(project.root / folder)
    project.git("checkout", "-q", "--", str(RELEASES))
    value = "HEAD~2" if question == "commit" else digest
    answer = asked(run, question, value, "--reproduce")
    (made,) = answer["protected"]
    assert made["parameters"]["block_width"] == 4
    assert made["recorded"]["by"] == "Ada Byron"
    assert answer["commit"] == project.git("rev-parse", "HEAD~2")
    assert answer["verdicts"][0]["attacks"][0]["value"] == 0.5
    assert answer["models"][0]["validation_accuracy"] == 0.75
    assert answer["samples"] == [
        {"set": "mixer/first", "images": 12, "equal": 12, "obstacle": None, "remark": None}
    ]
    assert not (project.root / "data/protected").exists()


def test_what_neither_workspace_nor_cache_has_is_said_to_be_missing(
    project: AuditProject, run: Run
) -> None:
    shutil.rmtree(project.root / ".dvc/cache")
    shutil.rmtree(project.root / "data/ingested")
    answer = asked(run, "commit", "HEAD~2", "--reproduce", code=1)
    missing = " ".join(answer["missing"])
    for words in ("manifest", "mixer-tiny-0 was trained", "drop first", "DVC's cache"):
        assert words in missing
    assert answer["samples"][0]["obstacle"]
    assert answer["protected"][0]["recorded"]["by"] == "Ada Byron"


def test_a_commit_tells_the_releases_of_its_images(project: AuditProject, run: Run) -> None:
    assert len(asked(run, "commit", "HEAD")["releases"]) == 2, "by the images"
    assert len(asked(run, "commit", "HEAD~1")["releases"]) == 3, "by the commit"
    assert asked(run, "commit", "HEAD~2")["releases"] == []


def test_a_span_of_dates_holds_what_fell_into_it(project: AuditProject, run: Run) -> None:
    january = asked(run, "date", "2026-01-05..2026-01-31")
    assert [one["name"] for one in january["drops"]] == ["first"]
    assert january["releases"] == january["changes"] == []
    first = asked(run, "date", "2026-03-01")
    assert [one["event"] for one in first["releases"]] == ["refused"]
    assert [one["by"] for one in first["changes"]] == ["Emmy Noether"]
    assert "protect@mixer-first" in first["changes"][0]["stages"] and first["drops"] == []
    assert "ingest@first" not in first["changes"][0]["stages"], "the drop was not read anew"
    assert [one["event"] for one in asked(run, "date", "2026-03-02..2026-03-31")["releases"]] == [
        "released", "withdrawn",
    ]  # fmt: skip


# ------------------------------------------------------------------------------ incomplete


def _uncommit(project: AuditProject) -> None:
    make_version(project, width=2)


def _outside_git(project: AuditProject) -> None:
    shutil.rmtree(project.root / ".git")
    (project.root / ".dvc/config").write_text("[core]\n    no_scm = true\n")


def _no_drop_record(project: AuditProject) -> None:
    project.git("rm", "-q", str(DROPS_JOURNAL))
    project.git("commit", "-q", "-m", "gone")


def _journal_not_in_git(project: AuditProject) -> None:
    project.git("rm", "-q", "--cached", str(RELEASES))
    project.git("commit", "-q", "-m", "gone")


def _journal_cut(project: AuditProject) -> None:
    path = project.root / RELEASES
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def _journal_gone(project: AuditProject) -> None:
    (project.root / RELEASES).unlink()


def _journal_altered(project: AuditProject) -> None:
    path = project.root / RELEASES
    path.write_text(path.read_text().replace("refused", "rEfused"))


def _no_verdict(project: AuditProject) -> None:
    (project.root / "reports/verdicts.json").write_text('{"suite": "2", "schemes": {}}')
    project.dvc("commit", "-f", "-q", "gate")
    project.commit("2026-04-01T10:00:00+00:00")


def _verdict_lost(project: AuditProject) -> None:
    project.git("rm", "-q", "reports/verdicts.json")
    project.git("commit", "-q", "-m", "gone")
    shutil.rmtree(project.root / ".dvc/cache")


def _no_card(project: AuditProject) -> None:
    (project.root / "reports/cards/mixer.json").rename(project.root / "reports/cards/other.json")
    project.dvc("commit", "-f", "-q", "gate")
    project.commit("2026-04-01T10:00:00+00:00")


def _stale_attacks(project: AuditProject) -> None:
    attack = project.lock["attack@mixer"]
    make_version(project, width=2)
    lock = (project.root / "dvc.lock").read_text()
    now = project.lock["attack@mixer"]["deps"][0]["md5"]
    head, _, tail = lock.partition("attack@mixer:")
    tail = tail.replace(now, attack["deps"][0]["md5"], 1)
    (project.root / "dvc.lock").write_text(f"{head}attack@mixer:{tail}")
    project.commit("2026-04-01T10:00:00+00:00")


def _code_not_in_git(project: AuditProject) -> None:
    code = project.root / "src/veilset/schemes/mixing.py"
    code.write_text("CODE = 2\n")
    project.dvc("commit", "-f", "-q")
    code.write_text("CODE = 1\n")
    project.commit("2026-04-01T10:00:00+00:00")


def _no_pins(project: AuditProject) -> None:
    (project.root / "requirements.lock").unlink()


def _no_model(project: AuditProject) -> None:
    shutil.rmtree(project.root / "data/models")
    shutil.rmtree(project.root / ".dvc/cache")


def _other_workspace(project: AuditProject) -> None:
    flip_a_byte(project)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_uncommit, "protect@mixer-first as it is here is not committed"),
        (_outside_git, "git has no dvc.lock of this project"),
        (_no_drop_record, "Nobody recorded licence and consent of the drop first"),
        (_journal_not_in_git, "releases.jsonl is not in git"),
        (_journal_cut, "releases.jsonl lacks or alters lines that git has"),
        (_journal_gone, "releases.jsonl is missing, and git has it"),
        (_journal_altered, "not as it was written"),
        (_no_verdict, "There is no verdict on mixer"),
        (_verdict_lost, "The verdict on mixer is not known"),
        (_no_card, "There is no leakage card of mixer"),
        (_stale_attacks, "The attacks on mixer on record were made on another version"),
        (_code_not_in_git, "The code that protect@mixer-first ran is not what git has"),
        (_no_pins, "The environment is not on record"),
        (_no_model, "How the model mixer-tiny-0 was trained is not known"),
        (_other_workspace, "is not the version that dvc.lock records"),
    ],
)
def test_what_is_missing_is_named(
    project: AuditProject, run: Run, spoil: Callable[[AuditProject], None], words: str
) -> None:
    spoil(project)
    answer = asked(run, "scheme", "mixer", code=1)
    assert any(words in sentence for sentence in answer["missing"]), answer["missing"]
    code, out, _ = run("audit", "scheme", "mixer")
    assert code == 1 and "THE RECORD IS INCOMPLETE" in out and words in out


# ------------------------------------------------------------------------------ made again


def flip_a_byte(project: AuditProject) -> None:
    """Alters a stored image and all hashes of it in the set."""
    folder = project.root / SET
    image = ImageSet.open(folder).images("train", np.asarray([5]))[0].tobytes()
    shard = folder / "train-00000.arrow"
    raw = bytearray(shard.read_bytes())
    assert raw.count(image) == 1
    raw[raw.index(image) + 100] ^= 1
    shard.chmod(0o644)
    (folder / "manifest.json").chmod(0o644)
    shard.write_bytes(raw)
    manifest = project.manifest()
    manifest.model_copy(update={"shards": (shard_entry(shard),)}).save(folder)
    ImageSet.open(folder).verify()


def test_a_flipped_bit_is_found_by_protecting_again_alone(project: AuditProject, run: Run) -> None:
    flip_a_byte(project)
    project.dvc("commit", "-f", "-q", "protect@mixer-first")
    answer = asked(run, "dataset", "toy/mixer/train", "--reproduce", code=1)
    (sample,) = answer["samples"]
    assert (sample["images"], sample["equal"]) == (12, 11)
    assert any("1 of 12 sampled images of mixer/first" in one for one in answer["missing"])


def test_a_small_sample_is_drawn(project: AuditProject, run: Run) -> None:
    answer = asked(run, "scheme", "mixer", "--reproduce", "--sample", "5")
    assert (answer["samples"][0]["images"], answer["samples"][0]["equal"]) == (5, 5)
    assert asked(run, "scheme", "mixer")["samples"] is None


def test_with_another_key_it_is_said_which_is_wanted(project: AuditProject, run: Run) -> None:
    made = str(project.manifest().key_fingerprint)
    new_key("protection", project.root, replace=True)
    kept = project.root / f"keys/protection.{made}.key"
    question = ("dataset", project.digest("protect@mixer-first")[:8], "--reproduce")
    assert asked(run, *question)["samples"][0]["equal"] == 12, "the key that was kept beside it"
    kept.unlink()
    obstacle = asked(run, *question, code=1)["samples"][0]["obstacle"]
    now = Key(bytes.fromhex(key_path("protection", project.root).read_text())).fingerprint
    assert made in obstacle and now in obstacle
    key_path("protection", project.root).unlink()
    assert "is missing" in asked(run, *question, code=1)["samples"][0]["obstacle"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 1}, "was made by version 1"),
        ({"fitted_hash": "ab" * 32}, "what it has learnt here is not what protected this set"),
        ({"name": "gone"}, "gone"),
    ],
)
def test_other_code_and_other_lessons_are_told(
    project: AuditProject, run: Run, change: dict[str, Any], words: str
) -> None:
    manifest = project.manifest()
    changed = manifest.model_copy(update={"scheme": {**dict(manifest.scheme or {}), **change}})
    (project.root / SET / "manifest.json").chmod(0o644)
    changed.save(project.root / SET)
    answer = asked(run, "scheme", "mixer", "--reproduce", code=1)
    assert words in answer["samples"][0]["obstacle"]


def test_other_plain_images_are_told(project: AuditProject, run: Run) -> None:
    folder = project.root / "data/ingested/first"
    (folder / "manifest.json").chmod(0o644)
    plain = ImageSet.open(folder).manifest
    (folder / "test-00000.arrow").unlink()
    shards = tuple(one for one in plain.shards if one.split == "train")
    plain.model_copy(update={"shards": shards, "splits": {"train": 12}}).save(folder)
    answer = asked(run, "scheme", "mixer", "--reproduce", code=1)
    assert "not those that this set was made from" in answer["samples"][0]["obstacle"]


# ------------------------------------------------------------------------------ no such thing


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("dataset", "toy/other/train"), "toy/mixer/train"),
        (("dataset", "toy/ingested/train"), "veilset audit drop"),
        (("dataset", "123456789abc"), "No protected set"),
        (("dataset", "nonsense"), "neither a name"),
        (("model", "mixer-tiny-9"), "mixer-tiny-0"),
        (("model", "toy.mixer.tiny/1"), "no MLflow store"),
        (("scheme", "other"), "mixer"),
        (("drop", "other"), "first"),
        (("commit", "--end"), "No such option"),
        (("commit", "nowhere"), "git knows no revision"),
        (("date", "yesterday"), "no span of dates"),
        (("date", "2026-02-30"), "no span of dates"),
        (("date", "2026-03-01..2026-02-01"), "no span of dates"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    project: AuditProject, run: Run, words: tuple[str, str], told: str
) -> None:
    code, out, err = run("audit", *words)
    assert code != 0 and out == ""
    assert told in (err if "No such option" in told else sentence(err))


def test_a_workspace_without_a_lock_answers_from_git(project: AuditProject, run: Run) -> None:
    (project.root / "dvc.lock").unlink()
    assert asked(run, "scheme", "mixer")["commit"] == project.git("rev-parse", "HEAD~1")
    missing = asked(run, "date", "2026-03-01", code=1)["missing"]
    assert any("no dvc.lock in the workspace" in one for one in missing)


def test_git_is_left_alone(project: AuditProject, run: Run) -> None:
    before = subprocess.run(
        ["git", "status", "--porcelain=v2", "--branch"], cwd=project.root, capture_output=True,
        check=True,
    ).stdout  # fmt: skip
    asked(run, "commit", "HEAD~2")
    after = subprocess.run(
        ["git", "status", "--porcelain=v2", "--branch"], cwd=project.root, capture_output=True,
        check=True,
    ).stdout  # fmt: skip
    assert before == after


# ------------------------------------------------------------------------------ MLflow


def test_runs_and_registered_models_are_found(project: AuditProject, run: Run) -> None:
    root = project.root
    assert asked(run, "model", "mixer-tiny-0")["runs"] == []
    assert not (root / "mlflow.db").exists(), "a question made a store"
    sync(root)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db", f"sqlite:///{root}/mlflow.db")
    (stage,) = [one for one in read_lock(root) if one.kind == "train"]
    told = f"tags.`veilset.stage_key` = '{stage_key(stage)}'"
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    (recorded,) = client.search_runs([experiment.experiment_id], told)
    client.create_registered_model("toy.mixer.tiny")
    client.create_model_version("toy.mixer.tiny", "elsewhere", run_id=recorded.info.run_id)
    before = dump(root)
    answer = asked(run, "model", "toy.mixer.tiny/1")
    assert [one["name"] for one in answer["models"]] == ["mixer-tiny-0"]
    found = {one["stage"]: one for one in answer["runs"]}
    assert set(found) == {
        "protect@mixer-first", "attack@mixer", "train@mixer-tiny-0", "evaluate", "gate",
    }  # fmt: skip
    mine = found["train@mixer-tiny-0"]
    page = f"/#/experiments/{experiment.experiment_id}/runs/{recorded.info.run_id}"
    assert (mine["run"], mine["address"]) == (
        recorded.info.run_id, f"http://127.0.0.1:5000{page}",
    )  # fmt: skip
    for unknown in ("toy.mixer.tiny/2", "toy.none.tiny/1"):
        assert "registry has no model" in run("audit", "model", unknown)[2]
    # A later training under that name is not the one that was registered.
    make_version(project, width=2)
    project.commit("2026-04-01T10:00:00+00:00")
    earlier = asked(run, "model", "toy.mixer.tiny/1")
    assert earlier["protected"][0]["parameters"]["block_width"] == 8
    assert find_runs(root, "toy", {"0" * 64: "train@other"}) == ()
    assert find_runs(root, "another data set", {stage_key(stage): "x"}) == ()
    assert dump(root) == before


def dump(root: Path) -> list[str]:
    with sqlite3.connect(root / "mlflow.db") as connection:
        return list(connection.iterdump())


def test_a_store_that_cannot_be_read_keeps_no_answer_back(project: AuditProject, run: Run) -> None:
    store = project.root / "mlflow.db"
    store.write_bytes(b"no database at all")
    assert asked(run, "scheme", "mixer")["runs"] == []
    assert store.read_bytes() == b"no database at all"
