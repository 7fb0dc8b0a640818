"""What is known of a version after it was made: verdicts, releases, withdrawals, in the store."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from veilset.adapters.audit_standing import EVIDENCE
from veilset.adapters.mlflow_audit import check, sync
from veilset.data.manifest import Manifest
from veilset.errors import CorruptError
from veilset.release.history import RELEASES, STATEMENTS, ReleaseEvent, enter_release, now

# They share a project, and the first of them releases and withdraws.
pytestmark = pytest.mark.xdist_group("standing")

NAME = "toy-noise-000000000000"


def client(address: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=address, registry_uri=address)


def store_of(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow.db'}"


def runs_where(address: str, query: str) -> list[str]:
    one = client(address)
    experiment = one.get_experiment_by_name("toy").experiment_id
    found = one.search_runs([experiment], filter_string=query)
    return sorted(run.data.tags["veilset.stage_name"] for run in found)


def event(root: Path, kind: str) -> ReleaseEvent:
    manifest = Manifest.load(root / "data/protected/noise/first")
    return ReleaseEvent(
        event=kind, at=now(), dataset="toy", scheme="noise", receiver="outside_trainer", name=NAME,
        root="a" * 64, sets=(manifest.root,), to="shared", statement="b" * 64,
        reasons=("A mistake.",) if kind == "withdrawn" else (),
    )  # fmt: skip


@pytest.fixture(scope="module")
def project(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(original, tmp_path_factory.mktemp("now") / "p", symlinks=True))
    sync(root)
    return root


def test_versions_are_found_by_how_they_stand(project: Path) -> None:
    address = store_of(project)
    trained = "train@noise-tiny-0"
    passing = "tags.`veilset.now.verdict.outside_trainer` = 'pass'"
    assert runs_where(address, passing) == ["protect@noise-first", trained]
    assert runs_where(address, "tags.`veilset.now.check` = 'warning'") == [
        "protect@noise-first", "protect@plain-first",
    ]  # fmt: skip
    assert runs_where(address, "tags.`veilset.now.released` = 'standing'") == []
    one = client(address)
    assert "approved" not in one.get_registered_model("toy.noise.tiny").aliases
    page = one.get_model_version_by_alias("toy.noise.tiny", "candidate")
    assert page.description.startswith("Learnt from toy/noise/train at ")
    assert "outside trainer: pass" in page.description
    assert page.description.endswith("Released: never.")

    enter_release(project / RELEASES, event(project, "released"))
    (project / STATEMENTS).mkdir(parents=True)
    (project / STATEMENTS / f"{NAME}.dsse.json").write_text("signed")
    told = {one.stage for one in check(project)}
    assert told == {"protect@noise-first", trained}, "the store does not know of it yet"
    sync(project)
    assert check(project) == ()
    assert f"releases/{NAME}.dsse.json" in evidence_of(project)
    out = runs_where(address, "tags.`veilset.now.released` = 'standing'")
    assert out == ["protect@noise-first", trained]
    version = one.get_model_version_by_alias("toy.noise.tiny", "approved")
    assert version.description.endswith("Released: standing.")
    assert version.tags["veilset.now.released"] == "standing"

    enter_release(project / RELEASES, event(project, "withdrawn"))
    sync(project)
    gone = runs_where(address, "tags.`veilset.now.released` = 'withdrawn'")
    assert gone == ["protect@noise-first", trained]
    assert "approved" not in one.get_registered_model("toy.noise.tiny").aliases
    assert check(project) == ()


def evidence_of(project: Path) -> dict[str, Path]:
    one = client(store_of(project))
    experiment = one.get_experiment_by_name("toy").experiment_id
    (run,) = one.search_runs(
        [experiment], filter_string="tags.`veilset.stage_name` = 'protect@noise-first'"
    )
    folder = Path(run.info.artifact_uri.removeprefix("file://")) / EVIDENCE
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def test_the_evidence_lies_beside_the_version(project: Path) -> None:
    held = evidence_of(project)
    assert set(held) >= {
        "attacks/results.json", "attacks/examples.png", "check/results.json",
        "check/data_docs/index.html",
    }  # fmt: skip
    results = project / "data/attacks/noise/results.json"
    assert held["attacks/results.json"].read_bytes() == results.read_bytes()
    assert "report.html" not in held, "it may show originals"
    sync(project, log_originals=True)
    assert check(project, log_originals=True) == ()
    page = project / "reports/index.html"
    assert evidence_of(project)["report.html"].read_bytes() == page.read_bytes()
    sync(project)


def test_a_list_of_releases_that_was_altered_is_told(project: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(project, tmp_path / "p", symlinks=True))
    journal = copy / RELEASES
    enter_release(journal, event(copy, "released"))
    journal.write_text(journal.read_text().replace("outside_trainer", "public_release", 1))
    with pytest.raises(CorruptError, match=r"releases\.jsonl, line"):
        sync(copy)


# ------------------------------------------------------------------------------ PostgreSQL


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A real server of its own; its address for MLflow."""
    pytest.importorskip("psycopg2")
    found = shutil.which("pg_ctl") or next(
        map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))), None
    )
    if found is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    # Not below pytest's folder, which is closed to other users.
    tools, data = Path(found).resolve().parent, Path(tempfile.mkdtemp(prefix="veilset-test-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        # The server refuses to run as root.
        try:
            user = {"user": pwd.getpwnam("postgres").pw_uid}
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user `postgres`")
        os.chown(data, user["user"], -1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(tool: str, *arguments: str) -> None:
        done = subprocess.run(
            [tools / tool, *arguments], cwd=data, text=True, check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    cluster = str(data / "cluster")
    run("initdb", "-D", cluster, "-U", "veilset", "-A", "trust", "--no-sync", "-E", "UTF8")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    run("pg_ctl", "-D", cluster, "-o", options, "-l", str(data / "log"), "-w", "start")
    yield f"postgresql+psycopg2://veilset@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-D", cluster, "-m", "immediate", "stop")
    shutil.rmtree(data)


@pytest.mark.timeout(600)
def test_postgresql_holds_the_record_and_several_writers_at_once(
    postgresql: str, project: Path, tmp_path: Path
) -> None:
    first = sync(project, postgresql)
    assert len(first.created) > 5
    assert check(project, postgresql) == ()
    assert sync(project, postgresql).created == ()
    # Three clones of the project write at once: their locks are their own, the store is one.
    code = (
        "import sys; from pathlib import Path; from veilset.adapters.mlflow_audit import sync;"
        "sync(Path(sys.argv[1]), sys.argv[2])"
    )
    writers = []
    for number in range(3):
        copy = Path(shutil.copytree(project, tmp_path / str(number), symlinks=True))
        (copy / "params.yaml").write_text(
            (copy / "params.yaml").read_text().replace("name: toy", f"name: toy{number}")
        )
        writers.append(subprocess.Popen([sys.executable, "-c", code, str(copy), postgresql]))
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0, 0]
    for number in range(3):
        assert check(tmp_path / str(number), postgresql) == ()
    assert check(project, postgresql) == ()
