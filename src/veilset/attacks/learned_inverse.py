"""The learned inverse: an outside trainer restores images that she never saw.

She knows the algorithm and its parameters, protects images of her own under keys of her own, and
learns the way back: by a closed-form linear map and by a U-Net. Whether a restoration singles an
image out is asked by re-identification: SSIM alone misses recognisable images, and punishes
restorations that are merely shifted in brightness.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilset.attacks._training import descend
from veilset.attacks.base import (
    Attack,
    Attacker,
    AttackParams,
    Case,
    Diverged,
    Knowledge,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
    score_candidates,
)
from veilset.attacks.features import (
    Batch,
    Matcher,
    Pairs,
    Planes,
    View,
    area_resize,
    own_among_others,
    protect_as_attacker,
    region_sizes,
    split_attacker,
    to_pictures,
    tune,
)
from veilset.attacks.linkage import enough_images, join, likeness, linear_views
from veilset.metrics.similarity import psnr, ssim_either_sign, window_band, window_size
from veilset.models.device import Engine, kernels
from veilset.models.optimiser import Adam
from veilset.models.unet import UNet
from veilset.schemes.base import Scheme

UNET = "unet"


class LearnedInverseParams(AttackParams):
    """Parameters of `learned_inverse`; the training's length is in steps, so that it repeats.

    Attributes:
        targets: At most so many released images are attacked.
        gallery: Size of the galleries; smaller where there are fewer candidates.
        versions: How many times the attacker protects her own images, under fresh keys.
        auxiliary: At most so many of her images are used.
        shift: She moves her images by up to so many pixels before protecting them again.
        tuning_share: Share of her images that chooses among the restorers.
        work_side: Images are restored at most this large; all pixels are read nevertheless.
        base: Channels of the U-Net at full resolution, a multiple of 4.
        depth: Levels of the U-Net.
        fold: Squares of so many pixels a side are channels inside the U-Net.
        steps: Training steps.
        oracle_steps: Training steps on unprotected images.
        batch: Images a step.
        learning_rate: At its highest; it falls to nothing along a cosine.
    """

    targets: int = Field(500, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    versions: int = Field(8, ge=1, le=50)
    auxiliary: int = Field(2000, ge=20, le=1_000_000)
    shift: int = Field(2, ge=0, le=16)
    tuning_share: float = Field(0.2, gt=0, lt=1)
    work_side: int = Field(32, ge=8, le=512)
    base: int = Field(16, ge=4, le=256, multiple_of=4)
    depth: int = Field(2, ge=1, le=6)
    fold: int = Field(2, ge=1, le=8)
    steps: int = Field(400, ge=1, le=1_000_000)
    oracle_steps: int = Field(150, ge=1, le=1_000_000)
    batch: int = Field(32, ge=1, le=4096)
    learning_rate: float = Field(3e-3, gt=0, le=1)

    FULL: ClassVar[Mapping[str, Any]] = {
        "targets": 2000, "repeats": 3, "versions": 16, "auxiliary": 20_000, "work_side": 64,
        "base": 32, "depth": 3, "fold": 1, "steps": 6000, "oracle_steps": 1000, "batch": 64,
    }  # fmt: skip


@dataclass(frozen=True)
class FittedInverse:
    """The chosen restorer with the measure that re-identifies best."""

    matcher: Matcher

    @property
    def restorer(self) -> str:
        """The name of the chosen view."""
        return self.matcher.view_name


class LearnedInverse(Attack[LearnedInverseParams, FittedInverse]):
    """Restores originals and singles them out.

    Source: learned inverses go back to Ito et al.'s inverse transformation networks; loss, network
    and the scoring by re-identification are ours.
    """

    name = "learned_inverse"
    title = "Learned inverse"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K2"
    cost = "half a minute (quick) to an hour (full, no GPU)"
    metric_words = "rank-1 of the restored image in a gallery of {gallery}"
    deed = "are restored so well that their original is singled out"
    oracle_floor = 0.9
    Parameters = LearnedInverseParams

    def applies(self, case: Case) -> str | None:
        """None where there are targets and enough auxiliary images to train on."""
        return enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedInverse | None,
    ) -> FittedInverse:  # fmt: skip
        params = self.params
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        fit = protect_as_attacker(
            release.scheme, attacker, fitting, params.versions, rng, params.shift
        )
        tuning = protect_as_attacker(release.scheme, attacker, tuned, 1, rng)[0]
        views = linear_views(fit, tuning)
        if like is not None:
            # The oracle asks whether the restorer that was relied on works at all.
            views = {name: view for name, view in views.items() if name == like.restorer}
        if like is None or like.restorer == UNET:
            steps = params.steps if like is None else params.oracle_steps
            views[UNET] = train_unet(
                join(fit), release.scheme, params, steps, attacker.device,
                int(rng.integers(2**31)), progress,
            )  # fmt: skip
        judge = own_among_others(len(tuning.plain), params.gallery, rng)
        chosen = tune(views, fit[0], tuning, release.scheme, judge, by_view=True)
        return FittedInverse(chosen)

    def _measure(self, fitted: FittedInverse, case: Case, rng: np.random.Generator) -> Scores:
        originals, released = case.truth.originals, case.release
        views = fitted.matcher.view(Batch(released.images, released.side))
        if not np.isfinite(views).all():
            raise Diverged("a restored image is not a number")
        pictures = to_pictures(views, originals.shape[1:3])
        shuffled = rng.permutation(len(originals)).astype(np.int64)
        distances = fitted.matcher.compare(views, originals[shuffled])
        size = self.params.gallery
        frame, gallery, _ = score_candidates(distances, case, shuffled, size, rng)
        frame["ssim"] = ssim_either_sign(pictures, originals)
        frame["psnr"] = np.minimum(psnr(pictures, originals), 99.0)
        return Scores(frame, gallery, pictures, _quality(frame["ssim"], frame["psnr"], case))

    def _chosen(self, fitted: FittedInverse) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, fitted.matcher.table


def _quality(similarity: Any, decibels: Any, case: Case) -> dict[str, float]:
    """How good the restorations are, and how alike the images were before any attack."""
    before = likeness(case.release.images, case.truth.originals)
    return {
        "ssim": float(similarity.mean()),
        "ssim_95": float(similarity.quantile(0.95)),
        "ssim_max": float(similarity.max()),
        "psnr": float(decibels.mean()),
        "unattacked_ssim": before["ssim"],
        "unattacked_psnr": before["psnr"],
    }


# --- The U-Net as a restorer ------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """How released images become the network's input.

    Attributes:
        factor: Squares of so many pixels a side become channels: the cost falls, and no pixel is
            lost.
        regions: Sizes of regions whose pixels are given in ascending order as well, because a
            convolution cannot sort.
        scales: What side information of the images' height and width is divided by, by name;
            other side information is not read.
    """

    factor: int
    regions: tuple[int, ...]
    scales: Mapping[str, float]

    def __call__(self, batch: Batch) -> npt.NDArray[np.float32]:
        """float32 (N, channels, ceil(H / factor), ceil(W / factor)), about -1..1."""
        images = batch.images.astype(np.float32) / 127.5 - 1.0
        layers = [images, *(sorted_in_regions(images, side) for side in self.regions)]
        for name, scale in self.scales.items():
            layer = batch.side[name].reshape(*images.shape[:3], -1).astype(np.float32)
            layers.append(np.nan_to_num(layer / np.float32(scale)))
        return fold(np.concatenate(layers, axis=-1), self.factor)


def reader_for(batch: Batch, factor: int, scheme: Scheme[Any]) -> Reader:
    """A reader for images like these, under a scheme whose parameters tell its regions."""
    smallest = min(batch.images.shape[1:3])
    regions = tuple(side for side in sorted(region_sizes(scheme)) if side <= smallest)
    scales = {
        name: max(float(np.nanmax(np.abs(values), initial=0.0)), 1e-6)
        for name, values in sorted(batch.side.items())
        if values.dtype.kind in "biuf" and values.shape[1:3] == batch.images.shape[1:3]
    }
    return Reader(factor, regions, scales)


def fold(stack: npt.NDArray[np.float32], factor: int) -> npt.NDArray[np.float32]:
    """(N, H, W, C) as (N, C * factor^2, ceil(H / factor), ceil(W / factor)), edges repeated."""
    n, height, width, channels = stack.shape
    pad = ((0, 0), (0, -height % factor), (0, -width % factor), (0, 0))
    stack = np.pad(stack, pad, mode="edge")
    rows, columns = stack.shape[1] // factor, stack.shape[2] // factor
    folded = stack.reshape(n, rows, factor, columns, factor, channels)
    folded = folded.transpose(0, 5, 2, 4, 1, 3).reshape(n, -1, rows, columns)
    return np.ascontiguousarray(folded)


def _kernels(device: str) -> AbstractContextManager[None]:
    engine = Engine(torch.device(device), "fp32")
    return kernels(engine, deterministic="where there are")


@dataclass(frozen=True)
class UNetView:
    """A trained U-Net as a view.

    Attributes:
        net: The network, in evaluation mode.
        reader: How it reads released images.
        device: Where it runs.
    """

    net: UNet
    reader: Reader
    device: str

    def __call__(self, batch: Batch) -> Planes:
        """Restorations (N, h, w, C), grey levels 0..255; not a number where it diverged."""
        made = []
        with torch.no_grad(), _kernels(self.device):
            for start in range(0, len(batch.images), 64):
                inputs = torch.from_numpy(self.reader(batch.take(slice(start, start + 64))))
                made.append(self.net(inputs.to(self.device)).clamp(0, 1).cpu().numpy())
        return np.moveaxis(np.concatenate(made).astype(np.float64) * 255.0, 1, -1)


def sorted_in_regions(images: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Pixels of each whole square region and channel in ascending order, row by row; (N, H, W, C).

    Two shuffles of a region are one and the same afterwards.
    """
    n, height, width, channels = images.shape
    rows, columns = height // side, width // side
    result = images.copy()
    cut = images[:, : rows * side, : columns * side]
    blocks = cut.reshape(n, rows, side, columns, side, channels).transpose(0, 1, 3, 5, 2, 4)
    ordered = np.sort(blocks.reshape(n, rows, columns, channels, -1), axis=-1)
    ordered = ordered.reshape(n, rows, columns, channels, side, side).transpose(0, 1, 4, 2, 5, 3)
    result[:, : rows * side, : columns * side] = ordered.reshape(cut.shape)
    return result


def train_unet(
    pairs: Pairs, scheme: Scheme[Any], params: LearnedInverseParams, steps: int, device: str,
    seed: int, progress: Progress | None = None,
) -> View:  # fmt: skip
    """Trains a U-Net from protected images to plain ones.

    The same pairs, parameters and seed give the same network on the same kind of device.

    Args:
        pairs: The attacker's pairs, all versions joined.
        scheme: For the sizes of its regions.
        params: Sizes and rates.
        steps: Training steps.
        device: As torch names it.
        seed: Of the initial weights and the batches.
        progress: Called every 20 steps, or None.

    Returns:
        The restorer.

    Raises:
        Diverged: The loss became NaN or infinite.

    Source: ours; loss L1 + (1 - SSIM).
    """
    height, width, channels = pairs.plain.shape[1:]
    factor = max(1, ceil(max(height, width) / params.work_side))
    reader = reader_for(pairs.batch, factor, scheme)
    inputs = reader(pairs.batch.take(slice(0, 1))).shape[1]
    with torch.random.fork_rng(devices=[]), _kernels(device):
        torch.default_generator.manual_seed(seed)
        net = UNet(inputs, channels, params.base, params.depth, params.fold)
        # From black, the SSIM of dark photographs is a trap that a third of the seeds never leave.
        nn.init.constant_(net.last.bias, 0.5)  # type: ignore[arg-type]
        net = net.to(device)
        losses = (
            restoring_loss(net(inputs.to(device)), wanted.to(device))
            for inputs, wanted in _batches(reader, pairs, params.batch, steps, seed)
        )
        descend(
            net, Adam(net), losses, params.learning_rate, steps=steps,
            what="learned_inverse: training", progress=progress,
        )  # fmt: skip
    return UNetView(net.eval(), reader, device)


def restoring_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 + (1 - SSIM) of restored and plain images, float (N, C, H, W), 0..1."""
    return functional.l1_loss(made, wanted) + 1.0 - torch_ssim(made, wanted)


def _batches(
    reader: Reader, pairs: Pairs, size: int, steps: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random batches, read one by one: all at once would not fit in memory as floating point."""
    draws = np.random.default_rng(seed)
    for _ in range(steps):
        yield _one_batch(reader, pairs.take(draws.integers(0, len(pairs.plain), size)))


def _one_batch(reader: Reader, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Inputs (N, channels, h, w), and plain images of that size, float32 (N, C, h, w), 0..1."""
    inputs = reader(pairs.batch)
    small = area_resize(pairs.plain, inputs.shape[2], inputs.shape[3]) / 255.0
    wanted = np.ascontiguousarray(np.moveaxis(small, -1, 1).astype(np.float32))
    return torch.from_numpy(inputs), torch.from_numpy(wanted)


def torch_ssim(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean SSIM of float (N, C, H, W) in 0..1, differentiable; as `veilset.metrics.similarity`."""
    size = window_size(min(made.shape[-2:]))
    bands = (torch.from_numpy(window_band(n, size)) for n in made.shape[-2:])
    rows, columns = (band.to(made.device, made.dtype) for band in bands)
    stack = torch.cat([made, wanted, made * made, wanted * wanted, made * wanted], dim=1)
    smooth = rows @ stack @ columns.T
    a, b, aa, bb, ab = smooth.chunk(5, dim=1)
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * a * b + c1) * (2 * (ab - a * b) + c2)
    return (top / ((a * a + b * b + c1) * (aa - a * a + bb - b * b + c2))).mean()
