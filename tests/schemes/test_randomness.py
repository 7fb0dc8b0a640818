"""The keyed stream: its exact layout, its independence of everything but its address, its maps."""

import hashlib
import hmac
import json
import struct
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from veilset.keys import Key
from veilset.schemes.randomness import Stream, derive_stream

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
KEY = Key(bytes(range(32)))
STREAM = derive_stream(KEY, scheme="s", version=1, parameters="{}", fitted_hash="")


def some_ids(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8)


# ----------------------------------------------------- an independent implementation, byte by byte


def aes(key: bytes, block: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
    return encryptor.update(block) + encryptor.finalize()


def expand(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, info).derive(secret)


def reference_secret(key: bytes, fields: list[str]) -> bytes:
    info = b"".join(struct.pack(">I", len(f.encode())) + f.encode() for f in fields)
    return expand(key, info)


def reference_bits(secret: bytes, image: bytes, purpose: str, n_bytes: int) -> bytes:
    k1 = expand(secret, b"veilset/stream/1/prefix")
    k2 = expand(secret, b"veilset/stream/1/block")
    tag = hashlib.sha256(b"veilset/purpose/1\0" + purpose.encode()).digest()[:16]
    inner = bytes(a ^ b for a, b in zip(aes(k1, image), tag, strict=True))
    prefix = aes(k1, inner)[:12]
    blocks = (aes(k2, prefix + struct.pack(">I", j)) for j in range(-(-n_bytes // 16)))
    return b"".join(blocks)[:n_bytes]


def reference_words(secret: bytes, image: bytes, purpose: str, count: int) -> list[int]:
    return list(struct.unpack(f"<{count}Q", reference_bits(secret, image, purpose, 8 * count)))


def reference_permutation(words: list[int]) -> list[int]:
    low = max(len(words) - 1, 0).bit_length()
    return [i for _, i in sorted((w >> low, i) for i, w in enumerate(words))]


def reference_choices(words: list[int], high: int) -> list[int]:
    left, found = list(range(high)), []
    for k, word in enumerate(words):
        found.append(left.pop(word * (high - k) >> 64) if k < high else -1)
    return found


# ------------------------------------------------------------------------------ published vectors


@pytest.mark.parametrize("vector", VECTORS["streams"], ids=lambda v: v["scheme"])
def test_frozen_vectors_hold(vector: dict[str, Any]) -> None:
    key, image = Key(bytes.fromhex(vector["key"])), bytes.fromhex(vector["id"])
    stream = derive_stream(
        key, scheme=vector["scheme"], version=vector["version"],
        parameters=vector["parameters"], fitted_hash=vector["fitted_hash"],
    )  # fmt: skip
    ids = np.frombuffer(image, dtype=np.uint8).reshape(1, 16)
    assert stream.secret.hex() == vector["secret"]
    purpose = vector["purpose"]
    assert stream.bits(ids, purpose, 40).tobytes().hex() == vector["bits"]
    assert stream.permutations(ids, purpose, 2, 5).tolist() == [vector["permutations"]]
    assert stream.integers(ids, purpose, 6, 1000).tolist() == [vector["integers_below_1000"]]
    assert stream.choices(ids, purpose, 4, 6).tolist() == [vector["choices_4_of_6"]]
    assert stream.events(ids, purpose, 8, 1 << 63).astype(int).tolist() == [vector["events_half"]]
    assert stream.published_ids(ids).tobytes().hex() == vector["published_id"]
    assert stream.digest("source", b"abc") == vector["digest_source_abc"]


@pytest.mark.parametrize("vector", VECTORS["streams"], ids=lambda v: v["scheme"])
def test_frozen_vectors_follow_from_the_documented_layout(vector: dict[str, Any]) -> None:
    fields = [
        "veilset/stream/1", vector["scheme"], str(vector["version"]), vector["parameters"],
        vector["fitted_hash"],
    ]  # fmt: skip
    secret = reference_secret(bytes.fromhex(vector["key"]), fields)
    image, purpose = bytes.fromhex(vector["id"]), vector["purpose"]
    assert secret.hex() == vector["secret"]
    assert reference_bits(secret, image, purpose, 40).hex() == vector["bits"]
    words = reference_words(secret, image, purpose, 10)
    assert [reference_permutation(words[:5]), reference_permutation(words[5:])] == vector[
        "permutations"
    ]
    assert [w * 1000 >> 64 for w in words[:6]] == vector["integers_below_1000"]
    assert reference_choices(words[:4], 6) == vector["choices_4_of_6"]
    assert [int(w < 1 << 63) for w in words[:8]] == vector["events_half"]
    assert (
        aes(expand(secret, b"veilset/stream/1/published id"), image).hex()
        == (vector["published_id"])
    )
    mac = hmac.new(expand(secret, b"veilset/stream/1/digest"), b"\0\0\0\6sourceabc", hashlib.sha256)
    assert mac.hexdigest() == vector["digest_source_abc"]


@settings(deadline=None, max_examples=40)
@given(
    st.binary(min_size=16, max_size=16), st.text(max_size=12), st.integers(0, 70),
    st.integers(0, 70),
)  # fmt: skip
def test_bits_equal_the_independent_implementation(
    image: bytes, purpose: str, start: int, n_bytes: int
) -> None:
    ids = np.frombuffer(image, dtype=np.uint8).reshape(1, 16)
    expected = reference_bits(STREAM.secret, image, purpose, start + n_bytes)[start:]
    assert STREAM.bits(ids, purpose, n_bytes, start).tobytes() == expected


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 7))
def test_maps_equal_the_independent_implementation(seed: int, n: int, groups: int) -> None:
    ids = some_ids(3, seed)
    got = STREAM.permutations(ids, "p", groups, n)
    drawn = STREAM.choices(ids, "c", groups, n)
    for row, image in enumerate(ids):
        words = reference_words(STREAM.secret, image.tobytes(), "p", groups * n)
        expected = [reference_permutation(words[g * n : g * n + n]) for g in range(groups)]
        assert got[row].tolist() == expected
        words = reference_words(STREAM.secret, image.tobytes(), "c", groups)
        assert drawn[row].tolist() == reference_choices(words, n)


def test_a_stream_ends_after_64_gib() -> None:
    ids = some_ids(1)
    end = 16 << 32
    assert STREAM.bits(ids, "p", 16, end - 16).shape == (1, 16)
    with pytest.raises(ValueError, match="64 Gi"):
        STREAM.bits(ids, "p", 17, end - 16)


# ------------------------------------------------------------------------------ addressing


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.integers(0, 40), st.integers(0, 2**32))
def test_bits_depend_on_the_image_alone(count: int, n_bytes: int, seed: int) -> None:
    ids = some_ids(count, seed)
    whole = STREAM.bits(ids, "p", n_bytes)
    order = np.random.default_rng(seed).permutation(count)
    assert (STREAM.bits(ids[order], "p", n_bytes) == whole[order]).all()
    half = count // 2
    assert (STREAM.bits(ids[half:], "p", n_bytes) == whole[half:]).all()
    sparse = np.ascontiguousarray(ids[:, ::-1])[:, ::-1]  # another memory layout
    assert (STREAM.bits(sparse, "p", n_bytes) == whole).all()


def test_many_lanes_equal_one_by_one() -> None:
    # More bytes than fit one pass over the counters.
    ids = some_ids(100)
    whole = STREAM.bits(ids, "p", 10_000)
    assert (whole[[3, 99]] == STREAM.bits(ids[[3, 99]], "p", 10_000)).all()


BASE: dict[str, Any] = {"scheme": "s", "version": 1, "parameters": '{"a":1}', "fitted_hash": "h"}


@pytest.mark.parametrize(
    "change",
    [
        {"scheme": "t"}, {"version": 2}, {"parameters": '{"a":2}'}, {"fitted_hash": ""},
        # The same characters, other borders between the fields.
        {"scheme": 's1{"a":1}', "version": 1, "parameters": ""},
        {"parameters": '{"a":1}h', "fitted_hash": ""},
    ],
)  # fmt: skip
def test_another_setting_shares_no_keystream(change: dict[str, Any]) -> None:
    ids = some_ids(64)
    one, two = derive_stream(KEY, **BASE), derive_stream(KEY, **{**BASE, **change})
    bits = (one.bits(ids, "p", 256), two.bits(ids, "p", 256))
    assert_independent(*bits)
    assert not set(map(bytes, one.published_ids(ids))) & set(map(bytes, two.published_ids(ids)))
    assert one.digest("a", b"x") != two.digest("a", b"x")


def test_another_key_purpose_or_image_shares_no_keystream() -> None:
    ids, others = some_ids(64), some_ids(64, seed=1)
    other = derive_stream(Key(bytes(32)), **BASE)
    stream = derive_stream(KEY, **BASE)
    bits = stream.bits(ids, "p", 256)
    assert_independent(bits, other.bits(ids, "p", 256))
    assert_independent(bits, stream.bits(ids, "q", 256))
    assert_independent(bits, stream.bits(others, "p", 256))
    near = ids.copy()
    near[:, 15] ^= 1  # a single bit of the id
    assert_independent(bits, stream.bits(near, "p", 256))


def assert_independent(one: np.ndarray, two: np.ndarray) -> None:
    """Half of all bits differ (within 5 sigma), and no 16-byte block occurs in both."""
    differing = int(np.unpackbits(one ^ two).sum())
    bits = one.size * 8
    assert abs(differing - bits / 2) < 5 * np.sqrt(bits / 4)
    blocks = [set(map(bytes, array.reshape(-1, 16))) for array in (one, two)]
    assert not blocks[0] & blocks[1]


def test_published_ids_never_collide_and_tell_no_order() -> None:
    ids = np.zeros((2000, 16), dtype=np.uint8)
    ids[:, 14:] = np.arange(2000, dtype=">u2").view(np.uint8).reshape(-1, 2)
    published = STREAM.published_ids(ids)
    assert len(set(map(bytes, published))) == 2000
    ranks = np.argsort(np.argsort(published[:, 0].astype(int) * 256 + published[:, 1]))
    assert abs(np.corrcoef(ranks, np.arange(2000))[0, 1]) < 0.12
    assert not set(map(bytes, published)) & set(map(bytes, ids))


def test_a_stream_does_not_show_its_secret() -> None:
    assert STREAM.secret.hex() not in repr(STREAM)
    assert repr(STREAM.secret) not in f"{STREAM}"


# ------------------------------------------------------------------------------ integer maps


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(0, 2**32))
def test_permutations_are_permutations(n: int, seed: int) -> None:
    found = STREAM.permutations(some_ids(4, seed), "p", 3, n)
    assert found.dtype == np.int64
    assert (np.sort(found, axis=2) == np.arange(n)).all()


def test_all_permutations_are_equally_likely() -> None:
    found = STREAM.permutations(some_ids(6000), "p", 4, 4).reshape(-1, 4)
    names = {p: k for k, p in enumerate(permutations(range(4)))}
    observed = np.bincount([names[tuple(p)] for p in found.tolist()], minlength=24)
    assert_uniform(observed)


def test_every_element_comes_to_every_place_equally_often() -> None:
    found = STREAM.permutations(some_ids(2000), "p", 8, 64).reshape(-1, 64)
    counts = np.stack([np.bincount(found[:, place], minlength=64) for place in range(64)])
    expected = len(found) / 64
    statistic = ((counts - expected) ** 2 / expected).sum()
    # Rows and columns have fixed sums: 63 * 63 degrees.
    assert chi2.sf(statistic * 63 / 64, 63 * 63) > 1e-4


@pytest.mark.parametrize(
    ("high", "bins"), [(1, 1), (2, 2), (3, 3), (10, 10), (1000, 50), (2**32, 64)]
)
def test_integers_are_uniform(high: int, bins: int) -> None:
    found = STREAM.integers(some_ids(3000), "i", 8, high)
    assert found.min() >= 0
    assert found.max() < high
    if bins > 1:
        assert_uniform(np.bincount((found // (high // bins)).ravel(), minlength=bins))


def assert_uniform(observed: np.ndarray) -> None:
    expected = observed.sum() / len(observed)
    assert chi2.sf(((observed - expected) ** 2 / expected).sum(), len(observed) - 1) > 1e-4


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**32))
def test_integer_map_is_exact_multiplication(word: int, high: int) -> None:
    from veilset.schemes.randomness import scaled

    got = scaled(np.array([word], dtype=np.uint64), np.array([high], dtype=np.uint64))
    assert int(got[0]) == word * high >> 64


@pytest.mark.parametrize("high", [0, -1, 2**32 + 1])
def test_integers_refuse_an_impossible_range(high: int) -> None:
    with pytest.raises(ValueError, match="high"):
        STREAM.integers(some_ids(2), "i", 1, high)


def test_each_image_may_have_its_own_range() -> None:
    ids = some_ids(3)
    high = np.array([1, 7, 1000])
    found = STREAM.integers(ids, "i", 5, high[:, None])
    for row in range(3):
        alone = STREAM.integers(ids[row : row + 1], "i", 5, int(high[row]))
        assert (found[row] == alone[0]).all()


@pytest.mark.parametrize(("count", "high"), [(1, 1), (3, 3), (2, 5), (5, 40)])
def test_choices_differ_and_are_uniform(count: int, high: int) -> None:
    found = STREAM.choices(some_ids(4000), "c", count, high)
    assert all(len(set(row)) == count for row in found.tolist())
    for place in range(count if high > 1 else 0):
        assert_uniform(np.bincount(found[:, place], minlength=high))


def test_choices_fill_what_they_cannot_with_minus_one() -> None:
    found = STREAM.choices(some_ids(2), "c", 4, np.array([2, 9]))
    assert sorted(found[0].tolist()) == [-1, -1, 0, 1]
    assert found[0, 2:].tolist() == [-1, -1]
    assert -1 not in found[1]


@given(st.integers(0, 2**64))
def test_events_have_exactly_their_probability(threshold: int) -> None:
    ids = some_ids(2)
    found = STREAM.events(ids, "e", 5, threshold)
    words = STREAM.words(ids, "e", 5).tolist()
    assert found.tolist() == [[w < threshold for w in row] for row in words]


def test_events_never_and_always() -> None:
    assert not STREAM.events(some_ids(9), "e", 9, 0).any()
    assert STREAM.events(some_ids(9), "e", 9, 1 << 64).all()
    with pytest.raises(ValueError, match="threshold"):
        STREAM.events(some_ids(1), "e", 1, (1 << 64) + 1)


@pytest.mark.parametrize("bad", [np.zeros((2, 15), np.uint8), np.zeros(16, np.uint8)])
def test_wrong_ids_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="ids"):
        STREAM.bits(bad, "p", 4)


def test_no_images_are_no_error() -> None:
    none = some_ids(0)
    assert STREAM.bits(none, "p", 8).shape == (0, 8)
    assert STREAM.permutations(none, "p", 2, 3).shape == (0, 2, 3)
    assert STREAM.choices(none, "c", 2, 3).shape == (0, 2)
    assert STREAM.published_ids(none).shape == (0, 16)


def test_thresholds_are_exact_rationals() -> None:
    from veilset.schemes.pixel_block_mixing import PixelBlockMixingParams

    for text in ("0.1", "0.3", "0.5", "1.0", "0.0", "0.7"):
        params = PixelBlockMixingParams(p_replace=float(text))
        exact = Fraction(text) * 2**64
        assert params.threshold == exact.numerator // exact.denominator


def test_streams_are_values() -> None:
    assert Stream(bytes(32)) == Stream(bytes(32))
    assert Stream(bytes(32)) != STREAM
