import json
from pathlib import Path
from typing import Any, Never

import numpy as np
import pytest
import torch
from small_sets import params, stripes, subject

from veilset.errors import CorruptError
from veilset.training.evaluation import predict
from veilset.training.loop import train
from veilset.training.params import TrainingParams
from veilset.training.saved import CARD, WEIGHTS, load_card, load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("saved") / "model"
    train(stripes(32), stripes(8), params(epochs=2), subject(trained_on=("ab" * 32,)), path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    for name in (WEIGHTS, CARD):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


def test_only_weights_card_and_history_and_no_pickle(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, CARD, "history.csv"])
    for path in folder.iterdir():
        assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
    leftovers = {path.name for path in folder.parent.iterdir()} - {folder.name}
    assert not leftovers


def test_a_loaded_model_answers_as_the_trained_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Never:
        raise AssertionError("nothing may be unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.Unpickler", refuse)
    images = stripes(20, seed=5).images
    logits = [predict(*load_model(folder), images, batch_size=size) for size in (20, 7)]
    assert logits[0].shape == (20, 2) and logits[0].dtype == np.float32
    assert np.allclose(*logits, atol=1e-5)
    model, card = load_model(folder)
    assert not model.training
    assert card.trained_on == ("ab" * 32,)
    assert card == load_card(folder)


def test_the_card_says_how_the_model_came_about(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    expected = {
        "architecture": "small_cnn", "parameters": {"width": 4}, "scheme": "plain", "seed": 0,
        "classes": ["class 0", "class 1"], "shape": [8, 8, 1], "device": "cpu", "epochs": 2,
        "precision": "fp32", "accumulation": 1, "training_images": 32,
    }  # fmt: skip
    if card["precision"] == "bf16":  # what `auto` takes depends on the machine
        expected["precision"] = "bf16"
    assert {name: card[name] for name in expected} == expected
    assert card["recipe"]["crop"] == 1 and card["recipe"]["flip"] is False
    assert card["seconds"] > 0
    assert card["images_per_second"] == pytest.approx(64 / card["seconds"])


def test_the_card_says_what_was_chosen(folder: Path, tmp_path: Path) -> None:
    card = load_card(folder)
    assert (card.compiled, card.processes, card.streamed, card.batch) == (False, 1, False, 16)
    assert card.recipe["compile"] == "auto" and card.recipe["precision"] == "auto"
    made = train(stripes(50), stripes(8), params(lr=None, epochs=1), subject(), tmp_path / "m")
    assert (made.card.batch, made.card.recipe["batch_size"]) == (13, 16)
    assert made.card.recipe["lr"] == 0.05, "0.1 for 64 images, and the root of the batch"


def test_a_card_of_format_1_is_read_as_what_it_meant(copy: Path) -> None:
    new = load_card(copy)
    values = json.loads((copy / CARD).read_text())
    for name in ("compiled", "processes", "streamed", "batch"):
        del values[name]
    for name in ("milestones", "decay", "ema", "compile"):
        del values["recipe"][name]
    values["format"] = 1
    values["recipe"] |= {"optimiser": "sgd nesterov", "schedule": "one-cycle"}
    (copy / CARD).write_text(json.dumps(values))
    model, old = load_model(copy)
    assert old == new.model_copy(update={"recipe": {**new.recipe, "compile": "off"}})
    recipe = {name: old.recipe[name] for name in TrainingParams.model_fields}
    again = TrainingParams.parse(recipe, "recipe")
    assert (again.optimiser, again.schedule, again.ema) == ("sgd", "one_cycle", 0.0)
    assert predict(model, old, stripes(4).images, device="cpu").shape == (4, 2)


@pytest.mark.parametrize("change", [{"recipe": 3}, {"recipe": {}}, {"recipe": {"batch_size": 0}}])
def test_a_card_of_format_1_that_makes_no_sense_is_refused(copy: Path, change: Any) -> None:
    values = json.loads((copy / CARD).read_text()) | {"format": 1} | change
    (copy / CARD).write_text(json.dumps(values))
    with pytest.raises(CorruptError, match="not a model's card"):
        load_card(copy)


def test_every_altered_byte_of_the_weights_is_noticed(copy: Path) -> None:
    data = (copy / WEIGHTS).read_bytes()
    for place in range(0, len(data), 97):
        altered = bytearray(data)
        altered[place] ^= 1
        (copy / WEIGHTS).write_bytes(altered)
        with pytest.raises(CorruptError, match=r"model\.safetensors cannot be used"):
            load_model(copy)
    (copy / WEIGHTS).write_bytes(data[:-1])
    with pytest.raises(CorruptError, match="SHA-256"):
        load_model(copy)
    (copy / WEIGHTS).unlink()
    with pytest.raises(CorruptError, match="No such file"):
        load_model(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [8, 8]},
        {"normalisation": {"mean": [0.5]}},
        {"normalisation": {"mean": [0.5, 0.5], "std": [0.1, 0.1]}},
        {"normalisation": {"mean": [0.5], "std": [0.0]}},
        {"normalisation": {"mean": [float("nan")], "std": [0.1]}},
        {"validation_accuracy": 1.5},
        {"format": 3},
        {"unknown": 1},
        {"parameters": None},
    ],
)
def test_a_card_that_makes_no_sense_is_refused(copy: Path, change: Any) -> None:
    values = json.loads((copy / CARD).read_text()) | change
    (copy / CARD).write_text(json.dumps(values))
    with pytest.raises(CorruptError, match="not a model's card"):
        load_model(copy)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "\xff", "[" * 100_000])
def test_a_card_that_is_none_is_refused(copy: Path, text: str) -> None:
    (copy / CARD).write_text(text, encoding="latin-1")
    with pytest.raises(CorruptError, match="not a model's card"):
        load_card(copy)


def test_weights_of_another_architecture_are_refused(copy: Path) -> None:
    values = json.loads((copy / CARD).read_text()) | {"parameters": {"width": 8}}
    (copy / CARD).write_text(json.dumps(values))
    with pytest.raises(CorruptError, match="size mismatch"):
        load_model(copy)
