"""What the command line and the stages show: progress bars, and errors as one sentence."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, Protocol

from tqdm import tqdm

from veilset.errors import VeilsetError

_STOPPED: Final = 130
"""Exit code of a command that was stopped by Ctrl-C or SIGTERM."""

_MACHINE: Final = frozenset(
    {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENXIO,
     errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE}
)  # fmt: skip
"""What is wrong with a machine and not with the program."""


class Advance(Protocol):
    """Advances a progress bar by a count, and shows figures behind it."""

    def __call__(self, count: int, **figures: float) -> None:
        """Advances by `count`."""


@contextmanager
def progress(
    what: str, total: int | None, unit: str = "img", *, hidden: bool = False
) -> Iterator[Advance]:
    """A progress bar on stderr with rate and time left; yields the function that advances it.

    Where stderr is no terminal, a line every few seconds instead of many a second. A hidden one
    shows nothing: where several processes do one thing, one of them tells.
    """
    interval = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(
        total=total,
        desc=what,
        unit=unit,
        mininterval=interval,
        dynamic_ncols=True,
        leave=False,
        disable=hidden,
    ) as bar:

        def advance(count: int, **figures: float) -> None:
            if figures:
                bar.set_postfix(figures, refresh=False)
            bar.update(count)

        yield advance


def up_to(advance: Advance) -> Callable[[int, int | None], None]:
    """Advances a bar from counts done so far, for work that tells those."""
    shown = 0

    def report(done: int, total: int | None) -> None:
        nonlocal shown
        del total
        advance(done - shown)
        shown = done

    return report


def say(text: str) -> None:
    """A line for the user, on stdout."""
    print(text, flush=True)  # noqa: T201


def run_reporting_errors(work: Callable[[], int | None]) -> int:
    """Runs `work`; returns its exit code, or an error's after printing the user's sentence.

    SIGTERM is turned into the same orderly stop as Ctrl-C, so that what is half-written is removed
    and what can be resumed is kept.
    """
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return work() or 0
    except VeilsetError as error:
        print(f"veilset: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        return _stopped()
    except SystemExit as stop:
        # What Typer makes of Ctrl-C before it comes here.
        if stop.code == _STOPPED:
            return _stopped()
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        place = f" at {error.filename}" if error.filename else ""
        print(  # noqa: T201
            f"veilset: This machine could not read or write{place} ({error.strerror}), and nothing "
            "half-written was kept: check its disks, then run the same command again.",
            file=sys.stderr,
        )
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stopped() -> int:
    print("veilset: stopped; run the same command again to go on.", file=sys.stderr)  # noqa: T201
    return _STOPPED


def _interrupt(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise KeyboardInterrupt
