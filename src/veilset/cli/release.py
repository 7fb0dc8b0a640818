"""`veilset release`: a signed folder for a receiver, where the evidence allows one."""

import getpass
import importlib.metadata
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from veilset.console import say
from veilset.errors import SettingsError
from veilset.files import read_table

if TYPE_CHECKING:
    from veilset.data.shards import ImageSet
    from veilset.release.ledger import Spent
    from veilset.release.readiness import Standing
    from veilset.release.statement import CheckFacts, Waiver
    from veilset.report.model import EvaluationFile
    from veilset.settings import Settings
    from veilset.stages.project import Project

For = Literal["outside_trainer", "public_release"]

PACKAGES: Final = ("veilset", "numpy", "numba", "torch", "cryptography", "pyarrow")
"""Whose versions bear on the bytes and the figures of a release."""

LEDGER: Final = Path("data/ledger.parquet")
"""Where a project keeps how much privacy budget its images have spent. Private."""


_ANYBODY: Final = frozenset({"root", "user", "admin", "ubuntu", "debian", "runner", "localhost"})


def add_to(app: typer.Typer) -> None:
    """Adds this command to the program."""
    app.command()(release)


def release(
    scheme: Annotated[str, typer.Argument(help="A scheme's name in params.yaml")],
    *,
    to: Annotated[Path, typer.Option(help="The folder to make; none is ever replaced")],
    licence: Annotated[str, typer.Option(help="Under which terms the data may be used")],
    publisher: Annotated[str, typer.Option(help="Who releases it, as receivers shall see it")],
    receiver: Annotated[For, typer.Option(help="Whose verdict must pass")] = "outside_trainer",
    waive: Annotated[
        str | None, typer.Option(help="Release in spite of the verdict, for this reason")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Whose decision that is, by full name")] = None,
    parquet: Annotated[bool, typer.Option(help="Add the same rows as Parquet")] = False,
) -> None:
    """Release what a scheme protected, signed, if nothing in the evidence speaks against it."""
    from veilset.adapters.dvc import git_commit  # noqa: PLC0415
    from veilset.release.bundle import write_release  # noqa: PLC0415
    from veilset.release.datasheet import Terms  # noqa: PLC0415
    from veilset.release.readiness import ReleaseError, refusals, release_facts  # noqa: PLC0415
    from veilset.release.signing import read_signing_key, signing_key_path  # noqa: PLC0415
    from veilset.settings import load_settings  # noqa: PLC0415
    from veilset.stages.project import Project  # noqa: PLC0415

    root = Path()
    project, settings = Project(root), load_settings(root)
    if scheme not in settings.schemes:
        raise SettingsError(
            f"{scheme} is not among the schemes of params.yaml: it has "
            f"{', '.join(settings.schemes)}."
        )
    key, waiver = read_signing_key(signing_key_path(root)), _waiver(waive, by)
    sets = _sets(project, scheme)
    standing = _standing(project, settings, scheme, sets)
    reasons = refusals(standing, receiver, waiver)
    for reason in reasons:
        say(f"- {reason}")
    if reasons:
        raise ReleaseError(
            f"{scheme} is not released: {len(reasons)} reasons speak against it, as told above."
        )
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    facts = release_facts(
        standing, receiver, waiver, released=date.today(),
        spent=_spent(project, scheme, sets), commit=git_commit(root), packages=packages,
    )  # fmt: skip
    assert standing.card is not None  # noqa: S101  refusals() has looked
    statement = write_release(
        to, sets, facts, key, card=standing.card, terms=Terms(licence, publisher),
        private=_private_words(), parquet=parquet,
    )  # fmt: skip
    say(f"Released {scheme} into {to}: {len(statement.files)} files, root {facts.root}.")
    say(
        f"Signed by {key.public.fingerprint}. Receivers check it by `veilset verify {to.name} "
        "--public-key FILE`, with keys/signing.public, which they must have from you by another "
        "way."
    )


def _waiver(reason: str | None, name: str | None) -> "Waiver | None":
    from veilset.release.statement import Waiver  # noqa: PLC0415

    if reason is None and name is None:
        return None
    if reason is None or name is None:
        raise SettingsError("a waiver needs a reason and a name: give both --waive and --by.")
    return Waiver(reason=reason, name=name, date=date.today())


def _sets(project: "Project", scheme: str) -> dict[str, "ImageSet"]:
    """The scheme's protected sets by drop."""
    from veilset.data.shards import ImageSet  # noqa: PLC0415
    from veilset.settings import load_drops  # noqa: PLC0415

    folders = {drop: project.protected(scheme, drop) for drop in load_drops(project.root).names}
    return {drop: ImageSet.open(folder) for drop, folder in folders.items() if folder.is_dir()}


def _standing(
    project: "Project", settings: "Settings", scheme: str, sets: Mapping[str, "ImageSet"]
) -> "Standing":
    """All that decides, from the files that DVC versions."""
    from veilset import keys  # noqa: PLC0415
    from veilset.adapters.dvc import changed_stages, stage_graph  # noqa: PLC0415
    from veilset.release.card import read_card  # noqa: PLC0415
    from veilset.release.gate import GateParams  # noqa: PLC0415
    from veilset.release.readiness import ReleaseParams, Standing  # noqa: PLC0415
    from veilset.settings import PARAMS_FILE  # noqa: PLC0415

    root = project.root
    card = project.reports / "cards" / f"{scheme}.json"
    found = {drop: _checks(project, drop) for drop in sets}
    return Standing(
        scheme=scheme,
        manifests={drop: one.manifest for drop, one in sets.items()},
        checks={drop: checks for drop, checks in found.items() if checks is not None},
        card=read_card(card) if card.is_file() else None,
        evaluation=_evaluation(project.reports / "evaluation.json"),
        unclean=tuple(sorted(changed_stages(root, stage_graph(root)))),
        ids_fingerprint=keys.project_key("ids", root).fingerprint,
        params=ReleaseParams.parse(settings.release, f"{PARAMS_FILE}: release"),
        gate=GateParams.parse(settings.gate, f"{PARAMS_FILE}: gate"),
    )


def _checks(project: "Project", drop: str) -> "CheckFacts | None":
    """Which checks of a drop failed; None where it was not checked."""
    from veilset.release.statement import CheckFacts  # noqa: PLC0415
    from veilset.report.load import read_checks  # noqa: PLC0415

    path = project.checks(drop) / "results.json"
    if not path.is_file():
        return None
    failed = [check for check in read_checks(path) if not check.success]
    return CheckFacts(
        critical_failed=tuple(c.rule or c.expectation for c in failed if c.severity == "critical"),
        warnings=tuple(c.rule or c.expectation for c in failed if c.severity != "critical"),
    )


def _evaluation(path: Path) -> "EvaluationFile | None":
    from veilset.report.load import read_evaluation  # noqa: PLC0415

    return read_evaluation(path) if path.is_file() else None


def _spent(project: "Project", scheme: str, sets: Mapping[str, "ImageSet"]) -> "Spent | None":
    """The budget that images have spent once this release is entered; None without a guarantee."""
    from veilset.release.ledger import budget, spend  # noqa: PLC0415

    totals: Mapping[str, Spent] = {}
    cost: tuple[str, float] | None = None
    for drop, one in sets.items():
        record: Mapping[str, Any] = one.manifest.scheme or {}
        cost = budget(record)
        if cost is not None:
            links = sorted(project.provenance(scheme, drop).glob("links-*.parquet"))
            ids = [str(value) for path in links for value in read_table(path)["id"]]
            totals = spend(project.root / LEDGER, one.manifest.root, record, ids)
    return None if cost is None else totals[cost[0]]


def _private_words() -> tuple[str, ...]:
    """Names of this machine and its user, which no release may tell; not those that all have."""
    words = [platform.node()]
    with suppress(OSError, KeyError):  # a user without a name
        words.append(getpass.getuser())
    return tuple(word for word in words if len(word) > 2 and word not in _ANYBODY)
