"""Taking drops in: whole or not at all, once, under names and modes that tell nothing."""

import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from drop_places import REPOSITORY, SAID, bare_project, class_folders, picture, tree
from hypothesis import given
from hypothesis import strategies as st

from veilset.data.sources.registry import open_source
from veilset.drops.intake import (
    ORIGINS,
    RAW,
    add_drop,
    content_digest,
    folder_hashes,
    look_at,
    origin_of,
    settled,
)
from veilset.drops.record import DROPS_JOURNAL, read_drops
from veilset.errors import SettingsError, SourceError
from veilset.keys import DEMO_IDS_KEY, Key
from veilset.settings import load_drops


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return bare_project(tmp_path / "project")


def nothing(folder: Path) -> None:
    del folder


def add(root: Path, place: Path, track: Callable[[Path], None] = nothing, **said: object) -> str:
    record, _ = add_drop(root, place, replace(SAID, **said), DEMO_IDS_KEY, track, 0.0)  # type: ignore[arg-type]
    return record.name


def left(root: Path) -> set[str]:
    """What lies in the raw folder beside the embedded drop."""
    return {path.name for path in (root / RAW).iterdir()} - {"digits"}


def test_a_folder_is_copied_whole_listed_and_on_record(root: Path, tmp_path: Path) -> None:
    place = class_folders(tmp_path / "maria")
    tracked: list[Path] = []
    name = add(root, place, tracked.append)
    folder = root / RAW / name
    assert tree(folder / "drop") == tree(place)
    assert tracked == [folder]
    drops = load_drops(root)
    assert name in drops.drops and name not in drops.names and name not in drops.fit_drops
    source = open_source(drops.drops[name].spec(), root)
    assert (source.name, source.count(), source.classes()) == ("folder", 8, ("cat", "dog"))
    (record,) = read_drops(root)
    assert (record.state, record.licence, record.consent, record.by) == (
        "arrived", "CC BY 4.0", "form 3", "Ann Owner",
    )  # fmt: skip
    assert record.counts["files"] == 8
    assert record.counts["bytes"] == sum(map(len, tree(place).values()))


def test_only_the_owner_reads_what_arrived(root: Path, tmp_path: Path) -> None:
    place = class_folders(tmp_path / "p")
    for path in place.rglob("*"):
        path.chmod(0o777)
    old = os.umask(0)
    try:
        folder = root / RAW / add(root, place)
    finally:
        os.umask(old)
    for path in (folder, *folder.rglob("*"), root / ORIGINS):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_neither_name_nor_journal_tell_where_or_what_it_was(root: Path, tmp_path: Path) -> None:
    name = add(root, class_folders(tmp_path / "maria_at_home"))
    journal = (root / DROPS_JOURNAL).read_text()
    assert name.startswith("drop_20")
    assert "maria" not in journal + (root / "drops.yaml").read_text()
    assert origin_of(root, name).endswith("maria_at_home")


def test_names_after_the_date_are_numbered(root: Path, tmp_path: Path) -> None:
    first = add(root, class_folders(tmp_path / "a"))
    second = add(root, class_folders(tmp_path / "b", first=8))
    assert second == f"{first}_2"
    assert add(root, class_folders(tmp_path / "c", first=16), name="ward_3") == "ward_3"
    held = {path: path.read_bytes() for path in (root / RAW / "ward_3").rglob("*.png")}
    with pytest.raises(SettingsError, match="'ward_3' is taken"):
        add(root, class_folders(tmp_path / "d", first=24), name="ward_3")
    assert held == {path: path.read_bytes() for path in (root / RAW / "ward_3").rglob("*.png")}
    assert add(root, tmp_path / "c", name="ward_3") == "ward_3", "the same content once more"
    with pytest.raises(SettingsError, match="is not a name"):
        add(root, tmp_path / "d", name="../up")


def test_the_same_content_is_one_drop(root: Path, tmp_path: Path) -> None:
    name = add(root, class_folders(tmp_path / "a"))
    again = class_folders(tmp_path / "elsewhere")
    os.utime(again / "cat/maria_000.png", (1, 1))
    record, new = add_drop(root, again, SAID, DEMO_IDS_KEY, nothing, 0.0)
    assert (record.name, new) == (name, False)
    assert left(root) == {name}
    assert len(read_drops(root)) == 1


@given(st.dictionaries(st.binary(min_size=1, max_size=4), st.binary(max_size=3), min_size=1))
def test_a_digest_is_of_paths_contents_and_key(files: dict[bytes, bytes]) -> None:
    hashes = {(name,): content.hex() for name, content in files.items()}
    digest = content_digest(hashes, DEMO_IDS_KEY)
    assert digest == content_digest(dict(reversed(hashes.items())), DEMO_IDS_KEY)
    assert digest != content_digest(hashes, Key(bytes(32)))
    name = next(iter(hashes))
    assert digest != content_digest({**hashes, name: hashes[name] + "00"}, DEMO_IDS_KEY)
    assert digest != content_digest({**hashes, (*name, b"x"): ""}, DEMO_IDS_KEY)


def test_links_special_files_and_hidden_files_are_left_out(root: Path, tmp_path: Path) -> None:
    place = class_folders(tmp_path / "p", images=2)
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    (place / "cat/link.png").symlink_to(secret)
    (place / "up").symlink_to(tmp_path)
    os.mkfifo(place / "dog/pipe.png")
    (place / ".hidden").write_text("hidden")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place / "dog/socket"))
        name = add(root, place)
    assert sorted(tree(root / RAW / name / "drop")) == ["cat/maria_000.png", "dog/maria_001.png"]
    (record,) = read_drops(root)
    assert record.counts["left_out"] == 4


def test_a_place_that_is_a_link_missing_or_empty_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(class_folders(tmp_path / "p"))
    (tmp_path / "empty").mkdir()
    for name, words in (("link", "is a link"), ("no", "No such file"), ("empty", "no files")):
        with pytest.raises(SourceError, match=words):
            add(root, tmp_path / name)
    assert left(root) == set()


def test_an_archive_is_taken_as_it_is(root: Path, tmp_path: Path) -> None:
    place = class_folders(tmp_path / "p")
    with zipfile.ZipFile(tmp_path / "Maria.ZIP", "w") as archive:
        for path in sorted(place.rglob("*.png")):
            archive.write(path, path.relative_to(place))
        archive.writestr("../../escape.png", b"x")
    name = add(root, tmp_path / "Maria.ZIP")
    assert [path.name for path in (root / RAW / name).glob("drop*")] == ["drop.zip"]
    assert (root / RAW / name / "drop.zip").read_bytes() == (tmp_path / "Maria.ZIP").read_bytes()
    source = open_source(load_drops(root).drops[name].spec(), root)
    assert source.name == "archive"
    assert not list(tmp_path.rglob("escape.png"))


def test_a_table_comes_with_its_folder(root: Path, tmp_path: Path) -> None:
    place = class_folders(tmp_path / "p", images=2)
    rows = "path,label,person\ncat/maria_000.png,cat,m\ndog/maria_001.png,dog,n\n"
    (place / "table.csv").write_text(rows)
    with pytest.raises(SourceError, match="add the folder that holds both"):
        add(root, place / "table.csv")
    name = add(root, place, table="table.csv", options={"group_column": "person"})
    source = open_source(load_drops(root).drops[name].spec(), root)
    assert [item.group for item in source.items()] == ["m", "n"]
    with pytest.raises(SettingsError, match="inside the drop"):
        add(root, place, table="../p/table.csv")


def test_what_a_killed_call_copied_does_not_stay(root: Path, tmp_path: Path) -> None:
    abandoned = root / RAW / ".drop_20200101.partial/drop"
    class_folders(abandoned)
    name = add(root, class_folders(tmp_path / "p"))
    assert left(root) == {name}


def test_what_no_source_reads_is_refused_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    before = (root / "drops.yaml").read_bytes()
    with pytest.raises(SourceError, match="No source reads this drop"):
        add(root, tmp_path / "note.txt")
    assert left(root) == set()
    assert (root / "drops.yaml").read_bytes() == before
    assert read_drops(root) == ()


@pytest.mark.parametrize("empty", ["licence", "consent", "by"])
def test_licence_consent_and_who_are_asked_for(root: Path, tmp_path: Path, empty: str) -> None:
    with pytest.raises(SettingsError, match=f"--{empty} is empty"):
        add(root, class_folders(tmp_path / "p"), **{empty: " "})


def test_a_place_that_is_being_written_is_refused(tmp_path: Path) -> None:
    place = class_folders(tmp_path / "p")
    stop = threading.Event()

    def write() -> None:
        with (place / "cat/growing.png").open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"x")
                time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not (place / "cat/growing.png").exists():
            time.sleep(0.01)
        with pytest.raises(SourceError, match="still being written"):
            settled(place, 0.2)
    finally:
        stop.set()
        writer.join()
    assert settled(place, 0.05) == look_at(place)


def test_a_place_that_changes_while_it_is_copied_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from veilset.drops import intake

    place = class_folders(tmp_path / "p")
    copy = intake._copy

    def copy_and_change(*arguments: object) -> object:
        hashes = copy(*arguments)  # type: ignore[arg-type]
        picture(99).save(place / "cat/maria_000.png")
        return hashes

    monkeypatch.setattr(intake, "_copy", copy_and_change)
    with pytest.raises(SourceError, match="changed while it was read"):
        add(root, place)
    assert left(root) == set()
    assert read_drops(root) == ()


def test_a_file_that_vanishes_or_becomes_a_link_is_a_change(root: Path, tmp_path: Path) -> None:
    from veilset.drops.intake import Look, Seen, _copy

    place = class_folders(tmp_path / "p", images=2)
    target = tmp_path / "copy"
    seen = look_at(place)
    (place / "cat/maria_000.png").unlink()
    (place / "cat/maria_000.png").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match="changed while it was read"):
        _copy(place, target, seen)
    assert not list(target.rglob("*.png"))
    gone = Look((Seen((b"dog", b"none.png"), 1, 1),), 0)
    with pytest.raises(SourceError, match="changed while it was read"):
        _copy(place, tmp_path / "other", gone)


KILLED = """
import os, signal, sys, threading
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
from drop_places import SAID
from veilset.drops import intake, listing
from veilset.keys import DEMO_IDS_KEY

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(intake, {where!r}, die)
intake.add_drop(Path({root!r}), Path({place!r}), SAID, DEMO_IDS_KEY, lambda folder: None, 0.0)
"""


@pytest.mark.parametrize(
    "where", ["_recognised", "write_mark", "_note_origin", "list_drop", "enter"]
)
def test_killed_at_any_step_the_next_call_finishes(root: Path, tmp_path: Path, where: str) -> None:
    place = class_folders(tmp_path / "p")
    script = textwrap.dedent(KILLED).format(
        tests=str(REPOSITORY / "tests/drops"), where=where, root=str(root), place=str(place)
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_drops(root) == ()
    name = add(root, place)
    assert left(root) == {name}
    assert tree(root / RAW / name / "drop") == tree(place)
    assert [record.name for record in read_drops(root)] == [name]
    assert list(load_drops(root).drops) == ["digits", name]
    assert content_digest(folder_hashes(root / RAW / name / "drop"), DEMO_IDS_KEY) == (
        read_drops(root)[0].digest
    )
