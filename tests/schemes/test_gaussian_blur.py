"""Gaussian blur: as SciPy's within a grey level, and the same bytes as exact integers."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.schemes.gaussian_blur import GaussianBlur, _reflected, _weights
from veilset.schemes.registry import make_scheme

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
SHAPES = st.tuples(st.integers(8, 64), st.integers(8, 64), st.sampled_from([1, 3]))
SIGMAS = st.sampled_from([0.5, 0.7, 1.0, 1.3, 2.0, 3.375, 8.0, 20.0, 64.0])


def some_images(
    count: int, shape: tuple[int, int, int] = (32, 32, 3), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.zeros(count, np.int64), rng.integers(0, 256, (count, 16), dtype=np.uint8)


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    _, labels, ids = some_images(len(images))
    return GaussianBlur(sigma_px=sigma).protect(images, labels, ids, KEY).images


@settings(deadline=None, max_examples=40)
@given(SHAPES, SIGMAS, st.integers(0, 2**32))
def test_it_is_scipys_blur_within_a_grey_level(
    shape: tuple[int, int, int], sigma: float, seed: int
) -> None:
    images, _, _ = some_images(2, shape, seed)
    images[1] = 255 * (images[1] > 127)
    exact = gaussian_filter(
        images.astype(np.float64), (0, sigma, sigma, 0), mode="reflect", truncate=4.0
    )
    assert np.abs(blurred(images, sigma) - exact).max() < 1


@settings(deadline=None, max_examples=12)
@given(
    st.tuples(st.integers(2, 12), st.integers(2, 12), st.sampled_from([1, 3])),
    st.sampled_from([0.5, 1.3, 4.0]),
    st.integers(0, 2**32),
)
def test_bytes_are_those_of_plain_integers(
    shape: tuple[int, int, int], sigma: float, seed: int
) -> None:
    images, _, _ = some_images(1, shape, seed)
    height, width, channels = shape
    side = [int(w) for w in _weights(Fraction(repr(sigma)))]
    kernel = side[:0:-1] + side
    radius = len(side) - 1

    def at(place: int, length: int) -> int:
        while not 0 <= place < length:  # mirrored at the edge between two pixels
            place = -1 - place if place < 0 else 2 * length - 1 - place
        return place

    result = blurred(images, sigma)[0]
    for c in range(channels):
        plane = images[0, :, :, c].tolist()
        between = [
            [
                (sum(w * plane[at(y + k - radius, height)][x] for k, w in enumerate(kernel)) + 128)
                >> 8
                for x in range(width)
            ]
            for y in range(height)
        ]
        for y in range(height):
            for x in range(width):
                total = sum(w * between[y][at(x + k - radius, width)] for k, w in enumerate(kernel))
                assert result[y, x, c] == (total + (1 << 23)) >> 24


@settings(deadline=None, max_examples=40)
@given(st.fractions(min_value="1/2", max_value=64))
def test_weights_sum_to_one_and_follow_the_gaussian(sigma: Fraction) -> None:
    weights = _weights(sigma)
    assert int(weights[0]) + 2 * int(weights[1:].sum()) == 1 << 16
    assert len(weights) - 1 == math.floor(4 * sigma + Fraction(1, 2))
    shape = np.exp(-(np.arange(len(weights)) ** 2) / (2 * float(sigma) ** 2))
    expected = shape / (shape[0] + 2 * shape[1:].sum()) * (1 << 16)
    assert np.abs(weights[1:] - expected[1:]).max() <= 0.5 + 1e-6
    assert abs(weights[0] - expected[0]) <= len(weights)


def test_weights_are_frozen() -> None:
    # Another value here means other bytes in every release: raise the scheme's version.
    assert _weights(Fraction(1)).tolist() == [26146, 15858, 3538, 290, 9]
    assert _weights(Fraction("0.7")).tolist() == [37346, 13461, 630, 4]


@pytest.mark.parametrize(("length", "radius"), [(8, 3), (8, 40), (2, 5), (1, 3)])
def test_edges_are_reflected_as_numpy_pads(length: int, radius: int) -> None:
    padded = np.pad(np.arange(length), radius, mode="symmetric")
    assert _reflected(length, radius).tolist() == padded.tolist()


def test_no_sum_overflows_and_greys_stay() -> None:
    for grey in (0, 1, 128, 255):
        images = np.full((1, 20, 9, 3), grey, np.uint8)
        for sigma in (0.5, 2.0, 64.0):
            assert (blurred(images, sigma) == grey).all()


def test_transposed_images_blur_alike_within_a_grey_level() -> None:
    images, _, _ = some_images(3, (24, 17, 3))
    across = blurred(np.ascontiguousarray(images.swapaxes(1, 2)), 1.5).swapaxes(1, 2)
    assert np.abs(across.astype(int) - blurred(images, 1.5)).max() <= 1


def test_there_is_no_key_and_no_dependence_on_the_batch() -> None:
    images, labels, ids = some_images(9, (13, 40, 3))
    scheme = GaussianBlur()
    whole = scheme.protect(images, labels, ids, KEY).images
    order = np.random.default_rng(1).permutation(9)
    for part in np.array_split(order, 3):
        got = scheme.protect(images[part], labels[part], ids[part][::-1], OTHER).images
        assert (got == whole[part]).all()
    assert scheme.key_space_bits((32, 32, 3)) == 0
    assert not scheme.declares.keyed


def test_nobody_can_undo_it_by_key() -> None:
    with pytest.raises(ProtectionError, match="gaussian_blur cannot be undone"):
        GaussianBlur().recover(*some_images(1), KEY)


@pytest.mark.parametrize("shape", [(8, 8, 1), (13, 40, 3), (512, 8, 3), (100, 512, 1), (2, 2, 3)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    images, labels, ids = some_images(2, shape)
    for sigma in (0.5, 2.0):
        result = GaussianBlur(sigma_px=sigma).protect(images, labels, ids, KEY).images
        assert result.shape == images.shape
        assert (result != images).mean() > 0.8
    empty = GaussianBlur().protect(images[:0], labels[:0], ids[:0], KEY)
    assert empty.images.shape == (0, *shape)


@pytest.mark.parametrize("shape", [(1, 8, 3), (8, 1, 1)])
def test_a_line_of_pixels_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ProtectionError, match="2 x 2 pixels or more"):
        GaussianBlur().protect(*some_images(1, shape), KEY)


@pytest.mark.parametrize("value", [0, 0.1, 65, float("nan"), float("inf"), "much"])
def test_wrong_parameters_are_refused_by_name(value: object) -> None:
    with pytest.raises(SettingsError, match=r"here\.sigma_px"):
        make_scheme("gaussian_blur", {"sigma_px": value}, "here")
