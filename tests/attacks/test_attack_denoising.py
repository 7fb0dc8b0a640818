"""Denoising: planted noise is taken away, laws are the schemes' own, levels are recognised."""

# ruff: noqa: ARG002
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attack_cases import Noise, OtherPeople, Planted, Shuffled, build, digit_case, digit_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from veilset.attacks._noise import (
    NoiseLaw,
    NoiseModel,
    counted_law,
    estimate,
    laplace_channel,
    law_of,
    noisy_step,
)
from veilset.attacks.base import OTHER_KIND, AttackResult
from veilset.attacks.denoising import Denoising, DenoisingParams, haar_shrunk
from veilset.attacks.features import Batch, Pairs
from veilset.attacks.registry import make_attack
from veilset.keys import Key
from veilset.schemes._discrete_laplace import exact, laplace_law, noise_channel
from veilset.schemes.base import Pool, Protected, Scheme
from veilset.schemes.composition import Composition
from veilset.schemes.masked_image import LEVELS, MaskedImage
from veilset.schemes.plain import Plain
from veilset.schemes.randomness import Stream
from veilset.schemes.registry import make_scheme
from veilset.types import Ids, Images, Labels

CIFAR = Path(__file__).parents[2].parent / "shared/datasets/cifar10/test1k.parquet"
SMALL = DenoisingParams(
    versions=2, shift=1, work_side=16, base=8, depth=1, steps=60, oracle_steps=20, batch=16
)


class Budget(Planted):
    """Declares a budget, as a scheme that adds noise does."""

    def facts(self) -> Mapping[str, Any]:
        return {"eps_total": 1.0}


class Weak(Budget):
    """Uniform noise of 60 grey levels either way: an average takes it away."""

    name = "weak"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        noise = self.noise(images, ids, stream).astype(np.int64) * 120 // 255 - 60
        return Protected(np.clip(images + noise, 0, 255).astype(np.uint8))


class Nothing(Budget, Noise):
    name = "nothing"


class Others(Budget, OtherPeople):
    name = "others"


def denoised(scheme: Scheme[Any], **sizes: int) -> AttackResult:
    return Denoising(SMALL).run(digit_case(scheme, **sizes))


def test_planted_noise_is_taken_away() -> None:
    result = denoised(Weak())
    assert result.status == "ok"
    assert result.value > 0.97
    assert result.control.value < 0.05
    assert result.details["psnr"] > result.details["unattacked_psnr"] + 3
    assert result.details["ssim"] > result.details["unattacked_ssim"]
    assert result.details["ssim"] > result.details["control_ssim"] + 0.2
    assert {"blur 1.5", "wavelet", "non-local means 1", "local linear", "unet"} <= set(
        result.variants
    )


@pytest.mark.parametrize("scheme", [Nothing, Others])
def test_chance_where_nothing_is_left(scheme: type[Planted]) -> None:
    result = denoised(scheme(), targets=500)
    assert result.low <= result.chance + 0.01
    assert result.value < 0.035


@pytest.mark.parametrize(
    "name, values, least, gain",
    [("masked_image", {}, 0.95, 5.0), ("dp_pix", {}, 0.6, 0.3), ("ldp_slicing", {}, 0.97, 3.0)],
)
def test_the_real_schemes_are_denoised(
    name: str, values: dict[str, Any], least: float, gain: float
) -> None:
    result = denoised(make_scheme(name, values, "test"))
    assert result.status == "ok"
    assert result.value > least
    assert result.control.value < 0.05
    best = max(result.details["learned_psnr"], result.details["classical_psnr"])
    assert best > result.details["unattacked_psnr"] + gain


@pytest.mark.parametrize("scheme", [Plain(), Shuffled(), make_scheme("visualmixer", {}, "test")])
def test_it_leaves_schemes_without_noise_alone(scheme: Scheme[Any]) -> None:
    case = digit_case(Plain(), targets=5)
    reason = Denoising(SMALL).applies(replace(case, release=replace(case.release, scheme=scheme)))
    assert reason is not None
    assert reason.startswith(OTHER_KIND)


def test_a_composition_is_denoised_by_the_step_that_adds_noise() -> None:
    noisy = Composition(steps=({"scheme": "pixelate"}, {"scheme": "masked_image", "eps_n": 5.0}))
    step = noisy_step(noisy)
    assert step is not None
    assert (step.name, step.params.eps_n) == ("masked_image", 5.0)
    assert (
        noisy_step(Composition(steps=({"scheme": "pixelate"}, {"scheme": "visualmixer"}))) is None
    )


def test_the_registry_finds_it() -> None:
    full = make_attack("denoising", {"base": 64}, "test", "full").params
    assert (full.base, full.steps, full.versions) == (64, 6000, 8)


@pytest.mark.slow
def test_cifar_images_are_restored() -> None:
    if not CIFAR.is_file():
        pytest.skip(f"the shared data set {CIFAR} is not here")
    frame = pd.read_parquet(CIFAR)
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in frame["image"]])
    labels, rows = frame["label"].to_numpy(dtype=np.int64), np.arange(len(images))
    nobody = np.full(len(images), "", dtype=object)
    case = build(MaskedImage(), images, labels, nobody, rows[:300], rows[300:700], None, 0)
    result = Denoising().run(case)
    assert result.value > 0.98
    assert result.details["learned_ssim"] > 0.7
    assert result.details["learned_ssim"] > result.details["classical_ssim"]
    assert result.details["unattacked_ssim"] < 0.4


# --- Laws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [2.0, 8.0, 20.0])
def test_the_law_is_that_of_the_scheme(eps: float) -> None:
    exactly = noise_channel(laplace_law(exact(eps)).masses).astype(np.float64)
    exactly /= exactly.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(laplace_channel(255 / eps), exactly, atol=1e-3)


def pairs_of(scheme: Scheme[Any], images: Images) -> Pairs:
    ids = np.random.default_rng(0).integers(0, 256, (len(images), 16), dtype=np.uint8)
    labels = np.zeros(len(images), dtype=np.int64)
    made = scheme.protect(images, labels, ids, Key(b"k" * 32))
    return Pairs(Batch(made.images, made.side), images, np.arange(len(images)))


@pytest.mark.parametrize(
    "name, channels",
    [("ldp_slicing", 1), ("dp_pix", 1), ("dp_pix", 3), ("masked_image", 1), ("masked_image", 3)],
)
def test_released_images_follow_the_law(name: str, channels: int) -> None:
    """Mean and spread of what is released of one grey level, against the law's row."""
    scheme = make_scheme(name, {"mode": "uniform"} if name == "masked_image" else {}, "test")
    pairs = pairs_of(scheme, np.full((60, 32, 32, channels), 90, dtype=np.uint8))
    law = law_of(scheme, pairs)
    seen = law.seen(pairs.batch.images)[..., 0].astype(np.float64)
    grey, row = np.arange(256), law.channels[0, 0, 90]
    mean = (row * grey).sum()
    spread = np.sqrt((row * (grey - mean) ** 2).sum())
    assert seen.mean() == pytest.approx(mean, abs=4 * spread / np.sqrt(seen.size))
    assert seen.std() == pytest.approx(spread, rel=0.05)


def test_a_counted_law_is_a_law() -> None:
    law = counted_law(pairs_of(Weak(), digit_images()[0][:200]))
    np.testing.assert_allclose(law.channels.sum(axis=-1), 1.0)
    apart = np.abs(np.arange(256)[:, None] - np.arange(256))
    often = np.bincount(digit_images()[0][:200].ravel(), minlength=256) > 200
    assert law.channels[0, 0][often][apart[often] > 66].max() < 1e-3


def test_levels_of_noise_are_recognised() -> None:
    images = digit_images(32)[0][:100]
    scheme = MaskedImage()
    pairs = pairs_of(scheme, images)
    model = NoiseModel.of(law_of(scheme, pairs), images)
    found = estimate(model, pairs.batch).levels[:, 4::8, 4::8]
    ids = np.random.default_rng(0).integers(0, 256, (100, 16), dtype=np.uint8)
    true = scheme.levels(images, ids, scheme.stream(Key(b"k" * 32))).astype(np.int64)
    assert true.max() == LEVELS - 1
    assert np.abs(found - true).mean() < 0.6 * np.abs(np.median(true) - true).mean()
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.7


def test_the_posterior_is_bayes_rule() -> None:
    law = NoiseLaw(np.stack([laplace_channel(20.0), laplace_channel(60.0)])[:, None], cell=8)
    model = NoiseModel.of(law, digit_images()[0][:50])
    for level, seen, about in ((0, 200, 90.0), (1, 200, 90.0), (1, 0, 30.0)):
        weights = [
            np.exp(-0.5 * ((x - about) / 25.0) ** 2) * law.channels[level, 0, x, seen]
            for x in range(256)
        ]
        wanted = sum(x * w for x, w in enumerate(weights)) / sum(weights)
        found = model.posterior(
            np.full((1, 1, 1, 1), seen, np.uint8), np.full((1, 1, 1), level),
            np.full((1, 1, 1, 1), about), 25.0,
        )  # fmt: skip
        assert found.item() == pytest.approx(wanted, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([1, 3]))
def test_wavelets_without_noise_change_nothing(height: int, width: int, channels: int) -> None:
    planes = np.random.default_rng(0).uniform(0, 255, (2, height, width, channels))
    planes = planes.astype(np.float32)
    made = haar_shrunk(planes, np.zeros((2, 1, 1, channels), np.float32))
    np.testing.assert_allclose(made, planes, atol=1e-3)
    louder = haar_shrunk(planes, np.full((2, 1, 1, channels), 200, np.float32))
    assert louder.std() < planes.std() / 2
