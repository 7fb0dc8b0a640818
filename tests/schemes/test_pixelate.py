"""Pixelation: every cell shows its mean exactly, and no pixel is left as it was by itself."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.schemes.pixelate import Pixelate, _edges
from veilset.schemes.registry import make_scheme

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
SHAPES = st.tuples(st.integers(8, 64), st.integers(8, 64), st.sampled_from([1, 3]))


def some_images(
    count: int, shape: tuple[int, int, int] = (32, 32, 3), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.zeros(count, np.int64), rng.integers(0, 256, (count, 16), dtype=np.uint8)


def sides(length: int, block: int) -> list[int]:
    """Cells along a side, told anew: a remainder of more than half a cell is a cell of its own."""
    if length <= block:
        return [length]
    cells = [block] * (length // block)
    left = length % block
    if left > block / 2:
        return [*cells, left]
    cells[-1] += left
    return cells


def cells(shape: tuple[int, ...], block: int) -> Iterator[tuple[slice, slice]]:
    y = 0
    for high in sides(shape[0], block):
        x = 0
        for wide in sides(shape[1], block):
            yield slice(y, y + high), slice(x, x + wide)
            x += wide
        y += high


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(2, 40), st.integers(0, 2**32))
def test_every_cell_shows_its_mean_rounded_half_up(
    shape: tuple[int, int, int], block: int, seed: int
) -> None:
    images, labels, ids = some_images(2, shape, seed)
    result = Pixelate(block_px=block).protect(images, labels, ids, KEY).images
    for high, wide in cells(shape, block):
        for image, shown in zip(images, result, strict=True):
            for c in range(shape[2]):
                values = [int(v) for v in image[high, wide, c].ravel()]
                mean = (2 * sum(values) + len(values)) // (2 * len(values))
                assert (shown[high, wide, c] == mean).all()


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 512), st.integers(2, 512))
def test_cells_cover_a_side_and_none_is_a_single_pixel_wide(length: int, block: int) -> None:
    edges = _edges(length, block)
    assert np.diff(edges).tolist() == sides(length, block)
    assert (edges[0], edges[-1]) == (0, length)
    assert np.diff(edges).min() >= 2


@pytest.mark.parametrize(("values", "mean"), [((0, 1, 1, 0), 1), ((0, 0, 0, 1), 0)])
def test_half_a_grey_level_is_rounded_up(values: tuple[int, ...], mean: int) -> None:
    image = np.array(values, np.uint8).reshape(1, 2, 2, 1)
    shown = Pixelate(block_px=2).protect(image, *some_images(1)[1:], KEY).images
    assert (shown == mean).all()


def test_pixelating_twice_changes_nothing_more() -> None:
    images, labels, ids = some_images(3, (30, 41, 3))
    scheme = Pixelate(block_px=5)
    once = scheme.protect(images, labels, ids, KEY).images
    assert (once != images).mean() > 0.9
    assert (scheme.protect(once, labels, ids, KEY).images == once).all()


def test_there_is_no_key_and_no_dependence_on_the_batch() -> None:
    images, labels, ids = some_images(9, (13, 40, 3))
    scheme = Pixelate()
    whole = scheme.protect(images, labels, ids, KEY).images
    order = np.random.default_rng(1).permutation(9)
    for part in np.array_split(order, 3):
        got = scheme.protect(images[part], labels[part], ids[part][::-1], OTHER).images
        assert (got == whole[part]).all()
    assert scheme.key_space_bits((32, 32, 3)) == 0
    assert not scheme.declares.keyed


def test_nobody_can_undo_it() -> None:
    with pytest.raises(ProtectionError, match="pixelate cannot be undone"):
        Pixelate().recover(*some_images(1), KEY)


@pytest.mark.parametrize("shape", [(8, 8, 1), (13, 40, 3), (512, 8, 3), (100, 512, 1), (1, 2, 3)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    images, labels, ids = some_images(2, shape)
    for block in (2, 8, 512):
        result = Pixelate(block_px=block).protect(images, labels, ids, KEY).images
        assert result.shape == images.shape
        assert (result != images).mean() > 0.9
    assert Pixelate().protect(images[:0], labels[:0], ids[:0], KEY).images.shape == (0, *shape)


def test_a_single_pixel_is_refused() -> None:
    with pytest.raises(ProtectionError, match="1 x 1 pixels"):
        Pixelate().protect(*some_images(1, (1, 1, 3)), KEY)


@pytest.mark.parametrize("value", [0, 1, 513, "all"])
def test_wrong_parameters_are_refused_by_name(value: object) -> None:
    with pytest.raises(SettingsError, match=r"here\.block_px"):
        make_scheme("pixelate", {"block_px": value}, "here")
