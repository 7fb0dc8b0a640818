"""The owner's signature on a release: Ed25519 keys in files, and signed envelopes.

A signing key says who made a release. It protects nothing and is derived from no other key. Its
public half is a short text file, which goes to receivers by a way that they trust, not with the
release.

Signed texts travel in a DSSE envelope, which is accepted in exactly one spelling, so a single
changed bit anywhere in it is noticed.

Source: ours; Ed25519: RFC 8032; envelope and pre-authentication encoding: Dead Simple Signing
Envelope, protocol version 1.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from veilset.errors import CorruptError, KeyFileError
from veilset.files import json_text
from veilset.keys import sync_folder

KEY_BYTES: Final = 32
"""Length of a secret and of a public key."""

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
"""What envelopes hold: an in-toto statement."""

_PRIVATE: Final = "veilset-ed25519-private"
_PUBLIC: Final = "veilset-ed25519-public"
_LINE: Final = re.compile(rf"({_PRIVATE}|{_PUBLIC}) ([0-9a-f]{{64}})\r?\n?")
_BLOCK: Final = 4096


@dataclass(frozen=True)
class PublicKey:
    """What receivers check signatures with.

    Attributes:
        raw: The 32 bytes of RFC 8032.

    Raises:
        ValueError: Not 32 bytes.
    """

    raw: bytes

    def __post_init__(self) -> None:
        _require_length(self.raw)

    @property
    def fingerprint(self) -> str:
        """32 hex characters that name the key: 128 bits, so that no second key can be found."""
        return hashlib.sha256(b"veilset/signing fingerprint/1\0" + self.raw).hexdigest()[:32]

    @property
    def text(self) -> str:
        """What a public key file holds: one line."""
        return f"{_PUBLIC} {self.raw.hex()}\n"

    def agrees(self, signature: bytes, message: bytes) -> bool:
        """Whether the holder of the signing key signed exactly this message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, repr=False)
class SigningKey:
    """The secret behind a signature. Its `repr` and `str` show the fingerprint alone.

    Attributes:
        secret: The 32 bytes of RFC 8032.

    Raises:
        ValueError: Not 32 bytes.
    """

    secret: bytes

    def __post_init__(self) -> None:
        _require_length(self.secret)

    def __repr__(self) -> str:
        return f"SigningKey(fingerprint={self.public.fingerprint!r})"

    @property
    def public(self) -> PublicKey:
        """The public key that belongs to it."""
        private = Ed25519PrivateKey.from_private_bytes(self.secret)
        return PublicKey(private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, 64 bytes; always the same for the same message."""
        return Ed25519PrivateKey.from_private_bytes(self.secret).sign(message)


def _require_length(raw: bytes) -> None:
    if len(raw) != KEY_BYTES:
        raise ValueError(f"an Ed25519 key has {KEY_BYTES} bytes, not {len(raw)}")


# ------------------------------------------------------------------------------ key files


def signing_key_path(root: Path) -> Path:
    """The project's signing key: git-ignored."""
    return root / "keys" / "signing.key"


def public_key_path(root: Path) -> Path:
    """The project's public key: tracked, and what receivers are given."""
    return root / "keys" / "signing.public"


def write_signing_key(path: Path) -> SigningKey:
    """Makes a new random signing key in a file that does not exist yet, mode 0600.

    Raises:
        KeyFileError: The file exists, or cannot be written.
    """
    key = SigningKey(secrets.token_bytes(KEY_BYTES))
    _write_new(path, f"{_PRIVATE} {key.secret.hex()}\n", 0o600)
    return key


def read_signing_key(path: Path) -> SigningKey:
    """Reads a signing key file, readable by its owner alone.

    Raises:
        KeyFileError: It is missing, malformed, or others may read it.
    """
    text, mode = _read(path, "signing key", "make one, or restore yours")
    if mode & 0o077:
        raise KeyFileError(
            f"Signing key file {path} may be read by others (mode {mode:04o}): run "
            f"`chmod 600 {path}`, and make a new key if somebody may have read it."
        )
    kind, raw = _parse(text, path, "signing key", "restore yours")
    if kind != _PRIVATE:
        raise KeyFileError(f"{path} is a public key, which cannot sign: give the signing key.")
    return SigningKey(raw)


def write_public_key(path: Path, key: PublicKey) -> None:
    """Writes a public key to a file; the same key written again changes nothing.

    Raises:
        KeyFileError: The file holds something else, which is kept, or cannot be written.
    """
    try:
        if path.read_bytes() == key.text.encode():
            return
    except OSError:
        pass  # Missing, or it cannot be read: writing will say what is wrong.
    _write_new(path, key.text, 0o644)


def read_public_key(path: Path) -> PublicKey:
    """Reads a public key file: one line.

    Raises:
        KeyFileError: It is missing, malformed, or a signing key, which nobody else may have.
    """
    text, _ = _read(path, "public key", "ask the owner of the release for it")
    kind, raw = _parse(text, path, "public key", "ask the owner of the release for it again")
    if kind != _PUBLIC:
        raise KeyFileError(
            f"{path} is a signing key, which its owner alone may have: give the public key, and "
            "make a new signing key if this one came from somebody else."
        )
    return PublicKey(raw)


def _read(path: Path, what: str, remedy: str) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            return file.read(_BLOCK), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except FileNotFoundError:
        raise KeyFileError(f"There is no {what} file {path}: {remedy}.") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read as a {what}: {error.strerror}.") from None


def _parse(text: bytes, path: Path, what: str, remedy: str) -> tuple[str, bytes]:
    match = _LINE.fullmatch(text.decode("ascii", "replace"))
    if match is None:
        raise KeyFileError(
            f"{path} is no {what}: it is one line, `{_PUBLIC} ` or `{_PRIVATE} ` and 64 hex "
            f"characters; {remedy}."
        )
    return match[1], bytes.fromhex(match[2])


def _write_new(path: Path, text: str, mode: int) -> None:
    """A new file with these rights from its first byte, on disk; no file is ever overwritten."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            _link_new(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise KeyFileError(f"Key file {path} cannot be written: {error.strerror}.") from None


def _link_new(temporary: Path, path: Path) -> None:
    try:
        # A link, unlike a rename, fails where a file exists.
        os.link(temporary, path)
    except FileExistsError:
        raise KeyFileError(f"Key file {path} exists and is kept: name another file.") from None


# ------------------------------------------------------------------------------ envelopes


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Signature(_Frozen):
    keyid: str
    sig: str


class _Envelope(_Frozen):
    payload: str
    payload_type: str = Field(alias="payloadType")
    signatures: Annotated[list[_Signature], Field(min_length=1, max_length=1)]


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """What is signed: `DSSEv1`, then type and payload, each after its length in bytes.

    Source: DSSE v1, "Signature Definition" (PAE).
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, key: SigningKey, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Signs a payload: the bytes of an envelope, always the same for the same payload and key."""
    signature = key.sign(pre_authentication(payload_type, payload))
    return _spelt(payload, payload_type, key.public, signature)


def unseal(envelope: bytes, key: PublicKey, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """The payload of an envelope, after its signature was checked.

    Args:
        envelope: The bytes of the envelope.
        key: The public key of whoever must have signed it.
        payload_type: What the payload must have been signed as.

    Raises:
        CorruptError: It is no envelope of ours, was altered, or somebody else signed it.
    """
    try:
        found = _Envelope.model_validate(json.loads(envelope.decode("utf-8")))
        payload = base64.b64decode(found.payload, validate=True)
        signature = base64.b64decode(found.signatures[0].sig, validate=True)
    except (ValidationError, ValueError, RecursionError):
        raise CorruptError(
            "The statement is no signed envelope: it was damaged or altered; fetch it again."
        ) from None
    if found.signatures[0].keyid != key.fingerprint:
        raise CorruptError(
            f"The statement names {found.signatures[0].keyid[:64]!r} as its signer, "
            f"and the public key given is {key.fingerprint}: use the public key of this release's "
            "owner, or do not trust the release."
        )
    # Any other spelling of the same content is an alteration as well.
    whole = _spelt(payload, payload_type, key, signature) == envelope
    if not whole or not key.agrees(signature, pre_authentication(payload_type, payload)):
        raise CorruptError(
            f"The signature of the statement is not that of key {key.fingerprint}: it was altered "
            "after it was signed; fetch it again from its owner."
        )
    return payload


def _spelt(payload: bytes, payload_type: str, key: PublicKey, signature: bytes) -> bytes:
    """The only spelling that is accepted."""
    return json_text({
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [
            {"keyid": key.fingerprint, "sig": base64.b64encode(signature).decode()}
        ],
    }).encode()  # fmt: skip


__all__ = [
    "KEY_BYTES", "PAYLOAD_TYPE", "PublicKey", "SigningKey", "pre_authentication", "public_key_path",
    "read_public_key", "read_signing_key", "seal", "signing_key_path", "unseal", "write_public_key",
    "write_signing_key",
]  # fmt: skip
