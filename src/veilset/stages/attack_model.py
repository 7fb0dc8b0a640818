"""Stage `attack_model`: attacks on a CNN that was trained on what a scheme released."""

from pathlib import Path

from veilset.attacks._network import NetworkAttack
from veilset.attacks.case import load_case, with_network
from veilset.attacks.registry import ATTACKS
from veilset.attacks.suite import run_suite
from veilset.console import say
from veilset.data.shards import ImageSet
from veilset.errors import SettingsError
from veilset.settings import PARAMS_FILE, Settings, load_settings
from veilset.stages.attack import (
    COMMON,
    CommonAttackParams,
    released_drops,
    show_progress,
    table,
)
from veilset.stages.project import Project, block, fitted_scheme


def run(root: Path, scheme_name: str, model_name: str) -> None:
    """Writes `data/attacks_model/<scheme>/<model>/`, the same files as the stage `attack`."""
    project, settings = Project(root), load_settings(root)
    common = CommonAttackParams.parse(
        block(settings.attack, COMMON), f"{PARAMS_FILE}: attack.{COMMON}"
    )
    drops = released_drops(project, scheme_name)
    case = load_case(
        drops, fitted_scheme(project, settings, scheme_name),
        seed=common.seed, effort=common.effort, device=common.device,
    )  # fmt: skip
    releases = [ImageSet.open(drop.protected) for drop in drops]
    case = with_network(case, releases, project.model(scheme_name, model_name, settings.seeds[0]))
    chosen = {name: block(settings.attack, name) for name in network_attacks(settings)}
    with show_progress(f"{scheme_name} {model_name}") as report:
        suite = run_suite(
            case, chosen, dataset=settings.data.name, scheme_name=scheme_name, progress=report
        )
    suite.write(project.attacks_model(scheme_name, model_name))
    say(table(suite.results))


def network_attacks(settings: Settings) -> tuple[str, ...]:
    """The attacks on a CNN that are asked for; all there are, where none is named.

    Raises:
        SettingsError: There is no such attack, or it is made on images.
    """
    where = f"{PARAMS_FILE}: model_attacks"
    for name in settings.model_attacks:
        if not issubclass(ATTACKS.find(name, where), NetworkAttack):
            raise SettingsError(f"{where}: {name} is no attack on a CNN: put it into `attacks`.")
    every = tuple(n for n, attack in ATTACKS.items() if issubclass(attack, NetworkAttack))
    return settings.model_attacks or every
