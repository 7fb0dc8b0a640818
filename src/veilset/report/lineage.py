"""From `dvc.lock` to a graph of stages with digests. Source: ours."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from veilset.report.model import Stage


def stages_of(lock: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The stages of a lock file, by level, then name.

    Args:
        lock: The parsed `dvc.lock`.

    Raises:
        ValueError: Stages depend on each other in a circle.
    """
    entries: Mapping[str, Mapping[str, Any]] = lock.get("stages") or {}
    makers = {
        str(out["path"]): name for name, entry in entries.items() for out in entry.get("outs", ())
    }
    needs = {name: _needs(name, entry, makers) for name, entry in entries.items()}
    levels = _levels(needs)
    stages = (
        Stage(
            name=name,
            params=_digest(entry.get("params")),
            outs=_digest([[out["path"], _hash(out)] for out in entry.get("outs", ())]),
            needs=needs[name],
            level=levels[name],
        )
        for name, entry in entries.items()
    )
    return tuple(sorted(stages, key=lambda stage: (stage.level, stage.name)))


def _hash(out: Mapping[str, Any]) -> str:
    """The content hash under the name that DVC chose for its kind."""
    return str(out.get(str(out.get("hash", "md5")), ""))


def _digest(value: object) -> str | None:
    """16 hex digits over canonical JSON; None for nothing."""
    if not value:
        return None
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _needs(name: str, entry: Mapping[str, Any], makers: Mapping[str, str]) -> tuple[str, ...]:
    """Stages that made a dependency of this one, the folder it lies in, or a part of it."""
    deps = [PurePosixPath(str(dep["path"])) for dep in entry.get("deps", ())]
    found = {
        maker
        for path, maker in makers.items()
        for dep in deps
        if dep.is_relative_to(path) or PurePosixPath(path).is_relative_to(dep)
    }
    return tuple(sorted(found - {name}))


def _levels(needs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    levels: dict[str, int] = {}
    waiting = dict(needs)
    while waiting:
        ready = [name for name, before in waiting.items() if all(item in levels for item in before)]
        if not ready:
            raise ValueError("its stages depend on each other in a circle")
        for name in ready:
            levels[name] = 1 + max((levels[item] for item in waiting.pop(name)), default=-1)
    return levels


def families(stages: Sequence[Stage]) -> list[list[tuple[str, int]]]:
    """The stages for a small graph: for each level its (stage without `@item`, how many)."""
    levels: dict[int, dict[str, int]] = {}
    for stage in stages:
        row = levels.setdefault(stage.level, {})
        family = stage.name.split("@")[0]
        row[family] = row.get(family, 0) + 1
    return [sorted(levels[level].items()) for level in sorted(levels)]
