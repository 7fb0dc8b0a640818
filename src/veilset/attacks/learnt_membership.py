"""Membership inference on what a scheme learnt: was this photograph among those it was fitted on?

A scheme that learns (a transformation network, a mask, the classifier behind them) learns from
plain images. Whoever is handed what it learnt may show it photographs of her own and compare: she
fits the same scheme several times, with and without each photograph, and learns what is usual for
it (LiRA). She looks at how a photograph comes out, and at what the classifier says of it.

It is no attack on a release, so it has no place in the suite: it is run before what was learnt is
handed out, and only then.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from pydantic import Field

from veilset.attacks._shadows import (
    Replies,
    confidence,
    halves,
    lira_offline,
    lira_online,
    loss_threshold,
    reference,
)
from veilset.attacks.membership import FALSE_ALARMS, rate_at, recognised
from veilset.errors import ProtectionError
from veilset.keys import Key
from veilset.metrics.statistics import CONFIDENCE, Interval
from veilset.params import Params
from veilset.schemes.base import Scheme
from veilset.schemes.fitted import Fitted, Lessons
from veilset.types import BoolArray, FloatArray, Images, Labels

Ask = Callable[[Images, Labels], Mapping[str, FloatArray]]
"""What something learnt says of photographs: by kind of question a number each, (N,)."""

Advance = Callable[[int, int], None]
"""Told how many of the fits are done, and how many there are."""

ORACLE_FLOOR: Final = 0.3
"""What the attack recognises at least in something that has learnt by heart, or it is broken."""

FEWEST: Final = 100
"""Members and others that a figure needs at least."""

_METHODS: Final = {
    "lira online": lira_online, "lira offline": lira_offline, "threshold": loss_threshold,
}  # fmt: skip
_NOISE: Final = 0.1


class LearntMembershipParams(Params):
    """How hard the attacker tries.

    Attributes:
        shadows: How often she fits the scheme herself; even.
        pool: At most so many photographs are suspected, half of them members where there are so
            many.
        seed: Of all draws.
    """

    shadows: int = Field(8, ge=6, le=256, multiple_of=2)
    pool: int = Field(2000, ge=2 * FEWEST, le=200_000)
    seed: int = Field(0, ge=0, lt=2**32)


@dataclass(frozen=True)
class LearntMembership:
    """What was found.

    Attributes:
        rate: Share of members recognised at one false alarm in 100, with its limits.
        control: The same where members and others are dealt anew.
        oracle: The same of something that has learnt its images by heart.
        chance: 0.01.
        members: How many members were tested.
        others: How many that it was not fitted on.
        shadows: How often the attacker fitted the scheme herself.
        variant: Kind of question and method, chosen on her own fits.
        confidence: Of the limits.
    """

    rate: Interval
    control: Interval
    oracle: Interval
    chance: float
    members: int
    others: int
    shadows: int
    variant: str
    confidence: float = CONFIDENCE

    @property
    def sound(self) -> bool:
        """Whether the attack finds what is there: else its figure supports nothing."""
        return self.oracle.value >= ORACLE_FLOOR

    def verdict(self, limit: float) -> str:
        """`pass`, `fail` or `undecided` against the highest tolerated rate."""
        if self.rate.low > limit:
            return "fail"
        return "pass" if self.sound and self.rate.high <= limit else "undecided"


def learnt_membership(
    scheme: Scheme[Any],
    fitted: Fitted,
    lessons: Lessons,
    others: tuple[Images, Labels],
    params: LearntMembershipParams | None = None,
    advance: Advance | None = None,
) -> LearntMembership:
    """Attacks what a scheme learnt.

    Args:
        scheme: The scheme with its parameters.
        fitted: What it learnt.
        lessons: What it learnt from; its images are the members.
        others: Images of the same kind that it never saw, uint8 (M, H, W, C), and their labels.
        params: How hard to try.
        advance: Told after each fit of the attacker's.

    Returns:
        What she recognises.

    Raises:
        ProtectionError: There are fewer than 100 members or others, or half of the photographs do
            not suffice to fit the scheme.

    Source: LiRA: Carlini et al., S&P 2022; the questions put to a transform are ours.
    """
    chosen = params or LearntMembershipParams()
    rng = np.random.default_rng([chosen.seed, 0x1EA2])
    images, labels, member = _suspects(lessons, others, chosen.pool, rng)
    key = Key(rng.bytes(32))

    def fit(own: Images, told: Labels) -> Ask:
        learnt = scheme.fit(replace(lessons, images=own, labels=told))
        return asking(scheme.with_fitted(learnt), key)

    found = _attacked(
        asking(scheme.with_fitted(fitted), key), fit, (images, labels, member), chosen.shadows, rng,
        advance,
    )  # fmt: skip
    by_heart = _attacked(
        _by_heart(images[member], rng), lambda own, _: _by_heart(own, rng),
        (images, labels, member), chosen.shadows, rng, None,
    )  # fmt: skip
    return replace(found, oracle=by_heart.rate)


def asking(scheme: Scheme[Any], key: Key) -> Ask:
    """The questions that something fitted can be asked.

    Of a transform: how far it moves a photograph, how much contrast it leaves, and how much of the
    photograph stays in it. Of a classifier behind it: how sure it is of the right class, on the
    photograph and on what the transform makes of it.

    Args:
        scheme: A fitted scheme.
        key: The attacker's own.
    """

    def ask(images: Images, labels: Labels) -> Mapping[str, FloatArray]:
        numbers = np.arange(len(images), dtype=np.uint64)
        ids = np.zeros((len(images), 16), dtype=np.uint8)
        ids[:, :8] = numbers.view(np.uint8).reshape(-1, 8)
        made = scheme.protect(images, labels, ids, key).images
        flat = (len(images), -1)
        before = images.reshape(flat).astype(np.float64)
        after = made.reshape(flat).astype(np.float64)
        found = {
            "distance": -np.abs(after - before).mean(axis=1),
            "contrast": after.std(axis=1),
            "likeness": _correlation(before, after),
        }
        classify = getattr(scheme, "classify", None)
        if classify is not None:
            found["class of the photograph"] = confidence(classify(images, protected=False), labels)
            found["class of what comes out"] = confidence(classify(made), labels)
        return found

    return ask


def _correlation(one: FloatArray, other: FloatArray) -> FloatArray:
    one, other = (each - each.mean(axis=1, keepdims=True) for each in (one, other))
    scale = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.asarray((one * other).sum(axis=1) / np.maximum(scale, 1e-12))


def _suspects(
    lessons: Lessons, others: tuple[Images, Labels], pool: int, rng: np.random.Generator
) -> tuple[Images, Labels, BoolArray]:
    """Members and others in random order, of classes that have at least two of each half."""
    count = min(len(lessons.images), len(others[0]), pool // 2)
    parts = []
    for images, labels in ((lessons.images, lessons.labels), others):
        rows = rng.permutation(len(images))[:count]
        parts.append((images[rows], labels[rows]))
    if count < FEWEST:
        raise ProtectionError(
            f"membership in what was learnt needs {FEWEST} images that it was fitted on and as "
            f"many others of the same kind; here are {len(lessons.images)} and {len(others[0])}."
        )
    order = rng.permutation(2 * count)
    images, labels = (np.concatenate([a, b])[order] for a, b in zip(*parts, strict=True))
    return images, labels, np.asarray(np.repeat([True, False], count)[order])


def _attacked(
    target: Ask,
    fit: Callable[[Images, Labels], Ask],
    suspects: tuple[Images, Labels, BoolArray],
    count: int,
    rng: np.random.Generator,
    advance: Advance | None,
) -> LearntMembership:
    """Fits on halves, chooses a question and a method there, and asks the target."""
    images, labels, member = suspects
    inside: list[BoolArray] = []
    said: list[Mapping[str, FloatArray]] = []
    for _ in range(count // 2):
        half = halves(labels, rng)
        for own in (half, ~half):
            said.append(fit(images[own], labels[own])(images, labels))
            inside.append(own)
            if advance is not None:
                advance(len(said), count)
    fits = np.stack(inside)
    told = {kind: np.stack([one[kind] for one in said]) for kind in said[0]}
    kind, method = _best(told, fits)
    usual = reference(_replies(told[kind]), fits)
    scores = _METHODS[method](_reply(target(images, labels)[kind]), usual)
    dealt = rng.permutation(member)
    nothing = Interval(0.0, 0.0, 0.0)
    return LearntMembership(
        rate=recognised(scores, member), control=recognised(scores, dealt), oracle=nothing,
        chance=FALSE_ALARMS, members=int(member.sum()), others=int((~member).sum()),
        shadows=count, variant=f"{kind}, {method}",
    )  # fmt: skip


def _best(told: Mapping[str, FloatArray], fits: BoolArray) -> tuple[str, str]:
    """The question and the method that recognise most, each fit in turn as the target."""
    tried: dict[tuple[str, str], float] = {}
    for kind, values in told.items():
        for name, method in _METHODS.items():
            scores = []
            for number in range(len(fits)):
                # A fit and its other half tell of each other.
                rest = np.flatnonzero(np.arange(len(fits)) // 2 != number // 2)
                usual = reference(_replies(values[rest]), fits[rest])
                scores.append(method(_reply(values[number]), usual))
            tried[kind, name] = rate_at(np.concatenate(scores), fits.ravel(), FALSE_ALARMS)
    return max(tried, key=lambda pair: tried[pair])


def _reply(values: FloatArray) -> Replies:
    return Replies(values[None], np.zeros((1, 1)))


def _replies(values: FloatArray) -> Replies:
    return Replies(values[:, None], np.zeros((len(values), 1, 1)))


def _by_heart(images: Images, rng: np.random.Generator) -> Ask:
    """Something that knows its own images, and is a little unsure of every one."""
    known = {image.tobytes() for image in images}

    def ask(shown: Images, labels: Labels) -> Mapping[str, FloatArray]:
        del labels
        own = np.array([image.tobytes() in known for image in shown], dtype=np.float64)
        return {"known": own + rng.normal(0, _NOISE, len(shown))}

    return ask
