"""Signing keys in files, and envelopes: the published vectors, and every bit of one counts."""

import base64
import json
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilset.errors import CorruptError, KeyFileError
from veilset.release.signing import (
    PAYLOAD_TYPE,
    PublicKey,
    SigningKey,
    pre_authentication,
    public_key_path,
    read_public_key,
    read_signing_key,
    seal,
    signing_key_path,
    unseal,
    write_public_key,
    write_signing_key,
)

KEY, OTHER = SigningKey(bytes(range(32))), SigningKey(bytes(32))

RFC_8032 = (  # section 7.1: secret, public, message, signature
    ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
     "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b"
     "46bd25bf5f0595bbe24655141438e7a100b"),
    ("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
     "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11"
     "d8c387b2eaeb4302aeeb00d291612bb0c00"),
)  # fmt: skip


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_the_vectors_of_rfc_8032(secret: str, public: str, message: str, signature: str) -> None:
    key = SigningKey(bytes.fromhex(secret))
    assert key.public.raw.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert key.public.agrees(bytes.fromhex(signature), bytes.fromhex(message))
    assert not key.public.agrees(bytes.fromhex(signature), b"another")


def test_the_vector_of_dsse() -> None:
    # docs/protocol.md of DSSE v1, "Test Vectors".
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pre_authentication("http://example.com/HelloWorld", b"hello world") == expected
    assert pre_authentication("\u00e9", b"") == b"DSSEv1 2 \xc3\xa9 0 "


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_has_exactly_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SigningKey(bytes(length))
    with pytest.raises(ValueError, match="32 bytes"):
        PublicKey(bytes(length))


@given(st.binary(min_size=32, max_size=32))
def test_nothing_printed_of_a_key_tells_its_secret(secret: bytes) -> None:
    key = SigningKey(secret)
    for text in (repr(key), str(key), f"{[key]}", key.public.text, repr(key.public)):
        assert secret.hex() not in text
        assert repr(secret) not in text
    assert key.public.fingerprint in repr(key)
    assert len(key.public.fingerprint) == 32
    assert pickle.loads(pickle.dumps(key)) == key  # noqa: S301


# ------------------------------------------------------------------------------ files


def test_keys_come_back_from_their_files(tmp_path: Path) -> None:
    path, shown = signing_key_path(tmp_path), public_key_path(tmp_path)
    made = write_signing_key(path)
    write_public_key(shown, made.public)
    assert read_signing_key(path) == made
    assert read_public_key(shown) == made.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert made.secret.hex() not in shown.read_text()
    assert sorted(p.name for p in path.parent.iterdir()) == ["signing.key", "signing.public"]
    assert write_signing_key(tmp_path / "second.key") != made


def test_no_key_is_ever_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    made = write_signing_key(path)
    with pytest.raises(KeyFileError, match="exists and is kept"):
        write_signing_key(path)
    assert read_signing_key(path) == made
    shown = tmp_path / "public"
    write_public_key(shown, made.public)
    write_public_key(shown, made.public)
    with pytest.raises(KeyFileError, match="exists and is kept"):
        write_public_key(shown, OTHER.public)
    assert read_public_key(shown) == made.public
    assert {p.name for p in tmp_path.iterdir()} == {"signing.key", "public"}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_signing_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "signing.key"
    write_signing_key(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"mode {mode:04o}.*chmod 600"):
        read_signing_key(path)


@pytest.mark.parametrize(
    "text",
    [b"", b"x", b"0" * 64, b"veilset-ed25519-private " + b"G" * 64, b"\xff" * 70,
     b"veilset-ed25519-private " + b"0" * 64 + b"\n\n",
     b"veilset-ed25519-public " + b"0" * 63, b"veilset-ed25519-public " + b"0" * 66],
)  # fmt: skip
def test_what_is_no_key_is_refused_and_not_repeated(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(text)
    path.chmod(0o600)
    for read in (read_signing_key, read_public_key):
        with pytest.raises(KeyFileError, match="64 hex characters") as caught:
            read(path)
        assert "0" * 60 not in str(caught.value)


def test_the_two_kinds_are_not_taken_for_each_other(tmp_path: Path) -> None:
    private, public = tmp_path / "signing.key", tmp_path / "signing.public"
    made = write_signing_key(private)
    write_public_key(public, made.public)
    public.chmod(0o600)
    with pytest.raises(KeyFileError, match="is a public key, which cannot sign"):
        read_signing_key(public)
    with pytest.raises(KeyFileError, match="is a signing key, which its owner alone"):
        read_public_key(private)


def test_missing_and_unwritable_files_have_their_sentence(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"no signing key file .*: make one"):
        read_signing_key(tmp_path / "none")
    with pytest.raises(KeyFileError, match=r"no public key file .*: ask the owner"):
        read_public_key(tmp_path / "none")
    with pytest.raises(KeyFileError, match="cannot be read as a public key"):
        read_public_key(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(KeyFileError, match="cannot be written"):
        write_signing_key(tmp_path / "file/signing.key")


def test_the_file_is_private_from_its_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    link = os.link

    def watched(source: Path, target: Path) -> None:
        modes.append(stat.S_IMODE(source.stat().st_mode))
        link(source, target)

    monkeypatch.setattr(os, "link", watched)
    write_signing_key(tmp_path / "signing.key")
    assert modes == [0o600]


# ------------------------------------------------------------------------------ envelopes


@given(st.binary(max_size=200))
def test_a_sealed_payload_comes_back(payload: bytes) -> None:
    envelope = seal(payload, KEY)
    assert unseal(envelope, KEY.public) == payload
    assert seal(payload, KEY) == envelope
    found = json.loads(envelope)
    assert base64.b64decode(found["payload"]) == payload
    assert found["payloadType"] == PAYLOAD_TYPE == "application/vnd.in-toto+json"
    message = pre_authentication(PAYLOAD_TYPE, payload)
    assert KEY.public.agrees(base64.b64decode(found["signatures"][0]["sig"]), message)


def test_every_bit_of_an_envelope_counts() -> None:
    envelope = seal(b'{"a": 1}', KEY)
    for at in range(8 * len(envelope)):
        altered = bytearray(envelope)
        altered[at // 8] ^= 1 << at % 8
        with pytest.raises(CorruptError, match=r"fetch it again|do not trust"):
            unseal(bytes(altered), KEY.public)


def _changed(**values: Any) -> bytes:
    return (json.dumps(json.loads(seal(b"{}", KEY)) | values, indent=1) + "\n").encode()


@pytest.mark.parametrize(
    "envelope",
    [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, seal(b"{}", KEY) + b" ", seal(b"{}", KEY)[:-1],
     json.dumps(json.loads(seal(b"{}", KEY))).encode(),
     _changed(signatures=[]), _changed(payloadType="text/plain"), _changed(more=1),
     _changed(signatures=json.loads(seal(b"{}", KEY))["signatures"] * 2),
     _changed(payload="e30"), _changed(payload="e31="), _changed(payload=1)],
)  # fmt: skip
def test_any_other_spelling_is_refused(envelope: bytes) -> None:
    with pytest.raises(CorruptError, match="fetch it again"):
        unseal(envelope, KEY.public)


def test_another_signer_is_named() -> None:
    with pytest.raises(CorruptError, match=rf"names '{OTHER.public.fingerprint}' as its signer"):
        unseal(seal(b"{}", OTHER), KEY.public)
    # Somebody else's signature under the owner's name.
    forged = json.loads(seal(b"{}", OTHER))
    forged["signatures"][0]["keyid"] = KEY.public.fingerprint
    text = json.dumps(forged, sort_keys=True, indent=1) + "\n"
    with pytest.raises(CorruptError, match="signature of the statement is not that of key"):
        unseal(text.encode(), KEY.public)
