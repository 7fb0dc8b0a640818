import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sets import params, stripes, subject

from veilset.models.augment import Augmentation, Moves, draw_moves, measure_normalisation
from veilset.models.device import Engine
from veilset.training.feed import Data, even_slices
from veilset.training.loop import Epoch, train
from veilset.training.saved import HISTORY, WEIGHTS

CPU = Engine(torch.device("cpu"), "fp32")


def _data(monkeypatch: pytest.MonkeyPatch, *, streamed: bool, device: Engine = CPU) -> Data:
    monkeypatch.setattr(Engine, "fits", lambda *_: not streamed)
    samples = stripes(29, (8, 9, 3))
    data = Data.of(samples, measure_normalisation(samples.images), device)
    assert data.streamed is streamed
    return data


def _batches(data: Data, moves: Moves | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    order = torch.randperm(29, generator=torch.Generator().manual_seed(3))
    return list(data.batches(order, moves, even_slices(29, 4)))


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
        ),
    ],
)
def test_main_memory_gives_the_bytes_that_the_device_gives(
    monkeypatch: pytest.MonkeyPatch, moved: bool, device: str
) -> None:
    moves = draw_moves(29, Augmentation(True, 2), torch.Generator().manual_seed(1))
    engine = Engine(torch.device(device), "fp32")
    found = [
        _batches(_data(monkeypatch, streamed=each, device=engine), moves if moved else None)
        for each in (False, True)
    ]
    assert [len(labels) for _, labels in found[0]] == [7, 7, 7, 8]
    for (images, labels), (same, also) in zip(*found, strict=True):
        assert torch.equal(images, same) and torch.equal(labels, also)
        assert same.device.type == also.device.type == device
        assert same.is_contiguous(memory_format=torch.channels_last)


def test_weights_are_equal_from_either_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, fits in (("resident", True), ("streamed", False)):
        monkeypatch.setattr(Engine, "fits", lambda *_, fits=fits: fits)
        settings = params(flip=True, crop=2)
        made = train(stripes(50), stripes(13, seed=1), settings, subject(), tmp_path / name)
        assert made.card.streamed is not fits
    for file in (WEIGHTS, HISTORY):
        one, other = ((tmp_path / name / file).read_bytes() for name in ("resident", "streamed"))
        assert one == other


def test_a_batch_is_gathered_while_the_one_before_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = _data(monkeypatch, streamed=True)
    gathered: list[tuple[int, str]] = []
    select = torch.index_select

    def watched(source: torch.Tensor, dim: int, rows: torch.Tensor, *, out: torch.Tensor) -> object:
        if source is data.images:
            gathered.append((len(rows), threading.current_thread().name))
        return select(source, dim, rows, out=out)

    monkeypatch.setattr(torch, "index_select", watched)
    batches = data.batches(torch.arange(29), None, even_slices(29, 4))
    next(batches)
    deadline = time.monotonic() + 10
    while len(gathered) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(gathered) == 2  # one ahead, and no more
    assert all(name.startswith("veilset-feed") for _, name in gathered)
    batches.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("veilset-feed")]


def test_a_training_that_is_left_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Engine, "fits", lambda *_: False)
    monkeypatch.setattr("veilset.training.loop._step", stop)
    with pytest.raises(Killed):
        train(stripes(50), stripes(13), params(), subject(), tmp_path / "m")
    assert not [each for each in threading.enumerate() if each.name.startswith("veilset-feed")]


def test_images_and_labels_decide_the_digest() -> None:
    samples = stripes(20)
    scale = measure_normalisation(samples.images)
    digests = {Data.of(samples, scale, CPU).digest, Data.of(stripes(20), scale, CPU).digest}
    assert len(digests) == 1
    images, labels = samples.images.copy(), samples.labels.copy()
    images[3, 1, 1, 0] ^= 1
    labels[0] ^= 1
    for changed in (samples._replace(images=images), samples._replace(labels=labels)):
        digests.add(Data.of(changed, scale, CPU).digest)
    assert len(digests) == 3


def test_a_streamed_run_that_was_killed_goes_on_on_either_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def stop(row: Epoch, _: int) -> None:
        raise Killed

    parts = stripes(50), stripes(13, seed=1)
    whole = train(*parts, params(), subject(), tmp_path / "whole")
    monkeypatch.setattr(Engine, "fits", lambda *_: False)
    with pytest.raises(Killed):
        train(*parts, params(), subject(), tmp_path / "m", stop)
    monkeypatch.setattr(Engine, "fits", lambda *_: True)
    seen: list[int] = []
    made = train(*parts, params(), subject(), tmp_path / "m", lambda row, _: seen.append(row.epoch))
    assert seen == [2, 3]
    assert made.card.weights_sha256 == whole.card.weights_sha256
    assert np.all([one == two for one, two in zip(made.history, whole.history, strict=True)])
