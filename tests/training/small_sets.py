"""Small sets, subjects and parameters for the tests of training."""

from typing import Any

import numpy as np

from veilset.schemes.base import Declaration
from veilset.training.loader import Samples
from veilset.training.loop import Subject
from veilset.training.params import TrainingParams


def declaration(**changes: Any) -> Declaration:
    """A declaration; by default of a scheme that only protects training images."""
    values: dict[str, Any] = {
        "keyed": True, "reversible": False, "guarantee": None, "protects_queries": False,
        "uses_labels": False, "provenance": "ours", "source": "test",
        "shift_safe": True,
    }  # fmt: skip
    return Declaration(**(values | changes))


def stripes(count: int, shape: tuple[int, int, int] = (8, 8, 1), seed: int = 0) -> Samples:
    """Two classes: horizontal and vertical stripes under noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    rows, columns = np.indices(shape[:2])
    pattern = np.stack([rows % 2, columns % 2]) * 120
    noise = rng.integers(0, 120, (count, *shape))
    return Samples((pattern[labels, ..., None] + noise).astype(np.uint8), labels.astype(np.int64))


def subject(classes: int = 2, **changes: Any) -> Subject:
    """A small network on a scheme called `plain`."""
    values: dict[str, Any] = {
        "model": "small_cnn", "classes": [f"class {i}" for i in range(classes)],
        "scheme": "plain", "declares": declaration(), "model_params": {"width": 4},
    }  # fmt: skip
    return Subject(**(values | changes))


def params(**changes: Any) -> TrainingParams:
    """A short training on the CPU."""
    values: dict[str, Any] = {"epochs": 3, "batch_size": 16, "lr": 0.1, "device": "cpu"}
    return TrainingParams(**(values | changes))
