"""Encryption-then-compression (EtC): blocks are permuted, turned, negated, and change colours."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import lgamma, log
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from veilset.compiled import compiled
from veilset.errors import ProtectionError
from veilset.keys import Key
from veilset.params import Params
from veilset.schemes._keyed import KEYS_HELP, Keys, lanes
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, IntArray, Labels

_ORIENTATIONS: Final = 8
_ORDERS: Final = 6
_FEWEST_BLOCKS: Final = 4


class EtcEncryptionParams(Params):
    """Parameters of EtC encryption.

    JPEG asks for blocks of 16 pixels, or 8 without colour sub-sampling. The default is 4, which
    cuts an image of 32 pixels into 64 blocks, as the comparisons on CIFAR do; take 8 or 16 for
    larger images. Pixels that are left over at the right and lower edge are treated as blocks of
    one pixel among themselves.
    """

    keys: Keys = Field(default="fixed", description=KEYS_HELP)
    block_px: int = Field(default=4, ge=2, le=128, description="side of a block in pixels")


class EtcEncryption(Scheme[EtcEncryptionParams]):
    """Permutes the blocks of an image, and changes each in one of 96 ways.

    Each block is turned or mirrored to one of its 8 orientations, negated (255 - v) with
    probability 1/2, and its colours are put into one of their 6 orders; the same for all its
    pixels. A grey block has 16 ways.

    Source: Kurihara, Kikuchi, Imaizumi, Shiota, Kiya, IEICE Trans. Fundamentals 2015, and Chuman,
    Sirichotedumrong, Kiya, IEEE TIFS 2018 (sections not known to us); all 8 orientations where
    published code reaches some of them; the treatment of left-over pixels and the keyed generator
    are ours.
    """

    name = "etc_encryption"
    title = "EtC encryption"
    version = 1
    declares = Declaration(
        keyed=True,
        reversible=True,
        guarantee=None,
        protects_queries=True,
        uses_labels=False,
        provenance="reconstruction",
        source="Kurihara et al. (IEICE 2015); Chuman, Sirichotedumrong, Kiya (IEEE TIFS 2018)",
        risk_notes=(
            "The pixels inside a block stay as they are up to turning, negation and colour order: "
            "the larger the block, the more of the original is seen in it.",
            "Jigsaw solvers that also try orientations, negatives and colour orders put images "
            "together again; a large key space does not prevent this.",
            "With keys: fixed few known pairs give the whole transform away; one photograph with "
            "64 different blocks told all their places in our measurement.",
            "The histogram of min(v, 255 - v) over all channels survives exactly.",
            "Blocks are found again by their contents, so whoever holds an original finds its "
            "release.",
            "Whoever holds the key undoes it exactly.",
        ),
    )
    Parameters = EtcEncryptionParams

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, pool
        return Protected(self._moved(images, ids, stream, undo=False))

    def recover(
        self,
        images: Images,
        labels: Labels,
        ids: Ids,
        key: Key,
        private: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> Images:
        """Puts every block back.

        Args:
            images: Protected images, uint8 (N, H, W, C).
            labels: Not used.
            ids: The internal ids of the images, uint8 (N, 16).
            key: The key that they were protected with.
            private: Not used.

        Returns:
            The originals, uint8 (N, H, W, C).

        Raises:
            ProtectionError: The images are too small for `block_px`.
        """
        del labels, private
        return self._moved(images, ids, self.stream(key), undo=True)

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """log2 of the permutations and changes of one image's blocks and left-over pixels.

        Raises:
            ProtectionError: The image is too small for `block_px`.
        """
        orders = _ORDERS if shape[2] == 3 else 1
        nats = 0.0
        for part in self._parts(shape):
            blocks = len(part.corners)
            ways = (_ORIENTATIONS if part.side > 1 else 1) * 2 * orders
            nats += lgamma(blocks + 1) + blocks * log(ways)
        return nats / log(2)

    def _parts(self, shape: tuple[int, ...]) -> "list[_Part]":
        """The blocks, and the pixels that are left over."""
        height, width, channels = shape
        block = self.params.block_px
        low, right = height - height % block, width - width % block
        if (low // block) * (right // block) < _FEWEST_BLOCKS:
            raise ProtectionError(
                f"{self.name} cannot protect images of {height} x {width} pixels with block_px "
                f"{block}, which leaves fewer than {_FEWEST_BLOCKS} blocks to permute: set "
                f"block_px to {min(height, width) // 2} or less, or give images of {2 * block} x "
                f"{2 * block} pixels or more."
            )
        values = np.arange(height * width * channels, dtype=np.int64).reshape(shape)[..., 0]
        inner = np.zeros((height, width), dtype=np.bool_)
        inner[:low, :right] = True
        parts = [_Part("blocks", block, values[:low:block, :right:block].ravel())]
        if not inner.all():
            parts.append(_Part("edge", 1, values[~inner]))
        return parts

    def _moved(self, images: Images, ids: Ids, stream: Stream, *, undo: bool) -> Images:
        out = np.empty(images.shape, dtype=np.uint8)
        parts = self._parts(images.shape[1:])
        for lane, at in lanes(images, ids, self.params.keys):
            plain = np.ascontiguousarray(images[lane])
            for part in parts:
                blocks = len(part.corners)
                source = stream.permutations(at, f"{part.name}/order", 1, blocks)[:, 0]
                turn = stream.integers(at, f"{part.name}/turn", blocks, _ORIENTATIONS)
                negate = stream.integers(at, f"{part.name}/negate", blocks, 2)
                colours = stream.integers(at, f"{part.name}/colours", blocks, _ORDERS)
                _move_blocks(
                    plain, out[lane], part.corners, part.side,
                    source, turn | negate << 3 | colours << 4, undo,
                )  # fmt: skip
        return out


@dataclass(frozen=True)
class _Part:
    """Blocks of one size.

    Attributes:
        name: What their randomness is for.
        side: Height and width in pixels.
        corners: The first value of each in the flat image, int64 (blocks,).
    """

    name: str
    side: int
    corners: IntArray


@compiled
def _move_blocks(
    images: Images,
    out: Images,
    corners: IntArray,
    side: int,
    source: IntArray,
    ways: IntArray,
    undo: bool,
) -> None:
    """Writes the block `source[b]`, changed, to place b, or changes and puts it back.

    Args:
        images: uint8 (N, H, W, C), contiguous.
        out: The same shape; written.
        corners: The first value of each block, int64 (blocks,).
        side: Height and width of a block in pixels.
        source: int64 (N or 1, blocks).
        ways: Orientation (bit 0 mirrors down, 1 across, 2 swaps the axes, before those), negation
            (bit 3) and order of colours (bits 4 up), int64 (N or 1, blocks).
        undo: Puts them back.
    """
    count, _, width, channels = images.shape
    line, last = width * channels, side - 1
    flat, target = images.reshape(count, -1), out.reshape(count, -1)
    for i in range(count):
        row = i % len(source)
        for b in range(len(corners)):
            way = ways[row, b]
            origin, mask = corners[source[row, b]], np.uint8(255 * ((way >> 3) & 1))
            down, across = (channels, line) if way & 4 else (line, channels)
            if way & 1:
                origin, down = origin + last * down, -down
            if way & 2:
                origin, across = origin + last * across, -across
            red = green = blue = 0
            if channels == 3:
                order = way >> 4
                red = order >> 1
                green = (red + 1 + (order & 1)) % 3
                blue = 3 - red - green
            for y in range(side):
                for x in range(side):
                    to = corners[b] + y * line + x * channels
                    by = origin + y * down + x * across
                    for c in range(channels):
                        colour = red if c == 0 else green if c == 1 else blue
                        if undo:
                            target[i, by + colour] = flat[i, to + c] ^ mask
                        else:
                            target[i, to + c] = flat[i, by + colour] ^ mask
