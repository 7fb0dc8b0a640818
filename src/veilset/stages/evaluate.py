"""Stage `evaluate`: every CNN on plain and, where declared, on protected test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from veilset.training.saved import load_model
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
    pairs = [(scheme, model) for scheme in schemes for model in settings.models]
    baselines: dict[str, list[Scored]] = {}
    declared: dict[tuple[str, str], list[Answers]] = {}
    rows = []
    with progress("evaluate", len(pairs), "model") as advance:
        for scheme, model in pairs:
            declares = scheme_of(settings, scheme).declares
            for test_on in test_sets(declares):
                runs = _runs(project, settings, params, (scheme, model), _Test(test_on, scheme))
                if (scheme, test_on) == (BASELINE, "plain"):
                    baselines[model] = runs
                if test_on == declared_test_set(declares):
                    declared[scheme, model] = [run.answers for run in runs]
                rows.append(
                    evaluation_row(
                        runs, declares, test_on, baselines.get(model, ()), model_name=model,
                        confidence=params.confidence,
                    )
                )  # fmt: skip
                if test_on == "protected" and scheme != BASELINE and model in baselines:
                    rows.append(_plain_on(project, settings, params, (scheme, model), baselines))
            advance(1)
    contrasts = [one.to_json() for one in compare_utility(declared, params.confidence)]
    write_evaluation(project.reports / "evaluation.json", rows, contrasts)


@dataclass(frozen=True)
class _Test:
    """A kind of test images; where they are protected, by which scheme."""

    on: TestOn
    scheme: str


def _plain_on(
    project: Project,
    settings: Settings,
    params: EvaluationParams,
    names: tuple[str, str],
    baselines: Mapping[str, Sequence[Scored]],
) -> dict[str, Any]:
    """What a CNN trained on plain images makes of protected ones, which papers leave out."""
    scheme, model = names
    runs = _runs(project, settings, params, (BASELINE, model), _Test("protected", scheme))
    return evaluation_row(
        runs, scheme_of(settings, scheme).declares, "protected", baselines[model],
        model_name=model, protected_by=scheme, confidence=params.confidence,
    )  # fmt: skip


def _runs(
    project: Project,
    settings: Settings,
    params: EvaluationParams,
    names: tuple[str, str],
    test: _Test,
) -> list[Scored]:
    """What the CNN of each seed says of test images that it may be scored on."""
    drops = load_drops(project.root).names
    loaded = [load_model(project.model(*names, seed)) for seed in settings.seeds]
    masks = architecture(loaded[0][1].architecture).reads_mask
    folders = [
        project.ingested(drop) if test.on == "plain" else project.protected(test.scheme, drop)
        for drop in drops
    ]
    declares = scheme_of(settings, test.scheme).declares
    ids, tested = read_test_set(declares, test.on, existing(folders), masks=masks)
    if test.on == "protected":
        ids = _source_ids(project, test.scheme, drops, ids)
    return [
        Scored(card, Answers(logits, tested.labels, ids))
        for model, card in loaded
        for logits in [predict(model, card, tested.images, tested.mask, device=params.device)]
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
