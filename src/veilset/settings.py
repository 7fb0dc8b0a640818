"""`params.yaml` and `drops.yaml` as frozen, validated objects.

The whole file's shape is checked whenever it is read; the block of a stage, scheme, attack or model
is parsed by the class that owns it, so that a stage imports only what it uses. `veilset doctor`
parses every block at once.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from veilset.errors import SettingsError
from veilset.params import Params

PARAMS_FILE = "params.yaml"
DROPS_FILE = "drops.yaml"

Block = Mapping[str, Any]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")


class DataSettings(Params):
    """What the data set is called, and what may show its originals."""

    name: str = Field(default="images", pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")
    log_originals: bool = False


class Resources(Params):
    """Processes, batch sizes and the like: they change no byte of any result.

    Attributes:
        workers: Threads or processes that decode and protect.
        batch_size: Images protected at a time.
        live_after: A training that takes longer than so many seconds shows its figures in MLflow
            while it runs; 0 for never.
        memory_mib: Main memory, MiB, that the images of a training or an evaluation may take, over
            all its processes; what does not fit is read from disk while it is used. `auto` is half
            of what is free, within the limits of containers.
    """

    workers: int = Field(default=1, ge=1, le=256)
    batch_size: int = Field(default=1024, ge=1, le=65536)
    live_after: float = Field(default=30.0, ge=0, le=86_400)
    memory_mib: Literal["auto"] | Annotated[int, Field(ge=0, le=1 << 30)] = "auto"


class Settings(Params):
    """All of `params.yaml`.

    Attributes:
        schemes: What runs, in order; each has a block in `scheme`.
        scheme: Parameters by name. A block may say `kind: NAME` to be a second setting of a scheme.
        attacks: What runs; `attack` may hold a block for each, and `attack.common` for all.
        models: What is trained on each scheme's output; each has a block in `model`.
        seeds: Of the trainings: every model is trained once with each.
        attacked_models: Those of the models that are attacked themselves, on each scheme.
            With the first of the seeds.
        model_attacks: What runs on those; blocks are in `attack` as well.
    """

    data: DataSettings = DataSettings()
    resources: Resources = Resources()
    ingest: dict[str, Any] = Field(default_factory=dict)
    check: dict[str, Any] = Field(default_factory=dict)
    fit: dict[str, Any] = Field(default_factory=dict)
    schemes: tuple[str, ...] = Field(min_length=1)
    scheme: dict[str, dict[str, Any]] = Field(default_factory=dict)
    attacks: tuple[str, ...] = ()
    attack: dict[str, dict[str, Any]] = Field(default_factory=dict)
    models: tuple[str, ...] = Field(min_length=1)
    model: dict[str, dict[str, Any]] = Field(default_factory=dict)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0,), min_length=1)
    attacked_models: tuple[str, ...] = ()
    model_attacks: tuple[str, ...] = ()
    train: dict[str, Any] = Field(default_factory=dict)
    evaluate: dict[str, Any] = Field(default_factory=dict)
    gate: dict[str, Any] = Field(default_factory=dict)
    release: dict[str, Any] = Field(default_factory=dict)
    drop_policy: dict[str, Any] = Field(default_factory=dict)

    @field_validator("schemes", "attacks", "models", "attacked_models", "model_attacks")
    @classmethod
    def _plain_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_names(names)

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds

    @model_validator(mode="after")
    def _blocks_exist(self) -> "Settings":
        for listed, blocks, label in (
            (self.schemes, self.scheme, "scheme"),
            (self.models, self.model, "model"),
        ):
            missing = [name for name in listed if name not in blocks]
            if missing:
                raise ValueError(f"{missing[0]!r} is listed but has no block {label}.{missing[0]}")
        unknown = [name for name in self.attacked_models if name not in self.models]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is in `attacked_models` but not in `models`")
        return self

    def scheme_block(self, name: str) -> tuple[str, Block]:
        """The scheme behind a name in `schemes`, and its parameters.

        Raises:
            SettingsError: No such name.
        """
        return _kind_and_values(self.scheme, name, "scheme")

    def model_block(self, name: str) -> tuple[str, Block]:
        """The architecture behind a name in `models`, and its parameters.

        Raises:
            SettingsError: No such name.
        """
        return _kind_and_values(self.model, name, "model")


class DropSettings(Params):
    """One drop: a place that DVC watches, and the source that reads it.

    Attributes:
        path: Folder or file with the raw images; also what `source` reads unless it is embedded.
        source: Name of a source, or `auto` to recognise the path.
        options: Further parameters of the source.
    """

    path: str = Field(min_length=1)
    source: str = "auto"
    options: dict[str, Any] = Field(default_factory=dict)

    def spec(self) -> Block:
        """The block that opens the source."""
        return self.model_dump()


class Drops(Params):
    """All of `drops.yaml`: the order of the drops, and a block for each.

    Attributes:
        names: The drops that the pipeline runs over, in order.
        fit_drops: Those that schemes learn from; any other changes no transform.
        drops: A block for each, and for drops that are ingested and wait to be accepted.
    """

    names: tuple[str, ...] = Field(min_length=1)
    fit_drops: tuple[str, ...] = Field(min_length=1)
    drops: dict[str, DropSettings]

    @field_validator("names", "fit_drops")
    @classmethod
    def _plain_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_names(names)

    @model_validator(mode="after")
    def _names_agree(self) -> "Drops":
        missing = [name for name in self.names if name not in self.drops]
        if missing:
            raise ValueError(f"{missing[0]!r} is in `names`, but has no block in `drops`")
        _checked_names(self.drops)
        unknown = [name for name in self.fit_drops if name not in self.names]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is in `fit_drops` but not in `names`")
        return self


def load_settings(root: Path) -> Settings:
    """Reads `params.yaml` in the project's root.

    Raises:
        SettingsError: The file is missing, not YAML, or a value is refused.
    """
    return Settings.parse(_read_yaml(root / PARAMS_FILE), PARAMS_FILE)


def load_drops(root: Path) -> Drops:
    """Reads `drops.yaml` in the project's root.

    Raises:
        SettingsError: The file is missing, not YAML, or a value is refused.
    """
    return Drops.parse(_read_yaml(root / DROPS_FILE), DROPS_FILE)


def _read_yaml(path: Path) -> Block:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{path.name} is not in {path.parent.resolve()}: run this in a Veilset project's root."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"{path.name} is not valid YAML: {reason}: correct it.") from None
    if not isinstance(values, Mapping):
        raise SettingsError(f"{path.name} must be a mapping of blocks: see the one in the README.")
    return values


def _checked_names(names: Iterable[str]) -> tuple[str, ...]:
    names = tuple(names)
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is not a name: a-z, 0-9 and _ only, at most 48, a letter first"
            )
    if len(set(names)) != len(names):
        raise ValueError("a name is listed twice")
    return names


def _kind_and_values(blocks: Mapping[str, Block], name: str, label: str) -> tuple[str, Block]:
    if name not in blocks:
        known = ", ".join(sorted(blocks)) or "none"
        raise SettingsError(f"{PARAMS_FILE} has no block {label}.{name}: the blocks are {known}.")
    values = dict(blocks[name])
    kind = values.pop("kind", name)
    return str(kind), values
