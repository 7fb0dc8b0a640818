"""What the audit store shall say about each stage result: pure facts from `dvc.lock` and files.

Nothing here imports MLflow. A record is a function of the lock file and of the versioned files in
the workspace alone, so a clone can rebuild the store, and `check` can compare it. A file is used
only if its digest is the one in `dvc.lock`.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from veilset.adapters.dvc import (
    Entry,
    StageRecord,
    file_md5,
    folder_md5,
    folder_members,
    stage_key,
)
from veilset.data.manifest import Manifest
from veilset.errors import AuditError
from veilset.types import Images

Context = Literal["training", "evaluation", "protected"]

KEY: Final = "veilset.stage_key"
COMPLETE: Final = "veilset.complete"
FILES: Final = "veilset.files"
WEIGHTS: Final = "veilset.weights_sha256"
LIVE: Final = "veilset.live"
"""On a run that shows a training while it runs: the stage's name."""

LIVE_PREFIX: Final = "live/"
"""Of the metrics that it shows."""

_FINGERPRINTS: Final = ("protection", "ids")
_ODD: Final = re.compile(r"[^A-Za-z0-9_\-. :/]")
_LONGEST: Final = 4000
_SHEET_SIDE: Final = 64
_SHEET_COLUMNS: Final = 8
_SHEET_IMAGES: Final = 32


@dataclass(frozen=True)
class Use:
    """A version of a data set that a stage read or made.

    Attributes:
        name: `<data set>/<scheme>/<split>`; the scheme of plain images is `ingested`.
        digest: DVC's digest of the folder, at most 36 characters.
        path: The folder, relative to the project.
        context: What it was used for.
    """

    name: str
    digest: str
    path: str
    context: Context


@dataclass(frozen=True)
class Point:
    """One measured number.

    Attributes:
        key: Its name, parts separated by `/`.
        value: Finite.
        step: The epoch, or 0.
        trained_by: The `train` stage whose model it is about, or None.
        use: The data that it was measured on, or None.
    """

    key: str
    value: float
    step: int = 0
    trained_by: str | None = None
    use: Use | None = None


@dataclass(frozen=True)
class Evidence:
    """One artifact: a path below the run's artifacts, and its bytes or the file that has them."""

    path: str
    content: bytes | Path


@dataclass(frozen=True)
class RunRecord:
    """Everything that the store holds of one stage result.

    Attributes:
        stage: The record in `dvc.lock`.
        key: Its identity, see `stage_key`.
        params: Parameters as text.
        tags: Tags as text, without those that depend on when it was recorded.
        points: Measured numbers.
        uses: Data sets.
        evidence: Artifacts.
        model: The folder of the trained model, or None.
        present: Whether the workspace has the stage's files. Without them only the facts of
            `dvc.lock` are known.
    """

    stage: StageRecord
    key: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: tuple[Point, ...] = ()
    uses: tuple[Use, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    model: Path | None = None
    present: bool = True


@dataclass(frozen=True)
class Workspace:
    """Where records are made from.

    Attributes:
        root: The project's folder.
        dataset: The data set's name.
        stages: All records of `dvc.lock`.
        log_originals: Whether pictures may show originals and reconstructions.
        report_is_clean: Whether the report page shows none of them.
    """

    root: Path
    dataset: str
    stages: tuple[StageRecord, ...]
    log_originals: bool = False
    report_is_clean: bool = False


@dataclass
class _Draft:
    """What a reader collects."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    model: Path | None = None

    def number(self, key: str, value: Any, step: int = 0) -> None:
        """Adds a metric if it is a finite number."""
        if is_number(value):
            self.points.append(Point(clean_key(key), float(value), step))


def dataset_name(root: Path) -> str:
    """`data.name` of `params.yaml`, else the folder's name."""
    try:
        values = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
        name = values["data"]["name"]
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return root.resolve().name
    return str(name)


def files_present(place: Workspace, stage: StageRecord) -> bool:
    """Whether every output of the stage is in the workspace."""
    return all((place.root / out.path).exists() for out in stage.outs)


def make_record(place: Workspace, stage: StageRecord) -> RunRecord:
    """What the store shall say about one stage result.

    Args:
        place: The workspace.
        stage: The stage result.

    Raises:
        AuditError: A file is not the version that `dvc.lock` records.
    """
    present = files_present(place, stage)
    draft = _Draft(params=_lock_params(stage), tags=_lock_tags(place, stage))
    draft.tags[FILES] = "present" if present else "absent"
    draft.uses.extend(_uses(place, stage))
    if present:
        _READERS.get(stage.kind, _read_nothing)(place, stage, draft)
    return RunRecord(
        stage=stage, key=stage_key(stage),
        params={clean_key(key): value[:_LONGEST] for key, value in draft.params.items()},
        tags={clean_key(key): value[:_LONGEST] for key, value in draft.tags.items()},
        points=tuple(draft.points), uses=tuple(draft.uses), evidence=tuple(draft.evidence),
        model=draft.model, present=present,
    )  # fmt: skip


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as dotted keys and text; lists as JSON."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        elif isinstance(value, str):
            yield name, value
        else:
            yield name, json.dumps(value, sort_keys=True, default=str)


def is_number(value: Any) -> bool:
    """Whether it is a finite number and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def clean_key(key: str) -> str:
    """A name that MLflow accepts, at most 250 characters."""
    return _ODD.sub("_", key)[:250]


# What the lock file says.


def _lock_params(stage: StageRecord) -> dict[str, str]:
    return {
        key: value for values in stage.params.values() for key, value in flatten(values)
    }  # fmt: skip


def _lock_tags(place: Workspace, stage: StageRecord) -> dict[str, str]:
    tags = {KEY: stage_key(stage), "veilset.stage": stage.kind, "veilset.stage_name": stage.name}
    tags |= {f"veilset.{name}": value for name, value in item_names(stage).items()}
    tags |= {f"veilset.dvc.{out.path}": out.md5 for out in stage.outs}
    if stage.outs:
        tags["veilset.dvc_digest"] = stage.outs[0].md5
    for kind in _FINGERPRINTS:
        if fingerprint := _fingerprint(place, stage, kind):
            tags[f"veilset.key.{kind}"] = fingerprint
    return tags


def item_names(stage: StageRecord) -> dict[str, str]:
    """Scheme, drop and model of a stage, as far as its name tells them."""
    parts = stage.item.split("-")
    if stage.kind in ("ingest", "check", "fit_drops"):
        return {"drop": stage.item}
    if stage.kind in ("attack", "fit"):
        return {"scheme": stage.item}
    every = {"protect": ("scheme", "drop"), "train": ("scheme", "model", "seed"),
             "attack_model": ("scheme", "model")}  # fmt: skip
    names = every.get(stage.kind)
    return dict(zip(names, parts, strict=True)) if names and stage.item else {}


def _fingerprint(place: Workspace, stage: StageRecord, kind: str) -> str | None:
    """The key under which a result was made: the file that it or what it was made from read."""
    path = f"keys/{kind}.fingerprint"
    digests = {dep.md5 for one in _ancestry(place.stages, stage) for dep in one.deps
               if dep.path == path}  # fmt: skip
    file = place.root / path
    if not digests or not file.is_file() or digests != {file_md5(file)}:
        return None
    return file.read_text(encoding="utf-8", errors="replace").strip()


def _ancestry(stages: Sequence[StageRecord], stage: StageRecord) -> list[StageRecord]:
    """The stage and all that made what it read."""
    found = {stage.name: stage}
    queue = [stage]
    while queue:
        deps = [dep.path for dep in queue.pop().deps]
        for other in stages:
            if other.name not in found and any(
                overlap(dep, out.path) for dep in deps for out in other.outs
            ):
                found[other.name] = other
                queue.append(other)
    return list(found.values())


def overlap(one: str, other: str) -> bool:
    """Whether one path is, lies in, or holds the other."""
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def _uses(place: Workspace, stage: StageRecord) -> list[Use]:
    """The data sets of a stage, by what its kind does with them."""
    if stage.kind == "protect":
        scheme = item_names(stage).get("scheme", "unknown")
        out = _covering(stage.outs, f"data/protected/{scheme}")
        return _of(place, out, scheme, {"train": "protected", "validation": "protected"})
    scheme = item_names(stage).get("scheme", "")
    entry = _covering(stage.deps, f"data/protected/{scheme}") if scheme else None
    if stage.kind == "train":
        return _of(place, entry, scheme, {"train": "training", "validation": "evaluation"})
    if stage.kind in ("attack", "attack_model"):
        return _of(place, entry, scheme, {"train": "evaluation"})
    return []


def _of(
    place: Workspace, entry: Entry | None, scheme: str, splits: Mapping[str, Context]
) -> list[Use]:
    if entry is None or not 0 < len(entry.md5) <= 36:
        return []
    return [
        Use(f"{place.dataset}/{scheme}/{split}", entry.md5, entry.path, context)
        for split, context in splits.items()
    ]


def _covering(entries: Sequence[Entry], path: str) -> Entry | None:
    """The entry that is this path, else holds it, else the first that lies in it."""
    fitting = [entry for entry in entries if overlap(entry.path, path)]
    exact = [entry for entry in fitting if entry.path == path]
    holding = [entry for entry in fitting if PurePosixPath(path).is_relative_to(entry.path)]
    return next(iter(exact + holding + fitting), None)


# What the files say.


def _verified(place: Workspace, out: Entry, inner: str = "") -> Path | None:
    """A file of an output, if it is there and is the version on record.

    Raises:
        AuditError: It is there and is another version.
    """
    base = place.root / out.path
    path = base / inner if inner else base
    if not path.is_file():
        return None
    if not inner:
        right = file_md5(path) == out.md5
    elif (members := folder_members(place.root, out)) is not None:
        right = members.get(inner) == file_md5(path)
    else:
        # Without DVC's listing only the folder as a whole can be compared.
        right = folder_md5(base) == out.md5
    if not right:
        raise AuditError(
            f"{path.relative_to(place.root)} is not the version that dvc.lock records: run `dvc "
            f"repro` to record what it is now, or `dvc checkout` to restore it, then sync again."
        )
    return path


def find_output(place: Workspace, stage: StageRecord, name: str) -> Path | None:
    """An output file of this name, or one inside an output folder; None where it is not there.

    Raises:
        AuditError: It is another version than `dvc.lock` records.
    """
    for out in stage.outs:
        is_file = PurePosixPath(out.path).name == name
        if found := _verified(place, out, "" if is_file else name):
            return found
    return None


def load_output(place: Workspace, stage: StageRecord, name: str) -> Any:
    """The JSON of an output file, or an empty mapping where the stage wrote none.

    Raises:
        AuditError: It is no JSON, or another version than `dvc.lock` records.
    """
    path = find_output(place, stage, name)
    if path is None:
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise AuditError(
            f"{path} is not JSON, so {stage.name} cannot be recorded: delete it and run `dvc "
            f"repro {stage.name}`."
        ) from None


def _read_nothing(place: Workspace, stage: StageRecord, draft: _Draft) -> None:
    del place, stage, draft


def _read_manifest(place: Workspace, stage: StageRecord, draft: _Draft) -> None:
    path = find_output(place, stage, "manifest.json")
    if path is None:
        return
    manifest = Manifest.load(path.parent)
    draft.tags["veilset.root"] = manifest.root
    if manifest.key_fingerprint:
        draft.tags["veilset.key.protection"] = manifest.key_fingerprint
    scheme = manifest.scheme or {}
    parameters = scheme.get("parameters")
    if isinstance(parameters, Mapping):
        draft.params.update(flatten(parameters, "scheme.parameters."))
    for name in ("name", "title", "version"):
        if name in scheme:
            draft.params[f"scheme.{name}"] = str(scheme[name])
    for split, rows in manifest.splits.items():
        draft.number(f"rows/{split}", rows)
    for key, value in manifest.notes.items():
        draft.number(f"notes/{key}", value)
    draft.evidence.append(Evidence("manifest.json", path))


def _read_ingest(place: Workspace, stage: StageRecord, draft: _Draft) -> None:
    _read_manifest(place, stage, draft)
    # The private manifest holds hashes of plain shards: the root tag is enough.
    draft.evidence.clear()
    if path := find_output(place, stage, "index.parquet"):
        roles = pd.read_parquet(path, columns=["role"])["role"].value_counts()
        for role in ("duplicate", "quarantined"):
            draft.number(f"rows/{role}", int(roles.get(role, 0)))


def _read_check(place: Workspace, stage: StageRecord, draft: _Draft) -> None:
    verdict = load_output(place, stage, "verdict.json")
    failed, warned = verdict.get("critical_failed", []), verdict.get("warnings", [])
    draft.tags["veilset.verdict"] = "fail" if failed else ("warning" if warned else "pass")
    draft.number("check/critical_failed", len(failed))
    draft.number("check/warnings", len(warned))
    for result in load_output(place, stage, "results.json").get("results", []):
        draft.number(f"check/{result['rule']}", result.get("observed"))
    for name in ("results.json", "verdict.json"):
        _attach(place, stage, name, draft)
    for out in stage.outs:
        docs = place.root / out.path / "data_docs"
        for page in sorted(path for path in docs.rglob("*") if path.is_file()):
            inner = page.relative_to(place.root / out.path).as_posix()
            if verified := _verified(place, out, inner):
                draft.evidence.append(Evidence(inner, verified))


def _attach(place: Workspace, stage: StageRecord, name: str, draft: _Draft) -> None:
    if path := find_output(place, stage, name):
        draft.evidence.append(Evidence(name, path))


def _read_fit(place: Workspace, stage: StageRecord, draft: _Draft) -> None:
    card = load_output(place, stage, "fitted.json")
    # What was learnt stays private; how well is for the record.
    draft.tags["veilset.fitted_hash"] = str(card.get("hash", ""))
    for key, value in (card.get("facts") or {}).items():
        if is_number(value):
            draft.number(f"fit/{key}", value)
        else:
            draft.tags[f"veilset.fit.{key}"] = str(value)


def _read_attack(place: Workspace, stage: StageRecord, draft: _Draft) -> None:
    document = load_output(place, stage, "results.json")
    for result in document.get("results", []):
        prefix = f"{result.get('attacker', 'attacker')}/{result['attack']}"
        if not result.get("applicable", False):
            draft.tags[f"veilset.not_applicable.{prefix}"] = str(result.get("reason"))
            continue
        draft.tags[f"veilset.status.{prefix}"] = str(result.get("status"))
        for key, value in _attack_numbers(result):
            draft.number(f"{prefix}/{key}", value)
    _attach(place, stage, "results.json", draft)
    if (path := find_output(place, stage, "examples.npz")) and (
        sheet := contact_sheet(path, originals=place.log_originals)
    ):
        draft.evidence.append(Evidence("examples.png", sheet))


def _attack_numbers(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key in ("value", "low", "high", "chance", "targets", "gallery", "seconds"):
        yield key, result.get(key)
    for anchor in ("control", "oracle", "residual"):
        for key, value in (result.get(anchor) or {}).items():
            yield (anchor if key == "value" else f"{anchor}_{key}"), value


def _read_train(place: Workspace, stage: StageRecord, draft: _Draft) -> None:
    card = load_output(place, stage, "model.json")
    use = draft.uses[0] if draft.uses else None
    for key, value in card.items():
        measured = key in ("seconds", "images_per_second", "weight_count") or "accuracy" in key
        if measured and is_number(value):
            draft.points.append(Point(f"final/{key}", float(value), 0, stage.name, use))
        elif not measured:
            draft.params.update(flatten({key: value}, "model."))
    draft.tags[WEIGHTS] = str(card.get("weights_sha256"))
    draft.tags["veilset.trained_on"] = json.dumps(card.get("trained_on", []))
    history = find_output(place, stage, "history.csv")
    if history is not None:
        draft.points.extend(_curve(history))
        draft.evidence.append(Evidence("history.csv", history))
    weights = find_output(place, stage, "model.safetensors")
    draft.model = weights.parent if weights is not None else None


def _curve(path: Path) -> Iterator[Point]:
    """A point an epoch and column of the training history."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            step = int(row.pop("epoch"))
            for key, text in row.items():
                value = float(text) if text else math.nan
                if math.isfinite(value):
                    yield Point(clean_key(key), value, step)


def _read_evaluate(place: Workspace, stage: StageRecord, draft: _Draft) -> None:
    document = load_output(place, stage, "evaluation.json")
    for row in document.get("rows", []):
        use = _tested_on(place, stage, row)
        if use is not None and use not in draft.uses:
            draft.uses.append(use)
        by = f"_by_{row['protected_by']}" if row.get("protected_by") else ""
        prefix = clean_key(f"{row['scheme']}/{row['model']}/on_{row['test_on']}{by}")
        trained_by = {
            one["seed"]: f"train@{row['scheme']}-{row['model']}-{one['seed']}"
            for one in row["seeds"]
        }
        # A mean over seeds is no figure of one model.
        alone = next(iter(trained_by.values())) if len(trained_by) == 1 else None
        draft.points += _points(prefix, row, _ROW_KEYS, alone, use)
        if alone is None:
            for one in row["seeds"]:
                place_of = f"{prefix}/seed_{one['seed']}"
                draft.points += _points(place_of, one, _SEED_KEYS, trained_by[one["seed"]], use)
    for one in document.get("contrasts", []):
        prefix = clean_key(f"compare/{one['model']}/{one['scheme']}_less_{one['other']}")
        figures = {**one["difference"], "p_adjusted": one["adjusted"], "runs": one["runs"]}
        for key, value in figures.items():
            draft.number(f"{prefix}/{key}", value)
    _attach(place, stage, "evaluation.json", draft)


_ROW_KEYS: Final = (
    "accuracy", "low", "high", "n", "runs", "correct", "baseline_accuracy", "loss_points",
    "loss_low", "loss_high", "ece", "train_time_ratio",
)  # fmt: skip
_SEED_KEYS: Final = ("accuracy", "low", "high", "ece")


def _points(
    prefix: str, row: Mapping[str, Any], keys: Sequence[str], trained_by: str | None,
    use: Use | None,
) -> list[Point]:  # fmt: skip
    """The numbers of a row under these keys."""
    return [
        Point(f"{prefix}/{key}", float(row[key]), 0, trained_by, use)
        for key in keys
        if is_number(row.get(key))
    ]


def _tested_on(place: Workspace, stage: StageRecord, row: Mapping[str, Any]) -> Use | None:
    protected = row["test_on"] == "protected"
    scheme = str(row.get("protected_by") or row["scheme"]) if protected else "ingested"
    folder = f"data/protected/{scheme}" if protected else "data/ingested"
    found = _of(place, _covering(stage.deps, folder), scheme, {"test": "evaluation"})
    return found[0] if found else None


def _read_gate(place: Workspace, stage: StageRecord, draft: _Draft) -> None:
    verdicts = load_output(place, stage, "verdicts.json")
    for scheme, said in verdicts.get("schemes", {}).items():
        draft.number(f"{scheme}/key_space_bits", said.get("key_space_bits"))
        for template, judged in said.get("templates", {}).items():
            draft.tags[f"veilset.verdict.{scheme}.{template}"] = str(judged.get("verdict"))
            worst = judged.get("worst") or {}
            for key in ("value", "low", "high", "threshold", "chance"):
                draft.number(f"{scheme}/{template}/worst_{key}", worst.get(key))
    for name, judged in verdicts.get("models", {}).items():
        draft.tags[f"veilset.verdict.{name}.model_holder"] = str(judged.get("verdict"))
    _attach(place, stage, "verdicts.json", draft)


def _read_report(place: Workspace, stage: StageRecord, draft: _Draft) -> None:
    if place.report_is_clean:
        _attach(place, stage, "index.html", draft)


_READERS: Final = {
    "ingest": _read_ingest,
    "check": _read_check,
    "fit": _read_fit,
    "protect": _read_manifest,
    "attack": _read_attack,
    "train": _read_train,
    "attack_model": _read_attack,
    "evaluate": _read_evaluate,
    "gate": _read_gate,
    "report": _read_report,
}


# Pictures.


def contact_sheet(path: Path, *, originals: bool) -> bytes | None:
    """A PNG of the examples of an attack.

    Args:
        path: `examples.npz` with uint8 arrays original, protected, reconstruction (K, H, W, C).
        originals: Whether to show, below one another, original, protected image and
            reconstruction. Otherwise only protected images are shown, and of these none that
            equals its original: a scheme may leave an image as it is.

    Returns:
        The PNG, or None where nothing may be shown.
    """
    with np.load(path, allow_pickle=False) as arrays:
        names = ("original", "protected", "reconstruction")
        held = {name: arrays[name] for name in names if name in arrays.files}
    if originals:
        rows = [array[:_SHEET_COLUMNS] for array in held.values() if len(array)]
        return _png(np.concatenate([_row(row) for row in rows])) if rows else None
    if "protected" not in held or "original" not in held:
        return None
    changed = (held["protected"] != held["original"]).any(axis=(1, 2, 3))
    return _grid(held["protected"][changed][:_SHEET_IMAGES])


def _grid(images: Images) -> bytes | None:
    if len(images) == 0:
        return None
    rows = range(0, len(images), _SHEET_COLUMNS)
    return _png(np.concatenate([_row(images[i : i + _SHEET_COLUMNS]) for i in rows]))


def _row(images: Images) -> Images:
    """Up to eight images side by side, filled up with white; small ones enlarged."""
    factor = max(1, _SHEET_SIDE // images.shape[1])
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    large = np.pad(large, ((0, _SHEET_COLUMNS - len(large)), (2, 2), (2, 2), (0, 0)),
                   constant_values=255)  # fmt: skip
    joined: Images = np.concatenate(list(large), axis=1)
    return joined


def _png(sheet: Images) -> bytes:
    picture = Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
