"""Errors reach the user as one sentence, and a stop is orderly."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from veilset.console import run_reporting_errors
from veilset.errors import SettingsError


def test_a_users_error_is_its_sentence_and_code_one(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise SettingsError("a is 1, but must be 2: change it.")

    assert run_reporting_errors(work) == 1
    assert capsys.readouterr().err == "veilset: a is 1, but must be 2: change it.\n"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_reporting_errors(lambda: 1 // 0)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EROFS, errno.ENOSPC])
def test_a_machine_that_fails_is_one_sentence(
    capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def work() -> int:
        raise OSError(number, os.strerror(number), "/mnt/far/shard")

    assert run_reporting_errors(work) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and os.strerror(number) in said and "/mnt/far/shard" in said


def test_a_file_that_the_program_forgot_is_a_bug() -> None:
    with pytest.raises(FileNotFoundError):
        run_reporting_errors(lambda: len(Path("/not/there").read_text()))


def test_sigterm_stops_in_order() -> None:
    code = (
        "import time, sys\n"
        "from veilset.console import run_reporting_errors\n"
        "def work():\n"
        "    try:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
        "sys.exit(run_reporting_errors(work))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    rest, _ = process.communicate(timeout=20)
    assert rest == "cleaned\n"
    assert process.returncode == 130
    assert time.monotonic() - started < 10
