"""A trained classifier on disk: weights as safetensors, everything else as JSON, no pickle."""

import hashlib
import json
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from veilset.errors import CorruptError, SettingsError
from veilset.files import write_bytes, write_json
from veilset.models.augment import Normalisation
from veilset.models.registry import make_model
from veilset.params import Params

WEIGHTS = "model.safetensors"
CARD = "model.json"
HISTORY = "history.csv"


class ModelCard(Params):
    """All that is needed to use a trained classifier, and how it came about.

    Attributes:
        format: Version of this layout, 2; `load_card` reads 1 as well.
        architecture: Name in the registry.
        parameters: Parameters of the architecture.
        classes: Class names in the order of the logits.
        shape: (H, W, C) of the images it was trained on.
        normalisation: `mean` and `std` of each channel in units of 0..1.
        scheme: The scheme whose output it was trained on.
        trained_on: Root digests of the sets it was trained on.
        training_images: How many images that was.
        seed: The seed.
        recipe: Training parameters, with learning rate and augmentation as they were applied.
        device: What it was trained on, `cpu` or `cuda`.
        device_name: The name of that hardware.
        precision: `fp32` or `bf16`.
        compiled: Whether the network was compiled.
        processes: How many trained it together.
        streamed: The images stayed in main memory or on disk, for want of room on the device or
            in memory.
        threads: Threads of the CPU that computed.
        torch_version: Version of torch.
        batch: Images in a step, over all processes; 0 where that is not known.
        accumulation: Micro-batches in a step; more than 1 where the memory was short, and then
            batch normalisation saw micro-batches.
        epochs: Passes over the training images.
        seconds: Training time in seconds without validation, over all runs that it took.
        images_per_second: Training images in a second of that time.
        weight_count: Number of trained weights.
        validation_accuracy: After the last epoch, 0..1.
        weights_sha256: SHA-256 of `model.safetensors`.
    """

    format: Literal[2] = 2
    architecture: str
    parameters: dict[str, Any]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    normalisation: Mapping[Literal["mean", "std"], tuple[float, ...]]
    scheme: str
    trained_on: tuple[str, ...]
    training_images: int
    seed: int
    recipe: dict[str, Any]
    device: str
    device_name: str
    precision: Literal["fp32", "bf16"]
    compiled: bool = False
    processes: int = Field(1, ge=1)
    streamed: bool = False
    threads: int
    torch_version: str
    batch: int = Field(0, ge=0)
    accumulation: int
    epochs: int
    seconds: float = Field(ge=0, allow_inf_nan=False)
    images_per_second: float = Field(ge=0, allow_inf_nan=False)
    weight_count: int
    validation_accuracy: float = Field(ge=0, le=1)
    weights_sha256: str

    @property
    def normaliser(self) -> Normalisation:
        """The normalisation as an object."""
        return Normalisation(self.normalisation["mean"], self.normalisation["std"])


def pack_weights(model: nn.Module) -> bytes:
    """The weights and buffers of a model as safetensors: equal weights give equal bytes."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    return save(state)


def save_model(folder: Path, weights: bytes, card: ModelCard) -> None:
    """Writes weights and card, each atomically; `card.weights_sha256` is that of `weights`.

    Raises:
        DiskFullError: The disk has no room.
    """
    write_bytes(folder / WEIGHTS, weights)
    write_json(folder / CARD, card.model_dump(mode="json"))


_NO_CARD: Final = (
    OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError,
    SettingsError,
)  # fmt: skip


def load_card(folder: Path) -> ModelCard:
    """Reads and checks `model.json` of a model's folder.

    Raises:
        CorruptError: It is missing, not JSON, or not a card.
    """
    path = folder / CARD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        card = ModelCard.parse(_upgraded(values), str(path))
        _require_consistent(card)
    except _NO_CARD as error:
        raise CorruptError(f"{path} is not a model's card ({error}): train it again.") from None
    return card


def load_model(folder: Path) -> tuple[nn.Module, ModelCard]:
    """Loads a trained classifier, ready to predict, on the CPU. Nothing is unpickled.

    Args:
        folder: What `train` wrote.

    Returns:
        The network in evaluation mode and channels-last memory, and its card.

    Raises:
        CorruptError: A file is missing or altered, or the weights do not fit the architecture.
        SettingsError: The architecture is not known here.
    """
    card = load_card(folder)
    path = folder / WEIGHTS
    height, width, channels = card.shape
    model = make_model(
        card.architecture, (height, width, channels), len(card.classes), **card.parameters
    )
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != card.weights_sha256:
            raise ValueError(f"its SHA-256 is not the one in {CARD}")
        model.load_state_dict(load(data))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CorruptError(f"{path} cannot be used ({reason}): train it again.") from None
    return model.eval().to(memory_format=torch.channels_last), card


_SINCE_1: Final = {
    "milestones": [0.5, 0.75], "decay": 0.1, "ema": 0.0, "compile": "off", "optimiser": "sgd",
    "schedule": "one_cycle",
}  # fmt: skip
"""What every training of format 1 did, which had no names for it in its parameters."""


def _upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """A card of format 1 as one of format 2; any other as it is."""
    if values.get("format", 1) != 1:
        return values
    recipe = {**values["recipe"], **_SINCE_1}
    count, size = values["training_images"], recipe["batch_size"]
    return {**values, "format": 2, "recipe": recipe, "batch": ceil(count / ceil(count / size))}


def _require_consistent(card: ModelCard) -> None:
    stated = card.normalisation
    if set(stated) != {"mean", "std"} or {len(v) for v in stated.values()} != {card.shape[2]}:
        raise ValueError("its normalisation does not fit its channels")
    if not all(0 <= value <= 1 for value in stated["mean"]):
        raise ValueError("a mean is outside of 0..1")
    if not all(0 < value <= 1 for value in stated["std"]):
        raise ValueError("a standard deviation is outside of 0..1")
