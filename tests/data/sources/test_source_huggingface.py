import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sources_support import checked, dataset, faults

from veilset.data.sources import open_source
from veilset.data.sources.huggingface import HuggingFaceSource
from veilset.errors import SourceError

COUNTS = {
    "cifar10": {"train": 50_000, "test": 11_000},
    "trashnet96": {"train": 1768, "validation": 328, "test": 431},
    "orl_faces": {"train": 280, "test": 120},
    "pneumoniamnist": {"train": 4708, "validation": 524, "test": 624},
    "sign_digits": {"train": 1648, "test": 411},
    "sign_digits_exif": {"test": 40},
    "fashion_mnist_10k": {"train": 10_000, "test": 2000},
}
MAGIC = (b"\x89PNG", b"\xff\xd8\xff")


@pytest.mark.parametrize("name", COUNTS)
def test_real_data_sets(name: str, tmp_path: Path) -> None:
    folder = dataset(name)
    source = open_source(folder, tmp_path)
    assert isinstance(source, HuggingFaceSource)
    expected = json.loads((folder / "metadata.json").read_text())
    assert source.classes() == tuple(expected["class_names"])
    found: dict[Any, int] = {}
    names, labels = set(), set()
    for item in source:
        found[item.split] = found.get(item.split, 0) + 1
        names.add(item.name)
        labels.add(item.label)
        assert item.fault is None and item.content[:4].startswith(MAGIC)
        assert item.class_name == source.classes()[item.label]
    assert found == COUNTS[name]
    assert source.count() == len(names) == sum(COUNTS[name].values())
    assert labels == set(range(len(source.classes())))


def test_real_groups_and_file_choice(tmp_path: Path) -> None:
    spec = {"path": str(dataset("orl_faces")), "files": ["test*"], "group_pattern": "^s[0-9]+"}
    items = checked(open_source(spec, tmp_path))
    assert len(items) == 120
    assert all(item.group == item.class_name for item in items)
    single = open_source(dataset("orl_faces") / "test.parquet", tmp_path)
    assert [i.content for i in checked(single)] == [i.content for i in items]


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def row(label: Any, content: bytes | None = b"image", path: str | None = "a.png") -> dict[str, Any]:
    return {"image": {"bytes": content, "path": path}, "label": label}


def test_class_names_come_from_metadata_then_schema_then_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", [row(1), row(0), row(2)])
    assert open_source(path, tmp_path).classes() == ("0", "1", "2")
    table = pq.read_table(path)
    features = {"label": {"_type": "ClassLabel", "names": ["x", "y", "z"]}}
    stored = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(stored), path)
    assert open_source(path, tmp_path).classes() == ("x", "y", "z")
    (tmp_path / "metadata.json").write_text(json.dumps({"class_names": ["a", "b", "c\n"]}))
    source = open_source(path, tmp_path)
    assert source.classes() == ("a", "b", "c\\u000a")
    assert [i.class_name for i in checked(source)] == ["b", "a", "c\\u000a"]


def test_labels_unknown_and_out_of_range(tmp_path: Path) -> None:
    write(tmp_path / "drop" / "train.parquet", [row(0), row(-1), row(None), row(2), row(1)])
    (tmp_path / "drop" / "metadata.json").write_text('{"class_names": ["a", "b"]}')
    items = checked(open_source("drop", tmp_path))
    assert [i.label for i in items] == [0, None, None, None, 1]
    assert [i.fault for i in items] == [None, None, None, "bad_label", None]


def test_text_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [row("dog"), row("cat"), row(None)])
    items = checked(open_source(path, tmp_path))
    assert [(i.label, i.class_name) for i in items] == [(1, "dog"), (0, "cat"), (None, None)]


def test_hub_layout_and_order(tmp_path: Path) -> None:
    for name in ("data/train-00001-of-00002", "data/train-00000-of-00002", "validation/0000"):
        write(tmp_path / f"{name}.parquet", [row(0, name.encode())])
    items = checked(open_source(tmp_path, tmp_path))
    assert [(i.content.decode(), i.split) for i in items] == [
        ("data/train-00000-of-00002", "train"),
        ("data/train-00001-of-00002", "train"),
        ("validation/0000", "validation"),
    ]


def test_bytes_column_and_further_columns(tmp_path: Path) -> None:
    rows = [{"img": b"1", "fine": 1, "who": "anna"}, {"img": b"2", "fine": 0, "who": None}]
    path = write(tmp_path / "x.parquet", rows)
    with pytest.raises(SourceError, match=r"no column 'image' but fine, img, who"):
        open_source(path, tmp_path)
    options = {"image_column": "img", "label_column": "fine", "group_column": "who"}
    items = checked(open_source({"path": str(path), "options": options}, tmp_path))
    assert [(i.content, i.label, i.group) for i in items] == [(b"1", 1, "anna"), (b"2", 0, "")]
    unlabelled = {"path": str(path), "image_column": "img", "label_column": ""}
    assert [i.label for i in checked(open_source(unlabelled, tmp_path))] == [None, None]


def test_attributes_of_rows(tmp_path: Path) -> None:
    rows = [{"image": b"1", "label": 1, "attribute_age": 30, "sex": "f"},
            {"image": b"2", "label": 0, "attribute_age": None, "sex": "m"}]  # fmt: skip
    path = write(tmp_path / "x/train.parquet", rows)
    write(tmp_path / "x/test.parquet", [row | {"only_here": 1} for row in rows])
    found = [item.attributes for item in checked(open_source(path, tmp_path))]
    assert found == [{"age": "30"}, {"age": ""}]
    both = checked(open_source({"path": "x", "attribute_columns": ["sex"]}, tmp_path))
    assert [item.attributes["sex"] for item in both] == ["f", "m", "f", "m"]
    with pytest.raises(SourceError, match="only_here"):
        open_source({"path": "x", "attribute_columns": ["only_here"]}, tmp_path)


def test_rows_without_bytes_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"SECRET")
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "there.png").write_bytes(b"there")
    (drop / "link.png").symlink_to(tmp_path / "secret")
    paths = ["there.png", "../secret", "/etc/passwd", "link.png", "gone.png", None]
    write(drop / "train.parquet", [row(0), *(row(0, None, path) for path in paths)])
    items = checked(open_source(drop, tmp_path))
    assert [i.fault for i in items] == [
        None, None, "escaping_path", "escaping_path", "link", "missing_file", "no_bytes",
    ]  # fmt: skip
    assert items[1].content == b"there"


def test_too_large_and_linked_files(tmp_path: Path) -> None:
    write(tmp_path / "drop" / "a.parquet", [row(0, b"12345"), row(0, b"123456")])
    (tmp_path / "drop" / "b.parquet").symlink_to("a.parquet")
    items = checked(open_source({"path": "drop", "max_bytes": 5}, tmp_path))
    assert faults(items) == {"a.parquet/00000001/a.png": "too_large", "b.parquet": "link"}
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.parquet").symlink_to("../drop/a.parquet")
    with pytest.raises(SourceError, match="that are not links"):
        open_source({"source": "huggingface", "path": "only"}, tmp_path)


def test_damage_stays_inside_its_row_group(tmp_path: Path) -> None:
    rows = [row(0, bytes([65 + at]) * 40, None) for at in range(9)]
    path = write(
        tmp_path / "train.parquet", rows, row_group_size=3, compression="none",
        write_page_checksum=True, use_dictionary=False,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    data[data.index(b"E" * 40) + 7] ^= 1
    path.write_bytes(data)
    items = list(open_source(path, tmp_path))
    assert [i.fault for i in items] == [None] * 3 + ["damaged"] + [None] * 3
    assert items[3].name == "train.parquet/00000003-00000005"
    assert [i.content[:1] for i in items if not i.fault] == [b"A", b"B", b"C", b"G", b"H", b"I"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"class_names": "ab"}', "list of non-empty"),
        ('{"class_names": ["a", 3]}', "list of non-empty"),
        ('{"class_names": ["a", "a"]}', "'a' twice"),
    ],
)
def test_hostile_metadata(tmp_path: Path, metadata: str, message: str) -> None:
    path = write(tmp_path / "train.parquet", [row(0)])
    (tmp_path / "metadata.json").write_text(metadata)
    with pytest.raises(SourceError, match=message):
        open_source(path, tmp_path)


def test_refused_as_a_whole(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", [row(0)]).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-20])
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        open_source("a.parquet", tmp_path)
    write(tmp_path / "float.parquet", [row(0.5)])
    with pytest.raises(SourceError, match="neither whole numbers nor text"):
        open_source("float.parquet", tmp_path)
    write(tmp_path / "mixed" / "a.parquet", [row(0)])
    write(tmp_path / "mixed" / "b.parquet", [row("x")])
    with pytest.raises(SourceError, match="text in some files"):
        open_source("mixed", tmp_path)
    pq.write_table(pq.read_table(tmp_path / "float.parquet").slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(SourceError, match="holds 0 rows"):
        open_source("none.parquet", tmp_path)
