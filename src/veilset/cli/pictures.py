"""`veilset pictures`: the README's pictures, made of what the pipeline wrote."""

from pathlib import Path

from veilset.attacks.case import find_rows
from veilset.data.shards import ImageSet
from veilset.files import read_table, write_bytes
from veilset.report import pictures as sheets
from veilset.report import plots, view
from veilset.report.load import load_inputs
from veilset.settings import load_drops, load_settings
from veilset.stages.project import Project, scheme_of
from veilset.types import Images

COUNT = 8


def draw(root: Path, output: Path) -> str:
    """Writes `contact_sheet.png` and, once schemes were judged, `privacy_utility.png`."""
    project, settings, drops = Project(root), load_settings(root), load_drops(root)
    rows = [
        (scheme_of(settings, name).title, _first(project, name, drops.names[0]))
        for name in settings.schemes
    ]
    output.mkdir(parents=True, exist_ok=True)
    sheet = sheets.png(sheets.contact_sheet(rows, scale=3 if rows[0][1].shape[1] < 64 else 1))
    write_bytes(output / "contact_sheet.png", sheet)
    if not (project.reports / "verdicts.json").is_file():
        return f"Wrote {output / 'contact_sheet.png'}; no scheme was judged yet, so no plot."
    inputs = load_inputs(root, schemes=settings.schemes, drops=drops.names)
    points, baseline = view.points(inputs), view.baseline_accuracy(inputs)
    write_bytes(output / "privacy_utility.png", plots.privacy_utility_png(points, baseline))
    return f"Wrote {output / 'contact_sheet.png'} and {output / 'privacy_utility.png'}."


def _first(project: Project, scheme: str, drop: str) -> Images:
    """The protected versions of the first training images, the same ones for every scheme."""
    links = read_table(project.provenance(scheme, drop) / "links-train.parquet")
    wanted = links.sort_values("id")["published_id"].head(COUNT)
    public = ImageSet.open(project.protected(scheme, drop))
    return public.images("train", find_rows(public, "train", wanted))
