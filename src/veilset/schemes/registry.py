"""Schemes by name."""

from collections.abc import Mapping
from typing import Any, Final

import veilset.schemes
from veilset.errors import SettingsError
from veilset.registry import Registry
from veilset.schemes.base import Scheme
from veilset.schemes.fitted import Fitted

_FRAME: Final = frozenset({"base", "fitted", "protect", "randomness", "registry", "transform"})

SCHEMES: Final[Registry[type[Scheme[Any]]]] = Registry(veilset.schemes, Scheme, _FRAME, "scheme")
"""Every scheme's class by its name."""


def scheme_names() -> tuple[str, ...]:
    """The names of all schemes, in alphabetical order; imports none of them."""
    return SCHEMES.names()


def make_scheme(
    kind: str, values: Mapping[str, Any], where: str, *, fitted: Fitted | None = None,
    device: str = "cpu",
) -> Scheme[Any]:  # fmt: skip
    """A scheme with its parameters.

    Args:
        kind: The scheme's name.
        values: Its parameters by name; those not given have their defaults.
        where: What the user calls this block, e.g. `params.yaml: scheme.visualmixer`.
        fitted: What the scheme learnt, for schemes that learn.
        device: Where networks run, as torch names it.

    Raises:
        SettingsError: No such scheme, a parameter is unknown or out of range, or `fitted` is
            another's.
    """
    scheme = SCHEMES.find(kind, where)
    return scheme(scheme.Parameters.parse(values, where), fitted=fitted, device=device)


def scheme_of_record(
    record: Mapping[str, Any], where: str, *, fitted: Fitted | None = None
) -> Scheme[Any]:
    """The scheme that a manifest names.

    Args:
        record: What `Scheme.record` returned.
        where: The place of the manifest, for messages.
        fitted: What the scheme learnt, for schemes that learn.

    Raises:
        SettingsError: No such scheme here, a parameter is refused, this version of it makes other
            bytes than the one that made the release, or something else was learnt.
    """
    name = str(record.get("name"))
    scheme = make_scheme(name, record.get("parameters", {}), where, fitted=fitted)
    if record.get("version") != scheme.version:
        raise SettingsError(
            f"{where} was made by version {record.get('version')} of {name}, and this is version "
            f"{scheme.version}: use the release of Veilset that made it."
        )
    if fitted is not None and record.get("fitted_hash") != scheme.fitted_hash:
        raise SettingsError(
            f"{where} was made with another fitted {name} than the one given: give the folder that "
            "`veilset fit` wrote before it was protected."
        )
    return scheme
