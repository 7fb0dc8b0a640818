"""Known pairs: the one transform of a fixed-key cipher is recovered and undone.

The attacker was given some pairs of protected images and originals. Where every image goes through
the same transform, values that were moved and negated are matched with where they came from: over
the known pairs they agree exactly. A pad that hides all images alike is what the pairs differ by.
The recovered transform then restores all other images.

The pairs come out of the release itself: before anything else they are drawn from its rows and are
targets no longer. Whether to look for bytes or half-bytes, in blocks or in the whole image, is
chosen on images that the attacker protected under a key of her own.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from veilset.attacks.base import (
    OTHER_KIND,
    Attack,
    Attacker,
    AttackParams,
    AttackResult,
    Case,
    Knowledge,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
    score_candidates,
)
from veilset.attacks.features import (
    Batch,
    Matcher,
    Planes,
    View,
    own_among_others,
    protect_as_attacker,
    region_sizes,
    split_attacker,
    to_pictures,
    tune,
    usable_rows,
)
from veilset.attacks.linkage import enough_images, likeness
from veilset.errors import ProtectionError
from veilset.keys import derive_key
from veilset.metrics.similarity import psnr, ssim
from veilset.schemes.base import ArrayPool, Scheme
from veilset.types import BoolArray, FloatArray, Images, IntArray

Units = npt.NDArray[np.uint8]
"""Bytes or half-bytes of images, (N, units)."""

Kind = Literal["bytes", "half-bytes"]
TOP: Final[Mapping[Kind, int]] = {"bytes": 255, "half-bytes": 15}
"""What is left of a unit u when it is negated is this less u."""

_MOST_ASSIGNED: Final = 1024
_PROBES: Final = 32


class KnownPlaintextParams(AttackParams):
    """Parameters of `known_plaintext`.

    Attributes:
        targets: At most so many released images are attacked.
        gallery: Size of the galleries; smaller where there are fewer candidates.
        pairs: So many released images are known with their originals, and are no targets.
        auxiliary: At most so many of the attacker's images are used.
        tuning_share: Share of her images that chooses among the variants.
    """

    targets: int = Field(500, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    pairs: int = Field(20, ge=1, le=10_000)
    auxiliary: int = Field(400, ge=20, le=1_000_000)
    tuning_share: float = Field(0.4, gt=0, lt=1)

    FULL: ClassVar[Mapping[str, Any]] = {"targets": 2000, "pairs": 100, "auxiliary": 5000}


@dataclass(frozen=True, kw_only=True)
class Informed(Attacker):
    """An attacker who was given pairs.

    Attributes:
        known_protected: Released images, uint8 (P, H, W, C).
        known_plain: Their originals, uint8 (P, H, W, C).
    """

    known_protected: Images
    known_plain: Images


@dataclass(frozen=True)
class Decryption:
    """A recovered transform, undone.

    Attributes:
        kind: What was moved.
        source: Which unit of the original came to each place, a permutation, int64 (units,).
        negated: Where it was negated, bool (units,).
    """

    kind: Kind
    source: IntArray
    negated: BoolArray

    def __call__(self, batch: Batch) -> Planes:
        """Restorations (N, H, W, C), grey levels 0..255."""
        units = to_units(batch.images, self.kind)
        plain = np.empty_like(units)
        plain[:, self.source] = np.where(self.negated, TOP[self.kind] - units, units)
        return from_units(plain, self.kind, batch.images.shape).astype(np.float64)


@dataclass(frozen=True)
class Part:
    """Cells of one size: a transform moves units inside each, and perhaps the cells.

    Attributes:
        cells: The units of each, int64 (cells, units).
        moved: The cells change places.
        shared: All have the same transform.
    """

    cells: IntArray
    moved: bool = False
    shared: bool = False


Layout = tuple[Kind, list[Part]]
"""A kind of unit, and the cells that cover all units."""


@dataclass(frozen=True)
class FittedDecryption:
    """The recovered transform, and how restored images are compared.

    Attributes:
        matcher: The chosen restoration and measure.
        way: How it is recovered from pairs.
    """

    matcher: Matcher
    way: "Way"


class KnownPlaintext(Attack[KnownPlaintextParams, FittedDecryption]):
    """Recovers the transform of a fixed-key cipher from known pairs, and restores the rest.

    Source: known-plaintext analysis of permutation ciphers; the matching of values up to negation
    by linear assignment is ours.
    """

    name = "known_plaintext"
    title = "Key recovery from known pairs"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "public_release"
    knowledge: ClassVar[Knowledge] = "K3"
    cost = "seconds"
    metric_words = "rank-1 of the decrypted image in a gallery of {gallery}"
    deed = "are decrypted by a few known pairs, so that their original is singled out"
    oracle_floor = 0.95
    Parameters = KnownPlaintextParams

    def applies(self, case: Case) -> str | None:
        """None for keyed schemes under which all images go through one transform."""
        if not case.release.scheme.declares.keyed:
            return f"{OTHER_KIND}: it has no key that known pairs could tell"
        reason = enough_images(case)
        if reason is not None:
            return reason
        if len(case.release.images) < self.params.pairs + 3:
            return (
                f"{len(case.release.images)} released images leave fewer than 3 targets beside "
                f"{self.params.pairs} known pairs: release more, or lower `pairs`"
            )
        try:
            fixed = one_transform(case.release.scheme, case.attacker)
        except ProtectionError as error:
            return f"the attacker cannot protect images of her own: {error}"
        return None if fixed else f"{OTHER_KIND}: each image has a transform of its own"

    def _run(self, case: Case, progress: Progress | None) -> AttackResult:
        # Drawn before the framework's own draws, so that no target is ever a known pair.
        seeds = [case.attacker.seed, zlib.crc32(b"known pairs")]
        rows = np.random.default_rng(seeds).permutation(len(case.release.images))
        known, rest = rows[: self.params.pairs], np.sort(rows[self.params.pairs :])
        informed = Informed(
            **vars(case.attacker),
            known_protected=case.release.images[known],
            known_plain=case.truth.originals[known],
        )
        return super()._run(replace(case.take(rest), attacker=informed), progress)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedDecryption | None,
    ) -> FittedDecryption:  # fmt: skip
        if not isinstance(attacker, Informed):
            raise TypeError("this attack needs known pairs: start it by run()")
        params = self.params
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        # Either part has the same key, so she rehearses with pairs of her own.
        fit, tuning = (
            protect_as_attacker(release.scheme, attacker, part, 1, rng, keys="rehearsal")[0]
            for part in (fitting, tuned)
        )
        rehearsed = fit.take(np.arange(len(fit.plain)) < len(attacker.known_plain))
        found = ways(release.shape, release.scheme)
        if like is not None:
            # The oracle asks whether the restoration that was relied on works at all.
            found = {like.matcher.view_name: like.way}
        views: dict[str, View] = {}
        for number, (name, way) in enumerate(found.items()):
            views[name] = way(rehearsed.plain, rehearsed.batch.images)
            if progress:
                progress("known_plaintext: rehearsing", number + 1, len(found) + 1)
        judge = own_among_others(len(tuning.plain), params.gallery, rng)
        matcher = tune(views, fit, tuning, release.scheme, judge, by_view=True)
        # For the oracle the release is plain, and so are the pairs out of it.
        protected = attacker.known_plain if like is not None else attacker.known_protected
        chosen = found[matcher.view_name]
        view = chosen(attacker.known_plain, protected)
        return FittedDecryption(replace(matcher, view=view), chosen)

    def _measure(self, fitted: FittedDecryption, case: Case, rng: np.random.Generator) -> Scores:
        originals, released = case.truth.originals, case.release
        views = fitted.matcher.view(Batch(released.images, released.side))
        shuffled = rng.permutation(len(originals)).astype(np.int64)
        distances = fitted.matcher.compare(views, originals[shuffled])
        frame, gallery, _ = score_candidates(distances, case, shuffled, self.params.gallery, rng)
        pictures = to_pictures(views, originals.shape[1:3])
        frame["ssim"] = ssim(pictures, originals)
        frame["psnr"] = np.minimum(psnr(pictures, originals), 99.0)
        before = likeness(released.images, originals)
        details = {
            "known_pairs": float(self.params.pairs),
            "exact_values": float((pictures == originals).mean()),
            "ssim": float(frame["ssim"].mean()),
            "psnr": float(frame["psnr"].mean()),
            "unattacked_ssim": before["ssim"],
            "unattacked_psnr": before["psnr"],
        }
        return Scores(frame, gallery, pictures, details)

    def _chosen(self, fitted: FittedDecryption) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, fitted.matcher.table


def one_transform(scheme: Scheme[Any], attacker: Attacker) -> bool:
    """Whether an image's id changes nothing, seen on a few of the attacker's images.

    Raises:
        ProtectionError: The scheme cannot protect these images.
    """
    rows = usable_rows(scheme, attacker.labels)[:_PROBES]
    rows = rows[usable_rows(scheme, attacker.labels[rows])]
    images, labels = attacker.images[rows], attacker.labels[rows]
    key = derive_key(attacker.key, "attack probe")
    made = []
    for mark in (1, 2):
        ids = np.full((len(rows), 16), mark, dtype=np.uint8)
        ids[:, 0] = np.arange(len(rows))
        pool = ArrayPool.from_arrays(images, labels, ids)
        made.append(scheme.protect(images, labels, ids, key, pool).images)
    return bool(np.array_equal(made[0], made[1]))


Way = Callable[[Images, Images], View]
"""Recovers a transform from originals and their protected versions, uint8 (P, H, W, C) both."""


def ways(shape: tuple[int, int, int], scheme: Scheme[Any] | None) -> dict[str, Way]:
    """How transforms are recovered, by name: units that were moved, and pads.

    Args:
        shape: (H, W, C).
        scheme: For the sizes of its blocks.
    """
    moved = {
        name: partial(recover, kind, parts)
        for name, (kind, parts) in layouts(shape, scheme).items()
    }
    return {**moved, "pad, added": partial(recover_pad, "added"),
            "pad, bit by bit": partial(recover_pad, "bit by bit")}  # fmt: skip


# --- Pads -------------------------------------------------------------------------------------

Hiding = Literal["added", "bit by bit"]


@dataclass(frozen=True, eq=False)
class Unpadded:
    """Takes a pad away that hides all images alike.

    Attributes:
        hiding: The pad was added modulo 256, or by exclusive or.
        pad: uint8 (H, W, C).
    """

    hiding: Hiding
    pad: Images

    def __call__(self, batch: Batch) -> Planes:
        """Restorations (N, H, W, C), grey levels 0..255."""
        images = batch.images
        return images - self.pad if self.hiding == "added" else images ^ self.pad


def recover_pad(hiding: Hiding, plain: Images, protected: Images) -> Unpadded:
    """The pad that most pairs agree on, value by value.

    Args:
        hiding: How the pad hides.
        plain: Originals, uint8 (P, H, W, C).
        protected: Their protected versions, of the same shape.

    Source: the reuse of a one-time pad; the textbook's.
    """
    differ = protected - plain if hiding == "added" else protected ^ plain
    agree = np.stack([(differ == one).sum(axis=0, dtype=np.int32) for one in differ])
    pad = np.take_along_axis(differ, agree.argmax(axis=0)[None], axis=0)[0]
    return Unpadded(hiding, pad)


# --- Units ------------------------------------------------------------------------------------


def to_units(images: Images, kind: Kind) -> Units:
    """Bytes (N, H * W * C), or all lower half-bytes before all upper ones (N, 2 * H * W * C)."""
    flat = images.reshape(len(images), -1)
    return flat if kind == "bytes" else np.concatenate([flat & 15, flat >> 4], axis=1)


def from_units(units: Units, kind: Kind, shape: tuple[int, ...]) -> Images:
    """The images that `to_units` took apart, uint8 of this shape."""
    if kind == "bytes":
        return units.reshape(shape)
    low, high = np.split(units, 2, axis=1)
    return np.asarray(low | high << 4, dtype=np.uint8).reshape(shape)


def layouts(shape: tuple[int, int, int], scheme: Scheme[Any] | None) -> dict[str, Layout]:
    """How units may have been moved, by name.

    Args:
        shape: (H, W, C).
        scheme: Its parameters tell sizes of blocks; without any, 4 and 8 are tried.

    Returns:
        Layouts by name.

    Source: the ciphers of Sirichotedumrong et al. (2019), Tanaka (2018), Madono et al. (2020) and
    Chuman et al. (2018).
    """
    height, width, channels = shape
    values = np.arange(height * width * channels, dtype=np.int64)
    found: dict[str, Layout] = {
        "pixels": ("bytes", [Part(values.reshape(-1, channels))]),
        "anywhere": ("bytes", [Part(values[None])]),
    }
    sizes = region_sizes(scheme) or {4, 8}
    for side in sorted(size for size in sizes if size <= min(height, width)):
        blocks = _blocks(shape, side)
        halves = [np.concatenate([cells, cells + len(values)], axis=1) for cells in blocks]
        inner, edge = (
            blocks[0],
            np.concatenate([cells.ravel() for cells in blocks[1:] or [values[:0]]]),
        )
        loose = [Part(edge.reshape(-1, channels), moved=True)] if len(edge) else []
        found |= {
            f"blocks of {side}": ("bytes", [Part(inner, moved=True), *loose]),
            f"half-bytes of {side}, one table": (
                "half-bytes", [Part(cells, shared=True) for cells in halves],
            ),
            f"half-bytes of {side}": ("half-bytes", [Part(cells, moved=True) for cells in halves]),
        }  # fmt: skip
    return found


def _blocks(shape: tuple[int, int, int], side: int) -> list[IntArray]:
    """Values of square blocks from the upper left, then of what is left over: (blocks, values)."""
    values = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    return [
        _cut(values[rows, columns], high, wide)
        for rows, high in _runs(shape[0], side)
        for columns, wide in _runs(shape[1], side)
    ]


def _runs(length: int, side: int) -> Iterator[tuple[slice, int]]:
    whole = length - length % side
    yield slice(0, whole), side
    if whole < length:
        yield slice(whole, length), length - whole


def _cut(values: IntArray, high: int, wide: int) -> IntArray:
    down, right = values.shape[0] // high, values.shape[1] // wide
    blocks = values.reshape(down, high, right, wide, -1).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(down * right, -1)


# --- Recovery ---------------------------------------------------------------------------------


def recover(kind: Kind, parts: list[Part], plain: Images, protected: Images) -> Decryption:
    """Matches the units of protected images with those of the originals.

    Args:
        kind: What was moved.
        parts: The cells it was moved in.
        plain: Known originals, uint8 (P, H, W, C).
        protected: Their protected versions.

    Returns:
        The transform under which the pairs agree best, as far as it was found.

    Source: ours.
    """
    before, after = to_units(plain, kind), to_units(protected, kind)
    top = TOP[kind]
    source = np.arange(before.shape[1], dtype=np.int64)
    negated = np.zeros(len(source), dtype=np.bool_)
    for part in parts:
        cells = part.cells
        came = _match_cells(before[:, cells], after[:, cells], top) if part.moved else None
        origin = cells if came is None else cells[came]
        order, flip = _match_inside(before[:, origin], after[:, cells], top, part.shared)
        source[cells] = np.take_along_axis(origin, order, axis=1)
        negated[cells] = flip
    return Decryption(kind, source, negated)


def _match_cells(before: Units, after: Units, top: int) -> IntArray:
    """Which cell came to each place, by how often each unit or its negative occurs in it.

    Args:
        before: uint8 (P, cells, units).
        after: The same shape.
        top: 255 or 15.

    Returns:
        A permutation, int64 (cells,).
    """
    if before.shape[1] == 1:
        return np.zeros(1, dtype=np.int64)
    told = [_counts(units, top) for units in (before, after)]
    return match(told[0], told[1], _apart)


def _counts(units: Units, top: int) -> Units:
    """The units of each cell up to negation in ascending order, of all samples: (cells, values)."""
    ordered = np.sort(np.minimum(units, top - units), axis=2)
    return ordered.transpose(1, 0, 2).reshape(units.shape[1], -1)


def _match_inside(
    before: Units, after: Units, top: int, shared: bool
) -> tuple[IntArray, BoolArray]:
    """Which unit of its cell came to each place, and whether it was negated, (cells, units)."""
    _, cells, units = before.shape
    if shared:
        joined = [part.reshape(1, -1, units).transpose(0, 2, 1) for part in (before, after)]
        order, flip = _match_units(joined[0], joined[1], top)
        return np.repeat(order, cells, axis=0), np.repeat(flip, cells, axis=0)
    return _match_units(before.transpose(1, 2, 0), after.transpose(1, 2, 0), top)


def _match_units(before: Units, after: Units, top: int) -> tuple[IntArray, BoolArray]:
    """The same for units by sample, uint8 (cells, units, samples)."""
    cells, units, _ = before.shape
    if units <= 3:
        return _match_few(before, after, top)
    order = np.empty((cells, units), dtype=np.int64)
    flip = np.empty((cells, units), dtype=np.bool_)
    for cell, (mine, theirs) in enumerate(zip(before, after, strict=True)):
        order[cell] = match(
            _upright(mine, top), _upright(theirs, top),
            lambda a, b: np.minimum(_apart(a, b), _apart(top - a, b)),
        )  # fmt: skip
        flip[cell] = _is_negative(mine[order[cell]], theirs, top)
    return order, flip


def _match_few(before: Units, after: Units, top: int) -> tuple[IntArray, BoolArray]:
    """The same for up to three units a cell: all orders of all cells at once."""
    cells, units, _ = before.shape
    ways = np.array(list(permutations(range(units))), dtype=np.int64)
    costs = np.empty((cells, units, units))
    for i in range(units):
        for j in range(units):
            costs[:, i, j] = np.minimum(
                _mean_apart(before[:, i], after[:, j]), _mean_apart(top - before[:, i], after[:, j])
            )
    total = sum(costs[:, ways[:, j], j] for j in range(units))
    order = ways[np.argmin(total, axis=1)]
    moved = np.take_along_axis(before, order[:, :, None], axis=1)
    return order, _is_negative(moved, after, top)


def match(before: Units, after: Units, apart: Callable[[Units, Units], FloatArray]) -> IntArray:
    """Which row of `before` each row of `after` is.

    Rows that are equal are matched first, and where several are, a row with itself: they carry no
    cost, so a linear assignment would match them too. It settles what is left, up to 1,024 rows;
    more are left as they are, in order.

    Args:
        before: uint8 (n, D).
        after: uint8 (n, D).
        apart: Distances of some rows to others.

    Returns:
        A permutation, int64 (n,).

    Source: the assignment problem as solved by SciPy.
    """
    n = len(before)
    _, number = np.unique(np.concatenate([before, after]), axis=0, return_inverse=True)
    mine, theirs = number[:n].ravel(), number[n:].ravel()
    came = np.where(mine == theirs, np.arange(n), -1)
    _pair_up(mine, theirs, came)
    free = np.setdiff1d(np.arange(n), came)
    open_ = np.flatnonzero(came < 0)
    if len(free) > _MOST_ASSIGNED:
        came[open_] = free
    elif len(free):
        rows, columns = linear_sum_assignment(apart(before[free], after[open_]))
        came[open_[columns]] = free[rows]
    return came


def _pair_up(mine: IntArray, theirs: IntArray, came: IntArray) -> None:
    """Matches equal numbers that are still free, in ascending order of their rows."""
    free = np.setdiff1d(np.arange(len(mine)), came)
    open_ = np.flatnonzero(came < 0)
    free, open_ = (
        rows[np.argsort(numbers[rows], kind="stable")]
        for rows, numbers in ((free, mine), (open_, theirs))
    )
    first, second = mine[free], theirs[open_]
    # Each row's number among the rows equal to it: equal pairs of both are matched.
    rank = [np.arange(len(n)) - np.searchsorted(n, n) for n in (first, second)]
    _, at, to = np.intersect1d(
        first * (len(mine) + 1) + rank[0], second * (len(mine) + 1) + rank[1], return_indices=True
    )
    came[open_[to]] = free[at]


def _upright(units: Units, top: int) -> Units:
    """Each row (n, samples), or its negative where its first sample is in the upper half."""
    return np.where(units[:, :1] > top // 2, top - units, units).astype(np.uint8)


def _is_negative(before: Units, after: Units, top: int) -> BoolArray:
    """Whether the negatives agree better, over the last axis."""
    return np.asarray(_mean_apart(top - before, after) < _mean_apart(before, after))


def _mean_apart(before: Units, after: Units) -> FloatArray:
    return np.asarray(np.abs(before.astype(np.int16) - after).mean(axis=-1))


def _apart(before: Units, after: Units) -> FloatArray:
    """Mean absolute differences of rows (n, D) and (m, D); float (n, m)."""
    total = np.zeros((len(before), len(after)), dtype=np.float32)
    for column in range(before.shape[1]):
        total += np.abs(before[:, column, None].astype(np.int16) - after[None, :, column])
    return np.asarray(total / before.shape[1], dtype=np.float64)
