"""What a scheme learnt from plain images: named arrays with a hash, and the facts about it.

It was learnt from plain images, so it stays with the owner. All of it is ours.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from veilset.errors import CorruptError, ProtectionError
from veilset.files import json_text, staged_folder, write_bytes, write_json
from veilset.params import Params
from veilset.types import Images, Labels

ARRAYS: Final = "fitted.safetensors"
CARD: Final = "fitted.json"

Progress = Callable[[int, int], None]
"""Called with how many steps are done and how many there are."""


@dataclass(frozen=True)
class Lessons:
    """What a scheme learns from: plain images, and others by which it is judged.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        validation_images: uint8 (M, H, W, C), disjoint from `images`.
        validation_labels: int64 (M,).
        classes: How many classes there are.

    Raises:
        ProtectionError: There are no images to learn from, or none to judge by.
    """

    images: Images
    labels: Labels
    validation_images: Images
    validation_labels: Labels
    classes: int

    def __post_init__(self) -> None:
        for name, count in (
            ("train", len(self.images)),
            ("validation", len(self.validation_images)),
        ):
            if count == 0:
                raise ProtectionError(
                    f"there is no {name} image to fit a scheme on: give ingest.shares.{name} a "
                    "share, or name other drops to fit on."
                )


@dataclass(frozen=True)
class Fitted:
    """What `fit` learnt.

    Attributes:
        scheme: Name of the scheme.
        version: Version of the scheme.
        parameters: Canonical JSON of the parameters that it was fitted with.
        arrays: What was learnt, by name; empty where the scheme learns nothing.
        facts: How well, as plain JSON: for the owner's report.
    """

    scheme: str
    version: int
    parameters: str
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """SHA-256 in hex over scheme, version, parameters and every array; not over the facts.

        "" where nothing was learnt.
        """
        if not self.arrays:
            return ""
        digest = hashlib.sha256()
        head: list[Any] = [self.scheme, self.version, self.parameters]
        for name in sorted(self.arrays):
            values = self.arrays[name]
            head.append([name, values.dtype.str, list(values.shape)])
        digest.update(json.dumps(head).encode())
        for name in sorted(self.arrays):
            digest.update(np.ascontiguousarray(self.arrays[name]).tobytes())
        return digest.hexdigest()


class _Card(Params):
    """The contents of `fitted.json`. `own` is the hash of all the rest; cards had none once."""

    format: int = 1
    scheme: str
    version: int
    parameters: str
    facts: dict[str, Any]
    hash: str
    own: str = ""

    def sealed(self) -> "_Card":
        """The same with its own hash."""
        text = json_text(self.model_dump(exclude={"own"}))
        return self.model_copy(update={"own": hashlib.sha256(text.encode()).hexdigest()})

    def is_as_written(self, raw: bytes) -> bool:
        """Whether the card says what its bytes said when they were written."""
        if not self.own:
            return True
        return self == self.sealed() and json_text(self.model_dump()).encode() == raw


def save_fitted(folder: Path, fitted: Fitted) -> None:
    """Writes `fitted.json`, and `fitted.safetensors` where something was learnt; all or nothing.

    Raises:
        DiskFullError: The disk has no room.
    """
    card = _Card(
        scheme=fitted.scheme, version=fitted.version, parameters=fitted.parameters,
        facts=dict(fitted.facts), hash=fitted.hash,
    ).sealed()  # fmt: skip
    with staged_folder(folder, json.dumps(card.model_dump(), sort_keys=True)) as staging:
        if fitted.arrays:
            # Not ascontiguousarray, which gives a single number an axis.
            arrays = {name: np.array(a, order="C") for name, a in sorted(fitted.arrays.items())}
            write_bytes(staging / ARRAYS, save(arrays))
        write_json(staging / CARD, card.model_dump())


def load_fitted(folder: Path) -> Fitted:
    """Reads what `save_fitted` wrote, and compares its hash.

    Raises:
        ProtectionError: There is nothing.
        CorruptError: A file was altered.
    """
    path = folder / CARD
    if not path.is_file():
        raise ProtectionError(
            f"{folder} holds nothing that a scheme learnt: run the stage fit, or `veilset fit`."
        )
    try:
        raw = path.read_bytes()
        card = _Card.model_validate_json(raw)
        if not card.is_as_written(raw):
            raise ValueError(f"{CARD} is not as it was written")
        arrays = load((folder / ARRAYS).read_bytes()) if card.hash else {}
        fitted = Fitted(card.scheme, card.version, card.parameters, arrays, card.facts)
        if fitted.hash != card.hash:
            raise ValueError(f"its hash is not the one in {CARD}")
    except (OSError, ValueError, ValidationError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CorruptError(f"{folder} cannot be used ({reason}): fit the scheme again.") from None
    return fitted
