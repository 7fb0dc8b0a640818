"""Stage `check`: Great Expectations on a drop's index; a critical failure stops the pipeline."""

from pathlib import Path

from veilset.adapters.great_expectations_check import CheckParams, check_index, raise_if_critical
from veilset.data.manifest import Manifest
from veilset.files import read_table
from veilset.settings import PARAMS_FILE, load_settings
from veilset.stages.project import Project


def run(root: Path, drop: str) -> None:
    """Checks `data/ingested/<drop>/index.parquet` and writes `data/checks/<drop>/`.

    Raises:
        CheckError: A critical expectation failed; the findings were written all the same.
    """
    project = Project(root)
    limits = CheckParams.parse(load_settings(root).check, f"{PARAMS_FILE}: check")
    classes = Manifest.load(project.ingested(drop)).classes
    index = read_table(project.ingested(drop) / "index.parquet")
    raise_if_critical(check_index(index, classes, limits, project.checks(drop)))
