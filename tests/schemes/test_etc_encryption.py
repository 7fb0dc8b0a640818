"""EtC encryption: whole blocks move, each turned, negated and recoloured; the key undoes it."""

import math
from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.schemes.etc_encryption import EtcEncryption
from veilset.schemes.registry import make_scheme

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
SHAPES = st.tuples(st.integers(8, 64), st.integers(8, 64), st.sampled_from([1, 3]))
SETTINGS = st.fixed_dictionaries(
    {"keys": st.sampled_from(["fixed", "per_image"]), "block_px": st.integers(2, 12)}
)
ORDERS = [(0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 0, 1), (2, 1, 0)]


def some_images(
    count: int, shape: tuple[int, int, int] = (32, 32, 3), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.zeros(count, np.int64), rng.integers(0, 256, (count, 16), dtype=np.uint8)


def enough(shape: tuple[int, ...], block: int) -> bool:
    return (shape[0] // block) * (shape[1] // block) >= 4


def split(image: np.ndarray, block: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The whole blocks, and the left-over pixels in row-major order, (pixels, C)."""
    low, right = (side - side % block for side in image.shape[:2])
    cut = [
        image[y : y + block, x : x + block]
        for y in range(0, low, block)
        for x in range(0, right, block)
    ]
    outside = np.ones(image.shape[:2], dtype=bool)
    outside[:low, :right] = False
    return cut, image[outside]


def changed(block: np.ndarray, turn: int, negate: int, order: tuple[int, ...]) -> np.ndarray:
    """A block in one of its ways: axes swapped, then mirrored, negated, recoloured."""
    out = block.swapaxes(0, 1) if turn & 4 else block
    out = out[::-1] if turn & 1 else out
    out = out[:, ::-1] if turn & 2 else out
    out = 255 - out if negate else out
    return out[..., list(order)] if block.shape[-1] == 3 else out


def canonical(block: np.ndarray) -> bytes:
    """The same for all ways of a block, and of no other."""
    orders = list(permutations(range(block.shape[-1])))
    return min(
        np.ascontiguousarray(changed(block, turn, negate, order)).tobytes()
        for turn in range(8)
        for negate in range(2)
        for order in orders
    )


@settings(deadline=None, max_examples=25)
@given(SETTINGS, SHAPES, st.integers(0, 2**32))
def test_blocks_stay_whole_up_to_their_ways_and_the_key_undoes_it(
    values: dict[str, Any], shape: tuple[int, int, int], seed: int
) -> None:
    assume(enough(shape, values["block_px"]))
    images, labels, ids = some_images(2, shape, seed)
    scheme = EtcEncryption(**values)
    result = scheme.protect(images, labels, ids, KEY).images
    (before, left), (after, moved) = (split(a[0], values["block_px"]) for a in (images, result))
    assert Counter(map(canonical, before)) == Counter(map(canonical, after))
    for pixels in (left, moved):
        pixels.sort(axis=1)
    assert Counter(canonical(p[None, None]) for p in left) == Counter(
        canonical(p[None, None]) for p in moved
    )
    assert (scheme.recover(result, labels, ids, KEY) == images).all()
    assert (scheme.recover(result, labels, ids, OTHER) != images).any()


@settings(deadline=None, max_examples=15)
@given(
    SETTINGS, st.tuples(st.integers(4, 19), st.integers(4, 19), st.sampled_from([1, 3])),
    st.integers(0, 2**32),
)  # fmt: skip
def test_bytes_are_those_of_plain_slices(
    values: dict[str, Any], shape: tuple[int, int, int], seed: int
) -> None:
    assume(enough(shape, values["block_px"]))
    images, labels, ids = some_images(2, shape, seed)
    scheme = EtcEncryption(**values)
    result = scheme.protect(images, labels, ids, KEY).images
    stream = scheme.stream(KEY)
    for image, own, shown in zip(images, ids, result, strict=True):
        at = np.zeros((1, 16), np.uint8) if values["keys"] == "fixed" else own[None]
        plain, protected = (split(a, values["block_px"]) for a in (image, shown))
        for part, before, after in zip(("blocks", "edge"), plain, protected, strict=True):
            if len(before) == 0:
                continue
            count = len(before)
            source = stream.permutations(at, f"{part}/order", 1, count)[0, 0]
            turn, negate, colours = (
                stream.integers(at, f"{part}/{what}", count, high)[0]
                for what, high in (("turn", 8), ("negate", 2), ("colours", 6))
            )
            for place in range(count):
                block = before[source[place]].reshape(*after[place].shape[:-1], shape[2])
                block = block if part == "blocks" else block[None, None]
                order = ORDERS[colours[place]]
                expected = changed(block, int(turn[place]), int(negate[place]), order)
                assert (after[place].reshape(expected.shape) == expected).all()


@settings(deadline=None, max_examples=10)
@given(SETTINGS, st.integers(90, 150), st.integers(0, 2**32))
def test_no_image_depends_on_its_batch(values: dict[str, Any], count: int, seed: int) -> None:
    images, labels, ids = some_images(count, (32, 31, 3), seed)
    whole = EtcEncryption(**values).protect(images, labels, ids, KEY).images
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, 3):
        got = EtcEncryption(**values).protect(images[part], labels[part], ids[part], KEY)
        assert (got.images == whole[part]).all()


def test_the_eight_orientations_are_all_different() -> None:
    block = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    assert len({changed(block, turn, 0, (0,)).tobytes() for turn in range(8)}) == 8


def test_every_way_is_as_likely_and_every_block_comes_everywhere() -> None:
    # Four blocks of 2 x 2 pixels whose values tell block, pixel and colour.
    image = np.zeros((4, 4, 3), np.uint8)
    for y, x, c in np.ndindex(4, 4, 3):
        image[y, x, c] = (2 * (y // 2) + x // 2) * 12 + (2 * (y % 2) + x % 2) * 3 + c
    count = 9600
    _, labels, ids = some_images(count)
    images = np.broadcast_to(image, (count, 4, 4, 3))
    scheme = EtcEncryption(keys="per_image", block_px=2)
    corner = scheme.protect(images, labels, ids, KEY).images[:, :2, :2]
    folded = np.minimum(corner, 255 - corner)
    source, counts = np.unique(folded[:, 0, 0, 0] // 12, return_counts=True)
    assert source.tolist() == [0, 1, 2, 3]
    assert ((counts - count / 4) ** 2 / (count / 4)).sum() < 25  # 3 degrees of freedom
    own = np.where(corner > 127, 255 - folded % 12, folded % 12).reshape(count, -1)
    ways = Counter(map(bytes, own))
    assert len(ways) == 96
    expected = count / 96
    assert sum((n - expected) ** 2 / expected for n in ways.values()) < 95 + 5 * math.sqrt(190)


def test_fixed_is_one_transform_and_per_image_is_many() -> None:
    images, labels, ids = some_images(20)
    images[:] = images[0]
    one = EtcEncryption(keys="fixed").protect(images, labels, ids, KEY).images
    assert (one == one[0]).all()
    for other in EtcEncryption(keys="per_image").protect(images, labels, ids, KEY).images[1:]:
        assert (other != one[0]).mean() > 0.9


def test_one_known_pair_gives_a_fixed_transform_away_as_the_risk_notes_say() -> None:
    images, labels, ids = some_images(4)
    scheme = EtcEncryption()
    secret = scheme.protect(images, labels, ids, KEY).images
    before, after = (split(a[0], 4)[0] for a in (images, secret))
    known = {
        changed(block, turn, negate, order).tobytes(): (place, turn, negate, order)
        for place, block in enumerate(before)
        for turn in range(8)
        for negate in range(2)
        for order in ORDERS
    }
    ways = [known[block.tobytes()] for block in after]
    for image, shown in zip(images[1:], secret[1:], strict=True):
        plain = split(image, 4)[0]
        for block, (place, turn, negate, order) in zip(split(shown, 4)[0], ways, strict=True):
            assert (block == changed(plain[place], turn, negate, order)).all()
    assert any("known pairs" in note for note in scheme.declares.risk_notes)


def test_the_folded_histogram_survives_as_the_risk_notes_say() -> None:
    images, labels, ids = some_images(3, (29, 34, 3))
    shown = EtcEncryption().protect(images, labels, ids, KEY).images
    for image, protected in zip(images, shown, strict=True):
        one, two = (np.bincount(np.minimum(a, 255 - a).ravel()) for a in (image, protected))
        assert one.tolist() == two.tolist()
    assert any("histogram" in note for note in EtcEncryption.declares.risk_notes)


def test_another_key_or_setting_gives_other_bytes() -> None:
    images, labels, ids = some_images(5)
    for keys in ("fixed", "per_image"):
        scheme = EtcEncryption(keys=keys)
        base = scheme.protect(images, labels, ids, KEY).images
        assert (scheme.protect(images, labels, ids, OTHER).images != base).mean() > 0.9
        other = EtcEncryption(keys=keys, block_px=8)
        assert (other.protect(images, labels, ids, KEY).images != base).mean() > 0.9


@pytest.mark.parametrize(
    "shape", [(8, 8, 1), (9, 9, 3), (13, 40, 3), (512, 8, 3), (100, 510, 1), (11, 8, 1)]
)
def test_any_size(shape: tuple[int, int, int]) -> None:
    images, labels, ids = some_images(2, shape)
    for keys in ("fixed", "per_image"):
        scheme = EtcEncryption(keys=keys)
        result = scheme.protect(images, labels, ids, KEY).images
        assert (result != images).mean() > 0.7
        assert (scheme.recover(result, labels, ids, KEY) == images).all()
        empty = scheme.protect(images[:0], labels[:0], ids[:0], KEY).images
        assert empty.shape == (0, *shape)


def test_left_over_pixels_move_among_themselves() -> None:
    images, labels, ids = some_images(50, (17, 17, 1))
    images[:] = (np.arange(289) % 120).reshape(17, 17, 1)  # folds to itself
    shown = EtcEncryption(keys="per_image", block_px=8).protect(images, labels, ids, KEY).images
    corner = np.minimum(shown, 255 - shown)[:, 16, 16, 0]
    assert len(np.unique(corner)) > 15
    assert set(corner.tolist()) <= set(split(images[0], 8)[1].ravel().tolist())


@pytest.mark.parametrize(
    ("shape", "block", "allowed"), [((8, 8, 3), 8, 4), ((31, 20, 1), 16, 10), ((24, 8, 3), 8, 4)]
)
def test_too_few_blocks_are_refused_and_the_allowed_size_works(
    shape: tuple[int, int, int], block: int, allowed: int
) -> None:
    images, labels, ids = some_images(2, shape)
    message = rf"{shape[0]} x {shape[1]} pixels.*block_px to {allowed} or less"
    with pytest.raises(ProtectionError, match=message):
        EtcEncryption(block_px=block).protect(images, labels, ids, KEY)
    with pytest.raises(ProtectionError, match="fewer than 4 blocks"):
        EtcEncryption(block_px=block).recover(images, labels, ids, KEY)
    EtcEncryption(block_px=allowed).protect(images, labels, ids, KEY)


def test_key_space_counts_orders_and_ways() -> None:
    expected = math.log2(math.factorial(64)) + 64 * math.log2(96)
    assert EtcEncryption().key_space_bits((32, 32, 3)) == pytest.approx(expected)
    grey = math.log2(math.factorial(4) * 16**4 * math.factorial(17) * 2**17)
    assert EtcEncryption().key_space_bits((9, 9, 1)) == pytest.approx(grey)


@pytest.mark.parametrize(
    ("key", "values"),
    [("keys", {"keys": "none"}), ("block_px", {"block_px": 1}), ("block_px", {"block_px": 129}),
     ("seed", {"seed": 1})],
)  # fmt: skip
def test_wrong_parameters_are_refused_by_name(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=rf"here\.{key}"):
        make_scheme("etc_encryption", values, "here")
