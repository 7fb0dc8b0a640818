"""Schemes that learn give the same images on every run of one device, and nearly so on another."""

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.schemes import bars

from veilset.keys import Key
from veilset.schemes.fitted import Fitted, Lessons
from veilset.schemes.registry import make_scheme
from veilset.types import Images

DEVICES = ("cpu", "cuda")
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mask_desensitization", {"epochs": 1, "scope": "image"}),
    (
        "image_to_perturbation",
        {"classifier_epochs": 1, "feature_epochs": 1, "epochs": 1, "least_steps": 4},
    ),
)


@pytest.fixture(scope="module", params=SETTINGS, ids=[name for name, _ in SETTINGS])
def fitted(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], Fitted]:
    name, values = request.param
    lessons = Lessons(*bars(48, 32, 0), *bars(16, 32, 1), classes=2)
    return name, values, make_scheme(name, values, "test").fit(lessons)


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_repeats_itself_and_is_within_a_grey_level_of_the_processor(
    fitted: tuple[str, dict[str, Any], Fitted], device: str
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    name, values, learnt = fitted
    images, labels = bars(24, 32, 2)
    ids = np.random.default_rng(3).integers(0, 256, (24, 16), dtype=np.uint8)

    def protect(where: str) -> Images:
        scheme = make_scheme(name, values, "test", fitted=learnt, device=where)
        return scheme.protect(images, labels, ids, Key(bytes(range(32)))).images

    there, here = protect(device), protect("cpu")
    np.testing.assert_array_equal(there, protect(device))
    assert not np.array_equal(here, images)
    apart = np.abs(there.astype(int) - here.astype(int))
    assert apart.max() <= (0 if device == "cpu" else 1)
