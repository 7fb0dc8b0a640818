"""Figures of a training while an epoch runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

EVERY = 1.0
"""Seconds between two beats, at least."""


@dataclass(frozen=True)
class Beat:
    """How far a training is, and how it does.

    Attributes:
        epoch: The running epoch, from 1.
        epochs: All epochs.
        done: Images trained on in this epoch.
        count: Images of an epoch.
        rate: Images a second, since the last beat.
        loss: Mean training loss in this epoch so far; of several processes, in the first one's
            share.
        accuracy: Likewise, 0..1.
        seconds_left: Of the whole run, by its pace in this process so far; the first epoch knows
            of no validation yet.
    """

    epoch: int
    epochs: int
    done: int
    count: int
    rate: float
    loss: float
    accuracy: float
    seconds_left: float


Listener = Callable[[Beat], None]
"""Called every second or so during an epoch."""


class _Look(NamedTuple):
    """Sums that were on their way to the processor, and how much they cover."""

    sums: Tensor
    arrived: torch.cuda.Event | None
    done: int
    seen: int


class Pulse:
    """Tells a listener of a training every second or so, without ever waiting for the device.

    On CUDA the processor runs ahead of the device. The sums are copied behind the work that makes
    them, and looked at once they have arrived: so a beat tells what is done, not what is queued.
    """

    def __init__(self, listener: Listener, epochs: int, count: int) -> None:
        """Starts the clock."""
        self._listener, self._epochs, self._count = listener, epochs, count
        self._began = self._beaten = time.perf_counter()
        self._epoch = self._before = self._counted = 0
        self._look: _Look | None = None

    def start(self, epoch: int) -> None:
        """Begins an epoch, from 1."""
        if self._epoch:
            self._before += self._count
        self._epoch, self._counted, self._look = epoch, 0, None
        self._beaten = time.perf_counter()

    def step(self, done: int, seen: int, loss: Tensor, correct: Tensor) -> None:
        """Takes note of a step.

        Args:
            done: Images trained on in this epoch.
            seen: As many of them as the sums cover.
            loss: Sum of their losses, on the device.
            correct: Sum of right answers, on the device.
        """
        if self._look is None and time.perf_counter() - self._beaten >= EVERY:
            sums, arrived = torch.stack([loss, correct]), None
            if sums.is_cuda:
                pinned = torch.empty_like(sums, device="cpu", pin_memory=True)
                sums = pinned.copy_(sums, non_blocking=True)
                arrived = torch.cuda.current_stream().record_event()
            self._look = _Look(sums, arrived, done, seen)
        look = self._look
        if look is not None and (look.arrived is None or look.arrived.query()):  # type: ignore[no-untyped-call]
            self._tell(look)
            self._look = None

    def _tell(self, look: _Look) -> None:
        now = time.perf_counter()
        trained = self._before + look.done
        left = (self._epochs - self._epoch + 1) * self._count - look.done
        loss, correct = (float(each) / look.seen for each in look.sums)
        rate = (look.done - self._counted) / max(now - self._beaten, 1e-9)
        self._beaten, self._counted = now, look.done
        self._listener(
            Beat(
                self._epoch, self._epochs, look.done, self._count, rate, loss, correct,
                left * (now - self._began) / trained,
            )
        )  # fmt: skip
