"""The manifest of an image set: what its shards are, and the hashes of their bytes.

It holds no time, host name or tool version, so equal sets have equal manifests. It carries the
hash of its own content and is accepted in exactly one spelling, so a single changed bit anywhere
in it is noticed. All of it is ours.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from veilset.errors import CorruptError
from veilset.files import json_text, write_text

CHUNK = 4 << 20
"""Bytes of a shard that are hashed together: 4 MiB; the last chunk is what is left."""

FORMAT = 1
"""Version of the layout of shards and manifest."""

NAME = "manifest.json"
"""File name of the manifest inside a set's folder."""

_LIMIT = 1 << 30
_HASH = r"^[0-9a-f]{64}$"
_SPLIT = r"[a-z][a-z0-9_]{0,63}"
_NUMBER = "bool|u?int(8|16|32|64)|float(16|32|64)"
_TYPE = re.compile(rf"string|({_NUMBER})(\[[1-9]\d{{0,5}}(,[1-9]\d{{0,5}})*\])?")
_SHARD = re.compile(rf"({_SPLIT})-(\d{{5}})\.arrow")


def shard_name(split: str, index: int) -> str:
    """The file name of a shard: `<split>-00000.arrow`.

    Raises:
        ValueError: The split is not a lower-case word, or the index not in 0..99999.
    """
    name = f"{split}-{index:05d}.arrow"
    if not _SHARD.fullmatch(name):
        raise ValueError(f"{name!r} is no shard name: a split is a lower-case word, up to 99999")
    return name


def split_shard_name(name: str) -> tuple[str, int]:
    """Split and index of a shard's file name.

    Raises:
        ValueError: It is not a shard's name (a path never is).
    """
    match = _SHARD.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no shard name like train-00000.arrow")
    return match[1], int(match[2])


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardEntry(_Frozen):
    """One shard.

    Attributes:
        file: Its file name, `<split>-00000.arrow`.
        split: The split that all of its rows belong to.
        rows: Number of images, at least 1.
        bytes: Length of the file.
        sha256: SHA-256 of the file, hex.
        chunks: SHA-256 of each 4 MiB of the file in order, hex.
    """

    file: str
    split: str
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=_HASH)
    chunks: tuple[str, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if split_shard_name(self.file)[0] != self.split:
            raise ValueError(f"{self.file} is not of split {self.split!r}")
        if len(self.chunks) != -(-self.bytes // CHUNK):
            raise ValueError(f"{self.file} has {len(self.chunks)} chunk hashes for its length")
        if not all(re.fullmatch(_HASH, chunk) for chunk in self.chunks):
            raise ValueError(f"{self.file} has a chunk hash that is none")
        return self


class Manifest(_Frozen):
    """What an image set is.

    Attributes:
        format: Version of the layout, 1.
        kind: `ingested` (private: the owner's) or `protected` (what a scheme made of it).
        dataset: The data set's name.
        shape: Height, width and channels of every image.
        classes: Class names in the order of the labels.
        splits: Rows by split.
        columns: Further columns: name to type, e.g. `string`, `int64` or `uint8[8,8]`.
        shards: The shards, by split and index.
        source: Root of the set that this one was made from, empty for an ingested set. A
            protected set has a keyed digest here, never a plain hash of raw images.
        scheme: Name, title, version, parameters, declaration and fitted hash of the scheme, or
            None.
        key_fingerprint: Fingerprint of the protection key, or None.
        notes: Further facts, e.g. counts of what was held back. Plain JSON.
    """

    format: int = FORMAT
    kind: Literal["ingested", "protected"]
    dataset: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    splits: dict[str, int]
    columns: dict[str, str] = Field(default_factory=dict)
    shards: tuple[ShardEntry, ...]
    source: str = ""
    scheme: Mapping[str, Any] | None = None
    key_fingerprint: str | None = None
    notes: Mapping[str, Any] = Field(default_factory=dict)

    @field_validator("scheme", "notes", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """Plain JSON, so that what is loaded equals what was saved."""
        return json.loads(json.dumps(value, allow_nan=False))

    @field_validator("shards")
    @classmethod
    def _in_order(cls, shards: tuple[ShardEntry, ...]) -> tuple[ShardEntry, ...]:
        """By split and index, so that the root does not depend on the order of writing."""
        return tuple(sorted(shards, key=lambda shard: shard.file))

    @field_validator("shape")
    @classmethod
    def _shape(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(shape) < 1 or shape[2] not in (1, 3) or prod(shape) >= 1 << 31:
            raise ValueError(f"shape {shape} is not (height, width, 1 or 3), or too large")
        return shape

    @field_validator("columns")
    @classmethod
    def _columns(cls, columns: dict[str, str]) -> dict[str, str]:
        for name, kind in columns.items():
            if name in ("id", "label", "image", "") or not _TYPE.fullmatch(kind):
                raise ValueError(f"column {name!r} has a taken name or is of no known type")
        return columns

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.format != FORMAT:
            raise ValueError(f"format {self.format} is not {FORMAT}, the one known here")
        places = [split_shard_name(shard.file) for shard in self.shards]
        counted = {split: 0 for split in self.splits if shard_name(split, 0)}
        for split, group in groupby(places, key=lambda place: place[0]):
            if [index for _, index in group] != list(range(sum(p[0] == split for p in places))):
                raise ValueError(f"the shards of {split!r} are not numbered 0, 1, 2, ...")
        for shard in self.shards:
            if shard.bytes < shard.rows * prod(self.shape):
                raise ValueError(f"{shard.file} is too short for its rows")
            counted[shard.split] = counted.get(shard.split, 0) + shard.rows
        if counted != self.splits:
            raise ValueError("the rows of the shards do not add up to those of the splits")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have one name")
        return self

    @property
    def root(self) -> str:
        """The set's identity: SHA-256 (hex) over the names and hashes of its shards."""
        lines = "".join(f"{shard.sha256}  {shard.file}\n" for shard in self.shards)
        return hashlib.sha256(lines.encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads and checks a folder's `manifest.json`.

        Raises:
            CorruptError: It is missing, altered in any bit, malformed, contradicts itself, or was
                written by a version with another layout.
        """
        path = folder / NAME
        return cls.from_bytes(_read(path), path)

    @classmethod
    def from_bytes(cls, raw: bytes, path: Path) -> Self:
        """Checks the bytes of a manifest; `path` is where they are from, for the message.

        Raises:
            CorruptError: As `load`.
        """
        try:
            return cls._parse(raw)
        except ValidationError as error:
            raise _corrupt(path, _first_fault(error)) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise _corrupt(path, (str(error).splitlines() or ["not readable"])[0]) from None

    @classmethod
    def _parse(cls, raw: bytes) -> Self:
        values = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
        if not isinstance(values, dict) or "sha256" not in values:
            raise ValueError("it is not a manifest")
        values.pop("sha256")
        # The bytes first: nothing is made of content that is not what was saved.
        if _spelt(values) != raw:
            raise ValueError("its content does not agree with the hash it carries")
        manifest = cls.model_validate(values)
        if manifest._text().encode() != raw:
            raise ValueError("a value is not of its type")
        return manifest

    def save(self, folder: Path) -> None:
        """Writes `manifest.json`, atomically: the last file of a set.

        Raises:
            DiskFullError: The disk is full; nothing was changed.
        """
        write_text(folder / NAME, self._text())

    def _text(self) -> str:
        return _spelt(self.model_dump(mode="json")).decode()


def _spelt(values: dict[str, Any]) -> bytes:
    """The only spelling that is accepted: canonical JSON with the hash of all the rest."""
    digest = hashlib.sha256(json_text(values).encode()).hexdigest()
    return json_text({**values, "sha256": digest}).encode()


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LIMIT:
            raise _corrupt(path, "it is far too long for a manifest")
        return path.read_bytes()
    except OSError as error:
        raise CorruptError(
            f"{path} cannot be read ({error.strerror}), so {path.parent} is no finished image "
            "set: make or fetch it again."
        ) from None


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, fault["loc"])) or "the whole"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"


def _corrupt(path: Path, reason: str) -> CorruptError:
    return CorruptError(f"{path} is damaged or altered ({reason.rstrip('.')}): fetch it again.")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


__all__ = ["CHUNK", "FORMAT", "NAME", "Manifest", "ShardEntry", "shard_name", "split_shard_name"]
