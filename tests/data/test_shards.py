"""Image sets: equal bytes for equal rows, verified before use, any rows in any order."""

import gc
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veilset.data import manifest as manifest_module
from veilset.data import shards as shards_module
from veilset.data.manifest import CHUNK, NAME, Manifest
from veilset.data.shards import (
    ImageSet,
    Part,
    column_type,
    rows_per_shard,
    shard_entry,
    write_set,
    write_shard,
)
from veilset.errors import BusyError, CorruptError, DiskFullError
from veilset.files import locked, sha256_file
from veilset.schemes.base import Pool

CLASSES = tuple("abcdefghij")
PAGE = 4096
FIXTURES = [HealthCheck.function_scoped_fixture]
PINNED = "b927441974aa20b6fcf36783b1cbaafbdef4e0a87fa2b61c0cf6736eeafcd938"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of a page instead of 4 MiB, so that small sets have many and rows lie across them."""
    monkeypatch.setattr(manifest_module, "CHUNK", PAGE)
    monkeypatch.setattr(shards_module, "CHUNK", PAGE)
    return PAGE


@pytest.fixture
def fast_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk in memory where there is one: these tests write many small sets."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as place:
        yield Path(place)


def rows(
    n: int, shape: tuple[int, int, int] = (8, 8, 3), seed: int = 0, further: bool = False
) -> Part:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 256, (n, 16), dtype=np.uint8)
    if n:
        ids[: n // 2, :12] = 0  # Some that differ late, and some bytes that are zero.
    labels = rng.integers(0, 10, n)
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    columns: dict[str, npt.NDArray[Any]] = {}
    if further:
        texts = ["", "é", "a longer text", "x"]
        columns = {
            "group": np.array([texts[i % 4] + str(i) for i in range(n)], dtype=object),
            "mask": rng.integers(0, 256, (n, 3, 2), dtype=np.uint8),
            "score": rng.normal(size=n),
            "pair": rng.integers(-9, 9, (n, 2), dtype=np.int32),
            "ok": rng.integers(0, 2, n).astype(bool),
        }
    return ids, labels, images, columns


def in_order(part: Part) -> Part:
    order = sorted(range(len(part[0])), key=lambda i: part[0][i].tobytes())
    ids, labels, images, columns = part
    return ids[order], labels[order], images[order], {n: v[order] for n, v in columns.items()}


def save(folder: Path, shard_bytes: int = 1 << 20, **parts: Part) -> Manifest:
    return write_set(
        folder, kind="ingested", dataset="d", classes=CLASSES, parts=parts, shard_bytes=shard_bytes
    )


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def assert_equals(found: ImageSet, split: str, part: Part) -> None:
    ids, labels, images, columns = in_order(part)
    np.testing.assert_array_equal(found.ids(split), ids)
    np.testing.assert_array_equal(found.labels(split), labels)
    np.testing.assert_array_equal(found.images(split), images)
    assert found.images(split).shape == images.shape
    for name, values in columns.items():
        back = found.column(split, name)
        np.testing.assert_array_equal(back, values)
        if values.dtype != object:
            assert back.dtype == values.dtype


# Round trips and equal bytes


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.dictionaries(st.sampled_from(["train", "validation", "test"]), st.integers(0, 40),
                          min_size=1),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])),
    per_shard=st.integers(1, 15), further=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_set_reads_back_and_has_the_same_bytes_in_any_order(
    fast_disk: Path, sizes: dict[str, int], shape: tuple[int, int, int],
    per_shard: int, further: bool, seed: int,
) -> None:  # fmt: skip
    folder = Path(tempfile.mkdtemp(dir=fast_disk))
    parts = {s: rows(n, shape, seed + i, further) for i, (s, n) in enumerate(sizes.items())}
    size = per_shard * int(np.prod(shape))
    made = save(folder / "one", size, **parts)
    shuffled = {}
    for split, (ids, labels, images, columns) in reversed(list(parts.items())):
        order = np.random.default_rng(seed).permutation(len(ids))
        # Also another layout in memory: the bytes on disk must not show it.
        turned = np.asfortranarray(images[order])
        others = {n: v[order] for n, v in reversed(list(columns.items()))}
        shuffled[split] = (ids[order], labels[order], turned, others)
    save(folder / "two", size, **shuffled)
    assert digests(folder / "one") == digests(folder / "two")
    assert all(shard.rows <= per_shard for shard in made.shards)
    found = ImageSet.open(folder / "two")
    assert found.splits == tuple(sorted(sizes))
    assert {s: found.count(s) for s in found.splits} == sizes
    for split, part in parts.items():
        assert_equals(found, split, part)
    found.verify()


def test_rows_lie_in_the_promised_format(tmp_path: Path) -> None:
    part = rows(20, further=True)
    save(tmp_path / "s", 8 * 192, train=part)
    ids, labels, images, _ = in_order(part)
    files = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert files == ["manifest.json", *(f"train-0000{i}.arrow" for i in range(3))]
    table = pa.concat_tables(
        pa.ipc.open_file(pa.memory_map(str(tmp_path / "s" / name))).read_all() for name in files[1:]
    )
    assert table.schema.field("id").type == pa.string()
    assert table.schema.field("label").type == pa.int64()
    assert table.schema.field("image").type == pa.binary(192)
    assert table.schema.metadata is None
    assert table.schema.names[:3] == ["id", "label", "image"]
    assert table["id"].to_pylist() == [i.tobytes().hex() for i in ids]
    assert table["label"].to_pylist() == labels.tolist()
    assert table["image"].to_pylist() == [image.tobytes() for image in images]


def test_the_bytes_of_a_shard_are_pinned(tmp_path: Path) -> None:
    # A changed hash means that sets of before are no longer made anew byte for byte.
    ids = np.arange(48, dtype=np.uint8).reshape(3, 16)
    images = np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3)
    columns = {"group": np.array(["a", "b", "é"]), "mask": images[:, 0]}
    path = tmp_path / "train-00000.arrow"
    entry = write_shard(path, "train", ids, np.array([0, 2, 1]), images, columns)
    assert entry.sha256 == sha256_file(path) == PINNED
    assert entry.bytes == path.stat().st_size


def test_a_shards_entry_can_be_made_from_its_file(tmp_path: Path) -> None:
    ids, labels, images, columns = in_order(rows(40_000, (16, 16, 1), further=True))
    path = tmp_path / "test-00003.arrow"
    entry = write_shard(path, "test", ids, labels, images, columns)
    assert len(entry.chunks) == -(-entry.bytes // CHUNK) > 2
    assert shard_entry(path) == entry
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptError):
        shard_entry(path)


def test_rows_per_shard() -> None:
    assert rows_per_shard((32, 32, 3)) == (256 << 20) // 3072
    assert rows_per_shard((224, 224, 3), 1) == 1
    assert rows_per_shard((1, 1, 1), 7) == 7


# Refusals


def wrong(change: Callable[[list[Any]], None]) -> list[Any]:
    part = list(in_order(rows(4)))
    change(part)
    return part


@pytest.mark.parametrize(
    "part",
    [
        wrong(lambda p: p.__setitem__(0, p[0][::-1])),
        wrong(lambda p: p.__setitem__(0, p[0][[0, 1, 1, 2]])),
        wrong(lambda p: p.__setitem__(0, p[0][:, :8])),
        wrong(lambda p: p.__setitem__(0, p[0].astype(np.int64))),
        wrong(lambda p: p.__setitem__(1, p[1].astype(np.int32))),
        wrong(lambda p: p.__setitem__(1, p[1][:3])),
        wrong(lambda p: p.__setitem__(2, p[2].astype(np.float32))),
        wrong(lambda p: p.__setitem__(2, p[2][:3])),
        wrong(lambda p: p.__setitem__(3, {"image": p[1]})),
        wrong(lambda p: p.__setitem__(3, {"x": p[1][:3]})),
        wrong(lambda p: p.__setitem__(3, {"x": np.array(["a", "b", None, "d"], dtype=object)})),
        wrong(lambda p: p.__setitem__(3, {"x": np.zeros(4, dtype=complex)})),
        [v[:0] for v in in_order(rows(4))[:3]],
    ],
)
def test_wrong_rows_are_refused_and_nothing_is_written(tmp_path: Path, part: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"must|column"):
        write_shard(tmp_path / "train-00000.arrow", "train", *part)
    assert list(tmp_path.iterdir()) == []


def test_an_id_that_occurs_twice_is_refused_and_the_old_set_stays(tmp_path: Path) -> None:
    save(tmp_path / "s", train=rows(5))
    before = digests(tmp_path / "s")
    ids, labels, images, columns = rows(5, seed=1)
    ids[3] = ids[1]
    with pytest.raises(ValueError, match="doubles"):
        save(tmp_path / "s", train=(ids, labels, images, columns))
    assert digests(tmp_path / "s") == before


def test_splits_that_disagree_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="disagree"):
        save(tmp_path / "s", train=rows(3), test=rows(3, (8, 8, 1)))
    with pytest.raises(ValueError, match="disagree"):
        save(tmp_path / "s", train=rows(3, further=True), test=rows(3))
    with pytest.raises(ValueError, match="shard name"):
        save(tmp_path / "s", **{"../train": rows(3)})
    assert not (tmp_path / "s").exists()


def test_column_types() -> None:
    assert column_type(np.zeros((2, 3, 4), dtype=np.uint8)) == "uint8[3,4]"
    assert column_type(np.zeros(2)) == "float64"
    assert column_type(np.array(["a"])) == column_type(np.array(["a"], dtype=object)) == "string"


def test_two_writers_of_one_set(tmp_path: Path) -> None:
    with locked(tmp_path / "s"), pytest.raises(BusyError):
        save(tmp_path / "s", train=rows(3))
    save(tmp_path / "s", train=rows(3))


# Any rows in any order


@pytest.mark.usefixtures("small_chunks")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), cache=st.sampled_from([0, 3 * PAGE, 1 << 20]))
def test_any_rows_in_any_order_are_numpy_indexing(
    fast_disk: Path, data: st.DataObject, cache: int
) -> None:
    folder = Path(tempfile.mkdtemp(dir=fast_disk)) / "s"
    shape = data.draw(st.sampled_from([(3, 5, 1), (24, 24, 3), (50, 40, 3)]))
    count = data.draw(st.integers(1, 60))
    part = rows(count, shape, count, further=True)
    save(folder, data.draw(st.integers(1, 30)) * int(np.prod(shape)), train=part)
    ids, labels, images, columns = in_order(part)
    found = ImageSet.open(folder, cache_bytes=cache)
    index = st.lists(st.integers(-count, count - 1), max_size=20).map(
        lambda chosen: np.array(chosen, dtype=np.int64)
    )
    for _ in range(4):
        chosen = data.draw(index | st.slices(count))
        np.testing.assert_array_equal(found.images("train", chosen), images[chosen])
        part_of = data.draw(st.slices(count))
        np.testing.assert_array_equal(found.ids("train", part_of), ids[part_of])
        np.testing.assert_array_equal(found.labels("train", part_of), labels[part_of])
        for name, values in columns.items():
            np.testing.assert_array_equal(found.column("train", name, part_of), values[part_of])


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_batches_are_all_rows_in_order(tmp_path: Path, size: int) -> None:
    part = rows(100)
    save(tmp_path / "s", 13 * 192, train=part)
    batches = list(ImageSet.open(tmp_path / "s").batches("train", size))
    assert [len(batch[0]) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    for position, values in enumerate(in_order(part)[:3]):
        joined = np.concatenate([batch[position] for batch in batches])
        np.testing.assert_array_equal(joined, values)
    with pytest.raises(ValueError, match="one row"):
        next(ImageSet.open(tmp_path / "s").batches("train", 0))


def test_what_is_returned_is_the_callers_own(tmp_path: Path) -> None:
    part = rows(10, further=True)
    save(tmp_path / "s", train=part)
    found = ImageSet.open(tmp_path / "s")
    for values in (found.images("train"), found.ids("train"), found.labels("train"),
                   found.column("train", "mask"), found.column("train", "score")):  # fmt: skip
        values[:] = 0
    assert_equals(found, "train", part)


@pytest.mark.parametrize("bad", [[10], [-11], [0, 10**15]])
def test_rows_that_there_are_not(tmp_path: Path, bad: list[int]) -> None:
    save(tmp_path / "s", train=rows(10))
    found = ImageSet.open(tmp_path / "s")
    with pytest.raises(IndexError):
        found.images("train", np.array(bad))
    with pytest.raises(IndexError):
        found.images("train", np.array([0.5]))  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        found.images("test")
    with pytest.raises(KeyError):
        found.column("train", "nothing")


def test_a_pool_gives_its_rows(tmp_path: Path) -> None:
    part = rows(30)
    save(tmp_path / "s", 7 * 192, train=part)
    pool: Pool = ImageSet.open(tmp_path / "s").pool("train")
    ids, labels, images, _ = in_order(part)
    np.testing.assert_array_equal(pool.ids, ids)
    np.testing.assert_array_equal(pool.labels, labels)
    chosen = np.array([29, 0, 0, 13])
    np.testing.assert_array_equal(pool.take(chosen), images[chosen])


def test_a_set_can_be_pickled_and_forked_and_shared_by_threads(tmp_path: Path) -> None:
    part = rows(300, (16, 16, 3))
    save(tmp_path / "s", 40 * 768, train=part)
    found = ImageSet.open(tmp_path / "s", cache_bytes=1)
    images = in_order(part)[2]
    assert_equals(pickle.loads(pickle.dumps(found)), "train", part)  # noqa: S301
    faults: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(30):
            chosen = rng.integers(0, 300, 9)
            if not np.array_equal(found.images("train", chosen), images[chosen]):
                faults.append("other pixels")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(found.images("train"), images) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert faults == []


# Corruption


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    ids, labels, images, _ = rows(3, (2, 2, 1))
    part = ids, labels, images, {"group": np.array(["a", "b", ""], dtype=object)}
    save(tmp_path / "tiny", train=part)
    return tmp_path / "tiny"


USES: list[Callable[[ImageSet], object]] = [
    lambda found: found.images("train"),
    lambda found: found.images("train", np.array([1])),
    lambda found: found.ids("train"),
    lambda found: found.labels("train"),
    lambda found: found.column("train", "group"),
    lambda found: list(found.batches("train", 2)),
    lambda found: found.pool("train").take(np.array([0])),
    lambda found: found.verify(),
]


def test_every_flipped_bit_of_a_shard_is_noticed_before_use(tiny: Path) -> None:
    path = tiny / "train-00000.arrow"
    data = path.read_bytes()
    found = ImageSet.open(tiny)
    with path.open("r+b", buffering=0) as file:
        for flip in range(8 * len(data)):
            broken = data[flip // 8] ^ (1 << flip % 8)
            os.pwrite(file.fileno(), bytes([broken]), flip // 8)
            fresh = ImageSet(tiny, found.manifest)
            with pytest.raises(CorruptError, match="chunk 0"):
                USES[flip % len(USES)](fresh)
            os.pwrite(file.fileno(), data[flip // 8 : flip // 8 + 1], flip // 8)
    assert path.read_bytes() == data
    ImageSet.open(tiny).verify()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("change", ["cut", "longer", "empty", "gone", "folder", "pipe", "other"])
def test_a_cut_or_replaced_shard_is_corrupt_and_never_kills(
    tiny: Path, use: Callable[[ImageSet], object], change: str
) -> None:
    path = tiny / "train-00000.arrow"
    data = path.read_bytes()
    found = ImageSet.open(tiny)
    path.unlink()
    if change in ("cut", "longer", "empty", "other"):
        changed = {"cut": data[:-1], "longer": data + b"\0", "empty": b"", "other": data[::-1]}
        path.write_bytes(changed[change])
    elif change == "folder":
        path.mkdir()
    elif change == "pipe":
        os.mkfifo(path)
    with pytest.raises(CorruptError, match=r"train-00000\.arrow") as caught:
        use(found)
    assert "\n" not in str(caught.value)
    if change != "other":  # Of the right length: the pixels are looked at when they are used.
        with pytest.raises(CorruptError):
            ImageSet.open(tiny)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("cache", [0, 1 << 20])
def test_damage_is_named_by_chunk_and_leaves_the_other_chunks_usable(
    tmp_path: Path, cache: int
) -> None:
    part = rows(200, (16, 16, 3))
    made = save(tmp_path / "s", 1 << 20, train=part)
    images = in_order(part)[2]
    path = tmp_path / "s" / "train-00000.arrow"
    data = bytearray(path.read_bytes())
    at = data.index(images[77].tobytes()) + 500
    data[at] ^= 0x10
    path.write_bytes(data)
    found = ImageSet.open(tmp_path / "s", cache_bytes=cache)
    assert len(made.shards) == 1
    np.testing.assert_array_equal(found.images("train", np.array([190, 3])), images[[190, 3]])
    for _ in range(2):
        with pytest.raises(CorruptError, match=f"chunk {at // PAGE} of"):
            found.images("train", np.array([3, 77]))
    with pytest.raises(CorruptError, match=f"chunk {at // PAGE} of"):
        found.verify()


@pytest.mark.usefixtures("small_chunks")
def test_a_shard_that_changes_while_the_set_is_open_is_verified_anew(tmp_path: Path) -> None:
    part = rows(100, (16, 16, 3))
    save(tmp_path / "s", train=part)
    images = in_order(part)[2]
    found = ImageSet.open(tmp_path / "s", cache_bytes=0)
    np.testing.assert_array_equal(found.images("train"), images)
    path = tmp_path / "s" / "train-00000.arrow"
    data = path.read_bytes()
    at = data.index(images[50].tobytes())
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))
    os.utime(path, ns=(1, 1))
    with pytest.raises(CorruptError, match="chunk"):
        found.images("train", np.array([50]))
    path.write_bytes(data)
    np.testing.assert_array_equal(found.images("train", np.array([50])), images[[50]])
    os.truncate(path, len(data) // 2)
    with pytest.raises(CorruptError, match="cut short"):
        found.images("train", np.array([50]))


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "s", train=rows(100))
    found = ImageSet.open(tmp_path / "s")
    path = tmp_path / "s" / "train-00000.arrow"
    shard = found._shards[0]
    with shard.opened() as handle:
        os.truncate(path, 1000)
        with pytest.raises(CorruptError, match="cut short"):
            shard.take(handle, np.arange(3), np.empty((3, 192), dtype=np.uint8))


def test_verify_compares_the_hash_of_the_whole_file_too(tiny: Path) -> None:
    found = ImageSet.open(tiny)
    entry = found.manifest.shards[0].model_copy(update={"sha256": "0" * 64})
    found.manifest.model_copy(update={"shards": (entry,)}).save(tiny)
    with pytest.raises(CorruptError, match="not the file"):
        ImageSet.open(tiny).verify()


def test_a_shard_missing_from_the_manifest_is_ignored(tiny: Path) -> None:
    (tiny / "train-00001.arrow").write_bytes(b"left by somebody")
    assert ImageSet.open(tiny).count("train") == 3


def foreign(table: pa.Table, batch: int) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    "data",
    [
        b"ARROW1\0\0" + bytes(2000),
        b"ARROW1\0\0\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(2000),
        b"ARROW1\0\0\xff\xff\xff\xff\x00\x01\x00\x00" + b"\xff" * 2000,
        foreign(pa.table({"id": ["a" * 32] * 3, "label": [0, 1, 2], "image": ["abcd"] * 3}), 9),
        foreign(pa.table({"id": ["a" * 31] * 3, "label": [0, 1, 2],
                          "image": pa.array([b"abcd"] * 3, pa.binary(4)),
                          "group": ["", "", ""]}), 9),
        foreign(pa.table({"id": ["z" * 32] * 3, "label": [0, 1, 2],
                          "image": pa.array([b"abcd"] * 3, pa.binary(4)),
                          "group": ["", "", ""]}), 9),
        foreign(pa.table({"id": ["a" * 32] * 3, "label": [0, None, 2],
                          "image": pa.array([b"abcd"] * 3, pa.binary(4)),
                          "group": ["", "", ""]}), 9),
        foreign(pa.table({"id": ["a" * 32] * 3, "label": [0, 1, 2],
                          "image": pa.array([b"abcd"] * 3, pa.binary(4)),
                          "group": ["", "", ""]}), 2),
    ],
)  # fmt: skip
def test_a_well_hashed_shard_that_is_none_is_corrupt(tiny: Path, data: bytes) -> None:
    path = tiny / "train-00000.arrow"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    entry = Manifest.load(tiny).shards[0].model_copy(
        update={"bytes": len(data), "sha256": digest, "chunks": (digest,)}
    )  # fmt: skip
    Manifest.load(tiny).model_copy(update={"shards": (entry,)}).save(tiny)
    with pytest.raises(CorruptError, match="no shard of this set"):
        ImageSet.open(tiny).ids("train")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_a_well_hashed_shard_of_rubbish_never_kills(
    tiny: Path, flips: list[tuple[int, int]]
) -> None:
    path = tiny / "train-00000.arrow"
    manifest, original = Manifest.load(tiny), path.read_bytes()
    data = bytearray(original)
    for position, value in flips:
        data[position % len(data)] = value
    digest = hashlib.sha256(data).hexdigest()
    entry = manifest.shards[0].model_copy(update={"sha256": digest, "chunks": (digest,)})
    path.write_bytes(data)
    found = ImageSet(tiny, manifest.model_copy(update={"shards": (entry,)}))
    try:
        for use in USES:
            try:
                use(found)
            except CorruptError:
                continue
    finally:
        path.write_bytes(original)


# Memory


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from veilset.data.manifest import Manifest
        from veilset.data.shards import ImageSet, shard_name, write_shard
        folder, shards = Path(sys.argv[1]), int(sys.argv[2])
        folder.mkdir()
        entries = []
        for index in range(shards):
            ids = np.zeros((2048, 16), np.uint8)
            counted = np.arange(index * 2048, (index + 1) * 2048, dtype=">u4")
            ids[:, :4] = counted.view(np.uint8).reshape(-1, 4)
            images = np.full((2048, 64, 64, 1), index, np.uint8)
            path = folder / shard_name("train", index)
            entries.append(write_shard(path, "train", ids, np.zeros(2048, np.int64), images))
        Manifest(kind="ingested", dataset="d", shape=(64, 64, 1), classes=("a",),
                 splits={"train": 2048 * shards}, shards=entries).save(folder)
        found = ImageSet.open(folder, cache_bytes=8 << 20)
        seen = 0
        for ids, labels, images in found.batches("train", 100):
            seen += len(images)
        rng = np.random.default_rng(0)
        for _ in range(20):
            found.images("train", rng.integers(0, seen, 50))
        found.verify()
        assert seen == 2048 * shards
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    few, many = (
        int(subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path / str(n), str(n)],
                           capture_output=True, text=True, check=True).stdout)
        for n in (2, 12)
    )  # fmt: skip
    # Ten more shards of 8 MiB pass through; less than two of them stay.
    assert many - few < 16 << 10


# Kills


KILLER = """
    # Forks writers, kills them at random moments, and looks at what they leave.
    import json, os, random, shutil, signal, sys, time
    from pathlib import Path
    import numpy as np
    from veilset.data.manifest import Manifest
    from veilset.data.shards import ImageSet, shard_entry, shard_name, write_set, write_shard
    from veilset.errors import CorruptError, VeilsetError
    from veilset.files import staged_folder

    root, mode, kills, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    COUNT, PER = 600, 100

    def part(version):
        rng = np.random.default_rng(version)
        ids = np.arange(COUNT * 8, dtype=">u2").view(np.uint8).reshape(COUNT, 16)
        images = rng.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
        return ids, rng.integers(0, 9, COUNT), images, {}

    def manifest(entries):
        return Manifest(kind="ingested", dataset="d", shape=(32, 32, 3), classes=tuple("abcdefghi"),
                        splits={"train": COUNT}, shards=tuple(entries))

    def shards(folder, version, keep):
        ids, labels, images, _ = part(version)
        entries = []
        for index in range(COUNT // PER):
            path, at = folder / shard_name("train", index), slice(index * PER, (index + 1) * PER)
            if keep and path.exists():
                entries.append(shard_entry(path))
            else:
                entries.append(write_shard(path, "train", ids[at], labels[at], images[at]))
        manifest(entries).save(folder)

    def write(final, version):
        if mode == "set":
            write_set(final, kind="ingested", dataset="d", classes=tuple("abcdefghi"),
                      parts={"train": part(version)}, shard_bytes=PER * 3072)
        elif mode == "resumed":
            with staged_folder(final, f"plan {version}") as folder:
                shards(folder, version, keep=True)
        else:  # The planted fault: plain writes to the final place.
            source = root / f"reference-{version}"
            final.mkdir(exist_ok=True)
            for path in sorted(source.iterdir(), reverse=True):
                with (final / path.name).open("wb") as file:
                    for start in range(0, path.stat().st_size, 1000):
                        file.write(path.read_bytes()[start:start + 1000])

    def content(folder):
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    found = {"torn": 0, "leftovers": 0, "finished": 0, "old": 0, "new": 0}
    references = {}
    for version in (0, 1):
        folder = root / f"reference-{version}"
        with staged_folder(folder, "r") as staging:
            shards(staging, version, keep=False)
        references[version] = content(folder)
    place = root / "work"
    place.mkdir()
    final = place / "set"
    began = time.perf_counter()
    write(final, 0)
    took = time.perf_counter() - began
    random.seed(seed)
    for kill in range(kills):
        version = random.randrange(2)
        child = os.fork()
        if child == 0:
            try:
                write(final, version)
            finally:
                os._exit(0)
        time.sleep(random.uniform(0, 1.3 * took))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        found["finished"] += os.WIFEXITED(status)
        found["leftovers"] += any(path != final for path in place.iterdir())
        try:
            now = content(final)
            ImageSet.open(final).verify()
            whole = [v for v, reference in references.items() if now == reference]
            found["torn"] += not whole
            if whole:
                found["new" if whole[0] == version else "old"] += 1
        except (CorruptError, FileNotFoundError):
            found["torn"] += 1
    for version in (0, 1):
        write(final, version)
        found[f"equal-{version}"] = content(final) == references[version]
    found["swept"] = sorted(path.name for path in place.iterdir()) == ["set"]
    print(json.dumps(found))
"""


def kill_loop(folder: Path, mode: str, kills: int, seed: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLER), folder, mode, str(kills), str(seed)],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_nothing_torn(found: dict[str, Any], kills: int) -> None:
    assert found["torn"] == 0, found
    assert found["old"] + found["new"] == kills
    assert found["leftovers"] > kills // 8, f"too few kills hit a writer at work: {found}"
    assert found["equal-0"], found
    assert found["equal-1"], found
    assert found["swept"], found


@pytest.mark.parametrize("mode", ["set", "resumed"])
def test_a_killed_writer_leaves_nothing_torn(tmp_path: Path, mode: str) -> None:
    assert_nothing_torn(kill_loop(tmp_path, mode, 25), 25)


def test_the_kill_loop_catches_a_writer_that_tears(tmp_path: Path) -> None:
    assert kill_loop(tmp_path, "plain", 10)["torn"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["set", "resumed"])
def test_a_thousand_kills(tmp_path: Path, mode: str) -> None:
    assert_nothing_torn(kill_loop(tmp_path, mode, 1000, seed=1), 1000)


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        gc.collect()
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_sentence_and_the_old_set_stays(small_disk: Path) -> None:
    save(small_disk / "s", train=rows(1000))
    before = digests(small_disk / "s")
    with pytest.raises(DiskFullError, match=r"needs [\d,]+ bytes, [\d,]+ bytes are free"):
        save(small_disk / "s", 400_000, train=rows(10_000, seed=2))
    assert digests(small_disk / "s") == before
    assert not list(small_disk.rglob("*.tmp"))
    save(small_disk / "s", train=rows(1000, seed=3))
    assert {path.name for path in small_disk.iterdir()} == {"s"}
    assert set(digests(small_disk / "s")) == {NAME, "train-00000.arrow"}
