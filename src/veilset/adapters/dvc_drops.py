"""DVC around drops: raw data under version control, and versions taken out of cache and remotes.

A raw drop is tracked by `data/raw/<name>.dvc`, a file for git, whose output belongs to the remote
`private`. Purging takes whole old versions of what was made of a drop: DVC keeps objects by the MD5
of their content, so that objects which another version still needs stay. All of it is ours.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from veilset.adapters.audit_versions import git_file
from veilset.adapters.dvc import _git, cache_folder, dvc_text, parse_lock
from veilset.adapters.dvc_remote import PRIVATE, open_remote, remote_names
from veilset.errors import CorruptError, VeilsetError
from veilset.files import write_text

_RAW: Final = "data/raw"
_PARTS: Final = (
    "data/raw/{drop}", "data/ingested/{drop}", "data/quarantine/{drop}", "data/checks/{drop}",
)  # fmt: skip
_BY_SCHEME: Final = ("data/protected/", "data/provenance/")
_SHOWING: Final = ("data/attacks/", "data/attacks_model/", "reports/index.html")


@dataclass(frozen=True)
class Purged:
    """What a purge did.

    Attributes:
        versions: Old versions of folders and files that were taken out.
        objects: Objects removed, by place: the local cache, and remotes by name.
        unreached: Places that may still hold them, each a sentence.
    """

    versions: int
    objects: Mapping[str, int]
    unreached: tuple[str, ...]


@dataclass(frozen=True)
class _Version:
    """One version of an output: its path and DVC's digest."""

    path: str
    md5: str


def track_raw(root: Path, name: str) -> None:
    """Puts `data/raw/<name>` as it is now under DVC, in the remote `private`.

    Raises:
        StageError: DVC refuses; the message is DVC's.
        BusyError: Another DVC command holds the project's lock.
    """
    target = f"{_RAW}/{name}"
    dvc_text(root, "add", "--quiet", target)
    note = root / f"{target}.dvc"
    content = yaml.safe_load(note.read_text(encoding="utf-8"))
    if any(out.get("remote") != PRIVATE for out in content["outs"]):
        for out in content["outs"]:
            out["remote"] = PRIVATE
        write_text(note, yaml.safe_dump(content, sort_keys=False))


def is_tracked(root: Path, name: str) -> bool:
    """Whether a raw drop has its file for git."""
    return (root / f"{_RAW}/{name}.dvc").is_file()


def untrack_raw(root: Path, name: str) -> None:
    """Removes the file for git; versions in commits, cache and remotes stay."""
    (root / f"{_RAW}/{name}.dvc").unlink(missing_ok=True)


def forget_stages(root: Path, drop: str) -> None:
    """Takes the stages of a drop that left the pipeline out of `dvc.lock`; DVC would leave them.

    Raises:
        CorruptError: It is no lock file.
    """
    path = root / "dvc.lock"
    if not path.is_file():
        return
    records = parse_lock(path.read_bytes(), path)
    gone = {record.name for record in records if _is_of(record.kind, record.item, drop)}
    if gone:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        document["stages"] = {
            name: body for name, body in document["stages"].items() if name not in gone
        }
        write_text(path, yaml.safe_dump(document, sort_keys=False, width=1 << 20))


def output_digests(root: Path, folder: str) -> dict[str, str]:
    """DVC's digest of every output right below a folder, by its name; none without `dvc.lock`."""
    path = root / "dvc.lock"
    if not path.is_file():
        return {}
    outs = (out for record in parse_lock(path.read_bytes(), path) for out in record.outs)
    place = Path(folder)
    return {Path(out.path).name: out.md5 for out in outs if Path(out.path).parent == place}


def purge_drop(root: Path, drops: Sequence[str], keep_current: bool = True) -> Purged:
    """Takes all old versions of drops, and of what may show them, out of cache and remotes.

    Versions of the raw data that are tracked now stay, and every object that another version needs.
    So do models and fitted transforms: they are not images, and the record marks them.

    Args:
        root: The project's folder.
        drops: The drops.
        keep_current: Keep the raw data that are tracked now; False for a drop that was removed.

    Raises:
        CorruptError: `dvc.lock` or a tracked `.dvc` file is none.
    """
    places = [_local(root), *_remotes(root)]
    known = [place for place in places if isinstance(place, _Place)]
    versions, here = _all_versions(root), set(_versions(root, None))
    if keep_current:
        drops = (*drops, *_also_holding(drops, versions, here, known))
    current = {f"{_RAW}/{drop}" for drop in drops} if keep_current else set()
    gone = {one for one in versions if _shows(one.path, drops)}
    gone -= {one for one in here if one.path in current}
    kept = _members(versions - gone, known)
    objects = _members(gone, known) - kept
    counts, unreached = {}, [place for place in places if isinstance(place, str)]
    for place in known:
        try:
            counts[place.name] = sum(place.remove(md5) for md5 in sorted(objects))
        except (OSError, VeilsetError) as error:
            unreached.append(f"{place.name} was reached, but not purged of all ({error})")
    return Purged(versions=len(gone), objects=counts, unreached=(*unreached, *_ELSEWHERE))


_ELSEWHERE: Final = (
    "git's history names the old versions by their digests, and holds what was ever committed",
    "MLflow's artifacts, where originals or reports were logged",
    "data/ledger.parquet, which names images by their keyed ids",
    "other clones, their caches, and backups",
    "releases that were handed out",
)
"""What no purge reaches."""


# ---------------------------------------------------------------------------------- the versions


def _is_of(kind: str, item: str, drop: str) -> bool:
    if kind == "protect":
        return item.endswith(f"-{drop}")
    return kind in ("ingest", "check", "fit_drops") and item == drop


def _shows(path: str, drops: Iterable[str]) -> bool:
    """Whether an output may hold pixels, names or checks of one of the drops."""
    if path.startswith(_SHOWING):
        return True
    for drop in drops:
        own = path in {part.format(drop=drop) for part in _PARTS}
        if own or (path.startswith(_BY_SCHEME) and path.rpartition("/")[2] == drop):
            return True
    return False


def _all_versions(root: Path) -> set[_Version]:
    """Every version of every output that the workspace or a commit knows of."""
    commits = (_git(root, "log", "--all", "--format=%H", "--", "dvc.lock", _RAW) or "").split()
    found = set(_versions(root, None))
    for commit in commits:
        found |= set(_versions(root, commit))
    return found


def _versions(root: Path, commit: str | None) -> Iterator[_Version]:
    """Versions that a commit knows of, or the workspace."""
    lock = _content(root, commit, "dvc.lock")
    if lock is not None:
        for record in parse_lock(lock, root / "dvc.lock"):
            yield from (_Version(out.path, out.md5) for out in record.outs if out.md5)
    for path in _notes(root, commit):
        note = _content(root, commit, path)
        try:
            outs = yaml.safe_load(note or b"")["outs"]
            yield from (_Version(path.removesuffix(".dvc"), str(out["md5"])) for out in outs)
        except (yaml.YAMLError, KeyError, TypeError):
            raise CorruptError(
                f"{root / path} is no file of DVC: restore it from a commit."
            ) from None


def _notes(root: Path, commit: str | None) -> list[str]:
    if commit is None:
        return sorted(f"{_RAW}/{path.name}" for path in (root / _RAW).glob("*.dvc"))
    listed = _git(root, "ls-tree", "--name-only", commit, f"{_RAW}/") or ""
    return [path for path in listed.splitlines() if path.endswith(".dvc")]


def _content(root: Path, commit: str | None, path: str) -> bytes | None:
    if commit is None:
        return (root / path).read_bytes() if (root / path).is_file() else None
    return git_file(root, commit, path)


def _also_holding(
    drops: Sequence[str], versions: set[_Version], here: set[_Version], places: Sequence["_Place"]
) -> set[str]:
    """Other drops of which an old version holds a raw file that these drops have lost."""
    raw = {f"{_RAW}/{drop}" for drop in drops}
    own = {one for one in versions if one.path in raw}
    lost = _files(own - here, places) - _files(own & here, places)
    others = {one for one in versions - here if one.path.startswith(f"{_RAW}/")} - own
    return {Path(one.path).name for one in others if _files({one}, places) & lost}


# ------------------------------------------------------------------------------------ the places


@dataclass(frozen=True)
class _Place:
    """A cache or remote in DVC's layout.

    Attributes:
        name: What people call it.
        read: An object's bytes, or None where it is not there.
        remove: Removes an object; whether it was there.
    """

    name: str
    read: Callable[[str], bytes | None]
    remove: Callable[[str], bool]


def _local(root: Path) -> _Place:
    top = cache_folder(root) / "files" / "md5"

    def read(md5: str) -> bytes | None:
        path = top / md5[:2] / md5[2:]
        return path.read_bytes() if path.is_file() else None

    def remove(md5: str) -> bool:
        path = top / md5[:2] / md5[2:]
        there = path.is_file()
        path.unlink(missing_ok=True)
        return there

    return _Place("the local cache", read, remove)


def _remotes(root: Path) -> Iterator[_Place | str]:
    for name in remote_names(root):
        try:
            yield _remote(root, name)
        except (OSError, VeilsetError) as error:
            yield f"the remote {name!r}, which cannot be reached ({error})"


def _remote(root: Path, name: str) -> _Place:
    remote = open_remote(root, name)
    # Asked now, so that a remote out of reach is told before anything is removed.
    remote.fs.exists(remote.path)

    def path(md5: str) -> Any:
        return remote.at("files", "md5", md5[:2], md5[2:])

    def read(md5: str) -> bytes | None:
        if not remote.fs.isfile(path(md5)):
            return None
        with remote.fs.open(path(md5), "rb") as file:
            return bytes(file.read())

    def remove(md5: str) -> bool:
        if not remote.fs.isfile(path(md5)):
            return False
        remote.fs.remove(path(md5))
        return True

    return _Place(f"the remote {name!r}", read, remove)


def _members(versions: Collection[_Version], places: Sequence[_Place]) -> set[str]:
    """The objects of versions: each one itself, and of a folder all that it lists."""
    return {one.md5 for one in versions} | _files(versions, places)


def _files(versions: Collection[_Version], places: Sequence[_Place]) -> set[str]:
    """The files of versions: one itself, or what a folder lists."""
    found: set[str] = set()
    for md5 in {one.md5 for one in versions}:
        if not md5.endswith(".dir"):
            found.add(md5)
        else:
            content = next((c for place in places if (c := place.read(md5)) is not None), b"[]")
            found.update(str(member["md5"]) for member in json.loads(content))
    return found
