"""A training by several processes that `torchrun` started: each takes its share of every batch.

Gradients and the statistics of batch normalisation are those of the whole batch, so that the same
settings give what one process gives, but for the last bits, in which sums are taken in another
order. Networks that draw (dropout) draw other numbers in each process.
"""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from veilset.errors import TrainingError
from veilset.models.device import DeviceName, cuda_works
from veilset.training.feed import even_slices

_PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, and which of them this is.

    Attributes:
        index: Its number.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.index == 0

    def share(self, part: slice) -> slice:
        """This process's share of a batch, as even as it can be."""
        own = even_slices(part.stop - part.start, self.count)[self.index]
        return slice(part.start + own.start, part.start + own.stop)

    def add_up(self, values: Tensor) -> Tensor:
        """Adds the tensors of all processes, in place, and returns the sum."""
        if self.count > 1:
            with self._together():
                distributed.all_reduce(values)
        return values

    def add_up_gradients(self, model: nn.Module) -> None:
        """Adds the gradients of all processes, as one tensor."""
        if self.count == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        total = self.add_up(torch.cat([each.reshape(-1) for each in gradients]))
        sizes = [each.numel() for each in gradients]
        for gradient, part in zip(gradients, torch.split_with_sizes(total, sizes), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def collect(self, values: Tensor) -> Tensor:
        """The tensors of all processes along a new first axis."""
        if self.count == 1:
            return values[None]
        found = [torch.empty_like(values) for _ in range(self.count)]
        with self._together():
            distributed.all_gather(found, values)
        return torch.stack(found)

    def hand_out(self, data: bytes | None) -> bytes | None:
        """What the leading process holds, to all of them."""
        if self.count == 1:
            return data
        size = torch.tensor(-1 if data is None else len(data))
        with self._together():
            distributed.broadcast(size, src=0)
            if size < 0:
                return None
            content = torch.empty(int(size), dtype=torch.uint8)
            if self.leads:
                content.copy_(torch.frombuffer(bytearray(data or b""), dtype=torch.uint8))
            distributed.broadcast(content, src=0)
        return content.numpy().tobytes()

    def wait(self) -> None:
        """Waits until all processes are here."""
        self.add_up(torch.zeros(1))

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            raise TrainingError(
                f"another of the {self.count} processes of this training ended ({reason}): see "
                "what it says, and run the same command again to go on."
            ) from None


def join(device: DeviceName) -> Ranks:
    """Joins the other processes where `torchrun` started several; else this one is alone.

    They stay joined until this process ends, for further trainings.

    Raises:
        TrainingError: CUDA was chosen, and there are more processes than CUDA devices, or the
            processes cannot reach each other.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return Ranks()
    if not distributed.is_initialized():
        cuda = device != "cpu" and cuda_works()
        if cuda:
            _take_device(int(os.environ["LOCAL_RANK"]))
        try:
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"the processes of this training cannot reach each other ({reason}): run it again."
            ) from None
        atexit.register(distributed.destroy_process_group)
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def _take_device(index: int) -> None:
    there = torch.cuda.device_count()
    if index >= there:
        raise TrainingError(
            f"there are more processes than the {there} CUDA devices of this machine: start one "
            "for each device, or choose device cpu."
        )
    torch.cuda.set_device(index)


# ----------------------------------------------------------------------------- batch normalisation


def synchronise(model: nn.Module, ranks: Ranks) -> None:
    """Has every batch normalisation of a network take its statistics over all processes.

    Raises:
        TrainingError: One has no weights or no running statistics, which none of ours lacks.
    """
    for name, child in list(model.named_children()):
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            setattr(model, name, SyncedBatchNorm(child, ranks))
        else:
            synchronise(child, ranks)


class SyncedBatchNorm(nn.Module):
    """Batch normalisation over the batch of all processes; its state is that of torch's own.

    Source: Ioffe and Szegedy 2015, algorithm 1; the running variance is unbiased, as in torch.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, own: nn.modules.batchnorm._BatchNorm, ranks: Ranks) -> None:
        """Takes the place of one process's batch normalisation, with its weights."""
        super().__init__()
        if not own.affine or not own.track_running_stats or own.momentum is None:
            raise TrainingError(
                "this network normalises batches without weights or running means, which several "
                "processes cannot share: train it in one process."
            )
        self.weight, self.bias = own.weight, own.bias
        for name, buffer in own.named_buffers():
            self.register_buffer(name, buffer)
        self.eps, self.momentum, self.ranks = own.eps, own.momentum, ranks

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, ...) to the same shape and type."""
        weight, bias = self.weight, self.bias
        if not self.training:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, weight, bias, eps=self.eps
            )
        y, mean, variance, count = _SyncedNorm.apply(x, weight, bias, self.eps, self.ranks)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return y  # type: ignore[no-any-return]


class _SyncedNorm(torch.autograd.Function):
    """The normalisation and its gradient. Everything is computed in float32."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the output; mean and variance of the whole batch, (C,); its count, ()."""
        own = x.float()
        variance, mean = torch.var_mean(own, _axes(x), correction=0)
        size = mean.new_full((1,), x.numel() // x.shape[1])
        found = ranks.collect(torch.cat([size, mean, variance]))
        counts, means, variances = torch.split_with_sizes(found, [1, len(mean), len(mean)], dim=1)
        # From means and spreads, not from squares, of which the difference would be inexact.
        count = counts.sum()
        mean = (counts * means).sum(dim=0) / count
        variance = (counts * (variances + (means - mean) ** 2)).sum(dim=0) / count
        scale = (variance + eps).rsqrt()
        state: Any = ctx
        state.save_for_backward(x, weight, mean, scale, count)
        state.ranks = ranks
        state.mark_non_differentiable(mean, variance, count)
        slope = _wide(weight * scale, x)
        y = (own - _wide(mean, x)) * slope + _wide(bias, x)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of input, weight and bias; those of the last two of this share alone."""
        x, weight, mean, scale, count = ctx.saved_tensors
        normal = (x.float() - _wide(mean, x)) * _wide(scale, x)
        slope = dy.float()
        sums = torch.stack([slope.sum(_axes(x)), (slope * normal).sum(_axes(x))])
        of_bias, of_weight = sums.clone()
        shift, tilt = ctx.ranks.add_up(sums) / count
        dx = (slope - _wide(shift, x) - normal * _wide(tilt, x)) * _wide(weight * scale, x)
        return dx.to(x.dtype), of_weight, of_bias, None, None


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """Values (C,) as they apply to (N, C, ...)."""
    return values.view(-1, *[1] * (x.ndim - 2))
