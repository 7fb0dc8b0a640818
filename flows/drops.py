"""New data by themselves: `python flows/drops.py [PROJECT] [--once | --train]`.

Without an option it serves: it starts the project's Prefect server on this machine, unless
`PREFECT_API_URL` names one, and a worker that runs the flows when they are due; whichever ends is
started again, until SIGTERM or Ctrl-C. `--once` runs the drops' flow once, and `--train` the
training's, in this process. Nothing leaves the machine but what the policy says.
"""

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from veilset.adapters.prefect_home import API, answers, server_address, use_project_home
from veilset.console import run_reporting_errors, say
from veilset.drops.policy import load_policy
from veilset.errors import BusyError, VeilsetError
from veilset.files import locked
from veilset.quiet import quiet

_PATIENCE = 180.0  # seconds that a server may take to start on a busy machine
_LONG = 120.0  # seconds after which an end is no fault of the start
_PAUSE = 2.0  # seconds between two looks at the children
_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG


def main(arguments: list[str]) -> int:
    """Serves, or runs a flow once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", nargs="?", default=".", help="the project's folder")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="run the flow of drops once, here")
    how.add_argument("--train", action="store_true", help="train if it is due, here")
    how.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    root = Path(asked.project).resolve()
    quiet()
    home = use_project_home(root)
    if not (asked.once or asked.train or asked.worker):
        return _serve(root, home)
    if API not in os.environ and _is_served(home):
        os.environ[API] = server_address(load_policy(root).port)
    # Prefect reads its settings when it is imported.
    import drop_runs  # noqa: PLC0415
    from veilset.adapters.prefect_pipeline import server_needed  # noqa: PLC0415
    from veilset.adapters.prefect_serve import serve_flows  # noqa: PLC0415

    with server_needed():
        if asked.worker:
            serve_flows(root, drop_runs.drops, drop_runs.train)
        else:
            flow = drop_runs.train if asked.train else drop_runs.drops
            say(flow(root=str(root)).words)
    return 0


def _serve(root: Path, home: Path) -> int:
    """Keeps the server and the worker running."""
    policy = load_policy(root)
    own = API not in os.environ
    if own:
        os.environ[API] = server_address(policy.port)
    address = os.environ[API]
    worker = _Child(
        "worker", [sys.executable, str(Path(__file__).resolve()), str(root), "--worker"]
    )
    server = _Child("server", _server_command(policy.port))
    with locked(home / "serve"):
        if own and _taken(policy.port):
            raise VeilsetError(
                f"Port {policy.port} of this machine is taken: set drop_policy.port to a free one, "
                f"or {API} to the server that shall be used."
            )
        try:
            while True:
                if own and server.begin(root):
                    _wait_for(address, server)
                    say(f"Prefect's server of this project: {address.removesuffix('/api')}")
                worker.begin(root)
                time.sleep(_PAUSE)
        finally:
            worker.stop()
            server.stop()


class _Child:
    """A process that is started again when it ends, ever later where it ends at once."""

    def __init__(self, name: str, command: list[str]) -> None:
        self._name, self._command = name, command
        self._process: subprocess.Popen[bytes] | None = None
        self._wait, self._begun = 0.0, 0.0

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def begin(self, root: Path) -> bool:
        """Starts it where it does not run and it is time; returns whether it did."""
        if not self.ended:
            return False
        now = time.monotonic()
        if self._process is not None:
            if now - self._begun < self._wait:
                return False
            say(f"The {self._name} ended ({self._process.returncode}) and is started again.")
        lived_long = now - self._begun > _LONG
        self._wait = _PAUSE if lived_long else min(_LONG, 2 * max(self._wait, _PAUSE))
        self._begun = now
        self._process = subprocess.Popen(
            self._command, cwd=root, stdin=subprocess.DEVNULL,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - there is one thread
        )  # fmt: skip
        return True

    def stop(self) -> None:
        """Ends it in an orderly way, if it lets itself be ended so."""
        if self._process is None or self.ended:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _server_command(port: int) -> list[str]:
    # On this machine alone: it asks nobody for a password.
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1",
            "--port", str(port)]  # fmt: skip


def _end_with_parent() -> None:
    """Has Linux end this child should we be killed; elsewhere it is found at the next start."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGTERM)


def _wait_for(address: str, server: _Child) -> None:
    latest = time.monotonic() + _PATIENCE
    while not answers(address):
        if server.ended or time.monotonic() > latest:
            raise VeilsetError(f"Prefect's server does not start at {address}: its log says why.")
        time.sleep(0.3)


def _is_served(home: Path) -> bool:
    """Whether the project is served now, so that a run by hand tells that server."""
    try:
        with locked(home / "serve"):
            return False
    except BusyError:
        return True


def _taken(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(2)
        return one.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    sys.exit(run_reporting_errors(lambda: main(sys.argv[1:])))
