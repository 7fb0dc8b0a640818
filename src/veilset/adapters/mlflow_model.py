"""How MLflow loads a model of the audit store: safetensors and a card, nothing unpickled."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from veilset.errors import TrainingError
from veilset.training.saved import load_model
from veilset.types import Images

_BATCH = 256


class Classifier:
    """A trained classifier with the interface that `mlflow.pyfunc` asks for.

    Args:
        folder: The folder of `model.safetensors` and `model.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.model, self.card = load_model(folder)

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> npt.NDArray[np.float32]:
        """Class probabilities.

        Args:
            data: Images as the model was trained on: uint8 (N, H, W, C).
            params: Ignored.

        Returns:
            float32 (N, classes), 0..1, rows sum to 1.

        Raises:
            TrainingError: The images have another shape or dtype.
        """
        del params
        images = np.asarray(data)
        if images.dtype != np.uint8 or images.shape[1:] != self.card.shape:
            raise TrainingError(
                f"The model takes uint8 images (N, {', '.join(map(str, self.card.shape))}), not "
                f"{images.dtype} {images.shape}."
            )
        parts = [self._part(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
        empty = np.zeros((0, len(self.card.classes)), np.float32)
        return np.concatenate([empty, *parts])

    def _part(self, images: Images) -> npt.NDArray[np.float32]:
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            logits = self.model(self.card.normaliser.apply(pixels))
        found: npt.NDArray[np.float32] = logits.softmax(dim=1).numpy()
        return found


def _load_pyfunc(data_path: str) -> Classifier:
    """What MLflow calls with the path of the model's data."""
    return Classifier(Path(data_path))
