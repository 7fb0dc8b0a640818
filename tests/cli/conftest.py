"""The command line in a folder of its own."""

from pathlib import Path

import pytest
from cli_run import Run

from veilset.cli import app
from veilset.console import run_reporting_errors
from veilset.quiet import quiet


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    quiet()

    def command(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = run_reporting_errors(lambda: app([str(word) for word in words]))
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command
