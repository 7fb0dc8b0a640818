"""Erasing an image, or all of a person: out of raw data, and so out of every version to come.

What is erased is found by decoding the raw drops again, not by what an index says of them. The
journal keeps digests under the ids key and counts: no id, no group, no name. The order is: the
record first, then raw data, then everything that was made of it; a run that was killed is finished
by another of the same kind. All of it is ours.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd

from veilset.data.decode import Decoded
from veilset.data.ingest import IngestParams, decoded, id_of
from veilset.data.manifest import Manifest
from veilset.data.records import INDEX
from veilset.data.sources.base import Source
from veilset.data.sources.registry import open_source
from veilset.drops.erased import group_digest, image_digest
from veilset.drops.record import DropEvent, Erasure, enter, now, read_drops, read_events
from veilset.drops.rewriting import require_separable, take_out
from veilset.errors import CorruptError, SettingsError, SourceError
from veilset.files import read_sealed_parquet, read_table
from veilset.keys import Key
from veilset.release.history import RELEASES, ReleaseEvent, read_releases, standing_releases
from veilset.settings import Drops, load_drops

Subject = Literal["image", "group"]

_DONORS: Final = "donors"
_ID_BYTES: Final = 16


@dataclass(frozen=True)
class Target:
    """What to erase.

    Attributes:
        subject: One image by its id, or all of a group.
        value: The id, 32 hex digits, or the group.
    """

    subject: Subject
    value: str

    def digest(self, ids_key: Key) -> str:
        """What the journal keeps of it."""
        if self.subject == "image":
            return image_digest(ids_key, bytes.fromhex(self.value))
        return group_digest(ids_key, self.value)


@dataclass(frozen=True)
class Hits:
    """Where a drop holds it.

    Attributes:
        drop: The drop.
        items: Positions in the source's order.
        ids: Ids of those that can be decoded.
        near: Kept images that nearly equal one of them, and stay.
    """

    drop: str
    items: tuple[int, ...]
    ids: frozenset[bytes]
    near: int = 0


@dataclass(frozen=True)
class Concerned:
    """A release that concerns what is erased.

    Attributes:
        name: The release's.
        to: Where it was put.
        how: Whether its sets are those of the drop (`sets`), or it was made by a scheme that
            protects the drop after the drop had arrived (`scheme and date`).
    """

    name: str
    to: str
    how: Literal["sets", "scheme and date"]


@dataclass(frozen=True)
class Done:
    """What an erasure did.

    Attributes:
        images: Images and files that were taken out, by drop.
        receivers: Images that had received blocks from them, by drop.
        near: Images that nearly equal an erased one, and stay, by drop.
        fitted: Transforms that had learnt from them.
        models: CNNs that had been trained on what was made of them.
        releases: Standing releases that concern them.
        not_read: Drops whose raw data are not here or unreadable, so that nobody knows what they
            hold.
    """

    images: Mapping[str, int]
    receivers: Mapping[str, int]
    near: Mapping[str, int]
    fitted: tuple[str, ...]
    models: tuple[str, ...]
    releases: tuple[Concerned, ...]
    not_read: tuple[str, ...]


@dataclass(frozen=True)
class Workings:
    """What the layers above know of a project, handed in.

    Attributes:
        ingested: The ingested set of a drop.
        provenance: All provenance of a drop, a folder a scheme.
        protected: All protected sets of a drop, by scheme.
        fitted: What learnt from a drop, by scheme, with the digest that DVC has for it.
        models: What was trained on a drop's protected images, likewise.
        made: Everything that shows what a drop holds, and is made anew by the next run.
        track: Puts the raw data of a drop under version control again.
    """

    ingested: Callable[[str], Path]
    provenance: Callable[[str], Sequence[Path]]
    protected: Callable[[str], Mapping[str, Path]]
    fitted: Callable[[str], Mapping[str, str]]
    models: Callable[[str], Mapping[str, str]]
    made: Callable[[str], Sequence[Path]]
    track: Callable[[str], None]


@dataclass(frozen=True)
class Decree:
    """Who erases, and why."""

    by: str
    reason: str
    at: datetime = field(default_factory=now)


def erase(
    root: Path, target: Target, decree: Decree, ids_key: Key, params: IngestParams,
    workings: Workings,
) -> Done:  # fmt: skip
    """Erases an image or a group from the raw data, and removes what was made of it.

    Args:
        root: The project's folder.
        target: What.
        decree: Who and why.
        ids_key: Under which images were ingested.
        params: How they are ingested; for decoding alone.
        workings: Where everything lies.

    Returns:
        What was done; the next `dvc repro` makes all versions without it.

    Raises:
        SettingsError: An id is malformed, or nobody answers for it.
        SourceError: No drop holds it, or one from which it cannot be taken; nothing was changed.
        CorruptError: A record is not as it was written.
    """
    _require(target, decree)
    drops = load_drops(root)
    hits, sources, unread = _found(root, drops, target, _Reading(params, ids_key), workings)
    digest = target.digest(ids_key)
    before = any(e.erasure and e.erasure.digest == digest for e in read_events(root))
    if not hits or not (before or any(one.items for one in hits)):
        raise _nobody(target, before, unread)
    erased = frozenset(one for hit in hits for one in hit.ids)
    done = _consequences(root, hits, erased, unread, workings)
    enter(
        root, *(_event(one, done, target, decree, ids_key, workings) for one in hits if one.items)
    )
    for one in hits:
        if one.items:
            take_out(sources[one.drop], one.items)
        workings.track(one.drop)
        for path in workings.made(one.drop):
            _remove(path)
    return done


def still_marked(root: Path, current: Mapping[str, str]) -> tuple[str, ...]:
    """Transforms and CNNs that had learnt from what was erased, and were not made again since.

    Args:
        root: The project's folder.
        current: The digest that DVC has now of each, by the same names.

    Raises:
        CorruptError: The journal is not as it was written.
    """
    marks = {
        (name, digest)
        for event in read_events(root)
        if event.erasure is not None
        for name, digest in {**event.erasure.fitted, **event.erasure.models}.items()
    }
    return tuple(sorted({name for name, digest in marks if current.get(name, "") == digest}))


# ------------------------------------------------------------------------------- small parts below


def _require(target: Target, decree: Decree) -> None:
    if target.subject == "image" and not _is_id(target.value):
        raise SettingsError(
            "--image must be an image's id, 32 hex digits, as the column `id` of an index has it."
        )
    if not target.value or not decree.by.strip() or not decree.reason.strip():
        raise SettingsError("--by, --reason and what to erase must not be empty: say them.")


def _is_id(text: str) -> bool:
    return len(text) == 2 * _ID_BYTES and not set(text) - set("0123456789abcdef")


@dataclass(frozen=True)
class _Reading:
    """How raw drops are read."""

    params: IngestParams
    ids_key: Key

    def scan(self, drop: str, source: Source[Any]) -> list[tuple[bytes, str]]:
        """Id (empty where it cannot be decoded) and group of each item, in the source's order."""
        found = [
            (id_of(self.ids_key, result) if isinstance(result, Decoded) else b"", item.group)
            for item, result in decoded(source, self.params)
        ]
        if len(found) != source.count():
            raise SourceError(
                f"The raw data of the drop {drop!r} are damaged or changed while they were read: "
                "fetch them again by `dvc checkout`, and then erase."
            )
        return found


def _found(
    root: Path, drops: Drops, target: Target, reading: _Reading, workings: Workings
) -> tuple[list[Hits], dict[str, Source[Any]], tuple[str, ...]]:
    """Where it is; the sources of these drops; and drops that cannot be read.

    An index tells fast which drops need no closer look. A drop without one is read.
    """
    known, scans, sources, unread = {}, {}, {}, []
    for drop in drops.drops:
        path = workings.ingested(drop) / INDEX
        if path.is_file():
            known[drop] = _of_index(read_table(path))
            continue
        try:
            sources[drop] = open_source(drops.drops[drop].spec(), root)
            known[drop] = scans[drop] = reading.scan(drop, sources[drop])
        except SourceError:
            unread.append(drop)
    ids = frozenset(one for rows in known.values() for one in _ids(target, rows))
    hits = []
    for drop, rows in known.items():
        if not _positions(target, ids, rows):
            continue
        if drop not in sources:
            sources[drop] = open_source(drops.drops[drop].spec(), root)
        require_separable(sources[drop], drop)
        scan = scans[drop] if drop in scans else reading.scan(drop, sources[drop])
        items = _positions(target, ids, scan)
        own = frozenset(scan[item][0] for item in items) - {b""}
        hits.append(Hits(drop, items, own, _near(workings.ingested(drop), own)))
    return hits, sources, tuple(unread)


def _of_index(index: pd.DataFrame) -> list[tuple[bytes, str]]:
    """Id and group of each row."""
    ids = [bytes.fromhex(one) if isinstance(one, str) else b"" for one in index["id"]]
    return list(zip(ids, index["group"].fillna(""), strict=True))


def _ids(target: Target, rows: Sequence[tuple[bytes, str]]) -> set[bytes]:
    """Ids of the images that are named, by id or by group."""
    if target.subject == "image":
        return {bytes.fromhex(target.value)}
    return {one for one, group in rows if group == target.value} - {b""}


def _positions(
    target: Target, ids: frozenset[bytes], rows: Sequence[tuple[bytes, str]]
) -> tuple[int, ...]:
    """Which rows are to go: by id, so that copies go as well, or by group."""
    group = target.value if target.subject == "group" else None
    return tuple(n for n, (one, own) in enumerate(rows) if one in ids or own == group)


def _near(ingested: Path, own: frozenset[bytes]) -> int:
    """Kept images that nearly equal one of these, and are none of them."""
    path = ingested / INDEX
    if not path.is_file():
        return 0
    index, hexes = read_table(path), {one.hex() for one in own}
    cluster = index["near_duplicate_of"].fillna(index["id"])
    near = cluster.isin(set(cluster[index["id"].isin(hexes)].dropna())) & ~index["id"].isin(hexes)
    return int(near.sum())


def _nobody(target: Target, before: bool, unread: Sequence[str]) -> SourceError:
    if before:
        return SourceError(
            "No drop holds it any more, because it was erased before: run `dvc repro` if the "
            "versions without it are not made yet."
        )
    more = f" Not here or unreadable: {', '.join(unread)}." if unread else ""
    return SourceError(
        f"No drop holds this {target.subject}: compare it with the tables index.parquet in "
        f"data/ingested.{more}"
    )


def _consequences(
    root: Path, hits: Sequence[Hits], erased: frozenset[bytes], unread: tuple[str, ...],
    workings: Workings,
) -> Done:  # fmt: skip
    drops = [one.drop for one in hits]
    return Done(
        images={one.drop: len(one.items) for one in hits},
        receivers={drop: _receivers(workings.provenance(drop), erased) for drop in drops},
        near={one.drop: one.near for one in hits if one.near},
        fitted=tuple(sorted({name for drop in drops for name in workings.fitted(drop)})),
        models=tuple(sorted({name for drop in drops for name in workings.models(drop)})),
        releases=tuple(dict.fromkeys(r for d in drops for r in _concerned(root, d, workings))),
        not_read=unread,
    )


def _receivers(folders: Sequence[Path], erased: frozenset[bytes]) -> int:
    """How many other images received a block from one that is erased, under any scheme."""
    found: set[str] = set()
    hexes = {one.hex() for one in erased}
    for path in (path for folder in folders for path in sorted(folder.glob("links-*.parquet"))):
        table = read_sealed_parquet(path)
        if _DONORS not in table.column_names:
            continue
        rows = zip(table["id"].to_pylist(), table[_DONORS].to_pylist(), strict=True)
        found.update(one for one, donors in rows if one not in hexes and _any_of(donors, erased))
    return len(found)


def _any_of(donors: bytes, erased: frozenset[bytes]) -> bool:
    """Whether one of the ids, which stand side by side, was erased."""
    return any(donors[at : at + _ID_BYTES] in erased for at in range(0, len(donors), _ID_BYTES))


def _concerned(root: Path, drop: str, workings: Workings) -> Iterator[Concerned]:
    since = next((one.at for one in read_drops(root) if one.name == drop), None)
    roots = {scheme: _root_of(folder) for scheme, folder in workings.protected(drop).items()}
    for release in standing_releases(read_releases(root / RELEASES)):
        if _of_sets(release, roots):
            yield Concerned(release.name, release.to, "sets")
        elif release.scheme in roots and (since is None or release.at >= since):
            yield Concerned(release.name, release.to, "scheme and date")


def _of_sets(release: ReleaseEvent, roots: Mapping[str, str]) -> bool:
    return roots.get(release.scheme, "") in release.sets


def _root_of(folder: Path) -> str:
    try:
        return Manifest.load(folder).root
    except CorruptError:
        return ""


def _event(
    one: Hits, done: Done, target: Target, decree: Decree, ids_key: Key, workings: Workings
) -> DropEvent:
    concerned = tuple(sorted({release.name for release in done.releases}))
    return DropEvent(
        event="erased", drop=one.drop, at=decree.at, by=decree.by, reasons=(decree.reason,),
        counts={"items_erased": len(one.items)},
        erasure=Erasure(
            subject=target.subject, digest=target.digest(ids_key),
            images=tuple(sorted(image_digest(ids_key, image) for image in one.ids)),
            receivers=done.receivers[one.drop], fitted=dict(workings.fitted(one.drop)),
            models=dict(workings.models(one.drop)), releases=concerned,
        ),
    )  # fmt: skip


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
