"""Unmixing: from the release alone, which blocks of a mixed image are its own, and whose the rest.

Pixel block mixing replaces blocks by those of class mates. Nothing but the release is needed to
undo part of it: blocks of one original fit together at their seams, and a block that is seen in
two images came from one of few. How well blocks of one original fit is learnt from the release as
well, by comparing blocks of one image with blocks of two.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final, Literal, TypeVar

import numpy as np
from pydantic import Field
from scipy.special import expit

from veilset.attacks.base import (
    OTHER_KIND,
    Attack,
    Attacker,
    AttackParams,
    Case,
    Knowledge,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
    score_candidates,
)
from veilset.attacks.linkage import likeness
from veilset.metrics.retrieval import squared_distances
from veilset.metrics.similarity import psnr, ssim
from veilset.schemes.base import Scheme
from veilset.types import BoolArray, FloatArray, Images, IntArray, Labels

SCHEME: Final = "pixel_block_mixing"

AnyImages = TypeVar("AnyImages", Images, FloatArray)

Kind = Literal["right", "down", "far"]
"""How two blocks lie to each other: side by side, one above the other, or not next to another."""

_KINDS: Final[tuple[Kind, ...]] = ("right", "down", "far")
_CROWD: Final = 6
"""A block with more equals than that is not a copy but plain background."""

_FAR_WEIGHT: Final = 4.0
"""All distant blocks together count for so many neighbours: they are not independent."""

_LEAST, _MOST = -4.0, 8.0
_BOUND: Final = 15.0
_ROUNDS: Final = 30
_PAIRS: Final = 60_000
_LEAST_WEIGHT: Final = 1e-3
_MAX_PSNR: Final = 99.0


class UnmixingParams(AttackParams):
    """Parameters of `unmixing`.

    Attributes:
        targets: At most so many released images are attacked, and searched for blocks.
        gallery: Size of the galleries; smaller where there are fewer candidates.
    """

    targets: int = Field(500, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)

    FULL: ClassVar[Mapping[str, Any]] = {"targets": 2000}


class Unmixing(Attack[UnmixingParams, "Unmixer"]):
    """Tells own blocks from foreign ones, puts originals together, and singles them out.

    Source: ours; puzzles solved by seams: Cho et al., CVPR 2010; odds learnt from mixed and
    unmixed pairs: Ward et al., Biometrics 65(2), 2009.
    """

    name = "unmixing"
    title = "Unmixing of pixel block mixing"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K1"
    cost = "seconds (quick) to minutes (full)"
    metric_words = "rank-1 of the reassembled image in a gallery of {gallery}"
    deed = "are put together again so well that their original is singled out"
    oracle_floor = 0.95
    Parameters = UnmixingParams

    def applies(self, case: Case) -> str | None:
        """None where blocks were mixed, and there are images to tell apart."""
        found = mixing_step(case.release.scheme)
        if found is None:
            return f"{OTHER_KIND}: it mixes no blocks of several images"
        if len(case.release.images) < 3:
            return "fewer than 3 released images: there is nothing to tell apart"
        if Grid.of(found, case.release.shape).count < 2:
            return "a block is the whole image, so there is no seam"
        return None

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: "Unmixer | None",
    ) -> "Unmixer":  # fmt: skip
        del attacker
        if like is not None:
            # The oracle asks whether images without any foreign block are told apart.
            return like
        if progress:
            progress("unmixing: learning seams", 1, 2)
        return fit_unmixer(release, rng)

    def _measure(self, fitted: "Unmixer", case: Case, rng: np.random.Generator) -> Scores:
        originals, release = case.truth.originals, case.release
        solved = fitted.solve(release.images, release.labels)
        shuffled = rng.permutation(len(originals)).astype(np.int64)
        distances = weighted_distances(solved.pictures, solved.weights, originals[shuffled])
        size = self.params.gallery
        frame, gallery, _ = score_candidates(distances, case, shuffled, size, rng)
        frame["ssim"] = ssim(solved.pictures, originals)
        frame["psnr"] = np.minimum(psnr(solved.pictures, originals), _MAX_PSNR)
        flat = [x.reshape(len(x), -1).astype(np.float64) for x in (release.images, originals)]
        before, _, _ = score_candidates(
            squared_distances(flat[0], flat[1][shuffled]), case, shuffled, size, rng
        )
        details = _details(fitted.grid, solved, release.images, originals) | {
            "released_rank1": float(before["success"].mean()),
            "ssim": float(frame["ssim"].mean()), "psnr": float(frame["psnr"].mean()),
            **{f"unattacked_{k}": v for k, v in likeness(release.images, originals).items()},
        }  # fmt: skip
        return Scores(frame, gallery, solved.pictures, details)

    def _chosen(self, fitted: "Unmixer") -> tuple[str, Mapping[str, float]]:
        del fitted
        return "seams and duplicates", {}


def mixing_step(scheme: Scheme[Any]) -> Scheme[Any] | None:
    """The step that mixes blocks, the scheme itself where it has no steps."""
    steps: tuple[Scheme[Any], ...] = getattr(scheme, "steps", (scheme,))
    return next((step for step in steps if step.name == SCHEME), None)


def _details(
    grid: "Grid", solved: "Solved", released: Images, originals: Images
) -> dict[str, float]:
    """How many blocks were told and put right."""
    own, right = grid.equal(released, originals), grid.equal(solved.pictures, originals)
    foreign = max(int((~own).sum()), 1)
    return {
        "own_block_accuracy": float(((solved.own >= 0.5) == own).mean()),
        "own_block_share": float(own.mean()),
        "blocks_right": float(right.mean()),
        "foreign_blocks_put_right": float((right & ~own).sum() / foreign),
        "own_blocks_spoilt": float((own & ~right).mean()),
        "reassembled": float(right.all(axis=1).mean()),
        "released_whole": float(own.all(axis=1).mean()),
    }


def weighted_distances(pictures: Images, weights: FloatArray, candidates: Images) -> FloatArray:
    """Mean squared differences, each pixel weighted by how far the attacker trusts it.

    Args:
        pictures: uint8 (T, H, W, C).
        weights: Above 0, (T, H, W).
        candidates: uint8 (N, H, W, C).

    Returns:
        float64 (T, N).
    """
    trust = np.broadcast_to(weights[..., None], pictures.shape).reshape(len(pictures), -1)
    mine = pictures.reshape(len(pictures), -1).astype(np.float64)
    theirs = candidates.reshape(len(candidates), -1).astype(np.float64)
    own = (trust * mine**2).sum(axis=1)[:, None]
    apart = own - 2 * (trust * mine) @ theirs.T + trust @ (theirs**2).T
    return np.asarray(np.maximum(apart, 0.0) / trust.sum(axis=1)[:, None])


# --- Blocks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Where blocks lie; those at the lower and right edge may be smaller.

    Attributes:
        rows: First and last row of each row of blocks.
        columns: First and last column of each column of blocks.
    """

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, scheme: Scheme[Any], shape: tuple[int, int, int]) -> "Grid":
        """The grid of a mixing scheme on images (H, W, C)."""
        sides = (scheme.params.block_height, scheme.params.block_width)
        cuts = [
            tuple((low, min(low + side, length)) for low in range(0, length, side))
            for side, length in zip(sides, shape[:2], strict=True)
        ]
        return cls(*cuts)

    @property
    def count(self) -> int:
        """Blocks of an image."""
        return len(self.rows) * len(self.columns)

    def at(self, images: AnyImages, place: int) -> AnyImages:
        """One block of each image, (N, h, w, C)."""
        row, column = divmod(place, len(self.columns))
        return images[:, slice(*self.rows[row]), slice(*self.columns[column])]

    def equal(self, one: Images, other: Images) -> BoolArray:
        """Which blocks are equal, bool (N, blocks)."""
        same = [
            (self.at(one, p) == self.at(other, p)).all(axis=(1, 2, 3)) for p in range(self.count)
        ]
        return np.stack(same, axis=1)

    def spread(self, values: FloatArray) -> FloatArray:
        """A value a block, (N, blocks), as one a pixel, (N, H, W)."""
        shaped = values.reshape(len(values), len(self.rows), len(self.columns))
        down, across = ([high - low for low, high in cut] for cut in (self.rows, self.columns))
        return np.asarray(np.repeat(np.repeat(shaped, down, axis=1), across, axis=2))

    @cached_property
    def pairs(self) -> tuple[tuple[Kind, int, int], ...]:
        """All pairs of places, the left or upper one first."""
        wide = len(self.columns)
        return tuple(
            (self._kind(p, q, wide), p, q)
            for p in range(self.count)
            for q in range(p + 1, self.count)
        )

    @staticmethod
    def _kind(p: int, q: int, wide: int) -> Kind:
        if q == p + wide:
            return "down"
        return "right" if q == p + 1 and q % wide else "far"


def evidence(kind: Kind, first: FloatArray, second: FloatArray) -> FloatArray:
    """What tells whether two blocks come from one image.

    Args:
        kind: How they lie.
        first: The left or upper blocks, (..., h, w, C).
        second: The right or lower ones; leading axes broadcast with those of `first`.

    Returns:
        float64 (..., features), on a logarithmic scale.

    Source: seam cost and its linear prediction as in Cho et al. and Gallagher (CVPR 2012).
    """
    colour = np.abs(first.mean(axis=(-3, -2)) - second.mean(axis=(-3, -2))).mean(axis=-1)
    rough = np.abs(first.std(axis=(-3, -2)) - second.std(axis=(-3, -2))).mean(axis=-1)
    features = [np.log1p(colour), np.log1p(rough)]
    if kind != "far":
        axis = -2 if kind == "right" else -3
        a, a_in = _line(first, axis, -1), _line(first, axis, -2)
        b, b_in = _line(second, axis, 0), _line(second, axis, 1)
        bend = _energy(2 * a - a_in - b) + _energy(2 * b - b_in - a)
        inside = _energy(a - a_in) + _energy(b - b_in)
        features += [np.log1p(each) for each in (_energy(a - b), bend, inside + 0 * bend)]
    return np.asarray(np.stack(np.broadcast_arrays(*features), axis=-1))


def _line(block: FloatArray, axis: int, place: int) -> FloatArray:
    """A row or column; the only one, where there is no second."""
    at = min(place, block.shape[axis] - 1) if place >= 0 else max(place, -block.shape[axis])
    return np.asarray(block.take(at, axis=axis))


def _energy(difference: FloatArray) -> FloatArray:
    return np.asarray((difference**2).mean(axis=(-2, -1)))


# --- What is learnt from the release ----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Odds:
    """A logistic regression on evidence, its squares and products.

    Attributes:
        mean: Of the evidence; scale: its deviation.
        weights: The last one is the constant.
    """

    mean: FloatArray
    scale: FloatArray
    weights: FloatArray

    def __call__(self, features: FloatArray) -> FloatArray:
        """Log odds of evidence if two blocks come from one original rather than from two."""
        columns = _expanded((features - self.mean) / self.scale)
        return np.asarray(np.clip(columns @ self.weights, _LEAST, _MOST))


def fit_odds(together: FloatArray, apart: FloatArray, share: float) -> Odds:
    """Learns odds from pairs of one image and pairs of two.

    Args:
        together: Evidence of pairs of one released image, (n, features).
        apart: Evidence of pairs of two released images of a label, (m, features).
        share: Share of the former that comes from one original, above 0.

    The odds that a pair is of one image are share * exp(g) + 1 - share, where g, the log odds that
    it is of one original, is a polynomial: its weights have the greatest likelihood.

    Source: mixtures of a known share as in Ward et al., Biometrics 65(2), 2009; by Fisher's
    scoring, with a small penalty.
    """
    features = np.concatenate([together, apart])
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-9
    columns = _expanded((features - mean) / scale)
    wanted = np.repeat([1.0, 0.0], [len(together), len(apart)])
    balance = np.where(wanted == 1, 0.5 / len(together), 0.5 / len(apart)) * len(wanted)
    weights = np.zeros(columns.shape[1])
    for _ in range(_ROUNDS):
        pure = share * np.exp(np.clip(columns @ weights, -_BOUND, _BOUND))
        mixed = pure + 1 - share
        made, moved = mixed / (1 + mixed), pure / mixed
        slope = columns.T @ (balance * (wanted - made) * moved) - weights
        bend = (columns * (balance * made * (1 - made) * moved**2)[:, None]).T @ columns
        step = np.linalg.solve(bend + np.eye(len(weights)), slope)
        weights += step / max(1.0, float(np.abs(step).max()))
    return Odds(mean, scale, weights)


def _expanded(columns: FloatArray) -> FloatArray:
    columns = np.clip(columns, -4, 4)
    upper = np.triu_indices(columns.shape[-1])
    squares = columns[..., upper[0]] * columns[..., upper[1]]
    return np.concatenate([columns, squares, np.ones((*columns.shape[:-1], 1))], axis=-1)


def fit_unmixer(release: Release, rng: np.random.Generator) -> "Unmixer":
    """Learns from a release how blocks of one original fit together."""
    scheme = mixing_step(release.scheme)
    if scheme is None:
        raise ValueError("the release mixes no blocks")
    grid = Grid.of(scheme, release.shape)
    replaced = float(np.clip(scheme.params.p_replace, 0.01, 0.99))
    donors = int(scheme.params.n_donors)
    share = (1 - replaced) ** 2 + replaced**2 / donors
    mates, others = _class_mates(release.labels, rng)
    images = release.images.astype(np.float64)
    odds: dict[Kind, Odds] = {}
    for kind in _KINDS:
        places = [(p, q) for found, p, q in grid.pairs if found == kind]
        if not places or not len(mates):
            continue
        most = max(1, _PAIRS // len(places))
        rows = rng.permutation(len(mates))[:most]
        seen = [
            (evidence(kind, grid.at(images, p)[mates[rows]], grid.at(images, q)[mates[rows]]),
             evidence(kind, grid.at(images, p)[mates[rows]], grid.at(images, q)[others[rows]]))
            for p, q in places
        ]  # fmt: skip
        together, apart = (np.concatenate([pair[i] for pair in seen]) for i in (0, 1))
        odds[kind] = fit_odds(together, apart, share)
    return Unmixer(grid, odds, replaced, donors)


def _class_mates(labels: Labels, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Rows with another random row of their label each."""
    rows, others = [], []
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        if len(own) > 1:
            rows.append(own)
            others.append(np.roll(own, 1))
    nothing = [np.empty(0, dtype=np.int64)]
    return np.concatenate(rows or nothing), np.concatenate(others or nothing)


# --- Solving ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solved:
    """What the attacker makes of a release.

    Attributes:
        own: How likely each block is the image's own, (N, blocks).
        pictures: Reassembled images, uint8 (N, H, W, C).
        weights: How far each pixel is trusted, above 0, (N, H, W).
    """

    own: FloatArray
    pictures: Images
    weights: FloatArray


@dataclass(frozen=True, eq=False)
class Unmixer:
    """Tells own blocks from foreign ones and looks for the missing ones.

    Attributes:
        grid: Where blocks lie.
        odds: What was learnt of pairs, by kind.
        replaced: Probability that a block is foreign.
        donors: How many originals the foreign blocks of an image come from.
    """

    grid: Grid
    odds: Mapping[Kind, Odds]
    replaced: float
    donors: int

    def solve(self, images: Images, labels: Labels) -> Solved:
        """Unmixes a release.

        Args:
            images: uint8 (N, H, W, C).
            labels: int64 (N,).
        """
        own = np.empty((len(images), self.grid.count))
        pictures, trust = images.copy(), np.empty(own.shape)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            own[rows] = self._own(images[rows])
            pictures[rows], trust[rows] = self._filled(images[rows], own[rows])
        trust = np.maximum(trust, _LEAST_WEIGHT)
        return Solved(own, pictures, self.grid.spread(trust))

    def _own(self, images: Images) -> FloatArray:
        """How likely each block is the image's own, for images of one label; by mean fields."""
        alike = self._alike(images)
        # Two foreign blocks may come from one donor as well.
        foreign = np.log1p((np.exp(alike) - 1) / self.donors)
        alone = self._copies(images)
        own = np.full(alone.shape, 1 - self.replaced)
        for round_ in range(_ROUNDS):
            pull = np.einsum("npq,nq->np", alike, own) - np.einsum("npq,nq->np", foreign, 1 - own)
            heat = min(1.0, (round_ + 1) / 10)
            own = 0.5 * own + 0.5 * expit(alone + heat * pull)
        return own

    def _alike(self, images: Images) -> FloatArray:
        """Log odds of each two blocks of an image, (N, blocks, blocks), symmetric."""
        count = self.grid.count
        made = np.zeros((len(images), count, count))
        for kind, p, q, weight in self._used():
            first, second = (self.grid.at(images, place).astype(np.float64) for place in (p, q))
            made[:, p, q] = made[:, q, p] = weight * self.odds[kind](evidence(kind, first, second))
        return made

    def _used(self) -> Iterator[tuple[Kind, int, int, float]]:
        far = min(1.0, _FAR_WEIGHT / max(self.grid.count - 1, 1))
        for kind, p, q in self.grid.pairs:
            if kind in self.odds:
                yield kind, p, q, far if kind == "far" else 1.0

    def _copies(self, images: Images) -> FloatArray:
        """Log odds that a block is the image's own, by how many images show it.

        A block that m images show was kept in one of them, or in none and replaced there.
        """
        kept, gone = 1 - self.replaced, self.replaced
        made = np.empty((len(images), self.grid.count))
        for place in range(self.grid.count):
            flat = np.ascontiguousarray(self.grid.at(images, place).reshape(len(images), -1))
            _, member, counts = np.unique(flat, axis=0, return_inverse=True, return_counts=True)
            shown = counts[member.ravel()]
            likely = np.where(shown > _CROWD, kept, kept / (shown * kept + gone**2))
            likely = np.clip(likely, 1e-3, 1 - 1e-3)
            made[:, place] = np.log(likely / (1 - likely))
        return made

    def _filled(self, images: Images, own: FloatArray) -> tuple[Images, FloatArray]:
        """Foreign blocks replaced by the class mates' block that fits, and how far all is trusted.

        A missing block may stand in a class mate as a foreign one.
        """
        pictures, trust = images.copy(), own.copy()
        if len(images) < 2:
            return pictures, trust
        for place in range(self.grid.count):
            wanting = np.flatnonzero(own[:, place] < 0.5)
            if not len(wanting):
                continue
            scores = self._fit_of(images, own, place, wanting)
            prior = np.maximum(1 - own[:, place], 1e-6) / (len(images) - 1) * self.replaced
            scores += np.log(prior)
            scores[np.arange(len(wanting)), wanting] = -np.inf
            top = scores.max(axis=1)
            # Copies of a block count once.
            weight = np.exp(scores - top[:, None])
            nothing = np.exp(-self.replaced - top)
            chance = (1.0 / (weight.sum(axis=1) + nothing)) * (1 - own[wanting, place])
            good = chance > np.maximum(own[wanting, place], 0.5)
            found = scores.argmax(axis=1)
            block = self.grid.at(pictures, place)
            block[wanting[good]] = self.grid.at(images, place)[found[good]]
            trust[wanting[good], place] = chance[good]
        return pictures, trust

    def _fit_of(self, images: Images, own: FloatArray, place: int, wanting: IntArray) -> FloatArray:
        """How well each image's block at a place fits the own blocks of others, (wanting, N)."""
        scores = np.zeros((len(wanting), len(images)))
        planes = images.astype(np.float64)
        candidates = self.grid.at(planes, place)
        for kind, p, q, weight in self._used():
            if place not in (p, q):
                continue
            other = q if p == place else p
            given = self.grid.at(planes, other)[wanting]
            if p == place:
                found = evidence(kind, candidates[None], given[:, None])
            else:
                found = evidence(kind, given[:, None], candidates[None])
            scores += weight * own[wanting, other][:, None] * self.odds[kind](found)
        return scores
