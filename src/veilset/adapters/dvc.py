"""DVC as the pipeline's memory: its lock file is read, its command line makes changes.

`dvc.repo.Repo` is undocumented, so this module reads `dvc.lock` (YAML, one record a stage result)
and drives `python -m dvc` for everything else.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from veilset.errors import (
    AuditError,
    BusyError,
    CorruptError,
    RefusedImagesError,
    VeilsetError,
)
from veilset.quiet import quiet

Outcome = Literal["ran", "restored", "unchanged"]
"""What reproducing a stage did: ran its command, fetched its result from the cache, or nothing."""

_FAILED: Final = "ERROR: failed to reproduce"
_EDGE: Final = re.compile(r'^"(?P<up>[^"]+)" -> "(?P<down>[^"]+)";$')
_NODE: Final = re.compile(r'^"(?P<name>[^"]+)";$')
_CODE: Final = re.compile(r"exited with (?P<code>\d+)\W*$")
_BLOCK: Final = 1 << 20

# The one in C where it is there: a history has many lock files.
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class StageError(VeilsetError):
    """A stage of the pipeline failed; the message is the stage's own sentence."""


class CannotProtectError(StageError):
    """A scheme refused a drop's images for what they are: trying again changes nothing."""


@dataclass(frozen=True)
class Entry:
    """A file or folder as `dvc.lock` records it.

    Attributes:
        path: Relative to the project, with forward slashes.
        md5: DVC's digest; that of a folder ends in `.dir`. Empty where DVC keeps none.
        size: Bytes, or None where DVC does not say.
        nfiles: Number of files of a folder, or None for a file.
    """

    path: str
    md5: str
    size: int | None = None
    nfiles: int | None = None


@dataclass(frozen=True)
class StageRecord:
    """One stage result in `dvc.lock`.

    Attributes:
        name: As DVC names it, e.g. `protect@visualmixer-first`.
        cmd: The command that made it.
        deps: What it was made from.
        params: The parameter values it was made with: file -> dotted key -> value.
        outs: What it made.
    """

    name: str
    cmd: str
    deps: tuple[Entry, ...]
    params: Mapping[str, Mapping[str, Any]]
    outs: tuple[Entry, ...]

    @property
    def kind(self) -> str:
        """The stage without its matrix item: `protect` of `protect@visualmixer-first`."""
        return self.name.partition("@")[0]

    @property
    def item(self) -> str:
        """The matrix item: `visualmixer-first` of `protect@visualmixer-first`, or nothing."""
        return self.name.partition("@")[2]


def read_lock(root: Path) -> tuple[StageRecord, ...]:
    """All stage results that `dvc.lock` records, in its order.

    Args:
        root: The project's folder.

    Raises:
        AuditError: There is no `dvc.lock`.
        CorruptError: It is not a lock file of a pipeline.
    """
    path = root / "dvc.lock"
    try:
        return parse_lock(path.read_bytes(), path)
    except FileNotFoundError:
        raise AuditError(
            f"{path} is missing, so no version is on record: run `dvc repro` first."
        ) from None


def parse_lock(raw: bytes, path: Path) -> tuple[StageRecord, ...]:
    """All stage results that the bytes of a lock file record; `path` is named in errors.

    Raises:
        CorruptError: It is not a lock file of a pipeline.
    """
    try:
        document = yaml.load(raw, Loader=_Loader)  # noqa: S506 - it is a safe one
        stages = document["stages"] if document else {}
        return tuple(_record(str(name), body) for name, body in stages.items())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _bad_lock(path, type(error).__name__) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _bad_lock(path, f"{type(error).__name__}: {error}") from None


def stage_key(record: StageRecord) -> str:
    """The identity of a stage result, 64 hex characters.

    SHA-256 over the stage's name, its parameter values, and path and digest of everything it read
    and made. Two results share a key only if DVC would hold them for the same one; the command is
    left out, because another way to call the same stage changes nothing that was recorded.
    """
    content = {
        "stage": record.name,
        "params": {file: dict(values) for file, values in record.params.items()},
        "deps": sorted([entry.path, entry.md5] for entry in record.deps),
        "outs": sorted([entry.path, entry.md5] for entry in record.outs),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def git_commit(root: Path) -> str | None:
    """The commit that is checked out, 40 hex characters; None without a repository or commit."""
    return _git(root, "rev-parse", "--verify", "--quiet", "HEAD") or None


def git_dirty(root: Path) -> bool | None:
    """Whether anything differs from that commit, new files included; None without a repository."""
    status = _git(root, "status", "--porcelain")
    return None if status is None else bool(status)


def git_user(root: Path) -> str:
    """Name and address of whoever works here, as git knows them; empty where it does not."""
    name, address = _git(root, "config", "user.name"), _git(root, "config", "user.email")
    return f"{name} <{address}>" if name and address else name or address or ""


def uncommitted(root: Path) -> tuple[str, ...] | None:
    """What decides results and is not as the commit has it; None without a repository.

    Files that git tracks, and `dvc.lock` also where git does not; reports are results.
    """
    differs = _git(root, "diff", "--name-only", "--relative", "HEAD")
    if differs is None:
        return None
    unknown = _git(root, "ls-files", "--error-unmatch", "dvc.lock") is None
    changed = {*differs.splitlines(), *(["dvc.lock"] if unknown else [])}
    return tuple(sorted(path for path in changed if not path.startswith("reports/")))


def stage_graph(root: Path) -> dict[str, tuple[str, ...]]:
    """The pipeline's stages in an order that can be run, each with the stages it waits for.

    Ties keep the order of `dvc.yaml`. Matrix and foreach stages appear as their items. Stages of
    other `dvc.yaml` files in the repository, and data tracked by `.dvc` files, are left out.

    Args:
        root: The folder of `dvc.yaml`.

    Raises:
        StageError: DVC cannot read the pipeline; the message is DVC's.
    """
    names, edges = _parse_dot(dvc_text(root, "dag", "--dot"))
    own = [name for name in names if not name.endswith(".dvc") and ":" not in name]
    upstream = {name: [up for up, down in edges if down == name and up in own] for name in own}
    return {name: tuple(upstream[name]) for name in _topological(upstream)}


def stage_order(root: Path) -> tuple[str, ...]:
    """The names of all stages in an order that can be run. Raises as `stage_graph`."""
    return tuple(stage_graph(root))


def changed_stages(root: Path, graph: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    """The stages that `dvc repro` would have to look at: changed ones and all that wait for them.

    Args:
        root: The folder of `dvc.yaml`.
        graph: What `stage_graph` returned.

    Raises:
        StageError: DVC cannot compare the workspace; the message is DVC's.
    """
    changed = set(json.loads(dvc_text(root, "status", "--json") or "{}"))
    for name, upstream in graph.items():
        if changed.intersection(upstream):
            changed.add(name)
    return frozenset(changed.intersection(graph))


def reproduce(stage: str, root: Path, on_line: Callable[[str], None]) -> Outcome:
    """Reproduces this one stage; the stages that it waits for must be up to date.

    Args:
        stage: Its name, e.g. `protect@visualmixer-first`.
        root: The folder of `dvc.yaml`.
        on_line: Called with every line that DVC and the stage print, as it comes.

    Returns:
        Whether the command ran, its result came from the cache, or nothing had changed.

    Raises:
        BusyError: Another DVC command holds the project's lock.
        CannotProtectError: A scheme cannot protect these images.
        StageError: The stage failed; the message is the last sentence that it printed.
    """
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "-s", stage],
        cwd=root, env=_environment(), text=True, encoding="utf-8", errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            for line in _lines(process):
                lines.append(line)
                on_line(line)
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    if code != 0:
        raise _failure(stage, lines)
    return _outcome(lines)


def file_md5(path: Path) -> str:
    """MD5 of a file's bytes, 32 hex characters: the digest that DVC keeps."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def folder_members(root: Path, entry: Entry) -> dict[str, str] | None:
    """What DVC recorded inside a folder: path relative to the folder -> MD5.

    Args:
        root: The project's folder.
        entry: A folder out or dep of `dvc.lock`.

    Returns:
        The members, or None where the local cache does not hold the folder's listing.

    Raises:
        CorruptError: The cache holds a listing whose bytes do not have the recorded digest.
    """
    name = entry.md5
    path = cache_folder(root) / "files" / "md5" / name[:2] / name[2:]
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != name.removesuffix(".dir"):
        raise CorruptError(
            f"{path} is not the listing of {entry.path} that dvc.lock records: delete it and run "
            f"`dvc pull` or `dvc repro`."
        )
    return {member["relpath"]: member["md5"] for member in json.loads(data)}


def folder_md5(folder: Path) -> str:
    """The digest that DVC gives a folder (`<md5>.dir`), computed from its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listing = [
        {"md5": file_md5(path), "relpath": path.relative_to(folder).as_posix()} for path in files
    ]
    listing.sort(key=lambda member: member["relpath"])
    text = json.dumps(listing, sort_keys=True).encode()
    return hashlib.md5(text, usedforsecurity=False).hexdigest() + ".dir"


def cache_folder(root: Path) -> Path:
    """The local cache: `cache.dir` of `.dvc/config.local` or `.dvc/config`, else `.dvc/cache`."""
    for name in ("config.local", "config"):
        for value in _config_values(root / ".dvc" / name):
            return (root / ".dvc" / value).resolve()
    return root / ".dvc" / "cache"


def _config_values(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    section = ""
    for raw in path.read_text(encoding="utf-8").splitlines():
        line = raw.strip()
        if line.startswith("["):
            section = line.strip("[]")
        elif section == "cache" and line.partition("=")[0].strip() == "dir":
            yield line.partition("=")[2].strip()


def _bad_lock(path: Path, why: str) -> CorruptError:
    return CorruptError(
        f"{path} is not a DVC lock file ({why}): restore it with `git checkout dvc.lock` or run "
        f"`dvc repro`."
    )


def _record(name: str, body: Mapping[str, Any]) -> StageRecord:
    command = body["cmd"]
    return StageRecord(
        name=name,
        cmd=command if isinstance(command, str) else " && ".join(command),
        deps=tuple(_entry(item) for item in body.get("deps", ())),
        params={str(file): dict(values) for file, values in body.get("params", {}).items()},
        outs=tuple(_entry(item) for item in body.get("outs", ())),
    )


def _entry(item: Mapping[str, Any]) -> Entry:
    return Entry(
        path=str(item["path"]),
        md5=str(item.get("md5", "")),
        size=item.get("size"),
        nfiles=item.get("nfiles"),
    )


def dvc_text(root: Path, *arguments: str) -> str:
    """What a DVC command prints.

    Args:
        root: The folder of `dvc.yaml`.
        arguments: The command.

    Raises:
        BusyError: Another DVC command holds the project's lock.
        StageError: It failed; the message is DVC's.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root, env=_environment(), capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise _failure(f"dvc {arguments[0]}", (done.stdout + done.stderr).splitlines())
    return done.stdout.strip()


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _environment() -> dict[str, str]:
    """This environment, quiet, with the interpreter's own folder first on the path.

    The stages' commands are found there, whether or not the virtual environment is active.
    """
    environment = dict(os.environ)
    quiet(environment)
    binaries = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([binaries, environment.get("PATH", os.defpath)])
    # Lines are shown as they come, not when a buffer is full.
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _parse_dot(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Node names in order of appearance, and edges (upstream, downstream)."""
    names: dict[str, None] = {}
    edges = []
    for line in text.splitlines():
        if edge := _EDGE.match(line.strip()):
            names.update({edge["up"]: None, edge["down"]: None})
            edges.append((edge["up"], edge["down"]))
        elif node := _NODE.match(line.strip()):
            names[node["name"]] = None
    return list(names), edges


def _topological(upstream: Mapping[str, list[str]]) -> list[str]:
    """Names with everything they wait for before them; ties in the order given."""
    order: dict[str, None] = {}
    pending = list(upstream)
    while pending:
        ready = next((name for name in pending if all(up in order for up in upstream[name])), None)
        if ready is None:
            raise StageError(f"The pipeline waits for itself at {pending[0]}: mend dvc.yaml.")
        order[ready] = None
        pending.remove(ready)
    return list(order)


def _lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    for line in process.stdout:
        if line.strip():
            yield line.rstrip()


def _stop(process: "subprocess.Popen[str]") -> None:
    """Ends a stage that nobody waits for any more; its outputs are atomic, so none is torn."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()


def _failure(stage: str, lines: list[str]) -> VeilsetError:
    if any("Unable to acquire lock" in line or "being blocked by" in line for line in lines):
        return BusyError(
            f"{stage} cannot start, because another DVC command holds the project's lock: wait "
            f"until it ends, then run again."
        )
    ends = [found["code"] for line in lines if (found := _CODE.search(line))]
    refused = ends and int(ends[-1]) == RefusedImagesError.exit_code
    return (CannotProtectError if refused else StageError)(f"{stage}: {_sentence(lines)}")


def _sentence(lines: list[str]) -> str:
    """The last thing that was said before DVC reported the failure."""
    ends = [i for i, line in enumerate(lines) if line.startswith(_FAILED)]
    said = [line for line in lines[: ends[0]] if line.strip()] if ends else []
    if said and not said[-1].startswith(("> ", "Running stage ")):
        return said[-1].strip().removeprefix("veilset: ")
    errors = [line for line in lines if line.startswith("ERROR: ")]
    if errors:
        return errors[0].removeprefix("ERROR: ")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing.")


def _outcome(lines: list[str]) -> Outcome:
    if any(line.startswith("Running stage ") for line in lines):
        return "ran"
    if any("is cached - skipping run" in line for line in lines):
        return "restored"
    return "unchanged"
