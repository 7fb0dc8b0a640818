from pathlib import Path

import pytest
import torch
from small_sets import params, stripes, subject

from veilset.training import beat
from veilset.training.beat import Beat, Pulse
from veilset.training.loop import train
from veilset.training.saved import WEIGHTS


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(beat.time, "perf_counter", lambda: self.now)


def _pulse(clock: Clock, heard: list[Beat], steps: list[tuple[float, int]]) -> None:
    """Two epochs of 40 images, in the first of which steps end at these seconds and counts."""
    pulse = Pulse(heard.append, 2, 40)
    pulse.start(1)
    begin = clock.now
    for second, done in steps:
        clock.now = begin + second
        pulse.step(done, done, torch.tensor(done * 2.0), torch.tensor(done / 4))
    pulse.start(2)


def test_a_beat_every_second_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Beat] = []
    _pulse(Clock(monkeypatch), heard, [(0.4, 5), (1.0, 10), (1.5, 15), (1.9, 20), (3.0, 30)])
    assert [each.done for each in heard] == [10, 30]
    first, second = heard
    assert first == Beat(1, 2, 10, 40, 10.0, 2.0, 0.25, 7.0)  # 70 images are left, 10 a second
    assert second.rate == pytest.approx(10.0)
    assert second.seconds_left == pytest.approx(5.0)


def test_time_left_counts_what_an_epoch_takes_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, heard = Clock(monkeypatch), []
    pulse = Pulse(heard.append, 2, 40)
    pulse.start(1)
    clock.now += 4
    pulse.step(40, 40, torch.tensor(1.0), torch.tensor(1.0))
    clock.now += 4  # validation
    pulse.start(2)
    clock.now += 2
    pulse.step(20, 20, torch.tensor(1.0), torch.tensor(1.0))
    assert [each.epoch for each in heard] == [1, 2]
    assert heard[1].rate == pytest.approx(10.0)
    assert heard[1].seconds_left == pytest.approx(20 * 10 / 60)


def test_figures_that_have_not_arrived_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, heard = Clock(monkeypatch), []
    pulse = Pulse(heard.append, 1, 40)
    pulse.start(1)

    class Later:
        come = False

        def query(self) -> bool:
            return self.come

    later = Later()
    clock.now += 1
    sums = torch.tensor([10.0, 5.0], dtype=torch.float64)
    pulse._look = beat._Look(sums, later, 10, 10)  # type: ignore[arg-type]
    pulse.step(20, 20, torch.tensor(99.0), torch.tensor(99.0))
    assert heard == []
    later.come, clock.now = True, clock.now + 1
    pulse.step(30, 30, torch.tensor(99.0), torch.tensor(99.0))
    assert [(each.done, each.loss, each.accuracy) for each in heard] == [(10, 1.0, 0.5)]


def test_a_training_tells_of_itself_and_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, settings = (stripes(50), stripes(13, seed=1)), params(flip=True)
    train(*parts, settings, subject(), tmp_path / "silent")
    monkeypatch.setattr(beat, "EVERY", 0.0)
    heard: list[Beat] = []
    made = train(*parts, settings, subject(), tmp_path / "told", beat=heard.append)
    assert [(each.epoch, each.done) for each in heard] == [
        (epoch, done) for epoch in (1, 2, 3) for done in (12, 25, 37, 50)
    ]
    assert all(each.rate > 0 and each.epochs == 3 and each.count == 50 for each in heard)
    for last, row in zip(heard[3::4], made.history, strict=True):
        assert (last.loss, last.accuracy) == (row.train_loss, row.train_accuracy)
    assert heard[-1].seconds_left == 0
    one, other = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("silent", "told"))
    assert one == other
