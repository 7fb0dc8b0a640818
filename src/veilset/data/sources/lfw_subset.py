"""scikit-image's subset of Labeled Faces in the Wild, which comes with the installed package."""

from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from veilset.data.sources.base import EmbeddedParams, Item, Source
from veilset.errors import SourceError
from veilset.types import Images

_SHAPE = (200, 25, 25)


class LfwSubsetSource(Source[EmbeddedParams]):
    """100 faces and 100 other cut-outs, grey, 25x25; classes "face", "other"; no split, no groups.

    Items are pixels, uint8 (25, 25): the stored 0..1 become round(255 v). Who is shown is not
    stored, so that there are no groups. Nothing is ever downloaded.

    Source: G. Huang et al., Learning to Align from Scratch (NIPS 2012), as distributed with
    scikit-image.
    """

    name = "lfw_subset"
    title = "scikit-image's 100 faces and 100 others"
    embedded = True
    Parameters = EmbeddedParams

    def classes(self) -> tuple[str, ...]:
        """The two names "face" and "other"."""
        return ("face", "other")

    def count(self) -> int:
        """200."""
        return 200

    def items(self) -> Iterator[Item]:
        """Yields the faces, then the others.

        Raises:
            SourceError: The installed scikit-image does not hold the file.
        """
        for index, image in enumerate(self._images):
            label = int(index >= 100)
            yield Item(f"lfw_subset/{index:03d}", image, label, self.classes()[label])

    @cached_property
    def _images(self) -> Images:
        # The package's own loader would download a missing file.
        spec = find_spec("skimage")
        folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
        for file in (folder / "data" / "lfw_subset.npy" for folder in folders):
            if file.is_file():
                return _scaled(file)
        raise SourceError(
            "The installed scikit-image has no data/lfw_subset.npy: install the locked version."
        )


def _scaled(file: Path) -> Images:
    values = np.load(file, allow_pickle=False)
    if values.shape != _SHAPE or values.min() < 0 or values.max() > 1:
        raise SourceError(f"{file} holds other images than expected: install the locked version.")
    return np.asarray(np.rint(values * 255).astype(np.uint8))
