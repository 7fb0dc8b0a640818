"""MaskNet: what is masked cannot matter, and where nothing is masked it is the known network."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.models.masknet import Gate, MaskNet, renormalisation
from veilset.models.registry import architectures, make_model

NAMES = ("masknet_resnet18", "masknet_resnet20", "masknet_vgg16")
PLAIN = {"masknet_resnet18": "resnet18", "masknet_resnet20": "resnet20",
         "masknet_vgg16": "vgg16_bn"}  # fmt: skip


def some(shape: tuple[int, int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three normalised images (3, C, H, W) and their masks (3, 1, H, W), one of them all kept."""
    generator = torch.Generator().manual_seed(seed)
    height, width, channels = shape
    images = torch.randn(3, channels, height, width, generator=generator)
    mask = (torch.rand(3, 1, height, width, generator=generator) < 0.4).float()
    mask[0] = 1
    return images, mask


def known(name: str, shape: tuple[int, int, int], **params: Any) -> Any:
    width = 16 if name.endswith("resnet18") else 4
    return make_model(name, shape, 5, width=width, **params)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 3), (33, 20, 1)])
def test_every_part_learns_from_grey_rgb_and_odd_sizes(
    name: str, shape: tuple[int, int, int]
) -> None:
    images, mask = some(shape)
    model = known(name, shape).eval()
    logits = model(torch.cat([images, mask], dim=1))
    assert logits.shape == (3, 5) and logits.dtype == torch.float32
    wide = torch.cat([images, mask], dim=1).to(memory_format=torch.channels_last)
    assert torch.allclose(model.to(memory_format=torch.channels_last)(wide), logits, atol=1e-4)
    model.train()(wide).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gates", [True, False])
def test_masked_pixels_cannot_matter_and_the_mask_does(name: str, gates: bool) -> None:
    images, mask = some((16, 16, 3))
    model = known(name, (16, 16, 3), gates=gates).eval()
    logits = model(torch.cat([images, mask], dim=1))
    others = torch.where(mask == 1, images, 7 * torch.randn_like(images))
    assert torch.equal(model(torch.cat([others, mask], dim=1)), logits)
    assert not torch.allclose(model(torch.cat([others, 1 - mask], dim=1)), logits, atol=1e-3)
    # Without a mask nothing is masked.
    every = torch.cat([images, torch.ones_like(mask)], dim=1)
    assert torch.equal(model(images), model(every))


@pytest.mark.parametrize("name", NAMES)
def test_without_gates_and_mask_it_is_the_plain_network(name: str) -> None:
    images, _ = some((17, 12, 1))
    plain = known(PLAIN[name], (17, 12, 1)).eval()
    model = known(name, (17, 12, 1), gates=False).eval()
    assert torch.allclose(model(images), plain(images), atol=1e-6)
    assert model.penalty() == 0
    own, theirs = (sum(p.numel() for p in each.parameters()) for each in (model, plain))
    assert own == theirs


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
def test_renormalisation_pixel_by_pixel(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 2, (height, width))
    found = renormalisation(torch.from_numpy(mask).float()[None, None])[0, 0].numpy()
    for y in range(height):
        for x in range(width):
            window = mask[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            expected = 1 / max(window.mean(), 0.1) if mask[y, x] else 1
            assert found[y, x] == pytest.approx(expected, rel=1e-6)


def test_gates_begin_nearly_open_and_their_mean_is_priced() -> None:
    images, mask = some((16, 16, 1))
    inputs = torch.cat([images, mask], dim=1)
    model = known("masknet_resnet20", (16, 16, 1))
    assert isinstance(model, MaskNet) and model.gates is not None
    seen: list[torch.Tensor] = []
    hooks = [g.register_forward_hook(lambda *_: seen.append(_[2])) for g in model.gates]
    model.train()(inputs)
    assert len(seen) == 4
    means = [float(gate.detach().mean()) for gate in seen]
    assert all(0.8 < mean < 0.95 for mean in means)
    price = model.penalty()
    assert price.item() == pytest.approx(1e-4 * np.mean(means))
    price.backward()
    assert model.gates[0].choose.bias.grad.sum() > 0
    model.eval()(inputs)
    assert model.penalty() == 0
    for hook in hooks:
        hook.remove()


def test_gates_see_the_mask_at_their_own_size() -> None:
    seen: list[torch.Tensor] = []
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8, :6] = 1
    model = known("masknet_resnet20", (16, 16, 1))
    assert model.gates is not None
    for gate in model.gates:
        gate.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    model.eval()(torch.cat([torch.randn(1, 1, 16, 16), mask], dim=1))
    assert [tuple(each.shape[2:]) for each in seen] == [(16, 16), (16, 16), (8, 8), (4, 4)]
    assert seen[3][0, 0].tolist() == [[1, 0.5, 0, 0], [1, 0.5, 0, 0], [0] * 4, [0] * 4]


def test_a_gate_is_the_formula() -> None:
    gate = Gate(8).eval()
    features, mask = torch.randn(2, 8, 5, 6), torch.rand(2, 1, 5, 6)
    hidden = torch.relu(gate.norm(gate.look(torch.cat([features, mask], dim=1))))
    assert hidden.shape == (2, 2, 5, 6)
    assert torch.equal(gate(features, mask), torch.sigmoid(gate.choose(hidden)))


def test_large_images_do_not_change_the_stem_of_resnet18() -> None:
    images, mask = some((65, 64, 3))
    model = known("masknet_resnet18", (65, 64, 3), gates=False).eval()
    plain = known("resnet18", (65, 64, 3), stem="small").eval()
    assert torch.allclose(model(images), plain(images), atol=1e-6)
    sizes: list[tuple[int, ...]] = []
    for section in model.sections:
        section.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    model(torch.cat([images, mask], dim=1))
    assert sizes == [(16, 65, 64), (16, 65, 64), (32, 33, 32), (64, 17, 16), (128, 9, 8)]


def test_only_these_read_masks() -> None:
    assert {name for name, known in architectures().items() if known.reads_mask} == set(NAMES)
