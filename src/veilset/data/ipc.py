"""Where the columns of a one-batch Arrow IPC file lie, found without trusting the file.

Arrow's own reader follows hostile offsets into memory that is not there, and the process dies of
it. These few lines read the same metadata (Arrow columnar format, "IPC File Format" and
`Message.fbs`; FlatBuffers internals) with every offset checked.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FIRST_MESSAGE = 8
"""Byte at which the first message of a file begins: after `ARROW1` and two bytes of padding."""

PREFIX = 8
"""Bytes before a message's metadata: a marker and the metadata's length."""

_RECORD_BATCH = 3


@dataclass(frozen=True)
class Batch:
    """A record batch's metadata.

    Attributes:
        rows: Number of rows.
        nodes: For each column its rows and missing values.
        buffers: For each buffer its first byte and length, in bytes of the file.
    """

    rows: int
    nodes: tuple[tuple[int, int], ...]
    buffers: tuple[tuple[int, int], ...]


def metadata_length(prefix: bytes) -> int:
    """Length of a message's metadata from the 8 bytes before it.

    Raises:
        ValueError: There is no message.
    """
    marker, length = struct.unpack("<Ii", prefix)
    if marker != 0xFFFFFFFF or length <= 0 or length % 8:
        raise ValueError("there is no message where one should be")
    return int(length)


def read_batch(metadata: bytes, body: int, end: int) -> Batch:
    """A record batch's metadata; every buffer is checked to lie inside the file.

    Args:
        metadata: The message's metadata.
        body: The byte of the file at which the message's body begins.
        end: The length of the file.

    Raises:
        ValueError: It is not the metadata of an uncompressed record batch, or points outside.
    """
    try:
        return _read_batch(metadata, body, end)
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError(f"its metadata are damaged: {error}") from None


def _read_batch(metadata: bytes, body: int, end: int) -> Batch:
    message = _follow(metadata, 0)
    kind, header = _field(metadata, message, 1), _field(metadata, message, 2)
    if not kind or not header or metadata[kind] != _RECORD_BATCH:
        raise ValueError("its second message is no record batch")
    batch = _follow(metadata, header)
    if _field(metadata, batch, 3):
        raise ValueError("it is compressed")
    length = _field(metadata, batch, 0)
    rows = _number("<q", metadata, length) if length else 0
    nodes = _pairs(metadata, _field(metadata, batch, 1))
    buffers = [(body + start, size) for start, size in _pairs(metadata, _field(metadata, batch, 2))]
    if any(start < body or size < 0 or start + size > end for start, size in buffers):
        raise ValueError("a column runs past its end")
    return Batch(rows, tuple(nodes), tuple(buffers))


def _number(kind: str, data: bytes, at: int) -> int:
    # A negative position would count from the end instead of failing.
    if at < 0:
        raise ValueError("an offset is negative")
    return int(struct.unpack_from(kind, data, at)[0])


def _follow(data: bytes, at: int) -> int:
    """The position that the unsigned offset at a position points to."""
    return at + _number("<I", data, at)


def _field(data: bytes, table: int, number: int) -> int:
    """The position of a table's field, 0 where it is not set."""
    directory = table - _number("<i", data, table)
    entry = 4 + 2 * number
    if entry + 2 > _number("<H", data, directory):
        return 0
    offset = _number("<H", data, directory + entry)
    return table + offset if offset else 0


def _pairs(data: bytes, field: int) -> Sequence[tuple[int, int]]:
    """A vector of two 64-bit numbers each."""
    if not field:
        return []
    start = _follow(data, field)
    count = _number("<I", data, start)
    if start + 4 + 16 * count > len(data):
        raise ValueError("a list runs past its end")
    numbers = np.frombuffer(data, dtype="<i8", count=2 * count, offset=start + 4)
    return [(int(first), int(second)) for first, second in numbers.reshape(-1, 2)]
