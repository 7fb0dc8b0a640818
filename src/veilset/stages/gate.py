"""Stage `gate`: attack results against thresholds, one verdict a scheme and attacker."""

from pathlib import Path

from veilset import keys
from veilset.release.card import leakage_card, write_cards
from veilset.release.comparison import write_comparison
from veilset.release.gate import GateParams, write_verdicts
from veilset.report.load import read_attacks
from veilset.settings import PARAMS_FILE, load_settings
from veilset.stages.project import Project, scheme_of


def run(root: Path) -> None:
    """Writes verdicts, cards and the comparison of schemes. A failed verdict is no error."""
    project, settings = Project(root), load_settings(root)
    params = GateParams.parse(settings.gate, f"{PARAMS_FILE}: gate")
    schemes = {name: scheme_of(settings, name) for name in settings.schemes}
    results = {name: project.attacks(name) / "results.json" for name in schemes}
    networks = {
        (scheme, model): project.attacks_model(scheme, model) / "results.json"
        for scheme in settings.schemes
        for model in settings.attacked_models
    }
    judged = write_verdicts(
        results, schemes, params, project.reports / "verdicts.json", networks=networks
    )["schemes"]
    demo = _demo_key(root)
    cards = {
        name: leakage_card(
            read_attacks(results[name]), judged[name], scheme, params,
            asked=settings.attacks, demo_key=demo and scheme.declares.keyed,
        )
        for name, scheme in schemes.items()
    }  # fmt: skip
    write_cards(project.reports / "cards", cards)
    scores = {name: project.attacks(name) / "scores.parquet" for name in schemes}
    write_comparison(scores, judged, project.reports / "comparison.json")


def _demo_key(root: Path) -> bool:
    """The project's protection key is the public demo key."""
    path = keys.fingerprint_path("protection", root)
    return path.is_file() and path.read_text().strip() == keys.DEMO_PROTECTION_KEY.fingerprint
