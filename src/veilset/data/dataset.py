"""An image set as a torch data set.

from veilset.data import open
loader = torch.utils.data.DataLoader(open("release/"), batch_size=256, shuffle=True)
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from veilset.data.shards import ImageSet
from veilset.errors import SourceError
from veilset.types import Columns, Ids, IntArray, Labels

Transform = Callable[[Tensor], Any]


class SetDataset(Dataset[tuple[Any, ...]]):
    """One split of an image set; every byte is checked against its hash before it is used.

    An item is (image, label): uint8 (C, H, W), or what `transform` makes of that, and int. With
    `side`, a third part holds the published columns of that image by name. Loaders that ask for a
    whole batch at once (torch's does) read it at once.

    Attributes:
        images: The set.
        split: The split.
        classes: Class names in the order of the labels.
    """

    def __init__(
        self,
        images: ImageSet,
        split: str,
        transform: Transform | None = None,
        *,
        side: bool = False,
    ) -> None:
        """Binds a split of an open set."""
        self.images, self.split, self.transform, self.side = images, split, transform, side
        self.classes = images.classes

    @cached_property
    def labels(self) -> Labels:
        """All labels, int64 (N,)."""
        return self.images.labels(self.split)

    @property
    def ids(self) -> Ids:
        """All ids, uint8 (N, 16)."""
        return self.images.ids(self.split)

    def __len__(self) -> int:
        return self.images.count(self.split)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"there are {len(self)} images, none at {row}")
        return self.__getitems__([row % len(self)])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[Any, ...]]:
        """The items of several rows, read in one go."""
        at: IntArray = np.asarray(rows, dtype=np.int64)
        pixels = torch.from_numpy(self.images.images(self.split, at)).permute(0, 3, 1, 2)
        labels = self.labels[at].tolist()
        shown = [image if self.transform is None else self.transform(image) for image in pixels]
        if not self.side:
            return list(zip(shown, labels, strict=True))
        beside = [{name: values[row] for name, values in self.columns.items()} for row in at]
        return list(zip(shown, labels, beside, strict=True))

    @cached_property
    def columns(self) -> Columns:
        """All published columns by name, N rows each; held in memory once asked for."""
        names = self.images.manifest.columns
        return {name: self.images.column(self.split, name) for name in names}


def open_dataset(
    path: str | Path,
    split: str = "train",
    *,
    transform: Transform | None = None,
    side: bool = False,
) -> SetDataset:
    """Opens a split of an image set, ingested or protected, as a torch data set.

    Args:
        path: Its folder.
        split: The split.
        transform: Applied to each image, uint8 (C, H, W).
        side: Return published columns (e.g. a mask) as well.

    Raises:
        SourceError: There is no such split.
        CorruptError: It is no finished set.
    """
    images = ImageSet.open(Path(path))
    if split not in images.splits:
        known = ", ".join(images.splits) or "none"
        raise SourceError(f"{path} has no split {split!r}: it has {known}.")
    return SetDataset(images, split, transform, side=side)
