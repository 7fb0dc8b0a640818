import json
from typing import Any

import pytest
import yaml

from veilset.errors import SettingsError
from veilset.training.params import TrainingParams


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimiser": "adam", "momentum": 0.5}, "momentum is 0.5, but only optimiser sgd reads"),
        (
            {"decay": 0.5},
            "decay is 0.5, but only schedule multi_step reads it, and schedule is one",
        ),
        ({"schedule": "constant", "milestones": [0.2]}, "only schedule multi_step reads it"),
        ({"schedule": "multi_step", "milestones": []}, "one at least"),
        ({"schedule": "multi_step", "milestones": [0.7, 0.5]}, "in ascending order"),
        ({"schedule": "multi_step", "milestones": [0.5, 0.5]}, "in ascending order"),
        ({"schedule": "multi_step", "milestones": [1.0]}, "less than 1"),
        ({"schedule": "cosine"}, "schedule is 'cosine', but input should be 'one_cycle'"),
        ({"optimiser": "lion"}, "optimiser is 'lion', but input should be 'sgd' or 'adam'"),
        ({"lr": 0}, "lr is 0, but input should be greater than 0"),
        ({"ema": 1}, "ema is 1, but input should be less than 1"),
        ({"compile": "maybe"}, "compile is 'maybe', but input should be 'auto', 'on' or 'off'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(values: Any, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        TrainingParams.parse(values, "params.yaml: train")
    assert words in str(caught.value)
    assert str(caught.value).startswith("params.yaml: train.")


@pytest.mark.parametrize(
    ("count", "batch"), [(8, 64), (32_767, 64), (32_768, 128), (50_000, 128), (10**6, 512)]
)
def test_batches_go_by_the_number_of_images_and_the_rate_by_the_batch(
    count: int, batch: int
) -> None:
    settled = TrainingParams().settled(count)
    assert (settled.batch_size, settled.lr) == (batch, pytest.approx(0.1 * (batch / 64) ** 0.5))
    assert settled.settled(10) == settled, "what was chosen stays"
    asked = TrainingParams(batch_size=256, lr=0.3).settled(count)
    assert (asked.batch_size, asked.lr) == (256, 0.3)
    assert TrainingParams(optimiser="adam", batch_size=256).peak_for(count) == pytest.approx(0.006)


def test_all_values_of_any_parameters_are_taken_again() -> None:
    # As a card states them: also those that nothing reads.
    for values in ({}, {"optimiser": "adam", "schedule": "constant"}, {"schedule": "multi_step"}):
        chosen = TrainingParams.parse(values, "train")
        stated = json.loads(json.dumps(chosen.model_dump(mode="json")))
        assert TrainingParams.parse(stated, "train") == chosen


@pytest.mark.parametrize(("text", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_yaml_may_leave_out_quotes(text: str, meant: str) -> None:
    assert TrainingParams.parse(yaml.safe_load(f"compile: {text}"), "train").compile == meant
