"""Exports of an image set for other tools: Arrow, Parquet, folders of PNG, tar archives of PNG.

PNGs are stored, not compressed, and written here: the bytes of a compressed PNG depend on the zlib
of the host. Nothing but pixels, labels, ids and the set's own further columns goes out: no times,
owners or metadata. Every chunk is verified before its pixels leave. All of it is ours.
"""

import hashlib
import io
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from veilset.data.manifest import CHUNK, ShardEntry
from veilset.data.shards import ImageSet, open_shard, read_chunk, record_batch
from veilset.errors import SettingsError, VeilsetError
from veilset.files import atomic_file, json_text, require_space, staged_folder, write_json
from veilset.types import Columns, Ids, Images, Labels

Format = Literal["arrow", "parquet", "imagefolder", "webdataset"]

_BATCH_BYTES = 16 << 20
_STORED = 65535  # the longest stored block of deflate
_FILE_BYTES = {"arrow": 0, "parquet": 64, "imagefolder": 4096, "webdataset": 3072}
_UNSAFE = frozenset('/\\:*?"<>|%')


def export_set(source: ImageSet, output: Path, format: Format, *, replace: bool = False) -> None:
    """Writes a set in another format; the folder appears whole or not at all.

    Equal sets give equal bytes (Parquet: under one version of Arrow, which it names in its footer).

    - `arrow`: the set itself, verified.
    - `parquet`: `<split>-00000.parquet`, the shard's columns, uncompressed, pages with checksums;
      and `classes.json`.
    - `imagefolder`: `<split>/<class>/<id>.png`; further columns do not fit and stay out.
    - `webdataset`: `<split>-00000.tar` of `<id>.png` and `<id>.cls` (the label as digits); and
      `classes.json`; further columns stay out.

    Args:
        source: An open set.
        output: The folder to make.
        format: Which format.
        replace: Replace a folder that is there and not empty, with all that is in it.

    Raises:
        SettingsError: There is no such format.
        VeilsetError: The folder is there and not empty, and `replace` is not set.
        CorruptError: A stored chunk is not as recorded; nothing is exported.
        DiskFullError: The disk has no room.
        BusyError: Another run writes this folder.
    """
    if format not in get_args(Format):
        raise SettingsError(f"{format!r} is no export format: use one of {get_args(Format)}.")
    _require_free(output, replace)
    rows = sum(source.manifest.splits.values())
    size = sum(entry.bytes for entry in source.manifest.shards)
    require_space(output.parent, size + rows * _FILE_BYTES[format])
    plan = hashlib.sha256(f"{format} {json_text(source.manifest.model_dump())}".encode())
    with staged_folder(output, plan.hexdigest()) as staging:
        for entry in source.manifest.shards:
            _export_shard(source, entry, staging, format)
        if format == "arrow":
            source.manifest.save(staging)
        elif format != "imagefolder":
            write_json(staging / "classes.json", list(source.classes))


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """A PNG of stored (not compressed) pixels, the same bytes on every machine.

    Args:
        image: uint8 (H, W, C), C = 1 (grey) or 3 (RGB).
    """
    height, width, channels = image.shape
    lines = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # filter 0 before each line
    lines[:, 1:] = image.reshape(height, -1)
    colour = {1: 0, 3: 2}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", _stored(lines.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, data) for kind, data in parts)


def class_folders(classes: tuple[str, ...]) -> tuple[str, ...]:
    """A folder name for each class: its own name, unsafe characters as %XX, all different.

    Names that are too long for a file system are cut and end in a hash.
    """
    return tuple(_folder_name(name) for name in classes)


def _require_free(output: Path, replace: bool) -> None:
    """Refuses to replace what may be somebody's own folder."""
    taken = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if taken and not replace:
        raise VeilsetError(
            f"{output} is there already and not empty: choose another place, or say that it may "
            "be replaced with all that is in it."
        )


def _export_shard(source: ImageSet, entry: ShardEntry, staging: Path, format: Format) -> None:
    if format == "arrow":
        _copy(source, entry, staging / entry.file)
    elif format == "parquet":
        _write_parquet(source, entry, (staging / entry.file).with_suffix(".parquet"))
    elif format == "webdataset":
        _write_tar(source, entry, (staging / entry.file).with_suffix(".tar"))
    else:
        _write_folders(source, entry, staging / entry.split)


def _batches(source: ImageSet, entry: ShardEntry) -> Iterator[tuple[Ids, Labels, Images, Columns]]:
    """One shard's rows, about 16 MiB at a time."""
    shards = [shard for shard in source.manifest.shards if shard.split == entry.split]
    first = sum(shard.rows for shard in shards[: shards.index(entry)])
    size = max(1, _BATCH_BYTES // int(np.prod(source.shape)))
    for start in range(first, first + entry.rows, size):
        part = slice(start, min(start + size, first + entry.rows))
        ids, labels = source.ids(entry.split, part), source.labels(entry.split, part)
        columns = {n: source.column(entry.split, n, part) for n in source.manifest.columns}
        yield ids, labels, source.images(entry.split, part), columns


def _copy(source: ImageSet, entry: ShardEntry, path: Path) -> None:
    space = memoryview(bytearray(min(CHUNK, entry.bytes)))
    origin = source.folder / entry.file
    with open_shard(origin, entry) as handle, atomic_file(path, size=entry.bytes) as file:
        for chunk in range(len(entry.chunks)):
            view = space[: min(CHUNK, entry.bytes - chunk * CHUNK)]
            read_chunk(handle, origin, entry, chunk, view)
            file.write(view)


def _write_parquet(source: ImageSet, entry: ShardEntry, path: Path) -> None:
    batches = (record_batch(*rows) for rows in _batches(source, entry))
    first = next(batches)
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(
            file, first.schema, compression="none", use_dictionary=False, write_statistics=False,
            store_schema=False, write_page_checksum=True, version="2.6", data_page_version="1.0",
        ) as writer,
    ):  # fmt: skip
        writer.write_batch(first, row_group_size=len(first))
        for batch in batches:
            writer.write_batch(batch, row_group_size=len(batch))


def _write_tar(source: ImageSet, entry: ShardEntry, path: Path) -> None:
    with (
        atomic_file(path) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for ids, labels, images, _ in _batches(source, entry):
            for name, label, image in zip(_names(ids), labels.tolist(), images, strict=True):
                _add(archive, f"{name}.png", png(image))
                _add(archive, f"{name}.cls", str(label).encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    # A bare TarInfo has mode 0644, no owner and the time 0.
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _write_folders(source: ImageSet, entry: ShardEntry, folder: Path) -> None:
    # Not atomic one by one: the whole folder is, and nothing in it is trusted by a rerun.
    folders = class_folders(source.classes)
    for ids, labels, images, _ in _batches(source, entry):
        for label in np.unique(labels).tolist():
            (folder / _folder_of(folders, label)).mkdir(parents=True, exist_ok=True)
        for name, label, image in zip(_names(ids), labels.tolist(), images, strict=True):
            (folder / _folder_of(folders, label) / f"{name}.png").write_bytes(png(image))


def _folder_of(folders: tuple[str, ...], label: int) -> str:
    return folders[label] if 0 <= label < len(folders) else f"label%{label}"


def _folder_name(name: str) -> str:
    safe = "".join(
        f"%{ord(c):02X}" if c in _UNSAFE or not c.isprintable() else c for c in name
    )  # fmt: skip
    if safe.startswith(".") or not safe:
        safe = f"%{ord('.'):02X}{safe[1:]}" if safe else "%"
    if len(safe.encode()) > 200:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        safe = safe.encode()[:160].decode(errors="ignore") + "%" + digest
    return safe


def _names(ids: Ids) -> list[str]:
    return [row.tobytes().hex() for row in ids]


def _stored(data: bytes) -> bytes:
    """A zlib stream of stored blocks (RFC 1950, 1951)."""
    blocks = []
    for start in range(0, len(data), _STORED):
        block = data[start : start + _STORED]
        last = start + _STORED >= len(data)
        blocks.append(struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF) + block)
    return b"\x78\x01" + b"".join(blocks) + struct.pack(">I", zlib.adler32(data))


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
