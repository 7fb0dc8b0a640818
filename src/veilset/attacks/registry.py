"""Attacks by name."""

from collections.abc import Mapping
from typing import Any, Final

import veilset.attacks
from veilset.attacks.base import Attack, Effort
from veilset.registry import Registry

_FRAME: Final = frozenset({"base", "case", "features", "learnt_membership", "registry", "suite"})

AnyAttack = Attack[Any, Any]

ATTACKS: Final[Registry[type[AnyAttack]]] = Registry(veilset.attacks, Attack, _FRAME, "attack")
"""Every attack's class by its name."""


def attack_names() -> tuple[str, ...]:
    """The names of all attacks, in alphabetical order; imports none of them."""
    return ATTACKS.names()


def make_attack(
    name: str, values: Mapping[str, Any], where: str, effort: Effort = "quick"
) -> AnyAttack:
    """An attack with its parameters.

    Args:
        name: The attack's name.
        values: Its parameters by name; those not given have the defaults of the effort.
        where: What the user calls this block, e.g. `params.yaml: attack.linkage`.
        effort: Which defaults.

    Raises:
        SettingsError: No such attack, or a parameter is unknown or out of range.
    """
    attack = ATTACKS.find(name, where)
    return attack(attack.Parameters.for_effort(effort, values, where))
