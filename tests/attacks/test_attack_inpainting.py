"""Inpainting: what neighbours tell is put back, what nothing tells is not."""

# ruff: noqa: ARG002
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from attack_cases import Planted, build, digit_case, digit_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from veilset.attacks.base import OTHER_KIND, AttackResult, Case
from veilset.attacks.features import Batch
from veilset.attacks.inpainting import (
    MASK,
    Biharmonic,
    Constant,
    Inpainting,
    InpaintingParams,
    Ridge,
    hole_distances,
    hole_ssim,
    kept_pixels,
)
from veilset.metrics.similarity import ssim
from veilset.schemes.base import Pool, Protected, Scheme
from veilset.schemes.fitted import Lessons
from veilset.schemes.mask_desensitization import MaskDesensitization
from veilset.schemes.plain import Plain
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, Labels

CIFAR = Path(__file__).parents[2].parent / "shared/datasets/cifar10/test1k.parquet"
SMALL = InpaintingParams(
    versions=2, shift=0, work_side=16, base=8, depth=1, steps=80, oracle_steps=20, batch=16
)


class Masked(Planted):
    """Takes away every other column: neighbours tell nearly all of it."""

    name = "masked"

    def mask(self, images: Images, stream: Stream, ids: Ids) -> Images:
        made = np.ones(images.shape[:3], dtype=np.uint8)
        made[:, :, 1::2] = 0
        return made

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        mask = self.mask(images, stream, ids)
        made = np.where(mask[..., None] == 1, images, np.uint8(128))
        return Protected(made, side={MASK: mask})


class Everything(Masked):
    """Nothing is kept."""

    name = "everything"

    def mask(self, images: Images, stream: Stream, ids: Ids) -> Images:
        return np.zeros(images.shape[:3], dtype=np.uint8)


class NoiseKept(Masked):
    """What is kept is noise."""

    name = "noise_kept"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        return super()._protect(self.noise(images, ids, stream), labels, ids, stream, pool)


class Varying(Masked):
    """Each image has a mask of its own: one of four quarters is taken away."""

    name = "varying"

    def mask(self, images: Images, stream: Stream, ids: Ids) -> Images:
        quarter = stream.integers(ids, "quarter", 1, 4)[:, 0]
        made = np.ones(images.shape[:3], dtype=np.uint8)
        rows, columns = images.shape[1] // 2, images.shape[2] // 2
        for row, number in enumerate(quarter):
            top, left = number // 2 * rows, number % 2 * columns
            made[row, top : top + rows, left : left + columns] = 0
        return made


def inpainted(scheme: Scheme, **sizes: int) -> AttackResult:
    return Inpainting(SMALL).run(digit_case(scheme, **sizes))


def test_a_hole_that_its_neighbours_tell_is_filled() -> None:
    result = inpainted(Masked())
    assert result.status == "ok"
    assert result.value > 0.97
    assert result.control.value < 0.05
    details = result.details
    assert details["hole_rank1"] > 0.9
    assert details["control_hole_rank1"] < 0.05
    assert details["hole_ridge_psnr"] > details["hole_constant_psnr"] + 4
    assert details["hole_unet_psnr"] > details["hole_constant_psnr"] + 4
    assert details["psnr"] > details["unattacked_psnr"]
    assert details["hole_constant_rank1"] == pytest.approx(result.chance)


@pytest.mark.parametrize("scheme", [Everything, NoiseKept])
def test_chance_where_nothing_is_left(scheme: type[Masked]) -> None:
    result = inpainted(scheme(), targets=500)
    assert result.low <= result.chance + 0.01
    assert result.value < 0.035
    assert result.details["hole_rank1"] < 0.035


def test_masks_may_differ_from_image_to_image() -> None:
    result = inpainted(Varying())
    assert result.value > 0.9
    assert result.details["hole_ridge_psnr"] > result.details["hole_constant_psnr"]
    assert result.details["hole_ridge_rank1"] > 10 * result.chance


def test_the_real_scheme_on_digits() -> None:
    images, labels = digit_images()
    scheme = MaskDesensitization(selection="random", patch_px=2, keep=0.5)
    lessons = Lessons(images[:200], labels[:200], images[200:250], labels[200:250], 10)
    result = inpainted(scheme.with_fitted(scheme.fit(lessons)))
    assert result.status == "ok"
    assert result.value > 0.8
    assert result.details["hole_ridge_psnr"] > result.details["hole_constant_psnr"] + 2
    assert result.details["hole_ridge_rank1"] > 0.3


def test_it_leaves_schemes_without_a_mask_alone() -> None:
    case = digit_case(Plain(), targets=5)
    elsewhere = replace(case.release, side={MASK: np.zeros((5, 4, 4))})
    for seen in (case, replace(case, release=elsewhere)):
        reason = Inpainting(SMALL).applies(seen)
        assert reason is not None
        assert reason.startswith(OTHER_KIND)


def cifar_case(scheme: Scheme, images: Images, labels: Labels) -> Case:
    rows, nobody = np.arange(len(images)), np.full(len(images), "", dtype=object)
    return build(scheme, images, labels, nobody, rows[:300], rows[300:800], None, 0)


@pytest.mark.slow
def test_the_network_beats_ridge_on_cifar() -> None:
    if not CIFAR.is_file():
        pytest.skip(f"the shared data set {CIFAR} is not here")
    frame = pd.read_parquet(CIFAR)
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in frame["image"]])
    labels = frame["label"].to_numpy(dtype=np.int64)
    scheme = MaskDesensitization(selection="random", patch_px=4)
    lessons = Lessons(images[:300], labels[:300], images[300:400], labels[300:400], 10)
    fitted = scheme.with_fitted(scheme.fit(lessons))
    details = Inpainting().run(cifar_case(fitted, images, labels)).details
    assert details["hole_unet_psnr"] > details["hole_ridge_psnr"] + 0.5
    assert details["hole_ridge_psnr"] > details["hole_constant_psnr"] + 2
    assert details["hole_unet_rank1"] > 0.7


# --- The inpainters ---------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(4, 20), st.integers(4, 20), st.sampled_from([1, 3]), st.integers(0, 2**31),
    st.floats(0, 1),
)  # fmt: skip
def test_kept_pixels_stay_and_no_masked_pixel_is_read(
    height: int, width: int, channels: int, seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    plain = rng.integers(0, 256, (12, height, width, channels), dtype=np.uint8)
    mask = (rng.random((3, height, width)) < share).astype(np.uint8)
    images = plain[:3]
    other = np.where(mask[..., None] == 1, images, 255 - images)
    for view in (Constant(plain.mean(axis=0)), Biharmonic(), Ridge.of(plain, 8, 4.0)):
        made = view(Batch(images, {MASK: mask}))
        assert made.shape == images.shape
        assert np.isfinite(made).all()
        np.testing.assert_array_equal(made[mask == 1], images[mask == 1])
        if not isinstance(view, Biharmonic) or mask.any(axis=(1, 2)).all():
            np.testing.assert_allclose(made, view(Batch(other, {MASK: mask})), atol=1e-6)


def test_without_a_mask_all_is_kept() -> None:
    images = digit_images()[0][:3]
    assert kept_pixels(Batch(images, {})).all()
    np.testing.assert_array_equal(Biharmonic()(Batch(images, {})), images)


def test_a_surface_between_flat_pixels_is_flat_and_a_ramp_is_continued() -> None:
    ramp = np.broadcast_to(
        np.arange(0, 160, 10, dtype=np.uint8)[None, None, :, None], (1, 9, 16, 1)
    )
    mask = np.ones((1, 9, 16), dtype=np.uint8)
    mask[:, 3:6, 5:9] = 0
    hidden = np.where(mask[..., None] == 1, ramp, np.uint8(0))
    np.testing.assert_allclose(Biharmonic()(Batch(hidden, {MASK: mask})), ramp, atol=1e-3)


def test_the_linear_guess_is_the_normal_law_given_what_is_seen() -> None:
    """Against the conditional mean of the covariance, written out."""
    rng = np.random.default_rng(0)
    plain = rng.integers(0, 256, (40, 3, 4, 1), dtype=np.uint8)
    mask = (rng.random((1, 3, 4)) < 0.6).astype(np.uint8)
    flat, seen = plain.reshape(40, -1).astype(float), mask.ravel() == 1
    mean = flat.mean(axis=0)
    law = np.cov(flat.T)
    known = law[np.ix_(seen, seen)] + 25.0**2 * np.eye(seen.sum())
    image = plain[:1].reshape(-1).astype(float)
    wanted = mean[~seen] + law[np.ix_(~seen, seen)] @ np.linalg.solve(known, (image - mean)[seen])
    for images in (plain, plain[:40]):
        made = Ridge.of(images, 12, 25.0)(Batch(plain[:1], {MASK: mask})).ravel()
        np.testing.assert_allclose(made[~seen], np.clip(wanted, 0, 255), atol=1e-6)
    few = Ridge.of(plain[:8], 12, 25.0)(Batch(plain[:1], {MASK: mask}))
    assert np.isfinite(few).all()


def test_distances_in_the_hole_read_nothing_else() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
    hole = rng.random((6, 8, 8)) < 0.4
    mean = images.mean(axis=0)
    views = np.where(hole[..., None], images, rng.uniform(0, 255, images.shape))
    made = hole_distances(views, images, hole, mean)
    assert (made.argmin(axis=1) == np.arange(6)).all()
    np.testing.assert_allclose(np.diag(made), 0, atol=1e-9)
    i, j = 2, 4
    a, b = ((x - mean)[hole[i]].ravel() for x in (views[i], images[j]))
    assert made[i, j] == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_ssim_of_the_whole_is_the_metric_where_the_window_fits() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 24, 24, 1), dtype=np.uint8)
    views = np.clip(images + rng.normal(0, 30, images.shape), 0, 255)
    inside = np.zeros((3, 24, 24), dtype=bool)
    inside[:, 5:-5, 5:-5] = True
    np.testing.assert_allclose(hole_ssim(views, images, inside), ssim(views, images), atol=1e-9)
