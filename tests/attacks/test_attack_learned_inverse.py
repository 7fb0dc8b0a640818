"""The learned inverse restores what can be restored, repeats, and admits divergence."""

import numpy as np
import pytest
import torch
from attack_cases import (
    OTHER,
    Black,
    Corner,
    LowestBits,
    Negative,
    Noise,
    OtherPeople,
    Planted,
    Side,
    build,
    digit_case,
    photographs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import bootstrap

from veilset.attacks.base import AttackResult, Diverged
from veilset.attacks.features import Pairs, area_resize, protect_as_attacker
from veilset.attacks.learned_inverse import (
    LearnedInverse,
    LearnedInverseParams,
    fold,
    sorted_in_regions,
    torch_ssim,
    train_unet,
)
from veilset.metrics.similarity import ssim
from veilset.metrics.statistics import wilson
from veilset.schemes.plain import Plain
from veilset.schemes.registry import make_scheme

SMALL = LearnedInverseParams(
    versions=4, shift=1, work_side=16, base=8, depth=1, steps=25, oracle_steps=25, batch=16
)


def restore(scheme: Planted | Plain, **sizes: int) -> AttackResult:
    return LearnedInverse(SMALL).run(digit_case(scheme, **sizes))


@pytest.mark.parametrize(
    "scheme, least", [(Plain, 0.95), (Corner, 0.7), (LowestBits, 0.5), (Side, 0.7)]
)
def test_a_planted_leak_is_caught(scheme: type[Planted], least: float) -> None:
    result = restore(scheme())
    assert result.status == "ok"
    assert result.value >= least
    assert result.low > 10 * result.chance
    assert result.details["ssim"] > result.details["control_ssim"] + 0.1
    assert result.details["ssim"] <= result.details["ssim_95"] <= result.details["ssim_max"]
    assert result.control.value < 0.05


@pytest.mark.parametrize("scheme", [Noise, OtherPeople])
def test_chance_where_nothing_is_left(scheme: type[Planted]) -> None:
    result = restore(scheme(), targets=600)
    found = wilson(result.value * result.targets, result.targets, 0.999)
    assert found.low <= result.chance <= found.high
    assert result.value < 0.03


def test_black_images_are_at_chance() -> None:
    result = restore(Black(), targets=200)
    assert result.low <= result.chance <= result.high


def test_divergence_is_no_privacy() -> None:
    wild = SMALL.model_copy(update={"learning_rate": 1e30})
    result = LearnedInverse(wild).run(digit_case(Noise(), targets=20))
    assert result.status == "diverged"
    assert result.value is None
    assert "nothing about privacy" in result.words


def pairs_of(scheme: Planted | Plain, n: int = 60) -> Pairs:
    case = digit_case(scheme, targets=5, auxiliary=n)
    rng = np.random.default_rng(0)
    return protect_as_attacker(scheme, case.attacker, np.ones(n, dtype=bool), 1, rng)[0]


def test_training_repeats_and_leaves_torch_as_it_was() -> None:
    pairs, params = pairs_of(Negative()), SMALL.model_copy(update={"steps": 5})
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one = train_unet(pairs, Plain(), params, 5, "cpu", 7)(pairs.batch)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()
    two = train_unet(pairs, Plain(), params, 5, "cpu", 7)(pairs.batch)
    other = train_unet(pairs, Plain(), params, 5, "cpu", 8)(pairs.batch)
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    assert one.shape == pairs.plain.shape


def test_the_network_restores_what_no_linear_map_can() -> None:
    """Whether an image is negative depends on the image: a linear map can only average."""
    pairs = pairs_of(Negative(), 150)
    made = train_unet(pairs, Plain(), SMALL, 120, "cpu", 0)(pairs.batch)
    assert ssim(made, pairs.plain).mean() > 0.6


def test_no_seed_is_caught_in_the_dark() -> None:
    """Mostly black images: a network that starts from black stays there under many seeds."""
    pairs = pairs_of(Plain(), 150)
    params = LearnedInverseParams(work_side=16)
    for seed in range(8):
        made = train_unet(pairs, Plain(), params, 60, "cpu", seed)(pairs.batch)
        assert ssim(made, pairs.plain).mean() > 0.9, seed


def test_a_loss_that_is_not_a_number_ends_the_training() -> None:
    pairs = pairs_of(Plain())
    params = SMALL.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(Diverged, match="step"):
        train_unet(pairs, Plain(), params, 41, "cpu", 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 24), st.integers(5, 24), st.sampled_from([1, 3]))
def test_the_loss_uses_the_same_ssim_as_the_metrics(
    seed: int, height: int, width: int, channels: int
) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.random((2, 2, height, width, channels))
    ours = torch_ssim(*(torch.from_numpy(np.moveaxis(x, -1, 1)) for x in (first, second)))
    assert float(ours) == pytest.approx(ssim(first * 255, second * 255).mean(), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4))
def test_folding_loses_no_pixel(height: int, width: int, factor: int) -> None:
    images = np.random.default_rng(0).random((2, height, width, 3)).astype(np.float32)
    folded = fold(images, factor)
    assert folded.shape[1:] == (3 * factor**2, -(-height // factor), -(-width // factor))
    unfolded = torch.pixel_shuffle(torch.from_numpy(folded), factor).numpy()
    np.testing.assert_array_equal(np.moveaxis(unfolded[:, :, :height, :width], 1, -1), images)


def test_sorted_regions_are_equal_after_a_shuffle() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((1, 10, 10, 1)).astype(np.float32)
    shuffled = image.copy()
    shuffled[0, :4, :4, 0] = rng.permutation(image[0, :4, :4, 0].ravel()).reshape(4, 4)
    one, two = sorted_in_regions(image, 4), sorted_in_regions(shuffled, 4)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[:, 8:], image[:, 8:])


def test_the_attacker_has_a_key_of_her_own() -> None:
    assert digit_case(Noise(), targets=3).attacker.key == OTHER


def test_photographs_are_restored_better_than_by_their_thumbnail() -> None:
    images = photographs("cifar10/test1k.parquet", 700)
    order, nobody = np.arange(700), np.full(700, "", dtype=object)
    scheme = make_scheme("visualmixer", {"region_px": 8, "n": 8}, "test")
    case = build(scheme, images, order % 2, nobody, order[:200], order[200:], None, 0)
    result = LearnedInverse(LearnedInverseParams(versions=4, steps=1, oracle_steps=1)).run(case)
    assert result.low > 0.8
    assert result.scores is not None
    restored = result.scores.query("anchor == 'main'")["ssim"].to_numpy()
    # What anyone sees without learning: the mean of each region, enlarged roughly or smoothly.
    small = area_resize(case.release.images, 4, 4).round().astype(np.uint8)
    for method in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC):
        enlarged = np.stack([np.asarray(Image.fromarray(one).resize((32, 32), method))
                             for one in small])  # fmt: skip
        better = restored - ssim(enlarged, case.truth.originals)
        found = bootstrap((better,), np.mean, rng=np.random.default_rng(0)).confidence_interval
        assert found.low > 0, method
