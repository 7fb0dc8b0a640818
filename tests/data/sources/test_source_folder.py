import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources_support import checked, faults, fill

from veilset.data.sources import open_source
from veilset.data.sources.folder import FolderSource
from veilset.errors import SettingsError, SourceError


def test_folder_per_class(tmp_path: Path) -> None:
    fill(tmp_path, ["dog/b.png", "dog/a.png", "cat/deep/er/c.png", "README.md", ".git/x",
                    "dog/.hidden", ".DS_Store"])  # fmt: skip
    source = open_source(tmp_path, tmp_path)
    assert isinstance(source, FolderSource)
    assert source.classes() == ("cat", "dog")
    assert [(i.name, i.label, i.class_name, i.split, i.content) for i in checked(source)] == [
        ("README.md", None, None, None, b"README.md"),
        ("cat/deep/er/c.png", 0, "cat", None, b"cat/deep/er/c.png"),
        ("dog/a.png", 1, "dog", None, b"dog/a.png"),
        ("dog/b.png", 1, "dog", None, b"dog/b.png"),
    ]


def test_flat_folder_is_one_class(tmp_path: Path) -> None:
    fill(tmp_path / "cats", ["2.png", "1.png"])
    items = checked(open_source("cats", tmp_path))
    assert [(i.name, i.class_name) for i in items] == [("1.png", "cats"), ("2.png", "cats")]


def test_splits_above_classes(tmp_path: Path) -> None:
    fill(tmp_path, ["train/cat/1", "train/dog/1", "val/cat/2", "test/dog/3", "test/eel/3"])
    source = open_source(tmp_path, tmp_path)
    assert source.classes() == ("cat", "dog", "eel")
    assert [(i.split, i.class_name) for i in checked(source)] == [
        ("test", "dog"), ("test", "eel"), ("train", "cat"), ("train", "dog"), ("validation", "cat"),
    ]  # fmt: skip


def test_splits_without_classes(tmp_path: Path) -> None:
    fill(tmp_path / "cats", ["train/1", "validation/2"])
    items = checked(open_source("cats", tmp_path))
    assert [(i.split, i.class_name) for i in items] == [("train", "cats"), ("validation", "cats")]


def test_a_class_called_train_among_others_is_a_class(tmp_path: Path) -> None:
    fill(tmp_path, ["bus/1", "car/1", "train/1"])
    assert open_source(tmp_path, tmp_path).classes() == ("bus", "car", "train")
    forced = open_source({"path": str(tmp_path), "split_folders": True}, tmp_path)
    assert forced.classes() == ("bus", "car")
    assert [i.split for i in checked(forced)] == [None, None, "train"]
    fill(tmp_path, ["train/steam/1"])
    assert open_source(tmp_path, tmp_path).classes() == ("bus", "car", "steam")
    kept = open_source({"path": str(tmp_path), "split_folders": False}, tmp_path)
    assert kept.classes() == ("bus", "car", "train")


def test_links_are_faults_and_never_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"SECRET")
    drop = tmp_path / "drop"
    fill(drop, ["cat/a.png"])
    (drop / "cat" / "link.png").symlink_to(secret)
    (drop / "cat" / "inside.png").symlink_to(drop / "cat" / "a.png")
    (drop / "cat" / "loop").symlink_to(drop)
    (drop / "cat" / "self").symlink_to("self")
    (drop / "out").symlink_to("/")
    items = checked(open_source(drop, tmp_path))
    assert faults(items) == dict.fromkeys(
        ["cat/inside.png", "cat/link.png", "cat/loop", "cat/self", "out"], "link"
    )
    assert [i.content for i in items if not i.fault] == [b"cat/a.png"]
    assert not any(b"SECRET" in i.content for i in items)


def test_the_drop_itself_may_be_a_link(tmp_path: Path) -> None:
    fill(tmp_path / "real", ["cat/a.png"])
    (tmp_path / "drop").symlink_to("real")
    assert [i.name for i in checked(open_source("drop", tmp_path))] == ["cat/a.png"]


def test_a_folder_swapped_for_a_link_while_reading(tmp_path: Path) -> None:
    fill(tmp_path / "outside", ["b.png"])
    drop = tmp_path / "drop"
    fill(drop, ["cat/a.png", "cat/b.png"])
    items = iter(open_source(drop, tmp_path))
    assert next(items).fault is None
    (drop / "cat").rename(tmp_path / "gone")
    (drop / "cat").symlink_to(tmp_path / "outside")
    assert next(items).fault == "link"


def test_pipes_sockets_and_large_files_are_faults(tmp_path: Path) -> None:
    fill(tmp_path, ["cat/a.png"])
    os.mkfifo(tmp_path / "cat" / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fsdecode(tmp_path / "cat" / "socket"))
        (tmp_path / "cat" / "large").write_bytes(b"x" * 100)
        spec = {"source": "folder", "path": str(tmp_path), "max_bytes": 99}
        assert faults(checked(open_source(spec, tmp_path))) == {
            "cat/large": "too_large", "cat/pipe": "special_file", "cat/socket": "special_file",
        }  # fmt: skip


def test_a_vanished_file_is_a_fault(tmp_path: Path) -> None:
    fill(tmp_path, ["cat/a.png", "cat/b.png"])
    items = iter(open_source(tmp_path, tmp_path))
    next(items)
    (tmp_path / "cat" / "b.png").unlink()
    assert next(items).fault == "missing_file"


def test_odd_names_survive(tmp_path: Path) -> None:
    odd = [b"\xff\xfe/\x80.png", b"cat/" + b"n" * 251 + b".png", b"cat/\n\t.png", b"cat/a\\b.png",
           "猫/é.png".encode(), b" /'$(rm).png", b"-rf/%s.png"]  # fmt: skip
    fill(tmp_path, odd)
    items = checked(open_source(tmp_path, tmp_path))
    assert sorted(i.content for i in items) == sorted(odd)
    assert {"\\xff\\xfe", "猫", " ", "-rf", "cat"} == {i.class_name for i in items}


def test_folders_deeper_than_a_path_may_be_long(tmp_path: Path) -> None:
    here, name = os.open(tmp_path, os.O_RDONLY), "d" * 250
    for _ in range(20):
        os.mkdir(name, dir_fd=here)
        here, outer = os.open(name, os.O_RDONLY, dir_fd=here), here
        os.close(outer)
    os.close(os.open("a.png", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    fill(tmp_path, ["cat/a.png"])
    assert [i.fault for i in checked(open_source(tmp_path, tmp_path))] == [None, "unreadable"]
    shutil.rmtree(tmp_path / name)


components = st.text(st.sampled_from("ab-.~/ é"), min_size=1, max_size=3).filter(
    lambda t: "/" not in t and not t.startswith(".")
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    names=st.sets(st.lists(components, min_size=1, max_size=3).map("/".join), min_size=1),
    seed=st.integers(0, 9),
)
def test_order_is_of_the_names_not_of_creation(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], seed: int
) -> None:
    # A name cannot be a file and a folder at once.
    names = {n for n in names if not any(o.startswith(n + "/") for o in names)}
    orders = []
    for shuffle in (seed, seed + 1):
        root = tmp_path_factory.mktemp("tree") / "drop"
        shuffled = np.random.default_rng(shuffle).permutation(sorted(names)).tolist()
        fill(root, shuffled)
        orders.append(list(open_source(root, root)))
    assert orders[0] == orders[1]
    assert [i.content for i in orders[0]] == sorted(n.encode() for n in names)


def test_groups_by_pattern(tmp_path: Path) -> None:
    fill(tmp_path, ["smile/anna_1.png", "smile/bert_1.png", "frown/anna_2.png", "frown/x.png"])
    spec = {"path": str(tmp_path), "options": {"group_pattern": "/([a-z]+)_"}}
    assert [i.group for i in checked(open_source(spec, tmp_path))] == ["anna", "", "anna", "bert"]
    with pytest.raises(SettingsError, match="group_pattern is '\\('"):
        open_source({"path": str(tmp_path), "group_pattern": "("}, tmp_path)


def test_refused_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    with pytest.raises(SourceError, match="holds no files"):
        open_source("empty", tmp_path)
    with pytest.raises(SourceError, match="'gone' does not exist"):
        open_source("gone", tmp_path)
    fill(tmp_path / "three", ["a", "b", "c"])
    with pytest.raises(SourceError, match="more than 2 files"):
        open_source({"path": "three", "max_items": 2}, tmp_path)
    with pytest.raises(SourceError, match="is not a folder"):
        open_source({"source": "folder", "path": "three/a"}, tmp_path)
