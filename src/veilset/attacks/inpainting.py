"""Inpainting: an outside trainer guesses what a mask took away.

Kept pixels are plain, so they single an image out whatever is guessed. What inpainting adds is
measured inside the hole: how close the guess comes there, and whether the guess alone singles the
original out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import Field
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import csc_matrix, identity, kron
from scipy.sparse.linalg import splu

from veilset.attacks._restoring import MAX_PSNR, UNET, Reading, score_restored, train_residual
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
    split_attacker,
    tune,
)
from veilset.attacks.learned_inverse import LearnedInverseParams
from veilset.attacks.linkage import enough_images, join
from veilset.metrics.similarity import PEAK, SIGMA
from veilset.types import BoolArray, FloatArray, Images, IntArray

MASK: Final = "mask"
"""The published column that says which pixels were kept: (N, H, W), 0 where one was taken away."""

_FOLD: Final = "fold of the attacker"
_STANDARDS: Final = 200
_NOISE: Final = (1.0, 4.0, 10.0, 25.0)
_FEW: Final = 1e-9


class InpaintingParams(LearnedInverseParams):
    """Parameters of `inpainting`; those of the network are as in `learned_inverse`.

    Attributes:
        components: Principal components of plain images that the linear guess is made of.
    """

    versions: int = Field(4, ge=1, le=50)
    steps: int = Field(300, ge=1, le=1_000_000)
    oracle_steps: int = Field(30, ge=1, le=1_000_000)
    components: int = Field(128, ge=1, le=2048)

    FULL: ClassVar[Mapping[str, Any]] = {
        **LearnedInverseParams.FULL, "versions": 8, "oracle_steps": 200, "components": 512,
    }  # fmt: skip


@dataclass(frozen=True)
class FittedInpainting:
    """The chosen inpainter, with the others for comparison.

    Attributes:
        matcher: The best of all.
        views: All of them by name.
        mean: The mean of the attacker's plain images, float64 (H, W, C).
        table: Rank-1 of each on the tuning part.
    """

    matcher: Matcher
    views: Mapping[str, View]
    mean: FloatArray
    table: Mapping[str, float]


class Inpainting(Attack[InpaintingParams, FittedInpainting]):
    """Completes masked images and singles out the originals.

    Source: biharmonic surfaces and ridge regression are textbook; a network that is told the mask
    follows Liu et al. (partial convolutions), ECCV 2018, in the small; the scoring is ours.
    """

    name = "inpainting"
    title = "Inpainting of masked areas"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K2"
    cost = "15 seconds (quick) to an hour (full, no GPU)"
    metric_words = "rank-1 of the completed image in a gallery of {gallery}"
    deed = "are completed so well that their original is singled out"
    oracle_floor = 0.9
    Parameters = InpaintingParams

    def applies(self, case: Case) -> str | None:
        """None where a mask is published and there are images enough to learn from."""
        mask = case.release.side.get(MASK)
        if mask is None or mask.shape != case.release.images.shape[:3]:
            return f"{OTHER_KIND}: it publishes no mask, so no area is known to be missing"
        return enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedInpainting | None,
    ) -> FittedInpainting:  # fmt: skip
        params = self.params
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        fit = protect_as_attacker(
            release.scheme, attacker, fitting, params.versions, rng, params.shift
        )
        tuning = protect_as_attacker(release.scheme, attacker, tuned, 1, rng)[0]
        guess = fit_guess(fit, tuning, params.components)
        mean = fit[0].plain.mean(axis=0)
        views: dict[str, View] = {
            "constant": Constant(mean), "biharmonic": Biharmonic(), RIDGE: guess.whole,
        }  # fmt: skip
        relied = None if like is None else like.matcher.view_name
        if relied in {None, UNET}:
            steps = params.steps if like is None else params.oracle_steps
            network = train_residual(
                guess.read, _in_folds(join(fit)), params, steps, attacker.device,
                int(rng.integers(2**31)), progress,
            )  # fmt: skip
            views[UNET] = Completed(network)
        if relied is not None:
            # The oracle asks whether the inpainter that was relied on works at all.
            views = {name: view for name, view in views.items() if name == relied}
        judge = own_among_others(len(tuning.plain), params.gallery, rng)
        standards = fit[0].take(np.arange(min(_STANDARDS, len(fit[0].plain)), dtype=np.int64))
        tried = [
            tune({name: view}, standards, tuning, release.scheme, judge, by_view=True)
            for name, view in views.items()
        ]
        table = {name: value for each in tried for name, value in each.table.items()}
        # Kept pixels alone mostly single out: then the error in the hole decides.
        best = max(tried, key=lambda each: (each.score[0], -hole_error(each.view, tuning)))
        return FittedInpainting(best, views, mean, table)

    def _measure(self, fitted: FittedInpainting, case: Case, rng: np.random.Generator) -> Scores:
        scores, views = score_restored(fitted.matcher, case, self.params.gallery, rng)
        batch = Batch(case.release.images, case.release.side)
        hole = ~kept_pixels(batch)
        if not hole.any():
            return scores
        details = dict(scores.details)
        named = {"hole": views} | {f"hole_{name}": v(batch) for name, v in fitted.views.items()}
        for name, planes in named.items():
            details |= _inside(name, planes, case.truth.originals, hole)
            details[f"{name}_rank1"] = self._alone(planes, hole, fitted.mean, case, rng)
        return replace(scores, details=details)

    def _alone(
        self, views: Planes, hole: BoolArray, mean: FloatArray, case: Case,
        rng: np.random.Generator,
    ) -> float:  # fmt: skip
        """Rank-1 of what was guessed, without any kept pixel."""
        shuffled = rng.permutation(len(views)).astype(np.int64)
        distances = hole_distances(views, case.truth.originals[shuffled], hole, mean)
        frame, _, _ = score_candidates(distances, case, shuffled, self.params.gallery, rng)
        return float(frame["success"].mean())

    def _chosen(self, fitted: FittedInpainting) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, fitted.table


def kept_pixels(batch: Batch) -> BoolArray:
    """Where pixels were kept, bool (N, H, W): everywhere, if no mask is published."""
    if MASK not in batch.side:
        return np.ones(batch.images.shape[:3], dtype=np.bool_)
    return np.asarray(batch.side[MASK] != 0)


# --- What is measured inside the hole ---------------------------------------------------------


def hole_error(view: View, pairs: Pairs) -> float:
    """Mean absolute error where pixels were taken away; everywhere, if none was."""
    hole = ~kept_pixels(pairs.batch)
    apart = np.abs(view(pairs.batch) - pairs.plain)
    return float(apart[hole].mean() if hole.any() else apart.mean())


def hole_distances(
    views: Planes, candidates: Images, hole: BoolArray, mean: FloatArray
) -> FloatArray:
    """One minus the cosine between guess and candidate inside the guess's own hole.

    Args:
        views: Completed images, (T, H, W, C).
        candidates: Plain images, uint8 (N, H, W, C).
        hole: Where pixels were taken away, bool (T, H, W).
        mean: What is usual there, (H, W, C): it counts as nothing.

    Returns:
        float64 (T, N), 0..2.
    """
    inside = np.broadcast_to(hole[..., None], views.shape).reshape(len(views), -1)
    guess = ((views - mean).reshape(len(views), -1)) * inside
    known = (candidates - mean).reshape(len(candidates), -1)
    length = np.linalg.norm(guess, axis=1)[:, None] * np.sqrt(inside @ (known.T**2))
    return np.asarray(1.0 - guess @ known.T / np.maximum(length, _FEW))


def _inside(name: str, views: Planes, originals: Images, hole: BoolArray) -> dict[str, float]:
    """PSNR and SSIM of a view inside the holes."""
    some = hole.any(axis=(1, 2))
    square = ((views - originals) ** 2).mean(axis=-1)
    error = (square * hole).sum(axis=(1, 2))[some] / hole.sum(axis=(1, 2))[some]
    decibels = np.minimum(10 * np.log10(PEAK**2 / np.maximum(error, _FEW)), MAX_PSNR)
    likeness = hole_ssim(views, originals, hole)[some]
    return {f"{name}_psnr": float(decibels.mean()), f"{name}_ssim": float(likeness.mean())}


def hole_ssim(views: Planes, originals: Images, hole: BoolArray) -> FloatArray:
    """SSIM at each pixel of the hole, with the window reflected at the border; float64 (N,).

    Not a number where an image has no hole.

    Source: Wang et al., IEEE TIP 13(4), 2004; taking the mean over the hole alone is ours.
    """
    a, b = np.asarray(views, dtype=np.float64), originals.astype(np.float64)
    mean_a, mean_b, aa, bb, ab = (_window(each) for each in (a, b, a * a, b * b, a * b))
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (aa - mean_a**2 + bb - mean_b**2 + c2)
    each = (top / below).mean(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray((each * hole).sum(axis=(1, 2)) / hole.sum(axis=(1, 2)))


def _window(planes: FloatArray) -> FloatArray:
    for axis in (1, 2):
        planes = gaussian_filter1d(planes, SIGMA, axis=axis, radius=5)
    return planes


# --- The inpainters ---------------------------------------------------------------------------

RIDGE: Final = "ridge"


def _filled(batch: Batch, guess: Planes) -> Planes:
    """The released image where it was kept, the guess elsewhere."""
    kept = kept_pixels(batch)[..., None]
    return np.asarray(np.where(kept, batch.images, np.clip(guess, 0.0, 255.0)), dtype=np.float64)


def _by_mask(kept: BoolArray) -> Iterator[tuple[BoolArray, IntArray]]:
    """Each mask (H, W) that occurs, with its rows."""
    packed = np.packbits(kept.reshape(len(kept), -1), axis=1)
    _, first, member = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    for number, row in enumerate(first):
        yield kept[row], np.flatnonzero(member.ravel() == number)


@dataclass(frozen=True)
class Constant:
    """Fills holes with what is usual there; `mean` is float64 (H, W, C)."""

    mean: FloatArray

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels 0..255."""
        return _filled(batch, np.broadcast_to(self.mean, batch.images.shape))


@dataclass(frozen=True)
class Biharmonic:
    """Fills holes with the surface of least squared Laplacian; it learns nothing."""

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels 0..255."""
        guess = batch.images.astype(np.float64)
        for kept, rows in _by_mask(kept_pixels(batch)):
            if kept.any() and not kept.all():
                guess[np.ix_(rows, *map(np.arange, kept.shape))] = _surfaces(guess[rows], kept)
        return _filled(batch, guess)


def _surfaces(images: FloatArray, kept: BoolArray) -> FloatArray:
    """Completes images (n, H, W, C) that share a mask."""
    n, height, width, channels = images.shape
    flat = images.transpose(1, 2, 0, 3).reshape(height * width, n * channels).copy()
    bend, inside = _laplacian(height, width), ~kept.ravel()
    hole = bend[:, inside]
    normal = (hole.T @ hole + _FEW * identity(int(inside.sum()))).tocsc()
    flat[inside] = splu(normal).solve(np.asarray(-(hole.T @ (bend[:, ~inside] @ flat[~inside]))))
    return flat.reshape(height, width, n, channels).transpose(2, 0, 1, 3)


@lru_cache(maxsize=4)
def _laplacian(height: int, width: int) -> Any:
    """The Laplacian of an image that is reflected at its borders, sparse (H * W, H * W)."""
    down, across = (_second_difference(size) for size in (height, width))
    return csc_matrix(kron(down, identity(width)) + kron(identity(height), across))


def _second_difference(size: int) -> FloatArray:
    made = np.eye(size, k=1) + np.eye(size, k=-1)
    return np.asarray(made - np.diag(made.sum(axis=1)))


@dataclass(frozen=True, eq=False)
class Ridge:
    """The most likely linear guess of masked pixels from kept ones, for any mask.

    Plain images are a mean and a few components of normal weights, and noise: given the kept
    pixels, the weights have a closed form.

    Attributes:
        mean: Of the plain images, (H * W * C,).
        components: Each times its deviation, (components, H * W * C).
        noise: Deviation of the noise, in grey levels.
    """

    mean: FloatArray
    components: FloatArray
    noise: float

    @classmethod
    def of(cls, plain: Images, components: int, noise: float) -> "Ridge":
        """Learns from plain images, uint8 (N, H, W, C)."""
        flat = plain.reshape(len(plain), -1).astype(np.float64)
        mean = flat.mean(axis=0)
        flat -= mean
        if len(flat) <= flat.shape[1]:
            values, vectors = np.linalg.eigh(flat @ flat.T)
            vectors = vectors.T @ flat / np.sqrt(np.maximum(values, _FEW))[:, None]
        else:
            values, columns = np.linalg.eigh(flat.T @ flat)
            vectors = columns.T
        spread = np.sqrt(np.maximum(values, 0.0) / max(len(flat) - 1, 1))
        most = slice(-components, None)
        return cls(mean, (vectors * spread[:, None])[most], noise)

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels 0..255."""
        shape = batch.images.shape
        guess = np.empty((len(batch.images), len(self.mean)))
        flat = batch.images.reshape(len(batch.images), -1)
        for kept, rows in _by_mask(kept_pixels(batch)):
            seen = np.repeat(kept.ravel(), shape[-1])
            there = self.components[:, seen]
            square = there @ there.T + self.noise**2 * np.eye(len(there))
            heard = there @ (flat[rows][:, seen] - self.mean[seen]).T
            guess[rows] = np.linalg.solve(square, heard).T @ self.components + self.mean
        return _filled(batch, guess.reshape(shape))


@dataclass(frozen=True)
class Guess:
    """Linear guesses, two of which know only half of the attacker's images.

    Attributes:
        whole: Learnt from all of them.
        halves: Learnt without the images of fold 0, and without those of fold 1.
    """

    whole: Ridge
    halves: tuple[Ridge, Ridge]

    def read(self, batch: Batch) -> Reading:
        """The image, its mask and two guesses, as the network reads them.

        In training, each image is guessed by the half that never saw it: else the network would
        learn to trust a guess that is better than it will be.
        """
        if _FOLD in batch.side:
            folds = batch.side[_FOLD]
            base = np.empty(batch.images.shape)
            for number, half in enumerate(self.halves):
                if (folds == number).any():
                    base[folds == number] = half(batch.take(folds == number))
        else:
            base = np.asarray(self.whole(batch), dtype=np.float64)
        kept = kept_pixels(batch)[..., None].astype(np.float32)
        surface = Biharmonic()(batch) / 127.5 - 1.0
        released = (batch.images.astype(np.float32) / 127.5 - 1.0) * kept
        layers = [released, base / 127.5 - 1.0, surface, kept]
        return Reading(np.concatenate(layers, axis=-1, dtype=np.float32), base)


def fit_guess(fit: list[Pairs], tuning: Pairs, components: int) -> Guess:
    """Fits the linear guesses; the tuning part chooses how much noise they reckon with."""
    plain = fit[0].plain
    first = Ridge.of(plain, components, _NOISE[0])
    tried = [replace(first, noise=noise) for noise in _NOISE]
    whole = min(tried, key=lambda ridge: hole_error(ridge, tuning))
    fold = fit[0].rows % 2
    halves = [plain[fold != number] for number in (0, 1)]
    one, two = (Ridge.of(h if len(h) else plain, components, whole.noise) for h in halves)
    return Guess(whole, (one, two))


def _in_folds(pairs: Pairs) -> Pairs:
    """The pairs, with the half of the attacker's images that each comes from."""
    side = {**pairs.batch.side, _FOLD: pairs.rows % 2}
    return replace(pairs, batch=Batch(pairs.batch.images, side))


@dataclass(frozen=True)
class Completed:
    """A network's guess in the holes alone."""

    network: View

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels 0..255; not a number where it diverged."""
        return _filled(batch, area_resize(self.network(batch), *batch.images.shape[1:3]))
