"""Parquet files in the layout of the Hugging Face hub."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field, field_validator

from veilset.data.sources.attributes import attribute_roles, attributes_of
from veilset.data.sources.base import (
    FileParams,
    Item,
    ItemError,
    Source,
    Split,
    class_of,
    distinct,
    located,
)
from veilset.data.sources.confined import read_confined, safe_parts
from veilset.data.sources.folder import walk
from veilset.data.sources.labels import class_names
from veilset.data.sources.parquet import Rows, column_types, is_parquet, opened, rows_of
from veilset.data.sources.text import checked_pattern, group_of, printable, split_of, split_of_file
from veilset.errors import SourceError

_METADATA = "metadata.json"
_METADATA_BYTES = 16 << 20


class HuggingFaceParams(FileParams):
    """Parameters of a Parquet data set in the Hugging Face layout.

    Attributes:
        files: Patterns (`train*`) of the file names to read, in a folder; all by default.
        image_column: Column of images: struct of `bytes` and `path`, or the bytes themselves.
        label_column: Column of labels: class numbers, or class names as text; "" if there is none.
        group_column: Column of groups, "" if there is none.
        attribute_columns: Columns of attributes beside the label; those whose names begin with
            `attribute_` always are.
        group_pattern: Without a group column: regular expression, searched for in the path that
            the row stores, whose first bracket is the group.
    """

    files: tuple[str, ...] = Field(default=("*",), min_length=1)
    image_column: str = Field(default="image", min_length=1)
    label_column: str = Field(default="label")
    group_column: str = Field(default="")
    attribute_columns: tuple[str, ...] = Field(default=())
    group_pattern: str = Field(default="")

    _pattern = field_validator("group_pattern")(checked_pattern)


@dataclass(frozen=True)
class _File:
    """A Parquet file of the set.

    Attributes:
        path: Where it is.
        name: Its printable name inside the source.
        split: What its name says.
        rows: How many rows it has.
        fault: Why it is not read, or None.
    """

    path: Path
    name: str
    split: Split | None
    rows: int = 1
    fault: str | None = None


class HuggingFaceSource(Source[HuggingFaceParams]):
    """A Parquet file, or a folder of them, of image bytes and labels.

    A file's split is what its name begins with (train*, val*, validation*, test*), else what its
    folder is called. Class names come from `metadata.json` beside (`class_names`), else from the
    ClassLabel in the schema, else they are the numbers. A null or negative label is unknown; one
    beyond the classes is the fault `bad_label`. Files are ordered by the bytes of their names;
    linked ones are faults. A damaged row group is one faulty item for the rows that are lost.

    Source: ours; the layout is that of Hugging Face's `datasets`.
    """

    name = "huggingface"
    title = "Parquet of images in the Hugging Face layout"
    Parameters = HuggingFaceParams

    def __init__(self, params: HuggingFaceParams, root: Path) -> None:
        super().__init__(params, root)
        self.location = located(root, params.path)
        self._files = self._found()
        self._text_labels = self._checked_columns()
        self._attributes = self._attribute_columns()
        self._classes = self._class_names()
        self._index = {name: label for label, name in enumerate(self._classes)}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is a Parquet file with an image column, or a folder that holds one."""
        if path.is_dir():
            return any(cls.recognises(file) for file in _parquet_files(path)[:1])
        if not is_parquet(path):
            return False
        with opened(path) as file:
            return any(_is_image(kind) for kind in column_types(file).values())

    def classes(self) -> tuple[str, ...]:
        """The names in label order."""
        return self._classes

    def count(self) -> int:
        """Rows of all files and one a linked file; a damaged row group yields fewer."""
        return sum(file.rows for file in self._files)

    def items(self) -> Iterator[Item]:
        """Yields the rows, file by file.

        Raises:
            SourceError: A file vanished or is no Parquet file any more.
        """
        for file in self._files:
            if file.fault:
                yield Item(file.name, b"", split=file.split, fault=file.fault)
                continue
            for rows in rows_of(file.path, self._columns()):
                yield from self._of_rows(file, rows)

    def _of_rows(self, file: _File, rows: Rows) -> Iterator[Item]:
        if rows.columns is None:
            name = f"{file.name}/{rows.start:08d}-{rows.start + rows.length - 1:08d}"
            yield Item(name, b"", split=file.split, fault="damaged")
            return
        for at in range(rows.length):
            values = {name: column[at] for name, column in rows.columns.items()}
            yield self._item(file, rows.start + at, values)

    def _item(self, file: _File, row: int, values: Mapping[str, Any]) -> Item:
        image = values[self.params.image_column]
        stored = printable(str((image.get("path") if isinstance(image, dict) else "") or ""))
        group = values.get(self.params.group_column)
        item = partial(
            Item,
            name=f"{file.name}/{row:08d}" + (f"/{stored}" if stored else ""),
            group=group_of(self.params.group_pattern, stored) if group is None else _text(group),
            split=file.split,
            attributes=attributes_of(
                {role: values.get(column) for role, column in self._attributes.items()}
            ),
        )
        try:
            label, class_name = self._label(values.get(self.params.label_column))
            content = self._content(file, image)
        except ItemError as fault:
            return item(content=b"", fault=fault.code)
        return item(content=content, label=label, class_name=class_name)

    def _label(self, value: Any) -> tuple[int | None, str | None]:
        if value is None:
            return None, None
        if self._text_labels:
            class_name = _text(value)
            return self._index.get(class_name), class_name
        label = int(value) if value >= 0 else None
        return label, class_of(label, self._classes)

    def _content(self, file: _File, image: Any) -> bytes:
        content = image.get("bytes") if isinstance(image, dict) else image
        if content is None:
            path = image.get("path") if isinstance(image, dict) else None
            if not path:
                raise ItemError("no_bytes")
            parts = safe_parts(str(path).encode("utf-8", "surrogateescape"))
            return read_confined(file.path.parent, parts, self.params.max_bytes)
        if len(content) > self.params.max_bytes:
            raise ItemError("too_large")
        return bytes(content)

    def _columns(self) -> tuple[str, ...]:
        named = (self.params.image_column, self.params.label_column, self.params.group_column)
        return tuple(dict.fromkeys(name for name in (*named, *self._attributes.values()) if name))

    def _found(self) -> tuple[_File, ...]:
        if self.location.is_file():
            files = [_file(self.location, self.location.name)]
        else:
            files = [
                _file(self.location / name, name, fault)
                for name, fault in _parquet_entries(self.location)
                if any(fnmatchcase(Path(name).name, pattern) for pattern in self.params.files)
            ]
        if all(file.fault for file in files):
            raise SourceError(
                f"{self.location} holds no Parquet files that are not links and match "
                f"{', '.join(self.params.files)}: copy them there or change `files`."
            )
        total = sum(file.rows for file in files)
        if not total or total > self.params.max_items:
            raise SourceError(
                f"{self.location} holds {total} rows: it must have 1 to {self.params.max_items} "
                f"(max_items)."
            )
        return tuple(files)

    def _checked_columns(self) -> bool:
        """Whether labels are text; every file must have the columns, in the same way."""
        kinds = {_checked(file.path, self.params) for file in self._readable()}
        if len(kinds) > 1:
            raise SourceError(
                f"{self.location}: column {self.params.label_column!r} is text in some files and "
                f"numbers in others: choose one kind by `files`."
            )
        return kinds == {True}

    def _attribute_columns(self) -> dict[str, str]:
        """Columns by role; those that every file has."""
        shared: set[str] | None = None
        for file in self._readable():
            with opened(file.path) as content:
                found = set(column_types(content))
            shared = found if shared is None else shared & found
        return attribute_roles(sorted(shared or ()), self.params.attribute_columns)

    def _readable(self) -> tuple[_File, ...]:
        return tuple(file for file in self._files if not file.fault)

    def _class_names(self) -> tuple[str, ...]:
        if not self.params.label_column:
            return ()
        if self._text_labels:
            return class_names({_text(label) for label in self._labels()})
        first = self._readable()[0].path
        folder = self.location if self.location.is_dir() else self.location.parent
        names = _beside((first.parent, folder)) or _in_schema(first, self.params.label_column)
        if names is not None:
            return names
        return tuple(str(label) for label in range(max(self._labels(), default=-1) + 1))

    def _labels(self) -> Iterator[Any]:
        for file in self._readable():
            for rows in rows_of(file.path, (self.params.label_column,), small=True):
                found = (rows.columns or {}).get(self.params.label_column, [])
                yield from (label for label in found if label is not None)


def _text(value: Any) -> str:
    return printable(value if isinstance(value, bytes) else str(value))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_is_image(field.type) for field in kind if field.name == "bytes")
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _parquet_entries(folder: Path) -> list[tuple[str, str | None]]:
    """Names below the folder and faults of all .parquet entries, sorted by their bytes."""
    entries = (entry for entry in walk(folder) if entry.parts[-1].endswith(b".parquet"))
    return [
        (b"/".join(entry.parts).decode("utf-8", "surrogateescape"), entry.fault)
        for entry in entries
    ]


def _parquet_files(folder: Path) -> list[Path]:
    return [folder / name for name, fault in _parquet_entries(folder) if fault is None]


def _file(path: Path, name: str, fault: str | None = None) -> _File:
    place = Path(name)
    split = split_of_file(place.name) or split_of(place.parent.name)
    if fault:
        return _File(path, printable(name), split, fault=fault)
    with opened(path) as file:
        return _File(path, printable(name), split, file.metadata.num_rows)


def _checked(path: Path, params: HuggingFaceParams) -> bool:
    """Whether a file's labels are text; its columns must be there and of usable types."""
    with opened(path) as file:
        types = column_types(file)
    named = (params.image_column, params.label_column, params.group_column)
    for column in (*named, *params.attribute_columns):
        if column and column not in types:
            raise SourceError(
                f"{path} has no column {column!r} but {', '.join(sorted(types))}: name the columns "
                f"by image_column, label_column, group_column and attribute_columns."
            )
    if not _is_image(types[params.image_column]):
        raise SourceError(
            f"{path}: column {params.image_column!r} is {types[params.image_column]}, not image "
            f"bytes: name the right column by image_column."
        )
    return bool(params.label_column) and _is_text(path, types[params.label_column])


def _is_text(path: Path, kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return True
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return False
    raise SourceError(
        f"{path}: labels are {kind}, neither whole numbers nor text: name another label_column."
    )


def _beside(folders: Sequence[Path]) -> tuple[str, ...] | None:
    """`class_names` of the first metadata.json in these folders, or None."""
    for folder in folders:
        path = folder / _METADATA
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                content = json.loads(file.read(_METADATA_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            raise SourceError(
                f"{path} cannot be read as JSON ({error}): correct or remove it."
            ) from None
        names = content.get("class_names") if isinstance(content, dict) else None
        if names is not None:
            return distinct(_listed(names), f"class_names in {path}")
    return None


def _in_schema(path: Path, label_column: str) -> tuple[str, ...] | None:
    """The names of the label's ClassLabel in the schema's `huggingface` metadata, or None."""
    with opened(path) as file:
        stored = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(stored)["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return distinct(_listed(names), f"The class names in the schema of {path}")


def _listed(names: Any) -> list[Any]:
    """Printable names; what is no list becomes one that `distinct` refuses."""
    if not isinstance(names, list):
        return [None]
    return [printable(name) if isinstance(name, str) else name for name in names]
