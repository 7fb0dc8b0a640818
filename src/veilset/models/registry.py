"""Networks by name, found by scanning this package: a new network is one new file.

A module joins by defining `ARCHITECTURES`, a mapping from name to `Architecture`. Modules without
one (helpers, networks that are not classifiers) are passed over.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch
from torch import nn

import veilset.models as package
from veilset.errors import SettingsError
from veilset.params import Params

P = TypeVar("P", bound=Params)

Shape = tuple[int, int, int]
"""(H, W, C) of one image in pixels and channels."""


@dataclass(frozen=True)
class Architecture(Generic[P]):
    """A family of classifiers.

    Attributes:
        title: Its name for people.
        source: Paper and section, or "ours".
        smallest: The least height and width in pixels that it accepts.
        parameters: The class of its parameters.
        build: Makes an initialised network from the (H, W, C) of one image, the number of classes
            and its parameters. The network maps float32 (N, C, H, W) to logits (N, classes).
        reads_mask: It also takes (N, C + 1, H, W), whose last channel is 1 where a pixel was kept
            and 0 where it was masked; without that channel nothing is masked.
    """

    title: str
    source: str
    smallest: int
    parameters: type[P]
    build: Callable[[Shape, int, P], nn.Module]
    reads_mask: bool = False


@cache
def architectures() -> Mapping[str, Architecture[Any]]:
    """All architectures of the package by name, in alphabetical order.

    Raises:
        SettingsError: Two modules claim one name.
    """
    found: dict[str, Architecture[Any]] = {}
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        claimed = getattr(importlib.import_module(module.name), "ARCHITECTURES", {})
        for name in sorted(claimed.keys() & found.keys()):
            raise SettingsError(f"the model {name} is defined twice, again in {module.name}.")
        found.update(claimed)
    return MappingProxyType(dict(sorted(found.items())))


def model_names() -> tuple[str, ...]:
    """Names that `make_model` knows, in alphabetical order."""
    return tuple(architectures())


def architecture(name: str) -> Architecture[Any]:
    """The architecture of this name.

    Raises:
        SettingsError: There is none.
    """
    known = architectures()
    if name not in known:
        raise SettingsError(f"there is no model {name!r}: choose one of {', '.join(known)}.")
    return known[name]


def make_model(name: str, shape: Shape, classes: int, *, seed: int = 0, **params: Any) -> nn.Module:
    """Makes a freshly initialised network; torch's global generator is left as it was.

    Args:
        name: One of `model_names()`.
        shape: (H, W, C) of the images.
        classes: Number of classes, at least 2.
        seed: Seed of the initial weights: the same seed gives the same weights, bit for bit.
        **params: The architecture's own parameters.

    Returns:
        A module from float32 (N, C, H, W) to float32 logits (N, classes), on the CPU.

    Raises:
        SettingsError: Unknown name or parameter, a value out of range, images too small, or fewer
            than two classes.
    """
    chosen = architecture(name)
    if classes < 2:
        raise SettingsError(f"{name} needs at least 2 classes to tell apart, not {classes}.")
    if len(shape) != 3 or min(shape[:2]) < chosen.smallest or shape[2] < 1:
        least = chosen.smallest
        raise SettingsError(f"{name} needs images of {least}x{least} pixels or more, not {shape}.")
    settings = chosen.parameters.parse(params, f"model {name}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return chosen.build(shape, classes, settings)
