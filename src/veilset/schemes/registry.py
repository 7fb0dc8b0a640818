"""Schemes by name."""

from collections.abc import Mapping
from typing import Any, Final

import veilset.schemes
from veilset.registry import Registry
from veilset.schemes.base import Scheme
from veilset.schemes.fitted import Fitted

_FRAME: Final = frozenset({"base", "fitted", "protect", "randomness", "registry"})

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
