"""What the flows of drops decide without a server: order, blame, arrivals, commits."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilset.quiet import quiet

quiet()

from veilset.adapters.git_commit import commit_beside, commit_out  # noqa: E402
from veilset.adapters.prefect_drops import (  # noqa: E402
    _blocking,
    _concerns,
    _drop_of,
    _upstream,
    _without,
)
from veilset.adapters.prefect_home import deployment_name, project_home  # noqa: E402
from veilset.adapters.prefect_serve import decided_by_persons, seen_now  # noqa: E402
from veilset.drops.intake import Look, Seen  # noqa: E402
from veilset.drops.policy import DropPolicy  # noqa: E402
from veilset.drops.record import DropRecord, now  # noqa: E402
from veilset.errors import VeilsetError  # noqa: E402

GRAPH: dict[str, tuple[str, ...]] = {
    "ingest@a": (), "ingest@b": (), "check@a": ("ingest@a",), "check@b": ("ingest@b",),
    "fit_drops@a": ("check@a", "ingest@a"), "fit@s": ("fit_drops@a",),
    "protect@s-a": ("check@a", "fit@s", "ingest@a"),
    "protect@s-b": ("check@b", "fit@s", "ingest@b"),
    "attack@s": ("fit@s", "ingest@a", "ingest@b", "protect@s-a", "protect@s-b"),
    "train@s-m-0": ("protect@s-a", "protect@s-b"), "attack_model@s-m": ("train@s-m-0",),
    "gate": ("attack@s", "attack_model@s-m"),
}  # fmt: skip


def test_a_run_does_what_the_attacks_need_and_trains_nothing() -> None:
    needed = _upstream(GRAPH, ["attack@s", "protect@s-b", "not there"])
    assert needed == set(GRAPH) - {"gate", "train@s-m-0", "attack_model@s-m"}
    assert _upstream(GRAPH, ["gate"]) == set(GRAPH) - {"train@s-m-0", "attack_model@s-m"}


def failing(*first: str) -> set[str]:
    failed = set(first)
    for stage, upstream in GRAPH.items():
        if _blocking(stage, upstream, failed):
            failed.add(stage)
    return failed


def test_what_one_drop_breaks_stops_no_other() -> None:
    assert failing("protect@s-b") == {"protect@s-b"}
    assert failing("check@b") == {"check@b", "protect@s-b"}
    # What a scheme learns from this drop, all drops need.
    assert {"fit@s", "protect@s-b", "attack@s", "gate"} <= failing("check@a")
    assert failing("attack@s") == {"attack@s", "gate"}
    assert failing("train@s-m-0") == {"train@s-m-0", "attack_model@s-m", "gate"}


def test_a_failure_is_told_where_it_belongs() -> None:
    assert _concerns("protect@s-b", "b") and not _concerns("protect@s-b", "a")
    assert _concerns("check@b", "b") and not _concerns("check@b", "a")
    assert _concerns("gate", "a") and _concerns("push", "b") and _concerns("b", "b")


def test_a_stage_that_makes_something_of_one_drop_says_which() -> None:
    drops = {stage: _drop_of(stage, GRAPH) for stage in GRAPH}
    assert drops["protect@s-b"] == drops["ingest@b"] == drops["check@b"] == "b"
    assert drops["protect@s-a"] == "a"
    assert {drops[one] for one in ("fit@s", "attack@s", "train@s-m-0", "gate")} == {""}


def test_no_name_of_an_entry_is_told_unless_it_may_be() -> None:
    entry = Path("/x/incoming/maria muster")
    said = f"{entry} is still being written: maria muster changed."
    assert "maria" not in _without(said, entry, DropPolicy())
    assert _without(said, entry, DropPolicy(show_names=True)) == said
    assert _without("a bad name: a", Path("/x/a"), DropPolicy()) == "it bad name: it"
    assert _without("a bad name", Path("/x/b"), DropPolicy()) == "a bad name"


# ---------------------------------------------------------------------------------- arrivals


def look(size: int) -> Look:
    return Look((Seen((b"x",), size, 0),), 0)


def test_an_arrival_is_told_when_it_has_settled_and_seldom_again() -> None:
    known, due = seen_now({}, {"a": look(1)}, 0, settle=5)
    assert due == 0
    known, due = seen_now(known, {"a": look(2)}, 4, settle=5)
    assert due == 0
    known, due = seen_now(known, {"a": look(2)}, 8, settle=5)
    assert due == 0, "it grew four seconds ago"
    known, due = seen_now(known, {"a": look(2)}, 9, settle=5)
    assert due == 1
    told = []
    for second in range(10, 10_000):
        known, due = seen_now(known, {"a": look(2)}, second, settle=5)
        told += [second] * due
    assert told == [909, 909 + 1800, 909 + 1800 + 3600]
    known, due = seen_now(known, {}, 10_000, settle=5)
    assert (known, due) == ({}, 0)


@given(
    steps=st.lists(st.tuples(st.sampled_from([None, 1, 2]), st.floats(0.5, 30)), max_size=40),
    settle=st.sampled_from([0.0, 1.0, 10.0]),
)
def test_nothing_is_told_that_changed_a_moment_ago(
    steps: list[tuple[int | None, float]], settle: float
) -> None:
    known, clock, since, before = {}, 0.0, 0.0, None
    for size, pause in steps:
        clock += pause
        if size != before:
            since, before = clock, size
        looks = {} if size is None else {"a": look(size)}
        known, due = seen_now(known, looks, clock, settle)
        if due:
            assert size is not None and clock - since >= settle
        if size is not None and clock - since >= settle:
            assert known["a"].told is not None, "what has settled is told"


def drop(state: str, *events: str) -> DropRecord:
    return DropRecord.model_validate(
        {
            "name": "ward", "state": state, "licence": "x", "consent": "x", "by": "x", "at": now(),
            "digest": "0" * 64, "counts": {}, "source": "folder", "path": "x", "options": {},
            "decisions": [{"event": event, "at": now()} for event in events],
        }
    )  # fmt: skip


def test_what_a_person_decides_starts_a_run_and_what_a_run_decides_does_not() -> None:
    for state, events in (
        ("arrived", ()), ("held", ("held",)), ("accepted", ("accepted",)),
        ("protected", ("accepted", "protected")), ("refused", ("retried", "refused")),
    ):  # fmt: skip
        assert decided_by_persons([drop(state, *events)]) == frozenset()
    approved = decided_by_persons([drop("accepted", "held", "approved")])
    assert len(approved) == 1
    assert decided_by_persons([drop("arrived", "held", "retried")]) == approved
    later = decided_by_persons([drop("accepted", "held", "approved", "protected", "erased")])
    assert later and later != approved


def test_two_projects_of_a_name_share_a_server(tmp_path: Path) -> None:
    one, other = tmp_path / "a/images", tmp_path / "b/images"
    assert deployment_name(one).startswith("images-")
    assert deployment_name(one) != deployment_name(other)


def test_the_home_of_runs_stays_out_of_git(repository: Path) -> None:
    home = project_home(repository)
    (home / "prefect.db").write_text("x")
    assert git(repository, "status", "--porcelain") == ""
    assert home.stat().st_mode & 0o077 == 0


# ----------------------------------------------------------------------------------- commits


def git(root: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A machine on which git knows nobody.
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "dvc.lock").write_text("1")
    (root / "other").write_text("1")
    (root / ".gitignore").write_text("/ignored\n")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return root


def test_only_what_is_named_is_committed(repository: Path) -> None:
    for name in ("dvc.lock", "other", "new", "ignored"):
        (repository / name).write_text("2")
    git(repository, "add", "other")
    paths = ["dvc.lock", "new", "ignored", "missing"]
    assert commit_out(repository, paths, "Drops: a")
    assert git(repository, "show", "--format=%s %an", "--name-only").split() == [
        "Drops:", "a", "Veilset", "dvc.lock", "new",
    ]  # fmt: skip
    assert git(repository, "status", "--porcelain") == "M  other\n"
    assert not commit_out(repository, paths, "Drops: again")
    assert git(repository, "rev-list", "--count", "HEAD") == "2\n"


def test_a_branch_of_its_own_touches_no_checkout(repository: Path) -> None:
    (repository / "dvc.lock").write_text("2")
    (repository / "other").write_text("2")
    git(repository, "add", "other")

    def checkout() -> tuple[str, str]:
        return git(repository, "status", "--porcelain"), git(repository, "rev-parse", "HEAD")

    before = checkout()
    assert commit_beside(repository, ["dvc.lock"], "Drops: a", "drops/night")
    assert not commit_beside(repository, ["dvc.lock"], "Drops: a", "drops/night")
    (repository / "dvc.lock").write_text("3")
    assert commit_beside(repository, ["dvc.lock"], "Drops: b", "drops/night")
    assert (
        git(repository, "status", "--porcelain"),
        git(repository, "rev-parse", "HEAD"),
    ) == before
    log = git(repository, "log", "--format=%s", "drops/night").splitlines()
    assert log == ["Drops: b", "Drops: a", "first"]
    assert git(repository, "show", "drops/night:dvc.lock") == "3"
    assert git(repository, "show", "drops/night:other") == "1"


def test_what_git_refuses_is_one_sentence(repository: Path, tmp_path: Path) -> None:
    (repository / "dvc.lock").write_text("2")
    hook = repository / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(VeilsetError, match=r"git commit failed \(not today\)") as caught:
        commit_out(repository, ["dvc.lock"], "x")
    assert "\n" not in str(caught.value)
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    (nowhere / "dvc.lock").write_text("2")
    with pytest.raises(VeilsetError, match="not a git repository"):
        commit_out(nowhere, ["dvc.lock"], "x")
