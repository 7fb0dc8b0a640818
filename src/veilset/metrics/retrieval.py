"""Finding the right one among candidates: ranks, average precision, galleries.

Ties are settled fairly everywhere: a target that shares its place with others counts with the
probability that a random order puts it first. A constant feature thus scores chance, exactly, and
a tie can neither hide a leak nor invent one.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from veilset.types import BoolArray, FloatArray, IntArray

FAR: Final = 1e-3
"""So many impostors may be accepted where the acceptance of own pairs is stated."""


def places(distances: FloatArray, own: IntArray) -> tuple[IntArray, IntArray]:
    """How many candidates lie before a target's own, and how many share its place.

    Args:
        distances: float (T, G); smaller is more alike.
        own: int64 (T,), the column of each target's own candidate.

    Returns:
        `before` and `tied`, int64 (T,); `tied` counts the own candidate and is at least 1.

    Raises:
        ValueError: A distance is not a number.

    Source: ours.
    """
    if np.isnan(distances).any():
        raise ValueError("a distance is not a number")
    mine = distances[np.arange(len(own)), own][:, None]
    # Equal features differ in the last bits of a matrix product: that is a tie, not an order.
    slack = 1e-9 * np.abs(distances).max(axis=1, keepdims=True, initial=0.0)
    before = (distances < mine - slack).sum(axis=1)
    tied = (np.abs(distances - mine) <= slack).sum(axis=1)
    return before.astype(np.int64), tied.astype(np.int64)


def expected_rank(distances: FloatArray, own: IntArray) -> FloatArray:
    """Expected rank of each target's own candidate, ties in random order; float64 (T,), from 1."""
    before, tied = places(distances, own)
    return np.asarray(before + (tied + 1) / 2, dtype=np.float64)


def top_k(distances: FloatArray, own: IntArray, k: int) -> FloatArray:
    """Probability that each target's own candidate is among the first k, ties in random order.

    Args:
        distances: float (T, G); smaller is more alike.
        own: int64 (T,), the column of each target's own candidate.
        k: 1 for the rank-1 rate.

    Returns:
        float64 (T,), 0..1; its mean is the rank-k identification rate.

    Source: the closed-set identification rate; the treatment of ties is ours.
    """
    before, tied = places(distances, own)
    return np.asarray(np.clip((k - before) / tied, 0.0, 1.0), dtype=np.float64)


def average_precision(distances: FloatArray, relevant: BoolArray) -> FloatArray:
    """Average precision of each query; its mean over the queries is mAP.

    Precision is taken at the end of each group of equal distances, as scikit-learn does, so that
    the order inside a tie does not matter.

    Args:
        distances: float (T, G); smaller is more alike.
        relevant: bool (T, G); at least one true in each row.

    Returns:
        float64 (T,), 0..1.

    Raises:
        ValueError: A query has nothing relevant.

    Source: the textbook definition.
    """
    if not relevant.any(axis=1).all():
        raise ValueError("a query without a relevant candidate has no average precision")
    order = np.argsort(distances, axis=1, kind="stable")
    ordered = np.take_along_axis(distances, order, axis=1)
    hits = np.take_along_axis(relevant, order, axis=1)
    ends = _ends_of_ties(ordered)
    found = np.take_along_axis(np.cumsum(hits, axis=1), ends, axis=1)
    precision = found / (ends + 1)
    return np.asarray((precision * hits).sum(axis=1) / hits.sum(axis=1), dtype=np.float64)


def _ends_of_ties(ordered: FloatArray) -> IntArray:
    """For each place in ascending rows, the last place with the same value."""
    width = ordered.shape[1]
    last = np.ones(ordered.shape, dtype=bool)
    last[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    marks = np.where(last, np.arange(width), width)
    return np.asarray(np.minimum.accumulate(marks[:, ::-1], axis=1)[:, ::-1], dtype=np.int64)


def draw_galleries(
    own: IntArray, candidates: int, size: int, rng: np.random.Generator, absent: IntArray
) -> IntArray:
    """A gallery for each target: its own candidate and others drawn without replacement.

    Galleries of one stated size keep rates comparable: a larger set would otherwise look safer.

    Args:
        own: int64 (T,), each target's own candidate.
        candidates: How many there are.
        size: Wanted size; it falls to what there is.
        rng: Source of the draw.
        absent: int64 (T,), one more candidate that may not be drawn for each target (in a control,
            the one that the released image was really made from; else the own one).

    Returns:
        int64 (T, G), the own candidate in column 0.

    Raises:
        ValueError: There is no second candidate.

    Source: ours.
    """
    allowed = candidates - (2 if (absent != own).any() else 1)
    others = min(size - 1, allowed)
    if others < 1:
        raise ValueError("a gallery needs a second candidate")
    lots = rng.random((len(own), candidates))
    rows = np.arange(len(own))
    lots[rows, own] = lots[rows, absent] = 2.0
    drawn = np.argpartition(lots, others - 1, axis=1)[:, :others]
    return np.concatenate([own[:, None], drawn], axis=1).astype(np.int64)


def pick(distances: FloatArray, galleries: IntArray) -> FloatArray:
    """The distances to the members of each target's gallery, (T, G)."""
    return np.take_along_axis(distances, galleries, axis=1)


def true_accept_rate(own: FloatArray, impostors: FloatArray, far: float) -> float:
    """How many own pairs are accepted where at most a share `far` of the impostors is.

    A pair is accepted where its score reaches a threshold; equal scores are all accepted or none.

    Args:
        own: Scores of pairs that belong together, float (T,); larger is more alike.
        impostors: Scores of pairs that do not, float (M,), at least one.
        far: The largest false accept rate, 0..1.

    Returns:
        The true accept rate at the best such threshold, 0..1. With fewer than 1 / `far` impostors
        not one of them is accepted.

    Raises:
        ValueError: There are no pairs of a kind, a score is not a number, or `far` is no rate.

    Source: TAR at FAR as in face verification (Grother et al., NIST FRVT); the textbook definition.
    """
    if not own.size or not impostors.size:
        raise ValueError("a true accept rate needs own pairs and impostors")
    if np.isnan(own).any() or np.isnan(impostors).any():
        raise ValueError("a score is not a number")
    if not 0 <= far <= 1:
        raise ValueError(f"a false accept rate lies in 0..1, not {far}")
    # A share like 0.29 of 100 is 29 impostors, though 0.29 * 100 is a little less.
    accepted = int(far * impostors.size + 1e-9)
    if accepted >= impostors.size:
        return 1.0
    place = impostors.size - 1 - accepted
    refused = float(np.partition(impostors, place)[place])
    slack = 1e-9 * max(float(np.abs(own).max()), float(np.abs(impostors).max()))
    return float((own > refused + slack).mean())


def verification(
    distances: FloatArray, own: IntArray, absent: IntArray, far: float = FAR
) -> dict[str, float]:
    """Verification: how many own pairs are accepted where hardly any impostor is.

    Args:
        distances: float (T, N) of each target to each candidate; smaller is more alike.
        own: int64 (T,), the column of each target's own candidate.
        absent: int64 (T,), one more column that is no impostor for each target; see
            `draw_galleries`.
        far: The share of impostors that may be accepted.

    Returns:
        `impostor_pairs`, and `tar_at_far_0.001` (for another `far`, its number); without the latter
        where there are fewer than 1 / `far` impostor pairs, among which not one could be accepted.

    Raises:
        ValueError: A distance is not a number.

    Source: see `true_accept_rate`.
    """
    rows = np.arange(len(own))
    other = np.ones(distances.shape, dtype=np.bool_)
    other[rows, own] = other[rows, absent] = False
    pairs = int(other.sum())
    found = {"impostor_pairs": float(pairs)}
    if pairs * far >= 1 - 1e-9:
        rate = true_accept_rate(-distances[rows, own], -distances[other], far)
        found[f"tar_at_far_{far:g}"] = rate
    return found


def squared_distances(
    queries: npt.NDArray[np.floating], candidates: npt.NDArray[np.floating]
) -> FloatArray:
    """Squared Euclidean distance of each query (T, D) to each candidate (N, D); float64 (T, N)."""
    # A common origin near the data keeps the subtraction below from cancelling the digits away.
    centre = candidates.mean(axis=0, dtype=np.float64)
    q, c = queries - centre, candidates - centre
    square = (q * q).sum(axis=1)[:, None] + (c * c).sum(axis=1)[None, :] - 2.0 * (q @ c.T)
    return np.asarray(np.maximum(square, 0.0), dtype=np.float64)
