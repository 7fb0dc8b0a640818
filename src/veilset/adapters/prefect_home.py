"""Where Prefect keeps a project's runs, and where its server answers. Imports no Prefect."""

import hashlib
import os
import urllib.request
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

API: Final = "PREFECT_API_URL"
HOME: Final = "PREFECT_HOME"
_HERE: Final = ("127.0.0.1", "localhost")


def project_home(root: Path) -> Path:
    """The project's folder for run records, which keeps itself out of git."""
    home = root / ".prefect"
    home.mkdir(mode=0o700, exist_ok=True)
    (home / ".gitignore").write_text("*\n", encoding="utf-8")
    return home


def use_project_home(root: Path) -> Path:
    """Has Prefect keep its records in the project, unless the environment names a place.

    Prefect reads its settings when it is imported, so this comes before.
    """
    ask_this_machine_directly(os.environ)
    os.environ.setdefault(HOME, str(project_home(root)))
    return Path(os.environ[HOME])


def ask_this_machine_directly(environment: MutableMapping[str, str]) -> None:
    """Has requests to servers on this machine pass by a proxy that the environment names.

    Args:
        environment: Where; what it excludes from proxies already stays excluded.
    """
    for variable in ("no_proxy", "NO_PROXY"):
        excluded = [one for one in environment.get(variable, "").split(",") if one.strip()]
        missing = [host for host in _HERE if host not in excluded]
        environment[variable] = ",".join([*excluded, *missing])


def deployment_name(root: Path) -> str:
    """What a project's deployments are called: two projects may share a server."""
    place = str(root.resolve())
    return f"{root.resolve().name}-{hashlib.sha256(place.encode()).hexdigest()[:6]}"


def server_address(port: int) -> str:
    """The API of a server on this machine."""
    return f"http://127.0.0.1:{port}/api"


def answers(address: str) -> bool:
    """Whether a Prefect server answers there."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except OSError:
        return False
