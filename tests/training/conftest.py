import numpy as np
import pytest
from sklearn.datasets import load_digits

from veilset.training.loader import Samples


@pytest.fixture(scope="session")
def digits() -> Samples:
    """All 1,797 digits, uint8 (N, 8, 8, 1), shuffled."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order, ..., None] * 255 / 16).astype(np.uint8)
    return Samples(images, data.target[order].astype(np.int64))
