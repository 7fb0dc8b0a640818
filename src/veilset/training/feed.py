"""Batches of images: from the device's memory, or ahead of use from main memory or disk."""

import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, pairwise, zip_longest
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilset.data.stored import StoredRows
from veilset.models.augment import (
    Moves,
    Normalisation,
    count_values,
    measure_normalisation,
    normalisation_of,
    normalise,
    take,
)
from veilset.models.device import Engine
from veilset.training.loader import Mask, Pixels, Samples, with_mask
from veilset.types import Images

READ_BYTES = 32 << 20
"""Images that are read from disk at once, and used while the next ones are read."""

_IN_FLIGHT = 2  # batches whose work the device may still owe while the next one is copied


@dataclass(frozen=True)
class Data:
    """Images and labels as tensors, and how they become a network's input.

    Attributes:
        images: uint8 (N, H, W, C), on the device where they fit; C is one more with a mask.
        labels: int64 (N,), beside the images; in main memory where those are on disk.
        normalisation: That of the training images, without a mask.
        constants: The same as tensors on the device, made once: each copy there costs a wait; with
            a mask those that leave it as it is.
        device: Where batches are wanted.
        streamed: The images stay in main memory or on disk, and each batch is copied when it is
            due.
        digest: SHA-256 of images and labels.
    """

    images: Tensor | Pixels
    labels: Tensor
    normalisation: Normalisation
    constants: tuple[Tensor, Tensor]
    device: torch.device
    streamed: bool
    digest: str

    @classmethod
    def of(cls, samples: Samples, normalisation: Normalisation | None, engine: Engine) -> "Data":
        """Moves a set to the device, or leaves it where it is if it does not fit there.

        Args:
            samples: Images in memory or on disk; those on disk are all read and verified.
            normalisation: That of the training images; None measures that of these.
            engine: What computes.

        Raises:
            CorruptError: Stored bytes disagree with their hashes.
            TrainingError: A stored mask holds more than 0 and 1.
        """
        labels = np.require(samples.labels, requirements=["C", "W"])
        digest = hashlib.sha256()
        images, streamed, measured = _placed(samples, normalisation, engine, digest)
        _hash_into(digest, labels.shape, labels)
        place = torch.device("cpu") if streamed else engine.device
        applied = measured if samples.mask is None else measured.with_mask()
        return cls(
            images, torch.from_numpy(labels).to(place), measured,
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
        if not parts:  # of few validation images, a process may have none
            return
        if isinstance(self.images, Pixels):
            with closing(_from_disk(self.images, order, parts)) as read:
                if self.device.type == "cuda":
                    yield from _ahead(self, order, parts, read)
                    return
                for part, images in zip(parts, read, strict=True):
                    rows = torch.arange(len(images))
                    yield part, _Gathered(images, self.labels[order[part]], rows)
        elif self.streamed:
            yield from _ahead(self, order, parts)
        else:
            order = order.to(self.device)
            for part in parts:
                yield part, _Gathered(self.images, self.labels, order[part])


class _Gathered(NamedTuple):
    """Images among which those of a batch are, and which they are."""

    images: Tensor
    labels: Tensor
    rows: Tensor


def in_order(
    images: Images | StoredRows, mask: Mask | StoredRows | None, parts: Sequence[slice]
) -> Generator[Tensor, None, None]:
    """Images with their masks, uint8 (B, H, W, C), part by part; those on disk are read ahead.

    Close the iterator where it may be left early: it may hold a thread.

    Args:
        images: uint8 (N, H, W, C).
        mask: uint8 (N, H, W), which becomes a last channel, or None.
        parts: Neighbouring rows, in order.
    """
    if isinstance(images, StoredRows):
        yield from _from_disk(Pixels(images, mask), torch.arange(len(images)), parts)
        return
    for part in parts:
        own = None if mask is None else mask[part]
        yield torch.from_numpy(np.require(with_mask(images[part], own), requirements=["C", "W"]))


def even_slices(count: int, parts: int) -> list[slice]:
    """Cuts 0..count-1 into so many slices whose lengths differ by one at most.

    So every image is seen in every epoch, and no step has a batch of one or two images, whose
    statistics would upset batch normalisation.
    """
    edges = [count * index // parts for index in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


# ------------------------------------------------------------------------------- where images go


class _Placed(NamedTuple):
    """Where images are used from, and what was seen of them on the way there."""

    images: Tensor | Pixels
    streamed: bool
    normalisation: Normalisation


def _placed(
    samples: Samples, normalisation: Normalisation | None, engine: Engine, digest: "hashlib._Hash"
) -> _Placed:
    """Moves images to the device where they fit; `digest` takes in their shape and their bytes."""
    if isinstance(samples.images, StoredRows):
        pixels = Pixels(samples.images, samples.mask)
        return _placed_from_disk(pixels, samples.images.shape[3], normalisation, engine, digest)
    mask = None if samples.mask is None else samples.mask[:]
    array = np.require(with_mask(samples.images, mask), requirements=["C", "W"])
    _hash_into(digest, array.shape, array)
    streamed = not engine.fits(array.nbytes)
    place = torch.device("cpu") if streamed else engine.device
    return _Placed(
        torch.from_numpy(array).to(place), streamed,
        normalisation or measure_normalisation(samples.images),
    )  # fmt: skip


def _placed_from_disk(
    pixels: Pixels, channels: int, normalisation: Normalisation | None, engine: Engine,
    digest: "hashlib._Hash",
) -> _Placed:  # fmt: skip
    """Reads all images once, in order: that verifies them, whatever may be read of them later."""
    moved = None
    if engine.device.type == "cuda" and engine.fits(prod(pixels.shape)):
        moved = torch.empty(pixels.shape, dtype=torch.uint8, device=engine.device)
    counts = np.zeros((channels, 256), dtype=np.int64)
    digest.update(f"{pixels.shape}".encode())
    for part in _spans(len(pixels), READ_BYTES // prod(pixels.shape[1:])):
        block = pixels[part]
        digest.update(block.data.cast("B"))
        if normalisation is None:
            counts += count_values(block[..., :channels])
        if moved is not None:
            moved[part] = torch.from_numpy(block).to(engine.device)
    return _Placed(
        pixels if moved is None else moved, moved is None,
        normalisation or normalisation_of(counts),
    )  # fmt: skip


def _hash_into(digest: "hashlib._Hash", shape: tuple[int, ...], values: npt.NDArray[Any]) -> None:
    digest.update(f"{shape}".encode())
    digest.update(values.data.cast("B"))


def _spans(count: int, size: int) -> Iterator[slice]:
    """0..count-1 in pieces of `size`, but one at least."""
    for start in range(0, count, max(1, size)):
        yield slice(start, min(start + max(1, size), count))


# -------------------------------------------------------------------------------------- from disk


def _from_disk(
    images: Pixels, order: Tensor, parts: Sequence[slice]
) -> Generator[Tensor, None, None]:
    """The images of each batch in turn, uint8 (B, H, W, C), read ahead by a thread.

    The rows of many batches are read at once, in the order in which they lie on disk, while those
    read before are used: two such pieces are in memory, whatever the size of the set.
    """
    most = max(1, READ_BYTES // prod(images.shape[1:]))
    pieces = list(_pieces([part.stop - part.start for part in parts], most))
    rows = iter([order[part] for part in parts])

    def read(sizes: Sequence[int]) -> Tensor:
        wanted = torch.cat(list(islice(rows, len(sizes))))
        return torch.from_numpy(images[wanted.numpy()])

    with ThreadPoolExecutor(1, "veilset-read") as thread:
        coming = thread.submit(read, pieces[0])
        for piece, following in zip_longest(pieces, pieces[1:]):
            there = coming.result()
            if following is not None:
                coming = thread.submit(read, following)
            yield from torch.split(there, list(piece))


def _pieces(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Neighbouring batches that are read together: at first one, so that none waits for many.

    Each piece has at most twice the images of the one before, and `most`, but one batch at least.
    """
    piece: list[int] = []
    limit = 0
    for size in sizes:
        if piece and sum(piece) + size > limit:
            yield piece
            piece, limit = [], min(most, 2 * sum(piece))
        piece.append(size)
    yield piece


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


def _ahead(
    data: Data, order: Tensor, parts: Sequence[slice], read: Iterator[Tensor] | None = None
) -> Iterator[tuple[slice, _Gathered]]:
    """Has a thread gather and copy each batch while the one before it is trained on.

    Its images are the next ones of `read`, where that is given. On CUDA the copy runs beside the
    computation, on a stream of its own and out of pinned memory, and images are moved only once
    they are there: the thread does no more than copy rows.
    """
    cuda = data.device.type == "cuda"
    side = torch.cuda.Stream(data.device) if cuda else None  # type: ignore[no-untyped-call]
    owed: deque[torch.cuda.Event] = deque()
    with ThreadPoolExecutor(1, "veilset-feed") as thread:
        coming = thread.submit(_copy, data, order[parts[0]], side, read)
        for part, following in zip_longest(parts, parts[1:]):
            images, labels, ready = coming.result()
            if following is not None:
                coming = thread.submit(_copy, data, order[following], side, read)
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


def _copy(
    data: Data, rows: Tensor, side: torch.cuda.Stream | None, read: Iterator[Tensor] | None
) -> _Copied:
    """In the thread: the rows of a batch, on CUDA by way of pinned memory."""
    if side is None:
        images, labels = _picked(data, rows, read, pinned=False)
        return _Copied(images, labels, None)
    with torch.cuda.stream(side):  # also of the right device, which a thread does not inherit
        images, labels = (
            each.to(data.device, non_blocking=True)
            for each in _picked(data, rows, read, pinned=True)
        )
        return _Copied(images, labels, side.record_event())


def _picked(
    data: Data, rows: Tensor, read: Iterator[Tensor] | None, *, pinned: bool
) -> tuple[Tensor, Tensor]:
    """Copies of rows of images and labels in main memory."""
    shape = (len(rows), *data.images.shape[1:])
    images = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
    labels = torch.empty(len(rows), dtype=data.labels.dtype, pin_memory=pinned)
    if read is not None:
        images.copy_(next(read))
    elif isinstance(data.images, Tensor):
        torch.index_select(data.images, 0, rows, out=images)
    torch.index_select(data.labels, 0, rows, out=labels)
    return images, labels
