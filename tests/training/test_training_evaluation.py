import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score
from small_sets import declaration, params, stripes, subject
from torch import nn

from veilset.data.shards import write_set
from veilset.errors import SourceError, TrainingError
from veilset.metrics.statistics import wilson
from veilset.training import evaluation
from veilset.training.comparison import compare_utility
from veilset.training.differences import difference_of, difference_of_counts
from veilset.training.evaluation import (
    Answers,
    Scored,
    accuracy_of,
    calibration_error,
    evaluate,
    evaluation_row,
    lost,
    predict,
    read_test_set,
    softmax,
    write_evaluation,
)
from veilset.training.loop import train
from veilset.training.saved import ModelCard, load_model
from veilset.types import FloatArray, Labels

Trained = tuple[nn.Module, ModelCard]

PROTECTS = declaration(protects_queries=True)
LABELS = declaration(uses_labels=True)


def _answers(n: int = 200, classes: int = 4, seed: int = 0, skill: float = 2.0) -> Answers:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += skill
    ids = np.zeros((n, 16), dtype=np.uint8)
    ids[:, :2] = np.arange(n).astype(">u2").view(np.uint8).reshape(n, 2)
    return Answers(logits.astype(np.float32), labels, ids)


def _shuffled(answers: Answers, seed: int = 1) -> Answers:
    order = np.random.default_rng(seed).permutation(len(answers.labels))
    assert answers.ids is not None
    return Answers(answers.logits[order], answers.labels[order], answers.ids[order])


# The wrong evaluation


def test_a_scheme_that_uses_labels_is_only_scored_on_plain_images() -> None:
    assert evaluation.test_sets(LABELS) == ("plain",)
    assert evaluation.test_sets(declaration()) == ("plain",)
    assert evaluation.test_sets(PROTECTS) == ("plain", "protected")
    assert evaluation.declared_test_set(LABELS) == "plain"
    assert evaluation.declared_test_set(PROTECTS) == "protected"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("evaluation") / "model"
    train(stripes(64), stripes(16), params(epochs=3), subject(), folder)
    return load_model(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ingested set, and one that each kind of scheme made, all with a `test` split."""
    base = tmp_path_factory.mktemp("sets")
    images, labels, _ = stripes(12)
    ids = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
    parts = {"test": (ids, labels, images, {})}
    for name, declares in (("queries", PROTECTS), ("labels", LABELS), ("ingested", None)):
        scheme = None if declares is None else {
            "name": name, "declaration": {
                "protects_queries": declares.protects_queries, "uses_labels": declares.uses_labels,
            },
        }  # fmt: skip
        kind = "ingested" if declares is None else "protected"
        write_set(
            base / name, kind=kind, dataset="t", classes=("a", "b"), parts=parts, scheme=scheme
        )
    return base


def test_the_wrong_evaluation_cannot_be_written(trained: Trained, sets: Path) -> None:
    answers = _answers(classes=2)
    for declares, why in ((LABELS, "it reads the labels"), (declaration(), "does not protect")):
        with pytest.raises(TrainingError, match=f"never scored on protected.*{why}"):
            evaluation_row([Scored(trained[1], answers)], declares, "protected")
        with pytest.raises(TrainingError, match="never scored on protected"):
            read_test_set(declares, "protected", [sets / "labels"])
    # Nor by a wrong folder, nor by a declaration that is not the set's own.
    with pytest.raises(SourceError, match="is an ingested set, but protected test images"):
        read_test_set(PROTECTS, "protected", [sets / "ingested"])
    with pytest.raises(SourceError, match="a protected set, but plain test images"):
        read_test_set(LABELS, "plain", [sets / "labels"])
    with pytest.raises(SourceError, match="does not declare to protect queries"):
        read_test_set(PROTECTS, "protected", [sets / "labels"])
    assert len(read_test_set(PROTECTS, "protected", [sets / "queries"])[0]) == 12
    assert len(read_test_set(LABELS, "plain", [sets / "ingested"])[0]) == 12


def test_masked_test_images_come_with_their_masks(tmp_path: Path) -> None:
    images, labels, _ = stripes(6)
    ids = np.arange(6 * 16, dtype=np.uint8).reshape(6, 16)
    mask = np.random.default_rng(0).integers(0, 2, (6, 8, 8), dtype=np.uint8)
    scheme = {"name": "m", "declaration": {"protects_queries": True, "uses_labels": False}}
    write_set(
        tmp_path / "m", kind="protected", dataset="t", classes=("a", "b"), scheme=scheme,
        parts={"test": (ids, labels, images, {"mask": mask})},
    )  # fmt: skip
    found = read_test_set(PROTECTS, "protected", [tmp_path / "m"], masks=True)[1]
    assert found.mask is not None and (found.mask == mask).all()
    assert read_test_set(PROTECTS, "protected", [tmp_path / "m"])[1].mask is None


# Scores against independent references


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 80), st.integers(2, 6), st.integers(0, 10**6))
def test_scores_agree_with_scikit_learn(n: int, classes: int, seed: int) -> None:
    answers = _answers(n, classes, seed, skill=1.0)
    scores = evaluate(answers)
    said = answers.logits.argmax(axis=1)
    known = list(range(classes))
    assert scores.accuracy.value == pytest.approx(accuracy_score(answers.labels, said))
    assert np.array_equal(scores.confusion, confusion_matrix(answers.labels, said, labels=known))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recall = recall_score(answers.labels, said, labels=known, average=None, zero_division=0)
    for index, (count, interval) in enumerate(scores.per_class):
        assert count == (answers.labels == index).sum()
        assert (interval is None) == (count == 0)
        if interval is not None:
            assert interval.value == pytest.approx(recall[index])
            assert interval == wilson(round(float(recall[index]) * count), count)
    assert 0 <= scores.accuracy.low <= scores.accuracy.value <= scores.accuracy.high <= 1


def _slow_calibration_error(probabilities: FloatArray, labels: Labels, bins: int) -> float:
    """Guo et al. 2017, equations 2 and 3, as they are written."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [
            (max(row), float(np.argmax(row) == label))
            for row, label in zip(probabilities, labels, strict=True)
            if (m - 1) / bins < max(row) <= m / bins
        ]
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(2, 5), st.sampled_from([1, 10, 15]), st.integers(0, 999))
def test_calibration_error_is_the_papers(n: int, classes: int, bins: int, seed: int) -> None:
    answers = _answers(n, classes, seed)
    probabilities = softmax(answers.logits)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    found = calibration_error(probabilities, answers.labels, bins)
    assert found == pytest.approx(_slow_calibration_error(probabilities, answers.labels, bins))


def test_calibration_error_of_the_sure_and_wrong_is_one() -> None:
    sure = np.array([[1.0, 0.0]] * 5)
    assert calibration_error(sure, np.ones(5, dtype=np.int64)) == 1
    assert calibration_error(sure, np.zeros(5, dtype=np.int64)) == 0


# What a scheme costs


def test_loss_is_paired_by_source_id_whatever_the_order() -> None:
    baseline, ours = _answers(skill=4.0), _answers(skill=1.0)
    a, b = baseline.correct, ours.correct
    expected = difference_of_counts(
        int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())
    )
    assert expected.value > 0.1
    assert lost([baseline], [_shuffled(ours)]) == expected
    assert lost([_shuffled(baseline)], [ours]) == expected


def test_loss_on_other_images_is_unpaired() -> None:
    baseline, ours = _answers(skill=4.0), _answers(n=150, skill=1.0)
    expected = difference_of(
        wilson(int(baseline.correct.sum()), 200), wilson(int(ours.correct.sum()), 150)
    )
    assert lost([baseline], [ours]) == expected
    nameless = Answers(_answers(skill=1.0).logits, _answers(skill=1.0).labels)
    apart, paired = lost([baseline], [nameless]), lost([baseline], [_answers(skill=1.0)])
    assert apart.value == pytest.approx(paired.value)
    assert apart.low < paired.low


def test_mixed_up_ids_are_noticed() -> None:
    baseline = _answers()
    mixed = Answers(baseline.logits, baseline.labels, baseline.ids[::-1])
    with pytest.raises(TrainingError, match="ids were mixed up"):
        lost([baseline], [mixed])


def test_rows_are_those_of_the_record(trained: Trained, tmp_path: Path) -> None:
    _, card = trained
    baseline, ours = _answers(classes=2, skill=3.0), _answers(classes=2, skill=1.0)
    rows = [
        evaluation_row(
            [Scored(card, ours)], PROTECTS, on, [Scored(card, baseline)], model_name="mine"
        )
        for on in ("protected", "plain")
    ]
    write_evaluation(tmp_path / "evaluation.json", rows)
    read = json.loads((tmp_path / "evaluation.json").read_text())
    assert (read["schema"], read["baseline"]) == (1, "plain")
    assert [(r["test_on"], r["declared"]) for r in read["rows"]] == [
        ("plain", False), ("protected", True)
    ]  # fmt: skip
    row = read["rows"][0]
    loss = lost([baseline], [ours])
    assert row["loss_points"] == pytest.approx(100 * loss.value)
    assert (row["loss_low"], row["loss_high"]) == (100 * loss.low, 100 * loss.high)
    assert row["loss_points"] == pytest.approx(100 * (row["baseline_accuracy"] - row["accuracy"]))
    assert row["paired"] is True
    assert row["correct"] == round(row["accuracy"] * row["n"])
    assert [entry["class"] for entry in row["per_class"]] == list(card.classes)
    assert sum(map(sum, row["confusion"])) == row["n"] == 200
    assert (row["scheme"], row["model"]) == ("plain", "mine")
    assert row["train_seconds"] == card.seconds
    assert row["train_time_ratio"] == 1
    alone = evaluation_row([Scored(card, ours)], PROTECTS, "plain")
    assert alone["loss_points"] is None and alone["baseline_accuracy"] is None
    assert alone["train_time_ratio"] is None


# Several seeds


def _runs(
    skill: float, spread: float = 0.2, runs: int = 3, seed: int = 0, classes: int = 4
) -> list[Answers]:
    """Answers of so many seeds, whose skill differs, to the same 200 images."""
    rng = np.random.default_rng(seed)
    labels, ids = _answers(classes=classes).labels, _answers().ids
    made = []
    for own in skill + spread * rng.normal(size=runs):
        logits = rng.normal(size=(len(labels), classes))
        logits[np.arange(len(labels)), labels] += own
        made.append(Answers(logits.astype(np.float32), labels, ids))
    return made


def test_rows_are_over_all_seeds(trained: Trained) -> None:
    _, card = trained
    cards = [card.model_copy(update={"seed": seed, "seconds": 2.0 + seed}) for seed in range(3)]
    baseline = [Scored(c, a) for c, a in zip(cards, _runs(4.0, classes=2), strict=True)]
    ours = [Scored(c, a) for c, a in zip(cards, _runs(1.0, classes=2), strict=True)]
    row = evaluation_row(ours, PROTECTS, "protected", baseline)
    rates = [float(run.answers.correct.mean()) for run in ours]
    assert row["accuracy"] == pytest.approx(np.mean(rates))
    assert [one["accuracy"] for one in row["seeds"]] == pytest.approx(rates)
    assert [one["seed"] for one in row["seeds"]] == [0, 1, 2]
    assert (row["runs"], row["n"]) == (3, 200)
    assert row["correct"] == round(sum(rates) * 200) == np.trace(np.array(row["confusion"]))
    assert row["loss_points"] == pytest.approx(100 * (row["baseline_accuracy"] - row["accuracy"]))
    assert row["loss_low"] < row["loss_points"] < row["loss_high"]
    assert row["train_seconds"] == 3
    assert all(one["low"] <= one["accuracy"] <= one["high"] for one in row["per_class"])
    assert sum(one["n"] for one in row["per_class"]) == 200
    elsewhere = evaluation_row(baseline, PROTECTS, "protected", baseline, protected_by="mix")
    assert (elsewhere["declared"], elsewhere["protected_by"]) == (False, "mix")


def test_seeds_that_differ_widen_the_interval_whatever_the_order_of_images() -> None:
    runs = _runs(1.5, spread=0.0)
    steady, shaken = accuracy_of(runs), accuracy_of(_runs(1.5, spread=1.0))
    assert shaken.high - shaken.low > 1.5 * (steady.high - steady.low)
    assert accuracy_of([runs[0], _shuffled(runs[1]), runs[2]]) == steady
    alone = accuracy_of(runs[:1])
    assert alone == wilson(int(runs[0].correct.sum()), 200)


def test_seeds_on_other_images_are_refused() -> None:
    one, two = _runs(1.0)[:2]
    assert two.ids is not None
    other = Answers(two.logits, two.labels, two.ids ^ np.uint8(1))
    with pytest.raises(TrainingError, match="different images"):
        accuracy_of([one, other])
    with pytest.raises(TrainingError, match="different numbers"):
        accuracy_of([Answers(one.logits, one.labels), Answers(two.logits[:9], two.labels[:9])])


def test_schemes_are_compared_pair_by_pair_under_each_model() -> None:
    answers = {
        ("good", "m"): _runs(4.0), ("same", "m"): _runs(4.0, seed=7), ("bad", "m"): _runs(0.5),
        ("good", "k"): _runs(4.0), ("bad", "k"): _runs(4.0, runs=2),
    }  # fmt: skip
    found = compare_utility(answers)
    assert {(one.model, one.scheme, one.other) for one in found} == {
        ("m", "bad", "good"), ("m", "bad", "same"), ("m", "good", "same"),
    }, "under k they have not as many seeds"  # fmt: skip
    by_pair = {(one.scheme, one.other): one for one in found}
    worse = by_pair["bad", "good"]
    assert worse.difference.high < 0 and worse.adjusted < 0.01
    assert by_pair["good", "same"].adjusted > 0.05
    assert all(one.adjusted >= one.p_value for one in found)
    single = {name: runs[:1] for name, runs in answers.items() if name[1] == "m"}
    assert {one.runs for one in compare_utility(single)} == {1}


# Input that makes no sense


def test_malformed_answers_are_refused(trained: Trained) -> None:
    good = _answers(classes=3)
    bad = good.logits.copy()
    bad[5, 1] = np.nan
    for answers, words in (
        (Answers(bad, good.labels), "NaN or infinity"),
        (Answers(good.logits, good.labels + 1), "labels reach from 1 to 3"),
        (Answers(good.logits[:0], good.labels[:0]), "cannot be scored"),
        (Answers(good.logits, good.labels[:-1]), "cannot be scored"),
    ):
        with pytest.raises(TrainingError, match=words):
            evaluate(answers)
    with pytest.raises(TrainingError, match=r"trained on uint8 \(8, 8, 1\) images"):
        predict(*trained, stripes(4, (8, 9, 1)).images)


def test_a_model_with_nan_weights_is_refused(trained: Trained) -> None:
    import copy

    model = copy.deepcopy(trained[0])
    model.head.bias.data[0] = float("nan")
    with pytest.raises(TrainingError, match="diverged"):
        predict(model, trained[1], stripes(4).images)
