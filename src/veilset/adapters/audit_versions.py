"""A project as it is or was: lock file, settings and results of a version, and who recorded it.

What git has is read through `git show`, what DVC has by its digest: out of the workspace, git or
the local cache, whichever holds those very bytes. Nothing is checked out and nothing is written.
"""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from veilset.adapters.audit_records import overlap
from veilset.adapters.dvc import (
    Entry,
    StageRecord,
    cache_folder,
    file_md5,
    folder_md5,
    folder_members,
    parse_lock,
    read_lock,
    stage_key,
)
from veilset.errors import AuditError, CorruptError

LOCK: Final = "dvc.lock"
_LOG: Final = "--format=%H%x1f%aI%x1f%an"


@dataclass(frozen=True)
class Commit:
    """A commit of git.

    Attributes:
        id: 40 hex characters.
        at: The author's date.
        by: The author's name.
    """

    id: str
    at: datetime
    by: str


@dataclass(frozen=True)
class Version:
    """A project in the workspace or at a commit.

    Attributes:
        root: The project's folder.
        commit: The commit, or None for the workspace.
        stages: What its `dvc.lock` records.
    """

    root: Path
    commit: str | None
    stages: tuple[StageRecord, ...]

    def stage(self, name: str) -> StageRecord | None:
        """The stage result of this name."""
        return next((one for one in self.stages if one.name == name), None)

    def of_kind(self, kind: str) -> tuple[StageRecord, ...]:
        """The results of all items of a stage."""
        return tuple(one for one in self.stages if one.kind == kind)

    def text(self, path: str) -> bytes | None:
        """A file that git versions: as it is in the workspace, or as it was at the commit."""
        if self.commit is not None:
            return git_file(self.root, self.commit, path)
        try:
            return (self.root / path).read_bytes()
        except OSError:
            return None

    def settings(self, path: str) -> Mapping[str, Any]:
        """A YAML file of settings; empty where it is missing or no mapping."""
        try:
            values = yaml.safe_load(self.text(path) or b"")
        except (yaml.YAMLError, UnicodeDecodeError):
            return {}
        return values if isinstance(values, Mapping) else {}

    def read(self, entry: Entry, inner: str = "") -> bytes | None:
        """A file of a stage result, by its digest.

        Args:
            entry: A file or folder of `dvc.lock`.
            inner: The file's path in the folder, or nothing.

        Returns:
            Its bytes, or None where neither workspace nor git nor cache has this version.
        """
        path = f"{entry.path}/{inner}" if inner else entry.path
        if not inner:
            return self._find(path, entry.md5)
        listing = members(self.root, entry)
        return self._find(path, listing[inner]) if listing and inner in listing else None

    def read_json(self, entry: Entry, inner: str = "") -> Any:
        """The same as JSON, or None.

        Raises:
            CorruptError: It is not JSON.
        """
        raw = self.read(entry, inner)
        if raw is None:
            return None
        try:
            return json.loads(raw)
        except ValueError:
            raise CorruptError(
                f"{entry.path}/{inner} is not JSON: run the stage that makes it again."
            ) from None

    def _find(self, path: str, md5: str) -> bytes | None:
        return next((raw for raw in self._places(path, md5) if _md5(raw) == md5), None)

    def _places(self, path: str, md5: str) -> Iterator[bytes]:
        for place in (self.root / path, cached(self.root, md5)):
            try:
                yield place.read_bytes()
            except OSError:
                continue
        if (raw := self.text(path)) is not None:
            yield raw

    def folder(self, entry: Entry) -> dict[str, Path] | None:
        """Where each file of a recorded folder lies, or None where one of them is nowhere.

        The workspace's files are taken only if they have the recorded digest.
        """
        listing = members(self.root, entry)
        if listing is None:
            return None
        found = {}
        for name, md5 in listing.items():
            here, there = self.root / entry.path / name, cached(self.root, md5)
            if here.is_file() and file_md5(here) == md5:
                found[name] = here
            elif there.is_file():
                found[name] = there
            else:
                return None
        return found

    def agrees(self, dep: Entry) -> bool | None:
        """Whether what a stage read is what this lock says the stages before it made.

        Returns:
            None where it cannot be told: nothing on record made it, or listings are missing.
        """
        made = [out for one in self.stages for out in one.outs if overlap(out.path, dep.path)]
        if not made:
            return None
        if len(made) == 1 and made[0].path == dep.path:
            return made[0].md5 == dep.md5
        if any(PurePosixPath(dep.path).is_relative_to(out.path) for out in made):
            return None
        digest = _joined(self.root, dep.path, made)
        return None if digest is None else digest == dep.md5


@dataclass
class History:
    """The commits that changed `dvc.lock`, newest first; empty where git has none.

    Attributes:
        root: The project's folder.
        commits: The commits.
    """

    root: Path
    commits: tuple[Commit, ...]
    _locks: dict[str, tuple[StageRecord, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path, revision: str = "HEAD") -> "History":
        """What led to a revision."""
        return cls(root, _log(root, revision, "--", LOCK))

    def stages(self, commit: str) -> tuple[StageRecord, ...]:
        """What `dvc.lock` recorded at a commit; nothing where it was not there."""
        if commit not in self._locks:
            raw = git_file(self.root, commit, LOCK)
            found = parse_lock(raw, self.root / f"{LOCK} at {commit[:12]}") if raw else ()
            self._locks[commit] = found
        return self._locks[commit]

    def introduced(self, stage: StageRecord) -> Commit | None:
        """The commit that brought this stage result onto the record, where it still stands."""
        found, key = None, stage_key(stage)
        for commit in self.commits:
            record = next((s for s in self.stages(commit.id) if s.name == stage.name), None)
            if record is None or stage_key(record) != key:
                break
            found = commit
        return found

    def changes(self, number: int) -> tuple[StageRecord, ...]:
        """The stage results that the commit of this number brought."""
        later = self.commits[number + 1 : number + 2]
        before = {stage_key(one) for commit in later for one in self.stages(commit.id)}
        now = self.stages(self.commits[number].id)
        return tuple(one for one in now if stage_key(one) not in before)


def workspace(root: Path) -> Version:
    """The project as it is.

    Raises:
        AuditError: There is no lock file.
        CorruptError: It is none.
    """
    return Version(root, None, read_lock(root))


def at_commit(root: Path, revision: str) -> Version:
    """The project at a revision, as git names it.

    Raises:
        AuditError: There is no such revision.
        CorruptError: Its lock file is none.
    """
    commit = resolve(root, revision)
    if commit is None:
        raise AuditError(
            f"git knows no revision {revision!r} of this project: give a commit, branch or tag "
            "that `git log` shows."
        )
    raw = git_file(root, commit, LOCK)
    found = parse_lock(raw, root / f"{LOCK} at {commit[:12]}") if raw is not None else ()
    return Version(root, commit, found)


def resolve(root: Path, revision: str) -> str | None:
    """The commit that a revision names, 40 hex characters, or None."""
    name = f"{revision}^{{commit}}"
    raw = git_bytes(root, "rev-parse", "--verify", "--quiet", "--end-of-options", name)
    return raw.decode().strip() if raw else None


def commit_of(root: Path, commit: str) -> Commit | None:
    """Who made a commit, and when."""
    return next(iter(_log(root, commit, "-1")), None)


def is_tracked(root: Path, path: str) -> bool:
    """Whether git has a file of the workspace."""
    return git_bytes(root, "ls-files", "--error-unmatch", "--", path) is not None


def cached(root: Path, md5: str) -> Path:
    """Where DVC's local cache keeps what has this digest."""
    return cache_folder(root) / "files" / "md5" / md5[:2] / md5[2:]


def members(root: Path, entry: Entry) -> dict[str, str] | None:
    """What a recorded folder holds: path -> MD5; None where neither cache nor workspace tells."""
    if (listing := folder_members(root, entry)) is not None:
        return listing
    folder = root / entry.path
    if not folder.is_dir() or folder_md5(folder) != entry.md5:
        return None
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_md5(path) for path in files}


def code_digest(root: Path, commit: str, path: str) -> str | None:
    """The digest that DVC would give a file or folder as git has it at a commit, or None."""
    raw = git_bytes(root, "archive", "--format=tar", commit, "--", path)
    if raw is None:
        return None
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        files = {
            one.name: _md5(file.read())
            for one in archive.getmembers()
            if one.isfile() and (file := archive.extractfile(one)) is not None
        }
    if path in files:
        return files[path]
    inside = {PurePosixPath(name).relative_to(path).as_posix(): md5 for name, md5 in files.items()}
    return listing_digest(inside)


def listing_digest(listing: Mapping[str, str]) -> str:
    """DVC's digest of a folder with these files: path -> MD5."""
    rows = [{"md5": md5, "relpath": name} for name, md5 in sorted(listing.items())]
    return _md5(json.dumps(rows, sort_keys=True).encode()) + ".dir"


def git_file(root: Path, commit: str, path: str) -> bytes | None:
    """A file as it was at a commit, or None where it was not there."""
    return git_bytes(root, "cat-file", "blob", f"{commit}:./{path}")


def git_bytes(root: Path, *arguments: str) -> bytes | None:
    """What git prints, or None where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _log(root: Path, *arguments: str) -> tuple[Commit, ...]:
    raw = git_bytes(root, "log", "--no-show-signature", _LOG, *arguments)
    rows = [line.split("\x1f") for line in (raw or b"").decode(errors="replace").splitlines()]
    return tuple(Commit(row[0], datetime.fromisoformat(row[1]), row[2]) for row in rows)


def _joined(root: Path, path: str, outs: Sequence[Entry]) -> str | None:
    """The digest of a folder that holds these results and nothing else."""
    joined: dict[str, str] = {}
    for out in outs:
        inner = PurePosixPath(out.path).relative_to(path).as_posix()
        if not out.md5.endswith(".dir"):
            joined[inner] = out.md5
            continue
        listing = members(root, out)
        if listing is None:
            return None
        joined |= {f"{inner}/{name}": md5 for name, md5 in listing.items()}
    return listing_digest(joined)


def _md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()
