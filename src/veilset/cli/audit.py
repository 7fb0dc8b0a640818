"""`veilset audit`: the MLflow record of what DVC versions, and answers out of the versions."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilset.adapters import mlflow_audit
from veilset.adapters.dvc import git_commit
from veilset.cli.project import where
from veilset.console import say
from veilset.files import sha256_file, write_json
from veilset.release.history import RELEASES
from veilset.settings import load_settings

if TYPE_CHECKING:
    from veilset.adapters.audit_facts import Question

app = typer.Typer(help="The record of every version and result, and answers out of it.")

AsJson = Annotated[bool, typer.Option("--json", help="Answer as JSON")]
Reproduce = Annotated[
    bool, typer.Option(help="Protect a sample again with the project's key, and compare bytes")
]
Sample = Annotated[int, typer.Option(min=1, help="Images of each set that --reproduce looks at")]

_SAMPLE = 64

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
    root = Path()
    differences = mlflow_audit.check(root, log_originals=load_settings(root).data.log_originals)
    for difference in differences:
        say(f"{difference.stage}: {difference.words}")
    if differences:
        raise typer.Exit(1)
    say("The MLflow record agrees with the versions.")


@app.command()
def dataset(
    value: Annotated[str, typer.Argument(help="DATA/SCHEME/SPLIT, a DVC digest, or a root")],
    *,
    as_json: AsJson = False,
    reproduce: Reproduce = False,
    sample: Sample = _SAMPLE,
) -> None:
    """What is behind a protected version: drops, code, attacks, models, releases."""
    _answer("dataset", value, as_json=as_json, sample=sample if reproduce else None)


@app.command()
def model(
    value: Annotated[str, typer.Argument(help="SCHEME-MODEL-SEED, or NAME/VERSION in MLflow")],
    *,
    as_json: AsJson = False,
    reproduce: Reproduce = False,
    sample: Sample = _SAMPLE,
) -> None:
    """What a model learnt from, how well, and what its data leak."""
    _answer("model", value, as_json=as_json, sample=sample if reproduce else None)


@app.command()
def scheme(
    value: Annotated[str, typer.Argument(help="A scheme's name in params.yaml")],
    *,
    as_json: AsJson = False,
    reproduce: Reproduce = False,
    sample: Sample = _SAMPLE,
) -> None:
    """What a scheme protected, what it leaks and costs, and when it was run."""
    _answer("scheme", value, as_json=as_json, sample=sample if reproduce else None)


@app.command()
def drop(
    value: Annotated[str, typer.Argument(help="A drop's name")],
    *,
    as_json: AsJson = False,
    reproduce: Reproduce = False,
    sample: Sample = _SAMPLE,
) -> None:
    """On what terms a drop came, and everything that was made of it."""
    _answer("drop", value, as_json=as_json, sample=sample if reproduce else None)


@app.command()
def commit(
    value: Annotated[str, typer.Argument(help="A revision of git")],
    *,
    as_json: AsJson = False,
    reproduce: Reproduce = False,
    sample: Sample = _SAMPLE,
) -> None:
    """All that was on record at a commit; nothing is checked out."""
    _answer("commit", value, as_json=as_json, sample=sample if reproduce else None)


@app.command()
def date(
    value: Annotated[str, typer.Argument(help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD, in UTC")],
    *,
    as_json: AsJson = False,
) -> None:
    """What was dropped, made, released, refused and withdrawn in a span of time."""
    _answer("date", value, as_json=as_json, sample=None)


def _answer(question: "Question", value: str, *, as_json: bool, sample: int | None) -> None:
    """Says the answer; exit code 1 where the record is incomplete."""
    import numpy as np  # noqa: PLC0415

    from veilset.adapters.audit_answers import Sampling, answer  # noqa: PLC0415
    from veilset.adapters.audit_words import words  # noqa: PLC0415

    sampling = None if sample is None else Sampling(sample, np.random.default_rng())
    found = answer(Path(), question, value, sampling)
    if as_json:
        say(json.dumps(found.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        say(words(found).rstrip("\n"))
    if not found.complete:
        raise typer.Exit(1)


def _state(root: Path) -> dict[str, str]:
    """What a record depends on: lock, releases, store, and whether a file store is still there."""
    address = mlflow_audit.tracking_address(root, None)
    lock, releases = root / "dvc.lock", root / RELEASES
    present = not address.startswith("sqlite:///") or Path(address[len("sqlite:///") :]).exists()
    return {
        "lock": sha256_file(lock) if lock.is_file() else "",
        "releases": sha256_file(releases) if releases.is_file() else "",
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
