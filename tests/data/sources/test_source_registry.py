import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources_support import fill

from veilset.data.sources import SOURCES, open_source, source_names
from veilset.errors import SettingsError, SourceError


def test_names() -> None:
    assert source_names() == (
        "archive", "digits", "folder", "huggingface", "lfw_subset", "table", "torchvision",
    )  # fmt: skip
    assert all(kind.name == name and kind.__doc__ for name, kind in SOURCES.items())


@pytest.fixture
def places(tmp_path: Path) -> Path:
    fill(tmp_path, ["classes/cat/a.png", "photo.png", "notes.txt"])
    (tmp_path / "table.csv").write_text("path,label\nphoto.png,0\n")
    pq.write_table(pa.table({"path": ["photo.png"], "label": [0]}), tmp_path / "table.parquet")
    image = pa.array([{"bytes": b"x", "path": None}])
    pq.write_table(pa.table({"image": image, "label": [0]}), tmp_path / "hf.parquet")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hf.parquet").rename(tmp_path / "hub" / "data" / "train-0.parquet")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("cat/a.png", b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("classes", "folder"),
        ("table.csv", "table"),
        ("table.parquet", "table"),
        ("hub", "huggingface"),
        ("hub/data/train-0.parquet", "huggingface"),
        ("packed.zip", "archive"),
        ("digits", "digits"),
        ("lfw_subset", "lfw_subset"),
        ("torchvision:CIFAR10", "torchvision"),
    ],
)
def test_recognised(places: Path, path: str, name: str) -> None:
    assert open_source(path, places).name == name
    if (places / path).exists():
        assert open_source(places / path, Path("/")).name == name
        assert open_source({"path": path, "source": "auto", "options": {}}, places).name == name


@pytest.mark.parametrize("path", ["photo.png", "notes.txt"])
def test_what_is_not_recognised_lists_what_is(places: Path, path: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(path, places)
    message = str(caught.value)
    assert path in message and "\n" not in message
    assert all(name in message for name in source_names())


@pytest.mark.parametrize(
    "path", ["gone", "gone/deeper", "photo.png/x", "x" * 300, "a\0b", "~nobody1/x"]
)
def test_missing_or_impossible_paths(places: Path, path: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(path, places)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"source": "cifar", "path": "classes"}, "source is 'cifar', which is unknown"),
        ({"source": "folder", "path": "classes", "colour": 1}, "source folder.colour is unknown"),
        ({"source": "folder", "path": "classes", "max_bytes": 0}, "max_bytes is 0"),
        ({"source": "folder"}, "source folder.path is missing"),
        ({"source": "auto"}, "needs a name or a path"),
        ({"path": "classes", "options": {"path": "hub"}}, "repeats none"),
        ({"path": "classes", "options": {"source": "digits"}}, "repeats none"),
        ({"path": "classes", "options": [1]}, "must be a block"),
        ("", "needs a name or a path"),
    ],
)  # fmt: skip
def test_bad_blocks(places: Path, spec: object, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        open_source(spec, places)
