"""From a source of raw images to an ingested set, an index and a quarantine.

Two passes, both in bounded memory. The first decodes (`decode_pool`) and writes fitted pixels into
a spool inside the staging folder, with a small record per image in memory. Then duplicates and
roles are decided. The second gathers each role's pixels in the order of ids into shards. Output
appears whole or not at all, and its bytes depend on source, settings and ids key alone: not on the
number of workers, nor on a run that was killed before.

What comes out: pixels, labels, groups and keyed ids. Nothing of a file's metadata goes on; file
names go into the two private tables alone (`index.parquet`, `quarantine.csv`). All of it is ours.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import Field

from veilset.data.decode import (
    REASONS,
    Decoded,
    DecodeParams,
    Refused,
    decode_array,
    decode_packed,
    refuse_unseen,
    unpack,
)
from veilset.data.decode_pool import Died, Limits, run_jobs
from veilset.data.duplicates import (
    Features,
    exact_duplicates,
    features,
    joined,
    near_duplicates,
)
from veilset.data.manifest import Manifest, ShardEntry, shard_name
from veilset.data.records import (
    INDEX,
    QUARANTINE,
    Record,
    Spool,
    as_text,
    index_table,
    quarantine_table,
    raw_bytes,
    set_aside,
)
from veilset.data.roles import ROLES, RoleRow, RoleShares, assign_roles, is_closed_set
from veilset.data.shards import rows_per_shard, write_shard
from veilset.data.sources.base import FAULTS, Item, Source
from veilset.errors import SourceError
from veilset.files import require_space, staged_folder, write_table, write_text
from veilset.keys import Key, derive_key, image_id
from veilset.types import IntArray

_ERASED: Final = "erased"

ALL_REASONS: Final[Mapping[str, str]] = {
    **FAULTS, **REASONS, _ERASED: "it was erased on request, and is not taken again"
}  # fmt: skip
"""Every reason code that a table may hold, in words."""

Progress = Callable[[int, int | None], None]
"""Called with images done and images in all (None if the source does not know)."""

Unwanted = Callable[[bytes, str], bool]
"""Told an image's id (empty where it has none) and its group, whether it must be left out."""

_SPOOL: Final = ".spool"
_FEATURE_BYTES: Final = 2 << 20
_RESOURCES: Final = ("workers", "timeout_seconds", "memory_mb")


class IngestParams(DecodeParams):
    """How a drop is ingested.

    Attributes:
        classes: Class names in label order; an image of another class is refused. By default the
            source's, else the names that occur, sorted (as numbers where all are numbers).
        default_class: The class of images without a label; by default these are refused.
        shares: How images are divided among roles.
        near_duplicate_threshold: Largest mean absolute difference of near duplicates, grey levels;
            None seeks none.
        shard_mb: Largest length of a shard's pixels, MiB.
        workers: Decoding processes. Changes no byte.
        timeout_seconds: Longest time on one image, seconds.
        memory_mb: Memory of a decoding process, MiB.
    """

    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    default_class: str | None = Field(default=None, min_length=1)
    shares: RoleShares = RoleShares()
    near_duplicate_threshold: float | None = Field(default=2.0, ge=0, le=64)
    shard_mb: int = Field(default=256, ge=1, le=2048)
    workers: int = Field(default=1, ge=1, le=256)
    timeout_seconds: float = Field(default=30.0, ge=0.1, le=3600)
    memory_mb: int = Field(default=2048, ge=64, le=1 << 20)

    def recorded(self) -> dict[str, Any]:
        """The settings that decide on the output, as plain JSON."""
        return self.model_dump(mode="json", exclude=set(_RESOURCES))


@dataclass(frozen=True)
class IngestSummary:
    """What an ingestion did.

    Attributes:
        drop: The drop's name.
        total: Images that the source named.
        kept: Images in the set.
        roles: Images of each role.
        quarantined: Refused images by reason code.
        duplicates: Exact copies that were left out.
        near_duplicates: Kept images that nearly equal one with a smaller id.
        groups: Different groups among kept images.
        closed_set: Whether the group is the label itself.
        classes: Class names in label order.
        shape: Height, width, channels.
    """

    drop: str
    total: int
    kept: int
    roles: Mapping[str, int]
    quarantined: Mapping[str, int]
    duplicates: int
    near_duplicates: int
    groups: int
    closed_set: bool
    classes: tuple[str, ...]
    shape: tuple[int, int, int]


def ingest(
    source: Source[Any],
    params: IngestParams,
    ids_key: Key,
    drop: str,
    output: Path,
    quarantine: Path,
    progress: Progress | None = None,
    *,
    dataset: str | None = None,
    unwanted: Unwanted | None = None,
) -> IngestSummary:
    """Ingests a drop: decodes, refuses, finds duplicates, assigns roles, writes the set.

    Args:
        source: Where raw images come from; iterated once, and once more if labels conflict.
        params: How.
        ids_key: Under which ids, roles and quarantine names are hashed.
        drop: The drop's name, recorded in both tables.
        output: Folder of the ingested set; an old one is replaced whole.
        quarantine: Folder of the refused files; an old one is replaced whole.
        progress: Told after each image.
        dataset: The set's name in its manifest; the drop's by default.
        unwanted: Which images were erased and must not come back: of each, the tables keep a row
            that says so and nothing else, and the quarantine no bytes.

    Returns:
        What was done.

    Raises:
        SourceError: No image can be used (the quarantine is written, the set is not), or the source
            cannot be read.
        BusyError: Another run writes one of the folders.
        DiskFullError: The disk is full.
        VeilsetError: Decoding processes cannot be started.
    """
    # Always another plan: decoding anew is safer than trusting a spool without hashes.
    plan = f"ingest {os.getpid()} {os.urandom(8).hex()}"
    with staged_folder(output, plan) as staging, Spool(staging / _SPOOL, params.shape) as spool:
        with staged_folder(quarantine, plan) as refuge:
            records = _read(source, params, ids_key, spool, refuge, progress, unwanted)
            classes = _classes(source, params, records)
            closed = _decide(records, classes, params, ids_key, spool)
            _set_conflicting_aside(source, records, refuge, ids_key)
            write_text(refuge / QUARANTINE, quarantine_table(records, drop))
        if not any(record.kept for record in records):
            raise _nothing(records, quarantine)
        shards = _write(staging, params, records, spool)
        summary = _summary(records, params, classes, closed, drop)
        write_table(staging / INDEX, index_table(records, drop))
        spool.remove()
        _manifest(summary, params, dataset or drop, shards).save(staging)
    return summary


# ---------------------------------------------------------------------------------- first pass


@dataclass(frozen=True)
class _Labels:
    """Which class names are allowed, and what an item's is."""

    allowed: frozenset[str] | None
    named: tuple[str, ...] | None
    default: str | None

    @classmethod
    def of(cls, source: Source[Any], params: IngestParams) -> "_Labels":
        named = source.classes()
        allowed = params.classes or named
        return cls(None if allowed is None else frozenset(allowed), named, params.default_class)

    def class_name(self, item: Item) -> str | None:
        if item.class_name is not None or item.label is None:
            return self.default if item.class_name is None else item.class_name
        if self.named is None:
            return str(item.label)
        return self.named[item.label] if 0 <= item.label < len(self.named) else f"#{item.label}"

    def refused(self, item: Item) -> Refused | None:
        name = self.class_name(item)
        if name is None:
            return Refused("no_label", "The source tells no label of it; set default_class.")
        if self.allowed is not None and name not in self.allowed:
            return Refused("label_unknown", "Its label is not among the classes of this set.")
        return None


def _read(
    source: Source[Any],
    params: IngestParams,
    ids_key: Key,
    spool: Spool,
    refuge: Path,
    progress: Progress | None,
    unwanted: Unwanted | None,
) -> list[Record]:
    """Decodes everything; taken images go to the spool, refused ones to the quarantine."""
    total = source.count()
    if total is not None:
        # The spool, and the shards that are written while it still exists.
        require_space(spool.path.parent, 2 * total * int(np.prod(params.shape)))
    labels = _Labels.of(source, params)
    names = derive_key(ids_key, "quarantine")
    records = []
    for item, result in _results(source, labels, params):
        record = _record(item, labels)
        found = id_of(ids_key, result) if isinstance(result, Decoded) else b""
        if unwanted is not None and unwanted(found, item.group):
            record = _blank()
        elif isinstance(result, Decoded):
            _take_in(record, result, found, spool)
        else:
            record.refuse(result)
            record.file = set_aside(refuge, item, names)
        records.append(record)
        if progress is not None:
            progress(len(records), total)
    return records


def _results(
    source: Source[Any], labels: _Labels, params: IngestParams
) -> Iterator[tuple[Item, Decoded | Refused | Died]]:
    """Each item with its outcome, in the source's order."""
    limits = Limits(
        workers=params.workers, timeout_seconds=params.timeout_seconds,
        memory_bytes=params.memory_mb << 20, answer_bytes=int(np.prod(params.shape)),
    )  # fmt: skip
    # Only what decoding needs, so that a worker learns nothing else.
    needed = DecodeParams.model_validate(params.model_dump(include=set(DecodeParams.model_fields)))
    work = functools.partial(decode_packed, needed)
    jobs = _jobs(source.items(), labels, needed)
    for (item, refused), answer in run_jobs(work, jobs, limits):
        if refused is not None:
            yield item, refused
        elif isinstance(item.content, np.ndarray):
            yield item, decode_array(item.content, needed)
        elif isinstance(answer, bytes):
            yield item, unpack(answer, needed)
        elif answer is not None:
            yield item, answer


def decoded(
    source: Source[Any], params: IngestParams
) -> Iterator[tuple[Item, Decoded | Refused | Died]]:
    """Each item of a source with its outcome, in the source's order; nothing is stored.

    Labels mean nothing here: no image is refused for want of one.

    Args:
        source: Where images come from.
        params: Size, channels and limits.
    """
    yield from _results(source, _Labels(None, None, ""), params)


def _jobs(
    items: Iterable[Item], labels: _Labels, params: DecodeParams
) -> Iterator[tuple[tuple[Item, Refused | None], bytes | None]]:
    """What a worker must do: nothing for arrays, nor for what is refused unseen."""
    for item in items:
        refused = _refused_unseen(item, labels, params)
        content = item.content if isinstance(item.content, bytes) and refused is None else None
        yield (item, refused), content


def _refused_unseen(item: Item, labels: _Labels, params: DecodeParams) -> Refused | None:
    if item.fault is not None:
        words = FAULTS.get(item.fault, "no further reason is known")
        return Refused(item.fault, f"The source could not give it: {words}.")
    refused = labels.refused(item)
    if refused is None and isinstance(item.content, bytes):
        return refuse_unseen(item.content, params)
    return refused


def _record(item: Item, labels: _Labels) -> Record:
    name = labels.class_name(item)
    return Record(
        name=as_text(item.name),
        class_name=None if name is None else as_text(name),
        group=as_text(item.group),
        split=item.split,
        size=len(raw_bytes(item)),
        attributes={as_text(name): as_text(value) for name, value in item.attributes.items()},
    )


def id_of(ids_key: Key, taken: Decoded) -> bytes:
    """The id of a decoded image, 16 bytes."""
    # The worker hashes the pixels and the key stays here: the id is a keyed hash of that hash,
    # handed over as an image of 32 pixels.
    digest = np.frombuffer(taken.digest, dtype=np.uint8).reshape(1, 32, 1)
    return image_id(ids_key, digest)


def _blank() -> Record:
    """What is noted of an image that was erased: that there was one."""
    record = Record(name="(erased)", class_name=None, group="", split=None, size=0)
    record.refuse(Refused(_ERASED, "It was erased on request, and is not taken again."))
    return record


def _take_in(record: Record, taken: Decoded, found: bytes, spool: Spool) -> None:
    record.image_id = found
    record.width, record.height = taken.width, taken.height
    record.mode, record.format = taken.mode, taken.format
    record.row = spool.add(taken.pixels)


# ---------------------------------------------------------------------------------- decisions


def _classes(source: Source[Any], params: IngestParams, records: list[Record]) -> tuple[str, ...]:
    stated = params.classes or source.classes()
    if stated is not None:
        return tuple(as_text(name) for name in stated)
    names = {record.class_name for record in records if record.row >= 0}
    found = [name for name in names if name is not None]
    if all(name.isascii() and name.isdecimal() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def _decide(
    records: list[Record],
    classes: tuple[str, ...],
    params: IngestParams,
    ids_key: Key,
    spool: Spool,
) -> bool:
    """Settles labels, duplicates, near duplicates and roles; says whether it is a closed set."""
    number = {name: index for index, name in enumerate(classes)}
    for record in records:
        record.label = number.get(record.class_name or "", -1)
    taken = [record for record in records if record.taken]
    found = _described(taken, params, spool)
    kept = _without_copies(taken)
    closed = is_closed_set([r.group for r in kept], [r.label for r in kept])
    clusters = _clusters(kept, found, params, spool).tolist()
    rows = [
        RoleRow(record.image_id, record.group, record.split, cluster)
        for record, cluster in zip(kept, clusters, strict=True)
    ]
    roles = assign_roles(ids_key, rows, params.shares, closed)
    for index, (record, role, first) in enumerate(zip(kept, roles, clusters, strict=True)):
        record.role = role
        record.near_duplicate_of = None if first == index else kept[first].image_id
    return closed


def _without_copies(taken: list[Record]) -> list[Record]:
    """Marks exact copies, refuses those whose labels disagree, and gives the others."""
    found = exact_duplicates([r.image_id for r in taken], [r.label for r in taken])
    kept = []
    for index, record in enumerate(taken):
        if found.conflicting[index]:
            words = "The same pixels occur in this source under another label."
            record.refuse(Refused("conflicting_labels", words))
        elif found.first[index] != index:
            record.role, record.duplicate_of = "duplicate", record.image_id
        else:
            kept.append(record)
    return kept


def _clusters(kept: list[Record], found: Features, params: IngestParams, spool: Spool) -> IntArray:
    """For each kept image the index of the smallest id of its near duplicates."""
    threshold = params.near_duplicate_threshold
    if threshold is None:
        return np.arange(len(kept))
    rows = np.array([record.row for record in kept], dtype=np.int64)
    ids = [record.image_id for record in kept]
    return near_duplicates(found.take(rows), ids, lambda at: spool.take(rows[at]), threshold)


def _described(taken: list[Record], params: IngestParams, spool: Spool) -> Features:
    """Notes each image's brightness, and gives the features of all of them, by row of the spool."""
    step = max(1, _FEATURE_BYTES // int(np.prod(params.shape)))
    # An empty batch first: there may be no image at all.
    parts = [features(np.empty((0, *params.shape), dtype=np.uint8))]
    for start in range(0, spool.rows, step):
        rows = np.arange(start, min(start + step, spool.rows))
        parts.append(features(spool.take(rows)))
    found = joined(parts)
    for record, brightness in zip(taken, found.brightness.tolist(), strict=True):
        record.brightness = brightness
    return found


def _set_conflicting_aside(
    source: Source[Any], records: list[Record], refuge: Path, ids_key: Key
) -> None:
    """Keeps the files whose labels conflict, which was known only after all were read."""
    wanted = {i for i, r in enumerate(records) if r.reason == "conflicting_labels"}
    if not wanted:
        return
    names = derive_key(ids_key, "quarantine")
    for index, item in enumerate(source.items()):
        if index in wanted:
            records[index].file = set_aside(refuge, item, names)


def _nothing(records: list[Record], quarantine: Path) -> SourceError:
    counts = Counter(record.reason for record in records if record.reason)
    if not counts:
        return SourceError("The source has no images: check its path and its settings.")
    reason, count = counts.most_common(1)[0]
    return SourceError(
        f"None of the source's {len(records):,} images can be used; the most frequent reason "
        f"({count:,}) is {reason}: {ALL_REASONS.get(str(reason), 'unknown')}. "
        f"See {quarantine / QUARANTINE}."
    )


# --------------------------------------------------------------------------------- second pass


def _write(
    staging: Path, params: IngestParams, records: list[Record], spool: Spool
) -> tuple[ShardEntry, ...]:
    """Gathers each role's images in the order of ids into shards."""
    entries = []
    rows = rows_per_shard(params.shape, params.shard_mb << 20)
    for role in ROLES:
        chosen = sorted((r for r in records if r.role == role), key=lambda r: r.image_id)
        for number, start in enumerate(range(0, len(chosen), rows)):
            path = staging / shard_name(role, number)
            entries.append(_shard(path, role, chosen[start : start + rows], spool))
    return tuple(entries)


def _shard(path: Path, role: str, records: list[Record], spool: Spool) -> ShardEntry:
    ids = np.frombuffer(b"".join(r.image_id for r in records), dtype=np.uint8).reshape(-1, 16)
    labels = np.array([r.label for r in records], dtype=np.int64)
    images = spool.take(np.array([r.row for r in records], dtype=np.int64))
    groups = np.array([r.group for r in records], dtype=object)
    return write_shard(path, role, ids, labels, images, {"group": groups})


def _summary(
    records: list[Record], params: IngestParams, classes: tuple[str, ...], closed: bool, drop: str
) -> IngestSummary:
    roles = Counter(record.role for record in records)
    kept = [record for record in records if record.kept]
    reasons = Counter(record.reason for record in records if record.reason is not None)
    return IngestSummary(
        drop=drop,
        total=len(records),
        kept=len(kept),
        roles={role: roles[role] for role in ROLES},
        quarantined=dict(sorted(reasons.items())),
        duplicates=roles["duplicate"],
        near_duplicates=sum(record.near_duplicate_of is not None for record in kept),
        groups=len({record.group for record in kept} - {""}),
        closed_set=closed,
        classes=classes,
        shape=params.shape,
    )


def _manifest(
    summary: IngestSummary, params: IngestParams, dataset: str, shards: tuple[ShardEntry, ...]
) -> Manifest:
    notes = {
        "closed_set": summary.closed_set,
        "duplicates": summary.duplicates,
        "groups": summary.groups,
        "near_duplicates": summary.near_duplicates,
        "quarantined": summary.quarantined,
        "settings": params.recorded(),
        "total": summary.total,
    }
    return Manifest(
        kind="ingested", dataset=dataset, shape=summary.shape, classes=summary.classes,
        splits=dict(summary.roles), columns={"group": "string"}, shards=shards, notes=notes,
    )  # fmt: skip
