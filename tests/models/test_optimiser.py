import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from veilset.models.optimiser import Adam, NesterovSgd, Optimiser
from veilset.models.registry import make_model


def _gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 0.1), (0.9, 0.0), (0.0, 0.1)])
def test_agrees_with_torch_bit_for_bit(momentum: float, decay: float) -> None:
    model = make_model("resnet20", (8, 8, 1), 3, width=4).to(memory_format=torch.channels_last)
    other = copy.deepcopy(model)
    ours = NesterovSgd(model, momentum=momentum, weight_decay=decay)
    groups = [
        {"params": [p for p in other.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in other.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    theirs = torch.optim.SGD(groups, lr=1, momentum=momentum, nesterov=momentum > 0)
    for step, lr in enumerate((0.3, 0.2, 0.05)):
        _gradients(model, step)
        _gradients(other, step)
        ours.step(lr)
        for group in theirs.param_groups:
            group["lr"] = lr
        theirs.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


OPTIMISERS: list[Callable[[nn.Module], Optimiser]] = [
    lambda model: NesterovSgd(model, momentum=0.9, weight_decay=0.1),
    lambda model: Adam(model, weight_decay=0.1),
]


@pytest.mark.parametrize("make", OPTIMISERS)
def test_a_saved_optimiser_goes_on_the_same(make: Callable[[nn.Module], Optimiser]) -> None:
    model = make_model("small_cnn", (8, 8, 1), 3, width=4)
    first = make(model)
    for step in range(3):
        _gradients(model, step)
        first.step(0.05)
    other, saved = copy.deepcopy(model), copy.deepcopy(first.state())
    second = make(other)
    second.restore(saved)
    for network, optimiser in ((model, first), (other, second)):
        _gradients(network, 9)
        optimiser.step(0.02)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("make", OPTIMISERS)
def test_a_parameter_without_gradient_stays(make: Callable[[nn.Module], Optimiser]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = copy.deepcopy(model)
    optimiser = make(model)
    _gradients(model, 0)
    model[1].weight.grad = None
    optimiser.step(0.1)
    assert torch.equal(model[1].weight, before[1].weight)
    assert not torch.equal(model[0].weight, before[0].weight)
    optimiser.forget_gradients()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_adam_agrees_with_torch(decay: float) -> None:
    model = make_model("small_cnn", (8, 8, 1), 3, width=4)
    other = copy.deepcopy(model)
    groups = [
        {"params": [p for p in other.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in other.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    ours, theirs = Adam(model, weight_decay=decay), torch.optim.AdamW(groups, lr=1)
    for step, lr in enumerate((0.03, 0.02, 0.005, 0.001)):
        _gradients(model, step)
        _gradients(other, step)
        ours.step(lr)
        for group in theirs.param_groups:
            group["lr"] = lr
        theirs.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-7)
    ours.forget_gradients()
    assert all(parameter.grad is None for parameter in model.parameters())
