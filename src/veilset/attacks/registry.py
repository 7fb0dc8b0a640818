"""Attacks by name, found in this package: a new attack is one new file.

Each module of the package that is not part of its frame holds one `Attack` with the module's name,
and is imported when that attack is asked for.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, Final

import veilset.attacks
from veilset.attacks.base import Attack, Effort
from veilset.errors import SettingsError

_FRAME: Final = frozenset({"base", "case", "features", "registry", "suite"})

AnyAttack = Attack[Any, Any]


def attack_names() -> tuple[str, ...]:
    """The names of all attacks, in alphabetical order; imports none of them."""
    modules = (module.name for module in pkgutil.iter_modules(veilset.attacks.__path__))
    return tuple(sorted(name for name in modules if name not in _FRAME and name[0] != "_"))


class _Attacks(Mapping[str, type[AnyAttack]]):
    """The classes by name; a look-up imports the attack's module."""

    def __getitem__(self, name: str) -> type[AnyAttack]:
        if name not in attack_names():
            raise KeyError(name)
        return _attack_in(name)

    def __iter__(self) -> Iterator[str]:
        return iter(attack_names())

    def __len__(self) -> int:
        return len(attack_names())


ATTACKS: Final[Mapping[str, type[AnyAttack]]] = _Attacks()
"""Every attack's class by its name."""


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
    if name not in ATTACKS:
        known = ", ".join(attack_names())
        raise SettingsError(f"{where} asks for the attack {name!r}: there are {known}.")
    attack = ATTACKS[name]
    return attack(attack.Parameters.for_effort(effort, values, where))


def _attack_in(name: str) -> type[AnyAttack]:
    module = importlib.import_module(f"{veilset.attacks.__name__}.{name}")
    for _, found in inspect.getmembers(module, inspect.isclass):
        if found.__module__ != module.__name__ or not issubclass(found, Attack):
            continue
        if not inspect.isabstract(found) and found.name == name:
            return found
    raise TypeError(f"{module.__name__} defines no Attack whose name is {name!r}")
