"""Where releases are put for receivers: the DVC remote `shared`, which holds nothing else.

    <remote>/releases/<name>/      a release as `veilset release` made it, its statement last
    <remote>/releases.dsse.json    the signed list of what stands and what was withdrawn
    <remote>/files, <remote>/runs  where DVC itself would write: sealed

Receivers need no DVC: they copy a folder. DVC is never asked to push there, because of it alone
depends what it pushes: an output without `remote: private`, a wrong `dvc add` or the run cache
would carry private bytes or their hashes. On a file system the seal is two files where DVC wants
folders, so that any `dvc push` there fails before it writes. A bucket has no folders; there
`bucket_policy` denies the same places. All of it is ours.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from veilset.adapters.dvc import dvc_text
from veilset.errors import ReleaseError, SettingsError, VeilsetError
from veilset.release.bundle import STATEMENT
from veilset.release.history import ReleaseList
from veilset.release.signing import PublicKey, SigningKey

PRIVATE: Final = "private"
"""The remote of everything that DVC versions."""

SHARED: Final = "shared"
"""The remote of releases."""

LIST: Final = "releases.dsse.json"

_RELEASES: Final = "releases"
_REMOTE_URL: Final = re.compile(r"remote\.(?P<name>.+?)\.url=")
_SEALED: Final = ("files", "runs")
_SEAL: Final = (
    b"Releases alone are put here, by `veilset release`. This file stands where DVC would write,\n"
    b"so that no `dvc push` can bring anything else here. Leave it.\n"
)

Advance = Callable[[int, int], None]
"""Told bytes done and bytes in all."""


@dataclass(frozen=True)
class Remote:
    """A DVC remote that was opened.

    Attributes:
        name: As DVC's configuration calls it.
        url: Where it is, as a user would write it.
        fs: DVC's file system.
        path: The remote's place on it.
        local: Whether it is a folder on this machine, or mounted on it.
    """

    name: str
    url: str
    fs: Any
    path: str
    local: bool

    def at(self, *parts: str) -> str:
        """A place below the remote."""
        return str(self.fs.join(self.path, *parts))


def remote_names(root: Path) -> tuple[str, ...]:
    """The remotes that the project's DVC knows."""
    # `dvc remote list` breaks long lines, so that a word of one would look like a remote.
    lines = dvc_text(root, "config", "--list").splitlines()
    found = (_REMOTE_URL.match(line) for line in lines)
    return tuple(dict.fromkeys(one["name"] for one in found if one))


def open_remote(root: Path, name: str) -> Remote:
    """Opens a remote with what DVC's configuration says of it, secrets of `config.local` included.

    Args:
        root: The project's folder.
        name: The remote's name.

    Raises:
        SettingsError: DVC knows no such remote, or cannot speak to its kind.
    """
    from dvc.config import Config, ConfigError  # noqa: PLC0415 - a second
    from dvc.fs import RemoteMissingDepsError, get_cloud_fs  # noqa: PLC0415

    known = remote_names(root)
    if name not in known:
        raise SettingsError(
            f"DVC knows no remote {name!r} here: it knows {', '.join(known) or 'none'} (`dvc "
            "remote add NAME URL` adds one)."
        )
    try:
        config = Config(str(root / ".dvc"))
        cls, settings, path = get_cloud_fs(config, name=name)
        fs = cls(**settings)
        fs.fs  # noqa: B018 - made on first use: tells of a missing package
    except (ConfigError, RemoteMissingDepsError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"The remote {name!r} cannot be used: {reason}") from None
    url = str(config["remote"][name]["url"])
    return Remote(name, url, fs, str(path), local=fs.protocol == "local")


# ------------------------------------------------------------------------------ the seal


def seal_remote(remote: Remote) -> bool:
    """Closes a remote to DVC's own pushes, where it is a file system.

    Returns:
        Whether it is sealed now; False for a bucket, which needs `bucket_policy`.

    Raises:
        ReleaseError: DVC has pushed there before, so its folders hold something.
    """
    if not remote.local:
        return False
    with _reached(remote):
        for name in _SEALED:
            place = remote.at(name)
            if remote.fs.isdir(place):
                raise _pushed(remote, name)
            if not remote.fs.isfile(place):
                _write(remote, place, _SEAL)
    return True


def is_sealed(remote: Remote) -> bool:
    """Whether a folder remote is closed to DVC's own pushes."""
    with _reached(remote):
        return remote.local and all(remote.fs.isfile(remote.at(name)) for name in _SEALED)


def foreign(remote: Remote) -> tuple[str, ...]:
    """What lies in the remote beside releases, their list and the seal, relative to it."""
    with _reached(remote):
        if not remote.fs.exists(remote.path):
            return ()
        found = [remote.fs.relpath(path, remote.path) for path in remote.fs.find(remote.path)]
    ours = {LIST, *_SEALED}
    return tuple(sorted(
        path for path in found if path not in ours and PurePosixPath(path).parts[0] != _RELEASES
    ))  # fmt: skip


def bucket_policy(remote: Remote) -> str:
    """The policy, JSON, that keeps DVC's own pushes out of an S3 bucket.

    It denies everybody to write where DVC would; releases lie elsewhere.

    Raises:
        SettingsError: The remote is no S3 bucket.
    """
    if remote.fs.protocol not in ("s3", "s3a"):
        raise SettingsError(
            f"{remote.name} ({remote.url}) is no S3 bucket, so a bucket policy does not fit: see "
            "docs/releases.md for other kinds of remotes."
        )
    place = PurePosixPath(remote.path)
    statement = {
        "Sid": "ReleasesOnly", "Effect": "Deny", "Principal": "*", "Action": "s3:PutObject",
        "Resource": [f"arn:aws:s3:::{place / name}/*" for name in _SEALED],
    }  # fmt: skip
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]}, indent=1)


def unprotected_outputs(root: Path) -> tuple[str, ...]:
    """Outputs that a `dvc push -r shared` would send there: those without `remote: private`.

    Every `dvc.yaml` and `.dvc` file of the project is read. What DVC does not store, or is told not
    to push, is left out.

    Args:
        root: The project's folder.

    Returns:
        Each as `<file>: <path>`.
    """
    found = []
    for file in _dvc_files(root):
        document = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        stages = (document.get("stages") or {}).values() if file.name == "dvc.yaml" else [document]
        for stage in stages:
            outs = _outputs(stage.get("do", stage))
            found += [f"{file.relative_to(root)}: {path}" for path, facts in outs if _goes(facts)]
    return tuple(found)


def _dvc_files(root: Path) -> Iterator[Path]:
    """`dvc.yaml` and `.dvc` files; not those of environments and other hidden folders."""
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name == "dvc.yaml" or (path.suffix == ".dvc" and path.is_file()):
                yield path


def _outputs(stage: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for kind in ("outs", "metrics", "plots"):
        for entry in stage.get(kind) or ():
            if isinstance(entry, str):
                yield entry, {}
            elif "path" in entry:
                yield str(entry["path"]), entry
            else:
                yield from ((str(path), facts or {}) for path, facts in entry.items())


def _goes(facts: Mapping[str, Any]) -> bool:
    stays = facts.get("remote") == PRIVATE or facts.get("push") is False
    return not stays and facts.get("cache") is not False


# ------------------------------------------------------------------------------ releases


def put_release(remote: Remote, folder: Path, name: str, advance: Advance | None = None) -> None:
    """Copies a release to a remote: its statement last, so that half of one is never whole.

    Args:
        remote: Where.
        folder: What `veilset.release.bundle.write_release` made.
        name: The release's name.
        advance: Told after each file.

    Raises:
        ReleaseError: One of that name is there, the copy has other lengths, the remote holds what
            is no release, or cannot be reached.
    """
    odd = foreign(remote)
    if odd:
        raise _pushed(remote, odd[0])
    seal_remote(remote)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files.sort(key=lambda path: path.relative_to(folder).as_posix() == STATEMENT)
    sizes = [path.stat().st_size for path in files]
    there = remote.at(_RELEASES, name)
    with _reached(remote):
        if remote.fs.exists(f"{there}/{STATEMENT}"):
            raise ReleaseError(
                f"{remote.name} has a release {name} already, and none is ever replaced: withdraw "
                "it first, or release other data."
            )
        done = 0
        for path, size in zip(files, sizes, strict=True):
            place = f"{there}/{path.relative_to(folder).as_posix()}"
            remote.fs.makedirs(remote.fs.parent(place), exist_ok=True)
            remote.fs.put_file(str(path), place)
            if remote.fs.size(place) != size:
                raise ReleaseError(
                    f"{place} arrived with another length than it was sent: release again."
                )
            done += size
            if advance is not None:
                advance(done, sum(sizes))


def remove_release(remote: Remote, name: str) -> bool:
    """Takes a release away from a remote, its statement first.

    Returns:
        Whether there was one.
    """
    there = remote.at(_RELEASES, name)
    with _reached(remote):
        if not remote.fs.exists(there):
            return False
        statement = f"{there}/{STATEMENT}"
        if remote.fs.exists(statement):
            remote.fs.rm_file(statement)
        remote.fs.rm(there, recursive=True)
    return True


def read_list(remote: Remote, key: PublicKey) -> ReleaseList:
    """The remote's list of releases, its signature checked; an empty one where there is none.

    Raises:
        CorruptError: It was altered, or somebody else signed it.
    """
    with _reached(remote):
        if not remote.fs.exists(remote.at(LIST)):
            return ReleaseList()
        raw = bytes(remote.fs.cat_file(remote.at(LIST)))
    return ReleaseList.unsealed(raw, key)


def write_list(remote: Remote, listed: ReleaseList, key: SigningKey) -> None:
    """Signs the remote's list of releases and puts it there."""
    with _reached(remote):
        _write(remote, remote.at(LIST), listed.sealed(key))


def _write(remote: Remote, place: str, data: bytes) -> None:
    remote.fs.makedirs(remote.fs.parent(place), exist_ok=True)
    if remote.local:
        temporary = f"{place}.{os.getpid()}.tmp"
        Path(temporary).write_bytes(data)
        Path(temporary).replace(place)
    else:
        remote.fs.pipe_file(place, data)


@contextmanager
def _reached(remote: Remote) -> Iterator[None]:
    try:
        yield
    except VeilsetError:
        raise
    except Exception as error:
        # Each kind of remote has errors of its own, most of them no OSError.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ReleaseError(
            f"The remote {remote.name} ({remote.url}) cannot be used ({reason[:300]}): mend it and "
            "run the command again."
        ) from None


def _pushed(remote: Remote, name: str) -> ReleaseError:
    return ReleaseError(
        f"The remote {remote.name} ({remote.url}) holds {name}, which is no release: somebody "
        "pushed there by DVC, perhaps private data. Look at it with `veilset remote check`, remove "
        "it, and tell whoever answers for the data."
    )


__all__ = [
    "LIST", "PRIVATE", "SHARED", "Remote", "bucket_policy", "foreign", "is_sealed", "open_remote",
    "put_release", "read_list", "remote_names", "remove_release", "seal_remote",
    "unprotected_outputs", "write_list",
]  # fmt: skip
