"""Stage `gate`: attack results against thresholds, one verdict a scheme and attacker."""

from pathlib import Path

from veilset.release.gate import GateParams, write_verdicts
from veilset.settings import PARAMS_FILE, load_settings
from veilset.stages.project import Project, scheme_of


def run(root: Path) -> None:
    """Writes `reports/verdicts.json`. A failed verdict is a result, not an error."""
    project, settings = Project(root), load_settings(root)
    params = GateParams.parse(settings.gate, f"{PARAMS_FILE}: gate")
    schemes = {name: scheme_of(settings, name) for name in settings.schemes}
    results = {name: project.attacks(name) / "results.json" for name in schemes}
    write_verdicts(results, schemes, params, project.reports / "verdicts.json")
