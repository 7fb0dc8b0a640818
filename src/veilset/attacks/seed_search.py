"""Seed search: a guessable key, or a generator with a small seed, is found by trying all of them.

The attacker holds originals and knows which set they were released in, but not which is which. She
protects one of them under every key that a careless owner may have used, and looks for the result
among the released bytes: one equal image gives the key away.

What a key is worth to her depends on the internal ids, which address an image's randomness:

* Where every image goes through one transform, ids change nothing, and the key is all.
* Where ids were made by a guessable key as well (the ids key of the demonstration, the same key
  twice, or the key itself, as `Protect` does for queries), she computes them from her originals.
* Where the ids key is secret, but the ids under which images are published are at hand, the
  protection key alone suffices: published ids are a permutation of internal ones under it.
* Else she cannot check any key: the secrecy of the ids protects even a guessable key.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import log2
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pydantic import Field

from veilset.attacks.apply_and_compare import equal_images
from veilset.attacks.base import (
    OTHER_KIND,
    Attack,
    Attacker,
    AttackParams,
    AttackResult,
    Case,
    Knowledge,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
    score_candidates,
)
from veilset.attacks.known_plaintext import one_transform
from veilset.attacks.linkage import enough_images
from veilset.errors import ProtectionError
from veilset.keys import (
    DEMO_IDS_KEY,
    DEMO_PROTECTION_KEY,
    KEY_BYTES,
    Key,
    content_ids,
    derive_key,
)
from veilset.schemes.base import ArrayPool, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import BoolArray, Ids, Images, IntArray, Labels

PASSPHRASES: Final = (
    "", "0", "1", "12", "123", "1234", "12345", "123456", "12345678", "123456789", "abc", "abc123",
    "access", "admin", "adminadmin", "changeme", "data", "dataset", "default", "demo", "dev",
    "dummy", "example", "foo", "foobar", "hello", "image", "images", "key", "letmein", "master",
    "my key", "mykey", "mysecret", "none", "null", "passphrase", "password", "password1", "private",
    "privacy", "protect", "protection", "public", "qwerty", "random", "root", "salt", "secret",
    "secret key", "secret_key", "secretkey", "seed", "string", "supersecret", "test", "test key",
    "testing", "test_key", "todo", "veilset", "Veilset", "visualmixer", "welcome", "your-key-here",
)  # fmt: skip
"""What people write where a key is asked for."""

_PROBES: Final = 8
_CHUNK: Final = 1 << 18
_POOL_BITS: Final = 8


class SeedSearchParams(AttackParams):
    """Parameters of `seed_search`.

    Attributes:
        targets: At most so many released images are attacked.
        gallery: Size of the galleries; smaller where there are fewer candidates.
        seed_bits: Integers below 2 to this power are tried as keys, the last byte first, where all
            images go through one transform.
        other_bits: The same with the first byte first, for hashes of the decimal digits, and for
            all integers where each image has a transform of its own. Schemes with donors, and
            the decryption of published ids, are tried with 8 bits at most.
        vector_bits: Seeds below 2 to this power are tried of a generator that says that it is
            small (`SmallSeed`).
    """

    targets: int = Field(500, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    seed_bits: int = Field(16, ge=0, le=40)
    other_bits: int = Field(12, ge=0, le=40)
    vector_bits: int = Field(22, ge=0, le=40)

    FULL: ClassVar[Mapping[str, Any]] = {
        "targets": 2000, "seed_bits": 21, "other_bits": 20, "vector_bits": 32,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Holder(Attacker):
    """An attacker who holds originals of the release, and does not know which is which.

    Attributes:
        held: Originals, uint8 (N, H, W, C).
        held_labels: What they show, int64 (N,).
    """

    held: Images
    held_labels: Labels


@runtime_checkable
class SmallSeed(Protocol):
    """A scheme whose randomness is a generator with a small seed, computed for many seeds at once.

    Attributes:
        seed_bits: Length of the seed.
    """

    seed_bits: int

    def first_values(self, seeds: npt.NDArray[np.uint64], image: Images) -> npt.NDArray[np.uint8]:
        """The first values that each seed would make of an image (H, W, C), uint8 (seeds, 1..8)."""

    def key_of_seed(self, seed: int) -> Key:
        """A key under which the scheme uses this seed."""


@dataclass(frozen=True)
class Guess:
    """A key that may have been used.

    Attributes:
        family: What kind of key.
        key: The key.
    """

    family: str
    key: Key


@dataclass(frozen=True)
class Way:
    """How the attacker comes by internal ids.

    Attributes:
        name: In words.
        ids: Internal ids of originals under a guessed key, uint8 (N, 16).
    """

    name: str
    ids: Callable[[Key, Images], Ids]


@dataclass(frozen=True)
class FittedSearch:
    """What the search found.

    Attributes:
        scheme: What was searched.
        guess: The key, or None.
        way: How ids are had; None where they are read off the published ones.
        tried: How many keys were tried.
        families: For each family whether the key was among them.
    """

    scheme: Scheme[Any]
    guess: Guess | None
    way: Way | None
    tried: int
    families: Mapping[str, float]


class SeedSearch(Attack[SeedSearchParams, FittedSearch]):
    """Tries guessable keys and small seeds, and links all images by the key that it finds.

    Nothing found is a link of nothing: the figure is then chance itself.

    Source: exhaustive search; the dictionary and the treatment of ids are ours.
    """

    name = "seed_search"
    title = "Search for a guessable key"
    risk: ClassVar[Risk] = "linkability"
    attacker: ClassVar[Template] = "public_release"
    knowledge: ClassVar[Knowledge] = "K1"
    cost = "seconds (quick) to an hour (full)"
    deed = "are linked to their original because the key can be guessed"
    oracle_floor = 0.95
    Parameters = SeedSearchParams

    def applies(self, case: Case) -> str | None:
        """None for keyed schemes."""
        if not case.release.scheme.declares.keyed:
            return f"{OTHER_KIND}: it has no key to search for"
        return enough_images(case)

    def _run(self, case: Case, progress: Progress | None) -> AttackResult:
        rng = np.random.default_rng([case.attacker.seed, 1])
        case = case.sample(self.params.targets, rng)
        mixed = rng.permutation(len(case.truth.originals))
        holder = Holder(
            **vars(case.attacker),
            held=case.truth.originals[mixed], held_labels=case.release.labels[mixed],
        )  # fmt: skip
        return super()._run(replace(case, attacker=holder), progress)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedSearch | None,
    ) -> FittedSearch:  # fmt: skip
        del rng
        if not isinstance(attacker, Holder):
            raise TypeError("this attack needs originals: start it by run()")
        if like is not None:
            # Plain images have no key: the oracle compares them with themselves.
            return FittedSearch(release.scheme, Guess("none", attacker.key), _ONE, 0, {})
        fixed = one_transform(release.scheme, attacker)
        search = _Search(release, attacker, [_ONE] if fixed else list(_WAYS))
        found = self._found(search, progress)
        families = dict.fromkeys(search.families, 0.0)
        if found is not None:
            families[found[0].family] = 1.0
        guess, way = found or (None, None)
        return FittedSearch(release.scheme, guess, way, search.tried, families)

    def _found(
        self, search: "_Search", progress: Progress | None
    ) -> tuple[Guess, Way | None] | None:
        params = self.params
        scheme = search.release.scheme
        if isinstance(scheme, SmallSeed):
            guess = search.small_seed(scheme, min(scheme.seed_bits, params.vector_bits), progress)
            if guess is not None:
                return guess, _ONE
        # Where a guess costs several ids or a pool, shorter lists have to do.
        pooled = scheme.uses_pool
        other_bits = min(params.other_bits, _POOL_BITS) if pooled else params.other_bits
        seed_bits = params.seed_bits if search.ways == [_ONE] and not pooled else other_bits
        total = (1 << seed_bits) + 2 * (1 << other_bits)
        for number, guess in enumerate(guesses(seed_bits, other_bits)):
            if progress and number % 4096 == 0:
                progress("seed_search: trying keys", min(number, total), total)
            way = search.check(guess)
            if way is not None:
                return guess, way
        if (published := search.release.published_ids) is not None and not pooled:
            for guess in guesses(_POOL_BITS, _POOL_BITS):
                if search.check_published(guess, published):
                    return guess, None
        return None

    def _measure(self, fitted: FittedSearch, case: Case, rng: np.random.Generator) -> Scores:
        originals = case.truth.originals
        shuffled = rng.permutation(len(originals)).astype(np.int64)
        candidates = originals[shuffled]
        labels = np.zeros(len(originals), dtype=np.int64)
        labels[case.truth.made_from] = case.release.labels
        equal = _links(fitted, case.release, candidates, labels[shuffled])
        frame, gallery, found = score_candidates(
            np.where(equal, 0.0, 1.0), case, shuffled, self.params.gallery, rng
        )
        details = {
            "found": float(fitted.guess is not None),
            "keys_tried": float(fitted.tried),
            "bits_searched": log2(max(fitted.tried, 1)),
        }
        pictures = originals[found] if fitted.guess is not None else None
        return Scores(frame, gallery, pictures, details)

    def _chosen(self, fitted: FittedSearch) -> tuple[str, Mapping[str, float]]:
        if fitted.guess is None:
            return f"none of {fitted.tried} keys", fitted.families
        way = "ids from the published ones" if fitted.way is None else fitted.way.name
        return f"{fitted.guess.family}; {way}", fitted.families


# --- Keys and ids -----------------------------------------------------------------------------


def guesses(seed_bits: int, other_bits: int) -> Iterator[Guess]:
    """Keys that a careless owner may have used, the likeliest first.

    Args:
        seed_bits: Integers below 2 to this power, as 32 bytes with the last one counting.
        other_bits: The same with the first byte counting, and SHA-256 of the decimal digits.
    """
    yield Guess("demonstration", DEMO_PROTECTION_KEY)
    yield Guess("demonstration", DEMO_IDS_KEY)
    for byte in range(256):
        yield Guess("one byte repeated", Key(bytes([byte]) * KEY_BYTES))
    for text in PASSPHRASES:
        raw = text.encode()
        for secret in _from_text(raw):
            yield Guess("passphrases", Key(secret))
    for number in range(1 << seed_bits):
        yield Guess("integers, last byte first", Key(number.to_bytes(KEY_BYTES, "big")))
    for number in range(1 << other_bits):
        yield Guess("integers, first byte first", Key(number.to_bytes(KEY_BYTES, "little")))
        yield Guess("hashes of integers", Key(hashlib.sha256(str(number).encode()).digest()))


def _from_text(raw: bytes) -> Iterator[bytes]:
    """A text as a key: hashed, doubly hashed, filled with zeros or blanks, and repeated."""
    digest = hashlib.sha256(raw).digest()
    yield digest
    yield hashlib.sha256(digest).digest()
    # An owner may have kept the hexadecimal digits of MD5 as 32 bytes.
    yield hashlib.md5(raw, usedforsecurity=False).hexdigest().encode()
    yield raw.ljust(KEY_BYTES, b"\0")
    if raw:
        yield raw.rjust(KEY_BYTES, b"\0")
        yield raw.ljust(KEY_BYTES)
        yield (raw * KEY_BYTES)[:KEY_BYTES]


def internal_ids(stream: Stream, published: Ids) -> Ids:
    """The internal ids of published ones, for whoever holds the protection key.

    Args:
        stream: The stream of the scheme under the key.
        published: uint8 (N, 16).

    Returns:
        uint8 (N, 16).

    Source: published ids are AES-256 of internal ones, see `Stream.published_ids`.
    """
    cipher = Cipher(algorithms.AES256(stream._ids_key), modes.ECB())  # noqa: S305
    plain = cipher.decryptor().update(np.ascontiguousarray(published).tobytes())
    return np.frombuffer(plain, dtype=np.uint8).reshape(-1, 16)


def _zeros(key: Key, images: Images) -> Ids:
    del key
    ids = np.zeros((len(images), 16), dtype=np.uint8)
    ids[:, :4] = np.arange(len(images), dtype="<u4").view(np.uint8).reshape(-1, 4)
    return ids


def _own(key: Key, images: Images) -> Ids:
    return content_ids(key, images)


def _demo(key: Key, images: Images) -> Ids:
    del key
    return content_ids(DEMO_IDS_KEY, images)


def _queries(key: Key, images: Images) -> Ids:
    return content_ids(derive_key(key, "ids of queries"), images)


_ONE: Final = Way("one transform for all images", _zeros)
_WAYS: Final = (
    Way("ids by the demonstration key", _demo),
    Way("ids by the same key", _own),
    Way("ids of queries", _queries),
)


# --- Search -----------------------------------------------------------------------------------


class _Search:
    """Checks guesses against the released bytes, and counts them."""

    def __init__(self, release: Release, attacker: Holder, ways: list[Way]) -> None:
        self.release, self.attacker, self.ways = release, attacker, ways
        self.tried = 0
        self.families: dict[str, None] = {}
        self.shown = {image.tobytes() for image in release.images}
        # Flat images look alike under many keys: the busiest one tells them apart.
        busy = np.argsort([-len(np.unique(image)) for image in attacker.held], kind="stable")
        self.probes = busy[:_PROBES]

    def check(self, guess: Guess) -> Way | None:
        """The way of coming by ids under which a guess reproduces released images, or None."""
        self._count(guess)
        for way, hit in zip(self.ways, self._first_hits(guess.key), strict=True):
            if hit and self._confirmed(self._under(guess.key, way, self.probes)):
                return way
        return None

    def check_published(self, guess: Guess, published: Ids) -> bool:
        """Whether a guess reproduces a released image under the id that it decrypts."""
        self._count(guess)
        return self._confirmed(
            self._made_published(guess.key, published, row).any() for row in self.probes
        )

    def small_seed(self, scheme: SmallSeed, bits: int, progress: Progress | None) -> Guess | None:
        """Tries all seeds by the first values of one image; the few that fit are checked."""
        row = int(self.probes[0])
        image = self.attacker.held[row]
        for start in range(0, 1 << bits, _CHUNK):
            if progress:
                progress("seed_search: trying seeds", start, 1 << bits)
            seeds = np.arange(start, min(start + _CHUNK, 1 << bits), dtype=np.uint64)
            values = scheme.first_values(seeds, image)
            self.tried += len(seeds)
            flat = self.release.images.reshape(len(self.release.images), -1)
            fits = np.isin(_as_words(values), _as_words(flat[:, : values.shape[1]]))
            for seed in seeds[fits]:
                guess = Guess("small seeds", scheme.key_of_seed(int(seed)))
                self.families.setdefault(guess.family)
                if self._confirmed(self._under(guess.key, _ONE, self.probes)):
                    return guess
        self.families.setdefault("small seeds")
        return None

    def _count(self, guess: Guess) -> None:
        self.tried += 1
        self.families.setdefault(guess.family)

    def _confirmed(self, hits: Any) -> bool:
        """At least half of the probes are found: one alone may be a coincidence of flat images."""
        found = [bool(hit) for hit in hits]
        return 2 * sum(found) >= len(found) and len(found) > 0

    def _first_hits(self, key: Key) -> list[bool]:
        """Whether the first probe is found, by way of coming by ids."""
        row = self.probes[:1]
        if self.release.scheme.uses_pool:
            return [bool(self._under(key, way, row)[0]) for way in self.ways]
        # One call for all ways: most of the cost of protecting an image is that of a call.
        image = self.attacker.held[row]
        ids = np.concatenate([way.ids(key, image) for way in self.ways])
        copies = np.repeat(image, len(ids), axis=0)
        labels = np.repeat(self.attacker.held_labels[row], len(ids))
        try:
            made = self.release.scheme.protect(copies, labels, ids, key).images
        except ProtectionError:
            return [False] * len(ids)
        return [each.tobytes() in self.shown for each in made]

    def _under(self, key: Key, way: Way, rows: IntArray) -> BoolArray:
        """Which of these originals are found in the release once they are protected."""
        held, labels = self.attacker.held, self.attacker.held_labels
        scheme = self.release.scheme
        try:
            if scheme.uses_pool:
                ids = way.ids(key, held)
                pool = ArrayPool.from_arrays(held, labels, ids)
                made = scheme.protect(held[rows], labels[rows], ids[rows], key, pool)
            else:
                ids = way.ids(key, held[rows])
                made = scheme.protect(held[rows], labels[rows], ids, key)
        except ProtectionError:
            return np.zeros(len(rows), dtype=np.bool_)
        return np.array([image.tobytes() in self.shown for image in made.images], dtype=np.bool_)

    def _made_published(self, key: Key, published: Ids, row: int) -> BoolArray:
        """Which released images one original becomes under the ids that a key decrypts."""
        return _equal_published(
            self.release.scheme, key, self.release.images, published,
            self.attacker.held[row], int(self.attacker.held_labels[row]),
        )  # fmt: skip


def _equal_published(
    scheme: Scheme[Any], key: Key, released: Images, published: Ids, image: Images, label: int
) -> BoolArray:
    """Which released images one original becomes, bool (N,)."""
    ids = internal_ids(scheme.stream(key), published)
    copies = np.repeat(image[None], len(released), axis=0)
    labels = np.full(len(released), label, dtype=np.int64)
    made = scheme.protect(copies, labels, ids, key).images
    return np.asarray((made == released).reshape(len(made), -1).all(axis=1))


def _links(fitted: FittedSearch, release: Release, candidates: Images, labels: Labels) -> BoolArray:
    """Which candidate becomes which released image under the found key, bool (N, N)."""
    shape = len(release.images), len(candidates)
    if fitted.guess is None:
        return np.zeros(shape, dtype=np.bool_)
    key = fitted.guess.key
    if fitted.way is None:
        if release.published_ids is None:
            raise ValueError("published ids were used, and are missing")
        each = partial(_equal_published, fitted.scheme, key, release.images, release.published_ids)
        return np.stack(
            [each(image, int(label)) for image, label in zip(candidates, labels, strict=True)],
            axis=1,
        )
    ids = fitted.way.ids(key, candidates)
    _, first = np.unique(ids, axis=0, return_index=True)
    pool = ArrayPool.from_arrays(candidates[first], labels[first], ids[first])
    made = fitted.scheme.protect(candidates, labels, ids, key, pool)
    return equal_images(release.images, made.images)


def _as_words(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Rows of up to eight bytes as one word each."""
    words = np.zeros((len(values), 8), dtype=np.uint8)
    words[:, : values.shape[1]] = values
    return words.view(np.uint64)[:, 0]
