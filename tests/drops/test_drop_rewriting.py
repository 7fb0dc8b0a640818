"""Taking items out of raw drops: these and no others, and nothing of them stays."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drop_places import class_folders, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.data.sources.base import Source
from veilset.data.sources.registry import open_source
from veilset.drops.rewriting import require_separable, take_out
from veilset.errors import SourceError

IMAGES = 8


def folder(place: Path) -> dict[str, Any]:
    return {"path": str(class_folders(place / "drop"))}


def archive(place: Path) -> dict[str, Any]:
    files = tree(class_folders(place / "plain"))
    with zipfile.ZipFile(place / "drop.zip", "w", zipfile.ZIP_DEFLATED) as written:
        for name in sorted(files, reverse=True):
            written.writestr(f"outer/{name}", files[name])
        written.writestr("outer/.hidden", b"hidden")
    return {"path": str(place / "drop.zip")}


def parquet(place: Path) -> dict[str, Any]:
    files = tree(class_folders(place / "plain"))
    (place / "drop").mkdir()
    for part in range(2):
        own = sorted(files)[part::2]
        images = [{"bytes": files[name], "path": name} for name in own]
        table = pa.table({"image": images, "label": [name[:3] for name in own]})
        table = table.replace_schema_metadata({b"note": b"kept"})
        pq.write_table(table, place / f"drop/part-{part}.parquet", row_group_size=3)
    return {"path": str(place / "drop")}


def table(place: Path, name: str = "table.csv") -> dict[str, Any]:
    files = class_folders(place / "drop")
    names = sorted(tree(files))
    lines = [f'{name},{name[:3]},"a, b"' for name in names]
    (files / name).write_text("\n".join(["path,label,remark", "", *lines]) + "\n")
    return {"path": str(files / name)}


def parquet_table(place: Path) -> dict[str, Any]:
    files = class_folders(place / "drop")
    names = sorted(tree(files))
    pq.write_table(pa.table({"path": names, "label": [n[:3] for n in names]}), files / "t.parquet")
    return {"path": str(files / "t.parquet")}


KINDS = (folder, archive, parquet, table, parquet_table)
Kind = Callable[[Path], dict[str, Any]]


def items(source: Source[Any]) -> list[tuple[bytes, str | None]]:
    return [(bytes(item.content), item.class_name) for item in source.items()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(chosen=st.sets(st.integers(0, IMAGES - 1), max_size=IMAGES - 1))
def test_these_items_go_and_no_others(
    kind: Kind, tmp_path_factory: pytest.TempPathFactory, chosen: set[int]
) -> None:
    place = tmp_path_factory.mktemp("drop")
    block = kind(place)
    before = items(open_source(block, place))
    assert len(before) == IMAGES
    take_out(open_source(block, place), chosen)
    after = items(open_source(block, place))
    assert after == [one for number, one in enumerate(before) if number not in chosen]
    if kind in (folder, table, parquet_table):
        contents = set(tree(place / "drop").values())
        assert not contents & {before[number][0] for number in chosen}
    elif kind is parquet:
        stored = b"".join(tree(place / "drop").values())
        assert all(before[number][0][:64] not in stored for number in chosen)


def test_a_zip_keeps_what_is_hidden_and_no_name_of_what_went(tmp_path: Path) -> None:
    block = archive(tmp_path)
    source = open_source(block, tmp_path)
    names = [item.name for item in source.items()]
    take_out(source, {2})
    content = (tmp_path / "drop.zip").read_bytes()
    assert names[2].rpartition("/")[2].encode() not in content
    with zipfile.ZipFile(io.BytesIO(content)) as left:
        assert "outer/.hidden" in left.namelist()
        assert left.testzip() is None
    assert stat.S_IMODE((tmp_path / "drop.zip").stat().st_mode) == 0o600


def test_parquet_keeps_its_schema_and_notes(tmp_path: Path) -> None:
    block = parquet(tmp_path)
    before = pq.read_schema(tmp_path / "drop/part-0.parquet")
    untouched = (tmp_path / "drop/part-1.parquet").read_bytes()
    take_out(open_source(block, tmp_path), {0, 3})
    after = pq.read_schema(tmp_path / "drop/part-0.parquet")
    assert after.equals(before, check_metadata=True) and after.metadata[b"note"] == b"kept"
    assert (tmp_path / "drop/part-1.parquet").read_bytes() == untouched


def test_a_file_that_another_row_names_stays(tmp_path: Path) -> None:
    place = class_folders(tmp_path / "drop", images=2)
    lines = [
        "path,label",
        "cat/maria_000.png,cat",
        "dog/maria_001.png,dog",
        "cat/maria_000.png,cat",
    ]
    (place / "t.csv").write_text("\n".join(lines) + "\n")
    block = {"path": str(place / "t.csv")}
    take_out(open_source(block, tmp_path), {0, 1})
    assert (place / "cat/maria_000.png").exists()
    assert not (place / "dog").exists()


def test_a_table_cannot_delete_outside_its_folder(tmp_path: Path) -> None:
    place = class_folders(tmp_path / "drop", images=2)
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"x")
    (place / "link").symlink_to(tmp_path)
    lines = ["path,label", "../outside.png,a", f"{outside},a", "link/outside.png,a", "cat/x.png,b"]
    (place / "t.csv").write_text("\n".join(lines) + "\n")
    take_out(open_source({"path": str(place / "t.csv")}, tmp_path), {0, 1, 2})
    assert outside.exists()


def test_a_folder_whose_images_are_gone_goes_too(tmp_path: Path) -> None:
    block = folder(tmp_path)
    source = open_source(block, tmp_path)
    cats = {n for n, item in enumerate(source.items()) if item.class_name == "cat"}
    take_out(source, cats)
    assert [path.name for path in (tmp_path / "drop").iterdir()] == ["dog"]


def test_two_entries_of_one_name_are_not_guessed_at(tmp_path: Path) -> None:
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "d.zip", "w") as written:
        written.writestr("a/x.png", b"1")
        written.writestr("a/x.png", b"2")
    before = (tmp_path / "d.zip").read_bytes()
    with pytest.raises(SourceError, match="two entries of one name"):
        take_out(open_source(str(tmp_path / "d.zip"), tmp_path), {0})
    assert (tmp_path / "d.zip").read_bytes() == before


def test_a_zip_with_an_unreadable_entry_is_left_as_it_is(tmp_path: Path) -> None:
    block = archive(tmp_path)
    path = tmp_path / "drop.zip"
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        info = opened.infolist()[0]
    content[info.header_offset + 30 + len(info.filename) + 40] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(SourceError, match="cannot be written anew"):
        take_out(open_source(block, tmp_path), {0})
    assert path.read_bytes() == bytes(content)


def test_kinds_that_hold_images_together_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="come with an installed package"):
        require_separable(open_source("digits", tmp_path), "digits")
    place = class_folders(tmp_path / "drop")
    with tarfile.open(tmp_path / "d.tar", "w") as written:
        written.add(place, "drop")
    with pytest.raises(SourceError, match=r"'x', which is of the kind.*unpack it elsewhere"):
        require_separable(open_source(str(tmp_path / "d.tar"), tmp_path), "x")
