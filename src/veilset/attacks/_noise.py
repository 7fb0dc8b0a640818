"""Noise as an attacker knows it: laws, the level of each cell, and Bayesian filters."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from veilset.attacks.features import Batch, Pairs, Planes
from veilset.schemes._discrete_laplace import exact
from veilset.schemes.base import Scheme
from veilset.schemes.dp_pix import DpPixParams
from veilset.schemes.ldp_slicing import LdpSlicingParams, flip_laws, to_rgb, to_ycbcr
from veilset.schemes.masked_image import CELL, LEVELS, MaskedImageParams
from veilset.types import FloatArray, Images, IntArray

Floats = npt.NDArray[np.float32]

_TINY: Final = 1e-12
_COARSE: Final = 4


@dataclass(frozen=True, eq=False)
class NoiseLaw:
    """What noise does to a grey level.

    Attributes:
        channels: Probability of each output of each input; float64 (L, C, 256, 256) for L levels of
            noise, and one law for each channel or one for all.
        grid: Side in pixels of the squares that share one grey level.
        cell: Side in pixels of the squares that share one level of noise; 0 where L is 1.
        luma: The channels are Y, Cb, Cr.
    """

    channels: FloatArray
    grid: int = 1
    cell: int = 0
    luma: bool = False

    def seen(self, images: Images) -> Images:
        """Images in the law's colours, a pixel for each square of the grid; uint8 (N, h, w, C)."""
        if self.luma and images.shape[-1] == 3:
            images = to_ycbcr(images)
        return images if self.grid == 1 else np.rint(_means(images, self.grid)).astype(np.uint8)

    def shown(self, planes: Planes) -> Planes:
        """Planes (N, H, W, C) in the law's colours as grey levels 0..255 of the images."""
        if self.luma and planes.shape[-1] == 3:
            return to_rgb(np.clip(np.rint(planes), 0, 255).astype(np.uint8)).astype(np.float64)
        return np.clip(planes, 0.0, 255.0)


def adds_noise(scheme: Scheme[Any]) -> bool:
    """The scheme, or a step of it, declares a privacy budget, which is always spent on noise."""
    return noisy_step(scheme) is not None


def noisy_step(scheme: Scheme[Any]) -> Scheme[Any] | None:
    """The first step that declares a privacy budget, the scheme itself where it has no steps."""
    steps: tuple[Scheme[Any], ...] = getattr(scheme, "steps", (scheme,))
    return next((step for step in steps if "eps_total" in step.facts()), None)


def law_of(scheme: Scheme[Any], pairs: Pairs) -> NoiseLaw:
    """The law of a scheme's noise: from its parameters, else counted on the attacker's pairs.

    Args:
        scheme: The released scheme.
        pairs: Pairs that the attacker made.
    """
    step = noisy_step(scheme)
    known = None if step is None else _LAWS.get(step.name)
    return counted_law(pairs) if known is None else known(step, pairs.plain.shape[-1])


def laplace_channel(scale: float) -> FloatArray:
    """Laplace noise of this scale on a byte, rounded and clipped; (256, 256), rows sum to 1."""
    edges = np.arange(257) - 0.5
    edges[[0, -1]] = -np.inf, np.inf
    apart = (edges[None, :] - np.arange(256)[:, None]) / max(scale, 1e-3)
    below = np.where(
        apart < 0, 0.5 * np.exp(np.minimum(apart, 0)), 1 - 0.5 * np.exp(-np.maximum(apart, 0))
    )
    return np.asarray(np.diff(below, axis=1))


def counted_law(pairs: Pairs) -> NoiseLaw:
    """One law for all pixels, counted on pairs in steps of four grey levels."""
    bins = 256 // _COARSE
    both = pairs.plain.astype(np.int64) // _COARSE * bins + pairs.batch.images // _COARSE
    counts = np.bincount(both.ravel(), minlength=bins * bins).reshape(bins, bins) + 1e-3
    rows = counts / counts.sum(axis=1, keepdims=True) / _COARSE
    return NoiseLaw(np.repeat(np.repeat(rows, _COARSE, axis=0), _COARSE, axis=1)[None, None])


def _masked_image(scheme: Scheme[Any], channels: int) -> NoiseLaw:
    del channels
    params: MaskedImageParams = scheme.params
    if params.mode == "uniform":
        return NoiseLaw(laplace_channel(255.0 / params.eps_n)[None, None])
    weights = np.linspace(params.w_max, 1.0, LEVELS)
    laws = np.stack([laplace_channel(255.0 * weight / params.eps_n) for weight in weights])
    return NoiseLaw(laws[:, None], cell=CELL)


def _dp_pix(scheme: Scheme[Any], channels: int) -> NoiseLaw:
    params: DpPixParams = scheme.params
    scale = 255.0 * params.m * channels / (params.eps * params.block_px**2)
    return NoiseLaw(laplace_channel(scale)[None, None], grid=params.block_px)


def _ldp_slicing(scheme: Scheme[Any], channels: int) -> NoiseLaw:
    params: LdpSlicingParams = scheme.params
    flips = np.arange(256)[:, None] ^ np.arange(256)
    masses = [
        np.array(law.masses, dtype=np.float64) for law in flip_laws(exact(params.eps), channels)
    ]
    return NoiseLaw(np.stack([(mass / mass.sum())[flips] for mass in masses])[None], luma=True)


_LAWS: Final[Mapping[str, Callable[[Any, int], NoiseLaw]]] = {
    "masked_image": _masked_image, "dp_pix": _dp_pix, "ldp_slicing": _ldp_slicing,
}  # fmt: skip


# --- Filters ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """A law with what the attacker's own images say of grey levels.

    Attributes:
        law: The law.
        prior: How frequent each grey level is, (C, 256).
        offset: Mean output of an input x is about offset + slope * x; (L, C), and so `slope`.
        slope: See `offset`.
        spread: Standard deviation of the output about that line, (L, C).
    """

    law: NoiseLaw
    prior: FloatArray
    offset: FloatArray
    slope: FloatArray
    spread: FloatArray

    @classmethod
    def of(cls, law: NoiseLaw, plain: Images) -> "NoiseModel":
        """A model from plain images of the same kind, uint8 (N, H, W, C)."""
        small = law.seen(plain)
        channels = small.shape[-1]
        counts = [np.bincount(small[..., c].ravel(), minlength=256) + 1e-2 for c in range(channels)]
        prior = np.stack([count / count.sum() for count in counts])
        levels = np.arange(256.0)
        mean = law.channels @ levels
        square = law.channels @ levels**2
        usual = (prior * levels).sum(axis=1)[:, None]
        apart = levels - usual
        # A spread of at least a few levels: where images are flat, a slope means nothing.
        energy = (prior * apart**2).sum(axis=1) + 1.0
        middle = (prior * mean).sum(axis=-1)
        slope = np.maximum((prior * apart * mean).sum(axis=-1) / energy, 1e-3)
        offset = middle - slope * usual[:, 0]
        line = offset[..., None] + slope[..., None] * levels
        error = (prior * (square - 2 * line * mean + line**2)).sum(axis=-1)
        return cls(law, prior, offset, slope, np.sqrt(np.maximum(error, 0.25)))

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return len(self.prior)

    def levels(self, seen: Images) -> IntArray:
        """The likeliest level of each pixel's cell, int64 (N, h, w)."""
        if len(self.law.channels) == 1:
            return np.zeros(seen.shape[:3], dtype=np.int64)
        table = np.log((self.prior[:, None] @ self.law.channels)[:, :, 0] + _TINY)
        return self._best((_look_up(level, seen) for level in table), seen.shape[1:3])

    def levels_about(self, seen: Images, about: Planes, tau: float) -> IntArray:
        """The same, where each pixel's grey level is known up to a normal error `tau`."""
        if len(self.law.channels) == 1:
            return np.zeros(seen.shape[:3], dtype=np.int64)
        place = np.clip(np.rint(about), 0, 255).astype(np.int64)
        tables = _tables(self, tau)[0]
        return self._best((_pick(table, place, seen) for table in tables), seen.shape[1:3])

    def straightened(self, seen: Images, levels: IntArray) -> tuple[Floats, Floats]:
        """Unbiased estimates of each pixel, and their precision; float32 (N, h, w, C) each."""
        offset, slope, spread = (
            np.broadcast_to(table, (len(table), self.channels)).astype(np.float32)[levels]
            for table in (self.offset, self.slope, self.spread)
        )
        return (seen - offset) / slope, (slope / spread) ** 2

    def posterior(self, seen: Images, levels: IntArray, about: Planes, tau: float) -> Floats:
        """Mean grey level given the pixel and a normal prior about `about`, (N, h, w, C)."""
        place = np.clip(np.rint(about), 0, 255).astype(np.int64)
        tables = _tables(self, tau)[1]
        at = (levels[..., None] * 256 + place) * 256 + seen
        layers = [tables[:, c % tables.shape[1]].ravel()[at[..., c]] for c in range(self.channels)]
        return np.stack(layers, axis=-1)

    def _best(self, evidence: Iterable[FloatArray | Floats], size: tuple[int, int]) -> IntArray:
        """The level of the greatest evidence (N, h, w, C), one a level, in each pixel's cell."""
        side = max(1, self.law.cell // self.law.grid)
        # Adding channel by channel is faster than a sum over so short an axis.
        totals = (sum(each[..., c] for c in range(self.channels)) for each in evidence)
        sums = [_means(np.asarray(total)[..., None], side) for total in totals]
        best = np.argmax(np.stack(sums), axis=0)
        return np.asarray(repeated(best, side, size)[..., 0], dtype=np.int64)


def smoothed(values: Planes, width: float) -> Floats:
    """Gaussian means of (N, h, w, C) along height and width, float32."""
    made = np.asarray(values, dtype=np.float32)
    for axis in (1, 2):
        made = gaussian_filter1d(made, width, axis=axis, mode="nearest")
    return made


def repeated(planes: Planes, side: int, size: tuple[int, int]) -> Planes:
    """Each pixel as a square of `side`, cut to (H, W)."""
    if side == 1:
        return planes
    full = np.repeat(np.repeat(planes, side, axis=1), side, axis=2)
    return full[:, : size[0], : size[1]]


def _means(images: Planes, side: int) -> FloatArray:
    """Means of squares, less at the lower and right edge; (N, ceil(H / side), ..., C)."""
    rows, columns = (np.arange(0, length, side) for length in images.shape[1:3])
    sums = np.add.reduceat(np.asarray(images, dtype=np.float64), rows, axis=1)
    sums = np.add.reduceat(sums, columns, axis=2)
    down, across = (
        np.diff(np.append(starts, length))
        for starts, length in zip((rows, columns), images.shape[1:3], strict=True)
    )
    return np.asarray(sums / (down[:, None] * across)[None, :, :, None])


@lru_cache(maxsize=8)
def _tables(model: NoiseModel, tau: float) -> tuple[Floats, Floats]:
    """For normal priors about each grey level: the output's log probability, and the mean input.

    Both float32 (L, C, 256, 256), by level, channel of the law, centre of the prior and output.
    """
    grey = np.arange(256.0)
    near = np.exp(-0.5 * ((grey - grey[:, None]) / max(tau, 0.5)) ** 2)
    near /= near.sum(axis=1, keepdims=True)
    evidence = near @ model.law.channels + _TINY
    mean = (near @ (model.law.channels * grey[:, None])) / evidence
    return np.log(evidence).astype(np.float32), mean.astype(np.float32)


def _look_up(table: FloatArray, seen: Images) -> FloatArray:
    """`table[c, y]` for each pixel."""
    return np.stack([table[c][seen[..., c]] for c in range(seen.shape[-1])], axis=-1)


def _pick(tables: Floats, place: IntArray, seen: Images) -> Floats:
    """`tables[c, place, y]` for each pixel; one table may serve all channels."""
    flat = place * 256 + seen
    layers = [tables[c % len(tables)].ravel()[flat[..., c]] for c in range(seen.shape[-1])]
    return np.stack(layers, axis=-1)


# --- Views ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Estimate:
    """Released images under a model.

    Attributes:
        seen: In the law's colours and grid, uint8 (N, h, w, C).
        levels: The level of each pixel, int64 (N, h, w).
        straight: Unbiased estimates, float32 (N, h, w, C).
        precision: Their precision, float32 (N, h, w, C).
    """

    seen: Images
    levels: IntArray
    straight: Floats
    precision: Floats

    @property
    def deviation(self) -> Floats:
        """Standard deviation of the noise of `straight`."""
        return np.asarray(1.0 / np.sqrt(self.precision), dtype=np.float32)

    def mean(self, width: float) -> Floats:
        """Gaussian means of this width, each pixel weighted by its precision."""
        total = smoothed(self.precision, width)
        return smoothed(self.precision * self.straight, width) / total


_ROUGH: Final = 1.5


def estimate(model: NoiseModel, batch: Batch, tau: float = 30.0) -> Estimate:
    """Estimates levels twice: from grey levels alone, then from what a first filter restored."""
    seen = model.law.seen(batch.images)
    levels = model.levels(seen)
    found = Estimate(seen, levels, *model.straightened(seen, levels))
    if len(model.law.channels) == 1:
        return found
    levels = model.levels_about(seen, found.mean(_ROUGH), tau)
    return Estimate(seen, levels, *model.straightened(seen, levels))
