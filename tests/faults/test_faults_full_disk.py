"""A full disk at each writer: one sentence, nothing half written, and room makes a rerun work."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_cases import KEY, files_of, ingest_drop, make_drop, names_in, protect
from writers import WRITERS, atomically, image_set, journal

from veilset import keys
from veilset.data.sources.folder import FolderSource
from veilset.errors import DiskFullError, KeyFileError, VeilsetError
from veilset.release.signing import write_signing_key

Disk = Callable[[str], Path]
PAGE = 4096  # what a tmpfs gives at a time


def fill(place: Path, leave: int) -> Path:
    """Fills a disk up to a few bytes with one file, which is given back."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        while (room := _free(place)) >= leave + PAGE:
            file.write(bytes(min(1 << 16, room - leave)))
    return filler


def _free(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def rooms(needed: int) -> Iterator[int]:
    """How much room to leave: none, a page, and more up to what is not quite enough."""
    yield from sorted({0, PAGE, needed // 4, needed // 2, max(0, needed - 3 * PAGE)})


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_full_disk_is_one_sentence_and_room_is_the_cure(
    small_disk: Disk, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    write(whole)
    needed = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    full = 0
    for room in rooms(needed):
        place = small_disk("512k")
        filler = fill(place, room)
        with pytest.raises(DiskFullError, match=r"[\d,]+ bytes") as caught:
            write(place)
        assert_one_sentence(caught.value, place)
        shown = {name for name in names_in(place) if not name.startswith(".")}
        assert shown == {"filler"}, "something half written can be seen"
        assert not list(place.rglob("*.tmp"))
        filler.unlink()
        write(place)
        assert files_of(place) == files_of(whole)
        full += 1
    assert full >= 3


def assert_one_sentence(error: VeilsetError, place: Path) -> None:
    assert "\n" not in str(error)
    assert str(place) in str(error)
    assert "run again" in str(error) or "make room" in str(error)


@pytest.mark.parametrize("write", [atomically, image_set, journal])
def test_what_was_there_before_stays(
    small_disk: Disk, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    place = small_disk("512k")
    write(place)
    before = files_of(place)
    filler = fill(place, 0)
    with pytest.raises(DiskFullError):
        write(place)
    filler.unlink()
    assert {name: hashed for name, hashed in files_of(place).items() if name in before} == before


@pytest.fixture(scope="module")
def drop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_drop(tmp_path_factory.mktemp("drop") / "images")


@pytest.fixture(scope="module")
def whole(drop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drop ingested and protected where there is room."""
    root = tmp_path_factory.mktemp("whole")
    ingest_drop(drop, root)
    protect(root / "ingested/d1", root)
    return root


@pytest.mark.parametrize(
    ("room", "counted"),
    [(0, True), (60_000, True), (8_000, False), (40_000, False), (80_000, False)],
)
def test_ingest(  # the quarantine, the spool, the shards: wherever the room ends
    small_disk: Disk, drop: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, room: int,
    counted: bool,
) -> None:  # fmt: skip
    place = small_disk("512k")
    if not counted:  # Then nothing is known before the disk is full.
        monkeypatch.setattr(FolderSource, "count", lambda _: None)
    filler = fill(place, room)
    with pytest.raises(DiskFullError, match=r"[\d,]+ bytes") as caught:
        ingest_drop(drop, place)
    assert_one_sentence(caught.value, place)
    assert not (place / "ingested/d1").exists()
    if counted:
        assert "needs" in str(caught.value)
    filler.unlink()
    ingest_drop(drop, place)
    for folder_name in ("ingested", "quarantine"):
        assert files_of(place / folder_name) == files_of(whole / folder_name)
    assert names_in(place) == names_in(whole) - {
        name for name in names_in(whole) if name.startswith(("protected", "links"))
    }


@pytest.mark.parametrize("room", [0, 12_000, 45_000, 70_000])
def test_protect(small_disk: Disk, whole: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    from veilset.schemes import protect as module

    place = small_disk("16m")  # a mebibyte is asked for beside each of six shards
    filler = fill(place, room)
    if room:  # As where another program takes the room after it was looked at.
        monkeypatch.setattr(module, "require_space", lambda *_: None)
    with pytest.raises(DiskFullError, match=r"[\d,]+ bytes") as caught:
        protect(whole / "ingested/d1", place)
    assert_one_sentence(caught.value, place)
    assert not (place / "protected/d1").exists()
    assert not (place / "links/d1").exists()
    filler.unlink()
    protect(whole / "ingested/d1", place)
    for folder_name in ("protected", "links"):
        assert files_of(place / folder_name) == files_of(whole / folder_name)
        assert not list((place / folder_name).glob(".*"))


@pytest.mark.parametrize("kind", keys.KEY_KINDS)
@pytest.mark.parametrize("pages", [0, 1])
def test_a_key_is_made_whole_with_its_fingerprint_or_not_at_all(
    small_disk: Disk, kind: keys.KeyKind, pages: int
) -> None:
    place = small_disk("512k")
    (place / "keys").mkdir()
    filler = fill(place, pages * PAGE)
    with pytest.raises((KeyFileError, DiskFullError), match=r"No space left.*run again"):
        keys.new_key(kind, place)
    assert list((place / "keys").iterdir()) == []
    filler.unlink()
    made = keys.new_key(kind, place)
    assert keys.project_key(kind, place) == made


@pytest.mark.parametrize("pages", [0, 1])
def test_a_key_that_cannot_be_replaced_stays(small_disk: Disk, pages: int) -> None:
    place = small_disk("512k")
    old = keys.new_key("ids", place)
    before = files_of(place / "keys")
    filler = fill(place, pages * PAGE)
    with pytest.raises((KeyFileError, DiskFullError), match="No space left"):
        keys.new_key("ids", place, replace=True)
    assert files_of(place / "keys") == before
    assert keys.project_key("ids", place) == old
    filler.unlink()
    assert keys.new_key("ids", place, replace=True) != old


def test_a_signing_key(small_disk: Disk) -> None:
    place = small_disk("512k")
    filler = fill(place, 0)
    with pytest.raises(VeilsetError, match="No space left"):
        write_signing_key(place / "signing.key")
    assert names_in(place) == {"filler"}
    filler.unlink()
    assert write_signing_key(place / "signing.key").secret != KEY.secret
