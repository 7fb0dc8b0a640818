"""The knobs of a training, and how its images are augmented."""

from itertools import pairwise
from math import sqrt
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from veilset.errors import TrainingError
from veilset.models.augment import Augmentation
from veilset.params import Params
from veilset.schemes.base import Declaration

Share = Annotated[float, Field(gt=0, lt=1)]

PEAKS: Final = {"sgd": 0.1, "adam": 0.003}
"""The learning rate of each optimiser for batches of 64 where none is given (ours: short runs on
digits did well)."""

_LEAST_BATCH: Final = 64
_LARGEST_BATCH: Final = 512
_LEAST_STEPS: Final = 256


class TrainingParams(Params):
    """Parameters of a training; by default SGD with Nesterov momentum under a one-cycle rate.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Largest number of images in one step, over all processes; all steps of an epoch
            have the same number of images within one. `auto` goes by the number of images alone, so
            that results depend on no machine: the power of two from 64 to 512 that leaves 256
            steps an epoch or more. Where memory is short, a batch is done in parts.
        optimiser: `sgd` with Nesterov momentum, or `adam` with decoupled weight decay (AdamW,
            Loshchilov and Hutter 2019).
        lr: Peak learning rate; without one, 0.1 for `sgd` and 0.003 for `adam`, times the root of
            batch_size over 64 (Krizhevsky, arXiv 1404.5997, section 5).
        schedule: Of the learning rate: `one_cycle` rises for a quarter of the run and falls to
            almost nothing, `multi_step` falls at milestones, `constant` stays.
        milestones: Where `multi_step` falls, as shares of the run in ascending order.
        decay: The factor by which it falls there.
        momentum: Nesterov momentum of `sgd`.
        weight_decay: Of weights; biases and batch normalisation have none. `adam` takes this share
            of a weight times the learning rate, so larger ones (0.01 to 0.1) are usual there.
        ema: Decay of an exponential moving average of the weights, a step; 0 for none. The averaged
            weights are what is validated and saved.
        label_smoothing: Share of the target that is spread over all classes.
        flip: Mirror half of the images left to right. Only where a mirrored image still shows its
            class: not for digits, letters or signs, so none by default. `auto`: mirror, but only
            where a mirror is safe under the scheme (`mirror_safe`); `true`: whatever the scheme.
        crop: Shift by up to so many pixels each way, reflecting at the edges; `auto`: a sixteenth
            of the smaller side, but none where the scheme's output is tied to places (regions,
            cells, masks), which a shift would mix.
        seed: Of the initial weights, the order and the augmentation.
        precision: `bf16` is mixed precision; `auto` takes it where the hardware computes with it.
        device: `auto` is CUDA where it works, else the CPU.
        compile: Compile the network before it is trained, once a process; the last bits of the
            weights differ from those without. `auto` does so on CUDA where the run has steps enough
            to earn the time back. Not in a training by several processes.
        threads: Of the CPU; `auto` leaves it to torch (all cores, or `OMP_NUM_THREADS`). Sums are
            cut by threads, so another number gives other last bits: set it where weights must be
            equal on several machines.
        deterministic: Deterministic kernels only. Equal weights then need the same device, thread
            count and torch version.
    """

    epochs: int = Field(6, ge=1, le=10_000)
    batch_size: Literal["auto"] | Annotated[int, Field(ge=2, le=65_536)] = "auto"
    optimiser: Literal["sgd", "adam"] = "sgd"
    lr: float | None = Field(None, gt=0, le=100)
    schedule: Literal["one_cycle", "multi_step", "constant"] = "one_cycle"
    milestones: tuple[Share, ...] = (0.5, 0.75)
    decay: float = Field(0.1, gt=0, lt=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    ema: float = Field(0.0, ge=0, lt=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    flip: Literal["auto"] | bool = False
    crop: Literal["auto"] | int = Field("auto")
    seed: int = Field(0, ge=0, lt=2**32)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    deterministic: bool = True

    def batch_for(self, count: int) -> int:
        """The largest number of images in one step of an epoch of so many."""
        if self.batch_size != "auto":
            return self.batch_size
        fits = max(1, count // _LEAST_STEPS)
        return min(max(1 << (fits.bit_length() - 1), _LEAST_BATCH), _LARGEST_BATCH)

    def peak_for(self, count: int) -> float:
        """The peak learning rate of a training on so many images."""
        if self.lr is not None:
            return self.lr
        return PEAKS[self.optimiser] * sqrt(self.batch_for(count) / _LEAST_BATCH)

    def settled(self, count: int) -> Self:
        """The same for so many images, with nothing left to be chosen by their number."""
        chosen = {"batch_size": self.batch_for(count), "lr": self.peak_for(count)}
        return self.model_copy(update=chosen)

    @field_validator("compile", mode="before")
    @classmethod
    def _not_a_truth(cls, value: Any) -> Any:
        # YAML reads a bare `on` or `off` as true or false.
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("milestones")
    @classmethod
    def _ascend(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(one >= other for one, other in pairwise(value)):
            raise ValueError("milestones are shares of the run in ascending order, one at least")
        return value

    @field_validator("milestones", "decay", "momentum")
    @classmethod
    def _belongs(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses a value that nothing would read; its default is left alone, as cards state it."""
        name = str(info.field_name)
        owner, needed = _OWNERS[name]
        chosen = info.data.get(owner, needed)  # absent where it was refused itself
        if chosen != needed and value != cls.model_fields[name].default:
            raise ValueError(f"only {owner} {needed} reads it, and {owner} is {chosen}")
        return value


_OWNERS: Final = {
    "milestones": ("schedule", "multi_step"),
    "decay": ("schedule", "multi_step"),
    "momentum": ("optimiser", "sgd"),
}


def mirror_safe(declares: Declaration) -> bool:
    """Whether training images may be mirrored left to right under a scheme.

    A scheme whose output is tied to places treats each place in its own way: it shuffles every
    region by another permutation, or draws a mask on a grid. A mirror puts what one permutation
    made where the network expects another's work, so half of the training images would be of a
    kind that the scheme never releases, and that no query shows. A shift does the same harm for
    the same reason, a little of it at each edge; hence a mirror is taken to be safe exactly where
    a shift is (`Declaration.shift_safe`). Schemes that treat all places alike (noise, blur,
    mixing with other images, none) commute with a mirror, or release its outcome as likely.
    """
    return declares.shift_safe


def augmentation_for(
    params: TrainingParams, declares: Declaration, shape: tuple[int, int, int]
) -> Augmentation:
    """The augmentation of images of a shape (H, W, C) under a scheme.

    Raises:
        TrainingError: The shift is negative or not smaller than the image.
    """
    side = min(shape[:2])
    flip = mirror_safe(declares) if params.flip == "auto" else params.flip
    if params.crop == "auto":
        return Augmentation(flip, max(1, side // 16) if declares.shift_safe else 0)
    if not 0 <= params.crop < side:
        raise TrainingError(
            f"crop is {params.crop} pixels, but the images are {shape[0]}x{shape[1]}: choose 0 to "
            f"{side - 1}."
        )
    return Augmentation(flip, params.crop)
