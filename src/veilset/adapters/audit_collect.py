"""Collects, theme by theme, what a version's files say, and what they ought to say and do not.

The sources are the files that DVC and git version, and the two journals; never the MLflow store.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from veilset.adapters.audit_facts import (
    AttackFacts,
    DropFacts,
    ModelFacts,
    ProtectedFacts,
    Recorded,
    ReleaseFacts,
    UtilityFacts,
    VerdictFacts,
)
from veilset.adapters.audit_records import flatten, item_names
from veilset.adapters.audit_versions import (
    Commit,
    History,
    Version,
    code_digest,
    git_file,
    is_tracked,
)
from veilset.adapters.dvc import Entry, StageRecord
from veilset.data.manifest import NAME, Manifest
from veilset.drops.record import DROPS_JOURNAL, Decision, DropRecord, read_drops
from veilset.errors import CorruptError
from veilset.keys import DEMO_PROTECTION_KEY
from veilset.release.history import RELEASES, ReleaseEvent, read_releases
from veilset.report.model import Card, EvaluationFile, TemplateVerdict, VerdictFile

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

PINNED: Final = "requirements.lock"
"""Where a project pins the versions of its packages."""

_BEARING: Final = (
    "cryptography", "numba", "numpy", "pillow", "pyarrow", "scikit-image", "torch", "torchvision",
)  # fmt: skip
_PIN: Final = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


@dataclass
class Case:
    """What is known of one version, and what was sought in vain.

    Attributes:
        version: The version.
        history: What led to it.
        gaps: What is missing, a sentence each, in the order it was noticed.
    """

    version: Version
    history: History
    gaps: list[str] = field(default_factory=list)
    _code: dict[tuple[str, str], str | None] = field(default_factory=dict)
    _drops: dict[str, DropRecord] | None = None
    _releases: tuple[ReleaseEvent, ...] | None = None

    @classmethod
    def of(cls, version: Version) -> "Case":
        """Opens the case of a version."""
        case = cls(version, History.of(version.root, version.commit or "HEAD"))
        if not case.history.commits:
            case.gap(
                "The history is incomplete: git has no dvc.lock of this project, so nobody can "
                "tell who recorded a version, when and from which code: commit dvc.lock."
            )
        if not version.stages:
            where = f"at commit {version.commit[:12]}" if version.commit else "in the workspace"
            case.gap(f"There is no dvc.lock {where}, so no result is on record there.")
        return case

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self.version.root

    @property
    def dataset(self) -> str:
        """The data set's name in that version."""
        data = self.version.settings("params.yaml").get("data")
        name = data.get("name") if isinstance(data, Mapping) else None
        return str(name or self.root.resolve().name)

    def gap(self, sentence: str) -> None:
        """Notes that something is missing."""
        if sentence not in self.gaps:
            self.gaps.append(sentence)

    def sound(self, read: Callable[[], T]) -> T | None:
        """What `read` returns, or None with a gap where a file is not what it should be."""
        try:
            return read()
        except CorruptError as error:
            self.gap(str(error))
        return None

    # -------------------------------------------------------------------- who, when, with what

    def recorded(self, stage: StageRecord) -> Recorded:
        """Who recorded a stage result, when, and whether git has the code that ran."""
        commit = self.history.introduced(stage)
        if commit is None and self.history.commits:
            self.gap(
                f"{stage.name} as it is here is not committed, so nobody can tell who made it, "
                "when and from which code: commit dvc.lock."
            )
        code = self._has_code(stage, commit) if commit else None
        if code is False and commit:
            self.gap(
                f"The code that {stage.name} ran is not what git has at {commit.id[:12]}, where "
                "its result was recorded: commit code and dvc.lock together."
            )
        parameters = {k: v for values in stage.params.values() for k, v in flatten(values)}
        return Recorded(
            stage=stage.name, commit=commit.id if commit else None,
            at=commit.at if commit else None, by=commit.by if commit else None,
            code=code, parameters=parameters,
        )  # fmt: skip

    def _has_code(self, stage: StageRecord, commit: Commit) -> bool | None:
        code = [dep for dep in stage.deps if dep.path.startswith("src/")]
        return all(self._code_at(commit.id, dep.path) == dep.md5 for dep in code) if code else None

    def _code_at(self, commit: str, path: str) -> str | None:
        if (commit, path) not in self._code:
            self._code[commit, path] = code_digest(self.root, commit, path)
        return self._code[commit, path]

    def packages(self) -> dict[str, str]:
        """The versions of the packages that bear on results, as that version pins them."""
        raw = self.version.text(PINNED)
        found: dict[str, list[str]] = {}
        for name, version in _PIN.findall((raw or b"").decode(errors="replace")):
            if name in _BEARING and version not in found.setdefault(name, []):
                found[name].append(version)
        if not found:
            self.gap(
                f"The environment is not on record: {PINNED} is missing, which pins the versions "
                "of the packages."
            )
        return {name: " or ".join(versions) for name, versions in sorted(found.items())}

    # -------------------------------------------------------------------- drops

    def drop(self, name: str) -> DropFacts:
        """A drop: where it came from, on what terms, and what was found in it."""
        record = self._drop_records().get(name)
        if record is None:
            self.gap(
                f"Nobody recorded licence and consent of the drop {name}: it stands in drops.yaml "
                "and not in the record of drops."
            )
        block = self.version.settings("drops.yaml").get("drops")
        source = block.get(name) if isinstance(block, Mapping) else None
        # What waits, was refused or was removed need not have been read.
        due = record is None or record.state in ("accepted", "protected")
        checks = self._checks(name, due=due)
        return DropFacts(
            name=name,
            source=str(source.get("source", "auto")) if isinstance(source, Mapping) else "",
            state=record.state if record else "",
            licence=record.licence if record else "",
            consent=record.consent if record else "",
            by=record.by if record else None,
            at=record.at if record else None,
            decisions=tuple(map(decision_words, record.decisions)) if record else (),
            images=self._ingested(name, due=due),
            failed=None if checks is None else tuple(checks.get("critical_failed", ())),
            warnings=() if checks is None else tuple(checks.get("warnings", ())),
        )

    def drop_records(self) -> tuple[DropRecord, ...]:
        """What the journal of drops tells."""
        return tuple(self._drop_records().values())

    def _drop_records(self) -> dict[str, DropRecord]:
        if self._drops is None:
            self._whole(DROPS_JOURNAL)
            records = self.sound(lambda: read_drops(self.root)) or ()
            self._drops = {record.name: record for record in records}
        return self._drops

    def _ingested(self, drop: str, *, due: bool) -> dict[str, int]:
        stage = self.version.stage(f"ingest@{drop}")
        out = _out(stage, f"data/ingested/{drop}")
        manifest = self.manifest(out) if out else None
        if manifest is None and due:
            self.gap(
                f"How many images the drop {drop} held is not known: its ingested set is on "
                "record nowhere, or neither here nor in DVC's cache (`dvc pull`)."
            )
        return dict(manifest.splits) if manifest else {}

    def _checks(self, drop: str, *, due: bool) -> Mapping[str, Any] | None:
        out = _out(self.version.stage(f"check@{drop}"), f"data/checks/{drop}")
        found = self.sound(lambda: self.version.read_json(out, "verdict.json")) if out else None
        if isinstance(found, Mapping):
            return found
        if due:
            self.gap(
                f"Whether the drop {drop} passed its checks is not known: their result is not on "
                "record, or neither here nor in DVC's cache (`dvc pull`)."
            )
        return None

    # -------------------------------------------------------------------- protected sets

    def protected_stages(self, scheme: str | None = None) -> tuple[StageRecord, ...]:
        """The records of all protected sets, or of one scheme's."""
        return tuple(
            stage
            for stage in self.version.of_kind("protect")
            if scheme in (None, item_names(stage)["scheme"])
        )

    def protected(self, stage: StageRecord) -> ProtectedFacts | None:
        """A protected set: by which transformation it was made, from what, by whom and when."""
        names = item_names(stage)
        scheme, drop = names["scheme"], names["drop"]
        out = _out(stage, f"data/protected/{scheme}/{drop}")
        if out is None:
            return None
        manifest = self.manifest(out)
        if manifest is None:
            self.gap(
                f"The parameters and images of {scheme}/{drop} are not known: its manifest is "
                "neither here nor in DVC's cache (`dvc pull`)."
            )
            return ProtectedFacts(
                names=(), scheme=scheme, drop=drop, digest=out.md5, recorded=self.recorded(stage)
            )
        self._same_as_recorded(out)
        record = dict(manifest.scheme or {})
        declares = dict(record.get("declaration") or {})
        learns = bool(record.get("fitted_hash"))
        return ProtectedFacts(
            names=tuple(f"{manifest.dataset}/{scheme}/{split}" for split in manifest.splits),
            scheme=scheme, drop=drop, digest=out.md5, recorded=self.recorded(stage),
            root=manifest.root, kind=str(record.get("name", "")),
            title=str(record.get("title", scheme)), version=record.get("version"),
            parameters=dict(record.get("parameters") or {}),
            reversible=declares.get("reversible"), guarantee=declares.get("guarantee"),
            learns=learns, fitted_on=self.fitted_on(scheme) if learns else (),
            key=manifest.key_fingerprint,
            demo_key=manifest.key_fingerprint == DEMO_PROTECTION_KEY.fingerprint,
            images=dict(manifest.splits),
        )  # fmt: skip

    def manifest(self, out: Entry) -> Manifest | None:
        """The manifest of a recorded set."""
        raw = self.version.read(out, NAME)
        path = self.root / out.path / NAME
        return self.sound(lambda: Manifest.from_bytes(raw, path)) if raw is not None else None

    def _same_as_recorded(self, out: Entry) -> None:
        """Whether the workspace holds what its lock file says, as far as the manifest tells."""
        path = self.root / out.path / NAME
        if self.version.commit is None and path.is_file():
            raw = self.version.read(out, NAME)
            if raw != path.read_bytes():
                self.gap(
                    f"{out.path} is not the version that dvc.lock records: see `dvc status`, and "
                    "restore it by `dvc checkout` or record it by `dvc repro`."
                )

    def fitted_on(self, scheme: str) -> tuple[str, ...]:
        """The drops that a scheme is fitted on, if it learns."""
        stage = self.version.stage(f"fit@{scheme}")
        values = stage.params.get("drops.yaml", {}) if stage else {}
        return tuple(map(str, values.get("fit_drops") or ()))

    # -------------------------------------------------------------------- attacks and verdicts

    def verdicts(self, scheme: str) -> tuple[VerdictFacts, ...]:
        """What the attacks found on a scheme, held against the thresholds."""
        gate = self.version.stage("gate")
        document = self._document(gate, "reports/verdicts.json", VerdictFile)
        if document is None:
            self.gap(
                f"The verdict on {scheme} is not known: reports/verdicts.json of this version is "
                "in neither workspace, git nor DVC's cache."
            )
            return ()
        said = document.schemes.get(scheme)
        if said is None:
            self.gap(f"There is no verdict on {scheme}: it was not attacked, or not judged.")
            return ()
        self._follows(
            self.version.stage(f"attack@{scheme}"), f"data/protected/{scheme}",
            f"The attacks on {scheme} on record were made on another version of it",
        )  # fmt: skip
        self._follows(gate, "data/attacks", "The verdicts on record rest on other attack results")
        card = self._document(gate, "reports/cards", Card, f"{scheme}.json")
        if card is None:
            self.gap(f"There is no leakage card of {scheme}: reports/cards/{scheme}.json.")
        elif not card.complete:
            self.gap(f"The attacks on {scheme} are incomplete: not all that count gave a figure.")
        stale = card.stale if card else None
        return tuple(
            _verdict(scheme, receiver, found, document.suite, stale)
            for receiver, found in said.templates.items()
        )

    def model_verdicts(self, scheme: str) -> tuple[VerdictFacts, ...]:
        """What attacks on the CNNs of a scheme themselves found, where these were made."""
        gate = self.version.stage("gate")
        document = self._document(gate, "reports/verdicts.json", VerdictFile)
        if document is None:
            return ()
        return tuple(
            _verdict(f"{one.scheme}-{one.model}", "model_holder", one, document.suite, None)
            for one in document.models.values()
            if one.scheme == scheme
        )

    def _document(
        self, stage: StageRecord | None, path: str, kind: type[M], inner: str = ""
    ) -> M | None:
        out = _out(stage, path)
        values = self.sound(lambda: self.version.read_json(out, inner)) if out else None
        try:
            return kind.model_validate(values) if values is not None else None
        except ValidationError:
            self.gap(f"{path} is malformed: run {stage.name if stage else path} again.")
            return None

    def _follows(self, stage: StageRecord | None, path: str, words: str) -> None:
        """Notes it where a stage read something else than this version's results."""
        for dep in stage.deps if stage else ():
            if dep.path == path and self.version.agrees(dep) is False:
                self.gap(f"{words}: run `dvc repro`.")

    # -------------------------------------------------------------------- models

    def model(self, stage: StageRecord) -> ModelFacts:
        """A trained CNN: from what it learnt, and how well."""
        names = item_names(stage)
        scheme = names["scheme"]
        out = _out(stage, f"data/models/{stage.item}")
        card = self.sound(lambda: self.version.read_json(out, "model.json")) if out else None
        if not isinstance(card, Mapping):
            self.gap(
                f"How the model {stage.item} was trained is not known: its model.json is neither "
                "here nor in DVC's cache (`dvc pull`)."
            )
            card = {}
        self._follows(
            stage, f"data/protected/{scheme}",
            f"The model {stage.item} learnt from another version of {scheme}",
        )  # fmt: skip
        return ModelFacts(
            name=stage.item, scheme=scheme, recorded=self.recorded(stage),
            architecture=str(card.get("architecture", names["model"])),
            images=card.get("training_images"),
            sets=self._learnt_from(stage.item, scheme, card.get("trained_on") or ()),
            validation_accuracy=card.get("validation_accuracy"),
            device=str(card.get("device", "")), torch=str(card.get("torch_version", "")),
            utility=self._utility(stage.item, scheme, names["model"]),
        )  # fmt: skip

    def _learnt_from(self, name: str, scheme: str, roots: Iterable[str]) -> tuple[str, ...]:
        known = {}
        for stage in self.protected_stages(scheme):
            drop = item_names(stage)["drop"]
            out = _out(stage, f"data/protected/{scheme}/{drop}")
            if out and (manifest := self.manifest(out)):
                known[manifest.root] = f"{scheme}/{drop}"
        roots = tuple(roots)
        if any(root not in known for root in roots):
            self.gap(
                f"The model {name} learnt from a protected set that is not on record in this "
                "version."
            )
        return tuple(known[root] for root in roots if root in known)

    def _utility(self, name: str, scheme: str, network: str) -> tuple[UtilityFacts, ...]:
        stage = self.version.stage("evaluate")
        document = self._document(stage, "reports/evaluation.json", EvaluationFile)
        rows = [r for r in (document.rows if document else ())
                if (r.scheme, r.model) == (scheme, network) and r.protected_by is None]  # fmt: skip
        if not rows:
            self.gap(f"The accuracy of the model {name} on test images is not on record.")
        self._follows(stage, "data/models", "The accuracies on record are of other models")
        return tuple(
            UtilityFacts(
                test_on=row.test_on, declared=row.declared, runs=row.runs, accuracy=row.accuracy,
                low=row.low, high=row.high, baseline=row.baseline_accuracy, loss=row.loss_points,
                loss_low=row.loss_low, loss_high=row.loss_high,
            )
            for row in rows
        )  # fmt: skip

    # -------------------------------------------------------------------- releases

    def releases(
        self, wanted: Callable[[ReleaseEvent], bool], roots: Callable[[str], tuple[str, ...]]
    ) -> tuple[ReleaseFacts, ...]:
        """Entries of the list of releases.

        Args:
            wanted: Which.
            roots: The roots of a scheme's sets in this version; none where one is not known.
        """
        if self._releases is None:
            self._whole(RELEASES)
            self._releases = self.sound(lambda: read_releases(self.root / RELEASES)) or ()
        return tuple(_release(one, roots(one.scheme)) for one in self._releases if wanted(one))

    def _whole(self, journal: Path) -> None:
        """Whether git has a journal, and all that git has of it is still there."""
        path, name = self.root / journal, journal.as_posix()
        with suppress(OSError):
            here = path.read_bytes()
            kept = git_file(self.root, "HEAD", name)
            if kept is not None and not here.startswith(kept):
                self.gap(
                    f"{name} lacks or alters lines that git has: restore it by `git checkout "
                    f"{name}`, then add again what was lost."
                )
            elif not is_tracked(self.root, name):
                self.gap(f"{name} is not in git, so nothing vouches for it: commit it.")
            return
        if git_file(self.root, "HEAD", name) is not None:
            self.gap(f"{name} is missing, and git has it: `git checkout {name}`.")


def set_roots(sets: Iterable[ProtectedFacts]) -> tuple[str, ...]:
    """The identities of a scheme's sets, as a release lists them; none where one is not known."""
    found = [one.root for one in sets]
    known = [root for root in found if root]
    return tuple(known) if len(known) == len(found) else ()


def decision_words(decision: Decision) -> str:
    """A decision about a drop on one line."""
    why = f" ({'; '.join(decision.reasons)})" if decision.reasons else ""
    who = decision.by or "the pipeline"
    return f"{decision.event} on {decision.at:%Y-%m-%d} by {who}{why}"


def _out(stage: StageRecord | None, path: str) -> Entry | None:
    return next((out for out in (stage.outs if stage else ()) if out.path == path), None)


def _verdict(
    of: str, receiver: str, found: TemplateVerdict, suite: str, stale: str | None
) -> VerdictFacts:
    return VerdictFacts(
        of=of, receiver=receiver, verdict=found.verdict, words=found.words, suite=suite,
        stale=stale,
        attacks=tuple(
            AttackFacts(
                attack=one.attack, risk=one.risk, value=one.value, low=one.low, high=one.high,
                threshold=one.threshold, verdict=one.verdict, counts=one.counts,
                reason=one.reason or "",
            )
            for one in found.findings
        ),
    )  # fmt: skip


def _release(event: ReleaseEvent, roots: tuple[str, ...]) -> ReleaseFacts:
    waiver = event.waiver
    return ReleaseFacts(
        event=event.event, at=event.at, by=event.by, scheme=event.scheme, receiver=event.receiver,
        name=event.name, to=event.to, commit=event.commit,
        this_version=set(event.sets) == set(roots) if roots and event.sets else None,
        waived_by=waiver.name if waiver else None,
        waived_on=waiver.date.isoformat() if waiver else None,
        waived_because=waiver.reason if waiver else None,
        reasons=event.reasons,
    )  # fmt: skip
