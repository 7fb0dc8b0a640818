"""The training loop.

All images stay on the device where they fit, as one uint8 tensor, else in main memory or on disk; a
batch is taken from there (augmentation included), then forward, backward, step. After each epoch
the whole state is saved, so that a run that was killed goes on as if it had not been. On a CPU the
same seed, thread count and torch version give the same weights, bit for bit.

Under `torchrun` several processes train together: every one calls `train` with the same arguments,
and the first one writes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from veilset.errors import TrainingError
from veilset.files import staged_folder, write_json, write_text
from veilset.models.augment import draw_moves
from veilset.models.device import choose_engine, kernels
from veilset.models.registry import architecture, make_model
from veilset.training import record
from veilset.training.beat import Beat, Listener, Pulse
from veilset.training.checkpoint import (
    read_checkpoint,
    remove_checkpoint,
    save_checkpoint,
    unpack_checkpoint,
)
from veilset.training.compiled import choose_compile, compiled
from veilset.training.feed import Data, even_slices
from veilset.training.loader import Samples, check_samples
from veilset.training.params import TrainingParams, augmentation_for
from veilset.training.ranks import Ranks, join, synchronise
from veilset.training.run import Epoch, Run, Subject, Task, Totals
from veilset.training.saved import HISTORY, ModelCard, pack_weights, save_model
from veilset.training.schedule import learning_rate

FAILED = "failed.json"
"""Mark of a diverged run, in the staging folder `.<name>.partial`."""

_LOOK = 64  # steps between looks at the loss: each look waits for the device

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


def train(
    train_set: Samples | tuple[Any, Any],
    validation_set: Samples | tuple[Any, Any],
    params: TrainingParams,
    subject: Subject,
    output: Path,
    progress: Progress | None = None,
    beat: Listener | None = None,
) -> TrainResult:
    """Trains a classifier and writes it.

    The weights are those after the last epoch, or their average (`ema`): choosing an epoch by its
    validation accuracy would flatter that figure. A run that was killed goes on after its last
    whole epoch when it is called again with the same arguments.

    Args:
        train_set: Images uint8 (N, H, W, C) in memory or on disk, labels int64 (N,), and where
            pixels were masked a mask, which only networks that read one see.
        validation_set: The same, of other images.
        params: The knobs.
        subject: Which network, which classes, under which scheme.
        output: The folder to write: `model.safetensors`, `model.json`, `history.csv`.
        progress: Called after each epoch, in the first process only.
        beat: Called every second or so during an epoch, in the first process only.

    Returns:
        The folder, its card and its history.

    Raises:
        TrainingError: The set cannot be trained on, the loss became NaN or infinite, the device's
            memory is too small for a single image, the network cannot be compiled, or another
            process of the training ended.
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
    ranks = join(params.device)
    task = _task(train_set, validation_set, params, subject, ranks)
    cuda = task.engine.device.type == "cuda"
    with (
        kernels(task.engine, deterministic=params.deterministic, threads=params.threads),
        torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []),
        ExitStack() as stack,
    ):
        plan = record.plan(task)
        staging = stack.enter_context(staged_folder(output, plan)) if ranks.leads else None
        _require_one_plan(plan, ranks)
        run = stack.enter_context(_started(task))
        _resume(run, ranks, staging, output)
        _all_epochs(run, task, staging, progress, beat)
        with run.averaged():
            weights = pack_weights(run.model)
        card = record.card(run, task, weights)
        if staging is not None:
            save_model(staging, weights, card)
            write_text(staging / HISTORY, record.history_csv(run.history))
            remove_checkpoint(staging)
    ranks.wait()  # no process reports success before the folder is in its place
    return TrainResult(output, card, tuple(run.history))


# ---------------------------------------------------------------------------------- a run's parts


def _task(
    train_set: Samples, validation_set: Samples, params: TrainingParams, subject: Subject,
    ranks: Ranks,
) -> Task:  # fmt: skip
    engine = choose_engine(params.device, params.precision)
    count, height, width, channels = train_set.images.shape
    params = params.settled(count)
    steps = ceil(count / params.batch_for(count))
    if count // steps < ranks.count:
        raise TrainingError(
            f"a batch of {count // steps} images is too small for {ranks.count} processes: raise "
            "batch_size, or start fewer."
        )
    asked, total = params.compile, steps * params.epochs
    train = Data.of(train_set, None, engine)
    return Task(
        params=params,
        subject=subject,
        engine=engine,
        ranks=ranks,
        augmentation=augmentation_for(params, subject.declares, (height, width, channels)),
        shape=(height, width, channels),
        train=train,
        validation=Data.of(validation_set, train.normalisation, engine),
        steps=steps,
        compiled=choose_compile(asked, engine, steps=total, processes=ranks.count),
    )


def _require_one_plan(plan: str, ranks: Ranks) -> None:
    if ranks.hand_out(plan.encode()) != plan.encode():
        raise TrainingError(
            f"process {ranks.index} was given other images or settings than process 0: start all "
            "of them by the same command on the same files."
        )


@contextmanager
def _started(task: Task) -> Iterator[Run]:
    """A run before its first epoch; seeds torch's generators, for networks that draw (dropout)."""
    seed, subject = task.params.seed, task.subject
    _seed_generators(seed, task)
    classes = len(subject.classes)
    model = make_model(subject.model, task.shape, classes, seed=seed, **subject.model_params)
    if task.ranks.count > 1:
        synchronise(model, task.ranks)
    model = model.to(task.engine.device).to(memory_format=torch.channels_last)
    if not task.compiled:
        yield Run.of(model, model, task.params)
        return
    with compiled(model, task.form, deterministic=task.params.deterministic) as (network, forward):
        yield Run.of(network, forward, task.params)


def _seed_generators(seed: int, task: Task) -> None:
    torch.default_generator.manual_seed(seed)
    if task.engine.device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _resume(run: Run, ranks: Ranks, staging: Path | None, output: Path) -> None:
    """Puts the state of a killed run back; only the first process reads the file."""
    saved = ranks.hand_out(None if staging is None else read_checkpoint(staging))
    if saved is not None:
        run.restore(unpack_checkpoint(saved, staging or output))


def _all_epochs(
    run: Run, task: Task, staging: Path | None, progress: Progress | None, beat: Listener | None
) -> None:
    """The epochs that are left, a checkpoint after each; a diverged run is marked as failed."""
    epochs = task.params.epochs
    pulse = Pulse(beat, epochs, len(task.train)) if beat and task.ranks.leads else None
    if staging is not None:
        (staging / FAILED).unlink(missing_ok=True)
    try:
        while len(run.history) < epochs:
            run.history.append(_epoch(run, task, pulse))
            if staging is not None:
                save_checkpoint(staging, run.state())
            if progress is not None and task.ranks.leads:
                progress(run.history[-1], epochs)
    except TrainingError as error:
        if staging is not None:
            failed = {"epoch": len(run.history) + 1, "reason": str(error)}
            write_json(staging / FAILED, failed)
        raise


def _epoch(run: Run, task: Task, pulse: Pulse | None) -> Epoch:
    """One pass over the training images and one over the validation images."""
    started = time.perf_counter()
    count, ranks, number = len(task.train), task.ranks, len(run.history) + 1
    order = torch.randperm(count, generator=run.sampler)
    moves = draw_moves(count, task.augmentation, run.sampler)
    still = not (task.augmentation.crop or task.augmentation.flip)
    if ranks.count > 1:
        # Of each process and epoch its own, so that the checkpoint of the first one is enough.
        mixed = np.random.SeedSequence([task.params.seed, number, ranks.index])
        _seed_generators(int(mixed.generate_state(1)[0]), task)
    if pulse is not None:
        pulse.start(number)
    run.model.train()
    parts, peak = even_slices(count, task.steps), task.params.peak_for(count)
    shares = [ranks.share(part) for part in parts]
    totals, lr, seen = Totals.nothing(task.engine), 0.0, 0
    with closing(task.train.batches(order, None if still else moves, shares)) as batches:
        for step, (pixels, labels) in enumerate(batches):
            done = (number - 1 + step / task.steps) / task.params.epochs
            lr, size = learning_rate(task.params, peak, done), parts[step].stop - parts[step].start
            totals = totals.plus(_step(run, task, pixels, labels, size, lr))
            seen += len(labels)
            if step % _LOOK == 0 or step == task.steps - 1:
                _require_finite(totals.means(1, ranks)[0], number, lr)
            if pulse is not None:
                pulse.step(parts[step].stop, seen, *totals)
    loss, accuracy = totals.means(count, ranks)
    run.seconds += time.perf_counter() - started  # the last look has waited for the device
    with run.averaged():
        tested = _validate(run.model, task)
    _require_finite(tested[0], number, lr)
    return Epoch(number, lr, loss, accuracy, *tested)


def _step(run: Run, task: Task, pixels: Tensor, labels: Tensor, size: int, lr: float) -> Totals:
    """One step on this process's share of a batch of `size` images.

    Where the memory is short, it is done in ever more micro-batches of the same batch; but several
    processes would have to agree on that within the step, so there it ends the training.
    """
    while True:
        try:
            totals = _gradients(run, task, pixels, labels, size)
            task.ranks.add_up_gradients(run.model)
            run.optimiser.step(lr)
            if run.average is not None:
                run.average.follow()
            return totals
        except torch.OutOfMemoryError:
            _require_smaller(run, task, len(labels))
        # Outside of the handler, whose traceback would keep the failed step's tensors alive.
        run.accumulation *= 2
        run.optimiser.forget_gradients()
        if task.engine.device.type == "cuda":
            torch.cuda.empty_cache()


def _require_smaller(run: Run, task: Task, count: int) -> None:
    device = task.engine.device.type
    if task.ranks.count > 1:
        raise TrainingError(
            f"the {device} has not the memory to train on {count} images at once in each of "
            f"{task.ranks.count} processes: lower batch_size, or start more processes."
        ) from None
    if run.accumulation >= count:
        raise TrainingError(
            f"the {device} has not the memory to train on one image: use a smaller model, smaller "
            "images or another device."
        ) from None


def _gradients(run: Run, task: Task, pixels: Tensor, labels: Tensor, size: int) -> Totals:
    """Gradients of the mean loss over the batch, summed over its micro-batches.

    A network that has a method `penalty` adds what it returns to the loss, not to the totals.
    """
    run.optimiser.forget_gradients()
    totals = Totals.nothing(task.engine)
    penalty = getattr(run.model, "penalty", _no_penalty)
    for part in even_slices(len(labels), min(run.accumulation, len(labels))):
        inputs, wanted = task.train.inputs(pixels[part]), labels[part]
        with task.engine.autocast():
            logits = run.forward(inputs)
        loss = functional.cross_entropy(
            logits.float(), wanted, label_smoothing=task.params.label_smoothing, reduction="sum"
        )
        goal = loss + len(wanted) * penalty()
        (goal / size).backward()  # type: ignore[no-untyped-call]
        totals = totals.plus(Totals(loss.detach(), _correct(logits, wanted)))
    return totals


@torch.inference_mode()
def _validate(model: nn.Module, task: Task) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on the validation images, unmoved."""
    model.eval()
    data, totals = task.validation, Totals.nothing(task.engine)
    count = len(data)
    parts = even_slices(count, ceil(count / task.params.batch_for(len(task.train))))
    shares = [own for part in parts if (own := task.ranks.share(part)).start < own.stop]
    with closing(data.batches(torch.arange(count), None, shares)) as batches:
        for pixels, labels in batches:
            with task.engine.autocast():
                logits = model(data.inputs(pixels))
            loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
            totals = totals.plus(Totals(loss, _correct(logits, labels)))
    return totals.means(count, task.ranks)


def _no_penalty() -> float:
    return 0.0


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == labels).sum()


def _require_finite(loss: float, epoch: int, lr: float) -> None:
    if not isfinite(loss):
        raise TrainingError(
            f"the training diverged: its loss became {loss} in epoch {epoch} at learning rate "
            f"{lr:.3g}; lower lr, or check the images."
        )


__all__ = ["FAILED", "Beat", "Epoch", "Progress", "Subject", "TrainResult", "train"]
