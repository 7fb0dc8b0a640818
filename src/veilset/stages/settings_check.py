"""Parses every block of `params.yaml` and `drops.yaml` at once, for `veilset doctor`."""

from pathlib import Path

from veilset.adapters.great_expectations_check import CheckParams
from veilset.attacks.registry import make_attack
from veilset.data.ingest import IngestParams
from veilset.drops.policy import load_policy
from veilset.models.registry import architecture
from veilset.release.gate import GateParams
from veilset.release.readiness import ReleaseParams
from veilset.settings import PARAMS_FILE, load_drops, load_settings
from veilset.stages.attack import COMMON, CommonAttackParams
from veilset.stages.attack_model import network_attacks
from veilset.stages.evaluate import EvaluationParams
from veilset.stages.fit import FitParams
from veilset.stages.project import block, scheme_of
from veilset.stages.train import parameters as training_parameters


def check_all(root: Path) -> str:
    """Parses everything; says in words what there is.

    Raises:
        SettingsError: The first block that is refused.
    """
    settings, drops = load_settings(root), load_drops(root)
    IngestParams.parse(settings.ingest, f"{PARAMS_FILE}: ingest")
    CheckParams.parse(settings.check, f"{PARAMS_FILE}: check")
    FitParams.parse(settings.fit, f"{PARAMS_FILE}: fit")
    training_parameters(settings, settings.seeds[0])
    EvaluationParams.parse(settings.evaluate, f"{PARAMS_FILE}: evaluate")
    GateParams.parse(settings.gate, f"{PARAMS_FILE}: gate")
    ReleaseParams.parse(settings.release, f"{PARAMS_FILE}: release")
    load_policy(root)
    for name in settings.schemes:
        scheme_of(settings, name)
    for name in settings.models:
        kind, values = settings.model_block(name)
        architecture(kind).parameters.parse(values, f"{PARAMS_FILE}: model.{name}")
    where = f"{PARAMS_FILE}: attack.{COMMON}"
    common = CommonAttackParams.parse(block(settings.attack, COMMON), where)
    for name in (*settings.attacks, *network_attacks(settings)):
        values = block(settings.attack, name)
        make_attack(name, values, f"{PARAMS_FILE}: attack.{name}", common.effort)
    return (
        f"{len(drops.names)} drops, {len(settings.schemes)} schemes, {len(settings.attacks)} "
        f"attacks, {len(settings.models)} models under {len(settings.seeds)} seeds: all settings "
        "are understood"
    )
