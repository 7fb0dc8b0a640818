"""Gaussian blur in integers."""

from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from veilset.compiled import compiled
from veilset.errors import ProtectionError
from veilset.params import Params
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, IntArray, Labels

Words = npt.NDArray[np.uint32]

_TRUNCATE: Final = 4
_WEIGHT_BITS: Final = 16
_DIGITS: Final = 40


class GaussianBlurParams(Params):
    """Parameters of the Gaussian blur; below half a pixel it would hardly change the image."""

    sigma_px: float = Field(
        default=2.0, ge=0.5, le=64, allow_inf_nan=False,
        description="standard deviation in pixels, taken as the decimal that is written",
    )  # fmt: skip

    @property
    def sigma(self) -> Fraction:
        """The standard deviation, exactly."""
        return Fraction(repr(self.sigma_px))


class GaussianBlur(Scheme[GaussianBlurParams]):
    """Convolves each channel with a Gaussian, first down, then across.

    The kernel ends at four standard deviations and edges are reflected (d c b a | a b c d | d c b
    a), as in `scipy.ndimage.gaussian_filter`. Words are integers that sum to 2^16, from
    exponentials in decimal arithmetic; the image between the two passes has 8 fractional bits, and
    both passes round half up: bytes are equal on every machine.

    Source: the usual blur, as attacked by McPherson, Shokri, Shmatikov (arXiv 1609.00408); its
    fixed-point form is ours.
    """

    name = "gaussian_blur"
    title = "Gaussian blur"
    version = 1
    declares = Declaration(
        keyed=False,
        reversible=False,
        guarantee=None,
        protects_queries=True,
        uses_labels=False,
        provenance="ours",
        source="baseline; reversed in Privacy Blur: arXiv 2512.16086 (2025)",
        risk_notes=(
            "A blur with a known kernel is reversed in practice, by deconvolution or by a network "
            "trained on pairs that anybody can make.",
            "Coarse shapes, colours and positions stay as they are.",
            "There is no key: whoever holds an original makes its release and finds it by "
            "comparison.",
            "Networks trained on blurred images recognise persons in them.",
        ),
        shift_safe=True,
    )
    Parameters = GaussianBlurParams

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, ids, stream, pool
        height, width = images.shape[1:3]
        if min(height, width) < 2:
            raise ProtectionError(
                f"{self.name} cannot protect images of {height} x {width} pixels, which have no "
                "neighbours to blur with: give images of 2 x 2 pixels or more."
            )
        weights = _weights(self.params.sigma)
        radius = len(weights) - 1
        out = np.empty(images.shape, dtype=np.uint8)
        rows, columns = _reflected(height, radius), _reflected(width, radius)
        _blur(np.ascontiguousarray(images), out, weights, rows, columns)
        return Protected(out)

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """Zero: there is one transform, known to all."""
        del shape
        return 0.0


@lru_cache(maxsize=16)
def _weights(sigma: Fraction) -> Words:
    """Words of the centre and of one side of the kernel in 2^-16, uint32 (radius + 1,).

    The centre and twice the others sum to 2^16 exactly: the centre takes what rounding left over.
    Decimal exponentials are correctly rounded, those of a C library are not.
    """
    radius = int(_TRUNCATE * sigma + Fraction(1, 2))
    with localcontext() as context:
        context.prec = _DIGITS
        twice = Decimal(2 * sigma.numerator**2) / Decimal(sigma.denominator**2)
        shape = [(-Decimal(k * k) / twice).exp() for k in range(radius + 1)]
        whole = shape[0] + 2 * sum(shape[1:])
        unit = (1 << _WEIGHT_BITS) / whole
        side = [int(value * unit + Decimal("0.5")) for value in shape[1:]]
    weights = np.array([(1 << _WEIGHT_BITS) - 2 * sum(side), *side], dtype=np.uint32)
    weights.flags.writeable = False
    return weights


def _reflected(length: int, radius: int) -> IntArray:
    """The pixel at each place from -radius to length - 1 + radius, int64 (length + 2 radius,)."""
    place = np.arange(-radius, length + radius, dtype=np.int64) % (2 * length)
    return np.minimum(place, 2 * length - 1 - place)


@compiled
def _blur(images: Images, out: Images, weights: Words, rows: IntArray, columns: IntArray) -> None:
    """Both passes; sums fit 32 bits: 255 * 2^8 * 2^16 + 2^23 < 2^32."""
    count, height, width, channels = images.shape
    radius = len(weights) - 1
    line = width * channels
    sums = np.empty(line, dtype=np.uint32)
    wide = np.empty((height + 2 * radius, line), dtype=np.uint32)
    padded = np.empty(len(columns) * channels, dtype=np.uint32)
    for i in range(count):
        image = images[i].reshape(height, line)
        target = out[i].reshape(height, line)
        for y in range(len(rows)):
            wide[y] = image[rows[y]]
        for y in range(height):
            _convolve(wide[y : y + 2 * radius + 1].reshape(-1), line, weights, sums)
            for x in range(line):
                sums[x] = (sums[x] + np.uint32(1 << 7)) >> np.uint32(8)
            for place in range(len(columns)):
                for c in range(channels):
                    padded[place * channels + c] = sums[columns[place] * channels + c]
            _convolve(padded, channels, weights, sums)
            for x in range(line):
                target[y, x] = (sums[x] + np.uint32(1 << 23)) >> np.uint32(24)


@compiled
def _convolve(values: Words, step: int, weights: Words, sums: Words) -> None:
    """Sums of values that lie whole steps apart, the first sum's first value at 0."""
    radius = len(weights) - 1
    middle = values[radius * step :]
    for x in range(len(sums)):
        sums[x] = weights[0] * middle[x]
    for k in range(1, radius + 1):
        weight = weights[k]
        before, after = values[(radius - k) * step :], values[(radius + k) * step :]
        for x in range(len(sums)):
            sums[x] += weight * (before[x] + after[x])
