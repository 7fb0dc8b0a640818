"""Splits over several drops, read as one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veilset.data.shards import Part, write_set
from veilset.data.splits import read_column, read_split
from veilset.errors import CorruptError, SourceError


def _rows(first: int, count: int) -> Part:
    """Rows whose ids, labels and pixels follow from a number."""
    numbers = np.arange(first, first + count)
    ids = np.zeros((count, 16), dtype=np.uint8)
    ids[:, 0] = numbers * 37 % 251
    ids[:, 1] = numbers
    images = np.broadcast_to(numbers[:, None, None, None], (count, 3, 2, 1)).astype(np.uint8)
    return ids, (numbers % 3).astype(np.int64), images, {}


def _write(folder: Path, parts: Any, classes: tuple[str, ...] = ("a", "b", "c")) -> Path:
    write_set(folder, kind="ingested", dataset="t", classes=classes, parts=parts)
    return folder


def test_drops_are_joined_without_doubles_and_in_any_order(tmp_path: Path) -> None:
    one = _write(tmp_path / "1", {"train": _rows(0, 10), "test": _rows(50, 3)})
    two = _write(tmp_path / "2", {"train": _rows(6, 9)})
    ids, labels, images = read_split([one, two], "train")
    assert len(ids) == 15
    assert [row.tobytes() for row in ids] == sorted({row.tobytes() for row in ids})
    assert np.array_equal(images[:, 0, 0, 0], ids[:, 1])
    assert np.array_equal(labels, ids[:, 1] % 3)
    for other, same in zip(read_split([two, one], "train"), (ids, labels, images), strict=True):
        assert np.array_equal(other, same)
    # A limit takes the smallest ids of all drops, whichever drop they came in.
    for other, same in zip(read_split([two, one], "train", 7), (ids, labels, images), strict=True):
        assert np.array_equal(other, same[:7])
    # A drop without the split adds nothing.
    assert len(read_split([two, one], "test")[0]) == 3


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    one = _write(tmp_path / "1", {"train": _rows(0, 4)})
    named = _write(tmp_path / "2", {"train": _rows(0, 4)}, classes=("a", "b", "d"))
    ids, labels, images, none = _rows(0, 4)
    wide = _write(tmp_path / "3", {"train": (ids, labels, images.repeat(2, axis=1), none)})
    for other in (named, wide):
        with pytest.raises(SourceError, match="ingest both with the same settings"):
            read_split([one, other], "train")
    with pytest.raises(SourceError, match="no image of split 'test'"):
        read_split([one], "test")
    with pytest.raises(SourceError, match="no image of split"):
        read_split([], "test")


def test_a_flipped_bit_is_never_trained_on(tmp_path: Path) -> None:
    folder = _write(tmp_path / "1", {"train": _rows(0, 40)})
    shard = folder / "train-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[data.index(bytes([30] * 6))] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptError, match="train-00000"):
        read_split([folder], "train")


def test_a_column_is_read_in_the_order_of_the_split(tmp_path: Path) -> None:
    def masked(first: int, count: int) -> Part:
        ids, labels, images, _ = _rows(first, count)
        return ids, labels, images, {"mask": images[..., 0] + np.uint8(1)}

    one = _write(tmp_path / "1", {"train": masked(0, 10)})
    two = _write(tmp_path / "2", {"train": masked(6, 9)})
    bare = _write(tmp_path / "3", {"train": _rows(20, 4)})
    for limit in (None, 7):
        images = read_split([one, two], "train", limit)[2]
        found = read_column([one, two], "train", "mask", limit)
        assert found is not None and found.dtype == np.uint8
        assert np.array_equal(found, images[..., 0] + 1)
    assert read_column([bare], "train", "mask") is None
    with pytest.raises(SourceError, match="3 has no column 'mask', but other drops have"):
        read_column([one, bare], "train", "mask")
