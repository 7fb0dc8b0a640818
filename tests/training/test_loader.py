from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sets import stripes

from veilset.data.shards import Part, write_set
from veilset.errors import CorruptError, SourceError, TrainingError
from veilset.training.loader import Samples, check_samples, read_split


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


def _with(samples: Samples, **changes: Any) -> Samples:
    return samples._replace(**changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: _with(s, labels=np.zeros_like(s.labels)), "of class 0: nothing can be learnt"),
        (lambda s: Samples(s.images[:4], s.labels[:4]), "4 training images are too few: 8"),
        (lambda s: Samples(s.images[:0], s.labels[:0]), "there is no training image"),
        (lambda s: _with(s, labels=s.labels + 1), "label is 2, but there are 2 classes"),
        (lambda s: _with(s, labels=s.labels - 1), "label is -1"),
        (lambda s: _with(s, labels=s.labels[:-1]), "labels must be int64"),
        (lambda s: _with(s, labels=s.labels.astype(np.int32)), "labels must be int64"),
        (lambda s: _with(s, images=s.images / 255), "images must be uint8"),
        (lambda s: _with(s, images=s.images[..., 0]), "images must be uint8"),
        (lambda s: _with(s, images=s.images[:, :7]), "make both from one set"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_a_sentence(change: Any, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        check_samples(change(stripes(20)), stripes(4), 2)


def test_validation_images_are_checked_as_well() -> None:
    with pytest.raises(TrainingError, match="no validation image"):
        check_samples(stripes(20), Samples(*(part[:0] for part in stripes(4))), 2)
    check_samples(stripes(20), stripes(4), 2)
