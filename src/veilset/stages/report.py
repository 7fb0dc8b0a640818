"""Stage `report`: the page a reviewer reads, and the same figures for `dvc metrics` and plots."""

from pathlib import Path
from typing import Any

from veilset.files import write_json
from veilset.report import plots, view
from veilset.report.load import load_inputs
from veilset.report.model import ReportInputs
from veilset.report.page import write_report
from veilset.settings import load_drops, load_settings
from veilset.stages.project import Project


def run(root: Path) -> None:
    """Writes `reports/index.html`, `reports/metrics.json` and `reports/plots/`."""
    reports = Project(root).reports
    settings, drops = load_settings(root), load_drops(root)
    inputs = load_inputs(root, schemes=settings.schemes, drops=drops.names)
    write_report(inputs, reports / "index.html")
    plots.write_csvs(reports / "plots", view.points(inputs), inputs.models)
    write_json(reports / "metrics.json", metrics(inputs))


def metrics(inputs: ReportInputs) -> dict[str, Any]:
    """The table of schemes as plain figures: scheme -> accuracy, loss, leakage, verdicts."""
    return {row.name: _figures(row) for row in view.scheme_rows(inputs)}


def _figures(row: view.SchemeRow) -> dict[str, Any]:
    figures: dict[str, Any] = {
        f"verdict_{template}": outcome.verdict for template, outcome in row.verdicts.items()
    }
    if row.utility is not None:
        figures |= {"accuracy": row.utility.accuracy, "loss_points": row.utility.loss_points}
    if row.leak is not None:
        figures |= {"leakage": row.leak.value, "leakage_high": row.leak.high}
    return figures
