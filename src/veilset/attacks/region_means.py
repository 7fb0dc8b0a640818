"""Region means: what no shuffle inside a region changes is a thumbnail, and more than that.

Shuffling keeps every value of a region, so its mean is exact, and so are its smallest, middle and
largest values. The means alone make a thumbnail, smooth when enlarged; images of the attacker's own
teach which details go with such regions. No key is needed for either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.linalg import eigh
from scipy.ndimage import map_coordinates

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
    Batch,
    Matcher,
    Pairs,
    Planes,
    View,
    area_resize,
    flat,
    own_among_others,
    protect_as_attacker,
    split_attacker,
    to_pictures,
    tune,
)
from veilset.attacks.linkage import enough_images
from veilset.metrics.retrieval import squared_distances
from veilset.schemes._regions import Grid
from veilset.schemes.base import Scheme
from veilset.types import FloatArray, Images, IntArray

THUMBNAIL: Final = "thumbnail"
BICUBIC: Final = "bicubic"
LINEAR: Final = "linear"
KERNEL: Final = "kernel"

_RIDGES: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_WIDTHS: Final = (0.5, 2.0)
"""Widths of the kernel, in mean squared distances of the attacker's images."""


class RegionMeansParams(AttackParams):
    """Parameters of `region_means`.

    Attributes:
        targets: At most so many released images are attacked.
        gallery: Size of the galleries; smaller where there are fewer candidates.
        auxiliary: At most so many of the attacker's images are used.
        tuning_share: Share of her images that chooses among the restorations.
        quantiles: Order statistics of each region that the learned restorations read as well.
        work_side: What they add has at most so many pixels a side; a pixel of it is repeated.
    """

    targets: int = Field(500, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    auxiliary: int = Field(1500, ge=20, le=1_000_000)
    tuning_share: float = Field(0.3, gt=0, lt=1)
    quantiles: int = Field(5, ge=0, le=64)
    work_side: int = Field(96, ge=8, le=256)

    FULL: ClassVar[Mapping[str, Any]] = {"targets": 2000, "auxiliary": 4000}


@dataclass(frozen=True)
class FittedMeans:
    """What survives, all restorations by name, and the chosen one with its measure."""

    cells: "Cells"
    views: Mapping[str, View]
    matcher: Matcher


class RegionMeans(Attack[RegionMeansParams, FittedMeans]):
    """Restores images from the means and order statistics of their regions, and singles them out.

    Source: the invariance is told in VisualMixer's own description (Li et al., NDSS 2024); as an
    attack, with bicubic and learned enlargement, ours.
    """

    name = "region_means"
    title = "Means of regions"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K2"
    cost = "seconds to a minute (quick)"
    metric_words = "rank-1 of the restored image in a gallery of {gallery}"
    deed = "are restored from the means of their regions so well that their original is singled out"
    # The oracle reads no more than the means of the same regions: few of them tell little.
    oracle_floor = 0.3
    Parameters = RegionMeansParams

    def applies(self, case: Case) -> str | None:
        """None where regions keep their values or their means."""
        found = cells_of(case.release.scheme, case.release.shape)
        if isinstance(found, str):
            return f"{OTHER_KIND}: {found}"
        return enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedMeans | None,
    ) -> FittedMeans:  # fmt: skip
        params = self.params
        # The oracle's images were not protected: the same regions of them are read.
        cells = cells_of(release.scheme, release.shape) if like is None else like.cells
        if isinstance(cells, str):
            raise ValueError(cells)
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        fit = protect_as_attacker(release.scheme, attacker, fitting, 1, rng)[0]
        tuning = protect_as_attacker(release.scheme, attacker, tuned, 1, rng)[0]
        if progress:
            progress("region_means: learning", 1, 3)
        views = views_for(cells, fit, tuning, params)
        if progress:
            progress("region_means: tuning", 2, 3)
        tried = views if like is None else {like.matcher.view_name: views[like.matcher.view_name]}
        judge = own_among_others(len(tuning.plain), params.gallery, rng)
        chosen = tune(tried, fit, tuning, release.scheme, judge, by_view=True)
        return FittedMeans(cells, views, chosen)

    def _measure(self, fitted: FittedMeans, case: Case, rng: np.random.Generator) -> Scores:
        scores = reidentify(fitted.matcher, case, self.params.gallery, rng)
        originals, batch = case.truth.originals, batch_of(case.release)
        details = dict(scores.details)
        for name, view in fitted.views.items():
            pictures = to_pictures(view(batch), originals.shape[1:3])
            details |= quality(pictures, originals, f"_{name}")
        return Scores(scores.frame, scores.gallery, scores.pictures, details)

    def _chosen(self, fitted: FittedMeans) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, fitted.matcher.table


# --- Which means are kept ---------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Rectangles of an image whose means survive.

    Attributes:
        grid: The rectangles.
        merged: Only what all channels have together survives.
    """

    grid: Grid
    merged: bool

    def sums(self, images: Images) -> IntArray:
        """Sums of each rectangle, int64 (N, rows, columns, C), or (..., 1) where merged."""
        rows = np.add.reduceat(images.astype(np.int64), self.grid.tops, axis=1)
        sums = np.add.reduceat(rows, self.grid.lefts, axis=2)
        return sums.sum(axis=3, keepdims=True) if self.merged else sums

    def means(self, images: Images) -> FloatArray:
        """Means of each rectangle, float64 (N, rows, columns, C); equal ones where merged."""
        channels = images.shape[3]
        values = self.grid.pixels[..., None] * (channels if self.merged else 1)
        return np.repeat(self.sums(images) / values, channels if self.merged else 1, axis=3)

    def statistics(self, images: Images, quantiles: int) -> npt.NDArray[np.float32]:
        """Means and order statistics of each rectangle, float32 (N, features).

        The same values at the same ranks, whatever order they are in.
        """
        parts = [flat(self.means(images)).astype(np.float32)]
        shares = np.linspace(0.0, 1.0, quantiles)
        for top, high in zip(self.grid.tops, self.grid.rows, strict=True):
            for left, wide in zip(self.grid.lefts, self.grid.columns, strict=True):
                part = images[:, top : top + high, left : left + wide]
                values = part.reshape(len(images), -1, 1 if self.merged else images.shape[3])
                places = np.rint(shares * (values.shape[1] - 1)).astype(np.int64)
                parts.append(flat(np.sort(values, axis=1)[:, places]).astype(np.float32))
        return np.concatenate(parts, axis=1)


def cells_of(scheme: Scheme[Any], shape: tuple[int, int, int]) -> Cells | str:
    """The rectangles of images (H, W, C) whose means a scheme keeps, or why there are none.

    VisualMixer with `target_vfe` chooses larger and smaller regions image by image, but the
    largest it may choose are the same for all, and no value leaves these. Of a composition, the
    coarsest rectangles of its steps, if all of them keep some: those hold the others whole, as
    far as sizes divide each other.

    Args:
        scheme: The released scheme.
        shape: Of its images.
    """
    found: list[Cells] = []
    for step in parts_of(scheme):
        cells = _cells_of_step(step, shape)
        if cells is None:
            return "it keeps no means of regions"
        found.append(cells)
    merged = any(cells.merged for cells in found)
    coarsest = max(found, key=lambda cells: -cells.grid.pixels.size).grid
    if not all(_within(cells.grid, coarsest) for cells in found):
        return "the regions of its steps cut each other"
    if coarsest.pixels.size < 2:
        return "the image is a single region, whose mean tells little"
    return Cells(coarsest, merged)


def _cells_of_step(step: Scheme[Any], shape: tuple[int, int, int]) -> Cells | None:
    size, params = (shape[0], shape[1]), step.params
    if step.name == "pixelate":
        grid = Grid(_pixelated(shape[0], params.block_px), _pixelated(shape[1], params.block_px))
        return Cells(grid, merged=False)
    if step.name != "visualmixer":
        return None
    merged = params.mixes_channels and shape[2] == 3
    if params.mode == "released":
        return Cells(Grid.of(size, params.region_px), merged)
    grid = Grid.of(size, params.r_min)
    for _ in range(params.merges):
        grid = grid.doubled()
    return Cells(grid, merged)


def _pixelated(length: int, block: int) -> tuple[int, ...]:
    """Sides of the cells of pixelation: a rest of more than half a cell is one of its own."""
    whole, left = divmod(length, block)
    cells = whole + (2 * left > block) or 1
    return (*(block,) * (cells - 1), length - block * (cells - 1))


def _within(fine: Grid, coarse: Grid) -> bool:
    """Whether no fine rectangle is cut by a coarse one."""
    return set(coarse.tops) <= set(fine.tops) and set(coarse.lefts) <= set(fine.lefts)


# --- Restorations -----------------------------------------------------------------------------


def views_for(
    cells: Cells, fit: Pairs, tuning: Pairs, params: RegionMeansParams
) -> dict[str, View]:  # fmt: skip
    """All restorations by name.

    Args:
        cells: Which means survive.
        fit: The attacker's pairs to learn from.
        tuning: Pairs of other images, which choose penalty and width.
        params: What the learned ones read and write.
    """
    views: dict[str, View] = {THUMBNAIL: Enlarged(cells, 0), BICUBIC: Enlarged(cells, 3)}
    for name, widths in ((LINEAR, (0.0,)), (KERNEL, _WIDTHS)):
        learned = [fit_learned(cells, fit, tuning, params, width) for width in widths]
        views[name] = min(learned, key=lambda pair: pair[1])[0]
    return views


@dataclass(frozen=True)
class Enlarged:
    """The means of the regions, enlarged.

    Attributes:
        cells: Which means survive.
        order: Of the spline: 0 repeats each mean, 3 is bicubic.
    """

    cells: Cells
    order: int

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels 0..255."""
        grid = self.cells.grid
        down, across = (_weights(sides, self.order) for sides in (grid.rows, grid.columns))
        means = np.moveaxis(self.cells.means(batch.images), -1, 1)
        made = np.moveaxis(down @ means @ across.T, 1, -1)
        return np.clip(made, 0.0, 255.0)


def _weights(sides: tuple[int, ...], order: int) -> FloatArray:
    """How much each region counts for each pixel along a side, (pixels, regions)."""
    ends = np.cumsum(np.array(sides))
    middles, pixels = ends - (np.array(sides) + 1) / 2, np.arange(ends[-1], dtype=np.float64)
    if order == 0:
        return np.repeat(np.eye(len(sides)), sides, axis=0)
    # Beyond the outermost middles an even surface goes on.
    inside = np.interp(pixels, middles, np.arange(len(sides), dtype=np.float64))
    columns = [
        map_coordinates(column, inside[None], order=order, mode="nearest")
        for column in np.eye(len(sides))
    ]
    return np.asarray(np.stack(columns, axis=1), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Learned:
    """Ridge regression from the statistics of regions to what bicubic enlargement leaves out.

    Attributes:
        cells: Which means survive.
        quantiles: Order statistics that are read.
        base: The enlargement that is corrected.
        mean: Of the statistics, (D,).
        scale: Their spread, (D,).
        known: Standardised statistics of the images that it was learnt from, (n, D).
        width: Of the Gaussian kernel, as a squared distance; 0 for a linear one.
        weights: Of those images, (n, h * w * C).
        offset: Mean correction, (h * w * C,).
        shape: (h, w, C) of the correction.
    """

    cells: Cells
    quantiles: int
    base: Enlarged
    mean: FloatArray
    scale: FloatArray
    known: FloatArray
    width: float
    weights: npt.NDArray[np.float32]
    offset: FloatArray
    shape: tuple[int, int, int]

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels cut to 0..255."""
        seen = self.cells.statistics(batch.images, self.quantiles)
        alike = _kernel((seen - self.mean) / self.scale, self.known, self.width)
        correction = alike.astype(np.float32) @ self.weights + self.offset
        small = correction.reshape(len(correction), *self.shape)
        made = self.base(batch) + area_resize(small, *batch.images.shape[1:3])
        return np.asarray(np.clip(made, 0.0, 255.0))


def fit_learned(
    cells: Cells, fit: Pairs, tuning: Pairs, params: RegionMeansParams, width: float
) -> tuple[Learned, float]:  # fmt: skip
    """Learns what bicubic enlargement leaves out.

    Args:
        cells: Which means survive.
        fit: Pairs to learn from.
        tuning: Pairs of other images, whose error chooses the penalty.
        params: What is read and written.
        width: Of the Gaussian kernel in mean squared distances; 0 for a linear one.

    Returns:
        The restoration, and its mean squared error on the tuning images.

    Source: ridge regression in its dual form, with a linear or Gaussian kernel; the textbook's.
    """
    base, quantiles = Enlarged(cells, 3), params.quantiles
    seen, unseen = (cells.statistics(p.batch.images, quantiles) for p in (fit, tuning))
    mean = seen.mean(axis=0).astype(np.float64)
    scale = seen.std(axis=0) + 1.0
    known, other = (seen - mean) / scale, (unseen - mean) / scale
    if width:
        width *= float(2 * known.var(axis=0).sum())
    left, missing = (_left_out(base, pairs, params.work_side) for pairs in (fit, tuning))
    shape = (left.shape[1], left.shape[2], left.shape[3])
    offset = flat(left).mean(axis=0)
    values, vectors = eigh(_kernel(known, known, width))
    values = np.maximum(values, 0.0)
    turned = (vectors.T @ (flat(left) - offset)).astype(np.float32)
    alike = _kernel(other, known, width) @ vectors
    errors = {}
    for ridge in _RIDGES:
        made = (alike / _penalised(values, ridge)).astype(np.float32) @ turned
        errors[ridge] = float(((made + offset - flat(missing)) ** 2).mean())
    ridge = min(errors, key=lambda tried: errors[tried])
    weights = (vectors / _penalised(values, ridge)).astype(np.float32) @ turned
    learned = Learned(cells, quantiles, base, mean, scale, known, width, weights, offset, shape)
    return learned, errors[ridge]


def _left_out(base: Enlarged, pairs: Pairs, side: int) -> FloatArray:
    """What is missing in the enlargement, float64 (N, h, w, C) of at most `side` pixels."""
    height, width = (min(side, length) for length in pairs.plain.shape[1:3])
    return area_resize(pairs.plain - base(pairs.batch), height, width)


def _penalised(values: FloatArray, ridge: float) -> FloatArray:
    return np.asarray(values + ridge * values.mean() + 1e-9)


def _kernel(one: FloatArray, other: FloatArray, width: float) -> FloatArray:
    """Likeness of rows (n, D) and (m, D): (n, m)."""
    if not width:
        return np.asarray(one @ other.T / one.shape[1])
    return np.asarray(np.exp(-squared_distances(one, other) / width))
