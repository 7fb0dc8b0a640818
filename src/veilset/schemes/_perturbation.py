"""The networks of image_to_perturbation: the transform, the features it moves away from, training.

Imported by the scheme only when it learns or protects: torch takes a second to import.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from veilset.errors import ProtectionError
from veilset.models.augment import Augmentation, draw_moves, take
from veilset.models.device import Engine, kernels
from veilset.models.optimiser import Adam
from veilset.models.teacher import Recipe, Teacher, freeze, pixels_of, quiet_kernels, train_teacher
from veilset.models.unet import UNet
from veilset.models.vgg import Vgg16
from veilset.schemes.fitted import Lessons, Progress
from veilset.types import Images

WEIGHTS_VARIABLE: Final = "VEILSET_VGG16_WEIGHTS"
"""Environment variable that names torchvision's file of VGG-16's ImageNet weights."""

WEIGHTS_FILE: Final = "vgg16-397923af.pth"
"""Name under which torchvision keeps it in torch's cache."""

_PAPER_WIDTH: Final = 64
_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_MICRO_BATCH: Final = 32
_MICRO_PIXELS: Final = 1 << 18
_SCALE_IMAGES: Final = 512


# ------------------------------------------------------------------------------ the transform


class PaperUNet(nn.Module):
    """The U-Net of the authors' code: batch normalisation, 2x2 maxima, nearest upsampling.

    Source: Ito et al., IEEE Access 2021, and its published code (34,527,171 parameters for RGB).
    """

    def __init__(self, channels: int, width: int = _PAPER_WIDTH) -> None:
        """Builds it: `width` channels at full resolution, 16 times as many at a sixteenth."""
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        befores = [channels, *widths[:-1]]
        self.down = nn.ModuleList(_double(b, w) for b, w in zip(befores, widths, strict=True))
        levels = list(reversed(range(4)))
        self.rise = nn.ModuleList(_single(widths[i + 1], widths[i]) for i in levels)
        self.up = nn.ModuleList(_double(2 * widths[i], widths[i]) for i in levels)
        self.last = nn.Conv2d(width, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps float (N, C, H, W) to float (N, C, H, W); sizes are padded inside."""
        height, width = images.shape[-2:]
        x = functional.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate")
        skips: list[Tensor] = []
        for index, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if index else x)
            skips.append(x)
        skips.pop()
        for rise, block in zip(self.rise, self.up, strict=True):
            x = block(torch.cat([skips.pop(), rise(_twice(x))], dim=1))
        return self.last(x)[..., :height, :width]  # type: ignore[no-any-return]


class Transform(nn.Module):
    """h: a network and the sigmoid after it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps float (N, C, H, W) in 0..1 to the same."""
        return torch.sigmoid(self.net(pixels))


def make_transform(
    network: str, channels: int, *, base: int, depth: int, fold: int, seed: int
) -> Transform:
    """A transform with fresh weights; torch's global generator is left as it was.

    Args:
        network: `small`, or `paper`, which knows no further sizes.
        channels: Of the images.
        base: As `UNet` has it.
        depth: As `UNet` has it.
        fold: As `UNet` has it.
        seed: Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if network == "paper":
            return Transform(PaperUNet(channels, _PAPER_WIDTH))
        return Transform(UNet(channels, channels, base, depth, fold))


def run(net: nn.Module, images: Images, device: str) -> npt.NDArray[np.float32]:
    """What a network in evaluation mode makes of images, the same for any batch and any order.

    Kernels are chosen by the size of a batch, and differ in the last bit: so every batch has the
    same size, filled up with black images, and a CPU uses one thread.

    Args:
        net: Takes float (N, C, H, W) in 0..1.
        images: uint8 (N, H, W, C), at least one.
        device: Where the network is.

    Returns:
        float32 (N, ...).
    """
    step = max(1, min(_MICRO_BATCH, _MICRO_PIXELS // (images.shape[1] * images.shape[2])))
    engine, made = Engine(torch.device(device), "fp32"), []
    with torch.inference_mode(), kernels(engine, deterministic=True, threads=1):
        for low in range(0, len(images), step):
            part = images[low : low + step]
            batch = np.zeros((step, *images.shape[1:]), dtype=np.uint8)
            batch[: len(part)] = part
            made.append(net(pixels_of(batch, device))[: len(part)].cpu().numpy())
    return np.concatenate(made)


def transformed(net: nn.Module, images: Images, device: str) -> Images:
    """Images after the transform, rounded to grey levels, uint8 (N, H, W, C)."""
    if len(images) == 0:
        return images.copy()
    made = np.rint(run(net, images, device) * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(made.transpose(0, 2, 3, 1))


def _single(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_single(inputs, outputs), *_single(outputs, outputs))


def _twice(x: Tensor) -> Tensor:
    """Each pixel as a square of four; its gradients are deterministic on every device."""
    n, channels, height, width = x.shape
    wide = x[:, :, :, None, :, None].expand(n, channels, height, 2, width, 2)
    return wide.reshape(n, channels, 2 * height, 2 * width)


# ------------------------------------------------------------------------------ the features


class Features(nn.Module):
    """phi: features of pixels in 0..1.

    Attributes:
        net: The layers, from normalised images.
        mean: float32 (C, 1, 1).
        std: float32 (C, 1, 1).
        unit: What mean squared differences are divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor, unit: float = 1.0) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.unit = unit

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps float (N, C, H, W) in 0..1 to features (N, F, h, w)."""
        return self.net((pixels - self.mean) / self.std)  # type: ignore[no-any-return]

    def distance(self, made: Tensor, plain: Tensor) -> Tensor:
        """Mean squared difference of the features of each pair, float (N,)."""
        with torch.no_grad():
            wanted = self(plain)
        squares: Tensor = (self(made) - wanted).square()
        return squares.mean(dim=(1, 2, 3)) / self.unit


def own_features(
    lessons: Lessons, recipe: Recipe, device: str, progress: Progress | None
) -> Features:
    """Layers up to relu2_2 of a VGG-16 that is trained on the same plain images.

    Their unit is the mean square of the plain images' features: 1 is the distance to nothing at
    all.
    """
    found = train_teacher(lessons.images, lessons.labels, lessons.classes, recipe, device, progress)
    assert isinstance(found.net, Vgg16)  # noqa: S101  the recipe says so
    phi = freeze(Features(found.net.stages[:2], found.mean, found.std))
    with torch.inference_mode(), quiet_kernels(device):
        square = phi(pixels_of(lessons.images[:_SCALE_IMAGES], device)).square().mean()
    phi.unit = max(float(square), 1e-6)
    return phi


def weights_file() -> Path:
    """Where VGG-16's ImageNet weights are looked for: the environment, then torch's cache."""
    named = os.environ.get(WEIGHTS_VARIABLE)
    return Path(named) if named else Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_FILE


def imagenet_features(channels: int, device: str) -> Features:
    """relu2_2 of torchvision's VGG-16 with its ImageNet weights, as published; unit 1.

    Args:
        channels: Of the images; grey ones are given as three equal channels.
        device: As torch names it.

    Raises:
        ProtectionError: The weights are not on this disk, or not VGG-16's.
    """
    path = weights_file()
    if not path.is_file():
        raise ProtectionError(
            "image_to_perturbation.features is imagenet, but the weights of torchvision's VGG-16 "
            f"are not at {path} and nothing is ever downloaded: put {WEIGHTS_FILE} there, name its "
            f"place in {WEIGHTS_VARIABLE}, or use features: own."
        )
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        net.load_state_dict({name: state[f"features.{name}"] for name in net.state_dict()})
    except Exception as error:  # torch.load raises whatever its unpickler meets
        raise ProtectionError(
            f"{path} does not hold the weights of torchvision's VGG-16 ({type(error).__name__}): "
            "replace it, or use image_to_perturbation.features: own."
        ) from None
    if channels == 1:
        net = nn.Sequential(_Thrice(), *net)
        mean, std = (torch.tensor(sum(v) / 3) for v in (_IMAGENET_MEAN, _IMAGENET_STD))
    else:
        mean, std = (torch.tensor(v) for v in (_IMAGENET_MEAN, _IMAGENET_STD))
    return freeze(Features(net, mean.view(-1, 1, 1), std.view(-1, 1, 1))).to(device)


class _Thrice(nn.Module):
    """One channel as three."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 1, H, W) to (N, 3, H, W)."""
        return x.expand(-1, 3, -1, -1)


# ------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Plan:
    """How the transform is trained.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images a step.
        learning_rate: Peak, of Adam; it rises for a quarter of the time and falls to zero.
        alpha: Weight of the features' distance.
        clamp: Distance at which an image is far enough, or None: never.
        augmentation: How images are varied.
        seed: Of the order and the variations.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    alpha: float
    clamp: float | None
    augmentation: Augmentation
    seed: int

    def term(self, distance: Tensor) -> Tensor:
        """The part of the loss that moves features away, of distances (N,)."""
        if self.clamp is None:
            return -self.alpha * distance.mean()
        return self.alpha * functional.relu(self.clamp - distance).mean()


class Loss(Protocol):
    """What the transform is trained to make small."""

    def __call__(self, made: Tensor, plain: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch: float (N, C, H, W) twice, int64 (N,)."""


def loss_of(psi: Teacher, phi: Features, plan: Plan) -> Loss:
    """CE(psi(made), label) and the plan's term of phi's distance."""

    def loss(made: Tensor, plain: Tensor, labels: Tensor) -> Tensor:
        keep = functional.cross_entropy(psi(made), labels)
        return keep + plan.term(phi.distance(made, plain))

    return loss


def train_transform(
    h: Transform, loss_for: Loss, lessons: Lessons, plan: Plan, device: str,
    progress: Progress | None,
) -> Transform:  # fmt: skip
    """Trains a transform.

    Args:
        h: With fresh weights.
        loss_for: What to make small.
        lessons: The plain images.
        plan: How.
        device: As torch names it.
        progress: Called after each step with the steps done and all steps, or None.

    Returns:
        The transform, frozen: the same for the same input on the same kind of device and number of
        threads.

    Raises:
        ProtectionError: The loss became infinite or not a number.
    """
    h = h.to(device).to(memory_format=torch.channels_last).train()
    optimiser = Adam(h)
    sampler = torch.Generator().manual_seed(plan.seed)
    images = torch.from_numpy(lessons.images).to(device)
    labels = torch.from_numpy(lessons.labels).to(device)
    steps = steps_in(len(images), plan.batch_size)
    total, done = steps * plan.epochs, 0
    with quiet_kernels(device):
        for _ in range(plan.epochs):
            order = torch.randperm(len(images), generator=sampler)
            moves = draw_moves(len(images), plan.augmentation, sampler)
            for rows in order.tensor_split(steps):
                at = rows.to(device)
                batch = take(images, at, moves.at(rows).to(torch.device(device)))
                plain = batch.float().div_(255)
                loss = loss_for(h(plain), plain, labels[at])
                optimiser.forget_gradients()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step(plan.learning_rate * _cycle(done / total))
                done += 1
                if progress is not None:
                    progress(done, total)
            # Once a pass: asking at every step would wait for the device each time.
            _require_finite(loss, h, plan)
    return freeze(h)


def steps_in(count: int, batch_size: int) -> int:
    """Equal batches that a pass over so many images is cut into."""
    return max(1, round(count / batch_size))


def _require_finite(loss: Tensor, h: nn.Module, plan: Plan) -> None:
    sums = torch.stack([parameter.detach().sum() for parameter in h.parameters()])
    if not bool(torch.isfinite(loss.detach()) & torch.isfinite(sums).all()):
        raise ProtectionError(
            f"the transform of image_to_perturbation diverged with alpha {plan.alpha} and "
            f"learning_rate {plan.learning_rate}: lower one of them, or use feature_term: clamped."
        )


def _cycle(done: float) -> float:
    """The learning rate as a share of its peak: up for a quarter of the time, then down."""
    rise = 0.25
    return max(0.04, done / rise) if done < rise else (1 - done) / (1 - rise)
