"""`veilset drop ...`: new data from their arrival to the decision about them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from veilset.cli.images import settings_of
from veilset.console import say
from veilset.errors import VeilsetError

if TYPE_CHECKING:
    from veilset.drops.record import DropRecord

app = typer.Typer(help="New data: add a drop, check it, decide about it, remove it.")

_NEXT: Final = {
    "arrived": "`veilset drop check` ingests and checks it.",
    "held": "`veilset drop approve` takes it as it is, `veilset drop retry` checks it anew under "
    "other settings, `veilset drop remove` takes it away.",
    "accepted": "`make repro` protects it; commit drops.yaml and data/drops.jsonl.",
    "protected": "nothing waits.",
    "refused": "mend what is wrong and `veilset drop retry`, or `veilset drop remove` it.",
    "removed": "its old versions are in the caches and remotes until they are purged.",
}

Name = Annotated[str, typer.Argument(help="A drop's name")]
By = Annotated[str, typer.Option(help="Who decides, by full name")]


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="A folder, an archive, or a file of images")],
    *,
    licence: Annotated[str, typer.Option(help="Under which terms the images may be used")],
    consent: Annotated[str, typer.Option(help="On what ground they may be processed")],
    by: Annotated[str, typer.Option(help="Who adds it, by full name")],
    name: Annotated[
        str | None, typer.Option(help="Its name, which logs and stages will show")
    ] = None,
    source: Annotated[str, typer.Option(help="Which source reads it")] = "auto",
    table: Annotated[str, typer.Option(help="Where in the folder the table of images is")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the source, e.g. group_column")
    ] = None,
    settle_seconds: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="How long nothing must change in the place")
    ] = 2.0,
) -> None:
    """Copy a place into the project as a drop. The same content twice is one drop."""
    from veilset.adapters.dvc_drops import track_raw  # noqa: PLC0415
    from veilset.drops.intake import Arrival, add_drop  # noqa: PLC0415
    from veilset.keys import project_key  # noqa: PLC0415

    root = Path()
    said = Arrival(licence, consent, by, name, source, settings_of(set_ or []), table)
    record, new = add_drop(
        root, path, said, project_key("ids", root), lambda folder: track_raw(root, folder.name),
        settle_seconds,
    )  # fmt: skip
    if not new:
        say(f"{record.name}: the same content was added {record.at:%Y-%m-%d} by {record.by}.")
    _tell(record)


@app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(help="Drops; by default all that wait")
    ] = None,
) -> None:
    """Ingest and check what waits: each drop is accepted, held for a person, or refused."""
    from veilset.stages.admission import take_in, waiting  # noqa: PLC0415

    root = Path()
    chosen = names or waiting(root)
    if not chosen:
        say("No drop waits.")
    failed: list[VeilsetError] = []
    for name in chosen:
        try:
            _tell(take_in(root, name, say))
        except VeilsetError as error:
            # One bad drop never stops the next.
            say(f"{name}: {error}")
            failed.append(error)
    if failed:
        raise failed[0]


@app.command("list")
def list_(*, as_json: Annotated[bool, typer.Option("--json", help="As JSON")] = False) -> None:
    """List all drops: state, images, who added them and when."""
    from veilset.drops.record import read_drops  # noqa: PLC0415
    from veilset.settings import load_drops  # noqa: PLC0415

    root = Path()
    records = read_drops(root)
    by_hand = [name for name in load_drops(root).drops if name not in {r.name for r in records}]
    if as_json:
        shown: list[dict[str, Any]] = [record.model_dump(mode="json") for record in records]
        say(json.dumps([*({"name": name} for name in by_hand), *shown], sort_keys=True, indent=1))
        return
    for name in by_hand:
        say(f"{name}: written into drops.yaml by hand")
    for record in records:
        images = record.counts.get("images")
        count = f"{images:,} images" if images is not None else f"{record.counts['files']:,} files"
        say(f"{record.name}: {record.words()}, {count}, added {record.at:%Y-%m-%d} by {record.by}")


@app.command()
def show(
    name: Name, *, as_json: Annotated[bool, typer.Option("--json", help="As JSON")] = False
) -> None:
    """Show what is on record of a drop, and every decision about it."""
    from veilset.drops.intake import origin_of  # noqa: PLC0415
    from veilset.drops.record import find_drop  # noqa: PLC0415

    root = Path()
    record = find_drop(root, name)
    if as_json:
        say(json.dumps(record.model_dump(mode="json"), sort_keys=True, indent=1))
        return
    _tell(record)
    say(f"    licence: {record.licence}")
    say(f"    consent: {record.consent}")
    say(f"    added {record.at:%Y-%m-%d %H:%M} UTC by {record.by}, read as {record.source}")
    say(f"    from: {origin_of(root, name) or 'not known on this machine'}")
    say(f"    {', '.join(f'{what} {count:,}' for what, count in sorted(record.counts.items()))}")
    if record.schemes:
        say(f"    protected by: {', '.join(record.schemes)}")
    for one in record.decisions:
        by = f" by {one.by}" if one.by else ""
        say(f"    {one.at:%Y-%m-%d %H:%M} {one.event}{by}{_listed(one.reasons)}")


@app.command()
def approve(
    name: Name, *, by: By, note: Annotated[str, typer.Option(help="Why, for the record")] = ""
) -> None:
    """Take a held drop as it is; later drops are compared with it as well."""
    from veilset.drops import admission  # noqa: PLC0415

    _tell(admission.approve(Path(), name, by, (note,) if note else ()))


@app.command()
def hold(
    name: Name, *, by: By, reason: Annotated[str, typer.Option(help="Why, for the record")]
) -> None:
    """Take an accepted drop out of the pipeline until somebody decides about it."""
    from veilset.stages.admission import set_aside  # noqa: PLC0415

    _tell(set_aside(Path(), name, reason, by))


@app.command()
def retry(name: Name, *, by: Annotated[str, typer.Option(help="Who asks for it")] = "") -> None:
    """Have a held or refused drop checked again, e.g. under other settings."""
    from veilset.drops import admission  # noqa: PLC0415

    _tell(admission.retry(Path(), name, by))


@app.command()
def remove(
    name: Name,
    *,
    by: By,
    reason: Annotated[str, typer.Option(help="Why, for the record")],
    purge: Annotated[bool, typer.Option(help="Its versions in caches and remotes as well")] = False,
) -> None:
    """Take a drop and all that was made of it out of the project."""
    from veilset.adapters.dvc_drops import forget_stages, purge_drop, untrack_raw  # noqa: PLC0415
    from veilset.drops import admission  # noqa: PLC0415
    from veilset.drops.intake import RAW  # noqa: PLC0415
    from veilset.stages.admission import drop_folders  # noqa: PLC0415

    root = Path()
    folders = (root / RAW / name, *drop_folders(root, name))
    record = admission.remove(root, name, by, reason, folders)
    purged = purge_drop(root, [name], keep_current=False) if purge else None
    untrack_raw(root, name)
    forget_stages(root, name)
    if record is not None:
        _tell(record)
    say("`make repro` makes everything else without it; commit drops.yaml and data/drops.jsonl.")
    if purged is not None:
        tell_purged(purged)


def tell_purged(purged: Any) -> None:
    """Says what a purge took out, and what it could not reach."""
    for place, count in purged.objects.items():
        say(f"Purged from {place}: {count:,} objects of {purged.versions:,} old versions.")
    for place in purged.unreached:
        say(f"Not reached: {place}.")


def _tell(record: "DropRecord") -> None:
    reasons = record.decisions[-1].reasons if record.state in ("held", "refused") else ()
    say(f"{record.name}: {record.words()}{_listed(reasons)}")
    say(f"    {_NEXT[record.state]}")


def _listed(reasons: tuple[str, ...]) -> str:
    return f": {'; '.join(reasons)}" if reasons else ""
