"""A classifier that a scheme learns from: trained on plain images, then frozen.

Smaller than `veilset.training`, which trains what is measured: no checkpoints, no evaluation, and
the network takes pixels as they are, so that gradients reach them.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from veilset.models.augment import (
    Augmentation,
    Normalisation,
    draw_moves,
    measure_normalisation,
    take,
)
from veilset.models.device import Engine, kernels
from veilset.models.optimiser import NesterovSgd
from veilset.models.registry import make_model
from veilset.types import Images, Labels

Arrays = Mapping[str, npt.NDArray[Any]]
Progress = Callable[[int, int], None]
M = TypeVar("M", bound=nn.Module)

_BATCH = 64


class Teacher(nn.Module):
    """A classifier of pixels in 0..1: it normalises them itself.

    Attributes:
        net: The classifier of normalised images.
        mean: Of each channel, float32 (C, 1, 1).
        std: Of each channel, float32 (C, 1, 1).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.net = net
        for name, values in (("mean", normalisation.mean), ("std", normalisation.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps float (N, C, H, W) in 0..1 to logits (N, classes)."""
        return self.net((pixels - self.mean) / self.std)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Recipe:
    """How a teacher is trained: SGD with Nesterov momentum 0.9, weight decay 5e-4, one cycle.

    Attributes:
        architecture: A name that `make_model` knows.
        parameters: Of the architecture.
        epochs: Passes over the images.
        batch_size: Images a step.
        lr: Peak learning rate.
        flip: Mirror half of the images.
        crop: Shift by up to so many pixels.
        seed: Of the initial weights, the order and the augmentation.
    """

    architecture: str
    parameters: Mapping[str, Any]
    epochs: int
    batch_size: int = _BATCH
    lr: float = 0.1
    flip: bool = False
    crop: int = 2
    seed: int = 0


def train_teacher(
    images: Images, labels: Labels, classes: int, recipe: Recipe, device: str = "cpu",
    progress: Progress | None = None,
) -> Teacher:  # fmt: skip
    """Trains a classifier of plain images.

    Args:
        images: uint8 (N, H, W, C), at least 2.
        labels: int64 (N,).
        classes: How many there are.
        recipe: How.
        device: As torch names it.
        progress: Called after each step with the steps done and all steps, or None.

    Returns:
        The teacher, frozen, in evaluation mode, on the device: the same weights for the same input
        on the same kind of device and number of threads.

    Raises:
        SettingsError: The architecture refuses these images.

    Source: ours.
    """
    shape = (images.shape[1], images.shape[2], images.shape[3])
    net = make_model(recipe.architecture, shape, classes, seed=recipe.seed, **recipe.parameters)
    teacher = Teacher(net, measure_normalisation(images)).to(device)
    optimiser = NesterovSgd(teacher.net, momentum=0.9, weight_decay=5e-4)
    sampler = torch.Generator().manual_seed(recipe.seed)
    pixels, answers = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    # Equal batches: a last one of a single image has no batch statistics.
    steps = max(1, round(len(images) / recipe.batch_size))
    total, done = steps * recipe.epochs, 0
    augmentation = Augmentation(recipe.flip, recipe.crop)
    with quiet_kernels(device), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        teacher.train()
        for _ in range(recipe.epochs):
            order = torch.randperm(len(images), generator=sampler)
            moves = draw_moves(len(images), augmentation, sampler)
            for rows in order.tensor_split(steps):
                batch = take(pixels, rows.to(device), moves.at(rows).to(torch.device(device)))
                logits = teacher(batch.float().div_(255))
                loss = functional.cross_entropy(logits, answers[rows.to(device)])
                optimiser.forget_gradients()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step(recipe.lr * _cycle(done / total))
                done += 1
                if progress is not None:
                    progress(done, total)
    return freeze(teacher)


def freeze(module: M) -> M:
    """The module in evaluation mode, none of its weights trainable."""
    return module.eval().requires_grad_(False)


def accuracy(teacher: nn.Module, images: Images, labels: Labels, device: str = "cpu") -> float:
    """The share of images that a classifier of pixels in 0..1 answers rightly."""
    right = 0
    with torch.inference_mode(), quiet_kernels(device):
        for low in range(0, len(images), 512):
            pixels = pixels_of(images[low : low + 512], device)
            said = teacher(pixels).argmax(dim=1).cpu().numpy()
            right += int((said == labels[low : low + 512]).sum())
    return right / max(1, len(images))


def pixels_of(images: Images, device: str = "cpu") -> Tensor:
    """uint8 (N, H, W, C) as float32 (N, C, H, W) in 0..1 on a device."""
    moved = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
    return moved.float().div_(255)


def pack(module: nn.Module, prefix: str) -> dict[str, npt.NDArray[Any]]:
    """A module's weights and buffers as arrays named `<prefix>/<name>`."""
    state = module.state_dict()
    return {f"{prefix}/{name}": value.detach().cpu().numpy() for name, value in state.items()}


def unpack(module: M, arrays: Arrays, prefix: str) -> M:
    """Puts packed arrays back into a module of the same form, and freezes it."""
    mark = f"{prefix}/"
    state = {
        name.removeprefix(mark): torch.from_numpy(np.array(values))
        for name, values in arrays.items()
        if name.startswith(mark)
    }
    module.load_state_dict(state)
    return freeze(module)


def load_teacher(
    arrays: Arrays, prefix: str, architecture: str, parameters: Mapping[str, Any],
    shape: tuple[int, int, int], classes: int,
) -> Teacher:  # fmt: skip
    """The teacher that `pack` packed, for images (H, W, C), on the CPU."""
    net = make_model(architecture, shape, classes, **parameters)
    empty = Normalisation((0.0,) * shape[2], (1.0,) * shape[2])
    return unpack(Teacher(net, empty), arrays, prefix)


def quiet_kernels(device: str) -> AbstractContextManager[None]:
    """Deterministic kernels inside the block."""
    return kernels(Engine(torch.device(device), "fp32"), deterministic=True)


def _cycle(done: float) -> float:
    """The learning rate as a share of its peak: up for a quarter of the time, then down."""
    rise = 0.25
    return max(0.04, done / rise) if done < rise else (1 - done) / (1 - rise)
