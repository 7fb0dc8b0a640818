"""The pipeline as a flow: `python flows/pipeline.py [PROJECT]`.

Without a Prefect server (`PREFECT_API_URL`) it starts one for itself and stops it at the end;
nothing leaves the machine. Run records are kept in the project's `.prefect` unless `PREFECT_HOME`
says otherwise.
"""

import os
import sys
from pathlib import Path

from veilset.console import run_reporting_errors
from veilset.quiet import quiet


def main(arguments: list[str]) -> int:
    """Runs the flow on the project in the folder given, or the current one."""
    root = Path(arguments[0] if arguments else ".").resolve()
    quiet()
    os.environ.setdefault("PREFECT_HOME", str(_home(root)))
    # Prefect reads its settings when it is imported.
    from veilset.adapters.prefect_pipeline import pipeline, quiet_logs, server_needed  # noqa: PLC0415

    quiet_logs()
    with server_needed():
        pipeline(root=str(root))
    return 0


def _home(root: Path) -> Path:
    """The project's folder for run records, which keeps itself out of git."""
    home = root / ".prefect"
    home.mkdir(exist_ok=True)
    (home / ".gitignore").write_text("*\n", encoding="utf-8")
    return home


if __name__ == "__main__":
    sys.exit(run_reporting_errors(lambda: main(sys.argv[1:])))
