"""The audit store against a real MLflow store, made from a real DVC project."""

import io
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from veilset.adapters.audit_records import COMPLETE, contact_sheet, flatten, item_names
from veilset.adapters.dvc import StageRecord, git_commit, read_lock, stage_key
from veilset.adapters.mlflow_audit import Difference, SyncReport, check, sync, tracking_address
from veilset.data.shards import ImageSet
from veilset.errors import AuditError, BusyError
from veilset.files import locked


@pytest.fixture(scope="module")
def recorded(original: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SyncReport]:
    root = Path(shutil.copytree(original, tmp_path_factory.mktemp("audit") / "p", symlinks=True))
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    before = Path.cwd()
    os.chdir(elsewhere)
    try:
        report = sync(root)
    finally:
        os.chdir(before)
    assert list(elsewhere.iterdir()) == [], "the sync wrote into the current folder"
    return root, report


@pytest.fixture
def store(recorded: tuple[Path, SyncReport], tmp_path: Path) -> Path:
    """A copy of a recorded project; its artifacts stay where they were."""
    return Path(shutil.copytree(recorded[0], tmp_path / "p", symlinks=True))


def client(root: Path) -> Any:
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{root / 'mlflow.db'}"
    return MlflowClient(tracking_uri=address, registry_uri=address)


def all_runs(root: Path) -> list[Any]:
    one = client(root)
    experiment = one.get_experiment_by_name("toy")
    return list(one.search_runs([experiment.experiment_id], run_view_type=3))


def run_of(root: Path, stage: str) -> Any:
    from mlflow.entities import LifecycleStage

    (run,) = [
        run
        for run in all_runs(root)
        if run.data.tags["veilset.stage_name"] == stage
        and run.info.lifecycle_stage == LifecycleStage.ACTIVE
    ]
    return run


def forget(root: Path, *stages: str) -> None:
    for stage in stages:
        client(root).delete_run(run_of(root, stage).info.run_id)


def artifacts(root: Path, run: Any) -> dict[str, bytes]:
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def dump(root: Path) -> list[str]:
    with sqlite3.connect(root / "mlflow.db") as connection:
        return list(connection.iterdump())


def test_every_stage_result_is_on_record_once(recorded: tuple[Path, SyncReport]) -> None:
    root, report = recorded
    records = read_lock(root)
    assert set(report.created) == {record.name for record in records}
    assert (report.unchanged, report.rewritten, report.absent) == ((), (), ())
    runs = all_runs(root)
    assert {run.data.tags["veilset.stage_key"] for run in runs} == set(map(stage_key, records))
    assert len(runs) == len(records)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert check(root) == ()


def test_a_second_sync_changes_not_one_row(store: Path) -> None:
    before = dump(store)
    report = sync(store)
    assert set(report.unchanged) == {record.name for record in read_lock(store)}
    assert (report.created, report.rewritten) == ((), ())
    assert dump(store) == before


def test_an_attack_run_holds_what_was_measured(recorded: tuple[Path, SyncReport]) -> None:
    root, _ = recorded
    run = run_of(root, "attack@noise")
    prefix = "public_release/linkage"
    expected = {"value": 0.5, "low": 0.25, "high": 0.75, "chance": 0.01, "control": 0.1,
                "control_low": 0.0, "control_high": 0.2, "oracle": 0.1, "oracle_low": 0.0,
                "oracle_high": 0.2}  # fmt: skip
    assert run.data.metrics == {f"{prefix}/{key}": value for key, value in expected.items()}
    tags = run.data.tags
    assert tags["veilset.stage"] == "attack"
    assert tags["veilset.scheme"] == "noise"
    assert tags["veilset.not_applicable.public_release/person"] == "no groups"
    assert tags["veilset.key.protection"] == "0123456789abcdef"
    assert tags["veilset.key.ids"] == "fedcba9876543210"
    assert tags["veilset.git_commit"] == git_commit(root)
    assert tags["veilset.git_dirty"] == "false"


def test_no_original_is_logged_unless_asked_for(
    recorded: tuple[Path, SyncReport], store: Path
) -> None:
    root, _ = recorded
    assert set(artifacts(root, run_of(root, "attack@noise"))) == {"results.json", "examples.png"}
    # This scheme leaves images as they are, so what is protected is an original.
    assert set(artifacts(root, run_of(root, "attack@plain"))) == {"results.json"}
    assert artifacts(root, run_of(root, "report")) == {}
    assert artifacts(root, run_of(root, "ingest@first")) == {}
    forget(store, "attack@plain", "report")
    sync(store, log_originals=True, report_is_clean=True)
    assert "examples.png" in artifacts(store, run_of(store, "attack@plain"))
    assert set(artifacts(store, run_of(store, "report"))) == {"index.html"}


def test_the_model_is_found_by_the_data_it_was_trained_and_tested_on(
    recorded: tuple[Path, SyncReport],
) -> None:
    root, _ = recorded
    records = {record.name: record for record in read_lock(root)}
    one = client(root)
    experiment = one.get_experiment_by_name("toy").experiment_id
    trained = next(
        d for d in records["train@noise-tiny-0"].deps if d.path == "data/protected/noise"
    )
    tested = next(d for d in records["evaluate"].deps if d.path == "data/ingested")
    for name, digest in (("toy/noise/train", trained.md5), ("toy/ingested/test", tested.md5)):
        asked = [{"dataset_name": name, "dataset_digest": digest}]
        (model,) = one.search_logged_models([experiment], datasets=asked)
        assert model.name == "noise-tiny-0"
        assert model.source_run_id == run_of(root, "train@noise-tiny-0").info.run_id
        wrong = [{"dataset_name": name, "dataset_digest": "0" * 32 + ".dir"}]
        assert not one.search_logged_models([experiment], datasets=wrong)
    run = run_of(root, "train@noise-tiny-0")
    contexts = {one.dataset.name: one.tags[0].value for one in run.inputs.dataset_inputs}
    assert contexts == {"toy/noise/train": "training", "toy/noise/validation": "evaluation"}
    assert {one.dataset.digest for one in run.inputs.dataset_inputs} == {trained.md5}


def test_the_training_curve_has_a_point_an_epoch(recorded: tuple[Path, SyncReport]) -> None:
    root, _ = recorded
    run = run_of(root, "train@noise-tiny-0")
    history = client(root).get_metric_history(run.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.9), (2, 0.6)]
    assert run.data.metrics["final/validation_accuracy"] == 0.75
    assert run.data.params["model.recipe.lr"] == "0.1"


def test_the_logged_model_is_the_versioned_one_and_predicts(
    recorded: tuple[Path, SyncReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from veilset.training.saved import load_model

    root, _ = recorded
    model_id = run_of(root, "train@noise-tiny-0").data.tags["veilset.model_id"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    found = loaded.predict(images)
    network, card = load_model(root / "data/models/noise-tiny-0")
    import torch

    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = network(card.normaliser.apply(pixels)).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    folder = next((root / "mlartifacts").rglob(f"*{model_id}*"))
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pth", ".pt")]
    stored = next(folder.rglob("model.safetensors"))
    original_file = root / "data/models/noise-tiny-0/model.safetensors"
    assert stored.read_bytes() == original_file.read_bytes()
    signature = loaded.metadata.signature.to_dict()
    assert '"shape": [-1, 8, 8, 3]' in signature["inputs"]
    assert '"shape": [-1, 2]' in signature["outputs"]
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        loaded.predict(images[:, :4])
    example = loaded.input_example
    assert example.shape == (1, 8, 8, 3) and (example == 128).all(), "no image of anybody's"


def test_the_model_is_the_candidate_of_its_name_in_the_registry(
    recorded: tuple[Path, SyncReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    root, _ = recorded
    one, run = client(root), run_of(root, "train@noise-tiny-0")
    version = one.get_model_version_by_alias("toy.noise.tiny", "candidate")
    assert version.run_id == run.info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model("models:/toy.noise.tiny@candidate")
    assert loaded.metadata.model_id == run.data.tags["veilset.model_id"]
    assert version.description.startswith("Learnt from toy/noise/train at ")
    assert version.tags["veilset.scheme"] == "noise"
    assert version.tags["veilset.seed"] == "0"


def test_verdicts_rows_and_parameters_are_on_record(recorded: tuple[Path, SyncReport]) -> None:
    root, _ = recorded
    gate = run_of(root, "gate")
    assert gate.data.tags["veilset.verdict.noise.public_release"] == "fail"
    assert gate.data.tags["veilset.verdict.noise.outside_trainer"] == "pass"
    assert gate.data.metrics["noise/public_release/worst_high"] == 0.75
    protect = run_of(root, "protect@noise-first")
    assert protect.data.params["scheme.noise.inner.a"] == "[1, 2]"
    assert protect.data.params["scheme.parameters.strength"] == "3"
    assert protect.data.metrics["rows/train"] == 9
    assert len(protect.data.tags["veilset.root"]) == 64
    assert protect.data.tags["veilset.drop"] == "first"
    checked = run_of(root, "check@first")
    assert checked.data.tags["veilset.verdict"] == "warning"
    assert checked.data.metrics["check/quarantine_rate"] == 0.125
    assert set(artifacts(root, checked)) == {"results.json", "verdict.json",
                                             "data_docs/index.html"}  # fmt: skip
    evaluated = run_of(root, "evaluate").data.metrics
    assert evaluated["noise/tiny/on_plain/loss_points"] == 12.5
    assert evaluated["compare/tiny/noise_less_plain/value"] == -0.125
    assert evaluated["compare/tiny/noise_less_plain/p_adjusted"] == 0.04


def images_of(root: Path, place: str) -> Any:
    return ImageSet.open(root / place).images("train")


def test_the_source_finds_the_version_by_its_commit(
    recorded: tuple[Path, SyncReport], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from veilset.adapters.dvc_source import DvcDatasetSource

    root, _ = recorded
    (dataset,) = [
        one.dataset
        for one in run_of(root, "train@noise-tiny-0").inputs.dataset_inputs
        if one.dataset.name == "toy/noise/train"
    ]
    assert dataset.source_type == "dvc"
    source = DvcDatasetSource.from_json(dataset.source)
    assert source.to_dict() == json.loads(dataset.source)
    monkeypatch.chdir(store)
    # What MLflow's page tells its reader to run.
    shown = mlflow.data.get_source(dataset)
    assert isinstance(shown, DvcDatasetSource)
    there = ImageSet.open(Path(shown.load()) / "first")
    assert (there.images("train") == images_of(root, "data/protected/noise/first")).all()
    held = next(r for r in read_lock(store) if r.name == "protect@noise-first").outs[0]
    assert DvcDatasetSource(held.path, held.md5).load() == held.path
    shutil.rmtree(store / held.path)
    fetched = Path(source.load(rev=git_commit(store)))
    assert (fetched / "first" / "manifest.json").is_file()
    shutil.rmtree(fetched.parent)
    # Gone from the workspace, it is found by the commit whose lock file names it.
    again = ImageSet.open(Path(source.load()) / "first")
    assert (again.images("train") == images_of(root, "data/protected/noise/first")).all()
    other = DvcDatasetSource(source.path, "0" * 32 + ".dir")
    with pytest.raises(AuditError, match=r"Neither the workspace nor a commit .*rev="):
        other.load()


def test_a_run_that_was_cut_off_is_made_again(store: Path) -> None:
    one = client(store)
    for stage in ("train@noise-tiny-0", "gate"):
        one.delete_tag(run_of(store, stage).info.run_id, COMPLETE)
    old_model = run_of(store, "train@noise-tiny-0").data.tags["veilset.model_id"]
    cut = "was cut off while it was recorded"
    assert set(check(store)) == {Difference("train@noise-tiny-0", cut), Difference("gate", cut)}
    report = sync(store)
    # Its model is another one now, so what was measured on it is linked anew.
    assert set(report.rewritten) == {"train@noise-tiny-0", "gate", "evaluate"}
    assert report.created == ()
    assert check(store) == ()
    experiment = one.get_experiment_by_name("toy").experiment_id
    (model,) = one.search_logged_models([experiment])
    assert model.model_id != old_model
    tested = {metric.dataset_name for metric in model.metrics}
    assert tested == {"toy/noise/train", "toy/ingested/test"}


def test_another_version_is_added_and_history_stays(store: Path) -> None:
    path = store / "dvc.lock"
    lock = yaml.safe_load(path.read_text())
    (store / "reports/verdicts.json").write_text('{"schema": 1, "schemes": {}}')
    from veilset.adapters.dvc import file_md5

    lock["stages"]["gate"]["outs"][0]["md5"] = file_md5(store / "reports/verdicts.json")
    path.write_text(yaml.safe_dump(lock))
    first, *others = sorted(check(store), key=lambda one: one.stage)
    assert first == Difference("gate", "is not on record")
    assert {one.stage.partition("@")[0] for one in others} == {"protect", "train"}
    assert all("veilset.now.verdict.outside_trainer" in one.words for one in others)
    assert sync(store).created == ("gate",)
    runs = [r for r in all_runs(store) if r.data.tags["veilset.stage_name"] == "gate"]
    assert len(runs) == 2
    assert check(store) == ()


def test_a_changed_file_is_never_recorded_as_the_version(store: Path) -> None:
    forget(store, "gate", "report")
    (store / "reports/verdicts.json").write_text('{"schema": 1, "schemes": {"forged": {}}}')
    with pytest.raises(AuditError, match=r"reports/verdicts\.json is not the version"):
        sync(store)
    # All others are on record nevertheless.
    differences = check(store)
    assert [item.stage for item in differences] == ["gate"]


def test_a_changed_file_in_a_folder_is_noticed_without_the_cache(store: Path) -> None:
    shutil.rmtree(store / ".dvc/cache")
    assert check(store) == ()
    results = store / "data/attacks/noise/results.json"
    results.chmod(0o644)
    results.write_text(results.read_text().replace("0.5", "0.1"))
    (found,) = check(store)
    assert found.stage == "attack@noise"
    assert "data/attacks/noise/results.json is not the version" in found.words


def test_absent_files_are_recorded_as_absent_and_completed_later(store: Path) -> None:
    forget(store, "attack@noise")
    hidden = store.parent / "hidden"
    shutil.move(store / "data/attacks/noise", hidden)
    report = sync(store)
    assert report.absent == ("attack@noise",)
    run = run_of(store, "attack@noise")
    assert run.data.tags["veilset.files"] == "absent"
    assert run.data.metrics == {}
    assert check(store) == ()
    assert sync(store).created == ()
    shutil.move(hidden, store / "data/attacks/noise")
    assert {item.stage for item in check(store)} == {"attack@noise", "protect@noise-first"}
    assert sync(store).rewritten == ("attack@noise",)
    assert run_of(store, "attack@noise").data.metrics["public_release/linkage/value"] == 0.5


def test_tampering_with_the_store_is_told(store: Path) -> None:
    with sqlite3.connect(store / "mlflow.db") as connection:
        for statement in (
            "UPDATE latest_metrics SET value = 0.01 WHERE key = 'public_release/linkage/value'",
            "UPDATE tags SET value = 'pass' WHERE key = 'veilset.verdict.noise.public_release'",
        ):
            assert connection.execute(statement).rowcount > 0
    words = {item.stage: item.words for item in check(store)}
    assert set(words) == {"attack@noise", "attack@plain", "gate"}
    assert "public_release/linkage/value is 0.01 in the store, not 0.5" in words["attack@noise"]
    assert "'pass' in the store, not 'fail'" in words["gate"]


def test_two_syncs_at_once_do_not_double_runs(store: Path) -> None:
    with locked(store / "mlflow.db"), pytest.raises(BusyError):
        sync(store)


def test_a_store_that_cannot_be_used_is_one_sentence(original: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(AuditError, match="cannot be used") as caught:
        check(original, f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert "\n" not in str(caught.value)


def test_the_store_is_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_address(tmp_path, None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://audit:5000")
    assert tracking_address(tmp_path, None) == "http://audit:5000"
    assert tracking_address(tmp_path, "sqlite:///x.db") == "sqlite:///x.db"


def examples(path: Path, protected: np.ndarray, original: np.ndarray) -> Path:
    np.savez(path, original=original, protected=protected, reconstruction=original)
    return path


def test_a_contact_sheet_shows_no_image_that_was_left_as_it_is(tmp_path: Path) -> None:
    original = np.full((3, 8, 8, 3), 200, np.uint8)
    protected = original.copy()
    protected[1] = 10
    sheet = contact_sheet(examples(tmp_path / "e.npz", protected, original), originals=False)
    assert sheet is not None
    pixels = np.array(Image.open(io.BytesIO(sheet)))
    assert set(np.unique(pixels)) == {10, 255}
    assert contact_sheet(examples(tmp_path / "f.npz", original, original), originals=False) is None
    shown = contact_sheet(tmp_path / "e.npz", originals=True)
    assert shown is not None
    assert set(np.unique(np.array(Image.open(io.BytesIO(shown))))) == {10, 200, 255}


def test_a_grey_contact_sheet(tmp_path: Path) -> None:
    original = np.zeros((20, 100, 90, 1), np.uint8)
    sheet = contact_sheet(examples(tmp_path / "e.npz", original + 7, original), originals=False)
    assert sheet is not None
    assert Image.open(io.BytesIO(sheet)).size == (8 * 94, 3 * 104)


def test_nested_parameters_become_dotted_text() -> None:
    values = {"a": {"b": 1, "c": [1, "x"]}, "d": "text", "e": {}, "f": None, "g": True}
    expected = {"a.b": "1", "a.c": '[1, "x"]', "d": "text", "e": "{}", "f": "null", "g": "true"}
    assert dict(flatten(values)) == expected


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("ingest@first", {"drop": "first"}),
        ("protect@pixel_block_mixing-first", {"scheme": "pixel_block_mixing", "drop": "first"}),
        (
            "train@visualmixer-small_cnn-3",
            {"scheme": "visualmixer", "model": "small_cnn", "seed": "3"},
        ),
        ("attack@plain", {"scheme": "plain"}),
        ("gate", {}),
    ],
)
def test_names_in_a_stage(name: str, names: dict[str, str]) -> None:
    assert item_names(StageRecord(name, "", (), {}, ())) == names


@pytest.fixture(autouse=True)
def no_environment_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
