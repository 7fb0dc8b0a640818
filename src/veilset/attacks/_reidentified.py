"""How attacks without a network score what they restored: by re-identification, SSIM and PSNR."""

from collections.abc import Mapping

import numpy as np

from veilset.attacks.base import Case, Diverged, Release, Scores, score_candidates
from veilset.attacks.features import Batch, Matcher, to_pictures
from veilset.attacks.linkage import likeness
from veilset.metrics.similarity import psnr, ssim_either_sign
from veilset.schemes.base import Scheme
from veilset.types import Images

MAX_PSNR = 99.0
"""Stands for the infinite PSNR of equal images."""


def reidentify(matcher: Matcher, case: Case, gallery: int, rng: np.random.Generator) -> Scores:
    """Seeks each restored image among the originals, and compares it with its own.

    Args:
        matcher: The restoration with the measure that compares.
        case: The targets.
        gallery: Wanted size of the galleries.
        rng: Source of the galleries.

    Returns:
        The scores, with the restorations as pictures. The SSIM is that of the image or of its
        negative, whichever is larger, before the attack as after it.

    Raises:
        Diverged: A restoration is not a number.

    Source: ours.
    """
    originals = case.truth.originals
    views = matcher.view(batch_of(case.release))
    if not np.isfinite(views).all():
        raise Diverged("a restored image is not a number")
    pictures = to_pictures(views, originals.shape[1:3])
    shuffled = rng.permutation(len(originals)).astype(np.int64)
    distances = matcher.compare(views, originals[shuffled])
    frame, size, _ = score_candidates(distances, case, shuffled, gallery, rng)
    frame["ssim"] = ssim_either_sign(pictures, originals)
    frame["psnr"] = np.minimum(psnr(pictures, originals), MAX_PSNR)
    before = likeness(case.release.images, originals)
    details = {
        **quality(pictures, originals, ""),
        "ssim_95": float(frame["ssim"].quantile(0.95)),
        "unattacked_ssim": float(ssim_either_sign(case.release.images, originals).mean()),
        "unattacked_psnr": before["psnr"],
    }
    return Scores(frame, size, pictures, details)


def quality(pictures: Images, originals: Images, suffix: str) -> Mapping[str, float]:
    """Mean SSIM (of either sign) and PSNR of restored images; their names end in `suffix`."""
    return {
        f"ssim{suffix}": float(ssim_either_sign(pictures, originals).mean()),
        f"psnr{suffix}": float(np.minimum(psnr(pictures, originals), MAX_PSNR).mean()),
    }


def batch_of(release: Release) -> Batch:
    """The released images with their side information."""
    return Batch(release.images, release.side)


def parts_of(scheme: Scheme) -> tuple[Scheme, ...]:  # type: ignore[type-arg]
    """The steps of a composition in order, or the scheme itself."""
    steps: tuple[Scheme, ...] = getattr(scheme, "steps", ())  # type: ignore[type-arg]
    return steps or (scheme,)
