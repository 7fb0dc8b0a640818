import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sets import declaration, params

from veilset.errors import TrainingError
from veilset.models.augment import (
    Augmentation,
    Moves,
    draw_moves,
    measure_normalisation,
    normalise,
    take,
    take_by_indexing,
)
from veilset.training.params import augmentation_for, mirror_safe


@settings(deadline=None)  # the first example may compile
@given(st.integers(2, 9), st.integers(2, 9), st.sampled_from([1, 3]), st.data())
def test_take_is_pad_reflect_crop_and_mirror(
    height: int, width: int, channels: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    reach = min(height, width) - 1
    images = rng.integers(0, 256, (5, height, width, channels), dtype=np.uint8)
    rows = rng.integers(0, 5, 7)
    down, right = rng.integers(-reach, reach + 1, (2, 7))
    mirrored = rng.random(7) < 0.5
    moves = Moves(*(torch.from_numpy(each) for each in (down, right, mirrored)))
    found = take(torch.from_numpy(images), torch.from_numpy(rows), moves)
    indexed = take_by_indexing(torch.from_numpy(images), torch.from_numpy(rows), moves)
    assert torch.equal(found, indexed), "a GPU would make other images"
    for k, row in enumerate(rows):
        image = images[row][:, ::-1] if mirrored[k] else images[row]
        padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
        y, x = reach - down[k], reach - right[k]
        expected = padded[y : y + height, x : x + width]
        assert np.array_equal(found[k].permute(1, 2, 0).numpy(), expected)


def test_batches_are_channels_last_without_a_copy() -> None:
    images = torch.randint(0, 256, (4, 6, 5, 3), dtype=torch.uint8)
    still = torch.zeros(2, dtype=torch.int64)
    moves = Moves(still, still, still.bool())
    for batch in (take(images, torch.tensor([3, 1])), take(images, torch.tensor([3, 1]), moves)):
        assert batch.shape == (2, 3, 6, 5)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.permute(0, 2, 3, 1), images[[3, 1]])


def test_moves_cover_their_range_and_no_more() -> None:
    moves = draw_moves(4000, Augmentation(flip=True, crop=2), torch.Generator().manual_seed(0))
    for shifts in (moves.down, moves.right):
        assert np.bincount(shifts.numpy() + 2, minlength=5).min() > 700
        assert shifts.abs().max() == 2
    assert 0.45 < moves.mirrored.double().mean() < 0.55


def test_nothing_is_mirrored_unless_asked() -> None:
    moves = draw_moves(500, Augmentation(flip=False, crop=0), torch.Generator().manual_seed(0))
    assert not moves.mirrored.any() and not moves.down.any() and not moves.right.any()


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_that_of_the_pixels_in_any_order(channels: int) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 200, (5000, 3, 4, channels), dtype=np.uint8)
    found = measure_normalisation(images)
    assert found.mean == pytest.approx((images / 255).mean(axis=(0, 1, 2)))
    assert found.std == pytest.approx((images / 255).std(axis=(0, 1, 2)))
    assert measure_normalisation(images[rng.permutation(5000)]) == found
    pixels = found.apply(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert pixels.dtype == torch.float32
    assert pixels.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert torch.allclose(pixels.std(dim=(0, 2, 3)), torch.ones(channels), atol=1e-3)


def test_images_without_contrast_do_not_divide_by_zero() -> None:
    found = measure_normalisation(np.full((3, 2, 2, 1), 7, dtype=np.uint8))
    assert torch.isfinite(found.apply(torch.full((1, 1, 2, 2), 7, dtype=torch.uint8))).all()


def test_digits_are_not_mirrored_and_scrambled_images_not_shifted_by_default() -> None:
    shape = (32, 48, 1)
    assert augmentation_for(params(), declaration(), shape) == Augmentation(False, 2)
    scrambled = declaration(shift_safe=False)
    assert augmentation_for(params(), scrambled, shape) == Augmentation(False, 0)
    asked = params(flip=True, crop=4)
    assert augmentation_for(asked, scrambled, shape) == Augmentation(True, 4)


def test_a_mirror_is_safe_where_a_shift_is() -> None:
    shape = (32, 48, 1)
    places, anywhere = declaration(shift_safe=False), declaration()
    assert mirror_safe(anywhere) and not mirror_safe(places)
    assert augmentation_for(params(flip="auto"), anywhere, shape).flip
    assert not augmentation_for(params(flip="auto"), places, shape).flip
    assert augmentation_for(params(flip=True), places, shape).flip
    assert not augmentation_for(params(), anywhere, shape).flip


@pytest.mark.parametrize("crop", [-1, 32])
def test_a_shift_off_the_image_is_refused(crop: int) -> None:
    with pytest.raises(TrainingError, match="choose 0 to 31"):
        augmentation_for(params(crop=crop), declaration(), (48, 32, 1))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 4]), st.integers(0, 99))
def test_compiled_and_tensor_normalisation_have_the_same_bits(
    height: int, width: int, channels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, height, width, channels), dtype=np.uint8))
    mean, std = (torch.from_numpy(rng.random((channels, 1, 1), dtype=np.float32)) for _ in range(2))
    found = normalise(pixels.permute(0, 3, 1, 2), mean, std + 0.01)
    expected = pixels.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std + 0.01)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    # Any other layout, and pixels that are no bytes, take the tensor operations.
    assert torch.equal(normalise(pixels.permute(0, 3, 1, 2).contiguous(), mean, std + 0.01), found)
    assert torch.equal(normalise(pixels.permute(0, 3, 1, 2).double(), mean, std + 0.01), found)
