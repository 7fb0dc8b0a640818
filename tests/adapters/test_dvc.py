"""The DVC adapter against real DVC."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from veilset.adapters.dvc import (
    CannotProtectError,
    Entry,
    StageError,
    StageRecord,
    changed_stages,
    file_md5,
    folder_md5,
    folder_members,
    git_commit,
    git_dirty,
    read_lock,
    reproduce,
    stage_graph,
    stage_key,
)
from veilset.errors import AuditError, BusyError, CorruptError

STAGES = {
    "ingest@first", "check@first", "protect@plain-first", "protect@noise-first", "attack@plain",
    "attack@noise", "train@noise-tiny-0", "evaluate", "gate", "report",
}  # fmt: skip


def record(**changes: object) -> StageRecord:
    base = StageRecord(
        name="protect@noise-first", cmd="python x", deps=(Entry("a", "1"), Entry("b", "2")),
        params={"params.yaml": {"scheme.noise": {"x": 1}}}, outs=(Entry("c", "3"),),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_the_lock_is_read_as_dvc_wrote_it(original: Path) -> None:
    stages = {stage.name: stage for stage in read_lock(original)}
    assert set(stages) == STAGES
    protect = stages["protect@noise-first"]
    assert (protect.kind, protect.item) == ("protect", "noise-first")
    assert protect.params == {
        "params.yaml": {"scheme.noise": {"strength": 3, "inner": {"a": [1, 2]}}}
    }
    assert [dep.path for dep in protect.deps] == [
        "data/ingested/first",
        "keys/protection.fingerprint",
    ]
    (out,) = protect.outs
    assert out.path == "data/protected/noise/first"
    assert out.md5.endswith(".dir") and len(out.md5) == 36
    assert out.nfiles == 2
    assert out.md5 == folder_md5(original / out.path)


def test_members_of_a_folder_are_what_the_cache_lists(original: Path) -> None:
    out = next(s for s in read_lock(original) if s.name == "protect@noise-first").outs[0]
    members = folder_members(original, out)
    assert members == {
        name: file_md5(original / out.path / name)
        for name in ("manifest.json", "train-00000.arrow")
    }
    assert folder_members(original, Entry("x", "0" * 32 + ".dir")) is None


def test_a_forged_listing_is_refused(project: Path) -> None:
    out = next(s for s in read_lock(project) if s.name == "check@first").outs[0]
    listing = project / ".dvc/cache/files/md5" / out.md5[:2] / out.md5[2:]
    listing.chmod(0o644)
    listing.write_text(json.dumps([{"md5": "0" * 32, "relpath": "verdict.json"}]))
    with pytest.raises(CorruptError, match="data/checks/first"):
        folder_members(project, out)


def test_the_key_is_that_of_its_definition() -> None:
    text = json.dumps(
        {"stage": "protect@noise-first", "params": {"params.yaml": {"scheme.noise": {"x": 1}}},
         "deps": [["a", "1"], ["b", "2"]], "outs": [["c", "3"]]},
        sort_keys=True, separators=(",", ":"),
    )  # fmt: skip
    assert stage_key(record()) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "protect@noise-second"},
        {"params": {"params.yaml": {"scheme.noise": {"x": 2}}}},
        {"params": {}},
        {"deps": (Entry("a", "9"), Entry("b", "2"))},
        {"deps": (Entry("a", "1"),)},
        {"outs": (Entry("c", "4"),)},
    ],
)
def test_another_result_has_another_key(changes: dict[str, object]) -> None:
    assert stage_key(record(**changes)) != stage_key(record())


def test_the_same_result_has_the_same_key() -> None:
    same = {"deps": (Entry("b", "2", 7), Entry("a", "1")), "cmd": "uv run python x"}
    assert stage_key(record(**same)) == stage_key(record())


@pytest.mark.parametrize(
    "text",
    [
        "stages: [",
        "stages: 3",
        "- a",
        "stages: {a: {}}",
        "stages: {a: {cmd: x, outs: [{}]}}",
        "stages: {a: {cmd: x, params: 3}}",
    ],
)
def test_a_spoilt_lock_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(CorruptError, match="not a DVC lock file"):
        read_lock(tmp_path)


def test_no_lock_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="dvc repro"):
        read_lock(tmp_path)


@pytest.fixture(scope="module")
def graph(original: Path) -> dict[str, tuple[str, ...]]:
    return stage_graph(original)


def test_the_order_respects_every_edge(graph: dict[str, tuple[str, ...]]) -> None:
    order = list(graph)
    assert set(order) == STAGES
    assert all(order.index(up) < order.index(name) for name in graph for up in graph[name])
    assert graph["attack@noise"] == ("ingest@first", "protect@noise-first")
    assert set(graph["gate"]) == {"attack@plain", "attack@noise"}


def test_git_state(project: Path, tmp_path: Path) -> None:
    commit = git_commit(project)
    assert commit is not None and len(commit) == 40
    assert git_dirty(project) is False
    (project / "new.txt").write_text("x")
    assert git_dirty(project) is True
    (tmp_path / "bare").mkdir()
    assert git_commit(tmp_path / "bare") is None
    assert git_dirty(tmp_path / "bare") is None


def test_changed_stages_are_those_and_all_after_them(
    project: Path, graph: dict[str, tuple[str, ...]]
) -> None:
    assert changed_stages(project, graph) == frozenset()
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("strength: 3", "strength: 4"))
    expected = {"protect@noise-first", "attack@noise", "train@noise-tiny-0", "evaluate", "gate",
                "report"}  # fmt: skip
    assert changed_stages(project, graph) == expected


def test_a_stage_runs_is_restored_or_left_alone(project: Path) -> None:
    lines: list[str] = []
    assert reproduce("check@first", project, lines.append) == "unchanged"
    stage = project / "toy_stage.py"
    stage.write_text(stage.read_text() + "print('spoke', flush=True)\n")
    settings = project / "dvc.yaml"
    before = settings.read_text()
    settings.write_text(
        before.replace("toy_stage.py check ${item}", "-u toy_stage.py check ${item}")
    )
    assert reproduce("check@first", project, lines.append) == "ran"
    assert "spoke" in lines
    settings.write_text(before)
    assert reproduce("check@first", project, lines.append) == "restored"


def test_a_failing_stage_raises_its_own_sentence(project: Path) -> None:
    stage = project / "toy_stage.py"
    text = "import sys\nprint('half way')\nsys.exit('veilset: The drop is empty: add images.')\n"
    stage.write_text(text)
    settings = project / "dvc.yaml"
    settings.write_text(settings.read_text().replace("toy_stage.py check", "-u toy_stage.py check"))
    lines: list[str] = []
    with pytest.raises(StageError) as caught:
        reproduce("check@first", project, lines.append)
    assert str(caught.value) == "check@first: The drop is empty: add images."
    assert "half way" in lines


def test_a_scheme_that_refuses_its_images_is_told_from_a_failure(project: Path) -> None:
    (project / "toy_stage.py").write_text(
        "import sys\nfrom veilset.console import run_reporting_errors\n"
        "from veilset.errors import RefusedImagesError\n"
        "def refuse():\n    raise RefusedImagesError('too few images.')\n"
        "sys.exit(run_reporting_errors(refuse))\n"
    )
    settings = project / "dvc.yaml"
    settings.write_text(settings.read_text().replace("toy_stage.py check", "-u toy_stage.py check"))
    with pytest.raises(CannotProtectError, match=r"^check@first: too few images\.$"):
        reproduce("check@first", project, [].append)


def test_an_unknown_stage_is_named(project: Path) -> None:
    with pytest.raises(StageError, match="nonsense"):
        reproduce("nonsense", project, [].append)


def test_a_held_lock_is_busy(project: Path) -> None:
    hold = (
        "import sys, time; from dvc.repo import Repo\n"
        "with Repo('.').lock: print('held', flush=True); time.sleep(60)"
    )
    settings = project / "dvc.yaml"
    settings.write_text(settings.read_text().replace("toy_stage.py check", "-u toy_stage.py check"))
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=project, stdout=subprocess.PIPE
    ) as holder:  # fmt: skip
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            with pytest.raises(BusyError, match="another DVC command"):
                reproduce("check@first", project, [].append)
        finally:
            holder.kill()
