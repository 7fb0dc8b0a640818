"""What the system does to a run: failing disks, read-only places, signals, other settings."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_cases import files_of, ingest_drop, make_drop, names_in, protect, quiet_environment
from writers import WRITERS, journal

from veilset import keys
from veilset.errors import VeilsetError

Disk = Callable[[str], Path]
HERE = Path(__file__).parent


def new_key(place: Path) -> None:
    keys.new_key("ids", place)


# --------------------------------------------------------------------------- a disk that fails


class FailingDisk:
    """Lets so many calls of fsync pass; the one after them fails, as the kernel tells it once."""

    def __init__(self, passing: int) -> None:
        self.left = passing
        self.failed: tuple[int, int] | None = None
        self._sync = os.fsync

    def fsync(self, handle: int) -> None:
        found = os.fstat(handle)
        assert (found.st_dev, found.st_ino) != self.failed, "fsync was tried again"
        self.left -= 1
        if self.left == -1:
            self.failed = found.st_dev, found.st_ino
            raise OSError(errno.EIO, "Input/output error")
        self._sync(handle)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_failed_fsync_is_an_error_and_the_rerun_writes_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    write(whole)
    for passing in range(100):
        place = tmp_path / f"place-{passing}"
        place.mkdir()
        disk = FailingDisk(passing)
        monkeypatch.setattr(os, "fsync", disk.fsync)
        if disk_was_well(write, place, disk):
            break
        monkeypatch.undo()
        seen = {n for n in names_in(place) if not any(p.startswith(".") for p in Path(n).parts)}
        assert seen in (set(), names_in(whole)), "something half can be seen"
        assert not list(place.rglob("*.tmp"))
        if not seen or write is not journal:  # An entry that is in its place is not added again.
            write(place)
        assert files_of(place) == files_of(whole)
    assert passing >= 2, "no fsync was called"


def test_after_a_failed_fsync_a_key_is_there_with_its_fingerprint_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for old in (False, True):
        for passing in range(100):
            place = tmp_path / f"place-{old}-{passing}"
            place.mkdir()
            if old:
                keys.new_key("ids", place)
            disk = FailingDisk(passing)
            monkeypatch.setattr(os, "fsync", disk.fsync)
            if disk_was_well(lambda at: keys.new_key("ids", at, replace=True), place, disk):
                break
            monkeypatch.undo()
            if old or keys.key_path("ids", place).exists():
                keys.project_key("ids", place)  # key and fingerprint belong together
            assert not list(place.rglob("*.tmp"))
            made = keys.new_key("ids", place, replace=True)
            assert keys.project_key("ids", place) == made
        monkeypatch.undo()
        assert passing >= 4, "too few calls of fsync"


def disk_was_well(write: Callable[[Path], None], place: Path, disk: FailingDisk) -> bool:
    try:
        write(place)
    except VeilsetError as error:
        assert "Input/output error" in str(error) and "run again" in str(error)
        assert "\n" not in str(error)
        assert disk.failed is not None
        return False
    assert disk.failed is None, "a failed fsync was passed over"
    return True


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_an_error_on_closing_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    whole, place = tmp_path / "whole", tmp_path / "place"
    whole.mkdir()
    place.mkdir()
    write(whole)
    close = os.close

    def failing(handle: int) -> None:
        regular = os.path.isfile(f"/proc/self/fd/{handle}")  # noqa: PTH113 - no folders, no pipes
        close(handle)
        if regular:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "close", failing)
    try:
        write(place)
    except VeilsetError as error:
        assert "Input/output error" in str(error)
    monkeypatch.undo()
    if not names_in(place) or write is not journal:
        write(place)
    assert files_of(place) == files_of(whole)


# -------------------------------------------------------------------------- a read-only place


@pytest.fixture
def read_only(small_disk: Disk) -> Iterator[tuple[Path, Callable[[str], None]]]:
    place = small_disk("16m")

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(place)], check=True)

    yield place, remount


@pytest.mark.parametrize("write", [*WRITERS, new_key], ids=lambda write: write.__name__)
def test_a_read_only_place_is_one_sentence(
    read_only: tuple[Path, Callable[[str], None]], write: Callable[[Path], None]
) -> None:
    place, remount = read_only
    remount("ro")
    with pytest.raises(VeilsetError, match=r"Read-only file system.*run again") as caught:
        write(place)
    assert "\n" not in str(caught.value)
    remount("rw")
    assert names_in(place) == set()
    write(place)


@pytest.fixture(scope="module")
def drop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_drop(tmp_path_factory.mktemp("drop") / "images")


def test_a_set_in_a_read_only_place_stays(
    read_only: tuple[Path, Callable[[str], None]], drop: Path
) -> None:
    place, remount = read_only
    ingest_drop(drop, place)
    protect(place / "ingested/d1", place)
    before = files_of(place)
    remount("ro")
    for again in (lambda: ingest_drop(drop, place), lambda: protect(place / "ingested/d1", place)):
        with pytest.raises(VeilsetError, match="Read-only file system"):
            again()
    assert files_of(place) == before
    remount("rw")
    ingest_drop(drop, place)
    protect(place / "ingested/d1", place)
    assert files_of(place) == before


# ---------------------------------------------------------------------------------- signals


def start(drop: Path, output: Path) -> subprocess.Popen[str]:
    """The command of a user."""
    command = [sys.executable, "-m", "veilset.cli", "protect", str(drop), str(output), "--scheme",
               "visualmixer", "--demo-key", "--size", "16", "--workers", "1"]  # fmt: skip
    # Whoever runs tests in the background has them ignore the signal of Ctrl-C.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=output.parent,
        env=quiet_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(drop: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("uninterrupted")
    with start(drop, place / "out") as process:
        assert process.wait(timeout=200) == 0, process.communicate()
    return files_of(place / "out")


def test_a_signal_stops_a_command_within_seconds_and_it_goes_on(
    tmp_path: Path, drop: Path, uninterrupted: dict[str, str]
) -> None:
    output = tmp_path / "out"
    for sent in (signal.SIGTERM, signal.SIGINT):
        with start(drop, output) as process:
            latest = time.monotonic() + 120
            while not list(tmp_path.rglob(".*.partial/.spool")):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < latest
                time.sleep(0.005)
            below = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(sent)
            began = time.monotonic()
            _, errors = process.communicate(timeout=20)
            assert time.monotonic() - began < 10
        assert process.returncode == 130, errors
        assert "run the same command again" in errors
        assert "Traceback" not in errors
        assert not psutil.wait_procs(below, timeout=10)[1]
        assert not output.exists()
    with start(drop, output) as process:
        assert process.wait(timeout=200) == 0, process.communicate()
    assert files_of(output) == uninterrupted
    assert not [path for path in tmp_path.rglob(".*") if path.suffix != ".lock"]


# ------------------------------------------------------------------------------ two at once

RACE = """
import json, sys, time
from pathlib import Path
from fault_cases import ingest_drop, protect
from veilset.errors import BusyError

drop, root, start = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
time.sleep(max(0, start - time.time()))
said = []
for work in (lambda: ingest_drop(drop, root), lambda: protect(root / "ingested/d1", root)):
    for attempt in range(200):
        try:
            work()
            said.append("done")
            break
        except BusyError as error:
            said.append(str(error))
            time.sleep(0.1)
print(json.dumps(said))
"""


def test_two_runs_at_once_end_as_one(tmp_path: Path, drop: Path) -> None:
    ingest_drop(drop, tmp_path / "alone")
    protect(tmp_path / "alone/ingested/d1", tmp_path / "alone")
    root = tmp_path / "race"
    command = [sys.executable, "-c", RACE, str(drop), str(root), str(time.time() + 4)]
    pair = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         cwd=HERE, env=quiet_environment(PYTHONPATH=str(HERE)))
        for _ in range(2)
    ]  # fmt: skip
    said = []
    for process in pair:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        said += json.loads(out)
    assert said.count("done") == 4
    refused = [words for words in said if words != "done"]
    assert refused, "the two never met"
    assert all("is being written by another run" in words for words in refused)
    assert files_of(root) == files_of(tmp_path / "alone")


# --------------------------------------------------------------------- clock, place, machine

ELSEWHERE: dict[str, Any] = {
    "here": {"TZ": "UTC", "LC_ALL": "C", "LANG": "C", "PYTHONHASHSEED": "1"},
    "elsewhere": {
        "TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8",
        "PYTHONHASHSEED": "4711", "PYTHONUTF8": "1", "NUMBA_CPU_NAME": "generic",
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX2 FMA3",
    },
}  # fmt: skip

EVERYTHING = """
import os, sys, time
from pathlib import Path
# A clock that is 30 years ahead, and a umask, before anything is imported.
ahead, mask = float(sys.argv[3]), int(sys.argv[4], 8)
real = time.time, time.time_ns
time.time = lambda: real[0]() + ahead
time.time_ns = lambda: real[1]() + int(ahead * 1e9)
os.umask(mask)

from fault_cases import ingest_drop, protect
from writers import WRITERS

drop, root = Path(sys.argv[1]), Path(sys.argv[2])
ingest_drop(drop, root)
for name in ("visualmixer", "pixel_block_mixing"):
    protect(root / "ingested/d1", root / name, name)
for write in WRITERS:
    if write.__name__ != "checkpoint":  # torch's archive is read by its own run alone
        write(root)
"""


def test_clock_time_zone_locale_umask_hash_seed_and_processor_change_no_byte(
    tmp_path: Path, drop: Path
) -> None:
    made = {}
    for number, (name, settings) in enumerate(ELSEWHERE.items()):
        root = tmp_path / name
        root.mkdir()
        for path in drop.rglob("*"):
            os.utime(path, (10**9 * number, 10**9 * number))
        arguments = [str(drop), str(root), str(number * 30 * 365 * 86400), ("022", "077")[number]]
        done = subprocess.run(
            [sys.executable, "-c", EVERYTHING, *arguments], capture_output=True, text=True,
            check=False, cwd=HERE, env=quiet_environment(PYTHONPATH=str(HERE), **settings),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        made[name] = files_of(root)
    assert len(made["here"]) > 20
    assert made["here"] == made["elsewhere"]
