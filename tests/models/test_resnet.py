import pytest
import torch
from torch import nn

from veilset.models.registry import make_model


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_resnet20_has_the_papers_size() -> None:
    # He et al. 2016, table 6: 20 layers, 0.27 M parameters.
    model = make_model("resnet20", (32, 32, 3), 10)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 20
    assert _count(model) == 269_722


def test_shortcut_a_has_no_parameters_and_b_has_projections() -> None:
    a = make_model("resnet20", (32, 32, 3), 10, shortcut="A")
    b = make_model("resnet20", (32, 32, 3), 10, shortcut="B")
    assert _count(b) - _count(a) == (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)


def test_shortcut_a_is_the_identity_subsampled_and_padded() -> None:
    model = make_model("resnet20", (9, 8, 1), 2, width=4)
    block = model.blocks[3]
    for norm in (block.norm1, block.norm2):
        nn.init.zeros_(norm.weight)
    x = torch.rand(2, 4, 9, 8)
    y = block.eval()(x)
    assert y.shape == (2, 8, 5, 4)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert not y[:, 4:].any()


def test_kaiming_deviation() -> None:
    conv = make_model("resnet20", (32, 32, 3), 10).blocks[-1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
