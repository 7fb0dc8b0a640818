"""Taking waiting drops in: ingest, checks, comparison with earlier drops, and the decision.

What the command line and flows share. It is no stage: a decision is dated, is on record, and stands
when the drops it was made against have changed.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pandas as pd

from veilset.adapters.dvc import StageError, reproduce
from veilset.adapters.dvc_drops import forget_stages, is_tracked, output_digests, track_raw
from veilset.adapters.great_expectations_check import CheckParams, Finding
from veilset.adapters.great_expectations_drift import check_drop, is_drift
from veilset.data.ingest import ALL_REASONS
from veilset.data.manifest import NAME, Manifest
from veilset.data.records import INDEX, QUARANTINE
from veilset.drops.admission import accept, block_of, hold, hold_back, refuse
from veilset.drops.drift import Comparison, Profile, compare, profile_of
from veilset.drops.erasure import Workings
from veilset.drops.listing import list_drop
from veilset.drops.record import DropRecord, find_drop, read_drops
from veilset.files import leftovers, locked, read_table
from veilset.settings import PARAMS_FILE, Settings, load_drops, load_settings
from veilset.stages.project import Project, scheme_of

DRIFT: Final = Path("data/drift")
"""Profiles of drops, and the evidence of what was decided about them. Private."""


def waiting(root: Path) -> tuple[str, ...]:
    """Drops that have arrived and wait for their checks, oldest first."""
    return tuple(record.name for record in read_drops(root) if record.state == "arrived")


def take_in(root: Path, name: str, on_line: Callable[[str], None]) -> DropRecord:
    """Ingests a drop that waits, checks it, and decides; one that does not wait stays as it is.

    Args:
        root: The project's folder.
        name: The drop.
        on_line: Called with every line that DVC and the stage print.

    Returns:
        Its record: `accepted` (the pipeline runs over it), `held` (a person decides) or `refused`.

    Raises:
        SourceError: There is no such drop.
        BusyError: Another run takes it in, or another DVC command holds the project's lock.
        StageError: It could not be ingested for a reason that is not its own, e.g. a full disk; it
            still waits.
    """
    find_drop(root, name)
    with locked(root / DRIFT / name):
        record = find_drop(root, name)
        if record.state != "arrived":
            return record
        if not is_tracked(root, name):
            track_raw(root, name)
        if name not in load_drops(root).drops:
            list_drop(root, name, block_of(record))
        project = Project(root)
        try:
            reproduce(f"ingest@{name}", root, on_line)
        except StageError:
            reason = _unusable(project, name)
            if reason is None:
                raise
            return refuse(root, name, [reason], leftovers(project.ingested(name)))
        for earlier in load_drops(root).names:
            # In a fresh clone what it is compared with may not be there yet.
            if not (project.ingested(earlier) / NAME).is_file():
                reproduce(f"ingest@{earlier}", root, on_line)
        return decide(root, name)


def decide(root: Path, name: str) -> DropRecord:
    """Checks an ingested drop by itself and against the earlier ones, and puts it on record.

    Evidence is written to `data/drift/<name>/checks`.

    Raises:
        CorruptError: The ingested set is not as it was written.
        CheckError: Drops cannot be compared, because they were ingested under different settings.
    """
    project = Project(root)
    limits = CheckParams.parse(load_settings(root).check, f"{PARAMS_FILE}: check")
    index = read_table(project.ingested(name) / INDEX)
    comparison = compare_drop(root, name, limits)
    classes = Manifest.load(project.ingested(name)).classes
    result = check_drop(index, classes, comparison, limits, root / DRIFT / name / "checks")
    counts = _counts(index)
    bad = [one for one in result.critical_failed if not is_drift(one)]
    if bad:
        return refuse(root, name, [_reason(one) for one in bad])
    if result.critical_failed:
        return hold(root, name, [_reason(one) for one in result.critical_failed], counts)
    return accept(root, name, counts)


def compare_drop(root: Path, name: str, limits: CheckParams) -> Comparison | None:
    """How an ingested drop differs from those that were accepted before; None if there are none."""
    earlier = [drop for drop in load_drops(root).names if drop != name]
    if not earlier:
        return None
    return compare(_profile(root, name), [_profile(root, one) for one in earlier], limits.drift)


def drop_folders(root: Path, name: str) -> tuple[Path, ...]:
    """All that was made of a drop, and shows it: what a removal takes away beside the raw data.

    Also what a run that was killed left beside each place; not all of it need be there.
    """
    project = Project(root)
    places = (
        project.ingested(name), project.quarantine(name), project.checks(name),
        project.fit_drops(name), root / DRIFT / name,
    )  # fmt: skip
    left = (path for place in places for path in (place, *leftovers(place)))
    return (*left, *_protected_folders(root, name))


def set_aside(root: Path, name: str, reason: str, by: str = "") -> DropRecord:
    """Holds an accepted drop: it leaves the pipeline, with what schemes made of it so far.

    DVC's cache keeps that, so that nothing is made twice should the drop come back.

    Args:
        root: The project's folder.
        name: The drop.
        reason: Why, e.g. that a scheme cannot protect it.
        by: Who decides; empty for a program.

    Raises:
        SettingsError: As `veilset.drops.admission.hold_back`.
    """
    record = hold_back(root, name, [reason], _protected_folders(root, name), by)
    forget_stages(root, name)
    return record


def workings(root: Path) -> Workings:
    """What an erasure needs to know of this project."""
    settings, drops, project = load_settings(root), load_drops(root), Project(root)

    def fitted(drop: str) -> dict[str, str]:
        digests = output_digests(root, "data/fitted")
        learning = [name for name in settings.schemes if scheme_of(settings, name).learns]
        if drop not in drops.fit_drops:
            return {}
        return {name: digests.get(name, "") for name in learning if project.fitted(name).is_dir()}

    def models(drop: str) -> dict[str, str]:
        digests = output_digests(root, "data/models")
        return {
            path.name: digests.get(path.name, "")
            for path in _models(project, settings)
            if project.protected(path.name.split("-")[0], drop).is_dir()
        }

    def made(drop: str) -> tuple[Path, ...]:
        # Examples of attacks and the report show originals of any drop.
        showing = [*(root / "data/attacks").glob("*"), *(root / "data/attacks_model").glob("*/*")]
        return (*drop_folders(root, drop), *showing, project.reports / "index.html")

    def track(drop: str) -> None:
        if is_tracked(root, drop):
            track_raw(root, drop)

    return Workings(
        ingested=project.ingested,
        provenance=lambda drop: tuple(_by_scheme(root / "data/provenance", drop).values()),
        protected=lambda drop: _by_scheme(root / "data/protected", drop),
        fitted=fitted, models=models, made=made, track=track,
    )  # fmt: skip


def made_now(root: Path) -> dict[str, str]:
    """DVC's digests of all fitted transforms and CNNs as they are now, by name."""
    return {**output_digests(root, "data/fitted"), **output_digests(root, "data/models")}


# ------------------------------------------------------------------------------- small parts below


def _protected_folders(root: Path, name: str) -> tuple[Path, ...]:
    kinds = (root / "data/protected", root / "data/provenance")
    places = [scheme / name for kind in kinds for scheme in sorted(kind.glob("*"))]
    return tuple(path for place in places for path in (place, *leftovers(place)))


def _profile(root: Path, name: str) -> Profile:
    return profile_of(Project(root).ingested(name), root / DRIFT / name / "profile")


def _unusable(project: Project, name: str) -> str | None:
    """Why nothing of a drop can be used, where that is why its ingest failed."""
    path = project.quarantine(name) / QUARANTINE
    if (project.ingested(name) / NAME).is_file() or not path.is_file():
        return None
    counts = Counter(pd.read_csv(path)["reason"])
    found = ", ".join(f"{ALL_REASONS[code]} ({n:,})" for code, n in counts.most_common(3))
    return f"none of its images can be used: {found or 'it holds none'}"


def _reason(finding: Finding) -> str:
    """Why, in words that name no class: a class may be a person."""
    if is_drift(finding):
        return f"{finding.rule}: {finding.words}"
    return f"{finding.rule}: observed {finding.observed}"


def _counts(index: pd.DataFrame) -> dict[str, int]:
    roles = Counter(index["role"])
    refused = {role: roles.pop(role, 0) for role in ("duplicate", "quarantined")}
    return {"images": sum(roles.values()), **refused}


def _by_scheme(folder: Path, drop: str) -> dict[str, Path]:
    return {path.parent.name: path for path in sorted(folder.glob(f"*/{drop}"))}


def _models(project: Project, settings: Settings) -> list[Path]:
    every = (
        project.model(scheme, model, seed)
        for scheme in settings.schemes
        for model in settings.models
        for seed in settings.seeds
    )
    return [path for path in every if path.is_dir()]
