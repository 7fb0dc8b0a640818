"""Data sets that torchvision knows."""

import inspect
import io
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from veilset.data.sources.base import (
    FileParams,
    Item,
    ItemError,
    Source,
    Split,
    class_of,
    distinct,
)
from veilset.data.sources.text import printable, split_of
from veilset.errors import SourceError

_OURS = frozenset({"root", "download", "transform", "target_transform", "transforms", "loader"})

# How torchvision's classes call the splits, in the order in which they are asked for.
_SPLIT_WORDS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}

_PNG_MODES = frozenset({"1", "LA", "P", "RGBA", "I;16", "I"})


class TorchvisionParams(FileParams):
    """Parameters of a torchvision data set.

    Attributes:
        dataset: Name of the class in `torchvision.datasets`, e.g. CIFAR10.
        path: The folder that torchvision calls `root`, relative to the project's root.
        download: Whether torchvision may fetch the data set.
        arguments: Further arguments of the class, e.g. `{train: true}` or `{split: letters}`. A
            `train` or `split` given here is the only part that is read.
        splits: Our split by torchvision's word for it, e.g. `{train: train-standard}`, where the
            class has an argument `split` of its own words.
        class_names: Names of the classes in label order, where the data set does not tell or its
            parts disagree.
    """

    path: str = Field(default="data/raw/torchvision", min_length=1)
    dataset: str = Field(min_length=1)
    download: bool = False
    arguments: dict[str, Any] = Field(default={})
    splits: dict[Split, str] = Field(default={})
    class_names: tuple[str, ...] = Field(default=())

    @field_validator("arguments")
    @classmethod
    def _not_ours(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(_OURS & set(arguments))
        if taken:
            raise ValueError(f"{taken[0]} is set by Veilset (path, download) or not to be set")
        return arguments


class TorchvisionSource(Source[TorchvisionParams]):
    """Any image classification data set of torchvision whose targets are class numbers.

    Parts that the class tells apart by `train` or `split` become our splits, in the order train,
    validation, test. Items are pixels, uint8 (H, W) or (H, W, 3), where torchvision has them in
    memory or decodes by itself; the stored bytes where it lets its loader be replaced; and lossless
    PNG or TIFF bytes for pixels of another kind (palette, alpha, 16 bit), which only ingestion
    knows to convert. A negative target is unknown.

    torch is imported when the first of `classes`, `count` and `items` is called.

    Source: ours.
    """

    name = "torchvision"
    title = "torchvision:NAME, a data set of torchvision"
    Parameters = TorchvisionParams

    def classes(self) -> tuple[str, ...] | None:
        """The data set's class names, else numbers if it holds its labels; else None.

        Raises:
            SourceError: The data set is missing, or its parts name different classes.
        """
        return self._classes

    def count(self) -> int:
        """Images of all parts.

        Raises:
            SourceError: The data set is missing.
        """
        return sum(len(part) for _, part in self._parts)

    def items(self) -> Iterator[Item]:
        """Yields the images, part by part, in torchvision's order.

        Raises:
            SourceError: The data set is missing, or its targets are not class numbers.
        """
        for split, part in self._parts:
            prefix = "/".join(word for word in (self.params.dataset, split) if word)
            for index in range(len(part)):
                yield self._item(f"{prefix}/{index:08d}", split, part, index)

    def _item(self, name: str, split: Split | None, part: Any, index: int) -> Item:
        try:
            image, target = part[index]
        except Exception:  # whatever a foreign data set raises for one bad image
            return Item(name, b"", split=split, fault="unreadable")
        label = self._target(target)
        try:
            class_name = class_of(label, self._classes)
            content = _content(image, self.params.max_bytes)
        except ItemError as fault:
            return Item(name, b"", split=split, fault=fault.code)
        return Item(name, content, label, class_name, split=split)

    def _target(self, target: Any) -> int | None:
        try:
            label = operator.index(target)
        except TypeError:
            raise SourceError(
                f"torchvision's {self.params.dataset} has targets of type {type(target).__name__}, "
                f"not class numbers: use another data set, or other arguments."
            ) from None
        return label if label >= 0 else None

    @cached_property
    def _classes(self) -> tuple[str, ...] | None:
        if self.params.class_names:
            return distinct(self.params.class_names, "class_names")
        found = {_names(part) for _, part in self._parts} - {None}
        if len(found) == 1:
            return found.pop()
        if found:
            raise SourceError(
                f"The parts of torchvision's {self.params.dataset} name different classes: list "
                f"them by class_names."
            )
        tops = [_top_label(part) for _, part in self._parts]
        known = [top for top in tops if top is not None]
        return tuple(map(str, range(max(known) + 1))) if len(known) == len(tops) else None

    @cached_property
    def _parts(self) -> tuple[tuple[Split | None, Any], ...]:
        kind = _dataset_class(self.params.dataset)
        accepted = _accepted(kind)
        parts = [
            (split, part)
            for split, choices in self._choices(accepted)
            if (part := self._first(kind, accepted, choices)) is not None
        ]
        if not sum(len(part) for _, part in parts):
            raise SourceError(
                f"torchvision's {self.params.dataset} has no images in {self._folder()}, or its "
                f"parts have other names: name them by `splits` or `arguments`."
            )
        return tuple(parts)

    def _choices(
        self, accepted: frozenset[str]
    ) -> Sequence[tuple[Split | None, Sequence[Mapping[str, Any]]]]:
        """Our splits, each with the arguments to try until one is accepted."""
        given = self.params.arguments
        if "train" in given:
            return [("train" if given["train"] else "test", [{}])]
        if "train" in accepted:
            return [("train", [{"train": True}]), ("test", [{"train": False}])]
        if self.params.splits:
            return [(split, [{"split": word}]) for split, word in self.params.splits.items()]
        if "split" in given:
            return [(split_of(str(given["split"])), [{}])]
        if "split" in accepted:
            return [
                (split, [{"split": word} for word in words])
                for split, words in _SPLIT_WORDS.items()
            ]
        return [(None, [{}])]

    def _first(
        self, kind: Any, accepted: frozenset[str], choices: Sequence[Mapping[str, Any]]
    ) -> Any:
        """The part that the first accepted arguments give, or None if the class has no such."""
        for choice in choices:
            try:
                return self._part(kind, accepted, {**self.params.arguments, **choice})
            except ValueError as error:
                # A split of a name that we guessed and that the class does not have.
                guessed = "split" in choice and not self.params.splits
                if not guessed or "Unknown value" not in str(error):
                    raise self._refused(error) from None
        return None

    def _part(self, kind: Any, accepted: frozenset[str], arguments: Mapping[str, Any]) -> Any:
        ours = {
            "root": str(self._folder()),
            "download": self.params.download,
            "loader": _stored_bytes,
        }
        try:
            with redirect_stdout(io.StringIO()):  # some classes print
                return kind(**{k: v for k, v in ours.items() if k in accepted}, **arguments)
        except ValueError:
            raise
        except Exception as error:  # whatever a foreign class raises for missing files or network
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> SourceError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        advice = (
            "check the network, or put the files there"
            if self.params.download
            else "put the files there, or set download: true"
        )
        return SourceError(
            f"torchvision's {self.params.dataset} cannot be opened in {self._folder()} "
            f"({printable(reason)}): {advice}."
        )

    def _folder(self) -> Path:
        return self.root / Path(self.params.path).expanduser()


def _dataset_class(name: str) -> Any:
    from torchvision import datasets  # noqa: PLC0415 - imports torch

    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset)):
        raise SourceError(
            f"torchvision has no data set {name!r}: give a class of torchvision.datasets, such as "
            f"CIFAR10, MNIST or SVHN."
        )
    return kind


def _accepted(kind: Any) -> frozenset[str]:
    """Names of the arguments of a class, with its bases' where it passes further ones on."""
    names: set[str] = set()
    for base in kind.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return frozenset(names)


def _stored_bytes(path: str) -> bytes:
    """What stands in for torchvision's decoder."""
    with Path(path).open("rb") as file:
        return file.read()


def _content(image: Any, max_bytes: int) -> bytes | npt.NDArray[np.uint8]:
    if isinstance(image, bytes):
        if len(image) > max_bytes:
            raise ItemError("too_large")
        return image
    mode = getattr(image, "mode", None)
    if mode is not None and mode not in {"L", "RGB"}:
        return _encoded(image, mode)
    pixels = np.asarray(image)
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in {1, 3})
    if pixels.dtype != np.uint8 or not shaped:
        raise ItemError("unreadable")
    return pixels


def _encoded(image: Any, mode: str) -> bytes:
    """The pixels as a lossless file, for ingestion's own table of conversions."""
    file = io.BytesIO()
    image.save(file, format="PNG" if mode in _PNG_MODES else "TIFF")
    return file.getvalue()


def _names(part: Any) -> tuple[str, ...] | None:
    """The class names that a data set tells, or None."""
    names = getattr(part, "classes", None)
    if not isinstance(names, list | tuple) or not names:
        return None
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        return None
    return tuple(printable(name) for name in names)


def _top_label(part: Any) -> int | None:
    """The highest label of a data set that holds its labels in memory, or None."""
    for attribute in ("targets", "labels"):
        labels = getattr(part, attribute, None)
        if labels is not None and len(labels) == len(part):
            values = np.asarray(labels)
            return int(values.max()) if values.dtype.kind in "iu" and values.size else None
    return None
