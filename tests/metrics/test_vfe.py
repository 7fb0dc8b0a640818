"""VFE against a slow implementation in Python's integers, and known values."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.metrics.vfe import (
    vfe_region_sums,
    vfe_released,
    vfe_released_sums,
    vfe_valid,
    vfe_valid_sums,
)


def slow_released(image: np.ndarray, window: int) -> Fraction:
    height, width, channels = image.shape
    high, wide = min(window, height), min(window, width)
    total, count = 0, 0
    for y in range(0, height - high + 1, high):
        for x in range(0, width - wide + 1, wide):
            for c in range(channels):
                padded = [[0] * (wide + 1) for _ in range(high + 1)]
                for i in range(high):
                    for j in range(wide):
                        padded[i][j] = int(image[y + i, x + j, c])
                for i in range(high):
                    for j in range(wide):
                        total += (padded[i][j + 1] - padded[i][j]) ** 2
                        total += (padded[i + 1][j] - padded[i][j]) ** 2
                count += 1
    return Fraction(total, count * 255 * 255)


def slow_valid(image: np.ndarray, channel: int) -> int:
    values = image[..., channel].astype(int).tolist()
    high, wide = len(values), len(values[0])
    down = sum((values[i + 1][j] - values[i][j]) ** 2 for i in range(high - 1) for j in range(wide))
    right = sum(
        (values[i][j + 1] - values[i][j]) ** 2 for i in range(high) for j in range(wide - 1)
    )
    return down + right


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([1, 3]),
    st.integers(1, 16),
    st.integers(0, 2**32),
)
def test_both_equal_the_slow_implementation(
    height: int, width: int, channels: int, window: int, seed: int
) -> None:
    images = np.random.default_rng(seed).integers(
        0, 256, (2, height, width, channels), dtype=np.uint8
    )
    sums, windows = vfe_released_sums(images, window)
    for image, total in zip(images, sums.tolist(), strict=True):
        assert Fraction(total, windows * 255 * 255) == slow_released(image, window)
    sums, pairs = vfe_valid_sums(images)
    assert pairs == height * (width - 1) + width * (height - 1)
    assert sums.tolist() == [[slow_valid(image, c) for c in range(channels)] for image in images]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32), st.data())
def test_regions_are_measured_as_if_cut_out(
    height: int, width: int, seed: int, data: st.DataObject
) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    tops = sorted({0, *data.draw(st.sets(st.integers(0, height - 1)))})
    lefts = sorted({0, *data.draw(st.sets(st.integers(0, width - 1)))})
    sums, pairs = vfe_region_sums(images, tops, lefts)
    for i, (top, bottom) in enumerate(zip(tops, [*tops[1:], height], strict=True)):
        for j, (left, right) in enumerate(zip(lefts, [*lefts[1:], width], strict=True)):
            expected = vfe_valid_sums(images[:, top:bottom, left:right])
            assert (sums[:, i, j] == expected[0]).all()
            assert pairs[i, j] == expected[1]


def test_known_values() -> None:
    half = np.full((1, 224, 224, 3), 128, dtype=np.uint8)
    assert vfe_released(half)[0] == pytest.approx(28 * (128 / 255) ** 2)  # 7.05: border alone
    assert (vfe_valid(half) == 0).all()
    board = np.indices((28, 28)).sum(axis=0) % 2 * 255
    board = board.astype(np.uint8)[None, :, :, None]
    assert vfe_valid(board)[0, 0] == 1
    # 2 * 13 * 14 pairs inside, 14 white ends of rows and columns: 364 + 14 = 378.
    assert vfe_released(board)[0] == 378


def test_shuffled_pixels_have_twice_their_variance() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, 256, dtype=np.uint8)
    images = np.stack([rng.permutation(values).reshape(16, 16, 1) for _ in range(3000)])
    expected = 2 * np.var(values / 255, ddof=1)
    assert vfe_valid(images).mean() == pytest.approx(expected, rel=0.01)


def test_one_image_is_measured_as_in_a_large_batch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (700, 32, 32, 3), dtype=np.uint8)
    assert (vfe_released(images)[[5, 699]] == vfe_released(images[[5, 699]])).all()
    assert (vfe_valid(images)[[5, 699]] == vfe_valid(images[[5, 699]])).all()
    assert vfe_released(images[:0]).shape == (0,)


@pytest.mark.parametrize("bad", [np.zeros((2, 4, 4, 1)), np.zeros((4, 4, 1), np.uint8)])
def test_wrong_images_are_refused(bad: np.ndarray) -> None:
    for measure in (vfe_released, vfe_valid):
        with pytest.raises(ValueError, match="uint8"):
            measure(bad)
    with pytest.raises(ValueError, match="window"):
        vfe_released(np.zeros((1, 4, 4, 1), np.uint8), 0)


def test_very_tall_images_do_not_overflow() -> None:
    # More rows than squares of which fit 32 bits: each pair of neighbours differs by 255.
    board = (np.indices((40_000, 3)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, :, :, None]
    sums, pairs = vfe_valid_sums(board)
    assert sums[0, 0] == pairs * 255 * 255
    white = np.full((1, 40_000, 1, 1), 255, dtype=np.uint8)
    assert vfe_released_sums(white, 40_000)[0][0] == 40_001 * 255 * 255
