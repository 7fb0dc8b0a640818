"""What an attack is, what its attacker may see, and how its result becomes evidence.

An attack is run three times: on the release, on the release with the correspondence broken
(control), and on unprotected images (oracle). Chance is stated beside them. An attack whose oracle
is weak is broken, and supports no conclusion.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from veilset.errors import ProtectionError
from veilset.keys import Key
from veilset.metrics.retrieval import (
    average_precision,
    draw_galleries,
    expected_rank,
    pick,
    top_k,
)
from veilset.metrics.statistics import (
    CONFIDENCE,
    Interval,
    cluster_bootstrap,
    hierarchical_bootstrap,
    residual_risk,
    wilson,
)
from veilset.params import Params
from veilset.schemes.base import Scheme
from veilset.schemes.plain import Plain
from veilset.types import FloatArray, Ids, Images, IntArray, Labels

if TYPE_CHECKING:
    from torch import nn

SUITE_VERSION = "3"
"""Raised whenever results of an older suite may no longer be compared with, or relied on."""

MIN_TARGETS = 200
"""Fewer targets than this support no `pass`."""

Risk = Literal["singling_out", "linkability", "inference"]
"""The three risks of WP29 Opinion 05/2014."""

Template = Literal["outside_trainer", "public_release", "model_holder"]
"""Who receives what: the release a trainer under contract or anyone at all, or a trained CNN."""

Knowledge = Literal["K0", "K1", "K2", "K3", "K4", "K5"]
Effort = Literal["quick", "full"]
Status = Literal["ok", "weak_oracle", "diverged", "few_targets"]

KNOWLEDGE_WORDS: Mapping[str, str] = {
    "K0": "the protected images alone",
    "K1": "the algorithm and its parameters, not the key",
    "K2": "the algorithm, its parameters, and other images of the same kind",
    "K3": "some pairs of protected images and originals",
    "K4": "the protection as an oracle for images of her choice",
    "K5": "everything but the images",
}

NO_PERSONS = "the set names no persons"
"""The one reason for which a required attack may be absent: there is nothing to recognise."""

NO_NETWORK = "no CNN was given"
"""Likewise: there is no model to attack."""

NO_OTHER = "no other release of these images was given"
"""Likewise: there is nothing to link with."""

NO_ATTRIBUTE = "the set names no attribute beside the label"
"""Likewise: there is nothing to infer."""

OTHER_KIND = "not made for this kind of scheme"
"""How the reason begins why a specific attack leaves a scheme alone, e.g. `...: it adds no noise`.

Such an attack has nothing to say of the scheme, so it neither passes nor holds up a verdict."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done, and how many there are."""

Groups = npt.NDArray[Any]
"""Names of persons or other groups, (N,) strings; "" where an image has none."""


class Diverged(Exception):  # noqa: N818 - it is an outcome, not an error
    """A training or a score became NaN or infinite: the figure means nothing."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """What every attacker sees.

    Attributes:
        images: Protected images, uint8 (N, H, W, C).
        labels: Published labels, int64 (N,).
        scheme: The algorithm and its parameters (the key is not in it).
        side: Published side information by name, one row an image.
        published_ids: The ids under which the images are published, uint8 (N, 16), where known.
    """

    images: Images
    labels: Labels
    scheme: Scheme[Any]
    side: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    published_ids: Ids | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def take(self, rows: IntArray) -> "Release":
        """The release of these rows only, in their order."""
        side = {name: values[rows] for name, values in self.side.items()}
        ids = None if self.published_ids is None else self.published_ids[rows]
        return replace(
            self, images=self.images[rows], labels=self.labels[rows], side=side, published_ids=ids
        )


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Other photographs of the released people, in the attacker's hands.

    Attributes:
        images: Plain images, uint8 (M, H, W, C).
        labels: int64 (M,).
        groups: Who is on each, (M,) strings.
    """

    images: Images
    labels: Labels
    groups: Groups


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """What this attacker owns besides the release.

    Attributes:
        images: Auxiliary plain images, uint8 (M, H, W, C), disjoint from the released ones.
        labels: int64 (M,).
        ids: uint8 (M, 16).
        groups: Who is on each, (M,) strings; "" where unknown.
        key: A key of her own: never the owner's.
        gallery: Other photographs of the released people, where there are any.
        other: Another release of the same images, of another scheme, key or drop, where there is
            one. Its rows stand in the order of the targets for scoring; no attack uses the order.
        seed: Seed of everything she draws.
        device: Where she trains, as torch names it.
        effort: `quick` or `full`.
    """

    images: Images
    labels: Labels
    ids: Ids
    groups: Groups
    key: Key
    gallery: Gallery | None = None
    other: Release | None = None
    seed: int = 0
    device: str = "cpu"
    effort: Effort = "quick"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """For scoring only; no attack sees it before it has answered.

    Attributes:
        originals: The original of each row of the release, uint8 (N, H, W, C).
        ids: Its id in hex, (N,) strings.
        groups: Who is on it, (N,) strings; "" where unknown.
        sources: The row whose original each released image was really made from; differs from the
            row itself in a control only. int64 (N,); empty means the row itself.
    """

    originals: Images
    ids: npt.NDArray[Any]
    groups: Groups
    sources: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def made_from(self) -> IntArray:
        """`sources`, spelled out."""
        rows = np.arange(len(self.originals), dtype=np.int64)
        return self.sources if len(self.sources) else rows

    @property
    def names_persons(self) -> bool:
        """Some image says who is on it."""
        return bool(np.any(self.groups != ""))


@dataclass(frozen=True, kw_only=True)
class Network:
    """A CNN that was trained on the released images, in the attacker's hands.

    Attributes:
        module: The classifier in evaluation mode: normalised float32 (N, C, H, W) to logits.
        mean: Of each channel in units of 0..1, subtracted first; `std`, divided by then.
        architecture: Its name in the registry, and `parameters`, its parameters there.
        retrain: Trains another one by the published recipe on protected images uint8 (N, H, W, C)
            and labels, with a seed.
        outsiders: Protected by the owner like the release, but not trained on; truth included.
    """

    module: "nn.Module"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    architecture: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    retrain: Callable[[Images, Labels, int], "Network"] | None = None
    outsiders: tuple[Release, Truth] | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A release under attack: what is seen, who attacks, and the truth for scoring.

    Attributes:
        release: What was released.
        attacker: What she owns.
        truth: For scoring.
        network: A CNN trained on the release, where one is published with it or without it.
        attributes: For each attribute's name, its value for each image by internal id in hex:
            those of the attacker's images, which she knows, and of the released ones, for scoring.
            Images that are missing, or whose value is "", have none.

    Raises:
        ValueError: Release and truth differ in their number of rows.
    """

    release: Release
    attacker: Attacker
    truth: Truth
    network: Network | None = None
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(self.release.images), len(self.release.labels), len(self.truth.originals),
                   len(self.truth.ids), len(self.truth.groups)}  # fmt: skip
        if len(lengths) != 1:
            raise ValueError(f"release and truth must have the same rows, not {sorted(lengths)}")

    def take(self, rows: IntArray) -> "Case":
        """The case of these targets only."""
        truth = replace(
            self.truth, originals=self.truth.originals[rows], ids=self.truth.ids[rows],
            groups=self.truth.groups[rows],
        )  # fmt: skip
        other = self.attacker.other
        attacker = replace(self.attacker, other=None if other is None else other.take(rows))
        return replace(self, release=self.release.take(rows), attacker=attacker, truth=truth)

    def sample(self, targets: int, rng: np.random.Generator) -> "Case":
        """At most this many targets, drawn without replacement, in their order."""
        n = len(self.release.images)
        if n <= targets:
            return self
        return self.take(np.sort(rng.choice(n, targets, replace=False)).astype(np.int64))

    def control(self, rng: np.random.Generator) -> "Case":
        """The same case with the correspondence broken.

        Each target is faced with the protected version of another image, of another person where
        persons are named. It is never derived from the target's own pixels, because even a
        histogram of them identifies an image.
        """
        sources = derangement(self.truth.groups, rng)
        truth = replace(self.truth, sources=sources)
        return replace(self, release=self.release.take(sources), truth=truth)

    def oracle(self) -> "Case":
        """The same case without protection: what the attack can do at best."""
        release = Release(
            images=self.truth.originals, labels=self.release.labels, scheme=Plain(),
            published_ids=self.release.published_ids,
        )  # fmt: skip
        # Without ids, by which the originals would find themselves however weak the attack.
        other = None if self.attacker.other is None else replace(release, published_ids=None)
        return replace(self, release=release, attacker=replace(self.attacker, other=other))


def derangement(groups: Groups, rng: np.random.Generator) -> IntArray:
    """For each row another row, of another group where the groups allow it.

    Args:
        groups: (N,) strings; "" stands for a group of its own.
        rng: Source of the draw.

    Returns:
        int64 (N,), a permutation without fixed points (for N above 1).

    Source: ours.
    """
    n = len(groups)
    _, member = np.unique(groups, return_inverse=True)
    single = groups == ""
    member = np.where(single, n + np.arange(n), member)
    _, member, sizes = np.unique(member, return_inverse=True, return_counts=True)
    # Rows laid out group by group in random order: a shift by the largest group leaves every group.
    order = np.lexsort((rng.random(n), rng.permutation(len(sizes))[member]))
    largest = int(sizes.max(initial=1))
    others = np.empty(n, dtype=np.int64)
    others[order] = np.roll(order, -largest if 2 * largest <= n else -1)
    return others


@dataclass(frozen=True)
class Scores:
    """What an attack scored on each target.

    Attributes:
        frame: One row a target in the order of the case, with at least `success` (the probability
            of success in 0..1, ties in random order); further columns by name.
        gallery: Among how many candidates each was sought.
        pictures: What the attack restored or found, uint8 (N, H, W, C), or None.
        details: Further figures by name.
    """

    frame: pd.DataFrame
    gallery: int
    pictures: Images | None = None
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Examples:
    """Pictures of the worst leaks, first the worst: uint8 (K, H, W, C) and labels int64 (K,)."""

    original: Images
    protected: Images
    reconstruction: Images
    labels: Labels


@dataclass(frozen=True, kw_only=True)
class AttackResult:
    """The result of one attack, as `results.json` holds it; figures are None where not applicable.

    Attributes:
        attack: Its name; `title` is its name for people.
        risk: Which of the three risks it measures.
        attacker: The template that it counts for.
        knowledge: K0..K5, and in words.
        applicable: It could be run; else `reason` says why not. Not applicable is never a pass.
        metric: Name of `value`, and in words.
        value: The success rate with its limits `low` and `high`, by `method` at `confidence`.
        targets: How many images were attacked.
        gallery: Among how many candidates each was sought.
        chance: What guessing scores.
        control: The same attack with the correspondence broken.
        oracle: The same attack on unprotected images.
        residual: Success beyond the control.
        variant: What was chosen on the tuning part, and what each variant scored there.
        status: `ok`, or why the figure supports no conclusion.
        words: The result in one sentence.
        details: Further figures.
        seconds: How long it ran.
        size: `quick` or `full`.
        seed: The attacker's seed.
        scores: One row an anchor and target; not in the JSON.
        examples: The worst leaks as pictures; not in the JSON.
    """

    attack: str
    title: str
    risk: Risk
    attacker: Template
    knowledge: Knowledge
    knowledge_words: str
    applicable: bool
    size: Effort
    seed: int
    reason: str | None = None
    metric: str | None = None
    metric_words: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    method: str | None = None
    targets: int | None = None
    gallery: int | None = None
    chance: float | None = None
    control: Interval | None = None
    oracle: Interval | None = None
    residual: Interval | None = None
    variant: str | None = None
    variants: Mapping[str, float] = field(default_factory=dict)
    status: Status | None = None
    words: str | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    scores: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)
    examples: Examples | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, without scores and pictures; what is not a number becomes None."""
        skip = ("scores", "examples")
        return {name: _plain(value) for name, value in vars(self).items() if name not in skip}


class AttackParams(Params):
    """The base of attack parameters: the field defaults are those of `quick`.

    Attributes:
        FULL: The values that differ in `full`.
        repeats: How many times the whole attack runs, each time with a seed and targets of its own:
            for attacks that train, whose luck differs from seed to seed.
    """

    FULL: ClassVar[Mapping[str, Any]] = {}
    repeats: int = Field(1, ge=1, le=100)

    @classmethod
    def for_effort(cls, effort: Effort, values: Mapping[str, Any], where: str) -> "AttackParams":
        """The defaults of an effort, overridden by the user's values.

        Raises:
            SettingsError: A value is unknown or out of range.
        """
        defaults = cls.FULL if effort == "full" else {}
        return cls.parse({**defaults, **values}, where)


P = TypeVar("P", bound=AttackParams)
F = TypeVar("F")


class Attack(ABC, Generic[P, F]):
    """An attack: parameters, `applies` and two steps that `run` calls three times over.

    `_fit` sees the release and the attacker, never the truth. `_measure` scores: it hands the
    fitted attack its targets and compares the answers with the truth.

    Attributes:
        name: Its name in `params.yaml` and on the command line.
        title: Its name for people.
        risk: Which risk it measures.
        attacker: The template that it counts for.
        knowledge: What its attacker knows, K0..K5.
        cost: How long it runs, in words.
        metric: Name of its figure; `metric_words` with {gallery} for the size of the gallery.
        deed: What success means, for "93 of 100 protected images ...".
        oracle_floor: An oracle below this says that the attack is broken.
        Parameters: The class of its parameters.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    risk: ClassVar[Risk]
    attacker: ClassVar[Template]
    knowledge: ClassVar[Knowledge]
    cost: ClassVar[str]
    metric: ClassVar[str] = "rank1"
    metric_words: ClassVar[str] = "rank-1 in a gallery of {gallery}"
    deed: ClassVar[str]
    oracle_floor: ClassVar[float] = 0.9
    Parameters: ClassVar[type[AttackParams]] = AttackParams

    def __init__(self, params: P | None = None) -> None:
        """Binds parameters; the default is `quick`."""
        self.params: P = params if params is not None else self.Parameters()  # type: ignore[assignment]

    @abstractmethod
    def applies(self, case: Case) -> str | None:
        """Why this attack cannot be run on this case, or None."""

    @abstractmethod
    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: F | None,
    ) -> F:  # fmt: skip
        """Trains and tunes on what the attacker owns; `like` is the main fit, for the oracle."""

    @abstractmethod
    def _measure(self, fitted: F, case: Case, rng: np.random.Generator) -> Scores:
        """Scores the fitted attack on the targets of a case.

        Raises:
            Diverged: A score is not a number.
        """

    @abstractmethod
    def _chosen(self, fitted: F) -> tuple[str, Mapping[str, float]]:
        """The variant chosen on the tuning part, and what each variant scored there."""

    def _eligible(self, case: Case) -> IntArray:
        """The rows of the case that can be targets."""
        return np.arange(len(case.release.images), dtype=np.int64)

    def _targets(self) -> int:
        return int(getattr(self.params, "targets", MIN_TARGETS))

    def run(self, case: Case, progress: Progress | None = None) -> AttackResult:
        """Runs the attack, its control and its oracle, and weighs them.

        Args:
            case: The release under attack.
            progress: Called while it works, or None.

        Returns:
            The result; not applicable with its reason where it cannot be run.

        Source: the three anchors follow Anonymeter (Giomi et al., PoPETs 2023); rules are ours.
        """
        started = perf_counter()
        reason = self.applies(case)
        if reason is None:
            try:
                result = self._repeat(case, progress)
            except Diverged as outcome:
                result = self._diverged(case, str(outcome))
            except ProtectionError as error:
                reason = f"the attacker cannot protect images of her own: {error}"
        if reason is not None:
            result = replace(self._blank(case), applicable=False, reason=reason)
        return replace(result, seconds=round(perf_counter() - started, 2))

    def _repeat(self, case: Case, progress: Progress | None) -> AttackResult:
        """Runs as often as asked, and joins what came out."""
        seeds = [case.attacker.seed + number for number in range(self.params.repeats)]
        cases = [replace(case, attacker=replace(case.attacker, seed=seed)) for seed in seeds]
        results = [self._run(one, progress) for one in cases]
        return results[0] if len(results) == 1 else self._join(case, results)

    def _join(self, case: Case, results: Sequence[AttackResult]) -> AttackResult:
        """One result of several: rates over all targets of all seeds, intervals by nested draws."""
        scores = pd.concat(
            [result.scores.assign(repeat=number) for number, result in enumerate(results)],
            ignore_index=True,
        )
        draws = _generators(case.attacker.seed, f"{self.name}, joined")
        rates = {
            str(anchor): _nested_interval(part, next(draws))
            for anchor, part in scores.groupby("anchor", sort=True)
        }
        rate = rates["main"]
        main = scores[scores["anchor"] == "main"]
        details = pd.DataFrame([dict(result.details) for result in results])
        variants = pd.DataFrame([dict(result.variants) for result in results])
        return replace(
            results[0], value=rate.value, low=rate.low, high=rate.high,
            method="hierarchical_bootstrap", targets=int(main["target"].nunique()),
            control=rates["control"], oracle=rates["oracle"],
            residual=residual_risk(rate, rates["control"]),
            variant="; ".join(dict.fromkeys(str(result.variant) for result in results)),
            variants={str(name): float(mean) for name, mean in variants.mean().items()},
            details={str(name): float(mean) for name, mean in details.mean().items()}
            | {"repeats": float(len(results))},
            status=self._status(rates["oracle"], int(main["target"].nunique())),
            words=self._words(rate.value), seed=case.attacker.seed, scores=scores,
        )  # fmt: skip

    def _run(self, case: Case, progress: Progress | None) -> AttackResult:
        draws = _generators(case.attacker.seed, self.name)
        case = case.take(self._eligible(case)).sample(self._targets(), next(draws))
        fitted = self._fit(case.release, case.attacker, next(draws), progress, None)
        main = self._measure(fitted, case, next(draws))
        control = self._measure(fitted, case.control(next(draws)), next(draws))
        bare = case.oracle()
        ideal = self._fit(bare.release, bare.attacker, next(draws), progress, fitted)
        oracle = self._measure(ideal, bare, next(draws))
        anchors = {"main": main, "control": control, "oracle": oracle}
        return self._weigh(case, fitted, anchors, next(draws))

    def _weigh(
        self, case: Case, fitted: F, anchors: Mapping[str, Scores], rng: np.random.Generator
    ) -> AttackResult:
        groups = case.truth.groups
        rates = {name: _interval(scores, groups, rng) for name, scores in anchors.items()}
        main, rate = anchors["main"], rates["main"]
        variant, variants = self._chosen(fitted)
        return replace(
            self._blank(case), metric=self.metric,
            metric_words=self.metric_words.format(gallery=main.gallery),
            value=rate.value, low=rate.low, high=rate.high, confidence=CONFIDENCE,
            method="cluster_bootstrap" if _clustered(groups) else "wilson",
            targets=len(main.frame), gallery=main.gallery, chance=1.0 / main.gallery,
            control=rates["control"], oracle=rates["oracle"],
            residual=residual_risk(rate, rates["control"]), variant=variant, variants=variants,
            status=self._status(rates["oracle"], len(main.frame)), words=self._words(rate.value),
            details=_details(anchors), scores=_stack(self.name, case, anchors),
            examples=_worst(case, main),
        )  # fmt: skip

    def _status(self, oracle: Interval, targets: int) -> Status:
        if oracle.value < self.oracle_floor:
            return "weak_oracle"
        return "few_targets" if targets < MIN_TARGETS else "ok"

    def _words(self, rate: float) -> str:
        return f"{natural_frequency(rate)} protected images {self.deed}."

    def _blank(self, case: Case) -> AttackResult:
        return AttackResult(
            attack=self.name, title=self.title, risk=self.risk, attacker=self.attacker,
            knowledge=self.knowledge, knowledge_words=KNOWLEDGE_WORDS[self.knowledge],
            applicable=True, size=case.attacker.effort, seed=case.attacker.seed,
        )  # fmt: skip

    def _diverged(self, case: Case, why: str) -> AttackResult:
        words = f"The attack diverged ({why}), which says nothing about privacy."
        return replace(self._blank(case), status="diverged", words=words, metric=self.metric)


def score_candidates(
    distances: FloatArray, case: Case, shuffled: IntArray, size: int, rng: np.random.Generator
) -> tuple[pd.DataFrame, int, IntArray]:
    """Ranks each target's original in a gallery of a stated size.

    Args:
        distances: float (N, N): of each released image to each candidate, where column j is the
            original of row `shuffled[j]` (the attack saw the candidates in that order).
        case: The case, with N rows.
        shuffled: int64 (N,), a permutation.
        size: Wanted size of the galleries.
        rng: Source of the galleries.

    Returns:
        A row a target (success, rank, top5, average_precision), the gallery's size, and for each
        target the row of the original that was found first.

    Raises:
        Diverged: A distance is not finite.

    Source: ours.
    """
    if not np.isfinite(distances).all():
        raise Diverged("a distance is not a number")
    n = len(distances)
    own = np.arange(n, dtype=np.int64)
    ordered = distances[:, np.argsort(shuffled)]
    galleries = draw_galleries(own, n, size, rng, case.truth.made_from)
    frame = rank_frame(pick(ordered, galleries))
    found = galleries[own, pick(ordered, galleries).argmin(axis=1)]
    return frame, galleries.shape[1], found


def rank_frame(drawn: FloatArray) -> pd.DataFrame:
    """Scores of galleries whose column 0 is the sought one: success, rank, top5, precision."""
    first = np.zeros(len(drawn), dtype=np.int64)
    relevant = np.zeros(drawn.shape, dtype=bool)
    relevant[:, 0] = True
    return pd.DataFrame({
        "success": top_k(drawn, first, 1),
        "rank": expected_rank(drawn, first),
        "top5": top_k(drawn, first, 5),
        "average_precision": average_precision(drawn, relevant),
    })  # fmt: skip


def natural_frequency(rate: float) -> str:
    """A rate as people say it: "93 of 100", and "fewer than 1 of 100" rather than "0"."""
    if 0 < rate < 0.005:
        return "Fewer than 1 of 100"
    if rate == 0:
        return "None of the"
    return f"{round(rate * 100)} of 100"


def _generators(seed: int, name: str) -> Any:
    """Independent generators, one a step, the same for the same seed and attack."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return (np.random.default_rng(child) for child in sequence.spawn(8))


def _clustered(groups: Groups) -> bool:
    named = groups[groups != ""]
    return len(np.unique(named)) < len(named)


def _interval(scores: Scores, groups: Groups, rng: np.random.Generator) -> Interval:
    success = scores.frame["success"].to_numpy(dtype=np.float64)
    if not np.isfinite(success).all():
        raise Diverged("a score is not a number")
    if not _clustered(groups):
        return wilson(float(success.sum()), len(success))
    alone = np.char.add("row ", np.arange(len(groups)).astype(str))
    return cluster_bootstrap(success, np.where(groups == "", alone, groups.astype(str)), rng)


def _nested_interval(scores: pd.DataFrame, rng: np.random.Generator) -> Interval:
    """The interval of the rate over seeds, persons and their images."""
    unknown = "image " + scores["target"].astype(str)
    persons = scores["group"].where(scores["group"] != "", unknown).to_numpy(dtype=str)
    success = scores["success"].to_numpy(dtype=np.float64)
    return hierarchical_bootstrap(success, [scores["repeat"].to_numpy(), persons], rng)


def _details(anchors: Mapping[str, Scores]) -> dict[str, float]:
    """The further columns' means, and the measures that the attack adds, by anchor."""
    details: dict[str, float] = {}
    for anchor, scores in anchors.items():
        prefix = "" if anchor == "main" else f"{anchor}_"
        for column in ("rank", "top5", "average_precision"):
            if column in scores.frame:
                details[f"{prefix}{column}"] = float(scores.frame[column].mean())
        details |= {f"{prefix}{name}": value for name, value in scores.details.items()}
    return details


def _stack(name: str, case: Case, anchors: Mapping[str, Scores]) -> pd.DataFrame:
    frames = []
    for anchor, scores in anchors.items():
        frame = scores.frame.copy()
        frame.insert(0, "group", [str(value) for value in case.truth.groups])
        frame.insert(0, "target", [str(value) for value in case.truth.ids])
        frame.insert(0, "anchor", anchor)
        frame.insert(0, "attack", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _worst(case: Case, scores: Scores, count: int = 8) -> Examples | None:
    """The worst leaks: the most certain successes, the best restored first."""
    if scores.pictures is None:
        return None
    frame = scores.frame
    likeness = frame["ssim"] if "ssim" in frame else frame["average_precision"]
    order = np.lexsort((-likeness.to_numpy(), -frame["success"].to_numpy()))[:count]
    return Examples(
        original=case.truth.originals[order], protected=case.release.images[order],
        reconstruction=scores.pictures[order], labels=case.release.labels[order],
    )  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return {key: _plain(part) for key, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value
