"""`veilset drop add` on a disk that fills up, and stopped in the middle."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_cases import files_of, make_drop, names_in, quiet_environment
from test_faults_full_disk import assert_one_sentence, fill

from veilset.drops import intake
from veilset.drops.intake import RAW, Arrival, add_drop
from veilset.drops.record import read_drops
from veilset.errors import DiskFullError
from veilset.keys import DEMO_IDS_KEY

Disk = Callable[[str], Path]
REPOSITORY = Path(__file__).parents[2]
SAID = Arrival(licence="CC BY 4.0", consent="form 3", by="Ann Owner", name="monday")


def project(root: Path) -> Path:
    """What `drop add` reads and changes of a project."""
    (root / "keys").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "data/raw/digits", root / "data/raw/digits")
    for path in (*(REPOSITORY / "keys").glob("*.fingerprint"), REPOSITORY / "drops.yaml"):
        shutil.copy(path, root / path.relative_to(REPOSITORY))
    return root


def add(root: Path, place: Path) -> str:
    record, _ = add_drop(root, place, SAID, DEMO_IDS_KEY, lambda _: None, 0.0)
    return record.name


@pytest.mark.parametrize("counted", [True, False], ids=["seen first", "met while copying"])
@pytest.mark.parametrize("room", [0, 24_000, 60_000])
def test_a_full_disk_takes_nothing_and_room_is_the_cure(
    small_disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, counted: bool
) -> None:
    place = make_drop(tmp_path / "images")
    root = project(small_disk("1m") / "project")
    before = files_of(root)
    if not counted:  # As where another program takes the room after it was looked at.
        monkeypatch.setattr(intake, "require_space", lambda *_: None)
    filler = fill(root.parent, room)
    with pytest.raises(DiskFullError) as caught:
        add(root, place)
    assert_one_sentence(caught.value, root)
    assert files_of(root) == before, "nothing of the images stays"
    filler.unlink()
    assert add(root, place) == "monday"
    assert files_of(root / RAW / "monday/drop") == files_of(place)
    assert [record.name for record in read_drops(root)] == ["monday"]


@pytest.mark.parametrize("where", ["list_drop", "enter", "_note_origin"])
def test_a_disk_that_is_full_after_the_copy_is_finished_by_the_next_call(
    small_disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    place = make_drop(tmp_path / "images")
    root = project(small_disk("1m") / "project")
    real, fillers = getattr(intake, where), []

    def on_a_full_disk(*values: object) -> object:
        fillers.append(fill(root.parent, 0))
        return real(*values)

    monkeypatch.setattr(intake, where, on_a_full_disk)
    with pytest.raises(DiskFullError):
        add(root, place)
    assert read_drops(root) == ()
    fillers.pop().unlink()
    monkeypatch.undo()
    assert add(root, place) == "monday"
    assert files_of(root / RAW / "monday/drop") == files_of(place)
    assert [record.name for record in read_drops(root)] == ["monday"]


def command(root: Path, place: Path) -> "subprocess.Popen[str]":
    words = ["drop", "add", str(place), "--name", "monday", "--licence", "x", "--consent", "x",
             "--by", "Ann", "--settle-seconds", "0"]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "veilset.cli", *words], cwd=root, env=quiet_environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )  # fmt: skip


def test_a_signal_stops_it_and_the_same_command_goes_on(tmp_path: Path) -> None:
    root = project(tmp_path / "project")
    for tool in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(tool, cwd=root, check=True, env=quiet_environment())
    place = make_drop(tmp_path / "images")
    big = place / "a" / "big.png"  # takes long enough to copy for a signal to meet it
    with big.open("wb") as file:
        file.truncate(3 << 30)
    for sent in (signal.SIGTERM, signal.SIGINT):
        with command(root, place) as process:
            latest = time.monotonic() + 60
            while not (root / RAW / ".monday.partial/drop/a/big.png").exists():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < latest
                time.sleep(0.002)
            process.send_signal(sent)
            began = time.monotonic()
            _, errors = process.communicate(timeout=20)
            assert time.monotonic() - began < 10
        assert process.returncode == 130, errors
        assert "run the same command again" in errors and "Traceback" not in errors
        assert {n for n in names_in(root / RAW) if "monday" in n} == set()
        assert read_drops(root) == ()
    big.write_bytes(b"no picture")
    with command(root, place) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "monday: arrived" in said, errors
    assert files_of(root / RAW / "monday/drop") == files_of(place)
