import io
import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources_support import checked, fill

from veilset.data.sources import open_source
from veilset.errors import SettingsError, SourceError


def mnist(root: Path, name: str = "MNIST", train: int = 7, test: int = 3) -> dict[str, np.ndarray]:
    """A small data set in MNIST's own file format; returns its images by part."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    images = {}
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = bytes(at % 10 for at in range(count))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
        images[prefix] = pixels
    return images


def block(dataset: str, **options: object) -> dict[str, object]:
    return {"source": "torchvision", "path": "tv", "options": {"dataset": dataset, **options}}


def test_train_and_test_parts(tmp_path: Path) -> None:
    images = mnist(tmp_path / "tv")
    source = open_source(block("MNIST"), tmp_path)
    items = checked(source)
    assert [i.split for i in items] == ["train"] * 7 + ["test"] * 3
    assert source.classes()[3] == "3 - three"
    assert [i.label for i in items] == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    pixels = np.stack([i.content for i in items])
    assert np.array_equal(pixels, np.concatenate([images["train"], images["t10k"]]))
    assert len({i.name for i in items}) == 10


def test_one_part_only_and_named_classes(tmp_path: Path) -> None:
    mnist(tmp_path / "tv")
    spec = block("MNIST", arguments={"train": False}, class_names=["a", "b"])
    items = list(open_source(spec, tmp_path))
    assert [(i.split, i.class_name, i.fault) for i in items] == [
        ("test", "a", None), ("test", "b", None), ("test", None, "bad_label"),
    ]  # fmt: skip


def test_command_line_name_reads_the_projects_folder(tmp_path: Path) -> None:
    mnist(tmp_path / "data" / "raw" / "torchvision", "KMNIST")
    assert len(checked(open_source("torchvision:KMNIST", tmp_path))) == 10


def test_stored_bytes_are_not_decoded(tmp_path: Path) -> None:
    fill(tmp_path / "tv", ["cat/a.png", "dog/b.png"])  # no images at all: decoding would fail
    items = checked(open_source(block("ImageFolder"), tmp_path))
    assert [(i.content, i.class_name) for i in items] == [
        (b"cat/a.png", "cat"),
        (b"dog/b.png", "dog"),
    ]


def test_splits_by_word(tmp_path: Path) -> None:
    folder = tmp_path / "tv" / "rendered-sst2"
    fill(
        folder,
        [f"{s}/{c}/0.png" for s in ("train", "valid", "test") for c in ("negative", "positive")],
    )
    items = checked(open_source(block("RenderedSST2"), tmp_path))
    assert [(i.split, i.class_name) for i in items] == [
        (split, name)
        for split in ("train", "validation", "test")
        for name in ("negative", "positive")
    ]
    assert items[2].content == b"valid/negative/0.png"
    named = block("RenderedSST2", splits={"train": "test"})
    assert [i.split for i in checked(open_source(named, tmp_path))] == ["train", "train"]
    wrong = block("RenderedSST2", splits={"train": "exam"})
    with pytest.raises(SourceError, match="exam"):
        open_source(wrong, tmp_path).count()


def test_pixels_of_other_modes_keep_their_meaning() -> None:
    from veilset.data.sources.torchvision import _content

    rng = np.random.default_rng(0)
    for mode, shape in (("RGBA", (5, 4, 4)), ("LA", (5, 4, 2)), ("CMYK", (5, 4, 4))):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        stored = _content(Image.fromarray(pixels, mode), 1 << 20)
        again = Image.open(io.BytesIO(stored))
        assert again.mode == mode and np.array_equal(np.asarray(again), pixels)
    assert _content(Image.fromarray(np.zeros((2, 3), np.uint8)), 1).shape == (2, 3)


def test_missing_data_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    # What `urlopen` made before does not know these proxies, and what it makes now must not stay.
    monkeypatch.setattr(urllib.request, "_opener", None)
    with pytest.raises(SourceError, match="set download: true"):
        open_source(block("CIFAR10"), tmp_path).classes()
    with pytest.raises(SourceError, match="check the network") as caught:
        list(open_source(block("CIFAR10", download=True), tmp_path))
    assert "\n" not in str(caught.value)


def test_refused(tmp_path: Path) -> None:
    for name in ("CIFAR11", "VisionDataset.x", "wrap_dataset_for_transforms_v2", "os"):
        with pytest.raises(SourceError, match="has no data set"):
            open_source(f"torchvision:{name}", tmp_path).count()
    with pytest.raises(SettingsError, match="loader is set by Veilset"):
        open_source(block("MNIST", arguments={"loader": "x"}), tmp_path)
    with pytest.raises(SettingsError, match="dataset is missing"):
        open_source({"source": "torchvision"}, tmp_path)
    mnist(tmp_path / "tv")
    with pytest.raises(SourceError, match="unexpected keyword argument 'colour'"):
        open_source(block("MNIST", arguments={"colour": 1}), tmp_path).count()
