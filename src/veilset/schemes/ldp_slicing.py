"""LDP-Slicing: randomised response on the bit planes of luma and chroma."""

from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

import numpy as np
from pydantic import Field, field_validator

from veilset.params import Params
from veilset.schemes._discrete_laplace import (
    NARROWER,
    ByteLaw,
    ByteLaws,
    budget,
    exact,
    within,
    worst_pair,
)
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, Labels

PLANES: Final = 8
_WEIGHTS: Final = {1: (4,), 3: (4, 1, 1)}
"""Weights of Y, Cb and Cr."""

_LARGEST: Final = 41
_CHUNK_BYTES: Final = 1 << 20
_MASS_BITS: Final = 63
_DENOMINATOR: Final = 1 << 16
_TO_YCBCR: Final = ((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329))
_FROM_CB: Final = (0, -22554, 116130)
_FROM_CR: Final = (91881, -46802, 0)


class LdpSlicingParams(Params):
    """Parameters of LDP-Slicing."""

    eps: float = Field(
        default=20.0, ge=0.001, le=255, allow_inf_nan=False,
        description="budget of one pixel's value, all channels and bit planes together; refused "
        "where tables of 64 bits cannot hold it",
    )  # fmt: skip

    @field_validator("eps")
    @classmethod
    def _held_by_the_tables(cls, value: float) -> float:
        try:
            for channels in _WEIGHTS:
                flip_laws(exact(value), channels)
        except ValueError as error:
            raise ValueError(
                f"{error}: with fewer bits than rare flips need, they would never happen; at most "
                f"{_LARGEST} is allowed"
            ) from None
        return value


class LdpSlicing(Scheme[LdpSlicingParams]):
    """Each bit of each channel of each pixel is kept with a probability, and flipped otherwise.

    RGB becomes Y, Cb, Cr of 8 bits (grey is Y as it is). Bit b of channel c (b = 1 is the lowest)
    is kept with probability 1 / (1 + exp(-eps_cb)), where eps_cb = eps sqrt(W) / sum of sqrt(W)
    over all bits, W = w_c 2^(b - 1), w_Y = 4, w_Cb = w_Cr = 1. The result is turned back to RGB.

    For any two values of one pixel every output has probabilities within a factor exp(eps): the
    budgets of its 8 or 24 bits add up to eps. That is eps-local differential privacy of a single
    pixel's value; images that differ in k pixels are within exp(k eps). The colour transforms are
    done pixel by pixel without noise of their own, so they cost no budget.

    The flips of a channel are drawn together, from a table of the 256 masks in multiples of 2^-63
    that is made for a budget smaller by 2^-40 or somewhat more and then enumerated: flipping any
    one bit changes no mask's probability by more than exp(eps_cb), so all claims hold exactly.

    Source: reconstruction after notes on LDP-Slicing (CVPR 2026, arXiv 2603.03711), whose text was
    not accessible: the colour transform, planes, weights and keep probabilities are theirs; the
    integer tables, colours published as RGB and grey images are ours. The optional pruning of
    a wavelet band is not built.
    """

    name = "ldp_slicing"
    title = "LDP-Slicing"
    version = 1
    declares = Declaration(
        keyed=True,
        reversible=False,
        guarantee="eps-local differential privacy of each pixel's value (k pixels: k eps); "
        "computational, and void for whoever holds the key",
        protects_queries=True,
        uses_labels=False,
        provenance="reconstruction",
        source="LDP-Slicing, CVPR 2026 (arXiv 2603.03711)",
        risk_notes=(
            "The guarantee is for a single pixel's value: two photographs differ in nearly all "
            "pixels, so it says nothing about which person is shown.",
            "High bits are mostly kept at usual budgets, and independent flips average out: "
            "blurring or a learned denoiser restores much.",
            "Several releases of one image add up their budgets.",
            "Labels are not covered by the guarantee.",
            "Whoever holds the key flips the bits back: exactly for grey, and in colour up to what "
            "the turn back to RGB rounded and clipped.",
        ),
        shift_safe=True,
    )
    Parameters = LdpSlicingParams

    def facts(self) -> Mapping[str, Any]:
        """The privacy budget, as published beside the images.

        `eps_enumerated` is the exact budget of the tables (of grey or colour, whichever is more),
        rounded up at the twelfth place, and `slack` what it leaves of `eps_total`.
        """
        found = max(enumerated(exact(self.params.eps), channels) for channels in _WEIGHTS)
        return {
            "metric": "local differential privacy of a pixel's value",
            "neighbourhood": "images that differ in one pixel, by any amount",
            "unit": "one pixel, all channels",
            "eps_total": self.params.eps,
            "eps_enumerated": found,
            "slack": float(Decimal(repr(self.params.eps)) - Decimal(repr(found))),
            "composition": "budgets add up over the pixels in which two images differ, and over "
            "releases of one image",
        }

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, pool
        channels = images.shape[3]
        out = np.empty(images.shape, dtype=np.uint8)
        laws = _stacked(exact(self.params.eps), channels)
        step = max(1, _CHUNK_BYTES // (images[:1].nbytes + 1))
        for low in range(0, len(images), step):
            part = slice(low, low + step)
            values = images[part] if channels == 1 else to_ycbcr(images[part])
            flips = laws.symbols(stream, ids[part], "flips", int(np.prod(images.shape[1:])))
            flipped = values ^ flips.reshape(values.shape)
            out[part] = flipped if channels == 1 else to_rgb(flipped)
        return Protected(out)


def to_ycbcr(images: Images) -> Images:
    """Full-range BT.601 in 8 bits, rounded half up in units of 2^-16.

    Args:
        images: RGB, uint8 (..., 3).

    Returns:
        Y, Cb, Cr, uint8 (..., 3).
    """
    planes = [images[..., channel].astype(np.int32) for channel in range(3)]
    out = np.empty_like(images)
    for channel, row in enumerate(_TO_YCBCR):
        centre = (128 * _DENOMINATOR if channel else 0) + _DENOMINATOR // 2
        mixed = sum((a * plane for a, plane in zip(row, planes, strict=True)), np.int32(centre))
        out[..., channel] = np.minimum(mixed >> 16, 255)
    return out


def to_rgb(images: Images) -> Images:
    """The colours of `to_ycbcr` turned back, rounded half up and clipped.

    Args:
        images: Y, Cb, Cr, uint8 (..., 3).

    Returns:
        RGB, uint8 (..., 3).
    """
    luma, blue, red = (images[..., channel].astype(np.int32) for channel in range(3))
    base = luma * _DENOMINATOR + _DENOMINATOR // 2
    out = np.empty_like(images)
    for channel in range(3):
        mixed = base + _FROM_CB[channel] * (blue - 128) + _FROM_CR[channel] * (red - 128)
        out[..., channel] = np.clip(mixed >> 16, 0, 255)
    return out


def plane_budgets(eps: Fraction, channels: int) -> list[list[Fraction]]:
    """The budget of each channel's bit planes from the lowest, at most and nearly eps in total.

    Args:
        eps: The budget of a pixel.
        channels: 1 or 3.
    """
    with localcontext(prec=60, rounding=ROUND_HALF_EVEN):
        roots = [[(Decimal(w) * 2**b).sqrt() for b in range(PLANES)] for w in _WEIGHTS[channels]]
    shares = [[Fraction(root) for root in row] for row in roots]
    total = sum((share for row in shares for share in row), Fraction(0))
    return [[eps * share / total for share in row] for row in shares]


@lru_cache(maxsize=64)
def flip_laws(eps: Fraction, channels: int) -> tuple[ByteLaw, ...]:
    """For each channel the law of the mask that says which bits are flipped.

    Raises:
        ValueError: Tables of 64 bits cannot hold this budget within 1 %.
    """
    return tuple(_flip_law(tuple(planes)) for planes in plane_budgets(eps, channels))


def _flip_law(planes: tuple[Fraction, ...]) -> ByteLaw:
    for bits in NARROWER:
        masses = flip_masses([plane * (1 - Fraction(1, 1 << bits)) for plane in planes])
        if flips_hold(masses, planes):
            return ByteLaw.of(masses)
    raise ValueError("tables of 64 bits cannot hold this budget")


def flip_masses(planes: Sequence[Fraction]) -> tuple[int, ...]:
    """256 integers of sum 2^63: the law of independent flips, each mask rounded, the rest to 0.

    It promises nothing: `flips_hold` tells whether the rounded law keeps the budgets.

    Args:
        planes: The budget of each bit from the lowest.
    """
    with localcontext(prec=60, rounding=ROUND_HALF_EVEN):
        products = [Decimal(1 << _MASS_BITS)]
        for plane in planes:
            odds = (Decimal(plane.numerator) / Decimal(plane.denominator)).exp()
            kept = [product * odds / (1 + odds) for product in products]
            products = kept + [product / (1 + odds) for product in products]
        rounded = [int(product.to_integral_value()) for product in products]
    return ((1 << _MASS_BITS) - sum(rounded[1:]), *rounded[1:])


def flips_hold(masses: Sequence[int], planes: Sequence[Fraction]) -> bool:
    """Whether flipping one bit of any value changes no output by more than its budget, exactly."""
    return all(
        within(_worst_flip(masses, bit), plane) for bit, plane in enumerate(planes)
    )  # fmt: skip


def enumerated(eps: Fraction, channels: int) -> float:
    """The exact budget of a pixel: over all values and outputs, channels added up."""
    laws = flip_laws(eps, channels)
    high = low = 1
    for law in laws:
        high, low = high * max(law.masses), low * min(law.masses)
    return budget((high, low), steps=1)


def _worst_flip(masses: Sequence[int], bit: int) -> tuple[int, int]:
    law = np.array(masses, dtype=np.uint64)
    other = law[np.arange(256) ^ (1 << bit)]
    return worst_pair(np.maximum(law, other), np.minimum(law, other))


@lru_cache(maxsize=8)
def _stacked(eps: Fraction, channels: int) -> ByteLaws:
    return ByteLaws.of(flip_laws(eps, channels))
