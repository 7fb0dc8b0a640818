"""The search finds guessable keys and small seeds, and nothing else; what ids hide is hidden."""

# ruff: noqa: ARG002
import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attack_cases import Black, Noise, NoParams, Planted, digit_case

from veilset.attacks.base import OTHER_KIND, AttackResult, Case
from veilset.attacks.seed_search import (
    PASSPHRASES,
    SeedSearch,
    SeedSearchParams,
    SmallSeed,
    guesses,
    internal_ids,
)
from veilset.keys import DEMO_IDS_KEY, DEMO_PROTECTION_KEY, Key, content_ids, derive_key
from veilset.schemes.base import ArrayPool, Pool, Protected, Scheme
from veilset.schemes.plain import Plain
from veilset.schemes.randomness import Stream
from veilset.schemes.registry import make_scheme
from veilset.types import Ids, Images, Labels

STRONG = Key(hashlib.sha256(b"a key that no list holds: 8fd1c0").digest())
SECRET_IDS = Key(hashlib.sha256(b"an ids key that no list holds: 77ab").digest())
QUICK = {"seed_bits": 10, "other_bits": 6, "vector_bits": 18}

LE = make_scheme("learnable_encryption", {}, "test")
MIXER = make_scheme("visualmixer", {"region_px": 16, "n": 8}, "test")


class Sixteen(Planted):
    """All images are covered by one keystream out of 2^16."""

    name = "sixteen"

    def stream(self, key: Key) -> Stream:
        return Stream(hashlib.sha256(key.secret[-2:]).digest())

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        fixed = np.zeros((1, 16), dtype=np.uint8)
        noise = stream.bits(fixed, "noise", int(np.prod(images.shape[1:])))
        return Protected(images ^ noise.reshape(1, *images.shape[1:]))


class ThirtyTwo(Planted):
    """All images are covered by one keystream of a 32-bit generator."""

    name = "thirty_two"
    seed_bits = 32

    def keystream(self, seeds: Any, count: int) -> Any:
        state = seeds[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        return (state >> np.uint64(56)).astype(np.uint8)

    def first_values(self, seeds: Any, image: Images) -> Any:
        return image.reshape(-1)[:8] ^ self.keystream(seeds, 8)

    def key_of_seed(self, seed: int) -> Key:
        return Key(seed.to_bytes(4, "big") * 8)

    def protect(
        self, images: Images, labels: Labels, ids: Ids, key: Key, pool: Pool | None = None
    ) -> Protected:
        seed = np.array([int.from_bytes(key.secret[:4], "big")], dtype=np.uint64)
        noise = self.keystream(seed, int(np.prod(images.shape[1:])))
        return Protected(images ^ noise.reshape(1, *images.shape[1:]))

    def _protect(self, *parts: Any) -> Protected:
        raise NotImplementedError


def case_of(
    scheme: Scheme[Any], key: Key, ids_key: Key = SECRET_IDS, addressed: bool = False,
    targets: int = 220,
) -> Case:  # fmt: skip
    case = digit_case(Plain(), targets=targets, auxiliary=40)
    images, labels = case.truth.originals, case.release.labels
    ids = content_ids(ids_key, images)
    made = scheme.protect(images, labels, ids, key, ArrayPool.from_arrays(images, labels, ids))
    release = replace(case.release, images=made.images, scheme=scheme, side=made.side)
    if addressed:
        published = scheme.stream(key).published_ids(ids)
        release = replace(release, published_ids=published)
    return replace(case, release=release)


def search(case: Case, **values: int) -> AttackResult:
    return SeedSearch(SeedSearchParams(**{**QUICK, **values})).run(case)


@pytest.mark.parametrize(
    "scheme, key, family",
    [
        (LE, DEMO_PROTECTION_KEY, "demonstration"),
        (LE, Key(bytes(32)), "one byte repeated"),
        (LE, Key(hashlib.sha256(b"password").digest()), "passphrases"),
        (LE, Key(b"secret".ljust(32, b"\0")), "passphrases"),
        (LE, Key((777).to_bytes(32, "big")), "integers, last byte first"),
        (LE, Key((42).to_bytes(32, "little")), "integers, first byte first"),
        (LE, Key(hashlib.sha256(b"42").digest()), "hashes of integers"),
    ],
)
def test_a_guessable_key_of_one_transform_links_everything(
    scheme: Scheme[Any], key: Key, family: str
) -> None:
    result = search(case_of(scheme, key))
    assert result.status == "ok"
    assert result.value == pytest.approx(1.0)
    assert result.variants[family] == 1.0
    assert family in result.variant
    assert result.details["found"] == 1.0
    assert result.control.value < 0.02


@pytest.mark.parametrize("scheme", [LE, MIXER, Noise(), make_scheme("masked_image", {}, "test")],
                         ids=lambda scheme: scheme.name)  # fmt: skip
def test_a_random_key_is_not_found_and_chance_is_exact(scheme: Scheme[Any]) -> None:
    result = search(case_of(scheme, STRONG))
    assert result.value == pytest.approx(result.chance)
    assert result.control.value == pytest.approx(result.chance)
    assert result.oracle.value == pytest.approx(1.0)
    assert result.details["found"] == 0.0
    words = 2 + 256 + sum(4 if not text else 7 for text in PASSPHRASES)
    integers = 2**10 if scheme is LE else 2**6
    assert result.details["keys_tried"] == words + integers + 2 * 2**6
    assert result.details["bits_searched"] == pytest.approx(np.log2(result.details["keys_tried"]))


@pytest.mark.parametrize(
    "key, ids_key, way",
    [
        (DEMO_PROTECTION_KEY, DEMO_IDS_KEY, "ids by the demonstration key"),
        (Key((5).to_bytes(32, "big")), DEMO_IDS_KEY, "ids by the demonstration key"),
        (Key(bytes(32)), Key(bytes(32)), "ids by the same key"),
        (Key(bytes(32)), derive_key(Key(bytes(32)), "ids of queries"), "ids of queries"),
    ],
)
def test_ids_that_can_be_computed_protect_nothing(key: Key, ids_key: Key, way: str) -> None:
    result = search(case_of(MIXER, key, ids_key))
    assert result.value == pytest.approx(1.0)
    assert way in result.variant


def test_secret_ids_hide_a_guessable_key_until_published_ids_give_them_away() -> None:
    key = DEMO_PROTECTION_KEY
    assert search(case_of(MIXER, key)).details["found"] == 0.0
    result = search(case_of(MIXER, key, addressed=True))
    assert result.value == pytest.approx(1.0)
    assert "published" in result.variant
    assert result.control.value < 0.02


def test_published_ids_under_a_random_key_tell_nothing() -> None:
    result = search(case_of(MIXER, STRONG, addressed=True, targets=60), seed_bits=0, other_bits=0)
    assert result.value == pytest.approx(result.chance)


def test_published_ids_are_undone_by_whoever_holds_the_key() -> None:
    ids = np.random.default_rng(0).integers(0, 256, (9, 16), dtype=np.uint8)
    stream = MIXER.stream(STRONG)
    np.testing.assert_array_equal(internal_ids(stream, stream.published_ids(ids)), ids)


def test_donors_are_drawn_from_the_originals_that_she_holds() -> None:
    mixing = make_scheme("pixel_block_mixing", {"block_height": 4, "block_width": 4}, "test")
    assert search(case_of(mixing, DEMO_PROTECTION_KEY, DEMO_IDS_KEY)).value == pytest.approx(1.0)
    result = search(case_of(mixing, STRONG), seed_bits=2, other_bits=2)
    assert result.value == pytest.approx(result.chance)


def test_a_stream_of_sixteen_bits_is_searched_through() -> None:
    owner = Key(STRONG.secret[:-2] + b"\x2a\x17")
    result = search(case_of(Sixteen(), owner), seed_bits=16)
    assert result.value == pytest.approx(1.0)
    assert result.details["keys_tried"] < 2**16
    short = search(case_of(Sixteen(), owner), seed_bits=8)
    assert short.value == pytest.approx(short.chance)


def test_a_generator_that_says_that_it_is_small_is_searched_many_seeds_at_once() -> None:
    scheme = ThirtyTwo(NoParams())
    assert isinstance(scheme, SmallSeed)
    assert not isinstance(LE, SmallSeed)
    result = search(case_of(scheme, scheme.key_of_seed(200_001)))
    assert result.value == pytest.approx(1.0)
    assert result.variants == {"small seeds": 1.0}
    beyond = search(case_of(scheme, scheme.key_of_seed(1 << 20)))
    assert beyond.details["found"] == 0.0
    assert beyond.details["keys_tried"] > 2**18


def test_equal_bytes_of_all_images_find_no_key_of_use() -> None:
    result = search(case_of(Black(), STRONG))
    assert result.value == pytest.approx(result.chance)


def test_without_a_key_it_is_not_made_for_the_scheme() -> None:
    assert search(case_of(Plain(), STRONG)).reason.startswith(OTHER_KIND)


def test_guesses_are_keys_of_their_families_and_differ() -> None:
    found = list(guesses(4, 3))
    assert {guess.family for guess in found} == {
        "demonstration", "one byte repeated", "passphrases", "integers, last byte first",
        "integers, first byte first", "hashes of integers",
    }  # fmt: skip
    secrets = {guess.key.secret for guess in found}
    # Repeated texts, zeros and small integers meet in a few places.
    assert len(secrets) > 0.9 * len(found)
    assert hashlib.sha256(b"veilset").digest() in secrets
    assert (15).to_bytes(32, "big") in secrets
    assert (16).to_bytes(32, "big") not in secrets
