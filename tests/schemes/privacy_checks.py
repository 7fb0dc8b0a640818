"""Checks of a privacy claim that know nothing of how a scheme makes its noise."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
from scipy.stats import beta

from veilset.schemes import _discrete_laplace as law

EDGE_BUDGET = Fraction(1)


@dataclass(frozen=True)
class Mechanism:
    """What the checks look at.

    Attributes:
        eps: The claimed budget of the noise per unit of intensity.
        channel: P[x, y] for one byte, unsigned integers with rows of one sum.
        draw: Outputs for a million inputs of one value.
        edges: The edge map of colour images, int64 (N, rows, columns).
        edge_scale: The scale of the noise on that map.
    """

    eps: Fraction
    channel: np.ndarray
    draw: Callable[[int], np.ndarray]
    edges: Callable[[np.ndarray], np.ndarray]
    edge_scale: Fraction


def faults(mechanism: Mechanism) -> set[str]:
    """Which of three checks refute a mechanism's claims; none for a sound one."""
    found = set()
    if not law.holds(mechanism.channel, mechanism.eps):
        found.add("enumeration")
    if not sampling_agrees(mechanism.draw, mechanism.eps):
        found.add("sampling")
    if not edges_hold(mechanism.edges, mechanism.edge_scale):
        found.add("edges")
    return found


def sampling_agrees(draw: Callable[[int], np.ndarray], eps: Fraction) -> bool:
    """No event of many draws proves a larger ratio than claimed (99.9 % in all)."""
    inputs = (0, 64, 255)
    drawn = {x: np.bincount(draw(x), minlength=256) for x in inputs}
    events = [np.arange(256) <= cut for cut in range(0, 255, 15)]
    events += [~event for event in events]
    alpha = 0.001 / (len(events) * 6)
    for x, other in product(inputs, inputs):
        if x == other:
            continue
        for event in events:
            low = bounds(int(drawn[x][event].sum()), int(drawn[x].sum()), alpha)[0]
            high = bounds(int(drawn[other][event].sum()), int(drawn[other].sum()), alpha)[1]
            if low > 0 and np.log(low / high) > float(eps) * abs(x - other) / 255:
                return False
    return True


def bounds(hits: int, count: int, alpha: float) -> tuple[float, float]:
    """Clopper-Pearson bounds of a probability, each missed with probability alpha / 2."""
    low = beta.ppf(alpha / 2, hits, count - hits + 1) if hits else 0.0
    high = beta.ppf(1 - alpha / 2, hits + 1, count - hits) if hits < count else 1.0
    return float(low), float(high)


def edges_hold(edges: Callable[[np.ndarray], np.ndarray], scale: Fraction) -> bool:
    """No single grey level changes the map by more than the noise covers at `EDGE_BUDGET`."""
    rng = np.random.default_rng(0)
    slope = 9 * np.abs(np.arange(12) - 4)
    hill = 200 - np.add.outer(slope, slope)[:, :, None] + np.array([3, 1, 2])
    for image in [hill.astype(np.uint8), *rng.integers(1, 255, (3, 12, 12, 3), dtype=np.uint8)]:
        places = list(np.ndindex(image.shape))
        moved = np.repeat(image[None], len(places), axis=0)
        for k, place in enumerate(places):
            moved[k][place] += 1
        change = np.abs(edges(moved) - edges(image[None])).sum(axis=(1, 2)).max()
        if int(change) / scale > EDGE_BUDGET / 255:
            return False
    return True
