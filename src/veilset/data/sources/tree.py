"""What a folder and an archive have in common: classes and splits are folders."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from veilset.data.sources.base import FileParams, Item, ItemError, Source, Split
from veilset.data.sources.text import checked_pattern, group_of, printable, split_of
from veilset.errors import SourceError

Parts = tuple[bytes, ...]

_DEPTH = 3  # wrapper, split, class: what lies deeper says nothing of the layout


class TreeParams(FileParams):
    """Parameters of a tree of image files.

    Attributes:
        split_folders: Whether top-level folders called train, val, validation, test are splits.
            `auto`: such a folder is one if all top-level folders are so called, or if it holds
            folders itself (a class of trains among buses holds files).
        group_pattern: Regular expression, searched for in an item's name, whose first bracket is
            the item's group, e.g. "/(person[0-9]+)_"; "" for no groups.
    """

    split_folders: bool | Literal["auto"] = Field(default="auto")
    group_pattern: str = Field(default="")

    _pattern = field_validator("group_pattern")(checked_pattern)


@dataclass(frozen=True)
class Member:
    """A file of the tree before it is read.

    Attributes:
        raw: Its full name as stored.
        parts: Components of its path; empty where the name cannot be trusted.
        read: Gives its bytes or raises `ItemError`; valid until the next member is asked for.
        fault: Why it must not be read at all, or None.
    """

    raw: bytes
    parts: Parts
    read: Callable[[], bytes]
    fault: str | None = None


@dataclass(frozen=True)
class Layout:
    """Where in a path the split and the class are.

    Attributes:
        skip: Leading components that mean nothing (an archive's one outer folder): 0 or 1.
        splits: The top-level folders that are splits.
        flat: The class of all files where there are no class folders, else None.
        classes: Raw names of the class folders in label order (sorted by bytes).
        count: How many members there are, unreadable ones included.
    """

    skip: int
    splits: frozenset[bytes]
    flat: bytes | None
    classes: Parts
    count: int

    def place(self, parts: Parts) -> tuple[Split | None, bytes | None]:
        """The split and the raw class of a file, each None if its path does not tell."""
        folders = parts[self.skip : -1]
        split = None
        if folders and folders[0] in self.splits:
            split, folders = _split(folders[0]), folders[1:]
        return split, folders[0] if folders else self.flat


class TreeSource(Source[TreeParams]):
    """A tree of files in which the top folders are classes, or splits that hold classes.

    `<class>/.../<file>` or `<split>/<class>/.../<file>`; a tree without class folders is one class
    called like the tree. Files of every kind are items, except that names with a leading dot are
    left out; a file beside the class folders has no label. Class names are the folders' names,
    made printable; label order is by the bytes of the names.
    """

    Parameters = TreeParams
    _outer_folder = False

    def __init__(self, params: TreeParams, root: Path) -> None:
        super().__init__(params, root)
        self.location = self._locate()
        self._layout = self._survey()
        self._names = tuple(printable(name) for name in self._layout.classes)
        self._label = {name: index for index, name in enumerate(self._layout.classes)}

    @abstractmethod
    def _locate(self) -> Path:
        """The file or folder, checked to be of this kind."""

    @abstractmethod
    def _members(self) -> Iterator[Member]:
        """All members in order, hidden ones left out."""

    @abstractmethod
    def _own_name(self) -> bytes:
        """The class of a tree without class folders."""

    def classes(self) -> tuple[str, ...]:
        """Names of the class folders that hold a file, in label order."""
        return self._names

    def count(self) -> int:
        """Number of items, faulty ones included, when the source was opened."""
        return self._layout.count

    def items(self) -> Iterator[Item]:
        """Yields one item a file; those that cannot be read carry a fault.

        Raises:
            SourceError: The tree vanished or cannot be opened any more.
        """
        return (self._item(member) for member in self._members())

    def _survey(self) -> Layout:
        folders: set[Parts] = set()
        count = 0
        for member in self._members():
            count += 1
            if count > self.params.max_items:
                raise SourceError(
                    f"{self.location} holds more than {self.params.max_items} files: raise "
                    f"max_items or split the drop."
                )
            if member.parts:
                folders.add(member.parts[:-1][:_DEPTH])
        if not count:
            raise SourceError(f"{self.location} holds no files: put images there.")
        return _layout(
            folders, count, self._own_name(), self.params.split_folders, self._outer_folder
        )

    def _item(self, member: Member) -> Item:
        content, fault = b"", member.fault
        try:
            content = content if fault else member.read()
        except ItemError as problem:
            fault = problem.code
        name = printable(b"/".join(member.parts) or member.raw) or "(no name)"
        split, folder = self._layout.place(member.parts) if member.parts else (None, None)
        # A class folder that appeared after the survey has no label yet.
        label = None if folder is None else self._label.get(folder)
        return Item(
            name=name,
            content=content,
            label=label,
            class_name=None if label is None else self._names[label],
            group=group_of(self.params.group_pattern, name),
            split=split,
            fault=fault,
        )


def _layout(
    folders: set[Parts],
    count: int,
    own_name: bytes,
    splitting: bool | Literal["auto"],
    outer_folder: bool,
) -> Layout:
    """Decides the layout from the folders that hold files, cut to three levels."""
    skip = int(outer_folder and _wrapped(folders))
    inner = {folder[skip:] for folder in folders}
    splits = _split_folders(inner, splitting)
    homes = {folder[1:] if folder[:1] and folder[0] in splits else folder for folder in inner}
    classes = sorted({home[0] for home in homes if home})
    flat = None if classes or not homes else own_name
    return Layout(skip, splits, flat, tuple(classes) if flat is None else (flat,), count)


def _wrapped(folders: set[Parts]) -> bool:
    """Whether one outer folder, which is no split, holds folders only."""
    tops = {folder[:1] for folder in folders}
    if len(tops) != 1 or any(len(folder) < 2 for folder in folders):
        return False
    return _split(next(iter(tops))[0]) is None


def _split_folders(folders: set[Parts], splitting: bool | Literal["auto"]) -> frozenset[bytes]:
    tops = {folder[0] for folder in folders if folder}
    named = {top for top in tops if _split(top) is not None}
    if splitting == "auto" and named != tops:
        named = {folder[0] for folder in folders if len(folder) > 1 and folder[0] in named}
    return frozenset(named if splitting else ())


def _split(folder: bytes) -> Split | None:
    return split_of(printable(folder))


def is_hidden(parts: Iterable[bytes]) -> bool:
    """Whether a component of the path begins with a dot."""
    return any(part.startswith(b".") for part in parts)
