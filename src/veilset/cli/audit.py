"""`veilset audit`: the MLflow record of what DVC versions."""

import json
from pathlib import Path
from typing import Annotated

import typer

from veilset.adapters import mlflow_audit
from veilset.adapters.dvc import git_commit
from veilset.cli.project import where
from veilset.console import say
from veilset.files import sha256_file, write_json
from veilset.settings import load_settings

app = typer.Typer(help="The record in MLflow of every version and result.")

_STAMP = Path(".dvc/tmp/veilset-sync.json")


@app.command()
def sync(
    *,
    if_changed: Annotated[
        bool, typer.Option(help="Look no further where dvc.lock was recorded in this store before")
    ] = False,
) -> None:
    """Write MLflow's record from what DVC versions. A second time changes nothing."""
    root = Path()
    state = _state(root)
    if if_changed and _recorded(root) == state:
        say("The MLflow record is up to date.")
        where()
        return
    report = mlflow_audit.sync(root, log_originals=load_settings(root).data.log_originals)
    if (root / ".dvc").is_dir():
        write_json(root / _STAMP, _state(root))
    say(report.words)
    where()


@app.command()
def check() -> None:
    """Tell any difference between MLflow's record and what DVC versions."""
    differences = mlflow_audit.check(Path())
    for difference in differences:
        say(f"{difference.stage}: {difference.words}")
    if differences:
        raise typer.Exit(1)
    say("The MLflow record agrees with the versions.")


def _state(root: Path) -> dict[str, str]:
    """What a record depends on: the lock, the store, and whether a file store is still there."""
    address = mlflow_audit.tracking_address(root, None)
    lock = root / "dvc.lock"
    present = not address.startswith("sqlite:///") or Path(address[len("sqlite:///") :]).exists()
    return {
        "lock": sha256_file(lock) if lock.is_file() else "",
        "store": address,
        "present": str(present),
        "commit": git_commit(root) or "",
    }


def _recorded(root: Path) -> dict[str, str] | None:
    try:
        recorded = json.loads((root / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return recorded if isinstance(recorded, dict) and recorded.get("present") == "True" else None
