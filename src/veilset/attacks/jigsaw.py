"""Jigsaw puzzles: permuted blocks are put together again by how well they fit at their seams.

No key and no image is needed for this, only the size of the blocks. Where all images of a release
went through one transform, all of them together tell how the pieces lie: what one image leaves
open another decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import Field

from veilset.attacks._pieces import (
    Changes,
    Region,
    Solution,
    changes,
    match_channels,
    odds,
    puzzle_scores,
    seam_costs,
    solve,
)
from veilset.attacks._reidentified import batch_of, parts_of, quality, reidentify
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
from veilset.attacks.features import (
    UNTUNED,
    Batch,
    Judge,
    Matcher,
    Pairs,
    Planes,
    area_resize,
    flat,
    own_among_others,
    protect_as_attacker,
    split_attacker,
    to_pictures,
)
from veilset.attacks.linkage import MIN_AUXILIARY
from veilset.metrics.retrieval import squared_distances
from veilset.schemes._regions import Grid
from veilset.schemes.base import Scheme
from veilset.types import FloatArray, Images

_LEAST_SIDE: Final = 3
"""A piece of 2 pixels a side has nothing between its seams that would tell them apart."""

_FINEST: Final = 8
"""Cuts along a region's side of VisualMixer's table, the most there are."""

_SIDES: Final = (4, 8, 16, 32)
_USUAL_SIDE: Final = 16
_PRIOR_SIDE: Final = 8
_SHRINKAGE: Final = 0.1


class JigsawParams(AttackParams):
    """Parameters of `jigsaw`.

    Attributes:
        targets: At most so many released images are attacked.
        gallery: Size of the galleries; smaller where there are fewer candidates.
        auxiliary: At most so many of the attacker's images choose the measure and the pose.
        pieces: Images of more pieces than that are left alone; time grows with its square.
        together: At most so many images of one transform are solved together.
        scored: For at most so many images it is counted how many pieces are right.
    """

    targets: int = Field(200, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    auxiliary: int = Field(120, ge=20, le=1_000_000)
    pieces: int = Field(256, ge=4, le=1024)
    together: int = Field(64, ge=1, le=10_000)
    scored: int = Field(50, ge=1, le=100_000)

    FULL: ClassVar[Mapping[str, Any]] = {
        "targets": 1000, "auxiliary": 400, "pieces": 600, "together": 500, "scored": 1000,
    }  # fmt: skip


@dataclass(frozen=True)
class Puzzle:
    """How a scheme cut its images.

    Attributes:
        regions: Where pieces were permuted among themselves.
        allowed: What was done to them besides.
        apart: Each channel was permuted on its own.
        shared: All images of a release have one transform.
        exact: The pieces are those of the original, so it can be counted how many are right.
    """

    regions: tuple[Region, ...]
    allowed: Changes
    apart: bool
    shared: bool
    exact: bool

    @property
    def square(self) -> bool:
        """Whether what may be turned as a whole keeps its form when its axes are swapped."""
        return self.regions[0].square

    @property
    def window(self) -> tuple[slice, ...]:
        """The part of images (N, H, W, C) that may be changed as a whole."""
        return self.regions[0].window if self.allowed.turned else (slice(None),)

    @property
    def ways(self) -> int:
        """How many changes of that part there are."""
        return self.allowed.ways(self.square)


@dataclass(frozen=True)
class FittedJigsaw:
    """The puzzle, and the restoration with the measure that re-identifies best."""

    puzzle: Puzzle
    matcher: Matcher


class Jigsaw(Attack[JigsawParams, FittedJigsaw]):
    """Puts permuted blocks together again, and singles out whose image it is.

    What was put together is known up to one change of the whole (turned, mirrored, negated, colours
    reordered), so candidates are compared in all of them. The oracle cuts unprotected images, mixes
    nothing, and solves them all the same: where it is weak the puzzle is too hard for this solver.

    Source: jigsaw attacks on block scrambling: Chuman, Kurihara, Kiya (2017-18), Chuman and Kiya
    (Information 14(6), 2023); the solver follows Gallagher (CVPR 2012) and Pomeranz et al. (CVPR
    2011) as told in `_pieces`; one puzzle for all images of a fixed key is ours.
    """

    name = "jigsaw"
    title = "Jigsaw puzzle solver"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K1"
    cost = "a minute or some (quick), more with more pieces"
    metric_words = "rank-1 of the reassembled image in a gallery of {gallery}"
    deed = "are put together again so well that their original is singled out"
    oracle_floor = 0.9
    Parameters = JigsawParams

    def applies(self, case: Case) -> str | None:
        """None where whole blocks change places, with seams that tell."""
        if len(case.release.images) < 3:
            return "fewer than 3 released images: there is nothing to tell apart"
        puzzle = puzzle_of(case.release.scheme, case.release.shape)
        if isinstance(puzzle, str):
            return f"{OTHER_KIND}: {puzzle}"
        most = max(region.count for region in puzzle.regions)
        if most > self.params.pieces:
            return (
                f"puzzles of {most} pieces take too long to solve: set its parameter `pieces` to "
                "that number, at most 1024"
            )
        return None

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedJigsaw | None,
    ) -> FittedJigsaw:  # fmt: skip
        if like is not None:
            return like
        puzzle = puzzle_of(release.scheme, release.shape)
        if isinstance(puzzle, str):
            raise ValueError(puzzle)
        pose = Pose.learn(attacker.images[: self.params.auxiliary], puzzle)
        view = Assembled(puzzle, pose, self.params.together, int(rng.integers(2**31)))
        if len(attacker.images) < MIN_AUXILIARY:
            measure = UpToChanges(puzzle, _USUAL_SIDE)
            name = f"assembled/{_USUAL_SIDE} px"
            return FittedJigsaw(puzzle, Matcher(name, view, measure, UNTUNED, {}))
        if progress:
            progress("jigsaw: tuning", 1, 2)
        _, tuned = split_attacker(attacker, 0.5, self.params.auxiliary, rng)
        tuning = protect_as_attacker(release.scheme, attacker, tuned, 1, rng)[0]
        judge = own_among_others(len(tuning.plain), self.params.gallery, rng)
        return FittedJigsaw(puzzle, best_measure(view, tuning, judge))

    def _measure(self, fitted: FittedJigsaw, case: Case, rng: np.random.Generator) -> Scores:
        puzzle, matcher = fitted.puzzle, fitted.matcher
        gallery = self.params.gallery
        # Solved once, and handed to whatever asks for it.
        solved = matcher.view(batch_of(case.release))
        known = Matcher(matcher.name, lambda _: solved, matcher.measure, matcher.score, {})
        scores = reidentify(known, case, gallery, rng)
        originals = case.truth.originals
        shuffled = rng.permutation(len(originals)).astype(np.int64)
        bare = matcher.compare(case.release.images, originals[shuffled])
        before, _, _ = score_candidates(bare, case, shuffled, gallery, rng)
        details = dict(scores.details) | {"released_rank1": float(before["success"].mean())}
        few = slice(0, self.params.scored)
        pictures = to_pictures(solved[few], originals.shape[1:3])
        posed = best_posed(pictures, originals[few], puzzle)
        details |= quality(posed, originals[few], "_best_pose")
        if puzzle.exact:
            for prefix, images in (("", pictures), ("released_", case.release.images[few])):
                found = assembly_scores(images, originals[few], puzzle)
                details |= {f"{prefix}{name}": value for name, value in found.items()}
        return Scores(scores.frame, scores.gallery, scores.pictures, details)

    def _chosen(self, fitted: FittedJigsaw) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, fitted.matcher.table


# --- What the puzzle is -----------------------------------------------------------------------


def puzzle_of(scheme: Scheme[Any], shape: tuple[int, int, int]) -> Puzzle | str:
    """The puzzle that a scheme makes of images (H, W, C), or why it makes none that has seams.

    Of a composition the last step that makes one.

    Args:
        scheme: The released scheme.
        shape: Of its images.
    """
    steps = parts_of(scheme)
    reason = "it moves no whole blocks"
    for step in reversed(steps):
        found = _puzzle_of_step(step, shape, len(steps) == 1)
        if isinstance(found, Puzzle):
            return found
        reason = found or reason
    return reason


def _puzzle_of_step(
    step: Scheme[Any], shape: tuple[int, int, int], alone: bool
) -> Puzzle | str | None:
    if step.name == "etc_encryption":
        return _etc_puzzle(step, shape, alone)
    if step.name == "visualmixer":
        return _mixer_puzzle(step, shape, alone)
    if step.name == "learnable_encryption":
        return "half-bytes inside its blocks are permuted as well, so blocks have no seams"
    return None


def _etc_puzzle(step: Scheme[Any], shape: tuple[int, int, int], alone: bool) -> Puzzle | str:
    side, (height, width, channels) = step.params.block_px, shape
    if side < _LEAST_SIDE:
        return f"its blocks of {side} pixels a side are too small to have seams that tell"
    region = Region((0, 0), (height // side, width // side), (side, side))
    shared = step.params.keys == "fixed"
    return Puzzle((region,), changes(True, True, channels), False, shared, alone)


def _mixer_puzzle(step: Scheme[Any], shape: tuple[int, int, int], alone: bool) -> Puzzle | str:
    params = step.params
    if params.mode != "released":
        return "how finely each region is cut is the owner's secret, down to single pixels"
    # With `auto` some regions are cut less finely: larger pieces fall into these.
    cuts = _FINEST if params.n == "auto" else params.n
    if params.region_px < cuts:
        return "its sub-blocks are single pixels"
    tiles = Grid.of((shape[0], shape[1]), params.region_px).tiles(params.region_px // cuts)
    if params.n == "auto":
        coarse = Grid.of((shape[0], shape[1]), params.region_px).tiles(params.region_px // 2)
        sides = [tuple(map(gcd, t.block, c.block)) for t, c in zip(tiles, coarse, strict=True)]
        if any(side != tile.block for side, tile in zip(sides, tiles, strict=True)):
            return "its regions are cut in ways that share no grid"
    if min(side for tile in tiles for side in tile.block) < _LEAST_SIDE:
        return "its sub-blocks are too small to have seams that tell"
    regions = tuple(
        Region(
            (tile.corner[0] + row * tile.cuts[0] * tile.block[0],
             tile.corner[1] + column * tile.cuts[1] * tile.block[1]),
            tile.cuts, tile.block,
        )
        for tile in tiles for row in range(tile.grid[0]) for column in range(tile.grid[1])
    )  # fmt: skip
    mixes = params.mixes_channels and shape[2] == 3
    exact = alone and not mixes
    return Puzzle(regions, changes(False, False, shape[2]), shape[2] == 3, False, exact)


# --- Solving ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assembled:
    """Released images put together again, as a view.

    Attributes:
        puzzle: How they were cut.
        pose: Guesses which change of the whole is the original's; None leaves it open.
        together: At most so many images of one transform tell how the pieces lie.
        seed: Of the lots that break ties.
    """

    puzzle: Puzzle
    pose: "Pose | None"
    together: int
    seed: int

    def __call__(self, batch: Batch) -> Planes:
        """Planes (N, H, W, C), grey levels 0..255; what belongs to no puzzle stays as it was."""
        rng = np.random.default_rng(self.seed)
        made = batch.images.astype(np.float64)
        for region in self.puzzle.regions:
            pieces = region.cut(batch.images).astype(np.float64)
            region.paste(self._solved(pieces, region, rng), made)
        return made if self.pose is None else self.pose.upright(made)

    def _solved(self, pieces: FloatArray, region: Region, rng: np.random.Generator) -> FloatArray:
        allowed = self.puzzle.allowed
        if self.puzzle.shared:
            chosen = rng.permutation(len(pieces))[: self.together]
            total = sum(seam_costs(pieces[row], allowed) for row in chosen)
            mean = np.asarray(total / np.float32(len(chosen)), dtype=np.float32)
            return solve(odds(mean, rng), region.grid, allowed).applied(pieces, allowed)
        if self.puzzle.apart:
            # In an order by lot: the way there must not tell anything of the answer.
            lots = [rng.permutation(region.count) for _ in range(len(pieces))]
            pieces = np.stack([
                match_channels(image[order]) for image, order in zip(pieces, lots, strict=True)
            ])  # fmt: skip
        return np.concatenate([
            self._solution(image, region, rng).applied(image[None], allowed) for image in pieces
        ])  # fmt: skip

    def _solution(self, pieces: FloatArray, region: Region, rng: np.random.Generator) -> Solution:
        allowed = self.puzzle.allowed
        return solve(odds(seam_costs(pieces, allowed), rng), region.grid, allowed)


@dataclass(frozen=True)
class Pose:
    """Guesses which change of the whole makes an image look like those that the attacker knows.

    Attributes:
        puzzle: Which changes there are, and whether all images share one.
        mean: Of thumbnails, (D,).
        precision: Inverse of their (shrunk) covariance, (D, D).
    """

    puzzle: Puzzle
    mean: FloatArray
    precision: FloatArray

    @classmethod
    def learn(cls, images: Images, puzzle: Puzzle) -> "Pose | None":
        """Learns from plain images, uint8 (N, H, W, C).

        None from too few, or where pieces are never turned nor recoloured.

        Source: a normal distribution of thumbnails; ours.
        """
        if len(images) < MIN_AUXILIARY or not puzzle.allowed.turned:
            return None
        small = flat(_small(images[puzzle.window], _PRIOR_SIDE))
        covariance = np.cov(small.T)
        usual = float(np.diag(covariance).mean())
        ridge = (_SHRINKAGE * usual + 1.0) * np.eye(len(covariance))
        precision = np.asarray(np.linalg.inv((1 - _SHRINKAGE) * covariance + ridge))
        return cls(puzzle, small.mean(axis=0), precision)

    def upright(self, planes: FloatArray) -> FloatArray:
        """Images (N, H, W, C) in the likeliest change of the whole."""
        allowed, window, square = self.puzzle.allowed, self.puzzle.window, self.puzzle.square
        part = planes[window]
        small = _small(part, _PRIOR_SIDE)
        costs = np.stack([self._cost(allowed.whole(small, way, square))
                          for way in range(self.puzzle.ways)])  # fmt: skip
        if self.puzzle.shared:
            costs = np.broadcast_to(costs.mean(axis=1, keepdims=True), costs.shape)
        made = planes.copy()
        made[window] = np.stack([
            allowed.whole(image, int(way), square)
            for image, way in zip(part, costs.argmin(axis=0), strict=True)
        ])  # fmt: skip
        return made

    def _cost(self, small: FloatArray) -> FloatArray:
        apart = flat(small) - self.mean
        return np.asarray(((apart @ self.precision) * apart).sum(axis=1))


def _small(images: Planes, side: int) -> FloatArray:
    """Thumbnails of at most this side."""
    height, width = (min(side, length) for length in images.shape[1:3])
    return area_resize(images, height, width)


# --- Comparing --------------------------------------------------------------------------------


@dataclass(frozen=True)
class UpToChanges:
    """Squared distance of thumbnails in the change of the whole that brings them nearest.

    Attributes:
        puzzle: Which changes there are.
        side: Of the thumbnails.
    """

    puzzle: Puzzle
    side: int

    def distances(self, views: Planes, candidates: Planes) -> FloatArray:
        """float64 (T, N)."""
        window, square = self.puzzle.window, self.puzzle.square
        mine = _small(views[window], self.side)
        theirs = flat(_small(candidates[window], self.side))
        best = np.full((len(views), len(candidates)), np.inf)
        for way in range(self.puzzle.ways):
            changed = flat(self.puzzle.allowed.whole(mine, way, square))
            np.minimum(best, squared_distances(changed, theirs), out=best)
        return best


def best_measure(view: Assembled, tuning: Pairs, judge: Judge) -> Matcher:
    """Tries thumbnails of several sizes on the attacker's own images and keeps the best."""
    made = view(tuning.batch)
    error = float(np.abs(made - tuning.plain).mean())
    known = Matcher("", view, UpToChanges(view.puzzle, _USUAL_SIDE), UNTUNED, {})
    best, table = known, {}
    for side in _SIDES:
        measure = UpToChanges(view.puzzle, side)
        score = (*judge(measure.distances(made, tuning.plain)), -error)
        table[f"{side} px"] = score[0]
        if not best.name or score > best.score:
            best = replace(known, name=f"assembled/{side} px", measure=measure, score=score)
    return replace(best, table=table)


def best_posed(pictures: Images, originals: Images, puzzle: Puzzle) -> Images:
    """Pictures in the change of the whole that is nearest to the truth; for scoring only."""
    window, square = puzzle.window, puzzle.square
    made = pictures.copy()
    for row, (picture, original) in enumerate(
        zip(pictures[window], originals[window], strict=True)
    ):
        nearest = min(
            (puzzle.allowed.whole(picture.astype(np.float64), way, square)
             for way in range(puzzle.ways)),
            key=lambda changed: float(((changed - original) ** 2).sum()),
        )  # fmt: skip
        made[row : row + 1][window] = np.rint(nearest).astype(np.uint8)
    return made


def assembly_scores(made: Images, originals: Images, puzzle: Puzzle) -> dict[str, float]:
    """Mean direct, neighbour and largest-component scores over images, regions and channels.

    Channels that were permuted apart are scored apart.

    Args:
        made: Assembled images, uint8 (N, H, W, C).
        originals: uint8 (N, H, W, C).
        puzzle: How they were cut.
    """
    channels = made.shape[-1]
    planes = [slice(c, c + 1) for c in range(channels)] if puzzle.apart else [slice(None)]
    allowed = changes(False, False, 1) if puzzle.apart else puzzle.allowed
    found = np.array([
        [score.mean() for score in puzzle_scores(made[..., c], originals[..., c], region, allowed)]
        for region in puzzle.regions for c in planes
    ])  # fmt: skip
    names = ("direct", "neighbour", "largest_component")
    return {name: float(value) for name, value in zip(names, found.mean(axis=0), strict=True)}
