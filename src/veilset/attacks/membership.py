"""Membership inference: was this photograph among those that the CNN was trained on?

The attacker holds photographs and may ask the CNN for its logits. She does not know the owner's
key, so she asks with the photograph as it is, or protected under a key of her own. From shadow
models that she trains by the published recipe she learns what is usual for each photograph with
and without training on it (LiRA, RMIA). A global threshold on the loss, which needs no shadow
models, stands beside as a baseline. Method and kind of question are chosen on shadow models.

What counts is how many members are recognised at hardly any false alarms: an average over all
images would hide the few that are recognised for certain.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, ClassVar, Final

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from scipy import stats
from torch import nn
from torch.nn import functional

from veilset.attacks._network import Holder, NetworkAttack, held
from veilset.attacks._shadows import (
    METHODS,
    ONCE,
    PLAIN,
    PROTECTED,
    RELEASED,
    Questions,
    Shadows,
    Trial,
    ask,
    family,
    questions_for,
    reference,
    train_shadows,
    trials,
)
from veilset.attacks.base import (
    Attacker,
    AttackParams,
    AttackResult,
    Case,
    Diverged,
    Knowledge,
    Network,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
    Truth,
    natural_frequency,
)
from veilset.attacks.features import area_resize, usable_rows
from veilset.errors import ProtectionError
from veilset.metrics.statistics import CONFIDENCE, Interval, clopper_pearson, residual_risk
from veilset.models.augment import measure_normalisation
from veilset.models.device import Engine, kernels
from veilset.models.optimiser import Adam
from veilset.schemes.plain import Plain
from veilset.types import BoolArray, FloatArray, Images, Labels

FALSE_ALARMS: Final = 0.01
RARE_FALSE_ALARMS: Final = 0.001

_FEWEST: Final = 100
_ENOUGH_FOR_RARE: Final = 1000
_CLASS_MATES: Final = 4
_PLANTED: Final = 1000
_PLANTED_SIDE: Final = 16
_PLANTED_CLASSES: Final = 10
_PLANTED_SHADOWS: Final = 8
_PLANTED_WIDTH: Final = 128
_LEARNING_STEPS: Final = 160


class MembershipParams(AttackParams):
    """Parameters of `membership`.

    Attributes:
        targets: At most so many members are tested, and at most so many images that are none.
        pool: At most so many photographs are in her hands; shadow models are trained on halves of
            them, so a pool of twice the CNN's training images is best.
        shadows: Shadow models, an even number.
        questions: With so many variants of each photograph she asks.
        crowd: At most so many images of her own serve for comparison.
    """

    targets: int = Field(2000, ge=_FEWEST, le=100_000)
    pool: int = Field(4000, ge=2 * _FEWEST, le=1_000_000)
    shadows: int = Field(8, ge=6, le=1024, multiple_of=2)
    questions: int = Field(2, ge=1, le=9)
    crowd: int = Field(500, ge=10, le=20_000)

    FULL: ClassVar[Mapping[str, Any]] = {
        "targets": 10_000, "pool": 50_000, "shadows": 64, "questions": 9, "crowd": 2000,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Suspects(Case):
    """A case whose rows are photographs in the attacker's hands, trained on or not.

    Attributes:
        member: Whether the CNN was trained on each, bool (N,); for scoring only.
        tested: Those that are scored, bool (N,).
    """

    member: BoolArray
    tested: BoolArray


@dataclass(frozen=True, kw_only=True)
class Prober(Holder):
    """An attacker who holds photographs, and the CNN's recipe.

    Attributes:
        photographs: Plain, uint8 (N, H, W, C), in an order that tells nothing.
        told: Their labels, int64 (N,).
    """

    photographs: Images
    told: Labels


@dataclass(frozen=True)
class FittedMembership:
    """What the shadow models taught.

    Attributes:
        kind: The chosen kind of question; `method`, the chosen method.
        rivals: The best method of each family for that kind of question.
        released_method: The best method where the very released image is at hand.
        cut: The score from which on she guesses that an image is a member.
        questions: What the CNN is asked.
        shadows: Replies of the shadow models.
        table: Of each kind and method, how many members it recognised among shadow models.
        device: Where the CNN runs.
    """

    kind: str
    method: str
    rivals: Sequence[str]
    released_method: str
    cut: float
    questions: Questions
    shadows: Shadows
    table: Mapping[str, float]
    device: str


class Membership(NetworkAttack[MembershipParams, FittedMembership]):
    """Tells the images that a CNN was trained on from others.

    Chance is 0.01. The control permutes who is a member. The oracle is a network that has learnt
    unprotected images with random labels by heart, half of those in the attacker's hands: a
    threshold on the loss recognises too few of them. The details tell what is recognised by who can
    have photographs protected by the owner herself: `released_image_tpr`.

    Source: LiRA: Carlini et al., S&P 2022; RMIA: Zarifzadeh et al., ICML 2024; threshold on the
    loss: Yeom et al., CSF 2018. Choice on shadow models, limits, and questions under a key of her
    own are ours.
    """

    name = "membership"
    title = "Membership inference on the CNN"
    risk: ClassVar[Risk] = "inference"
    attacker: ClassVar[Template] = "model_holder"
    knowledge: ClassVar[Knowledge] = "K2"
    cost = "8 trainings of the CNN on part of its images (quick), or 64 (full)"
    metric = "tpr_at_1_percent_fpr"
    metric_words = "share of training images recognised at one false alarm in 100"
    deed = "are recognised as such"
    oracle_floor = 0.3
    Parameters = MembershipParams

    def _lacks(self, case: Case, network: Network) -> str | None:
        if network.retrain is None:
            return "the CNN's recipe is not given, so no shadow model can be trained"
        if network.outsiders is None:
            return "no images are given that the CNN was not trained on"
        fewest = min(len(case.release.images), len(network.outsiders[0].images))
        if fewest < _FEWEST:
            return (
                f"fewer than {_FEWEST} images that the CNN was trained on, or as many others: one "
                "false alarm in 100 cannot be told"
            )
        if not len(case.attacker.images):
            return "the attacker has no images of her own to compare with"
        return None

    def _run(self, case: Case, progress: Progress | None) -> AttackResult:
        seeds = np.random.SeedSequence([case.attacker.seed, zlib.crc32(self.name.encode())])
        draws = [np.random.default_rng(seed) for seed in seeds.spawn(6)]
        suspects = gather_suspects(case, self.params.pool, self.params.targets, draws[0])
        fitted = self._fit(suspects.release, prober(suspects), draws[1], progress, None)
        found = self._found(fitted, suspects)
        broken = replace(suspects, member=_permuted(suspects, draws[2]))
        main, control = (judged(fitted, found, each) for each in (suspects, broken))
        planted = plant(suspects, draws[3])
        ideal = self._fit(planted.release, prober(planted), draws[4], None, fitted)
        oracle = self._measure(ideal, planted, draws[5])
        anchors = {"main": main, "control": control, "oracle": oracle}
        cases = {"main": suspects, "control": broken, "oracle": planted}
        result = self._weigh(suspects, fitted, anchors, draws[5])
        return replace(result, scores=_stack(self.name, cases, anchors))

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedMembership | None,
    ) -> FittedMembership:  # fmt: skip
        retrain = held(attacker).retrain
        if not isinstance(attacker, Prober) or retrain is None:
            raise TypeError("this attack needs photographs and a recipe: start it by run()")
        params, scheme = self.params, release.scheme
        crowd = rng.permutation(len(attacker.images))[: params.crowd].astype(np.int64)
        crowd = crowd[usable_rows(scheme, attacker.labels[crowd])]
        asked = questions_for(
            scheme, attacker, attacker.photographs, attacker.told, crowd, params.questions, rng
        )
        count = params.shadows if like is None else _PLANTED_SHADOWS
        shadows = train_shadows(
            retrain, scheme, attacker, attacker.photographs, asked, count, rng, progress=progress
        )
        return choose(shadows, asked, attacker.device)

    def _measure(self, fitted: FittedMembership, case: Case, rng: np.random.Generator) -> Scores:
        del rng
        if not isinstance(case, Suspects):
            raise TypeError("this attack needs photographs: start it by run()")
        return judged(fitted, self._found(fitted, case), case)

    def _found(self, fitted: FittedMembership, case: Suspects) -> Mapping[str, FloatArray]:
        """The scores of the photographs that are tested, by kind of question and method."""
        if case.network is None:
            raise ValueError("this attack needs a CNN; applies() says so")
        replies = ask(case.network, fitted.questions, case.release.images, fitted.device)
        found = {}
        wanted = [(fitted.kind, method) for method in fitted.rivals]
        for kind, method in [*wanted, (RELEASED, fitted.released_method)]:
            usual = reference(fitted.shadows.replies[kind], fitted.shadows.member)
            scores = METHODS[method](replies[kind], usual)[case.tested]
            if not np.isfinite(scores).all():
                raise Diverged("a score is not a number")
            found[f"{kind}/{method}"] = scores
        return found

    def _chosen(self, fitted: FittedMembership) -> tuple[str, Mapping[str, float]]:
        return f"{fitted.kind}/{fitted.method}", fitted.table

    def _weigh(
        self, case: Case, fitted: FittedMembership, anchors: Mapping[str, Scores],
        rng: np.random.Generator,
    ) -> AttackResult:  # fmt: skip
        del rng
        rates = {
            name: recognised(each.frame["score"].to_numpy(), each.frame["member"].to_numpy(bool))
            for name, each in anchors.items()
        }
        rate, members = rates["main"], int(anchors["main"].frame["member"].sum())
        variant, variants = self._chosen(fitted)
        details = dict(anchors["main"].details)
        for anchor in ("control", "oracle"):
            details[f"{anchor}_auc"] = anchors[anchor].details["auc"]
        details["shadow_images"] = float(fitted.shadows.member.sum(axis=1).mean())
        return replace(
            self._blank(case), metric=self.metric, metric_words=self.metric_words,
            value=rate.value, low=rate.low, high=rate.high, confidence=CONFIDENCE,
            method="clopper_pearson", targets=members, chance=FALSE_ALARMS,
            control=rates["control"], oracle=rates["oracle"],
            residual=residual_risk(rate, rates["control"]), variant=variant, variants=variants,
            status=self._status(rates["oracle"], members), words=self._words(rate.value),
            details=details,
        )  # fmt: skip

    def _join(self, case: Case, results: Sequence[AttackResult]) -> AttackResult:
        """Means over the repeats, of the limits too.

        All of them test the same photographs on the same CNN: more repeats make nothing surer.
        """

        def mean(of: Callable[[AttackResult], Any]) -> Interval:
            found = [of(result) for result in results]
            return Interval(*np.mean([[i.value, i.low, i.high] for i in found], axis=0).tolist())

        rate, control = mean(lambda result: result), mean(lambda result: result.control)
        oracle, members = mean(lambda result: result.oracle), results[0].targets or 0
        return replace(
            super()._join(case, results), value=rate.value, low=rate.low, high=rate.high,
            method="clopper_pearson", targets=members, control=control, oracle=oracle,
            residual=residual_risk(rate, control), status=self._status(oracle, members),
            words=self._words(rate.value),
        )  # fmt: skip

    def _words(self, rate: float) -> str:
        share = natural_frequency(rate)
        share = share[0].lower() + share[1:]
        return f"At one false alarm in 100, {share} training images {self.deed}."


# --- Who is suspected -------------------------------------------------------------------------


def gather_suspects(case: Case, pool: int, targets: int, rng: np.random.Generator) -> Suspects:
    """Joins trained and other images, in random order.

    Args:
        case: The case, with outsiders.
        pool: At most so many photographs, as many of the others as there are up to a half.
        targets: At most so many of either kind are tested.
        rng: Source of all draws.

    Returns:
        The photographs, without classes that have fewer than 4: half of those would leave a scheme
        without class mates. Side information is left out, because a CNN does not read it here.

    Raises:
        ProtectionError: Too few are left.
    """
    if case.network is None or case.network.outsiders is None:
        raise ValueError("this attack needs images the CNN was not trained on; applies() says so")
    outside, truth = case.network.outsiders
    others = min(len(outside.images), pool // 2)
    own = min(len(case.release.images), pool - others)
    rows = rng.permutation(len(case.release.images))[:own], rng.permutation(len(outside.images))
    parts = (case.release, case.truth, rows[0]), (outside, truth, rows[1][:others])
    labels = np.concatenate([release.labels[at] for release, _, at in parts])
    member = np.repeat([True, False], [own, others])
    values, counts = np.unique(labels, return_counts=True)
    order = rng.permutation(np.flatnonzero(np.isin(labels, values[counts >= _CLASS_MATES])))
    release = Release(
        images=np.concatenate([release.images[at] for release, _, at in parts])[order],
        labels=labels[order], scheme=case.release.scheme,
    )  # fmt: skip
    known = Truth(
        originals=np.concatenate([truth.originals[at] for _, truth, at in parts])[order],
        ids=np.concatenate([truth.ids[at] for _, truth, at in parts])[order],
        groups=np.concatenate([truth.groups[at] for _, truth, at in parts])[order],
    )
    member = member[order]
    if min(int(member.sum()), int((~member).sum())) < _FEWEST:
        raise ProtectionError("too few of the photographs share a class.")
    return Suspects(
        release=release, attacker=case.attacker, truth=known, network=case.network,
        member=member, tested=_first(member, targets) | _first(~member, targets),
    )  # fmt: skip


def prober(case: Suspects) -> Prober:
    """The attacker with the photographs in her hands: she is not told who is a member."""
    if case.network is None:
        raise ValueError("this attack needs a CNN; applies() says so")
    return Prober(
        **vars(case.attacker), photographs=case.truth.originals, told=case.release.labels,
        network=case.network,
    )  # fmt: skip


def _first(chosen: BoolArray, count: int) -> BoolArray:
    """The first so many of the chosen rows."""
    return np.asarray(chosen & (np.cumsum(chosen) <= count))


def _permuted(case: Suspects, rng: np.random.Generator) -> BoolArray:
    """Who is a member, dealt anew among those tested."""
    member = case.member.copy()
    member[case.tested] = rng.permutation(member[case.tested])
    return member


def _stack(name: str, cases: Mapping[str, Suspects], anchors: Mapping[str, Scores]) -> pd.DataFrame:
    frames = []
    for anchor, scores in anchors.items():
        truth, tested = cases[anchor].truth, cases[anchor].tested
        known = pd.DataFrame({
            "attack": name, "anchor": anchor, "target": truth.ids[tested].astype(str),
            "group": truth.groups[tested].astype(str),
        })  # fmt: skip
        frames.append(known.join(scores.frame))
    return pd.concat(frames, ignore_index=True)


# --- What the shadow models teach -------------------------------------------------------------


def choose(shadows: Shadows, asked: Questions, device: str) -> FittedMembership:
    """Chooses kind of question and method by what they recognise among shadow models.

    Args:
        shadows: What the shadow models replied.
        asked: What they were asked.
        device: Where the CNN is to run.

    Source: ours.
    """
    own = [kind + ending for kind in (PROTECTED, PLAIN) for ending in ("", ONCE)]
    tried = {
        (kind, method): trial
        for kind in [*own, RELEASED]
        for method, trial in trials(shadows, kind).items()
    }
    rates = {name: rate_at(t.scores, t.member, FALSE_ALARMS) for name, t in tried.items()}
    members = int(shadows.member.sum())

    def best(kinds: Sequence[str], of: str | None = None) -> tuple[str, str]:
        names = [(k, m) for k, m in rates if k in kinds and of in {None, family(m)}]
        most = max(rates[name] for name in names)
        # Within chance of the best, the order of preference decides.
        least = most - 2 * sqrt(most * (1 - most) / members)
        return next(name for name in names if rates[name] >= least)

    kind, method = best(own)
    rivals = {each: best([kind], each)[1] for each in map(family, METHODS)}
    table: dict[str, float] = {}
    for (asked_with, by), rate in rates.items():
        row = f"{asked_with}/{family(by)}"
        table[row] = max(table.get(row, 0.0), rate)
    return FittedMembership(
        kind, method, tuple({**rivals, family(method): method}.values()), best([RELEASED])[1],
        _best_cut(tried[kind, method]), asked, shadows, table, device,
    )  # fmt: skip


def judged(fitted: FittedMembership, found: Mapping[str, FloatArray], case: Suspects) -> Scores:
    """Compares scores with who was trained on.

    Args:
        fitted: What was chosen.
        found: Scores of the tested photographs by kind of question and method.
        case: Who is a member.

    Returns:
        A row a tested photograph: `success`, whether it is called a member at one false alarm in
        100, `score` and `member`. Further figures as details.
    """
    member = case.member[case.tested]
    scores = found[f"{fitted.kind}/{fitted.method}"]
    called = scores >= threshold(scores[~member], FALSE_ALARMS)
    frame = pd.DataFrame({
        "success": called.astype(np.float64), "score": scores, "member": member,
    })  # fmt: skip
    released = recognised(found[f"{RELEASED}/{fitted.released_method}"], member)
    details = {
        "auc": _area(Trial(scores, member)),
        "balanced_accuracy": _balanced(scores >= fitted.cut, member),
        "non_members": float((~member).sum()),
        "released_image_tpr": released.value,
        "released_image_low": released.low,
        "released_image_high": released.high,
    }
    if details["non_members"] >= _ENOUGH_FOR_RARE:
        details["tpr_at_1_in_1000"] = rate_at(scores, member, RARE_FALSE_ALARMS)
    for method in fitted.rivals:
        rate = rate_at(found[f"{fitted.kind}/{method}"], member, FALSE_ALARMS)
        details[f"{family(method).replace(' ', '_')}_tpr"] = rate
    return Scores(frame, 2, None, details)


# --- Figures ----------------------------------------------------------------------------------


def threshold(others: FloatArray, false_alarms: float) -> float:
    """The score from which on an image is called a member.

    A further image that is none reaches it with at most this probability on average, whatever the
    scores' distribution.

    Args:
        others: Scores of images that are no members, (N,).
        false_alarms: Above 0, below 1.

    Returns:
        The lowest such score; infinite where there are too few scores to tell.

    Source: conformal prediction (Vovk et al., 2005, chapter 2).
    """
    return _level(others, int(false_alarms * (len(others) + 1) + 1e-9))


def _level(others: FloatArray, count: int) -> float:
    """The least score that at most so many of the others reach, ties included."""
    if count == 0:
        return float("inf")
    ranked = np.sort(others)[::-1]
    level = ranked[min(count, len(ranked)) - 1]
    if (others >= level).sum() > count:
        level = np.nextafter(level, np.inf)
    return float(level)


def rate_at(scores: FloatArray, member: BoolArray, false_alarms: float) -> float:
    """Share of members that reach the threshold set on the others."""
    return float((scores[member] >= threshold(scores[~member], false_alarms)).mean())


def recognised(
    scores: FloatArray, member: BoolArray, false_alarms: float = FALSE_ALARMS,
    confidence: float = CONFIDENCE,
) -> Interval:  # fmt: skip
    """Share of members recognised at a rate of false alarms, and its limits.

    The limits cover the draw of the members, and that of the others, of which the threshold was
    taken. The lower one counts members above a threshold so high that its true rate of false alarms
    is surely no larger, the upper one those above one so low that it is surely no smaller. With
    fewer than about 440 others no threshold is high enough, so the lower limit is 0.

    Args:
        scores: Of members and others, (N,).
        member: bool (N,), some true and some false.
        false_alarms: The rate.
        confidence: Two-sided.

    Source: ours; by Clopper and Pearson and the law of order statistics, a quarter of the risk to
    each of the four statements.
    """
    inside, others = scores[member], scores[~member]
    risk, n = (1 - confidence) / 4, len(others)
    # The chance that the k-th largest of n leaves no more than this rate above it, k = 1..n.
    order = np.arange(1, n + 1)
    within = stats.beta.cdf(false_alarms, order, n + 1 - order)
    strict, lax = int((within >= 1 - risk).sum()), int((within > risk).sum()) + 1
    value = rate_at(scores, member, false_alarms)
    sure = 1 - 2 * risk
    fewest = int((inside >= _level(others, strict)).sum())
    most = int((inside >= _level(others, lax)).sum()) if lax <= n else len(inside)
    low = clopper_pearson(fewest, len(inside), sure).low
    high = clopper_pearson(most, len(inside), sure).high
    return Interval(value, min(low, value), max(high, value))


def _area(trial: Trial) -> float:
    """The area under the curve: how often a member scores above another image."""
    ranks = stats.rankdata(trial.scores)
    inside, n = int(trial.member.sum()), len(ranks)
    above = ranks[trial.member].sum() - inside * (inside + 1) / 2
    return float(above / (inside * (n - inside)))


def _best_cut(trial: Trial) -> float:
    """The score at which guessing is right most often, on average over members and others."""
    order = np.argsort(-trial.scores, kind="stable")
    hits = np.cumsum(trial.member[order]) / trial.member.sum()
    alarms = np.cumsum(~trial.member[order]) / (~trial.member).sum()
    return float(trial.scores[order][np.argmax(hits - alarms)])


def _balanced(guessed: BoolArray, member: BoolArray) -> float:
    return float((guessed[member].mean() + (~guessed[~member]).mean()) / 2)


# --- The oracle -------------------------------------------------------------------------------


def plant(case: Suspects, rng: np.random.Generator) -> Suspects:
    """Unprotected images, half of them with random labels learnt by heart by a network.

    Args:
        case: Whose photographs, and whose attacker.
        rng: Source of rows, labels and seeds.

    Source: ours; random labels can only be learnt by heart (Zhang et al., ICLR 2017).
    """
    rows = rng.permutation(len(case.truth.originals))[:_PLANTED]
    images, ids = _small(case.truth.originals[rows]), case.truth.ids[rows].astype(str)
    # Where there are few, their mirror images join them: a few images tell little of the rare.
    images = np.concatenate([images, images[:, :, ::-1]])[:_PLANTED]
    ids = np.concatenate([ids, np.char.add(ids, " mirrored")])[:_PLANTED]
    labels = rng.integers(0, _PLANTED_CLASSES, len(images))
    member = np.arange(len(images)) % 2 == 0
    network = learn_by_heart(images[member], labels[member], int(rng.integers(2**31)))
    own = case.attacker
    named = rng.integers(0, _PLANTED_CLASSES, len(own.images))
    truth = Truth(originals=images, ids=ids, groups=np.full(len(ids), "", dtype=object))
    return Suspects(
        release=Release(images=images, labels=labels, scheme=Plain()), truth=truth,
        attacker=replace(own, images=_small(own.images), labels=named), network=network,
        member=member, tested=np.ones(len(ids), dtype=np.bool_),
    )  # fmt: skip


def learn_by_heart(images: Images, labels: Labels, seed: int) -> Network:
    """Trains a fully connected network on a few images until it knows them.

    Args:
        images: uint8 (N, H, W, C).
        labels: int64 (N,), 0..9.
        seed: Of the initial weights.
    """
    inputs = int(np.prod(images.shape[1:]))
    normaliser = measure_normalisation(images)
    with (
        torch.random.fork_rng(devices=[]),
        kernels(Engine(torch.device("cpu"), "fp32"), deterministic="where there are"),
    ):
        torch.default_generator.manual_seed(seed)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, _PLANTED_WIDTH), nn.ReLU(),
            nn.Linear(_PLANTED_WIDTH, _PLANTED_CLASSES),
        )  # fmt: skip
        pixels = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
        shown, wanted = normaliser.apply(pixels), torch.from_numpy(labels)
        optimiser = Adam(net)
        for _ in range(_LEARNING_STEPS):
            loss = functional.cross_entropy(net(shown), wanted)
            optimiser.forget_gradients()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step(5e-3)
    return Network(
        module=net.eval(), mean=normaliser.mean, std=normaliser.std,
        architecture="fully connected", retrain=learn_by_heart,
    )  # fmt: skip


def _small(images: Images) -> Images:
    height, width = (min(side, _PLANTED_SIDE) for side in images.shape[1:3])
    return np.rint(area_resize(images, height, width)).astype(np.uint8)
