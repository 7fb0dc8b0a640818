"""The command line on folders of images, as a user runs it."""

import io
import json
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_run import Run, sentence
from PIL import Image

from veilset.data.shards import ImageSet
from veilset.files import locked, read_table

DATASETS = Path(__file__).parents[3] / "shared/datasets"


def photographs(folder: Path, count: int = 24, broken: int = 10) -> Path:
    """JPEGs of mixed sizes in two classes, ten broken files among them."""
    rng = np.random.default_rng(0)
    for index in range(count):
        place = folder / ("cat" if index % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        height, width = (48, 64) if index % 3 else (60, 40)
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        image.save(place / f"ana-maria-{index}.jpg", quality=90)
    whole = (folder / "cat/ana-maria-1.jpg").read_bytes()
    faults = [b"", b"<html>404</html>", whole[:60], whole[: len(whole) // 2], whole[:-9],
              b"\x89PNG\r\n\x1a\n" + bytes(40), b"GIF89a", b"BM" + bytes(60),
              b"II*\x00" + bytes(30), bytes(500)]  # fmt: skip
    for index, content in enumerate(faults[:broken]):
        (folder / "dog" / f"broken-{index}.jpg").write_bytes(content)
    return folder


def test_ten_broken_files_are_ten_rows_and_do_not_stop_the_rest(run: Run, tmp_path: Path) -> None:
    photographs(tmp_path / "in")
    assert run("key", "new", "--key-file", "owner.key")[0] == 0
    assert stat.S_IMODE((tmp_path / "owner.key").stat().st_mode) == 0o600
    words = ("protect", "in", "out", "--scheme", "visualmixer", "--key-file", "owner.key")
    code, out, _ = run(*words)
    assert code == 0
    assert "48x64, colour" in out
    rows = pd.read_csv(tmp_path / "out-private/quarantine/quarantine.csv")
    assert len(rows) == 10
    assert rows["reason"].notna().all()
    assert stat.S_IMODE((tmp_path / "out-private").stat().st_mode) == 0o700
    released = ImageSet.open(tmp_path / "out")
    assert sum(released.manifest.splits.values()) == 24
    assert released.shape == (48, 64, 3)
    everything = b"".join(path.read_bytes() for path in sorted((tmp_path / "out").iterdir()))
    assert b"ana-maria" not in everything
    secret = (tmp_path / "owner.key").read_text().strip()
    assert secret.encode() not in everything


def test_no_name_of_a_file_is_told(run: Run, tmp_path: Path) -> None:
    photographs(tmp_path / "in")
    (tmp_path / "in/cat/ana-maria-twin.jpg").write_bytes(
        (tmp_path / "in/cat/ana-maria-1.jpg").read_bytes()
    )
    (tmp_path / "in/cat/ana-maria-link.jpg").symlink_to("/etc/passwd")
    (tmp_path / "in/cat/ana-maria-notes.txt").write_text("no image")
    (tmp_path / "in/dog/broken-0.jpg").rename(tmp_path / "in/dog/ana-maria-broken.jpg")
    for more in (("--scheme", "visualmixer"), ("--scheme", "plain", "--strict")):
        _, out, err = run("protect", "in", "out", *more, "--demo-key")
        assert "ana-maria" not in out + err and "broken-" not in out + err
    assert "ana-maria" in (tmp_path / "out-private/quarantine/quarantine.csv").read_text()


def test_strict_makes_a_quarantined_file_an_error(run: Run, tmp_path: Path) -> None:
    photographs(tmp_path / "in", broken=1)
    code, _, err = run("protect", "in", "out", "--scheme", "plain", "--demo-key", "--strict")
    assert code == 1
    assert "1 of 25 files" in sentence(err)
    assert not (tmp_path / "out").exists()


def test_the_same_key_gives_the_same_bytes_and_another_key_others(run: Run, tmp_path: Path) -> None:
    photographs(tmp_path / "in", broken=0)
    for name in ("a", "b"):
        run("key", "new", "--key-file", f"{name}.key")
    scheme = ("--scheme", "visualmixer")
    for output, key, workers in (("one", "a", "1"), ("two", "a", "2"), ("other", "b", "1")):
        words = ("protect", "in", output, *scheme, "--key-file", f"{key}.key")
        assert run(*words, "--workers", workers)[0] == 0
    shards = [(tmp_path / name / "train-00000.arrow").read_bytes() for name in ("one", "two")]
    assert shards[0] == shards[1]
    other = ImageSet.open(tmp_path / "other")
    mine = {row.tobytes() for row in ImageSet.open(tmp_path / "one").ids("train")}
    assert not mine & {row.tobytes() for row in other.ids("train")}


def test_a_scheme_that_learns_is_fitted_first_and_never_by_itself(run: Run, tmp_path: Path) -> None:
    photographs(tmp_path / "in", count=40, broken=0)
    scheme = ("--scheme", "mask_desensitization")
    protect = ("protect", "in", "out", *scheme, "--demo-key")
    code, _, err = run(*protect)
    assert code == 1
    assert "--fitted" in sentence(err)
    assert not (tmp_path / "out").exists()
    quick = ("--set", "epochs=1", "--set", "patch_px=16", "--device", "cpu")
    code, out, err = run("fit", "in", "fitted", *scheme, *quick)
    assert code == 0, err
    assert "teacher_accuracy" in out
    assert stat.S_IMODE((tmp_path / "fitted-private").stat().st_mode) == 0o700
    code, _, err = run(*protect, "--fitted", "fitted")
    assert code == 0, err
    released = ImageSet.open(tmp_path / "out")
    record = released.manifest.scheme or {}
    assert record["parameters"]["patch_px"] == 16, "the parameters that it was fitted with"
    mask, images = released.column("train", "mask"), released.images("train")
    assert (images[mask == 0] == 128).all()
    assert 0 < mask.mean() < 0.5
    assert "another" not in err
    code, _, err = run(*protect, "--fitted", "fitted", "--set", "keep=0.5")
    assert code == 1
    assert "fit it again" in sentence(err)
    code, _, err = run("fit", "in", "other", "--scheme", "visualmixer")
    assert code == 1
    assert "learns nothing" in sentence(err)


def test_the_ledger_adds_up_what_releases_spend(run: Run, tmp_path: Path) -> None:
    photographs(tmp_path / "in", broken=0)
    words = ("protect", "in", "out", "--demo-key", "--ledger", "ledger.parquet", "--scheme")
    assert "24 images have spent 9 in 1 releases" in run(*words, "masked_image")[1]
    assert "have spent 9 in 1 releases" in run(*words, "masked_image")[1], "the same release"
    assert "have spent 14 in 2" in run(*words, "masked_image", "--set", "eps_n=4")[1]
    assert "24 images have spent 14 in 2 releases" in run("ledger", "ledger.parquet")[1]
    code, _, err = run(*words, "visualmixer")
    assert code == 1
    assert "guarantees nothing" in sentence(err)
    code, _, err = run("ledger", "nothing.parquet")
    assert code == 1
    assert "no ledger" in sentence(err)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("protect", "in", "out", "--scheme", "plain"), "no key"),
        (("protect", "in", "out", "--scheme", "mixer", "--demo-key"), "'mixer'"),
        (("protect", "away", "out", "--scheme", "plain", "--demo-key"), "away"),
        (("protect", "in", "in", "--scheme", "plain", "--demo-key"), "no image set"),
        (("protect", "in", "out", "--scheme", "plain", "--demo-key", "--size", "big"), "big"),
        (
            ("protect", "in", "out", "--scheme", "visualmixer", "--demo-key", "--set", "region=4"),
            "--set.region is unknown",
        ),
        (
            ("protect", "in", "out", "--scheme", "plain", "--demo-key", "--private", "out/mine"),
            "may be given away",
        ),
        (("protect", "in", "out", "--scheme", "plain", "--key-file", "none.key"), "none.key"),
        (("verify", "in"), "in"),
        (("key", "new", "colour"), "colour"),
    ],
)
def test_bad_use_is_one_sentence_and_writes_nothing(
    run: Run, tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    photographs(tmp_path / "in", count=4, broken=0)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(*words)
    assert code == 1
    assert expected in sentence(err)
    assert not (tmp_path / "out").exists()
    assert [path for path in before if path.is_file()] == [
        path for path in sorted((tmp_path / "in").rglob("*")) if path.is_file()
    ]


def test_a_flipped_bit_is_found_and_named(run: Run, tmp_path: Path) -> None:
    photographs(tmp_path / "in", count=6, broken=0)
    assert run("protect", "in", "out", "--scheme", "plain", "--demo-key")[0] == 0
    assert run("verify", "out")[0] == 0
    shard = tmp_path / "out/train-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[-2000] ^= 1
    shard.write_bytes(content)
    code, _, err = run("verify", "out")
    assert code == 1
    assert "train-00000.arrow" in sentence(err)


def test_export_gives_what_was_protected_and_never_plain_images(run: Run, tmp_path: Path) -> None:
    photographs(tmp_path / "in", count=6, broken=0)
    assert run("protect", "in", "out", "--scheme", "visualmixer", "--demo-key")[0] == 0
    assert run("export", "out", "folder", "--format", "imagefolder")[0] == 0
    released = ImageSet.open(tmp_path / "out")
    pixels = {image.tobytes() for image in released.images("train")}
    files = sorted((tmp_path / "folder").rglob("*.png"))
    assert {np.asarray(Image.open(io.BytesIO(f.read_bytes()))).tobytes() for f in files} == pixels
    code, _, err = run("export", "out-private/ingested", "leak", "--format", "parquet")
    assert code == 1
    assert "plain images" in sentence(err)
    assert not (tmp_path / "leak").exists()


def test_an_attack_ends_in_a_card_that_goes_stale_and_is_made_anew(
    run: Run, tmp_path: Path
) -> None:
    photographs(tmp_path / "in", count=140, broken=0)
    assert run("protect", "in", "out", "--scheme", "visualmixer", "--demo-key")[0] == 0
    asked = ("--originals", "in", "--demo-key", "--attacks", "linkage", "--seed", 3)
    code, out, err = run("attack", "out", *asked)
    assert code == 0, err
    assert "for a public release" in out
    results = tmp_path / "out-attacks/results"
    before = json.loads((results / "card.json").read_text())
    assert [found["attack"] for found in before["attacks"]] == ["linkage"]
    assert before["repeat"]["seed"] == 3
    assert before["demo_key"]
    assert "not run" in before["not_tested"][-1]["reason"]
    assert "Veilset leakage card" in (results / "card.html").read_text()
    scores = (results / "scores.parquet").read_bytes()

    assert "Up to date" in run("reassess", "out", "--demo-key")[1]
    (results / "card.json").write_text(json.dumps(before | {"suite": "0"}))
    code, out, _ = run("reassess", "out", "--demo-key")
    assert code == 0
    assert "stale" in out
    after = json.loads((results / "card.json").read_text())
    for card in (before, after):
        for found in card["attacks"]:
            found.pop("seconds")
    assert after == before
    assert (results / "scores.parquet").read_bytes() == scores
    assert "of --force" in run("reassess", "out", "--demo-key", "--force")[1]

    shutil.rmtree(tmp_path / "out")
    assert run("protect", "in", "out", "--scheme", "pixelate", "--demo-key")[0] == 0
    assert "not the one that was attacked" in run("reassess", "out", "--demo-key")[1]
    assert json.loads((results / "card.json").read_text())["scheme"]["name"] == "pixelate"


def test_another_release_and_attributes_are_attacked_where_they_are_given(
    run: Run, tmp_path: Path
) -> None:
    photographs(tmp_path / "in", count=140, broken=0)
    files = sorted((tmp_path / "in").rglob("*.jpg"))
    lines = [
        f"{f.relative_to(tmp_path)},{f.parent.name},{'ab'[n % 2]}" for n, f in enumerate(files)
    ]
    (tmp_path / "in.csv").write_text("\n".join(["path,label,attribute_mark", *lines]))
    for name in ("one", "two", "ids"):
        assert run("key", "new", "--key-file", f"{name}.key")[0] == 0
    ids = ("--ids-key-file", "ids.key")
    for name, scheme, key in (("out", "pixelate", "one"), ("again", "visualmixer", "two")):
        words = ("protect", "in.csv", name, "--scheme", scheme, "--key-file", f"{key}.key", *ids)
        assert run(*words)[0] == 0
    asked = ("attack", "out", "--originals", "in.csv", "--key-file", "one.key", *ids,
             "--attacks", "version_linkage", "--attacks", "attribute_inference")  # fmt: skip
    code, out, err = run(*asked, "--other", "again", "--other-key-file", "two.key")
    assert code == 0, err
    assert "are linked to their version in the other release" in out
    assert "have their attribute guessed right" in out
    assert "not applicable: no other release" in run(*asked)[1]
    code, _, err = run(*asked, "--other", "again")
    assert code == 1
    assert "the key that it was made with" in sentence(err)


def test_an_attack_that_does_not_exist_is_refused_before_anything(run: Run, tmp_path: Path) -> None:
    code, _, err = run("attack", "out", "--originals", "in", "--attacks", "magic", "--demo-key")
    assert code == 1
    assert "'magic'" in sentence(err)
    assert "linkage" in sentence(err)
    assert list(tmp_path.iterdir()) == []
    code, _, err = run("reassess", "out", "--demo-key")
    assert code == 1
    assert "out" in sentence(err)


def test_lists_name_everything(run: Run) -> None:
    for command, name in (
        ("schemes", "pixel_block_mixing"),
        ("attacks", "learned_inverse"),
        ("models", "resnet20"),
    ):
        code, out, _ = run(command)
        assert code == 0
        assert name in out


def test_doctor_says_what_is_wrong(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("doctor")
    assert "telemetry: off" in out
    assert code == 1, "there is no project here, so its keys are missing"
    assert "keys: WRONG" in out


@pytest.mark.skipif(not DATASETS.is_dir(), reason="shared/datasets is not beside the repository")
@pytest.mark.slow
def test_trashnet_through_both_schemes(run: Run, tmp_path: Path) -> None:
    for scheme, splits in (
        ("visualmixer", {"train", "validation", "test"}),
        ("pixel_block_mixing", {"train", "validation"}),
    ):
        words = ("protect", DATASETS / "trashnet96", scheme, "--scheme", scheme, "--demo-key")
        code, out, _ = run(*words)
        assert code == 0
        index = read_table(tmp_path / f"{scheme}-private/ingested/index.parquet")
        assert len(index) == 2527
        assert (index["role"] == "duplicate").sum() <= 10
        public = ImageSet.open(tmp_path / scheme)
        assert public.shape == (96, 96, 3)
        assert sum(public.manifest.splits.values()) == index["role"].isin(splits).sum()
        # A scheme that reads labels keeps test images back.
        assert ("stay unprotected" in out) == ("test" not in splits)


def test_a_second_run_at_the_same_time_is_refused(run: Run, tmp_path: Path) -> None:
    photographs(tmp_path / "in", count=4, broken=0)
    with locked(tmp_path / "out"):
        code, _, err = run("protect", "in", "out", "--scheme", "plain", "--demo-key")
    assert code == 1
    assert "another run" in sentence(err)
    assert not (tmp_path / "out").exists()
    assert run("protect", "in", "out", "--scheme", "plain", "--demo-key")[0] == 0


def test_a_full_disk_is_one_sentence_and_nothing_half_written(run: Run, tmp_path: Path) -> None:
    photographs(tmp_path / "in", count=24, broken=0)
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("a small file system can only be mounted by root")
    try:
        words = ("protect", "in", small / "out", "--scheme", "visualmixer", "--demo-key")
        code, _, err = run(*words, "--private", tmp_path / "mine")
        assert code == 1
        assert "free" in sentence(err)
        assert not (small / "out").exists()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
