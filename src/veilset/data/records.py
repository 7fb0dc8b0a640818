"""What an ingestion knows of each image, the spool of its pixels, and the two private tables.

All of it is ours.
"""

import csv
import hmac
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pandas as pd

from veilset.data.decode import Refused
from veilset.data.decode_pool import Died
from veilset.data.roles import ROLES
from veilset.data.sources.attributes import PREFIX
from veilset.data.sources.base import Item, Split
from veilset.data.sources.text import printable
from veilset.files import atomic_file, read_table
from veilset.keys import Key
from veilset.types import Images, IntArray

INDEX: Final = "index.parquet"
"""File name of the table with a row for each image of the source, in the ingested set's folder."""

QUARANTINE: Final = "quarantine.csv"
"""File name of the table with a row for each refused image, in the quarantine's folder."""

QUARANTINE_COLUMNS: Final = ("file", "name", "reason", "sentence", "bytes", "drop")


@dataclass(slots=True)
class Record:
    """One image of the source, as far as it is known.

    Attributes:
        name: Where the source has it, printable.
        class_name: Name of its class, or None.
        group: Who is shown, "" if unknown.
        split: The source's own split, or None.
        attributes: What else is known of what is shown, by name.
        size: Bytes of the file (or of the array).
        reason: Code of its refusal, or None.
        sentence: The same for people.
        file: Its name in the quarantine, "" if it is not there.
        image_id: 16 bytes; none where it was not decoded.
        width: Pixels before fitting, or None.
        height: Pixels before fitting, or None.
        mode: The file's kind of pixel, or None.
        format: The file's format, or None.
        brightness: Mean grey level of the fitted image, NaN where it was not decoded.
        row: Row of the spool, -1 if it has none.
        label: Index of the class, -1 if unknown.
        role: A role of `ROLES`, `duplicate` or `quarantined`.
        duplicate_of: Id of the kept image with the same pixels, or None.
        near_duplicate_of: Smallest id of its near duplicates, or None.
    """

    name: str
    class_name: str | None
    group: str
    split: Split | None
    size: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    sentence: str = ""
    file: str = ""
    image_id: bytes = b""
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    brightness: float = float("nan")
    row: int = -1
    label: int = -1
    role: str = "quarantined"
    duplicate_of: bytes | None = None
    near_duplicate_of: bytes | None = None

    @property
    def taken(self) -> bool:
        """It was decoded, and its pixels are in the spool."""
        return self.row >= 0

    @property
    def kept(self) -> bool:
        """It goes into the set."""
        return self.role in ROLES

    def refuse(self, refused: Refused | Died) -> None:
        """Sends it to the quarantine."""
        self.reason, self.sentence, self.role = refused.reason, refused.sentence, "quarantined"


class Spool:
    """Fitted pixels in the order of the source, one fixed length a row, in a file that is ours."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path = path
        self.rows = 0
        self._shape = shape
        self._bytes = int(np.prod(shape))

    def __enter__(self) -> Self:
        self._file = self.path.open("w+b", buffering=1 << 20)
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Ends the spool."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def add(self, pixels: Images) -> int:
        """Appends an image and gives its row."""
        self._file.write(np.ascontiguousarray(pixels).data)
        self.rows += 1
        return self.rows - 1

    def take(self, rows: IntArray) -> Images:
        """Images by row, uint8 (len(rows), H, W, C)."""
        self._file.flush()
        images = np.empty((len(rows), self._bytes), dtype=np.uint8)
        handle = self._file.fileno()
        for row, image in zip(rows.tolist(), images, strict=True):
            if os.preadv(handle, [image.data], row * self._bytes) != self._bytes:
                raise OSError(f"{self.path} was changed while it was in use")
        return images.reshape(len(rows), *self._shape)


def as_text(text: str) -> str:
    """Text that any table can hold; a source's names are so already."""
    return text if text.isprintable() else printable(text)


def raw_bytes(item: Item) -> bytes:
    """An item's file, or its array's bytes in C order."""
    return item.content if isinstance(item.content, bytes) else item.content.tobytes()


def set_aside(folder: Path, item: Item, names_key: Key) -> str:
    """Keeps a refused file's bytes in the quarantine.

    Args:
        folder: The quarantine.
        item: What was refused.
        names_key: Under which the bytes are hashed to a name. Nothing of the item's own name is
            used, so none can lead elsewhere.

    Returns:
        The file's name, 16 hex characters and `.bin`; "" where there are no bytes.

    Raises:
        DiskFullError: The disk is full.
    """
    content = raw_bytes(item)
    if not content:
        return ""
    path = folder / f"{hmac.digest(names_key.secret, content, 'sha256').hex()[:16]}.bin"
    if not path.exists():
        with atomic_file(path, size=len(content)) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
    return path.name


def quarantine_table(records: Sequence[Record], drop: str) -> str:
    """The refused images as CSV, in the source's order; the header alone where there are none."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(QUARANTINE_COLUMNS)
    for record in records:
        if record.reason is not None:
            name, file = spreadsheet_cell(record.name), record.file
            writer.writerow([file, name, record.reason, record.sentence, record.size, drop])
    return text.getvalue()


def index_table(records: Sequence[Record], drop: str) -> pd.DataFrame:
    """The index: a row for each image of the source, in its order.

    Returns:
        Text columns `id`, `name`, `class_name`, `group`, `split` (the source's own), `role`,
        `mode`, `format`, `duplicate_of`, `near_duplicate_of`, `drop`, `reason` (missing where
        there is none); `label` int64, -1 if unknown; `width`, `height` Int64 before fitting;
        `brightness` float64, the mean grey level of the fitted image; and for each attribute a text
        column `attribute_<name>`, "" where it is unknown.
    """
    attributes = sorted({name for record in records for name in record.attributes})
    return pd.DataFrame(
        {
            "id": _texts(r.image_id.hex() or None for r in records),
            "name": _texts(r.name for r in records),
            "label": np.array([r.label for r in records], dtype=np.int64),
            "class_name": _texts(r.class_name for r in records),
            "group": _texts(r.group for r in records),
            "split": _texts(r.split for r in records),
            "role": _texts(r.role for r in records),
            "width": pd.array([r.width for r in records], dtype="Int64"),
            "height": pd.array([r.height for r in records], dtype="Int64"),
            "mode": _texts(r.mode for r in records),
            "format": _texts(r.format for r in records),
            "duplicate_of": _texts(_hex(r.duplicate_of) for r in records),
            "near_duplicate_of": _texts(_hex(r.near_duplicate_of) for r in records),
            "drop": _texts(drop for _ in records),
            "brightness": np.array([r.brightness for r in records], dtype=np.float64),
            "reason": _texts(r.reason for r in records),
        }
        | {
            f"{PREFIX}{name}": _texts(r.attributes.get(name, "") for r in records)
            for name in attributes
        }
    )


def read_attributes(folders: Iterable[Path]) -> dict[str, dict[str, str]]:
    """What the indices of ingested sets say of images beside their labels.

    Args:
        folders: Ingested sets; one without an index says nothing.

    Returns:
        For each attribute's name, its value by the image's id in hex; empty values are left out.

    Raises:
        CorruptError: An index cannot be read.
    """
    found: dict[str, dict[str, str]] = {}
    for path in (folder / INDEX for folder in folders):
        if not path.is_file():
            continue
        index = read_table(path)
        for column in (name for name in index.columns if name.startswith(PREFIX)):
            known = index[index["id"].notna() & (index[column].fillna("") != "")]
            values = zip(known["id"], known[column], strict=True)
            found.setdefault(column.removeprefix(PREFIX), {}).update(values)
    return found


def _texts(values: Iterable[str | None]) -> Any:
    return pd.array(list(values), dtype="str")


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def spreadsheet_cell(name: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{name}" if name[:1] in tuple("=+-@") else name
