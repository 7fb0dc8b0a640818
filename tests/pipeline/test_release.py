"""`veilset release` and `veilset verify` on the real pipeline."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_project import SmallProject, copy_project
from test_repro import _link

from veilset.data.shards import ImageSet

TERMS = ("--licence", "CC BY 4.0", "--publisher", "A hospital")
WAIVER = ("--waive", "An exercise with handwritten digits, which show nobody.", "--by", "Ada Byron")


@pytest.mark.xdist_group("pipeline")
@pytest.mark.timeout(600)
def test_a_release_is_refused_with_every_reason(reproduced: SmallProject, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(reproduced.root, copy, symlinks=True, copy_function=_link)
    project = SmallProject(copy)
    asked = ("release", "visualmixer", "--to", "out", *TERMS)
    refused = project.veilset(*asked, ok=False)
    assert refused.returncode == 1 and "signing key" in refused.stderr
    project.veilset("key", "new", "signing")
    assert "signing.public" in project.veilset("key", "new", "signing", ok=False).stderr
    for more in ((), WAIVER):
        refused = project.veilset(*asked, *more, ok=False)
        assert refused.returncode == 1
        assert "public demo key" in refused.stdout, "no waiver outweighs the demo key"
        assert ("verdict on visualmixer" in refused.stdout) == (not more)
        assert "reasons speak against it" in refused.stderr
    assert "dvc.lock differ from what git has" in refused.stdout
    half = project.veilset(*asked, *WAIVER[:2], ok=False)
    assert "both --waive and --by" in half.stderr
    assert "plain" in project.veilset("release", "plain", "--to", "out", *TERMS, ok=False).stdout
    assert not (copy / "out").exists()
    events = json.loads(project.veilset("releases", "--json").stdout)
    assert [(one["event"], one["scheme"]) for one in events] == [
        ("refused", "visualmixer"), ("refused", "visualmixer"), ("refused", "plain"),
    ]  # fmt: skip
    assert any("public demo key" in reason for reason in events[0]["reasons"])
    assert events[1]["waiver"]["name"] == "Ada Byron"
    assert (
        "There is no release"
        in project.veilset("withdraw", "x", "--reason", "y", "--by", "z", ok=False).stderr
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_release_is_made_checked_and_tells_nothing_raw(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    project = copy_project(tmp_path_factory.mktemp("release"))
    for kind in ("protection", "ids", "signing"):
        replace = () if kind == "signing" else ("--replace",)
        project.veilset("key", "new", kind, *replace)
    project.repro()
    project.commit()
    out = project.root / "out"
    asked = ("release", "visualmixer", "--to", "out", *TERMS)
    assert "verdict on visualmixer" in project.veilset(*asked, ok=False).stdout
    said = project.veilset(*asked, *WAIVER).stdout
    assert "Released visualmixer into out" in said
    assert "never replaced" in project.veilset(*asked, *WAIVER, ok=False).stderr
    _released_to_a_remote_and_withdrawn(project, tmp_path_factory.mktemp("away"))
    # The receiver has the folder and the public key, and nothing else.
    away = tmp_path_factory.mktemp("receiver")
    shutil.copytree(out, away / "data")
    shutil.copy(project.root / "keys/signing.public", away)
    (away / "elsewhere").mkdir()
    receiver = SmallProject(away)
    check = ("verify", "data", "--public-key", "signing.public")
    assert "signed" in receiver.veilset(*check).stdout
    assert "--public-key" in receiver.veilset("verify", "data", ok=False).stderr
    shard = next((away / "data/part_1").glob("*.arrow"))
    assert shard.parent.name == "part_1", "a drop's own name stays with its owner"
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    broken = receiver.veilset(*check, ok=False)
    assert broken.returncode == 1 and shard.name in broken.stdout
    # Nothing of the originals is in it: no id, root or file name, and no picture.
    private = ImageSet.open(project.root / "data/ingested/digits")
    everything = b"".join(path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file())
    ids = [row.tobytes() for split in private.splits for row in private.ids(split)]
    assert not any(one in everything or one.hex().encode() in everything for one in ids)
    assert private.manifest.root.encode() not in everything
    images = private.images("train")
    shown = [image for image in images if np.unique(image).size > 2]
    assert not any(image.tobytes() in everything for image in shown)
    assert project.root.name.encode() not in everything


def _released_to_a_remote_and_withdrawn(project: SmallProject, away: Path) -> None:
    """The same release on the remote `shared`: fetched, checked, withdrawn."""
    shared = project.root / "remotes/shared"
    said = project.veilset("release", "visualmixer", "--to", "shared", *TERMS, *WAIVER).stdout
    assert "Released visualmixer to" in said
    # DVC tells of the run cache that it could not bring, and ends with 0 all the same.
    pushed = project.run("dvc", "push", "-r", "shared", "--run-cache", ok=False)
    assert "Not a directory" in pushed.stdout + pushed.stderr
    (there,) = (shared / "releases").iterdir()
    assert sorted(path.name for path in shared.iterdir()) == [
        "files", "releases", "releases.dsse.json", "runs",
    ]  # fmt: skip
    copied = project.root / "reports/releases" / f"{there.name}.dsse.json"
    assert copied.read_bytes() == (there / "statement.dsse.json").read_bytes()
    assert _aliases(project) == {"approved", "candidate"}
    # What a receiver does: copy the folder and the list, check both by the key.
    shutil.copytree(there, away / "data")
    shutil.copy(shared / "releases.dsse.json", away / "list.json")
    shutil.copy(project.root / "keys/signing.public", away)
    receiver = SmallProject(away)
    check = ("verify", "data", "--public-key", "signing.public", "--list", "list.json")
    assert "signed" in receiver.veilset(*check).stdout
    told = ("--reason", "A person asked to be forgotten.", "--by", "Ada Byron")
    first = project.veilset("withdraw", there.name, *told).stdout
    assert "on record" in first and "is not touched" in first and "Removed from" in first
    assert "Nothing was left to remove" in project.veilset("withdraw", there.name, *told).stdout
    assert not there.exists()
    assert "Receivers" not in receiver.veilset(*check).stdout, "an old list knows nothing of it"
    shutil.copy(shared / "releases.dsse.json", away / "list.json")
    withdrawn = receiver.veilset(*check, ok=False)
    assert withdrawn.returncode == 1 and "asked to be forgotten" in withdrawn.stderr
    events = json.loads(project.veilset("releases", "--json").stdout)
    assert [one["event"] for one in events[-3:]] == ["released", "released", "withdrawn"]
    assert _aliases(project) == {"candidate"}
    assert events[-1]["by"] == "Ada Byron" and events[-3]["to"] == "out"


def _aliases(project: SmallProject) -> set[str]:
    """Those of the model that learnt from the release, in MLflow's registry."""
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{project.root / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=address, registry_uri=address)
    return set(client.get_registered_model("digits.visualmixer.small_cnn").aliases)
