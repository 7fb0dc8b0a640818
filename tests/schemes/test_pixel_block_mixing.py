"""Pixel block mixing: every block comes verbatim from a class mate or stays, whatever the batch."""

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.schemes.base import ArrayPool
from veilset.schemes.pixel_block_mixing import PixelBlockMixing, PixelBlockMixingParams, resolved
from veilset.schemes.registry import make_scheme

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))


def some_images(
    count: int, shape: tuple[int, int, int] = (32, 32, 3), classes: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    labels = np.arange(count) % classes
    ids = rng.integers(0, 256, (count, 16), dtype=np.uint8)
    return images, labels.astype(np.int64), ids


def mixing(**values: Any) -> PixelBlockMixing:
    return PixelBlockMixing(PixelBlockMixingParams(**values))


def boxes(shape: tuple[int, ...], height: int, width: int) -> Iterator[tuple[slice, slice]]:
    for y in range(0, shape[0], height):
        for x in range(0, shape[1], width):
            yield slice(y, y + height), slice(x, x + width)


SETTINGS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["simultaneous", "released"]),
        "block_height": st.integers(1, 20),
        "block_width": st.integers(1, 20),
        "p_replace": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        "n_donors": st.integers(1, 12),
        "exclude_self": st.booleans(),
    }
)
SHAPES = st.tuples(st.integers(8, 23), st.integers(8, 23), st.sampled_from([1, 3]))


@settings(deadline=None, max_examples=40)
@given(SETTINGS, SHAPES, st.integers(6, 25), st.integers(0, 2**32))
def test_each_block_is_copied_verbatim_from_the_named_donor_of_the_same_label(
    values: dict[str, Any], shape: tuple[int, int, int], count: int, seed: int
) -> None:
    images, labels, ids = some_images(count, shape, seed=seed)
    result = mixing(**values).protect(images, labels, ids, KEY)
    row_of = {row.tobytes(): i for i, row in enumerate(ids)}
    places = list(boxes(shape, values["block_height"], values["block_width"]))
    donors = result.private["donors"]
    assert donors.shape == (count, len(places), 16)
    for i in range(count):
        for b, (high, wide) in enumerate(places):
            donor = row_of[donors[i, b].tobytes()]
            assert labels[donor] == labels[i]
            assert (result.images[i, high, wide] == images[donor, high, wide]).all()


@settings(deadline=None, max_examples=20)
@given(SETTINGS, st.integers(6, 20), st.integers(0, 2**32))
def test_no_image_depends_on_its_batch(values: dict[str, Any], count: int, seed: int) -> None:
    images, labels, ids = some_images(count, (12, 10, 3), seed=seed)
    scheme, pool = mixing(**values), ArrayPool.from_arrays(images, labels, ids)
    whole = scheme.protect(images, labels, ids, KEY, pool)
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, 3):
        fresh = mixing(**values)  # remembers nothing
        got = fresh.protect(images[part], labels[part], ids[part], KEY, pool)
        assert (got.images == whole.images[part]).all()
        assert (got.private["donors"] == whole.private["donors"][part]).all()


def test_an_image_is_never_its_own_donor() -> None:
    images, labels, ids = some_images(60)
    result = mixing(p_replace=1.0).protect(images, labels, ids, KEY)
    assert not (result.private["donors"] == ids[:, None, :]).all(axis=2).any()


def test_an_image_may_be_its_own_donor_where_that_is_asked_for() -> None:
    images, labels, ids = some_images(60)
    result = mixing(p_replace=1.0, exclude_self=False).protect(images, labels, ids, KEY)
    own = (result.private["donors"] == ids[:, None, :]).all(axis=2).mean()
    assert 0.02 < own < 0.09  # 1 in 20


def test_donors_are_few_and_drawn_from_all_class_mates() -> None:
    images, labels, ids = some_images(90, (8, 64, 1))
    scheme = mixing(p_replace=1.0, n_donors=4, block_height=1, block_width=1)
    donors = scheme.protect(images, labels, ids, KEY).private["donors"]
    sets = [{d.tobytes() for d in row} for row in donors]
    assert all(len(found) == 4 for found in sets)  # 512 blocks draw each of four
    mates = {row.tobytes() for row in ids[labels == 0]}
    assert set().union(*(s for s, label in zip(sets, labels, strict=True) if label == 0)) == mates


@pytest.mark.parametrize(
    ("p_replace", "low", "high"), [(0.0, 0, 0), (0.5, 0.47, 0.53), (1.0, 1, 1)]
)
def test_blocks_are_replaced_with_their_probability(
    p_replace: float, low: float, high: float
) -> None:
    images, labels, ids = some_images(200)
    result = mixing(p_replace=p_replace).protect(images, labels, ids, KEY)
    replaced = (result.private["donors"] != ids[:, None, :]).any(axis=2).mean()
    assert low <= replaced <= high


def test_every_donor_and_block_is_equally_likely() -> None:
    images, labels, ids = some_images(3000, (8, 8, 1), classes=1)
    labels[:] = np.repeat(np.arange(300), 10)
    scheme = mixing(p_replace=1.0, n_donors=3, block_height=8, block_width=8)
    donors = scheme.protect(images, labels, ids, KEY).private["donors"][:, 0]
    row_of = {row.tobytes(): i for i, row in enumerate(ids)}
    order = np.lexsort(ids.T[::-1])
    place = np.empty(3000, dtype=int)
    for label in range(300):
        mine = order[labels[order] == label]
        place[mine] = np.arange(10)
    drawn = np.array([place[row_of[d.tobytes()]] for d in donors])
    table = np.zeros((10, 10))
    np.add.at(table, (place, drawn), 1)
    assert (np.diag(table) == 0).all()
    expected = 300 / 9
    off = table[~np.eye(10, dtype=bool)]
    assert ((off - expected) ** 2 / expected).sum() < 80 + 5 * np.sqrt(160)


def test_no_image_is_released_as_it_was() -> None:
    # A lone block is kept with probability 1/2: without the rule half of the images would pass.
    images, labels, ids = some_images(400, (8, 8, 1))
    one = mixing(block_height=8, block_width=8).protect(images, labels, ids, KEY)
    assert (one.images != images).any(axis=(1, 2, 3)).all()
    two = mixing(block_height=8, block_width=4).protect(images, labels, ids, KEY)
    replaced = (two.private["donors"] != ids[:, None, :]).any(axis=2)
    assert replaced.any(axis=1).all()
    # Which block is replaced then is drawn: 3/8 of the images keep the first, as many the second.
    assert (np.abs((~replaced).mean(axis=0) - 3 / 8) < 0.08).all()
    published = mixing(block_height=8, block_width=8, exclude_self=False)
    passed = (published.protect(images, labels, ids, KEY).images == images).all(axis=(1, 2, 3))
    assert 0.4 < passed.mean() < 0.65


# ------------------------------------------------------------------------------ released mode


def overwrite_in_order(
    images: np.ndarray, ids: np.ndarray, sources: np.ndarray, places: list
) -> np.ndarray:
    """Does what the published code does: images overwritten in place, one after another."""
    files = images.copy()
    for target in np.lexsort(ids.T[::-1]):
        before = files.copy()
        for b, (high, wide) in enumerate(places):
            files[target, high, wide] = before[sources[target, b], high, wide]
    return files


@settings(deadline=None, max_examples=15)
@given(st.integers(4, 30), st.booleans(), st.integers(0, 2**32))
def test_released_mode_equals_overwriting_files(count: int, own: bool, seed: int) -> None:
    images, labels, ids = some_images(count, (8, 9, 3), classes=2, seed=seed)
    values = {"block_height": 3, "block_width": 4, "exclude_self": own, "p_replace": 0.7}
    scheme = mixing(mode="released", **values)
    result = scheme.protect(images, labels, ids, KEY)
    # The direct sources, before overwriting is followed.
    pool = ArrayPool.from_arrays(images, labels, ids)
    classes = scheme._classes(pool)
    rows = classes.rows_of(ids, labels)
    places = list(boxes((8, 9), 3, 4))
    direct = scheme._draw(classes, rows, ids, scheme.stream(KEY), len(places))
    position = np.empty(count, dtype=int)
    position[rows] = np.arange(count)
    expected = overwrite_in_order(images, ids, position[direct], places)
    assert (result.images == expected).all()


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32))
def test_chains_are_followed_as_if_one_by_one(count: int, blocks: int, seed: int) -> None:
    sources = np.random.default_rng(seed).integers(0, count, (count, blocks))
    state = np.tile(np.arange(count)[:, None], (1, blocks))
    for row in range(count):
        state[row] = [state[sources[row, b], b] for b in range(blocks)]
    assert (resolved(sources) == state).all()


def test_the_longest_chain_is_followed() -> None:
    sources = np.maximum(np.arange(5000) - 1, 0)[:, None]
    assert (resolved(sources) == 0).all()


def test_released_mode_repeats_fewer_originals_than_simultaneous() -> None:
    # The published side effect: what was mixed is mixed again.
    images, labels, ids = some_images(300, (8, 8, 1), classes=1)
    kept = {}
    for mode in ("simultaneous", "released"):
        found = mixing(mode=mode, block_height=8, block_width=8).protect(images, labels, ids, KEY)
        kept[mode] = len({d.tobytes() for d in found.private["donors"][:, 0]})
    assert kept["released"] < kept["simultaneous"]


# ------------------------------------------------------------------------------ keys and settings


def test_another_key_or_setting_makes_other_choices() -> None:
    images, labels, ids = some_images(200)
    base = mixing().protect(images, labels, ids, KEY).private["donors"]
    again = mixing().protect(images, labels, ids, KEY).private["donors"]
    assert (base == again).all()
    replaced = (base != ids[:, None]).any(axis=2)
    for other in (
        mixing().protect(images, labels, ids, OTHER),
        # Settings that change nothing here but the keystream: a class has 66 images.
        mixing(n_donors=11).protect(images, labels, ids, KEY),
    ):
        now = (other.private["donors"] != ids[:, None]).any(axis=2)
        assert abs((now == replaced).mean() - 0.5) < 0.05


def test_the_order_of_the_input_does_not_matter_without_a_pool() -> None:
    images, labels, ids = some_images(40)
    order = np.random.default_rng(5).permutation(40)
    one = mixing().protect(images, labels, ids, KEY).images
    two = mixing().protect(images[order], labels[order], ids[order], KEY).images
    assert (two == one[order]).all()


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 31, 3), (33, 17, 1), (64, 48, 3), (512, 8, 3)])
def test_any_size_is_mixed(shape: tuple[int, int, int]) -> None:
    images, labels, ids = some_images(8, shape, classes=2)
    result = mixing(block_height=7, block_width=5).protect(images, labels, ids, KEY)
    assert result.images.shape == images.shape
    assert (result.images != images).any()


def test_a_block_larger_than_the_image_is_the_image() -> None:
    images, labels, ids = some_images(6, (8, 8, 1), classes=1)
    result = mixing(block_height=99, block_width=99, p_replace=1.0).protect(
        images, labels, ids, KEY
    )
    assert result.private["donors"].shape == (6, 1, 16)


# ------------------------------------------------------------------------------ refusals


def test_a_class_with_one_image_is_refused_before_and_during() -> None:
    images, labels, ids = some_images(7)
    labels[3] = 9
    scheme = mixing()
    assert scheme.refuse(labels) is not None
    assert "class 9" in str(scheme.refuse(labels))
    with pytest.raises(ProtectionError, match="class 9"):
        scheme.protect(images, labels, ids, KEY)
    assert scheme.refuse(np.delete(labels, 3)) is None


def test_an_image_outside_of_the_pool_is_refused() -> None:
    images, labels, ids = some_images(20)
    pool = ArrayPool.from_arrays(images[:12], labels[:12], ids[:12])
    with pytest.raises(ProtectionError, match=ids[12].tobytes().hex()):
        mixing().protect(images, labels, ids, KEY, pool)
    wrong = labels[:12].copy()
    wrong[0] = (wrong[0] + 1) % 3
    with pytest.raises(ProtectionError, match="with its label"):
        mixing().protect(images[:12], wrong, ids[:12], KEY, pool)


def test_doubled_ids_are_refused() -> None:
    images, labels, ids = some_images(12)
    ids[1] = ids[0]
    with pytest.raises(ProtectionError, match="all different"):
        mixing().protect(images, labels, ids, KEY)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("p_replace", 1.01), ("p_replace", -0.1), ("p_replace", float("nan")), ("n_donors", 0),
        ("block_height", 0), ("block_width", 0), ("mode", "both"), ("size", 3),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=key):
        make_scheme("pixel_block_mixing", {key: value}, "here")


def test_a_changed_pool_is_not_confused_with_the_one_before() -> None:
    images, labels, ids = some_images(24)
    scheme = mixing(mode="released")
    first = scheme.protect(images, labels, ids, KEY)
    half = scheme.protect(images[:12], labels[:12], ids[:12], KEY)
    assert (
        half.images
        == mixing(mode="released").protect(images[:12], labels[:12], ids[:12], KEY).images
    ).all()
    assert (scheme.protect(images, labels, ids, KEY).images == first.images).all()
    assert (scheme.protect(images, labels, ids, OTHER).images != first.images).any()


def test_a_used_scheme_reaches_worker_processes() -> None:
    images, labels, ids = some_images(24)
    scheme = mixing(mode="released")
    first = scheme.protect(images, labels, ids, KEY)
    copy = pickle.loads(pickle.dumps(scheme))  # noqa: S301
    assert (copy.protect(images, labels, ids, KEY).images == first.images).all()


def test_key_space_counts_the_ways_to_fill_the_blocks() -> None:
    assert mixing().key_space_bits((32, 32, 3)) == pytest.approx(16 * np.log2(11))
    assert mixing(p_replace=0.0).key_space_bits((32, 32, 3)) == 0
    assert mixing(p_replace=1.0, n_donors=1).key_space_bits((32, 32, 3)) == 0


def test_what_it_says_of_itself() -> None:
    said = PixelBlockMixing.declares
    assert said.uses_labels
    assert not said.protects_queries
    assert said.keyed
    assert not said.reversible
    with pytest.raises(ProtectionError, match="cannot be undone"):
        images, labels, ids = some_images(4)
        mixing().recover(images, labels, ids, KEY)
