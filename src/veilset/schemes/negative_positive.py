"""Pixel-wise encryption: values are negated or not, and the colours of a pixel change places."""

from collections.abc import Mapping
from math import log2
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from veilset.compiled import compiled
from veilset.keys import Key
from veilset.params import Params
from veilset.schemes._keyed import KEYS_HELP, Keys, lanes
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, Labels

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]

_ORDERS: Final = 6
_AES_BLOCK: Final = 16


class NegativePositiveParams(Params):
    """Parameters of the pixel-wise encryption; the paper's images have a key each."""

    keys: Keys = Field(default="per_image", description=KEYS_HELP)
    shuffle_channels: bool = Field(
        default=True,
        description="permute the three colours of each pixel as well; grey images have one",
    )


class NegativePositive(Scheme[NegativePositiveParams]):
    """Makes each value v of each channel v or 255 - v, with probability 1/2.

    With `shuffle_channels` each pixel's R, G and B are put into one of their six orders before:
    floor(w * 6 / 2^32) of a 32-bit word w, so the probability of each is off by less than 2^-32.

    Source: Sirichotedumrong, Kinoshita, Kiya, IEEE Access 2019 (section not known to us), after its
    description in later papers; the keyed generator is ours.
    """

    name = "negative_positive"
    title = "Negative-positive pixels"
    version = 1
    declares = Declaration(
        keyed=True,
        reversible=True,
        guarantee=None,
        protects_queries=True,
        uses_labels=False,
        provenance="reconstruction",
        source="Sirichotedumrong, Kinoshita, Kiya: IEEE Access 7 (2019)",
        risk_notes=(
            "Without any key min(v, 255 - v) is read off every value, and shows all contours: the "
            "first step of the feature reconstruction (FR) attack.",
            "The FR attack goes on to guess the colours of each pixel from its neighbours.",
            "With keys: fixed one chosen image gives the whole transform away, and so does one "
            "known pair, up to the colour order of its grey pixels.",
            "With keys: fixed a network trained on other images through the same transform, pairs "
            "or not, undoes it.",
            "Every value stays at its pixel, so positions and shapes are exact.",
            "Whoever holds the key undoes it exactly.",
        ),
    )
    Parameters = NegativePositiveParams

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, pool
        return Protected(self._changed(images, ids, stream, undo=False))

    def recover(
        self,
        images: Images,
        labels: Labels,
        ids: Ids,
        key: Key,
        private: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> Images:
        """Negates and permutes back.

        Args:
            images: Protected images, uint8 (N, H, W, C).
            labels: Not used.
            ids: The internal ids of the images, uint8 (N, 16).
            key: The key that they were protected with.
            private: Not used.

        Returns:
            The originals, uint8 (N, H, W, C).
        """
        del labels, private
        return self._changed(images, ids, self.stream(key), undo=True)

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """log2 of the negations and colour orders of one image."""
        height, width, channels = shape
        orders = log2(_ORDERS) if self.params.shuffle_channels and channels == 3 else 0.0
        return height * width * (channels + orders)

    def _changed(self, images: Images, ids: Ids, stream: Stream, *, undo: bool) -> Images:
        count, height, width, channels = images.shape
        shuffle = self.params.shuffle_channels and channels == 3
        out = np.empty(images.shape, dtype=np.uint8)
        flat = out.reshape(count, height * width * channels)
        for lane, at in lanes(images, ids, self.params.keys):
            masks = _masks(stream, at, flat.shape[1])
            part = np.ascontiguousarray(images[lane]).reshape(-1, flat.shape[1])
            if not shuffle:
                np.bitwise_xor(part, masks, out=flat[lane])
                continue
            words = _words(stream, at, height * width)
            if undo:
                _shuffle_channels(part ^ masks, flat[lane], words, True)
            else:
                _shuffle_channels(part, flat[lane], words, False)
                np.bitwise_xor(flat[lane], masks, out=flat[lane])
        return out


def _masks(stream: Stream, ids: Ids, values: int) -> Bytes:
    """255 where a value is negated, 0 elsewhere, uint8 (N, values)."""
    bits = stream.bits(ids, "negate", -(-values // 8))
    masks: Bytes = np.unpackbits(bits, axis=1, count=values, bitorder="little")
    masks *= 255
    return masks


def _words(stream: Stream, ids: Ids, pixels: int) -> Words:
    """A word for each pixel, uint32 (N, pixels or a few more)."""
    whole = -(-pixels * 4 // _AES_BLOCK) * _AES_BLOCK
    return stream.bits(ids, "colours", whole).view("<u4").astype(np.uint32, copy=False)


@compiled
def _shuffle_channels(images: Bytes, out: Bytes, words: Words, undo: bool) -> None:
    """Puts the colours of each pixel into the order that its word tells, or back.

    Args:
        images: uint8 (N, pixels * 3).
        out: The same shape; written.
        words: uint32 (N or 1, pixels or more).
        undo: Puts them back.
    """
    for i in range(len(images)):
        row = i % len(words)
        for pixel in range(images.shape[1] // 3):
            order = (np.uint64(words[row, pixel]) * np.uint64(6)) >> np.uint64(32)
            first = np.int64(order >> np.uint64(1))
            second = (first + 1 + np.int64(order & np.uint64(1))) % 3
            at = 3 * pixel
            to = (at + first, at + second, at + 3 - first - second)
            for c in range(3):
                if undo:
                    out[i, to[c]] = images[i, at + c]
                else:
                    out[i, at + c] = images[i, to[c]]
