"""What a protection scheme is.

A scheme is frozen parameters and one pure function: uint8 images in, uint8 images out. All of its
randomness is a keyed stream addressed by image id, so the same input, parameters and key give the
same bytes for any batch size, order, worker count or engine.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from veilset.errors import ProtectionError
from veilset.keys import Key
from veilset.params import Params
from veilset.schemes.randomness import Stream, derive_stream
from veilset.types import Ids, Images, IntArray, Labels

P = TypeVar("P", bound=Params)

Provenance = Literal["paper exact", "reconstruction", "ours"]


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a scheme says of itself; reports and the gate repeat it.

    Attributes:
        keyed: Its output depends on the owner's key.
        reversible: Whoever holds the key can undo it (then it is pseudonymisation, not more).
        guarantee: Its formal guarantee in words, or None.
        protects_queries: Test and query images go through it as well. False means that models
            trained on its output are tested on, and used with, plain images.
        uses_labels: It reads the labels, so its output may tell them: such a scheme never protects
            test images, or the test would be answered by the protection.
        provenance: Whether the paper's algorithm is implemented as published, reconstructed, or
            ours.
        source: Paper and section.
        risk_notes: What is known to survive, one sentence each.
    """

    keyed: bool
    reversible: bool
    guarantee: str | None
    protects_queries: bool
    uses_labels: bool
    provenance: Provenance
    source: str
    risk_notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.uses_labels and self.protects_queries:
            raise ValueError("a scheme that uses labels cannot protect queries, which have none")


class Pool(Protocol):
    """All images of one role and drop, sorted by id: where donors come from."""

    @property
    def ids(self) -> Ids:
        """Ids in ascending order, uint8 (N, 16)."""

    @property
    def labels(self) -> Labels:
        """Labels in the order of the ids, int64 (N,)."""

    def take(self, rows: IntArray) -> Images:
        """The images of these rows, uint8 (len(rows), H, W, C)."""


@dataclass(frozen=True)
class ArrayPool:
    """A pool held in memory. Build it with `from_arrays`, which sorts by id."""

    ids: Ids
    labels: Labels
    images: Images

    @classmethod
    def from_arrays(cls, images: Images, labels: Labels, ids: Ids) -> "ArrayPool":
        """Sorts by id, so that the pool is the same for any order of its input."""
        order = np.lexsort(ids.T[::-1])
        return cls(ids=ids[order], labels=labels[order], images=images[order])

    def take(self, rows: IntArray) -> Images:
        """The images of these rows, uint8 (len(rows), H, W, C)."""
        return self.images[rows]


class _BatchPool:
    """A batch as its own pool; sorts only if it is used, and copies no image before it is taken."""

    def __init__(self, images: Images, labels: Labels, ids: Ids) -> None:
        self._images, self._labels, self._ids = images, labels, ids

    @cached_property
    def _order(self) -> IntArray:
        return np.lexsort(self._ids.T[::-1]).astype(np.int64)

    @cached_property
    def ids(self) -> Ids:
        return self._ids[self._order]

    @cached_property
    def labels(self) -> Labels:
        return self._labels[self._order]

    def take(self, rows: IntArray) -> Images:
        return self._images[self._order[rows]]


@dataclass(frozen=True)
class Protected:
    """What a scheme returns.

    Attributes:
        images: uint8, the shape of the input.
        side: Published beside the images, one row an image (e.g. a mask).
        private: For the owner's evaluation and erasure only (e.g. the donors): never published.
    """

    images: Images
    side: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    private: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class Scheme(ABC, Generic[P]):
    """A protection scheme: parameters and `protect`.

    Subclasses set the class variables, and implement `_protect` as a pure function.

    Attributes:
        name: Its name in `params.yaml` and on the command line.
        title: Its name for people.
        version: Raised whenever the same input, parameters and key would give other bytes.
        declares: What it says of itself.
        Parameters: The class of its parameters.
        uses_pool: It takes pixels of other images out of the pool; a few large batches then cost
            less than many small ones.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int]
    declares: ClassVar[Declaration]
    Parameters: ClassVar[type[Params]]
    uses_pool: ClassVar[bool] = False

    def __init__(self, params: P | None = None, *, fitted_hash: str = "") -> None:
        """Binds parameters (default: all defaults) and the hash of what `fit` learnt, if any."""
        self.params: P = params if params is not None else self.Parameters()  # type: ignore[assignment]
        self.fitted_hash = fitted_hash

    def stream(self, key: Key) -> Stream:
        """The keyed randomness of exactly this scheme, version, parameters and fitted model.

        Two settings under one key share no keystream: with a shared one, the difference of two
        releases would cancel the noise.
        """
        return derive_stream(
            key, scheme=self.name, version=self.version,
            parameters=self.params.canonical(), fitted_hash=self.fitted_hash,
        )  # fmt: skip

    def protect(
        self, images: Images, labels: Labels, ids: Ids, key: Key, pool: Pool | None = None
    ) -> Protected:
        """Protects a batch.

        Args:
            images: uint8 (N, H, W, C), C = 1 or 3.
            labels: int64 (N,).
            ids: uint8 (N, 16), all different.
            key: The owner's key.
            pool: Where donors come from; by default the batch itself. A scheme without donors
                ignores it.

        Returns:
            Images of the same shape and dtype, with side and private information by name. For one
            image they depend on nothing but its pixels, label and id, the pool, parameters and key.

        Raises:
            ProtectionError: Wrong shapes or dtypes, or the scheme cannot protect these images.
        """
        _require(images, labels, ids)
        if pool is None:
            pool = _BatchPool(images, labels, ids)
        protected = self._protect(images, labels, ids, self.stream(key), pool)
        if protected.images.shape != images.shape or protected.images.dtype != np.uint8:
            raise ProtectionError(f"{self.name} returned images of another shape or dtype: a bug.")
        return protected

    @abstractmethod
    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        """`protect` after its input was checked and its randomness derived."""

    def recover(
        self,
        images: Images,
        labels: Labels,
        ids: Ids,
        key: Key,
        private: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> Images:
        """Undoes `protect`, where the scheme is reversible and this is built.

        Args:
            images: Protected images, uint8 (N, H, W, C).
            labels: int64 (N,).
            ids: The internal ids (not the published ones), uint8 (N, 16).
            key: The owner's key.
            private: `Protected.private` of these images, where the scheme needs it.

        Returns:
            The originals, uint8 (N, H, W, C).

        Raises:
            ProtectionError: The scheme is one-way, or `private` is missing.
        """
        del images, labels, ids, key, private
        raise ProtectionError(f"{self.name} cannot be undone: nobody can recover its originals.")

    def record(self) -> dict[str, Any]:
        """What manifests and reports say of the scheme: plain JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "version": self.version,
            "parameters": self.params.model_dump(mode="json"),
            "declaration": asdict(self.declares),
            "fitted_hash": self.fitted_hash,
        }

    def refuse(self, labels: Labels) -> str | None:
        """Why a set with these labels cannot be protected, or None; asked before writing."""
        del labels
        return None

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """log2 of the number of transforms of one (H, W, C) image; never a reason to pass."""
        del shape
        return None


def _require(images: Images, labels: Labels, ids: Ids) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ProtectionError(
            f"images must be uint8 (N, H, W, 1 or 3), not {images.dtype} {images.shape}."
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ProtectionError(
            f"labels must be int64 ({len(images)},), not {labels.dtype} {labels.shape}."
        )
    if ids.shape != (len(images), 16) or ids.dtype != np.uint8:
        raise ProtectionError(
            f"ids must be uint8 ({len(images)}, 16), not {ids.dtype} {ids.shape}."
        )
