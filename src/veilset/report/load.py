"""Reads the evidence files of a project into `ReportInputs`.

Nothing is invented: a file that is absent is listed in `missing`, a file that is malformed is a
`CorruptError` with its path. Source: ours.
"""

import json
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml
from pydantic import TypeAdapter, ValidationError

from veilset.data.manifest import Manifest
from veilset.errors import CorruptError
from veilset.keys import DEMO_IDS_KEY, DEMO_PROTECTION_KEY
from veilset.report.lineage import stages_of
from veilset.report.model import (
    DEFAULT_COMMANDS,
    AttackFile,
    Card,
    Check,
    ComparisonFile,
    Drop,
    Epoch,
    EvaluationFile,
    Examples,
    Model,
    ModelVerdict,
    ProtectedSet,
    ReportInputs,
    Stage,
    VerdictFile,
)

T = TypeVar("T")
_NOT_KEPT = ("duplicate", "quarantined")
_COLUMNS = ("class_name", "group", "role", "near_duplicate_of", "reason")


def load_inputs(
    root: Path,
    *,
    schemes: Collection[str] | None = None,
    drops: Collection[str] | None = None,
    public: bool = False,
    commit: str | None = None,
    commands: Iterable[str] = DEFAULT_COMMANDS,
) -> ReportInputs:
    """Reads what the stages wrote below a project folder.

    Args:
        root: The project folder, with `reports/`, `data/`, `keys/` and `dvc.lock`.
        schemes: The schemes of the present pipeline; what lies there of others is left out, since
            DVC keeps the outputs of stages that were taken out. None takes all.
        drops: Likewise the drops.
        public: The page is for publication.
        commit: The git commit to name, e.g. from `head_commit`; None for "not available".
        commands: How to reproduce, one command each.

    Raises:
        CorruptError: A file is there but malformed.
    """
    missing: list[str] = []
    verdicts = _json(root, "reports/verdicts.json", VerdictFile, missing)
    evaluation = _json(root, "reports/evaluation.json", EvaluationFile, missing)
    comparison = _json(root, "reports/comparison.json", ComparisonFile, missing)
    attacks = _among(schemes, _attacks(root, missing))
    cards = _among(schemes, _cards(root, missing))
    networks = verdicts.models if verdicts else {}
    folders = {folder.name: folder for folder in _folders(root / "data/ingested")}
    found = tuple(_drop(root, folder, missing) for folder in _among(drops, folders).values())
    if not found:
        missing.append("data/ingested/*/manifest.json")
    protected = _among(schemes, _protected(root, missing))
    keys = _fingerprints(root, missing)
    return ReportInputs(
        dataset=_dataset(found, attacks.values()),
        verdicts=verdicts,
        evaluation=evaluation,
        attacks=attacks,
        model_attacks=_model_attacks(root, networks.values(), missing),
        cards=cards,
        comparison=comparison,
        examples=_examples(root, attacks, missing),
        drops=found,
        protected=protected,
        models=tuple(
            model
            for model in _models(root, missing)
            if schemes is None or model.facts.get("scheme") in schemes
        ),
        stages=_stages(root, missing),
        keys=keys,
        demo_keys=_demo(keys, protected),
        commit=commit,
        commands=tuple(commands),
        missing=tuple(sorted(missing)),
        public=public,
    )


def read_attacks(path: Path) -> AttackFile:
    """Reads an attack's `results.json`.

    Raises:
        CorruptError: It is malformed.
    """
    return _parse(path, AttackFile, _read_json(path))


def read_checks(path: Path) -> tuple[Check, ...]:
    """Reads the `results.json` of the checks of a drop.

    Raises:
        CorruptError: It is malformed.
    """
    value = _read_json(path)
    rows = value.get("results") if isinstance(value, dict) else value
    return _parse(path, tuple[Check, ...], rows)


def read_evaluation(path: Path) -> EvaluationFile:
    """Reads `evaluation.json`.

    Raises:
        CorruptError: It is malformed.
    """
    return _parse(path, EvaluationFile, _read_json(path))


def read_examples(path: Path) -> Examples:
    """Reads an attack's `examples.npz`, pictures in their order.

    Raises:
        CorruptError: It is malformed.
    """
    names = ("original", "protected", "reconstruction", "labels", "order")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError) as error:
        _corrupt(path, str(error))
    pictures = [arrays[name] for name in names[:3]]
    shapes = {picture.shape for picture in pictures}
    channels = {1, 3} if pictures[0].ndim == 4 else set()
    if len(shapes) != 1 or pictures[0].shape[-1] not in channels:
        _corrupt(path, "its pictures are not three arrays of one shape (K, H, W, 1 or 3)")
    count = len(pictures[0])
    order = np.asarray(arrays["order"], dtype=np.int64)
    if any(picture.dtype != np.uint8 for picture in pictures) or len(arrays["labels"]) != count:
        _corrupt(path, "its pictures are not uint8 with one label each")
    if order.ndim != 1 or (len(order) and (order.min() < 0 or order.max() >= count)):
        _corrupt(path, "its order names pictures that it does not hold")
    return Examples(
        original=pictures[0][order],
        protected=pictures[1][order],
        reconstruction=pictures[2][order],
        labels=np.asarray(arrays["labels"], dtype=np.int64)[order],
    )


def head_commit(root: Path) -> str | None:
    """The commit checked out at `root`, `-dirty` appended with local changes; None without git."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        run = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None


def _corrupt(path: Path, why: str) -> NoReturn:
    raise CorruptError(f"{path} cannot be read for the report: {why}; run its stage again.")


def _parse(path: Path, kind: type[T] | Any, value: object) -> T:
    """A value as records of `kind`; the first fault becomes one sentence."""
    try:
        result: T = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"]) or "its top level"
        _corrupt(path, f"{place}: {fault['msg'][:1].lower()}{fault['msg'][1:]}")
    return result


def _read_json(path: Path) -> Any:
    def refuse(word: str) -> NoReturn:
        _corrupt(path, f"it holds {word}, which is no figure")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError, OSError) as error:
        _corrupt(path, f"it is not JSON ({error})")


def _json(root: Path, name: str, kind: type[T], missing: list[str]) -> T | None:
    path = root / name
    if not path.is_file():
        missing.append(name)
        return None
    return _parse(path, kind, _read_json(path))


def _among(names: Collection[str] | None, found: Mapping[str, T]) -> dict[str, T]:
    """What bears one of the names; all of it for None."""
    return {name: item for name, item in found.items() if names is None or name in names}


def _folders(parent: Path) -> list[Path]:
    """Folders below `parent` that hold a finished set, sorted; staging folders are skipped."""
    if not parent.is_dir():
        return []
    found = (path.parent for path in parent.rglob("manifest.json"))
    return sorted(path for path in found if not _hidden(path.relative_to(parent)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _attacks(root: Path, missing: list[str]) -> dict[str, AttackFile]:
    paths = sorted((root / "data/attacks").glob("[!.]*/results.json"))
    if not paths:
        missing.append("data/attacks/*/results.json")
    return {path.parent.name: read_attacks(path) for path in paths}


def _model_attacks(
    root: Path, judged: Iterable[ModelVerdict], missing: list[str]
) -> dict[str, AttackFile]:
    """The results behind each verdict on a CNN: folders of others may lie there from before."""
    found: dict[str, AttackFile] = {}
    for one in judged:
        path = root / "data/attacks_model" / one.scheme / one.model / "results.json"
        if path.is_file():
            found[f"{one.scheme}-{one.model}"] = read_attacks(path)
        else:
            missing.append(path.relative_to(root).as_posix())
    return found


def _cards(root: Path, missing: list[str]) -> dict[str, Card]:
    paths = sorted((root / "reports/cards").glob("[!.]*.json"))
    if not paths:
        missing.append("reports/cards/*.json")
    return {path.stem: _parse(path, Card, _read_json(path)) for path in paths}


def _examples(root: Path, attacks: Iterable[str], missing: list[str]) -> dict[str, Examples]:
    found: dict[str, Examples] = {}
    for scheme in attacks:
        path = root / "data/attacks" / scheme / "examples.npz"
        if path.is_file():
            found[scheme] = read_examples(path)
        else:
            missing.append(path.relative_to(root).as_posix())
    return found


def _drop(root: Path, folder: Path, missing: list[str]) -> Drop:
    manifest = Manifest.load(folder)
    name = folder.relative_to(root / "data/ingested").as_posix()
    index = _index(folder / "index.parquet", root, missing)
    counts = None if index is None else _counts(index)
    return Drop(
        name=name,
        dataset=manifest.dataset,
        shape=tuple(manifest.shape),
        classes=tuple(manifest.classes),
        splits=dict(manifest.splits),
        root=manifest.root,
        counts=counts,
        duplicates=None if index is None else int((index["role"] == "duplicate").sum()),
        near_duplicates=_near(index),
        groups=None if index is None else len(_groups(index)),
        groups_are_classes=index is not None and _closed(index),
        quarantined=_quarantined(root, name, index, missing),
        checks=_checks(root, name, missing),
    )


def _index(path: Path, root: Path, missing: list[str]) -> pd.DataFrame | None:
    if not path.is_file():
        missing.append(path.relative_to(root).as_posix())
        return None
    try:
        frame: pd.DataFrame = pq.read_table(path, columns=list(_COLUMNS)).to_pandas()
    except (OSError, ValueError, KeyError) as error:
        _corrupt(path, str(error).splitlines()[0])
    return frame


def _kept(index: pd.DataFrame) -> pd.DataFrame:
    return index[~index["role"].isin(_NOT_KEPT)]


def _counts(index: pd.DataFrame) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    for (role, name), rows in _kept(index).groupby(["role", "class_name"], sort=True):
        counted.setdefault(str(role), {})[str(name)] = len(rows)
    return counted


def _near(index: pd.DataFrame | None) -> int | None:
    return None if index is None else int(_kept(index)["near_duplicate_of"].notna().sum())


def _groups(index: pd.DataFrame) -> dict[str, set[str]]:
    """Class names by group; images without a group are left out."""
    kept = _kept(index)
    kept = kept[kept["group"].fillna("") != ""]
    pairs = kept[["group", "class_name"]].drop_duplicates()
    found: dict[str, set[str]] = {}
    for group, name in zip(pairs["group"], pairs["class_name"], strict=True):
        found.setdefault(str(group), set()).add(str(name))
    return found


def _closed(index: pd.DataFrame) -> bool:
    """Each group is one class and each class one group."""
    groups = _groups(index)
    names = [name for classes in groups.values() for name in classes]
    return bool(groups) and len(names) == len(groups) == len(set(names))


def _quarantined(
    root: Path, drop: str, index: pd.DataFrame | None, missing: list[str]
) -> dict[str, int] | None:
    """Refused images by reason: from the quarantine's table, else from the index."""
    path = root / "data/quarantine" / drop / "quarantine.csv"
    if path.is_file():
        reasons = _csv(path)
    elif index is not None:
        reasons = index[index["role"] == "quarantined"]
    else:
        missing.append(path.relative_to(root).as_posix())
        return None
    if "reason" not in reasons:
        _corrupt(path, "it has no column 'reason'")
    counted = Counter(str(reason) for reason in reasons["reason"])
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))


def _csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        return pd.DataFrame({"reason": []})
    except (ValueError, OSError) as error:
        _corrupt(path, str(error))


def _checks(root: Path, drop: str, missing: list[str]) -> tuple[Check, ...] | None:
    path = root / "data/checks" / drop / "results.json"
    if not path.is_file():
        missing.append(path.relative_to(root).as_posix())
        return None
    return read_checks(path)


def _protected(root: Path, missing: list[str]) -> dict[str, ProtectedSet]:
    """One protected set a scheme; the drops of a scheme share its parameters.

    The folder has the scheme's name in this project; the manifest has its kind.
    """
    found: dict[str, ProtectedSet] = {}
    parent = root / "data/protected"
    for folder in _folders(parent):
        manifest = Manifest.load(folder)
        name = folder.relative_to(parent).parts[0]
        found.setdefault(name, _protected_set(name, manifest.scheme or {}, manifest))
    if not found:
        missing.append("data/protected/*/manifest.json")
    return found


def _protected_set(name: str, scheme: Mapping[str, Any], manifest: Manifest) -> ProtectedSet:
    parameters = scheme.get("parameters") or {}
    if isinstance(parameters, str):
        parameters = json.loads(parameters)
    return ProtectedSet(
        scheme=name,
        title=str(scheme.get("title", name)),
        version=str(scheme.get("version", "")),
        parameters=dict(parameters),
        key_fingerprint=manifest.key_fingerprint,
        root=manifest.root,
    )


def _models(root: Path, missing: list[str]) -> tuple[Model, ...]:
    models = []
    for path in sorted((root / "data/models").glob("[!.]*/history.csv")):
        rows = [
            {key: value for key, value in row.items() if value != ""}
            for row in _csv(path).to_dict("records")
        ]
        facts = path.with_name("model.json")
        models.append(
            Model(
                name=path.parent.name,
                facts=_parse(facts, dict[str, Any], _read_json(facts)) if facts.is_file() else {},
                history=_parse(path, tuple[Epoch, ...], rows),
            )
        )
    if not models:
        missing.append("data/models/*/history.csv")
    return tuple(models)


def _stages(root: Path, missing: list[str]) -> tuple[Stage, ...]:
    path = root / "dvc.lock"
    if not path.is_file():
        missing.append("dvc.lock")
        return ()
    try:
        return stages_of(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        _corrupt(path, f"it is not a lock file of stages ({error})")


def _fingerprints(root: Path, missing: list[str]) -> dict[str, str]:
    paths = sorted((root / "keys").glob("*.fingerprint"))
    if not paths:
        missing.append("keys/*.fingerprint")
    return {path.stem: path.read_text(encoding="utf-8", errors="replace").strip() for path in paths}


def _demo(keys: Mapping[str, str], protected: Mapping[str, ProtectedSet]) -> tuple[str, ...]:
    """Where the public demo key was used: kinds of key, then titles of schemes."""
    demo = {DEMO_PROTECTION_KEY.fingerprint, DEMO_IDS_KEY.fingerprint}
    kinds = [f"{kind} key" for kind, fingerprint in keys.items() if fingerprint in demo]
    sets = [item.title for item in protected.values() if item.key_fingerprint in demo]
    return (*kinds, *sets)


def _dataset(drops: Iterable[Drop], attacks: Iterable[AttackFile]) -> str:
    names = {drop.dataset for drop in drops} or {file.dataset for file in attacks}
    return ", ".join(sorted(name for name in names if name)) or "unnamed data set"
