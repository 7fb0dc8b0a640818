"""Stochastic gradient descent with Nesterov momentum, and Adam.

The same arithmetic as in `torch.optim`; but that imports torch's compiler when it is first used,
which takes seconds, as long as the training of a small set.
"""

from collections.abc import Mapping
from math import cos, pi
from typing import Protocol

import torch
from torch import Tensor, nn


def falling(rate: float, step: int, steps: int) -> float:
    """The learning rate of a step, from `rate` at the first to nothing along half a cosine."""
    return rate * (1 + cos(pi * step / steps)) / 2


class Optimiser(Protocol):
    """What moves the parameters of a network."""

    def forget_gradients(self) -> None:
        """Drops all gradients."""

    def step(self, lr: float) -> None:
        """Moves the parameters at this learning rate."""

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on besides the parameters."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts a saved state back."""


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
    """Adam (Kingma and Ba, ICLR 2015) for the parameters of a network.

    Weight decay is decoupled from the moments (AdamW; Loshchilov and Hutter, ICLR 2019), and of
    convolution and linear weights alone, as in `NesterovSgd`.
    """

    def __init__(self, model: nn.Module, *, weight_decay: float = 0.0) -> None:
        """Starts with no moments; the network must already be on its device."""
        self.weight_decay = weight_decay
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
        """Moves all parameters that have a gradient against it."""
        moved = [index for index, p in enumerate(self._parameters) if p.grad is not None]
        parameters = [self._parameters[index] for index in moved]
        gradients = [p.grad for p in parameters if p.grad is not None]
        means, squares = ([each[index] for index in moved] for each in (self._means, self._squares))
        self._steps += 1
        if self.weight_decay and (heavy := [p for p in parameters if p.ndim > 1]):
            torch._foreach_mul_(heavy, 1 - lr * self.weight_decay)
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        below = torch._foreach_sqrt(squares)
        torch._foreach_div_(below, (1 - beta2**self._steps) ** 0.5)
        torch._foreach_add_(below, 1e-8)
        pace = -lr / (1 - beta1**self._steps)
        torch._foreach_addcdiv_(parameters, means, below, value=pace)

    def state(self) -> dict[str, Tensor]:
        """Both moments of each parameter by its number, and the steps done."""
        means = {f"mean {index}": each for index, each in enumerate(self._means)}
        squares = {f"square {index}": each for index, each in enumerate(self._squares)}
        return means | squares | {"steps": torch.tensor(self._steps)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts a saved state back."""
        for index, (mean, square) in enumerate(zip(self._means, self._squares, strict=True)):
            mean.copy_(state[f"mean {index}"])
            square.copy_(state[f"square {index}"])
        self._steps = int(state["steps"])
