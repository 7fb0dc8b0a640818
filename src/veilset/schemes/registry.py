"""Schemes by name, found in this package: a new scheme is one new file.

Each module of the package that is not part of its frame holds one `Scheme` with the module's name,
and is imported when that scheme is asked for: a run pays only for the scheme that it uses.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Final

import veilset.schemes
from veilset.errors import SettingsError
from veilset.schemes.base import Scheme

_FRAME: Final = frozenset({"base", "protect", "randomness", "registry"})


def scheme_names() -> tuple[str, ...]:
    """The names of all schemes, in alphabetical order; imports none of them."""
    modules = (module.name for module in pkgutil.iter_modules(veilset.schemes.__path__))
    return tuple(sorted(name for name in modules if name not in _FRAME and name[0] != "_"))


class _Schemes(Mapping[str, type[Scheme[Any]]]):
    """The classes by name; a look-up imports the scheme's module."""

    def __getitem__(self, name: str) -> type[Scheme[Any]]:
        if name not in scheme_names():
            raise KeyError(name)
        return _scheme_in(importlib.import_module(f"{veilset.schemes.__name__}.{name}"), name)

    def __iter__(self) -> Iterator[str]:
        return iter(scheme_names())

    def __len__(self) -> int:
        return len(scheme_names())


SCHEMES: Final[Mapping[str, type[Scheme[Any]]]] = _Schemes()
"""Every scheme's class by its name."""


def make_scheme(
    kind: str, values: Mapping[str, Any], where: str, *, fitted_hash: str = ""
) -> Scheme[Any]:
    """A scheme with its parameters.

    Args:
        kind: The scheme's name.
        values: Its parameters by name; those not given have their defaults.
        where: What the user calls this block, e.g. `params.yaml: scheme.visualmixer`.
        fitted_hash: Hash of what the scheme learnt, for schemes that learn.

    Raises:
        SettingsError: No such scheme, or a parameter is unknown or out of range.
    """
    if kind not in SCHEMES:
        known = ", ".join(scheme_names())
        raise SettingsError(f"{where} asks for the scheme {kind!r}: there are {known}.")
    scheme = SCHEMES[kind]
    return scheme(scheme.Parameters.parse(values, where), fitted_hash=fitted_hash)


def _scheme_in(module: ModuleType, name: str) -> type[Scheme[Any]]:
    for _, found in inspect.getmembers(module, inspect.isclass):
        if found.__module__ == module.__name__ and issubclass(found, Scheme):
            if inspect.isabstract(found) or getattr(found, "name", None) != name:
                continue
            return found
    raise TypeError(f"{module.__name__} defines no Scheme whose name is {name!r}")
