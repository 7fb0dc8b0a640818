"""`veilset release`, `releases`, `withdraw`: what receivers get, and what no longer stands."""

import getpass
import hashlib
import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from veilset.console import progress, say, up_to
from veilset.errors import ReleaseError, SettingsError, VeilsetError
from veilset.files import read_table, write_bytes

if TYPE_CHECKING:
    from veilset.data.shards import ImageSet
    from veilset.release.history import ReleaseEvent
    from veilset.release.ledger import Spent
    from veilset.release.readiness import Standing
    from veilset.release.signing import SigningKey
    from veilset.release.statement import CheckFacts, Predicate, Waiver
    from veilset.report.model import Card, EvaluationFile
    from veilset.settings import Settings
    from veilset.stages.project import Project

For = Literal["outside_trainer", "public_release"]

PACKAGES: Final = ("veilset", "numpy", "numba", "torch", "cryptography", "pyarrow")
"""Whose versions bear on the bytes and the figures of a release."""

LEDGER: Final = Path("data/ledger.parquet")
"""Where a project keeps how much privacy budget its images have spent. Private."""

_ANYBODY: Final = frozenset({"root", "user", "admin", "ubuntu", "debian", "runner", "localhost"})


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command()(release)
    app.command()(releases)
    app.command()(withdraw)


def release(
    scheme: Annotated[str, typer.Argument(help="A scheme's name in params.yaml")],
    *,
    to: Annotated[str, typer.Option(help="A DVC remote (`shared`), or a folder to make")],
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
    from veilset.release.history import RELEASES, enter_release  # noqa: PLC0415
    from veilset.release.readiness import refusals, release_facts  # noqa: PLC0415
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
    key, waiver = read_signing_key(signing_key_path(root)), waiver_of(waive, by)
    sets = _sets(project, scheme)
    standing = _standing(project, settings, scheme, sets)
    reasons = (*refusals(standing, receiver, waiver), *_open_doors(root, to))
    if reasons:
        for reason in reasons:
            say(f"- {reason}")
        event = _event(
            "refused", dataset=settings.data.name, scheme=scheme, receiver=receiver, to=to,
            commit=git_commit(root), reasons=reasons, waiver=waiver,
        )  # fmt: skip
        enter_release(root / RELEASES, event)
        raise ReleaseError(
            f"{scheme} is not released: {len(reasons)} reasons speak against it, as told above and "
            f"in {RELEASES}."
        )
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    facts = release_facts(
        standing, receiver, waiver, released=date.today(),
        spent=_spent(project, scheme, sets), commit=git_commit(root), packages=packages,
    )  # fmt: skip
    assert standing.card is not None  # noqa: S101  refusals() has looked
    making = _Making(
        root=root, scheme=scheme, sets=sets, card=standing.card, facts=facts, key=key,
        terms=(licence, publisher), parquet=parquet,
    )  # fmt: skip
    if to in _remotes(root):
        making.into_remote(to)
    else:
        making.into_folder(Path(to))
    say(
        f"Signed by {key.public.fingerprint}. Receivers check it by `veilset verify FOLDER "
        "--public-key FILE`, with keys/signing.public, which they must have from you by another "
        f"way. Commit {RELEASES} and reports/releases: they are the record of it."
    )
    _tell_mlflow(root, settings)


@dataclass(frozen=True, kw_only=True)
class _Making:
    """One release: what it is made from, and the two kinds of places that it can go to."""

    root: Path
    scheme: str
    sets: Mapping[str, "ImageSet"]
    card: "Card"
    facts: "Predicate"
    key: "SigningKey"
    terms: tuple[str, str]
    parquet: bool

    @property
    def name(self) -> str:
        from veilset.release.history import release_name  # noqa: PLC0415

        return release_name(self.facts, self.scheme)

    def into_folder(self, folder: Path) -> None:
        files = self._build(folder)
        self._record(folder, str(folder))
        say(f"Released {self.scheme} into {folder}: {files} files, root {self.facts.root}.")

    def into_remote(self, name: str) -> None:
        """The record comes first: what went out unrecorded would be worse than the reverse."""
        from veilset.adapters.dvc_remote import (  # noqa: PLC0415
            open_remote,
            put_release,
            read_list,
            write_list,
        )
        from veilset.release.history import Listed  # noqa: PLC0415

        remote = open_remote(self.root, name)
        listed = read_list(remote, self.key.public)
        data = self.root / "data"
        with tempfile.TemporaryDirectory(prefix=".release-", dir=data) as temporary:
            folder = Path(temporary) / self.name
            files = self._build(folder)
            self._record(folder, name)
            with progress(f"to {name}", None, "B") as advance:
                put_release(remote, folder, self.name, up_to(advance))
        one = Listed(name=self.name, root=self.facts.root, released=self.facts.released)
        write_list(remote, listed.with_release(one), self.key)
        say(
            f"Released {self.scheme} to {remote.url}, as releases/{self.name}: {files} files, "
            f"root {self.facts.root}."
        )

    def _build(self, folder: Path) -> int:
        from veilset.release.bundle import write_release  # noqa: PLC0415
        from veilset.release.datasheet import Terms  # noqa: PLC0415

        statement = write_release(
            folder, self.sets, self.facts, self.key, card=self.card,
            terms=Terms(*self.terms), private=private_words(), parquet=self.parquet,
            check_metadata=True,
        )  # fmt: skip
        return len(statement.files)

    def _record(self, folder: Path, to: str) -> None:
        """The line in the owner's list, and copies of what was signed and of the card."""
        from veilset.release.bundle import README, STATEMENT  # noqa: PLC0415
        from veilset.release.history import RELEASES, STATEMENTS, enter_release  # noqa: PLC0415

        signed, facts = (folder / STATEMENT).read_bytes(), self.facts
        write_bytes(self.root / STATEMENTS / f"{self.name}.dsse.json", signed)
        write_bytes(self.root / STATEMENTS / f"{self.name}.md", (folder / README).read_bytes())
        event = _event(
            "released", dataset=facts.dataset, scheme=self.scheme, receiver=facts.receiver,
            name=self.name, root=facts.root, sets=tuple(one.root for one in facts.sets), to=to,
            commit=facts.commit, statement=hashlib.sha256(signed).hexdigest(),
            key_fingerprint=self.key.public.fingerprint, waiver=facts.waiver,
        )  # fmt: skip
        enter_release(self.root / RELEASES, event)


def releases(
    json_: Annotated[bool, typer.Option("--json", help="As JSON")] = False,
) -> None:
    """List releases that were made, refused and withdrawn, from the owner's own record."""
    from veilset.release.history import RELEASES, read_releases  # noqa: PLC0415

    events = read_releases(Path() / RELEASES)
    if json_:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in events], indent=1))
        return
    if not events:
        say(f"No release was made or refused yet ({RELEASES} is not there).")
    for one in events:
        what = one.name or one.scheme + (" (what it learnt)" if one.what == "learnt" else "")
        where = f" to {one.to}" if one.to and one.event != "withdrawn" else ""
        waived = f" Waived by {one.waiver.name}: {one.waiver.reason}" if one.waiver else ""
        why = "".join(f"\n  - {reason}" for reason in one.reasons)
        who = f" by {one.by}" if one.by else ""
        say(f"{one.at:%Y-%m-%d %H:%M} {one.event} {what}{where}{who}.{waived}{why}")


def withdraw(
    name: Annotated[str, typer.Argument(help="The release's name, see `veilset releases`")],
    *,
    reason: Annotated[str, typer.Option(help="Why, as receivers shall read it")],
    by: Annotated[str, typer.Option(help="Whose decision that is, by full name")],
) -> None:
    """Withdraw a release: on record for ever, off the remote, and on its signed list as withdrawn.

    Copies that receivers have cannot be called back.
    """
    from veilset.release.history import RELEASES, enter_release, read_releases  # noqa: PLC0415
    from veilset.release.signing import read_signing_key, signing_key_path  # noqa: PLC0415
    from veilset.settings import load_settings  # noqa: PLC0415

    root = Path()
    events = read_releases(root / RELEASES)
    made = [one for one in events if one.event == "released" and one.name == name]
    if not made:
        known = ", ".join(dict.fromkeys(one.name for one in events if one.event == "released"))
        raise ReleaseError(
            f"There is no release {name} on record: {RELEASES} has {known or 'none'}."
        )
    if not reason.strip() or not by.strip():
        raise ReleaseError("A withdrawal needs a reason and a name: give both in full.")
    key = read_signing_key(signing_key_path(root))
    last = [one for one in events if one.name == name][-1]
    if last.event == "released":
        told = {"event": "withdrawn", "reasons": (reason,), "by": by, "waiver": None}
        enter_release(root / RELEASES, last.model_copy(update={**told, "at": _now()}))
        say(f"Withdrawn {name} on record in {RELEASES}: commit it.")
    else:
        reason = last.reasons[0]
    for place in dict.fromkeys(one.to for one in made):
        _unlist(root, place, made[-1], reason, key)
    _tell_mlflow(root, load_settings(root))


def _tell_mlflow(root: Path, settings: "Settings") -> None:
    """Sets tags and aliases in the audit store; the release stands where that is away."""
    from veilset.adapters.mlflow_audit import sync  # noqa: PLC0415

    try:
        sync(root, log_originals=settings.data.log_originals)
    except VeilsetError as error:
        say(f"MLflow does not know of it yet ({error}) Run `veilset audit sync`.")


def _unlist(root: Path, place: str, made: "ReleaseEvent", reason: str, key: "SigningKey") -> None:
    """Takes a withdrawn release off a remote; a second time changes nothing."""
    from veilset.adapters.dvc_remote import (  # noqa: PLC0415
        open_remote,
        read_list,
        remove_release,
        write_list,
    )
    from veilset.release.history import Withdrawn  # noqa: PLC0415

    if place not in _remotes(root):
        say(f"The copy in {place} is not touched: delete it, and tell whoever has it.")
        return
    remote = open_remote(root, place)
    one = Withdrawn(name=made.name, root=made.root, withdrawn=_now().date(), reason=reason)
    listed = read_list(remote, key.public)
    if listed.withdrawal_of(made.root) is None:
        write_list(remote, listed.with_withdrawal(one), key)
    gone = remove_release(remote, made.name)
    say(
        f"{'Removed' if gone else 'Nothing was left to remove'} from {remote.url}; its signed list "
        "names it as withdrawn. Copies that receivers have cannot be called back: tell them."
    )


def _event(event: Literal["released", "refused"], **facts: Any) -> "ReleaseEvent":
    from veilset.adapters.dvc import git_user  # noqa: PLC0415
    from veilset.release.history import ReleaseEvent  # noqa: PLC0415

    return ReleaseEvent(event=event, at=_now(), by=git_user(Path()), **facts)


def _now() -> Any:
    from veilset.release.history import now  # noqa: PLC0415

    return now()


def _open_doors(root: Path, to: str) -> tuple[str, ...]:
    """What DVC would bring to the place of a release, if somebody pushed there."""
    from veilset.adapters.dvc_remote import unprotected_outputs  # noqa: PLC0415

    if to not in _remotes(root):
        return ()
    return tuple(
        f"{output} is not held to the private remote, so `dvc push -r {to}` would bring it there: "
        "give it `remote: private`."
        for output in unprotected_outputs(root)
    )


def _remotes(root: Path) -> tuple[str, ...]:
    from veilset.adapters.dvc_remote import remote_names  # noqa: PLC0415

    return remote_names(root) if (root / ".dvc").is_dir() else ()


def waiver_of(reason: str | None, name: str | None) -> "Waiver | None":
    """What outweighs a verdict, where somebody answers for it by name."""
    from veilset.release.statement import Waiver  # noqa: PLC0415

    if reason is None and name is None:
        return None
    if reason is None or name is None:
        raise SettingsError("a waiver needs a reason and a name: give both --waive and --by.")
    return Waiver(reason=reason, name=name, date=date.today())


def _sets(project: "Project", scheme: str) -> dict[str, "ImageSet"]:
    """The scheme's protected sets, by the folder that each has in a release.

    That is a number: the name that a drop has with its owner may tell where it came from.
    """
    from veilset.data.shards import ImageSet  # noqa: PLC0415

    folders = {part: project.protected(scheme, drop) for part, drop in _parts(project).items()}
    return {part: ImageSet.open(folder) for part, folder in folders.items() if folder.is_dir()}


def _parts(project: "Project") -> dict[str, str]:
    """The drops by their folders in a release."""
    from veilset.settings import load_drops  # noqa: PLC0415

    return {f"part_{n}": drop for n, drop in enumerate(load_drops(project.root).names, start=1)}


def _standing(
    project: "Project", settings: "Settings", scheme: str, sets: Mapping[str, "ImageSet"]
) -> "Standing":
    """All that decides, from the files that DVC versions."""
    from veilset import keys  # noqa: PLC0415
    from veilset.adapters.dvc import changed_stages, stage_graph, uncommitted  # noqa: PLC0415
    from veilset.release.card import read_card  # noqa: PLC0415
    from veilset.release.gate import GateParams  # noqa: PLC0415
    from veilset.release.readiness import ReleaseParams, Standing  # noqa: PLC0415
    from veilset.settings import PARAMS_FILE  # noqa: PLC0415

    root = project.root
    card = project.reports / "cards" / f"{scheme}.json"
    found = {part: _checks(project, drop) for part, drop in _parts(project).items()}
    return Standing(
        scheme=scheme,
        manifests={drop: one.manifest for drop, one in sets.items()},
        checks={part: one for part, one in found.items() if part in sets and one is not None},
        card=read_card(card) if card.is_file() else None,
        evaluation=_evaluation(project.reports / "evaluation.json"),
        unclean=tuple(sorted(changed_stages(root, stage_graph(root)))),
        uncommitted=uncommitted(root),
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
    drops = _parts(project)
    for part, one in sets.items():
        record: Mapping[str, Any] = one.manifest.scheme or {}
        cost = budget(record)
        if cost is not None:
            links = sorted(project.provenance(scheme, drops[part]).glob("links-*.parquet"))
            ids = [str(value) for path in links for value in read_table(path)["id"]]
            totals = spend(project.root / LEDGER, one.manifest.root, record, ids)
    return None if cost is None else totals[cost[0]]


def private_words() -> tuple[str, ...]:
    """Names of this machine and its user, which no release may tell; not those that all have."""
    words = [platform.node()]
    with suppress(OSError, KeyError):  # a user without a name
        words.append(getpass.getuser())
    return tuple(word for word in words if len(word) > 2 and word not in _ANYBODY)
