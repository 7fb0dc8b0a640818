"""What a training is made of: what stays the same during it, and the state that changes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from veilset.models.augment import Augmentation
from veilset.models.device import Engine
from veilset.models.optimiser import Adam, NesterovSgd, Optimiser
from veilset.schemes.base import Declaration
from veilset.training.average import Average
from veilset.training.feed import Data
from veilset.training.params import TrainingParams
from veilset.training.ranks import Ranks


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


class Totals(NamedTuple):
    """Sums over images: of the loss, and of right answers."""

    loss: Tensor
    correct: Tensor

    @classmethod
    def nothing(cls, engine: Engine) -> "Totals":
        """Zeros: in float64, as sums of many batches; on the device, so that no step waits."""
        loss, correct = torch.zeros(2, device=engine.device, dtype=torch.float64)
        return cls(loss, correct)

    def plus(self, other: "Totals") -> "Totals":
        """The sums of both."""
        return Totals(self.loss + other.loss, self.correct + other.correct)

    def means(self, count: int, ranks: Ranks) -> tuple[float, float]:
        """Both over so many images, those of all processes; waits for the device."""
        loss, correct = (float(each) for each in ranks.add_up(torch.stack(self)))
        return loss / count, correct / count


@dataclass(frozen=True)
class Task:
    """All that stays the same during a training.

    Attributes:
        params: The knobs.
        subject: What is trained on what.
        engine: Where.
        ranks: By which processes.
        augmentation: Of the training images.
        shape: (H, W, C) of an image, without a mask.
        train: The training images.
        validation: The validation images.
        steps: Of an epoch.
        compiled: Whether the network is compiled.
    """

    params: TrainingParams
    subject: Subject
    engine: Engine
    ranks: Ranks
    augmentation: Augmentation
    shape: tuple[int, int, int]
    train: Data
    validation: Data
    steps: int
    compiled: bool

    @property
    def form(self) -> str:
        """What a compiled network depends on."""
        subject, count = self.subject, len(self.train)
        sizes = {count // self.steps, -(-count // self.steps)}
        return repr((
            subject.model, sorted(subject.model_params.items()), len(subject.classes),
            tuple(self.train.images.shape[1:]), sorted(sizes), self.engine,
            self.params.deterministic,
        ))  # fmt: skip


@dataclass
class Run:
    """The changing state of a training; `state` and `restore` are all of it.

    Attributes:
        model: The network.
        forward: Its forward pass in training: itself, or compiled.
        optimiser: What moves its weights.
        average: The average of its weights, or None.
        sampler: Source of the order and the augmentation.
        history: The epochs done.
        accumulation: Micro-batches in a step.
        seconds: Training time so far.
    """

    model: nn.Module
    forward: Callable[[Tensor], Any]
    optimiser: Optimiser
    average: Average | None
    sampler: torch.Generator
    history: list[Epoch] = field(default_factory=list)
    accumulation: int = 1
    seconds: float = 0.0

    @classmethod
    def of(
        cls, model: nn.Module, forward: Callable[[Tensor], Any], params: TrainingParams
    ) -> "Run":
        """A run before its first epoch, of a network on its device."""
        average = Average(model, params.ema) if params.ema else None
        sampler = torch.Generator().manual_seed(params.seed)
        return cls(model, forward, _optimiser(model, params), average, sampler)

    def averaged(self) -> AbstractContextManager[None]:
        """Inside the block the network has the weights that are validated and saved."""
        return nullcontext() if self.average is None else self.average.in_place()

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, as tensors and plain values."""
        device = next(self.model.parameters()).device
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state(),
            "average": None if self.average is None else self.average.state(),
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
        if self.average is not None:
            self.average.restore(state["average"])
        self.sampler.set_state(state["sampler"])
        torch.set_rng_state(state["cpu_generator"])
        if state["cuda_generator"] is not None:
            torch.cuda.set_rng_state(state["cuda_generator"])
        self.history = [Epoch(**row) for row in state["history"]]
        self.accumulation = state["accumulation"]
        self.seconds = state["seconds"]


def _optimiser(model: nn.Module, params: TrainingParams) -> Optimiser:
    if params.optimiser == "adam":
        return Adam(model, weight_decay=params.weight_decay)
    return NesterovSgd(model, momentum=params.momentum, weight_decay=params.weight_decay)
