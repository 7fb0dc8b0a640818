from typing import Any

import numpy as np
import pytest
from small_sets import stripes

from veilset.errors import TrainingError
from veilset.training.loader import Samples, check_samples


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
