"""scikit-learn's handwritten digits, which come with the installed package."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from veilset.data.sources.base import EmbeddedParams, Item, Source
from veilset.errors import SourceError
from veilset.types import Images, Labels


class DigitsSource(Source[EmbeddedParams]):
    """1,797 grey images of 8x8, classes "0" to "9", no split, no groups.

    Items are pixels, uint8 (8, 8): the stored 0..16 become round(255 v / 16), halves upwards.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (test part), as
    distributed with scikit-learn.
    """

    name = "digits"
    title = "scikit-learn's 1,797 handwritten digits"
    embedded = True
    Parameters = EmbeddedParams

    def classes(self) -> tuple[str, ...]:
        """The ten digits, as "0" to "9"."""
        return tuple(str(digit) for digit in range(10))

    def count(self) -> int:
        """1,797."""
        return 1797

    def items(self) -> Iterator[Item]:
        """Yields the digits in the package's order.

        Raises:
            SourceError: The installed scikit-learn has other digits.
        """
        images, labels = self._data
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            yield Item(f"digits/{index:04d}", image, label, str(label))

    @cached_property
    def _data(self) -> tuple[Images, Labels]:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - seconds to import

        bunch = load_digits()
        values = np.asarray(bunch.images).astype(np.int64)
        if values.shape != (self.count(), 8, 8) or values.min() < 0 or values.max() > 16:
            raise SourceError(
                "The installed scikit-learn has other digits: install the locked version."
            )
        return ((values * 255 + 8) // 16).astype(np.uint8), bunch.target.astype(np.int64)
