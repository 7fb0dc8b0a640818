"""The benchmark of trainings, with networks and images that are small enough for a test."""

import json
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
from benchmarks import training
from benchmarks.harness import Case, measured, save, table
from benchmarks.training import (
    Peaks,
    Work,
    cpu_loading,
    cpu_training,
    disk_training,
    gpu_training,
    reached,
    read_cifar10,
    some_images,
    stored_images,
)
from PIL import Image

from veilset.errors import SourceError
from veilset.schemes.plain import Plain
from veilset.training.loader import Samples
from veilset.training.loop import Subject
from veilset.training.params import TrainingParams

SMALL = Work("small_cnn", 16, 32, 16, epochs=2)


def stripes(count: int) -> Samples:
    """Rows and columns under noise, in turn."""
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int64) % 2
    rows, columns = np.indices((32, 32))
    pattern = np.stack([rows % 2, columns % 2]) * 150
    noise = rng.integers(0, 100, (count, 32, 32, 3))
    return Samples((pattern[labels, ..., None] + noise).astype(np.uint8), labels)


def test_seconds_that_a_run_tells_count_in_place_of_the_clocks() -> None:
    case = Case("x", "", lambda: 2.0, lambda: 8.0, "y", 10, faster=True, own_time=True,
                rate_goal=7)  # fmt: skip
    found = measured(case, rounds=2)
    assert (found.ratio, found.per_second) == (4, 5)
    assert table([found]).endswith("5 of 7")


def test_facts_stand_beside_the_results(tmp_path: Path) -> None:
    document = json.loads(save("x", [], tmp_path, {"threads": 3}).read_text())
    assert document["threads"] == 3
    assert document["results"] == []


def test_both_sides_of_the_cpu_train_as_many_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        training.Pictures, "__getitem__",
        lambda self, index: seen.append(index) or (self.transform(self.pictures[index]), 0),
    )  # fmt: skip
    peaks = Peaks()
    case = cpu_training(SMALL, tmp_path, peaks)
    assert case.own_time
    assert case.items == 64
    assert case.run() > 0  # type: ignore[operator]
    assert list(peaks.found) == [case.name]
    assert peaks.found[case.name]["host"] > 50
    assert case.base() > 0  # type: ignore[operator]
    assert sorted(seen) == sorted([*range(32), *range(32)])
    assert list(tmp_path.iterdir()) == []


def test_images_on_disk_are_compared_with_the_same_in_memory(tmp_path: Path) -> None:
    peaks = Peaks()
    case = disk_training(SMALL, tmp_path, peaks)
    assert (case.goal, case.items, case.own_time) == (0.95, 64, True)
    assert case.run() > 0  # type: ignore[operator]
    assert case.base() > 0  # type: ignore[operator]
    assert list(peaks.found) == [case.name]
    there = some_images(32, 16)
    stored = stored_images(there, tmp_path / "set")
    assert stored.on_disk
    assert (stored.images[np.arange(32)] == there.images).all()


def test_a_gpus_loop_is_compared_with_as_many_steps_on_one_batch(tmp_path: Path) -> None:
    case = gpu_training(SMALL, 45_000, tmp_path, Peaks(), device="cpu")
    assert (case.goal, case.rate_goal, case.items) == (0.95, 45_000, 64)
    assert case.run() > 0  # type: ignore[operator]
    resident = case.base
    assert isinstance(resident, training.Resident)
    assert resident() > 0
    assert resident.made is not None
    _, optimiser, inputs, labels = resident.made
    assert inputs.shape == (16, 3, 16, 16)
    assert len(labels) == 16
    velocity = sum(float(each.abs().sum()) for each in optimiser.state().values())
    assert velocity > 0, "no step was taken"


def test_loaders_are_compared_by_the_image() -> None:
    case = cpu_loading(64, 8, px=16, batch_size=4)
    assert (case.items, case.base_items, case.goal) == (64, 8, 30)
    found = measured(case, rounds=2)
    assert found.ratio > 0
    assert isfinite(found.ratio)


def test_what_is_reached_is_tested_on_every_kind_of_images(tmp_path: Path) -> None:
    params = TrainingParams(epochs=6, batch_size=16, device="cpu")
    subject = Subject("small_cnn", ("rows", "columns"), "plain", Plain.declares)
    right = stripes(32)
    wrong = Samples(right.images, 1 - right.labels)
    made = reached(stripes(64), {"right": right, "wrong": wrong}, params, subject, tmp_path)
    assert made.accuracy["right"] == 1 - made.accuracy["wrong"]
    assert made.accuracy["right"] > 0.9
    assert made.tested == {"right": 32, "wrong": 32}
    assert f"{made.seconds:.1f} s to" in made.words()
    assert "goal 94 %" in made.words()


def test_lossless_test_images_are_told_from_jpeg(tmp_path: Path) -> None:
    for number, image in enumerate(stripes(12).images):
        split, suffix = (
            ("train", "png") if number < 6 else ("test", "jpg" if number < 10 else "png")
        )
        folder = tmp_path / split / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.{suffix}")
    train, tests, classes = read_cifar10(str(tmp_path))
    assert train.images.shape == (6, 32, 32, 3)
    assert {kind: len(part.labels) for kind, part in tests.items()} == {
        "without loss": 2, "as JPEG": 4
    }  # fmt: skip
    assert next(iter(tests)) == "without loss"
    assert classes == ("a", "b")
    with pytest.raises(SourceError, match="no training images"):
        read_cifar10(str(tmp_path / "test"))


def test_a_gpu_is_asked_for_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "cuda_works", lambda: False)
    for words in (["--device", "cuda"], ["--cifar10", "somewhere"]):
        with pytest.raises(SystemExit):
            training.main(words)
        assert "no CUDA" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_run_writes_finite_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.main(["--quick", "--device", "cpu"], tmp_path)
    document = json.loads((tmp_path / "training-quick.json").read_text())
    assert len(document["results"]) == 3
    for row in document["results"]:
        assert isfinite(row["ratio"])
        assert row["ratio"] > 0
    assert document["threads"] >= 1
    assert document["host_peak_mib"] > 100
    assert "peak host memory" in capsys.readouterr().out
