"""Exports read back by the tools they are for equal the pixels, and their bytes never change."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from veilset.data import export as export_module
from veilset.data.export import Format, class_folders, export_set, png
from veilset.data.shards import ImageSet, write_set
from veilset.errors import BusyError, CorruptError, SettingsError, VeilsetError
from veilset.files import locked, sha256_file
from veilset.types import Images

FORMATS: tuple[Format, ...] = get_args(Format)
CLASSES = ("cat", "a/b", "..", "Zug")


@pytest.fixture(params=[1, 3])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> ImageSet:
    return make(tmp_path / "set", request.param)


def make(folder: Path, channels: int = 3, shard_rows: int = 12) -> ImageSet:
    rng = np.random.default_rng(channels)
    parts = {}
    for split, n in [("train", 30), ("test", 7)]:
        ids = rng.integers(0, 256, (n, 16), dtype=np.uint8)
        images = rng.integers(0, 256, (n, 9, 7, channels), dtype=np.uint8)
        groups = np.array([f"g{i}é" for i in range(n)], dtype=object)
        columns = {"group": groups, "mask": images[:, :2, :2, 0]}
        parts[split] = (ids, rng.integers(0, 4, n), images, columns)
    write_set(
        folder, kind="protected", dataset="d", classes=CLASSES, parts=parts,
        shard_bytes=shard_rows * 9 * 7 * channels,
    )  # fmt: skip
    return ImageSet.open(folder)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): sha256_file(path) for path in files}


def by_id(source: ImageSet, split: str) -> dict[str, tuple[int, Images]]:
    ids = [row.tobytes().hex() for row in source.ids(split)]
    rows = zip(source.labels(split).tolist(), source.images(split), strict=True)
    return dict(zip(ids, rows, strict=True))


def pixels(data: bytes, channels: int) -> Images:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == {1: "L", 3: "RGB"}[channels]
        assert image.info == {}
        values = np.asarray(image)
    return values.reshape(*values.shape[:2], channels)


# PNG


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3]))
    )
)
def test_a_png_reads_back_exactly(image: Images) -> None:
    np.testing.assert_array_equal(pixels(png(image), image.shape[2]), image)


def test_the_bytes_of_a_png_are_pinned_and_hold_nothing_else() -> None:
    data = png(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    expected = (
        "89504e470d0a1a0a0000000d4948445200000002000000020802000000fdd49a73"
        "00000019494441547801010e00f1ff00000102030405000607080 90a0b".replace(" ", "")
    )
    assert data.hex().startswith(expected)
    assert data.endswith(b"IEND\xaeB`\x82")
    assert len(data) == 8 + 25 + 12 + 25 + 12


# Each format, read by somebody else


def test_parquet_by_pandas_and_with_checksums(source: ImageSet, tmp_path: Path) -> None:
    export_set(source, tmp_path / "out", "parquet")
    for split in source.splits:
        paths = sorted((tmp_path / "out").glob(f"{split}-*.parquet"))
        assert len(paths) == sum(shard.split == split for shard in source.manifest.shards)
        frame = pd.concat([pd.read_parquet(path) for path in paths])
        assert list(frame.columns) == ["id", "label", "image", "group", "mask"]
        assert frame["id"].tolist() == list(by_id(source, split))
        assert frame["label"].tolist() == source.labels(split).tolist()
        assert frame["group"].tolist() == source.column(split, "group").tolist()
        images = np.stack([np.frombuffer(row, dtype=np.uint8) for row in frame["image"]])
        np.testing.assert_array_equal(images.reshape(-1, *source.shape), source.images(split))
        for path in paths:
            assert pq.read_table(path, page_checksum_verification=True).schema.metadata is None
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == list(CLASSES)


def test_imagefolder_by_pillow(source: ImageSet, tmp_path: Path) -> None:
    export_set(source, tmp_path / "out", "imagefolder")
    folders = class_folders(CLASSES)
    for split in source.splits:
        expected = by_id(source, split)
        paths = list((tmp_path / "out" / split).glob("*/*"))
        assert {path.stem for path in paths} == set(expected)
        for path in paths:
            label, image = expected[path.stem]
            assert path.parent.name == folders[label]
            assert path.suffix == ".png"
            np.testing.assert_array_equal(pixels(path.read_bytes(), source.shape[2]), image)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(source.splits)


def test_webdataset_by_tarfile(source: ImageSet, tmp_path: Path) -> None:
    export_set(source, tmp_path / "out", "webdataset")
    for split in source.splits:
        found = {}
        for path in sorted((tmp_path / "out").glob(f"{split}-*.tar")):
            with tarfile.open(path) as archive:
                members = archive.getmembers()
                for member in members:
                    assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                    assert (member.uname, member.gname, member.mode) == ("", "", 0o644)
                names = [member.name for member in members]
                # A sample's two files stand side by side, as WebDataset needs it.
                assert [n.split(".")[1] for n in names] == ["png", "cls"] * (len(names) // 2)
                found.update({n: archive.extractfile(n).read() for n in names})  # type: ignore[union-attr]
        for name, (label, image) in by_id(source, split).items():
            assert int(found.pop(f"{name}.cls")) == label
            np.testing.assert_array_equal(pixels(found.pop(f"{name}.png"), source.shape[2]), image)
        assert found == {}


def test_arrow_is_the_set_itself(source: ImageSet, tmp_path: Path) -> None:
    export_set(source, tmp_path / "out", "arrow")
    assert digests(tmp_path / "out") == digests(source.folder)
    ImageSet.open(tmp_path / "out").verify()


# Determinism


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_set_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    source = make(tmp_path / "set")
    export_set(source, tmp_path / "one", format)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    other = ImageSet.open(source.folder, cache_bytes=1)
    export_set(other, tmp_path / "two", format)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@pytest.mark.parametrize("format", ["imagefolder", "webdataset"])
def test_reading_in_smaller_parts_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    source = make(tmp_path / "set")
    export_set(source, tmp_path / "one", format)
    monkeypatch.setattr(export_module, "_BATCH_BYTES", 1000)
    export_set(source, tmp_path / "two", format)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


# Names of classes


@settings(deadline=None)
@given(st.lists(st.text(max_size=300), unique=True, max_size=20))
def test_class_folders_are_safe_and_all_different(classes: list[str]) -> None:
    folders = class_folders(tuple(classes))
    assert len(set(folders)) == len(classes)
    for folder in folders:
        assert folder
        assert not folder.startswith(".")
        assert not set(folder) & set('/\\:*?"<>|\0\n')
        assert len(folder.encode()) <= 255


def test_plain_names_stay_as_they_are() -> None:
    assert class_folders(("cat", "Straße 7", "a/b", "..", "")) == (
        "cat", "Straße 7", "a%2Fb", "%2E.", "%",
    )  # fmt: skip


# Refusals


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_set_is_not_exported(tmp_path: Path, format: Format) -> None:
    source = make(tmp_path / "set")
    path = tmp_path / "set" / "train-00001.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=r"train-00001\.arrow is damaged in chunk 0"):
        export_set(source, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_somebodys_folder_is_not_replaced_unasked(tmp_path: Path) -> None:
    source = make(tmp_path / "set")
    (tmp_path / "out").mkdir()
    export_set(source, tmp_path / "out", "parquet")  # An empty one is taken.
    (tmp_path / "out" / "mine").write_text("")
    before = digests(tmp_path / "out")
    with pytest.raises(VeilsetError, match="not empty"):
        export_set(source, tmp_path / "out", "webdataset")
    assert digests(tmp_path / "out") == before
    export_set(source, tmp_path / "out", "webdataset", replace=True)
    assert not (tmp_path / "out" / "mine").exists()
    with pytest.raises(SettingsError, match="'zip'"):
        export_set(source, tmp_path / "zip", "zip")  # type: ignore[arg-type]
    with locked(tmp_path / "busy"), pytest.raises(BusyError):
        export_set(source, tmp_path / "busy", "parquet")


def test_an_interrupted_export_leaves_nothing_visible_and_its_rerun_is_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "set")
    export_set(source, tmp_path / "whole", "imagefolder")
    original = export_module.png
    calls = 0

    def interrupted(image: Images) -> bytes:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise KeyboardInterrupt
        return original(image)

    monkeypatch.setattr(export_module, "png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_set(source, tmp_path / "out", "imagefolder")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(export_module, "png", original)
    export_set(source, tmp_path / "out", "imagefolder")
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"set", "whole", "out"}


def test_storage_needs_no_torch() -> None:
    code = "import sys, veilset.data.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
