"""`veilset drop` and `veilset erase` as a user runs them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_run import Run, sentence
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
SAID = ("--licence", "CC BY", "--consent", "form 3", "--by", "Ann Owner", "--settle-seconds", "0")
ID = "0123456789abcdef" * 2


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What a drop needs: keys, settings, git and DVC."""
    for name in ("drops.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "keys").mkdir()
    for path in (REPOSITORY / "keys").glob("*.fingerprint"):
        shutil.copy(path, tmp_path / "keys")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def photos(place: Path, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for number in range(4):
        path = place / "ab"[number % 2] / f"maria{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return place


def test_a_drop_is_added_listed_shown_and_removed(
    run: Run, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = photos(tmp_path_factory.mktemp("home") / "maria")
    code, out, _ = run("drop", "add", place, "--name", "ward", *SAID)
    assert code == 0 and out.startswith("ward: arrived\n") and "veilset drop check" in out
    note = (project / "data/raw/ward.dvc").read_text()
    assert "remote: private" in note and "nfiles: 5" in note
    status = subprocess.run(
        ["git", "status", "--porcelain", "-uall", "data"], cwd=project, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert sorted(status.split()[1::2]) == ["data/drops.jsonl", "data/raw/ward.dvc"]

    code, out, _ = run("drop", "add", place, *SAID)
    assert code == 0 and out.startswith("ward: the same content was added ")

    code, out, _ = run("drop", "list")
    assert out.splitlines()[0] == "digits: written into drops.yaml by hand"
    assert out.splitlines()[1].startswith("ward: arrived, 4 files, added 20")
    code, out, _ = run("drop", "list", "--json")
    listed = json.loads(out)
    assert [one["name"] for one in listed] == ["digits", "ward"]
    assert "maria" not in out

    code, out, _ = run("drop", "show", "ward")
    assert "licence: CC BY" in out and "consent: form 3" in out and f"from: {place}" in out
    code, out, _ = run("drop", "show", "ward", "--json")
    assert json.loads(out)["state"] == "arrived" and "maria" not in out

    code, _, err = run("drop", "approve", "ward", "--by", "Ann Owner")
    assert code == 1 and "'ward' is arrived" in sentence(err)
    code, _, err = run("drop", "retry", "ward")
    assert code == 1 and "'ward' is arrived" in sentence(err)

    code, out, _ = run("drop", "remove", "ward", "--by", "Ann Owner", "--reason", "a mistake")
    assert code == 0 and out.startswith("ward: removed\n")
    assert not (project / "data/raw/ward").exists()
    assert not (project / "data/raw/ward.dvc").exists()
    assert (project / "drops.yaml").read_bytes() == (REPOSITORY / "drops.yaml").read_bytes()
    code, out, _ = run("drop", "show", "ward")
    assert "removed by Ann Owner: a mistake" in out and "from: not known" in out


@pytest.mark.usefixtures("project")
def test_faults_are_one_sentence_and_change_nothing(run: Run, tmp_path: Path) -> None:
    before = (tmp_path / "drops.yaml").read_bytes()
    for words, told in (
        (("drop", "add", "nowhere", *SAID), "cannot be added"),
        (("drop", "add", "keys", *SAID, "--name", "A"), "is not a name"),
        (("drop", "add", "keys", *SAID, "--set", "x"), "key=value"),
        (("drop", "add", "keys", *SAID, "--set", "colour=red"), "colour is unknown"),
        (("drop", "show", "none"), "No drop 'none'"),
        (("drop", "remove", "digits", "--by", "Ann", "--reason", "x"), "left as it is"),
        (("erase", "--by", "Ann", "--reason", "x"), "Name one of --image and --group"),
        (("erase", "--image", ID, "--group", "g", "--by", "A", "--reason", "x"), "Name one of"),
        (("erase", "--image", "maria", "--by", "Ann", "--reason", "x"), "32 hex digits"),
        (("erase", "--image", ID, "--by", " ", "--reason", "x"), "must not be empty"),
    ):
        code, _, err = run(*words)
        assert code == 1 and told in sentence(err), (words, err)
    assert (tmp_path / "drops.yaml").read_bytes() == before
    assert not (tmp_path / "data/drops.jsonl").exists()
    assert list((tmp_path / "data/raw").glob("*")) == []


@pytest.mark.usefixtures("project")
def test_nothing_waits_at_first(run: Run) -> None:
    assert run("drop", "check")[:2] == (0, "No drop waits.\n")


def test_a_person_is_erased_by_the_command(run: Run, project: Path) -> None:
    place = photos(project / "inbox", seed=1)
    rows = ["path,label,group", "a/maria0.png,a,anna", "b/maria1.png,b,berta"]
    rows += ["a/maria2.png,a,anna", "b/maria3.png,b,berta"]
    (place / "t.csv").write_text("\n".join(rows) + "\n")
    run("drop", "add", place, "--table", "t.csv", "--name", "people", *SAID)
    note = (project / "data/raw/people.dvc").read_text()
    code, out, _ = run("erase", "--group", "anna", "--by", "Ann Owner", "--reason", "her wish")
    assert code == 0 and out.startswith("people: 2 images erased")
    left = sorted(path.name for path in (project / "data/raw/people/drop").rglob("*.*"))
    assert left == ["maria1.png", "maria3.png", "t.csv"]
    assert "anna" not in (project / "data/raw/people/drop/t.csv").read_text()
    changed = (project / "data/raw/people.dvc").read_text()
    assert changed != note and "remote: private" in changed and "nfiles: 4" in changed
    code, _, err = run("erase", "--group", "anna", "--by", "Ann Owner", "--reason", "her wish")
    assert code == 1 and "it was erased before" in sentence(err)


def test_a_drop_whose_check_fails_does_not_stop_the_next(run: Run, project: Path) -> None:
    for number, name in enumerate(("first", "second")):
        run("drop", "add", photos(project / name, seed=number + 5), "--name", name, *SAID)
    # There is no pipeline here, so that no stage can run at all.
    code, out, err = run("drop", "check")
    assert code == 1 and "first: ingest@first" in out and "second: ingest@second" in out
    assert "ingest@first" in sentence(err)
