"""Atomic files, tables, locks, staging: nothing half-written is ever visible."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.errors import BusyError, CorruptError, DiskFullError, VeilsetError
from veilset.files import (
    atomic_file,
    json_text,
    locked,
    read_table,
    require_space,
    sha256_file,
    staged_folder,
    sweep,
    write_bytes,
    write_json,
    write_table,
    write_text,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def start(code: str, *args: object, stdin: int | None = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True)


# Atomic files


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.json"
    with atomic_file(target) as file:
        file.write(b"half")
        file.flush()
        assert not target.exists()
        assert names(target.parent) == {f".report.json.{os.getpid()}.tmp"}
    assert target.read_bytes() == b"half"
    assert names(target.parent) == {"report.json"}


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_any_exception_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_file(target) as file:
        file.write(b"new")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == {"a"}


def test_text_has_unix_line_ends_and_utf8(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a", "w") as file:
        file.write("é\n")
    write_text(tmp_path / "b", "é\n")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == "é\n".encode()
    with pytest.raises(ValueError, match="'a'"), atomic_file(tmp_path / "c", "a"):
        pass


def test_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("cached")
    (tmp_path / "out").symlink_to(tmp_path / "cache")
    write_text(tmp_path / "out", "new")
    assert (tmp_path / "cache").read_text() == "cached"
    assert not (tmp_path / "out").is_symlink()


def test_reserved_room_that_is_not_used_is_given_back(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a", size=100_000) as file:
        file.write(b"x" * 10)
    assert (tmp_path / "a").read_bytes() == b"x" * 10


def test_a_name_of_255_bytes_works(tmp_path: Path) -> None:
    target = tmp_path / ("é" * 127 + "x")
    write_bytes(target, b"1")
    assert target.read_bytes() == b"1"


def test_a_failed_fsync_is_never_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    write_text(target, "old")
    calls = []

    def broken(handle: int) -> None:
        calls.append(handle)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(VeilsetError, match="Input/output error"):
        write_text(target, "new")
    assert len(calls) == 1
    assert target.read_text() == "old"
    assert names(tmp_path) == {"a"}


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VeilsetError, match="cannot be written") as caught:
        write_text(tmp_path / "file" / "below", "x")
    assert str(caught.value).count("\n") == 0


def test_leftovers_of_a_killed_writer_are_swept_and_live_ones_are_not(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from veilset.files import atomic_file
        with atomic_file(Path(sys.argv[1])) as file:
            file.write(b"half"); file.flush()
            print("writing", flush=True)
            time.sleep(60)
    """
    target = tmp_path / "a"
    writer = start(code, target)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    temporary = tmp_path / f".a.{writer.pid}.tmp"
    write_text(target, "other")  # The live writer's file is left alone.
    assert temporary.exists()
    assert sweep(tmp_path) == []
    writer.kill()
    writer.wait()
    (tmp_path / ".other.77.tmp").write_text("not of this file")
    write_text(target, "new")
    assert names(tmp_path) == {"a", ".other.77.tmp"}
    assert sweep(tmp_path) == [tmp_path / ".other.77.tmp"]
    assert target.read_text() == "new"


words = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(json_values)
def test_json_reads_back_and_has_one_spelling(value: object) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert json_text(json.loads(text)) == text


def test_json_is_sorted_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert (tmp_path / "a.json").read_text() == '{\n "a": "é",\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))
    assert names(tmp_path) == {"a.json"}


def test_sha256_of_nothing_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert sha256_file(tmp_path / "a").startswith("e3b0c44298fc1c149afbf4c8996fb924")


# Tables


tables = st.integers(0, 30).flatmap(
    lambda n: st.fixed_dictionaries({
        "id": st.lists(st.none() | st.text("0123456789abcdef", max_size=5), min_size=n, max_size=n),
        "label": st.lists(st.integers(-1, 2**62), min_size=n, max_size=n),
        "score": st.lists(st.floats(allow_nan=True), min_size=n, max_size=n),
        "ok": st.lists(st.booleans(), min_size=n, max_size=n),
    })
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(tables)
def test_tables_read_back_with_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, list[object]]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    frame = pd.DataFrame(values)
    write_table(folder / "a.parquet", frame)
    shifted = frame.set_index(pd.Index(range(7, 7 + len(frame)), name="noise"))
    write_table(folder / "b.parquet", shifted)
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()
    back = read_table(folder / "a.parquet")
    assert list(back.columns) == list(frame.columns)
    assert [None if pd.isna(x) else x for x in back["id"]] == values["id"]
    assert back["label"].tolist() == values["label"]
    assert back["ok"].tolist() == values["ok"]
    np.testing.assert_array_equal(back["score"], np.array(values["score"], dtype=float))


def test_whole_numbers_with_gaps_stay_whole(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": pd.array([2**60 + 1, None], dtype="Int64")})
    write_table(tmp_path / "a.parquet", frame)
    assert read_table(tmp_path / "a.parquet")["n"].tolist() == [2**60 + 1, pd.NA]


def test_a_flipped_bit_in_a_tables_values_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    marker = 0x1122334455667788
    write_table(path, pd.DataFrame({"n": [marker, 5, 6]}))
    data = bytearray(path.read_bytes())
    data[data.index(marker.to_bytes(8, "little"))] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="make it again"):
        read_table(path)


def test_a_mixed_column_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'mixed'"):
        write_table(tmp_path / "a.parquet", pd.DataFrame({"ok": [1, 2], "mixed": ["a", 1]}))
    with pytest.raises(CorruptError):
        read_table(tmp_path / "a.parquet")


# Full disks


def test_too_little_room_is_said_with_both_numbers(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(DiskFullError, match=r"1,000,000,000,000,000,000 bytes.* [\d,]+ free"):
        require_space(tmp_path / "not" / "yet", 10**18)


@pytest.mark.parametrize("size", [0, 3_000_000])
def test_a_file_size_limit_leaves_nothing(tmp_path: Path, size: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    target = tmp_path / "a"
    write_text(target, "old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(DiskFullError, match="bytes"), atomic_file(target, size=size) as file:
            for _ in range(30):
                file.write(bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text() == "old"
    assert names(tmp_path) == {"a"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("size", [0, 3_000_000])
def test_a_full_disk_leaves_nothing(small_disk: Path, size: int) -> None:
    write_text(small_disk / "a", "old")
    with (
        pytest.raises(DiskFullError, match="free"),
        staged_folder(small_disk / "set", "p") as staging,
        atomic_file(staging / "b", size=size) as file,
    ):
        for _ in range(30):
            file.write(bytes(100_000))
    assert names(small_disk) == {"a", ".set.partial"}
    assert names(small_disk / ".set.partial") == {"plan"}
    with staged_folder(small_disk / "set", "p") as staging:
        write_bytes(staging / "b", bytes(100_000))
    assert names(small_disk) == {"a", "set"}


# Locks


HOLDER = """
    import sys, time
    from pathlib import Path
    from veilset.files import staged_folder
    with staged_folder(Path(sys.argv[1]), "plan") as folder:
        (folder / "done").write_text("by the first")
        print("holding", flush=True)
        sys.stdin.readline()
"""


def test_the_second_of_two_processes_is_told_who_holds_the_place(tmp_path: Path) -> None:
    first = start(HOLDER, tmp_path / "set")
    assert first.stdout is not None
    assert first.stdout.readline() == "holding\n"
    with (
        pytest.raises(BusyError, match=rf"set is being written .*process {first.pid}"),
        staged_folder(tmp_path / "set", "plan"),
    ):
        pass
    assert first.communicate("go on\n")[0] == ""
    assert first.returncode == 0
    assert (tmp_path / "set" / "done").read_text() == "by the first"
    assert names(tmp_path) == {"set"}


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    first = start(HOLDER, tmp_path / "set")
    assert first.stdout is not None
    first.stdout.readline()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "set").exists()
    with staged_folder(tmp_path / "set", "plan") as staging:
        assert (staging / "done").read_text() == "by the first"  # Resumed.
    assert names(tmp_path) == {"set"}


def test_a_lock_is_exclusive_inside_one_process_and_leaves_no_file(tmp_path: Path) -> None:
    with locked(tmp_path / "a"):
        with pytest.raises(BusyError), locked(tmp_path / "a"):
            pass
        with locked(tmp_path / "b"):
            pass
    with pytest.raises(RuntimeError), locked(tmp_path / "a"):
        raise RuntimeError
    with locked(tmp_path / "a"):
        pass
    assert names(tmp_path) == set()


def test_locks_exclude_under_contention(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from veilset.errors import BusyError
        from veilset.files import locked
        folder, done = Path(sys.argv[1]), 0
        sys.stdin.readline()
        while done < 60:
            try:
                with locked(folder / "counter"):
                    count = int((folder / "count").read_text())
                    (folder / "count").write_text(str(count + 1))
                    done += 1
            except BusyError:
                pass
    """
    (tmp_path / "count").write_text("0")
    racers = [start(code, tmp_path) for _ in range(3)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "180"
    assert names(tmp_path) == {"count"}


# Staged folders


def build(final: Path, plan: str, text: str) -> None:
    with staged_folder(final, plan) as staging:
        write_text(staging / "part", text)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "set"
    build(final, "1", "one")
    (final / "stale").write_text("")
    with staged_folder(final, "2") as staging:
        assert staging == tmp_path / ".set.partial"
        write_text(staging / "part", "two")
        assert (final / "part").read_text() == "one"
    assert names(tmp_path) == {"set"}
    assert names(final) == {"part"}
    assert (final / "part").read_text() == "two"


def test_without_exchange_the_swap_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("veilset.files._exchange", lambda *_: False)
    test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path)


def test_a_failed_run_is_resumed_by_its_own_plan_only(tmp_path: Path) -> None:
    final = tmp_path / "set"
    with pytest.raises(RuntimeError), staged_folder(final, "A") as staging:
        write_text(staging / "part", "finished")
        (staging / "sub").mkdir()
        (staging / "sub" / ".x.123.tmp").write_text("half")
        raise RuntimeError
    assert not final.exists()
    with pytest.raises(RuntimeError), staged_folder(final, "A") as staging:
        assert (staging / "part").read_text() == "finished"
        assert names(staging / "sub") == set()
        raise RuntimeError
    with staged_folder(final, "B") as staging:
        assert names(staging) == {"plan"}
    assert names(final) == set()
    assert names(tmp_path) == {"set"}


def test_a_kill_between_the_two_steps_of_a_swap_loses_nothing(tmp_path: Path) -> None:
    final = tmp_path / "set"
    build(final, "1", "one")
    final.rename(tmp_path / ".set.old")  # As a killed swap leaves it.
    with pytest.raises(RuntimeError), staged_folder(final, "2"):
        raise RuntimeError
    assert (final / "part").read_text() == "one"
    (tmp_path / ".set.old").mkdir()
    build(final, "2", "two")
    assert (final / "part").read_text() == "two"
    assert names(tmp_path) == {"set"}


def test_a_link_at_the_place_of_a_folder_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("")
    (tmp_path / "set").symlink_to(tmp_path / "elsewhere")
    build(tmp_path / "set", "1", "one")
    assert names(tmp_path / "elsewhere") == {"kept"}
    assert names(tmp_path) == {"set", "elsewhere"}
    assert not (tmp_path / "set").is_symlink()


def test_a_folder_of_many_files_is_swapped_in_as_well(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "set", "1") as staging:
        for number in range(300):
            (staging / str(number)).write_bytes(b"x")
    assert len(names(tmp_path / "set")) == 300


def test_a_sleeping_writer_is_not_waited_for(tmp_path: Path) -> None:
    first = start(HOLDER, tmp_path / "set")
    assert first.stdout is not None
    first.stdout.readline()
    began = time.monotonic()
    with pytest.raises(BusyError), locked(tmp_path / "set"):
        pass
    assert time.monotonic() - began < 1
    first.communicate("\n")
