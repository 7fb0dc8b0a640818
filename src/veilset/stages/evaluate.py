"""Stage `evaluate`: every CNN on plain and, where declared, on protected test images."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from veilset.console import progress
from veilset.files import read_table
from veilset.models.device import DeviceName
from veilset.models.registry import architecture
from veilset.params import Params
from veilset.settings import PARAMS_FILE, Settings, load_drops, load_settings
from veilset.stages.project import Project, existing, scheme_of
from veilset.training.evaluation import (
    BASELINE,
    Answers,
    TestOn,
    evaluation_row,
    predict,
    read_test_set,
    test_sets,
    write_evaluation,
)
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
    drops = load_drops(root).names
    # The baseline first: every other row is compared with its answers.
    schemes = sorted(settings.schemes, key=lambda name: name != BASELINE)
    baselines: dict[str, Answers] = {}
    rows = []
    with progress("evaluate", len(schemes) * len(settings.models), "model") as advance:
        for scheme in schemes:
            for model in settings.models:
                scored = dict(_answers(project, settings, params, (scheme, model), drops))
                if scheme == BASELINE:
                    baselines[model] = scored["plain"][1]
                rows += _rows(settings, params, (scheme, model), scored, baselines.get(model))
                advance(1)
    write_evaluation(project.reports / "evaluation.json", rows)


def _answers(
    project: Project,
    settings: Settings,
    params: EvaluationParams,
    names: tuple[str, str],
    drops: tuple[str, ...],
) -> Iterator[tuple[TestOn, tuple[ModelCard, Answers]]]:
    """What a model says of each kind of test images that it may be scored on."""
    scheme, model_name = names
    declares = scheme_of(settings, scheme).declares
    model, card = load_model(project.model(scheme, model_name))
    masks = architecture(card.architecture).reads_mask
    for test_on in test_sets(declares):
        folders = [
            project.ingested(drop) if test_on == "plain" else project.protected(scheme, drop)
            for drop in drops
        ]
        ids, tested = read_test_set(declares, test_on, existing(folders), masks=masks)
        if test_on == "protected":
            ids = _source_ids(project, scheme, drops, ids)
        logits = predict(model, card, tested.images, tested.mask, device=params.device)
        yield test_on, (card, Answers(logits, tested.labels, ids))


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


def _rows(
    settings: Settings,
    params: EvaluationParams,
    names: tuple[str, str],
    scored: Mapping[TestOn, tuple[ModelCard, Answers]],
    baseline: Answers | None,
) -> list[dict[str, Any]]:
    scheme, model_name = names
    return [
        evaluation_row(
            card, scheme_of(settings, scheme).declares, test_on, answers, baseline,
            model_name=model_name, confidence=params.confidence,
        )
        for test_on, (card, answers) in scored.items()
    ]  # fmt: skip
