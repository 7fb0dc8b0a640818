"""How much main memory images may take."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import psutil

SHARE: Final = 2
"""Images take at most one part in so many of the free memory: the rest is for the work itself."""


def room_for_images(setting: Literal["auto"] | int, processes: int = 1) -> int:
    """Bytes of main memory that the images of one process may take.

    Args:
        setting: MiB for all processes together, or `auto` for half of what is free.
        processes: How many on this machine hold images at once.
    """
    whole = free_memory() // SHARE if setting == "auto" else setting << 20
    return whole // processes


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: of the machine, and within its control groups.

    Args:
        root: Where `proc` and `sys` are mounted.
    """
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group with a limit leaves; caches that it can give back count as left."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left(root / "sys/fs/cgroup", path, _V2)
        elif "memory" in controllers.split(","):
            yield from _left(root / "sys/fs/cgroup/memory", path, _V1)


_V2: Final = ("memory.max", "memory.current", "inactive_file")
_V1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left(mount: Path, path: str, names: tuple[str, str, str]) -> Iterator[int]:
    """For the group and every one above it; a container sees its own as the topmost."""
    limit_name, used_name, cache_name = names
    group = Path(path.lstrip("/"))
    for place in (mount / group, *(mount / above for above in group.parents)):
        limit, used = _text(place / limit_name), _text(place / used_name)
        if limit.isdecimal() and used.isdecimal():
            pairs = (line.split() for line in _text(place / "memory.stat").splitlines())
            cache = {pair[0]: int(pair[1]) for pair in pairs}.get(cache_name, 0)
            yield int(limit) - int(used) + cache


def _text(path: Path) -> str:
    """A file's text, or none where it is not there."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
