"""`python -m veilset.stages NAME [ARGUMENT ...]`: what the commands in `dvc.yaml` call."""

import importlib
import os
import sys
from pathlib import Path

from veilset.console import run_reporting_errors
from veilset.errors import SettingsError
from veilset.quiet import quiet

STAGES = (
    "ingest", "check", "fit_drops", "fit", "protect", "attack", "train", "attack_model", "evaluate",
    "gate", "report",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Runs one stage in the current folder, the project's root."""
    if not arguments or arguments[0] not in STAGES:
        raise SettingsError(f"name one of the stages {', '.join(STAGES)}, not {arguments[:1]}.")
    quiet()
    # Threads that wait by spinning starve each other where other work shares the processors.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Only the stage's own module: start-up is most of the time of the small ones.
    stage = importlib.import_module(f"veilset.stages.{arguments[0]}")
    stage.run(Path(), *arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(run_reporting_errors(lambda: main(sys.argv[1:])))
