"""Negative-positive pixels: values fold to what they were, colours stay at their pixel."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.errors import SettingsError
from veilset.keys import Key
from veilset.schemes.negative_positive import NegativePositive
from veilset.schemes.registry import make_scheme

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
SHAPES = st.tuples(st.integers(8, 64), st.integers(8, 64), st.sampled_from([1, 3]))
SETTINGS = st.fixed_dictionaries(
    {"keys": st.sampled_from(["fixed", "per_image"]), "shuffle_channels": st.booleans()}
)
ORDERS = [(0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 0, 1), (2, 1, 0)]


def some_images(
    count: int, shape: tuple[int, int, int] = (32, 32, 3), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.zeros(count, np.int64), rng.integers(0, 256, (count, 16), dtype=np.uint8)


def folded(images: np.ndarray) -> np.ndarray:
    return np.minimum(images, 255 - images)


@settings(deadline=None, max_examples=60)
@given(SETTINGS, SHAPES, st.integers(0, 5), st.integers(0, 2**32))
def test_folds_stay_at_their_pixel_and_the_key_undoes_it(
    values: dict[str, Any], shape: tuple[int, int, int], count: int, seed: int
) -> None:
    images, labels, ids = some_images(count, shape, seed)
    scheme = NegativePositive(**values)
    result = scheme.protect(images, labels, ids, KEY).images
    before, after = folded(images), folded(result)
    if values["shuffle_channels"]:
        before, after = np.sort(before, axis=3), np.sort(after, axis=3)
    assert (before == after).all()
    assert (scheme.recover(result, labels, ids, KEY) == images).all()
    if count:
        wrong = scheme.recover(result, labels, ids, OTHER)
        assert 0.2 < (wrong != images).mean() < 0.95


@settings(deadline=None, max_examples=15)
@given(SETTINGS, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])))
def test_bytes_are_those_of_plain_python(
    values: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    images, labels, ids = some_images(3, shape)
    scheme = NegativePositive(**values)
    result = scheme.protect(images, labels, ids, KEY).images
    stream, (height, width, channels) = scheme.stream(KEY), shape
    for image, own, shown in zip(images, ids, result, strict=True):
        at = np.zeros((1, 16), np.uint8) if values["keys"] == "fixed" else own[None]
        bits = stream.bits(at, "negate", -(-image.size // 8))[0].tolist()
        words = stream.bits(at, "colours", 4 * height * width)[0].tobytes()
        for y in range(height):
            for x in range(width):
                pixel = y * width + x
                order = ORDERS[int.from_bytes(words[4 * pixel : 4 * pixel + 4], "little") * 6 >> 32]
                for c in range(channels):
                    shuffled = channels == 3 and values["shuffle_channels"]
                    value = int(image[y, x, order[c] if shuffled else c])
                    place = pixel * channels + c
                    negated = bits[place // 8] >> place % 8 & 1
                    assert shown[y, x, c] == (255 - value if negated else value)


@settings(deadline=None, max_examples=10)
@given(SETTINGS, st.integers(100, 200), st.integers(0, 2**32))
def test_no_image_depends_on_its_batch(values: dict[str, Any], count: int, seed: int) -> None:
    images, labels, ids = some_images(count, (31, 32, 3), seed)
    whole = NegativePositive(**values).protect(images, labels, ids, KEY).images
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, 3):
        got = NegativePositive(**values).protect(images[part], labels[part], ids[part], KEY)
        assert (got.images == whole[part]).all()


@pytest.mark.parametrize("shuffle", [True, False])
def test_fixed_is_one_transform_and_per_image_is_many(shuffle: bool) -> None:
    images, labels, ids = some_images(20)
    images[:] = images[0]
    fixed = NegativePositive(keys="fixed", shuffle_channels=shuffle)
    each = NegativePositive(keys="per_image", shuffle_channels=shuffle)
    one = fixed.protect(images, labels, ids, KEY).images
    assert (one == one[0]).all()
    many = each.protect(images, labels, ids, KEY).images
    for other in many[1:]:
        assert (other != many[0]).mean() > 0.4


def test_one_chosen_image_gives_a_fixed_transform_away_as_the_risk_notes_say() -> None:
    images, labels, ids = some_images(6)
    scheme = NegativePositive(keys="fixed")
    helper = np.broadcast_to(np.array([1, 2, 3], np.uint8), images[:1].shape)
    seen = scheme.protect(helper, labels[:1], ids[:1], KEY).images
    secret = scheme.protect(images, labels, ids, KEY).images
    negated, source = seen > 127, folded(seen).astype(np.int64) - 1
    values = np.where(negated, 255 - secret, secret)
    found = np.zeros_like(images)
    np.put_along_axis(found, np.broadcast_to(source, images.shape), values, axis=3)
    assert (found == images).all()
    assert any("one chosen image gives" in note for note in NegativePositive.declares.risk_notes)


def test_half_of_all_values_are_negated_and_all_orders_are_as_likely() -> None:
    images, labels, ids = some_images(40)
    images[:] = [10, 20, 30]
    shown = NegativePositive().protect(images, labels, ids, KEY).images
    pixels = 40 * 32 * 32
    assert abs((shown > 127).mean() - 0.5) < 5 * 0.5 / math.sqrt(3 * pixels)
    codes = (folded(shown).astype(int) // 10 @ [100, 10, 1]).ravel()
    names, counts = np.unique(codes, return_counts=True)
    assert names.tolist() == [123, 132, 213, 231, 312, 321]
    assert ((counts - pixels / 6) ** 2 / (pixels / 6)).sum() < 30  # 5 degrees of freedom


def test_another_key_or_setting_gives_other_bytes() -> None:
    images, labels, ids = some_images(5)
    for keys in ("fixed", "per_image"):
        scheme = NegativePositive(keys=keys)
        base = scheme.protect(images, labels, ids, KEY).images
        assert (scheme.protect(images, labels, ids, OTHER).images != base).mean() > 0.4
        plain = NegativePositive(keys=keys, shuffle_channels=False)
        assert (plain.protect(images, labels, ids, KEY).images != base).mean() > 0.4


@pytest.mark.parametrize("shape", [(8, 8, 1), (13, 40, 3), (512, 8, 3), (100, 512, 1), (1, 1, 3)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    images, labels, ids = some_images(3, shape)
    for keys in ("fixed", "per_image"):
        scheme = NegativePositive(keys=keys)
        result = scheme.protect(images, labels, ids, KEY).images
        assert (result != images).any()
        assert (scheme.recover(result, labels, ids, KEY) == images).all()


def test_read_only_images_are_protected_and_recovered() -> None:
    images, labels, ids = some_images(3)
    images.flags.writeable = False
    scheme = NegativePositive()
    result = scheme.protect(images, labels, ids, KEY).images
    result.flags.writeable = False
    assert (scheme.recover(result, labels, ids, KEY) == images).all()


def test_key_space_counts_negations_and_orders() -> None:
    assert NegativePositive().key_space_bits((4, 5, 3)) == pytest.approx(20 * math.log2(8 * 6))
    assert NegativePositive().key_space_bits((4, 5, 1)) == 20
    assert NegativePositive(shuffle_channels=False).key_space_bits((4, 5, 3)) == 60


@pytest.mark.parametrize(
    ("key", "values"),
    [("keys", {"keys": "none"}), ("shuffle_channels", {"shuffle_channels": 3}),
     ("block_px", {"block_px": 4})],
)  # fmt: skip
def test_wrong_parameters_are_refused_by_name(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=rf"here\.{key}"):
        make_scheme("negative_positive", values, "here")
