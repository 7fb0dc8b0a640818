"""The command line in this process, as a user runs it."""

from collections.abc import Callable

Run = Callable[..., tuple[int, str, str]]
"""Runs a command by its words: exit code, stdout and stderr."""


def sentence(err: str) -> str:
    """The one sentence that a user is told of an error."""
    found = [line for line in err.splitlines() if line.startswith("veilset: ")]
    assert len(found) == 1, err
    return found[0]
