"""What a source of raw images is: it names items and hands over their bytes, and decodes nothing.

Labels are told in one way by all sources: where `classes()` is known, an item that has a label has
both its index and that class's name; an item whose label the source does not know has neither.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from veilset.errors import SourceError
from veilset.params import Params

Split = Literal["train", "validation", "test"]

FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "bad_label": "its label is not one of the source's classes",
        "bad_split": "its split is none of train, validation and test",
        "damaged": "its stored bytes are damaged or end early",
        "encrypted": "it is encrypted",
        "escaping_path": "its path is empty, absolute or may leave the source",
        "link": "it is a symbolic or hard link, and links are not followed",
        "missing_file": "the file that it names does not exist",
        "no_bytes": "its row has neither image bytes nor a path",
        "overlapping": "it shares its bytes with another entry of the archive",
        "special_file": "it is a folder, device, pipe or socket where an image file belongs",
        "too_large": "it has more bytes than the source's max_bytes",
        "unreadable": "the system refused to read it, or it changed while it was read",
        "unsupported_compression": "it is compressed by a method other than deflate",
    }
)
"""Every code that `Item.fault` may hold, and what it says of the item ("<name>: <words>")."""


class ItemError(Exception):
    """One item cannot be read; its code is a key of `FAULTS`. It never leaves the sources."""

    def __init__(self, code: str) -> None:
        super().__init__(FAULTS[code])
        self.code = code


@dataclass(frozen=True)
class Item:
    """One raw image, not decoded.

    Attributes:
        name: Path inside the source, '/'-separated, printable (see `text.printable`); unique in a
            source, except where an archive holds two entries of one name.
        content: The file's bytes as stored; or, from embedded and torchvision sources, pixels:
            uint8 (H, W) or (H, W, 3), 0..255. Empty bytes where `fault` is set.
        label: Index of the class, 0..classes-1, or None where the source does not tell.
        class_name: Name of the class, or None where the source does not tell.
        group: Who or what is shown (e.g. the person), "" if unknown.
        split: The source's own split, or None if it has none.
        attributes: What else is known of what is shown, by name (not the label), "" if unknown.
        fault: Why the item cannot be read: a key of `FAULTS`, or None.
    """

    name: str
    content: bytes | npt.NDArray[np.uint8]
    label: int | None = None
    class_name: str | None = None
    group: str = ""
    split: Split | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None


class SourceParams(Params):
    """Parameters that every source has.

    Attributes:
        path: File or folder, absolute or relative to the project's root; embedded sources ignore
            it.
    """

    path: str = Field(default="", description="file or folder, relative to the project's root")


class EmbeddedParams(SourceParams):
    """No parameters; `path` is ignored: a drop names one only for DVC to watch."""


class FileParams(SourceParams):
    """Parameters of the sources that read files.

    Attributes:
        path: File or folder, absolute or relative to the project's root.
        max_bytes: A larger item is a fault, `too_large`; bytes.
        max_items: A source of more items is refused as a whole.
    """

    path: str = Field(min_length=1, description="file or folder, relative to the project's root")
    max_bytes: int = Field(default=64 << 20, ge=1, le=1 << 30, description="bytes of one item")
    max_items: int = Field(default=10_000_000, ge=1, le=1 << 31, description="items of the source")


P = TypeVar("P", bound=SourceParams)


class Source(ABC, Generic[P]):
    """A place that holds raw images: opened once, iterated any number of times.

    The order is the same at every iteration, on every machine. One unreadable item becomes an item
    with a fault and never stops the others.

    Attributes:
        name: Its name in `drops.yaml`.
        title: What it is, for people.
        embedded: Its images come with an installed package, so that it needs no path.
        Parameters: The class of its parameters.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    embedded: ClassVar[bool] = False
    Parameters: ClassVar[type[SourceParams]]

    def __init__(self, params: P, root: Path) -> None:
        """Opens the source.

        Args:
            params: Its parameters.
            root: The project's root, to which paths in the parameters are relative.

        Raises:
            SourceError: It is missing, empty, unreadable or not of this kind.
        """
        self.params = params
        self.root = root

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether an existing file or folder is, by its content, a source of this kind."""
        del path
        return False

    @abstractmethod
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes in label order, or None if the source does not tell."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Yields the items lazily, in the source's order.

        Raises:
            SourceError: The source as a whole vanished or cannot be read any more.
        """

    @abstractmethod
    def count(self) -> int | None:
        """How many items `items` will yield, for a progress bar; None if that is not known."""

    def __iter__(self) -> Iterator[Item]:
        return self.items()


def located(root: Path, path: str) -> Path:
    """The existing file or folder that a parameter names.

    Args:
        root: What a relative path is relative to.
        path: The parameter; `~` is the user's home.

    Raises:
        SourceError: Nothing is there, or the name is not possible.
    """
    try:
        location = root / Path(path).expanduser()
        location.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(
            f"The source {path!r} does not exist in {root.resolve()}: correct its path, or fetch "
            f"the data first."
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(f"The source {path!r} cannot be opened ({error}): check it.") from None
    return location


def class_of(label: int | None, classes: Sequence[str] | None) -> str | None:
    """The class name of a label, None for an unknown label.

    Raises:
        ItemError: `bad_label`: the label is not an index of the classes.
    """
    if label is None or classes is None:
        return None
    if not 0 <= label < len(classes):
        raise ItemError("bad_label")
    return classes[label]


def distinct(names: Sequence[Any], where: str) -> tuple[str, ...]:
    """Class names, checked to be different non-empty texts.

    Args:
        names: The names in label order.
        where: What the user calls their place, for the error.

    Raises:
        SourceError: A name is no text, empty, or stands twice.
    """
    if not all(isinstance(name, str) and name for name in names):
        raise SourceError(f"{where} must be a list of non-empty class names: correct it.")
    if len(set(names)) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise SourceError(f"{where} names the class {twice!r} twice: give each class its own name.")
    return tuple(names)
