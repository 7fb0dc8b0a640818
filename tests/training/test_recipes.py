import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_sets import params, stripes, subject

from veilset.training.evaluation import predict
from veilset.training.loader import Samples
from veilset.training.loop import Epoch, TrainResult, train
from veilset.training.params import TrainingParams
from veilset.training.saved import CARD, HISTORY, WEIGHTS, load_model

TRAIN, HELD = stripes(50), stripes(13, seed=1)

RECIPES: dict[str, dict[str, Any]] = {
    "adam": {"optimiser": "adam", "lr": None, "weight_decay": 0.05},
    "multi_step": {"schedule": "multi_step", "lr": 0.05},
    "ema": {"ema": 0.8},
    "adam constant ema": {"optimiser": "adam", "lr": 0.003, "schedule": "constant", "ema": 0.9},
}


class Killed(BaseException):
    """Ends a training as an interrupt does."""


def _train(
    folder: Path, progress: Callable[[Epoch, int], None] | None = None, **changes: Any
) -> TrainResult:
    return train(TRAIN, HELD, params(**{"epochs": 4, **changes}), subject(), folder, progress)


def _outcome(folder: Path) -> tuple[bytes, bytes]:
    return (folder / WEIGHTS).read_bytes(), (folder / HISTORY).read_bytes()


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_goes_on_bit_for_bit_under_every_recipe(tmp_path: Path, name: str) -> None:
    _train(tmp_path / "whole", **RECIPES[name])
    for epoch in (1, 3):

        def stop(row: Epoch, _: int, last: int = epoch) -> None:
            if row.epoch == last:
                raise Killed

        place = tmp_path / f"parts {epoch}"
        with pytest.raises(Killed):
            _train(place, stop, **RECIPES[name])
        seen: list[int] = []
        _train(place, lambda row, _, seen=seen: seen.append(row.epoch), **RECIPES[name])
        assert seen == list(range(epoch + 1, 5))
        assert _outcome(place) == _outcome(tmp_path / "whole")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns_digits_and_says_what_it_was(
    digits: Samples, tmp_path: Path, name: str
) -> None:
    parts = [Samples(digits.images[a:b], digits.labels[a:b]) for a, b in ((0, 700), (700, 1000))]
    chosen = params(epochs=5, batch_size=32, **{"lr": 0.1, **RECIPES[name]})
    made = train(*parts, chosen, subject(10, model_params={"width": 16}), tmp_path / "m")
    assert made.card.validation_accuracy > 0.9
    recipe = json.loads((tmp_path / "m" / CARD).read_text())["recipe"]
    again = TrainingParams.parse(
        {name: recipe[name] for name in TrainingParams.model_fields}, "recipe"
    )
    assert again.lr == recipe["lr"] == chosen.peak_for(700)
    assert again.model_dump(exclude={"lr", "crop"}) == chosen.model_dump(exclude={"lr", "crop"})


def test_recipes_differ_in_their_weights(tmp_path: Path) -> None:
    made = {name: _train(tmp_path / name, **values) for name, values in RECIPES.items()}
    made["default"] = _train(tmp_path / "default")
    assert len({each.card.weights_sha256 for each in made.values()}) == len(made)


def test_the_average_is_validated_and_saved_and_does_not_touch_the_training(
    tmp_path: Path,
) -> None:
    plain = _train(tmp_path / "plain", precision="fp32")
    mean = _train(tmp_path / "mean", precision="fp32", ema=0.95)
    for one, other in zip(plain.history, mean.history, strict=True):
        assert (one.train_loss, one.train_accuracy) == (other.train_loss, other.train_accuracy)
        assert one.validation_loss != other.validation_loss
    model, card = load_model(tmp_path / "mean")
    logits = predict(model, card, HELD.images, device="cpu", batch_size=16)
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(HELD.labels)
    )
    assert float(loss) == pytest.approx(mean.history[-1].validation_loss, rel=1e-4)
    assert card.validation_accuracy == mean.history[-1].validation_accuracy
