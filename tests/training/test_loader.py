from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_sets import stripes

from veilset.data.shards import write_set
from veilset.errors import TrainingError
from veilset.training.loader import Samples, check_samples, read_samples


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
        check_samples(stripes(20), Samples(*(part[:0] for part in stripes(4)[:2])), 2)
    check_samples(stripes(20), stripes(4), 2)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones((20, 8, 7), np.uint8), r"mask of training images must be uint8 \(20, 8, 8\)"),
        (np.ones((20, 8, 8), np.bool_), "not bool"),
        (np.full((20, 8, 8), 255, np.uint8), "holds 255: it says 1 for kept"),
    ],
)
def test_a_mask_of_other_images_is_refused(mask: Any, words: str) -> None:
    held = _with(stripes(4), mask=np.ones((4, 8, 8), np.uint8))
    check_samples(_with(stripes(20), mask=np.ones((20, 8, 8), np.uint8)), held, 2)
    with pytest.raises(TrainingError, match=words):
        check_samples(_with(stripes(20), mask=mask), held, 2)


def test_masks_are_of_all_images_or_of_none() -> None:
    masked = _with(stripes(20), mask=np.zeros((20, 8, 8), np.uint8))
    for one, other in ((masked, stripes(20)), (stripes(20), masked)):
        with pytest.raises(TrainingError, match="have masks, but the others have none"):
            check_samples(one, other, 2)


def test_a_mask_is_read_where_it_is_wanted_and_there(tmp_path: Path) -> None:
    images, labels, _ = stripes(12)
    ids = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)[::-1]
    mask = np.random.default_rng(0).integers(0, 2, (12, 8, 8), dtype=np.uint8)
    for name, columns in (("masked", {"mask": mask}), ("plain", {})):
        parts = {"train": (ids, labels, images, columns)}
        write_set(tmp_path / name, kind="protected", dataset="t", classes=("a", "b"), parts=parts)
    found_ids, found = read_samples([tmp_path / "masked"], "train", masks=True)
    order = [ids.tolist().index(row) for row in found_ids.tolist()]
    assert found.mask is not None and (found.mask == mask[order]).all()
    assert (found.images == images[order]).all() and (found.labels == labels[order]).all()
    assert read_samples([tmp_path / "masked"], "train", masks=False)[1].mask is None
    assert read_samples([tmp_path / "plain"], "train", masks=True)[1].mask is None
