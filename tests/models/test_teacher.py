"""A teacher learns, repeats, and comes back from arrays as it was."""

import numpy as np
import pytest
import torch

from veilset.models.teacher import (
    Recipe,
    accuracy,
    load_teacher,
    pack,
    pixels_of,
    train_teacher,
)

RECIPE = Recipe("small_cnn", {"width": 4}, epochs=4, batch_size=32)


def bars(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright bar: the class is its direction."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (count, 16, 16, 1), dtype=np.uint8)
    labels = rng.integers(0, 2, count)
    for image, label in zip(images, labels, strict=True):
        place = slice(rng.integers(2, 11), None)
        place = slice(place.start, place.start + 3)
        image[(place, slice(None)) if label else (slice(None), place)] += 120
    return images, labels.astype(np.int64)


def test_it_learns_and_the_same_seed_repeats() -> None:
    images, labels = bars(400, 0)
    steps: list[tuple[int, int]] = []
    teacher = train_teacher(images, labels, 2, RECIPE, progress=lambda *done: steps.append(done))
    assert accuracy(teacher, *bars(200, 1)) > 0.95
    assert steps == [(n + 1, 48) for n in range(48)]
    again = train_teacher(images, labels, 2, RECIPE)
    for name, values in pack(teacher, "t").items():
        assert (values == pack(again, "t")[name]).all()
    other = train_teacher(images, labels, 2, Recipe("small_cnn", {"width": 4}, 1, seed=1))
    assert any(
        (values != pack(other, "t")[name]).any() for name, values in pack(teacher, "t").items()
    )


def test_it_comes_back_from_arrays_frozen() -> None:
    images, labels = bars(64, 0)
    teacher = train_teacher(images, labels, 2, Recipe("small_cnn", {"width": 4}, 1))
    back = load_teacher(pack(teacher, "t"), "t", "small_cnn", {"width": 4}, (16, 16, 1), 2)
    assert torch.equal(back(pixels_of(images)), teacher(pixels_of(images)))
    assert not back.training
    assert not any(parameter.requires_grad for parameter in back.parameters())


@pytest.mark.parametrize("count", [2, 3, 65])
def test_no_batch_is_left_with_a_single_image(count: int) -> None:
    images, labels = bars(count, 0)
    train_teacher(images, labels, 2, Recipe("small_cnn", {"width": 4}, 1, batch_size=64))


def test_torchs_generator_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    train_teacher(*bars(16, 0), 2, Recipe("small_cnn", {"width": 4}, 1))
    assert torch.equal(before, torch.get_rng_state())
