"""Commands about the project and what is installed: lists, doctor, the MLflow UI, where."""

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from veilset import __version__, keys
from veilset.adapters import mlflow_audit
from veilset.console import say
from veilset.errors import ReleaseError, SettingsError, VeilsetError
from veilset.quiet import telemetry_state

_PACKAGES = (
    "torch", "torchvision", "numpy", "pandas", "pyarrow", "pillow", "cryptography",
    "dvc", "mlflow", "prefect", "great-expectations", "sqlalchemy", "fastapi",
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    for command in (schemes, attacks, models, doctor, ui, where, pictures):
        app.command()(command)


def schemes() -> None:
    """List the protection schemes, what each declares, and its parameters."""
    from veilset.schemes.registry import SCHEMES  # noqa: PLC0415

    for name, scheme in SCHEMES.items():
        declares = scheme.declares
        say(f"{name}: {scheme.title} (version {scheme.version}, {declares.provenance})")
        say(f"    source: {declares.source}")
        traits = (
            "keyed" if declares.keyed else "no key",
            "reversible with the key" if declares.reversible else "one-way",
            declares.guarantee or "no formal guarantee",
            "test images too" if declares.protects_queries else "training images only",
        )
        say(f"    {'; '.join(traits)}")
        for field, info in scheme.Parameters.model_fields.items():
            say(f"    {field} = {info.default!r}")


def attacks() -> None:
    """List the attacks, their attacker, and the risk that each measures."""
    from veilset.attacks.base import KNOWLEDGE_WORDS  # noqa: PLC0415
    from veilset.attacks.registry import ATTACKS  # noqa: PLC0415

    for name, attack in ATTACKS.items():
        say(f"{name}: {attack.title}")
        words = KNOWLEDGE_WORDS[attack.knowledge]
        say(f"    attacker: {attack.attacker}; risk: {attack.risk}")
        say(f"    knows: {words} ({attack.knowledge})")
        say(f"    cost: {attack.cost}")


def models() -> None:
    """List the networks that can be trained."""
    from veilset.models.registry import architectures  # noqa: PLC0415

    for name, found in architectures().items():
        say(f"{name}: {found.title} ({found.source}); images from {found.smallest} px")


def doctor() -> None:
    """Check versions, device, keys, settings, store, telemetry; exit code 1 if one is wrong."""
    checks: tuple[tuple[str, Callable[[], Iterator[str]]], ...] = (
        ("versions", _versions),
        ("device", _device),
        ("keys", _keys),
        ("settings", _settings),
        ("store", _store),
        ("remotes", _remotes),
        ("telemetry", _telemetry),
    )
    wrong = 0
    for title, check in checks:
        try:
            for line in check():
                say(f"{title}: {line}")
        except VeilsetError as error:
            wrong += 1
            say(f"{title}: WRONG: {error}")
    if wrong:
        raise typer.Exit(1)


def ui(
    *, port: Annotated[int, typer.Option(min=1, max=65535)] = 5000, host: str = "127.0.0.1"
) -> None:
    """Open the MLflow UI on this project's record."""
    address = mlflow_audit.tracking_address(Path(), None)
    say(f"MLflow on {address}: http://{host}:{port} (Ctrl-C stops it)")
    command = [
        sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", address,
        "--host", host, "--port", str(port),
    ]  # fmt: skip
    os.execv(sys.executable, command)  # noqa: S606


def where() -> None:
    """Say where the report and the record are."""
    report = Path("reports/index.html")
    if report.is_file():
        say(f"Report: {report.resolve().as_uri()}")
    say(f"MLflow: make ui, then http://127.0.0.1:5000 (store {_shown_address()})")


def pictures(
    output: Annotated[Path, typer.Argument(help="Folder for contact_sheet.png and the plot")],
    *,
    originals: Annotated[
        bool, typer.Option("--originals", help="Agree that plain images are shown")
    ] = False,
) -> None:
    """Draw the same eight images under every scheme, and privacy against utility."""
    if not originals:
        raise SettingsError(
            "the contact sheet shows plain images beside protected ones: give --originals if these "
            "may be shown where the pictures go."
        )
    from veilset.cli.pictures import draw  # noqa: PLC0415

    say(draw(Path(), output))


def _shown_address() -> str:
    """The store's address without a password that a URI may hold."""
    address = mlflow_audit.tracking_address(Path(), None)
    head, at, tail = address.rpartition("@")
    return f"{head.split('://')[0]}://…@{tail}" if at else address


def _versions() -> Iterator[str]:
    yield f"veilset {__version__}, Python {platform.python_version()}"
    found = [f"{name} {_version(name)}" for name in _PACKAGES]
    yield ", ".join(found)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _device() -> Iterator[str]:
    from veilset.models.device import choose_engine  # noqa: PLC0415

    engine = choose_engine("auto", "auto")
    yield f"{engine.device.type}, {engine.precision}, {os.cpu_count()} processors"


def _keys() -> Iterator[str]:
    for kind in keys.KEY_KINDS:
        key = keys.project_key(kind, Path())
        note = " (the public demo key: protects nothing)" if key.is_demo else ""
        yield f"{kind} {key.fingerprint}{note}"


def _settings() -> Iterator[str]:
    if not Path("params.yaml").is_file():
        yield "no project here"
        return
    from veilset.stages.settings_check import check_all  # noqa: PLC0415

    yield check_all(Path())


def _store() -> Iterator[str]:
    yield _shown_address()


def _remotes() -> Iterator[str]:
    from veilset.adapters.dvc_remote import (  # noqa: PLC0415
        SHARED,
        is_sealed,
        open_remote,
        remote_names,
        unprotected_outputs,
    )

    root = Path()
    if not (root / ".dvc").is_dir() or SHARED not in remote_names(root):
        yield f"there is no remote {SHARED!r}: releases go to folders"
        return
    open_doors = unprotected_outputs(root)
    if open_doors:
        raise ReleaseError(
            f"{open_doors[0]} has not `remote: private`, so `dvc push -r {SHARED}` would send it: "
            f"add that ({len(open_doors)} in all, see `veilset remote check`)."
        )
    remote = open_remote(root, SHARED)
    if not remote.local:
        yield f"{remote.url} is no folder: see that its bucket has `veilset remote policy {SHARED}`"
    elif is_sealed(remote):
        yield f"{remote.url} is closed to DVC's own pushes"
    else:
        raise ReleaseError(
            f"{remote.url} is open to DVC's own pushes: run `veilset remote seal {SHARED}`."
        )


def _telemetry() -> Iterator[str]:
    states = telemetry_state()
    sending = [state.variable for state in states if not state.off]
    if sending:
        yield f"ON for {', '.join(sending)}: unset these variables, or set them to switch it off"
        return
    yield f"off ({len(states)} switches)"
