"""`veilset bundle`: what a scheme learnt, signed, for clients and providers."""

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from veilset.cli.release import PACKAGES, private_words, waiver_of
from veilset.console import progress, say, up_to
from veilset.errors import ReleaseError, SettingsError

if TYPE_CHECKING:
    from veilset.release.learnt import Learnt
    from veilset.release.statement import Waiver
    from veilset.types import Images, Labels


def add_to(app: typer.Typer) -> None:
    """Adds this command to the program."""
    app.command()(bundle)


def bundle(
    scheme: Annotated[str, typer.Argument(help="A scheme of params.yaml that learns")],
    *,
    to: Annotated[Path, typer.Option(help="A folder to make")],
    licence: Annotated[str, typer.Option(help="Under which terms it may be used")],
    publisher: Annotated[str, typer.Option(help="Who hands it out, as receivers shall see it")],
    shadows: Annotated[
        int, typer.Option(min=6, max=256, help="How often the attacker fits the scheme; even")
    ] = 8,
    waive: Annotated[
        str | None, typer.Option(help="Hand it out in spite of the verdict, for this reason")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Whose decision that is, by full name")] = None,
) -> None:
    """Hand out what a scheme learnt from plain images, once it was attacked.

    The attacker fits the scheme several times herself, so this takes as many times as long as the
    stage `fit`.
    """
    from veilset.adapters.dvc import (  # noqa: PLC0415
        changed_stages,
        git_user,
        stage_graph,
        uncommitted,
    )
    from veilset.release.datasheet import Terms  # noqa: PLC0415
    from veilset.release.history import RELEASES, enter_release  # noqa: PLC0415
    from veilset.release.learnt import (  # noqa: PLC0415
        learnt_event,
        learnt_refusals,
        membership_words,
        write_learnt,
    )
    from veilset.release.signing import read_signing_key, signing_key_path  # noqa: PLC0415

    root = Path()
    key, waiver = read_signing_key(signing_key_path(root)), waiver_of(waive, by)
    learnt = _attacked(root, scheme, shadows, waiver)
    say(membership_words(learnt.facts.membership))
    unclean = {*changed_stages(root, stage_graph(root)), *(uncommitted(root) or ())}
    reasons = learnt_refusals(learnt, unclean)
    if reasons:
        for reason in reasons:
            say(f"- {reason}")
        refused = learnt_event("refused", learnt.facts, scheme, str(to), git_user(root), reasons)
        enter_release(root / RELEASES, refused)
        raise ReleaseError(f"What {scheme} learnt is not handed out, as told above.")
    signed = write_learnt(to, learnt, key, Terms(licence, publisher), private_words())
    made = learnt_event("released", signed.predicate, scheme, str(to), git_user(root))
    enter_release(root / RELEASES, made)
    say(f"Wrote {to}, signed by {key.public.fingerprint}. Commit {RELEASES}.")


def _attacked(root: Path, name: str, shadows: int, waiver: "Waiver | None") -> "Learnt":
    """What a scheme learnt, and what the attack finds in it."""
    from veilset.adapters.dvc import git_commit  # noqa: PLC0415
    from veilset.attacks.learnt_membership import (  # noqa: PLC0415
        LearntMembershipParams,
        learnt_membership,
    )
    from veilset.release.gate import GateParams  # noqa: PLC0415
    from veilset.release.learnt import Learnt  # noqa: PLC0415
    from veilset.schemes.fitted import load_fitted  # noqa: PLC0415
    from veilset.settings import PARAMS_FILE, load_drops, load_settings  # noqa: PLC0415
    from veilset.stages.fit import FitParams, device_of, read_lessons  # noqa: PLC0415
    from veilset.stages.project import Project, scheme_of  # noqa: PLC0415

    project, settings = Project(root), load_settings(root)
    if name not in settings.schemes:
        raise SettingsError(
            f"{name} is not among the schemes of params.yaml: it has {', '.join(settings.schemes)}."
        )
    scheme = scheme_of(settings, name)
    if not scheme.learns:
        raise SettingsError(
            f"{name} learns nothing, so there is nothing to hand out: clients need its parameters "
            "and a key alone."
        )
    params = FitParams.parse(settings.fit, f"{PARAMS_FILE}: fit")
    scheme.device = device_of(params.device)
    fitted = load_fitted(project.fitted(name))
    folders = [project.ingested(drop) for drop in load_drops(root).fit_drops]
    with progress(f"attack what {name} learnt", shadows, "fit") as advance:
        found = learnt_membership(
            scheme, fitted, read_lessons(folders, params.limit), _never_fitted(folders),
            LearntMembershipParams(shadows=shadows), up_to(advance),
        )  # fmt: skip
    gate = GateParams.parse(settings.gate, f"{PARAMS_FILE}: gate")
    return Learnt(
        scheme=scheme.with_fitted(fitted), folder=project.fitted(name),
        dataset=settings.data.name, membership=found, limit=gate.model_holder.inference,
        waiver=waiver, commit=git_commit(root),
        packages={one: importlib.metadata.version(one) for one in PACKAGES},
    )  # fmt: skip


def _never_fitted(folders: list[Path]) -> "tuple[Images, Labels]":
    """Images of the same drops that no fit has seen: test images, and those of other roles."""
    from veilset.data.manifest import Manifest  # noqa: PLC0415
    from veilset.data.splits import read_split  # noqa: PLC0415

    counts = [Manifest.load(folder).splits.items() for folder in folders]
    held = {split for one in counts for split, count in one if count}
    parts = [read_split(folders, role) for role in ("test", "auxiliary", "gallery") if role in held]
    if not parts:
        raise SettingsError(
            "There are no images that the scheme was not fitted on, so nothing can be told of "
            "membership: give ingest.shares.test a share."
        )
    return np.concatenate([p[2] for p in parts]), np.concatenate([p[1] for p in parts])
