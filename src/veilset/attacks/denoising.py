"""Denoising: an outside trainer takes the noise of a mask away again.

A scheme that adds noise publishes how much, as its privacy budget. Knowing the law of the noise,
the attacker filters it out: by blurring, non-local means, wavelets, Bayes' rule with the very law,
a linear filter fitted on images of her own, and a U-Net that corrects that filter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import Field

from veilset.attacks._noise import (
    Estimate,
    Floats,
    NoiseModel,
    adds_noise,
    estimate,
    law_of,
    repeated,
    smoothed,
)
from veilset.attacks._restoring import (
    MAX_PSNR,
    UNET,
    Reading,
    score_restored,
    train_residual,
)
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
    Pairs,
    Planes,
    View,
    own_among_others,
    protect_as_attacker,
    split_attacker,
    to_pictures,
    tune,
)
from veilset.attacks.learned_inverse import LearnedInverseParams
from veilset.attacks.linkage import enough_images, join
from veilset.metrics.similarity import psnr, ssim
from veilset.schemes.ldp_slicing import to_ycbcr
from veilset.types import FloatArray, Images, IntArray

_STANDARDS: Final = 200
_SAMPLES: Final = 120_000
_WIDTHS: Final = (0.7, 1.2, 2.0, 3.5)
_TRUSTED: Final = (0.7, 1.2)
_RIDGE: Final = 1e-4
_LEVEL_GROUP: Final = 4


class DenoisingParams(LearnedInverseParams):
    """Parameters of `denoising`; those of the network are as in `learned_inverse`."""

    versions: int = Field(4, ge=1, le=50)
    steps: int = Field(250, ge=1, le=1_000_000)
    oracle_steps: int = Field(60, ge=1, le=1_000_000)

    FULL: ClassVar[Mapping[str, Any]] = {
        **LearnedInverseParams.FULL, "versions": 8, "oracle_steps": 500,
    }  # fmt: skip


@dataclass(frozen=True)
class FittedDenoising:
    """The chosen denoiser, with the others for comparison.

    Attributes:
        matcher: The best of all.
        classical: The classical filter of the smallest error on the tuning part.
        learned: The U-Net; None where it was not trained.
    """

    matcher: Matcher
    classical: Matcher
    learned: Matcher | None


class Denoising(Attack[DenoisingParams, FittedDenoising]):
    """Takes noise away and singles out the originals.

    Source: filters that know the noise are textbook; non-local means: Buades et al., CVPR 2005;
    BayesShrink: Chang, Yu, Vetterli, IEEE TIP 9(9), 2000. Levels of noise estimated by likelihood,
    the fitted filter and the scoring by re-identification are ours.
    """

    name = "denoising"
    title = "Denoising of noise masks"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K2"
    cost = "15 seconds (quick) to an hour (full, no GPU)"
    metric_words = "rank-1 of the denoised image in a gallery of {gallery}"
    deed = "are denoised so well that their original is singled out"
    oracle_floor = 0.9
    Parameters = DenoisingParams

    def applies(self, case: Case) -> str | None:
        """None where noise was added and there are images enough to learn from."""
        if not adds_noise(case.release.scheme):
            return f"{OTHER_KIND}: it declares no privacy budget, so it adds no noise"
        return enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedDenoising | None,
    ) -> FittedDenoising:  # fmt: skip
        params = self.params
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        fit = protect_as_attacker(
            release.scheme, attacker, fitting, params.versions, rng, params.shift
        )
        tuning = protect_as_attacker(release.scheme, attacker, tuned, 1, rng)[0]
        joined = join(fit)
        model = NoiseModel.of(law_of(release.scheme, joined), fit[0].plain)
        filters = fit_filters(model, joined, rng)
        judge = own_among_others(len(tuning.plain), params.gallery, rng)
        standards = fit[0].take(np.arange(min(_STANDARDS, len(fit[0].plain)), dtype=np.int64))

        def best(views: Mapping[str, View]) -> Matcher:
            return tune(views, standards, tuning, release.scheme, judge, by_view=True)

        nearest = min(filters, key=lambda name: _error(filters[name], tuning))
        if like is not None:
            # The oracle asks whether the filter that was relied on works at all.
            relied = like.matcher.view_name
            filters = {name: filters[name] for name in {relied, nearest} & set(filters)}
        learned = None
        if like is None or like.matcher.view_name == UNET:
            steps = params.steps if like is None else params.oracle_steps
            network = train_residual(
                _reader(model, filters, tuning), joined, params, steps, attacker.device,
                int(rng.integers(2**31)), progress,
            )  # fmt: skip
            learned = best({UNET: network})
        classical = best({nearest: filters[nearest]})
        return FittedDenoising(_better(best(filters), learned), classical, learned)

    def _measure(self, fitted: FittedDenoising, case: Case, rng: np.random.Generator) -> Scores:
        scores, _ = score_restored(fitted.matcher, case, self.params.gallery, rng)
        details = dict(scores.details)
        for name, matcher in (("classical", fitted.classical), ("learned", fitted.learned)):
            if matcher is not None:
                details |= _closeness(name, matcher, case)
        return replace(scores, details=details)

    def _chosen(self, fitted: FittedDenoising) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, fitted.matcher.table


def _better(one: Matcher, other: Matcher | None) -> Matcher:
    """The one of the higher score, with the table of both."""
    if other is None:
        return one
    best = one if one.score >= other.score else other
    return replace(best, table={**one.table, **other.table})


def _error(view: View, tuning: Pairs) -> float:
    made = view(tuning.batch)
    return float(((made - tuning.plain) ** 2).mean())


def _closeness(name: str, matcher: Matcher, case: Case) -> dict[str, float]:
    views = matcher.view(Batch(case.release.images, case.release.side))
    pictures = to_pictures(views, case.truth.originals.shape[1:3])
    return {
        f"{name}_ssim": float(ssim(pictures, case.truth.originals).mean()),
        f"{name}_psnr": float(np.minimum(psnr(pictures, case.truth.originals), MAX_PSNR).mean()),
    }


# --- The filters ------------------------------------------------------------------------------

LOCAL = "local linear"


def fit_filters(model: NoiseModel, pairs: Pairs, rng: np.random.Generator) -> dict[str, View]:
    """All filters by name.

    Args:
        model: Law and prior.
        pairs: The attacker's pairs, that the fitted filter learns from.
        rng: Draws the pixels that it learns from.
    """
    views: dict[str, View] = {f"blur {width:g}": Blur(width) for width in (0.7, 1.5, 3.0)}
    views |= {f"non-local means {h:g}": NonLocalMeans(model, h) for h in (0.6, 1.0)}
    views["wavelet"] = Wavelet(model)
    local = fit_local_linear(model, pairs, rng)
    views |= {f"bayes {width:g}": Bayes(model, width, tau) for width, tau in local.trusted}
    return views | {LOCAL: local}


@dataclass(frozen=True)
class Blur:
    """A Gaussian blur that knows nothing of the noise; `width` in pixels."""

    width: float

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels 0..255."""
        return smoothed(batch.images, self.width).astype(np.float64)


@dataclass(frozen=True)
class NonLocalMeans:
    """Non-local means, with the mean deviation of the noise on each image.

    Attributes:
        model: The noise.
        strength: Cut-off of the weights, in deviations.
    """

    model: NoiseModel
    strength: float

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels 0..255."""
        from skimage.restoration import denoise_nl_means  # noqa: PLC0415 - a second to import

        found = estimate(self.model, batch)
        deviation = found.deviation.mean(axis=(1, 2, 3))
        made = np.empty(found.straight.shape)
        for row, (image, sigma) in enumerate(zip(found.straight, deviation, strict=True)):
            quieter = denoise_nl_means(
                image, patch_size=5, patch_distance=5, h=max(self.strength * float(sigma), 0.1),
                sigma=float(sigma), fast_mode=True, channel_axis=-1, preserve_range=True,
            )  # fmt: skip
            made[row] = quieter.reshape(image.shape)
        return _shown(self.model, made, batch)


@dataclass(frozen=True)
class Wavelet:
    """BayesShrink on Haar wavelets, averaged over shifts of the grid."""

    model: NoiseModel

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels 0..255."""
        found = estimate(self.model, batch)
        sigma = found.deviation.mean(axis=(1, 2), keepdims=True)
        return _shown(self.model, haar_shrunk(found.straight, sigma), batch)


def haar_shrunk(planes: Floats, sigma: Floats, levels: int = 3) -> FloatArray:
    """Haar wavelets with soft thresholds sigma^2 / (deviation of the clean coefficients).

    Args:
        planes: (N, H, W, C).
        sigma: Deviation of the noise, (N, 1, 1, C).
        levels: How many times the resolution is halved.

    Returns:
        float64 (N, H, W, C), the mean over four shifts of the grid.

    Source: BayesShrink, with cycle spinning (Coifman and Donoho, 1995).
    """
    height, width = planes.shape[1:3]
    step = 2**levels
    total = np.zeros(planes.shape)
    for top, left in ((0, 0), (0, step // 2), (step // 2, 0), (step // 2, step // 2)):
        pad = ((0, 0), (top, -(height + top) % step), (left, -(width + left) % step), (0, 0))
        made = _shrunk(np.pad(planes, pad, mode="symmetric").astype(np.float64), sigma, levels)
        total += made[:, top : top + height, left : left + width]
    return total / 4


def _shrunk(planes: FloatArray, sigma: Floats, levels: int) -> FloatArray:
    if levels == 0:
        return planes
    a, b = planes[:, ::2, ::2], planes[:, ::2, 1::2]
    c, d = planes[:, 1::2, ::2], planes[:, 1::2, 1::2]
    low = _shrunk((a + b + c + d) / 2, sigma, levels - 1)
    across, down, both = (
        _soft(part, sigma)
        for part in ((a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2)
    )
    made = np.empty_like(planes)
    made[:, ::2, ::2] = (low + across + down + both) / 2
    made[:, ::2, 1::2] = (low - across + down - both) / 2
    made[:, 1::2, ::2] = (low + across - down - both) / 2
    made[:, 1::2, 1::2] = (low - across - down + both) / 2
    return made


def _soft(part: FloatArray, sigma: Floats) -> FloatArray:
    clean = (part**2).mean(axis=(1, 2), keepdims=True) - sigma.astype(np.float64) ** 2
    threshold = sigma**2 / np.sqrt(np.maximum(clean, 1e-6))
    return np.asarray(np.sign(part) * np.maximum(np.abs(part) - threshold, 0.0))


@dataclass(frozen=True)
class Bayes:
    """The mean of each pixel given its grey level, the law, and its neighbourhood's mean.

    Attributes:
        model: The noise.
        width: Of the neighbourhood.
        tau: How far a pixel is from its neighbourhood's mean, in grey levels.
    """

    model: NoiseModel
    width: float
    tau: float

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels 0..255."""
        found = estimate(self.model, batch)
        about = found.mean(self.width)
        made = self.model.posterior(found.seen, found.levels, about, self.tau)
        return _shown(self.model, made, batch)


@dataclass(frozen=True)
class LocalLinear:
    """A linear filter of each pixel's neighbourhood, fitted for each level of noise and channel.

    It reads neighbours and filtered images of several widths, and writes each pixel of a square of
    the grid apart.

    Attributes:
        model: The noise.
        trusted: Widths of the Bayesian filters that it reads, with their tau.
        weights: (groups, C, features, grid * grid).
    """

    model: NoiseModel
    trusted: tuple[tuple[float, float], ...]
    weights: FloatArray

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels 0..255."""
        made = []
        for start in range(0, len(batch.images), 64):
            part = batch.take(slice(start, start + 64))
            made.append(self._restored(estimate(self.model, part), part))
        return np.concatenate(made)

    def _restored(self, found: Estimate, batch: Batch) -> Planes:
        features = local_features(self.model, found, self.trusted)
        count, _, _, squares = self.weights.shape
        groups = np.minimum(_groups(found.levels), count - 1)[..., None, None]
        n, height, width, channels = found.seen.shape
        side = self.model.law.grid
        made = np.empty((n, height, width, channels, side * side), dtype=np.float32)
        for channel in range(channels):
            # All groups at once and then one of them: cheaper than sorting pixels by group.
            weights = np.moveaxis(self.weights[:, channel], 0, 1).reshape(features.shape[-1], -1)
            every = features[channel] @ weights.astype(np.float32)
            every = every.reshape(n, height, width, count, squares)
            made[..., channel, :] = np.take_along_axis(every, groups, axis=3)[..., 0, :]
        full = made.reshape(n, height, width, channels, side, side).transpose(0, 1, 4, 2, 5, 3)
        full = full.reshape(n, height * side, width * side, channels)
        rows, columns = batch.images.shape[1:3]
        return self.model.law.shown(full[:, :rows, :columns].astype(np.float64))


def fit_local_linear(model: NoiseModel, pairs: Pairs, rng: np.random.Generator) -> LocalLinear:
    """Fits the filter on the attacker's pairs, at most a hundred thousand or so pixels of them."""
    area = int(np.prod(model.law.seen(pairs.plain[:1]).shape[1:3]))
    count = min(len(pairs.plain), max(64, _SAMPLES // area))
    pairs = pairs.take(rng.permutation(len(pairs.plain))[:count])
    found = estimate(model, pairs.batch)
    wanted = _squares(model, pairs.plain)
    centre = wanted.mean(axis=-1)
    trusted = tuple(
        (width, float(np.sqrt(((found.mean(width) - centre) ** 2).mean())) + 1.0)
        for width in _TRUSTED
    )
    features, groups = local_features(model, found, trusted), _groups(found.levels)
    count = int(groups.max()) + 1
    channels = len(features)
    weights = np.zeros((count, channels, features.shape[-1], wanted.shape[-1]))
    for group in range(count):
        here = groups == group
        for channel in range(channels):
            # A group that hardly occurs borrows from all.
            at = here if here.sum() > 20 * features.shape[-1] else np.ones_like(here)
            weights[group, channel] = _ridge(features[channel][at], wanted[at, channel])
    return LocalLinear(model, trusted, weights)


def _ridge(features: Floats, wanted: Floats) -> FloatArray:
    square = (features.T @ features).astype(np.float64)
    scale = np.diag(square) + 1e-6
    known = (features.T @ wanted).astype(np.float64)
    return np.asarray(np.linalg.solve(square + np.diag(_RIDGE * scale + 1e-3), known))


def local_features(
    model: NoiseModel, found: Estimate, trusted: tuple[tuple[float, float], ...]
) -> Floats:
    """What the local filter reads of each channel and pixel, float32 (C, N, h, w, F)."""
    means = [found.mean(width) for width in _WIDTHS]
    middle = means[_WIDTHS.index(1.2)]
    tau = dict(trusted)[1.2]
    heard = found.precision * tau**2
    told = (found.straight - middle) * heard / (1 + heard)
    height, width = told.shape[1:3]
    padded = np.pad(told, ((0, 0), (2, 2), (2, 2), (0, 0)))
    near = [
        padded[:, top : top + height, left : left + width] for top in range(5) for left in range(5)
    ]
    posteriors = [
        model.posterior(found.seen, found.levels, means[_WIDTHS.index(width)], spread)
        for width, spread in trusted
    ]
    filtered = [layer for each in posteriors for layer in (each, smoothed(each, 0.8))] + means
    layers = [*near, *filtered]
    shared = [layer.mean(axis=-1) for layer in filtered] if told.shape[-1] > 1 else []
    count = len(layers) + len(shared) + 1
    features = np.empty((told.shape[-1], *told.shape[:-1], count), dtype=np.float32)
    features[..., -1] = 16.0
    for place, layer in enumerate(layers):
        features[..., place] = np.moveaxis(layer, -1, 0)
    for place, mean in enumerate(shared, len(layers)):
        features[..., place] = mean
    return features


def _squares(model: NoiseModel, plain: Images) -> Floats:
    """The pixels of each square of the grid, float32 (N, h, w, C, grid * grid)."""
    side = model.law.grid
    if model.law.luma and plain.shape[-1] == 3:
        plain = to_ycbcr(plain)
    n, height, width, channels = plain.shape
    pad = ((0, 0), (0, -height % side), (0, -width % side), (0, 0))
    full = np.pad(plain, pad, mode="edge").astype(np.float32)
    rows, columns = full.shape[1] // side, full.shape[2] // side
    cut = full.reshape(n, rows, side, columns, side, channels).transpose(0, 1, 3, 5, 2, 4)
    return cut.reshape(n, rows, columns, channels, side * side)


def _groups(levels: IntArray) -> IntArray:
    """Levels of about the same noise."""
    return levels // _LEVEL_GROUP


def _shown(model: NoiseModel, planes: Planes, batch: Batch) -> Planes:
    full = repeated(planes, model.law.grid, (batch.images.shape[1], batch.images.shape[2]))
    return model.law.shown(np.asarray(full, dtype=np.float64))


def _reader(model: NoiseModel, filters: Mapping[str, View], tuning: Pairs) -> "_NetworkReader":
    """The network corrects the filter of the smallest error, among those that are quick."""
    quick = [view for name, view in filters.items() if not isinstance(view, NonLocalMeans)]
    return _NetworkReader(model, min(quick, key=lambda view: _error(view, tuning)))


@dataclass(frozen=True)
class _NetworkReader:
    """The released image, its noise, and what a filter makes of it."""

    model: NoiseModel
    filter: View

    def __call__(self, batch: Batch) -> Reading:
        base = self.filter(batch)
        size = (batch.images.shape[1], batch.images.shape[2])
        deviation = estimate(self.model, batch).deviation
        noise = repeated(np.log1p(deviation) / 5.0, self.model.law.grid, size)
        released = batch.images.astype(np.float32) / 127.5 - 1.0
        filtered = (np.asarray(base) / 127.5 - 1.0).astype(np.float32)
        layers = np.concatenate([released, filtered, noise.astype(np.float32)], axis=-1)
        return Reading(layers, base)
