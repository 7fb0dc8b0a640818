"""Apply and compare: who holds an original protects it herself and looks for the result.

A transform without a key (pixelation, a mask, a published network) turns equal images into equal
releases, so the comparison is exact. Under a keyed scheme the attacker uses keys of her own, and
what two protected versions of one image still share links them; two releases of one set under two
keys, or two drops of it, are linked by exactly the same measurement. Permutations and negations
leave the values of a block as they are up to order and sign: brought into one order, two versions
are equal again whatever their keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from veilset.attacks.base import (
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
    Batch,
    InForm,
    Measure,
    Pairs,
    Plainly,
    Prepare,
    as_released,
    flat,
    folded,
    own_among_others,
    protect_as_attacker,
    protect_once,
    split_attacker,
    tune,
)
from veilset.attacks.linkage import enough_images
from veilset.schemes.base import Scheme
from veilset.types import BoolArray, FloatArray, Images, Labels


class ApplyAndCompareParams(AttackParams):
    """Parameters of `apply_and_compare`.

    Attributes:
        targets: At most so many released images are attacked.
        gallery: Size of the galleries; smaller where there are fewer candidates.
        versions: How many times the attacker protects each candidate, under fresh keys; distances
            are averaged. Once is enough for a transform that always does the same.
        auxiliary: At most so many of her images are used.
        tuning_share: Share of her images that chooses among the measures.
    """

    targets: int = Field(500, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    versions: int = Field(4, ge=1, le=50)
    auxiliary: int = Field(1000, ge=20, le=1_000_000)
    tuning_share: float = Field(0.4, gt=0, lt=1)

    FULL: ClassVar[Mapping[str, Any]] = {"targets": 2000, "versions": 16, "auxiliary": 10_000}


@dataclass(frozen=True)
class FittedComparison:
    """How protected images are compared with protected candidates.

    Attributes:
        name: The chosen form and measure.
        prepare: The chosen form.
        measure: The chosen measure.
        table: The best rank-1 of each form and feature on the tuning part.
        scheme: What the attacker applies.
        attacker: Under whose keys.
        repeats: Two versions of an image are equal, so one of them tells everything.
    """

    name: str
    prepare: Prepare
    measure: Measure
    table: Mapping[str, float]
    scheme: Scheme[Any]
    attacker: Attacker
    repeats: bool


class ApplyAndCompare(Attack[ApplyAndCompareParams, FittedComparison]):
    """Protects candidate originals and finds the released image among the results.

    Equality wins, of the bytes, in the chosen form, or with the original itself; then the feature
    decides that best linked two protected versions of the attacker's own images, made under two
    keys.

    Source: comparison on the protected side follows McPherson, Shokri and Shmatikov (arXiv
    1609.00408), whose recognisers learn there; the attack is ours.
    """

    name = "apply_and_compare"
    title = "Applying the protection and comparing"
    risk: ClassVar[Risk] = "linkability"
    attacker: ClassVar[Template] = "public_release"
    knowledge: ClassVar[Knowledge] = "K1"
    cost = "seconds"
    deed = "are linked to an original that the attacker protected herself"
    oracle_floor = 0.95
    Parameters = ApplyAndCompareParams

    def applies(self, case: Case) -> str | None:
        """None where there are targets and enough auxiliary images to choose a measure with."""
        return enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedComparison | None,
    ) -> FittedComparison:  # fmt: skip
        del like
        params = self.params
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        fit = _two_versions(release.scheme, attacker, fitting, rng)
        tuning = _two_versions(release.scheme, attacker, tuned, rng)
        if progress:
            progress("apply_and_compare: tuning", 1, 2)
        judge = own_among_others(len(tuning.plain), params.gallery, rng)
        plainly = tune({"as it is": as_released}, fit, tuning, release.scheme, judge)
        made, unseen = _prepared(fit, folded), _prepared(tuning, folded)
        either = tune({"folded": as_released}, made, unseen, release.scheme, judge)
        table = {**plainly.table, "folded": either.score[0]}
        repeats = bool(np.array_equal(tuning.batch.images, tuning.plain))
        plain_wins = plainly.score[:3] >= either.score[:3]
        chosen = plainly if plain_wins else either
        prepare: Prepare = _as_it_is if plain_wins else folded
        measure = chosen.measure
        if isinstance(measure, InForm):
            prepare, measure = _after(prepare, measure.prepare), Plainly(flat)
        return FittedComparison(
            chosen.name, prepare, measure, table, release.scheme, attacker, repeats
        )

    def _measure(self, fitted: FittedComparison, case: Case, rng: np.random.Generator) -> Scores:
        originals = case.truth.originals
        shuffled = rng.permutation(len(originals)).astype(np.int64)
        candidates, labels = originals[shuffled], candidate_labels(case)[shuffled]
        released = case.release.images
        views = fitted.prepare(released)
        distances = np.zeros((len(originals), len(originals)))
        equal = np.zeros(distances.shape, dtype=np.bool_)
        alike = equal.copy()
        # Who holds the original knows it at once where it was let through as it is.
        bare = equal_images(released, candidates)
        versions = 1 if fitted.repeats else self.params.versions
        for version in range(versions):
            made = protect_once(
                fitted.scheme, fitted.attacker, candidates, labels, f"candidates {version}", rng
            )
            prepared = fitted.prepare(made.images)
            distances += fitted.measure.distances(views, prepared) / versions
            equal |= equal_images(released, made.images)
            alike |= equal_images(views, prepared)
        exactly_first(distances, equal | alike | bare)
        frame, gallery, found = score_candidates(
            distances, case, shuffled, self.params.gallery, rng
        )
        own = np.argsort(shuffled)
        details = {
            "exact": float(equal[np.arange(len(own)), own].mean()),
            "exact_in_form": float(alike[np.arange(len(own)), own].mean()),
            "unprotected": float(bare[np.arange(len(own)), own].mean()),
            "repeats": float(fitted.repeats),
        }
        return Scores(frame, gallery, originals[found], details)

    def _chosen(self, fitted: FittedComparison) -> tuple[str, Mapping[str, float]]:
        way = "the same transform" if fitted.repeats else "another key"
        return f"{fitted.name} under {way}", fitted.table


def candidate_labels(case: Case) -> Labels:
    """What each original shows, int64 (N,), which whoever holds it sees.

    The label travels with the released image, so in a control it is that of another original.
    """
    labels = np.empty_like(case.release.labels)
    labels[case.truth.made_from] = case.release.labels
    return labels


def equal_images(first: Images, second: Images) -> BoolArray:
    """Which images are equal in every byte, bool (N, M)."""
    rows = np.concatenate([first, second]).reshape(len(first) + len(second), -1)
    packed = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))[:, 0]
    _, number = np.unique(packed, return_inverse=True)
    mine, theirs = number[: len(first), None], number[None, len(first) :]
    return np.asarray(mine == theirs)


def exactly_first(distances: FloatArray, equal: npt.NDArray[np.bool_]) -> None:
    """Puts equal candidates before all others, in place; among themselves they tie."""
    if distances.size:
        distances[equal] = distances.min() - 1.0


def _as_it_is(images: Images) -> Images:
    return images


def _after(first: Prepare, then: Prepare) -> Prepare:
    return lambda images: then(first(images))


def _prepared(pairs: Pairs, prepare: Prepare) -> Pairs:
    """Pairs of versions in another form."""
    batch = Batch(prepare(pairs.batch.images), pairs.batch.side)
    return replace(pairs, batch=batch, plain=prepare(pairs.plain))


def _two_versions(
    scheme: Scheme[Any], attacker: Attacker, part: BoolArray, rng: np.random.Generator
) -> Pairs:
    """Protected images paired with a second protected version of each, instead of originals."""
    first, second = protect_as_attacker(scheme, attacker, part, 2, rng)
    return replace(first, plain=second.batch.images)
