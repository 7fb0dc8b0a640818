"""How good a trained classifier is, and how much a scheme cost.

A scheme that reads labels tells them by its output: scored on test images that went through it, it
would look better than plain. So every way to a score here asks `test_sets` first, which allows
protected test images only to schemes that declare to protect queries, and those read no labels.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from veilset.data.manifest import Manifest
from veilset.data.stored import StoredRows
from veilset.errors import SourceError, TrainingError
from veilset.files import write_json
from veilset.metrics.statistics import CONFIDENCE, Interval, crossed_mean, wilson
from veilset.models.device import DeviceName, choose_engine
from veilset.models.registry import architecture
from veilset.schemes.base import Declaration
from veilset.training.differences import difference_of, difference_of_counts
from veilset.training.feed import in_order
from veilset.training.loader import Mask, Samples, read_samples, require_mask
from veilset.training.saved import ModelCard
from veilset.types import BoolArray, FloatArray, Ids, Images, IntArray, Labels

TestOn = Literal["plain", "protected"]

BASELINE = "plain"
BINS = 15


@dataclass(frozen=True)
class Answers:
    """What a classifier said of test images.

    Attributes:
        logits: float32 (N, classes).
        labels: The truth, int64 (N,).
        ids: Source ids of the images, uint8 (N, 16): the same image has the same one whether plain
            or protected. None where they are not known; then nothing is paired.
    """

    logits: npt.NDArray[np.float32]
    labels: Labels
    ids: Ids | None = None

    @property
    def correct(self) -> BoolArray:
        """Which answers are right, bool (N,)."""
        right: BoolArray = self.logits.argmax(axis=1) == self.labels
        return right


@dataclass(frozen=True)
class Scored:
    """A classifier of one seed, and its answers."""

    card: ModelCard
    answers: Answers


@dataclass(frozen=True)
class Scores:
    """How good the answers are.

    Attributes:
        n: Test images.
        correct: Right answers.
        accuracy: Their share and its Wilson interval.
        ece: Expected calibration error, 0..1.
        per_class: For each class its images and the accuracy on them, None without images.
        confusion: int64 (classes, classes): rows are the truth, columns the answers.
    """

    n: int
    correct: int
    accuracy: Interval
    ece: float
    per_class: tuple[tuple[int, Interval | None], ...]
    confusion: IntArray


# ------------------------------------------------------------------------------------ what is fair


def test_sets(declares: Declaration) -> tuple[TestOn, ...]:
    """The kinds of test images that a classifier trained on a scheme's output may be scored on."""
    allowed = declares.protects_queries and not declares.uses_labels
    return ("plain", "protected") if allowed else ("plain",)


def declared_test_set(declares: Declaration) -> TestOn:
    """The kind of images that such a classifier is meant for."""
    return test_sets(declares)[-1]


def require_fair(declares: Declaration, test_on: TestOn) -> None:
    """Refuses a score that would mean nothing.

    Raises:
        TrainingError: The scheme may not be scored on such test images.
    """
    if test_on not in test_sets(declares):
        why = "it reads the labels" if declares.uses_labels else "it does not protect queries"
        raise TrainingError(
            f"this scheme is never scored on {test_on} test images, because {why}: score it on "
            "plain ones."
        )


def read_test_set(
    declares: Declaration, test_on: TestOn, folders: Sequence[Path], *, masks: bool = False,
    room: int | None = None,
) -> tuple[Ids, Samples]:  # fmt: skip
    """Reads the test images of one kind.

    Args:
        declares: The declaration of the scheme that the classifier was trained on.
        test_on: `plain` reads ingested sets, `protected` sets that this scheme made.
        folders: The sets, one a drop.
        masks: Whether masks are read as well, where the sets have any.
        room: As for `read_samples`.

    Returns:
        Ids (published ones where protected), and the images with their labels.

    Raises:
        TrainingError: The scheme may not be scored on such images.
        SourceError: A set is of the other kind, or its own scheme does not protect queries.
        CorruptError: Stored bytes disagree with their hashes.
    """
    require_fair(declares, test_on)
    for folder in folders:
        _require_kind(Manifest.load(folder), test_on, folder)
    return read_samples(folders, "test", masks=masks, room=room)


def _require_kind(manifest: Manifest, test_on: TestOn, folder: Path) -> None:
    wanted = "ingested" if test_on == "plain" else "protected"
    if manifest.kind != wanted:
        article = "an" if manifest.kind == "ingested" else "a"
        raise SourceError(
            f"{folder} is {article} {manifest.kind} set, but {test_on} test images come from "
            f"{wanted} ones: name another folder."
        )
    stated = dict((manifest.scheme or {}).get("declaration") or {})
    if wanted == "protected" and (
        not stated.get("protects_queries") or stated.get("uses_labels", True)
    ):
        raise SourceError(
            f"the scheme that made {folder} does not declare to protect queries without labels, so "
            "no test image of it is scored: use plain test images."
        )


# ---------------------------------------------------------------------------------------- scoring


def predict(
    model: nn.Module,
    card: ModelCard,
    images: Images | StoredRows,
    mask: Mask | StoredRows | None = None,
    *,
    batch_size: int = 256,
    device: DeviceName = "auto",
) -> npt.NDArray[np.float32]:
    """The classifier's logits, in float32 whatever it was trained in.

    Args:
        model: The network; it is moved to the device and set to evaluation mode.
        card: Its card: shape and normalisation.
        images: uint8 (N, H, W, C) of the shape that it was trained on; those on disk are read
            while the ones before are answered.
        mask: Which pixels were kept, uint8 (N, H, W), 1 or 0; None where nothing was masked.
            Networks that read no mask ignore it.
        batch_size: Images at a time.
        device: Where to compute.

    Returns:
        float32 (N, classes).

    Raises:
        TrainingError: Images or mask have another shape or dtype, or a logit is not finite.
        CorruptError: Stored bytes disagree with their hashes.
    """
    if images.dtype != np.uint8 or images.shape[1:] != card.shape:
        raise TrainingError(
            f"the model was trained on uint8 {card.shape} images, not {images.dtype} "
            f"{images.shape[1:]}: bring the images to that shape."
        )
    normaliser = card.normaliser
    if mask is not None and architecture(card.architecture).reads_mask:
        require_mask(mask, images, "test")
        normaliser = normaliser.with_mask()
    else:
        mask = None
    place = choose_engine(device, "fp32").device
    model = model.to(place).eval()
    logits = np.empty((len(images), len(card.classes)), dtype=np.float32)
    parts = [
        slice(start, min(start + batch_size, len(images)))
        for start in range(0, len(images), batch_size)
    ]
    with torch.inference_mode(), closing(in_order(images, mask, parts)) as batches:
        for part, pixels in zip(parts, batches, strict=True):
            batch = pixels.to(place).permute(0, 3, 1, 2)
            logits[part] = model(normaliser.apply(batch)).float().cpu().numpy()
    if not np.isfinite(logits).all():
        raise TrainingError("the model answers with NaN or infinity: its training diverged.")
    return logits


def evaluate(answers: Answers, confidence: float = CONFIDENCE) -> Scores:
    """Scores answers.

    Args:
        answers: At least one.
        confidence: Of the intervals, two-sided. They cover the draw of test images, not that of
            the training's seed.

    Raises:
        TrainingError: No answer, a label without a logit, or logits that are not finite.
    """
    classes = _require_answers(answers)
    said, right = answers.logits.argmax(axis=1), answers.correct
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (answers.labels, said), 1)
    counts = confusion.sum(axis=1)
    per_class = tuple(
        (int(n), wilson(int(hits), int(n), confidence) if n else None)
        for n, hits in zip(counts, np.diag(confusion), strict=True)
    )
    accuracy = wilson(int(right.sum()), len(right), confidence)
    error = calibration_error(softmax(answers.logits), answers.labels)
    return Scores(len(right), int(right.sum()), accuracy, error, per_class, confusion)


def softmax(logits: npt.NDArray[np.float32]) -> FloatArray:
    """Probabilities float64 (N, classes) of logits, without overflow."""
    shifted = logits.astype(np.float64)
    shifted = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    total: FloatArray = shifted / shifted.sum(axis=1, keepdims=True)
    return total


def calibration_error(probabilities: FloatArray, labels: Labels, bins: int = BINS) -> float:
    """The expected calibration error of the most probable class.

    Args:
        probabilities: (N, classes), rows sum to 1.
        labels: int64 (N,).
        bins: Equal parts of 0..1, each open below and closed above.

    Returns:
        The mean over images of |accuracy - confidence| of their bin, 0..1.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, eq. 3.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def accuracy_of(runs: Sequence[Answers], confidence: float = CONFIDENCE) -> Interval:
    """The accuracy over one or more seeds, of which each answered the same images.

    Its interval covers the draw of test images, and that of the seed where there are several.
    """
    right = rights(runs)
    if len(runs) == 1:
        return wilson(int(right.sum()), right.size, confidence)
    return crossed_mean(right.astype(np.float64), bounds=(0, 1), confidence=confidence).interval


def lost(
    baseline: Sequence[Answers], runs: Sequence[Answers], confidence: float = CONFIDENCE
) -> Interval:
    """The accuracy that a scheme costs: the baseline's less its own, as fractions.

    Where both answered the same images (equal ids) under as many seeds, the interval is the paired
    one: images that are hard for both, and seeds that are, then do not widen it.

    Raises:
        TrainingError: The same image has another label in the two.
    """
    if not comparable(baseline, runs):
        return difference_of(accuracy_of(baseline, confidence), accuracy_of(runs, confidence))
    theirs, ours = rights(baseline), rights(runs)
    if len(runs) > 1:
        apart = theirs.astype(np.float64) - ours
        return crossed_mean(apart, bounds=(-1, 1), confidence=confidence).interval
    return difference_of_counts(
        int((theirs & ours).sum()), int((theirs & ~ours).sum()),
        int((~theirs & ours).sum()), int((~theirs & ~ours).sum()), confidence,
    )  # fmt: skip


def rights(runs: Sequence[Answers]) -> BoolArray:
    """Which answers are right, bool (seeds, N), the images in the order of their ids if known.

    Raises:
        TrainingError: Two seeds answered other images.
    """
    first = runs[0]
    if any(not _same_images(first.ids, other.ids) for other in runs[1:] if first.ids is not None):
        raise TrainingError(
            "classifiers of one scheme and model were tested on different images: evaluate again."
        )
    if len({len(one.labels) for one in runs}) > 1:
        raise TrainingError(
            "classifiers of one scheme and model were tested on different numbers of images: "
            "evaluate again."
        )
    return np.stack([one.correct[_by_id(one)] for one in runs])


def comparable(one: Sequence[Answers], other: Sequence[Answers]) -> bool:
    """Whether two classifiers answered the same images under as many seeds.

    Raises:
        TrainingError: The same image has another label in the two.
    """
    if len(one) != len(other) or not _same_images(one[0].ids, other[0].ids):
        return False
    first, second = one[0], other[0]
    if not np.array_equal(first.labels[_by_id(first)], second.labels[_by_id(second)]):
        raise TrainingError(
            "a test image has one label plain and another protected: the ids were mixed up, so "
            "nothing can be compared; protect the set again."
        )
    return True


def _by_id(answers: Answers) -> npt.NDArray[np.intp]:
    if answers.ids is None:
        return np.arange(len(answers.labels))
    return np.lexsort(answers.ids.T[::-1])


def _same_images(one: Ids | None, other: Ids | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    return np.array_equal(one[np.lexsort(one.T[::-1])], other[np.lexsort(other.T[::-1])])


def _require_answers(answers: Answers) -> int:
    logits, labels = answers.logits, answers.labels
    if logits.ndim != 2 or len(logits) == 0 or labels.shape != (len(logits),):
        raise TrainingError(f"{logits.shape} logits and {labels.shape} labels cannot be scored.")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise TrainingError(
            f"test labels reach from {labels.min()} to {labels.max()}, but the model knows "
            f"{logits.shape[1]} classes: test it on the classes that it was trained on."
        )
    if not np.isfinite(logits).all():
        raise TrainingError("the model answers with NaN or infinity: its training diverged.")
    return int(logits.shape[1])


# ------------------------------------------------------------------------------------- the record


def evaluation_row(
    runs: Sequence[Scored],
    declares: Declaration,
    test_on: TestOn,
    baseline: Sequence[Scored] = (),
    *,
    model_name: str | None = None,
    protected_by: str | None = None,
    confidence: float = CONFIDENCE,
) -> dict[str, Any]:
    """One row of `evaluation.json`: a scheme's classifier, over its seeds, on one kind of images.

    Args:
        runs: The classifier of each seed, with its answers to the same images.
        declares: The declaration of the scheme that protected the test images, or, on plain ones,
            of that which it was trained on.
        test_on: What the answers are answers to.
        baseline: The same of the architecture trained on plain images, on plain test images; empty
            where there is none.
        model_name: The model's name in the settings, where it is not the architecture's.
        protected_by: The scheme behind protected test images, where it is not that of the training.
        confidence: Of the intervals.

    Returns:
        Plain JSON: fractions in 0..1, losses in percentage points (positive: the scheme costs
        accuracy); figures without an interval are means over seeds, and the confusion matrix is
        their sum.

    Raises:
        TrainingError: The scheme may not be scored on such images, or the answers are malformed.
    """
    require_fair(declares, test_on)
    card, answers = runs[0].card, [run.answers for run in runs]
    scores = [evaluate(one, confidence) for one in answers]
    accuracy, theirs = accuracy_of(answers, confidence), [run.answers for run in baseline]
    loss = lost(theirs, answers, confidence) if theirs else None
    seconds = float(np.mean([run.card.seconds for run in runs]))
    plain = float(np.mean([run.card.seconds for run in baseline])) if baseline else None
    return {
        "scheme": card.scheme,
        "model": model_name or card.architecture,
        "test_on": test_on,
        "protected_by": protected_by,
        "declared": protected_by is None and test_on == declared_test_set(declares),
        "runs": len(runs),
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "n": scores[0].n,
        "correct": sum(one.correct for one in scores),
        "baseline_accuracy": accuracy_of(theirs, confidence).value if theirs else None,
        "loss_points": None if loss is None else 100 * loss.value,
        "loss_low": None if loss is None else 100 * loss.low,
        "loss_high": None if loss is None else 100 * loss.high,
        "paired": bool(theirs) and comparable(theirs, answers),
        "ece": float(np.mean([one.ece for one in scores])),
        "per_class": _class_rows(card.classes, answers, scores, confidence),
        "confusion": np.sum([one.confusion for one in scores], axis=0).tolist(),
        "train_seconds": seconds,
        "train_time_ratio": None if plain is None else seconds / plain,
        "images_per_second": float(np.mean([run.card.images_per_second for run in runs])),
        "seeds": [
            {
                "seed": run.card.seed, "accuracy": one.accuracy.value, "low": one.accuracy.low,
                "high": one.accuracy.high, "ece": one.ece, "train_seconds": run.card.seconds,
            }
            for run, one in zip(runs, scores, strict=True)
        ],
    }  # fmt: skip


def _class_rows(
    classes: Sequence[str],
    answers: Sequence[Answers],
    scores: Sequence[Scores],
    confidence: float,
) -> list[dict[str, Any]]:
    """For each class its test images, and the accuracy on them with its interval."""
    right, labels = rights(answers), answers[0].labels[_by_id(answers[0])]
    rows = []
    for label, (name, (n, alone)) in enumerate(zip(classes, scores[0].per_class, strict=True)):
        of_class, interval = right[:, labels == label].astype(np.float64), alone
        if len(answers) > 1 and n:
            interval = crossed_mean(of_class, bounds=(0, 1), confidence=confidence).interval
        rows.append(_class_row(name, n, interval))
    return rows


def _class_row(name: str, n: int, interval: Interval | None) -> dict[str, Any]:
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    accuracy = None if interval is None else interval.value
    return {"class": name, "n": n, "accuracy": accuracy, "low": low, "high": high}


def write_evaluation(
    path: Path, rows: Sequence[Mapping[str, Any]], contrasts: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Writes `evaluation.json`: rows by scheme, model and test set, and how schemes compare.

    Raises:
        DiskFullError: The disk has no room.
    """
    names = ("scheme", "model", "test_on", "protected_by")
    ordered = sorted(rows, key=lambda row: tuple(row[name] or "" for name in names))
    write_json(path, {"schema": 1, "baseline": BASELINE, "rows": [dict(row) for row in ordered],
                      "contrasts": [dict(one) for one in contrasts]})  # fmt: skip
