"""Stage `evaluate`: every CNN on plain and, where declared, on protected test images."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from veilset.console import progress
from veilset.files import read_table
from veilset.models.device import DeviceName
from veilset.models.registry import architecture
from veilset.params import Params
from veilset.settings import PARAMS_FILE, Settings, load_drops, load_settings
from veilset.stages.project import Project, existing, scheme_of
from veilset.training.comparison import compare_utility
from veilset.training.evaluation import (
    BASELINE,
    Answers,
    Scored,
    TestOn,
    declared_test_set,
    evaluation_row,
    predict,
    read_test_set,
    test_sets,
    write_evaluation,
)
from veilset.training.loader import Samples
from veilset.training.memory import room_for_images
from veilset.training.saved import ModelCard, load_model
from veilset.types import Ids


class EvaluationParams(Params):
    """How models are scored.

    Attributes:
        confidence: Of all intervals, two-sided.
        device: Where to compute.
    """

    confidence: float = 0.95
    device: DeviceName = "auto"


def run(root: Path) -> None:
    """Writes `reports/evaluation.json`."""
    project, settings = Project(root), load_settings(root)
    params = EvaluationParams.parse(settings.evaluate, f"{PARAMS_FILE}: evaluate")
    # The baseline first: every other row is compared with its answers.
    schemes = sorted(settings.schemes, key=lambda name: name != BASELINE)
    declared: dict[tuple[str, str], list[Answers]] = {}
    rows: list[dict[str, Any]] = []
    with progress("evaluate", len(schemes) * len(settings.models), "model") as advance:
        for model in settings.models:
            plain: list[_Trained] = []
            baseline: list[Scored] = []
            for scheme in schemes:
                declares = scheme_of(settings, scheme).declares
                trained = _load(project, settings, scheme, model)
                for test_on in test_sets(declares):
                    row = partial(
                        evaluation_row, declares=declares, test_on=test_on, model_name=model,
                        confidence=params.confidence,
                    )  # fmt: skip
                    test = _read(project, settings, trained[0].card, scheme, test_on)
                    runs = _scored(trained, test, params)
                    if (scheme, test_on) == (BASELINE, "plain"):
                        plain, baseline = trained, runs
                    if test_on == declared_test_set(declares):
                        declared[scheme, model] = [run.answers for run in runs]
                    rows.append(row(runs, baseline=baseline))
                    if test_on == "protected" and scheme != BASELINE and plain:
                        # What a CNN trained on plain images makes of protected ones, which papers
                        # leave out.
                        also = _scored(plain, test, params)
                        rows.append(row(also, baseline=baseline, protected_by=scheme))
                advance(1)
    contrasts = [one.to_json() for one in compare_utility(declared, params.confidence)]
    write_evaluation(project.reports / "evaluation.json", rows, contrasts)


class _Trained(NamedTuple):
    """A CNN of one seed."""

    model: nn.Module
    card: ModelCard


class _Test(NamedTuple):
    """Test images of one kind, and their ids: the owner's own, where those are known."""

    ids: Ids
    samples: Samples


def _load(project: Project, settings: Settings, scheme: str, model: str) -> list[_Trained]:
    """The CNN of each seed."""
    return [_Trained(*load_model(project.model(scheme, model, seed))) for seed in settings.seeds]


def _read(
    project: Project, settings: Settings, card: ModelCard, scheme: str, test_on: TestOn
) -> _Test:
    """The test images of a kind, those that a scheme protected or plain ones."""
    drops = load_drops(project.root).names
    folders = [
        project.ingested(drop) if test_on == "plain" else project.protected(scheme, drop)
        for drop in drops
    ]
    ids, samples = read_test_set(
        scheme_of(settings, scheme).declares, test_on, existing(folders),
        masks=architecture(card.architecture).reads_mask,
        room=room_for_images(settings.resources.memory_mib),
    )  # fmt: skip
    if test_on == "protected":
        ids = _source_ids(project, scheme, drops, ids)
    return _Test(ids, samples)


def _scored(trained: Sequence[_Trained], test: _Test, params: EvaluationParams) -> list[Scored]:
    """What the CNN of each seed says of test images that it may be scored on."""
    images, labels, mask = test.samples
    return [
        Scored(card, Answers(logits, labels, test.ids))
        for model, card in trained
        for logits in [predict(model, card, images, mask, device=params.device)]
    ]


def _source_ids(project: Project, scheme: str, drops: tuple[str, ...], published: Ids) -> Ids:
    """The owner's ids of published ones, so that answers to one image can be compared."""
    source: dict[bytes, bytes] = {}
    for drop in drops:
        path = project.provenance(scheme, drop) / "links-test.parquet"
        if path.is_file():
            links = read_table(path)
            source |= {
                bytes.fromhex(shown): bytes.fromhex(own)
                for shown, own in zip(links["published_id"], links["id"], strict=True)
            }
    joined = b"".join(source[row.tobytes()] for row in published)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 16)
