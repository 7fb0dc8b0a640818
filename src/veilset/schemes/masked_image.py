"""Masked image: noise with a distance-based guarantee, least where a private edge map says."""

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from veilset.compiled import compiled
from veilset.params import Params
from veilset.schemes._discrete_laplace import (
    UNIT,
    ByteLaws,
    WideNoise,
    budget,
    exact,
    laplace_law,
    noise_channel,
    wide_noise,
    worst_step,
)
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, IntArray, Labels

CELL: Final = 8
"""Side of a cell of the edge map in pixels."""

LEVELS: Final = 16
"""Weights that a cell may have; few, so that their tables stay in the processor's cache."""

_LUMA: Final = {1: (256, 0, 0), 3: (77, 150, 29)}
_SOBEL_NORM: Final = 8
_STEEPEST: Final = 6
"""|Gx| + |Gy| is at most this many times the range of luma."""

EDGE_BOUND: Final = CELL * CELL * _STEEPEST * 256 * 255
"""The greatest sum that a cell can have."""

_CHUNK_BYTES: Final = 1 << 21
_LANES: Final = 32


class MaskedImageParams(Params):
    """Parameters of masked image. Budgets are per unit of intensity (255 grey levels)."""

    mode: Literal["edges", "uniform", "oracle_edges"] = Field(
        default="edges",
        description="edges: weights from the private edge map. For comparison, uniform: the same "
        "noise everywhere; oracle_edges: weights from the true edge map, which is not private.",
    )
    eps_e: float = Field(
        default=1.0, ge=0.001, le=16, allow_inf_nan=False,
        description="budget of the edge map; not spent in the other modes",
    )  # fmt: skip
    eps_n: float = Field(
        default=8.0, ge=0.001, le=255, allow_inf_nan=False,
        description="budget of the noise; refused where tables of 64 bits cannot hold it",
    )  # fmt: skip
    w_max: float = Field(
        default=4.0, ge=1, le=64, allow_inf_nan=False,
        description="how many times wider the noise is where there is no edge",
    )  # fmt: skip
    edge_quantile: float = Field(
        default=0.75, ge=0, le=1, allow_inf_nan=False,
        description="cells from this quantile of the private map on get the least noise",
    )  # fmt: skip

    @field_validator("eps_n")
    @classmethod
    def _held_by_the_tables(cls, value: float) -> float:
        laplace_law(exact(value))
        return value


class MaskedImage(Scheme[MaskedImageParams]):
    """EdgeMask-2S: a private edge map decides how much private noise each cell gets.

    1. Luma in unshifted integers, 77 R + 150 G + 29 B (grey: 256 times the value); rounding it to
       8 bits would break the bound.
    2. Sobel, both directions, zero on the outermost ring of pixels; summed over cells of 8 pixels
       (less at the lower and right edge). One grey level changes the map by at most 2400 (grey:
       4096) in L1.
    3. Private map: the sums + discrete Laplace noise of scale 2400 * 255 / eps_e, clipped to the
       range that sums can have.
    4. Weights from the private map only: w_max at 0, 1 from the quantile on, in 16 levels.
    5. Each pixel and channel + discrete Laplace noise of scale 255 w / eps_n, clipped to 0..255.

    For images at L1 distance d (intensities in [0, 1], summed over pixels and channels) every
    output has probabilities within a factor exp((eps_e + eps_n) d): step 3 is eps_e-private by its
    sensitivity, step 5 given the map is eps_n-private as no weight is below 1, their joint law is
    the product, and the rest is post-processing. The tables are made so that rounding stays inside
    both budgets (`_discrete_laplace`); nothing else is inexact.

    Source: reconstruction. Kou et al. (Peer-to-Peer Netw. Appl. 2024) publish the idea, edge
    detection and then noise with distance-based indistinguishability that spares features; their
    full text was not accessible, and definition, noise law and weights are ours. Metric privacy:
    Chatzikokolakis et al., PETS 2013.
    """

    name = "masked_image"
    title = "Masked image"
    version = 1
    declares = Declaration(
        keyed=True,
        reversible=False,
        guarantee="metric differential privacy: images at L1 distance d (intensities in [0, 1]) "
        "give any output with probabilities within exp((eps_e + eps_n) d); computational, and void "
        "for whoever holds the key",
        protects_queries=True,
        uses_labels=False,
        provenance="reconstruction",
        source="Kou, Wang, Zhu, Zheng, Yang, Liu: Peer-to-Peer Netw. Appl. 2024 (4), 2523-2537",
        risk_notes=(
            "The guarantee is pixel-local: two photographs are so far apart that it says nothing "
            "about which person is shown, and persons are recognised through strong noise.",
            "Independent noise averages out: blurring or a learned denoiser restores much.",
            "A protected image is linked to its own original nearly always.",
            "Several releases of one image add up their budgets.",
            "Labels are not covered by the guarantee.",
            "Whoever holds the key regenerates the noise and gets back every pixel that was not "
            "clipped (trying the 16 weights of each cell), so this is pseudonymisation while the "
            "key exists.",
        ),
        shift_safe=True,
    )
    Parameters = MaskedImageParams

    def __init__(self, params: MaskedImageParams | None = None, **values: Any) -> None:
        super().__init__(params, **values)
        if self.params.mode == "oracle_edges":
            self.declares = replace(
                type(self).declares,
                guarantee=None,
                releasable=False,
                provenance="ours",
                risk_notes=(
                    "Weights come from the true edges, so the strength of the noise leaks contours "
                    "without any bound: for comparison only.",
                    *type(self).declares.risk_notes[1:],
                ),
            )
        if self.params.mode == "uniform":
            self.declares = replace(
                type(self).declares,
                guarantee=str(type(self).declares.guarantee).replace("(eps_e + eps_n)", "(eps_n)"),
                provenance="ours",
            )

    def facts(self) -> Mapping[str, Any]:
        """The privacy budget, as published beside the images.

        `eps_noise_enumerated` is the exact budget of the tables' 256 x 256 channels, rounded up at
        the twelfth place, and `slack` what it leaves of `eps_noise` (never negative). `eps_total`
        is what one release costs; it is None where nothing is guaranteed.
        """
        values = self.params
        private = values.mode != "oracle_edges"
        edge = {"edges": values.eps_e, "uniform": 0.0, "oracle_edges": None}[values.mode]
        enumerated = _enumerated(_weights(values), exact(values.eps_n))
        return {
            "metric": "L1 per unit of intensity",
            "unit": "255 grey levels of one pixel in one channel",
            "neighbourhood": "any two images; the budget is multiplied by their distance",
            "eps_edge": edge,
            "eps_noise": values.eps_n,
            "eps_noise_enumerated": enumerated,
            "slack": float(Decimal(repr(values.eps_n)) - Decimal(repr(enumerated))),
            "eps_total": None if edge is None else float(exact(edge) + exact(values.eps_n)),
            "composition": "budgets of several releases of one image add up"
            if private
            else "no guarantee: the weights come from the true edges",
        }

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, pool
        images = np.ascontiguousarray(images)
        out = np.empty_like(images)
        laws = _laws(_weights(self.params), exact(self.params.eps_n))
        sides = (images.shape[3], CELL, CELL)
        step = max(1, _CHUNK_BYTES // max(1, images[:1].nbytes))
        for low in range(0, len(images), step):
            part = slice(low, low + step)
            levels = self.levels(images[part], ids[part], stream)
            laws.add_noise(images[part], levels, sides, stream, ids[part], "noise", out[part])
        return Protected(out)

    def levels(self, images: Images, ids: Ids, stream: Stream) -> npt.NDArray[np.uint8]:
        """The level of each cell's weight, uint8 (N, rows, columns) of cells.

        Args:
            images: uint8 (N, H, W, C), contiguous.
            ids: uint8 (N, 16).
            stream: The keyed randomness.
        """
        if self.params.mode == "uniform":
            size = [-(-side // CELL) for side in images.shape[1:3]]
            return np.zeros((len(images), *size), dtype=np.uint8)
        sums = cell_sums(images)
        if self.params.mode == "edges":
            noise = edge_noise(exact(self.params.eps_e), images.shape[3])
            flat = noise.draw(stream, ids, "edges", sums[0].size)
            sums = np.clip(sums + flat.reshape(sums.shape), 0, EDGE_BOUND)
        return weight_levels(sums, exact(self.params.edge_quantile))


def sensitivity(channels: int) -> int:
    """What one grey level of one channel changes in the edge map at most, in L1."""
    return 2 * _SOBEL_NORM * max(_LUMA[channels])


def edge_noise(eps: Fraction, channels: int) -> WideNoise:
    """The noise of the edge map; exactly eps-private per unit of intensity."""
    return wide_noise(sensitivity(channels) * UNIT / eps, EDGE_BOUND)


def cell_sums(images: Images) -> IntArray:
    """The edge map: |Gx| + |Gy| of luma, summed over cells of 8 x 8 pixels.

    Args:
        images: uint8 (N, H, W, C), C = 1 or 3.

    Returns:
        int64 (N, ceil(H / 8), ceil(W / 8)), 0 to `EDGE_BOUND`, in 1/256 grey levels.
    """
    count, height, width, channels = images.shape
    sums = np.zeros((count, -(-height // CELL), -(-width // CELL)), dtype=np.int64)
    if height >= 3 and width >= 3:
        _sum_cells(np.ascontiguousarray(images), _LUMA[channels], sums)
    return sums


def weight_levels(sums: IntArray, quantile: Fraction) -> npt.NDArray[np.uint8]:
    """From a map to the levels of the weights; on a private map this is post-processing.

    Args:
        sums: int64 (N, rows, columns), 0 or more.
        quantile: 0 to 1; of an image's n cells the ceil(quantile n)-th smallest (at least the
            first) is the quantile.

    Returns:
        uint8 (N, rows, columns), 0 (weight `w_max`) to 15 (weight 1, from the quantile on), to the
        nearest level.
    """
    flat = sums.reshape(len(sums), int(np.prod(sums.shape[1:])))
    place = max(0, -(-quantile.numerator * flat.shape[1] // quantile.denominator) - 1)
    tau = np.maximum(np.partition(flat, place, axis=1)[:, place, None], 1)
    top = LEVELS - 1
    levels: IntArray = (2 * top * np.minimum(flat, tau) + tau) // (2 * tau)
    return levels.astype(np.uint8).reshape(sums.shape)


def _weights(params: MaskedImageParams) -> tuple[Fraction, ...]:
    """The weight of each level, from w_max down to 1."""
    if params.mode == "uniform":
        return (Fraction(1),)
    most = exact(params.w_max)
    return tuple(most - (most - 1) * Fraction(k, LEVELS - 1) for k in range(LEVELS))


@lru_cache(maxsize=8)
def _laws(weights: tuple[Fraction, ...], eps: Fraction) -> ByteLaws:
    return ByteLaws.of([laplace_law(eps / weight) for weight in weights])


@lru_cache(maxsize=64)
def _enumerated(weights: tuple[Fraction, ...], eps: Fraction) -> float:
    """The greatest budget of all weights' channels."""
    return max(
        budget(worst_step(noise_channel(laplace_law(eps / weight).masses))) for weight in weights
    )


@compiled
def _sum_cells(images: Images, luma: tuple[int, int, int], sums: IntArray) -> None:  # noqa: C901
    count, height, width, channels = images.shape
    # Three rows of luma are enough for Sobel. Flat arrays: a slice would count references.
    # Rows are filled up to whole vector registers; what stands there is never added up.
    padded = -(-width // _LANES) * _LANES
    stride = padded + 2
    luma_rows, edges = np.zeros(3 * stride, dtype=np.int32), np.zeros(stride, dtype=np.int32)
    flat = images.reshape(-1)
    red, green, blue = np.int32(luma[0]), np.int32(luma[1]), np.int32(luma[2])
    for n in range(count):
        for y in range(height):
            pixel, row = np.uint64((n * height + y) * width * channels), np.uint64(y % 3 * stride)
            if channels == 3:
                for x in range(np.uint64(width)):
                    at = pixel + x * np.uint64(3)
                    luma_rows[row + x] = np.int32(
                        red * flat[at] + green * flat[at + np.uint64(1)]
                        + blue * flat[at + np.uint64(2)]
                    )  # fmt: skip
            else:
                for x in range(np.uint64(width)):
                    luma_rows[row + x] = np.int32(red * flat[pixel + x])
            if y >= 2:
                upper, middle = np.uint64((y - 2) % 3 * stride), np.uint64((y - 1) % 3 * stride)
                for x in range(np.uint64(padded)):
                    a, b, c = (
                        luma_rows[upper + x], luma_rows[upper + x + np.uint64(1)],
                        luma_rows[upper + x + np.uint64(2)],
                    )  # fmt: skip
                    d, f = luma_rows[middle + x], luma_rows[middle + x + np.uint64(2)]
                    g, h, i = (
                        luma_rows[row + x], luma_rows[row + x + np.uint64(1)],
                        luma_rows[row + x + np.uint64(2)],
                    )  # fmt: skip
                    across = np.int32(np.int32(c + 2 * f + i) - np.int32(a + 2 * d + g))
                    down = np.int32(np.int32(g + 2 * h + i) - np.int32(a + 2 * b + c))
                    edges[x + np.uint64(1)] += np.int32(abs(across) + abs(down))
            # The gradients so far are those of the rows up to the one before.
            if y % CELL == 0 or y == height - 1:
                for cell in range(sums.shape[2]):
                    total = np.int64(0)
                    for x in range(max(cell * CELL, 1), min(cell * CELL + CELL, width - 1)):
                        total += edges[x]
                    sums[n, max(y - 1, 0) // CELL, cell] += total
                edges[:] = 0
