"""A table that names image files and their labels."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from veilset.data.sources.attributes import attribute_roles, attributes_of
from veilset.data.sources.base import FileParams, Item, ItemError, Source, distinct, located
from veilset.data.sources.confined import read_confined, safe_parts
from veilset.data.sources.labels import cell_text, class_names, whole_number
from veilset.data.sources.parquet import column_types, is_parquet, opened, rows_of
from veilset.data.sources.text import printable, split_of
from veilset.errors import SourceError

_SUFFIXES = {".csv": ",", ".tsv": "\t"}


class TableParams(FileParams):
    """Parameters of a table of image files.

    Attributes:
        root: Folder that the paths in the table are relative to and must not leave, itself relative
            to the project's root; "" for the table's own folder.
        path_column: Column of paths.
        label_column: Column of labels: text or numbers; "" if there is none.
        group_column: Column of groups; the default is used if it is there.
        split_column: Column of splits (train, val, test, ...); the default is used if it is there.
        attribute_columns: Columns of attributes beside the label; those whose names begin with
            `attribute_` always are.
        class_names: Names of the classes 0, 1, 2, ... where labels are numbers; by default the
            labels as written are the names.
        delimiter: What separates a CSV's fields; "" for a comma, or a tab in a .tsv.
    """

    root: str = Field(default="")
    path_column: str = Field(default="path", min_length=1)
    label_column: str = Field(default="label")
    group_column: str = Field(default="group")
    split_column: str = Field(default="split")
    attribute_columns: tuple[str, ...] = Field(default=())
    class_names: tuple[str, ...] = Field(default=())
    delimiter: str = Field(default="", max_length=1)


@dataclass(frozen=True)
class _Row:
    """A row of the table; texts are stripped and printable, "" where the cell is empty."""

    number: int
    path: bytes
    label: str = ""
    group: str = ""
    split: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    damaged: bool = False


class TableSource(Source[TableParams]):
    """A CSV (UTF-8, a header line) or Parquet file with a row per image file.

    Items come in the table's order and are called as the table calls the files. Paths are confined
    to the table's folder, or to `root`; links are not followed. Labels as written are the class
    names, in label order by value if all are whole numbers, else by bytes; with `class_names` they
    are indices of, or names from, that list. An empty label is unknown.

    Source: ours.
    """

    name = "table"
    title = ".csv or .parquet table of paths and labels"
    Parameters = TableParams

    def __init__(self, params: TableParams, root: Path) -> None:
        super().__init__(params, root)
        self.location = located(root, params.path)
        if not self.location.is_file():
            raise SourceError(f"{self.location} is no file: give a .csv or .parquet table.")
        self.folder = located(root, params.root) if params.root else self.location.parent
        if not self.folder.is_dir():
            raise SourceError(f"{self.folder} is no folder: give the one that the paths begin in.")
        self._columns = self._checked_columns()
        self._classes, self._count = self._survey()
        self._label = {name: index for index, name in enumerate(self._classes)}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is a .csv, a .tsv, or a Parquet file with a column `path`."""
        if path.is_file() and is_parquet(path):
            with opened(path) as file:
                return "path" in column_types(file)
        return path.is_file() and path.suffix.lower() in _SUFFIXES

    def classes(self) -> tuple[str, ...]:
        """`class_names`, or the labels found, in label order."""
        return self._classes

    def count(self) -> int:
        """Rows of the table when it was opened."""
        return self._count

    def items(self) -> Iterator[Item]:
        """Yields an item a row.

        Raises:
            SourceError: The table vanished or is malformed.
        """
        return (self._item(row) for row in self._rows())

    def _item(self, row: _Row) -> Item:
        item = partial(
            Item, name=printable(row.path) or f"(row {row.number})", group=row.group,
            split=split_of(row.split), attributes=row.attributes,
        )  # fmt: skip
        try:
            label = self._index(row.label)
            content = self._content(row)
        except ItemError as fault:
            return item(content=b"", fault=fault.code)
        return item(
            content=content, label=label, class_name=None if label is None else self._classes[label]
        )

    def _content(self, row: _Row) -> bytes:
        if row.damaged:
            raise ItemError("damaged")
        if row.split and split_of(row.split) is None:
            raise ItemError("bad_split")
        return read_confined(self.folder, safe_parts(row.path), self.params.max_bytes)

    def _index(self, text: str) -> int | None:
        if not text:
            return None
        number = whole_number(text) if self.params.class_names else None
        index = self._label.get(text, number)
        if index is None or not 0 <= index < len(self._classes):
            raise ItemError("bad_label")
        return index

    def _survey(self) -> tuple[tuple[str, ...], int]:
        found: set[str] = set()
        count = 0
        for row in self._rows():
            count += 1
            found.add(row.label)
            if count > self.params.max_items:
                raise SourceError(
                    f"{self.location} has more than {self.params.max_items} rows: raise max_items "
                    f"or split the drop."
                )
        if not count:
            raise SourceError(f"{self.location} has no rows: name the images in it.")
        names = tuple(printable(name) for name in self.params.class_names)
        return distinct(names, "class_names") or class_names(found - {""}), count

    def _rows(self) -> Iterator[_Row]:
        if is_parquet(self.location):
            return self._parquet_rows()
        return self._csv_rows()

    def _parquet_rows(self) -> Iterator[_Row]:
        columns = self._columns
        for rows in rows_of(self.location, tuple(columns.values()), small=True):
            if rows.columns is None:
                names = range(rows.start, rows.start + rows.length)
                yield from (_Row(number + 1, b"", damaged=True) for number in names)
                continue
            for at in range(rows.length):
                cells = {role: rows.columns[name][at] for role, name in columns.items()}
                yield _row(rows.start + at + 1, cells)

    def _csv_rows(self) -> Iterator[_Row]:
        lines = self._csv_lines()
        header = next(lines, [])
        place = {role: header.index(name) for role, name in self._columns.items() if name in header}
        number = 0
        for line in lines:
            if not line:
                continue
            number += 1
            if len(line) == len(header):
                yield _row(number, {role: line[at] for role, at in place.items()})
            else:
                yield _Row(number, b"", damaged=True)

    def _csv_lines(self) -> Iterator[list[str]]:
        default = _SUFFIXES.get(self.location.suffix.lower(), ",")
        # Bytes that are not UTF-8 survive in paths, which are bytes to the system.
        with self.location.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = csv.reader(file, delimiter=self.params.delimiter or default, strict=True)
            try:
                yield from lines
            except csv.Error as error:
                raise SourceError(
                    f"{self.location}, line {lines.line_num}: not CSV ({error}): correct it."
                ) from None

    def _checked_columns(self) -> dict[str, str]:
        """Column names by role, those that are there."""
        if is_parquet(self.location):
            with opened(self.location) as file:
                header: Sequence[str] = list(column_types(file))
        else:
            header = next(self._csv_lines(), [])
        wanted = {
            role: getattr(self.params, f"{role}_column")
            for role in ("path", "label", "group", "split")
        }
        wanted |= attribute_roles(header, self.params.attribute_columns)
        return {
            role: name
            for role, name in wanted.items()
            if name and _there(name, header, self._optional(role), self.location)
        }

    def _optional(self, role: str) -> bool:
        field = f"{role}_column"
        return role in {"group", "split"} and field not in self.params.model_fields_set


def _row(number: int, cells: Mapping[str, Any]) -> _Row:
    path = cells["path"]
    if not isinstance(path, bytes):
        path = str("" if path is None else path).encode("utf-8", "surrogateescape")
    label, group, split = (cell_text(cells.get(role)) for role in ("label", "group", "split"))
    return _Row(number, path, label, group, split, attributes_of(cells))


def _there(name: str, header: Sequence[str], optional: bool, location: Path) -> bool:
    times = list(header).count(name)
    if times == 1 or (optional and not times):
        return times == 1
    known = ", ".join(printable(column) for column in header) or "no columns"
    many = f"{times} columns" if times else "no column"
    raise SourceError(
        f"{location} has {many} {name!r} among {known}: name the columns by path_column, "
        f"label_column, group_column, split_column and attribute_columns."
    )
