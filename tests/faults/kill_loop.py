"""Does some work in forked processes, kills them at drawn moments, and looks at what they leave.

Run as `python kill_loop.py WORK KILLS SEED FOLDER`; prints what was found as JSON. The processes
are forked from one that has done the work before, so nothing is imported or compiled again.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from fault_cases import files_of, ingest_drop, make_drop, names_in, protect

from veilset.data.shards import write_set
from veilset.files import write_text
from veilset.journal import append_to_journal, read_journal

Content = Mapping[str, str]
EACH_TURN = 5
RESUMED = frozenset({"protect"})  # whose rerun does only what is left


@dataclass
class Work:
    """One kind of work.

    Attributes:
        finals: The places that it makes, relative to where it works.
        do: Does turn `n` of it in a folder.
        visible: What each final place may hold while turn `n` is done: the old or the new.
        wanted: What the whole folder holds after turn `n`.
    """

    finals: Sequence[str]
    do: Callable[[Path, int], None]
    visible: Callable[[int], Sequence[Content]]
    wanted: Callable[[int], Content]


def of_versions(root: Path, finals: Sequence[str], do: Callable[[Path, int], None]) -> Work:
    """Work whose turns replace one of two versions by one of them, drawn by the turn's number."""

    def version(turn: int) -> int:
        return random.Random(turn).randrange(2)  # noqa: S311 - no secret

    references = []
    for number in (0, 1):
        place = root / f"reference-{number}"
        place.mkdir()
        do(place, number)
        references.append(files_of(place))
    assert references[0] != references[1]
    return Work(
        finals,
        lambda place, turn: do(place, version(turn)),
        lambda _: references,
        lambda turn: references[version(turn)],
    )


def shards_work(root: Path) -> Work:
    """A set of 600 images in six shards."""

    def do(place: Path, number: int) -> None:
        draw = np.random.default_rng(number)
        ids = np.arange(600 * 8, dtype=">u2").view(np.uint8).reshape(600, 16)
        images = draw.integers(0, 256, (600, 16, 16, 3), dtype=np.uint8)
        write_set(
            place / "set", kind="ingested", dataset="d", classes=("a", "b"),
            parts={"train": (ids, draw.integers(0, 2, 600), images, {})}, shard_bytes=100 * 768,
        )  # fmt: skip

    return of_versions(root, ("set",), do)


def ingest_work(root: Path) -> Work:
    drops = [make_drop(root / f"drop-{number}", number) for number in (0, 1)]
    finals = ("ingested/d1", "quarantine/d1")
    return of_versions(root, finals, lambda place, number: ingest_drop(drops[number], place))


def protect_work(root: Path) -> Work:
    ingest_drop(make_drop(root / "drop"), root / "source")
    source, settings = root / "source/ingested/d1", ({}, {"shuffle_channels": False})
    finals = ("protected/d1", "links/d1")
    return of_versions(
        root, finals, lambda place, number: protect(source, place, scheme=settings[number])
    )


def journal_work(root: Path) -> Work:
    """Each turn adds the entries that are missing up to its number, one by one."""

    def entry(number: int) -> dict[str, Any]:
        return {"event": "taken", "number": number, "words": "x" * 300}

    def do(place: Path, turn: int) -> None:
        journal = place / "journal.jsonl"
        for number in range(len(read_journal(journal)), EACH_TURN * (turn + 1)):
            append_to_journal(journal, entry(number))

    def content(entries: int) -> Content:
        path = root / "reference" / "journal.jsonl"
        path.unlink(missing_ok=True)
        append_to_journal(path, *map(entry, range(entries)))
        return files_of(path.parent)

    def visible(turn: int) -> list[Content]:
        return [content(EACH_TURN * turn + more) for more in range(EACH_TURN + 1)]

    return Work(("journal.jsonl",), do, visible, lambda turn: content(EACH_TURN * (turn + 1)))


def torn_work(root: Path) -> Work:
    """The planted fault: a writer that writes where all can see it."""

    def do(place: Path, number: int) -> None:
        with (place / "a").open("w", buffering=1) as file:
            for part in range(100):
                file.write(f"{number} {part}\n")
                time.sleep(0.001)

    return of_versions(root, ("a",), do)


def littering_work(root: Path) -> Work:
    """The planted fault: an atomic writer that never sweeps what a killed one left."""

    def do(place: Path, number: int) -> None:
        temporary = place / f".a.{os.getpid()}"
        write_text(temporary, str(number))
        time.sleep(0.1)
        temporary.replace(place / "a")

    return of_versions(root, ("a",), do)


KINDS: Mapping[str, Callable[[Path], Work]] = {
    "shards": shards_work,
    "ingest": ingest_work,
    "protect": protect_work,
    "journal": journal_work,
    "torn": torn_work,
    "littering": littering_work,
}


@dataclass
class Found:
    """What the kills left. Kills are of three kinds: before, at, and after the work."""

    kills: int = 0
    finished: int = 0
    at_work: int = 0
    torn: int = 0
    outlived: int = 0
    unequal: int = 0
    unswept: int = 0
    first: str = ""
    moments: list[float] = field(default_factory=list)

    def note(self, what: str, words: str) -> None:
        """Counts a fault and remembers the first."""
        setattr(self, what, getattr(self, what) + 1)
        self.first = self.first or f"{what}: {words}"


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            sys.stderr.flush()
            os._exit(1)
    return child


def children(parent: int) -> list[psutil.Process]:
    """The processes that a process has started. Not by psutil, which takes as long as the work."""
    with suppress(OSError, psutil.NoSuchProcess):
        found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [psutil.Process(int(child)) for child in found]
    return []


def ended(processes: Sequence[psutil.Process], seconds: float = 10) -> bool:
    """Whether processes end in that time; one that nobody has waited for has ended as well."""
    latest = time.monotonic() + seconds
    left = list(processes)
    while left and time.monotonic() < latest:
        left = [one for one in left if not gone(one)]
        time.sleep(0.002 if left else 0)
    return not left


def gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def below(place: Path, final: str, content: Content) -> dict[str, str]:
    """The part of a content that lies in one of its places."""
    return {
        name: digest
        for name, digest in content.items()
        if name == final or name.startswith(f"{final}/")
    }


def look(place: Path, work: Work, turn: int, found: Found) -> None:
    """What can be seen under final names is all of one version."""
    now = files_of(place)
    for final in work.finals:
        seen = below(place, final, now)
        if seen not in [below(place, final, whole) for whole in work.visible(turn)]:
            found.note("torn", f"{final} at kill {turn}")
    hidden = names_in(place) - names_of(work.wanted(turn))
    found.at_work += bool(hidden)


def names_of(content: Content) -> set[str]:
    """Files and the folders above them."""
    folders = {str(above) for name in content for above in Path(name).parents} - {"."}
    return set(content) | folders


def kill_loop(kind: str, kills: int, seed: int, root: Path) -> Found:
    """Kills and reruns."""
    work = KINDS[kind](root)
    place = root / "work"
    place.mkdir()
    work.do(place, 0)
    took = []
    for turn in (0, 1, 2):
        began = time.perf_counter()
        os.waitpid(forked(lambda turn=turn: work.do(place, turn)), 0)
        took.append(time.perf_counter() - began)
    longest = sorted(took)[1] * 1.1
    draw = random.Random(seed)  # noqa: S311 - no secret
    found = Found()
    for turn in range(3, 3 + kills):
        child = forked(lambda turn=turn: work.do(place, turn))
        # Spread over the run: each kill has a stretch of its own.
        moment = longest * (draw.random() + (turn - 3)) / kills if kills > 1 else longest / 2
        time.sleep(moment)
        helpers = children(child)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        found.kills += 1
        found.finished += os.WIFEXITED(status)
        found.moments.append(round(moment, 4))
        if not ended(helpers):
            found.note("outlived", f"a decoding process at kill {turn}")
        look(place, work, turn, found)
        began = time.perf_counter()
        _, status = os.waitpid(forked(lambda turn=turn: work.do(place, turn)), 0)
        if kind not in RESUMED:  # A run may take longer as the work grows, or the machine is busy.
            longest = (time.perf_counter() - began) * 1.1
        now = files_of(place)
        if status or now != work.wanted(turn):
            found.note("unequal", f"after the rerun of {turn}, {sorted(now)}")
        if names_in(place) != names_of(work.wanted(turn)):
            found.note("unswept", f"{sorted(names_in(place) - names_of(work.wanted(turn)))}")
    return found


if __name__ == "__main__":
    result = vars(kill_loop(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
    result["moments"] = [min(result["moments"]), max(result["moments"])]
    sys.stdout.write(json.dumps(result) + "\n")
