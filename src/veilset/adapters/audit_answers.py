"""Answers to an auditor's questions: finds the version that is meant and puts its facts together.

Nothing is written. MLflow's store is asked for addresses alone, and for the name of a model in its
registry: every fact is from files that DVC and git version.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

import numpy as np

from veilset.adapters.audit_collect import Case, set_roots
from veilset.adapters.audit_facts import (
    Answer,
    ChangeFacts,
    ModelFacts,
    ProtectedFacts,
    Question,
    RunFacts,
    SampleFacts,
)
from veilset.adapters.audit_records import item_names
from veilset.adapters.audit_reproduce import reproduce
from veilset.adapters.audit_runs import find_runs, registered_stage
from veilset.adapters.audit_versions import (
    LOCK,
    Commit,
    History,
    Version,
    at_commit,
    commit_of,
    workspace,
)
from veilset.adapters.dvc import StageRecord, stage_key
from veilset.data.manifest import NAME, Manifest
from veilset.errors import AuditError, CorruptError
from veilset.release.history import ReleaseEvent

_DIGEST: Final = re.compile(r"([0-9a-f]{6,64})(\.dir)?")
_SPAN: Final = re.compile(r"(\d{4}-\d{2}-\d{2})(?:\.\.(\d{4}-\d{2}-\d{2}))?")
_SHOWN: Final = 8


@dataclass(frozen=True)
class Sampling:
    """How a sample is made again: how many images of each set, and what draws them."""

    images: int
    generator: np.random.Generator


@dataclass(frozen=True)
class _Found:
    """A version in which something stands on record: a scheme's sets, of some drops or of all."""

    version: Version
    scheme: str
    drops: tuple[str, ...] | None = None


def answer(root: Path, question: Question, value: str, sampling: Sampling | None = None) -> Answer:
    """Answers one question about a project.

    Args:
        root: The project's folder.
        question: What is asked about.
        value: Its name: see `docs/audit.md`.
        sampling: How to make a sample of each protected set again; None for not at all.

    Returns:
        The facts, and what the record lacks.

    Raises:
        AuditError: Nothing of that name is on record, or several things are.
        CorruptError: A lock file is none.
    """
    return _QUESTIONS[question](root, value, sampling)


# ------------------------------------------------------------------------------ the questions


def _dataset(root: Path, value: str, sampling: Sampling | None) -> Answer:
    found = _named_set(root, value) if "/" in value else _set_of_digest(root, value)
    case = Case.of(found.version)
    what = f"The protected images of {found.scheme}"
    if found.drops:
        what += f" from the drop {', '.join(found.drops)}"
    wanted = None if found.drops is None else {(found.scheme, drop) for drop in found.drops}
    facts = _assemble(case, [found.scheme], wanted, lambda _: True)
    return _finish(case, _about(facts, "dataset", value, what, found.version), sampling)


def _model(root: Path, value: str, sampling: Sampling | None) -> Answer:
    name, key = registered_stage(root, value) if "/" in value else (value, None)
    version = _first(root, lambda one: _trained(one, name, key) is not None)
    stage = _trained(version, name, key) if version else None
    if version is None or stage is None:
        known = sorted(one.item for one in _present(root).of_kind("train"))
        raise AuditError(
            f"No model {name!r} is on record: the models are {_listed(known)}; those of the "
            "registry are named NAME/VERSION."
        )
    names = item_names(stage)
    case = Case.of(version)
    facts = _assemble(case, [names["scheme"]], None, lambda one: one.name == stage.name)
    mine = f"{names['scheme']}-{names['model']}"
    verdicts = tuple(v for v in facts.verdicts if v.of in (names["scheme"], mine))
    facts = replace(facts, verdicts=verdicts)
    what = f"The model {name}, which learnt from protected images of {names['scheme']}"
    return _finish(case, _about(facts, "model", value, what, version), sampling)


def _trained(version: Version, name: str, key: str | None) -> StageRecord | None:
    """The record of a model's training, of this very result where its key is given."""
    stage = version.stage(f"train@{name}")
    return stage if stage and key in (None, stage_key(stage)) else None


def _scheme(root: Path, value: str, sampling: Sampling | None) -> Answer:
    version = _first(root, lambda one: any(
        item_names(stage)["scheme"] == value for stage in one.of_kind("protect")
    ))  # fmt: skip
    if version is None:
        blocks = _present(root).settings("params.yaml").get("schemes") or ()
        if value in blocks:
            raise AuditError(f"The scheme {value} has protected nothing yet: run `dvc repro`.")
        raise AuditError(
            f"No scheme {value!r} is on record: params.yaml names {_listed(sorted(blocks))}."
        )
    case = Case.of(version)
    facts = _assemble(case, [value], None, lambda _: True)
    mine = _changes(case.history, lambda stage: item_names(stage).get("scheme") == value)
    facts = replace(facts, changes=mine)
    return _finish(case, _about(facts, "scheme", value, f"The scheme {value}", version), sampling)


def _drop(root: Path, value: str, sampling: Sampling | None) -> Answer:
    version = _first(root, lambda one: value in _drop_names(one))
    case = Case.of(version or _present(root))
    if version is None and value not in {record.name for record in case.drop_records()}:
        known = sorted(_drop_names(case.version))
        raise AuditError(f"No drop {value!r} is on record: the drops are {_listed(known)}.")
    wanted = {_pair(stage) for stage in case.protected_stages() if _uses(case, stage, value)}
    schemes = sorted({scheme for scheme, _ in wanted})
    facts = _assemble(case, schemes, wanted, lambda _: True)
    others = [one for one in facts.drops if one.name != value]
    facts = replace(
        facts,
        drops=(case.drop(value), *others),
        models=tuple(one for one in facts.models if _learnt(one, wanted)),
        changes=_changes(case.history, lambda stage: item_names(stage).get("drop") == value),
    )
    what = f"The drop {value}" + ("" if schemes else ", which no scheme has protected")
    return _finish(case, _about(facts, "drop", value, what, case.version), sampling)


def _commit(root: Path, value: str, sampling: Sampling | None) -> Answer:
    version = at_commit(root, value)
    commit = commit_of(root, str(version.commit))
    case = Case.of(version)
    schemes = list(dict.fromkeys(item_names(s)["scheme"] for s in case.protected_stages()))
    facts = _assemble(case, schemes, None, lambda _: True)
    roots = _roots(facts.protected)

    def made(event: ReleaseEvent) -> bool:
        same = bool(event.sets) and set(event.sets) == set(roots(event.scheme))
        return same or event.commit == version.commit

    own = _changes_of(case.history, version.commit)
    facts = replace(facts, releases=case.releases(made, roots), changes=own)
    what = "The project at commit"
    if commit is not None:
        what += f" {commit.id[:12]} of {commit.at:%Y-%m-%d %H:%M} by {commit.by}"
    return _finish(case, _about(facts, "commit", value, what, version), sampling)


def _date(root: Path, value: str, sampling: Sampling | None) -> Answer:
    del sampling  # a span of time has no images of its own
    first, last = _span(value)
    case = Case.of(_present(root))

    def inside(at: datetime) -> bool:
        return first <= at.astimezone(UTC).date() <= last

    facts = Answer(
        "date", value, f"What happened from {first} to {last}, in UTC",
        drops=tuple(
            case.drop(one.name)
            for one in case.drop_records()
            if inside(one.at) or any(inside(decision.at) for decision in one.decisions)
        ),
        releases=case.releases(lambda one: inside(one.at), lambda _: ()),
        changes=_changes(case.history, lambda _: True, lambda commit: inside(commit.at)),
    )  # fmt: skip
    return replace(facts, missing=tuple(case.gaps))


_QUESTIONS: Final[dict[Question, Callable[[Path, str, Sampling | None], Answer]]] = {
    "dataset": _dataset,
    "model": _model,
    "scheme": _scheme,
    "drop": _drop,
    "commit": _commit,
    "date": _date,
}


# ------------------------------------------------------------------------------ which version


def _first(root: Path, holds: Callable[[Version], bool]) -> Version | None:
    """The newest version that fits: the workspace, else a commit."""
    return next((one for one in _versions(root) if holds(one)), None)


def _present(root: Path) -> Version:
    """The workspace, with nothing on record where its lock file is gone."""
    return workspace(root) if (root / LOCK).is_file() else Version(root, None, ())


def _versions(root: Path) -> Iterable[Version]:
    yield _present(root)
    history = History.of(root)
    for commit in history.commits:
        yield Version(root, commit.id, history.stages(commit.id))


def _drop_names(version: Version) -> set[str]:
    names = (item_names(stage).get("drop") for stage in version.stages)
    return {name for name in names if name}


def _named_set(root: Path, value: str) -> _Found:
    """The newest set of a name like `digits/visualmixer/train`."""
    known: dict[str, None] = {}
    dataset, scheme, split = value.rsplit("/", 2) if value.count("/") > 1 else ("", "", "")
    for version in _versions(root):
        for stage in version.of_kind("protect"):
            name, manifest = item_names(stage)["scheme"], _manifest(version, stage)
            if manifest is None:
                continue
            known |= dict.fromkeys(f"{manifest.dataset}/{name}/{one}" for one in manifest.splits)
            if (manifest.dataset, name) == (dataset, scheme) and split in manifest.splits:
                return _Found(version, scheme)
    if scheme == "ingested":
        raise AuditError(
            f"{value} names plain images: ask about their drop, with `veilset audit drop NAME`."
        )
    raise AuditError(f"No protected set {value!r} is on record: there are {_listed(list(known))}.")


def _manifest(version: Version, stage: StageRecord) -> Manifest | None:
    """The manifest of a protected set, or None where it is not to be had or altered."""
    names = item_names(stage)
    path = f"data/protected/{names['scheme']}/{names['drop']}"
    out = next((one for one in stage.outs if one.path == path), None)
    raw = version.read(out, NAME) if out else None
    try:
        return Manifest.from_bytes(raw, version.root / path / NAME) if raw is not None else None
    except CorruptError:
        return None


def _set_of_digest(root: Path, value: str) -> _Found:
    """The newest version that has a set with this DVC digest or root, or a beginning of it."""
    match = _DIGEST.fullmatch(value.lower())
    if match is None:
        raise AuditError(
            f"{value!r} is neither a name like DATA/SCHEME/SPLIT nor a digest: a digest has 6 to "
            "64 hex digits."
        )
    roots: dict[str, str] = {}
    for version in _versions(root):
        found = set(_matches(version, match[1], roots))
        if len(found) > 1:
            raise AuditError(
                f"{value} is the beginning of {len(found)} digests: give more of its digits."
            )
        for scheme, drops, _ in found:
            return _Found(version, scheme, drops)
    raise AuditError(
        f"No protected set with the digest {value} is on record, in the workspace or in any "
        "commit of dvc.lock whose manifests are here or in DVC's cache."
    )


def _matches(
    version: Version, digits: str, roots: dict[str, str]
) -> Iterable[tuple[str, tuple[str, ...] | None, str]]:
    """Scheme, drops and digest of each set that has these digits; `roots` is a memory."""
    for stage in version.of_kind("protect"):
        names = item_names(stage)
        path = f"data/protected/{names['scheme']}/{names['drop']}"
        for out in (one for one in stage.outs if one.path == path):
            if out.md5 not in roots:
                manifest = _manifest(version, stage)
                roots[out.md5] = manifest.root if manifest else ""
            for digest in (out.md5, roots[out.md5]):
                if digest.startswith(digits):
                    yield names["scheme"], (names["drop"],), digest
    for stage in (*version.of_kind("train"), *version.of_kind("attack")):
        scheme = item_names(stage)["scheme"]
        for dep in stage.deps:
            # All drops of a scheme together: what a model learns from.
            if dep.path == f"data/protected/{scheme}" and dep.md5.startswith(digits):
                yield scheme, None, dep.md5


def _span(value: str) -> tuple[date, date]:
    match = _SPAN.fullmatch(value)
    try:
        first, last = match.groups() if match else ("", None)
        span = date.fromisoformat(first), date.fromisoformat(last or first)
    except ValueError:
        span = None
    if span is None or span[0] > span[1]:
        raise AuditError(
            f"{value!r} is no span of dates: write 2026-01-31 or 2026-01-01..2026-01-31."
        )
    return span


# ------------------------------------------------------------------------------ putting together


def _assemble(
    case: Case,
    schemes: Sequence[str],
    wanted: Collection[tuple[str, str]] | None,
    models: Callable[[StageRecord], bool],
) -> Answer:
    """All facts about some schemes' sets, by scheme and drop; question and value are open."""
    schemes = list(dict.fromkeys(schemes))
    whole = [
        one
        for scheme in schemes
        for one in map(case.protected, case.protected_stages(scheme))
        if one is not None
    ]
    protected = [one for one in whole if wanted is None or (one.scheme, one.drop) in wanted]
    behind = [one.drop for one in protected] + [d for one in protected for d in one.fitted_on]
    trained = [
        stage
        for stage in case.version.of_kind("train")
        if item_names(stage)["scheme"] in schemes and models(stage)
    ]
    return Answer(
        "dataset", "", "",
        protected=tuple(protected),
        drops=tuple(case.drop(name) for name in dict.fromkeys(behind)),
        packages=case.packages(),
        verdicts=tuple(
            verdict
            for scheme in schemes
            for verdict in (*case.verdicts(scheme), *case.model_verdicts(scheme))
        ),
        models=tuple(map(case.model, trained)),
        releases=case.releases(lambda one: one.scheme in schemes, _roots(whole)),
    )  # fmt: skip


def _about(facts: Answer, question: Question, value: str, what: str, version: Version) -> Answer:
    return replace(facts, question=question, value=value, subject=what, commit=version.commit)


def _finish(case: Case, facts: Answer, sampling: Sampling | None) -> Answer:
    """Adds samples and MLflow's addresses, and what is missing."""
    wanted = {(one.scheme, one.drop) for one in facts.protected}
    samples = None
    if sampling is not None:
        stages = [s for s in case.protected_stages() if _pair(s) in wanted]
        samples = tuple(
            reproduce(case.version, stage, sampling.images, sampling.generator) for stage in stages
        )
        for one in samples:
            if not one.succeeded:
                case.gap(_unlike(one))
    return replace(facts, samples=samples, runs=_runs(case, facts), missing=tuple(case.gaps))


def _unlike(sample: SampleFacts) -> str:
    if sample.obstacle is not None:
        return f"{sample.set} cannot be made again here: {sample.obstacle}"
    more = f": {sample.remark}" if sample.remark else ""
    return (
        f"{sample.images - sample.equal} of {sample.images} sampled images of {sample.set} came "
        f"out other than they are stored{more}."
    )


def _runs(case: Case, facts: Answer) -> tuple[RunFacts, ...]:
    """Where MLflow shows the stage results that the answer is about."""
    schemes = {one.scheme for one in facts.protected}
    names = {one.recorded.stage for one in facts.protected}
    names |= {one.recorded.stage for one in facts.models}
    names |= {f"attack@{scheme}" for scheme in schemes} | {"evaluate", "gate"}
    stages = [stage for stage in case.version.stages if stage.name in names]
    return find_runs(case.root, case.dataset, {stage_key(one): one.name for one in stages})


def _roots(sets: Iterable[ProtectedFacts]) -> Callable[[str], tuple[str, ...]]:
    sets = tuple(sets)
    return lambda scheme: set_roots(one for one in sets if one.scheme == scheme)


def _pair(stage: StageRecord) -> tuple[str, str]:
    names = item_names(stage)
    return names["scheme"], names["drop"]


def _uses(case: Case, stage: StageRecord, drop: str) -> bool:
    """Whether a protected set is made of a drop, or by a scheme that learnt from it."""
    if item_names(stage)["drop"] == drop:
        return True
    manifest = _manifest(case.version, stage)
    learns = manifest is not None and bool((manifest.scheme or {}).get("fitted_hash"))
    return learns and drop in case.fitted_on(item_names(stage)["scheme"])


def _learnt(model: ModelFacts, sets: Collection[tuple[str, str]]) -> bool:
    """Whether a model learnt from one of these sets, or may have."""
    return not model.sets or any(f"{scheme}/{drop}" in model.sets for scheme, drop in sets)


def _changes(
    history: History,
    wanted: Callable[[StageRecord], bool],
    when: Callable[[Commit], bool] = lambda _: True,
) -> tuple[ChangeFacts, ...]:
    """The commits that brought such stage results, oldest first."""
    found = []
    for number, commit in reversed(list(enumerate(history.commits))):
        if not when(commit):
            continue
        names = tuple(stage.name for stage in history.changes(number) if wanted(stage))
        if names:
            found.append(ChangeFacts(commit.id, commit.at, commit.by, names))
    return tuple(found)


def _changes_of(history: History, commit: str | None) -> tuple[ChangeFacts, ...]:
    return _changes(history, lambda _: True, lambda one: one.id == commit)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "none"
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
