"""The knobs of a training, and how its images are augmented."""

from typing import Annotated, Literal

from pydantic import Field

from veilset.errors import TrainingError
from veilset.models.augment import Augmentation
from veilset.params import Params
from veilset.schemes.base import Declaration


class TrainingParams(Params):
    """Parameters of a training: SGD with Nesterov momentum under a one-cycle learning rate.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Largest number of images in one step; all steps of an epoch have the same
            number of images within one.
        lr: Peak learning rate.
        momentum: Nesterov momentum.
        weight_decay: Of weights; biases and batch normalisation have none.
        label_smoothing: Share of the target that is spread over all classes.
        flip: Mirror half of the images left to right. Only where a mirrored image still shows its
            class: not for digits, letters or signs.
        crop: Shift by up to so many pixels each way, reflecting at the edges; `auto`: a sixteenth
            of the smaller side, but none where the scheme's output is tied to places (regions,
            cells, masks), which a shift would mix.
        seed: Of the initial weights, the order and the augmentation.
        precision: `bf16` is mixed precision; `auto` takes it where the hardware computes with it.
        device: `auto` is CUDA where it works, else the CPU.
        threads: Of the CPU; `auto` leaves it to torch (all cores, or `OMP_NUM_THREADS`). Sums are
            cut by threads, so another number gives other last bits: set it where weights must be
            equal on several machines.
        deterministic: Deterministic kernels only. Equal weights then need the same device, thread
            count and torch version.
    """

    epochs: int = Field(6, ge=1, le=10_000)
    batch_size: int = Field(64, ge=2, le=65_536)
    lr: float = Field(0.1, gt=0, le=100)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    flip: bool = False
    crop: Literal["auto"] | int = Field("auto")
    seed: int = Field(0, ge=0, lt=2**32)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    deterministic: bool = True


def augmentation_for(
    params: TrainingParams, declares: Declaration, shape: tuple[int, int, int]
) -> Augmentation:
    """The augmentation of images of a shape (H, W, C) under a scheme.

    Raises:
        TrainingError: The shift is negative or not smaller than the image.
    """
    side = min(shape[:2])
    if params.crop == "auto":
        return Augmentation(params.flip, max(1, side // 16) if declares.shift_safe else 0)
    if not 0 <= params.crop < side:
        raise TrainingError(
            f"crop is {params.crop} pixels, but the images are {shape[0]}x{shape[1]}: choose 0 to "
            f"{side - 1}."
        )
    return Augmentation(params.flip, params.crop)
