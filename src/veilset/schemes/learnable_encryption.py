"""Learnable encryption (LE): half-bytes of each block are permuted, and half of them negated."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import lgamma, log, prod
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from veilset.compiled import compiled
from veilset.keys import Key
from veilset.params import Params
from veilset.schemes._keyed import KEYS_HELP, Keys, lanes
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, IntArray, Labels

Bytes = npt.NDArray[np.uint8]


class LearnableEncryptionParams(Params):
    """Parameters of learnable encryption.

    Blocks are squares of `block_px`, from the upper left. What is left over at the right and lower
    edge is cut into smaller blocks, which have permutations of their own size.
    """

    keys: Keys = Field(default="fixed", description=KEYS_HELP)
    block_px: int = Field(
        default=4, ge=2, le=32, description="side of a block in pixels; the paper's is 4"
    )
    extended: bool = Field(
        default=False,
        description="ELE: each block has its own permutation, and blocks change places with those "
        "of the same size",
    )


class LearnableEncryption(Scheme[LearnableEncryptionParams]):
    """Splits the values of each block into half-bytes, permutes these and negates half of them.

    A block of 4 x 4 RGB pixels has 96 half-bytes: a half-byte h becomes h or 15 - h, and exactly
    half of them, drawn uniformly, are negated; so no value stays as it was where it was, however
    small the block. All blocks of an image have the same permutation; with `extended` each has its
    own, and the blocks are permuted too.

    Source: Tanaka, ICCE-TW 2018, and for `extended` Madono, Tanaka, Onishi, Ogawa (2020), after
    their published code (sections not known to us), which negates before and after the
    permutation, so by two draws; here the half is drawn once. Smaller blocks at the edge and the
    keyed generator are ours.
    """

    name = "learnable_encryption"
    title = "Learnable encryption"
    version = 1
    declares = Declaration(
        keyed=True,
        reversible=True,
        guarantee=None,
        protects_queries=True,
        uses_labels=False,
        provenance="reconstruction",
        source="Tanaka: Learnable image encryption, ICCE-TW 2018; extended: Madono et al. (2020)",
        risk_notes=(
            "Without extended all blocks of an image have the same transform, so equal blocks stay "
            "equal, and even areas and their contours show.",
            "With keys: fixed few known pairs give the whole transform away: one photograph of 32 "
            "pixels in our measurement, ten with extended.",
            "With keys: fixed a network trained on pairs, or a generative one on unpaired images, "
            "restores a likeness (ITN attack, SIA-GAN).",
            "Every block keeps how often each pair (h, 15 - h) of half-bytes occurs, so whoever "
            "holds an original finds its release.",
            "Whoever holds the key undoes it exactly.",
        ),
    )
    Parameters = LearnableEncryptionParams

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, pool
        return Protected(self._mixed(images, ids, stream, undo=False))

    def recover(
        self,
        images: Images,
        labels: Labels,
        ids: Ids,
        key: Key,
        private: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> Images:
        """Puts every half-byte back.

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
        return self._mixed(images, ids, self.stream(key), undo=True)

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """log2 of the permutations and choices of the negated half, over all sizes of block."""
        nats = 0.0
        for part in _parts(shape, self.params.block_px):
            halves, blocks = 2 * len(part.inside), len(part.corners)
            table = 2 * (lgamma(halves + 1) - lgamma(halves // 2 + 1))
            nats += blocks * table + lgamma(blocks + 1) if self.params.extended else table
        return nats / log(2)

    def _mixed(self, images: Images, ids: Ids, stream: Stream, *, undo: bool) -> Images:
        out = np.empty(images.shape, dtype=np.uint8)
        flat = out.reshape(len(images), prod(images.shape[1:]))
        parts = _parts(images.shape[1:], self.params.block_px)
        for lane, at in lanes(images, ids, self.params.keys):
            plain = np.ascontiguousarray(images[lane]).reshape(-1, flat.shape[1])
            for number, part in enumerate(parts):
                moves = self._moves(stream, at, number, part)
                if undo:
                    moves = moves.undone()
                _mix_blocks(
                    plain, flat[lane], part.corners, part.inside,
                    moves.source, moves.table, moves.order,
                )  # fmt: skip
        return out

    def _moves(self, stream: Stream, ids: Ids, number: int, part: "_Part") -> "_Moves":
        """What happens to the blocks of one size."""
        blocks, halves = len(part.corners), 2 * len(part.inside)
        tables = blocks if self.params.extended else 1
        order = stream.permutations(ids, f"order/{number}", tables, halves)
        chosen = stream.permutations(ids, f"negate/{number}", tables, halves) < halves // 2
        if self.params.extended:
            source = stream.permutations(ids, f"blocks/{number}", 1, blocks)[:, 0]
            table = np.broadcast_to(np.arange(blocks), source.shape).copy()
        else:
            source = np.broadcast_to(np.arange(blocks), (len(ids), blocks)).copy()
            table = np.zeros_like(source)
        return _Moves(source, table, 2 * order + chosen)


@dataclass(frozen=True)
class _Part:
    """The blocks of one size.

    Attributes:
        corners: The first value of each block in the flat image, int64 (blocks,).
        inside: The values of a block, counted from its first, int64 (values,).
    """

    corners: IntArray
    inside: IntArray


@dataclass(frozen=True)
class _Moves:
    """What happens to the blocks of one size of each image, or of all.

    Attributes:
        source: The block that comes to each place, int64 (N or 1, blocks).
        table: The row of the two below that each place uses, int64 (N or 1, blocks).
        order: Twice the half-byte that comes to each place of a block, lower ones before upper
            ones, and one more where it is negated, int64 (N or 1, tables, halves).
    """

    source: IntArray
    table: IntArray
    order: IntArray

    def undone(self) -> "_Moves":
        """What puts everything back."""
        source, table, order = (np.empty_like(a) for a in (self.source, self.table, self.order))
        codes = 2 * np.arange(order.shape[2]) + (self.order & 1)
        np.put_along_axis(order, self.order >> 1, codes, axis=2)
        blocks = np.broadcast_to(np.arange(source.shape[1]), source.shape)
        np.put_along_axis(source, self.source, blocks, axis=1)
        np.put_along_axis(table, self.source, self.table, axis=1)
        return _Moves(source, table, order)


def _parts(shape: tuple[int, ...], block: int) -> list[_Part]:
    """The blocks of an image (H, W, C), up to four sizes."""
    height, width, channels = shape
    values = np.arange(height * width * channels, dtype=np.int64).reshape(shape)
    return [
        _Part(
            corners=values[top:low:high, left:right:wide, 0].ravel(),
            inside=values[:high, :wide].ravel(),
        )
        for top, low, high in _runs(height, block)
        for left, right, wide in _runs(width, block)
    ]


def _runs(length: int, block: int) -> list[tuple[int, int, int]]:
    """Whole blocks along a side and what is left over: first pixel, end, side of a block."""
    whole = length - length % block
    return [run for run in ((0, whole, block), (whole, length, length - whole)) if run[0] < run[1]]


@compiled
def _mix_blocks(
    images: Bytes,
    out: Bytes,
    corners: IntArray,
    inside: IntArray,
    source: IntArray,
    table: IntArray,
    order: IntArray,
) -> None:
    """Writes the blocks of one size.

    Args:
        images: uint8 (N, H * W * C).
        out: The same shape; written.
        corners: See `_Part`.
        inside: See `_Part`.
        source: See `_Moves`.
        table: See `_Moves`.
        order: See `_Moves`.
    """
    count = len(inside)
    halves = np.empty(4 * count, dtype=np.uint8)
    for i in range(len(images)):
        row = i % len(source)
        for b in range(len(corners)):
            first, to, t = corners[source[row, b]], corners[b], table[row, b]
            for j in range(count):
                value = images[i, first + inside[j]]
                low, high = value & 15, value >> 4
                halves[2 * j], halves[2 * j + 1] = low, 15 - low
                halves[2 * (count + j)], halves[2 * (count + j) + 1] = high, 15 - high
            for j in range(count):
                high = halves[order[row, t, count + j]]
                out[i, to + inside[j]] = halves[order[row, t, j]] | (high << 4)
