"""Several releases of one image cost as many budgets: their noise averages out."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.attacks._averaging import averaged
from veilset.keys import Key
from veilset.release.ledger import spend
from veilset.schemes._discrete_laplace import exact, laplace_law, noise_channel
from veilset.schemes.base import Scheme
from veilset.schemes.dp_pix import DpPix
from veilset.schemes.masked_image import MaskedImage
from veilset.types import Images


def releases(scheme: Scheme, images: Images, count: int) -> list[Images]:
    ids = np.random.default_rng(1).integers(0, 256, (len(images), 16), dtype=np.uint8)
    labels = np.zeros(len(images), dtype=np.int64)
    keys = [Key(bytes([number]) * 32) for number in range(count)]
    return [scheme.protect(images, labels, ids, key).images for key in keys]


@pytest.mark.parametrize(
    "scheme", [MaskedImage(mode="uniform", eps_n=24.0), DpPix(eps=16.0, block_px=2, m=4)]
)
def test_the_error_falls_with_the_square_root_of_the_releases(scheme: Scheme) -> None:
    images = np.full((6, 32, 32, 1), 128, dtype=np.uint8)
    made = releases(scheme, images, 16)
    errors = {k: averaged(made[:k]).std() for k in (1, 4, 16)}
    assert errors[1] > 5
    assert errors[1] / errors[4] == pytest.approx(2, rel=0.12)
    assert errors[1] / errors[16] == pytest.approx(4, rel=0.12)


def test_one_key_gives_no_second_look() -> None:
    images = np.full((2, 16, 16, 1), 128, dtype=np.uint8)
    scheme = MaskedImage(mode="uniform")
    one = releases(scheme, images, 1) * 4
    np.testing.assert_array_equal(averaged(one), one[0])


def test_two_releases_are_a_channel_of_twice_the_budget() -> None:
    """Enumerated: the worst ratio of two neighbouring inputs over all pairs of outputs."""
    channel = noise_channel(laplace_law(exact(16.0)).masses).astype(np.float64)
    channel /= channel.sum(axis=1, keepdims=True)
    single = np.abs(np.log(channel[1:] / channel[:-1])).max()
    joint = max(
        np.abs(np.log(np.outer(b, b) / np.outer(a, a))).max()
        for a, b in zip(channel[:-1:16], channel[1::16], strict=True)
    )
    assert joint == pytest.approx(2 * single, rel=1e-9)
    assert 255 * joint <= 2 * 16.0 * (1 + 1e-9)


def test_the_ledger_adds_up_what_averaging_takes(tmp_path: Path) -> None:
    scheme = MaskedImage(mode="uniform", eps_n=24.0)
    for number in range(4):
        spent = spend(tmp_path / "ledger.parquet", f"release {number}", scheme.record(), ["00"])
    assert next(iter(spent.values())).most == pytest.approx(4 * scheme.facts()["eps_total"])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
def test_it_is_the_mean(count: int, height: int, width: int, channels: int) -> None:
    rng = np.random.default_rng(count)
    made = [
        rng.integers(0, 256, (2, height, width, channels), dtype=np.uint8) for _ in range(count)
    ]
    np.testing.assert_allclose(averaged(made), np.mean(made, axis=0))


def test_releases_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        averaged([])
    with pytest.raises(ValueError, match="same images"):
        averaged([np.zeros((1, 4, 4, 1), np.uint8), np.zeros((2, 4, 4, 1), np.uint8)])
