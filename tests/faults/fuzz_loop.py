"""Feeds mutated files to whatever reads what others made, and says what came of it.

Run as `python fuzz_loop.py KIND INPUTS SEED FOLDER`; prints counts as JSON. It is a process of its
own so that its death, which is what is sought, is seen; the input that it was working on then lies
in the folder as `input`. Its address space is limited, so a vast allocation is a `MemoryError`.
"""

import functools
import gzip
import hashlib
import io
import json
import random
import resource
import struct
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from fault_cases import picture
from PIL import Image

from veilset.data.decode import Decoded, DecodeParams, Refused, decode, decode_packed, unpack
from veilset.data.decode_pool import Died, Limits, run_jobs
from veilset.data.manifest import Manifest
from veilset.data.shards import ImageSet, write_set
from veilset.data.sources import FAULTS, open_source
from veilset.errors import CorruptError, SourceError
from veilset.files import read_table, write_table
from veilset.journal import append_to_journal, read_journal

HERE_BYTES = 1 << 30  # of address space for this process, beside what it has at the start
THERE_BYTES = 192 << 20  # for a decoding process
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


# ------------------------------------------------------------------------------- mutations


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to four changes of the kinds that break parsers."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        if not changed:
            break
        draw.choice(CHANGES)(changed, draw)
    return bytes(changed)


def flip(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def put_byte(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] = draw.randrange(256)


def put_number(data: bytearray, draw: random.Random) -> None:
    at, kind = draw.randrange(len(data)), draw.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
    number = draw.choice(NUMBERS) & ((1 << 8 * struct.calcsize(kind)) - 1)
    written = struct.pack(kind, number)[: len(data) - at]
    data[at : at + len(written)] = written


def cut_end(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def cut_out(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    del data[at : at + draw.randint(1, 40)]


def double(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    data[at:at] = data[at : at + draw.randint(1, 200)]


def insert(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    data[at:at] = draw.randbytes(draw.randint(1, 40))


CHANGES = (flip, flip, put_byte, put_byte, put_number, put_number, cut_end, cut_out, double, insert)


def inputs(data: bytes, count: int, draw: random.Random) -> Iterator[bytes]:
    """So many inputs that differ from the original."""
    while count:
        found = mutated(data, draw)
        if found != data:
            yield found
            count -= 1


# ---------------------------------------------------------------------------------- images

PARAMS = DecodeParams(size=(12, 20), fit="stretch", max_pixels=1_000_000)


def image_file(kind: str, **options: Any) -> bytes:
    y, x, c = np.mgrid[0:12, 0:20, 0:3]
    picture = Image.fromarray(((y * 17 + x * 9 + c * 60 + x * y) % 256).astype(np.uint8))
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


IMAGES: Mapping[str, Callable[[], bytes]] = {
    "png": lambda: image_file("PNG"),
    "jpeg": lambda: image_file("JPEG"),
    "tiff": lambda: image_file("TIFF", compression="tiff_lzw"),
    "gif": lambda: image_file("GIF"),
    "bmp": lambda: image_file("BMP"),
    "webp": lambda: image_file("WEBP"),
}


def fuzz_images(kind: str, count: int, draw: random.Random, folder: Path) -> Counter[str]:
    """Every input is an image of the asked shape or has a reason; checksums are believed."""
    original = IMAGES[kind]()
    whole = decode(original, PARAMS)
    assert isinstance(whole, Decoded)
    limits = Limits(timeout_seconds=10, memory_bytes=THERE_BYTES, answer_bytes=12 * 20 * 3)
    work = functools.partial(decode_packed, PARAMS)
    said: Counter[str] = Counter()
    jobs = ((content, content) for content in inputs(original, count, draw))
    for content, answer in run_jobs(work, jobs, limits):
        assert answer is not None
        result = answer if isinstance(answer, Died) else unpack(answer, PARAMS)
        if isinstance(result, Decoded):
            assert result.pixels.shape == PARAMS.shape and result.pixels.dtype == np.uint8
            # Cut short, or under checksums: all of the picture or nothing.
            if kind == "png" or original.startswith(content):
                (folder / "input").write_bytes(content)
                assert result.digest == whole.digest, "a partial image was taken"
            said["image"] += 1
        else:
            assert result.sentence and "\n" not in result.sentence
            said[result.reason] += 1
            assert isinstance(result, Refused | Died)
    return said


# --------------------------------------------------------------------------------- sources


def members() -> dict[str, bytes]:
    return {f"{'ab'[n % 2]}/{n}.png": picture(n, shape=(6, 6)) for n in range(4)}


def zip_file() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members().items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def tar_file() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members().items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), {"comment": "x" * 40}
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue().rstrip(b"\0") + bytes(1024)


def npz_file() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, a=np.arange(200), b=np.ones((3, 4)))
    return out.getvalue()


def parquet_file() -> bytes:
    rows = [{"bytes": content, "path": name} for name, content in members().items()]
    out = io.BytesIO()
    table = pa.table({"image": rows, "label": [0, 1, 0, 1]})
    pq.write_table(table, out, write_page_checksum=True, compression="snappy")
    return out.getvalue()


def idx_file() -> bytes:
    return struct.pack(">IIII", 0x803, 4, 28, 28) + random.Random(0).randbytes(4 * 784)  # noqa: S311


def fuzz_source(kind: str, count: int, draw: random.Random, folder: Path) -> Counter[str]:
    """A source gives items, each whole or with a fault's code, or refuses in one sentence."""
    original = SOURCES[kind]()
    known = set(members().values())
    path, spec = folder / "input", {"path": "input"}
    if kind == "idx":
        raw = folder / "tv/MNIST/raw"
        raw.mkdir(parents=True)
        path = raw / "train-images-idx3-ubyte"
        labels = struct.pack(">II", 0x801, 4) + bytes([0, 1, 2, 3])
        for part in ("train", "t10k"):
            (raw / f"{part}-images-idx3-ubyte").write_bytes(original)
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
        options = {"dataset": "MNIST", "arguments": {"train": True}}
        spec = {"source": "torchvision", "path": "tv", "options": options}  # type: ignore[dict-item]
    path.write_bytes(original)
    assert len(list(open_source(spec, folder).items())) >= 2
    limit_memory()
    said: Counter[str] = Counter()
    for content in inputs(original, count, draw):
        path.write_bytes(gzip.compress(content, 1) if kind == "tar" and draw.random() < 0.2
                         else content)  # fmt: skip
        try:
            items = list(open_source(spec, folder).items())
        except SourceError as error:
            assert "\n" not in str(error)
            said["refused"] += 1
            continue
        for item in items:
            assert item.name.isprintable()
            assert item.fault is None or (item.fault in FAULTS and item.content == b"")
            if kind == "zip" and item.fault is None:
                assert item.content in known, "a member passed its checksum and is another"
        said["items"] += 1
    return said


SOURCES: Mapping[str, Callable[[], bytes]] = {
    "zip": zip_file,
    "tar": tar_file,
    "npz": npz_file,
    "parquet": parquet_file,
    "idx": idx_file,
}


# ------------------------------------------------------------------------------ our own files


def small_set(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 256, (3, 16), dtype=np.uint8)
    images = draw.integers(0, 256, (3, 2, 2, 1), dtype=np.uint8)
    group = np.array(["x", "", "ü"], dtype=object)
    write_set(
        folder / "set", kind="ingested", dataset="tiny", classes=("a", "b"),
        parts={"train": (ids, np.arange(3) % 2, images, {"group": group})},
    )  # fmt: skip
    return folder / "set"


def fuzz_manifest(kind: str, count: int, draw: random.Random, folder: Path) -> Counter[str]:
    path = small_set(folder) / "manifest.json"
    limit_memory()
    for content in inputs(path.read_bytes(), count, draw):
        with expected(CorruptError):
            Manifest.from_bytes(content, path)
    return Counter(refused=count)


def fuzz_shard(kind: str, count: int, draw: random.Random, folder: Path) -> Counter[str]:
    """Shards whose hashes are right, as a hostile maker's would be: right arrays or an error."""
    place = small_set(folder)
    path, manifest = place / "train-00000.arrow", Manifest.load(place)
    original = path.read_bytes()
    limit_memory()
    said: Counter[str] = Counter()
    for content in inputs(original, count, draw):
        path.write_bytes(content)
        # By the manifest as it was written, every change is refused.
        with expected(CorruptError):
            ImageSet(place, manifest).verify()
        digest = hashlib.sha256(content).hexdigest()
        entry = manifest.shards[0].model_copy(
            update={"bytes": len(content), "sha256": digest, "chunks": (digest,)}
        )
        found = ImageSet(place, manifest.model_copy(update={"shards": (entry,)}))
        try:
            assert found.images("train").shape == (3, 2, 2, 1)
            assert found.ids("train").shape == (3, 16)
            assert found.labels("train").shape == (3,)
            assert all(isinstance(text, str) for text in found.column("train", "group"))
            said["rows"] += 1
        except CorruptError as error:
            assert "\n" not in str(error)
            said["refused"] += 1
    return said


def fuzz_table(kind: str, count: int, draw: random.Random, folder: Path) -> Counter[str]:
    path = folder / "input"
    write_table(path, pd.DataFrame({"id": ["a", "b", None], "label": [1, 2, 3]}))
    whole, original = read_table(path), path.read_bytes()
    limit_memory()
    said: Counter[str] = Counter()
    for content in inputs(original, count, draw):
        path.write_bytes(content)
        try:
            found = read_table(path)
        except CorruptError:
            said["refused"] += 1
            continue
        # The seal alone was cut out: a table of an earlier version, under checksums of its pages.
        assert found.equals(whole) and list(found.columns) == list(whole.columns)
        said["unsealed"] += 1
    return said


def fuzz_journal(kind: str, count: int, draw: random.Random, folder: Path) -> Counter[str]:
    path = folder / "input"
    append_to_journal(path, *({"event": "made", "number": number} for number in range(4)))
    whole, original = read_journal(path), path.read_bytes()
    limit_memory()
    said: Counter[str] = Counter()
    for content in inputs(original, count, draw):
        path.write_bytes(content)
        try:
            found = read_journal(path)
        except CorruptError:
            said["refused"] += 1
            continue
        assert found == whole[: len(found)] and len(found) < len(whole)
        said["shorter"] += 1
    return said


class expected:  # noqa: N801 - reads as a word
    """A block that must end in an error of a kind."""

    def __init__(self, kind: type[Exception]) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        assert error is not None, "a changed file was taken"
        return isinstance(error, self._kind)


def limit_memory() -> None:
    """From here on, an allocation beyond the limit is a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HERE_BYTES, resource.RLIM_INFINITY))


OURS: Mapping[str, Callable[..., Counter[str]]] = {
    "manifest": fuzz_manifest,
    "shard": fuzz_shard,
    "table": fuzz_table,
    "journal": fuzz_journal,
}


def fuzz(kind: str, count: int, seed: int, folder: Path) -> Counter[str]:
    draw = random.Random(f"{kind} {seed}")  # noqa: S311 - no secret
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if kind in IMAGES:
        return fuzz_images(kind, count, draw, folder)
    if kind in SOURCES:
        return fuzz_source(kind, count, draw, folder)
    return OURS[kind](kind, count, draw, folder)


if __name__ == "__main__":
    *kinds, inputs_each, given_seed, place = sys.argv[1:]
    outcomes = {}
    for name in kinds:
        own = Path(place) / name
        own.mkdir()
        outcomes[name] = dict(sorted(fuzz(name, int(inputs_each), int(given_seed), own).items()))
    sys.stdout.write(json.dumps(outcomes) + "\n")
