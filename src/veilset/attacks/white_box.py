"""White box: who holds the transformation network computes which image gives the protected one.

The network is differentiable, so an image is sought by gradient descent whose transform equals the
released one, from where a learned inverse ends. Clients who protect their own queries need the
network, so it is no secret in practice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from veilset.attacks._restoring import score_restored
from veilset.attacks.base import (
    OTHER_KIND,
    Attack,
    Attacker,
    Case,
    Knowledge,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
)
from veilset.attacks.features import (
    Batch,
    Matcher,
    Planes,
    View,
    area_resize,
    own_among_others,
    protect_as_attacker,
    split_attacker,
    tune,
)
from veilset.attacks.learned_inverse import UNET, LearnedInverseParams, train_unet
from veilset.attacks.linkage import enough_images, join, linear_views
from veilset.models.device import Engine, kernels

if TYPE_CHECKING:
    from veilset.types import FloatArray, Images

REFINED = "white box"
_BATCH = 64


class WhiteBoxParams(LearnedInverseParams):
    """Parameters of `white_box`; those of the learned inverse that it starts from as there.

    Attributes:
        steps: Training steps of the U-Net that may be the start; with 0 it is a linear map.
        oracle_steps: The same on unprotected images.
        descents: Steps of gradient descent on each image.
        rate: Their step size, on the logits of the pixels; it falls along a cosine.
        smoothness: Weight of the total variation beside the mean squared error.
    """

    targets: int = Field(300, ge=2, le=100_000)
    versions: int = Field(2, ge=1, le=50)
    steps: int = Field(0, ge=0, le=1_000_000)
    oracle_steps: int = Field(0, ge=0, le=1_000_000)
    descents: int = Field(60, ge=1, le=100_000)
    rate: float = Field(0.05, gt=0, le=10)
    smoothness: float = Field(1e-4, ge=0, le=10)

    FULL: ClassVar[Mapping[str, Any]] = {
        **LearnedInverseParams.FULL, "descents": 2000, "rate": 0.02,
    }  # fmt: skip


@runtime_checkable
class Differentiable(Protocol):
    """A scheme that protects by a network."""

    def transform_network(self) -> nn.Module:
        """The network: float (N, C, H, W) in 0..1 to the same."""


@dataclass(frozen=True)
class Refined:
    """A restoration, improved until its transform is the released image.

    Attributes:
        start: Where it begins.
        net: The transform.
        descents: Steps.
        rate: Step size.
        smoothness: Weight of the total variation.
        device: Where it runs.
    """

    start: View
    net: nn.Module
    descents: int
    rate: float
    smoothness: float
    device: str

    def __call__(self, batch: Batch) -> Planes:
        """Restorations (N, H, W, C), grey levels 0..255."""
        planes = area_resize(self.start(batch), *batch.images.shape[1:3])
        parts = [
            self._refined(batch.images[low : low + _BATCH], planes[low : low + _BATCH])
            for low in range(0, len(planes), _BATCH)
        ]
        return np.concatenate(parts)

    def _refined(self, released: "Images", start: "FloatArray") -> "FloatArray":
        target, first = (_tensor(planes, self.device) for planes in (released, start))
        logits = torch.logit(first.clamp(0.02, 0.98)).requires_grad_(True)
        optimiser = torch.optim.Adam([logits], lr=self.rate)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.descents)
        engine = Engine(torch.device(self.device), "fp32")
        with kernels(engine, deterministic="where there are"):
            for _ in range(self.descents):
                optimiser.zero_grad()
                self._loss(torch.sigmoid(logits), target).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                cosine.step()
        made = torch.sigmoid(logits.detach()).cpu().numpy().astype(np.float64)
        return np.moveaxis(made * 255.0, 1, -1)

    def _loss(self, image: Tensor, target: Tensor) -> Tensor:
        """Summed over images, so that none depends on how many there are."""
        made: Tensor = self.net(image)
        missed = ((made - target) ** 2).mean(dim=(1, 2, 3)).sum()
        return missed + self.smoothness * _variation(image)


@dataclass(frozen=True)
class FittedWhiteBox:
    """The chosen restorer with the measure that re-identifies best."""

    matcher: Matcher
    net: nn.Module


class WhiteBox(Attack[WhiteBoxParams, FittedWhiteBox]):
    """Inverts a transformation network by gradient descent through it.

    Source: Mahendran and Vedaldi, CVPR 2015, on representations; its start at a learned inverse
    and its use against image to perturbation are ours.
    """

    name = "white_box"
    title = "Inversion through the transform"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K5"
    cost = "half a minute (quick) to hours (full, no GPU)"
    metric_words = "rank-1 of the restored image in a gallery of {gallery}"
    deed = "are restored so well that their original is singled out"
    oracle_floor = 0.9
    Parameters = WhiteBoxParams

    def applies(self, case: Case) -> str | None:
        """None where the scheme is a network and there are images enough to learn from."""
        if not isinstance(case.release.scheme, Differentiable):
            return f"{OTHER_KIND}: it does not protect by a network"
        return enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedWhiteBox | None,
    ) -> FittedWhiteBox:  # fmt: skip
        params = self.params
        net = _network(release)
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        fit = protect_as_attacker(
            release.scheme, attacker, fitting, params.versions, rng, params.shift
        )
        tuning = protect_as_attacker(release.scheme, attacker, tuned, 1, rng)[0]
        steps = params.steps if like is None else params.oracle_steps
        starts = linear_views(fit, tuning)
        if steps:
            starts[UNET] = train_unet(
                join(fit), release.scheme, params, steps, attacker.device,
                int(rng.integers(2**31)), progress,
            )  # fmt: skip
        if progress:
            progress("white_box: descending", 1, 2)
        nearest = min(starts, key=lambda name: _error(starts[name], tuning.batch, tuning.plain))
        refined = Refined(
            starts[nearest], net, params.descents, params.rate, params.smoothness, attacker.device
        )
        views: dict[str, View] = {**starts, f"{nearest}, then {REFINED}": refined}
        if like is not None:
            # The oracle asks whether the kind of restoration that was relied on works at all.
            wanted = REFINED in like.matcher.view_name
            views = {name: view for name, view in views.items() if (REFINED in name) == wanted}
        judge = own_among_others(len(tuning.plain), params.gallery, rng)
        standards = fit[0].take(np.arange(min(200, len(fit[0].plain)), dtype=np.int64))
        chosen = tune(views, standards, tuning, release.scheme, judge, by_view=True)
        return FittedWhiteBox(chosen, net)

    def _measure(self, fitted: FittedWhiteBox, case: Case, rng: np.random.Generator) -> Scores:
        scores, views = score_restored(fitted.matcher, case, self.params.gallery, rng)
        with torch.no_grad():
            made = fitted.net(_tensor(views, case.attacker.device))
            missed = made - _tensor(case.release.images, case.attacker.device)
        off = float((missed**2).mean().sqrt()) * 255
        return Scores(
            scores.frame, scores.gallery, scores.pictures, {**scores.details, "residual": off}
        )

    def _chosen(self, fitted: FittedWhiteBox) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, fitted.matcher.table


def _network(release: Release) -> nn.Module:
    """The transform; unprotected images went through none."""
    if isinstance(release.scheme, Differentiable):
        return release.scheme.transform_network().requires_grad_(False)
    return nn.Identity()


def _error(view: View, batch: Batch, plain: "Images") -> float:
    made = view(batch)
    return float(((made - area_resize(plain, *made.shape[1:3])) ** 2).mean())


def _variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, summed over images."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().mean(dim=(1, 2, 3))
    right = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))
    return (down + right).sum()


def _tensor(planes: "Planes", device: str) -> Tensor:
    """Planes (N, H, W, C), 0..255, as float32 (N, C, H, W), 0..1."""
    moved = np.moveaxis(np.asarray(planes, dtype=np.float32) / 255.0, -1, 1)
    return torch.from_numpy(np.ascontiguousarray(moved)).to(device)
