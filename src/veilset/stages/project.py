"""Where things lie below a project's root: the one place that knows the folders' names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veilset.errors import SettingsError
from veilset.schemes.base import Scheme
from veilset.schemes.fitted import load_fitted
from veilset.schemes.registry import make_scheme
from veilset.settings import PARAMS_FILE, Settings


@dataclass(frozen=True)
class Project:
    """The folders of one project."""

    root: Path

    def ingested(self, drop: str) -> Path:
        """The set made of a drop's readable images, in roles. Private."""
        return self.root / "data/ingested" / drop

    def quarantine(self, drop: str) -> Path:
        """What was refused of a drop, and why. Private."""
        return self.root / "data/quarantine" / drop

    def checks(self, drop: str) -> Path:
        """What Great Expectations found in a drop's index."""
        return self.root / "data/checks" / drop

    def fit_drops(self, drop: str) -> Path:
        """Which version of a drop schemes learn from."""
        return self.root / "data/fit_drops" / f"{drop}.json"

    def fitted(self, scheme: str) -> Path:
        """What a scheme learnt from plain images, if it learns. Private."""
        return self.root / "data/fitted" / scheme

    def protected(self, scheme: str, drop: str) -> Path:
        """What may be released of a drop under a scheme."""
        return self.root / "data/protected" / scheme / drop

    def provenance(self, scheme: str, drop: str) -> Path:
        """Which original is behind which protected image. Private."""
        return self.root / "data/provenance" / scheme / drop

    def attacks(self, scheme: str) -> Path:
        """Attack results, raw scores and examples. Private: examples show originals."""
        return self.root / "data/attacks" / scheme

    def attacks_model(self, scheme: str, model: str) -> Path:
        """What attacks on a CNN found. Private: examples show originals."""
        return self.root / "data/attacks_model" / scheme / model

    def model(self, scheme: str, model: str, seed: int) -> Path:
        """A CNN trained on a scheme's output with a seed."""
        return self.root / "data/models" / f"{scheme}-{model}-{seed}"

    @property
    def reports(self) -> Path:
        """Figures and the page."""
        return self.root / "reports"


def scheme_of(settings: Settings, name: str) -> Scheme[Any]:
    """The scheme behind a name in `params.yaml`, without what it learnt.

    Raises:
        SettingsError: No such block, no such scheme, or a parameter is refused.
    """
    kind, values = settings.scheme_block(name)
    return make_scheme(kind, values, f"{PARAMS_FILE}: scheme.{name}")


def fitted_scheme(project: Project, settings: Settings, name: str) -> Scheme[Any]:
    """The scheme behind a name in `params.yaml`, ready to protect.

    Raises:
        SettingsError: No such block, no such scheme, or a parameter is refused.
        ProtectionError: It learns, and was not fitted.
        CorruptError: What it learnt was altered.
    """
    scheme = scheme_of(settings, name)
    return scheme.with_fitted(load_fitted(project.fitted(name))) if scheme.learns else scheme


def block(blocks: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A named block, empty where it is left out.

    Raises:
        SettingsError: It is not a mapping.
    """
    values = blocks.get(name) or {}
    if not isinstance(values, Mapping):
        raise SettingsError(f"{PARAMS_FILE}: {name} must be a block of settings.")
    return values


def existing(folders: Sequence[Path]) -> list[Path]:
    """Those folders that are there: a drop may have nothing for a split or scheme."""
    return [folder for folder in folders if folder.is_dir()]
