import copy
import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_sets import declaration, params, stripes, subject
from torch import nn

from veilset.errors import CorruptError, TrainingError
from veilset.models.augment import Augmentation, draw_moves, measure_normalisation
from veilset.models.device import Engine
from veilset.training import checkpoint, loop
from veilset.training.evaluation import Answers, evaluate, predict
from veilset.training.feed import Data, even_slices
from veilset.training.loader import Samples
from veilset.training.loop import Epoch, Progress, TrainResult, train
from veilset.training.saved import CARD, HISTORY, WEIGHTS, load_model

TRAIN, HELD = stripes(50), stripes(13, seed=1)


def _train(folder: Path, progress: Progress | None = None, **changes: Any) -> TrainResult:
    return train(TRAIN, HELD, params(epochs=4, **changes), subject(), folder, progress)


def _outcome(folder: Path) -> tuple[bytes, bytes]:
    return (folder / WEIGHTS).read_bytes(), (folder / HISTORY).read_bytes()


class Killed(BaseException):
    """Ends a training as an interrupt does."""


def _stop_after(epoch: int) -> Progress:
    def progress(row: Epoch, epochs: int) -> None:
        if row.epoch == epoch:
            raise Killed

    return progress


def _note_into(seen: list[Epoch]) -> Progress:
    return lambda row, _: seen.append(row)


# Learning


def test_learns_digits(digits: Samples, tmp_path: Path) -> None:
    parts = [Samples(digits.images[a:b], digits.labels[a:b]) for a, b in ((0, 700), (700, 800))]
    settings = params(epochs=5, batch_size=32)
    result = train(*parts, settings, subject(10, model_params={"width": 16}), tmp_path / "m")
    model, card = load_model(tmp_path / "m")
    logits = predict(model, card, digits.images[800:], device="cpu")
    assert evaluate(Answers(logits, digits.labels[800:])).accuracy.low > 0.93
    assert result.history[-1].train_loss < result.history[0].train_loss
    # The card's validation accuracy is that of the weights that were saved.
    logits = predict(model, card, parts[1].images, device="cpu")
    if card.precision == "fp32":
        assert card.validation_accuracy == (logits.argmax(axis=1) == parts[1].labels).mean()


def test_labels_drawn_by_lot_are_not_learnt(tmp_path: Path) -> None:
    # The control of the test above: what it measures is not given by the loop itself.
    lot = np.random.default_rng(0).integers(0, 2, 213)
    parts = Samples(stripes(113).images, lot[:113]), Samples(stripes(100, seed=9).images, lot[113:])
    assert train(*parts, params(), subject(), tmp_path / "m").card.validation_accuracy < 0.7


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 15, 3), (17, 8, 1)])
def test_grey_rgb_and_odd_sizes(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    parts = stripes(64, shape), stripes(32, shape, seed=1)
    result = train(*parts, params(epochs=6, flip=True), subject(), tmp_path / "m")
    assert result.card.shape == shape
    assert result.card.validation_accuracy > 0.9


def test_the_residual_network_trains(tmp_path: Path) -> None:
    small = subject(model="resnet20", model_params={"width": 4})
    result = train(TRAIN, HELD, params(epochs=6), small, tmp_path / "m")
    assert result.card.validation_accuracy > 0.9
    assert result.card.architecture == "resnet20"


def test_read_only_and_strided_arrays_are_taken(tmp_path: Path) -> None:
    images = TRAIN.images[:, ::-1]
    labels = TRAIN.labels.copy()
    labels.flags.writeable = False
    train((images, labels), HELD, params(epochs=1), subject(), tmp_path / "m")


# Masks


MASKNET: Any = {"model": "masknet_resnet20", "model_params": {"width": 4}}


def in_the_mask(count: int, seed: int) -> Samples:
    """Noise that shows nothing: only the masks are striped, one way or the other."""
    made = stripes(count, seed=seed)
    mask = (made.images[..., 0] > 120).astype(np.uint8)
    noise = np.random.default_rng(seed).integers(0, 256, made.images.shape, dtype=np.uint8)
    return Samples(noise, made.labels, mask)


@pytest.mark.parametrize("gates", [True, False])
def test_a_masknet_learns_from_masks_what_no_image_shows(tmp_path: Path, gates: bool) -> None:
    parts, settings = (in_the_mask(120, 0), in_the_mask(60, 1)), params(epochs=5)
    values = {"width": 4, "gates": gates}
    reads = subject(model="masknet_resnet20", model_params=values)
    assert train(*parts, settings, reads, tmp_path / "m").card.validation_accuracy > 0.95
    model, card = load_model(tmp_path / "m")
    held = in_the_mask(60, 2)
    right = predict(model, card, held.images, held.mask).argmax(axis=1) == held.labels
    unmasked = predict(model, card, held.images).argmax(axis=1) == held.labels
    assert right.mean() > 0.9 and unmasked.mean() < 0.75
    with pytest.raises(TrainingError, match="mask of test images must be uint8"):
        predict(model, card, held.images, np.ones((60, 8, 9), np.uint8))


def test_without_the_mask_that_task_is_a_lottery(tmp_path: Path) -> None:
    # The control of the test above.
    parts = in_the_mask(120, 0), in_the_mask(60, 1)
    blind = subject(model="resnet20", model_params={"width": 4})
    assert train(*parts, params(epochs=5), blind, tmp_path / "m").card.validation_accuracy < 0.75


@given(st.integers(2, 9), st.integers(2, 9), st.sampled_from([1, 3]), st.integers(0, 999))
def test_a_mask_moves_with_its_image_and_stays_0_and_1(
    height: int, width: int, channels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (9, height, width), dtype=np.uint8)
    images = np.repeat(mask[..., None] * np.uint8(200), channels, axis=3)
    samples = Samples(images, np.arange(9), mask)
    normalisation = measure_normalisation(images)
    data = Data.of(samples, normalisation, Engine(torch.device("cpu"), "fp32"))
    moves = draw_moves(
        9, Augmentation(True, min(height, width) - 1), torch.Generator().manual_seed(seed)
    )
    pixels, labels = next(data.batches(torch.arange(9).flip(0), moves, [slice(0, 9)]))
    inputs = data.inputs(pixels)
    assert labels.tolist() == list(range(9))[::-1]
    assert inputs.shape == (9, channels + 1, height, width)
    moved = inputs[:, channels]
    assert set(moved.unique().tolist()) <= {0.0, 1.0}
    shown = inputs[:, :channels] * torch.tensor(normalisation.std)[:, None, None]
    shown += torch.tensor(normalisation.mean)[:, None, None]
    assert torch.allclose(shown * 255, 200 * moved[:, None].expand_as(shown), atol=1e-3)


def test_networks_that_read_no_mask_are_trained_as_without(tmp_path: Path) -> None:
    masked = [
        part._replace(mask=np.zeros(part.images.shape[:3], np.uint8)) for part in (TRAIN, HELD)
    ]
    train(*masked, params(epochs=1), subject(), tmp_path / "masked")
    train(TRAIN, HELD, params(epochs=1), subject(), tmp_path / "plain")
    assert _outcome(tmp_path / "masked") == _outcome(tmp_path / "plain")
    model, card = load_model(tmp_path / "plain")
    found = predict(model, card, HELD.images, masked[1].mask)
    assert (found == predict(model, card, HELD.images)).all()


def test_a_mask_decides_the_plan_of_a_run(tmp_path: Path) -> None:
    parts = in_the_mask(30, 0), in_the_mask(10, 1)
    with pytest.raises(Killed):
        train(*parts, params(), subject(**MASKNET), tmp_path / "m", _stop_after(1))
    assert parts[0].mask is not None
    parts[0].mask[0, 0, 0] ^= 1
    seen: list[Epoch] = []
    train(*parts, params(), subject(**MASKNET), tmp_path / "m", _note_into(seen))
    assert [row.epoch for row in seen] == [1, 2, 3]


class Priced(nn.Module):
    """A linear network with a weight that only its penalty knows."""

    def __init__(self, price: float) -> None:
        super().__init__()
        self.linear, self.idle = nn.Linear(64, 2), nn.Parameter(torch.zeros(3))
        nn.init.zeros_(self.linear.weight)
        self.price = price

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))

    def penalty(self) -> torch.Tensor:
        return self.price * self.idle.sum()


def test_a_networks_penalty_is_learnt_from_but_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories, idle = [], []
    for price in (0.0, 0.5):
        torch.manual_seed(0)
        network = Priced(price)
        monkeypatch.setattr(loop, "make_model", lambda *_, network=network, **__: network)
        histories.append(_train(tmp_path / str(price)).history)
        idle.append(network.idle.detach())
    assert histories[0] == histories[1]
    assert not idle[0].any() and (idle[1] < 0).all() and idle[1].unique().numel() == 1


# The same seed, the same weights


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = _train(tmp_path / "a", flip=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(12)
    second = _train(tmp_path / "b", flip=True)
    assert _outcome(tmp_path / "a") == _outcome(tmp_path / "b")
    assert first.history == second.history
    _train(tmp_path / "c", flip=True, seed=1)
    assert _outcome(tmp_path / "a")[0] != _outcome(tmp_path / "c")[0]


def test_history_reads_back_exactly(tmp_path: Path) -> None:
    result = _train(tmp_path / "m")
    rows = list(csv.DictReader((tmp_path / "m" / HISTORY).open()))
    assert list(rows[0]) == [
        "epoch", "lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy",
    ]  # fmt: skip
    assert [Epoch(**{k: float(v) for k, v in row.items()}) for row in rows] == [*result.history]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]


# Resuming


class Dropping(nn.Module):
    """A network that draws from torch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("drawing", [False, True])
def test_a_run_that_stops_after_any_epoch_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawing: bool
) -> None:
    if drawing:
        start = Dropping()
        monkeypatch.setattr(loop, "make_model", lambda *_, **__: copy.deepcopy(start))
    _train(tmp_path / "whole", flip=True)
    expected = _outcome(tmp_path / "whole")
    for epoch in (1, 2, 3, 4):
        with pytest.raises(Killed):
            _train(tmp_path / "parts", _stop_after(epoch), flip=True)
        assert not (tmp_path / "parts").exists()
        seen: list[Epoch] = []
        result = _train(tmp_path / "parts", _note_into(seen), flip=True)
        assert [row.epoch for row in seen] == list(range(epoch + 1, 5))
        assert _outcome(tmp_path / "parts") == expected
        assert len(result.history) == 4
        for path in (tmp_path / "parts").iterdir():
            path.unlink()
        (tmp_path / "parts").rmdir()


def test_a_masknet_resumes_the_same(tmp_path: Path) -> None:
    def again(folder: Path, progress: Progress | None = None) -> None:
        parts = in_the_mask(30, 0), in_the_mask(10, 1)
        train(*parts, params(epochs=3), subject(**MASKNET), folder, progress)

    again(tmp_path / "whole")
    with pytest.raises(Killed):
        again(tmp_path / "parts", _stop_after(1))
    again(tmp_path / "parts")
    assert _outcome(tmp_path / "parts") == _outcome(tmp_path / "whole")


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_loop
print("ready", flush=True)
test_loop._train(Path(sys.argv[1]), lambda row, epochs: print(row.epoch, flush=True))
"""


def test_a_killed_process_leaves_nothing_half_done_and_resumes(tmp_path: Path) -> None:
    _train(tmp_path / "whole")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "m"), str(Path(__file__).parent)]
    # The same number of threads: another one may sum in another order.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "2":
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
    assert (tmp_path / ".m.partial" / checkpoint.NAME).exists()
    seen: list[int] = []
    _train(tmp_path / "m", lambda row, _: seen.append(row.epoch))
    assert seen in ([3, 4], [4])  # the kill may come an epoch late, never early
    assert _outcome(tmp_path / "m") == _outcome(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "whole"]


def test_other_settings_or_images_start_anew(tmp_path: Path) -> None:
    for change in ({"lr": 0.05}, {"seed": 3}, {"threads": 2}):
        with pytest.raises(Killed):
            _train(tmp_path / "m", _stop_after(2))
        seen: list[int] = []
        _train(tmp_path / "m", lambda row, _, seen=seen: seen.append(row.epoch), **change)
        assert seen == [1, 2, 3, 4]
    with pytest.raises(Killed):
        _train(tmp_path / "m", _stop_after(2))
    images = TRAIN.images.copy()
    images[0, 0, 0, 0] ^= 1
    seen = []
    changed = Samples(images, TRAIN.labels)
    train(
        changed, HELD, params(epochs=4), subject(), tmp_path / "m",
        lambda row, _: seen.append(row.epoch),
    )  # fmt: skip
    assert seen == [1, 2, 3, 4]


def test_an_altered_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        _train(tmp_path / "m", _stop_after(1))
    path = tmp_path / ".m.partial" / checkpoint.NAME
    data = path.read_bytes()
    for place in (0, 40, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(CorruptError, match=r"cannot be resumed from .*digest"):
            _train(tmp_path / "m")
    path.write_bytes(data[:20])
    with pytest.raises(CorruptError, match="cannot be resumed"):
        _train(tmp_path / "m")


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.target, "w"))


def test_a_hostile_checkpoint_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    checkpoint.save_checkpoint(tmp_path, {"model": Hostile(str(tmp_path / "hit"))})
    with pytest.raises(CorruptError, match="cannot be resumed"):
        checkpoint.unpack_checkpoint(checkpoint.read_checkpoint(tmp_path) or b"", tmp_path)
    assert not (tmp_path / "hit").exists()


# Divergence and short memory


class Planted(nn.Module):
    """A linear network with a fault that a test plants."""

    def __init__(self, *, bad_when: str = "", limit: int = 10**9) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.bad_when, self.limit = bad_when, limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.limit and self.training:
            raise torch.OutOfMemoryError("planted")
        logits = self.linear(x.flatten(1))
        bad = self.bad_when == ("train" if self.training else "validation")
        return logits * float("inf") if bad else logits


def _plant(monkeypatch: pytest.MonkeyPatch, **fault: Any) -> None:
    monkeypatch.setattr(loop, "make_model", lambda *_, **__: Planted(**fault))


@pytest.mark.parametrize("bad_when", ["train", "validation"])
def test_a_loss_that_is_not_finite_ends_the_run_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_when: str
) -> None:
    _plant(monkeypatch, bad_when=bad_when)
    with pytest.raises(TrainingError, match=r"diverged: its loss became (nan|inf) in epoch 1"):
        _train(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    partial = tmp_path / ".m.partial"
    assert json.loads((partial / loop.FAILED).read_text())["epoch"] == 1
    assert not (partial / checkpoint.NAME).exists()
    # A later run that does well is not marked.
    _plant(monkeypatch)
    _train(tmp_path / "m")
    assert not (tmp_path / "m" / loop.FAILED).exists()


def test_a_learning_rate_far_too_high_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(monkeypatch)
    with pytest.raises(TrainingError, match="diverged"):
        train(
            TRAIN, HELD, params(epochs=60, lr=100, weight_decay=1, momentum=0.99), subject(),
            tmp_path / "m",
        )  # fmt: skip


def test_short_memory_halves_the_batch_and_keeps_its_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(monkeypatch)
    whole = _train(tmp_path / "whole", precision="fp32")
    _plant(monkeypatch, limit=5)
    parts = _train(tmp_path / "parts", precision="fp32")
    assert (whole.card.accumulation, parts.card.accumulation) == (1, 4)
    for one, other in zip(whole.history, parts.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.validation_accuracy == other.validation_accuracy


def test_no_memory_for_one_image_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(monkeypatch, limit=0)
    with pytest.raises(TrainingError, match="not the memory to train on one image"):
        _train(tmp_path / "m")


# Small parts


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (17, 2), (800, 13), (9, 9)])
def test_slices_cover_everything_evenly(count: int, parts: int) -> None:
    slices = even_slices(count, parts)
    assert [i for part in slices for i in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in slices]
    assert len(sizes) == parts and max(sizes) - min(sizes) <= 1


def test_a_scheme_that_scrambles_is_not_shifted(tmp_path: Path) -> None:
    scrambled = subject(declares=declaration(shift_safe=False))
    card = train(TRAIN, HELD, params(epochs=1), scrambled, tmp_path / "m").card
    assert (card.recipe["crop"], card.recipe["flip"]) == (0, False)
    assert json.loads((tmp_path / "m" / CARD).read_text())["recipe"]["crop"] == 0


def test_weights_stay_channels_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(all(
                t.is_contiguous(memory_format=torch.channels_last) for t in (x, self.conv.weight)
            ))  # fmt: skip
            return self.conv(x).mean(dim=(2, 3))

    monkeypatch.setattr(loop, "make_model", lambda *_, **__: Watched())
    parts = stripes(20, (8, 8, 3)), stripes(10, (8, 8, 3))
    with pytest.raises(Killed):
        train(*parts, params(), subject(), tmp_path / "m", _stop_after(1))
    train(*parts, params(), subject(), tmp_path / "m")
    assert seen and all(seen)
