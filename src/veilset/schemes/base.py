"""What a protection scheme is.

A scheme is frozen parameters and one pure function: uint8 images in, uint8 images out. All of its
randomness is a keyed stream addressed by image id, so the same input, parameters and key give the
same bytes for any batch size, order, worker count or engine.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.params import Params
from veilset.schemes.fitted import Fitted, Lessons, Progress
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
        shift_safe: A training image may be shifted by a few pixels. False where its output is tied
            to places (regions, cells, masks), which a shift would mix.
        releasable: False for what is there for comparison only: it is never released, whatever
            its verdict.
    """

    keyed: bool
    reversible: bool
    guarantee: str | None
    protects_queries: bool
    uses_labels: bool
    provenance: Provenance
    source: str
    risk_notes: tuple[str, ...] = ()
    shift_safe: bool = False
    releasable: bool = True

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
        """Binds a batch, in any order."""
        self._images, self._labels, self._ids = images, labels, ids

    @cached_property
    def _order(self) -> IntArray:
        return np.lexsort(self._ids.T[::-1]).astype(np.int64)

    @cached_property
    def ids(self) -> Ids:
        """Ids in ascending order, uint8 (N, 16)."""
        return self._ids[self._order]

    @cached_property
    def labels(self) -> Labels:
        """Labels in the order of the ids, int64 (N,)."""
        return self._labels[self._order]

    def take(self, rows: IntArray) -> Images:
        """The images of these rows, uint8 (len(rows), H, W, C)."""
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

    Subclasses set the class variables, and implement `_protect` as a pure function. A scheme that
    learns implements `_fit` as well, and finds what it learnt in `self.learnt`.

    Attributes:
        name: Its name in `params.yaml` and on the command line.
        title: Its name for people.
        version: Raised whenever the same input, parameters and key would give other bytes.
        declares: What it says of itself; an instance may say something weaker, where its
            parameters ask for that.
        Parameters: The class of its parameters.
        learns: It is fitted on plain images before it protects.
        uses_pool: It takes pixels of other images out of the pool; a few large batches then cost
            less than many small ones.
    """

    name: ClassVar[str]
    title: str
    version: ClassVar[int]
    declares: Declaration
    Parameters: ClassVar[type[Params]]
    learns: bool = False
    uses_pool: bool = False

    def __init__(
        self, params: P | None = None, *, fitted: Fitted | None = None, device: str = "cpu",
        **values: Any,
    ) -> None:  # fmt: skip
        """Binds parameters, and what was learnt.

        Args:
            params: All parameters; by default, those in `values` and the defaults of the others.
            fitted: What `fit` returned, for a scheme that learns.
            device: Where networks run, as torch names it; others than `cpu` may differ by a grey
                level.
            **values: Parameters by name.

        Raises:
            SettingsError: A parameter is unknown or out of range, or `fitted` was learnt by another
                scheme or with other parameters.
        """
        self.params: P = params or self.Parameters.parse(values, self.name)  # type: ignore[assignment]
        self.device = device
        self.fitted = fitted
        if fitted is not None:
            _require_own(self, fitted)

    @property
    def fitted_hash(self) -> str:
        """The hash of what was learnt, "" if nothing."""
        return "" if self.fitted is None else self.fitted.hash

    @property
    def learnt(self) -> Mapping[str, npt.NDArray[Any]]:
        """The arrays that `fit` learnt, by name.

        Raises:
            ProtectionError: The scheme was not fitted.
        """
        if self.fitted is None:
            raise ProtectionError(
                f"{self.name} learns from plain images before it protects any: fit it first "
                "(`veilset fit`), and give what it learnt (`--fitted PATH`)."
            )
        return self.fitted.arrays

    def fit(self, lessons: Lessons, progress: Progress | None = None) -> Fitted:
        """Learns from plain images; for a scheme that learns nothing, an empty result.

        Args:
            lessons: Plain images of the owner.
            progress: Called while it works, or None.

        Returns:
            The same for the same lessons, parameters and kind of device.

        Raises:
            ProtectionError: These images do not suffice to learn from.
        """
        arrays, facts = self._fit(lessons, progress) if self.learns else ({}, {})
        return Fitted(self.name, self.version, self.params.canonical(), arrays, facts)

    def with_fitted(self, fitted: Fitted) -> Self:
        """The same scheme with what it learnt."""
        return type(self)(self.params, fitted=fitted, device=self.device)

    def _fit(
        self, lessons: Lessons, progress: Progress | None
    ) -> tuple[Mapping[str, npt.NDArray[Any]], Mapping[str, Any]]:
        """Arrays and facts of `Fitted`; implemented by schemes that learn."""
        raise NotImplementedError

    def stream(self, key: Key) -> Stream:
        """The keyed randomness of exactly this scheme, version, parameters and fitted model.

        Two settings under one key share no keystream: with a shared one, the difference of two
        releases would cancel the noise.
        """
        return derive_stream(
            key, scheme=self.name, version=self.version,
            parameters=self.params.canonical(), fitted_hash=self.fitted_hash,
        )  # fmt: skip

    def __call__(self, images: Any, **how: Any) -> Any:
        """Protects a NumPy or torch batch: see `veilset.schemes.transform.protect_batch`."""
        from veilset.schemes.transform import protect_batch  # noqa: PLC0415 - needs torchvision

        return protect_batch(self, images, **how)

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
        if self.learns:
            _ = self.learnt
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
            "facts": dict(self.facts()),
            "fitted_hash": self.fitted_hash,
        }

    def made(self, record: Mapping[str, Any] | None) -> bool:
        """Whether the record of a manifest is of this very scheme, parameters and fitted model."""
        own = self.record()
        same = ("name", "version", "parameters", "fitted_hash")
        return record is not None and all(record.get(key) == own[key] for key in same)

    def facts(self) -> Mapping[str, Any]:
        """What the parameters amount to, as plain JSON and published: e.g. a privacy budget."""
        return {}

    def refuse(self, labels: Labels) -> str | None:
        """Why a set with these labels cannot be protected, or None; asked before writing."""
        del labels
        return None

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """log2 of the number of transforms of one (H, W, C) image; never a reason to pass."""
        del shape
        return None


def _require_own(scheme: Scheme[Any], fitted: Fitted) -> None:
    found = (fitted.scheme, fitted.version, fitted.parameters)
    if found != (scheme.name, scheme.version, scheme.params.canonical()):
        raise SettingsError(
            f"what was learnt is for {fitted.scheme} version {fitted.version} with "
            f"{fitted.parameters}, not for {scheme.name} version {scheme.version} with "
            f"{scheme.params.canonical()}: fit it again."
        )


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
