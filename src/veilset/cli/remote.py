"""`veilset remote`: keeps the place of releases free of everything else."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilset.console import say
from veilset.errors import ReleaseError

if TYPE_CHECKING:
    from veilset.adapters.dvc_remote import Remote

app = typer.Typer(help="Keep the remote of releases closed to DVC's own pushes.")

Name = Annotated[str, typer.Argument(help="A DVC remote that receivers read")]


@app.command()
def seal(name: Name = "shared") -> None:
    """Close a folder remote, so that any `dvc push` there fails before it writes."""
    from veilset.adapters.dvc_remote import seal_remote  # noqa: PLC0415

    remote = _opened(name)
    if seal_remote(remote):
        say(f"{remote.url} is sealed: DVC cannot push there, `veilset release` can.")
    else:
        say(
            f"{remote.url} is no folder, so it cannot be sealed: give its bucket the policy that "
            f"`veilset remote policy {name}` prints."
        )


@app.command()
def check(name: Name = "shared") -> None:
    """List what a remote holds beside releases, and what DVC would push there."""
    from veilset.adapters.dvc_remote import foreign, unprotected_outputs  # noqa: PLC0415

    remote = _opened(name)
    odd, doors = foreign(remote), unprotected_outputs(Path())
    for path in odd:
        say(f"- {path} is there and is no release.")
    for output in doors:
        say(f"- {output} has not `remote: private`: `dvc push -r {name}` would send it.")
    if odd or doors:
        raise ReleaseError(
            f"{remote.url} is not held to releases alone: see above. Remove what is there and no "
            "release, and give every output `remote: private`."
        )
    say(f"{remote.url} holds releases and nothing else.")


@app.command()
def policy(name: Name = "shared") -> None:
    """Print the bucket policy that keeps DVC's own pushes out of an S3 remote."""
    from veilset.adapters.dvc_remote import bucket_policy  # noqa: PLC0415

    typer.echo(bucket_policy(_opened(name)))


def _opened(name: str) -> "Remote":
    from veilset.adapters.dvc_remote import open_remote  # noqa: PLC0415

    return open_remote(Path(), name)
