"""Recognition: an outside trainer who has other photographs of the released people names them.

The gallery holds photographs of the released people other than the released ones. A protected image
is compared with each of them, as they are and as the attacker protects them herself; a person's
score is that of her nearest photograph.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from veilset.attacks.base import (
    NO_PERSONS,
    Attack,
    Attacker,
    AttackParams,
    Case,
    Diverged,
    Gallery,
    Groups,
    Knowledge,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
    rank_frame,
)
from veilset.attacks.features import (
    UNTUNED,
    Batch,
    Judge,
    Matcher,
    Pairs,
    View,
    as_released,
    judge_first,
    measures_for,
    protect_as_attacker,
    tune,
)
from veilset.attacks.linkage import linear_views
from veilset.errors import ProtectionError
from veilset.metrics.retrieval import draw_galleries, pick, verification
from veilset.types import BoolArray, FloatArray, Images, IntArray


class RecognitionParams(AttackParams):
    """Parameters of `recognition`.

    Attributes:
        targets: At most so many released images are attacked.
        gallery: People among whom one is sought; fewer where there are fewer.
        versions: How many times the attacker protects her own images, under fresh keys.
    """

    targets: int = Field(500, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    versions: int = Field(3, ge=1, le=50)

    FULL: ClassVar[Mapping[str, Any]] = {"targets": 5000, "versions": 8}


@dataclass(frozen=True)
class FittedRecognition:
    """How images are compared, and which people are known.

    Attributes:
        matcher: The chosen view and measure.
        known: The photographs as they are compared, uint8 (M, H, W, C).
        groups: Who is on each, (M,).
        kind: `photographs` as they are, or `protected` by the attacker.
    """

    matcher: Matcher
    known: Images
    groups: Groups
    kind: str


class Recognition(Attack[RecognitionParams, FittedRecognition]):
    """Recognises the persons on protected images from other photographs of them.

    Source: McPherson, Shokri and Shmatikov (arXiv 1609.00408) showed that obfuscated faces are
    recognised; the features in place of a network are ours.
    """

    name = "recognition"
    title = "Recognition of persons"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K2"
    cost = "seconds"
    metric_words = "rank-1 among {gallery} persons"
    deed = "are recognised as the right person"
    oracle_floor = 0.5
    Parameters = RecognitionParams

    def applies(self, case: Case) -> str | None:
        """None where released people have other photographs in the attacker's gallery."""
        if not case.truth.names_persons:
            return NO_PERSONS
        gallery = case.attacker.gallery
        if gallery is None or not np.isin(case.truth.groups, gallery.groups).any():
            return (
                "persons are named, but the attacker holds no other photographs of them: "
                "give the role `gallery` a share"
            )
        if len(np.unique(gallery.groups[gallery.groups != ""])) < 3:
            return "the gallery shows fewer than 3 persons: there is nobody to confuse them with"
        return None

    def _eligible(self, case: Case) -> IntArray:
        groups = case.truth.groups
        known = np.isin(groups, _gallery(case.attacker).groups) & (groups != "")
        return np.flatnonzero(known).astype(np.int64)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedRecognition | None,
    ) -> FittedRecognition:  # fmt: skip
        del like
        merged, enrolled = _all_images(attacker)
        probes = _probes(merged.groups, enrolled, rng)
        fit = protect_as_attacker(release.scheme, merged, ~probes, self.params.versions, rng)
        everyone = protect_as_attacker(release.scheme, merged, enrolled, 1, rng)[0]
        names = merged.groups[everyone.rows]
        tuning = _protected_probes(release, merged, probes, rng)
        if tuning is None:
            return FittedRecognition(_untuned(fit[0]), everyone.plain, names, "photographs")
        if progress:
            progress("recognition: tuning", 1, 2)
        last = fit[-1].take(enrolled[fit[-1].rows])
        known = merged.groups[last.rows]
        judge = persons_judge(known, merged.groups[tuning.rows])
        views: dict[str, View] = {"released": as_released, **linear_views(fit, tuning)}
        plainly = tune(views, fit[0], tuning, release.scheme, judge, candidates=last.plain)
        # A transform without a key is best met on its own ground: protected against protected.
        alike = Pairs(fit[0].batch, fit[0].batch.images, fit[0].rows)
        released: dict[str, View] = {"released": as_released}
        twice = tune(released, alike, tuning, release.scheme, judge, candidates=last.batch.images)
        table = {**plainly.table, "protected gallery": max(twice.table.values())}
        if twice.score[:3] > plainly.score[:3]:
            chosen = replace(twice, table=table)
            return FittedRecognition(chosen, everyone.batch.images, names, "protected")
        return FittedRecognition(
            replace(plainly, table=table), everyone.plain, names, "photographs"
        )

    def _measure(self, fitted: FittedRecognition, case: Case, rng: np.random.Generator) -> Scores:
        batch = Batch(case.release.images, case.release.side)
        distances = fitted.matcher.distances(batch, fitted.known)
        if not np.isfinite(distances).all():
            raise Diverged("a distance is not a number")
        persons, nearest = by_person(distances, fitted.groups)
        own = np.searchsorted(persons, case.truth.groups.astype(str)).astype(np.int64)
        shown = own[case.truth.made_from]
        galleries = draw_galleries(own, len(persons), self.params.gallery, rng, shown)
        frame = rank_frame(pick(nearest, galleries))
        details = {"persons": float(len(np.unique(own))), **verification(nearest, own, shown)}
        return Scores(frame, galleries.shape[1], None, details)

    def _chosen(self, fitted: FittedRecognition) -> tuple[str, Mapping[str, float]]:
        return f"{fitted.matcher.name} against {fitted.kind}", fitted.matcher.table


def by_person(distances: FloatArray, groups: Groups) -> tuple[Groups, FloatArray]:
    """The distance to each person's nearest photograph.

    Args:
        distances: float (T, M).
        groups: Who is on each of the M photographs.

    Returns:
        The persons in ascending order, (P,), and float (T, P).

    Source: ours.
    """
    order = np.argsort(groups, kind="stable")
    persons, starts = np.unique(groups[order], return_index=True)
    return persons, np.asarray(np.minimum.reduceat(distances[:, order], starts, axis=1))


def persons_judge(known: Groups, sought: Groups) -> Judge:
    """Judges distances (T, M) by the rank of each row's person among all persons."""
    persons = np.unique(known)
    own = np.searchsorted(persons, sought)[:, None]
    others = np.arange(len(persons) - 1)[None, :]
    # The sought person first: what the judge of drawn galleries expects.
    order = np.concatenate([own, others + (others >= own)], axis=1).astype(np.int64)
    return lambda distances: judge_first(pick(by_person(distances, known)[1], order))


def _gallery(attacker: Attacker) -> Gallery:
    if attacker.gallery is None:
        raise ValueError("this attack needs a gallery; applies() says so")
    return attacker.gallery


def _all_images(attacker: Attacker) -> tuple[Attacker, BoolArray]:
    """The attacker with her gallery among her images, and a mask of which those are."""
    gallery = _gallery(attacker)
    named = gallery.groups != ""
    enrolled = np.arange(len(attacker.images) + int(named.sum())) >= len(attacker.images)
    merged = replace(
        attacker,
        images=np.concatenate([attacker.images, gallery.images[named]]),
        labels=np.concatenate([attacker.labels, gallery.labels[named]]),
        ids=np.zeros((len(enrolled), 16), dtype=np.uint8),
        groups=np.concatenate([attacker.groups.astype(str), gallery.groups[named].astype(str)]),
    )
    return merged, enrolled


def _probes(groups: Groups, enrolled: BoolArray, rng: np.random.Generator) -> BoolArray:
    """Half of each known person's photographs, to tune with; none of whom has only one."""
    probes = np.zeros(len(groups), dtype=bool)
    for person in np.unique(groups[enrolled]):
        rows = np.flatnonzero(enrolled & (groups == person))
        probes[rng.permutation(rows)[: len(rows) // 2]] = True
    return probes


def _protected_probes(
    release: Release, merged: Attacker, probes: BoolArray, rng: np.random.Generator
) -> Pairs | None:
    """The tuning photographs as the attacker protects them; None where that cannot be done."""
    if not probes.any():
        return None
    try:
        return protect_as_attacker(release.scheme, merged, probes, 1, rng)[0]
    except ProtectionError:
        return None


def _untuned(fit: Pairs) -> Matcher:
    """A thumbnail, for people of whom the attacker has a single photograph each."""
    views = as_released(fit.batch)
    measure = measures_for(views, fit.plain, None, False)["thumbnail"]
    return Matcher("released/thumbnail, untuned", as_released, measure, UNTUNED, {})
