"""Version linkage: two releases of the same images are laid one upon the other.

A trainer who receives the same images twice, under two schemes, two keys or in two drops, joins
them: what each release hides, the two together may tell, and labels, dates and sites that came with
either are joined with it. Images of both releases are compared as they are, and as linear maps
restore them that the attacker fitted to images of her own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from veilset.attacks.base import (
    NO_OTHER,
    Attack,
    Attacker,
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
    Matcher,
    Pairs,
    View,
    as_released,
    own_among_others,
    protect_as_attacker,
    split_attacker,
    to_pictures,
    tune,
)
from veilset.attacks.linkage import LinkageParams, enough_images, linear_views
from veilset.schemes.base import Scheme
from veilset.types import BoolArray, Ids, Images, IntArray


@dataclass(frozen=True)
class FittedVersions:
    """How images of both releases are looked at, and compared.

    Attributes:
        matcher: For the release under attack.
        other: The view of the other release that candidates are seen by.
        name: `view of the release/measure, view of the other`.
        table: The best rank-1 of each pair of views on the tuning part.
    """

    matcher: Matcher
    other: View
    name: str
    table: Mapping[str, float]


class VersionLinkage(Attack[LinkageParams, FittedVersions]):
    """Finds for each protected image its other version, in another release of the same images.

    Source: linkability as in WP29 Opinion 05/2014, 2.2; as an attack, ours.
    """

    name = "version_linkage"
    title = "Linkage of two releases"
    risk: ClassVar[Risk] = "linkability"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K2"
    cost = "half a minute"
    metric_words = "rank-1 in a gallery of {gallery} images of the other release"
    deed = "are linked to their version in the other release"
    oracle_floor = 0.95
    Parameters = LinkageParams

    def applies(self, case: Case) -> str | None:
        """None where there is another release, and enough auxiliary images."""
        return NO_OTHER if case.attacker.other is None else enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedVersions | None,
    ) -> FittedVersions:  # fmt: skip
        del like
        if attacker.other is None:
            raise ValueError("there is no other release")
        fitting, tuned = split_attacker(
            attacker, self.params.tuning_share, self.params.auxiliary, rng
        )
        fit, tuning = self._protected(release.scheme, attacker, fitting, tuned, rng)
        views = _views(fit, tuning)
        other_fit, other_tuning = self._protected(
            attacker.other.scheme, attacker, fitting, tuned, rng
        )
        rows = np.intersect1d(tuning.rows, other_tuning.rows)
        tuning, other_tuning = _of(tuning, rows), _of(other_tuning, rows)
        judge = own_among_others(len(rows), self.params.gallery, rng)
        found: list[FittedVersions] = []
        others = _views(other_fit, other_tuning)
        for number, (name, view) in enumerate(others.items()):
            candidates = _pictures(view, other_tuning.batch)
            matcher = tune(
                views, fit[0], tuning, release.scheme, judge, candidates=candidates, by_view=True
            )
            table = {f"{mine}, {name}": rate for mine, rate in matcher.table.items()}
            found.append(FittedVersions(matcher, view, f"{matcher.name}, {name}", table))
            if progress:
                progress("version_linkage: tuning", number + 1, len(others))
        best = max(found, key=lambda one: one.matcher.score)
        return replace(best, table={k: v for one in found for k, v in one.table.items()})

    def _protected(
        self, scheme: Scheme[Any], attacker: Attacker, fitting: BoolArray, tuned: BoolArray,
        rng: np.random.Generator,
    ) -> tuple[list[Pairs], Pairs]:  # fmt: skip
        """Her own images under fresh keys: versions to fit to, and one to tune with."""
        fit = protect_as_attacker(scheme, attacker, fitting, self.params.versions, rng)
        return fit, protect_as_attacker(scheme, attacker, tuned, 1, rng)[0]

    def _measure(self, fitted: FittedVersions, case: Case, rng: np.random.Generator) -> Scores:
        other = case.attacker.other
        if other is None:
            raise ValueError("there is no other release")
        shuffled = rng.permutation(len(other.images)).astype(np.int64)
        shown = other.take(shuffled)
        candidates = _pictures(fitted.other, Batch(shown.images, shown.side))
        mine = Batch(case.release.images, case.release.side)
        distances = fitted.matcher.distances(mine, candidates)
        joined = same_ids(case.release.published_ids, shown.published_ids)
        if joined is not None:
            distances = np.where(joined, distances.min() - 1.0, distances)
        frame, gallery, found = score_candidates(
            distances, case, shuffled, self.params.gallery, rng
        )
        shared = 0.0 if joined is None else float(joined.any(axis=1).mean())
        return Scores(frame, gallery, other.images[found], {"shared_ids": shared})

    def _chosen(self, fitted: FittedVersions) -> tuple[str, Mapping[str, float]]:
        return fitted.name, fitted.table


def same_ids(mine: Ids | None, others: Ids | None) -> BoolArray | None:
    """Where images of two releases are published under one id.

    Args:
        mine: uint8 (N, 16), or None where a release has no ids.
        others: uint8 (M, 16), or None.

    Returns:
        bool (N, M); None where no id is in both.
    """
    if mine is None or others is None:
        return None
    equal: BoolArray = (mine[:, None, :] == others[None, :, :]).all(axis=2)
    return equal if equal.any() else None


def _views(fit: list[Pairs], tuning: Pairs) -> dict[str, View]:
    return {"released": as_released, **linear_views(fit, tuning)}


def _of(pairs: Pairs, rows: IntArray) -> Pairs:
    """The pairs of these auxiliary images; some schemes cannot protect all of them."""
    return pairs.take(np.isin(pairs.rows, rows))


def _pictures(view: View, batch: Batch) -> Images:
    return to_pictures(view(batch), batch.images.shape[1:3])
