"""Batches of a set of images: from the device's memory, or from main memory one batch ahead."""

import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from veilset.models.augment import Moves, Normalisation, normalise, take
from veilset.models.device import Engine
from veilset.training.loader import Samples, with_mask

_IN_FLIGHT = 2  # batches whose work the device may still owe while the next one is copied


@dataclass(frozen=True)
class Data:
    """Images and labels as tensors, and how they become a network's input.

    Attributes:
        images: uint8 (N, H, W, C), on the device where they fit; C is one more with a mask.
        labels: int64 (N,), beside the images.
        normalisation: That of the training images, without a mask.
        constants: The same as tensors on the device, made once: each copy there costs a wait; with
            a mask those that leave it as it is.
        device: Where batches are wanted.
        streamed: The images stay in main memory, and each batch is copied when it is due.
        digest: SHA-256 of images and labels.
    """

    images: Tensor
    labels: Tensor
    normalisation: Normalisation
    constants: tuple[Tensor, Tensor]
    device: torch.device
    streamed: bool
    digest: str

    @classmethod
    def of(cls, samples: Samples, normalisation: Normalisation, engine: Engine) -> "Data":
        """Moves a set to the device, or leaves it in main memory where it does not fit there."""
        pixels = np.require(with_mask(samples.images, samples.mask), requirements=["C", "W"])
        labels = np.require(samples.labels, requirements=["C", "W"])
        digest = hashlib.sha256()
        for each in (pixels, labels):
            digest.update(f"{each.shape}".encode())
            digest.update(memoryview(each).cast("B"))  # type: ignore[arg-type]
        streamed = not engine.fits(pixels.nbytes)
        place = torch.device("cpu") if streamed else engine.device
        applied = normalisation if samples.mask is None else normalisation.with_mask()
        return cls(
            torch.from_numpy(pixels).to(place), torch.from_numpy(labels).to(place), normalisation,
            applied.constants(engine.device), engine.device, streamed, digest.hexdigest(),
        )  # fmt: skip

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def inputs(self, pixels: Tensor) -> Tensor:
        """What a network reads of a batch: float32 (B, C, H, W), channels last."""
        return normalise(pixels, *self.constants)

    def batches(
        self, order: Tensor, moves: Moves | None, parts: Sequence[slice]
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """The images in an order, batch by batch: the same bytes from either memory.

        Close the iterator where it may be left early: it may hold a thread.

        Args:
            order: Rows, int64 (M,), on the CPU.
            moves: Moves of M images, on the CPU; None leaves the images where they are.
            parts: Which places in the order make each batch, one image at least.

        Yields:
            Images uint8 (B, C, H, W), channels last, and labels int64 (B,), on the device.
        """
        moves = None if moves is None else moves.to(self.device)
        for part, batch in self._gathered(order, parts):
            yield (
                take(batch.images, batch.rows, None if moves is None else moves.at(part)),
                (batch.labels[batch.rows]),
            )

    def _gathered(
        self, order: Tensor, parts: Sequence[slice]
    ) -> Iterator[tuple[slice, "_Gathered"]]:
        if self.streamed:
            yield from _ahead(self, order, parts)
            return
        order = order.to(self.device)
        for part in parts:
            yield part, _Gathered(self.images, self.labels, order[part])


class _Gathered(NamedTuple):
    """Images among which those of a batch are, and which they are."""

    images: Tensor
    labels: Tensor
    rows: Tensor


def even_slices(count: int, parts: int) -> list[slice]:
    """Cuts 0..count-1 into so many slices whose lengths differ by one at most.

    So every image is seen in every epoch, and no step has a batch of one or two images, whose
    statistics would upset batch normalisation.
    """
    edges = [count * index // parts for index in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


# -------------------------------------------------------------------------------- from main memory


class _Copied(NamedTuple):
    """A batch on its way to the device, as it lies in main memory: unmoved.

    Attributes:
        images: uint8 (B, H, W, C).
        labels: int64 (B,).
        ready: On CUDA, when the copy is done.
    """

    images: Tensor
    labels: Tensor
    ready: torch.cuda.Event | None


def _ahead(data: Data, order: Tensor, parts: Sequence[slice]) -> Iterator[tuple[slice, _Gathered]]:
    """Has a thread gather and copy each batch while the one before it is trained on.

    On CUDA the copy runs beside the computation, on a stream of its own and out of pinned memory,
    and images are moved only once they are there: the thread does no more than copy rows.
    """
    cuda = data.device.type == "cuda"
    side = torch.cuda.Stream(data.device) if cuda else None  # type: ignore[no-untyped-call]
    owed: deque[torch.cuda.Event] = deque()
    with ThreadPoolExecutor(1, "veilset-feed") as thread:
        coming = thread.submit(_copy, data, order[parts[0]], side)
        for part, following in zip_longest(parts, parts[1:]):
            images, labels, ready = coming.result()
            if following is not None:
                coming = thread.submit(_copy, data, order[following], side)
            if ready is not None:
                here = torch.cuda.current_stream(data.device)
                here.wait_event(ready)
                for each in (images, labels):
                    each.record_stream(here)
                # The processor queues work faster than it is done, and each batch takes memory.
                if len(owed) == _IN_FLIGHT:
                    owed.popleft().synchronize()
            yield part, _Gathered(images, labels, torch.arange(len(labels), device=data.device))
            if ready is not None:
                owed.append(torch.cuda.current_stream(data.device).record_event())


def _copy(data: Data, rows: Tensor, side: torch.cuda.Stream | None) -> _Copied:
    """In the thread: the rows of a batch, on CUDA by way of pinned memory."""
    if side is None:
        images, labels = _picked(data, rows, pinned=False)
        return _Copied(images, labels, None)
    with torch.cuda.stream(side):  # also of the right device, which a thread does not inherit
        images, labels = (
            each.to(data.device, non_blocking=True) for each in _picked(data, rows, pinned=True)
        )
        return _Copied(images, labels, side.record_event())


def _picked(data: Data, rows: Tensor, *, pinned: bool) -> tuple[Tensor, Tensor]:
    """Copies of rows of images and labels in main memory."""
    images, labels = (
        torch.empty((len(rows), *each.shape[1:]), dtype=each.dtype, pin_memory=pinned)
        for each in (data.images, data.labels)
    )
    torch.index_select(data.images, 0, rows, out=images)
    torch.index_select(data.labels, 0, rows, out=labels)
    return images, labels
