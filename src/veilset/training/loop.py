"""The training loop.

All images stay in memory, on the device where they fit, as one uint8 tensor; a batch is one
indexing operation (augmentation included), then forward, backward, step. After each epoch the whole
state is saved, so that a run that was killed goes on as if it had not been. On a CPU the same seed,
thread count and torch version give the same weights, bit for bit.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from math import ceil, cos, isfinite, pi
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from veilset.errors import TrainingError
from veilset.files import json_text, staged_folder, write_json, write_text
from veilset.models.augment import (
    Augmentation,
    Moves,
    Normalisation,
    draw_moves,
    measure_normalisation,
    normalise,
    take,
)
from veilset.models.device import Engine, choose_engine, device_name, kernels
from veilset.models.optimiser import NesterovSgd
from veilset.models.registry import architecture, make_model
from veilset.schemes.base import Declaration
from veilset.training.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint
from veilset.training.loader import Samples, check_samples, with_mask
from veilset.training.params import TrainingParams, augmentation_for
from veilset.training.saved import HISTORY, ModelCard, pack_weights, save_model

FAILED = "failed.json"
"""Mark of a diverged run, in the staging folder `.<name>.partial`."""

_LOOK = 64  # steps between looks at the loss: each look waits for the device


@dataclass(frozen=True)
class Subject:
    """What is trained on what; it goes into the model's card.

    Attributes:
        model: Name of an architecture.
        classes: Class names in the order of the labels.
        scheme: Name of the scheme whose output the images are.
        declares: That scheme's declaration; it decides the default augmentation.
        model_params: Parameters of the architecture.
        trained_on: Root digests of the image sets.
    """

    model: str
    classes: Sequence[str]
    scheme: str
    declares: Declaration
    model_params: Mapping[str, Any] = field(default_factory=dict)
    trained_on: Sequence[str] = ()


@dataclass(frozen=True)
class Epoch:
    """One row of `history.csv`: losses are mean cross-entropies, accuracies lie in 0..1.

    The training loss includes label smoothing and augmentation, the validation loss neither.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


Progress = Callable[[Epoch, int], None]
"""Called after each epoch with its figures and the number of all epochs."""


@dataclass(frozen=True)
class TrainResult:
    """What `train` made.

    Attributes:
        folder: Where it lies.
        card: The card in it.
        history: The epochs.
    """

    folder: Path
    card: ModelCard
    history: tuple[Epoch, ...]


class Totals(NamedTuple):
    """Sums over images: of the loss, and of right answers."""

    loss: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Data:
    """Images and labels as tensors, and how they become a network's input.

    Attributes:
        images: uint8 (N, H, W, C), on the device where they fit; C is one more with a mask.
        labels: int64 (N,), beside the images.
        normalisation: That of the training images, without a mask.
        constants: The same as tensors on the device, made once: each copy there costs a wait; with
            a mask those that leave it as it is.
    """

    images: Tensor
    labels: Tensor
    normalisation: Normalisation
    constants: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, samples: Samples, normalisation: Normalisation, engine: Engine) -> "Data":
        """Moves a set to the device, or leaves it in main memory where it does not fit there."""
        pixels = np.require(with_mask(samples.images, samples.mask), requirements=["C", "W"])
        place = engine.device if engine.fits(pixels.nbytes) else torch.device("cpu")
        images = torch.from_numpy(pixels).to(place)
        labels = torch.from_numpy(np.require(samples.labels, requirements=["C", "W"])).to(place)
        applied = normalisation if samples.mask is None else normalisation.with_mask()
        return cls(images, labels, normalisation, applied.constants(engine.device))

    def batch(
        self, rows: Tensor, moves: Moves | None, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Input float32 (B, C, H, W), channels last, and labels of these rows, on the device."""
        pixels = take(self.images, rows, moves).to(device, non_blocking=True)
        labels = self.labels[rows].to(device, non_blocking=True)
        return normalise(pixels, *self.constants), labels


@dataclass(frozen=True)
class Task:
    """All that stays the same during a training."""

    params: TrainingParams
    subject: Subject
    engine: Engine
    augmentation: Augmentation
    shape: tuple[int, int, int]
    train: Data
    validation: Data


@dataclass
class Run:
    """The changing state of a training; `state` and `restore` are all of it."""

    model: nn.Module
    optimiser: NesterovSgd
    sampler: torch.Generator
    history: list[Epoch] = field(default_factory=list)
    accumulation: int = 1
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, as tensors and plain values."""
        device = next(self.model.parameters()).device
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state(),
            "sampler": self.sampler.get_state(),
            "cpu_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state() if device.type == "cuda" else None,
            "history": [asdict(epoch) for epoch in self.history],
            "accumulation": self.accumulation,
            "seconds": self.seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts a saved state back."""
        self.model.load_state_dict(state["model"])
        self.optimiser.restore(state["optimiser"])
        self.sampler.set_state(state["sampler"])
        torch.set_rng_state(state["cpu_generator"])
        if state["cuda_generator"] is not None:
            torch.cuda.set_rng_state(state["cuda_generator"])
        self.history = [Epoch(**row) for row in state["history"]]
        self.accumulation = state["accumulation"]
        self.seconds = state["seconds"]


def train(
    train_set: Samples | tuple[Any, Any],
    validation_set: Samples | tuple[Any, Any],
    params: TrainingParams,
    subject: Subject,
    output: Path,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains a classifier and writes it.

    The weights are those after the last epoch: the one-cycle schedule ends there, and choosing an
    epoch by its validation accuracy would flatter that figure. A run that was killed goes on after
    its last whole epoch when it is called again with the same arguments.

    Args:
        train_set: Images uint8 (N, H, W, C), labels int64 (N,), and where pixels were masked a
            mask, which only networks that read one see.
        validation_set: The same, of other images.
        params: The knobs.
        subject: Which network, which classes, under which scheme.
        output: The folder to write: `model.safetensors`, `model.json`, `history.csv`.
        progress: Called after each epoch.

    Returns:
        The folder, its card and its history.

    Raises:
        TrainingError: The set cannot be trained on, the loss became NaN or infinite, or the
            device's memory is too small for a single image.
        SettingsError: Unknown architecture, or its parameters are refused.
        BusyError: Another run trains into this folder.
        CorruptError: The checkpoint to resume from was altered.
    """
    train_set, validation_set = Samples(*train_set), Samples(*validation_set)
    check_samples(train_set, validation_set, len(subject.classes))
    if not architecture(subject.model).reads_mask:
        train_set, validation_set = (
            part._replace(mask=None) for part in (train_set, validation_set)
        )
    task = _task(train_set, validation_set, params, subject)
    cuda = task.engine.device.type == "cuda"
    with (
        kernels(task.engine, deterministic=params.deterministic, threads=params.threads),
        torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []),
        staged_folder(output, _plan(task)) as staging,
    ):
        run = _start(task)
        if (saved := load_checkpoint(staging)) is not None:
            run.restore(saved)
        _all_epochs(run, task, staging, progress)
        weights = pack_weights(run.model)
        card = _card(run, task, weights)
        save_model(staging, weights, card)
        write_text(staging / HISTORY, history_csv(run.history))
        remove_checkpoint(staging)
    return TrainResult(output, card, tuple(run.history))


def one_cycle(done: float, peak: float) -> float:
    """The learning rate of a one-cycle schedule (Smith and Topin 2018; cosine as in fastai).

    Args:
        done: Share of all steps that are done, 0..1.
        peak: Highest learning rate, reached at a quarter of the steps.

    Returns:
        It rises from peak/25 along a cosine, and falls along one to peak/10,000.
    """
    rise = 0.25
    low, high, part = (peak / 25, peak, done / rise)
    if done >= rise:
        low, high, part = (peak, peak / 1e4, (done - rise) / (1 - rise))
    return low + (high - low) * (1 - cos(pi * part)) / 2


def history_csv(history: Sequence[Epoch]) -> str:
    """The text of `history.csv`: a header, then a row an epoch, numbers that read back exactly."""
    names = [column.name for column in fields(Epoch)]
    rows = [",".join(repr(getattr(epoch, name)) for name in names) for epoch in history]
    return "\n".join([",".join(names), *rows]) + "\n"


# ---------------------------------------------------------------------------------- a run's parts


def _task(
    train_set: Samples, validation_set: Samples, params: TrainingParams, subject: Subject
) -> Task:
    engine = choose_engine(params.device, params.precision)
    height, width, channels = train_set.images.shape[1:]
    normalisation = measure_normalisation(train_set.images)
    return Task(
        params=params,
        subject=subject,
        engine=engine,
        augmentation=augmentation_for(params, subject.declares, (height, width, channels)),
        shape=(height, width, channels),
        train=Data.of(train_set, normalisation, engine),
        validation=Data.of(validation_set, normalisation, engine),
    )


def _start(task: Task) -> Run:
    """A run before its first epoch; seeds torch's generators, for networks that draw (dropout)."""
    seed, subject = task.params.seed, task.subject
    torch.default_generator.manual_seed(seed)
    if task.engine.device.type == "cuda":
        torch.cuda.manual_seed(seed)
    classes = len(subject.classes)
    model = make_model(subject.model, task.shape, classes, seed=seed, **subject.model_params)
    model = model.to(task.engine.device).to(memory_format=torch.channels_last)
    momentum, decay = task.params.momentum, task.params.weight_decay
    optimiser = NesterovSgd(model, momentum=momentum, weight_decay=decay)
    return Run(model, optimiser, torch.Generator().manual_seed(seed))


def _all_epochs(run: Run, task: Task, staging: Path, progress: Progress | None) -> None:
    """The epochs that are left, a checkpoint after each; a diverged run is marked as failed."""
    (staging / FAILED).unlink(missing_ok=True)
    try:
        while len(run.history) < task.params.epochs:
            run.history.append(_epoch(run, task))
            save_checkpoint(staging, run.state())
            if progress is not None:
                progress(run.history[-1], task.params.epochs)
    except TrainingError as error:
        write_json(staging / FAILED, {"epoch": len(run.history) + 1, "reason": str(error)})
        raise


def _epoch(run: Run, task: Task) -> Epoch:
    """One pass over the training images and one over the validation images."""
    started = time.perf_counter()
    count, place = len(task.train.images), task.train.images.device
    order = torch.randperm(count, generator=run.sampler).to(place)
    moves = draw_moves(count, task.augmentation, run.sampler).to(place)
    still = not (task.augmentation.crop or task.augmentation.flip)
    number, steps = len(run.history) + 1, ceil(count / task.params.batch_size)
    run.model.train()
    totals, lr = _nothing(task.engine), 0.0
    for step, part in enumerate(_even_slices(count, steps)):
        lr = one_cycle((number - 1 + step / steps) / task.params.epochs, task.params.lr)
        totals = _add(totals, _step(run, task, order[part], None if still else moves.at(part), lr))
        if step % _LOOK == 0 or step == steps - 1:
            _require_finite(float(totals.loss), number, lr)
    loss, correct = (float(value) / count for value in totals)
    run.seconds += time.perf_counter() - started  # the last look has waited for the device
    tested = _validate(run.model, task)
    _require_finite(tested[0], number, lr)
    return Epoch(number, lr, loss, correct, *tested)


def _even_slices(count: int, parts: int) -> list[slice]:
    """Cuts 0..count-1 into so many slices whose lengths differ by one at most.

    So every image is seen in every epoch, and no step has a batch of one or two images, whose
    statistics would upset batch normalisation.
    """
    edges = [count * index // parts for index in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _step(run: Run, task: Task, rows: Tensor, moves: Moves | None, lr: float) -> Totals:
    """One step; where the memory is short, in ever more micro-batches of the same batch."""
    while True:
        try:
            totals = _gradients(run, task, rows, moves)
            run.optimiser.step(lr)
            return totals
        except torch.OutOfMemoryError:
            if run.accumulation >= len(rows):
                raise TrainingError(
                    f"the {task.engine.device.type} has not the memory to train on one image: use "
                    "a smaller model, smaller images or another device."
                ) from None
        # Outside of the handler, whose traceback would keep the failed step's tensors alive.
        run.accumulation *= 2
        run.optimiser.forget_gradients()
        if task.engine.device.type == "cuda":
            torch.cuda.empty_cache()


def _gradients(run: Run, task: Task, rows: Tensor, moves: Moves | None) -> Totals:
    """Gradients of the mean loss over the batch, summed over its micro-batches.

    A network that has a method `penalty` adds what it returns to the loss, not to the totals.
    """
    run.optimiser.forget_gradients()
    totals = _nothing(task.engine)
    penalty = getattr(run.model, "penalty", _no_penalty)
    for part in _even_slices(len(rows), min(run.accumulation, len(rows))):
        moved = None if moves is None else moves.at(part)
        inputs, labels = task.train.batch(rows[part], moved, task.engine.device)
        with task.engine.autocast():
            logits = run.model(inputs)
        loss = functional.cross_entropy(
            logits.float(), labels, label_smoothing=task.params.label_smoothing, reduction="sum"
        )
        goal = loss + len(labels) * penalty()
        (goal / len(rows)).backward()  # type: ignore[no-untyped-call]
        totals = _add(totals, Totals(loss.detach(), _correct(logits, labels)))
    return totals


@torch.inference_mode()
def _validate(model: nn.Module, task: Task) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on the validation images, unmoved."""
    model.eval()
    data, totals = task.validation, _nothing(task.engine)
    count = len(data.images)
    for part in _even_slices(count, ceil(count / task.params.batch_size)):
        rows = torch.arange(part.start, part.stop, device=data.images.device)
        inputs, labels = data.batch(rows, None, task.engine.device)
        with task.engine.autocast():
            logits = model(inputs)
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        totals = _add(totals, Totals(loss, _correct(logits, labels)))
    return float(totals.loss) / count, float(totals.correct) / count


def _no_penalty() -> float:
    return 0.0


def _nothing(engine: Engine) -> Totals:
    # In float64, as sums of many batches; kept on the device, so that no step waits for it.
    loss, correct = torch.zeros(2, device=engine.device, dtype=torch.float64)
    return Totals(loss, correct)


def _add(one: Totals, other: Totals) -> Totals:
    return Totals(one.loss + other.loss, one.correct + other.correct)


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == labels).sum()


def _require_finite(loss: float, epoch: int, lr: float) -> None:
    if not isfinite(loss):
        raise TrainingError(
            f"the training diverged: its loss became {loss} in epoch {epoch} at learning rate "
            f"{lr:.3g}; lower lr, or check the images."
        )


# ------------------------------------------------------------------------------------- the record


def _plan(task: Task) -> str:
    """A hash of everything that the weights depend on: what a resumed run must agree in."""
    digest = hashlib.sha256()
    for data in (task.train, task.validation):
        for tensor in (data.images, data.labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(memoryview(tensor.cpu().numpy()).cast("B"))  # type: ignore[arg-type]
    facts = {
        "params": task.params.model_dump(mode="json"),
        "subject": asdict(task.subject),
        "engine": [str(task.engine.device), task.engine.precision],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    digest.update(json_text(facts).encode())
    return digest.hexdigest()


def _card(run: Run, task: Task, weights: bytes) -> ModelCard:
    params, subject, count = task.params, task.subject, len(task.train.images)
    recipe = params.model_dump(mode="json") | asdict(task.augmentation)
    recipe |= {"optimiser": "sgd nesterov", "schedule": "one-cycle"}
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
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        accumulation=run.accumulation,
        epochs=params.epochs,
        seconds=run.seconds,
        images_per_second=count * params.epochs / run.seconds,
        weight_count=sum(p.numel() for p in run.model.parameters()),
        validation_accuracy=run.history[-1].validation_accuracy,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
