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


def test_all_values_of_any_parameters_are_taken_again() -> None:
    # As a card states them: also those that nothing reads.
    for values in ({}, {"optimiser": "adam", "schedule": "constant"}, {"schedule": "multi_step"}):
        chosen = TrainingParams.parse(values, "train")
        stated = json.loads(json.dumps(chosen.model_dump(mode="json")))
        assert TrainingParams.parse(stated, "train") == chosen


@pytest.mark.parametrize(("text", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_yaml_may_leave_out_quotes(text: str, meant: str) -> None:
    assert TrainingParams.parse(yaml.safe_load(f"compile: {text}"), "train").compile == meant
