"""Trainings on sets that main memory has no room for."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sets import params, subject
from stored_sets import write_drops

from veilset.data import stored
from veilset.data.shards import ImageSet, write_set
from veilset.data.stored import StoredRows, open_stored
from veilset.errors import CorruptError, SourceError, TrainingError
from veilset.models.augment import Augmentation, draw_moves
from veilset.models.device import Engine
from veilset.training import feed
from veilset.training.evaluation import predict
from veilset.training.feed import Data, even_slices
from veilset.training.loader import Samples, needed, read_samples
from veilset.training.loop import Epoch, TrainResult, train
from veilset.training.saved import HISTORY, WEIGHTS, load_model

CPU = Engine(torch.device("cpu"), "fp32")
MASKNET = {"model": "masknet_resnet20", "model_params": {"width": 4}}


class Killed(BaseException):
    """Ends a training as an interrupt does."""


def _kill(*_: object) -> None:
    raise Killed


@pytest.fixture(autouse=True)
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few bytes at once, and held, that each epoch takes many reads."""
    monkeypatch.setattr(feed, "READ_BYTES", 12 * 8 * 9 * 3)
    monkeypatch.setattr(stored, "_CACHE_BYTES", 1)


def _both(
    folders: list[Path], split: str = "train", *, masks: bool = False
) -> tuple[Samples, Samples]:
    """The same split in memory and on disk."""
    whole = needed(folders, split, masks=masks)
    ids, there = read_samples(folders, split, masks=masks, room=whole)
    same, kept = read_samples(folders, split, masks=masks, room=whole - 1)
    assert (ids == same).all() and (there.labels == kept.labels).all()
    assert kept.on_disk and not there.on_disk
    return there, kept


def _parts(folders: list[Path], *, disk: bool, masks: bool = False) -> tuple[Samples, Samples]:
    one, two = (_both(folders, split, masks=masks)[disk] for split in ("train", "validation"))
    return one, two


def _outcome(made: TrainResult) -> tuple[bytes, bytes]:
    return (made.folder / WEIGHTS).read_bytes(), (made.folder / HISTORY).read_bytes()


def _reading() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("veilset-")]


@pytest.mark.parametrize("masks", [False, True])
def test_rows_on_disk_are_those_in_memory_in_any_order(tmp_path: Path, masks: bool) -> None:
    there, kept = _both(write_drops(tmp_path, masks=masks), masks=masks)
    images = kept.images
    assert isinstance(images, StoredRows)
    assert (images.shape, len(images)) == (there.images.shape, 60)
    rng = np.random.default_rng(0)
    asked = [rng.permutation(60), rng.integers(0, 60, 200), np.array([7]), slice(3, 50), slice(0)]
    for _ in range(2):  # the second time, what was verified is read row by row
        for rows in asked:
            assert (images[rows] == there.images[rows]).all()
            if masks:
                assert kept.mask is not None and there.mask is not None
                assert (kept.mask[rows] == there.mask[rows]).all()
    with pytest.raises(IndexError):
        images[np.array([60])]


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
        ),
    ],
)
def test_disk_gives_the_batches_that_memory_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool, masks: bool, device: str
) -> None:
    engine = Engine(torch.device(device), "fp32")
    monkeypatch.setattr(Engine, "fits", lambda self, _: self.device.type == "cpu")
    datas = [
        Data.of(each, None, engine)
        for each in _both(write_drops(tmp_path, masks=masks), masks=masks)
    ]
    assert datas[0].digest == datas[1].digest
    assert datas[0].normalisation == datas[1].normalisation
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    moves = draw_moves(60, Augmentation(True, 2), torch.Generator().manual_seed(1))
    parts = even_slices(60, 9)[::2]  # with gaps, as one of several processes has them
    found = [list(each.batches(order, moves if moved else None, parts)) for each in datas]
    assert len(found[0]) == len(found[1]) == 5
    for (images, labels), (same, also) in zip(*found, strict=True):
        assert torch.equal(images, same) and torch.equal(labels, also)
        assert same.is_contiguous(memory_format=torch.channels_last)
    assert not _reading()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_device_with_room_takes_what_main_memory_could_not(tmp_path: Path) -> None:
    there, kept = _both(write_drops(tmp_path))
    data = Data.of(kept, None, Engine(torch.device("cuda"), "fp32"))
    assert isinstance(data.images, torch.Tensor) and not data.streamed
    assert (data.images.cpu().numpy() == there.images).all()


@pytest.mark.parametrize("network", [{}, MASKNET], ids=["cnn", "masknet"])
def test_weights_are_equal_from_disk_also_after_a_kill(
    tmp_path: Path, network: dict[str, object]
) -> None:
    masks = bool(network)
    folders = write_drops(tmp_path, masks=masks)
    memory, disk = (_parts(folders, disk=each, masks=masks) for each in (False, True))
    settings, net = params(flip=True, crop=2), subject(**network)
    whole = train(*memory, settings, net, tmp_path / "memory")
    streamed = train(*disk, settings, net, tmp_path / "disk")
    assert (whole.card.streamed, streamed.card.streamed) == (False, True)
    assert _outcome(streamed) == _outcome(whole)
    assert streamed.card.normalisation == whole.card.normalisation
    for name, before, after in (("a", disk, memory), ("b", memory, disk), ("c", disk, disk)):
        with pytest.raises(Killed):
            train(*before, settings, net, tmp_path / name, _kill)
        seen: list[int] = []

        def note(row: Epoch, _: int, seen: list[int] = seen) -> None:
            seen.append(row.epoch)

        assert _outcome(train(*after, settings, net, tmp_path / name, note)) == _outcome(whole)
        assert seen == [2, 3]
    assert not _reading()


@pytest.mark.parametrize("masks", [False, True])
def test_a_network_answers_alike_from_disk(tmp_path: Path, masks: bool) -> None:
    folders = write_drops(tmp_path, masks=masks)
    network = subject(**MASKNET) if masks else subject()
    made = train(
        *_parts(folders, disk=False, masks=masks), params(epochs=1), network, tmp_path / "m"
    )
    model, card = load_model(made.folder)
    found = [
        predict(model, card, each.images, each.mask, batch_size=4, device="cpu")
        for each in _both(folders, "test", masks=masks)
    ]
    assert found[0].shape == (21, 2) and (found[0] == found[1]).all()
    assert not _reading()


def _spoil(path: Path) -> None:
    """Turns a bit of the last image of a shard's middle: the length stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_shard_that_is_damaged_before_stops_the_training(tmp_path: Path) -> None:
    folders = write_drops(tmp_path)
    parts = _parts(folders, disk=True)
    _spoil(folders[1] / "train-00001.arrow")
    with pytest.raises(CorruptError, match=r"second/train-00001.arrow is damaged in chunk 0 of 1"):
        train(*parts, params(), subject(), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_shard_that_is_damaged_meanwhile_stops_the_training(tmp_path: Path) -> None:
    folders = write_drops(tmp_path)

    def spoil(row: Epoch, _: int) -> None:
        assert row.epoch == 1
        _spoil(folders[0] / "train-00002.arrow")

    with pytest.raises(CorruptError, match=r"train-00002.arrow is damaged.*fetch it") as caught:
        train(*_parts(folders, disk=True), params(), subject(), tmp_path / "m", spoil)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists() and not _reading()


def test_a_shard_that_was_only_touched_is_verified_anew(tmp_path: Path) -> None:
    folders = write_drops(tmp_path)
    there, kept = _both(folders)
    rows = np.random.default_rng(0).permutation(60)
    assert (kept.images[rows] == there.images[rows]).all()
    for path in folders[0].glob("train-*.arrow"):
        os.utime(path)
    assert (kept.images[rows] == there.images[rows]).all()


def test_a_stored_mask_holds_0_and_1_alone(tmp_path: Path) -> None:
    folders = write_drops(tmp_path, masks=True)
    kept = _both(folders, masks=True)[1]
    odd = kept._replace(mask=np.full((60, 8, 9), 2, np.uint8))
    with pytest.raises(TrainingError, match="holds 2: it says 1 for kept"):
        Data.of(odd, None, CPU)


def test_masks_of_some_drops_alone_are_refused(tmp_path: Path) -> None:
    with_masks, _ = write_drops(tmp_path / "a", masks=True)
    _, without = write_drops(tmp_path / "b")
    with pytest.raises(SourceError, match="has no column 'mask', but other drops have"):
        open_stored([with_masks, without], "train", "mask")
    assert open_stored([without], "train", "mask").column is None


def test_only_images_and_columns_of_bytes_are_streamed(tmp_path: Path) -> None:
    images = ImageSet.open(write_drops(tmp_path, masks=True)[0])
    for name in ("label", "id", "other"):
        with pytest.raises(KeyError, match="no column of bytes"):
            images.streamed("train", name, slice(0, 2))


def test_pieces_grow_to_what_is_read_at_once() -> None:
    sizes = [4] * 12 + [50] + [4] * 2
    found = list(feed._pieces(sizes, 20))
    assert [size for piece in found for size in piece] == sizes
    assert [sum(piece) for piece in found] == [4, 8, 16, 20, 50, 8]


PEAK = """
import sys
from pathlib import Path
import numpy as np
import torch
from veilset.models.augment import Augmentation, draw_moves
from veilset.models.device import Engine
from veilset.training import feed
from veilset.training.feed import Data, even_slices
from veilset.training.loader import Samples, read_samples

feed.READ_BYTES = 4 << 20

def peak():
    # Not ru_maxrss, which a process takes over from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))

def an_epoch(samples):
    generator = torch.Generator().manual_seed(0)
    data = Data.of(samples, None, Engine(torch.device("cpu"), "fp32"))
    order = torch.randperm(len(data), generator=generator)
    moves = draw_moves(len(data), Augmentation(True, 2), generator)
    for pixels, _ in data.batches(order, moves, even_slices(len(data), len(data) // 32)):
        data.inputs(pixels)

# Compiles what is compiled, which takes memory as well.
an_epoch(Samples(np.zeros((64, 8, 8, 3), np.uint8), np.zeros(64, np.int64)))
room = None if sys.argv[2] == "memory" else 0
before = peak()
an_epoch(read_samples([Path(sys.argv[1])], "train", masks=False, room=room)[1])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    rng, count = np.random.default_rng(0), 3584
    images = rng.integers(0, 256, (count, 128, 128, 3), dtype=np.uint8)  # 168 MiB
    ids = np.arange(count, dtype=">u8").view(np.uint8).reshape(count, 8).repeat(2, axis=1)
    labels = np.arange(count, dtype=np.int64) % 2
    write_set(tmp_path / "set", kind="protected", dataset="t", classes=("a", "b"),
              parts={"train": (ids, labels, images, {})}, shard_bytes=20 << 20)  # fmt: skip
    grown = {}
    for place in ("memory", "disk"):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / "set"), place],
            capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
        grown[place] = int(done.stdout)
    assert grown["memory"] > 168  # so that the figure can be believed
    assert grown["disk"] < 168 / 2, grown
