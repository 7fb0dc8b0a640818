"""Attacks on one new drop alone: beside all others, what it leaks more would hardly be seen.

What a scheduled run does beside the stage `attack`, which has all drops together. It is no stage:
it is made for the decision about a drop, lies with its evidence, and stays when other drops come.
"""

import json
from pathlib import Path
from typing import Any

from veilset.attacks.base import SUITE_VERSION
from veilset.data.manifest import Manifest
from veilset.files import write_json
from veilset.release.gate import GateParams, read_results, verdicts_of
from veilset.settings import PARAMS_FILE, load_settings
from veilset.stages.admission import DRIFT
from veilset.stages.attack import attacked, released_drop
from veilset.stages.project import Project, scheme_of

_OF = "of.json"


def attack_drop(root: Path, name: str, scheme_name: str) -> str:
    """Attacks and judges what a scheme released of one drop; the same twice is done once.

    Results, scores and examples are written to `data/drift/<drop>/attacks/<scheme>`.

    Args:
        root: The project's folder.
        name: The drop.
        scheme_name: The scheme's name in `params.yaml`.

    Returns:
        The verdicts in words, e.g. `undecided for outside trainer, fail for public release`.

    Raises:
        CorruptError: What was released is not as it was written.
        ProtectionError: There is too little of it to attack.
    """
    project, settings = Project(root), load_settings(root)
    folder = root / DRIFT / name / "attacks" / scheme_name
    of: dict[str, Any] = {
        "protected": Manifest.load(project.protected(scheme_name, name)).root,
        "suite": SUITE_VERSION, "attacks": list(settings.attacks), "attack": dict(settings.attack),
    }  # fmt: skip
    if not _is_of(folder, of):
        attacked(root, scheme_name, [released_drop(project, scheme_name, name)]).write(folder)
        write_json(folder / _OF, of)
    params = GateParams.parse(settings.gate, f"{PARAMS_FILE}: gate")
    found = read_results(folder / "results.json")
    judged = verdicts_of(found, scheme_of(settings, scheme_name), params)["templates"]
    return ", ".join(
        f"{one['verdict']} for {template.replace('_', ' ')}" for template, one in judged.items()
    )


def _is_of(folder: Path, of: dict[str, Any]) -> bool:
    try:
        return bool(json.loads((folder / _OF).read_bytes()) == json.loads(json.dumps(of)))
    except (OSError, ValueError):
        return False
