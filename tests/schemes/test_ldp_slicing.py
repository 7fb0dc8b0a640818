"""LDP-Slicing: flips of bit planes keep the budget of a pixel, enumerated and drawn."""

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_checks import bounds

from veilset.errors import SettingsError
from veilset.keys import Key
from veilset.schemes import _discrete_laplace as law
from veilset.schemes.ldp_slicing import (
    LdpSlicing,
    enumerated,
    flip_laws,
    flip_masses,
    flips_hold,
    plane_budgets,
    to_rgb,
    to_ycbcr,
)
from veilset.schemes.registry import make_scheme

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))


def some_images(
    count: int, shape: tuple[int, ...] = (32, 32, 3), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.zeros(count, np.int64), rng.integers(0, 256, (count, 16), dtype=np.uint8)


# ------------------------------------------------------------------------------ the claim


@pytest.mark.parametrize("eps", ["0.001", "1", "20", "41"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_whole_channel_of_a_pixel_keeps_the_budget(eps: str, channels: int) -> None:
    # P[x, y] = mass[x ^ y]: all pairs of inputs and all outputs, channel by channel.
    high = low = 1
    for table in flip_laws(Fraction(eps), channels):
        masses = np.array(table.masses, dtype=np.uint64)
        matrix = masses[np.arange(256)[:, None] ^ np.arange(256)]
        worst = (1, 1)
        for shift in range(1, 256):
            other = matrix[np.arange(256) ^ shift]
            pair = law.worst_pair(np.maximum(matrix, other)[0], np.minimum(matrix, other)[0])
            if pair[0] * worst[1] > worst[0] * pair[1]:
                worst = pair
        high, low = high * worst[0], low * worst[1]
    assert law.within((high, low), Fraction(eps))
    assert law.budget((high, low), steps=1) <= enumerated(Fraction(eps), channels)
    assert enumerated(Fraction(eps), channels) > 0.99 * float(eps)


def test_a_wrong_budget_coarse_tables_and_certain_bits_are_refuted() -> None:
    planes = plane_budgets(Fraction(20), 3)[0]
    assert flips_hold(flip_laws(Fraction(20), 3)[0].masses, planes)
    assert not flips_hold(flip_masses([plane * 2 for plane in planes]), planes)
    almost = [plane * Fraction(1_000_001, 1_000_000) for plane in planes]
    assert not flips_hold(flip_masses(almost), planes)
    coarse = [(mass >> 51) << 51 for mass in flip_masses(planes)]
    assert not flips_hold(coarse, planes)
    swapped = planes[::-1]  # the same total, spent on the wrong bits
    assert not flips_hold(flip_masses(swapped), planes)


@pytest.mark.parametrize("channels", [1, 3])
def test_budgets_follow_the_weights_and_add_up(channels: int) -> None:
    found = plane_budgets(Fraction(20), channels)
    weights = [[w * 2**b for b in range(8)] for w in (4, 1, 1)[:channels]]
    total = sum(math.sqrt(w) for row in weights for w in row)
    for row, expected in zip(found, weights, strict=True):
        for value, weight in zip(row, expected, strict=True):
            assert float(value) == pytest.approx(20 * math.sqrt(weight) / total, rel=1e-12)
    assert sum(value for row in found for value in row) == 20


def test_the_law_is_that_of_independent_flips() -> None:
    planes = plane_budgets(Fraction(20), 1)[0]
    keep = [1 / (1 + math.exp(-float(plane))) for plane in planes]
    masses = flip_laws(Fraction(20), 1)[0].masses
    for mask in range(256):
        ideal = math.prod(1 - k if mask >> b & 1 else k for b, k in enumerate(keep))
        assert masses[mask] / 2**63 == pytest.approx(ideal, rel=1e-6)


def test_a_million_draws_keep_each_planes_budget() -> None:
    eps = 12.0
    drawn = {}
    for value in (0, 255):
        _, labels, ids = some_images(100, seed=value)
        images = np.full((100, 100, 100, 1), value, np.uint8)
        drawn[value] = LdpSlicing(eps=eps).protect(images, labels, ids, KEY).images.ravel()
    shares = plane_budgets(Fraction(12), 1)[0]
    for bit, share in enumerate(shares):
        ones = {value: int((made >> bit & 1).sum()) for value, made in drawn.items()}
        low = bounds(ones[255], 1_000_000, 1e-5)
        high = bounds(ones[0], 1_000_000, 1e-5)
        claimed = float(share)
        assert math.log(low[0] / high[1]) <= claimed
        assert math.log(low[1] / high[0]) >= claimed
    pairs = [bounds(int((made == 255).sum()), 1_000_000, 1e-5) for made in drawn.values()]
    assert math.log(pairs[1][0] / pairs[0][1]) <= eps


def test_flips_of_planes_are_independent() -> None:
    _, labels, ids = some_images(100)
    made = LdpSlicing(eps=6.0).protect(np.zeros((100, 64, 64, 1), np.uint8), labels, ids, KEY)
    planes = (made.images.reshape(-1, 1) >> np.arange(8) & 1).astype(float)
    correlation = np.corrcoef(planes.T) - np.eye(8)
    assert np.abs(correlation).max() < 5 / math.sqrt(len(planes))


# ------------------------------------------------------------------------------ the colours


def test_colours_return_within_one_level() -> None:
    axis = np.array([*range(0, 256, 7), 255], dtype=np.uint8)
    colours = np.array(list(product(axis, repeat=3)), dtype=np.uint8)
    back = to_rgb(to_ycbcr(colours))
    assert np.abs(back.astype(int) - colours).max() <= 1


def test_colours_are_those_of_bt_601() -> None:
    images, _, _ = some_images(1, (40, 40, 3))
    matrix = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    ideal = images @ matrix.T + [0, 128, 128]
    assert np.abs(to_ycbcr(images) - ideal).max() < 0.51
    back = (to_ycbcr(images) - np.array([0, 128, 128])) @ np.linalg.inv(matrix).T
    assert np.abs(to_rgb(to_ycbcr(images)) - np.clip(back, 0, 255)).max() < 0.51
    ends = np.array([[0, 0, 0], [255, 255, 255], [0, 0, 255], [255, 0, 0]], dtype=np.uint8)
    assert to_ycbcr(ends)[:2].tolist() == [[0, 128, 128], [255, 128, 128]]
    assert to_ycbcr(ends)[2, 1] == to_ycbcr(ends)[3, 2] == 255


# ------------------------------------------------------------------------------ the scheme


@settings(deadline=None, max_examples=20)
@given(SHAPES, st.integers(2, 10), st.integers(0, 2**32))
def test_no_image_depends_on_its_batch(shape: tuple[int, int, int], count: int, seed: int) -> None:
    images, labels, ids = some_images(count, shape, seed)
    whole = LdpSlicing().protect(images, labels, ids, KEY).images
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, 3):
        got = LdpSlicing().protect(images[part], labels[part], ids[part], KEY).images
        assert (got == whole[part]).all()


@pytest.mark.parametrize("shape", [(8, 8, 1), (512, 512, 3), (300, 9, 3)])
def test_any_size_is_protected(shape: tuple[int, int, int]) -> None:
    images, labels, ids = some_images(2, shape)
    made = LdpSlicing().protect(images, labels, ids, KEY).images
    assert made.shape == images.shape
    assert (made != images).mean() > 0.5
    assert (made != LdpSlicing().protect(images, labels, ids, OTHER).images).any()


@pytest.mark.parametrize("value", [0, 255])
def test_no_budget_is_noise_and_much_is_nearly_the_image(value: int) -> None:
    _, labels, ids = some_images(50)
    images = np.full((50, 32, 32, 1), value, np.uint8)
    noise = LdpSlicing(eps=0.001).protect(images, labels, ids, KEY).images
    counts = np.bincount(noise.ravel(), minlength=256) - noise.size / 256
    assert (counts**2).sum() / (noise.size / 256) < 255 + 5 * math.sqrt(510)
    clear = LdpSlicing(eps=41.0).protect(images, labels, ids, KEY).images
    assert ((clear >> 7) == value >> 7).mean() > 0.999


def test_two_settings_share_no_flips() -> None:
    _, labels, ids = some_images(60)
    images = np.zeros((60, 32, 32, 1), np.uint8)
    one, two = (
        LdpSlicing(eps=eps).protect(images, labels, ids, KEY).images.ravel().astype(float)
        for eps in (6.0, 6.1)
    )
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(one.size)


def test_whoever_holds_the_key_flips_grey_images_back() -> None:
    images, labels, ids = some_images(4, (20, 30, 1))
    scheme = LdpSlicing()
    flips = scheme.protect(np.zeros_like(images), labels, ids, KEY).images
    assert (scheme.protect(images, labels, ids, KEY).images ^ flips == images).all()


def test_facts_state_the_budget_of_a_pixel() -> None:
    facts = LdpSlicing(eps=5.0).facts()
    assert facts["eps_total"] == 5
    assert 0 <= facts["slack"] < 1e-6
    assert "one pixel" in facts["neighbourhood"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps": 60}, r"here\.eps is 60.*at most 41 is allowed"),
        ({"eps": 0}, r"here\.eps is 0.*greater than or equal to 0\.001"),
        ({"eps": float("inf")}, r"here\.eps"),
        ({"planes": 4}, r"here\.planes is unknown"),
    ],
)
def test_wrong_settings_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_scheme("ldp_slicing", values, "here")
