"""Reconstruction from feature maps: in split inference a server sees what early layers pass on.

The attacker holds the CNN and knows the algorithm of the protection. She protects images of her
own, takes the feature maps of one layer, and learns the way from the maps to the plain images: by
a linear map, by kernel regression, and by a U-Net that corrects the linear map. Nothing but the
maps of the released images is read, never their pixels.

Beside the figure stands how well the same maps give away the protected images themselves: the
protection is only as good as what is left between the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import Field

from veilset.attacks._kernel_map import fit_kernel
from veilset.attacks._network import NetworkAttack, first_half_map, held, layer_output
from veilset.attacks._reidentified import reidentify
from veilset.attacks._restoring import UNET, Reading, train_residual
from veilset.attacks.base import (
    Attacker,
    Case,
    Knowledge,
    Network,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
    Truth,
)
from veilset.attacks.features import (
    Batch,
    Matcher,
    Pairs,
    Planes,
    View,
    area_resize,
    fit_linear,
    own_among_others,
    protect_as_attacker,
    split_attacker,
    tune,
)
from veilset.attacks.learned_inverse import LearnedInverseParams
from veilset.attacks.linkage import enough_images, join

LINEAR: Final = "linear"
KERNEL: Final = "kernel"
MAPS: Final = "maps"


class FeatureReconstructionParams(LearnedInverseParams):
    """Parameters of `feature_reconstruction`; those of the U-Net are as in `learned_inverse`.

    Attributes:
        layer: The layer whose maps are seen, by its name in the network; "" for the first one whose
            maps have at most half the image's height and width.
        steps: Training steps of the U-Net; 0 for none: in seconds it learns no more than kernel
            regression does at once.
    """

    layer: str = ""
    versions: int = Field(2, ge=1, le=50)
    auxiliary: int = Field(1000, ge=20, le=1_000_000)
    steps: int = Field(0, ge=0, le=1_000_000)

    FULL: ClassVar[Mapping[str, Any]] = {
        **LearnedInverseParams.FULL, "versions": 8, "oracle_steps": 1000,
    }  # fmt: skip


@dataclass(frozen=True)
class FromMaps:
    """A view that reads the feature maps of images, not their pixels.

    Attributes:
        view: Reads maps as side information.
        network: The CNN.
        layer: Which of its layers.
        device: Where it runs.
    """

    view: View
    network: Network
    layer: str
    device: str

    def __call__(self, batch: Batch) -> Planes:
        """Restorations, grey levels 0..255."""
        return self.view(maps_of(self.network, self.layer, batch, self.device))


@dataclass(frozen=True)
class FittedReconstruction:
    """The chosen decoder, and where images are protected one that decodes the protected image."""

    matcher: Matcher
    protected: Matcher | None


@dataclass(frozen=True)
class _MapReader:
    """Shows a U-Net the maps, and what a linear map makes of them."""

    linear: View

    def __call__(self, batch: Batch) -> Reading:
        height, width = batch.images.shape[1:3]
        layers = area_resize(np.arcsinh(batch.side[MAPS]), height, width).astype(np.float32)
        return Reading(layers, area_resize(self.linear(batch), height, width))


class FeatureReconstruction(NetworkAttack[FeatureReconstructionParams, FittedReconstruction]):
    """Restores originals from an early layer's maps of protected images, and singles them out.

    Source: inversion of representations by a decoder: Dosovitskiy and Brox, CVPR 2016; in split
    inference: He, Zhang and Lee, ACSAC 2019. Linear map, kernel regression and scoring are ours.
    """

    name = "feature_reconstruction"
    title = "Reconstruction from feature maps"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "model_holder"
    knowledge: ClassVar[Knowledge] = "K5"
    cost = "seconds (quick) to an hour (full, no GPU)"
    metric_words = "rank-1 of the image restored from feature maps in a gallery of {gallery}"
    deed = "are restored from the CNN's feature maps so well that their original is singled out"
    oracle_floor = 0.9
    Parameters = FeatureReconstructionParams

    def _lacks(self, case: Case, network: Network) -> str | None:
        if self.params.layer and self.params.layer not in dict(network.module.named_modules()):
            return f"the CNN has no layer {self.params.layer}"
        return enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedReconstruction | None,
    ) -> FittedReconstruction:  # fmt: skip
        params, network, device = self.params, held(attacker), attacker.device
        scheme = release.scheme
        layer = params.layer or first_half_map(network, release.images[:1], device)
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        # Unprotected images differ from version to version only where they are moved.
        versions = params.versions if like is None or params.shift else 1
        fit = protect_as_attacker(scheme, attacker, fitting, versions, rng, params.shift)
        tuning = protect_as_attacker(scheme, attacker, tuned, 1, rng)[0]
        joined = join(fit)
        learnt, checked = (_mapped(network, layer, each, device) for each in (joined, tuning))
        judge = own_among_others(len(tuning.plain), params.gallery, rng)
        first = np.arange(len(fit[0].plain), dtype=np.int64)

        def best(views: Mapping[str, View], known: Pairs, seen: Pairs) -> Matcher:
            chosen = tune(views, known.take(first), seen, scheme, judge, by_view=True)
            return replace(chosen, view=FromMaps(chosen.view, network, layer, device))

        linear = fit_linear(learnt, checked, params.work_side, bits=False)
        views: dict[str, View] = {
            LINEAR: linear, KERNEL: fit_kernel(learnt, checked, MAPS, params.work_side)
        }  # fmt: skip
        steps = params.steps if like is None else params.oracle_steps
        # The oracle asks whether the decoder that was relied on works at all.
        if params.steps and (like is None or like.matcher.view_name == UNET):
            views[UNET] = train_residual(
                _MapReader(linear), learnt, params, steps, device, int(rng.integers(2**31)),
                progress,
            )  # fmt: skip
        if like is not None:
            name = like.matcher.view_name
            return FittedReconstruction(best({name: views[name]}, learnt, checked), None)
        # The same maps, and what was protected in the place of what it was made from.
        itself, seen = (
            replace(maps, plain=pairs.batch.images)
            for maps, pairs in ((learnt, joined), (checked, tuning))
        )
        back = {LINEAR: fit_linear(itself, seen, params.work_side, bits=False)}
        return FittedReconstruction(best(views, learnt, checked), best(back, itself, seen))

    def _measure(
        self, fitted: FittedReconstruction, case: Case, rng: np.random.Generator
    ) -> Scores:
        scores = reidentify(fitted.matcher, case, self.params.gallery, rng)
        if fitted.protected is None or len(case.truth.sources):
            return scores
        truth = Truth(originals=case.release.images, ids=case.truth.ids, groups=case.truth.groups)
        itself = reidentify(fitted.protected, replace(case, truth=truth), self.params.gallery, rng)
        details = dict(scores.details) | {
            "protected_rank1": float(itself.frame["success"].mean()),
            "protected_ssim": itself.details["ssim"],
            "protected_psnr": itself.details["psnr"],
        }
        return replace(scores, details=details)

    def _chosen(self, fitted: FittedReconstruction) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, fitted.matcher.table


def maps_of(network: Network, layer: str, batch: Batch, device: str) -> Batch:
    """Feature maps in the place of images: as side information beside black images.

    Args:
        network: The CNN.
        layer: Which of its layers.
        batch: Images uint8 (N, H, W, C); their side information is not passed on.
        device: As torch names it.

    Returns:
        The maps as `side["maps"]`, float32 (N, h, w, channels).
    """
    maps = layer_output(network, layer, batch.images, device)
    return Batch(np.zeros_like(batch.images), {MAPS: maps})


def _mapped(network: Network, layer: str, pairs: Pairs, device: str) -> Pairs:
    return replace(pairs, batch=maps_of(network, layer, pairs.batch, device))
