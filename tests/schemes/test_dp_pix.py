"""DP-Pix: block means with noise whose finite channel keeps the budget between neighbours."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_checks import bounds

from veilset.errors import SettingsError
from veilset.keys import Key
from veilset.schemes import _discrete_laplace as law
from veilset.schemes.dp_pix import DpPix, _noise, block_sums
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


def worst_of_channel(noise: law.WideNoise) -> Fraction:
    """The greatest ratio of two neighbouring sums over all outputs of clip(sum + Z, 0, bound).

    By brute force over the whole matrix: outputs inside have the mass of one noise, the two ends
    all that is left.
    """
    reach = range(-noise.bound, noise.bound + 1)
    mass = {z: noise.mass(z) for z in reach}
    top = sum((mass[z] for z in range(noise.bound)), Fraction(0))
    positive = mass[0] / law_of_digits(noise, 0)
    worst = Fraction(1)
    # P(Z >= k) and P(Z <= -k), from the exact probability of each sign.
    upper, lower = [positive], [1 - positive + mass[0]]
    for k in range(noise.bound):
        upper.append(upper[-1] - mass[k])
        lower.append(lower[-1] - mass[-k])
    assert upper[noise.bound] == positive - top
    pairs = [(upper[k], upper[k + 1]) for k in range(noise.bound)]
    pairs += [(lower[k], lower[k + 1]) for k in range(noise.bound)]
    pairs += [(mass[z], mass[z + 1]) for z in range(-noise.bound, noise.bound)]
    for a, b in pairs:
        worst = max(worst, a / b, b / a)
    return worst


def law_of_digits(noise: law.WideNoise, size: int) -> Fraction:
    """The probability of a size, whichever the sign, from the thresholds of its digits."""
    total = Fraction(1)
    for k, limits in enumerate(noise.thresholds[1:]):
        edges = (0, *limits, 1 << noise.bits)
        value = (size >> (8 * k)) & 255
        total *= Fraction(edges[value + 1] - edges[value], 1 << noise.bits)
    return total


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("values", [{"eps": 2.0}, {"eps": 0.25, "m": 2}, {"eps": 9.0}])
def test_the_whole_channel_of_a_block_keeps_the_budget(
    channels: int, values: dict[str, Any]
) -> None:
    scheme = DpPix(block_px=1, **values)
    noise = _noise(scheme.params, channels)
    step = Fraction(str(values["eps"])) / (255 * values.get("m", 1) * channels)
    worst = worst_of_channel(noise)
    assert law.within((worst.numerator, worst.denominator), step)
    narrower = step * Fraction(999_999, 1_000_000)
    assert not law.within((worst.numerator, worst.denominator), narrower)


def test_noise_for_half_the_change_is_refuted() -> None:
    noise = law.wide_noise(Fraction(255), 255)
    worst = worst_of_channel(noise)
    assert not law.within((worst.numerator, worst.denominator), Fraction(1, 2 * 255))


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**32))
def test_m_pixels_move_the_sums_by_no_more_than_the_noise_covers(
    shape: tuple[int, int, int], block: int, m: int, seed: int
) -> None:
    images, _, _ = some_images(1, shape, seed)
    other = images.copy()
    rng = np.random.default_rng(seed)
    for _ in range(m):
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        other[0, y, x] = np.where(other[0, y, x] < 128, 255, 0)
    change = np.abs(block_sums(images, block) - block_sums(other, block)).sum()
    noise = _noise(DpPix(block_px=block, m=m, eps=1.0).params, shape[2])
    assert change <= 255 * m * shape[2]
    assert noise is law.wide_noise(Fraction(255 * m * shape[2]), 255 * block * block)


def test_a_million_draws_do_not_exceed_the_budget_and_show_the_scale() -> None:
    # A single black pixel against a white one: neighbours for m = 1, at the full distance.
    eps, drawn = 2.0, {}
    for value in (0, 255):
        _, labels, ids = some_images(100, seed=value)
        images = np.full((100, 100, 100, 1), value, np.uint8)
        scheme = DpPix(block_px=1, eps=eps)
        drawn[value] = scheme.protect(images, labels, ids, KEY).images.ravel()
    worst = -math.inf
    for cut in range(0, 255, 5):
        low = bounds(int((drawn[0] <= cut).sum()), 1_000_000, 1e-5)[0]
        high = bounds(int((drawn[255] <= cut).sum()), 1_000_000, 1e-5)[1]
        assert low / high <= math.exp(eps)
        worst = max(worst, low / high)
    assert worst > 0.95 * math.exp(eps)


# ------------------------------------------------------------------------------ the scheme


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.integers(1, 9), st.integers(0, 2**32))
def test_it_is_pixelation_with_noise_on_each_sum(
    shape: tuple[int, int, int], block: int, seed: int
) -> None:
    images, labels, ids = some_images(2, shape, seed)
    scheme = DpPix(block_px=block, eps=1.0)
    made = scheme.protect(images, labels, ids, KEY).images
    rows, columns = -(-shape[0] // block), -(-shape[1] // block)
    noise = _noise(scheme.params, shape[2])
    drawn = noise.draw(scheme.stream(KEY), ids, "blocks", rows * columns * shape[2])
    for n in range(2):
        for y, x, c in np.ndindex(rows, columns, shape[2]):
            part = np.s_[y * block : (y + 1) * block, x * block : (x + 1) * block, c]
            area = images[n][part].size
            total = int(images[n][part].sum()) + int(drawn[n, (y * columns + x) * shape[2] + c])
            mean = math.floor(Fraction(min(max(total, 0), 255 * area), area) + Fraction(1, 2))
            assert (made[n][part] == mean).all()


def test_much_budget_is_plain_pixelation() -> None:
    images, labels, ids = some_images(3)
    made = DpPix(block_px=2, eps=255.0).protect(images, labels, ids, KEY).images.astype(int)
    means = images.reshape(3, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    assert np.abs(made[:, ::2, ::2] - means).mean() < 2


@settings(deadline=None, max_examples=20)
@given(SHAPES, st.integers(2, 10), st.integers(0, 2**32))
def test_no_image_depends_on_its_batch(shape: tuple[int, int, int], count: int, seed: int) -> None:
    images, labels, ids = some_images(count, shape, seed)
    whole = DpPix().protect(images, labels, ids, KEY).images
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, 3):
        got = DpPix().protect(images[part], labels[part], ids[part], KEY).images
        assert (got == whole[part]).all()


@pytest.mark.parametrize("shape", [(8, 8, 1), (512, 512, 3), (300, 9, 3)])
def test_any_size_is_protected(shape: tuple[int, int, int]) -> None:
    images, labels, ids = some_images(2, shape)
    made = DpPix().protect(images, labels, ids, KEY).images
    assert made.shape == shape_of(images)
    assert (made != DpPix().protect(images, labels, ids, OTHER).images).any()


def shape_of(images: np.ndarray) -> tuple[int, ...]:
    return images.shape


def test_two_settings_share_no_noise() -> None:
    _, labels, ids = some_images(80)
    images = np.full((80, 64, 64, 3), 128, np.uint8)
    one, two = (
        DpPix(eps=eps).protect(images, labels, ids, KEY).images[:, ::4, ::4].ravel().astype(float)
        for eps in (20.0, 20.5)
    )
    assert one.std() > 1
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(one.size)


def test_whoever_holds_the_key_gets_the_plain_pixelated_image() -> None:
    images, labels, ids = some_images(3)
    scheme = DpPix(block_px=4, eps=20.0)
    made = scheme.protect(images, labels, ids, KEY).images[:, ::4, ::4].astype(int)
    drawn = _noise(scheme.params, 3).draw(scheme.stream(KEY), ids, "blocks", 192)
    open_ = (made > 0) & (made < 255)
    plain = block_sums(images, 4) / 16
    assert np.abs(made - drawn.reshape(made.shape) / 16 - plain)[open_].max() <= 0.5


def test_facts_state_the_budget_and_its_neighbourhood() -> None:
    facts = DpPix(eps=0.5, m=16).facts()
    assert facts["eps_total"] == 0.5
    assert "16 pixels" in facts["neighbourhood"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_px": 65}, r"here\.block_px is 65.*less than or equal to 64"),
        ({"block_px": 0}, r"here\.block_px is 0"),
        ({"eps": 0}, r"here\.eps is 0.*greater than or equal to 0\.001"),
        ({"m": 0}, r"here\.m is 0"),
        ({"block_px": 64, "eps": 10}, r"eps 10 is too large for block_px 64.*at most 0\.6"),
        ({"epsilon": 1}, r"here\.epsilon is unknown"),
    ],
)
def test_wrong_settings_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_scheme("dp_pix", values, "here")


def test_the_largest_allowed_budget_is_allowed() -> None:
    with pytest.raises(SettingsError) as refused:
        DpPix(block_px=48, eps=200.0)
    most = float(str(refused.value).split("at most ")[1].split(" ")[0])
    assert DpPix(block_px=48, eps=most).facts()["eps_total"] == most
