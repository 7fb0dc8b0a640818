"""Schemes in users' own code: on NumPy and torch batches, and as a torchvision transform.

A client protects queries in a loader of its own by the parameters of a release:

    transform = Protect.like("release/", key)        # or Protect(VisualMixer(region_px=8), key)
    dataset = torchvision.datasets.ImageFolder("queries/", transform=transform)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from veilset.data.manifest import Manifest
from veilset.errors import ProtectionError
from veilset.keys import Key, derive_key, image_id
from veilset.schemes.base import Scheme
from veilset.schemes.fitted import Fitted
from veilset.schemes.registry import scheme_of_record
from veilset.types import Ids, Images, Labels

Batch = TypeVar("Batch", Images, Tensor)

_NO_KEY: Final = Key(bytes(32))


def protect_batch(
    scheme: Scheme[Any],
    images: Batch,
    *,
    key: Key | None = None,
    labels: Labels | None = None,
    ids: Ids | None = None,
) -> Batch:
    """Protects a batch as it is held in memory.

    Args:
        scheme: The scheme, fitted where it learns.
        images: uint8 (N, H, W, C) as NumPy has it, or (N, C, H, W) as torch has it, C = 1 or 3.
        key: The key; needed where the scheme is keyed.
        labels: int64 (N,); needed where the scheme uses labels.
        ids: uint8 (N, 16), which decide each image's randomness; by default a keyed hash of its
            pixels, so that the same image is protected the same way.

    Returns:
        The protected images, of the same kind, shape and device.

    Raises:
        ProtectionError: Something that the scheme needs is missing, or the images have another
            shape or dtype.
    """
    if key is None and scheme.declares.keyed:
        raise ProtectionError(f"{scheme.name} is keyed: give key=Key(...), 32 random bytes.")
    if labels is None and scheme.declares.uses_labels:
        raise ProtectionError(
            f"{scheme.name} uses labels: give labels=..., or leave these images unprotected, as "
            "queries are."
        )
    pixels = _pixels(images)
    secret = _NO_KEY if key is None else key
    classes = np.zeros(len(pixels), dtype=np.int64) if labels is None else labels
    made = scheme.protect(pixels, classes, _ids(pixels, secret) if ids is None else ids, secret)
    if isinstance(images, np.ndarray):
        return made.images
    moved = torch.from_numpy(made.images).permute(0, 3, 1, 2)
    return moved.to(images.device).contiguous()


class Protect(v2.Transform):  # type: ignore[misc]
    """Protects the images of a sample by a scheme; boxes, masks and labels pass through.

    Takes PIL images, `tv_tensors.Image` and plain tensors, uint8, with or without a batch axis.
    """

    _transformed_types = (Image.Image, tv_tensors.Image, v2._utils.is_pure_tensor)

    def __init__(self, scheme: Scheme[Any], key: Key | None = None) -> None:
        """Binds a scheme and the key that it needs.

        Raises:
            ProtectionError: The scheme is for training images only.
        """
        super().__init__()
        if not scheme.declares.protects_queries:
            raise ProtectionError(
                f"{scheme.name} protects training images only: queries stay plain under it."
            )
        self.scheme = scheme
        self.key = key

    @classmethod
    def like(
        cls, release: str | Path, key: Key | None = None, *, fitted: Fitted | None = None
    ) -> "Protect":
        """The transform with which a release was made.

        Args:
            release: The folder of a protected set.
            key: The client's key.
            fitted: What the scheme learnt, where it learns.

        Raises:
            ProtectionError: It is no protected set, or its scheme does not protect queries.
            CorruptError: Its manifest cannot be read.
        """
        record = Manifest.load(Path(release)).scheme
        if record is None:
            raise ProtectionError(f"{release} is a set of plain images: it names no scheme.")
        return cls(scheme_of_record(record, str(release), fitted=fitted), key)

    def transform(self, inpt: Any, params: Mapping[str, Any]) -> Any:
        """Protects one image or batch of images."""
        del params
        tensor = functional.pil_to_tensor(inpt) if isinstance(inpt, Image.Image) else inpt
        batch = tensor.reshape(-1, *tensor.shape[-3:]).as_subclass(Tensor)
        made = protect_batch(self.scheme, batch, key=self.key).reshape(tensor.shape)
        if isinstance(inpt, Image.Image):
            return functional.to_pil_image(made)
        return tv_tensors.wrap(made, like=inpt) if isinstance(inpt, tv_tensors.Image) else made

    def extra_repr(self) -> str:
        """The scheme and its parameters; never the key."""
        return f"{self.scheme.name}, {self.scheme.params.canonical()}"


def _pixels(images: Images | Tensor) -> Images:
    if isinstance(images, np.ndarray):
        return images
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ProtectionError(
            f"images must be uint8 (N, 1 or 3, H, W), not {images.dtype} {tuple(images.shape)}: "
            "protect before scaling to floating point."
        )
    found: Images = images.permute(0, 2, 3, 1).cpu().contiguous().numpy()
    return found


def _ids(pixels: Images, key: Key) -> Ids:
    secret = derive_key(key, "ids of queries")
    flat = b"".join(image_id(secret, image) for image in pixels)
    return np.frombuffer(flat, dtype=np.uint8).reshape(-1, 16)
