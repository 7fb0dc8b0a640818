"""The pipeline as a flow: `python flows/pipeline.py [PROJECT]`.

Without a Prefect server (`PREFECT_API_URL`) it starts one for itself and stops it at the end;
nothing leaves the machine. Run records are kept in the project's `.prefect` unless `PREFECT_HOME`
says otherwise.
"""

import sys
from pathlib import Path

from veilset.adapters.prefect_home import use_project_home
from veilset.console import run_reporting_errors
from veilset.quiet import quiet


def main(arguments: list[str]) -> int:
    """Runs the flow on the project in the folder given, or the current one."""
    root = Path(arguments[0] if arguments else ".").resolve()
    quiet()
    use_project_home(root)
    # Prefect reads its settings when it is imported.
    from veilset.adapters.prefect_pipeline import pipeline, quiet_logs, server_needed  # noqa: PLC0415

    quiet_logs()
    with server_needed():
        pipeline(root=str(root))
    return 0


if __name__ == "__main__":
    sys.exit(run_reporting_errors(lambda: main(sys.argv[1:])))
