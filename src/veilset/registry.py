"""Classes by name, found in a package: a new scheme or attack is one new file.

Each module of such a package that is not part of its frame holds one class with the module's name,
and is imported when that name is asked for: a run pays only for what it uses.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Generic, TypeVar

from veilset.errors import SettingsError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """The classes of a package by name, in alphabetical order; `T` is `type[Base]`."""

    def __init__(self, package: ModuleType, base: type, frame: frozenset[str], what: str) -> None:
        """Looks up nothing yet.

        Args:
            package: Where the modules lie.
            base: What the classes derive from; each has a class attribute `name`.
            frame: Modules of the package that hold none.
            what: What one is called in messages, e.g. `scheme`.
        """
        self._package, self._base, self._frame, self._what = package, base, frame, what

    def names(self) -> tuple[str, ...]:
        """All names; imports none of the modules."""
        modules = (module.name for module in pkgutil.iter_modules(self._package.__path__))
        return tuple(sorted(n for n in modules if n not in self._frame and n[0] != "_"))

    def find(self, name: str, where: str) -> T:
        """The class of a name that a user gave.

        Raises:
            SettingsError: There is none.
        """
        if name not in self.names():
            known = ", ".join(self.names())
            raise SettingsError(f"{where} asks for the {self._what} {name!r}: there are {known}.")
        return self[name]

    def __getitem__(self, name: str) -> T:
        if name not in self.names():
            raise KeyError(name)
        module = importlib.import_module(f"{self._package.__name__}.{name}")
        for _, found in inspect.getmembers(module, inspect.isclass):
            if found.__module__ != module.__name__ or not issubclass(found, self._base):
                continue
            if not inspect.isabstract(found) and getattr(found, "name", None) == name:
                return found  # type: ignore[return-value]
        raise TypeError(f"{module.__name__} defines no {self._what} whose name is {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())
