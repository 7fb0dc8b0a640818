"""A set as a torch data set: the same pixels and labels, however it is read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import veilset.data
from veilset.data.shards import ImageSet, write_set
from veilset.errors import CorruptError, SourceError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        images = rng.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
        mask = rng.integers(0, 2, (count, 6, 5), dtype=np.uint8)
        ids = rng.integers(0, 256, (count, 16), dtype=np.uint8)
        return ids, np.arange(count) % 3, images, {"mask": mask}

    write_set(tmp_path / "set", kind="protected", dataset="t", classes=("a", "b", "c"),
              parts={"train": part(20), "test": part(4)})  # fmt: skip
    return tmp_path / "set"


def test_items_are_the_stored_ones(folder: Path) -> None:
    data, stored = veilset.data.open(folder), ImageSet.open(folder)
    assert len(data) == 20
    assert data.classes == ("a", "b", "c")
    for row in (0, 7, 19, -1):
        image, label = data[row]
        assert image.dtype == torch.uint8
        expected = stored.images("train")[row]
        assert (image.permute(1, 2, 0).numpy() == expected).all()
        assert label == stored.labels("train")[row]
    with pytest.raises(IndexError):
        data[20]
    assert len(veilset.data.open(folder, "test")) == 4


def test_a_loader_reads_it_all_with_transform_and_side(folder: Path) -> None:
    data = veilset.data.open(folder, transform=lambda image: image.float() / 255, side=True)
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
    batches = list(loader)
    assert sum(len(labels) for _, labels, _ in batches) == 20
    stored = ImageSet.open(folder)
    seen = {image.numpy().tobytes() for images, _, _ in batches for image in images}
    plain = stored.images("train").transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    assert seen == {np.ascontiguousarray(image).tobytes() for image in plain}
    image, _, side = data[3]
    assert (side["mask"] == stored.column("train", "mask")[3]).all()
    assert image.dtype == torch.float32


def test_workers_of_a_loader_read_the_same(folder: Path) -> None:
    code = (
        "import sys, torch, veilset.data\n"
        "data = veilset.data.open(sys.argv[1])\n"
        "def seen(workers):\n"
        "    loader = torch.utils.data.DataLoader(data, batch_size=8, num_workers=workers)\n"
        "    return [batch.numpy().tobytes() for batch, _ in loader]\n"
        "assert seen(2) == seen(0) and len(seen(0)) == 3\n"
    )
    # Its workers are forked, and a process with many other tests behind it is no place for that.
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_is_not_there_or_altered_is_said(folder: Path) -> None:
    with pytest.raises(SourceError, match="no split 'validation': it has"):
        veilset.data.open(folder, "validation")
    shard = folder / "train-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptError):
        veilset.data.open(folder, side=True)[0]
