"""Array types used everywhere. Shapes and ranges are in the docstrings that use them."""

from typing import Any

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
"""Images: uint8, (N, H, W, C), C = 1 (grey) or 3 (RGB), 0..255."""

Labels = npt.NDArray[np.int64]
"""Class indices: int64, (N,), 0..classes-1."""

Ids = npt.NDArray[np.uint8]
"""Image ids: uint8, (N, 16), the 128 bits of a keyed hash."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Columns = dict[str, npt.NDArray[Any]]
"""Further columns by name; each array has N rows."""
