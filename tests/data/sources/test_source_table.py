from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources_support import checked, dataset, faults, fill

from veilset.data.sources import open_source
from veilset.data.sources.table import TableSource
from veilset.errors import SourceError, VeilsetError


def table(root: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_text_labels_groups_and_splits(tmp_path: Path) -> None:
    fill(tmp_path, ["b.png", "sub/a.png", "c.png"])
    table(tmp_path, "\ufeffsplit,path,label,group,age\nTrain,b.png, dog ,anna,3\n\n"
          "val,sub/a.png,cat,,4\r\n,\"c.png\",,bert,5\n")  # fmt: skip
    source = open_source("labels.csv", tmp_path)
    assert isinstance(source, TableSource)
    assert source.classes() == ("cat", "dog")
    assert [
        (i.name, i.label, i.class_name, i.group, i.split, i.content) for i in checked(source)
    ] == [
        ("b.png", 1, "dog", "anna", "train", b"b.png"),
        ("sub/a.png", 0, "cat", "", "validation", b"sub/a.png"),
        ("c.png", None, None, "bert", None, b"c.png"),
    ]


def test_numbers_sort_by_value_and_may_be_named(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b", "c"])
    table(tmp_path, "path\tlabel\na\t10\nb\t9\nc\t0\n", "labels.tsv")
    assert open_source("labels.tsv", tmp_path).classes() == ("0", "9", "10")
    spec = {"path": "labels.tsv", "class_names": [f"n{n}" for n in range(10)]}
    items = checked(open_source(spec, tmp_path))
    assert [(i.label, i.class_name, i.fault) for i in items] == [
        (None, None, "bad_label"), (9, "n9", None), (0, "n0", None),
    ]  # fmt: skip


def test_parquet_is_the_same_as_csv(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b", "c"])
    frame = pd.DataFrame(
        {"path": ["a", "b", "c"], "label": [2.0, None, 1.0], "group": ["x", None, "z"]}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    table(tmp_path, "path,label,group\na,2,x\nb,,\nc,1,z\n")
    source = open_source("t.parquet", tmp_path)
    assert isinstance(source, TableSource)
    assert source.classes() == ("1", "2")
    assert checked(source) == checked(open_source("labels.csv", tmp_path))


def test_attributes_are_columns_of_that_name_and_those_named(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b"])
    table(tmp_path, "path,label,attribute_age,sex,site\na,x,30,f,north\nb,y,, ,south\n")
    assert [item.attributes for item in checked(open_source("labels.csv", tmp_path))] == [
        {"age": "30"}, {"age": ""},
    ]  # fmt: skip
    spec = {"path": "labels.csv", "attribute_columns": ["sex"]}
    assert [item.attributes for item in checked(open_source(spec, tmp_path))] == [
        {"age": "30", "sex": "f"}, {"age": "", "sex": ""},
    ]  # fmt: skip
    with pytest.raises(SourceError, match="'height'"):
        open_source({"path": "labels.csv", "attribute_columns": ["height"]}, tmp_path)


def test_other_column_names_delimiter_and_root(tmp_path: Path) -> None:
    fill(tmp_path / "images", ["a.png"])
    (tmp_path / "lists").mkdir()
    table(tmp_path / "lists", "file;who;kind\na.png;anna;cat\n")
    options = {"path_column": "file", "label_column": "kind", "group_column": "who",
               "delimiter": ";", "root": "images"}  # fmt: skip
    items = checked(open_source({"path": "lists/labels.csv", "options": options}, tmp_path))
    assert [(i.name, i.class_name, i.group, i.content) for i in items] == [
        ("a.png", "cat", "anna", b"a.png")
    ]


def test_paths_never_leave_the_root(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"SECRET")
    drop = tmp_path / "drop"
    fill(drop, ["sub/a.png"])
    (drop / "link").symlink_to(tmp_path / "secret")
    (drop / "out").symlink_to(tmp_path)
    paths = ["sub/a.png", "../secret", str(tmp_path / "secret"), "sub/../../secret", "link",
             "out/secret", "sub", "gone", "", "sub/a.png/x", "C:\\secret"]  # fmt: skip
    table(drop, "path,label\n" + "".join(f"{path},0\n" for path in paths))
    items = checked(open_source("drop/labels.csv", tmp_path))
    assert [i.fault for i in items] == [
        None, "escaping_path", "escaping_path", "escaping_path", "link", "link", "special_file",
        "missing_file", "escaping_path", "missing_file", "escaping_path",
    ]  # fmt: skip
    assert not any(b"SECRET" in i.content for i in items)


def test_bad_rows_do_not_stop_the_others(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b", "\udcff"])
    table(tmp_path, b"path,label,split\na,0,train\nb,0\na,0,exam\n\xff,0,test\nb,0,test,x\nb,0,\n")
    items = checked(open_source("labels.csv", tmp_path))
    assert [i.fault for i in items] == [None, "damaged", "bad_split", None, "damaged", None]
    assert faults(items).keys() == {"(row 2)", "a", "(row 5)"}
    assert items[3].name == "\\xff" and items[3].content == b"\xff"


def test_real_images_by_table(tmp_path: Path) -> None:
    source = open_source(dataset("orl_faces") / "test.parquet", tmp_path)
    lines = ["path,label"]
    contents = []
    for at, item in enumerate(source):
        (tmp_path / f"{at}.png").write_bytes(item.content)
        lines.append(f"{at}.png,{item.class_name}")
        contents.append((item.content, item.class_name))
    table(tmp_path, "\n".join(lines))
    found = open_source("labels.csv", tmp_path)
    assert [(i.content, i.class_name) for i in checked(found)] == contents


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,0\n", "no column 'path' among file, label"),
        ("path,kind\na,0\n", "no column 'label'"),
        ("path,label,label\na,0,1\n", "2 columns 'label'"),
        ("path,label\n", "has no rows"),
        ("", "no column 'path' among no columns"),
        ('path,label\n"a"b,0\n', "line 2: not CSV"),
        ("path,label\n" + "x" * 200_000 + ",0\n", "not CSV"),
    ],
)
def test_refused_as_a_whole(tmp_path: Path, text: str, message: str) -> None:
    table(tmp_path, text)
    with pytest.raises(SourceError, match=message):
        open_source("labels.csv", tmp_path)


def test_a_column_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    table(tmp_path, "path,label\na,0\n")
    open_source("labels.csv", tmp_path)
    with pytest.raises(SourceError, match="no column 'group'"):
        open_source({"path": "labels.csv", "group_column": "group"}, tmp_path)


@settings(max_examples=150, deadline=None)
@given(text=st.binary(max_size=60) | st.text('ab,"\n\r\\/.\t;', max_size=60).map(str.encode))
def test_any_bytes_give_items_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    path = table(tmp_path_factory.mktemp("t"), b"path,label\n" + text)
    try:
        checked(open_source(str(path), path.parent))
    except VeilsetError as error:
        assert "\n" not in str(error)
