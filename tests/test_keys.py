"""Keys: files, environment, fingerprints, and what is derived from them."""

import hashlib
import hmac
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from veilset import keys
from veilset.errors import KeyFileError
from veilset.keys import DEMO_IDS_KEY, DEMO_PROTECTION_KEY, Key

KEY = Key(bytes(range(32)))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in keys.ENVIRONMENT.values():
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def _expect(root: Path, key: Key, kind: keys.KeyKind = "protection") -> None:
    path = keys.fingerprint_path(kind, root)
    path.parent.mkdir(exist_ok=True)
    path.write_text(key.fingerprint + "\n")


# ------------------------------------------------------------------------------ the key itself


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_has_exactly_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Key(bytes(length))


@given(st.binary(min_size=32, max_size=32))
def test_nothing_printed_of_a_key_tells_its_secret(secret: bytes) -> None:
    key = Key(secret)
    for text in (repr(key), str(key), f"{key}", f"{[key]}"):
        assert secret.hex() not in text
        assert repr(secret) not in text
        assert key.fingerprint in text


def test_fingerprint_is_hkdf_with_its_own_label() -> None:
    expected = HKDF(SHA256(), 8, None, b"veilset/fingerprint/1").derive(KEY.secret).hex()
    assert KEY.fingerprint == expected
    assert len(KEY.fingerprint) == 16
    assert Key(bytes(31) + b"\1").fingerprint != Key(bytes(32)).fingerprint


def test_keys_reach_worker_processes() -> None:
    assert pickle.loads(pickle.dumps(KEY)) == KEY  # noqa: S301


def test_derived_keys_differ_by_label_and_from_their_parent() -> None:
    derived = [keys.derive_key(KEY, label) for label in ("a", "b", "a/b", "")]
    assert len({k.secret for k in [KEY, *derived]}) == 5
    assert keys.derive_key(KEY, "a") == derived[0]


def test_only_the_demo_keys_are_demo() -> None:
    assert DEMO_PROTECTION_KEY.is_demo
    assert DEMO_IDS_KEY.is_demo
    assert DEMO_IDS_KEY != DEMO_PROTECTION_KEY
    assert not KEY.is_demo


def test_the_demo_keys_never_change() -> None:
    # The tracked fingerprints of the demonstration project depend on them.
    assert DEMO_PROTECTION_KEY.fingerprint == "23be9c5ee5b47d59"
    assert DEMO_IDS_KEY.fingerprint == "ac79acb4b7773d72"


# ------------------------------------------------------------------------------ ids and roles


def test_image_id_is_hmac_of_domain_shape_and_pixels() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    message = (
        b"veilset/image id/1\0" + bytes([0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 3]) + bytes(range(24))
    )
    expected = hmac.new(KEY.secret, message, hashlib.sha256).digest()[:16]
    assert keys.image_id(KEY, pixels) == expected


def test_image_id_depends_on_pixels_and_shape_not_on_memory_layout() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    same = np.asfortranarray(pixels)
    assert keys.image_id(KEY, same) == keys.image_id(KEY, pixels)
    assert keys.image_id(KEY, pixels.reshape(4, 2, 3)) != keys.image_id(KEY, pixels)
    assert keys.image_id(DEMO_IDS_KEY, pixels) != keys.image_id(KEY, pixels)
    changed = pixels.copy()
    changed[1, 3, 2] ^= 1
    assert keys.image_id(KEY, changed) != keys.image_id(KEY, pixels)


def test_content_ids_are_the_image_ids() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 2, 1), dtype=np.uint8)
    ids = keys.content_ids(KEY, images)
    assert ids.shape == (5, 16)
    assert [row.tobytes() for row in ids] == [keys.image_id(KEY, image) for image in images]
    assert keys.content_ids(KEY, []).shape == (0, 16)


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 1)), np.zeros((2, 2), np.uint8)])
def test_image_id_refuses_what_is_no_image(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        keys.image_id(KEY, bad)


@given(st.binary(max_size=40))
def test_role_fraction_lies_in_its_range_and_is_keyed(value: bytes) -> None:
    fraction = keys.role_fraction(KEY, value)
    assert 0 <= fraction < 1
    assert fraction == keys.role_fraction(KEY, value)
    assert fraction != keys.role_fraction(DEMO_IDS_KEY, value)


def test_role_fractions_are_uniform() -> None:
    values = [keys.role_fraction(KEY, i.to_bytes(4, "big")) for i in range(5000)]
    observed = np.histogram(values, bins=20, range=(0, 1))[0]
    chi_square = ((observed - 250) ** 2 / 250).sum()
    assert chi_square < 43.8  # 99.9 % of a chi-square of 19 degrees


# ------------------------------------------------------------------------------ key files


def test_a_written_key_is_private_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "mine.key"
    key = keys.write_key_file(path)
    assert keys.read_key_file(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == key.secret.hex() + "\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_new_key_is_never_written_over_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.key"
    key = keys.write_key_file(path)
    with pytest.raises(KeyFileError, match="exists and is kept"):
        keys.write_key_file(path)
    assert keys.read_key_file(path) == key
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "mine.key"
    keys.write_key_file(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        keys.read_key_file(path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"00" * 31,
        b"00" * 33,
        b"zz" * 32,
        b"00" * 32 + b"\n\n",
        b" " + b"00" * 32,
        b"\xff" * 64,
    ],
)  # fmt: skip
def test_a_malformed_key_is_refused_without_showing_it(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "mine.key"
    path.write_bytes(text)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="64 hex") as caught:
        keys.read_key_file(path)
    assert "0000" not in str(caught.value)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"none\.key"):
        keys.read_key_file(tmp_path / "none.key")


# ------------------------------------------------------------------------------ a project's key


@pytest.mark.parametrize("kind", keys.KEY_KINDS)
def test_the_demo_key_serves_where_the_project_expects_it(root: Path, kind: keys.KeyKind) -> None:
    demo = {"protection": DEMO_PROTECTION_KEY, "ids": DEMO_IDS_KEY}[kind]
    _expect(root, demo, kind)
    assert keys.project_key(kind, root) == demo


def test_the_demo_key_never_stands_in_for_another(root: Path) -> None:
    _expect(root, KEY)
    with pytest.raises(KeyFileError, match=KEY.fingerprint):
        keys.project_key("protection", root)
    _expect(root, DEMO_IDS_KEY)  # the demo key of the other kind is not this kind's demo
    with pytest.raises(KeyFileError, match="missing"):
        keys.project_key("protection", root)


def test_the_environment_wins_over_the_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_file = keys.new_key("protection", root)
    assert keys.project_key("protection", root) == in_file
    monkeypatch.setenv("VEILSET_PROTECTION_KEY", KEY.secret.hex())
    _expect(root, KEY)
    assert keys.project_key("protection", root) == KEY
    monkeypatch.setenv("VEILSET_PROTECTION_KEY", "")
    with pytest.raises(KeyFileError, match=in_file.fingerprint):
        keys.project_key("protection", root)


def test_an_unexpected_key_is_refused_and_both_fingerprints_named(root: Path) -> None:
    found = keys.new_key("ids", root)
    _expect(root, KEY, "ids")
    with pytest.raises(KeyFileError, match=found.fingerprint) as caught:
        keys.project_key("ids", root)
    assert KEY.fingerprint in str(caught.value)
    assert found.secret.hex() not in str(caught.value)


@pytest.mark.parametrize("text", ["", "x\n", "0123\n", "0" * 17, "zz" * 8])
def test_a_malformed_fingerprint_is_refused(root: Path, text: str) -> None:
    _expect(root, KEY)
    keys.fingerprint_path("protection", root).write_text(text)
    with pytest.raises(KeyFileError, match="malformed"):
        keys.project_key("protection", root)


def test_a_malformed_environment_key_is_refused_without_showing_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _expect(root, KEY)
    monkeypatch.setenv("VEILSET_PROTECTION_KEY", "secret é password")
    with pytest.raises(KeyFileError, match="VEILSET_PROTECTION_KEY") as caught:
        keys.project_key("protection", root)
    assert "password" not in str(caught.value)


def test_a_missing_fingerprint_is_an_error(root: Path) -> None:
    with pytest.raises(KeyFileError, match="veilset key new"):
        keys.project_key("protection", root)


def test_a_new_key_replaces_the_demo_but_no_other(root: Path) -> None:
    _expect(root, DEMO_PROTECTION_KEY)
    first = keys.new_key("protection", root)
    assert keys.project_key("protection", root) == first
    with pytest.raises(KeyFileError, match="exists"):
        keys.new_key("protection", root)
    assert keys.project_key("protection", root) == first


def test_a_colleagues_missing_key_is_not_silently_replaced(root: Path) -> None:
    _expect(root, KEY)
    with pytest.raises(KeyFileError, match=KEY.fingerprint):
        keys.new_key("protection", root)
    assert not keys.key_path("protection", root).exists()
    made = keys.new_key("protection", root, replace=True)
    assert keys.project_key("protection", root) == made


def test_replacing_keeps_the_old_key(root: Path) -> None:
    old = keys.new_key("ids", root)
    new = keys.new_key("ids", root, replace=True)
    assert new != old
    assert keys.project_key("ids", root) == new
    kept = root / "keys" / f"ids.{old.fingerprint}.key"
    assert keys.read_key_file(kept) == old
    assert kept.name.endswith(".key")  # so that git ignores it


def test_destroying_leaves_the_fingerprint_alone(root: Path) -> None:
    key = keys.new_key("protection", root)
    path = keys.key_path("protection", root)
    copy = root / "copy"
    os.link(path, copy)  # the same bytes on disk
    assert keys.destroy_key("protection", root) == key.fingerprint
    assert not path.exists()
    assert key.secret.hex().encode() not in copy.read_bytes()
    assert keys.fingerprint_path("protection", root).read_text().strip() == key.fingerprint
    with pytest.raises(KeyFileError, match="missing"):
        keys.project_key("protection", root)
    with pytest.raises(KeyFileError):
        keys.destroy_key("protection", root)
