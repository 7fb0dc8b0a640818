"""The owner's keys: 32 random bytes each, in a file that only the owner reads.

Two kinds, so that ids and splits survive a change of the protection key:

* `protection`: all randomness of the schemes, and the published ids.
* `ids`: internal image ids and roles.

Everything derived from a key goes through HKDF-SHA256 or HMAC-SHA256 with a label of its own, so
that no derived value tells another one or the key. Byte layouts: `docs/randomness.md`.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from veilset.errors import KeyFileError, VeilsetError
from veilset.files import write_text
from veilset.types import Ids, Images

KEY_BYTES: Final = 32
ID_BYTES: Final = 16

KeyKind = Literal["protection", "ids"]
KEY_KINDS: Final[tuple[KeyKind, ...]] = ("protection", "ids")

ENVIRONMENT: Final[dict[KeyKind, str]] = {
    "protection": "VEILSET_PROTECTION_KEY",
    "ids": "VEILSET_IDS_KEY",
}

_FOLDER = "keys"
_HEX_KEY = re.compile(rb"[0-9a-fA-F]{64}\r?\n?")
_HEX_FINGERPRINT = re.compile(rb"[0-9a-f]{16}\r?\n?")


@dataclass(frozen=True, repr=False)
class Key:
    """A secret of exactly 32 bytes. Its `repr` and `str` show the fingerprint alone.

    Raises:
        ValueError: The secret is not 32 bytes.
    """

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(self.secret)}")

    def __repr__(self) -> str:
        return f"Key(fingerprint={self.fingerprint!r})"

    @property
    def fingerprint(self) -> str:
        """16 hex characters that name the key and do not tell it."""
        return _hkdf(self.secret, "veilset/fingerprint/1", 8).hex()

    @property
    def is_demo(self) -> bool:
        """Whether this is one of the public demonstration keys, which protect nothing."""
        return self in (DEMO_PROTECTION_KEY, DEMO_IDS_KEY)


def _hkdf(secret: bytes, label: str, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=label.encode()).derive(secret)


DEMO_PROTECTION_KEY: Final = Key(hashlib.sha256(b"veilset demo protection key, public").digest())
"""The public protection key of the embedded demonstration data; `release` refuses it."""

DEMO_IDS_KEY: Final = Key(hashlib.sha256(b"veilset demo ids key, public").digest())
"""The public ids key of the embedded demonstration data; `release` refuses it."""

_DEMO: Final[dict[KeyKind, Key]] = {"protection": DEMO_PROTECTION_KEY, "ids": DEMO_IDS_KEY}


def derive_key(key: Key, label: str) -> Key:
    """A key of its own for one purpose: HKDF-SHA256 with `veilset/derived/1/<label>` as info."""
    return Key(_hkdf(key.secret, f"veilset/derived/1/{label}", KEY_BYTES))


# ------------------------------------------------------------------------------ ids and roles


def image_id(key: Key, pixels: Images) -> bytes:
    """The internal id of an image: 128 bits of a keyed hash of its shape and pixels.

    Equal pixels have equal ids whatever file they came in; without the key an id cannot be computed
    from the pixels, so an id does not confirm that somebody holds an image.

    Args:
        key: The ids key.
        pixels: uint8 (H, W, C), any memory layout.

    Returns:
        16 bytes.

    Raises:
        ValueError: `pixels` is not uint8 of three dimensions.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise ValueError(f"pixels must be uint8 (H, W, C), not {pixels.dtype} {pixels.shape}")
    return _image_digest(_image_mac(key, pixels.shape), pixels)


def content_ids(key: Key, images: Images | Iterable[Images]) -> Ids:
    """`image_id` of many images.

    Args:
        key: The ids key.
        images: uint8 (N, H, W, C), or any images (H, W, C) one after another.

    Returns:
        uint8 (N, 16).

    Raises:
        ValueError: An image is not uint8 of three dimensions.
    """
    joined = b"".join(image_id(key, image) for image in images)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, ID_BYTES)


def _image_mac(key: Key, shape: tuple[int, ...]) -> "hmac.HMAC":
    mac = hmac.new(key.secret, b"veilset/image id/1\0", hashlib.sha256)
    mac.update(b"".join(side.to_bytes(4, "big") for side in shape))
    return mac


def _image_digest(mac: "hmac.HMAC", pixels: Images) -> bytes:
    mac.update(np.ascontiguousarray(pixels).data)
    return mac.digest()[:ID_BYTES]


def role_fraction(key: Key, value: bytes) -> float:
    """Where a value (an image id, a group's name) falls in [0, 1): its role is a range of these.

    The top 53 bits of an HMAC, so the fraction is exact, the same everywhere, and unpredictable
    without the ids key.
    """
    mac = hmac.new(key.secret, b"veilset/role/1\0" + value, hashlib.sha256).digest()
    return (int.from_bytes(mac[:8], "big") >> 11) / (1 << 53)


# ------------------------------------------------------------------------------ key files


def key_path(kind: KeyKind, root: Path) -> Path:
    """The project's key file of this kind: git-ignored."""
    return root / _FOLDER / f"{kind}.key"


def fingerprint_path(kind: KeyKind, root: Path) -> Path:
    """The tracked file with the fingerprint that the project expects."""
    return root / _FOLDER / f"{kind}.fingerprint"


def read_key_file(path: Path) -> Key:
    """Reads a key file: 64 hex characters and a newline, readable by its owner alone.

    Raises:
        KeyFileError: It is missing, malformed, or others may read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096)
    except FileNotFoundError:
        raise KeyFileError(f"There is no key file {path}: make one, or restore yours.") from None
    except OSError as error:
        raise KeyFileError(f"Key file {path} cannot be read: {error.strerror}.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise KeyFileError(
            f"Key file {path} may be read by others (mode {stat.S_IMODE(mode):04o}): "
            f"run `chmod 600 {path}`, and make a new key if somebody may have read it."
        )
    return _parse_key(text, f"Key file {path}")


def write_key_file(path: Path) -> Key:
    """Makes a new random key and writes it to a file that does not exist yet, mode 0600.

    Raises:
        KeyFileError: The file exists, or cannot be written.
    """
    key = Key(secrets.token_bytes(KEY_BYTES))
    temporary = _write_private(path, key)
    try:
        # A link, unlike a rename, fails where a file exists: no key is ever overwritten.
        os.link(temporary, path)
    except FileExistsError:
        raise KeyFileError(f"Key file {path} exists and is kept: name another file.") from None
    except OSError as error:
        raise _unwritten(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    try:
        sync_folder(path.parent)
    except OSError as error:
        path.unlink()
        raise _unwritten(path, error) from None
    return key


def project_key(kind: KeyKind, root: Path) -> Key:
    """The project's key, checked against the fingerprint that the project expects.

    The environment variable wins over the file; the public demo key serves only where the tracked
    fingerprint is the demo's.

    Args:
        kind: Which key.
        root: The project's root.

    Raises:
        KeyFileError: No key, a malformed one, or one with another fingerprint than expected.
    """
    expected = _expected_fingerprint(kind, root)
    key, where = _find_key(kind, root, expected)
    if key.fingerprint != expected:
        raise KeyFileError(
            f"{where} has fingerprint {key.fingerprint}, but "
            f"{fingerprint_path(kind, root)} expects {expected}: restore the key of that "
            f"fingerprint, or write {key.fingerprint} into that file to go on with this one."
        )
    return key


def new_key(kind: KeyKind, root: Path, *, replace: bool = False) -> Key:
    """Makes the project's key of this kind and records its fingerprint.

    Args:
        kind: Which key.
        root: The project's root.
        replace: Also where the project has a key already; its file is kept beside the new one as
            `<kind>.<fingerprint>.key`.

    Raises:
        KeyFileError: There is a key, or the project expects one that is not the demo's, and
            `replace` was not given; or the file cannot be written.
        DiskFullError: There is no room for the fingerprint.

    After an error key and fingerprint are either both the old or both the new.
    """
    path = key_path(kind, root)
    if not replace:
        _refuse_second_key(kind, root)
    kept = _keep_aside(path) if path.exists() else None
    made = None
    try:
        made = write_key_file(path)
        write_text(fingerprint_path(kind, root), f"{made.fingerprint}\n")
    except VeilsetError:
        if made is None or not _expects(kind, root, made):
            # Without its fingerprint a new key would be in the way of the next attempt.
            _put_back(path, kept, made)
        raise
    return made


def destroy_key(kind: KeyKind, root: Path) -> str:
    """Overwrites and removes the project's key file; the fingerprint file stays.

    Releases made with it become one-way and can no longer be reproduced. Copies elsewhere (backups,
    the environment, journals of the disk) are not reached.

    Returns:
        The fingerprint of the destroyed key.

    Raises:
        KeyFileError: There is no such key file, or it is malformed.
    """
    path = key_path(kind, root)
    fingerprint = read_key_file(path).fingerprint
    with path.open("r+b") as file:
        file.write(secrets.token_hex(KEY_BYTES).encode())
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    sync_folder(path.parent)
    return fingerprint


def _parse_key(text: bytes, where: str) -> Key:
    if not _HEX_KEY.fullmatch(text):
        raise KeyFileError(f"{where} is malformed: a key is 64 hex characters; restore yours.")
    return Key(bytes.fromhex(text.decode("ascii")))


def _expected_fingerprint(kind: KeyKind, root: Path) -> str:
    path = fingerprint_path(kind, root)
    try:
        text = path.read_bytes()
    except OSError:
        raise KeyFileError(
            f"{path} is missing, so this project expects no {kind} key: "
            f"run `veilset key new {kind}`, or restore the file."
        ) from None
    if not _HEX_FINGERPRINT.fullmatch(text):
        raise KeyFileError(f"{path} is malformed: a fingerprint is 16 hex characters; restore it.")
    return text.decode("ascii").strip()


def _find_key(kind: KeyKind, root: Path, expected: str) -> tuple[Key, str]:
    variable, path = ENVIRONMENT[kind], key_path(kind, root)
    text = os.environ.get(variable, "")
    if text:
        where = f"Environment variable {variable}"
        return _parse_key(text.strip().encode("utf-8", "replace"), where), where
    if path.exists():
        return read_key_file(path), f"Key file {path}"
    demo = _DEMO[kind]
    if expected == demo.fingerprint:
        return demo, "The demo key"
    raise KeyFileError(
        f"The {kind} key with fingerprint {expected} is missing: put it into {path} (mode 0600) "
        f"or into the environment variable {variable}."
    )


def _refuse_second_key(kind: KeyKind, root: Path) -> None:
    path = key_path(kind, root)
    if path.exists():
        raise KeyFileError(f"Key file {path} exists and is kept: ask for a replacement explicitly.")
    if not fingerprint_path(kind, root).exists():
        return
    expected = _expected_fingerprint(kind, root)
    if expected != _DEMO[kind].fingerprint:
        raise KeyFileError(
            f"This project expects the {kind} key {expected}, which is not here: restore it into "
            f"{path}, or ask for a replacement explicitly."
        )


def _expects(kind: KeyKind, root: Path, key: Key) -> bool:
    with suppress(KeyFileError):
        return _expected_fingerprint(kind, root) == key.fingerprint
    return False


def _put_back(path: Path, kept: Path | None, made: Key | None) -> None:
    if kept is not None:
        kept.replace(path)
    elif made is not None:
        path.unlink()


def _keep_aside(path: Path) -> Path:
    kept = path.with_name(f"{path.stem}.{read_key_file(path).fingerprint}.key")
    try:
        path.replace(kept)
    except OSError as error:
        raise _unwritten(path, error) from None
    # That the disk keeps both names is seen to when the new key is written.
    return kept


def _write_private(path: Path, key: Key) -> Path:
    """The key in a new file beside `path`, mode 0600 from its first byte, on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise _unwritten(path, error) from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(key.secret.hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from None
    return temporary


def _unwritten(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(
        f"Key file {path} cannot be written ({error.strerror}), and no key was made: check the "
        "place and its room, then run again."
    )


def sync_folder(folder: Path) -> None:
    """Has the disk keep which files a folder holds: a new key must survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
