"""`veilset key`: the owner's secrets. A key itself is never printed."""

from pathlib import Path
from typing import Annotated

import typer

from veilset import keys
from veilset.console import say
from veilset.errors import KeyFileError
from veilset.keys import KeyKind

app = typer.Typer(help="Make, show (fingerprints only) and destroy the owner's keys.")

SIGNING = "signing"

Kind = Annotated[
    str, typer.Argument(help="protection, ids (for image ids and splits), or signing (releases)")
]


@app.command()
def new(
    kind: Kind = "protection",
    *,
    key_file: Annotated[
        Path | None, typer.Option(help="Write a key for use outside a project here")
    ] = None,
    replace: Annotated[
        bool, typer.Option(help="Replace the project's key; the old one is kept beside it")
    ] = False,
) -> None:
    """Make a key of 32 random bytes, readable by you alone."""
    if key_file is not None:
        made = keys.write_key_file(key_file)
        say(f"Wrote {key_file} with the fingerprint {made.fingerprint}. Keep a copy offline.")
        return
    if kind == SIGNING:
        _new_signing_key()
        return
    checked = _kind(kind)
    made = keys.new_key(checked, Path(), replace=replace)
    say(
        f"Wrote {keys.key_path(checked, Path())}, fingerprint {made.fingerprint}. Keep a copy "
        "offline: without it nothing can be reproduced. What depends on it re-runs with dvc repro."
    )


def _new_signing_key() -> None:
    from veilset.release.signing import (  # noqa: PLC0415
        public_key_path,
        signing_key_path,
        write_public_key,
        write_signing_key,
    )

    secret, public = signing_key_path(Path()), public_key_path(Path())
    if public.is_file():
        raise KeyFileError(
            f"{public} is the public key that receivers hold: move it away first, if its signing "
            "key is lost, and tell them."
        )
    made = write_signing_key(secret)
    write_public_key(public, made.public)
    say(
        f"Wrote {secret}, which is yours alone, and {public}, fingerprint "
        f"{made.public.fingerprint}. Give the public one to receivers by a way that they trust, "
        "and commit it."
    )


@app.command()
def show() -> None:
    """Show the fingerprints that this project expects, and whether the keys are here."""
    for kind in keys.KEY_KINDS:
        path = keys.fingerprint_path(kind, Path())
        try:
            key = keys.project_key(kind, Path())
        except KeyFileError as error:
            say(f"{kind}: {error}")
            continue
        kept = "the public demo key: protects nothing" if key.is_demo else "present"
        say(f"{kind}: {key.fingerprint} ({kept}; expected by {path})")


@app.command()
def destroy(
    kind: Kind = "protection",
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
) -> None:
    """Destroy a key: its releases become one-way, and nothing made with it can be reproduced."""
    checked = _kind(kind)
    if not yes:
        typer.confirm(f"Destroy the project's {checked} key for ever?", abort=True)
    fingerprint = keys.destroy_key(checked, Path())
    say(
        f"Destroyed the {checked} key {fingerprint}. Copies elsewhere (backups, the environment) "
        "are yours to destroy."
    )


def _kind(text: str) -> KeyKind:
    for kind in keys.KEY_KINDS:
        if text == kind:
            return kind
    raise KeyFileError(f"there is no key of kind {text!r} for this: it is protection or ids.")
