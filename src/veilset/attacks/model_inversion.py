"""Model inversion: what the CNN itself shows of a class, or of a person where classes are persons.

The attacker holds nothing but the CNN and images of other people or things. For each class she
seeks a smooth image, near the mean of images that she protected herself, that the CNN takes for
this class. Whether it shows the class is not asked of the CNN, which would always say yes, but of
the mean image of each class: the mean of the plain originals, and beside it that of the protected
ones.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilset.attacks._network import NetworkAttack, held, in_her_hands, normalised, on_device
from veilset.attacks.base import (
    Attacker,
    AttackParams,
    AttackResult,
    Case,
    Diverged,
    Knowledge,
    Network,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
    Truth,
    natural_frequency,
    score_candidates,
)
from veilset.attacks.features import area_resize, protect_as_attacker, split_attacker
from veilset.attacks.gradient_reconstruction import roughness
from veilset.attacks.linkage import enough_images
from veilset.errors import TrainingError
from veilset.metrics.similarity import ssim_either_sign
from veilset.models.optimiser import Adam, falling
from veilset.training.loader import LEAST_IMAGES
from veilset.types import FloatArray, Images, Labels

_FEWEST: Final = 3
_MATES: Final = 2
_SPREAD: Final = 0.05
_SIDE: Final = 16
_TOGETHER: Final = 256


class ModelInversionParams(AttackParams):
    """Parameters of `model_inversion`.

    Attributes:
        targets: At most so many classes are inverted.
        gallery: At most so many classes are told apart.
        auxiliary: At most so many of her images are used.
        steps: Steps of the search.
        starts: So many starts for each class; their mean is her answer.
        learning_rate: In units of 0..1; it falls to nothing along a cosine.
        smoothness: Weight of the total variation.
        nearness: Weight of the squared distance to the mean image.
        oracle_images: At most so many unprotected images train the CNN of the oracle.
    """

    targets: int = Field(20, ge=_FEWEST, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    auxiliary: int = Field(500, ge=20, le=1_000_000)
    steps: int = Field(40, ge=1, le=1_000_000)
    starts: int = Field(2, ge=1, le=1000)
    learning_rate: float = Field(0.05, gt=0, le=10)
    smoothness: float = Field(1.0, ge=0, le=1000)
    nearness: float = Field(1.0, ge=0, le=1000)
    oracle_images: int = Field(400, ge=LEAST_IMAGES, le=1_000_000)

    FULL: ClassVar[Mapping[str, Any]] = {
        "targets": 1000, "steps": 1000, "starts": 16, "oracle_images": 50_000,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Classes(Case):
    """A case whose rows are classes: the original of each is the mean of its plain images.

    Attributes:
        trained_on: Plain originals and labels of images the CNN was trained on, for the oracle.
    """

    trained_on: tuple[Images, Labels]

    def oracle(self) -> "Case":
        """The same classes, and a CNN trained by the recipe on unprotected images.

        Raises:
            Diverged: Its training diverged.
        """
        if self.network is None or self.network.retrain is None:
            raise ValueError("this attack needs a CNN with its recipe; applies() says so")
        try:
            bare = self.network.retrain(*self.trained_on, self.attacker.seed)
        except TrainingError as error:
            raise Diverged(f"the CNN of the oracle: {error}") from None
        return in_her_hands(replace(super().oracle(), network=bare, attacker=_bereft(self)))


@dataclass(frozen=True)
class FittedInversion:
    """What the CNN showed: the image of each class by label, and what each search began with."""

    pictures: Mapping[int, Images]
    start: FloatArray


class ModelInversion(NetworkAttack[ModelInversionParams, FittedInversion]):
    """Inverts the CNN class by class, and asks whether the class is recognised.

    The oracle is the same attack on a CNN trained by the same recipe on unprotected images.

    Source: Fredrikson, Jha and Ristenpart, CCS 2015, algorithm 1; total variation after Mahendran
    and Vedaldi, CVPR 2015; the distance to the mean image and the scoring are ours.
    """

    name = "model_inversion"
    title = "Model inversion"
    risk: ClassVar[Risk] = "inference"
    attacker: ClassVar[Template] = "model_holder"
    knowledge: ClassVar[Knowledge] = "K5"
    cost = "seconds and one training of the CNN (quick), or many minutes (full)"
    metric_words = "rank-1 of the class that an inverted image shows, among {gallery}"
    deed = "are recognised in what the inverted CNN shows of them"
    oracle_floor = 0.5
    Parameters = ModelInversionParams

    def _lacks(self, case: Case, network: Network) -> str | None:
        if network.retrain is None:
            return "the CNN's recipe is not given, so none is trained on unprotected images"
        _, counts = np.unique(case.release.labels, return_counts=True)
        if (counts >= _MATES).sum() < _FEWEST:
            return f"fewer than {_FEWEST} classes have {_MATES} images: there is nothing to tell"
        return enough_images(case)

    def _run(self, case: Case, progress: Progress | None) -> AttackResult:
        rng = np.random.default_rng([case.attacker.seed, zlib.crc32(b"classes")])
        classes = by_class(case, self.params.targets, self.params.oracle_images, rng)
        return super()._run(classes, progress)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedInversion | None,
    ) -> FittedInversion:  # fmt: skip
        del like
        if progress:
            progress("model_inversion: inverting", 1, 2)
        used = np.logical_or(*split_attacker(attacker, 0.5, self.params.auxiliary, rng))
        own = protect_as_attacker(release.scheme, attacker, used, 1, rng)[0].batch.images
        start = own.mean(axis=0) / 255.0
        labels = np.unique(release.labels)
        made = invert(
            held(attacker), labels, self.params, start, attacker.device, int(rng.integers(2**31))
        )
        return FittedInversion(dict(zip(labels.tolist(), made, strict=True)), start)

    def _measure(self, fitted: FittedInversion, case: Case, rng: np.random.Generator) -> Scores:
        shown = np.stack([fitted.pictures[int(label)] for label in case.release.labels])
        originals = case.truth.originals
        shuffled = rng.permutation(len(originals)).astype(np.int64)
        size = self.params.gallery
        differences = shown / 255.0 - fitted.start
        frame, gallery, _ = score_candidates(
            apart(differences, originals[shuffled]), case, shuffled, size, rng
        )
        frame["ssim"] = ssim_either_sign(shown, originals)
        details = {"ssim": float(frame["ssim"].mean())}
        if not len(case.truth.sources):
            itself, _, _ = score_candidates(
                apart(differences, case.release.images[shuffled]), case, shuffled, size, rng
            )
            details["protected_rank1"] = float(itself["success"].mean())
            details["protected_ssim"] = float(ssim_either_sign(shown, case.release.images).mean())
        return Scores(frame, gallery, shown, details)

    def _chosen(self, fitted: FittedInversion) -> tuple[str, Mapping[str, float]]:
        del fitted
        return "mean of all starts", {}

    def _words(self, rate: float) -> str:
        return f"{natural_frequency(rate)} classes {self.deed}."


def by_class(case: Case, targets: int, kept: int, rng: np.random.Generator) -> Classes:
    """A case with a row for each class.

    Args:
        case: A row an image.
        targets: At most so many classes are drawn among those of two images or more.
        kept: At most so many images are kept for the CNN of the oracle.
        rng: Source of the draws.

    Returns:
        In the place of originals and released images, their means over the class.
    """
    values, counts = np.unique(case.release.labels, return_counts=True)
    values = np.sort(rng.permutation(values[counts >= _MATES])[:targets])

    chosen = rng.permutation(len(case.release.labels))[:kept]

    def means(images: Images) -> Images:
        rows = [images[case.release.labels == value].mean(axis=0) for value in values]
        return np.rint(rows).astype(np.uint8)

    return Classes(
        release=Release(
            images=means(case.release.images), labels=values, scheme=case.release.scheme
        ),
        attacker=case.attacker, network=case.network,
        truth=Truth(
            originals=means(case.truth.originals), groups=np.full(len(values), "", dtype=object),
            ids=np.array([f"class {value}" for value in values]),
        ),
        trained_on=(case.truth.originals[chosen], case.release.labels[chosen]),
    )  # fmt: skip


def invert(
    network: Network, labels: Labels, params: ModelInversionParams, start: FloatArray, device: str,
    seed: int,
) -> Images:  # fmt: skip
    """Seeks an image of each class that the CNN is sure of.

    Args:
        network: The CNN.
        labels: Which classes, int64 (K,).
        params: Steps and weights.
        start: The mean image, (H, W, C), 0..1.
        device: As torch names it.
        seed: Of the starts.

    Returns:
        uint8 (K, H, W, C).

    Raises:
        Diverged: A loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    middle = torch.from_numpy(start).float().permute(2, 0, 1)
    made = []
    with on_device(network, device) as place:
        for low in range(0, len(labels), _TOGETHER):
            part = torch.from_numpy(labels[low : low + _TOGETHER])
            wanted = part.repeat_interleave(params.starts).to(place)
            noise = torch.randn((len(wanted), *middle.shape), generator=generator)
            first = (middle + _SPREAD * noise).clamp(0, 1).to(place)
            found = _sought(network, wanted, first, middle.to(place), params)
            found = found.view(len(part), params.starts, *middle.shape).mean(dim=1)
            made.append(torch.round(found * 255).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(made).astype(np.uint8)


def _sought(
    network: Network, labels: Tensor, first: Tensor, middle: Tensor, params: ModelInversionParams
) -> Tensor:
    pixels = nn.Parameter(first)
    optimiser = Adam(nn.ParameterList([pixels]))
    for step in range(params.steps):
        logits = network.module(normalised(network, pixels))
        loss = functional.cross_entropy(logits, labels, reduction="none")
        far = ((pixels - middle) ** 2).mean(dim=(1, 2, 3))
        loss = loss + params.smoothness * roughness(pixels) + params.nearness * far
        # The CNN's own gradients are left alone.
        (pixels.grad,) = torch.autograd.grad(loss.sum(), [pixels])
        with torch.no_grad():
            optimiser.step(falling(params.learning_rate, step, params.steps))
            pixels.clamp_(0, 1)
    if not bool(torch.isfinite(loss).all()):
        raise Diverged("the inversion's loss is not a number")
    return pixels.detach()


def apart(differences: FloatArray, candidates: Images) -> FloatArray:
    """One less the cosine of how pictures and candidates differ from what is usual on either side.

    Args:
        differences: Of pictures from what they began with, (T, H, W, C).
        candidates: Mean images of classes, uint8 (N, H, W, C); their mean is what is usual there.

    Returns:
        float64 (T, N), 0..2.
    """
    height, width = (min(side, _SIDE) for side in candidates.shape[1:3])
    known = candidates - candidates.mean(axis=0)
    sides = [area_resize(planes, height, width) for planes in (differences, known)]
    rows = [planes.reshape(len(planes), -1) for planes in sides]
    unit = [each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in rows]
    return np.asarray(1.0 - unit[0] @ unit[1].T)


def _bereft(case: Case) -> Attacker:
    """The attacker without the CNN."""
    names = Attacker.__dataclass_fields__
    return Attacker(**{name: getattr(case.attacker, name) for name in names})
