"""Means of regions: exact whatever the shuffle, and enough to find an image again."""

from typing import Any

import numpy as np
import pytest
from attack_cases import Noise, OtherPeople, Planted, build, digit_case, photographs
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from veilset.attacks.base import OTHER_KIND
from veilset.attacks.features import Batch, Pairs, area_resize
from veilset.attacks.region_means import (
    BICUBIC,
    THUMBNAIL,
    Cells,
    Enlarged,
    RegionMeans,
    RegionMeansParams,
    cells_of,
    views_for,
)
from veilset.attacks.registry import make_attack
from veilset.keys import Key
from veilset.metrics.similarity import psnr
from veilset.metrics.statistics import wilson
from veilset.schemes._regions import Grid
from veilset.schemes.base import Scheme
from veilset.schemes.composition import Composition
from veilset.schemes.plain import Plain
from veilset.schemes.registry import make_scheme
from veilset.schemes.visualmixer import VisualMixer, VisualMixerParams
from veilset.types import Images

SMALL = {"region_px": 4, "n": 4}


def protected(scheme: Scheme[Any], images: Images) -> Images:
    ids = np.random.default_rng(1).integers(0, 256, (len(images), 16), dtype=np.uint8)
    labels = np.zeros(len(images), dtype=np.int64)
    return scheme.protect(images, labels, ids, Key(b"k" * 32)).images


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(8, 40), st.integers(8, 40), st.sampled_from([1, 3]),
    st.sampled_from([
        {"region_px": 8, "n": 4}, {"region_px": 8, "n": 8, "shuffle_channels": True},
        {"region_px": 16, "n": "auto"}, {"mode": "target_vfe", "r_min": 4, "r_max": 8},
        {"mode": "target_vfe", "r_min": 4, "r_max": 4, "shuffle_channels": False},
    ]),
)  # fmt: skip
def test_sums_and_order_statistics_are_exact(
    seed: int, height: int, width: int, channels: int, values: dict[str, Any]
) -> None:
    shape = (2, height, width, channels)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    scheme = make_scheme("visualmixer", values, "test")
    cells = cells_of(scheme, shape[1:])
    if isinstance(cells, str):
        assert "single region" in cells
        return
    shown = protected(scheme, images)
    np.testing.assert_array_equal(cells.sums(shown), cells.sums(images))
    np.testing.assert_array_equal(cells.statistics(shown, 5), cells.statistics(images, 5))
    assert cells.merged == (channels == 3 and scheme.params.mixes_channels)


def test_sums_are_those_of_the_regions() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 10, 7, 3), dtype=np.uint8)
    cells = Cells(Grid((4, 6), (5, 2)), merged=False)
    sums = cells.sums(images)
    assert sums.shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(sums[:, 1, 0], images[:, 4:, :5].sum(axis=(1, 2)))
    np.testing.assert_allclose(cells.means(images)[:, 0, 1], images[:, :4, 5:].mean(axis=(1, 2)))
    merged = Cells(cells.grid, merged=True).sums(images)
    np.testing.assert_array_equal(merged[..., 0], sums.sum(axis=3))


@pytest.mark.parametrize("height, width", [(16, 16), (18, 21), (7, 30)])
def test_pixelation_keeps_the_means_of_its_cells(height: int, width: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, height, width, 1), dtype=np.uint8)
    scheme = make_scheme("pixelate", {"block_px": 4}, "test")
    cells = cells_of(scheme, (height, width, 1))
    assert isinstance(cells, Cells)
    shown = protected(scheme, images)
    assert np.abs(cells.means(shown) - cells.means(images)).max() <= 0.5
    np.testing.assert_allclose(Enlarged(cells, 0)(Batch(shown, {})), shown)


def test_even_images_stay_even_and_slopes_stay_slopes() -> None:
    grid = Grid.of((26, 24), 8)
    even = np.full((1, 26, 24, 1), 77, dtype=np.uint8)
    for order in (0, 3):
        np.testing.assert_allclose(Enlarged(Cells(grid, False), order)(Batch(even, {})), 77.0)
    slope = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None] * 3, (64, 64))[None, ..., None]
    made = Enlarged(Cells(Grid.of((64, 64), 4), False), 3)(Batch(slope, {}))
    np.testing.assert_allclose(made[0, 8:-8], slope[0, 8:-8], atol=1.0)


def test_learning_beats_enlarging() -> None:
    """Images of one kind: means tell where their edges lie, and the enlargement does not know."""
    rng = np.random.default_rng(0)
    middle = rng.uniform(5, 27, (260, 1, 1))
    edges = np.where(np.arange(32)[None, :, None] < middle, 40.0, 200.0)
    images = np.broadcast_to(edges, (260, 32, 32)) + rng.normal(0, 3, (260, 32, 32))
    images = np.clip(np.rint(images), 0, 255).astype(np.uint8)[..., None]
    scheme = VisualMixer(VisualMixerParams(region_px=8, n=8))
    rows = np.arange(260)
    pairs = Pairs(Batch(protected(scheme, images), {}), images, rows)
    cells = cells_of(scheme, (32, 32, 1))
    assert isinstance(cells, Cells)
    views = views_for(
        cells, pairs.take(rows[:160]), pairs.take(rows[160:200]), RegionMeansParams()
    )  # fmt: skip
    unseen = pairs.take(rows[200:])
    scores = {
        name: psnr(np.rint(view(unseen.batch)).astype(np.uint8), unseen.plain).mean()
        for name, view in views.items()
    }
    assert max(scores["linear"], scores["kernel"]) > max(scores[THUMBNAIL], scores[BICUBIC]) + 2
    assert scores["kernel"] > scores[BICUBIC] + 2


@pytest.mark.parametrize(
    "scheme",
    [make_scheme("visualmixer", SMALL, "test"),
     make_scheme("visualmixer", {"mode": "target_vfe", "r_min": 4, "r_max": 4}, "test"),
     make_scheme("pixelate", {}, "test"),
     Composition(steps=({"scheme": "pixelate", "block_px": 2},
                        {"scheme": "visualmixer", **SMALL}))],
    ids=["released", "target_vfe", "pixelate", "composition"],
)  # fmt: skip
def test_digits_are_singled_out(scheme: Scheme[Any]) -> None:
    result = RegionMeans().run(digit_case(scheme))
    assert result.status == "ok"
    assert result.low > 0.8
    assert result.control.value < 0.05
    assert set(result.variants) == {"thumbnail", "bicubic", "linear", "kernel"}
    learned = max(result.details["psnr_linear"], result.details["psnr_kernel"])
    assert learned > result.details["psnr_thumbnail"]
    assert result.details["control_ssim_kernel"] < result.details["ssim_kernel"]


def test_the_same_seed_gives_the_same_result() -> None:
    case = digit_case(make_scheme("visualmixer", SMALL, "test"), targets=40, auxiliary=60)
    first, second = (RegionMeans().run(case).to_json() for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


class NoiseAsMixer(Noise):
    """Noise that claims to have shuffled regions."""

    name = "visualmixer"
    Parameters = VisualMixerParams


class OthersAsMixer(OtherPeople):
    """Other images that claim to have shuffled regions."""

    name = "visualmixer"
    Parameters = VisualMixerParams


@pytest.mark.parametrize("planted", [NoiseAsMixer, OthersAsMixer])
def test_chance_where_nothing_is_left(planted: type[Planted]) -> None:
    result = RegionMeans().run(digit_case(planted(**SMALL), targets=400))
    found = wilson(result.value * result.targets, result.targets, 0.999)
    assert found.low <= result.chance <= found.high


@pytest.mark.parametrize(
    "scheme, word",
    [(Plain(), "no means"), (make_scheme("etc_encryption", {}, "test"), "no means"),
     (make_scheme("visualmixer", {"mode": "target_vfe"}, "test"), "single region"),
     (Composition(steps=({"scheme": "visualmixer"}, {"scheme": "masked_image"})), "no means"),
     (Composition(steps=({"scheme": "pixelate", "block_px": 3},
                         {"scheme": "visualmixer", "region_px": 4, "n": 4})), "cut each other")],
)  # fmt: skip
def test_schemes_of_another_kind_are_left_alone(scheme: Scheme[Any], word: str) -> None:
    reason = RegionMeans().applies(digit_case(scheme, targets=5))
    assert reason is not None
    assert reason.startswith(OTHER_KIND)
    assert word in reason


def test_too_few_images_are_no_excuse() -> None:
    case = digit_case(make_scheme("visualmixer", SMALL, "test"), targets=5, auxiliary=19)
    reason = RegionMeans().applies(case)
    assert reason is not None
    assert not reason.startswith(OTHER_KIND)


@pytest.mark.parametrize("values", [{"quantiles": -1}, {"tuning_share": 1}, {"gallery": 1}])
def test_parameters_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RegionMeansParams(**values)


def test_the_registry_finds_it() -> None:
    assert make_attack("region_means", {"quantiles": 3}, "test", "full").params.auxiliary == 4000


def test_learning_beats_the_thumbnail_of_photographs() -> None:
    images = photographs("cifar10/test1k.parquet", 500)
    order, nobody = np.arange(500), np.full(500, "", dtype=object)
    scheme = make_scheme("visualmixer", {"region_px": 8, "n": 8}, "test")
    result = RegionMeans().run(
        build(scheme, images, order % 2, nobody, order[:200], order[200:], None, 0)
    )
    assert result.low > 0.9
    assert result.details["psnr_kernel"] > result.details["psnr_thumbnail"] + 0.5
    assert result.details["ssim_kernel"] > result.details["ssim_thumbnail"] + 0.04
    # A thumbnail by another road is the same.
    cells = cells_of(scheme, (32, 32, 3))
    assert isinstance(cells, Cells)
    np.testing.assert_allclose(cells.means(images[:5]), area_resize(images[:5], 4, 4))
