"""Two real remotes: what DVC may bring to the one for receivers (nothing), and what releases do."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from veilset.adapters.dvc_remote import (
    LIST,
    Remote,
    bucket_policy,
    foreign,
    is_sealed,
    open_remote,
    put_release,
    read_list,
    remote_names,
    remove_release,
    seal_remote,
    unprotected_outputs,
    write_list,
)
from veilset.errors import CorruptError, ReleaseError, SettingsError
from veilset.release.bundle import STATEMENT
from veilset.release.history import Listed, ReleaseList, Withdrawn
from veilset.release.signing import SigningKey

# One after the other in one process: they share a project and a server.
pytestmark = pytest.mark.xdist_group("remotes")

RAW = {f"ana-maria-{n}.png": bytes([n, 255 - n]) * 400 + b"face" for n in range(3)}
PIPELINE = """\
stages:
  ingest:
    cmd: mkdir -p data/ingested && cat data/raw/* > data/ingested/set
    deps: [data/raw]
    outs: [{data/ingested: {remote: private}}]
  protect:
    cmd: mkdir -p data/protected && tr 'a-z' 'n-za-m' < data/ingested/set > data/protected/set
    deps: [data/ingested]
    outs: [{data/protected: {remote: private}}]
"""
WAYS = (
    (), ("-r", "shared"), ("-r", "shared", "--all-commits"), ("-r", "shared", "--all-branches"),
    ("-r", "shared", "--all-tags"), ("-r", "shared", "--run-cache"), ("-r", "shared", "stray.dvc"),
    ("-r", "shared", "--all-commits", "--run-cache"),
)  # fmt: skip
KEY = SigningKey(bytes(range(32)))
DAY = date(2026, 3, 1)


@dataclass(frozen=True)
class Project:
    """A project whose raw data were once added without care, and everything private in it."""

    root: Path

    def dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
        return subprocess.run(
            [sys.executable, "-m", "dvc", *arguments], cwd=self.root, env=environment, text=True,
            capture_output=True, check=False,
        )  # fmt: skip

    def know(self, name: str, url: str, **secrets: str) -> None:
        """What `dvc remote add` and `dvc remote modify --local` write."""
        folder = self.root / ".dvc"
        for file, values in (("config", {"url": url}), ("config.local", secrets)):
            with (folder / file).open("a") as config:
                config.write(f"['remote \"{name}\"']\n")
                config.writelines(f"    {key} = {value}\n" for key, value in values.items())

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", *identity, *arguments], cwd=self.root, check=True)

    @property
    def private(self) -> tuple[bytes, ...]:
        """Contents, names and digests that may be in no remote for receivers."""
        files = [*(self.root / "data").rglob("*"), self.root / "stray"]
        contents = [path.read_bytes() for path in files if path.is_file()]
        digests = [kind(raw).hexdigest().encode() for raw in contents
                   for kind in (hashlib.md5, hashlib.sha256)]  # fmt: skip
        split = [digest[:2] + b"/" + digest[2:] for digest in digests]
        return (*contents, *digests, *split, *(name.encode() for name in RAW))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("remotes") / "project")
    (made.root / "data/raw").mkdir(parents=True)
    for name, raw in RAW.items():
        (made.root / "data/raw" / name).write_bytes(raw)
    (made.root / "stray").write_bytes(b"".join(RAW.values()) + b"once more")
    (made.root / "dvc.yaml").write_text(PIPELINE)
    made.git("init", "-q")
    assert made.dvc("init", "-q").returncode == 0
    (made.root / ".dvc/config").write_text("[core]\n    remote = private\n")
    for name in ("private", "shared", "fresh"):
        made.know(name, f"../../{name}")
    for command in (("add", "-q", "stray"), ("repro", "-q")):
        done = made.dvc(*command)
        assert done.returncode == 0, done.stderr
    made.git("add", "-A")
    made.git("commit", "-q", "-m", "All")
    return made


def held(remote: Remote) -> dict[str, bytes]:
    """Every file of a remote by its place, as who reads it finds it."""
    if not remote.fs.exists(remote.path):
        return {}
    return {path: bytes(remote.fs.cat_file(path)) for path in remote.fs.find(remote.path)}


def leaks(project: Project, files: Mapping[str, bytes]) -> list[str]:
    everything = b"\n".join(name.encode() + b"\n" + raw for name, raw in files.items())
    return [word[:40].decode(errors="replace") for word in project.private if word in everything]


@dataclass(frozen=True)
class Bucket:
    """An S3 bucket behind a real HTTP server that checks keys and policies as Amazon's does."""

    url: str
    user: Mapping[str, str]

    def policy(self, text: str | None) -> None:
        client = boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1",
            aws_access_key_id=self.user["AccessKeyId"],
            aws_secret_access_key=self.user["SecretAccessKey"],
        )  # fmt: skip
        if text is None:
            client.delete_bucket_policy(Bucket="receivers")
        else:
            client.put_bucket_policy(Bucket="receivers", Policy=text)


@pytest.fixture(scope="module")
def bucket(project: Project) -> Iterator[Bucket]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    facts = {"endpoint_url": url, "region_name": "us-east-1", "aws_access_key_id": "x",
             "aws_secret_access_key": "y"}  # fmt: skip
    boto3.client("s3", **facts).create_bucket(Bucket="receivers")
    iam = boto3.client("iam", **facts)
    iam.create_user(UserName="owner")
    allow = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    iam.put_user_policy(
        UserName="owner", PolicyName="all",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allow]}),
    )  # fmt: skip
    user = iam.create_access_key(UserName="owner")["AccessKey"]
    # From here on the server holds everybody to their rights.
    requests.post(f"{url}/moto-api/reset-auth", data=b"0", timeout=10).raise_for_status()
    secrets = {
        "endpointurl": url, "region": "us-east-1", "access_key_id": user["AccessKeyId"],
        "secret_access_key": user["SecretAccessKey"],
    }  # fmt: skip
    project.know("s3", "s3://receivers/images", **secrets)
    project.know("none", "s3://no-such-bucket/images", **secrets)
    yield Bucket(url, user)
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, project: Project) -> Iterator[Remote]:
    if request.param == "folder":
        opened = open_remote(project.root, "fresh")
    else:
        request.getfixturevalue("bucket").policy(None)
        opened = open_remote(project.root, "s3")
    yield opened
    if opened.fs.exists(opened.path):
        opened.fs.rm(opened.path, recursive=True)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    (folder / "part_1").mkdir(parents=True)
    (folder / "part_1/train-00000.arrow").write_bytes(b"protected" * 99)
    (folder / STATEMENT).write_bytes(b"signed")
    return folder


def push_in_every_way(project: Project, name: str) -> list[int]:
    codes = []
    for way in WAYS:
        arguments = tuple(name if word == "shared" else word for word in way)
        codes.append(project.dvc("push", *arguments).returncode)
    return codes


@pytest.mark.timeout(300)
def test_a_sealed_folder_gets_nothing_private_however_dvc_is_asked(project: Project) -> None:
    remote = open_remote(project.root, "shared")
    assert not is_sealed(remote)
    assert seal_remote(remote)
    assert is_sealed(remote)
    assert seal_remote(remote), "a second time changes nothing"
    codes = push_in_every_way(project, "shared")
    assert codes[0] == 0, "what is private goes to the private remote"
    assert any(codes), "a stray file is refused"
    assert leaks(project, held(remote)) == []
    assert foreign(remote) == ()
    private = held(open_remote(project.root, "private"))
    assert set(RAW.values()) - set(private.values()) == set(RAW.values()), "raw: no output"
    assert (project.root / "data/ingested/set").read_bytes() in private.values()


@pytest.mark.timeout(300)
def test_a_bucket_with_the_policy_gets_nothing_private(project: Project, bucket: Bucket) -> None:
    remote = open_remote(project.root, "s3")
    bucket.policy(bucket_policy(remote))
    assert not seal_remote(remote)
    codes = push_in_every_way(project, "s3")
    assert codes[0] == 0
    assert any(codes)
    assert leaks(project, held(remote)) == []
    write_list(remote, ReleaseList(), KEY)
    assert read_list(remote, KEY.public) == ReleaseList(), "releases still get there"


@pytest.mark.timeout(120)
def test_without_the_guard_dvc_brings_private_bytes(project: Project, remote: Remote) -> None:
    """What the guard is for; else the tests above would hold of anything."""
    project.dvc("push", "-r", remote.name, "--run-cache")
    assert leaks(project, held(remote))
    assert foreign(remote)
    assert project.dvc("push", "-r", remote.name, "stray.dvc").returncode == 0
    with pytest.raises(ReleaseError, match="pushed there by DVC"):
        put_release(remote, project.root, "digits-plain-0")


def test_outputs_that_dvc_would_send_are_named(project: Project, tmp_path: Path) -> None:
    assert unprotected_outputs(project.root) == ("stray.dvc: stray",)
    repository = Path(__file__).parents[2]
    assert unprotected_outputs(repository) == ()
    for where, line in {
        "a/dvc.yaml": "stages: {s: {outs: [x, {y: {remote: private}}, {z: {cache: false}}]}}",
        "b/dvc.yaml": "stages: {s: {foreach: [1], do: {outs: [{w: {persist: true}}]}}}",
        "c/dvc.yaml": "stages: {s: {matrix: {n: [1]}, metrics: [m], plots: [{p: {push: false}}]}}",
        ".hidden/dvc.yaml": "stages: {s: {outs: [q]}}",
    }.items():
        (tmp_path / where).parent.mkdir(parents=True)
        (tmp_path / where).write_text(line)
    assert unprotected_outputs(tmp_path) == ("a/dvc.yaml: x", "b/dvc.yaml: w", "c/dvc.yaml: m")


def test_a_release_is_put_listed_and_taken_away(remote: Remote, release: Path) -> None:
    told: list[tuple[int, int]] = []
    put_release(remote, release, "digits-x-0", lambda done, of: told.append((done, of)))
    there = {Path(path).name: raw for path, raw in held(remote).items()}
    assert there["train-00000.arrow"] == b"protected" * 99
    assert there[STATEMENT] == b"signed"
    assert told[-1] == (897, 897)
    assert foreign(remote) == ()
    with pytest.raises(ReleaseError, match="none is ever replaced"):
        put_release(remote, release, "digits-x-0")
    one = Listed(name="digits-x-0", root="a" * 64, released=DAY)
    write_list(remote, read_list(remote, KEY.public).with_release(one), KEY)
    assert read_list(remote, KEY.public).standing == (one,)
    assert remove_release(remote, "digits-x-0")
    assert not remove_release(remote, "digits-x-0")
    gone = Withdrawn(name=one.name, root=one.root, withdrawn=DAY, reason="A mistake.")
    write_list(remote, read_list(remote, KEY.public).with_withdrawal(gone), KEY)
    assert read_list(remote, KEY.public).withdrawal_of(one.root) == gone
    assert not any("digits-x-0" in path for path in held(remote))


def test_half_a_release_is_never_whole(remote: Remote, release: Path) -> None:
    """What a broken line leaves has no statement, and the next attempt completes it."""

    def broken(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put_release(remote, release, "digits-x-0", broken)
    assert not any(path.endswith(STATEMENT) for path in held(remote))
    put_release(remote, release, "digits-x-0")
    assert any(path.endswith(STATEMENT) for path in held(remote))


def test_a_list_that_was_altered_or_signed_by_another_is_refused(remote: Remote) -> None:
    write_list(remote, ReleaseList(), SigningKey(bytes(32)))
    with pytest.raises(CorruptError, match="as its signer"):
        read_list(remote, KEY.public)
    raw = bytearray(ReleaseList().sealed(KEY))
    raw[len(raw) // 3] ^= 1
    remote.fs.pipe_file(remote.at(LIST), bytes(raw))
    with pytest.raises(CorruptError):
        read_list(remote, KEY.public)


def test_remotes_that_cannot_be_used_are_told_in_a_sentence(
    project: Project, bucket: Bucket, release: Path, tmp_path: Path
) -> None:
    assert {"private", "shared"} <= set(remote_names(project.root))
    with pytest.raises(SettingsError, match="knows no remote 'nowhere'"):
        open_remote(project.root, "nowhere")
    with pytest.raises(SettingsError, match="no S3 bucket"):
        bucket_policy(open_remote(project.root, "shared"))
    (tmp_path / "file").write_text("in the way")
    project.know("blocked", str(tmp_path / "file/inner"))
    with pytest.raises(ReleaseError, match=r"blocked .*cannot be used"):
        put_release(open_remote(project.root, "blocked"), release, "digits-x-0")
    with pytest.raises(ReleaseError, match="cannot be used"):
        put_release(open_remote(project.root, "none"), release, "digits-x-0")


def test_remotes_are_known_however_long_their_places_are(tmp_path: Path) -> None:
    root = tmp_path / ("a place with a long name, " * 6) / "project"
    root.mkdir(parents=True)
    project = Project(root)
    project.dvc("init", "-q", "--no-scm")
    assert remote_names(root) == ()
    for name in ("private", "far.away"):
        assert project.dvc("remote", "add", "-d", "-f", name, f"remotes/{name}").returncode == 0
    assert remote_names(root) == ("private", "far.away")
