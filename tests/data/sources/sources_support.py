"""What the tests of the sources share."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from veilset.data.sources import FAULTS, Item, Source

DATASETS = Path(__file__).resolve().parents[3].parent / "shared" / "datasets"


def dataset(name: str) -> Path:
    """A real data set, or a skip."""
    path = DATASETS / name
    if not path.is_dir():
        pytest.skip(f"the shared data set {path} is not on this machine")
    return path


def fill(root: Path, names: Iterable[str | bytes]) -> None:
    """Writes a file per name, whose content is its own name."""
    for name in names:
        raw = os.fsencode(name)
        path = root / os.fsdecode(raw)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


def checked(source: Source) -> list[Item]:
    """All items, after checking what every source promises of every item."""
    items = list(source)
    classes = source.classes()
    for item in items:
        assert item.name.isprintable() and item.name.encode("utf-8")
        assert item.fault is None or (item.fault in FAULTS and item.content == b"")
        assert (item.label is None) == (item.class_name is None)
        if item.label is not None:
            assert classes is not None and classes[item.label] == item.class_name
    assert source.count() == len(items)
    assert list(map(comparable, items)) == list(map(comparable, source))
    return items


def comparable(item: Item) -> tuple[object, ...]:
    """All of an item, pixels as bytes."""
    shape = None if isinstance(item.content, bytes) else item.content.shape
    return (
        shape,
        bytes(item.content),
        *dataclasses.astuple(dataclasses.replace(item, content=b"")),
    )


def faults(items: Iterable[Item]) -> dict[str, str]:
    """Fault codes by name, of the faulty items."""
    return {item.name: item.fault for item in items if item.fault}
