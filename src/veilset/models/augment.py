"""Batches from a resident set of images: gather, shift and mirror by indexing alone.

On a CPU compiled loops do it, one pass for each; elsewhere tensor operations, with the same bits.

There is no worker process and no copy of an image before it is used. All random draws come from a
CPU generator, a whole epoch at once, so that they are the same on every device (CUDA's own streams
differ between GPUs with different numbers of processors).
"""

from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
import torch
from torch import Tensor

from veilset.models._cpu_batches import gather, standardise
from veilset.types import Images, IntArray

_COUNTED: Final = 1 << 21  # values at once: each takes eight bytes while it is counted


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied.

    Attributes:
        flip: Mirror half of them left to right.
        crop: Largest shift in pixels, each way.
    """

    flip: bool
    crop: int


@dataclass(frozen=True)
class Moves:
    """What happens to each image of a batch: it is mirrored, then shifted.

    Attributes:
        down: Shift in pixels, int64 (N,).
        right: Shift in pixels, int64 (N,).
        mirrored: Left to right, bool (N,).
    """

    down: Tensor
    right: Tensor
    mirrored: Tensor

    def at(self, part: slice | Tensor) -> "Moves":
        """The moves of some of the images."""
        return Moves(self.down[part], self.right[part], self.mirrored[part])

    def to(self, device: torch.device) -> "Moves":
        """The moves on a device."""
        return Moves(self.down.to(device), self.right.to(device), self.mirrored.to(device))


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel of the training images, in units of 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, pixels: Tensor) -> Tensor:
        """Maps uint8 (N, C, H, W) to float32 of mean 0 and deviation 1 over the training images."""
        return normalise(pixels, *self.constants(pixels.device))

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation as float32 (C, 1, 1) on a device, for `normalise`."""
        mean, std = (torch.tensor(each, device=device) for each in (self.mean, self.std))
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def with_mask(self) -> "Normalisation":
        """The same for images with a mask as a further channel, whose 0 and 1 stay 0 and 1."""
        return Normalisation((*self.mean, 0.0), (*self.std, 1 / 255))


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Maps uint8 (N, C, H, W) to float32, with mean and deviation (C, 1, 1) in units of 0..1."""
    values = pixels.permute(0, 2, 3, 1)
    if pixels.device.type != "cpu" or pixels.dtype != torch.uint8 or not values.is_contiguous():
        return pixels.float().div_(255).sub_(mean).div_(std)
    # With the same strides, which decide between kernels where there is one channel.
    out = torch.empty_like(pixels, dtype=torch.float32)
    means, stds = (each.view(-1).repeat(values.shape[2]).numpy() for each in (mean, std))
    standardise(values.numpy(), means, stds, out.permute(0, 2, 3, 1).numpy())
    return out


def measure_normalisation(images: Images) -> Normalisation:
    """Mean and deviation of uint8 (N, H, W, C) images by channel.

    Computed from counts of the 256 values, so exactly the same in any order of the images. A
    channel without contrast gets a deviation of one grey level.
    """
    return normalisation_of(count_values(images))


def count_values(images: Images) -> IntArray:
    """How often each channel of uint8 (N, H, W, C) has each of the 256 values, int64 (C, 256)."""
    counts = np.zeros((images.shape[-1], 256), dtype=np.int64)
    size = max(1, _COUNTED // prod(images.shape[1:]))
    for start in range(0, len(images), size):
        part = images[start : start + size]
        counts += [np.bincount(part[..., c].ravel(), minlength=256) for c in range(len(counts))]
    return counts


def normalisation_of(counts: IntArray) -> Normalisation:
    """As `measure_normalisation`, from what `count_values` counted, summed over all images."""
    values = np.arange(256) / 255
    mean = (counts * values).sum(axis=1) / counts.sum(axis=1)
    spread = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / counts.sum(axis=1)
    std = np.maximum(np.sqrt(spread), 1 / 255)
    return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))


def draw_moves(count: int, augmentation: Augmentation, generator: torch.Generator) -> Moves:
    """Draws the moves of so many images.

    Args:
        count: Number of images.
        augmentation: Which moves there are.
        generator: A CPU generator; always as many draws, whatever the augmentation.
    """
    reach = augmentation.crop
    shifts = torch.randint(-reach, reach + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    return Moves(shifts[0], shifts[1], mirrored & augmentation.flip)


def take(images: Tensor, rows: Tensor, moves: Moves | None = None) -> Tensor:
    """Gathers images and moves them.

    Args:
        images: uint8 (N, H, W, C).
        rows: int64 (B,), on the device of `images`.
        moves: Moves of B images, on the device of `images`; None leaves them where they are.

    Returns:
        uint8 (B, C, H, W), channels last in memory.
    """
    if moves is None:
        return images[rows].permute(0, 3, 1, 2)
    if images.device.type == "cpu" and images.is_contiguous():
        out = torch.empty((len(rows), *images.shape[1:]), dtype=torch.uint8)
        arrays = (images, rows, moves.down, moves.right, moves.mirrored, out)
        gather(*(each.contiguous().numpy() for each in arrays))
        return out.permute(0, 3, 1, 2)
    return take_by_indexing(images, rows, moves)


def take_by_indexing(images: Tensor, rows: Tensor, moves: Moves) -> Tensor:
    """`take` by tensor operations, on any device."""
    height, width = images.shape[1:3]
    ys = _reflect(_positions(height, moves.down), height)
    xs = _reflect(_positions(width, moves.right), width)
    xs = torch.where(moves.mirrored[:, None], width - 1 - xs, xs)
    channels = images.shape[3]
    lines = images[rows[:, None], ys].reshape(len(rows), height, width * channels)
    places = xs[:, :, None] * channels + torch.arange(channels, device=xs.device)
    moved = lines.gather(2, places.view(len(rows), 1, -1).expand(lines.shape))
    return moved.view(len(rows), height, width, channels).permute(0, 3, 1, 2)


def _positions(size: int, shifts: Tensor) -> Tensor:
    """Where each pixel of a row comes from, int64 (B, size)."""
    return torch.arange(size, device=shifts.device)[None, :] - shifts[:, None]


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Folds positions outside of 0..size-1 back at the edge, which is not repeated."""
    last = size - 1
    return last - (last - positions.abs()).abs()
