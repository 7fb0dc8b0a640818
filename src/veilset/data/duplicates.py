"""Finding images that occur twice, exactly or nearly.

Exact duplicates have the same id, i.e. the same pixels before fitting. Near duplicates are found on
the fitted images: candidates share 16 of the 64 bits of a difference hash, and are confirmed by
their mean absolute pixel difference. Between the two stand exact lower bounds of that difference
(mean brightness, then sums over 4 x 4 blocks), which let few candidates be read from disk.

Pairs whose hashes differ in at most 3 bits are always candidates, except where more than 128 images
of nearly one brightness share a hash: there each is compared with its 128 neighbours in brightness.
All of it is ours; difference hash after N. Krawetz ("Kind of Like That", 2013).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from veilset.types import BoolArray, FloatArray, Images, IntArray

_BANDS: Final = 4
_BAND_BITS: Final = 16
_NEIGHBOURS: Final = 128
_BLOCKS: Final = 4
_SLACK: Final = 1e-3  # Rounding of the lower bounds, in grey levels.
_VERIFY_BYTES: Final = 16 << 20


@dataclass(frozen=True, eq=False)
class Features:
    """What near duplicates of N images are sought by.

    Attributes:
        hash: uint64 (N,), difference hash.
        blocks: float32 (N, 16): sums over 4 x 4 blocks, divided by the number of all values, so
            that they add up to the mean.
        brightness: float64 (N,), mean grey level, 0..255.
    """

    hash: npt.NDArray[np.uint64]
    blocks: npt.NDArray[np.float32]
    brightness: FloatArray

    def take(self, rows: IntArray) -> "Features":
        """The features of some of the images."""
        return Features(self.hash[rows], self.blocks[rows], self.brightness[rows])


@dataclass(frozen=True)
class ExactDuplicates:
    """What `exact_duplicates` found.

    Attributes:
        first: For each image the index of the first one with its id (its own if it is the first).
        conflicting: For each image whether another one with its id has another label.
    """

    first: IntArray
    conflicting: BoolArray


def exact_duplicates(ids: Sequence[bytes], labels: Sequence[object]) -> ExactDuplicates:
    """Finds equal ids, and among them different labels.

    Args:
        ids: In the source's order.
        labels: The class of each; anything hashable.
    """
    first: dict[bytes, int] = {}
    firsts = np.array([first.setdefault(i, n) for n, i in enumerate(ids)], dtype=np.int64)
    disputed = {int(firsts[n]) for n, label in enumerate(labels) if label != labels[int(firsts[n])]}
    conflicting = np.isin(firsts, sorted(disputed))
    return ExactDuplicates(first=firsts, conflicting=conflicting)


def features(images: Images) -> Features:
    """The features of fitted images.

    Args:
        images: uint8 (N, H, W, C), H and W at least 4.
    """
    count = len(images)
    grey = _grey(images)
    small = _bin_sums(grey, 8, 9) / _bin_sizes(grey.shape[1:], 8, 9)
    bits = np.packbits((small[:, :, 1:] > small[:, :, :-1]).reshape(count, 64), axis=1)
    values = int(np.prod(images.shape[1:]))
    blocks = _bin_sums(images.sum(axis=3, dtype=np.int32), _BLOCKS, _BLOCKS) / values
    return Features(
        hash=bits.view(">u8")[:, 0].astype(np.uint64),
        blocks=blocks.reshape(count, _BLOCKS * _BLOCKS).astype(np.float32),
        brightness=grey.mean(axis=(1, 2), dtype=np.float64),
    )


def joined(parts: Sequence[Features]) -> Features:
    """The features of several batches, one after another. At least one batch."""
    return Features(
        hash=np.concatenate([part.hash for part in parts]),
        blocks=np.concatenate([part.blocks for part in parts]),
        brightness=np.concatenate([part.brightness for part in parts]),
    )


def near_duplicates(
    found: Features,
    ids: Sequence[bytes],
    take: Callable[[IntArray], Images],
    threshold: float,
) -> IntArray:
    """Clusters of near duplicates: the connected components of the pairs that are near.

    Args:
        found: The features of N images.
        ids: Their ids, all different.
        take: Fitted images by index, uint8 (len, H, W, C).
        threshold: Largest mean absolute difference of a near pair, grey levels 0..255.

    Returns:
        int64 (N,): for each image the index of the smallest id of its cluster; its own index where
        it has no near duplicate.
    """
    count = len(ids)
    cluster = np.arange(count)
    hashes, blocks = found.hash, found.blocks
    limit = threshold + _SLACK
    for band in range(_BANDS):
        shifted = hashes >> np.uint64(band * _BAND_BITS)
        keys = (shifted & np.uint64((1 << _BAND_BITS) - 1)).astype(np.int64)
        # Within a band's value by mean, so that near pairs are neighbours.
        means = blocks.sum(axis=1, dtype=np.float64)
        order = np.lexsort((means, keys))
        for step in range(1, min(_NEIGHBOURS + 1, count)):
            left, right = order[:-step], order[step:]
            possible = (keys[left] == keys[right]) & (means[right] - means[left] <= limit)
            if not possible.any():
                break
            left, right = left[possible], right[possible]
            apart = cluster[left] != cluster[right]
            left, right = left[apart], right[apart]
            close = np.abs(blocks[left] - blocks[right]).sum(axis=1) <= limit
            left, right = left[close], right[close]
            near = _differences(take, left, right) <= threshold
            cluster = _merged(cluster, left[near], right[near])
    return _smallest(cluster, ids)


# 32 bits hold them all: sums over a block of the largest image, 4096 x 4096, are below 2^30.
_Sums = npt.NDArray[np.int32]


def _grey(images: Images) -> _Sums:
    """Integer luma as `decode` has it, (N, H, W)."""
    values = images.astype(np.int32)
    if values.shape[3] == 1:
        return values[:, :, :, 0]
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    return (red * 19_595 + green * 38_470 + blue * 7_471 + 32_768) >> 16


def _edges(length: int, bins: int) -> IntArray:
    """Where each bin begins. Of a side shorter than the bins, some pixels are taken twice."""
    return np.arange(bins) * length // bins


def _bin_sums(values: _Sums, rows: int, columns: int) -> _Sums:
    """Sums over a grid of bins, (N, rows, columns)."""
    by_row = np.add.reduceat(values, _edges(values.shape[1], rows), axis=1)
    return np.add.reduceat(by_row, _edges(values.shape[2], columns), axis=2)


def _bin_sizes(shape: tuple[int, ...], rows: int, columns: int) -> IntArray:
    """Pixels of each bin of an (H, W) grid, (rows, columns)."""
    sides = [
        np.maximum(1, np.diff(_edges(length, bins), append=length))
        for length, bins in zip(shape, (rows, columns), strict=True)
    ]
    return np.outer(*sides)


def _differences(take: Callable[[IntArray], Images], left: IntArray, right: IntArray) -> FloatArray:
    """Mean absolute differences of pairs, in pieces that fit in memory."""
    result = np.empty(len(left), dtype=np.float64)
    if not len(left):
        return result
    rows = max(1, _VERIFY_BYTES // take(left[:1]).size)
    for start in range(0, len(left), rows):
        part = slice(start, start + rows)
        one, other = take(left[part]), take(right[part])
        gap = np.maximum(one, other) - np.minimum(one, other)
        result[part] = gap.reshape(len(gap), -1).mean(axis=1, dtype=np.float64)
    return result


def _merged(cluster: IntArray, left: IntArray, right: IntArray) -> IntArray:
    """Joins the clusters of pairs. Each cluster is named by one of its indices."""
    if not len(left):
        return cluster
    parent = cluster.copy()
    for one, other in zip(left.tolist(), right.tolist(), strict=True):
        a, b = _root(parent, one), _root(parent, other)
        parent[max(a, b)] = min(a, b)
    while not np.array_equal(parent, parent[parent]):
        parent = parent[parent]
    return parent


def _root(parent: IntArray, index: int) -> int:
    while parent[index] != index:
        index = int(parent[index])
    return index


def _smallest(cluster: IntArray, ids: Sequence[bytes]) -> IntArray:
    """Names each cluster by the index of its smallest id."""
    best: dict[int, int] = {}
    for index, name in enumerate(cluster.tolist()):
        if name not in best or ids[index] < ids[best[name]]:
            best[name] = index
    return np.array([best[name] for name in cluster.tolist()], dtype=np.int64)
