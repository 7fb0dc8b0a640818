"""Protecting a set: the same bytes however it is run, whole or not at all, nothing given away."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from veilset.data.manifest import Manifest
from veilset.data.shards import ImageSet, write_set
from veilset.errors import ProtectionError
from veilset.keys import Key
from veilset.params import Params
from veilset.schemes import protect
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.fitted import Fitted, Lessons
from veilset.schemes.protect import protect_set
from veilset.schemes.randomness import Stream
from veilset.schemes.registry import make_scheme, scheme_names
from veilset.types import Ids, Images, Labels

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
COUNTS = {"train": 90, "validation": 30, "test": 20, "auxiliary": 12, "gallery": 8}
SMALL = 6_000  # bytes of pixels a shard: 20 images of 10 x 10 x 3


def ingested(
    folder: Path, seed: int = 0, shuffle: bool = False, shard_bytes: int = 5_000
) -> ImageSet:
    rng = np.random.default_rng(seed)
    parts = {}
    for split, count in COUNTS.items():
        ids = rng.integers(0, 256, (count, 16), dtype=np.uint8)
        images = rng.integers(0, 256, (count, 10, 10, 3), dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.int64)
        order = np.random.default_rng(1).permutation(count) if shuffle else np.arange(count)
        group = np.array([f"g{i}" for i in range(count)], dtype=object)
        parts[split] = (ids[order], labels[order], images[order], {"group": group[order]})
    write_set(
        folder, kind="ingested", dataset="toy", classes=("a", "b", "c"), parts=parts,
        shard_bytes=shard_bytes,
    )  # fmt: skip
    return ImageSet.open(folder)


@pytest.fixture(autouse=True)
def processes_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """These sets are small: without this no scheme that learnt would get a second process."""
    monkeypatch.setattr(protect, "WORKER_BYTES", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return ingested(tmp_path_factory.mktemp("source") / "toy")


def run(source: ImageSet, root: Path, name: str = "visualmixer", **more: Any) -> Manifest:
    scheme = more.pop("scheme", None) or make_scheme(name, {}, "test")
    key, links = more.pop("key", KEY), more.pop("links", root / "links")
    values = {"dataset": "toy", "shard_bytes": SMALL, **more}
    return protect_set(source, scheme, key, root / "out", links, **values)


def bytes_of(*folders: Path) -> dict[str, str]:
    return {
        f"{folder.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(folder.iterdir())
    }


def everything(root: Path) -> dict[str, str]:
    return bytes_of(root / "out", root / "links")


# ------------------------------------------------------------------------------ what comes out


@pytest.mark.parametrize("name", ["plain", "pixel_block_mixing", "visualmixer"])
def test_each_image_is_protected_as_by_the_scheme_itself(
    source: ImageSet, tmp_path: Path, name: str
) -> None:
    manifest = run(source, tmp_path, name)
    made, scheme = ImageSet.open(tmp_path / "out"), make_scheme(name, {}, "test")
    made.verify()
    assert made.manifest == manifest
    expected_splits = {"train", "validation"} | (
        {"test"} if scheme.declares.protects_queries else set()
    )
    assert set(made.splits) == expected_splits
    for split in made.splits:
        ids = source.ids(split)
        published = scheme.stream(KEY).published_ids(ids)
        order = np.lexsort(published.T[::-1])
        whole = scheme.protect(
            source.images(split), source.labels(split), ids, KEY, source.pool(split)
        )
        assert (made.ids(split) == published[order]).all()
        assert (made.labels(split) == source.labels(split)[order]).all()
        assert (made.images(split) == whole.images[order]).all()
        links = pq.read_table(tmp_path / "links" / f"links-{split}.parquet")
        assert links["id"].to_pylist() == [row.tobytes().hex() for row in ids[order]]
        assert links["published_id"].to_pylist() == [r.tobytes().hex() for r in published[order]]
        for column, values in whole.private.items():
            assert links[column].to_pylist() == [row.tobytes() for row in values[order]]


def test_nothing_published_gives_the_source_away(source: ImageSet, tmp_path: Path) -> None:
    run(source, tmp_path)
    secrets = [source.manifest.root.encode(), KEY.secret.hex().encode(), KEY.secret]
    secrets += [shard.sha256.encode() for shard in source.manifest.shards]
    for split in source.splits:
        for row in source.ids(split):
            secrets += [row.tobytes(), row.tobytes().hex().encode()]
    for path in (tmp_path / "out").iterdir():
        data = path.read_bytes()
        assert not [secret for secret in secrets if secret in data], path.name
        assert b"group" not in data


def test_releases_under_two_keys_or_settings_share_no_id(source: ImageSet, tmp_path: Path) -> None:
    run(source, tmp_path / "a")
    run(source, tmp_path / "b", key=OTHER)
    run(source, tmp_path / "c", scheme=make_scheme("visualmixer", {"n": 4}, "test"))
    made = [ImageSet.open(tmp_path / name / "out") for name in "abc"]
    ids = [set(map(bytes, one.ids("train"))) for one in made]
    assert not ids[0] & ids[1] | ids[0] & ids[2] | ids[1] & ids[2]
    assert len({one.manifest.source for one in made}) == 3
    assert made[0].manifest.key_fingerprint != made[1].manifest.key_fingerprint


def test_the_manifest_says_what_was_done(source: ImageSet, tmp_path: Path) -> None:
    manifest = run(source, tmp_path)
    scheme = make_scheme("visualmixer", {}, "test")
    assert manifest.kind == "protected"
    assert manifest.scheme == json.loads(json.dumps(scheme.record()))
    assert manifest.key_fingerprint == KEY.fingerprint
    assert manifest.source == scheme.stream(KEY).digest("source", source.manifest.root.encode())
    assert manifest.classes == ("a", "b", "c")
    assert manifest.splits == {"train": 90, "validation": 30, "test": 20}
    assert manifest.columns == {}


def test_links_are_for_their_owner_alone(source: ImageSet, tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        run(source, tmp_path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "links").stat().st_mode) == 0o700
    for path in (tmp_path / "links").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.name.startswith("links-")


def test_links_are_not_needed(source: ImageSet, tmp_path: Path) -> None:
    run(source, tmp_path / "with")
    run(source, tmp_path / "without", links=None)
    assert [p.name for p in (tmp_path / "without").iterdir()] == ["out"]
    assert bytes_of(tmp_path / "with" / "out") == bytes_of(tmp_path / "without" / "out")


class Half(Scheme[Params]):
    """Publishes something beside its images."""

    name, title, version, Parameters = "half", "Half", 1, Params
    declares = Declaration(
        keyed=False, reversible=False, guarantee=None, protects_queries=True, uses_labels=False,
        provenance="ours", source="test",
    )  # fmt: skip

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, ids, stream, pool
        mean = images.mean(axis=(1, 2, 3))
        return Protected(images // 2, side={"mask": images[:, :2, :2, 0] > 9, "mean": mean})


def test_side_information_is_published_row_by_row(source: ImageSet, tmp_path: Path) -> None:
    manifest = run(source, tmp_path, scheme=Half(), batch_size=7)
    assert manifest.columns == {"mask": "bool[2,2]", "mean": "float64"}
    made = ImageSet.open(tmp_path / "out")
    published = Half().stream(KEY).published_ids(source.ids("train"))
    order = np.lexsort(published.T[::-1])
    plain = source.images("train")[order]
    assert (made.column("train", "mean") == plain.mean(axis=(1, 2, 3))).all()
    assert (made.column("train", "mask") == (plain[:, :2, :2, 0] > 9)).all()


# ------------------------------------------------------------------------------ the same bytes


@pytest.mark.parametrize("name", ["pixel_block_mixing", "visualmixer"])
def test_bytes_are_equal_for_any_batch_size_workers_and_order_of_input(
    source: ImageSet, tmp_path: Path, name: str
) -> None:
    run(source, tmp_path / "one", name)
    first = everything(tmp_path / "one")
    for number, batch_size in enumerate((1, 17, 512)):
        run(source, tmp_path / f"b{number}", name, batch_size=batch_size)
        assert everything(tmp_path / f"b{number}") == first
    run(source, tmp_path / "four", name, workers=4, batch_size=9)
    assert everything(tmp_path / "four") == first
    # Rows handed in in another order are stored in the same one; other shards hold the same rows.
    other = ingested(tmp_path / "other" / "toy", shuffle=True)
    assert other.manifest.root == source.manifest.root
    run(other, tmp_path / "shuffled", name)
    assert everything(tmp_path / "shuffled") == first


@pytest.mark.parametrize("workers", [2, 3])
def test_bytes_are_equal_for_any_number_of_processes(
    source: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    seen: list[int] = []
    scheme = masks()
    run(source, tmp_path / "one", scheme=scheme)
    with monkeypatch.context() as patched:
        patched.setattr(protect, "protect_shard", stop)  # nothing is made in this process
        run(source, tmp_path / "more", scheme=scheme, workers=workers, progress=seen.append)
    assert everything(tmp_path / "more") == everything(tmp_path / "one")
    assert sum(seen) == 140


def masks() -> Scheme[Any]:
    """A scheme that learnt, without a network: half of the patches, drawn at random."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 10, 10, 3), dtype=np.uint8), np.arange(12) % 3
    plain = make_scheme("mask_desensitization", {"selection": "random", "patch_px": 4}, "test")
    return plain.with_fitted(plain.fit(Lessons(images, labels, images, labels, 3)))


def test_one_process_is_enough_for_few_images_of_a_scheme_that_learnt(
    source: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protect, "_in_processes", stop)
    with pytest.raises(StopError):
        run(source, tmp_path, scheme=masks(), workers=2)
    monkeypatch.setattr(protect, "WORKER_BYTES", 140 * 300 + 1)
    run(source, tmp_path, scheme=masks(), workers=2)


def test_bytes_of_pixels_do_not_depend_on_how_the_source_was_cut(
    source: ImageSet, tmp_path: Path
) -> None:
    run(source, tmp_path / "one", "pixel_block_mixing")
    whole = ingested(tmp_path / "whole" / "toy", shard_bytes=1 << 20)
    run(whole, tmp_path / "two", "pixel_block_mixing")
    one, two = everything(tmp_path / "one"), everything(tmp_path / "two")
    assert one.pop("out/manifest.json") != two.pop("out/manifest.json")  # another source
    assert one == two


def test_a_second_run_replaces_the_first_whole(source: ImageSet, tmp_path: Path) -> None:
    run(source, tmp_path, "visualmixer")
    run(source, tmp_path, "pixel_block_mixing")
    made = ImageSet.open(tmp_path / "out")
    assert made.splits == ("train", "validation")
    assert {p.name.split("-")[0] for p in (tmp_path / "out").iterdir()} == {
        "manifest.json", "train", "validation",
    }  # fmt: skip


# ------------------------------------------------------------------------------ interruptions


class StopError(Exception):
    pass


def stop(*args: Any) -> None:
    raise StopError


def test_a_run_that_failed_is_gone_on_with(
    source: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, tmp_path / "whole")
    made: list[str] = []
    original = protect.protect_shard

    def counting(job: Any, task: Any, *rest: Any) -> Any:
        if len(made) == 3:
            raise StopError
        made.append(task.name)
        return original(job, task, *rest)

    monkeypatch.setattr(protect, "protect_shard", counting)
    with pytest.raises(StopError):
        run(source, tmp_path / "broken")
    assert not (tmp_path / "broken" / "out").exists()
    assert not (tmp_path / "broken" / "links").exists()
    assert len(made) == 3

    done, first = [], list(made)
    monkeypatch.setattr(protect, "protect_shard", lambda *a: done.append(a[1].name) or original(*a))
    seen: list[int] = []
    run(source, tmp_path / "broken", progress=seen.append)
    assert not set(done) & set(first)
    assert sum(seen) == 140
    assert everything(tmp_path / "broken") == everything(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["shard", "entry", "links"])
def test_a_finished_shard_that_was_damaged_is_made_again(
    source: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    run(source, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(protect, "_merge_links", stop)
        with pytest.raises(StopError):
            run(source, tmp_path / "broken")
    victim = {
        "shard": tmp_path / "broken" / ".out.partial" / "train-00001.arrow",
        "entry": tmp_path / "broken" / ".out.partial" / "train-00001.json",
        "links": tmp_path / "broken" / ".links.partial" / "part-train-00001.parquet",
    }[damage]
    data = bytearray(victim.read_bytes())
    data[len(data) // 3] ^= 4
    victim.write_bytes(data)
    run(source, tmp_path / "broken")
    assert everything(tmp_path / "broken") == everything(tmp_path / "whole")


BARRIER = threading.Barrier(2)
IN_USE: set[int] = set()


class Together(Half):
    """Goes on only when another batch is protected at the same moment."""

    name = "together"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        assert id(self) not in IN_USE, "two threads share a scheme, which may remember things"
        IN_USE.add(id(self))
        BARRIER.wait(timeout=30)
        IN_USE.remove(id(self))
        return super()._protect(images, labels, ids, stream, pool)


def test_two_workers_protect_at_the_same_time_and_tell_of_all_images(
    source: ImageSet, tmp_path: Path
) -> None:
    seen: list[int] = []
    # Four shards of one batch each: an even number, so that nobody waits alone.
    run(
        source, tmp_path, scheme=Together(), workers=2, progress=seen.append, shard_bytes=12_000,
        splits=["train", "validation"], batch_size=64,
    )  # fmt: skip
    assert sum(seen) == 120
    made, plain = ImageSet.open(tmp_path / "out"), source.images("train")
    published = Together().stream(KEY).published_ids(source.ids("train"))
    assert (made.images("train") == plain[np.lexsort(published.T[::-1])] // 2).all()


STARTED: list[int] = []


class Fails(Half):
    """Fails at its third batch; those around it take a while."""

    name = "fails"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        STARTED.append(len(images))
        if len(STARTED) == 3:
            raise ProtectionError("the third batch is no good")
        time.sleep(0.05 if len(STARTED) < 20 else 0)
        return super()._protect(images, labels, ids, stream, pool)


def test_an_error_in_one_thread_ends_the_others_within_a_batch(
    source: ImageSet, tmp_path: Path
) -> None:
    STARTED.clear()
    before = threading.active_count()
    with pytest.raises(ProtectionError, match="third batch is no good"):
        run(source, tmp_path, scheme=Fails(), workers=2, batch_size=1)
    assert len(STARTED) <= 6  # of 140
    assert threading.active_count() == before
    assert not (tmp_path / "out").exists()
    run(source, tmp_path, scheme=Fails(), workers=2, batch_size=1)
    assert ImageSet.open(tmp_path / "out").count("train") == 90


def test_another_setting_does_not_reuse_shards(
    source: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"scheme": make_scheme("visualmixer", {"n": 4}, "test")}
    run(source, tmp_path / "whole", **changed)
    with monkeypatch.context() as patched:
        patched.setattr(protect, "_manifest", stop)
        with pytest.raises(StopError):
            run(source, tmp_path / "broken")
    run(source, tmp_path / "broken", **changed)
    assert everything(tmp_path / "broken") == everything(tmp_path / "whole")


# Whoever runs the tests in the background has them ignore the signal of Ctrl-C.
KILLED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from veilset.data.shards import ImageSet
from veilset.keys import Key
from veilset.schemes import protect
from veilset.schemes.fitted import Fitted
from veilset.schemes.registry import make_scheme

def slowly(*args, original=protect.write_json):
    original(*args)
    time.sleep(0.05)

protect.write_json = slowly  # in workers as well
protect.WORKER_BYTES = 1

if __name__ == "__main__":
    root, workers = Path(sys.argv[2]), int(sys.argv[3])
    scheme = make_scheme(sys.argv[4], {}, "t")
    if scheme.learns:
        import numpy as np
        learnt = {"shape": np.array([10, 10, 3]), "kept": np.array([1, 0, 0, 1], np.uint8)}
        scheme = scheme.with_fitted(
            Fitted(scheme.name, scheme.version, scheme.params.canonical(), learnt)
        )
    protect.protect_set(
        ImageSet.open(Path(sys.argv[1])), scheme,
        Key(bytes(range(32))), root / "out", root / "links", dataset="toy", shard_bytes=3000,
        workers=workers,
    )
"""


def start(
    source: ImageSet, root: Path, workers: int, name: str = "visualmixer"
) -> subprocess.Popen[bytes]:
    root.mkdir(parents=True, exist_ok=True)
    script = root.parent / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(source.folder), str(root), str(workers), name]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def wait_for_shards(root: Path, process: "subprocess.Popen[bytes]", count: int) -> None:
    end = time.monotonic() + 60
    while len(list((root / ".out.partial").glob("*.json"))) < count:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < end, "no shard was finished"
        time.sleep(0.005)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("signals", [(signal.SIGKILL, signal.SIGKILL), (signal.SIGINT,)])
def test_a_killed_run_leaves_nothing_half_and_is_gone_on_with(
    source: ImageSet, tmp_path: Path, signals: Sequence[signal.Signals], workers: int
) -> None:
    run(source, tmp_path / "whole", shard_bytes=3000)
    root = tmp_path / "killed"
    for number, sent in enumerate(signals):
        process = start(source, root, workers)
        wait_for_shards(root, process, 3 + 3 * number)
        process.send_signal(sent)
        errors = process.communicate(timeout=30)[1]
        assert process.returncode != 0
        assert sent == signal.SIGKILL or b"KeyboardInterrupt" in errors
        assert not (root / "out").exists()
    run(source, root, shard_bytes=3000)
    assert everything(root) == everything(tmp_path / "whole")
    assert {p.name for p in root.iterdir()} == {"out", "links"}


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(source: ImageSet, tmp_path: Path) -> None:
    root = tmp_path / "killed"
    process = start(source, root, 3, "mask_desensitization")
    wait_for_shards(root, process, 2)
    children = descendants(process.pid)
    assert len(children) >= 3
    process.kill()
    process.communicate(timeout=30)
    end = time.monotonic() + 20
    while any(Path(f"/proc/{child}/exe").exists() for child in children):
        assert time.monotonic() < end, "workers outlive their parent"
        time.sleep(0.1)


def descendants(parent: int) -> list[int]:
    found = []
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat_file.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            child = int(stat_file.parent.name)
            found += [child, *descendants(child)]
    return found


class Dies(Half):
    """Learnt, so it works in processes; ends its own, as the kernel does where memory runs out."""

    name, learns = "dies", True

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        os._exit(9 + 0 * len([images, labels, ids, stream, pool]))


def test_a_dying_worker_is_one_clear_error(source: ImageSet, tmp_path: Path) -> None:
    learnt = Fitted("dies", 1, Dies().params.canonical(), {"a": np.zeros(1)})
    with pytest.raises(ProtectionError, match="run again to go on"):
        run(source, tmp_path, scheme=Dies().with_fitted(learnt), workers=2)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------ refusals


def test_labels_never_protect_test_images(source: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(ProtectionError, match="uses labels"):
        run(source, tmp_path, "pixel_block_mixing", splits=["train", "test"])
    assert not list(tmp_path.iterdir())


def test_a_class_with_one_image_is_refused_before_writing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    part = (
        rng.integers(0, 256, (5, 16), dtype=np.uint8),
        np.array([0, 0, 0, 1, 0]),
        rng.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8),
        {},
    )
    write_set(
        tmp_path / "in", kind="ingested", dataset="toy", classes=("a", "b"), parts={"train": part}
    )
    lonely = ImageSet.open(tmp_path / "in")
    with pytest.raises(ProtectionError, match=r"'train'.*class 1 has a single image"):
        run(lonely, tmp_path / "made", "pixel_block_mixing")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("splits", [["nothing"], ["train", "nothing"]])
def test_a_split_that_is_not_there_is_named(
    source: ImageSet, tmp_path: Path, splits: list[str]
) -> None:
    with pytest.raises(ProtectionError, match="nothing"):
        run(source, tmp_path, splits=splits)
    with pytest.raises(ProtectionError, match="name those"):
        run(source, tmp_path, splits=[])
    assert not list(tmp_path.iterdir())


def test_attackers_images_are_protected_only_when_asked_for(
    source: ImageSet, tmp_path: Path
) -> None:
    manifest = run(source, tmp_path, splits=["auxiliary", "gallery"])
    assert manifest.splits == {"auxiliary": 12, "gallery": 8}


@pytest.mark.parametrize("bad", [{"workers": 0}, {"batch_size": 0}, {"shard_bytes": 0}])
def test_senseless_sizes_are_refused(source: ImageSet, tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(ProtectionError, match="at least 1"):
        run(source, tmp_path, **bad)


def test_protecting_needs_no_torch(source: ImageSet, tmp_path: Path) -> None:
    code = (
        "import sys, veilset.schemes.protect as p\n"
        "from veilset.schemes.registry import make_scheme\n"
        "[make_scheme(n, {}, 't') for n in ('plain', 'pixel_block_mixing', 'visualmixer')]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"plain", "pixel_block_mixing", "visualmixer"} <= set(scheme_names())
