from pathlib import Path

import psutil
import pytest

from veilset.training import memory
from veilset.training.memory import free_memory, room_for_images


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("line", "mount", "names"),
    [
        ("0::/a/b\n", "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/a/b\n", "sys/fs/cgroup/memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)  # fmt: skip
def test_the_tightest_group_decides(
    tmp_path: Path, line: str, mount: str, names: tuple[str, str, str]
) -> None:
    _write(tmp_path / "proc/self/cgroup", "3:pids:/x\n" + line)
    limit, used, cache = names
    for group, values in (("a/b", ("max", "7")), ("a", ("9000", "5000")), ("", ("50000", "9"))):
        for name, value in zip((limit, used), values, strict=True):
            _write(tmp_path / mount / group / name, value + "\n")
    assert free_memory(tmp_path) == 4000
    _write(tmp_path / mount / "a/memory.stat", f"anon 5\n{cache} 1500\n")
    assert free_memory(tmp_path) == 5500
    _write(tmp_path / mount / "a" / used, "99999")
    assert free_memory(tmp_path) == 0


def test_a_container_that_sees_its_group_as_the_topmost(tmp_path: Path) -> None:
    _write(tmp_path / "proc/self/cgroup", "0::/docker/0123\n")  # a path of the host
    _write(tmp_path / "sys/fs/cgroup/memory.max", "4096\n")
    _write(tmp_path / "sys/fs/cgroup/memory.current", "96\n")
    assert free_memory(tmp_path) == 4000


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert free_memory(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_images_take_half_or_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 1000 << 20)
    assert room_for_images("auto") == 500 << 20
    assert room_for_images("auto", processes=4) == 125 << 20
    assert room_for_images(64, processes=2) == 32 << 20
    assert room_for_images(0) == 0
