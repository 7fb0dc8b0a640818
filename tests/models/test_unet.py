"""The U-Net: shapes, independence of the batch, and that it can learn."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.models.unet import UNet


def build(*args: Any, **kwargs: Any) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet(*args, **kwargs)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 33), st.integers(1, 33), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_any_size_keeps_its_size(
    height: int, width: int, inputs: int, depth: int, fold: int
) -> None:
    net = build(inputs, 2, base=4, depth=depth, fold=fold)
    assert net(torch.zeros(2, inputs, height, width)).shape == (2, 2, height, width)


@pytest.mark.parametrize("fold", [1, 2])
def test_an_image_is_treated_alike_alone_and_in_a_batch(fold: int) -> None:
    net = build(1, 1, base=4, depth=2, fold=fold)
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(net(images)[2:3], net(images[2:3]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fold", [1, 2])
def test_every_pixel_is_read(fold: int) -> None:
    net = build(1, 1, base=4, depth=1, fold=fold)
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    net(image).square().sum().backward()
    assert (image.grad.abs() > 0).all()


def test_it_learns_the_negative() -> None:
    net = build(1, 1, base=8, depth=1, fold=2)
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (net(images) - (1 - images)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.12 < losses[0]
