"""DP-Pix: pixelation, with noise on the sum of each block."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

import numpy as np
from pydantic import Field

from veilset.params import Params
from veilset.schemes._discrete_laplace import UNIT, WideNoise, exact, wide_noise
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, IntArray, Labels

_CHUNK_BYTES: Final = 1 << 22


class DpPixParams(Params):
    """Parameters of DP-Pix."""

    block_px: int = Field(default=4, ge=1, le=64, description="side of a block in pixels")
    eps: float = Field(
        default=1.0, ge=0.001, le=255, allow_inf_nan=False,
        description="budget of one release for two images that differ in at most m pixels",
    )  # fmt: skip
    m: int = Field(
        default=1, ge=1, le=1 << 20,
        description="pixels that the presence of one individual may change",
    )  # fmt: skip

    def model_post_init(self, context: Any) -> None:
        """Refuses a budget that is too large for blocks of this size."""
        del context
        try:
            _noise(self, 1)
        except ValueError as error:
            raise ValueError(
                f"eps {self.eps:g} is too large for block_px {self.block_px} and m {self.m} "
                f"({error}): at most {largest_eps(self.block_px, self.m):g} is allowed"
            ) from None


class DpPix(Scheme[DpPixParams]):
    """Each block of each channel becomes its mean, with discrete Laplace noise.

    Neighbours are images of one size that differ in at most m pixels, by any amount in all
    channels. They differ by at most 255 m C in the L1 distance of all block sums, so each sum gets
    discrete Laplace noise of scale 255 m C / eps (Fan's 255 m / (b^2 eps) on a mean, with eps split
    over the C channels) and is clipped to its range: eps-differentially private, exactly. Dividing
    by the number of pixels and rounding is post-processing. Blocks at the lower and right edge may
    be smaller; they get the same noise on their sum, so more on their mean.

    Source: Fan: Image pixelization with differential privacy, DBSec 2018. In integers, and with all
    channels in one budget: ours.
    """

    name = "dp_pix"
    title = "DP-Pix"
    version = 1
    declares = Declaration(
        keyed=True,
        reversible=False,
        guarantee="eps-differential privacy for images that differ in at most m pixels; "
        "computational, and void for whoever holds the key",
        protects_queries=True,
        uses_labels=False,
        provenance="reconstruction",
        source="Fan: Image pixelization with differential privacy, DBSec 2018",
        risk_notes=(
            "The guarantee hides what m pixels show and nothing larger: a person who fills the "
            "image is not covered unless m is the whole image.",
            "Block means are a thumbnail; where the noise is small against them, persons are "
            "recognised as well as from plain pixelation.",
            "Several releases of one image add up their budgets.",
            "Labels are not covered by the guarantee.",
            "Whoever holds the key can subtract the noise and has the plain pixelated image, "
            "except where a block was clipped.",
        ),
    )
    Parameters = DpPixParams

    def facts(self) -> Mapping[str, Any]:
        """The privacy budget, as published beside the images."""
        return {
            "metric": "differential privacy",
            "neighbourhood": f"images that differ in at most m = {self.params.m} pixels",
            "unit": "one image against a neighbour",
            "eps_total": self.params.eps,
            "composition": "budgets of several releases of one image add up",
        }

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, pool
        count, height, width, channels = images.shape
        out = np.empty((count, height, width, channels), dtype=np.uint8)
        noise = _noise(self.params, channels)
        down, across = (_sides(side, self.params.block_px) for side in (height, width))
        area = (down[:, None] * across)[None, :, :, None]
        step = max(1, _CHUNK_BYTES // (images[:1].nbytes + 1))
        for low in range(0, count, step):
            part = slice(low, low + step)
            sums = block_sums(images[part], self.params.block_px)
            drawn = noise.draw(stream, ids[part], "blocks", sums[0].size)
            noisy = np.clip(sums + drawn.reshape(sums.shape), 0, UNIT * area)
            means = ((2 * noisy + area) // (2 * area)).astype(np.uint8)
            out[part] = np.repeat(np.repeat(means, down, axis=1), across, axis=2)
        return Protected(out)


def block_sums(images: Images, block: int) -> IntArray:
    """Sums of the pixels of each block and channel.

    Args:
        images: uint8 (N, H, W, C).
        block: Side in pixels; blocks at the lower and right edge may be smaller.

    Returns:
        int64 (N, ceil(H / block), ceil(W / block), C).
    """
    rows, columns = (np.arange(0, side, block) for side in images.shape[1:3])
    lines = np.add.reduceat(images, rows, axis=1, dtype=np.int64)
    sums: IntArray = np.add.reduceat(lines, columns, axis=2)
    return sums


def largest_eps(block: int, m: int) -> float:
    """A budget that the tables hold for grey and colour, close to the largest; three digits."""
    low, high = Fraction(0), Fraction(UNIT)
    while high - low > high / 2048:
        middle = (low + high) / 2
        try:
            wide_noise(UNIT * m / middle, UNIT * block * block)
        except ValueError:
            high = middle
        else:
            low = middle
    return float(f"{float(low * 999 / 1000):.3g}")


def _noise(params: DpPixParams, channels: int) -> WideNoise:
    bound = UNIT * params.block_px * params.block_px
    return wide_noise(UNIT * params.m * channels / exact(params.eps), bound)


def _sides(length: int, block: int) -> IntArray:
    return np.diff(np.append(np.arange(0, length, block), length)).astype(np.int64)
