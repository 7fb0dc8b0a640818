"""What survives protection, measured without training, and which of it to trust.

A *view* turns released images into images that may resemble the originals (the released image
itself, or a restoration). A *measure* compares views with candidates. An attacker tries every view
with every measure on her own images under her own key, and uses the best on the release.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.ndimage import gaussian_filter1d

from veilset.attacks.base import Attacker
from veilset.errors import ProtectionError
from veilset.keys import derive_key
from veilset.metrics.retrieval import draw_galleries, pick, places, squared_distances
from veilset.schemes.base import ArrayPool, Scheme
from veilset.types import BoolArray, FloatArray, Images, IntArray, Labels

Planes = npt.NDArray[np.number[Any]]
"""Images as grey levels 0..255 of any numeric type, (N, H, W, C)."""

MAX_SIDE = 48
"""Pixel features of larger images are averaged down to this side."""


# --- Features: planes (N, H, W, C) -> float (N, D) --------------------------------------------


def area_resize(images: Planes, height: int, width: int) -> FloatArray:
    """Averages images down (or repeats them up) to another size by exact pixel areas.

    Args:
        images: (N, H, W, C).
        height: Rows wanted.
        width: Columns wanted.

    Returns:
        float64 (N, height, width, C).

    Source: the textbook definition.
    """
    if images.shape[1:3] == (height, width):
        return np.asarray(images, dtype=np.float64)
    rows = _areas(images.shape[1], height)
    columns = _areas(images.shape[2], width)
    planes = np.moveaxis(np.asarray(images, dtype=np.float64), -1, 1)
    return np.moveaxis(rows @ planes @ columns.T, 1, -1)


def _areas(old: int, new: int) -> FloatArray:
    """Row i holds the share of each old line in new line i."""
    edges = np.arange(new + 1) * old / new
    starts, ends = np.arange(old), np.arange(old) + 1
    overlap = np.minimum(edges[1:, None], ends) - np.maximum(edges[:-1, None], starts)
    return np.asarray(np.maximum(overlap, 0.0) * new / old)


def flat(images: Planes) -> FloatArray:
    """All values of an image as one row, float64 (N, H * W * C)."""
    return np.asarray(images, dtype=np.float64).reshape(len(images), -1)


def _pixels(images: Planes) -> FloatArray:
    height, width = (min(side, MAX_SIDE) for side in images.shape[1:3])
    return flat(area_resize(images, height, width))


def _thumbnail(images: Planes, side: int = 8) -> FloatArray:
    return flat(area_resize(images, side, side))


def _blurred(images: Planes) -> FloatArray:
    sigma = max(images.shape[1:3]) / 16
    planes = np.asarray(images, dtype=np.float64)
    for axis in (1, 2):
        planes = gaussian_filter1d(planes, sigma, axis=axis)
    return _pixels(planes)


def _edges(images: Planes, side: int = 8) -> FloatArray:
    """Mean absolute differences of neighbours: contours survive a change of brightness."""
    planes = np.asarray(images, dtype=np.float64)
    down = np.abs(np.diff(planes, axis=1, append=planes[:, -1:]))
    right = np.abs(np.diff(planes, axis=2, append=planes[:, :, -1:]))
    return _thumbnail(np.concatenate([down, right], axis=-1), side)


def _spectrum(images: Planes, side: int = 16) -> FloatArray:
    """Logarithms of the low frequencies' magnitudes: they survive shifts."""
    planes = np.moveaxis(np.asarray(images, dtype=np.float64), -1, 1)
    magnitudes = np.abs(np.fft.rfft2(planes))[:, :, :side, : side // 2 + 1]
    return np.log1p(magnitudes).reshape(len(images), -1)


def _sorted_regions(images: Planes, side: int, levels: int = 16) -> FloatArray:
    """Quantiles of the grey levels in each square region and channel: no shuffle changes them."""
    n, height, width, channels = images.shape
    rows, columns = height // side, width // side
    cut = np.asarray(images[:, : rows * side, : columns * side], dtype=np.float64)
    blocks = cut.reshape(n, rows, side, columns, side, channels).transpose(0, 1, 3, 5, 2, 4)
    ordered = np.sort(blocks.reshape(n, rows, columns, channels, side * side), axis=-1)
    places = np.linspace(0, side * side - 1, min(levels, side * side)).round().astype(np.int64)
    return ordered[..., places].reshape(n, -1)


def _mixed_regions(images: Planes, side: int) -> FloatArray:
    """The same over all channels at once: no shuffle of channels changes them either."""
    merged = np.asarray(images, dtype=np.float64)
    n, height, width, channels = merged.shape
    rows, columns = height // side, width // side
    cut = merged[:, : rows * side, : columns * side]
    blocks = cut.reshape(n, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
    ordered = np.sort(blocks.reshape(n, rows, columns, -1), axis=-1)
    places = np.linspace(0, ordered.shape[-1] - 1, 16).round().astype(np.int64)
    return ordered[..., places].reshape(n, -1)


def _histogram(images: Planes, levels: int = 64) -> FloatArray:
    """Quantiles of the grey levels of the whole image and channel."""
    n, channels = len(images), images.shape[-1]
    values = np.sort(np.asarray(images, dtype=np.float64).reshape(n, -1, channels), axis=1)
    places = np.linspace(0, values.shape[1] - 1, levels).round().astype(np.int64)
    return values[:, places].reshape(n, -1)


Feature = Callable[[Planes], FloatArray]


def features_for(shape: tuple[int, int, int], scheme: Scheme[Any] | None) -> dict[str, Feature]:
    """The features that make sense for images of this shape.

    Args:
        shape: (H, W, C).
        scheme: Where known, its integer parameters that look like region or block sizes add
            regions of exactly that size.

    Returns:
        Features by name.

    Source: ours.
    """
    height, width, channels = shape
    features: dict[str, Feature] = {
        "pixels": _pixels, "thumbnail": _thumbnail, "blurred": _blurred, "edges": _edges,
        "spectrum": _spectrum, "histogram": _histogram,
    }  # fmt: skip
    for side in sorted({4, 8, 16} | region_sizes(scheme)):
        if 2 <= side <= min(height, width):
            features[f"regions_{side}"] = partial(_sorted_regions, side=side)
            if channels > 1:
                features[f"mixed_regions_{side}"] = partial(_mixed_regions, side=side)
    return features


def region_sizes(scheme: Scheme[Any] | None) -> set[int]:
    """Sizes of regions and blocks among a scheme's parameters, in pixels."""
    if scheme is None:
        return set()
    marks = ("region", "block", "cell", "patch", "tile")
    values = scheme.params.model_dump()
    steps: tuple[Scheme[Any], ...] = getattr(scheme, "steps", ())
    own = {
        value for name, value in values.items()
        if any(mark in name for mark in marks) and type(value) is int and value >= 2
    }  # fmt: skip
    return own.union(*(region_sizes(step) for step in steps))


# --- Forms: images (N, H, W, C) -> images in which what is shuffled is alike ---------------------


Prepare = Callable[[Images], Images]
"""Brings images (N, H, W, C) into a form in which they resemble their protected versions."""


def folded(images: Images) -> Images:
    """min(v, 255 - v) of each value, the channels of a pixel in ascending order; (N, H, W, C)."""
    return np.sort(np.minimum(images, 255 - images), axis=-1)


def block_forms(shape: tuple[int, int, int], sizes: Iterable[int]) -> dict[str, Prepare]:
    """Forms that no permutation and negation inside blocks changes, nor one of the blocks.

    Args:
        shape: (H, W, C).
        sizes: Heights (and widths) of blocks in pixels; what is larger than the image is left out.

    Returns:
        Forms by name.

    Source: the invariants that the ciphers' risk notes name.
    """
    sizes = [side for side in sorted(sizes) if side <= min(shape[:2])]
    return {
        f"{'half-bytes' if half else 'bytes'} of {'loose ' if loose else ''}blocks of {side}":
            partial(in_order, side=side, half=half, loose=loose)
        for side in sizes for half in (False, True) for loose in (False, True)
    }  # fmt: skip


def in_order(images: Images, side: int, half: bool, loose: bool) -> Images:
    """Values up to negation in ascending order in each whole block.

    Args:
        images: uint8 (N, H, W, C).
        side: Height and width of a block in pixels.
        half: Take half-bytes h up to 15 - h, in place of bytes v up to 255 - v.
        loose: The blocks are brought into an order as well.

    Returns:
        uint8 (N, blocks, values of a block, 1).

    Source: ours.
    """
    n, height, width, _ = images.shape
    down, right = height // side, width // side
    cut = images[:, : down * side, : right * side]
    if half:
        low, high = cut & 15, cut >> 4
        cut = np.concatenate([np.minimum(low, 15 - low), np.minimum(high, 15 - high)], axis=-1)
    else:
        cut = np.minimum(cut, 255 - cut)
    blocks = cut.reshape(n, down, side, right, side, -1).transpose(0, 1, 3, 2, 4, 5)
    made = np.sort(blocks.reshape(n, down * right, -1), axis=-1)
    if loose:
        # As strings of bytes, which sort fast.
        strings = np.ascontiguousarray(made).view(f"S{made.shape[-1]}")
        made = np.sort(strings, axis=1).view(np.uint8).reshape(made.shape)
    return made[..., None]


# --- Measures: two sets of planes -> distances ------------------------------------------------


class Measure(Protocol):
    """Compares views of released images with candidates."""

    def distances(self, views: Planes, candidates: Planes) -> FloatArray:
        """float64 (T, N); smaller is more alike."""


@dataclass(frozen=True)
class Plainly:
    """Euclidean distance of a feature."""

    feature: Feature

    def distances(self, views: Planes, candidates: Planes) -> FloatArray:
        """float64 (T, N)."""
        return squared_distances(self.feature(views), self.feature(candidates))


@dataclass(frozen=True)
class Aligned:
    """Cosine of a feature, standardised on either side by what is usual there.

    Protection moves means and contrasts of whole sets; an attacker who can protect images of her
    own knows by how much.

    Attributes:
        feature: The feature.
        here: Mean and spread of the feature over protected images, (2, D).
        there: Mean and spread over plain images, (2, D).
        either_sign: An image and its negative count as alike.
    """

    feature: Feature
    here: FloatArray
    there: FloatArray
    either_sign: bool = False

    def distances(self, views: Planes, candidates: Planes) -> FloatArray:
        """float64 (T, N), 0..2."""
        query = _unit((self.feature(views) - self.here[0]) / self.here[1])
        known = _unit((self.feature(candidates) - self.there[0]) / self.there[1])
        cosine = query @ known.T
        return np.asarray(1.0 - (np.abs(cosine) if self.either_sign else cosine))


@dataclass(frozen=True)
class Agreement:
    """A quantile of the absolute differences of pixels: what is copied outweighs what is not."""

    quantile: float

    def distances(self, views: Planes, candidates: Planes) -> FloatArray:
        """float64 (T, N), in grey levels."""
        mine, theirs = (_pixels(p).astype(np.float32) for p in (views, candidates))
        place = int(self.quantile * (mine.shape[1] - 1))
        rows = [np.partition(np.abs(theirs - row), place, axis=1)[:, place] for row in mine]
        # The mean of what agrees, in a whisper, orders candidates that agree alike.
        overall = Plainly(_rms).distances(views, candidates)
        return np.asarray(np.array(rows, dtype=np.float64) + 1e-3 * overall)


def _rms(images: Planes) -> FloatArray:
    flat = _pixels(images)
    return np.asarray(flat / (255.0 * np.sqrt(flat.shape[1])))


@dataclass(frozen=True)
class BlockVote:
    """Each block votes for the candidates whose block at the same place is nearest.

    Attributes:
        rows: Block height in pixels.
        columns: Block width in pixels.
    """

    rows: int
    columns: int

    def distances(self, views: Planes, candidates: Planes) -> FloatArray:
        """float64 (T, N), minus the share of votes; a tie splits a vote."""
        mine, theirs = self._blocks(views), self._blocks(candidates)
        votes = np.zeros((len(views), len(candidates)))
        for place in range(mine.shape[1]):
            apart = squared_distances(mine[:, place], theirs[:, place])
            nearest = apart <= apart.min(axis=1, keepdims=True) + 1e-6
            votes += nearest / nearest.sum(axis=1, keepdims=True)
        return np.asarray(-votes / mine.shape[1])

    def _blocks(self, images: Planes) -> FloatArray:
        n, height, width, channels = images.shape
        down, right = height // self.rows, width // self.columns
        cut = np.asarray(images[:, : down * self.rows, : right * self.columns], dtype=np.float64)
        blocks = cut.reshape(n, down, self.rows, right, self.columns, channels)
        return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, down * right, -1)


@dataclass(frozen=True)
class InForm:
    """Euclidean distance in a form that permutations and negations do not change."""

    prepare: Prepare

    def distances(self, views: Planes, candidates: Planes) -> FloatArray:
        """float64 (T, N); planes are grey levels as they were released."""
        mine, theirs = (
            flat(self.prepare(planes.astype(np.uint8))) for planes in (views, candidates)
        )
        return squared_distances(mine, theirs)


def _unit(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _usual(values: FloatArray) -> FloatArray:
    """Mean and spread, (2, D); the spread is kept from vanishing where nothing ever changes."""
    spread = values.std(axis=0)
    return np.stack([values.mean(axis=0), spread + 0.1 * spread.mean() + 1e-9])


def measures_for(
    views: Planes, plain: Planes, scheme: Scheme[Any] | None, copies: bool
) -> dict[str, Measure]:
    """Every measure, standardised on the attacker's own images.

    Args:
        views: Views of her protected images, (M, H, W, C).
        plain: The plain images they stand for.
        scheme: For the sizes of its regions and blocks.
        copies: Add those that look for copied pixels and blocks.

    Returns:
        Measures by name, `feature` or `feature:way`.

    Source: ours.
    """
    measures: dict[str, Measure] = {}
    height, width, channels = views.shape[1:]
    for name, feature in features_for((height, width, channels), scheme).items():
        here, there = _usual(feature(views)), _usual(feature(plain))
        measures[name] = Aligned(feature, here, there)
        measures[f"{name}:either sign"] = Aligned(feature, here, there, either_sign=True)
        measures[f"{name}:distance"] = Plainly(feature)
    if copies:
        measures |= {"agreement:25": Agreement(0.25), "agreement:50": Agreement(0.5)}
        for rows, columns in block_sizes(scheme, height, width):
            measures[f"block_vote:{rows}x{columns}"] = BlockVote(rows, columns)
        measures["folded"] = InForm(folded)
        sizes = region_sizes(scheme) or {4, 8}
        for form, prepare in block_forms((height, width, channels), sizes).items():
            measures[form] = InForm(prepare)
    return measures


def block_sizes(scheme: Scheme[Any] | None, height: int, width: int) -> list[tuple[int, int]]:
    """Blocks that vote: the scheme's own where its parameters tell, and squares of 4 and 8."""
    values = {} if scheme is None else scheme.params.model_dump()
    own = values.get("block_height"), values.get("block_width")
    sizes = {(4, 4), (8, 8)}
    if isinstance(own[0], int) and isinstance(own[1], int):
        sizes.add((own[0], own[1]))
    return sorted(s for s in sizes if s[0] <= height and s[1] <= width and s != (height, width))


# --- Views ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Released images with their published side information, as a view reads them."""

    images: Images
    side: Mapping[str, npt.NDArray[Any]]

    def take(self, rows: IntArray | BoolArray | slice) -> "Batch":
        """These rows only."""
        side = {name: values[rows] for name, values in self.side.items()}
        return Batch(self.images[rows], side)


class View(Protocol):
    """Turns released images into planes that may resemble the originals."""

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, h, w, C), grey levels 0..255 or thereabouts."""


def as_released(batch: Batch) -> Planes:
    """The released image itself."""
    return np.asarray(batch.images, dtype=np.float64)


RIDGES = (1e-4, 1e-2, 0.1, 1.0)
"""Penalties that are tried, as shares of a standardised column's squared norm."""

KEPT = (1024, 128, 32)
"""So many columns are tried, the most telling ones first."""

_BLOCK = 4096


@dataclass(frozen=True)
class LinearMap:
    """The best linear map from the most telling columns of protected images to plain images.

    It is trained in a second and finds whatever is hidden at a fixed place: a thumbnail in a
    corner, in the lowest bits, beside the image, or under noise.

    Attributes:
        kept: Which columns it reads, int64 (K,), ascending.
        mean: Their means, (K,).
        weights: (K, outputs).
        target_mean: Mean of the plain images, (outputs,).
        shape: (h, w, C) of what it restores.
        bits: The columns hold the eight bits of every pixel as well.
    """

    kept: IntArray
    mean: FloatArray
    weights: FloatArray
    target_mean: FloatArray
    shape: tuple[int, int, int]
    bits: bool

    def __call__(self, batch: Batch) -> Planes:
        """Restorations (N, h, w, C), grey levels cut to 0..255."""
        columns = gather_columns(batch, self.bits, self.kept)
        flat = (columns - self.mean) @ self.weights + self.target_mean
        return np.clip(flat, 0.0, 255.0).reshape(len(flat), *self.shape)


def column_blocks(batch: Batch, bits: bool) -> Iterator[npt.NDArray[np.float32]]:
    """What a linear map may read, a block of columns at a time; float32 (N, up to 4096).

    Pixels, their means over a grid of 16 x 16, their bits if asked for, and numeric side
    information (what is not a number there counts as 0).
    """
    values = batch.images.reshape(len(batch.images), -1)
    for start in range(0, values.shape[1], _BLOCK):
        yield values[:, start : start + _BLOCK].astype(np.float32)
    height, width = (min(size, 16) for size in batch.images.shape[1:3])
    yield flat(area_resize(batch.images, height, width)).astype(np.float32)
    if bits:
        for start in range(0, values.shape[1], _BLOCK // 8):
            yield np.unpackbits(values[:, start : start + _BLOCK // 8], axis=1).astype(np.float32)
    for name in sorted(batch.side):
        column = batch.side[name]
        if column.dtype.kind in "biuf":
            yield np.nan_to_num(column.reshape(len(column), -1).astype(np.float32))


def grid_columns(shape: tuple[int, ...]) -> IntArray:
    """Which columns are the means over the grid, for images (N, H, W, C): what noise leaves."""
    _, height, width, channels = shape
    first = height * width * channels
    return first + np.arange(min(height, 16) * min(width, 16) * channels, dtype=np.int64)


def gather_columns(batch: Batch, bits: bool, kept: IntArray) -> FloatArray:
    """Some of those columns by number, ascending; float64 (N, K)."""
    parts, first = [], 0
    for block in column_blocks(batch, bits):
        here = kept[(kept >= first) & (kept < first + block.shape[1])] - first
        parts.append(block[:, here])
        first += block.shape[1]
    return np.concatenate(parts, axis=1, dtype=np.float64)


def most_telling(batch: Batch, plain: Images, bits: bool) -> IntArray:
    """All columns that vary, by how much of the plain thumbnails each explains alone, best first.

    Args:
        batch: Protected images.
        plain: Their originals.
        bits: Bits count as columns as well.

    Returns:
        Numbers of columns, int64.

    Source: sure independence screening (Fan and Lv, 2008).
    """
    small = _thumbnail(plain).astype(np.float32)
    small -= small.mean(axis=0)
    explained = []
    for block in column_blocks(batch, bits):
        centred = block - block.mean(axis=0)
        spread = (centred**2).sum(axis=0)
        together = ((centred.T @ small) ** 2).sum(axis=1)
        explained.append(np.where(spread > 0, together / np.maximum(spread, 1e-6), -1.0))
    scores = np.concatenate(explained)
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] >= 0].astype(np.int64)


def fit_linear(
    fit: "Pairs", tuning: "Pairs", side: int, bits: bool, limit: int = 8000
) -> LinearMap:
    """Fits ridge regressions on the most telling columns and keeps the best.

    Args:
        fit: Pairs to fit on.
        tuning: Pairs, of other images, whose restoration error chooses penalty and columns.
        side: Restorations are at most this many pixels high and wide.
        bits: Read the bits of each pixel as well.
        limit: At most so many pairs are used.

    Returns:
        The map.

    Source: ridge regression after screening; its use as an attack is ours.
    """
    fit = fit.take(np.arange(min(limit, len(fit.plain)), dtype=np.int64))
    height, width = (min(side, size) for size in fit.plain.shape[1:3])
    targets = flat(area_resize(fit.plain, height, width))
    ranked = most_telling(fit.batch, fit.plain, bits)
    choices = [np.sort(ranked[:count]) for count in sorted({min(c, len(ranked)) for c in KEPT})]
    if not bits or not len(ranked):
        choices = [kept for kept in choices if len(kept)]
        choices.append(grid_columns(fit.plain.shape))
    systems = [_System.of(fit, tuning, kept, bits) for kept in choices]
    # Thumbnails choose: they tell which setting restores best at a fraction of the cost.
    best, ridge = min(product(systems, RIDGES), key=lambda setting: setting[0].error(setting[1]))
    shape = (height, width, fit.plain.shape[-1])
    mean = targets.mean(axis=0)
    return LinearMap(best.kept, best.mean, best.weights(ridge, targets - mean), mean, shape, bits)


@dataclass(frozen=True)
class _System:
    """The normal equations of some columns.

    Attributes:
        kept: Which columns.
        mean: Their means, (K,); scale: their spreads.
        columns: Standardised columns of the fitting part, float32 (n, K).
        square: Their products with each other, (K, K).
        unseen: Columns of the tuning part, less the mean, (m, K).
        small: Thumbnails of the fitting part less their mean, and of the tuning part.
    """

    kept: IntArray
    mean: FloatArray
    scale: FloatArray
    columns: npt.NDArray[np.float32]
    square: FloatArray
    unseen: FloatArray
    small: tuple[FloatArray, FloatArray]

    @classmethod
    def of(cls, fit: "Pairs", tuning: "Pairs", kept: IntArray, bits: bool) -> "_System":
        seen, unseen = (gather_columns(p.batch, bits, kept) for p in (fit, tuning))
        mean, scale = seen.mean(axis=0), seen.std(axis=0) + 1e-9
        columns = ((seen - mean) / scale).astype(np.float32)
        thumbnails = _thumbnail(fit.plain)
        middle = thumbnails.mean(axis=0)
        small = thumbnails - middle, _thumbnail(tuning.plain) - middle
        square = (columns.T @ columns).astype(np.float64)
        return cls(kept, mean, scale, columns, square, unseen - mean, small)

    def weights(self, ridge: float, targets: FloatArray) -> FloatArray:
        """Weights of the columns as they are, (K, outputs), for centred targets (n, outputs)."""
        penalised = self.square + ridge * len(self.columns) * np.eye(len(self.square))
        known = (self.columns.T @ targets.astype(np.float32)).astype(np.float64)
        solved = cho_solve(cho_factor(penalised, overwrite_a=True), known)
        return np.asarray(solved / self.scale[:, None])

    def error(self, ridge: float) -> float:
        """Mean squared error of the tuning part's thumbnails; infinite where it has no solution."""
        try:
            made = self.unseen @ self.weights(ridge, self.small[0])
        except LinAlgError:
            # More columns than pairs, and a penalty below what single precision resolves.
            return float("inf")
        return float(((made - self.small[1]) ** 2).mean())


# --- The attacker's own pairs -----------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Images that the attacker protected herself, and what they were.

    Attributes:
        batch: Protected images with side information.
        plain: Their originals, uint8 (N, H, W, C).
        rows: The row of the auxiliary image behind each, int64 (N,).
    """

    batch: Batch
    plain: Images
    rows: IntArray

    def take(self, rows: IntArray | BoolArray) -> "Pairs":
        """These rows only."""
        return Pairs(self.batch.take(rows), self.plain[rows], self.rows[rows])


def protect_as_attacker(
    scheme: Scheme[Any], attacker: Attacker, part: BoolArray, versions: int,
    rng: np.random.Generator, shift: int = 0, keys: str | None = None,
) -> list[Pairs]:  # fmt: skip
    """Protects a part of the attacker's images several times, under fresh keys and fresh ids.

    Donors come from the part itself, as the owner's come from the release itself.

    Args:
        scheme: The released scheme.
        attacker: Whose images and key.
        part: Mask of the images to protect, bool (M,).
        versions: How many times.
        rng: Source of ids and shifts.
        shift: All versions but the first move each image by up to so many pixels beforehand.
        keys: Calls of one name have the same keys, a version each. Without a name they are of
            this call alone: what was fitted to one key would look good on others of that key.

    Returns:
        One `Pairs` a version, rows in the same order.

    Raises:
        ProtectionError: The scheme cannot protect these images.

    Source: ours.
    """
    chosen = np.flatnonzero(part).astype(np.int64)
    rows = chosen[usable_rows(scheme, attacker.labels[chosen])]
    plain, labels = attacker.images[rows], attacker.labels[rows]
    made = []
    name = rng.bytes(8).hex() if keys is None else keys
    for version in range(versions):
        moved = _moved(plain, shift, rng) if version and shift else plain
        batch = protect_once(scheme, attacker, moved, labels, f"{name} {version}", rng)
        made.append(Pairs(batch, moved, rows))
    return made


def protect_once(
    scheme: Scheme[Any], attacker: Attacker, images: Images, labels: Labels, label: str,
    rng: np.random.Generator,
) -> Batch:  # fmt: skip
    """Protects images under the attacker's key and fresh ids, donors from among themselves."""
    ids = rng.integers(0, 256, (len(images), 16), dtype=np.uint8)
    key = derive_key(attacker.key, f"attack {label}")
    pool = ArrayPool.from_arrays(images, labels, ids)
    protected = scheme.protect(images, labels, ids, key, pool)
    return Batch(protected.images, protected.side)


def usable_rows(scheme: Scheme[Any], labels: Labels) -> IntArray:
    """Rows that the scheme can protect: without the classes of a single image if it needs more.

    Raises:
        ProtectionError: Nothing is left that the scheme would protect.
    """
    rows = np.arange(len(labels), dtype=np.int64)
    if scheme.refuse(labels) is None:
        return rows
    values, counts = np.unique(labels, return_counts=True)
    rows = rows[np.isin(labels, values[counts >= 2])]
    reason = scheme.refuse(labels[rows]) if len(rows) else "no class has two images"
    if reason is not None:
        raise ProtectionError(reason)
    return rows


def _moved(images: Images, shift: int, rng: np.random.Generator) -> Images:
    """Each image moved by up to `shift` pixels each way; the border is repeated."""
    n, height, width, _ = images.shape
    offsets = rng.integers(-shift, shift + 1, (2, n, 1))
    rows = np.clip(np.arange(height) + offsets[0], 0, height - 1)
    columns = np.clip(np.arange(width) + offsets[1], 0, width - 1)
    return np.asarray(images[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]])


def split_attacker(
    attacker: Attacker, share: float, limit: int, rng: np.random.Generator
) -> tuple[BoolArray, BoolArray]:
    """Parts the auxiliary images into a fitting and a tuning part, disjoint in persons.

    Args:
        attacker: Whose images.
        share: Wanted share of the tuning part.
        limit: At most so many images are used.
        rng: Source of the draw.

    Returns:
        Two masks over the auxiliary images, bool (M,).

    Source: ours.
    """
    n = len(attacker.images)
    alone = np.char.add("row ", np.arange(n).astype(str))
    names = np.where(attacker.groups == "", alone, attacker.groups.astype(str))
    people, member = np.unique(names, return_inverse=True)
    if len(people) < 2:
        people, member = np.unique(alone, return_inverse=True)
    lots = rng.permutation(len(people))
    used = np.zeros(n, dtype=bool)
    used[rng.permutation(n)[:limit]] = True
    tuning = lots[member] < max(round(share * len(people)), 1)
    return ~tuning & used, tuning & used


# --- Tuning -----------------------------------------------------------------------------------


Score = tuple[float, float, float, float]
"""Rank-1, average precision, margin, and minus the mean error of the view, compared in this order.

The margin decides where few tuning images make several variants look perfect.
"""

UNTUNED: Final[Score] = (0.0, 0.0, 0.0, 0.0)
"""Of a matcher that could not be tuned."""


@dataclass(frozen=True)
class Matcher:
    """A view with the measure that was best on the tuning part.

    Attributes:
        name: `view/measure`.
        view: The view.
        measure: The measure.
        score: What it scored on the tuning part.
        table: The best rank-1 of each variant there.
    """

    name: str
    view: View
    measure: Measure
    score: Score
    table: Mapping[str, float]

    @property
    def view_name(self) -> str:
        """The name of the view alone."""
        return self.name.split("/", maxsplit=1)[0]

    def distances(self, batch: Batch, candidates: Images) -> FloatArray:
        """float64 (T, N) of released images to candidates."""
        return self.compare(self.view(batch), candidates)

    def compare(self, views: Planes, candidates: Images) -> FloatArray:
        """float64 (T, N) of views already made to candidates."""
        return self.measure.distances(views, like(candidates, views))


def like(candidates: Images, views: Planes) -> Planes:
    """Candidates in the resolution of the views."""
    if candidates.shape[1:3] == views.shape[1:3]:
        return np.asarray(candidates, dtype=np.float64)
    return area_resize(candidates, *views.shape[1:3])


Judge = Callable[[FloatArray], tuple[float, float, float]]
"""Rank-1, average precision and margin of distances (T, N)."""


def own_among_others(n: int, size: int, rng: np.random.Generator) -> Judge:
    """Judges distances (n, n) by the rank of each row's own column in a drawn gallery.

    Raises:
        ProtectionError: There is nothing to confuse an image with.
    """
    if n < 2:
        raise ProtectionError("she has a single image to tune with.")
    own = np.arange(n, dtype=np.int64)
    galleries = draw_galleries(own, n, size, rng, own)
    return lambda distances: judge_first(pick(distances, galleries))


def judge_first(drawn: FloatArray) -> tuple[float, float, float]:
    """Rank-1, average precision and margin of galleries whose column 0 is the sought one.

    The margin is how far the nearest other one is beyond the sought one, as a share of how far the
    others are on average; the median over rows, -1..1.
    """
    before, tied = places(drawn, np.zeros(len(drawn), dtype=np.int64))
    first = np.clip((1 - before) / tied, 0.0, 1.0)
    margin = 0.0
    if drawn.shape[1] > 1:
        own, others = drawn[:, 0], drawn[:, 1:]
        apart = np.maximum(np.abs(others.mean(axis=1) - own), 1e-12)
        margin = float(np.median(np.clip((others.min(axis=1) - own) / apart, -1.0, 1.0)))
    return float(first.mean()), float((1.0 / (before + tied)).mean()), margin


def tune(
    views: Mapping[str, View], fit: Pairs, tuning: Pairs, scheme: Scheme[Any], judge: Judge,
    *, candidates: Images | None = None, by_view: bool = False,
) -> Matcher:  # fmt: skip
    """Tries every view with every measure on the tuning part and keeps the best.

    Args:
        views: Views by name.
        fit: Pairs that standardise the measures.
        tuning: Pairs, of other images, that choose.
        scheme: For the sizes of its regions and blocks.
        judge: Rates the distances of the tuning views to the candidates.
        candidates: What they are compared with; by default their originals.
        by_view: `table` lists views alone; else the features of the released image as well.

    Returns:
        The best pair; rank-1 decides, then average precision, the margin, the error of the view.

    Raises:
        ValueError: There is no view.

    Source: ours.
    """
    known = tuning.plain if candidates is None else candidates
    tried: list[Matcher] = []
    for view_name, view in views.items():
        made, mine = view(fit.batch), view(tuning.batch)
        error = float(np.abs(mine - like(tuning.plain, mine)).mean())
        measures = measures_for(made, like(fit.plain, made), scheme, view is as_released)
        for name, measure in measures.items():
            score = _rate(measure.distances(mine, like(known, mine)), judge)
            tried.append(Matcher(f"{view_name}/{name}", view, measure, (*score, -error), {}))
    if not tried:
        raise ValueError("tuning needs at least one view")
    best = max(tried, key=lambda matcher: matcher.score)
    return replace(best, table=_table(tried, by_view))


def _rate(distances: FloatArray, judge: Judge) -> tuple[float, float, float]:
    return judge(distances) if np.isfinite(distances).all() else (-1.0, -1.0, -1.0)


def _table(tried: Sequence[Matcher], by_view: bool) -> dict[str, float]:
    table: dict[str, float] = {}
    for matcher in tried:
        view, measure = matcher.name.split("/", maxsplit=1)
        # A restoration is one variant among the features of the released image.
        detailed = matcher.view is as_released and not by_view
        row = measure.split(":")[0] if detailed else view
        table[row] = max(table.get(row, 0.0), matcher.score[0])
    return table


def to_pictures(planes: Planes, shape: Sequence[int]) -> Images:
    """Planes as uint8 pictures (N, H, W, C) of the wanted (H, W)."""
    if tuple(planes.shape[1:3]) != tuple(shape[:2]):
        planes = area_resize(planes, shape[0], shape[1])
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8)
