import bz2
import gzip
import io
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources_support import checked, faults, fill

from veilset.data.sources import open_source
from veilset.data.sources.archive import ArchiveSource
from veilset.errors import SourceError, VeilsetError

NAMES = ["cat/1.png", "cat/deep/2.png", "dog/1.png", "dog/notes.txt"]


def make_zip(path: Path, names: Iterable[str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), name.encode(), method)
    return path


def make_tar(path: Path, names: Iterable[str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name in names:
            add(archive, name, name.encode("utf-8", "surrogateescape"))
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(content) if content else None)


def opened(path: Path, **options: object) -> ArchiveSource:
    source = open_source({"path": str(path), **options}, path.parent)
    assert isinstance(source, ArchiveSource)
    return source


@pytest.mark.parametrize("kind", ["zip", "stored", "tar", "tar.gz", "gnu"])
def test_the_same_as_the_folder(tmp_path: Path, kind: str) -> None:
    fill(tmp_path / "drop", NAMES)
    expected = checked(open_source("drop", tmp_path))
    path = tmp_path / "archive"  # recognised by content, whatever it is called
    if kind in {"zip", "stored"}:
        method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        make_zip(path, reversed(NAMES), method)
    else:
        make_tar(path, NAMES, "w:gz" if kind == "tar.gz" else "w")
    source = opened(path)
    assert checked(source) == expected
    assert source.classes() == ("cat", "dog")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_outer_folder_splits_and_clutter(tmp_path: Path, make: object) -> None:
    names = ["set/train/cat/1", "set/train/dog/1", "set/test/cat/2", "__MACOSX/set/._1",
             "set/.DS_Store", "set/train/.x/1"]  # fmt: skip
    source = opened(make(tmp_path / "a.zip", names))
    found = sorted((i.name, i.split, i.class_name) for i in checked(source))
    assert found == [
        ("set/test/cat/2", "test", "cat"),
        ("set/train/cat/1", "train", "cat"),
        ("set/train/dog/1", "train", "dog"),
    ]
    flat = opened(make(tmp_path / "cats.tar.gz", ["1.png", "2.png"]))
    assert flat.classes() == ("cats",)
    single = opened(make(tmp_path / "b", ["eel/1.png", "eel/2.png"]))
    assert single.classes() == ("eel",)


def test_zip_slip_and_special_members(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", ["cat/ok.png", "../up", "/abs", "cat/../../up", "C:\\x",
                                         "cat/..\\..\\up"])  # fmt: skip
    with zipfile.ZipFile(path, "a") as archive:
        for name, mode in (("cat/link", stat.S_IFLNK), ("cat/dev", stat.S_IFCHR)):
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = (mode | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
        archive.writestr("cat/bz2", b"x", zipfile.ZIP_BZIP2)
        archive.writestr("cat/lzma", b"x", zipfile.ZIP_LZMA)
    items = checked(opened(path))
    assert faults(items) == {
        "../up": "escaping_path", "/abs": "escaping_path", "cat/../../up": "escaping_path",
        "C:\\\\x": "escaping_path", "cat/..\\\\..\\\\up": "escaping_path", "cat/link": "link",
        "cat/dev": "special_file", "cat/bz2": "unsupported_compression",
        "cat/lzma": "unsupported_compression",
    }  # fmt: skip
    assert [i.content for i in items if not i.fault] == [b"cat/ok.png"]


def test_tar_slip_and_special_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("./cat/ok.png", "../up", "/abs", "cat/../../up"):
            add(archive, name, b"content")
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            add(archive, f"cat/{name}", type=kind, linkname="/etc/passwd")
        for name, kind in (("chr", tarfile.CHRTYPE), ("fifo", tarfile.FIFOTYPE)):
            add(archive, f"cat/{name}", type=kind)
    items = checked(opened(path))
    assert faults(items) == {
        "../up": "escaping_path", "/abs": "escaping_path", "cat/../../up": "escaping_path",
        "cat/soft": "link", "cat/hard": "link", "cat/chr": "special_file",
        "cat/fifo": "special_file",
    }  # fmt: skip
    assert [(i.name, i.content) for i in items if not i.fault] == [("cat/ok.png", b"content")]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", ["\udcff\udcfe/\udc80.png", "é/1"])
    assert opened(tmp_path / "a.tar").classes() == ("é", "\\xff\\xfe")
    data = make_zip(tmp_path / "a.zip", ["AAA/1.png", "b/1.png"]).read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"AAA/", b"\xff\xfe\x80/"))
    assert opened(tmp_path / "a.zip").classes() == ("b", "\\xff\\xfe\\x80")


def test_names_with_a_zero_byte_and_no_name(tmp_path: Path) -> None:
    data = make_zip(tmp_path / "a.zip", ["XXX", "cat/1", "cat/YYY"]).read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(b"XXX", b"\0/x").replace(b"YYY", b"y\0/"))
    items = checked(opened(tmp_path / "a.zip"))
    assert faults(items) == {"\\u0000/x": "escaping_path"}
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "cat/1", b"1")
        add(archive, "", b"2")
    assert faults(checked(opened(tmp_path / "a.tar"))) == {"(no name)": "escaping_path"}


def test_nested_archives_are_items_not_opened(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", ["../evil"]).read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/inner.zip", inner)
    assert [i.content for i in checked(opened(tmp_path / "a.zip"))] == [inner]


def bomb(path: Path, size: int, claimed: int | None) -> Path:
    """A zip of `size` zeros whose headers claim another length."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/bomb", bytes(size))
        archive.writestr("cat/ok", b"ok")
    if claimed is not None:
        data = path.read_bytes()
        path.write_bytes(data.replace(struct.pack("<I", size), struct.pack("<I", claimed)))
    return path


@pytest.mark.parametrize(
    ("claimed", "fault"),
    [(None, "too_large"), (10, "damaged"), (1 << 20, "damaged"), (0xFFFFFFF0, "too_large")],
)
def test_zip_bomb(tmp_path: Path, claimed: int | None, fault: str) -> None:
    path = bomb(tmp_path / "a.zip", 100 << 20, claimed)
    tracemalloc.start()
    items = checked(opened(path, max_bytes=4 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert faults(items) == {"cat/bomb": fault}
    assert [i.content for i in items if not i.fault] == [b"ok"]
    assert peak < 32 << 20


def test_zip_whose_entries_overlap(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/1", b"x" * 1000)
        archive.writestr("cat/ok", b"ok")
        archive.filelist.append(archive.filelist[0])  # the directory lists the same bytes twice
    items = checked(opened(tmp_path / "a.zip"))
    assert [(i.name, i.fault) for i in items] == [
        ("cat/1", "overlapping"), ("cat/1", "overlapping"), ("cat/ok", None),
    ]  # fmt: skip


def test_zip_encrypted_and_damaged_entries(tmp_path: Path) -> None:
    data = bytearray(make_zip(tmp_path / "a.zip", ["cat/1", "cat/2", "cat/3"], 0).read_bytes())
    first = data.index(b"cat/1cat/1") + 5
    data[first] ^= 1  # its checksum no longer holds
    directory = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    data[directory + 8] |= 1  # the second entry says that it is encrypted
    (tmp_path / "a.zip").write_bytes(data)
    items = checked(opened(tmp_path / "a.zip"))
    assert faults(items) == {"cat/1": "damaged", "cat/2": "encrypted"}


def test_zip_entry_shorter_than_it_claims(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1", b"z" * 54321)  # its checksum holds, whatever its length
    data = (tmp_path / "a.zip").read_bytes()
    longer = data.replace(struct.pack("<I", 54321), struct.pack("<I", 54322))
    (tmp_path / "a.zip").write_bytes(longer)
    assert faults(checked(opened(tmp_path / "a.zip"))) == {"cat/1": "damaged"}


def test_tar_bombs(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as archive:
        add(archive, "cat/1", b"ok")
        add(archive, "cat/bomb", bytes(40 << 20))
        add(archive, "cat/2", b"ok")
    tracemalloc.start()
    items = checked(opened(tmp_path / "a.tar.gz", max_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert faults(items) == {"cat/bomb": "too_large"}
    assert [i.content for i in items if not i.fault] == [b"ok", b"ok"]
    assert peak < 16 << 20


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_tar_whose_name_is_a_bomb(tmp_path: Path, kind: bytes) -> None:
    huge = tarfile.TarInfo("name")
    huge.type, huge.size = kind, 64 << 20
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as file:
        ok = tarfile.TarInfo("cat/1")
        ok.size = 2
        file.write(ok.tobuf() + b"ok".ljust(512, b"\0") + huge.tobuf() + bytes(64 << 20))
    tracemalloc.start()
    items = checked(opened(tmp_path / "a.tar.gz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [i.fault for i in items] == [None, "damaged"]
    assert peak < 16 << 20


def test_tar_with_a_negative_size_ends(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("cat/evil").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512: back to this header, without end
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    ok = tarfile.TarInfo("cat/1").tobuf()
    (tmp_path / "a.tar").write_bytes(ok + bytes(header) + bytes(1024))
    assert "damaged" in {i.fault for i in checked(opened(tmp_path / "a.tar"))}


@pytest.mark.parametrize("cut", [100, 512, 700, 1024, 1200, 1536])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_truncated_tar_says_so(tmp_path: Path, cut: int, mode: str) -> None:
    whole = make_tar(tmp_path / "a.tar", NAMES, "w").read_bytes()
    cut_data = whole[: 1024 + cut]
    packed = gzip.compress(cut_data) if mode == "w:gz" else cut_data
    (tmp_path / "a.tar").write_bytes(packed)
    items = checked(opened(tmp_path / "a.tar"))
    assert items[0].content == b"cat/1.png"
    assert all(item.content == item.name.encode() for item in items if not item.fault)
    assert items[-1].fault == "damaged" and items[-1].name == "(rest of the archive)"


@pytest.mark.parametrize("filler", [0, 300_000])
def test_a_flipped_bit_in_a_gzip_never_passes(tmp_path: Path, filler: int) -> None:
    path = tmp_path / "a.tar.gz"
    noise = np.random.default_rng(0).bytes(filler)  # so that the end is not read along by chance
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "cat/1", b"content")
        add(archive, "cat/2", noise)
    data = path.read_bytes()
    whole = checked(opened(path))
    header = 10 + len(b"a.tar") + 1  # times and names in gzip's header change nothing
    for at in range(header, len(data), len(data) // 60):
        broken = bytearray(data)
        broken[at] ^= 0x10
        path.write_bytes(broken)
        try:
            assert checked(opened(path)) == whole
        except SourceError as error:
            assert "fetch" in str(error)
        else:
            pytest.fail(f"a bit flipped at {at} passed")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_anywhere_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    kind = data.draw(st.sampled_from(["zip", "tar", "tgz"]))
    if kind == "zip":
        content = bytearray(make_zip(folder / "a", NAMES).read_bytes())
    else:
        content = bytearray(make_tar(folder / "a", NAMES, "w").read_bytes()[:4096])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "a"
    path.write_bytes(gzip.compress(content) if kind == "tgz" else content)
    try:
        checked(open_source(str(path), folder))
    except VeilsetError as error:
        assert "\n" not in str(error)


def test_refused_as_a_whole(tmp_path: Path) -> None:
    make_zip(tmp_path / "empty.zip", [])
    with pytest.raises(SourceError, match="holds no files"):
        open_source("empty.zip", tmp_path)
    (tmp_path / "cut.zip").write_bytes(make_zip(tmp_path / "a.zip", NAMES).read_bytes()[:-30])
    with pytest.raises(SourceError, match="cannot be read as a zip"):
        open_source("cut.zip", tmp_path)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"no tar" * 1000))
    with pytest.raises(SourceError, match="cannot be read as a tar"):
        open_source("a.gz", tmp_path)
    (tmp_path / "a.tar.bz2").write_bytes(bz2.compress(b"x"))
    with pytest.raises(SourceError, match="recognises"):
        open_source("a.tar.bz2", tmp_path)
    with pytest.raises(SourceError, match="more than 3 files"):
        open_source({"path": "a.zip", "max_items": 3}, tmp_path)
