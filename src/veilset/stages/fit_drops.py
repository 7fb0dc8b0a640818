"""Stage `fit_drops`: names the version of a drop that schemes learn from.

The stage `fit` depends on the folder of these files rather than on all ingested drops: a new drop
changes no transform unless `drops.yaml` lists it under `fit_drops`.
"""

from pathlib import Path

from veilset.data.manifest import Manifest
from veilset.files import write_json
from veilset.stages.project import Project


def run(root: Path, drop: str) -> None:
    """Writes `data/fit_drops/<drop>.json`: the root digest of the ingested drop."""
    project = Project(root)
    digest = Manifest.load(project.ingested(drop)).root
    write_json(project.fit_drops(drop), {"schema": 1, "drop": drop, "root": digest})
