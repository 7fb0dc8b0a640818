"""Work on untrusted bytes in processes that may die.

A decoder is a C library that a hostile file may crash, hang or make ask for all memory. Each worker
is a fresh interpreter that knows no key and nothing of the environment, with a limit on its address
space, no right to write files or core dumps, and an alarm clock for each item. When it dies, the
item that it was working on (and no other) is tried once more while nothing else runs; if its worker
dies again, its answer is `Died`. A new worker takes the dead one's place, and the work goes on.

Answers come back as plain bytes, in the order of the input, with bounded memory. All of it is ours.
"""

import ctypes
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Final, Generic, Literal, TypeVar

from veilset.errors import VeilsetError

T = TypeVar("T")

Work = Callable[[bytes], bytes]
"""What a worker does: importable by name, or a `functools.partial` of such a function."""

_BATCH_JOBS: Final = 16
_BATCH_BYTES: Final = 1 << 20
_WINDOW_JOBS: Final = 256
_WINDOW_BYTES: Final = 32 << 20
_GRACE_SECONDS: Final = 10.0
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "PYTHONHOME", "TMPDIR", "TZ")
_BOOT: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; from veilset.data.decode_pool import serve; "
    "serve(int(sys.argv[1]))"
)


@dataclass(frozen=True)
class Limits:
    """What workers may use. Only `timeout_seconds` and `memory_bytes` may change an answer.

    Attributes:
        workers: Number of processes, at least 1.
        timeout_seconds: Longest time on one item, seconds.
        memory_bytes: Address space that a worker may take beyond what it has when it is ready.
        answer_bytes: About how long an answer is; longer than this plus 64 KiB is not accepted.
    """

    workers: int = 1
    timeout_seconds: float = 30.0
    memory_bytes: int = 2 << 30
    answer_bytes: int = 1 << 20


@dataclass(frozen=True)
class Died:
    """The answer for an item whose worker died twice.

    Attributes:
        reason: `decoder_died` or `decoder_timeout`.
        sentence: The same for people, one sentence.
    """

    reason: Literal["decoder_died", "decoder_timeout"]
    sentence: str


def run_jobs(
    work: Work, jobs: Iterable[tuple[T, bytes | None]], limits: Limits
) -> Iterator[tuple[T, bytes | Died | None]]:
    """Runs a function on each content, in worker processes.

    Args:
        work: The function. An exception in it counts as a death of its worker.
        jobs: Pairs of anything and the content to work on; content None needs no work, and is
            handed on in its place. Read lazily, a bounded number ahead.
        limits: Number of workers, and what each may use.

    Yields:
        The same pairs in the same order, with the answer in the content's place. Closing the
        iterator, or any exception, kills the workers.

    Raises:
        VeilsetError: Workers cannot be started at all.
    """
    pool: _Pool[T] = _Pool(work, limits)
    try:
        yield from pool.run(iter(jobs))
    finally:
        pool.close()


# ---------------------------------------------------------------------------------------- parent


@dataclass(eq=False)
class _Job(Generic[T]):
    """One item on its way. `cost` is what it may hold of memory, in bytes."""

    tag: T
    content: bytes | None
    cost: int
    answer: bytes | Died | None = None
    done: bool = False
    deaths: int = 0

    def finish(self, answer: bytes | Died | None) -> None:
        self.answer, self.done, self.content = answer, True, None


@dataclass(eq=False)
class _Worker(Generic[T]):
    process: "subprocess.Popen[bytes]"
    connection: "Connection[bytes, bytes]"
    ready: bool = False
    jobs: "deque[_Job[T]]" = field(default_factory=deque)
    since: float = field(default_factory=time.monotonic)
    overdue: bool = False


class _Pool(Generic[T]):
    """The parent's side: what waits, what runs, what is finished but not yet handed on."""

    def __init__(self, work: Work, limits: Limits) -> None:
        self._limits = limits
        self._orders = pickle.dumps((work, limits.timeout_seconds, limits.memory_bytes))
        self._window: deque[_Job[T]] = deque()
        self._waiting: deque[_Job[T]] = deque()
        self._suspects: deque[_Job[T]] = deque()
        self._workers: list[_Worker[T]] = []
        self._held = 0
        self._false_starts = 0

    def run(
        self, jobs: Iterator[tuple[T, bytes | None]]
    ) -> Iterator[tuple[T, bytes | Died | None]]:
        while True:
            self._read_ahead(jobs)
            if not self._window:
                return
            self._dispatch()
            while self._window and self._window[0].done:
                job = self._window.popleft()
                self._held -= job.cost
                yield job.tag, job.answer
            if self._window:
                self._collect()

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.connection.close()
        self._workers.clear()

    def _read_ahead(self, jobs: Iterator[tuple[T, bytes | None]]) -> None:
        limits = self._limits
        most_jobs = _WINDOW_JOBS * (limits.workers + 1)
        most_bytes = _WINDOW_BYTES * (limits.workers + 1)
        while len(self._window) < most_jobs and (self._held < most_bytes or not self._window):
            found = next(jobs, None)
            if found is None:
                return
            tag, content = found
            job = _Job(tag, content, limits.answer_bytes + len(content or b""))
            self._window.append(job)
            self._held += job.cost
            if content is None:
                job.finish(None)
            else:
                self._waiting.append(job)

    def _dispatch(self) -> None:
        """Gives work to idle workers. A suspect is worked on only while nothing else is."""
        if self._suspects:
            if not any(worker.jobs for worker in self._workers):
                self._give(lambda: [self._suspects.popleft()], most=1)
            return
        self._give(self._next_batch, most=self._limits.workers)

    def _give(self, take: Callable[[], "list[_Job[T]]"], most: int) -> None:
        pending = self._suspects or self._waiting
        for worker in [w for w in self._workers if w.ready and not w.jobs][:most]:
            if pending:
                self._send(worker, take())
        missing = self._limits.workers - len(self._workers)
        starting = sum(not worker.ready for worker in self._workers)
        wanted = min(missing, most - starting, -(-len(pending) // _BATCH_JOBS) - starting)
        for _ in range(wanted):
            self._workers.append(self._start())

    def _next_batch(self) -> "list[_Job[T]]":
        batch = [self._waiting.popleft()]
        cost = batch[0].cost
        while self._waiting and len(batch) < _BATCH_JOBS:
            cost += self._waiting[0].cost
            if cost > _BATCH_BYTES:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _start(self) -> "_Worker[T]":
        here, there = Pipe(duplex=True)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        paths = [path or str(Path.cwd()) for path in sys.path]
        command = [sys.executable, "-I", "-B", "-c", _BOOT, str(there.fileno()), *paths]
        with there:
            process = subprocess.Popen(
                command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, env={**environment, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        worker: _Worker[T] = _Worker(process, here)
        with suppress(OSError):
            here.send_bytes(self._orders)
        return worker

    def _send(self, worker: "_Worker[T]", batch: "list[_Job[T]]") -> None:
        worker.jobs.extend(batch)
        worker.since = time.monotonic()
        contents = [job.content or b"" for job in batch]
        try:
            worker.connection.send_bytes(_join(contents))
        except OSError:
            self._bury(worker)

    def _collect(self) -> None:
        """Waits for answers and deaths, and takes them in."""
        connections = {worker.connection: worker for worker in self._workers}
        for found in wait(list(connections), timeout=1.0):
            self._receive(connections[found])  # type: ignore[index]
        latest = time.monotonic() - self._limits.timeout_seconds - _GRACE_SECONDS
        for worker in self._workers:
            # The worker's own alarm comes first; this is for one that cannot hear it.
            if worker.since < latest and (worker.jobs or not worker.ready):
                worker.overdue = True
                worker.process.kill()

    def _receive(self, worker: "_Worker[T]") -> None:
        try:
            while True:
                answer = worker.connection.recv_bytes(self._limits.answer_bytes + (64 << 10))
                self._accept(worker, answer)
                if not worker.connection.poll():
                    return
        except (EOFError, OSError):
            self._bury(worker)

    def _accept(self, worker: "_Worker[T]", answer: bytes) -> None:
        worker.since = time.monotonic()
        if not worker.ready:
            worker.ready = True
            self._false_starts = 0
        elif worker.jobs:
            worker.jobs.popleft().finish(answer)

    def _bury(self, worker: "_Worker[T]") -> None:
        """Takes a dead worker's jobs back: the first is the suspect, the others are innocent."""
        worker.connection.close()
        code = _exit_code(worker.process)
        self._workers.remove(worker)
        if not worker.ready:
            self._false_starts += 1
            if self._false_starts > 2:
                raise VeilsetError(
                    f"A decoding process cannot be started ({_ending(code)}): see its message "
                    "above, and check memory and the installation."
                )
        if worker.jobs:
            self._suspect(worker.jobs.popleft(), worker.overdue or code == -signal.SIGALRM, code)
            self._waiting.extendleft(reversed(worker.jobs))

    def _suspect(self, job: "_Job[T]", late: bool, code: int) -> None:
        job.deaths += 1
        if job.deaths < 2:
            self._suspects.append(job)
        elif late:
            seconds = self._limits.timeout_seconds
            job.finish(Died("decoder_timeout", f"Decoding it took longer than {seconds:g} s."))
        else:
            words = f"Its decoder's process died on it twice ({_ending(code)})."
            job.finish(Died("decoder_died", words))


def _exit_code(process: "subprocess.Popen[bytes]") -> int:
    """How a process ended that has closed its connection; one that lingers is killed."""
    # Not killed at once: its own end tells a timeout from a crash.
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=_GRACE_SECONDS)
    process.kill()
    return process.wait()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


# ----------------------------------------------------------------------------------------- child


def serve(handle: int) -> None:
    """The whole life of a worker: orders, then batches, until the parent is gone.

    Args:
        handle: File descriptor of the connection to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides when to stop.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # Kills even inside a C library.
    connection: Connection[bytes, bytes] = Connection(handle)
    _die_with_parent()
    # The parent may be gone at any time, even before it has said what to do.
    with suppress(EOFError, ConnectionError):
        orders = connection.recv_bytes()
        work, seconds, memory = pickle.loads(orders)  # noqa: S301 - our own parent's
        _confine(memory)
        connection.send_bytes(b"ready")
        while True:
            for content in _split(connection.recv_bytes()):
                signal.setitimer(signal.ITIMER_REAL, seconds)
                answer = work(content)
                signal.setitimer(signal.ITIMER_REAL, 0)
                connection.send_bytes(answer)


def _confine(memory: int) -> None:
    """Limits this process: address space, no files, no core dumps, silence."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # C libraries print their complaints about each bad file.
    for name, limit in (("CORE", 0), ("FSIZE", 0), ("AS", _address_space() + memory)):
        with suppress(OSError, ValueError):
            kind = getattr(resource, f"RLIMIT_{name}")
            _, hard = resource.getrlimit(kind)
            allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (allowed, allowed))


def _address_space() -> int:
    """Bytes of address space in use; far too many where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 1 << 46
    return pages * os.sysconf("SC_PAGE_SIZE")


def _die_with_parent() -> None:
    """Asks Linux to kill this process with its parent, even in the middle of a long decode."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # 1 is PR_SET_PDEATHSIG.


def _join(contents: list[bytes]) -> bytes:
    """Several contents in one message: their number, their lengths, they themselves."""
    lengths = struct.pack(f">{len(contents) + 1}Q", len(contents), *map(len, contents))
    return b"".join([lengths, *contents])


def _split(message: bytes) -> Iterator[bytes]:
    (count,) = struct.unpack_from(">Q", message)
    lengths = struct.unpack_from(f">{count}Q", message, 8)
    at = 8 * (count + 1)
    for length in lengths:
        yield message[at : at + length]
        at += length
