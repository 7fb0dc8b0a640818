"""An exponential moving average of a network's weights over its training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of all weights and of the statistics of batch normalisation.

    The statistics are averaged as the weights are: those of the last batches belong to weights that
    the average has not reached. In its first steps the average follows faster, by a decay of
    (1 + t) / (10 + t) in step t, or the random first weights would stay in it for long.

    Source: Polyak and Juditsky 1992 for averaging; the faster start is TensorFlow's.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Starts at the network's weights; it must already be on its device."""
        self.decay = decay
        self._steps = 0
        state = model.state_dict()
        # Counters are no averages: what the network holds of them stays.
        self._live = {name: value for name, value in state.items() if value.is_floating_point()}
        self._means = {name: value.clone() for name, value in self._live.items()}

    @torch.no_grad()
    def follow(self) -> None:
        """Takes in the weights after a step."""
        self._steps += 1
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(list(self._means.values()), list(self._live.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the network has the averaged weights."""
        kept = {name: value.clone() for name, value in self._live.items()}
        self._put(self._means)
        try:
            yield
        finally:
            self._put(kept)

    def state(self) -> dict[str, Tensor]:
        """The averages by name, and the steps done."""
        return self._means | {"": torch.tensor(self._steps)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts a saved state back."""
        for name, mean in self._means.items():
            mean.copy_(state[name])
        self._steps = int(state[""])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, live in self._live.items():
            live.copy_(values[name])
