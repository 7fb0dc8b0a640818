"""Learnable encryption: half-bytes stay in their block, half of them negated; the key undoes it."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.errors import SettingsError
from veilset.keys import Key
from veilset.schemes.learnable_encryption import LearnableEncryption
from veilset.schemes.registry import make_scheme

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
SHAPES = st.tuples(st.integers(8, 64), st.integers(8, 64), st.sampled_from([1, 3]))
SETTINGS = st.fixed_dictionaries(
    {
        "keys": st.sampled_from(["fixed", "per_image"]),
        "block_px": st.integers(2, 12),
        "extended": st.booleans(),
    }
)
BOTH = pytest.mark.parametrize("extended", [False, True])


def some_images(
    count: int, shape: tuple[int, int, int] = (32, 32, 3), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.zeros(count, np.int64), rng.integers(0, 256, (count, 16), dtype=np.uint8)


def boxes(shape: tuple[int, ...], block: int) -> Iterator[tuple[slice, slice]]:
    for y in range(0, shape[0], block):
        for x in range(0, shape[1], block):
            yield slice(y, min(y + block, shape[0])), slice(x, min(x + block, shape[1]))


def folds(block: np.ndarray) -> tuple[int, ...]:
    """How often each pair (h, 15 - h) of half-bytes occurs in a block."""
    halves = np.concatenate([block.ravel() & 15, block.ravel() >> 4])
    return tuple(np.bincount(np.minimum(halves, 15 - halves), minlength=8).tolist())


@settings(deadline=None, max_examples=50)
@given(SETTINGS, SHAPES, st.integers(1, 4), st.integers(0, 2**32))
def test_blocks_keep_their_folded_half_bytes_and_the_key_undoes_it(
    values: dict[str, Any], shape: tuple[int, int, int], count: int, seed: int
) -> None:
    images, labels, ids = some_images(count, shape, seed)
    scheme = LearnableEncryption(**values)
    result = scheme.protect(images, labels, ids, KEY).images
    for image, shown in zip(images, result, strict=True):
        cut = list(boxes(shape, values["block_px"]))
        before, after = ([folds(a[box]) for box in cut] for a in (image, shown))
        if values["extended"]:  # blocks change places with others of their size
            sizes = [image[box].shape for box in cut]
            assert Counter(zip(sizes, before, strict=True)) == Counter(
                zip(sizes, after, strict=True)
            )
        else:
            assert before == after
    assert (scheme.recover(result, labels, ids, KEY) == images).all()
    assert (scheme.recover(result, labels, ids, OTHER) != images).any()


@settings(deadline=None, max_examples=15)
@given(
    SETTINGS, st.tuples(st.integers(1, 14), st.integers(1, 14), st.sampled_from([1, 3])),
    st.integers(0, 2**32),
)  # fmt: skip
def test_bytes_are_those_of_plain_python(
    values: dict[str, Any], shape: tuple[int, int, int], seed: int
) -> None:
    images, labels, ids = some_images(2, shape, seed)
    scheme = LearnableEncryption(**values)
    result = scheme.protect(images, labels, ids, KEY).images
    stream, extended = scheme.stream(KEY), values["extended"]
    sizes: dict[tuple[int, ...], list[tuple[slice, slice]]] = {}
    whole = values["block_px"]
    for high, wide in boxes(shape, whole):
        # Kinds in the order whole, right edge, lower edge, corner.
        kind = (int(high.stop - high.start < whole), int(wide.stop - wide.start < whole))
        sizes.setdefault(kind, []).append((high, wide))
    for image, own, shown in zip(images, ids, result, strict=True):
        at = np.zeros((1, 16), np.uint8) if values["keys"] == "fixed" else own[None]
        for number, kind in enumerate(sorted(sizes)):
            cut = sizes[kind]
            halves = 2 * image[cut[0]].size
            tables = len(cut) if extended else 1
            order = stream.permutations(at, f"order/{number}", tables, halves)[0].tolist()
            negate = stream.permutations(at, f"negate/{number}", tables, halves)[0].tolist()
            source = list(range(len(cut)))
            if extended:
                source = stream.permutations(at, f"blocks/{number}", 1, len(cut))[0, 0].tolist()
            for place, box in enumerate(cut):
                table = place if extended else 0
                given_block = image[cut[source[place]]].ravel().tolist()
                pool = [v % 16 for v in given_block] + [v // 16 for v in given_block]
                moved = [
                    15 - pool[order[table][k]]
                    if negate[table][k] < halves // 2
                    else pool[order[table][k]]
                    for k in range(halves)
                ]
                n = halves // 2
                expected = [moved[k] + 16 * moved[n + k] for k in range(n)]
                assert shown[box].ravel().tolist() == expected


@settings(deadline=None, max_examples=10)
@given(SETTINGS, st.integers(90, 150), st.integers(0, 2**32))
def test_no_image_depends_on_its_batch(values: dict[str, Any], count: int, seed: int) -> None:
    images, labels, ids = some_images(count, (32, 31, 3), seed)
    whole = LearnableEncryption(**values).protect(images, labels, ids, KEY).images
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, 3):
        got = LearnableEncryption(**values).protect(images[part], labels[part], ids[part], KEY)
        assert (got.images == whole[part]).all()


@BOTH
def test_fixed_is_one_transform_and_per_image_is_many(extended: bool) -> None:
    images, labels, ids = some_images(20)
    images[:] = images[0]
    fixed = LearnableEncryption(keys="fixed", extended=extended)
    each = LearnableEncryption(keys="per_image", extended=extended)
    one = fixed.protect(images, labels, ids, KEY).images
    assert (one == one[0]).all()
    for other in each.protect(images, labels, ids, KEY).images[1:]:
        assert (other != one[0]).mean() > 0.9


def test_equal_blocks_stay_equal_unless_extended() -> None:
    images, labels, ids = some_images(2, (4, 4, 3))
    images = np.tile(images, (1, 8, 8, 1))
    plain = LearnableEncryption().protect(images, labels, ids, KEY).images
    assert (plain == np.tile(plain[:, :4, :4], (1, 8, 8, 1))).all()
    own = LearnableEncryption(extended=True).protect(images, labels, ids, KEY).images
    cut = own.reshape(2, 8, 4, 8, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(128, -1)
    assert len(set(map(bytes, cut))) == 128


@settings(deadline=None, max_examples=40)
@given(SETTINGS, st.tuples(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3])))
def test_half_of_the_half_bytes_are_negated_in_every_block(
    values: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    images, labels, ids = some_images(2, shape)
    images[:] = 0
    shown = LearnableEncryption(**values).protect(images, labels, ids, KEY).images
    for image in shown:
        for box in boxes(shape, values["block_px"]):
            block = image[box]
            assert set(np.unique(block & 15)) | set(np.unique(block >> 4)) <= {0, 15}
            assert ((block & 15 == 15).sum() + (block >> 4 == 15).sum()) == block.size


def test_not_even_a_single_value_can_stay_as_it_was() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    _, labels, ids = some_images(256)
    for key in (KEY, OTHER):
        for keys in ("fixed", "per_image"):
            scheme = LearnableEncryption(keys=keys, block_px=2)
            assert (scheme.protect(images, labels, ids, key).images != images).all()


def test_one_known_pair_gives_a_fixed_transform_away_as_the_risk_notes_say() -> None:
    images, labels, ids = some_images(6)
    scheme = LearnableEncryption()
    secret = scheme.protect(images, labels, ids, KEY).images

    def halves(image: np.ndarray) -> np.ndarray:
        cut = image.reshape(8, 4, 8, 4, 3).transpose(0, 2, 1, 3, 4).reshape(64, 48)
        return np.concatenate([cut & 15, cut >> 4], axis=1)

    before, after = halves(images[0]), halves(secret[0])
    kept = (after[:, :, None] == before[:, None, :]).all(axis=0)
    negated = (after[:, :, None] == 15 - before[:, None, :]).all(axis=0)
    source = (kept | negated).argmax(axis=1)
    assert ((kept | negated).sum(axis=1) == 1).all()
    for image, shown in zip(images[1:], secret[1:], strict=True):
        found = np.empty((64, 96), np.uint8)
        found[:, source] = np.where(negated.any(axis=1), 15 - halves(shown), halves(shown))
        assert (found == halves(image)).all()
    assert any("known pairs" in note for note in scheme.declares.risk_notes)


def test_another_key_or_setting_gives_other_bytes() -> None:
    images, labels, ids = some_images(5)
    for keys in ("fixed", "per_image"):
        scheme = LearnableEncryption(keys=keys)
        base = scheme.protect(images, labels, ids, KEY).images
        assert (scheme.protect(images, labels, ids, OTHER).images != base).mean() > 0.9
        other = LearnableEncryption(keys=keys, extended=True)
        assert (other.protect(images, labels, ids, KEY).images != base).mean() > 0.9


@BOTH
@pytest.mark.parametrize("shape", [(8, 8, 1), (13, 40, 3), (512, 8, 3), (100, 510, 1)])
def test_any_size(shape: tuple[int, int, int], extended: bool) -> None:
    images, labels, ids = some_images(2, shape)
    for keys in ("fixed", "per_image"):
        scheme = LearnableEncryption(keys=keys, extended=extended)
        result = scheme.protect(images, labels, ids, KEY).images
        assert (result != images).mean() > 0.9
        assert (scheme.recover(result, labels, ids, KEY) == images).all()
        empty = scheme.protect(images[:0], labels[:0], ids[:0], KEY).images
        assert empty.shape == (0, *shape)


def test_key_space_counts_permutations_and_halves() -> None:
    table = math.log2(math.factorial(96) * math.comb(96, 48))
    assert LearnableEncryption().key_space_bits((32, 32, 3)) == pytest.approx(table)
    blocks = math.log2(math.factorial(64))
    extended = LearnableEncryption(extended=True)
    assert extended.key_space_bits((32, 32, 3)) == pytest.approx(64 * table + blocks)
    edge = math.log2(math.factorial(32) * math.comb(32, 16) * math.factorial(8) * math.comb(8, 4))
    assert LearnableEncryption().key_space_bits((9, 8, 1)) == pytest.approx(edge)


@pytest.mark.parametrize(
    ("key", "values"),
    [("keys", {"keys": "none"}), ("block_px", {"block_px": 0}), ("block_px", {"block_px": 33}),
     ("extended", {"extended": "very"}), ("seed", {"seed": 1})],
)  # fmt: skip
def test_wrong_parameters_are_refused_by_name(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=rf"here\.{key}"):
        make_scheme("learnable_encryption", values, "here")
