"""Feature reconstruction: values that are v or 255 - v are folded, and colours put in order.

min(v, 255 - v) is the same for a value and its negative, so it is read off every protected value
without any key, and shows all contours. Which colour a value belongs to, and its sign, is then
guessed from the pixels beside it. No image is needed for this; an attacker who has some chooses
among the variants with them, and learns from them which images are light.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import Field

from veilset.attacks._reidentified import batch_of, parts_of, quality, reidentify
from veilset.attacks.base import (
    OTHER_KIND,
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
)
from veilset.attacks.features import (
    UNTUNED,
    Aligned,
    Batch,
    Matcher,
    Planes,
    View,
    area_resize,
    features_for,
    own_among_others,
    protect_as_attacker,
    protect_once,
    split_attacker,
    to_pictures,
    tune,
)
from veilset.attacks.linkage import MIN_AUXILIARY
from veilset.errors import ProtectionError
from veilset.schemes.base import Scheme
from veilset.types import BoolArray, FloatArray, Images

_PROBES: Final = 4
_SURVIVING: Final = 0.9
_RIDGE: Final = 0.1


class FoldAndNeighbourParams(AttackParams):
    """Parameters of `fold_and_neighbour`.

    Attributes:
        targets: At most so many released images are attacked.
        gallery: Size of the galleries; smaller where there are fewer candidates.
        auxiliary: At most so many of the attacker's images choose among the variants.
    """

    targets: int = Field(500, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    auxiliary: int = Field(240, ge=20, le=1_000_000)

    FULL: ClassVar[Mapping[str, Any]] = {"targets": 2000, "auxiliary": 4000}


@dataclass(frozen=True)
class FittedFold:
    """The chosen restoration with the measure that re-identifies best."""

    matcher: Matcher


class FoldAndNeighbour(Attack[FoldAndNeighbourParams, FittedFold]):
    """Restores images whose values are v or 255 - v, and singles them out.

    Without images of her own the attacker folds, and compares contours.

    Source: Chang and Li, feature reconstruction (FR) attack, 2020: the fold, and the scan that
    tries six colour orders and eight negations a pixel. The scan in closed form, the grey fold, and
    the learned polarity are ours.
    """

    name = "fold_and_neighbour"
    title = "Fold and neighbours (FR attack)"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K1"
    cost = "seconds"
    metric_words = "rank-1 of the restored image in a gallery of {gallery}"
    deed = "are unfolded so well that their original is singled out"
    oracle_floor = 0.9
    Parameters = FoldAndNeighbourParams

    def applies(self, case: Case) -> str | None:
        """None where protected values are v or 255 - v at the pixel where they were."""
        if len(case.release.images) < 3:
            return "fewer than 3 released images: there is nothing to tell apart"
        steps = parts_of(case.release.scheme)
        if not any(_folds_survive(step, case) for step in steps):
            return f"{OTHER_KIND}: its values do not stay v or 255 - v at their pixel"
        return None

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedFold | None,
    ) -> FittedFold:  # fmt: skip
        polarity = Polarity.learn(attacker.images[: self.params.auxiliary])
        views = views_for(release.shape[2], polarity)
        if like is not None:
            # The oracle asks whether the restoration that was relied on works at all.
            views = {name: view for name, view in views.items() if name == like.matcher.view_name}
        if len(attacker.images) < MIN_AUXILIARY:
            return FittedFold(_untuned(release))
        if progress:
            progress("fold_and_neighbour: tuning", 1, 2)
        fitting, tuned = split_attacker(attacker, 0.5, self.params.auxiliary, rng)
        fit = protect_as_attacker(release.scheme, attacker, fitting, 1, rng)[0]
        tuning = protect_as_attacker(release.scheme, attacker, tuned, 1, rng)[0]
        judge = own_among_others(len(tuning.plain), self.params.gallery, rng)
        return FittedFold(tune(views, fit, tuning, release.scheme, judge, by_view=True))

    def _measure(self, fitted: FittedFold, case: Case, rng: np.random.Generator) -> Scores:
        scores = reidentify(fitted.matcher, case, self.params.gallery, rng)
        originals, batch = case.truth.originals, batch_of(case.release)
        details = dict(scores.details)
        for name, view in views_for(case.release.shape[2], None).items():
            pictures = to_pictures(view(batch), originals.shape[1:3])
            details |= quality(pictures, originals, f"_{name.replace(' ', '_')}")
        return Scores(scores.frame, scores.gallery, scores.pictures, details)

    def _chosen(self, fitted: FittedFold) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, fitted.matcher.table


def _folds_survive(scheme: Scheme[Any], case: Case) -> bool:
    """Whether min(v, 255 - v) of noise is found again at its pixel, in whatever colour order."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_PROBES, *case.release.shape), dtype=np.uint8)
    labels = np.full(_PROBES, case.release.labels[0], dtype=np.int64)
    try:
        made = protect_once(scheme, case.attacker, images, labels, "probe", rng).images
    except ProtectionError:
        return False
    kept = (sorted_folds(made) == sorted_folds(images)).all(axis=-1)
    return bool(kept.mean() >= _SURVIVING)


def _untuned(release: Release) -> Matcher:
    """Contours of the fold, for an attacker without images: they are alike in either sign.

    The folds of the released images themselves tell what is usual.
    """
    feature = features_for(release.shape, None)["edges"]
    values = feature(fold_view(batch_of(release)))
    usual = np.stack([values.mean(axis=0), values.std(axis=0) + 1.0])
    return Matcher("fold/edges", fold_view, Aligned(feature, usual, usual), UNTUNED, {})


# --- Restorations -----------------------------------------------------------------------------


def views_for(channels: int, polarity: "Polarity | None") -> dict[str, View]:
    """The restorations that make sense for so many channels.

    Args:
        channels: 1 or 3.
        polarity: Adds the last restoration with the sign of each image as guessed by it.

    Returns:
        Views by name.
    """
    views: dict[str, View] = {"fold": fold_view, "stretched": stretched_view}
    if channels > 1:
        views |= {"grey": grey_view, "advanced": advanced_view}
    if polarity is not None:
        best = list(views)[-1]
        views |= {f"{best} signed": Signed(views[best], polarity)}
    return views


def folded(images: Images) -> Images:
    """min(v, 255 - v), uint8 0..127, the shape of the input."""
    return np.minimum(images, 255 - images)


def sorted_folds(images: Images) -> Images:
    """The folded values of each pixel in ascending order: no colour order changes them."""
    return np.sort(folded(images), axis=-1)


def fold_view(batch: Batch) -> Planes:
    """min(v, 255 - v): dark values stay, light ones are negated."""
    return folded(batch.images).astype(np.float64)


def stretched_view(batch: Batch) -> Planes:
    """The fold stretched to 0..255."""
    return folded(batch.images) * (255.0 / 127.0)


def grey_view(batch: Batch) -> Planes:
    """The mean of each pixel's folds in all channels: no colour order changes it."""
    grey = folded(batch.images).mean(axis=-1, keepdims=True)
    return np.repeat(grey, batch.images.shape[-1], axis=-1)


def advanced_view(batch: Batch) -> Planes:
    """The published scan: each pixel takes the colours and signs nearest to its neighbours'.

    The L1 distance is least with the neighbours' signs and with the neighbours' order by size, so
    the start pixel settles both for the whole image, and the scan is the folds of each pixel in the
    order of that start. This one starts dark, and with red above green above blue, because
    photographs are warm more often than cold; other starts give negatives and other tints of it.
    """
    return sorted_folds(batch.images)[..., ::-1].astype(np.float64)


# --- Whether an image is light ----------------------------------------------------------------


@dataclass(frozen=True)
class Polarity:
    """Guesses from the folds of an image whether it is light.

    A fold is the same for an image and its negative, but a light background is not framed as a
    dark one is, and a set of photographs has habits.

    Attributes:
        mean: Of the features, (D,).
        scale: Their spread, (D,).
        weights: Of the standardised features, (D,).
        offset: The mean of what is learnt.
    """

    mean: FloatArray
    scale: FloatArray
    weights: FloatArray
    offset: float

    @classmethod
    def learn(cls, images: Images) -> "Polarity | None":
        """Learns from plain images, uint8 (N, H, W, C); None from too few.

        Source: ridge regression; ours.
        """
        if len(images) < MIN_AUXILIARY:
            return None
        features = _outline(images)
        mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-9
        known = (features - mean) / scale
        # How much nearer the image is to the negative of its fold than to its fold.
        wanted = _lightness(images)
        offset = float(wanted.mean())
        square = known.T @ known + _RIDGE * len(known) * np.eye(known.shape[1])
        weights = np.linalg.solve(square, known.T @ (wanted - offset))
        return cls(mean, scale, weights, offset)

    def light(self, images: Images) -> BoolArray:
        """Whether each image, plain or protected, is rather light; bool (N,)."""
        known = (_outline(images) - self.mean) / self.scale
        return np.asarray(known @ self.weights + self.offset > 0)


def _outline(images: Images) -> FloatArray:
    """Thumbnail and quantiles of the grey fold: equal for an image and what it is protected to."""
    grey = folded(images).mean(axis=-1, keepdims=True)
    small = area_resize(grey, 8, 8).reshape(len(images), -1)
    ordered = np.sort(grey.reshape(len(images), -1), axis=1)
    places = np.linspace(0, ordered.shape[1] - 1, 16).round().astype(np.int64)
    return np.concatenate([small, ordered[:, places]], axis=1)


def _lightness(images: Images) -> FloatArray:
    values = images.reshape(len(images), -1).astype(np.float64) - 127.5
    return np.asarray((values * np.abs(values)).mean(axis=1) / 127.5**2)


@dataclass(frozen=True)
class Signed:
    """A restoration whose light images are negated.

    Attributes:
        view: The restoration, dark throughout.
        polarity: Guesses which images are light.
    """

    view: View
    polarity: Polarity

    def __call__(self, batch: Batch) -> Planes:
        """Planes of the view, or their negative with the colours' order by size kept."""
        made = np.asarray(self.view(batch), dtype=np.float64)
        light = self.polarity.light(batch.images)
        return np.where(light[:, None, None, None], 255.0 - made[..., ::-1], made)
