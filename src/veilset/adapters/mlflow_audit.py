"""The audit store: MLflow runs made from `dvc.lock` and versioned files, never during a stage.

One run a stage result, found by the tag `veilset.stage_key`. A second `sync` changes nothing; a run
that was cut off is made again; a result that DVC restored from its cache is on record like any
other; a clone can rebuild the store. A trained model is an MLflow LoggedModel that holds the very
files that DVC versions (safetensors, no pickle) with a loader of ours: exporting it once more
would take seconds a model and record other bytes than those that were measured.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from veilset.adapters.audit_records import (
    COMPLETE,
    FILES,
    KEY,
    LIVE,
    LIVE_PREFIX,
    WEIGHTS,
    Evidence,
    Point,
    RunRecord,
    Use,
    Workspace,
    clean_key,
    dataset_name,
    files_present,
    item_names,
    make_record,
)
from veilset.adapters.audit_standing import DIGEST, EVIDENCE, PREFIX, Present, Standing
from veilset.adapters.dvc import StageRecord, git_commit, git_dirty, read_lock, stage_key
from veilset.errors import AuditError
from veilset.files import locked
from veilset.quiet import quiet

_MODEL: Final = "veilset.model_id"
_BATCH: Final = 100
_METRICS: Final = 900
_WHEN: Final = ("veilset.git_commit", "veilset.git_dirty", COMPLETE, _MODEL, LIVE)


@dataclass(frozen=True)
class SyncReport:
    """What a sync did, by stage name.

    Attributes:
        tracking_uri: The store.
        experiment: The experiment's name.
        created: New runs.
        rewritten: Runs that had been cut off, or whose files were absent before.
        unchanged: Runs that were there already.
        absent: Stages on record without their files (among created or unchanged): the workspace
            does not have them, so only the facts of `dvc.lock` are recorded.
    """

    tracking_uri: str
    experiment: str
    created: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """One sentence for people."""
        missing = f", {len(self.absent)} of them without files" if self.absent else ""
        return (
            f"{len(self.created)} stage results recorded, {len(self.rewritten)} recorded again, "
            f"{len(self.unchanged)} already there{missing}."
        )


@dataclass(frozen=True)
class Difference:
    """Where store and versions disagree.

    Attributes:
        stage: The stage's name.
        words: What differs.
    """

    stage: str
    words: str


def tracking_address(root: Path, tracking_uri: str | None) -> str:
    """The store: as given, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project."""
    default = f"sqlite:///{root.resolve() / 'mlflow.db'}"
    return tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def sync(
    root: Path,
    tracking_uri: str | None = None,
    *,
    log_originals: bool = False,
    report_is_clean: bool = False,
) -> SyncReport:
    """Brings the audit store up to date with `dvc.lock`.

    Args:
        root: The project's folder.
        tracking_uri: The store; see `tracking_address`.
        log_originals: Whether pictures may show originals and reconstructions.
        report_is_clean: Whether the report page shows none, so that it may be logged.

    Returns:
        What was done. A stage whose files are absent from the workspace is recorded from `dvc.lock`
        alone, with the tag `veilset.files` = `absent`, and again in full once they are there.

    Raises:
        AuditError: There is no lock file; a file is another version than the one on record (every
            other stage is recorded first); or the store cannot be reached.
        BusyError: Another sync of this project is running.
    """
    place = _workspace(root, log_originals=log_originals, report_is_clean=report_is_clean)
    # Before our own lock file makes the project look changed.
    when = _when(root)
    address = tracking_address(root, tracking_uri)
    with locked(root / "mlflow.db"), quiet_mlflow(), _reachable(address):
        return _Store.open(place, address).sync(when)


def check(
    root: Path,
    tracking_uri: str | None = None,
    *,
    log_originals: bool = False,
    report_is_clean: bool = False,
) -> tuple[Difference, ...]:
    """Compares the audit store with `dvc.lock` and the files in the workspace.

    Args:
        root: The project's folder.
        tracking_uri: The store; see `tracking_address`.
        log_originals: As it was for `sync`.
        report_is_clean: As it was for `sync`.

    Returns:
        Every disagreement: results without a run, runs that were cut off or doubled, and runs whose
        parameters, tags, numbers or data sets are not what the versions say. Runs of earlier
        versions are history and no disagreement. Empty if all is well.

    Raises:
        AuditError: There is no lock file, or the store cannot be reached.
    """
    place = _workspace(root, log_originals=log_originals, report_is_clean=report_is_clean)
    address = tracking_address(root, tracking_uri)
    with quiet_mlflow(), _reachable(address):
        store = _Store.open(place, address)
        return tuple(item for stage in place.stages for item in store.differences(stage))


@contextmanager
def _reachable(address: str) -> Iterator[None]:
    """Turns what a store raises that is away, or goes away meanwhile, into one sentence."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - seconds to import
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise AuditError(
            f"The audit store {address} cannot be used ({reason}): see that it is reachable and "
            "writable, then sync again, which goes on where this ended."
        ) from None


def _workspace(
    root: Path, *, log_originals: bool = False, report_is_clean: bool = False
) -> Workspace:
    # Models first: what was measured on a model is linked to it.
    stages = sorted(read_lock(root), key=lambda stage: stage.kind != "train")
    return Workspace(
        root=root, dataset=dataset_name(root), stages=tuple(stages),
        log_originals=log_originals, report_is_clean=report_is_clean,
    )  # fmt: skip


@dataclass
class _Store:
    """One experiment of an open store."""

    place: Workspace
    client: Any
    address: str
    experiment: str
    runs: dict[str, list[Any]]
    models: dict[str, str] = field(default_factory=dict)
    new_models: bool = False

    @classmethod
    def open(cls, place: Workspace, address: str) -> "_Store":
        """Connects, migrates an older database, and reads which results are on record."""
        client, experiment = open_experiment(address, place.dataset, place.root)
        runs = _runs_by_key(client, experiment)
        return cls(place, client, address, experiment, runs)

    @cached_property
    def _present(self) -> Present:
        return Present(self.place)

    def sync(self, when: Mapping[str, str]) -> SyncReport:
        """Records every result that is not on record, with the tags `when`."""
        done: dict[str, list[str]] = {"created": [], "rewritten": [], "unchanged": []}
        faults: list[AuditError] = []
        for stage in self.place.stages:
            try:
                done[self._sync_stage(stage, when)].append(stage.name)
            except AuditError as error:
                faults.append(error)
        self._sync_standing()
        if faults:
            more = f" ({len(faults) - 1} more like it)" if len(faults) > 1 else ""
            raise AuditError(f"{str(faults[0]).rstrip('.')}{more}.")
        absent = [one.name for one in self.place.stages if not files_present(self.place, one)]
        return SyncReport(
            tracking_uri=self.address, experiment=self.place.dataset, absent=tuple(absent),
            **{name: tuple(stages) for name, stages in done.items()},
        )  # fmt: skip

    def _sync_stage(self, stage: StageRecord, when: Mapping[str, str]) -> str:
        found = self.runs.get(stage_key(stage), [])
        sound = [run for run in found if self._is_sound(run, stage)]
        # What was measured on a model is linked to its record: to a new one, anew.
        if sound and not (self.new_models and stage.kind == "evaluate"):
            self._remember_model(stage.name, sound[0])
            return "unchanged"
        record = make_record(self.place, stage)
        for run in found:
            self._forget(run)
        self._write(record, when)
        self.new_models |= record.model is not None
        return "rewritten" if found else "created"

    def _sync_standing(self) -> None:
        """Renews what is known of versions and models beyond the results themselves."""
        self.runs = _runs_by_key(self.client, self.experiment)
        approved: dict[str, int] = {}
        for stage in self.place.stages:
            standing = self._present.of(stage)
            if standing is None:
                continue
            for run in self.runs.get(stage_key(stage), []):
                self._renew(run, standing)
                if stage.kind == "train":
                    self._renew_version(run, stage, standing, approved)
        self._approve(approved)

    def _renew(self, run: Any, standing: Standing) -> None:
        run_id, tags = run.info.run_id, run.data.tags
        stale = [name for name in tags if name.startswith(PREFIX) and name not in standing.tags]
        if standing.tags.get(DIGEST) != tags.get(DIGEST):
            self._log_evidence(run_id, standing.evidence, EVIDENCE)
        for name in stale:
            self.client.delete_tag(run_id, name)
        for name, value in standing.tags.items():
            if tags.get(name) != value:
                self.client.set_tag(run_id, name, value)

    def _renew_version(
        self, run: Any, stage: StageRecord, standing: Standing, approved: dict[str, int]
    ) -> None:
        """The registry's page of a model: what it learnt from, and how that stands."""
        name = registered_name(self.place.dataset, stage)
        for version in self.client.search_model_versions(f"run_id = '{run.info.run_id}'"):
            words = f"{_first_sentence(version.description)} {standing.words}"
            if version.description != words:
                self.client.update_model_version(version.name, version.version, words)
            for tag, value in standing.tags.items():
                if version.tags.get(tag) != value:
                    self.client.set_model_version_tag(version.name, version.version, tag, value)
            out = int(version.version) if standing.released == "standing" else 0
            approved[name] = max(approved.get(name, 0), out)

    def _approve(self, approved: Mapping[str, int]) -> None:
        """`approved` is the newest model that learnt from a version that is out and stands."""
        for name, newest in approved.items():
            held = self.client.get_registered_model(name).aliases.get("approved")
            if newest and held != str(newest):
                self.client.set_registered_model_alias(name, "approved", str(newest))
            elif held is not None and not newest:
                self.client.delete_registered_model_alias(name, "approved")

    def _is_sound(self, run: Any, stage: StageRecord) -> bool:
        """Whether a run is finished and holds all that is known now."""
        tags = run.data.tags
        if tags.get(COMPLETE) != "true":
            return False
        return tags.get(FILES) == "present" or not files_present(self.place, stage)

    def _remember_model(self, stage: str, run: Any) -> None:
        if model := run.data.tags.get(_MODEL):
            self.models[stage] = model

    def _forget(self, run: Any) -> None:
        """Deletes a run with its models, the models first: a run without them is found again."""
        for version in self.client.search_model_versions(f"run_id = '{run.info.run_id}'"):
            self.client.delete_model_version(version.name, version.version)
        models = self.client.search_logged_models(
            [self.experiment], filter_string=f"source_run_id = '{run.info.run_id}'"
        )
        for model in models:
            self.client.delete_logged_model(model.model_id)
        self.client.delete_run(run.info.run_id)

    def _write(self, record: RunRecord, when: Mapping[str, str]) -> None:
        tags = dict(record.tags) | dict(when)
        run_id = self._live_run(record, tags)
        if run_id is None:
            run = self.client.create_run(self.experiment, run_name=record.stage.name, tags=tags)
            run_id = run.info.run_id
        self._log_inputs(run_id, record.uses)
        if record.model is not None:
            self.models[record.stage.name] = self._log_model(run_id, record, record.model)
        self._log_numbers(run_id, record)
        self._log_evidence(run_id, record.evidence)
        self.client.set_terminated(run_id, status="FINISHED")
        # Last of all: a run without it was cut off.
        self.client.set_tag(run_id, COMPLETE, "true")

    def _live_run(self, record: RunRecord, tags: Mapping[str, str]) -> str | None:
        """Takes over the run that showed this training while it ran, if there is one."""
        weights = record.tags.get(WEIGHTS)
        if record.stage.kind != "train" or weights is None:
            return None
        told = f"tags.`{LIVE}` = '{record.stage.name}' and tags.`{WEIGHTS}` = '{weights}'"
        found = self.client.search_runs([self.experiment], filter_string=told)
        run_id = next((run.info.run_id for run in found if KEY not in run.data.tags), None)
        for key, value in tags.items() if run_id else ():
            self.client.set_tag(run_id, key, value)
        return run_id

    def _log_inputs(self, run_id: str, uses: Sequence[Use]) -> None:
        from mlflow.data.meta_dataset import MetaDataset  # noqa: PLC0415
        from mlflow.entities import DatasetInput, InputTag  # noqa: PLC0415

        from veilset.adapters.dvc_source import DvcDatasetSource  # noqa: PLC0415

        # Typed loosely: its stubs make a concrete class look abstract.
        make: Any = MetaDataset
        inputs = []
        for use in uses:
            source = DvcDatasetSource(path=use.path, digest=use.digest)
            data = make(source, name=use.name, digest=use.digest)
            tags = [InputTag("mlflow.data.context", use.context)]
            inputs.append(DatasetInput(data._to_mlflow_entity(), tags))
        if inputs:
            self.client.log_inputs(run_id, inputs)

    def _log_model(self, run_id: str, record: RunRecord, folder: Path) -> str:
        from mlflow.entities import LoggedModelOutput  # noqa: PLC0415

        model = self.client.create_logged_model(
            self.experiment,
            name=record.stage.item or record.stage.name,
            source_run_id=run_id,
            tags={key: value for key, value in record.tags.items() if key.startswith("veilset.")},
            params={key: value[:500] for key, value in record.params.items()},
            model_type="image classifier",
        )
        with tempfile.TemporaryDirectory(prefix="veilset-") as temporary:
            made = Path(temporary) / "made"
            _model_folder(made, folder, model.model_id, run_id)
            self.client.log_model_artifacts(model.model_id, str(made))
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        self._register(run_id, record, model)
        self.client.set_tag(run_id, _MODEL, model.model_id)
        return str(model.model_id)

    def _register(self, run_id: str, record: RunRecord, model: Any) -> None:
        """Makes the model the newest version, and the candidate, of its name in the registry."""
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
        from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode  # noqa: PLC0415

        name = registered_name(self.place.dataset, record.stage)
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        learnt_from = ", ".join(f"{use.name} at {use.digest}" for use in record.uses[:1])
        version = self.client.create_model_version(
            name, model.artifact_location, run_id=run_id, model_id=model.model_id,
            tags={key: value for key, value in record.tags.items() if key.startswith("veilset.")},
            description=f"Learnt from {learnt_from or 'data that is not here'}.",
        )  # fmt: skip
        self.client.set_registered_model_alias(name, "candidate", version.version)

    def _log_numbers(self, run_id: str, record: RunRecord) -> None:
        from mlflow.entities import Param  # noqa: PLC0415

        now = int(time.time() * 1000)
        params = [Param(key, value) for key, value in sorted(record.params.items())]
        metrics = [self._metric(point, now) for point in record.points]
        for i in range(0, len(params), _BATCH):
            self.client.log_batch(run_id, params=params[i : i + _BATCH])
        for i in range(0, len(metrics), _METRICS):
            self.client.log_batch(run_id, metrics=metrics[i : i + _METRICS])

    def _metric(self, point: Point, now: int) -> Any:
        from mlflow.entities import Metric  # noqa: PLC0415

        model = self.models.get(point.trained_by or "")
        use = point.use if model else None
        return Metric(
            point.key, point.value, now, point.step, model_id=model,
            dataset_name=use.name if use else None, dataset_digest=use.digest if use else None,
        )  # fmt: skip

    def _log_evidence(
        self, run_id: str, evidence: Sequence[Evidence], folder: str | None = None
    ) -> None:
        if not evidence:
            return
        with tempfile.TemporaryDirectory(prefix="veilset-") as temporary:
            for item in evidence:
                target = Path(temporary) / item.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(item.content, bytes):
                    target.write_bytes(item.content)
                else:
                    shutil.copyfile(item.content, target)
            self.client.log_artifacts(run_id, temporary, folder)

    def differences(self, stage: StageRecord) -> Iterator[Difference]:
        """How the store disagrees with one stage result."""
        found = self.runs.get(stage_key(stage), [])
        whole = [run for run in found if run.data.tags.get(COMPLETE) == "true"]
        if not found:
            yield Difference(stage.name, "is not on record")
        elif not whole:
            yield Difference(stage.name, "was cut off while it was recorded")
        elif len(found) > 1:
            yield Difference(stage.name, f"is on record {len(found)} times")
        else:
            yield from self._compare(stage, whole[0])

    def _compare(self, stage: StageRecord, run: Any) -> Iterator[Difference]:
        try:
            record = make_record(self.place, stage)
            standing = self._present.of(stage)
        except AuditError as error:
            yield Difference(stage.name, str(error))
            return
        tags = run.data.tags
        if standing is None:  # nothing is known of how it stands
            tags = {key: value for key, value in tags.items() if not key.startswith(PREFIX)}
        stored: list[Mapping[str, Any]] = [run.data.params, _ours(tags), _final(run.data.metrics)]
        if record.present != (tags.get(FILES) == "present"):
            # What the files say is known on one side only.
            if record.present:
                yield Difference(stage.name, "was recorded without its files, which are here now")
            return
        known = dict(record.tags) | dict(standing.tags if standing else {})
        expected: list[Mapping[str, Any]] = [record.params, known, _last(record.points)]
        for what, right, held in zip(
            ("parameters", "tags", "numbers"), expected, stored, strict=True
        ):
            yield from _disagreements(stage.name, what, right, held)
        inputs = {(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs}
        if inputs != {(use.name, use.digest) for use in record.uses}:
            yield Difference(stage.name, "names other data sets in the store")


def _disagreements(
    stage: str, what: str, right: Mapping[str, Any], stored: Mapping[str, Any]
) -> Iterator[Difference]:
    wrong = sorted(key for key in right.keys() | stored.keys() if right.get(key) != stored.get(key))
    if wrong:
        key = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        words = f"{what}: {key} is {stored.get(key)!r} in the store, not {right.get(key)!r}{more}"
        yield Difference(stage, words)


def _first_sentence(text: str | None) -> str:
    """What a model learnt from, as it was registered."""
    return (text or "").partition(" Verdicts on that version:")[0]


def _ours(tags: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in tags.items() if k.startswith("veilset.") and k not in _WHEN}


def _final(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without what was shown of a training while it ran."""
    shown = (LIVE_PREFIX, "system/")
    return {key: value for key, value in metrics.items() if not key.startswith(shown)}


def _last(points: Sequence[Point]) -> dict[str, float]:
    """The value of the highest step of each number, as the store shows it."""
    last: dict[str, Point] = {}
    for point in points:
        if point.key not in last or point.step >= last[point.key].step:
            last[point.key] = point
    return {key: point.value for key, point in last.items()}


def _when(root: Path) -> dict[str, str]:
    """Which code was checked out when the result was recorded."""
    dirty = git_dirty(root)
    return {
        "veilset.git_commit": git_commit(root) or "none",
        "veilset.git_dirty": "unknown" if dirty is None else str(dirty).lower(),
    }


def _connect(address: str) -> Any:
    """A client whose store exists and has this MLflow's layout."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    try:
        client = MlflowClient(tracking_uri=address, registry_uri=address)
        client.search_experiments(max_results=1)
    except MlflowException as error:
        if "out-of-date database schema" not in str(error):
            raise
        _migrate(address)
        client = MlflowClient(tracking_uri=address, registry_uri=address)
    return client


def _migrate(address: str) -> None:
    """Brings an older database to this MLflow's layout, once."""
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "db", "upgrade", address],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise AuditError(
            f"The audit store {address} is of an older MLflow and cannot be migrated: move it "
            f"away and sync again, which rebuilds it."
        )


def open_experiment(address: str, dataset: str, root: Path) -> tuple[Any, str]:
    """A client, and the id of the data set's experiment, made or restored where needed.

    Raises:
        AuditError: An older store cannot be brought to this MLflow's layout.
    """
    client = _connect(address)
    found = client.get_experiment_by_name(dataset)
    if found is None:
        local = "://" in address and not address.startswith(("http", "databricks"))
        where = (root.resolve() / "mlartifacts").as_uri() if local else None
        return client, str(client.create_experiment(dataset, artifact_location=where))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return client, str(found.experiment_id)


def _runs_by_key(client: Any, experiment: str) -> dict[str, list[Any]]:
    """All runs of the experiment that are ours, by the key of their stage result."""
    runs: dict[str, list[Any]] = {}
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        for run in page:
            if key := run.data.tags.get(KEY):
                runs.setdefault(key, []).append(run)
        token = page.token
        if not token:
            return runs


def registered_name(dataset: str, stage: StageRecord) -> str:
    """The name in MLflow's registry under which the models of a scheme and network are versions."""
    names = item_names(stage)
    return ".".join(clean_key(text) for text in (dataset, names["scheme"], names["model"]))


def _model_folder(target: Path, folder: Path, model_id: str, run_id: str) -> None:
    """The files of a trained model, with the `MLmodel` by which MLflow loads them.

    Its input example shows no image: a real one might be an original.
    """
    from mlflow import pyfunc  # noqa: PLC0415
    from mlflow.models import Model, ModelSignature  # noqa: PLC0415
    from mlflow.types import Schema, TensorSpec  # noqa: PLC0415

    from veilset.training.saved import load_card  # noqa: PLC0415

    data = target.with_name(f"{target.name}-data") / "model"
    data.mkdir(parents=True)
    for name in ("model.safetensors", "model.json"):
        shutil.copyfile(folder / name, data / name)
    card = load_card(data)
    inputs = Schema([TensorSpec(np.dtype(np.uint8), (-1, *card.shape))])
    outputs = Schema([TensorSpec(np.dtype(np.float32), (-1, len(card.classes)))])
    pyfunc.save_model(
        str(target), loader_module="veilset.adapters.mlflow_model", data_path=str(data),
        signature=ModelSignature(inputs=inputs, outputs=outputs),
        input_example=np.full((1, *card.shape), 128, dtype=np.uint8),
        # Named, so that MLflow does not seek them by importing everything.
        pip_requirements=["veilset"],
        mlflow_model=Model(model_id=model_id, model_uuid=model_id, run_id=run_id),
    )  # fmt: skip


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Telemetry off, and no log lines but errors, for the block only."""
    quiet()
    # First, because it sets how loud it is when it is imported.
    import mlflow  # noqa: F401, PLC0415

    names = ("mlflow", "alembic", "mlflow.store.db.utils")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
