"""Where images come from, one source a file."""

from veilset.data.sources.base import FAULTS, Item, Source, SourceParams, Split
from veilset.data.sources.registry import SOURCES, open_source, source_names

__all__ = [
    "FAULTS",
    "SOURCES",
    "Item",
    "Source",
    "SourceParams",
    "Split",
    "open_source",
    "source_names",
]
