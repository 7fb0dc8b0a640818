"""`veilset report`: the page for publication, and what changed since an earlier version."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilset.console import say
from veilset.errors import SettingsError

if TYPE_CHECKING:
    from veilset.report.model import ReportInputs

_OWN = Path("reports/index.html")
_CHANGES = Path("reports/changes.html")
_PUBLIC = Path("reports/public.html")


def add_to(app: typer.Typer) -> None:
    """Adds this command to the program."""
    app.command()(report)


def report(
    *,
    against: Annotated[
        str, typer.Option(metavar="COMMIT", help="Compare with the project at this revision of git")
    ] = "",
    public: Annotated[
        bool, typer.Option("--public", help="A page to publish: no original, id, path or drop name")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Where the page goes, instead of into reports/")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say what changed as JSON")] = False,
) -> None:
    """Say the verdicts and where the report is; compare with a version; write a public page."""
    if against and public:
        raise SettingsError(
            "--against and --public cannot be given together: what changed names files and drops, "
            "so there is no public version of it."
        )
    if as_json and not against:
        raise SettingsError("--json tells what changed: give --against COMMIT as well.")
    if output is not None and not (against or public):
        raise SettingsError("--output is for a page that is written: give --against or --public.")
    if against:
        _against(against, output or _CHANGES, as_json=as_json)
    elif public:
        _public(output or _PUBLIC)
    else:
        _own()


def _against(revision: str, output: Path, *, as_json: bool) -> None:
    from veilset.adapters.report_versions import snapshots  # noqa: PLC0415
    from veilset.report.changes import compare  # noqa: PLC0415
    from veilset.report.changes_page import lines, to_json, write_changes  # noqa: PLC0415
    from veilset.settings import load_settings  # noqa: PLC0415

    root = Path()
    dataset = load_settings(root).data.name
    changes = compare(*snapshots(root, revision))
    write_changes(changes, dataset, output)
    if as_json:
        say(json.dumps(to_json(changes), indent=2, ensure_ascii=False, allow_nan=False))
        return
    for line in lines(changes):
        say(line)
    say("")
    say(f"Page: {output.resolve().as_uri()}")


def _public(output: Path) -> None:
    from veilset.files import write_text  # noqa: PLC0415
    from veilset.report.load import head_commit  # noqa: PLC0415
    from veilset.report.page import render  # noqa: PLC0415
    from veilset.report.public import refuse_private  # noqa: PLC0415

    root = Path()
    inputs = _inputs(root, commit=head_commit(root), public=True)
    page = render(inputs)
    classes = [
        name for drop in inputs.drops if not drop.groups_are_classes for name in drop.classes
    ]
    refuse_private(page, root, known=(inputs.dataset, *inputs.attacks, *classes))
    write_text(output, page)
    say(
        "The page shows no original, no reconstruction, no id, no path and no name of a drop; it "
        "was held against the ingested images. Read it before you publish it."
    )
    if any(drop.name == inputs.dataset for drop in inputs.drops):
        say(f"A drop is called as the data set is ({inputs.dataset}): that name is on the page.")
    say(f"Page: {output.resolve().as_uri()}")


def _own() -> None:
    from veilset.report import view, words  # noqa: PLC0415

    if not _OWN.is_file():
        raise SettingsError(f"{_OWN} is not here yet: run `make repro` (or `dvc repro`) first.")
    inputs = _inputs(Path())
    for name in view.template_names(inputs):
        say(f"{words.template_title(name)}: {view.headline(inputs, name)}")
    if inputs.demo_keys:
        say("The public demo key was used: nothing here is protected from anyone.")
    say(f"Report: {_OWN.resolve().as_uri()}")


def _inputs(root: Path, *, commit: str | None = None, public: bool = False) -> "ReportInputs":
    from veilset.report.load import load_inputs  # noqa: PLC0415
    from veilset.settings import load_drops, load_settings  # noqa: PLC0415

    settings, drops = load_settings(root), load_drops(root)
    return load_inputs(
        root, schemes=settings.schemes, drops=drops.names, commit=commit, public=public
    )
