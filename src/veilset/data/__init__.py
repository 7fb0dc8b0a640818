"""Image sets: sources, safe decoding, shards and manifest, roles.

`veilset.data.open(PATH)` opens a set as a torch `Dataset`.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "open":  # on demand, because most stages need no torch
        from veilset.data.dataset import open_dataset  # noqa: PLC0415

        return open_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
