"""Jigsaw puzzles of blocks: how well pieces fit at their seams, and putting them together.

A piece may have been turned, mirrored, negated, and its colours reordered. All of these are
hypotheses of a *pair*: only how two neighbours differ can be seen, so a solution is known up to one
change of the whole image.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import permutations
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from veilset.compiled import compiled
from veilset.types import BoolArray, FloatArray, Images, IntArray

Floats = npt.NDArray[np.float32]
AnyFloats = TypeVar("AnyFloats", FloatArray, Floats)

_MIDDLE: Final = 127.5
_NEVER: Final = 1e6
"""Cost of what cannot be, such as a piece beside itself."""

_ROUNDING: Final = 2.0
"""Squared grey levels below which seams are alike."""

_CANDIDATES: Final = 4
_ROUNDS: Final = 6
_DIRECTIONS: Final = ((0, 1), (1, 0), (0, -1), (-1, 0))


# --- What may have been done to a piece -------------------------------------------------------


@dataclass(frozen=True)
class Changes:
    """The changes that a piece may have gone through besides its place.

    Orientation o swaps the axes (bit 2), then mirrors down (bit 0) and across (bit 1). Colour
    change c negates (bit 0) after an order of the channels (bits 1 up).

    Attributes:
        turned: Pieces are in any of 8 orientations; they are square then.
        recoloured: Pieces may be negated and their channels reordered.
        channels: 1 or 3.
    """

    turned: bool
    recoloured: bool
    channels: int

    @cached_property
    def moves(self) -> IntArray:
        """What each orientation does to a step (rows, columns), int64 (orientations, 2, 2)."""
        made = []
        for o in range(8 if self.turned else 1):
            matrix = np.array([[0, 1], [1, 0]] if o & 4 else [[1, 0], [0, 1]])
            made.append(np.diag([1 - 2 * (o & 1), 1 - (o & 2)]) @ matrix)
        return np.array(made, dtype=np.int64)

    @cached_property
    def after(self) -> IntArray:
        """after[a, b]: orientation b and then a, int64."""
        products = self.moves[:, None] @ self.moves
        same = (products[:, :, None] == self.moves).all(axis=(-2, -1))
        return np.asarray(same.argmax(axis=-1), dtype=np.int64)

    @cached_property
    def orders(self) -> IntArray:
        """Orders of the channels, int64 (orders, C)."""
        wanted = list(permutations(range(self.channels)))
        return np.array(wanted if self.recoloured else wanted[:1], dtype=np.int64)

    @property
    def colours(self) -> int:
        """How many colour changes there are."""
        return len(self.orders) * 2 if self.recoloured else 1

    @cached_property
    def colours_after(self) -> IntArray:
        """colours_after[a, b]: colour change b and then a, int64."""
        table = np.zeros((self.colours, self.colours), dtype=np.int64)
        for a in range(self.colours):
            for b in range(self.colours):
                order = self.orders[b >> 1][self.orders[a >> 1]]
                found = (self.orders == order).all(axis=1).argmax()
                table[a, b] = 2 * found + ((a ^ b) & 1)
        return table

    @cached_property
    def relations(self) -> IntArray:
        """Ways in which two pieces lie: outgoing side, incoming side, int64 (relations, 2).

        Turned pieces: the left one in one of 4 rotations, the right one in any orientation.
        Others: the second lies right of, below, left of or above the first.
        """
        if not self.turned:
            return np.repeat(np.arange(4, dtype=np.int64)[:, None], 2, axis=1)
        pairs = np.divmod(np.arange(32, dtype=np.int64), 8)
        return np.stack(pairs, axis=1)

    @cached_property
    def rotations(self) -> IntArray:
        """The orientations that do not mirror, int64."""
        return np.flatnonzero(np.linalg.det(self.moves) > 0).astype(np.int64)

    @cached_property
    def lookup(self) -> IntArray:
        """lookup[d, a, b]: a piece in orientation a to one in b, which lies in direction d of it.

        int64 (4, orientations, orientations), numbers of relations.
        """
        if not self.turned:
            return np.arange(4, dtype=np.int64).reshape(4, 1, 1)
        table = np.zeros((4, 8, 8), dtype=np.int64)
        place = {int(o): number for number, o in enumerate(self.rotations)}
        for d, step in enumerate(_DIRECTIONS):
            for a in range(8):
                turn = next(
                    g for g in range(8)
                    if tuple(self.moves[g] @ step) == (0, 1) and int(self.after[g, a]) in place
                )  # fmt: skip
                table[d, a] = place[int(self.after[turn, a])] * 8 + self.after[turn]
        return table

    @cached_property
    def starts(self) -> IntArray:
        """Of each relation: orientation of either piece, and step; int64 (relations, 4)."""
        if not self.turned:
            return np.array([(0, 0, *step) for step in _DIRECTIONS], dtype=np.int64)
        rows = [(self.rotations[first], second, 0, 1) for first, second in self.relations]
        return np.array(rows, dtype=np.int64)

    @cached_property
    def group(self) -> "_Group":
        """All of this as tables for compiled code."""
        orientation, colour = np.divmod(np.arange(len(self.moves) * self.colours), self.colours)
        after = self.after[orientation[:, None], orientation] * self.colours
        after += self.colours_after[colour[:, None], colour]
        inverse = _inverse(after)
        return _Group(self.moves, after, inverse, self.starts, self.lookup, self.colours)

    def recolour(self, values: npt.NDArray[np.number], colour: int) -> npt.NDArray[np.number]:
        """Values (..., C) centred at 0, changed."""
        if not self.recoloured:
            return values
        made = values[..., self.orders[colour >> 1]]
        return -made if colour & 1 else made

    def ways(self, square: bool) -> int:
        """How many changes of a whole image there are; one that is not square is not turned."""
        return len(self._turns(square)) * self.colours

    def whole(self, planes: FloatArray, way: int, square: bool) -> FloatArray:
        """Images (..., H, W, C) of 0..255 changed as a whole, by the number of the change."""
        orientation, colour = divmod(way, self.colours)
        turned = turn(planes - _MIDDLE, self._turns(square)[orientation])
        return np.asarray(self.recolour(turned, colour) + _MIDDLE, dtype=np.float64)

    def _turns(self, square: bool) -> list[int]:
        return [o for o in range(len(self.moves)) if square or not o & 4]


@lru_cache
def changes(turned: bool, recoloured: bool, channels: int) -> Changes:
    """The changes, whose tables are made once."""
    return Changes(turned, recoloured, channels)


def turn(blocks: AnyFloats, orientation: int) -> AnyFloats:
    """Blocks or images (..., h, w, C) in an orientation."""
    made = np.swapaxes(blocks, -3, -2) if orientation & 4 else blocks
    made = made[..., ::-1, :, :] if orientation & 1 else made
    return made[..., ::-1, :] if orientation & 2 else made


# --- Where pieces lie -------------------------------------------------------------------------


@dataclass(frozen=True)
class Region:
    """A rectangle whose pieces were permuted among themselves.

    Attributes:
        corner: Its first row and column in pixels.
        grid: Pieces down and across.
        block: Height and width of a piece in pixels.
    """

    corner: tuple[int, int]
    grid: tuple[int, int]
    block: tuple[int, int]

    @property
    def count(self) -> int:
        """Its pieces."""
        return self.grid[0] * self.grid[1]

    @property
    def square(self) -> bool:
        """Whether it keeps its form when its axes are swapped."""
        return self.grid[0] == self.grid[1] and self.block[0] == self.block[1]

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """Its pixels in images (N, H, W, C)."""
        (top, left), (rows, columns), (high, wide) = self.corner, self.grid, self.block
        return slice(None), slice(top, top + rows * high), slice(left, left + columns * wide)

    def cut(self, images: npt.NDArray[np.number]) -> npt.NDArray[np.number]:
        """The pieces of images (N, H, W, C): (N, pieces, h, w, C)."""
        (rows, columns), (high, wide) = self.grid, self.block
        part = images[self.window]
        n, channels = len(part), part.shape[-1]
        parted = part.reshape(n, rows, high, columns, wide, channels).transpose(0, 1, 3, 2, 4, 5)
        return parted.reshape(n, rows * columns, high, wide, channels)

    def paste(self, pieces: npt.NDArray[np.number], images: npt.NDArray[np.number]) -> None:
        """Writes pieces (N, pieces, h, w, C) to their places in images (N, H, W, C)."""
        (rows, columns), (high, wide) = self.grid, self.block
        n, channels = len(pieces), pieces.shape[-1]
        parted = pieces.reshape(n, rows, columns, high, wide, channels).transpose(0, 1, 3, 2, 4, 5)
        images[self.window] = parted.reshape(n, rows * high, columns * wide, channels)


# --- How well pieces fit ----------------------------------------------------------------------


def seam_costs(pieces: FloatArray, allowed: Changes) -> Floats:
    """How badly every two pieces fit, in every relation and relative change of colour.

    The squared difference of the touching lines, and that of each line to what the other piece's
    last two lines predict, on a logarithmic scale.

    Args:
        pieces: Grey levels 0..255, (P, h, w, C), h and w at least 2.
        allowed: What may have been done to them.

    Returns:
        float32 (relations, P, P, colours).

    Source: SSD as in Cho et al. (CVPR 2010), prediction as in Pomeranz et al. (CVPR 2011); the
    combination and the logarithm are ours.
    """
    centred = np.asarray(pieces, dtype=np.float32) - np.float32(_MIDDLE)
    if allowed.turned:
        outgoing = [_lines(turn(centred, int(o)), 0) for o in allowed.rotations]
        incoming = [_lines(turn(centred, o), 2) for o in range(8)]
    else:
        outgoing = [_lines(centred, d) for d in range(4)]
        incoming = [_lines(centred, (d + 2) % 4) for d in range(4)]
    shape = (len(allowed.relations), len(pieces), len(pieces), allowed.colours)
    costs = np.empty(shape, dtype=np.float32)
    for relation, (first, second) in enumerate(allowed.relations):
        line, ahead = outgoing[first]
        left = _flat(np.concatenate([line + ahead, line], axis=1))
        own = 2 * _energy(line) + _energy(ahead)
        touch, before = incoming[second]
        theirs = 2 * _energy(touch) + _energy(before)
        both = np.concatenate([touch, before], axis=1)
        for colour in range(allowed.colours):
            product = left @ _flat(allowed.recolour(both, colour)).T
            costs[relation, :, :, colour] = own[:, None] + theirs - 2 * product
        costs[relation] /= 3 * line[0].size
    costs = np.log(np.maximum(costs, 0) + np.float32(_ROUNDING))
    costs[:, np.arange(len(pieces)), np.arange(len(pieces))] = _NEVER
    return costs


def _lines(pieces: Floats, direction: int) -> tuple[Floats, Floats]:
    """The line of each piece on one side, and the next one beyond it as the last two predict."""
    along = pieces if direction % 2 else np.swapaxes(pieces, 1, 2)
    last, inner = (along[:, -1], along[:, -2]) if direction < 2 else (along[:, 0], along[:, 1])
    return last, 2 * last - inner


def _flat(values: npt.NDArray[np.number]) -> Floats:
    return np.ascontiguousarray(values, dtype=np.float32).reshape(len(values), -1)


def _energy(lines: Floats) -> Floats:
    return np.asarray((lines**2).sum(axis=(1, 2)))


def odds(costs: Floats, rng: np.random.Generator) -> Floats:
    """Costs against what else fits either side: far below 0 where no other piece fits as well.

    Ties are broken by lot, so that the order of the pieces never tells anything.

    Args:
        costs: From `seam_costs`, or their mean over images of one transform.
        rng: Source of the lots.

    Returns:
        float32, the same shape.

    Source: ratio to the second best as in Gallagher, CVPR 2012.
    """
    relations, count, _, colours = costs.shape
    sides = 4
    parted = costs.reshape(sides, relations // sides, count, count, colours)
    # All that can lie at one outgoing side, and all that can lie at one incoming side.
    outgoing = parted.transpose(0, 2, 1, 3, 4).reshape(sides, count, -1)
    if relations > sides:
        incoming = parted.transpose(1, 3, 0, 2, 4).reshape(relations // sides, count, -1)
        here = _second(incoming)[None, :, None, :, None]
    else:
        incoming = parted[:, 0].transpose(0, 2, 1, 3).reshape(sides, count, -1)
        here = _second(incoming)[:, None, None, :, None]
    there = _second(outgoing)[:, None, :, None, None]
    apart = parted - 0.5 * (here + there)
    lots = rng.random(apart.shape, dtype=np.float32)
    return np.asarray((apart + np.float32(1e-3) * lots).reshape(costs.shape), dtype=np.float32)


def _second(values: Floats) -> Floats:
    """The second smallest along the last axis, or the only one that can be."""
    two = np.partition(values, 1, axis=-1)[..., :2]
    return np.asarray(np.where(two[..., 1] < _NEVER / 2, two[..., 1], two[..., 0]))


# --- Putting together -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Solution:
    """Which piece comes to each place, and how; int64 (places,) each.

    Attributes:
        pieces: Numbers of the pieces.
        orientations: Applied to them first.
        colours: Applied to them then.
    """

    pieces: IntArray
    orientations: IntArray
    colours: IntArray

    def applied(self, pieces: FloatArray, allowed: Changes) -> FloatArray:
        """Pieces (N, P, h, w, C) of 0..255 at their places and as they were."""
        made = np.empty_like(pieces)
        for place, (piece, o, c) in enumerate(
            zip(self.pieces, self.orientations, self.colours, strict=True)
        ):
            centred = pieces[:, piece] - _MIDDLE
            made[:, place] = allowed.recolour(turn(centred, int(o)), int(c)) + _MIDDLE
        return made


def solve(fits: Floats, grid: tuple[int, int], allowed: Changes) -> Solution:
    """Puts pieces together so that they fit at their seams.

    The best pairs are joined into trees as long as these fit the frame; the largest then grows by
    the piece that fits best, until all are placed. What holds together of that, by being each
    other's best choice, becomes the next seed, as long as the whole gets better.

    Args:
        fits: From `odds`, float32 (relations, P, P, colours).
        grid: Pieces down and across.
        allowed: What may have been done to them.

    Returns:
        The arrangement, up to one change of the whole.

    Source: trees by Kruskal's order as in Gallagher, CVPR 2012; segments as seeds as in Pomeranz
    et al., CVPR 2011; growing and the frame are ours.
    """
    count, group = fits.shape[1], allowed.group
    frame = _Frame(*grid, allowed.turned)
    joined, best = _join(_best_pairs(fits), count, group, frame)
    least, state = np.inf, best
    for _ in range(_ROUNDS):
        seed = joined == np.bincount(joined).argmax()
        state = _upright(_grow(fits, group, frame, seed, state), grid, allowed)
        total, bonds = _bonds(fits, state, grid, allowed)
        if total >= least - 1e-6:
            break
        best, least = state, total
        joined = _groups(bonds, count)
    order = np.argsort(best[:, 0] * grid[1] + best[:, 1])
    orientations, colours = np.divmod(best[order, 2], group.colours)
    return Solution(order, orientations, colours)


def _inverse(table: IntArray) -> IntArray:
    return np.asarray((table == 0).argmax(axis=1), dtype=np.int64)


def _best_pairs(fits: Floats) -> IntArray:
    """The likeliest pairs, the best first: relation, first and second piece, colour; (n, 4)."""
    relations, count, _, colours = fits.shape
    rows = fits.reshape(4, relations // 4, count, count, colours).transpose(0, 2, 1, 3, 4)
    flat = rows.reshape(4 * count, -1)
    most = min(_CANDIDATES, flat.shape[1])
    columns = np.argpartition(flat, most - 1, axis=1)[:, :most]
    values = np.take_along_axis(flat, columns, axis=1)
    order = np.argsort(values.ravel(), kind="stable")
    order = order[values.ravel()[order] < _NEVER / 2]
    side, first = np.divmod(np.repeat(np.arange(4 * count), most)[order], count)
    other, rest = np.divmod(columns.ravel()[order], count * colours)
    second, colour = np.divmod(rest, colours)
    relation = side * (relations // 4) + other
    return np.stack([relation, first, second, colour], axis=1).astype(np.int64)


class _Group(NamedTuple):
    """The changes as tables, where change o * colours + c is orientation o and colour change c.

    Attributes:
        moves: See `Changes`.
        after: after[a, b]: change b and then a, (changes, changes).
        inverse: What undoes each change.
        starts: See `Changes`.
        lookup: See `Changes`.
        colours: How many colour changes there are.
    """

    moves: IntArray
    after: IntArray
    inverse: IntArray
    starts: IntArray
    lookup: IntArray
    colours: int


class _Frame(NamedTuple):
    """How large the whole is in pieces; turned: it may lie across."""

    rows: int
    columns: int
    turned: bool


@compiled
def _fits_frame(high: int, wide: int, frame: _Frame) -> bool:
    upright = high <= frame.rows and wide <= frame.columns
    across = high <= frame.columns and wide <= frame.rows
    return upright or (frame.turned and across)


@compiled
def _join(pairs: IntArray, count: int, group: _Group, frame: _Frame) -> tuple[IntArray, IntArray]:
    """Joins pieces by the best pairs into trees that fit the frame without overlap.

    Args:
        pairs: From `_best_pairs`.
        count: Number of pieces.
        group: The changes.
        frame: Of the whole.

    Returns:
        The tree of each piece, (P,), and its row, column and change there, (P, 3).
    """
    tree = np.arange(count)
    state = np.zeros((count, 3), dtype=np.int64)
    moved = np.zeros((count, 3), dtype=np.int64)
    for p in range(len(pairs)):
        first, second = tree[pairs[p, 1]], tree[pairs[p, 2]]
        if first == second:
            continue
        moved[:] = state
        _carry(pairs[p], tree, state, moved, group)
        if _stands((tree == first) | (tree == second), moved, frame):
            state[:] = moved
            tree[tree == second] = first
    return tree, state


@compiled
def _carry(pair: IntArray, tree: IntArray, state: IntArray, moved: IntArray, group: _Group) -> None:
    """Moves the second piece's tree to where the pair has it beside the first piece's."""
    relation, a, b, colour = pair[0], pair[1], pair[2], pair[3]
    start = group.starts[relation]
    # The frame of the pair, turned into that of the first tree.
    turned = group.after[state[a, 2], group.inverse[start[0] * group.colours]]
    matrix = group.moves[turned // group.colours]
    y = state[a, 0] + matrix[0, 0] * start[2] + matrix[0, 1] * start[3]
    x = state[a, 1] + matrix[1, 0] * start[2] + matrix[1, 1] * start[3]
    wanted = group.after[turned, start[1] * group.colours + colour]
    change = group.after[wanted, group.inverse[state[b, 2]]]
    matrix = group.moves[change // group.colours]
    for k in range(len(tree)):
        if tree[k] == tree[b]:
            down, across = state[k, 0] - state[b, 0], state[k, 1] - state[b, 1]
            moved[k, 0] = y + matrix[0, 0] * down + matrix[0, 1] * across
            moved[k, 1] = x + matrix[1, 0] * down + matrix[1, 1] * across
            moved[k, 2] = group.after[change, state[k, 2]]


@compiled
def _stands(members: BoolArray, state: IntArray, frame: _Frame) -> bool:
    """Whether these pieces fit the frame and none lies on another."""
    rows, columns = state[members, 0], state[members, 1]
    top, left = rows.min(), columns.min()
    wide = columns.max() - left + 1
    if not _fits_frame(rows.max() - top + 1, wide, frame):
        return False
    places = (rows - top) * wide + columns - left
    return len(np.unique(places)) == len(places)


@compiled
def _grow(
    fits: Floats, group: _Group, frame: _Frame, seed: BoolArray, state: IntArray
) -> IntArray:  # fmt: skip
    """Places all other pieces around a seed, the surest first, inside a frame that may shift.

    Args:
        fits: From `odds`.
        group: The changes.
        frame: Of the whole.
        seed: Which pieces are placed already, (P,).
        state: Row, column and change of these, (P, 3).

    Returns:
        Row, column (from 0) and change of each piece, int64 (P, 3).
    """
    most = max(frame.rows, frame.columns)
    # Room for the frame wherever the seed lies in it, and an empty rim.
    side = 3 * most + 2
    board = np.full((side, side), -1, dtype=np.int64)
    placed, free = state.copy(), ~seed
    placed[:, 0] += most + 1 - state[seed, 0].min()
    placed[:, 1] += most + 1 - state[seed, 1].min()
    for k in np.flatnonzero(seed):
        board[placed[k, 0], placed[k, 1]] = k
    box = np.array([
        placed[seed, 0].min(), placed[seed, 0].max(), placed[seed, 1].min(), placed[seed, 1].max()
    ])  # fmt: skip
    score = np.full((side, side), np.inf)
    choice = np.full((side, side, 2), -1, dtype=np.int64)
    stale = np.ones((side, side), dtype=np.bool_)
    for _ in range(free.sum()):
        found, best_y, best_x = np.inf, -1, -1
        for y in range(box[1] - most + 1, box[0] + most):
            for x in range(box[3] - most + 1, box[2] + most):
                high, wide = max(box[1], y) - min(box[0], y), max(box[3], x) - min(box[2], x)
                if board[y, x] >= 0 or not _fits_frame(high + 1, wide + 1, frame):
                    continue
                if stale[y, x]:
                    stale[y, x] = False
                    around = np.array(
                        [board[y, x - 1], board[y - 1, x], board[y, x + 1], board[y + 1, x]]
                    )
                    score[y, x] = _best_here(fits, group, around, placed, free, choice[y, x])
                if score[y, x] < found:
                    found, best_y, best_x = score[y, x], y, x
        piece = choice[best_y, best_x, 0]
        placed[piece, 0], placed[piece, 1] = best_y, best_x
        placed[piece, 2] = choice[best_y, best_x, 1]
        board[best_y, best_x] = piece
        free[piece] = False
        box[0], box[1] = min(box[0], best_y), max(box[1], best_y)
        box[2], box[3] = min(box[2], best_x), max(box[3], best_x)
        # Who wanted this piece must choose anew, and so must the places around it.
        stale |= choice[:, :, 0] == piece
        stale[best_y - 1 : best_y + 2, best_x - 1 : best_x + 2] = True
    placed[:, 0] -= box[0]
    placed[:, 1] -= box[2]
    return placed


@compiled
def _best_here(
    fits: Floats, group: _Group, around: IntArray, placed: IntArray, free: BoolArray,
    choice: IntArray,
) -> float:  # fmt: skip
    """Chooses the free piece and its change that fit best at a place; infinite without neighbours.

    Args:
        fits: From `odds`.
        group: The changes.
        around: The pieces left of, above, right of and below the place, -1 where there is none.
        placed: Row, column and change of each piece.
        free: Which pieces are not placed yet.
        choice: The piece and its change; written.

    Returns:
        The sum over neighbours, over the root of their number.
    """
    beside = (around >= 0).sum()
    best = np.inf
    if beside == 0:
        return best
    total = np.empty(len(group.after), dtype=np.float32)
    for piece in range(len(free)):
        if not free[piece]:
            continue
        total[:] = 0.0
        for d, other in enumerate(around):
            if other >= 0:
                _add_fits(fits, group, d, other, placed[other, 2], piece, total)
        change = total.argmin()
        value = total[change] / np.sqrt(beside)
        if value < best:
            best, choice[0], choice[1] = value, piece, change
    return best


@compiled
def _add_fits(
    fits: Floats, group: _Group, direction: int, other: int, change: int, piece: int, total: Floats
) -> None:
    """Adds how a piece in each change fits another one, from which it lies in a direction."""
    colours = group.colours
    orientation, colour = change // colours, change % colours
    back = group.inverse[colour]
    for o in range(group.lookup.shape[2]):
        relation = group.lookup[direction, orientation, o]
        for c in range(colours):
            total[o * colours + c] += fits[relation, other, piece, group.after[back, c]]


def _upright(placed: IntArray, grid: tuple[int, int], allowed: Changes) -> IntArray:
    """The arrangement in the frame's orientation: turned where it grew across it."""
    if placed[:, 0].max() < grid[0] and placed[:, 1].max() < grid[1]:
        return placed
    swapped = placed[:, [1, 0, 2]]
    swapped[:, 2] = allowed.group.after[4 * allowed.colours, placed[:, 2]]
    return swapped


def _bonds(
    fits: Floats, placed: IntArray, grid: tuple[int, int], allowed: Changes
) -> tuple[float, IntArray]:
    """The sum over all seams, and the pairs of neighbours that are each other's best choice."""
    board = np.empty(grid, dtype=np.int64)
    board[placed[:, 0], placed[:, 1]] = np.arange(len(placed))
    relations, count = fits.shape[:2]
    rows = fits.reshape(4, relations // 4, count, count, -1).min(axis=(1, 3, 4))
    orientations, colours = np.divmod(placed[:, 2], allowed.colours)
    back = allowed.group.inverse[: allowed.colours]
    total, found = 0.0, []
    for d, (first, second) in enumerate(((board[:, :-1], board[:, 1:]), (board[:-1], board[1:]))):
        a, b = first.ravel(), second.ravel()
        seen = []
        for way, one, other in ((d, a, b), (d + 2, b, a)):
            relation = allowed.lookup[way, orientations[one], orientations[other]]
            tint = allowed.group.after[back[colours[one]], colours[other]]
            value = fits[relation, one, other, tint]
            seen.append(value <= rows[relation // (relations // 4), one] + 2e-3)
            total += float(value.sum())
        found.append(np.stack([a, b], axis=1)[seen[0] & seen[1]])
    return total, np.concatenate(found)


def _groups(bonds: IntArray, count: int) -> IntArray:
    """The group of each piece, where pairs (n, 2) hold together."""
    ones = np.ones(len(bonds), dtype=np.int8)
    graph = coo_array((ones, (bonds[:, 0], bonds[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def match_channels(pieces: FloatArray) -> FloatArray:
    """Pieces whose channels were permuted apart, brought together by their texture.

    Args:
        pieces: (P, h, w, 3), grey levels 0..255.

    Returns:
        The same with green and blue blocks moved to the red ones that they are most alike.

    Source: ours; optimal assignment.
    """
    means = pieces.mean(axis=(1, 2))
    texture = pieces - means[:, None, None]
    made = pieces.copy()
    for channel in (1, 2):
        rough = ((texture[:, None, ..., 0] - texture[None, ..., channel]) ** 2).mean(axis=(2, 3))
        light = (means[:, None, 0] - means[None, :, channel]) ** 2
        chosen = linear_sum_assignment(np.log(rough + 4.0) + 0.5 * np.log(light + 64.0))[1]
        made[..., channel] = pieces[chosen, :, :, channel]
    return made


# --- How much was put right -------------------------------------------------------------------


def puzzle_scores(
    made: Images, originals: Images, region: Region, allowed: Changes
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """How much of a region was put right, by the contents of the blocks: equal ones count alike.

    Args:
        made: Assembled images, uint8 (N, H, W, C).
        originals: uint8 (N, H, W, C).
        region: Where the pieces lie.
        allowed: A change of the whole counts as right.

    Returns:
        For each image the share of places with their own block (direct), that of neighbours that
        are neighbours in the original as well (neighbour), and that of the largest group that
        holds together by such neighbours; float64 (N,) each.

    Source: D_c, N_c, L_c as in Gallagher (CVPR 2012) and Chuman, Kurihara, Kiya; by contents: ours.
    """
    rows, columns = region.grid
    known = _contents(region.cut(originals)).reshape(-1, rows, columns)
    direct, beside, largest = (np.zeros(len(made)) for _ in range(3))
    for row, picture in enumerate(made):
        part = picture[None][region.window].astype(np.float64)
        changed = [
            allowed.whole(part, way, region.square) for way in range(allowed.ways(region.square))
        ]
        ways = np.rint(np.concatenate(changed)).astype(np.uint8)
        whole = Region((0, 0), region.grid, region.block)
        seen = _contents(whole.cut(ways)).reshape(-1, rows, columns)
        direct[row] = (seen == known[row]).mean(axis=(1, 2)).max()
        across = np.isin(_beside(seen, 2), _beside(known[row : row + 1], 2))
        down = np.isin(_beside(seen, 1), _beside(known[row : row + 1], 1))
        right = across.sum(axis=(1, 2)) + down.sum(axis=(1, 2))
        best = int(right.argmax())
        beside[row] = right[best] / max(across[0].size + down[0].size, 1)
        number = np.arange(rows * columns).reshape(rows, columns)
        bonds = np.concatenate([
            np.stack([number[:, :-1][across[best]], number[:, 1:][across[best]]], axis=1),
            np.stack([number[:-1][down[best]], number[1:][down[best]]], axis=1),
        ])  # fmt: skip
        largest[row] = np.bincount(_groups(bonds, rows * columns)).max() / (rows * columns)
    return direct, beside, largest


def _contents(pieces: npt.NDArray[np.number]) -> npt.NDArray[np.uint64]:
    """A number for the contents of each piece (N, P, h, w, C), uint64 (N, P)."""
    n, count = pieces.shape[:2]
    flat = pieces.reshape(n, count, -1).astype(np.uint64)
    draws = np.random.default_rng(0).integers(1, 2**63, flat.shape[2], dtype=np.uint64)
    return np.asarray((flat * draws).sum(axis=2, dtype=np.uint64))


def _beside(contents: npt.NDArray[np.uint64], axis: int) -> npt.NDArray[np.uint64]:
    """A number for each two neighbours along an axis."""
    first = contents[:, :-1] if axis == 1 else contents[:, :, :-1]
    second = contents[:, 1:] if axis == 1 else contents[:, :, 1:]
    return first * np.uint64(0x9E3779B97F4A7C15) + second
