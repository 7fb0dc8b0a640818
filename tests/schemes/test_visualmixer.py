"""VisualMixer: regions keep their values, permutations are keyed, and the key undoes them."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.metrics.vfe import vfe_released
from veilset.schemes._regions import Grid, block_side, sides
from veilset.schemes.registry import make_scheme
from veilset.schemes.visualmixer import VisualMixer, VisualMixerParams

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))


def some_images(
    count: int, shape: tuple[int, int, int] = (32, 32, 3), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.zeros(count, np.int64), rng.integers(0, 256, (count, 16), dtype=np.uint8)


def mixer(**values: Any) -> VisualMixer:
    return VisualMixer(VisualMixerParams(**values))


def counted(count: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images whose every pixel tells its own place (as far as 256 values do)."""
    _, labels, ids = some_images(count, shape)
    image = (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)
    return np.stack([image] * count), labels, ids


def spans(length: int, region: int) -> list[slice]:
    ends = np.cumsum(sides(length, region)).tolist()
    return [slice(low, high) for low, high in zip([0, *ends], ends, strict=False)]


SHAPES = st.tuples(st.integers(8, 61), st.integers(8, 61), st.sampled_from([1, 3]))
SETTINGS = st.integers(2, 40).flatmap(
    lambda r: st.fixed_dictionaries(
        {"region_px": st.just(r), "n": st.one_of(st.just("auto"), st.integers(2, r))}
    )
)


@settings(deadline=None, max_examples=60)
@given(SETTINGS, SHAPES, st.integers(1, 5), st.integers(0, 2**32))
def test_each_region_keeps_its_values_in_each_channel_and_the_key_undoes_it(
    values: dict[str, Any], shape: tuple[int, int, int], count: int, seed: int
) -> None:
    images, labels, ids = some_images(count, shape, seed)
    images[0] //= 64  # a darker, smoother one, with another row of the table
    scheme = mixer(**values)
    result = scheme.protect(images, labels, ids, KEY)
    for high in spans(shape[0], values["region_px"]):
        for wide in spans(shape[1], values["region_px"]):
            before, after = (
                np.sort(a[:, high, wide].reshape(count, -1, shape[2]), axis=1)
                for a in (images, result.images)
            )
            assert (before == after).all()
    back = scheme.recover(result.images, labels, ids, KEY, result.private)
    assert (back == images).all()


@settings(deadline=None, max_examples=25)
@given(SETTINGS, st.integers(3, 20), st.integers(0, 2**32))
def test_no_image_depends_on_its_batch(values: dict[str, Any], count: int, seed: int) -> None:
    images, labels, ids = some_images(count, (19, 24, 3), seed)
    images[::3] //= 50
    whole = mixer(**values).protect(images, labels, ids, KEY)
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, 3):
        got = mixer(**values).protect(images[part], labels[part], ids[part], KEY)
        assert (got.images == whole.images[part]).all()
        for name, rows in got.private.items():
            assert (rows == whole.private[name][part]).all()


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 512), st.integers(2, 300))
def test_regions_cover_a_side_and_none_is_narrow(length: int, region: int) -> None:
    found = sides(length, region)
    assert sum(found) == length
    assert set(found[:-1]) <= {region}
    assert len(found) == 1 or 2 * found[-1] >= region
    assert 2 * found[-1] < 3 * region or length < region


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 700), st.integers(2, 512), st.data())
def test_sub_blocks_are_equal_fine_enough_and_at_least_two(
    side: int, region: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(2, region))
    block = block_side(side, region // n)
    assert side % block == 0
    assert block <= max(1, region // n)
    assert side == 1 or side // block >= 2


@pytest.mark.parametrize(
    ("size", "region", "n"), [((8, 8), 16, 8), ((512, 8), 16, 8), ((17, 23), 16, 2), ((8, 1), 2, 2)]
)
def test_every_region_can_move(size: tuple[int, int], region: int, n: int) -> None:
    assert all(tile.blocks >= 2 for tile in Grid.of(size, region).tiles(region // n))
    images, labels, ids = counted(40, (*size, 3))
    moved = mixer(region_px=region, n=n).protect(images, labels, ids, KEY).images != images
    for high in spans(size[0], region):
        for wide in spans(size[1], region):
            assert moved[:, high, wide].any()


def test_only_a_single_pixel_stays() -> None:
    images, labels, ids = some_images(3, (1, 1, 3))
    assert (mixer().protect(images, labels, ids, KEY).images == images).all()


@pytest.mark.parametrize("n", [2, 4, 8])
def test_whole_sub_blocks_move_and_stay_whole(n: int) -> None:
    images, labels, ids = some_images(4)
    result = mixer(n=n).protect(images, labels, ids, KEY).images
    side = 16 // n
    for image, mixed in zip(images, result, strict=True):
        for y, x, c in np.ndindex(2, 2, 3):
            region = (slice(16 * y, 16 * y + 16), slice(16 * x, 16 * x + 16), c)
            assert blocks(image[region], side) == blocks(mixed[region], side)


def blocks(region: np.ndarray, side: int) -> Counter:
    n = len(region) // side
    cut = region.reshape(n, side, n, side).transpose(0, 2, 1, 3).reshape(n * n, -1)
    return Counter(map(bytes, cut))


def test_images_regions_and_channels_are_permuted_independently() -> None:
    # All regions of all images are equal in all channels; nearly no two outcomes may be.
    tile = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images = np.broadcast_to(np.tile(tile, (2, 2))[None, :, :, None], (50, 32, 32, 3)).copy()
    _, labels, ids = some_images(50)
    result = mixer().protect(images, labels, ids, KEY).images
    cut = result.reshape(50, 2, 16, 2, 16, 3).transpose(0, 1, 3, 5, 2, 4).reshape(600, -1)
    assert len(set(map(bytes, cut))) == 600


def test_every_sub_block_comes_to_every_place_equally_often() -> None:
    # Sub-blocks of one pixel in a region of 4 x 4: value = place.
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    _, labels, ids = some_images(4000)
    result = mixer(region_px=4, n=4).protect(np.stack([image] * 4000), labels, ids, KEY).images
    flat = result.reshape(4000, 16)
    counts = np.stack([np.bincount(flat[:, place], minlength=16) for place in range(16)])
    statistic = ((counts - 250) ** 2 / 250).sum() * 15 / 16
    assert statistic < 225 + 5 * math.sqrt(450)


def test_another_key_or_setting_gives_another_permutation() -> None:
    images, labels, ids = counted(20, (32, 32, 1))
    base = mixer().protect(images, labels, ids, KEY).images
    assert (mixer().protect(images, labels, ids, KEY).images == base).all()
    agreeing = (mixer().protect(images, labels, ids, OTHER).images == base).mean()
    assert agreeing < 0.05
    # Both settings cut 8-px regions into single pixels, and differ in nothing but the keystream.
    one = mixer(region_px=8, n=8).protect(images, labels, ids, KEY).images
    two = mixer(region_px=8, n=5).protect(images, labels, ids, KEY).images
    assert block_side(8, 8 // 5) == block_side(8, 8 // 8) == 1
    assert (one == two).mean() < 0.05


def test_the_wrong_key_recovers_nothing() -> None:
    images, labels, ids = counted(10, (32, 32, 3))
    scheme = mixer()
    protected = scheme.protect(images, labels, ids, KEY).images
    assert (scheme.recover(protected, labels, ids, OTHER) == images).mean() < 0.05
    assert (scheme.recover(protected, labels, ids[::-1], KEY) == images).mean() < 0.05


# ------------------------------------------------------------------------------ the table


def smooth(value: int, texture: int, count: int = 1) -> np.ndarray:
    """32 px images of one grey with a fine texture of a given strength in the upper left."""
    images = np.full((count, 32, 32, 1), value, dtype=np.uint8)
    images[:, :8:2, :8:2] += texture
    return images


@pytest.mark.parametrize(
    ("value", "texture", "row"),
    [(0, 10, (2, 4, 8, 8)), (35, 10, (4, 8, 8, 8)), (200, 10, (8, 8, 8, 8))],
)
def test_granularity_follows_the_published_table(
    value: int, texture: int, row: tuple[int, ...]
) -> None:
    images = smooth(value, texture)
    vfe = float(vfe_released(images)[0])
    assert (vfe < 0.5, vfe < 1) == ((True, True), (False, True), (False, False))[
        ((2, 4, 8, 8), (4, 8, 8, 8), (8, 8, 8, 8)).index(row)
    ]
    _, labels, ids = some_images(1)
    found = mixer(region_px=8, n="auto").protect(images, labels, ids, KEY).private["granularity"]
    assert found.shape == (1, 16, 1)
    # One region of sixteen has texture: it ranks last, all others first and equal.
    assert found[0, 0, 0] == row[3]
    assert (found[0, 1:, 0] == row[0]).all()


def test_ranks_fall_into_the_published_intervals() -> None:
    # Eleven regions, each with more texture than the one before: scores 0, 0.1, ... 1.
    images = np.zeros((1, 8, 88, 1), dtype=np.uint8)
    for k in range(11):
        images[0, ::2, 8 * k : 8 * k + 8 : 2] = k
    _, labels, ids = some_images(1)
    found = mixer(region_px=8, n="auto").protect(images, labels, ids, KEY).private["granularity"]
    assert found[0, :, 0].tolist() == [2] * 2 + [4] * 4 + [8] * 5


def test_auto_needs_its_private_map_to_be_undone() -> None:
    images, labels, ids = some_images(2)
    scheme = mixer(n="auto")
    protected = scheme.protect(images, labels, ids, KEY)
    with pytest.raises(ProtectionError, match="granularity"):
        scheme.recover(protected.images, labels, ids, KEY)


# ------------------------------------------------------------------------------ the rest


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 31, 3), (33, 17, 1), (512, 8, 3), (100, 512, 1)])
def test_any_size(shape: tuple[int, int, int]) -> None:
    images, labels, ids = some_images(2, shape)
    for n in (8, "auto"):
        scheme = mixer(n=n)
        result = scheme.protect(images, labels, ids, KEY)
        assert (result.images != images).any()
        assert (scheme.recover(result.images, labels, ids, KEY, result.private) == images).all()


def test_no_images_give_none() -> None:
    images, labels, ids = some_images(0)
    for n in (8, "auto"):
        assert mixer(n=n).protect(images, labels, ids, KEY).images.shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("n", {"n": 1}), ("n", {"n": 17}), ("n", {"n": "all"}), ("region_px", {"region_px": 1}),
        ("mode", {"mode": "paper"}), ("target_vfe", {"target_vfe": 0}),
        ("r_max", {"r_min": 8, "r_max": 24}), ("r_max", {"r_min": 16, "r_max": 8}),
        ("attention", {"attention": True}),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused_by_name(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=key):
        make_scheme("visualmixer", values, "here")


def test_key_space_is_the_number_of_permutations() -> None:
    expected = 4 * 3 * math.log2(math.factorial(64))
    assert mixer().key_space_bits((32, 32, 3)) == pytest.approx(expected)
    assert mixer(n=2).key_space_bits((16, 16, 1)) == pytest.approx(math.log2(24))


def test_region_means_survive_exactly_as_the_risk_notes_say() -> None:
    images, labels, ids = some_images(3)
    result = mixer().protect(images, labels, ids, KEY).images
    for array in (images, result):
        assert array.reshape(3, 2, 16, 2, 16, 3).sum(axis=(2, 4)).tolist() == (
            images.reshape(3, 2, 16, 2, 16, 3).sum(axis=(2, 4)).tolist()
        )
    assert any("thumbnail" in note for note in VisualMixer.declares.risk_notes)
