"""What attacks that restore images share: a U-Net that corrects a restoration, and the scoring."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from veilset.attacks._training import descend
from veilset.attacks.base import Case, Diverged, Progress, Scores, score_candidates
from veilset.attacks.features import Batch, Matcher, Pairs, Planes, area_resize, to_pictures
from veilset.attacks.learned_inverse import LearnedInverseParams, fold, restoring_loss
from veilset.attacks.linkage import likeness
from veilset.metrics.similarity import psnr, ssim
from veilset.models.device import Engine, kernels
from veilset.models.optimiser import Adam
from veilset.models.unet import UNet
from veilset.types import IntArray

UNET = "unet"
_MEMORY: Final = 1 << 30
_BYTES: Final = 24
"""Of a pixel and channel as it is read: five layers and the base."""


MAX_PSNR = 99.0
"""Stands for the infinite PSNR of equal images."""


@dataclass(frozen=True)
class Reading:
    """Released images as a network reads them.

    Attributes:
        layers: All that it sees, float32 (N, H, W, L), about -1..1.
        base: The restoration that it corrects, (N, H, W, C), grey levels 0..255.
    """

    layers: npt.NDArray[np.float32]
    base: Planes

    def take(self, rows: IntArray) -> "Reading":
        """These rows only."""
        return Reading(self.layers[rows], self.base[rows])


Reader = Callable[[Batch], Reading]


@dataclass(frozen=True)
class ResidualView:
    """A trained U-Net that corrects a restoration, as a view.

    Attributes:
        net: The network, in evaluation mode.
        read: How it reads released images.
        factor: Squares of so many pixels a side are one pixel of the restoration.
        device: Where it runs.
    """

    net: UNet
    read: Reader
    factor: int
    device: str

    def __call__(self, batch: Batch) -> Planes:
        """Restorations (N, h, w, C), grey levels 0..255; not a number where it diverged."""
        made = []
        engine = Engine(torch.device(self.device), "fp32")
        with torch.no_grad(), kernels(engine, deterministic="where there are"):
            for start in range(0, len(batch.images), 64):
                inputs, base = _tensors(
                    self.read(batch.take(slice(start, start + 64))), self.factor
                )
                layers, base = inputs.to(self.device), base.to(self.device)
                made.append((base + self.net(layers)).clamp(0, 1).cpu().numpy())
        return np.moveaxis(np.concatenate(made).astype(np.float64) * 255.0, 1, -1)


def train_residual(
    read: Reader, pairs: Pairs, params: LearnedInverseParams, steps: int, device: str, seed: int,
    progress: Progress | None = None,
) -> ResidualView:  # fmt: skip
    """Trains a U-Net to add to a restoration what it lacks.

    It starts as the restoration itself, so it is hardly ever worse. The same pairs, parameters and
    seed give the same network on the same kind of device.

    Args:
        read: How released images are read.
        pairs: The attacker's pairs, all versions joined.
        params: Sizes and rates.
        steps: Training steps.
        device: As torch names it.
        seed: Of the initial weights and the batches.
        progress: Called every 20 steps, or None.

    Raises:
        Diverged: The loss became NaN or infinite.

    Source: residual learning for denoising: Zhang et al. (DnCNN), IEEE TIP 26(7), 2017; network and
    loss L1 + (1 - SSIM) are ours.
    """
    height, width, channels = pairs.plain.shape[1:]
    factor = max(1, ceil(max(height, width) / params.work_side))
    first = _tensors(read(pairs.batch.take(slice(0, 1))), factor)[0]
    engine = Engine(torch.device(device), "fp32")
    with torch.random.fork_rng(devices=[]), kernels(engine, deterministic="where there are"):
        torch.default_generator.manual_seed(seed)
        net = UNet(first.shape[1], channels, params.base, params.depth, params.fold)
        nn.init.zeros_(net.last.weight)
        nn.init.zeros_(net.last.bias)  # type: ignore[arg-type]
        net = net.to(device)
        losses = (
            restoring_loss(base.to(device) + net(layers.to(device)), wanted.to(device))
            for layers, base, wanted in _batches(read, pairs, params.batch, steps, factor, seed)
        )
        descend(
            net, Adam(net), losses, params.learning_rate, steps=steps,
            what="training the restorer", progress=progress,
        )  # fmt: skip
    return ResidualView(net.eval(), read, factor, device)


def _batches(
    read: Reader, pairs: Pairs, size: int, steps: int, factor: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    draws = np.random.default_rng(seed)
    known = _read_once(read, pairs, steps * size)
    for _ in range(steps):
        rows = draws.integers(0, len(pairs.plain), size)
        reading = read(pairs.batch.take(rows)) if known is None else known.take(rows)
        layers, base = _tensors(reading, factor)
        yield layers, base, _planar(pairs.plain[rows], (base.shape[2], base.shape[3]))


def _read_once(read: Reader, pairs: Pairs, draws: int) -> Reading | None:
    """All pairs as they are read, where that is less work than `draws` and fits in memory."""
    count = len(pairs.plain)
    pixels = count * pairs.plain[0, ..., 0].size
    if count > draws or _BYTES * pixels * pairs.plain.shape[-1] > _MEMORY:
        return None
    parts = [read(pairs.batch.take(slice(low, low + 64))) for low in range(0, count, 64)]
    base = np.concatenate([part.base for part in parts]).astype(np.float32)
    return Reading(np.concatenate([part.layers for part in parts]), base)


def _tensors(reading: Reading, factor: int) -> tuple[Tensor, Tensor]:
    """Layers with squares folded into channels, and the base in that resolution, 0..1."""
    layers = torch.from_numpy(fold(reading.layers, factor))
    return layers, _planar(reading.base, (layers.shape[2], layers.shape[3]))


def _planar(planes: Planes, size: tuple[int, int]) -> Tensor:
    small = area_resize(planes, *size) / 255.0
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(small, -1, 1).astype(np.float32)))


def score_restored(
    matcher: Matcher, case: Case, gallery: int, rng: np.random.Generator
) -> tuple[Scores, Planes]:
    """Re-identifies restored images, and compares them with their originals.

    Args:
        matcher: The restorer with the measure that compares.
        case: The targets.
        gallery: Wanted size of the galleries.
        rng: Source of the galleries.

    Returns:
        The scores, with SSIM and PSNR before and after, and the restorations as planes.

    Raises:
        Diverged: A restoration is not a number.
    """
    originals, released = case.truth.originals, case.release
    views = matcher.view(Batch(released.images, released.side))
    if not np.isfinite(views).all():
        raise Diverged("a restored image is not a number")
    pictures = to_pictures(views, originals.shape[1:3])
    shuffled = rng.permutation(len(originals)).astype(np.int64)
    distances = matcher.compare(views, originals[shuffled])
    frame, size, _ = score_candidates(distances, case, shuffled, gallery, rng)
    frame["ssim"] = ssim(pictures, originals)
    frame["psnr"] = np.minimum(psnr(pictures, originals), MAX_PSNR)
    before = likeness(released.images, originals)
    details = {
        "ssim": float(frame["ssim"].mean()),
        "ssim_95": float(frame["ssim"].quantile(0.95)),
        "ssim_max": float(frame["ssim"].max()),
        "psnr": float(frame["psnr"].mean()),
        "unattacked_ssim": before["ssim"],
        "unattacked_psnr": before["psnr"],
    }
    return Scores(frame, size, pictures, details), views
