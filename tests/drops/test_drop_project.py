"""A drop in a real project: added, protected, cloned, erased from, purged and removed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from drop_places import tree
from small_project import SmallProject, copy_project
from test_drop_decision import digit_folder

from veilset.adapters.dvc import file_md5
from veilset.adapters.dvc_drops import purge_drop
from veilset.files import read_sealed_parquet, read_table

pytestmark = pytest.mark.slow

SCHEMES = ("plain", "pixel_block_mixing")
SAID = ("--licence", "CC BY", "--consent", "form 3", "--by", "Ann Owner")


def git(root: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def commit(project: SmallProject, words: str) -> None:
    git(project.root, "add", "-A")
    git(project.root, "commit", "-q", "-m", words)


def protect(project: SmallProject, *drops: str) -> list[str]:
    return project.repro(*(f"protect@{scheme}-{drop}" for scheme in SCHEMES for drop in drops))


def holding(top: Path, *needles: bytes) -> list[str]:
    return [name for name, content in tree(top).items() if any(one in content for one in needles)]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    root = tmp_path_factory.mktemp("drops") / "project"
    root.mkdir()
    project = copy_project(root)
    shares = {"train": 1, "validation": 0, "test": 0, "auxiliary": 0, "gallery": 0}
    project.change(
        "params.yaml", schemes=list(SCHEMES), ingest={"size": 8, "channels": 1, "shares": shares}
    )
    protect(project, "digits")
    commit(project, "digits")
    return project


def test_a_drop_from_its_arrival_to_its_removal(  # noqa: PLR0915 - one life, told once
    project: SmallProject, tmp_path: Path
) -> None:
    root = project.root  # the remotes are folders in it
    place = digit_folder(tmp_path / "maria", first=1)

    said = project.veilset("drop", "add", str(place), "--name", "new", *SAID)
    assert "new: arrived" in said.stdout
    assert "protect@plain-new" not in project.run("dvc", "stage", "list", "--all").stdout
    assert "new: accepted" in project.veilset("drop", "check").stdout
    ran = protect(project, "digits", "new")
    assert sorted(ran) == ["check@new", *sorted(f"protect@{scheme}-new" for scheme in SCHEMES)]
    commit(project, "new")
    git_files = git(root, "ls-files", "data").split()
    assert "data/raw/new.dvc" in git_files and "data/drops.jsonl" in git_files
    assert not [name for name in git_files if name.endswith(".png") or "origins" in name]
    assert "remote: private" in (root / "data/raw/new.dvc").read_text()

    project.run("dvc", "push", "-q", "-r", "private")
    clone = SmallProject(root.parent / "clone")
    git(root.parent, "clone", "-q", str(root), str(clone.root))
    private = str(root / "remotes/private")
    clone.run("dvc", "remote", "modify", "--local", "private", "url", private)
    clone.run("dvc", "pull", "-q", "data/raw/new.dvc")
    assert tree(clone.root / "data/raw/new/drop") == tree(place)

    index = read_table(root / "data/ingested/new/index.parquet")
    links = root / "data/provenance/pixel_block_mixing/new/links-train.parquet"
    donors = read_sealed_parquet(links)["donors"].to_pylist()
    row = index[index["id"] == donors[0][:16].hex()].iloc[0]
    raw = (root / "data/raw/new/drop" / row["name"]).read_bytes()
    trace = (raw, row["id"].encode(), bytes.fromhex(row["id"]), row["name"].encode())
    assert any(name.startswith("remotes/") for name in holding(root, *trace))
    old = file_md5(root / "data/raw/new/drop" / row["name"])
    erase = ("erase", "--image", row["id"], "--by", "Ann Owner", "--reason", "withdrawn", "--purge")
    said = project.veilset(*erase)
    assert "new: 1 images erased" in said.stdout
    assert "other images had received blocks" in said.stdout
    assert "Purged from the remote 'private'" in said.stdout
    assert "Not reached: git's history" in said.stdout
    assert holding(root, *trace) == []
    assert not [name for name in tree(root) if old[2:] in name]

    ran = protect(project, "digits", "new")
    assert sorted(ran) == ["check@new", "ingest@new", *(f"protect@{s}-new" for s in SCHEMES[::-1])]
    assert holding(root, *trace) == []
    assert len(read_table(root / "data/ingested/new/index.parquet")) == len(index) - 1
    commit(project, "erased")
    project.run("dvc", "push", "-q", "-r", "private")
    shown = json.loads(project.veilset("drop", "show", "new", "--json").stdout)
    assert (shown["state"], shown["erased"]) == ("accepted", 1)

    again = project.veilset("drop", "add", str(place), *SAID)
    assert "new: the same content was added" in again.stdout
    assert tree(root / "data/raw/new/drop").keys() == tree(place).keys() - {row["name"]}

    files = [path.read_bytes() for path in (root / "data/raw/new/drop").rglob("*.png")]
    said = project.veilset("drop", "remove", "new", "--by", "Ann", "--reason", "over", "--purge")
    assert "new: removed" in said.stdout
    assert "new" not in (root / "dvc.lock").read_text()
    assert not (root / "data/raw/new.dvc").exists()
    assert holding(root, *files) == []
    assert protect(project, "digits") == []
    commit(project, "removed")
    assert project.run("dvc", "status", "-q", ok=False).returncode in (0, 1)


def test_a_purge_takes_what_an_older_drop_shares_and_leaves_what_is_in_use(
    project: SmallProject, tmp_path: Path
) -> None:
    root = project.root
    # The first drop held the same picture, and was removed without a purge.
    place = digit_folder(tmp_path / "p", first=2)
    shared = sorted(place.rglob("*.png"))[0]
    content = shared.read_bytes()
    project.veilset("drop", "add", str(place), "--name", "older", *SAID)
    commit(project, "older")
    project.veilset("drop", "remove", "older", "--by", "Ann", "--reason", "over")
    commit(project, "older removed")
    other = digit_folder(tmp_path / "q", first=3)
    (other / "0" / "same.png").write_bytes(content)
    project.veilset("drop", "add", str(other), "--name", "later", *SAID)
    commit(project, "later")
    assert holding(root, content)
    (root / "data/raw/later/drop/0/same.png").unlink()
    project.run("dvc", "add", "-q", "data/raw/later")
    before = set(tree(root / ".dvc/cache/files"))
    purged = purge_drop(root, ["later"])
    assert holding(root, content) == []
    gone = before - set(tree(root / ".dvc/cache/files"))
    assert purged.objects["the local cache"] == len(gone) >= 2
    assert not [one for one in purged.unreached if "cannot be reached" in one]
    # The raw data of the drop as it is now, and all of the digits, can still be checked out.
    for path in ("data/raw/later", "data/ingested/digits"):
        subprocess.run(["rm", "-rf", str(root / path)], check=True)
    project.run("dvc", "checkout", "-q", "data/raw/later.dvc", "ingest@digits")
    assert len(list((root / "data/raw/later/drop").rglob("*.png"))) == 60
    assert (root / "data/ingested/digits/manifest.json").is_file()


def test_a_bad_drop_is_refused_and_the_next_is_taken(project: SmallProject, tmp_path: Path) -> None:
    bad = tmp_path / "bad/cat"
    bad.mkdir(parents=True)
    (bad / "maria.png").write_text("no picture")
    good = digit_folder(tmp_path / "good", first=4)
    for place, name in ((bad.parent, "bad"), (good, "good")):
        project.veilset("drop", "add", str(place), "--name", name, *SAID)
    said = project.veilset("drop", "check").stdout
    assert "bad: refused: none of its images can be used" in said
    assert "good: accepted" in said
    journal = (project.root / "data/drops.jsonl").read_text()
    assert "maria" not in journal and "none of its images can be used" in journal
    assert project.read("drops.yaml")["names"][-1] == "good"
    assert "bad" not in project.read("drops.yaml")["drops"]
    # What was decided stays, and nothing is decided twice.
    assert "No drop waits." in project.veilset("drop", "check").stdout
    assert (project.root / "data/drops.jsonl").read_text() == journal


def test_a_remote_out_of_reach_is_told(project: SmallProject) -> None:
    path = project.root / ".dvc/config"
    before = path.read_text()
    path.write_text(before + "['remote \"away\"']\n    url = ssh://nowhere.invalid/place\n")
    try:
        command = [sys.executable, "-c", (
            "from pathlib import Path; from veilset.adapters.dvc_drops import purge_drop; "
            "print('\\n'.join(purge_drop(Path(), ['nobody']).unreached))"
        )]  # fmt: skip
        done = subprocess.run(
            command, cwd=project.root, check=True, capture_output=True, text=True, timeout=120
        )
        assert "the remote 'away', which cannot be reached" in done.stdout
        assert "releases that were handed out" in done.stdout
    finally:
        path.write_text(before)
