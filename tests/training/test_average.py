import copy

import pytest
import torch
from torch import nn

from veilset.models.registry import make_model
from veilset.training.average import Average


def _jolt(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(1)


@pytest.mark.parametrize("decay", [0.25, 0.9])
def test_it_is_the_exponential_average_of_weights_and_statistics(decay: float) -> None:
    model = make_model("small_cnn", (8, 8, 1), 2, width=4)
    average = Average(model, decay)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(1, 6):
        _jolt(model, step)
        average.follow()
        share = min(decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = share * expected[name] + (1 - share) * value
            else:
                expected[name] = value.clone()
    live = copy.deepcopy(model.state_dict())
    with average.in_place():
        for name, value in model.state_dict().items():
            assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-6), name
        moved = [name for name, v in model.state_dict().items() if not torch.equal(v, live[name])]
        assert "stages.0.1.running_mean" in moved and "head.weight" in moved
    assert all(torch.equal(value, live[name]) for name, value in model.state_dict().items())


def test_the_networks_own_weights_come_back_after_an_error() -> None:
    model = nn.Linear(2, 2)
    average = Average(model, 0.5)
    _jolt(model, 0)
    live = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), average.in_place():
        raise KeyError
    assert all(torch.equal(value, live[name]) for name, value in model.state_dict().items())


def test_a_saved_average_goes_on_the_same() -> None:
    model = nn.Linear(3, 2)
    first = Average(model, 0.9)
    for step in range(3):
        _jolt(model, step)
        first.follow()
    saved = copy.deepcopy(first.state())
    second = Average(model, 0.9)
    second.restore(saved)
    _jolt(model, 9)
    for each in (first, second):
        each.follow()
    one, other = first.state(), second.state()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
