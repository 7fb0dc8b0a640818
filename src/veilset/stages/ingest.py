"""Stage `ingest`: a drop's raw images become a set in roles, an index and a quarantine."""

from pathlib import Path

from veilset.console import progress, say, up_to
from veilset.data.ingest import IngestParams, IngestSummary, ingest
from veilset.data.sources.registry import open_source
from veilset.drops.erased import unwanted
from veilset.keys import project_key
from veilset.settings import PARAMS_FILE, load_drops, load_settings
from veilset.stages.project import Project


def run(root: Path, drop: str) -> None:
    """Writes `data/ingested/<drop>/` and `data/quarantine/<drop>/`."""
    project, settings = Project(root), load_settings(root)
    values = {"workers": settings.resources.workers, **settings.ingest}
    params = IngestParams.parse(values, f"{PARAMS_FILE}: ingest")
    ids_key = project_key("ids", root)
    source = open_source(load_drops(root).drops[drop].spec(), root)
    with progress(f"ingest {drop}", source.count()) as advance:
        summary = ingest(
            source, params, ids_key, drop,
            project.ingested(drop), project.quarantine(drop),
            progress=up_to(advance),
            dataset=settings.data.name,
            unwanted=unwanted(root, ids_key),
        )  # fmt: skip
    say(words(summary))


def words(summary: IngestSummary) -> str:
    """What an ingestion did, in one sentence."""
    roles = ", ".join(f"{count:,} {role}" for role, count in summary.roles.items() if count)
    refused = sum(summary.quarantined.values())
    return (
        f"{summary.drop}: {summary.kept:,} of {summary.total:,} images kept ({roles}); "
        f"{refused:,} quarantined, {summary.duplicates:,} exact copies left out."
    )
