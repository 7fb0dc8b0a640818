"""Image sets on disk: uncompressed Arrow shards that are verified before they are used.

A shard is an Arrow IPC file of exactly one record batch: `id` (32 hex characters), `label` (int64),
`image` (fixed_size_binary of H*W*C bytes, NHWC) and further columns. So ids and labels lie together
at its start, and all pixels lie in one piece: any rows in any order are one gather.

A reader copies 4 MiB chunks of the file into private memory, compares each copy with its SHA-256,
and takes pixels from that copy. A file that rots, is cut short or is replaced is thus an error and
never wrong pixels, nor a bus error as with a memory map. A chunk that was given up for want of room
is read again without hashing, as long as the file is the same and was not touched: its hash is
compared once per open. All of it is ours.
"""

import hashlib
import mmap
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from veilset.data.ipc import FIRST_MESSAGE, PREFIX, Batch, metadata_length, read_batch
from veilset.data.manifest import CHUNK, Manifest, ShardEntry, shard_name, split_shard_name
from veilset.errors import CorruptError
from veilset.files import atomic_file, staged_folder
from veilset.types import Columns, Ids, Images, IntArray, Labels

SHARD_BYTES = 256 << 20
"""Largest length of a shard's pixels, 256 MiB."""

CACHE_BYTES = 256 << 20
"""Verified bytes that one open set keeps in memory, beside the shard it is reading."""

_END = b"ARROW1"
_SPARSE = 8  # rows are read one by one where whole chunks would be this many times as much

Part = tuple[Ids, Labels, Images, Columns]
"""Ids (N, 16) uint8, labels (N,) int64, images (N, H, W, C) uint8, further columns of N rows."""


# ----------------------------------------------------------------------------------------- writing


def rows_per_shard(shape: tuple[int, int, int], shard_bytes: int = SHARD_BYTES) -> int:
    """How many images of a shape (H, W, C) go into one shard: at least 1."""
    return max(1, shard_bytes // prod(shape))


def write_shard(
    path: Path,
    split: str,
    ids: Ids,
    labels: Labels,
    images: Images,
    columns: Columns | None = None,
) -> ShardEntry:
    """Writes one shard, atomically. Equal rows give equal bytes, whoever hands them in how.

    Args:
        path: `<folder>/<split>-00000.arrow`.
        split: The split that all rows belong to.
        ids: uint8 (N, 16), strictly ascending, N >= 1.
        labels: int64 (N,).
        images: uint8 (N, H, W, C).
        columns: Further columns of N rows: numbers, bools or text; with more than one axis
            numbers or bools only.

    Returns:
        The shard's entry for the manifest, hashed while it was written.

    Raises:
        ValueError: A shape, dtype, name or the order of the ids is wrong.
        DiskFullError: The disk has no room; nothing was written.
    """
    if split_shard_name(path.name)[0] != split:
        raise ValueError(f"{path.name} is not the name of a shard of {split!r}")
    batch = record_batch(ids, labels, images, columns or {})
    size = _file_size(batch)
    with atomic_file(path, size=size) as file, ThreadPoolExecutor(1) as beside:
        sink = _HashedFile(file, beside)
        _write_batch(pa.PythonFile(sink, mode="w"), batch)
    return _entry(path.name, len(ids), sink)


def shard_entry(path: Path) -> ShardEntry:
    """The entry of a finished shard, read and hashed anew: for a run that resumes.

    Raises:
        CorruptError: It is not a whole shard.
        ValueError: Its name is not a shard's.
    """
    split_shard_name(path.name)
    try:
        with path.open("rb") as file, ThreadPoolExecutor(1) as beside:
            sink = _HashedFile(None, beside)
            rows = _count_rows(file)
            file.seek(0)
            while block := file.read(CHUNK):
                sink.write(block)
        return _entry(path.name, rows, sink)
    except (OSError, ValueError) as error:
        raise CorruptError(f"{path} is not a whole shard ({error}): remove it.") from None


def _entry(name: str, rows: int, sink: "_HashedFile") -> ShardEntry:
    return ShardEntry(
        file=name, split=split_shard_name(name)[0], rows=rows, bytes=sink.length,
        sha256=sink.whole.hexdigest(), chunks=sink.chunks(),
    )  # fmt: skip


def _count_rows(file: IO[bytes]) -> int:
    """Rows of a shard, after a check that it goes on to its very end."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_END)))
    if file.read() != _END:
        raise ValueError("it does not end as a shard does")
    file.seek(FIRST_MESSAGE)
    file.seek(FIRST_MESSAGE + PREFIX + _next_length(file))
    metadata = file.read(_next_length(file))
    return read_batch(metadata, file.tell(), size).rows


def _next_length(file: IO[bytes]) -> int:
    return metadata_length(file.read(PREFIX).ljust(PREFIX, b"\0"))


def write_set(
    folder: Path,
    *,
    kind: Literal["ingested", "protected"],
    dataset: str,
    classes: tuple[str, ...] | list[str],
    parts: Mapping[str, Part],
    shard_bytes: int = SHARD_BYTES,
    **manifest_fields: Any,
) -> Manifest:
    """Writes a set that fits in memory: sorts by id, writes shards and manifest, swaps them in.

    Args:
        folder: The set's folder; an old one is replaced whole.
        kind: `ingested` or `protected`.
        dataset: The data set's name.
        classes: Class names in the order of the labels.
        parts: For each split its ids, labels, images and further columns, in any order of rows.
            All splits have the same columns and image shape.
        shard_bytes: Largest length of a shard's pixels.
        manifest_fields: `source`, `scheme`, `key_fingerprint`, `notes`.

    Raises:
        ValueError: Shapes, dtypes or columns disagree, or an id occurs twice in a split.
        BusyError: Another run writes this folder.
        DiskFullError: The disk is full; an old set stays as it was.
    """
    shape, columns = _common(parts)
    # Always another plan: these shards are made faster than old ones are hashed.
    with staged_folder(folder, plan=f"set of {os.getpid()} {os.urandom(8).hex()}") as staging:
        entries = [
            write_shard(staging / shard_name(split, index), split, *rows)
            for split, part in parts.items()
            for index, rows in enumerate(_pieces(part, rows_per_shard(shape, shard_bytes)))
        ]
        manifest = Manifest(
            kind=kind, dataset=dataset, shape=shape, classes=tuple(classes),
            splits={split: len(part[0]) for split, part in parts.items()},
            columns=columns, shards=tuple(entries), **manifest_fields,
        )  # fmt: skip
        manifest.save(staging)
    return manifest


def column_type(values: npt.NDArray[Any]) -> str:
    """How the manifest names a column's type: `string`, `int64`, `uint8[8,8]`.

    Raises:
        ValueError: Not numbers, bools or text (text has one axis).
    """
    if values.dtype.kind in "OUT":
        if values.ndim != 1:
            raise ValueError("a text column has one axis")
        return "string"
    if values.dtype.kind not in "biuf" or values.ndim < 1 or values.dtype.itemsize > 8:
        raise ValueError(f"a column cannot be {values.dtype} {values.shape}")
    inner = ",".join(map(str, values.shape[1:]))
    return values.dtype.name + (f"[{inner}]" if inner else "")


def _common(parts: Mapping[str, Part]) -> tuple[tuple[int, int, int], dict[str, str]]:
    """The one image shape and the one list of columns of all splits."""
    if not parts:
        raise ValueError("a set has at least one split")
    shapes = {part[2].shape[1:] for part in parts.values()}
    kinds = [{name: column_type(v) for name, v in part[3].items()} for part in parts.values()]
    if len(shapes) != 1 or any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"the splits disagree: shapes {shapes}, columns {kinds}")
    height, width, channels = shapes.pop()
    return (height, width, channels), kinds[0]


def _pieces(part: Part, rows: int) -> Iterator[Part]:
    """The part in the order of its ids, a shard at a time (only that much is copied)."""
    ids, labels, images, columns = part
    order = np.lexsort(ids.T[::-1])
    for start in range(0, len(order), rows):
        at = order[start : start + rows]
        yield ids[at], labels[at], images[at], {name: v[at] for name, v in columns.items()}


def record_batch(ids: Ids, labels: Labels, images: Images, columns: Columns) -> pa.RecordBatch:
    """The rows as Arrow columns: `id`, `label`, `image`, then the further ones by name.

    They lie over the memory of the given arrays wherever those are contiguous.

    Raises:
        ValueError: As `write_shard`.
    """
    _require_rows(ids, labels, images, columns)
    pixels = np.ascontiguousarray(images).reshape(len(images), -1)
    arrays = [_hex_array(ids), pa.array(np.ascontiguousarray(labels)), _bytes_array(pixels)]
    names = ["id", "label", "image", *sorted(columns)]
    arrays += [_column_array(columns[name]) for name in sorted(columns)]
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _require_rows(ids: Ids, labels: Labels, images: Images, columns: Columns) -> None:
    count = len(ids)
    if ids.dtype != np.uint8 or ids.shape != (count, 16) or count == 0:
        raise ValueError(f"ids must be uint8 (N, 16) with N >= 1, not {ids.dtype} {ids.shape}")
    if labels.dtype != np.int64 or labels.shape != (count,):
        raise ValueError(f"labels must be int64 ({count},), not {labels.dtype} {labels.shape}")
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != count:
        raise ValueError(f"images must be uint8 ({count}, H, W, C), not {images.dtype} "
                         f"{images.shape}")  # fmt: skip
    keys = _sortable(ids)
    if not (keys[:-1] < keys[1:]).all():
        raise ValueError("ids must ascend strictly: sort the rows, and drop doubles")
    wrong = [n for n, v in columns.items() if len(v) != count or n in ("id", "label", "image")]
    if wrong:
        raise ValueError(f"columns {wrong} have another number of rows or a name that is taken")


def _sortable(ids: Ids) -> npt.NDArray[Any]:
    """Ids as fixed-length byte strings, which compare as the ids do."""
    # A trailing zero byte is lost in "S", so it gets a last byte that is not zero.
    padded = np.empty((len(ids), 17), dtype=np.uint8)
    padded[:, :16], padded[:, 16] = ids, 1
    return padded.view("S17")[:, 0]


def _hex_array(ids: Ids) -> pa.Array:
    text = np.ascontiguousarray(ids).tobytes().hex().encode()
    offsets = np.arange(0, 32 * len(ids) + 1, 32, dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.string(), len(ids), buffers, null_count=0)


def _bytes_array(rows: npt.NDArray[np.uint8]) -> pa.Array:
    """(N, bytes) as fixed_size_binary over the same memory."""
    buffers = [None, pa.py_buffer(rows)]
    return pa.Array.from_buffers(pa.binary(rows.shape[1]), len(rows), buffers, null_count=0)


def _column_array(values: npt.NDArray[Any]) -> pa.Array:
    kind = column_type(values)
    if kind == "string":
        texts = values.tolist()
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a text column holds text in every row")
        return pa.array(texts, type=pa.string())
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    if values.ndim == 1:
        return pa.array(values)
    return _bytes_array(values.reshape(len(values), -1).view(np.uint8))


def _write_batch(sink: Any, batch: pa.RecordBatch) -> None:
    # Spelt out, so that a later Arrow with other defaults writes the same bytes.
    options = pa.ipc.IpcWriteOptions(
        metadata_version=pa.ipc.MetadataVersion.V5, compression=None, allow_64bit=False,
        use_legacy_format=False, emit_dictionary_deltas=False, unify_dictionaries=False,
    )  # fmt: skip
    with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)


def _file_size(batch: pa.RecordBatch) -> int:
    """The exact length of the file that a batch becomes, without writing it."""
    sink = pa.MockOutputStream()
    _write_batch(sink, batch)
    return int(sink.size())


class _HashedFile:
    """A file that hashes what goes through it: whole (beside), and by chunks of 4 MiB."""

    def __init__(self, file: IO[bytes] | None, beside: ThreadPoolExecutor) -> None:
        self._file = file
        self._beside = beside
        self._digests: list[str] = []
        self._chunk = hashlib.sha256()
        self.whole = hashlib.sha256()
        self.length = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._file is not None:
            self._file.write(view)
        # Hashing lets other threads run, so both hashes take the time of one.
        whole = self._beside.submit(self.whole.update, view)
        self._hash_chunks(view)
        whole.result()
        return len(view)

    def _hash_chunks(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            take = min(len(view) - done, CHUNK - self.length % CHUNK)
            self._chunk.update(view[done : done + take])
            self.length += take
            done += take
            if self.length % CHUNK == 0:
                self._next_chunk()

    def _next_chunk(self) -> None:
        self._digests.append(self._chunk.hexdigest())
        self._chunk = hashlib.sha256()

    def chunks(self) -> tuple[str, ...]:
        """The digests of all chunks; call it once, at the end."""
        if self.length % CHUNK:
            self._next_chunk()
        return tuple(self._digests)

    def tell(self) -> int:
        return self.length

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


# ----------------------------------------------------------------------------------------- reading


class _Recent:
    """Which chunks were used last, over all shards of an open set."""

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit // CHUNK)
        self._order: OrderedDict[tuple[int, int], None] = OrderedDict()

    def use(self, shard: int, chunks: IntArray) -> None:
        """Notes a use of these chunks of a shard."""
        for chunk in chunks.tolist():
            self._order[shard, chunk] = None
            self._order.move_to_end((shard, chunk))

    def excess(self) -> Iterator[tuple[int, int]]:
        """Forgets and gives the chunks that are too many, the longest unused first."""
        while len(self._order) > self._limit:
            yield self._order.popitem(last=False)[0]


@dataclass(frozen=True)
class _Column:
    """Where a column lies in the file, and what it is.

    Attributes:
        kind: Its type as the manifest names it; `id` for the ids.
        start: Its first byte.
        stop: The byte after its last.
        offsets: First byte of the text offsets, for text and ids.
        values: First byte of the values.
    """

    kind: str
    start: int
    stop: int
    offsets: int
    values: int


class _Shard:
    """One shard's verified bytes, chunk by chunk, in private memory."""

    def __init__(self, path: Path, entry: ShardEntry, kind: Manifest, recent: _Recent) -> None:
        self.path = path
        self.entry = entry
        further = {name: kind.columns[name] for name in sorted(kind.columns)}
        image = f"uint8[{','.join(map(str, kind.shape))}]"
        self._types = {"id": "id", "label": "int64", "image": image, **further}
        self._index = kind.shards.index(entry)
        self._recent = recent
        self._resident = np.zeros(len(entry.chunks), dtype=np.bool_)
        self._verified = np.zeros(len(entry.chunks), dtype=np.bool_)
        self._memory: mmap.mmap | None = None
        self._bytes: npt.NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self._seen: tuple[int, ...] = ()
        self._layout: dict[str, _Column] | None = None

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Opens the file for one operation; what was verified counts only while it is the same."""
        with open_shard(self.path, self.entry) as handle:
            now = os.fstat(handle)
            seen = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
            if seen != self._seen:
                self._seen = seen
                self._verified[:] = False
            yield handle

    def need(self, handle: int, chunks: IntArray) -> None:
        """Makes chunks resident: reads, verifies and keeps them."""
        if self._memory is None:
            # Private: a forked worker neither sees nor disturbs its parent's chunks.
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._memory = mmap.mmap(-1, self.entry.bytes, flags=flags)
            self._bytes = np.frombuffer(self._memory, dtype=np.uint8)
        for chunk in chunks[~self._resident[chunks]].tolist():
            view = self._bytes[chunk * CHUNK : (chunk + 1) * CHUNK].data
            read_chunk(handle, self.path, self.entry, chunk, view, check=not self._verified[chunk])
            self._resident[chunk] = self._verified[chunk] = True
        self._recent.use(self._index, chunks)

    def drop(self, chunk: int) -> None:
        """Gives a chunk's memory back."""
        self._resident[chunk] = False
        if self._memory is not None:
            length = min(CHUNK, self.entry.bytes - chunk * CHUNK)
            self._memory.madvise(mmap.MADV_DONTNEED, chunk * CHUNK, length)

    def column(self, handle: int, name: str) -> _Column:
        """Where a column lies. Raises CorruptError if the shard is not of this set."""
        if self._layout is None:
            try:
                batch = self._read_batch(handle)
                self._layout = _columns(batch, self._types, self.entry.rows)
            except ValueError as error:
                raise self._unusable(error) from None
        return self._layout[name]

    def _read_batch(self, handle: int) -> Batch:
        """The metadata of the second message: the first is the schema, which the manifest tells."""
        first = self._metadata(handle, FIRST_MESSAGE)
        second = self._metadata(handle, first.stop)
        metadata = self._bytes[second.start : second.stop].tobytes()
        return read_batch(metadata, second.stop, self.entry.bytes)

    def _metadata(self, handle: int, start: int) -> range:
        """The bytes of the metadata of the message that begins at a byte, made resident."""
        if start + PREFIX > self.entry.bytes:
            raise ValueError("it ends before its first row")
        self.need(handle, _chunks_of(start, start + PREFIX))
        length = metadata_length(self._bytes[start : start + PREFIX].tobytes())
        stop = start + PREFIX + length
        if stop > self.entry.bytes:
            raise ValueError("a message runs past its end")
        self.need(handle, _chunks_of(start, stop))
        return range(start + PREFIX, stop)

    def values(self, handle: int, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """A column's rows [start, stop), copied: ids as uint8 (N, 16), others by their type."""
        column = self.column(handle, name)
        self.need(handle, _chunks_of(column.start, column.stop))
        try:
            return _decode(self._bytes, column, start, stop)
        except ValueError as error:
            raise self._unusable(error) from None

    def take(
        self, handle: int, rows: IntArray, out: npt.NDArray[np.uint8],
        name: str = "image", *, keep: bool = True,
    ) -> None:  # fmt: skip
        """Copies some rows of a column of bytes into `out`, uint8 (len(rows), bytes), contiguous.

        Without `keep`, what was verified before is read past the chunks that are held.
        """
        start, width = self.column(handle, name).values, out.shape[1]
        if not self._resident.all():
            offsets = start + rows * width
            chunks = _covered(offsets // CHUNK, (offsets + width - 1) // CHUNK)
            missing = chunks[~self._resident[chunks]]
            sparse = len(missing) * CHUNK > _SPARSE * out.size
            if (sparse or (len(missing) and not keep)) and self._verified[missing].all():
                self._read_rows(handle, offsets, out)
                return
            self.need(handle, chunks)
        stop = start + self.entry.rows * width
        table = self._bytes[start:stop].reshape(self.entry.rows, width)
        if _is_run(rows):
            np.copyto(out, table[rows[0] : rows[-1] + 1])
        else:
            # The rows are in range; any other mode would gather into a buffer first.
            table.take(rows, axis=0, out=out, mode="clip")

    def _read_rows(self, handle: int, offsets: IntArray, out: npt.NDArray[np.uint8]) -> None:
        """Reads rows that lie at these offsets: in one go where they lie together."""
        width = out.shape[1]
        if (np.diff(offsets) == width).all():
            _fill(handle, self.path, self.entry, out.reshape(-1).data, int(offsets[0]))
            return
        # In the order of the file, which a disk reads fastest, and all asked for before the first.
        order = np.argsort(offsets).tolist()
        places = offsets.tolist()
        if hasattr(os, "posix_fadvise"):
            for row in order:
                os.posix_fadvise(handle, places[row], width, os.POSIX_FADV_WILLNEED)
        for row in order:
            _fill(handle, self.path, self.entry, out[row].data, places[row])

    def _unusable(self, error: ValueError) -> CorruptError:
        """The error for bytes that are as recorded, but are no shard of this set."""
        reason = (str(error).splitlines() or ["no reason given"])[0].rstrip(".")
        return CorruptError(f"{self.path} is no shard of this set ({reason}): fetch it again.")


class ImageSet:
    """An image set that was opened for reading.

    Safe to use from several threads, over a fork, and to pickle (it is opened anew). It holds no
    open file and at most `cache_bytes` of verified bytes beside the shard that it is reading.
    """

    def __init__(self, folder: Path, manifest: Manifest, cache_bytes: int = CACHE_BYTES) -> None:
        """Use `open`, which checks the files."""
        self.folder = folder
        self.manifest = manifest
        self._cache_bytes = cache_bytes
        self._recent = _Recent(cache_bytes)
        self._lock = threading.Lock()
        entries = manifest.shards
        self._shards = [_Shard(folder / e.file, e, manifest, self._recent) for e in entries]
        self._of: dict[str, list[_Shard]] = {split: [] for split in manifest.splits}
        for shard in self._shards:
            self._of[shard.entry.split].append(shard)

    @classmethod
    def open(cls, folder: Path, *, cache_bytes: int = CACHE_BYTES) -> "ImageSet":
        """Opens a set: reads its manifest and checks that every shard has its recorded length.

        Args:
            folder: The set's folder.
            cache_bytes: How many verified bytes to keep in memory.

        Raises:
            CorruptError: The manifest is missing or damaged, or a shard is missing or of another
                length.
        """
        found = cls(folder, Manifest.load(folder), cache_bytes)
        for shard in found._shards:
            with open_shard(shard.path, shard.entry):
                pass
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self._cache_bytes)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, sorted."""
        return tuple(sorted(self.manifest.splits))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.manifest.shape

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.manifest.classes

    def count(self, split: str) -> int:
        """Number of images of a split. Raises KeyError for a split that there is not."""
        return self.manifest.splits[split]

    def ids(self, split: str, rows: slice | None = None) -> Ids:
        """Ids in ascending order, uint8 (N, 16), verified; all, or a slice of the rows."""
        return self._values(split, "id", rows)

    def labels(self, split: str, rows: slice | None = None) -> Labels:
        """Labels in the order of the ids, int64 (N,), verified; all, or a slice of the rows."""
        return self._values(split, "label", rows)

    def column(self, split: str, name: str, rows: slice | None = None) -> npt.NDArray[Any]:
        """A further column in the order of the ids, verified; all, or a slice of the rows.

        Text is an object array of `str`.

        Raises:
            KeyError: There is no such split or column.
            CorruptError: Stored bytes are not those that were recorded.
        """
        if name not in self.manifest.columns:
            raise KeyError(f"{name!r} is no column of {self.folder}")
        return self._values(split, name, rows)

    def images(self, split: str, rows: IntArray | slice | None = None) -> Images:
        """Images of a split, in any order and as often as asked.

        Args:
            split: Which split.
            rows: Row numbers as NumPy understands them (negative ones count from the end), a
                slice, or None for all.

        Returns:
            uint8 (rows, H, W, C), a copy. Every byte of it comes from a chunk whose hash was
            compared since the file last changed.

        Raises:
            CorruptError: A chunk is not as recorded; shard and chunk are named.
            IndexError: A row that there is not.
        """
        return self._taken(split, "image", self.shape, rows, keep=True)

    def streamed(self, split: str, name: str, rows: IntArray | slice) -> npt.NDArray[np.uint8]:
        """Rows for a reader that comes back for all of them, again and again.

        What was verified once is from then on read row by row and not kept, so that memory does not
        grow, and no chunk is read for the sake of a row.

        Args:
            split: Which split.
            name: `image`, or a further column of bytes (`uint8[...]`).
            rows: As for `images`.

        Returns:
            uint8 (rows, ...), a copy, verified as that of `images`.

        Raises:
            CorruptError: As `images`.
            IndexError: A row that there is not.
            KeyError: There is no such split, or no such column of bytes.
        """
        inner: tuple[int, ...] = self.shape
        if name != "image":
            kind = self.manifest.columns.get(name, "")
            if not kind.startswith("uint8["):
                raise KeyError(f"{name!r} is no column of bytes of {self.folder}")
            inner = _parse_type(kind)[1]
        return self._taken(split, name, inner, rows, keep=False)

    def _taken(
        self, split: str, name: str, inner: tuple[int, ...], rows: IntArray | slice | None, *,
        keep: bool,
    ) -> npt.NDArray[np.uint8]:  # fmt: skip
        wanted = _row_numbers(rows, self.count(split))
        out = np.empty((len(wanted), *inner), dtype=np.uint8)
        flat = out.reshape(len(wanted), prod(inner))
        for shard, where, local in self._located(split, wanted):
            # Rows that lie together in the result are put there without a second copy.
            direct = isinstance(where, slice)
            part = flat[where] if direct else np.empty((len(local), flat.shape[1]), np.uint8)
            with self._reading(shard) as handle:
                shard.take(handle, local, part, name, keep=keep)
            if not direct:
                flat[where] = part
        return out

    def batches(self, split: str, size: int) -> Iterator[tuple[Ids, Labels, Images]]:
        """All rows of a split in order, `size` at a time (the last may be shorter).

        Memory does not grow with the rows of the split.
        """
        if size < 1:
            raise ValueError("a batch has at least one row")
        for start in range(0, self.count(split), size):
            stop = min(start + size, self.count(split))
            part = slice(start, stop)
            yield self.ids(split, part), self.labels(split, part), self.images(split, part)

    def pool(self, split: str) -> "SetPool":
        """The split as a pool that donors come from."""
        return SetPool(self, split)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compares every stored byte with both of its recorded hashes.

        Args:
            progress: Called with bytes done and bytes in all, after each chunk.

        Raises:
            CorruptError: The first shard and chunk that are not as recorded.
        """
        total = sum(entry.bytes for entry in self.manifest.shards)
        done = 0
        # The hash of the file runs beside those of the chunks: hashing lets other threads run.
        with ThreadPoolExecutor(1) as beside:
            for shard in self._shards:
                for length in _verified_lengths(shard.path, shard.entry, beside):
                    done += length
                    if progress is not None:
                        progress(done, total)

    @contextmanager
    def _reading(self, shard: _Shard) -> Iterator[int]:
        """One operation on one shard, after which the cache is cut back to its size."""
        with self._lock, shard.opened() as handle:
            try:
                yield handle
            finally:
                for index, chunk in self._recent.excess():
                    self._shards[index].drop(chunk)

    def _located(
        self, split: str, rows: IntArray
    ) -> Iterator[tuple[_Shard, IntArray | slice, IntArray]]:
        """For each shard that holds any of these rows: it, their places, their rows in it."""
        shards = self._of[split]
        if len(shards) == 1 and len(rows):
            yield shards[0], slice(0, len(rows)), rows
            return
        ends = np.cumsum([shard.entry.rows for shard in shards])
        holder = np.searchsorted(ends, rows, side="right")
        for index, shard in enumerate(shards):
            start = int(ends[index]) - shard.entry.rows
            where = np.flatnonzero(holder == index)
            if len(where):
                local = rows[where] - start
                run = slice(int(where[0]), int(where[-1]) + 1)
                yield shard, run if _is_run(where) else where, local

    def _values(self, split: str, name: str, rows: slice | None) -> npt.NDArray[Any]:
        """A slice of a column: the rows between its ends are read, then its step is taken."""
        wanted = range(self.count(split))[rows if rows is not None else slice(None)]
        if not wanted:
            return self._no_rows(name)
        low, high = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1])
        values = self._range(split, name, low, high + 1)
        return (
            values
            if len(values) == len(wanted) and wanted.step > 0
            else values[np.asarray(wanted) - low]
        )

    def _range(self, split: str, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop) of a column over the shards that hold them."""
        pieces, first = [], 0
        for shard in self._of[split]:
            low, high = max(start - first, 0), min(stop - first, shard.entry.rows)
            if low < high:
                with self._reading(shard) as handle:
                    pieces.append(shard.values(handle, name, low, high))
            first += shard.entry.rows
        return np.concatenate(pieces)

    def _no_rows(self, name: str) -> npt.NDArray[Any]:
        if name == "id":
            return np.empty((0, 16), dtype=np.uint8)
        dtype, inner = _parse_type({"label": "int64"}.get(name) or self.manifest.columns[name])
        return np.empty((0, *inner), dtype=dtype)


class SetPool:
    """A split as a pool: ids and labels in memory, pixels read when they are taken."""

    def __init__(self, source: ImageSet, split: str) -> None:
        self._source = source
        self._split = split

    @cached_property
    def ids(self) -> Ids:
        """Ids in ascending order, uint8 (N, 16)."""
        return self._source.ids(self._split)

    @cached_property
    def labels(self) -> Labels:
        """Labels in the order of the ids, int64 (N,)."""
        return self._source.labels(self._split)

    def take(self, rows: IntArray) -> Images:
        """The images of these rows, uint8 (len(rows), H, W, C). Raises as `ImageSet.images`."""
        return self._source.images(self._split, rows)


@contextmanager
def open_shard(path: Path, entry: ShardEntry) -> Iterator[int]:
    """Opens a shard's file and checks its length.

    Yields:
        A file descriptor.

    Raises:
        CorruptError: It is missing, not a file, or of another length than recorded.
    """
    try:
        # Never waits, even where somebody put a pipe in the shard's place.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise CorruptError(f"{path} cannot be read ({error.strerror}): fetch it again.") from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size != entry.bytes:
            raise _wrong_length(path, entry, found.st_size)
        yield handle
    finally:
        os.close(handle)


def read_chunk(
    handle: int, path: Path, entry: ShardEntry, chunk: int, view: memoryview, *, check: bool = True
) -> None:
    """Reads a chunk into memory and compares what arrived there with its recorded hash.

    Raises:
        CorruptError: It is cut short or altered; shard and chunk are named.
    """
    _fill(handle, path, entry, view, chunk * CHUNK)
    if check and hashlib.sha256(view).hexdigest() != entry.chunks[chunk]:
        raise _damaged(path, entry, chunk)


def _fill(handle: int, path: Path, entry: ShardEntry, view: memoryview, offset: int) -> None:
    """Reads exactly as many bytes as the view has."""
    done = 0
    try:
        while done < len(view):
            got = os.preadv(handle, [view[done:]], offset + done)
            if got == 0:
                raise _wrong_length(path, entry, os.fstat(handle).st_size)
            done += got
    except OSError as error:
        raise CorruptError(
            f"{path} cannot be read at byte {offset + done:,} ({error.strerror}): fetch it again."
        ) from None


def _damaged(path: Path, entry: ShardEntry, chunk: int) -> CorruptError:
    return CorruptError(
        f"{path} is damaged in chunk {chunk} of {len(entry.chunks)} (4 MiB from byte "
        f"{chunk * CHUNK:,}), so nothing of it was used: fetch it again or make it anew."
    )


def _wrong_length(path: Path, entry: ShardEntry, length: int) -> CorruptError:
    return CorruptError(
        f"{path} has {length:,} bytes instead of {entry.bytes:,}, so it was cut short or replaced: "
        "fetch it again."
    )


def _verified_lengths(path: Path, entry: ShardEntry, beside: ThreadPoolExecutor) -> Iterator[int]:
    """Verifies a shard, and gives the length of each chunk when it is done."""
    whole = hashlib.sha256()
    space = memoryview(bytearray(min(CHUNK, entry.bytes)))
    with open_shard(path, entry) as handle:
        for chunk in range(len(entry.chunks)):
            view = space[: min(CHUNK, entry.bytes - chunk * CHUNK)]
            _fill(handle, path, entry, view, chunk * CHUNK)
            other = beside.submit(whole.update, view)
            same = hashlib.sha256(view).hexdigest() == entry.chunks[chunk]
            other.result()
            if not same:
                raise _damaged(path, entry, chunk)
            yield len(view)
    if whole.hexdigest() != entry.sha256:
        raise CorruptError(f"{path} is not the file that its manifest names: fetch it again.")


def _reopen(folder: Path, cache_bytes: int) -> ImageSet:
    return ImageSet.open(folder, cache_bytes=cache_bytes)


def _row_numbers(rows: IntArray | slice | None, count: int) -> IntArray:
    """Row numbers 0..count-1 from what NumPy would take as an index."""
    if rows is None or isinstance(rows, slice):
        return np.arange(count, dtype=np.int64)[rows if rows is not None else slice(None)]
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
        raise IndexError(f"rows are numbers in one axis, not {numbers.dtype} {numbers.shape}")
    numbers = numbers.astype(np.int64)
    if len(numbers) and (numbers.min() < -count or numbers.max() >= count):
        raise IndexError(f"a row is outside of 0..{count - 1}")
    return np.where(numbers < 0, numbers + count, numbers)


def _is_run(rows: IntArray) -> bool:
    """Whether rows are n, n + 1, n + 2, ..."""
    return bool(
        len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1 and (rows[1:] > rows[:-1]).all()
    )


def _chunks_of(start: int, stop: int) -> IntArray:
    """The chunks that bytes [start, stop) lie in."""
    return np.arange(start // CHUNK, -(-stop // CHUNK), dtype=np.int64)


def _covered(first: IntArray, last: IntArray) -> IntArray:
    """All numbers that lie in any of the ranges [first, last], ascending."""
    if not len(first):
        return np.empty(0, dtype=np.int64)
    low, size = int(first.min()), int(last.max() - first.min()) + 2
    edges = np.bincount(first - low, minlength=size) - np.bincount(last + 1 - low, minlength=size)
    return np.flatnonzero(np.cumsum(edges) > 0) + low


def _columns(batch: Batch, types: Mapping[str, str], rows: int) -> dict[str, _Column]:
    """Where each column lies, after a check that the batch is of these types and rows."""
    buffers = iter(batch.buffers)
    widths = [3 if kind in ("id", "string") else 2 for kind in types.values()]
    if batch.rows != rows or len(batch.buffers) != sum(widths):
        raise ValueError(f"it has {batch.rows} rows and {len(batch.buffers)} buffers")
    if batch.nodes != ((rows, 0),) * len(types):
        raise ValueError("a column has missing values or another number of rows")
    return {
        name: _column(kind, list(islice(buffers, width)), rows)
        for (name, kind), width in zip(types.items(), widths, strict=True)
    }


def _column(kind: str, buffers: list[tuple[int, int]], rows: int) -> _Column:
    (_, gaps), *rest = buffers
    least = [_value_bytes(kind, rows)]
    if len(rest) == 2:
        least = [4 * (rows + 1), *least]
    if gaps or any(size < needed for (_, size), needed in zip(rest, least, strict=True)):
        raise ValueError(f"a column is too short for {rows} rows of {kind}")
    start = min(first for first, _ in rest)
    stop = max(first + size for first, size in rest)
    return _Column(kind, start, stop, offsets=rest[0][0], values=rest[-1][0])


def _value_bytes(kind: str, rows: int) -> int:
    """The least number of bytes that the values of so many rows take."""
    if kind in ("id", "string"):
        return 32 * rows if kind == "id" else 0
    dtype, inner = _parse_type(kind)
    if kind == "bool":
        return -(-rows // 8)
    return rows * dtype.itemsize * prod(inner)


def _parse_type(kind: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """NumPy's type and the inner shape of a column type such as `uint8[8,8]`."""
    if kind == "string":
        return np.dtype(object), ()
    name, _, inner = kind.removesuffix("]").partition("[")
    dtype = np.dtype(name).newbyteorder("<")
    return dtype, tuple(int(size) for size in inner.split(",")) if inner else ()


def _decode(
    data: npt.NDArray[np.uint8], column: _Column, start: int, stop: int
) -> npt.NDArray[Any]:
    """Rows [start, stop) of a column, copied out of the shard's memory."""
    if column.kind == "id":
        return _decode_ids(data, column, start, stop)
    if column.kind == "string":
        return _decode_texts(data, column, start, stop)
    if column.kind == "bool":
        packed = data[column.values + start // 8 : column.values - (-stop // 8)]
        bits = np.unpackbits(packed, bitorder="little")[start % 8 :][: stop - start]
        return bits.astype(np.bool_)
    dtype, inner = _parse_type(column.kind)
    width = dtype.itemsize * prod(inner)
    part = data[column.values + start * width : column.values + stop * width]
    return part.copy().view(dtype).reshape(stop - start, *inner)


def _texts(data: npt.NDArray[np.uint8], column: _Column, start: int, stop: int) -> tuple[
    npt.NDArray[np.int32], bytes
]:  # fmt: skip
    """The offsets of texts [start, stop), from 0, and the bytes that they lie in."""
    at = column.offsets
    offsets = data[at + 4 * start : at + 4 * (stop + 1)].copy().view("<i4")
    first, last = int(offsets[0]), int(offsets[-1])
    if first < 0 or (offsets[1:] < offsets[:-1]).any() or column.values + last > column.stop:
        raise ValueError("a text runs past its end")
    return offsets - offsets[0], data[column.values + first : column.values + last].tobytes()


def _decode_ids(data: npt.NDArray[np.uint8], column: _Column, start: int, stop: int) -> Ids:
    """Ids from their 32 hex characters each."""
    offsets, text = _texts(data, column, start, stop)
    ids = np.frombuffer(bytes.fromhex(text.decode("ascii")), dtype=np.uint8)
    if (np.diff(offsets) != 32).any() or ids.size != 16 * (stop - start):
        raise ValueError("an id has not 32 characters")
    return ids.reshape(-1, 16).copy()


def _decode_texts(
    data: npt.NDArray[np.uint8], column: _Column, start: int, stop: int
) -> npt.NDArray[np.object_]:
    offsets, text = _texts(data, column, start, stop)
    edges = offsets.tolist()
    texts = np.empty(stop - start, dtype=object)
    texts[:] = [text[low:high].decode() for low, high in pairwise(edges)]
    return texts
