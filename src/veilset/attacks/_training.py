"""How the attacks' networks are trained: along a cosine, with short gradients, and watched."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from veilset.attacks.base import Diverged, Progress
from veilset.models.optimiser import Adam, falling

_LOOK = 20
"""Steps between looks at the loss: each look waits for the device."""


def descend(
    net: nn.Module, optimiser: Adam, losses: Iterable[Tensor], rate: float, *,
    steps: int, what: str, progress: Progress | None, span: range | None = None,
) -> list[Tensor]:  # fmt: skip
    """Trains a network along losses, each of which is computed when its step has come.

    Args:
        net: The network.
        optimiser: Of its parameters.
        losses: A loss for each step that is made.
        rate: The highest learning rate.
        steps: All steps, over which the rate falls to nothing.
        what: What the progress is called.
        progress: Called every 20 steps, or None.
        span: Which of them are made now; by default all.

    Returns:
        The losses, without their gradients.

    Raises:
        Diverged: A loss became NaN or infinite.

    Source: ours.
    """
    made = []
    span = range(steps) if span is None else span
    for step, loss in zip(span, losses, strict=True):
        made.append(loss.detach())
        optimiser.forget_gradients()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step(falling(rate, step, steps))
        if step % _LOOK == 0 or step == span[-1]:
            if not bool(torch.isfinite(loss)):
                raise Diverged(f"the loss was not a number at step {step}")
            if progress:
                progress(what, step + 1, steps)
    return made
