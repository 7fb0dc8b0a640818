"""Protects a whole set, shard by shard.

Each output shard is a task of its own: its rows are gathered out of the source, protected and
written. What a task writes depends on nothing but the set, scheme and key, so the output has the
same bytes for any batch size, number of workers, order of work, and number of interruptions.
All of it is ours.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from veilset.data.manifest import Manifest, ShardEntry, shard_name
from veilset.data.shards import (
    SHARD_BYTES,
    ImageSet,
    column_type,
    rows_per_shard,
    shard_entry,
    write_shard,
)
from veilset.errors import CorruptError, ProtectionError, RefusedImagesError
from veilset.files import (
    atomic_file,
    read_sealed_parquet,
    require_space,
    sealed_parquet,
    staged_folder,
    write_json,
)
from veilset.keys import Key
from veilset.schemes.base import Pool, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, IntArray, Labels

Advance = Callable[[int], None]

_NEVER_BY_DEFAULT: Final = frozenset({"auxiliary", "gallery"})
_SPARE_BYTES: Final = 1 << 20
_AHEAD: Final = 2

_BATCH_BYTES: Final = 4 << 20
"""Pixels of a batch, at most: larger ones leave the processor's caches, and their memory is
fetched from the system anew each time (measured). A network may want larger ones."""

WORKER_BYTES: Final = 32 << 20
"""A process for each so many bytes of pixels, where processes are needed: with less work for its
network it does not earn back its start, which takes a second or two (measured)."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to make.

    Attributes:
        split: The split of its rows.
        index: Its number inside the split.
        rows: The source's rows of that split in the order of the shard, int64 (M,).
    """

    split: str
    index: int
    rows: IntArray = field(repr=False)

    @property
    def name(self) -> str:
        """The shard's file name."""
        return shard_name(self.split, self.index)


class Finished(BaseModel):
    """A finished shard: its entry for the manifest, and the types of its further columns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: ShardEntry
    columns: dict[str, str]


@dataclass(frozen=True)
class Job:
    """What all tasks of a run share; workers get it once.

    Attributes:
        source: The set to protect.
        scheme: The scheme.
        key: The owner's key.
        folder: Where shards are written.
        private: Where the private parts are written, or None.
        batch_size: Images protected at a time.
    """

    source: ImageSet
    scheme: Scheme[Any]
    key: Key
    folder: Path
    private: Path | None
    batch_size: int


def protect_set(  # noqa: PLR0913
    source: ImageSet,
    scheme: Scheme[Any],
    key: Key,
    output: Path,
    provenance: Path | None,
    *,
    dataset: str,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    batch_size: int = 1024,
    shard_bytes: int = SHARD_BYTES,
    progress: Advance | None = None,
) -> Manifest:
    """Protects splits of a set into a new set, which appears whole or not at all.

    Rows are ordered by published id. A run that was killed is gone on with: its finished shards are
    kept after their hashes were compared.

    Args:
        source: The ingested set.
        scheme: The scheme with its parameters.
        key: The protection key.
        output: The new set's folder; an old one is replaced when the new one is complete.
        provenance: Folder for `links-<split>.parquet` (columns `id`, `published_id` as hex, and
            what the scheme tells its owner alone, e.g. `donors`, as bytes), readable by its owner
            alone; or None.
        dataset: The data set's name.
        splits: Which splits; by default all but `auxiliary` and `gallery`, and `test` only where
            the scheme protects queries.
        workers: At most so many shards at a time, each in a thread. Where the scheme learnt, in
            processes (torch's settings are those of a whole process), and fewer where a set is too
            small to earn their start.
        batch_size: Images at a time, at most (schemes that draw on a pool take a shard at a time).
        shard_bytes: Largest length of a shard's pixels.
        progress: Called with the number of images done since the last call.

    Returns:
        The new set's manifest.

    Raises:
        ProtectionError: The scheme cannot protect these splits as asked, or a worker died; `output`
            is untouched.
        CorruptError: Stored pixels are not those that were recorded.
        DiskFullError: The disk has no room.
        BusyError: Another run writes the same output.
    """
    if workers < 1 or batch_size < 1 or shard_bytes < 1:
        raise ProtectionError("workers, batch_size and shard_bytes must be at least 1.")
    chosen = _chosen_splits(source, scheme, splits)
    stream = scheme.stream(key)
    tasks = _tasks(source, stream, chosen, shard_bytes)
    plan = _plan(
        source, scheme, key, splits=chosen, shard_bytes=shard_bytes, dataset=dataset,
        links=provenance is not None,
    )  # fmt: skip
    with ExitStack() as stack:
        private = stack.enter_context(_private_folder(provenance, plan)) if provenance else None
        staging = stack.enter_context(staged_folder(output, plan))
        job = Job(source, scheme, key, staging, private, batch_size)
        entries = _finish_all(job, tasks, workers, progress)
        if private is not None:
            _merge_links(private, tasks)
        manifest = _manifest(source, scheme, key, stream, chosen, dataset, entries)
        manifest.save(staging)
        for task in tasks:
            _entry_path(staging, task).unlink(missing_ok=True)
    return manifest


def protect_shard(
    job: Job, task: ShardTask, pool: Pool | None = None, progress: Advance | None = None
) -> "Finished":
    """Makes one shard, and its private part: any engine may call it, in any order.

    Args:
        job: What all tasks share.
        task: Which shard.
        pool: The split's pool; keep one for all tasks of a split, since schemes remember it.
        progress: Called with the number of images done since the last call.

    Returns:
        The shard's entry for the manifest, and the types of its further columns.

    Raises:
        ProtectionError: The scheme cannot protect these images.
        CorruptError: Stored pixels are not those that were recorded.
        DiskFullError: The disk has no room.
    """
    made = _protected_rows(job, task, pool or job.source.pool(task.split), progress)
    published = job.scheme.stream(job.key).published_ids(made.ids)
    if job.private is not None:
        _write_links(_part_path(job.private, task), made.ids, published, made.private)
    entry = write_shard(
        job.folder / task.name, task.split, published, made.labels, made.images, made.side
    )
    columns = {name: column_type(values) for name, values in sorted(made.side.items())}
    finished = Finished(entry=entry, columns=columns)
    # Last: a shard counts as finished only with its entry.
    write_json(_entry_path(job.folder, task), finished.model_dump(mode="json"))
    return finished


# ------------------------------------------------------------------------------ what to do


def _chosen_splits(
    source: ImageSet, scheme: Scheme[Any], splits: Sequence[str] | None
) -> tuple[str, ...]:
    """The splits to protect, each checked against the scheme before anything is written."""
    queries = scheme.declares.protects_queries
    if splits is None:
        held_back = _NEVER_BY_DEFAULT | (frozenset() if queries else {"test"})
        splits = [name for name in source.splits if name not in held_back and source.count(name)]
    for name in splits:
        _require_split(source, scheme, name)
    if not splits:
        raise RefusedImagesError(
            f"{source.folder} has no images that {scheme.name} would protect: its splits are "
            f"{', '.join(source.splits) or 'none'}; name those to protect."
        )
    return tuple(dict.fromkeys(splits))


def _require_split(source: ImageSet, scheme: Scheme[Any], name: str) -> None:
    if name not in source.splits or source.count(name) == 0:
        known = ", ".join(source.splits) or "none"
        raise ProtectionError(f"{source.folder} has no images in split {name!r}: it has {known}.")
    if name == "test" and not scheme.declares.protects_queries:
        why = "uses labels, so protected test images would tell them"
        if not scheme.declares.uses_labels:
            why = "does not protect queries, so models are tested on plain images"
        raise ProtectionError(f"{scheme.name} {why}: leave the split 'test' out.")
    reason = scheme.refuse(source.labels(name))
    if reason is not None:
        raise RefusedImagesError(f"{scheme.name} cannot protect split {name!r}: {reason}.")


def _tasks(
    source: ImageSet, stream: Stream, splits: Sequence[str], shard_bytes: int
) -> list[ShardTask]:
    """All shards, the rows of each in the order of published ids."""
    step = rows_per_shard(source.shape, shard_bytes)
    tasks = []
    for split in splits:
        published = stream.published_ids(source.ids(split))
        halves = published.view(">u8").astype(np.uint64)
        order = np.lexsort((halves[:, 1], halves[:, 0])).astype(np.int64)
        starts = range(0, len(order), step)
        tasks += [ShardTask(split, i, order[low : low + step]) for i, low in enumerate(starts)]
    return tasks


def _plan(source: ImageSet, scheme: Scheme[Any], key: Key, **settings: Any) -> str:
    """Equal for two runs if and only if they make the same bytes; tells nothing without the key."""
    values = {
        **settings, "source": source.manifest.root, "classes": source.classes,
        "scheme": scheme.record(), "key": key.fingerprint,
    }  # fmt: skip
    return scheme.stream(key).digest("plan", json.dumps(values, sort_keys=True).encode())


def _manifest(
    source: ImageSet,
    scheme: Scheme[Any],
    key: Key,
    stream: Stream,
    splits: Sequence[str],
    dataset: str,
    finished: Sequence[Finished],
) -> Manifest:
    return Manifest(
        kind="protected",
        dataset=dataset,
        shape=source.shape,
        classes=source.classes,
        splits={split: source.count(split) for split in splits},
        columns=finished[0].columns,
        shards=tuple(shard.entry for shard in finished),
        # A plain hash of the source would let anybody who holds the originals confirm it.
        source=stream.digest("source", source.manifest.root.encode()),
        scheme=scheme.record(),
        # Also of a keyless scheme: the published ids come from the key.
        key_fingerprint=key.fingerprint,
    )


# ------------------------------------------------------------------------------ one shard


@dataclass(frozen=True)
class _Rows:
    """Protected rows in the order of a shard."""

    ids: Ids
    labels: Labels
    images: Images
    side: dict[str, npt.NDArray[Any]]
    private: dict[str, npt.NDArray[Any]]


def _protected_rows(job: Job, task: ShardTask, pool: Pool, progress: Advance | None) -> _Rows:
    """Protects a shard's rows in the source's order, which reads each of its chunks once."""
    ids, labels = pool.ids[task.rows], pool.labels[task.rows]
    images = np.empty((len(ids), *job.source.shape), dtype=np.uint8)
    side: dict[str, npt.NDArray[Any]] = {}
    private: dict[str, npt.NDArray[Any]] = {}
    order = np.argsort(task.rows)
    step = len(order) if job.scheme.uses_pool else _batch(job)
    for low in range(0, len(order), step):
        at = order[low : low + step]
        plain = job.source.images(task.split, task.rows[at])
        made = job.scheme.protect(plain, labels[at], ids[at], job.key, pool)
        images[at] = made.images
        _scatter(side, made.side, at, len(ids))
        _scatter(private, made.private, at, len(ids))
        if progress is not None:
            progress(len(at))
    return _Rows(ids, labels, images, side, private)


def _batch(job: Job) -> int:
    """Images protected at a time by a scheme without donors."""
    if job.scheme.learns:
        return job.batch_size
    return min(job.batch_size, max(1, _BATCH_BYTES // int(np.prod(job.source.shape))))


def _scatter(
    whole: dict[str, npt.NDArray[Any]],
    part: Mapping[str, npt.NDArray[Any]],
    at: IntArray,
    rows: int,
) -> None:
    """Puts rows of each named array into their places; arrays are made when first met."""
    for name, values in part.items():
        if name not in whole:
            whole[name] = np.zeros((rows, *values.shape[1:]), dtype=values.dtype)
        whole[name][at] = values


def _entry_path(folder: Path, task: ShardTask) -> Path:
    return folder / f"{task.split}-{task.index:05d}.json"


# ------------------------------------------------------------------------------ all shards


def _finish_all(
    job: Job, tasks: Sequence[ShardTask], workers: int, progress: Advance | None
) -> list[Finished]:
    """Makes what an interrupted run has not finished; all shards in order."""
    advance = progress or _no_progress
    done = {task.name: found for task in tasks if (found := _finished_before(job, task))}
    left = [task for task in tasks if task.name not in done]
    advance(sum(len(task.rows) for task in tasks if task.name in done))
    pixels = int(np.prod(job.source.shape)) + 64
    require_space(job.folder, sum(len(t.rows) * pixels + _SPARE_BYTES for t in left))
    workers = min(workers, len(left))
    run = _in_threads
    if job.scheme.learns:
        workers, run = min(workers, _worth(job, left)), _in_processes
    if workers <= 1:
        run = _one_by_one
    for task, finished in run(job, left, workers, advance):
        done[task.name] = finished
    return [done[task.name] for task in tasks]


def _worth(job: Job, tasks: Sequence[ShardTask]) -> int:
    """How many processes earn back what starting them costs."""
    pixels = sum(len(task.rows) for task in tasks) * int(np.prod(job.source.shape))
    return 1 + pixels // WORKER_BYTES


def _no_progress(count: int) -> None:
    del count


def _finished_before(job: Job, task: ShardTask) -> Finished | None:
    """What an interrupted run recorded of this shard, if all of it is still there and whole."""
    path = _entry_path(job.folder, task)
    if not path.exists():
        return None
    try:
        found = Finished.model_validate_json(path.read_bytes())
        same = found.entry == shard_entry(job.folder / task.name)
        if job.private is not None:
            read_sealed_parquet(_part_path(job.private, task))
    except (ValidationError, CorruptError, OSError):
        same = False
    return found if same else None


def _one_by_one(
    job: Job, tasks: Sequence[ShardTask], workers: int, progress: Advance
) -> Iterator[tuple[ShardTask, Finished]]:
    del workers
    pools: dict[str, Pool] = {}
    for task in tasks:
        pool = pools.setdefault(task.split, job.source.pool(task.split))
        yield task, protect_shard(job, task, pool, progress)


def _in_threads(
    job: Job, tasks: Sequence[ShardTask], workers: int, progress: Advance
) -> Iterator[tuple[ShardTask, Finished]]:
    """Yields shards as they are finished; stops the threads within a batch when interrupted.

    Compiled loops, hashing, reading and writing all let other threads run. The source with its
    verified chunks is shared; a scheme may remember what it met, so each thread has its own.
    """
    pools = {split: job.source.pool(split) for split in {task.split for task in tasks}}
    jobs: SimpleQueue[Job] = SimpleQueue()
    for _ in range(workers):
        jobs.put(replace(job, scheme=deepcopy(job.scheme)))
    stop = threading.Event()

    def work(task: ShardTask) -> Finished:
        own = jobs.get()
        try:
            return protect_shard(own, task, pools[task.split], _until(stop))
        finally:
            jobs.put(own)

    executor = ThreadPoolExecutor(workers)
    try:
        yield from _as_finished(executor, work, tasks, workers, progress)
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


def _in_processes(
    job: Job, tasks: Sequence[ShardTask], workers: int, progress: Advance
) -> Iterator[tuple[ShardTask, Finished]]:
    """Yields shards as they are finished; stops the workers within a batch when interrupted."""
    # A server that imports once and forks: workers start in milliseconds, and inherit no threads.
    context = multiprocessing.get_context("forkserver")
    # Arrow imports pandas when it first decodes a column: once here rather than in each worker.
    context.set_forkserver_preload([__name__, "pandas"])
    stop = context.Event()
    executor = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(job, stop)
    )
    try:
        yield from _as_finished(executor, _work, tasks, workers, progress)
    except BrokenProcessPool:
        raise ProtectionError(
            f"A process that protected images for {job.folder} died, perhaps for want of memory, "
            "and its finished shards were kept: run again to go on, with fewer workers."
        ) from None
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


def _as_finished(
    executor: Executor,
    work: Callable[[ShardTask], Finished],
    tasks: Sequence[ShardTask],
    workers: int,
    progress: Advance,
) -> Iterator[tuple[ShardTask, Finished]]:
    """Hands tasks out, few ahead, and yields them in the order in which they end."""
    waiting = iter(tasks)
    running: dict[Future[Finished], ShardTask] = {}
    while True:
        for task in islice(waiting, workers * _AHEAD - len(running)):
            running[executor.submit(work, task)] = task
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            task = running.pop(future)
            yield task, future.result()
            progress(len(task.rows))


class _StopWork(Exception):  # noqa: N818
    """Whoever handed the work out wants it to stop."""


def _until(stop: Any) -> Advance:
    """Looks after every batch whether to stop: `stop` is an event of threads or processes."""

    def advance(count: int) -> None:
        del count
        if stop.is_set():
            raise _StopWork

    return advance


@dataclass
class _Worker:
    """What one worker process keeps between its tasks."""

    job: Job
    advance: Advance
    pools: dict[str, Pool] = field(default_factory=dict)


_workers: list[_Worker] = []


def _start_worker(job: Job, stop: Any) -> None:
    # Ctrl-C reaches the whole group; the parent alone decides, and tells by `stop`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _workers.append(_Worker(job, _until(stop)))


def _end_with_parent() -> None:
    """Ends this process when its parent was killed, which could not tell anybody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: ShardTask) -> Finished:
    worker = _workers[-1]
    pool = worker.pools.setdefault(task.split, worker.job.source.pool(task.split))
    return protect_shard(worker.job, task, pool, worker.advance)


# ------------------------------------------------------------------------------ private links


@contextmanager
def _private_folder(folder: Path, plan: str) -> Iterator[Path]:
    """The folder of the links, built beside its place, for its owner alone."""
    with staged_folder(folder, plan) as staging:
        staging.chmod(0o700)
        yield staging


def _part_path(folder: Path, task: ShardTask) -> Path:
    return folder / f"part-{task.split}-{task.index:05d}.parquet"


def _write_links(
    path: Path, ids: Ids, published: Ids, private: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Writes which published id is which image, and what its owner alone may know."""
    columns: dict[str, pa.Array] = {"id": _hex_column(ids), "published_id": _hex_column(published)}
    columns |= {name: _bytes_column(private[name]) for name in sorted(private)}
    _write_private_table(path, [pa.table(columns)])


def _hex_column(ids: Ids) -> pa.Array:
    return pa.array([row.tobytes().hex() for row in ids], type=pa.string())


def _bytes_column(values: npt.NDArray[Any]) -> pa.Array:
    """Each row's bytes in C order, little-endian, as fixed_size_binary."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    rows = little.reshape(len(values), -1).view(np.uint8)
    buffers = [None, pa.py_buffer(rows)]
    return pa.Array.from_buffers(pa.binary(rows.shape[1]), len(rows), buffers, null_count=0)


def _write_private_table(path: Path, tables: Iterable[pa.Table]) -> None:
    """Writes tables of one schema, a row group each, readable by their owner alone."""
    with atomic_file(path) as file, sealed_parquet(file) as sink, ExitStack() as stack:
        os.fchmod(file.fileno(), 0o600)
        writer = None
        for table in tables:
            if writer is None:
                writer = stack.enter_context(
                    pq.ParquetWriter(
                        sink, table.schema, compression="none", use_dictionary=False,
                        write_statistics=False, write_page_checksum=True, store_schema=False,
                    )
                )  # fmt: skip
            writer.write_table(table, row_group_size=max(1, len(table)))


def _merge_links(folder: Path, tasks: Sequence[ShardTask]) -> None:
    """Joins the shards' parts to one table a split, a shard in memory at a time."""
    for split in dict.fromkeys(task.split for task in tasks):
        parts = [_part_path(folder, task) for task in tasks if task.split == split]
        _write_private_table(folder / f"links-{split}.parquet", map(read_sealed_parquet, parts))
    for task in tasks:
        _part_path(folder, task).unlink()
