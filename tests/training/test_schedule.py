import numpy as np
import pytest
from small_sets import params

from veilset.training.schedule import learning_rate, multi_step, one_cycle


def test_one_cycle_rises_for_a_quarter_and_falls() -> None:
    rates = [one_cycle(done, 2.0) for done in np.linspace(0, 1, 401)]
    assert rates[0] == pytest.approx(2 / 25)
    assert rates[100] == pytest.approx(2.0) == max(rates)
    assert rates[-1] == pytest.approx(2 / 1e4)
    assert all(np.diff(rates[:101]) > 0) and all(np.diff(rates[100:]) < 0)


def test_multi_step_falls_at_its_milestones_and_nowhere_else() -> None:
    rates = [multi_step(done, 2.0, (0.5, 0.75), 0.1) for done in (0, 0.499, 0.5, 0.74, 0.75, 1)]
    assert rates == pytest.approx([2, 2, 0.2, 0.2, 0.02, 0.02])


def test_the_parameters_choose_the_schedule() -> None:
    done = np.linspace(0, 1, 9)
    falls = params(schedule="multi_step", milestones=[0.3], decay=0.5)
    assert [learning_rate(falls, 0.4, each) for each in done] == [0.4] * 3 + [0.2] * 6
    stays = params(schedule="constant")
    assert [learning_rate(stays, 0.4, each) for each in done] == [0.4] * 9
    assert [learning_rate(params(), 0.4, each) for each in done] == [
        one_cycle(each, 0.4) for each in done
    ]


def test_each_optimiser_has_a_learning_rate_of_its_own() -> None:
    for optimiser, lr in (("sgd", 0.1), ("adam", 0.003)):
        assert params(optimiser=optimiser, lr=None, batch_size=64).peak_for(9) == lr
    assert params(optimiser="adam", lr=0.7).peak_for(9) == 0.7
