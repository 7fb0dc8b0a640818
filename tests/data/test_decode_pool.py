"""Workers that crash, hang, run out of memory or lie; the parent lives and loses nothing else."""

import functools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from acts import act, fail_to_load, once
from PIL import Image
from test_decode import CORPUS, LOSSLESS, NATIVE, SHARED, saved, scene

from veilset.data.decode import Decoded, DecodeParams, Refused, decode, decode_packed, unpack
from veilset.data.decode_pool import Died, Limits, run_jobs
from veilset.errors import VeilsetError

Answer = tuple[int, bytes | Died | None]


def run(contents: list[bytes | None], **limits: float) -> list[bytes | Died | None]:
    given = Limits(**{"timeout_seconds": 20, **limits})  # type: ignore[arg-type]
    answers: list[Answer] = list(run_jobs(act, enumerate(contents), given))
    assert [tag for tag, _ in answers] == list(range(len(contents)))
    return [answer for _, answer in answers]


def test_answers_in_order_for_any_number_of_workers() -> None:
    contents = [b"slow:0", *[b"%d" % i for i in range(100)], None, b"", b"end"]
    expected = [None if c is None else b"did " + c for c in contents]
    for workers in (1, 3):
        assert run(contents, workers=workers) == expected
    assert run([], workers=2) == []
    assert run([None, None]) == [None, None]


@pytest.mark.parametrize("word", ["crash", "raise", "exit", "flood"])
def test_only_the_item_that_kills_is_lost(word: str) -> None:
    contents = [b"%d" % i for i in range(40)]
    contents[7] = word.encode()
    answers = run(contents, workers=2, answer_bytes=1000)
    died = answers.pop(7)
    assert isinstance(died, Died) and died.reason == "decoder_died"
    name = {"crash": "SIGSEGV", "exit": "exit code 3"}.get(word, "")
    assert name in died.sentence
    assert answers == [b"did %d" % i for i in range(40) if i != 7]


def test_several_killers_among_their_kind() -> None:
    contents = [b"kill:%d" % i if i % 4 == 0 else b"%d" % i for i in range(9)]
    answers = run(contents, workers=2)
    assert [isinstance(a, Died) for a in answers] == [i % 4 == 0 for i in range(9)]


@pytest.mark.parametrize("word", ["hang", "spin"])
def test_a_hanging_item_is_given_up(word: str) -> None:
    started = time.monotonic()
    answers = run([b"1", word.encode(), b"2"], timeout_seconds=0.5)
    assert answers[0] == b"did 1" and answers[2] == b"did 2"
    assert isinstance(answers[1], Died) and answers[1].reason == "decoder_timeout"
    assert time.monotonic() - started < 20


def test_memory_is_limited() -> None:
    answers = run([b"hoard", b"1"], memory_bytes=256 << 20)
    assert isinstance(answers[0], Died) and answers[1] == b"did 1"


def test_an_item_that_died_by_accident_is_tried_again(tmp_path: Path) -> None:
    work = functools.partial(once, str(tmp_path))
    contents = [b"first", b"second"]
    answers = [a for _, a in run_jobs(work, enumerate(contents), Limits())]
    assert answers == [b"did first", b"did second"]
    assert (tmp_path / "mark").exists()


def test_a_worker_knows_and_may_little(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VEILSET_IDS_KEY", "00" * 32)
    seen, wrote = run([b"look", b"write:" + bytes(tmp_path / "file")])
    assert isinstance(seen, bytes) and seen.startswith(b"no torch ")
    assert b"VEILSET" not in seen
    assert isinstance(wrote, Died)


def test_workers_that_cannot_start_are_one_error() -> None:
    with pytest.raises(VeilsetError, match="cannot be started"):
        list(run_jobs(fail_to_load(), [(0, b"1")], Limits()))


def test_reading_ahead_is_bounded() -> None:
    read = 0

    def jobs() -> Iterator[tuple[int, bytes]]:
        nonlocal read
        for index in range(10_000):
            read = index
            yield index, bytes(1 << 20)

    answers = run_jobs(act, jobs(), Limits(answer_bytes=2 << 20))
    next(answers)
    assert read < 200
    answers.close()  # type: ignore[attr-defined]


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [p for p in process.children(recursive=True) if "decode_pool" in " ".join(p.cmdline())]


def test_closing_early_leaves_no_process() -> None:
    answers = run_jobs(act, ((i, b"1") for i in range(1000)), Limits(workers=2))
    next(answers)
    assert workers_of(psutil.Process())
    answers.close()  # type: ignore[attr-defined]
    assert not workers_of(psutil.Process())


# Whoever runs the tests in the background has them ignore the signal of Ctrl-C.
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
from acts import act
from veilset.data.decode_pool import Limits, run_jobs
print("ready", flush=True)
list(run_jobs(act, ((i, b"hang" if i == 3 else b"1") for i in range(10)), Limits(workers=2)))
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_stops_everything_within_seconds(sent: signal.Signals) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        seen: list[psutil.Process] = []
        for _ in range(300):
            seen = workers_of(psutil.Process(parent.pid))
            if len(seen) == 1:
                break
            time.sleep(0.05)
        assert seen
        time.sleep(0.5)
        parent.send_signal(sent)
        parent.wait(timeout=10)
    _, alive = psutil.wait_procs(seen, timeout=10)
    assert not alive


# ------------------------------------------------------------------------ untrusted images


def decoded(contents: list[bytes], **limits: float) -> list[Decoded | Refused | Died]:
    given = Limits(**{"answer_bytes": 12 * 20 * 3, **limits})  # type: ignore[arg-type]
    work = functools.partial(decode_packed, NATIVE)
    results: list[Decoded | Refused | Died] = []
    for _, answer in run_jobs(work, enumerate(contents), given):
        assert answer is not None
        results.append(answer if isinstance(answer, Died) else unpack(answer, NATIVE))
    return results


def test_damaged_files_never_kill_the_parent() -> None:
    rng = np.random.default_rng(1)
    contents = []
    for make in CORPUS.values():
        content = make()
        for _ in range(12):
            broken = bytearray(content)
            broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
            contents += [bytes(broken), content[: rng.integers(len(content))]]
        contents.append(content)
    results = decoded(contents, workers=2, timeout_seconds=10)
    assert len(results) == len(contents)
    for content, result in zip(contents, results, strict=True):
        if isinstance(result, Decoded):
            here = decode(content, NATIVE)
            assert isinstance(here, Decoded) and here.digest == result.digest


def test_ten_broken_files_among_photographs() -> None:
    photographs = [saved(Image.fromarray(scene(40, 30 + i)), "JPEG") for i in range(60)]
    broken = [photographs[i * 6][: 300 + i * 20] for i in range(10)]
    mixed = list(photographs)
    for index, content in enumerate(broken):
        mixed.insert(index * 7, content)
    results = decoded(mixed, workers=2)
    lost = [i for i, result in enumerate(results) if not isinstance(result, Decoded)]
    assert lost == [index * 7 for index in range(10)]


def test_a_picture_that_needs_too_much_memory_is_refused() -> None:
    big = saved(Image.new("RGB", (6000, 6000)), "PNG")
    results = decoded([big, LOSSLESS["png"]()], memory_bytes=120 << 20)
    assert isinstance(results[0], Refused) and results[0].reason == "out_of_memory"
    assert isinstance(results[1], Decoded)


@pytest.mark.slow
def test_the_default_memory_is_enough_for_the_default_limit() -> None:
    side = 7071  # 50 megapixels, in the mode that needs most.
    big = saved(Image.new("RGBA", (side, side)), "PNG", compress_level=1)
    (result,) = decoded([big])
    assert isinstance(result, Decoded)


def test_shared_photographs_are_the_same_through_the_pool() -> None:
    path = SHARED / "sign_digits_exif/test.parquet"
    if not path.is_file():
        pytest.skip(f"the shared data set {path} is not here")
    import pyarrow.parquet as pq

    params = DecodeParams(size=24)
    contents = [row["bytes"] for row in pq.read_table(path).column("image").to_pylist()]
    work = functools.partial(decode_packed, params)
    answers = [a for _, a in run_jobs(work, enumerate(contents), Limits(workers=2))]
    for content, answer in zip(contents, answers, strict=True):
        assert isinstance(answer, bytes)
        here, there = decode(content, params), unpack(answer, params)
        assert isinstance(here, Decoded) and isinstance(there, Decoded)
        assert np.array_equal(here.pixels, there.pixels) and here.digest == there.digest
