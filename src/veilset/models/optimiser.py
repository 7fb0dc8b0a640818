"""Stochastic gradient descent with Nesterov momentum, and Adam.

The same arithmetic as in `torch.optim`; but that imports torch's compiler when it is first used,
which takes seconds, as long as the training of a small set.
"""

from collections.abc import Mapping
from math import cos, pi

import torch
from torch import Tensor, nn


def falling(rate: float, step: int, steps: int) -> float:
    """The learning rate of a step, from `rate` at the first to nothing along half a cosine."""
    return rate * (1 + cos(pi * step / steps)) / 2


class NesterovSgd:
    """Momentum and weight decay for the parameters of a network; `torch.optim.SGD` bit for bit.

    Only convolution and linear weights decay: biases and batch normalisation, which have one axis,
    do not.
    """

    def __init__(self, model: nn.Module, *, momentum: float, weight_decay: float) -> None:
        """Starts with no velocity; the network must already be on its device."""
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._parameters = dict(model.named_parameters())
        self._velocities = {name: torch.zeros_like(p) for name, p in self._parameters.items()}

    def forget_gradients(self) -> None:
        """Drops all gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Moves all parameters that have a gradient, at this learning rate."""
        names = [name for name, p in self._parameters.items() if p.grad is not None]
        parameters: list[Tensor] = [self._parameters[name] for name in names]
        velocities = [self._velocities[name] for name in names]
        gradients = [self._decayed(parameter) for parameter in parameters]
        # "foreach": one launch for many small tensors on a GPU, a loop on a CPU.
        torch._foreach_mul_(velocities, self.momentum)
        torch._foreach_add_(velocities, gradients)
        moves = torch._foreach_add(gradients, velocities, alpha=self.momentum)
        torch._foreach_add_(parameters, moves, alpha=-lr)

    def state(self) -> dict[str, Tensor]:
        """The velocity of each parameter by name."""
        return dict(self._velocities)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts saved velocities back."""
        for name, velocity in self._velocities.items():
            velocity.copy_(state[name])

    def _decayed(self, parameter: Tensor) -> Tensor:
        assert parameter.grad is not None  # noqa: S101  the caller has looked
        if self.weight_decay == 0 or parameter.ndim <= 1:
            return parameter.grad
        return parameter.grad.add(parameter, alpha=self.weight_decay)


class Adam:
    """Adam (Kingma and Ba, ICLR 2015) for the parameters of a network."""

    def __init__(self, model: nn.Module) -> None:
        """Starts with no moments; the network must already be on its device."""
        self._parameters: list[Tensor] = list(model.parameters())
        self._means = [torch.zeros_like(p) for p in self._parameters]
        self._squares = [torch.zeros_like(p) for p in self._parameters]
        self._steps = 0

    def forget_gradients(self) -> None:
        """Drops all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float, beta1: float = 0.9, beta2: float = 0.999) -> None:
        """Moves all parameters against their gradients, which every one of them has."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        self._steps += 1
        torch._foreach_lerp_(self._means, gradients, 1 - beta1)
        torch._foreach_mul_(self._squares, beta2)
        torch._foreach_addcmul_(self._squares, gradients, gradients, value=1 - beta2)
        below = torch._foreach_sqrt(self._squares)
        torch._foreach_div_(below, (1 - beta2**self._steps) ** 0.5)
        torch._foreach_add_(below, 1e-8)
        pace = -lr / (1 - beta1**self._steps)
        torch._foreach_addcdiv_(self._parameters, self._means, below, value=pace)
