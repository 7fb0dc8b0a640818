"""A version of a project as the report compares it: read from git, and by digest what DVC keeps.

What is nowhere is not guessed: it becomes a `Gap` that says where it was looked for.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from veilset.adapters.audit_versions import LOCK, Version, at_commit, workspace
from veilset.adapters.dvc import Entry, StageRecord
from veilset.data.manifest import NAME
from veilset.errors import AuditError, CorruptError
from veilset.keys import KEY_KINDS
from veilset.report.changes import DropState, Gap, SchemeState, Snapshot
from veilset.report.model import AttackFile, EvaluationFile, VerdictFile
from veilset.settings import DROPS_FILE, PARAMS_FILE

M = TypeVar("M", bound=BaseModel)

VERDICTS: Final = "reports/verdicts.json"
EVALUATION: Final = "reports/evaluation.json"
_DIGITS: Final = 12
_CODE: Final = "src/"
# Outputs with `cache: false`: git has them where they were committed, DVC never.
_UNCACHED: Final = ("reports/",)


def snapshots(root: Path, revision: str) -> tuple[Snapshot, Snapshot]:
    """An earlier version, and the project as it lies here.

    Args:
        root: The project's folder.
        revision: The earlier version, as git names it.

    Raises:
        AuditError: There is no such revision, or no lock file here.
        CorruptError: A lock file is none.
    """
    before = at_commit(root, revision)
    if before.text(PARAMS_FILE) is None:
        raise AuditError(
            f"{PARAMS_FILE} was not there at {revision!r}, so that revision is no version of this "
            "project: give a later one."
        )
    return snapshot(before), snapshot(workspace(root))


def snapshot(version: Version) -> Snapshot:
    """A version as far as it is on record.

    Raises:
        CorruptError: DVC's cache holds a folder's listing that is not what it should be.
    """
    return _Reading(version).snapshot()


class _Reading:
    """One version while it is read; `gaps` grows."""

    def __init__(self, version: Version) -> None:
        self.version = version
        commit = version.commit
        self.title = "the workspace" if commit is None else f"commit {commit[:_DIGITS]}"
        self.gaps: list[Gap] = []

    def snapshot(self) -> Snapshot:
        version = self.version
        if not version.stages:
            self.gap(LOCK, "it is not in git at this commit, so no result is on record there")
        settings = version.settings(PARAMS_FILE)
        names = settings.get("schemes") or ()
        return Snapshot(
            title=self.title,
            commit=version.commit,
            settings=settings,
            drop_settings=version.settings(DROPS_FILE),
            drops={one.item: self.drop(one) for one in version.of_kind("ingest")},
            schemes=dict(self.schemes()),
            code=self.code(),
            keys=self.keys(),
            verdicts=self.document("gate", VERDICTS, VerdictFile),
            attacks={
                scheme: found for scheme, found in self.attacks() if not names or scheme in names
            },
            evaluation=self.document("evaluate", EVALUATION, EvaluationFile),
            outdated=tuple(self.outdated(settings)),
            gaps=tuple(self.gaps),
        )

    def gap(self, what: str, why: str) -> None:
        self.gaps.append(Gap(version=self.title, what=what, why=f"{why}."))

    # ------------------------------------------------------------------------- files of a result

    def document(self, stage: str, path: str, kind: type[M]) -> M | None:
        """A file that a stage made, as records."""
        if not self.version.stages:
            return None
        record = self.version.stage(stage)
        entry = _out(record, path)
        if entry is None:
            self.gap(path, f"{LOCK} of this version has no result of the stage {stage}")
            return None
        return self.parsed(entry, "", kind)

    def parsed(self, entry: Entry, inner: str, kind: type[M]) -> M | None:
        found = self.json(entry, inner)
        if found is None:
            return None
        try:
            return kind.model_validate(found)
        except ValidationError:
            self.gap(_path(entry, inner), "it has a layout that this Veilset does not read")
        return None

    def json(self, entry: Entry, inner: str = "") -> Any:
        """What a file of a result holds, or None with a gap."""
        raw = self.sound(lambda: self.version.read(entry, inner), entry, inner)
        if raw is None:
            return None
        return self.sound(lambda: self.version.read_json(entry, inner), entry, inner)

    def sound(self, read: Callable[[], Any], entry: Entry, inner: str) -> Any:
        try:
            found = read()
        except CorruptError as error:
            self.gap(_path(entry, inner), str(error).rstrip("."))
            return None
        if found is None:
            self.gap(_path(entry, inner), self.nowhere(entry))
        return found

    def nowhere(self, entry: Entry) -> str:
        """Why a file is in neither workspace, git nor cache with the digest that is recorded."""
        known = f"{LOCK} records it as {entry.md5[:_DIGITS]}"
        if not entry.path.startswith(_UNCACHED):
            return f"{known}, and DVC's cache does not hold it: `dvc fetch --all-commits` may"
        there = self.version.text(entry.path) is not None
        if self.version.commit is None:
            how = "another one lies here" if there else "it is not here"
            return f"{known}, and {how}: run `dvc repro`"
        how = "git has another one" if there else "it was not committed"
        return f"{known}, but {how}, and DVC's cache has no copy"

    # -------------------------------------------------------------------------------- what it is

    def drop(self, stage: StageRecord) -> DropState:
        """A drop: what DVC recorded of its raw images, and what its manifest says."""
        block = self.version.settings(DROPS_FILE).get("drops") or {}
        settings = block.get(stage.item) if isinstance(block, Mapping) else None
        path = str((settings or {}).get("path", ""))
        raw = next((dep for dep in stage.deps if dep.path == path), None)
        out, refused = _out(stage, "data/ingested"), _out(stage, "data/quarantine")
        manifest = self.json(out, NAME) if out else None
        found = manifest if isinstance(manifest, Mapping) else {}
        return DropState(
            path=path,
            digest=raw.md5[:_DIGITS] if raw else None,
            files=raw.nfiles if raw else None,
            images=dict(found["splits"]) if "splits" in found else None,
            classes=tuple(map(str, found["classes"])) if "classes" in found else None,
            shape=tuple(map(int, found["shape"])) if "shape" in found else None,
            refused=self.refused(refused) if refused else None,
        )

    def refused(self, entry: Entry) -> dict[str, int] | None:
        raw = self.sound(
            lambda: self.version.read(entry, "quarantine.csv"), entry, "quarantine.csv"
        )
        if raw is None:
            return None
        rows = csv.DictReader(io.StringIO(raw.decode("utf-8", errors="replace")))
        return dict(sorted(Counter(str(row.get("reason")) for row in rows).items()))

    def schemes(self) -> Iterator[tuple[str, SchemeState]]:
        """How each scheme protected; the drops of a scheme share its parameters."""
        seen = set()
        for stage in self.version.of_kind("protect"):
            out = _out(stage, "data/protected")
            name = out.path.split("/")[2] if out else ""
            if out is None or name in seen:
                continue
            manifest = self.json(out, NAME)
            said = manifest.get("scheme") if isinstance(manifest, Mapping) else None
            if isinstance(said, Mapping):
                seen.add(name)
                yield (
                    name,
                    SchemeState(
                        title=str(said.get("title", "")),
                        version=str(said.get("version", "")),
                        parameters=dict(said.get("parameters") or {}),
                        key_fingerprint=manifest.get("key_fingerprint"),
                    ),
                )

    def attacks(self) -> Iterator[tuple[str, AttackFile]]:
        for stage in self.version.of_kind("attack"):
            out = _out(stage, "data/attacks")
            found = self.parsed(out, "results.json", AttackFile) if out else None
            if found is not None:
                yield stage.item, found

    def code(self) -> dict[str, str]:
        """Digests of the code that the stages read, by path."""
        deps = [dep for stage in self.version.stages for dep in stage.deps]
        return {dep.path: dep.md5[:_DIGITS] for dep in deps if dep.path.startswith(_CODE)}

    def keys(self) -> dict[str, str]:
        found = ((kind, self.version.text(f"keys/{kind}.fingerprint")) for kind in KEY_KINDS)
        return {kind: raw.decode(errors="replace").strip() for kind, raw in found if raw}

    def outdated(self, settings: Mapping[str, Any]) -> Iterator[str]:
        """Settings that are no longer those that the results were made with."""
        agrees: dict[tuple[str, str], bool] = {}
        for stage in self.version.stages:
            for key, value in stage.params.get(PARAMS_FILE, {}).items():
                same = _lookup(settings, key) == value
                # DVC keeps the results of stages that were taken out, with their old settings: one
                # stage of a kind that agrees tells that this kind has run since.
                agrees[stage.kind, key] = agrees.get((stage.kind, key), False) or same
        stale = {key for (_, key), same in agrees.items() if not same}
        shown = ", ".join(sorted(key for key in stale if _lookup(settings, key) is not None))
        if shown:
            yield (
                f"In {self.title}, {PARAMS_FILE} is not what the results were made with ({shown}): "
                "`dvc repro` had not run since."
            )


def _out(stage: StageRecord | None, path: str) -> Entry | None:
    """What a stage made at this path, or below it."""
    outs = stage.outs if stage else ()
    return next((out for out in outs if f"{out.path}/".startswith(f"{path}/")), None)


def _path(entry: Entry, inner: str) -> str:
    return f"{entry.path}/{inner}" if inner else entry.path


def _lookup(settings: Mapping[str, Any], key: str) -> Any:
    """A setting by its dotted key, or None."""
    value: Any = settings
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value
