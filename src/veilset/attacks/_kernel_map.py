"""Kernel ridge regression from side information to plain images: it bends where no line fits."""

from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from veilset.attacks.features import Batch, Pairs, Planes, area_resize, flat
from veilset.metrics.retrieval import squared_distances
from veilset.types import FloatArray

_PAIRS: Final = 4000
_NUMBERS: Final = 1 << 27
"""At most so many pairs, and so many numbers of side information, are kept."""

_WIDTHS: Final = (0.3, 1.0, 3.0)
_RIDGES: Final = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)


@dataclass(frozen=True)
class KernelMap:
    """A view that restores plain images from a column of side information.

    Attributes:
        column: The name of the column, (N, ...).
        known: What it was fitted on, (n, K).
        spread: Squared distance at which two rows count as little related.
        weights: (n, outputs).
        mean: Mean of the plain images, (outputs,).
        shape: (h, w, C) of what it restores.
    """

    column: str
    known: FloatArray
    spread: float
    weights: FloatArray
    mean: FloatArray
    shape: tuple[int, int, int]

    def __call__(self, batch: Batch) -> Planes:
        """Restorations (N, h, w, C), grey levels cut to 0..255."""
        seen = _rows(batch, self.column)
        near = np.exp(-squared_distances(seen, self.known) / self.spread)
        return np.clip(near @ self.weights + self.mean, 0, 255).reshape(len(seen), *self.shape)


def fit_kernel(fit: Pairs, tuning: Pairs, column: str, side: int) -> KernelMap:
    """Fits regressions with a Gaussian kernel and keeps the best.

    Args:
        fit: Pairs to fit on.
        tuning: Pairs, of other images, whose restoration error chooses among the settings.
        column: Name of the side information that is read, (N, ...), numbers.
        side: Restorations are at most this many pixels high and wide.

    Source: kernel ridge regression (Saunders et al., ICML 1998); its use as an attack is ours.
    """
    numbers = fit.batch.side[column][0].size
    limit = min(len(fit.plain), _PAIRS, max(2, _NUMBERS // numbers))
    fit = fit.take(np.arange(limit, dtype=np.int64))
    seen, unseen = (_rows(pairs.batch, column) for pairs in (fit, tuning))
    # Thumbnails choose: they tell which setting restores best at a fraction of the cost.
    small, wanted = (flat(area_resize(pairs.plain, 8, 8)) for pairs in (fit, tuning))
    middle = small.mean(axis=0)
    apart, away = squared_distances(seen, seen), squared_distances(unseen, seen)
    usual = float(np.median(apart)) + 1e-12

    def error(spread: float, ridge: float) -> float:
        weights = _solved(np.exp(-apart / spread), ridge, small - middle)
        return float(((np.exp(-away / spread) @ weights + middle - wanted) ** 2).mean())

    settings = [(share * usual, ridge) for share, ridge in product(_WIDTHS, _RIDGES)]
    spread, ridge = min(settings, key=lambda setting: error(*setting))
    height, width = (min(side, size) for size in fit.plain.shape[1:3])
    targets = flat(area_resize(fit.plain, height, width))
    mean, shape = targets.mean(axis=0), (height, width, fit.plain.shape[-1])
    weights = _solved(np.exp(-apart / spread), ridge, targets - mean)
    return KernelMap(column, seen, spread, weights, mean, shape)


def _rows(batch: Batch, column: str) -> FloatArray:
    return flat(batch.side[column])


def _solved(near: FloatArray, ridge: float, targets: FloatArray) -> FloatArray:
    penalised = near + ridge * np.eye(len(near))
    return np.asarray(cho_solve(cho_factor(penalised, overwrite_a=True), targets))
