"""Linkage: who holds an original finds its protected version.

The attacker of a public release holds candidate originals (a scraped set, her own photographs) and
asks which of them a protected image was made from. No training by gradients: what survives the
protection is measured (thumbnails, region statistics, histograms, agreeing pixels, votes of
blocks), on the image as released and on a linear restoration of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from veilset.attacks.base import (
    Attack,
    Attacker,
    AttackParams,
    Case,
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
    View,
    as_released,
    fit_linear,
    own_among_others,
    protect_as_attacker,
    split_attacker,
    tune,
)
from veilset.metrics.retrieval import verification
from veilset.metrics.similarity import psnr, ssim
from veilset.types import FloatArray, Images, IntArray

MIN_AUXILIARY = 20
"""With fewer images of her own an attacker can neither fit nor tune."""


class LinkageParams(AttackParams):
    """Parameters of `linkage`.

    Attributes:
        targets: At most so many released images are attacked.
        gallery: Size of the galleries; smaller where there are fewer candidates.
        versions: How many times the attacker protects her own images, under fresh keys.
        auxiliary: At most so many of her images are used.
        tuning_share: Share of her images that chooses among the variants.
    """

    targets: int = Field(500, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    versions: int = Field(8, ge=1, le=50)
    auxiliary: int = Field(2000, ge=20, le=1_000_000)
    tuning_share: float = Field(0.3, gt=0, lt=1)

    FULL: ClassVar[Mapping[str, Any]] = {"targets": 2000, "versions": 16, "auxiliary": 20_000}


@dataclass(frozen=True)
class FittedLinkage:
    """The chosen view and measure."""

    matcher: Matcher


class Linkage(Attack[LinkageParams, FittedLinkage]):
    """Links protected images to their originals by what survives the protection.

    Source: the invariants follow the weaknesses measured for each scheme; the attack is ours.
    """

    name = "linkage"
    title = "Linkage to the original"
    risk: ClassVar[Risk] = "linkability"
    attacker: ClassVar[Template] = "public_release"
    knowledge: ClassVar[Knowledge] = "K2"
    cost = "seconds"
    deed = "are linked to their original"
    oracle_floor = 0.95
    Parameters = LinkageParams

    def applies(self, case: Case) -> str | None:
        """None where there are two targets and enough auxiliary images."""
        return enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedLinkage | None,
    ) -> FittedLinkage:  # fmt: skip
        del like
        params = self.params
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        fit = protect_as_attacker(release.scheme, attacker, fitting, params.versions, rng)
        tuning = protect_as_attacker(release.scheme, attacker, tuned, 1, rng)[0]
        if progress:
            progress("linkage: restoring", 1, 3)
        views: dict[str, View] = {"released": as_released, **linear_views(fit, tuning)}
        if progress:
            progress("linkage: tuning", 2, 3)
        judge = own_among_others(len(tuning.plain), self.params.gallery, rng)
        return FittedLinkage(tune(views, fit[0], tuning, release.scheme, judge))

    def _measure(self, fitted: FittedLinkage, case: Case, rng: np.random.Generator) -> Scores:
        return measure_matcher(fitted.matcher, case, self.params.gallery, rng)

    def _chosen(self, fitted: FittedLinkage) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, fitted.matcher.table


def enough_images(case: Case) -> str | None:
    """Why a case is too small for an attack that learns and ranks, or None."""
    if len(case.release.images) < 3:
        return "fewer than 3 released images: there is nothing to tell apart"
    if len(case.attacker.images) < MIN_AUXILIARY:
        return (
            f"the attacker holds {len(case.attacker.images)} auxiliary images and needs at least"
            f" {MIN_AUXILIARY}: give the role `auxiliary` a larger share"
        )
    return None


def linear_views(fit: list[Pairs], tuning: Pairs, side: int = 32) -> dict[str, View]:
    """Linear restorations from pixels and from bits."""
    joined = join(fit)
    return {
        name: fit_linear(joined, tuning, side, bits)
        for name, bits in (("linear", False), ("linear on bits", True))
    }


def join(versions: list[Pairs]) -> Pairs:
    """All versions one after the other."""
    side = {
        name: np.concatenate([pairs.batch.side[name] for pairs in versions])
        for name in versions[0].batch.side
    }
    images = np.concatenate([pairs.batch.images for pairs in versions])
    plain = np.concatenate([pairs.plain for pairs in versions])
    return Pairs(Batch(images, side), plain, np.concatenate([pairs.rows for pairs in versions]))


def measure_matcher(matcher: Matcher, case: Case, gallery: int, rng: np.random.Generator) -> Scores:
    """Ranks each target's original by a matcher that sees the candidates in random order."""
    originals = case.truth.originals
    shuffled = rng.permutation(len(originals)).astype(np.int64)
    batch = Batch(case.release.images, case.release.side)
    distances = matcher.distances(batch, originals[shuffled])
    frame, size, found = score_candidates(distances, case, shuffled, gallery, rng)
    pictures: Images = originals[found]
    details = {f"unattacked_{k}": v for k, v in likeness(case.release.images, originals).items()}
    return Scores(frame, size, pictures, details | verified(distances, case, shuffled))


def verified(distances: FloatArray, case: Case, shuffled: IntArray) -> dict[str, float]:
    """How surely own pairs are told from others, as details; see `verification`.

    Args:
        distances: float (N, N), as `score_candidates` takes them, finite.
        case: The case, with N rows.
        shuffled: int64 (N,), a permutation.
    """
    ordered = distances[:, np.argsort(shuffled)]
    return verification(ordered, np.arange(len(ordered)), case.truth.made_from)


def likeness(images: Images, originals: Images) -> dict[str, float]:
    """Mean SSIM and PSNR of images to their originals; PSNR of the pairs that differ."""
    decibels = psnr(images, originals)
    finite = decibels[np.isfinite(decibels)]
    return {
        "ssim": float(ssim(images, originals).mean()),
        "psnr": float(finite.mean()) if len(finite) else float("nan"),
    }
