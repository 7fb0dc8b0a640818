"""How a protected version, or a CNN that learnt from one, stands now: checks, verdicts, releases.

A run in the audit store belongs to one result and never changes. What is known of that result does:
it is attacked, judged, released and withdrawn after it was made. These later facts are kept as tags
and evidence of the same run, renewed at every sync, so that a search by verdict finds versions.

Nothing here imports MLflow: all of it follows from `dvc.lock`, versioned files and the owner's list
of releases.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from veilset.adapters.audit_records import (
    Evidence,
    Workspace,
    contact_sheet,
    find_output,
    item_names,
    load_output,
)
from veilset.adapters.dvc import StageRecord
from veilset.data.manifest import Manifest
from veilset.errors import AuditError
from veilset.release.history import (
    RELEASES,
    STATEMENTS,
    ReleaseEvent,
    read_releases,
    standing_releases,
)

Released = Literal["never", "standing", "withdrawn"]

EVIDENCE: Final = "evidence"
"""Folder of a run's artifacts that is renewed."""

PREFIX: Final = "veilset.now."
"""Of the tags that say how things stand."""

DIGEST: Final = f"{PREFIX}evidence"
"""SHA-256 of the names and contents of the evidence."""

_SCORES: Final = ("results.json", "scores.parquet")


@dataclass(frozen=True)
class Standing:
    """What is known of a result now.

    Attributes:
        tags: All start with `PREFIX`; texts of at most 200 characters.
        evidence: Files for the folder `EVIDENCE` of its run.
        released: Whether the version that it is, or was made from, was let out and still stands.
    """

    tags: Mapping[str, str]
    evidence: tuple[Evidence, ...] = ()
    released: Released = "never"

    @property
    def words(self) -> str:
        """For the registry's page."""
        verdicts = [
            f"{name.removeprefix(f'{PREFIX}verdict.').replace('_', ' ')}: {value}"
            for name, value in self.tags.items()
            if name.startswith(f"{PREFIX}verdict.")
        ]
        judged = ", ".join(verdicts) or "none yet"
        return f"Verdicts on that version: {judged}. Released: {self.released}."


@dataclass(frozen=True)
class Present:
    """All later facts of a project, read once for all of its results.

    Attributes:
        place: The workspace.
    """

    place: Workspace

    def of(self, stage: StageRecord) -> Standing | None:
        """How the result of a `protect` or `train` stage stands; None for any other.

        None also where a file that tells it is not the version that `dvc.lock` records: the stage
        that made the file is at fault then, and how others stand is not known.

        Raises:
            CorruptError: The list of releases is not as it was written.
        """
        try:
            if stage.kind == "protect":
                return self._protected(stage)
            return self._trained(stage) if stage.kind == "train" else None
        except AuditError:
            return None

    def _protected(self, stage: StageRecord) -> Standing | None:
        path = find_output(self.place, stage, "manifest.json")
        if path is None:
            return None
        names = item_names(stage)
        manifest = Manifest.load(path.parent)
        events = self._concerned((manifest.root,))
        released = _released(events, self.events)
        record = json.dumps(manifest.scheme, sort_keys=True).encode()
        tags = {
            "scheme_hash": hashlib.sha256(record).hexdigest(),
            "check": self._checked(names["drop"]), "released": released,
        } | self._verdicts(names["scheme"])  # fmt: skip
        evidence = tuple(self._evidence(names["scheme"], names["drop"], events))
        tags["evidence"] = _digest(evidence)
        return Standing(_tagged(tags), evidence, released)

    def _trained(self, stage: StageRecord) -> Standing | None:
        card = load_output(self.place, stage, "model.json")
        if not card:
            return None
        scheme, model = item_names(stage)["scheme"], item_names(stage)["model"]
        released = _released(self._concerned(tuple(card.get("trained_on", ()))), self.events)
        tags = {"released": released} | self._verdicts(scheme)
        judged = self._gate.get("models", {}).get(f"{scheme}-{model}", {}).get("verdict")
        if judged:
            tags["verdict.model_holder"] = str(judged)
        return Standing(_tagged(tags), (), released)

    @cached_property
    def events(self) -> tuple[ReleaseEvent, ...]:
        """The owner's list of releases."""
        return read_releases(self.place.root / RELEASES)

    def _concerned(self, roots: tuple[str, ...]) -> tuple[ReleaseEvent, ...]:
        return tuple(one for one in self.events if set(roots) & set(one.sets))

    @cached_property
    def _gate(self) -> Mapping[str, Any]:
        return self._load("gate", "verdicts.json")

    def _verdicts(self, scheme: str) -> dict[str, str]:
        said = self._gate.get("schemes", {}).get(scheme, {}).get("templates", {})
        return {f"verdict.{name}": str(one.get("verdict")) for name, one in said.items()}

    def _checked(self, drop: str) -> str:
        found = self._load(f"check@{drop}", "verdict.json")
        if not found:
            return "unchecked"
        if found.get("critical_failed"):
            return "fail"
        return "warning" if found.get("warnings") else "pass"

    def _evidence(
        self, scheme: str, drop: str, events: tuple[ReleaseEvent, ...]
    ) -> Iterator[Evidence]:
        """Leakage card, attack scores, gallery, checks, report, and what was signed."""
        for suffix in ("json", "html"):
            yield from self._file("gate", f"cards/{scheme}.{suffix}", f"{scheme}.{suffix}")
        for name in _SCORES:
            yield from self._file(f"attack@{scheme}", f"attacks/{name}", name)
        attack = self._stage(f"attack@{scheme}")
        examples = find_output(self.place, attack, "examples.npz") if attack else None
        sheet = examples and contact_sheet(examples, originals=self.place.log_originals)
        if sheet:
            yield Evidence("attacks/examples.png", sheet)
        yield from self._file(f"check@{drop}", "check/results.json", "results.json")
        check = self._stage(f"check@{drop}")
        for out in check.outs if check else ():
            docs = self.place.root / out.path / "data_docs"
            for page in sorted(path for path in docs.rglob("*") if path.is_file()):
                inner = page.relative_to(docs.parent).as_posix()
                yield from self._file(f"check@{drop}", f"check/{inner}", inner)
        if self.place.log_originals or self.place.report_is_clean:
            # The owner's page shows originals.
            yield from self._file("report", "report.html", "index.html")
        for name in dict.fromkeys(one.name for one in events):
            for suffix in ("dsse.json", "md"):
                path = self.place.root / STATEMENTS / f"{name}.{suffix}"
                if path.is_file():
                    yield Evidence(f"releases/{path.name}", path)

    def _file(self, stage: str, place: str, name: str) -> Iterator[Evidence]:
        found = self._stage(stage)
        path = find_output(self.place, found, name) if found else None
        if path is not None:
            yield Evidence(place, path)

    def _load(self, stage: str, name: str) -> Mapping[str, Any]:
        found = self._stage(stage)
        loaded: Mapping[str, Any] = load_output(self.place, found, name) if found else {}
        return loaded

    def _stage(self, name: str) -> StageRecord | None:
        return next((one for one in self.place.stages if one.name == name), None)


def _released(own: tuple[ReleaseEvent, ...], events: tuple[ReleaseEvent, ...]) -> Released:
    names = {one.name for one in own}
    if any(one.name in names for one in standing_releases(events)):
        return "standing"
    return "withdrawn" if any(one.event == "withdrawn" for one in own) else "never"


def _digest(evidence: tuple[Evidence, ...]) -> str:
    total = hashlib.sha256()
    for one in evidence:
        raw = one.content if isinstance(one.content, bytes) else Path(one.content).read_bytes()
        total.update(f"{one.path}\0{hashlib.sha256(raw).hexdigest()}\n".encode())
    return total.hexdigest()


def _tagged(tags: Mapping[str, str]) -> dict[str, str]:
    return {f"{PREFIX}{name}": value[:200] for name, value in tags.items()}


__all__ = ["DIGEST", "EVIDENCE", "PREFIX", "Present", "Standing"]
