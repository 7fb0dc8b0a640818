"""`veilset predict` on small models, as a client runs it."""

import csv
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_run import Run, sentence
from PIL import Image

from veilset.data.manifest import Manifest
from veilset.data.shards import ImageSet, write_set
from veilset.keys import DEMO_PROTECTION_KEY, Key
from veilset.schemes.base import Scheme
from veilset.schemes.fitted import Lessons, save_fitted
from veilset.schemes.protect import protect_set
from veilset.schemes.registry import make_scheme
from veilset.schemes.transform import protect_batch
from veilset.training.evaluation import predict, softmax
from veilset.training.loader import Samples
from veilset.training.loop import Subject, train
from veilset.training.params import TrainingParams
from veilset.training.saved import WEIGHTS, load_model
from veilset.types import Images

SIDE = 16
CLASSES = ("=rows", "columns", "neither", "both")
MASKING: Mapping[str, Any] = {"patch_px": 4, "epochs": 1, "teacher_width": 4}


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def stripes(count: int, channels: int = 3, seed: int = 0) -> tuple[Images, np.ndarray]:
    """Rows and columns under noise, in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 2
    rows, columns = np.indices((SIDE, SIDE))
    pattern = np.stack([rows % 2, columns % 2]) * 150
    noise = rng.integers(0, 100, (count, SIDE, SIDE, channels))
    return (pattern[labels, ..., None] + noise).astype(np.uint8), labels


class Case:
    """A release, a model that was trained on it, and queries of a client."""

    def __init__(
        self, folder: Path, scheme: Scheme[Any], classes: tuple[str, ...] = CLASSES,
        architecture: str = "small_cnn",
    ) -> None:  # fmt: skip
        self.release, self.model = folder / "release", folder / "model"
        self.scheme, self.fitted = scheme, folder / "fitted"
        images, labels = stripes(64)
        ids = np.random.default_rng(1).integers(0, 256, (64, 16), dtype=np.uint8)
        parts = {"train": (ids, labels, images, {})}
        write_set(folder / "in", kind="ingested", dataset="t", classes=classes, parts=parts)
        if scheme.learns:
            learnt = scheme.fit(Lessons(images, labels, *stripes(16, seed=5), len(classes)))
            save_fitted(self.fitted, learnt)
            self.scheme = scheme.with_fitted(learnt)
        manifest = protect_set(
            ImageSet.open(folder / "in"), self.scheme, DEMO_PROTECTION_KEY, self.release, None,
            dataset="t",
        )  # fmt: skip
        public = ImageSet.open(self.release)
        mask = public.column("train", "mask") if scheme.learns else None
        samples = Samples(public.images("train"), public.labels("train"), mask)
        width = {"width": 4}
        subject = Subject(
            architecture, classes, scheme.name, scheme.declares, width, (manifest.root,)
        )
        params = TrainingParams(epochs=2, batch_size=16, device="cpu")
        train(samples, samples, params, subject, self.model)
        self.queries, _ = stripes(6, seed=9)
        self.images = folder / "queries"
        self.images.mkdir()
        for index, image in enumerate(self.queries):
            Image.fromarray(image).save(self.images / f"query-{index}.png")

    def expected(self, pixels: Images, mask: np.ndarray | None = None) -> np.ndarray:
        """Probabilities of images that are ready for the network."""
        return softmax(predict(*load_model(self.model), pixels, mask, device="cpu"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Case:
    scheme = make_scheme("visualmixer", {"region_px": 8}, "test")
    return Case(tmp_path_factory.mktemp("mixed"), scheme)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Case:
    scheme = make_scheme("pixel_block_mixing", {"block_height": 8, "block_width": 4}, "test")
    return Case(tmp_path_factory.mktemp("labelled"), scheme, ("rows", "columns"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Case:
    scheme = make_scheme("mask_desensitization", MASKING, "test")
    return Case(tmp_path_factory.mktemp("masked"), scheme, architecture="masknet_resnet20")


def assert_tells(text: str, probabilities: np.ndarray, classes: tuple[str, ...]) -> None:
    rows = table(text)
    assert [row["name"] for row in rows] == [f"query-{i}.png" for i in range(len(rows))]
    assert len(rows) == len(probabilities)
    for row, each in zip(rows, probabilities, strict=True):
        ranks = np.argsort(-each)
        for mark, at in zip(("", "_2", "_3"), ranks, strict=False):
            assert row[f"class{mark}"].removeprefix("'") == classes[at]
            assert float(row[f"probability{mark}"]) == pytest.approx(each[at], abs=2e-4)


def test_queries_are_protected_as_the_release_was_and_never_written(
    run: Run, mixed: Case, tmp_path: Path
) -> None:
    code, out, err = run(
        "predict", mixed.model, mixed.images, "--release", mixed.release, "--demo-key"
    )
    assert code == 0, err
    protected = protect_batch(mixed.scheme, mixed.queries, key=DEMO_PROTECTION_KEY)
    assert_tells(out, mixed.expected(protected), CLASSES)
    told = mixed.expected(protected).max(axis=1)
    assert np.abs(told - mixed.expected(mixed.queries).max(axis=1)).max() > 0.01
    said = [line for line in err.splitlines() if "VisualMixer" in line]
    assert len(said) == 1
    assert "protected by" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_the_scheme_can_be_named_in_place_of_the_release(
    run: Run, mixed: Case, tmp_path: Path
) -> None:
    by_release = run(
        "predict", mixed.model, mixed.images, "--release", mixed.release, "--demo-key"
    )[1]
    named = ("--scheme", "visualmixer", "--demo-key", "--set")
    code, out, _ = run(
        "predict", mixed.model, mixed.images, *named, "region_px=8", "--output", "said.csv"
    )
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["said.csv"]
    assert (tmp_path / "said.csv").read_text() == by_release
    assert "protected by VisualMixer" in out
    assert "6 images" in out
    assert run("predict", mixed.model, mixed.images, *named, "region_px=4")[1] != by_release


def test_an_archive_and_a_single_image_tell_the_same_as_the_folder(
    run: Run, mixed: Case, tmp_path: Path
) -> None:
    how = ("--release", mixed.release, "--demo-key")
    rows = table(run("predict", mixed.model, mixed.images, *how)[1])
    shutil.make_archive(str(tmp_path / "all"), "zip", mixed.images)
    assert table(run("predict", mixed.model, "all.zip", *how)[1]) == rows
    code, out, err = run("predict", mixed.model, mixed.images / "query-3.png", *how)
    assert code == 0, err
    assert table(out) == [rows[3]]


def test_images_of_another_shape_are_brought_to_the_models(
    run: Run, labelled: Case, tmp_path: Path
) -> None:
    grey = stripes(1, channels=1, seed=4)[0][0, ..., 0]
    large = Image.fromarray(grey).resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
    large.save(tmp_path / "query-0.png")
    code, out, _ = run("predict", labelled.model, "query-0.png")
    assert code == 0
    pixels = np.repeat(grey[None, ..., None], 3, axis=3)
    assert_tells(out, labelled.expected(pixels), ("rows", "columns"))


def test_queries_stay_plain_where_the_scheme_declares_it(run: Run, labelled: Case) -> None:
    for how in ((), ("--release", labelled.release), ("--scheme", "pixel_block_mixing")):
        code, out, err = run("predict", labelled.model, labelled.images, *how)
        assert code == 0, err
        assert "Images stay plain: pixel_block_mixing" in err
        assert_tells(out, labelled.expected(labelled.queries), ("rows", "columns"))
    assert {row["class_3"] for row in table(out)} == {""}


def test_a_model_of_plain_images_needs_no_word_of_its_scheme(run: Run, tmp_path: Path) -> None:
    made = Case(tmp_path, make_scheme("plain", {}, "test"))
    code, out, err = run("predict", made.model, made.images)
    assert code == 0, err
    assert "Images stay plain, as those were" in err
    assert_tells(out, made.expected(made.queries), CLASSES)


def test_a_learnt_mask_reaches_a_network_that_reads_it(run: Run, masked: Case) -> None:
    how = (masked.model, masked.images, "--release", masked.release)
    code, out, err = run("predict", *how, "--fitted", masked.fitted)
    assert code == 0, err
    zeros, ids = np.zeros(6, dtype=np.int64), np.arange(96, dtype=np.uint8).reshape(6, 16)
    made = masked.scheme.protect(masked.queries, zeros, ids, Key(bytes(32)))
    assert 0 < made.side["mask"].mean() < 1
    assert_tells(out, masked.expected(made.images, made.side["mask"]), CLASSES)
    code, out, err = run("predict", *how)
    assert (code, out) == (1, "")
    assert "--fitted PATH" in sentence(err)


def test_what_another_fit_learnt_is_refused(run: Run, masked: Case, tmp_path: Path) -> None:
    plain = make_scheme("mask_desensitization", {**MASKING, "selection": "random"}, "test")
    same = make_scheme("mask_desensitization", MASKING, "test")
    images, labels = stripes(32, seed=7)
    flipped = Lessons(255 - images, 1 - labels, images, labels, len(CLASSES))
    for scheme, expected in ((plain, "fit it again"), (same, "is not what")):
        fitted = scheme.fit(flipped)
        if scheme is same:
            kept = {name: values[..., ::-1].copy() for name, values in fitted.arrays.items()}
            fitted = type(fitted)(fitted.scheme, fitted.version, fitted.parameters, kept)
        save_fitted(tmp_path / "other", fitted)
        how = ("--release", masked.release, "--fitted", "other")
        code, _, err = run("predict", masked.model, masked.images, *how)
        assert code == 1
        assert expected in sentence(err)


def test_broken_files_are_listed_with_reasons_and_do_not_stop_the_rest(
    run: Run, labelled: Case, tmp_path: Path
) -> None:
    shutil.copytree(labelled.images, "in")
    whole = (tmp_path / "in/query-0.png").read_bytes()
    for name, content in (
        ("cut", whole[: len(whole) // 2]),
        ("page", b"a page of text"),
        ("none", b""),
    ):
        (tmp_path / f"in/{name}.png").write_bytes(content)
    code, out, err = run("predict", labelled.model, "in")
    assert code == 0
    assert len(table(out)) == 6
    assert sum(line.startswith("refused: ") for line in err.splitlines()) == 3
    assert "refused: page.png: It begins as text" in err
    assert "Refused 3 of 9 files: 1 empty, 1 incomplete, 1 not_an_image." in err
    code, out, err = run("predict", labelled.model, "in", "--strict", "--output", "said.csv")
    assert code == 1
    assert "3 of 9 files" in sentence(err)
    assert not (tmp_path / "said.csv").exists()
    for path in (tmp_path / "in").glob("query-*"):
        path.unlink()
    code, out, err = run("predict", labelled.model, "in")
    assert (code, out) == (1, "")
    assert "none of the 3 files of in can be used" in sentence(err)


def test_in_a_project_the_release_and_its_key_are_found(
    run: Run, mixed: Case, tmp_path: Path
) -> None:
    expected = run("predict", mixed.model, mixed.images, "--release", mixed.release, "--demo-key")[
        1
    ]
    drops = {"names": ["one", "two"], "fit_drops": ["one"],
             "drops": {"one": {"path": "x"}, "two": {"path": "y"}}}  # fmt: skip
    (tmp_path / "drops.yaml").write_text(json.dumps(drops))
    shutil.copytree(mixed.release, "data/protected/visualmixer/two")
    assert run("predict", mixed.model, mixed.images, "--demo-key")[1] == expected
    (tmp_path / "keys").mkdir()
    for kind, key in (("protection", DEMO_PROTECTION_KEY), ("ids", Key(b"i" * 32))):
        (tmp_path / f"keys/{kind}.key").write_text(f"{key.secret.hex()}\n")
        (tmp_path / f"keys/{kind}.key").chmod(0o600)
        (tmp_path / f"keys/{kind}.fingerprint").write_text(f"{key.fingerprint}\n")
    code, out, err = run("predict", mixed.model, mixed.images)
    assert code == 0, err
    assert "as for data/protected/visualmixer/two" in err
    assert out == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--demo-key",), "--release with the set that it was trained on"),
        (("--release", "RELEASE"), "no key"),
        (("--release", "RELEASE", "--key-file", "other.key"), "the key has fingerprint"),
        (("--release", "RELEASE", "--key-file", "none.key"), "none.key"),
        (("--release", "OTHER", "--demo-key"), "was not trained on"),
        (("--release", "PLAIN", "--demo-key"), "names no scheme"),
        (("--release", "RELEASE", "--scheme", "visualmixer"), "choose one"),
        (("--set", "region_px=8"), "without --scheme"),
        (("--scheme", "pixelate"), "was trained on visualmixer"),
        (("--scheme", "mixer"), "'mixer'"),
        (("--scheme", "visualmixer", "--set", "region=4", "--demo-key"), "region is unknown"),
        (("--release", "RELEASE", "--demo-key", "--output", "."), "is a folder"),
        (("--release", "RELEASE", "--demo-key", "--device", "abacus"), "device"),
    ],
)
def test_bad_use_is_one_sentence(
    run: Run, mixed: Case, labelled: Case, tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "other.key").write_text("ab" * 32 + "\n")
    (tmp_path / "other.key").chmod(0o600)
    places = {
        "RELEASE": mixed.release, "OTHER": labelled.release, "PLAIN": mixed.release.parent / "in"
    }  # fmt: skip
    code, out, err = run(
        "predict", mixed.model, mixed.images, *(places.get(word, word) for word in words)
    )
    assert (code, out) == (1, "")
    assert expected in sentence(err)
    assert [path.name for path in tmp_path.iterdir()] == ["other.key"]


def test_no_model_and_altered_weights_are_told_apart(
    run: Run, labelled: Case, tmp_path: Path
) -> None:
    code, _, err = run("predict", "nothing", labelled.images)
    assert code == 1
    assert "nothing holds no trained CNN" in sentence(err)
    shutil.copytree(labelled.model, "model")
    content = bytearray((tmp_path / "model" / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (tmp_path / "model" / WEIGHTS).write_bytes(content)
    code, _, err = run("predict", "model", labelled.images)
    assert code == 1
    assert "SHA-256" in sentence(err)
    code, _, err = run("predict", labelled.model, "away")
    assert code == 1
    assert "away" in sentence(err)


def test_names_that_a_spreadsheet_would_compute_are_quoted(
    run: Run, mixed: Case, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(mixed.queries[0]).save(tmp_path / "in/=1+1.png")
    out = run("predict", mixed.model, "in", "--release", mixed.release, "--demo-key")[1]
    (row,) = table(out)
    assert row["name"] == "'=1+1.png"
    assert "'=rows" in row.values()
    assert Manifest.load(mixed.release).classes == CLASSES
