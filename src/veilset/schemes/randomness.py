"""Keyed randomness addressed by image id, in integers.

`bits(image, purpose, j)` is AES-256 over explicit counters under keys that HKDF derives from the
owner's key, the scheme, its version, every parameter and the fitted model: an image has its own
stream whatever the batch, order, worker or engine, and two settings share none. Integer maps turn
the bits into permutations, integers and choices; no floating point, so bytes are equal on every
machine. The exact layout and test vectors: `docs/randomness.md`.

Source: ours; counter-based generators as in Salmon et al., SC 2011 (Random123).
"""

import hashlib
import hmac
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from veilset.keys import Key
from veilset.schemes._kernels import number_blocks
from veilset.types import BoolArray, Ids, IntArray

Words = npt.NDArray[np.uint64]

_BLOCK: Final = 16
_WORD: Final = 8
_MAX_BLOCKS: Final = 1 << 32
_MAX_PERMUTATION: Final = 1 << 24
_LANE_BYTES: Final = 1 << 18


@dataclass(frozen=True, repr=False)
class Stream:
    """The randomness of one scheme with one set of parameters under one key.

    Attributes:
        secret: 32 bytes derived by `derive_stream`; never shown.
    """

    secret: bytes

    def __repr__(self) -> str:
        return "Stream(secret hidden)"

    def bits(self, ids: Ids, purpose: str, n_bytes: int, start: int = 0) -> npt.NDArray[np.uint8]:
        """Bytes `start` to `start + n_bytes` of each image's stream for a purpose.

        Args:
            ids: uint8 (N, 16).
            purpose: What the bits are for; another purpose gives independent bits.
            n_bytes: Bytes per image.
            start: First byte of the stream, 0 or more.

        Returns:
            uint8 (N, n_bytes), writeable.

        Raises:
            ValueError: A stream has 64 GiB per image and purpose, and the range ends beyond.
        """
        first, last = start // _BLOCK, -(-(start + n_bytes) // _BLOCK)
        if start < 0 or n_bytes < 0 or last > _MAX_BLOCKS:
            raise ValueError("a stream has bytes 0 to 64 Gi per image and purpose")
        blocks = self._blocks(self._prefixes(ids, purpose), first, last - first)
        skip = start - first * _BLOCK
        return blocks[:, skip : skip + n_bytes]

    def words(self, ids: Ids, purpose: str, count: int) -> Words:
        """The first `count` little-endian 64-bit words of a stream, uint64 (N, count)."""
        return self.bits(ids, purpose, count * _WORD).view("<u8").astype(np.uint64, copy=False)

    def integers(self, ids: Ids, purpose: str, count: int, high: int | IntArray) -> IntArray:
        """Uniform integers in [0, high).

        A word w maps to floor(w * high / 2^64), so each value's probability is off by less than
        2^-64, and the distribution by less than high / 2^64 (at most 2^-32) in statistical
        distance.

        Args:
            ids: uint8 (N, 16).
            purpose: What the integers are for.
            count: Integers per image.
            high: 1 to 2^32; an array that broadcasts to (N, count) gives each its own.

        Returns:
            int64 (N, count).

        Raises:
            ValueError: `high` is out of range.
        """
        limit = np.asarray(high, dtype=np.int64)
        if limit.size and (limit.min() < 1 or limit.max() > 1 << 32):
            raise ValueError("high must be between 1 and 2^32")
        return scaled(self.words(ids, purpose, count), limit.astype(np.uint64))

    def events(self, ids: Ids, purpose: str, count: int, threshold: int) -> BoolArray:
        """Independent events of probability threshold / 2^64, exactly, bool (N, count).

        Args:
            ids: uint8 (N, 16).
            purpose: What the events are for.
            count: Events per image.
            threshold: 0 (never) to 2^64 (always).

        Raises:
            ValueError: `threshold` is out of range.
        """
        if not 0 <= threshold <= 1 << 64:
            raise ValueError("threshold must be between 0 and 2^64")
        if threshold == 1 << 64:
            return np.ones((len(ids), count), dtype=np.bool_)
        return self.words(ids, purpose, count) < np.uint64(threshold)

    def choices(self, ids: Ids, purpose: str, count: int, high: int | IntArray) -> IntArray:
        """Different integers in [0, high), drawn without replacement, in the order drawn.

        The k-th draw is uniform among the values that are left (see `integers` for the bias).

        Args:
            ids: uint8 (N, 16).
            purpose: What the choices are for.
            count: Draws per image.
            high: 1 to 2^32, or one such for each image, int64 (N,).

        Returns:
            int64 (N, count); -1 in the places that an image with `high` below `count` cannot fill.

        Raises:
            ValueError: `high` is out of range.
        """
        limit = np.broadcast_to(np.asarray(high, dtype=np.int64), (len(ids),))
        if limit.size and limit.min() < 1:
            raise ValueError("high must be between 1 and 2^32")
        left = limit[:, None] - np.arange(count)
        drawn = self.integers(ids, purpose, count, np.maximum(left, 1))
        chosen = np.empty_like(drawn)
        for k in range(count):
            value = drawn[:, k].copy()
            # In ascending order, each value chosen before shifts the rest up by one.
            for earlier in np.sort(chosen[:, :k], axis=1).T:
                value += value >= earlier
            chosen[:, k] = value
        return np.where(left > 0, chosen, -1)

    def permutations(self, ids: Ids, purpose: str, groups: int, n: int) -> IntArray:
        """Uniform permutations of 0..n-1, one for each image and group.

        Each element gets a word whose lowest b = ceil(log2 n) bits are replaced by its index, and
        the words are sorted: result[k] is the element that comes to place k. Only a tie of the
        upper 64 - b bits departs from uniform, so the statistical distance is at most
        n (n - 1) / 2^(65 - b): 2^-47 for n = 64, 2^-29 for n = 4096.

        Args:
            ids: uint8 (N, 16).
            purpose: What the permutations are for.
            groups: Permutations per image.
            n: Elements, 1 to 2^24.

        Returns:
            int64 (N, groups, n).

        Raises:
            ValueError: `n` is out of range.
        """
        if not 1 <= n <= _MAX_PERMUTATION:
            raise ValueError("a permutation has 1 to 2^24 elements")
        mask = np.uint64((1 << (n - 1).bit_length()) - 1)
        keys = self.words(ids, purpose, groups * n).reshape(len(ids), groups, n)
        keys &= ~mask
        keys |= np.arange(n, dtype=np.uint64)
        keys.sort(axis=2)
        keys &= mask
        return keys.view(np.int64)

    def published_ids(self, ids: Ids) -> Ids:
        """The ids under which images are published: AES-256 of the id under a key of its own.

        A permutation of all ids, so different images never collide; without the key nobody can
        join two releases, or a release and the internal ids, by id.

        Args:
            ids: uint8 (N, 16).

        Returns:
            uint8 (N, 16).
        """
        return _encrypt(self._ids_key, np.ascontiguousarray(ids)).reshape(-1, _BLOCK)

    def digest(self, purpose: str, data: bytes) -> str:
        """HMAC-SHA256 in hex: names data without letting anybody else confirm a guess of it."""
        framed = len(purpose.encode()).to_bytes(4, "big") + purpose.encode() + data
        return hmac.new(self._digest_key, framed, hashlib.sha256).hexdigest()

    @cached_property
    def _prefix_key(self) -> bytes:
        return _expand(self.secret, b"veilset/stream/1/prefix")

    @cached_property
    def _block_key(self) -> bytes:
        return _expand(self.secret, b"veilset/stream/1/block")

    @cached_property
    def _ids_key(self) -> bytes:
        return _expand(self.secret, b"veilset/stream/1/published id")

    @cached_property
    def _digest_key(self) -> bytes:
        return _expand(self.secret, b"veilset/stream/1/digest")

    def _prefixes(self, ids: Ids, purpose: str) -> npt.NDArray[np.uint32]:
        """96 bits for each image and purpose: two blocks of CBC-MAC, uint32 (N, 3)."""
        if ids.ndim != 2 or ids.shape[1] != _BLOCK or ids.dtype != np.uint8:
            raise ValueError(f"ids must be uint8 (N, 16), not {ids.dtype} {ids.shape}")
        digest = hashlib.sha256(b"veilset/purpose/1\0" + purpose.encode()).digest()[:_BLOCK]
        inner = _encrypt(self._prefix_key, np.ascontiguousarray(ids)).reshape(-1, _BLOCK)
        inner ^= np.frombuffer(digest, dtype=np.uint8)
        outer = _encrypt(self._prefix_key, inner).reshape(-1, _BLOCK)
        return outer.view(np.uint32)[:, :3]

    def _blocks(
        self, prefixes: npt.NDArray[np.uint32], first: int, count: int
    ) -> npt.NDArray[np.uint8]:
        """AES of prefix and big-endian block number, uint8 (N, count * 16)."""
        total = len(prefixes)
        out = np.empty(total * count * _BLOCK + _BLOCK - 1, dtype=np.uint8)
        # A block's bytes are three quarters of prefix and one of number: written as two halves.
        halves = np.zeros((total, 4), dtype=np.uint32)
        halves[:, :3] = prefixes
        numbers = np.zeros((count, 2), dtype=np.uint32)
        counted = np.arange(first, first + count, dtype=np.uint64)
        numbers[:, 1] = counted.astype(">u4").view(np.uint32)
        encryptor = Cipher(algorithms.AES256(self._block_key), modes.ECB()).encryptor()  # noqa: S305
        step = max(1, _LANE_BYTES // max(1, count * _BLOCK))  # counters stay in the cache
        lane = np.empty((min(step, total), count, 2), dtype=np.uint64)
        for low in range(0, total if count else 0, step):
            part = lane[: min(step, total - low)]
            number_blocks(halves.view(np.uint64)[low:], numbers.view(np.uint64)[:, 0], part)
            encryptor.update_into(part.data.cast("B"), out.data[low * count * _BLOCK :])
        return out[: total * count * _BLOCK].reshape(total, count * _BLOCK)


def derive_stream(
    key: Key, *, scheme: str, version: int, parameters: str, fitted_hash: str
) -> Stream:
    """The stream of exactly this scheme, version, parameters and fitted model under a key.

    HKDF-SHA256 whose info is the length-prefixed fields, so no two settings share a stream.

    Args:
        key: The owner's key.
        scheme: The scheme's name.
        version: The scheme's version, 0 or more.
        parameters: Canonical JSON of all parameters.
        fitted_hash: Hash of what the scheme learnt, "" if nothing.
    """
    fields = ("veilset/stream/1", scheme, str(version), parameters, fitted_hash)
    info = b"".join(len(f.encode()).to_bytes(4, "big") + f.encode() for f in fields)
    return Stream(_expand(key.secret, info))


def scaled(words: Words, high: npt.NDArray[np.uint64]) -> IntArray:
    """floor(word * high / 2^64) in 64-bit arithmetic; high at most 2^32."""
    upper, lower = words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)
    product = upper * high + ((lower * high) >> np.uint64(32))
    return (product >> np.uint64(32)).astype(np.int64)


def _expand(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def _encrypt(key: bytes, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """AES-256 of each 16-byte block (blocks differ, or are keyed already: ECB is the primitive)."""
    out = np.empty(blocks.size + _BLOCK - 1, dtype=np.uint8)
    encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305
    encryptor.update_into(blocks.data.cast("B") if blocks.size else b"", out.data)
    return out[: blocks.size]
