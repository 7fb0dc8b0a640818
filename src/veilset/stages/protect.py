"""Stage `protect`: one drop by one scheme."""

from pathlib import Path

from veilset.console import progress
from veilset.data.shards import ImageSet
from veilset.keys import project_key
from veilset.schemes.protect import protect_set
from veilset.settings import load_settings
from veilset.stages.project import Project, fitted_scheme


def run(root: Path, scheme_name: str, drop: str) -> None:
    """Writes `data/protected/<scheme>/<drop>/` and, private, `data/provenance/<scheme>/<drop>/`."""
    project, settings = Project(root), load_settings(root)
    scheme = fitted_scheme(project, settings, scheme_name)
    key = project_key("protection", root)
    source = ImageSet.open(project.ingested(drop))
    total = sum(source.count(split) for split in source.splits)
    with progress(f"protect {scheme_name} {drop}", total) as advance:
        protect_set(
            source, scheme, key,
            output=project.protected(scheme_name, drop),
            provenance=project.provenance(scheme_name, drop),
            workers=settings.resources.workers,
            batch_size=settings.resources.batch_size,
            dataset=settings.data.name,
            progress=advance,
        )  # fmt: skip
