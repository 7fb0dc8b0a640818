"""What a training leaves on record: its plan, its card and its history."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, fields

import torch

from veilset.files import json_text
from veilset.models.device import device_name
from veilset.training.run import Epoch, Run, Task
from veilset.training.saved import ModelCard


def plan(task: Task) -> str:
    """A hash of everything that the weights depend on: what a resumed run must agree in."""
    facts = {
        "data": [task.train.digest, task.validation.digest],
        "params": task.params.model_dump(mode="json"),
        "subject": asdict(task.subject),
        "engine": [task.engine.device.type, task.engine.precision],
        "compiled": task.compiled,
        "processes": task.ranks.count,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json_text(facts).encode()).hexdigest()


def card(run: Run, task: Task, weights: bytes) -> ModelCard:
    """The card of a finished run, whose weights are these."""
    params, subject, count = task.params, task.subject, len(task.train)
    recipe = params.model_dump(mode="json") | asdict(task.augmentation)
    return ModelCard(
        architecture=subject.model,
        parameters=dict(subject.model_params),
        classes=tuple(subject.classes),
        shape=task.shape,
        normalisation=asdict(task.train.normalisation),
        scheme=subject.scheme,
        trained_on=tuple(subject.trained_on),
        training_images=count,
        seed=params.seed,
        recipe=recipe,
        device=task.engine.device.type,
        device_name=device_name(task.engine),
        precision=task.engine.precision,
        compiled=task.compiled,
        processes=task.ranks.count,
        streamed=task.train.streamed,
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        batch=-(-count // task.steps),
        accumulation=run.accumulation,
        epochs=params.epochs,
        seconds=run.seconds,
        images_per_second=count * params.epochs / run.seconds,
        weight_count=sum(p.numel() for p in run.model.parameters()),
        validation_accuracy=run.history[-1].validation_accuracy,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )


def history_csv(history: Sequence[Epoch]) -> str:
    """The text of `history.csv`: a header, then a row an epoch, numbers that read back exactly."""
    names = [column.name for column in fields(Epoch)]
    rows = [",".join(repr(getattr(epoch, name)) for name in names) for epoch in history]
    return "\n".join([",".join(names), *rows]) + "\n"
