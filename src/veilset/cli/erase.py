"""`veilset erase`: an image or a person out of the data, and out of every version to come."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilset.console import say
from veilset.errors import SettingsError

if TYPE_CHECKING:
    from veilset.drops.erasure import Done


def add_to(app: typer.Typer) -> None:
    """Adds this command to the program."""
    app.command()(erase)


def erase(
    *,
    image: Annotated[str, typer.Option(help="An image's id, as the index has it")] = "",
    group: Annotated[str, typer.Option(help="A person's group, as the index has it")] = "",
    by: Annotated[str, typer.Option(help="Who decides, by full name")],
    reason: Annotated[str, typer.Option(help="Why, for the record; name nobody in it")],
    purge: Annotated[bool, typer.Option(help="Old versions in caches and remotes as well")] = False,
) -> None:
    """Erase an image, or all of a person: from raw data, and from all that was made of them."""
    from veilset.adapters.dvc_drops import purge_drop  # noqa: PLC0415
    from veilset.data.ingest import IngestParams  # noqa: PLC0415
    from veilset.drops.erasure import Decree, Target  # noqa: PLC0415
    from veilset.drops.erasure import erase as erase_it  # noqa: PLC0415
    from veilset.keys import project_key  # noqa: PLC0415
    from veilset.settings import PARAMS_FILE, load_settings  # noqa: PLC0415
    from veilset.stages.admission import workings  # noqa: PLC0415

    if bool(image) == bool(group):
        raise SettingsError("Name one of --image and --group.")
    root = Path()
    settings = load_settings(root)
    values = {"workers": settings.resources.workers, **settings.ingest}
    params = IngestParams.parse(values, f"{PARAMS_FILE}: ingest")
    target = Target("image", image) if image else Target("group", group)
    done = erase_it(
        root, target, Decree(by, reason), project_key("ids", root), params, workings(root)
    )
    _tell(done)
    if purge:
        from veilset.cli.drops import tell_purged  # noqa: PLC0415

        tell_purged(purge_drop(root, tuple(done.images)))


def _tell(done: "Done") -> None:
    for drop, count in done.images.items():
        say(f"{drop}: {count:,} images erased; it is ingested and protected anew by `make repro`.")
        if done.receivers[drop]:
            say(f"    {done.receivers[drop]:,} other images had received blocks from them.")
        if drop in done.near:
            say(f"    {done.near[drop]:,} images that nearly equal them stay: look at them.")
    for what, names in (("transforms", done.fitted), ("models", done.models)):
        if names:
            say(f"Marked until they are made again, {what}: {', '.join(names)}.")
    for release in done.releases:
        how = "holds them" if release.how == "sets" else "may hold them, by its scheme and date"
        say(f"The release {release.name} in {release.to} {how}: withdraw it, and tell receivers.")
    if done.not_read:
        say(f"Not searched, because they are not here or unreadable: {', '.join(done.not_read)}.")
