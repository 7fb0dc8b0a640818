"""Two processes on one machine: each start of `torchrun` takes some seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import several
import torch
from stored_sets import write_drops
from torch import nn

from veilset.errors import TrainingError
from veilset.training import loop
from veilset.training.ranks import Ranks, SyncedBatchNorm, join, synchronise
from veilset.training.saved import HISTORY, WEIGHTS, load_model

HERE = Path(__file__).parent


def _start(folder: Path, case: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(HERE / "several.py"), str(folder), case,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("loses_one", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_train_as_one_and_survive_the_loss_of_one(
    tmp_path: Path, loses_one: bool
) -> None:
    if loses_one:
        broken = _start(tmp_path / "two", "dies")
        assert broken.returncode != 0
        said = [line for line in broken.stderr.splitlines() if line.startswith("veilset: ")]
        # Either it noticed first, or it was told to stop by torchrun, which had.
        assert len(said) == 1
        noticed = "another of the 2 processes of this training ended"
        assert noticed in said[0] or "stopped" in said[0]
        assert 'several.py", line' not in broken.stderr
        assert not (tmp_path / "two").exists()

    whole = _start(tmp_path / "two", "whole")
    assert whole.returncode == 0, whole.stderr
    # Only the first process reports, and it goes on after the last whole epoch.
    epochs = ["epoch 2"] if loses_one else ["epoch 1", "epoch 2"]
    assert [line for line in whole.stdout.splitlines() if line.startswith("epoch")] == epochs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two"]

    alone = several.trained(tmp_path / "one")
    together = several.read_history(tmp_path / "two")
    for one, two in zip(alone.history, together, strict=True):
        assert two.lr == one.lr
        assert two.train_loss == pytest.approx(one.train_loss, abs=1e-4)
        assert two.validation_loss == pytest.approx(one.validation_loss, abs=1e-4)
        assert two.train_accuracy == pytest.approx(one.train_accuracy, abs=0.02)
        assert two.validation_accuracy == pytest.approx(one.validation_accuracy, abs=0.08)
    (model, card), (same, _) = (load_model(tmp_path / name) for name in ("two", "one"))
    assert (card.processes, card.batch) == (2, alone.card.batch) == (2, 14)
    for name, value in same.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-3), name


@pytest.mark.slow
def test_two_processes_read_from_disk_what_they_would_have_in_memory(tmp_path: Path) -> None:
    write_drops(tmp_path, count=67)
    made = []
    for case in ("memory", "disk"):
        done = _start(tmp_path / case, case)
        assert done.returncode == 0, done.stderr
        made.append([(tmp_path / case / name).read_bytes() for name in (WEIGHTS, HISTORY)])
    assert made[0] == made[1]


def test_the_synchronised_norm_is_torchs_own() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((6, 5, 4, 3), generator=generator) * 3 + 1
    slope = torch.randn(x.shape, generator=generator)
    ours, theirs = (nn.Sequential(nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5)) for _ in range(2))
    nn.init.uniform_(theirs[1].weight, generator=generator)
    nn.init.uniform_(theirs[1].bias, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    synchronise(ours, Ranks())
    assert isinstance(ours[1], SyncedBatchNorm)
    found = []
    for model in (ours, theirs):
        read = x.clone().requires_grad_()
        for _ in range(2):
            y = model(read)
        (y * slope).sum().backward()
        values = [y, read.grad, *(p.grad for p in model.parameters()), *model.buffers()]
        found.append([*values, model.eval()(read)])
    for one, two in zip(*found, strict=True):
        assert one is not None and one.dtype == two.dtype
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_in_bf16_it_passes_on_bf16() -> None:
    model = SyncedBatchNorm(nn.BatchNorm2d(3), Ranks())
    x = torch.randn((4, 3, 5, 5), generator=torch.Generator().manual_seed(0))
    assert model(x.bfloat16()).dtype == torch.bfloat16
    expected = nn.BatchNorm2d(3)(x)
    assert torch.allclose(model(x.bfloat16()).float(), expected, atol=0.05)


def test_a_norm_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(TrainingError, match="train it in one process"):
        synchronise(nn.Sequential(nn.BatchNorm2d(3, affine=False)), Ranks())


class Other(Ranks):
    """One process of two, whose fellow is not there."""

    def hand_out(self, data: bytes | None) -> bytes | None:
        del data
        return b"another plan"


def test_processes_with_other_settings_are_refused() -> None:
    with pytest.raises(TrainingError, match="process 1 was given other images or settings"):
        loop._require_one_plan("a plan", Other(1, 2))
    loop._require_one_plan("another plan", Other(1, 2))


def test_batches_that_are_too_small_to_share_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "join", lambda _: Ranks(0, 14))
    with pytest.raises(TrainingError, match="a batch of 13 images is too small for 14 processes"):
        several.trained(tmp_path / "m")


def test_short_memory_ends_a_training_by_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loop, "join", lambda _: Other(0, 2))
    monkeypatch.setattr(loop, "_require_one_plan", lambda *_: None)
    monkeypatch.setattr(loop, "_resume", lambda *_: None)
    monkeypatch.setattr(loop, "_gradients", full)
    with pytest.raises(TrainingError, match="6 images at once in each of 2 processes: lower batch"):
        several.trained(tmp_path / "m")


def test_shares_cover_a_batch_evenly() -> None:
    parts = [Ranks(index, 3).share(slice(10, 21)) for index in range(3)]
    assert [row for part in parts for row in range(100)[part]] == list(range(10, 21))
    assert {part.stop - part.start for part in parts} == {3, 4}


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # left there by something else
    assert join("cpu") == Ranks()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join("cpu") == Ranks()
    alone = Ranks()
    assert alone.leads and alone.hand_out(b"x") == b"x" and alone.share(slice(3, 9)) == slice(3, 9)
    assert torch.equal(alone.add_up(torch.ones(2)), torch.ones(2))
