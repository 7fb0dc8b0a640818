"""All sources by name, and which of them a path is."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from veilset.data.sources.archive import ArchiveSource
from veilset.data.sources.base import Source, located
from veilset.data.sources.digits import DigitsSource
from veilset.data.sources.folder import FolderSource
from veilset.data.sources.huggingface import HuggingFaceSource
from veilset.data.sources.lfw_subset import LfwSubsetSource
from veilset.data.sources.table import TableSource
from veilset.data.sources.torchvision import TorchvisionSource
from veilset.errors import SettingsError, SourceError

# A path is the first of these that recognises it: a folder of Parquet files is a folder, too.
_ORDER: tuple[type[Source[Any]], ...] = (
    DigitsSource,
    LfwSubsetSource,
    TorchvisionSource,
    HuggingFaceSource,
    TableSource,
    ArchiveSource,
    FolderSource,
)

SOURCES: Mapping[str, type[Source[Any]]] = MappingProxyType({kind.name: kind for kind in _ORDER})
"""Every source by its name in `drops.yaml`."""

_TORCHVISION = "torchvision:"


def source_names() -> tuple[str, ...]:
    """The names of all sources, sorted."""
    return tuple(sorted(SOURCES))


def open_source(spec: Mapping[str, Any] | str | Path, root: Path) -> Source[Any]:
    """Opens a source.

    Args:
        spec: A block `{source: NAME, path: ..., <options>}`, whose options may also stand in a
            block `options`, and whose source may be missing or `auto` to recognise the path. Or,
            from the command line, one text: `digits`, `lfw_subset`, `torchvision:NAME`, or a path
            (`./digits` for a folder of that name).
        root: The project's root, to which paths are relative.

    Raises:
        SourceError: The source is missing, empty, unreadable or not recognised.
        SettingsError: The block has an unknown key or source, or a value out of range.
    """
    values = _as_block(spec)
    name = values.pop("source", "auto")
    if name == "auto":
        path = str(values.get("path", ""))
        name = _recognised(located(root, path), path).name if path else _unnamed()
    if name not in SOURCES:
        known = ", ".join(("auto", *source_names()))
        raise SettingsError(f"source is {name!r}, which is unknown: it may be {known}.")
    kind = SOURCES[name]
    return kind(kind.Parameters.parse(values, f"source {name}"), root)


def _as_block(spec: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(spec, Path):
        return {"path": str(spec)}
    if isinstance(spec, str):
        return _named(spec)
    values = dict(spec)
    options = values.pop("options", None) or {}
    if not isinstance(options, Mapping) or set(options) & ({"source"} | set(values)):
        raise SettingsError(
            "A source's options must be a block that repeats none of the keys beside it: correct "
            "drops.yaml."
        )
    return {**values, **options}


def _named(text: str) -> dict[str, Any]:
    if text in SOURCES and SOURCES[text].embedded:
        return {"source": text}
    if text.startswith(_TORCHVISION):
        return {"source": "torchvision", "dataset": text.removeprefix(_TORCHVISION)}
    return {"path": text}


def _recognised(location: Path, path: str) -> type[Source[Any]]:
    for kind in _ORDER:
        if kind.recognises(location):
            return kind
    raise SourceError(f"{path!r} is no source that Veilset recognises: it understands {_known()}.")


def _unnamed() -> str:
    raise SettingsError(f"A source needs a name or a path: Veilset understands {_known()}.")


def _known() -> str:
    return "; ".join(f"{kind.name} ({kind.title})" for kind in _ORDER)
