import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilset.data.sources.base import ItemError
from veilset.data.sources.confined import safe_parts
from veilset.data.sources.labels import cell_text, class_names
from veilset.data.sources.text import group_of, printable, split_of_file


def unescape(text: str) -> bytes:
    """An independent inverse of `printable`: if it exists, no two names share a text."""

    def character(found: re.Match[str]) -> bytes:
        body = found.group(1)
        if body == "\\":
            return b"\\"
        code = int(body[1:], 16)
        return bytes([code]) if body[0] == "x" else chr(code).encode("utf-8", "surrogatepass")

    pattern = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
    out, end = b"", 0
    for found in pattern.finditer(text):
        out += text[end : found.start()].encode() + character(found)
        end = found.end()
    return out + text[end:].encode()


@given(st.binary(max_size=60) | st.text(max_size=30).map(lambda t: t.encode("utf-8", "replace")))
def test_printable_is_printable_and_invertible(name: bytes) -> None:
    text = printable(name)
    assert text.isprintable()
    text.encode("utf-8")
    assert unescape(text) == name


def test_printable_leaves_ordinary_names_alone() -> None:
    assert printable("Übergrößenträger 42 (1).png".encode()) == "Übergrößenträger 42 (1).png"
    assert printable(b"a\x1b[2Jb\xff\\") == "a\\u001b[2Jb\\xff\\\\"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("TRAIN.parquet", "train"),
        ("training.parquet", "train"),
        ("val.parquet", "validation"),
        ("validation-00000.parquet", "validation"),
        ("valid_1.parquet", "validation"),
        ("values.parquet", None),
        ("test1k.parquet", "test"),
        ("test_jpeg.parquet", "test"),
        ("part-0.parquet", None),
    ],
)
def test_split_of_file(name: str, split: str | None) -> None:
    assert split_of_file(name) == split


@given(st.binary(max_size=40))
def test_safe_parts_never_climb(name: bytes) -> None:
    try:
        parts = safe_parts(name)
    except ItemError:
        return
    assert parts and not any(part in {b"", b".", b".."} or b"/" in part for part in parts)
    assert not name.startswith(b"/") and b"\0" not in name


@pytest.mark.parametrize(
    "name", [b"", b".", b"/", b"/etc/passwd", b"../a", b"a/../../b", b"a/..", b"..\\a", b"\\\\h\\a",
             b"C:\\a", b"c:a", b"a\0.png", b"a/..\\..\\b"],
)  # fmt: skip
def test_safe_parts_refuses(name: bytes) -> None:
    with pytest.raises(ItemError) as caught:
        safe_parts(name)
    assert caught.value.code == "escaping_path"


def test_label_order_is_by_value_only_if_all_are_numbers() -> None:
    assert class_names({"10", "9", "-1"}) == ("-1", "9", "10")
    assert class_names({"10", "9", "x"}) == ("10", "9", "x")
    assert class_names({"é", "z", "Z"}) == ("Z", "z", "é")


def test_cell_text() -> None:
    assert [cell_text(v) for v in (None, float("nan"), 3, 3.0, " cat ", b"x\xff")] == [
        "", "", "3", "3", "cat", "x\\xff",
    ]  # fmt: skip


def test_group_of() -> None:
    assert group_of("", "s1/a.png") == ""
    assert group_of("(s[0-9]+)/", "orl/s12/a.png") == "s12"
    assert group_of("s[0-9]+", "orl/s12/a.png") == "s12"
    assert group_of("(x)?s", "s") == ""
    assert group_of("nothing", "s") == ""
