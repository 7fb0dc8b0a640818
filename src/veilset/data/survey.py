"""What size and how many channels a source's images have, from a look at the first of them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

import numpy as np

from veilset.data.decode import (
    Decoded,
    DecodeParams,
    decode_array,
    decode_packed,
    refuse_unseen,
    unpack,
)
from veilset.data.decode_pool import Limits, run_jobs
from veilset.data.sources.base import Item, Source
from veilset.errors import SourceError

_GREY_MODES: Final = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


@dataclass(frozen=True)
class Survey:
    """The commonest size of the images looked at, and the channels that hold all of them.

    Attributes:
        size: Height and width in pixels.
        channels: 1 if all are grey, else 3.
        looked_at: How many images could be decoded.
    """

    size: tuple[int, int]
    channels: int
    looked_at: int


def survey(source: Source[Any], limit: int = 64) -> Survey:
    """Looks at the first images of a source, in a process that may die.

    Args:
        source: The source; iterated anew.
        limit: How many items are looked at.

    Raises:
        SourceError: None of them can be decoded.

    Source: ours.
    """
    found = list(_decoded(source, limit))
    if not found:
        raise SourceError(
            f"none of the first {limit} images can be decoded, so the set's size cannot be "
            "chosen: give a size, or look at the files."
        )
    sizes = Counter((image.height, image.width) for image in found)
    # The larger of two equally common ones, so that the choice does not depend on their order.
    size = max(sizes, key=lambda pair: (sizes[pair], pair))
    return Survey(size, 1 if all(_is_grey(image) for image in found) else 3, len(found))


def _decoded(source: Source[Any], limit: int) -> Iterator[Decoded]:
    # Small, since only what was there before fitting is asked for; colour, so that it is seen.
    params = DecodeParams(size=(8, 8), channels=3)
    limits = Limits(workers=1, timeout_seconds=30, memory_bytes=2 << 30, answer_bytes=192)
    work = partial(decode_packed, params)
    for item, answer in run_jobs(work, _jobs(source, limit, params), limits):
        if isinstance(item.content, np.ndarray):
            result = decode_array(item.content, params)
        elif isinstance(answer, bytes):
            result = unpack(answer, params)
        else:
            continue
        if isinstance(result, Decoded):
            yield result


def _jobs(
    source: Source[Any], limit: int, params: DecodeParams
) -> Iterator[tuple[Item, bytes | None]]:
    for item in islice(source.items(), limit):
        usable = isinstance(item.content, bytes) and item.fault is None
        if usable and refuse_unseen(item.content, params) is None:  # type: ignore[arg-type]
            yield item, item.content  # type: ignore[misc]
        else:
            yield item, None


def _is_grey(image: Decoded) -> bool:
    if image.mode == "array":
        return bool((image.pixels == image.pixels[..., :1]).all())
    return image.mode in _GREY_MODES
