"""Whether a protected set can be made again now: a sample is protected anew and compared.

The sample is drawn afresh each time, so nobody can know beforehand which images are looked at. All
of it happens in memory; the plain images are read where DVC keeps them.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

import veilset
from veilset.adapters.audit_facts import SampleFacts
from veilset.adapters.audit_records import item_names
from veilset.adapters.audit_versions import Version, listing_digest
from veilset.adapters.dvc import Entry, StageRecord
from veilset.data.shards import ImageSet
from veilset.errors import AuditError, KeyFileError, VeilsetError
from veilset.keys import DEMO_PROTECTION_KEY, Key, key_path, project_key, read_key_file
from veilset.schemes.base import Scheme
from veilset.schemes.fitted import load_fitted
from veilset.schemes.registry import scheme_of_record
from veilset.types import IntArray


def reproduce(
    version: Version, stage: StageRecord, sample: int, generator: np.random.Generator
) -> SampleFacts:
    """Protects a sample of a set again, with the project's key, and compares all bytes.

    Args:
        version: Where the set is on record.
        stage: The record of its protection.
        sample: How many images, at most.
        generator: Draws them.

    Returns:
        How many came out equal, or why it cannot be done.
    """
    names = item_names(stage)
    name = f"{names['scheme']}/{names['drop']}"
    try:
        with (
            _stored(version, stage.outs, f"data/protected/{name}") as protected,
            _stored(version, stage.deps, f"data/ingested/{names['drop']}") as plain,
        ):
            stored, source = ImageSet.open(protected), ImageSet.open(plain)
            record = dict(stored.manifest.scheme or {})
            key = _key(version.root, str(stored.manifest.key_fingerprint))
            scheme = _scheme(version, stage, record, names["scheme"])
            _require_source(stored, source, scheme, key)
            rows = _sample(stored, sample, generator)
            equal = sum(_equal(stored, source, scheme, key, *one) for one in rows.items())
    except VeilsetError as error:
        return SampleFacts(set=name, images=0, equal=0, obstacle=str(error))
    count = sum(map(len, rows.values()))
    remark = _remark(stage, scheme) if equal < count else None
    return SampleFacts(set=name, images=count, equal=equal, remark=remark)


@contextmanager
def _stored(version: Version, entries: tuple[Entry, ...], path: str) -> Iterator[Path]:
    """A recorded folder: the workspace's own, or links to DVC's cache for an earlier version."""
    entry = next((one for one in entries if one.path == path), None)
    here = version.root / path
    if version.commit is None and entry is not None and here.is_dir():
        yield here
        return
    files = version.folder(entry) if entry else None
    if files is None:
        raise AuditError(
            f"{path} of this version is neither in the workspace nor in DVC's cache: fetch it by "
            "`dvc pull`, for an earlier version with `dvc fetch --all-commits`."
        )
    with tempfile.TemporaryDirectory(prefix="veilset-") as temporary:
        for inner, file in files.items():
            link = Path(temporary) / inner
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        yield Path(temporary)


def _key(root: Path, fingerprint: str) -> Key:
    """The key that made a set: the project's, or an earlier one that was kept beside it."""
    kept = key_path("protection", root).with_name(f"protection.{fingerprint}.key")
    if fingerprint == DEMO_PROTECTION_KEY.fingerprint:
        return DEMO_PROTECTION_KEY
    key = read_key_file(kept) if kept.exists() else project_key("protection", root)
    if key.fingerprint != fingerprint:
        raise KeyFileError(
            f"It was made with the protection key {fingerprint}, and the project's key is "
            f"{key.fingerprint}: restore the key of that time into {kept}, mode 0600."
        )
    return key


def _scheme(
    version: Version, stage: StageRecord, record: Mapping[str, Any], name: str
) -> Scheme[Any]:
    """The scheme that made a set, with what it had learnt."""
    wanted, where = str(record.get("fitted_hash") or ""), f"{name} as it is stored"
    if not wanted:
        return scheme_of_record(record, where)
    with _stored(version, stage.deps, f"data/fitted/{name}") as folder:
        fitted = load_fitted(folder)
    if fitted.hash != wanted:
        raise AuditError(
            f"{name} learns from plain images, and what it has learnt here is not what protected "
            "this set: restore that by `dvc checkout`."
        )
    return scheme_of_record(record, where, fitted=fitted)


def _require_source(stored: ImageSet, source: ImageSet, scheme: Scheme[Any], key: Key) -> None:
    digest = scheme.stream(key).digest("source", source.manifest.root.encode())
    if digest != stored.manifest.source:
        raise AuditError(
            f"The plain images in {source.folder.name} are not those that this set was made from: "
            "restore them by `dvc checkout`."
        )


def _sample(stored: ImageSet, count: int, generator: np.random.Generator) -> dict[str, IntArray]:
    """Rows by split, drawn without replacement over all splits."""
    sizes = {split: stored.count(split) for split in stored.splits}
    total = sum(sizes.values())
    chosen = np.sort(generator.choice(total, size=min(count, total), replace=False))
    rows, start = {}, 0
    for split, size in sizes.items():
        inside = chosen[(chosen >= start) & (chosen < start + size)] - start
        if len(inside):
            rows[split] = inside.astype(np.int64)
        start += size
    return rows


def _equal(
    stored: ImageSet, source: ImageSet, scheme: Scheme[Any], key: Key, split: str, rows: IntArray
) -> int:
    """How many stored images of a split equal what comes of protecting their originals now."""
    ids, labels = source.ids(split), source.labels(split)
    published = scheme.stream(key).published_ids(ids)
    place = {one.tobytes(): row for row, one in enumerate(published)}
    wanted = stored.ids(split)[rows]
    found = np.asarray([place.get(one.tobytes(), -1) for one in wanted], dtype=np.int64)
    rows, found = rows[found >= 0], found[found >= 0]
    if not len(rows):
        return 0
    plain = source.images(split, found)
    made = scheme.protect(plain, labels[found], ids[found], key, source.pool(split))
    same = (made.images == stored.images(split, rows)).all(axis=(1, 2, 3))
    same &= labels[found] == stored.labels(split)[rows]
    for column in stored.manifest.columns:
        values = stored.column(split, column)[rows]
        again = np.asarray(made.side[column], dtype=values.dtype)
        same &= (again == values).reshape(len(rows), -1).all(axis=1)
    return int(same.sum())


def _remark(stage: StageRecord, scheme: Scheme[Any]) -> str | None:
    """What may explain that bytes differ, other than that the stored ones were altered."""
    other = [dep.path for dep in stage.deps if _code_here(dep.path) not in (None, dep.md5)]
    if other:
        return f"the code here is not the code that made it ({', '.join(other)} changed since)"
    if scheme.learns:
        return "its network may round otherwise on another processor"
    return None


def _code_here(path: str) -> str | None:
    """DVC's digest of a folder of the code that is running, None for what is not code."""
    inside = PurePosixPath(path)
    if not inside.is_relative_to("src/veilset"):
        return None
    base = Path(veilset.__file__).parent / inside.relative_to("src/veilset")
    files = [base] if base.is_file() else [p for p in base.rglob("*") if p.is_file()]
    digests = {
        file.relative_to(base).as_posix(): hashlib.md5(
            file.read_bytes(), usedforsecurity=False
        ).hexdigest()
        for file in files
        if "__pycache__" not in file.parts
    }
    return digests["."] if base.is_file() else listing_digest(digests)
