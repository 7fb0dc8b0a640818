"""PSNR and SSIM against scikit-image, image by image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from veilset.metrics.similarity import psnr, ssim, ssim_either_sign
from veilset.types import Images


def pair(seed: int, n: int, height: int, width: int, channels: int) -> tuple[Images, Images]:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    noise = rng.normal(0, 30, first.shape)
    return first, np.clip(first + noise, 0, 255).astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 4), st.integers(11, 40), st.integers(11, 40),
    st.sampled_from([1, 3]),
)  # fmt: skip
def test_ssim_equals_scikit_image(
    seed: int, n: int, height: int, width: int, channels: int
) -> None:
    first, second = pair(seed, n, height, width, channels)
    expected = [
        structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            data_range=255, channel_axis=-1,
        )
        for a, b in zip(first, second, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(ssim(first, second), expected, atol=1e-5)


def test_ssim_is_cropped_to_the_valid_region() -> None:
    # A difference in the outermost corner reaches only windows that hold that corner.
    first = np.full((1, 30, 30, 1), 100, dtype=np.uint8)
    second = first.copy()
    second[0, 0, 0, 0] = 255
    _, full = structural_similarity(
        first[0], second[0], gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        data_range=255, channel_axis=-1, full=True,
    )  # fmt: skip
    assert ssim(first, second)[0] == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-5)


def test_psnr_equals_scikit_image_and_is_infinite_for_equals() -> None:
    first, second = pair(1, 5, 17, 12, 3)
    expected = [
        peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(psnr(first, second), expected, rtol=1e-12)
    assert np.isinf(psnr(first, first)).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 14), st.integers(1, 14))
def test_ssim_of_small_images_is_defined_and_symmetric(seed: int, height: int, width: int) -> None:
    first, second = pair(seed, 2, height, width, 1)
    score = ssim(first, second)
    assert (score <= 1 + 1e-12).all()
    np.testing.assert_allclose(score, ssim(second, first))
    np.testing.assert_allclose(ssim(first, first), 1.0)


def test_a_negative_counts_as_restored() -> None:
    first, _ = pair(3, 4, 20, 20, 1)
    assert (ssim(255 - first, first) < 0.1).all()
    np.testing.assert_allclose(ssim_either_sign(255 - first, first), 1.0)


def test_shapes_must_agree() -> None:
    first, _ = pair(0, 2, 12, 12, 1)
    with pytest.raises(ValueError, match="one shape"):
        ssim(first, first[:1])
    with pytest.raises(ValueError, match="one shape"):
        psnr(first[0], first[0])
