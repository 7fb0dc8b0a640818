"""Whether a scheme's protected sets may be released, and what is told of them if so.

Nothing is ready by default: every reason against a release is a sentence that says what is wrong,
why that matters and what to do. A waiver outweighs a verdict that is no pass, and nothing else.

Source: ours.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final, get_args

from pydantic import Field, ValidationError

from veilset.data.manifest import Manifest
from veilset.errors import ReleaseError
from veilset.keys import DEMO_IDS_KEY, DEMO_PROTECTION_KEY
from veilset.params import Params
from veilset.release.gate import TEMPLATE_WORDS, GateParams, stale
from veilset.release.ledger import Spent, budget
from veilset.release.statement import (
    BudgetFacts,
    CheckFacts,
    Floors,
    Predicate,
    Receiver,
    SchemeFacts,
    SetFacts,
    UtilityFacts,
    VerdictFacts,
    Waiver,
)
from veilset.report.model import Card, EvaluationFile
from veilset.schemes.plain import Plain

MIN_REASON: Final = 20
"""Characters that the reason of a waiver has at least."""

MIN_NAME: Final = 3
"""Characters that the name behind a waiver has at least."""

_SHOWN: Final = 5


class ReleaseParams(Params):
    """What a release must be of use for: the block `release` of `params.yaml`.

    The end of the 95 % interval that speaks against the release counts, of the best of the CNNs.

    Attributes:
        min_accuracy: The lowest accuracy on the test images, a fraction of 1; None for no floor.
        max_loss_points: The most percentage points that may be lost against training on plain
            images; None for no floor.
    """

    min_accuracy: float | None = Field(None, ge=0, le=1)
    max_loss_points: float | None = Field(None, ge=0, le=100)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """All that decides about a release of one scheme.

    Attributes:
        scheme: The scheme's name in `params.yaml`.
        manifests: The manifests of its protected sets, by the folder that each has in the release.
        checks: What the checks of the data said, by the same folders; a set without is unchecked.
        card: Its leakage card, or None where it was not attacked.
        evaluation: What CNNs trained on it achieve, or None.
        unclean: What `dvc status` lists as changed; None where it was not asked.
        uncommitted: Code, settings and records that no commit has; None without a repository.
        ids_fingerprint: Fingerprint of the key behind internal ids and roles.
        params: The floors of utility.
        gate: What a verdict is judged by.
    """

    scheme: str
    manifests: Mapping[str, Manifest]
    checks: Mapping[str, CheckFacts]
    card: Card | None
    evaluation: EvaluationFile | None
    unclean: tuple[str, ...] | None
    uncommitted: tuple[str, ...] | None
    ids_fingerprint: str
    params: ReleaseParams = field(default_factory=ReleaseParams)
    gate: GateParams = field(default_factory=GateParams)

    @property
    def utility(self) -> tuple[UtilityFacts, ...]:
        """What counts for it, by model."""
        rows = self.evaluation.rows if self.evaluation else ()
        return UtilityFacts.of(rows, self.scheme)

    @property
    def verdicts(self) -> dict[str, VerdictFacts]:
        """The card's verdicts on images, each with why it no longer counts.

        None where other parameters were attacked, or another version of the scheme.
        """
        if self.card is None or not _attacked(self.card, self.manifests):
            return {}
        why = _outdated(self.card, self.manifests, self.gate)
        return {
            name: VerdictFacts(
                verdict=self.card.verdicts[name].verdict, words=self.card.verdicts[name].words,
                limits=self.card.verdicts[name].limits, suite=self.card.suite, stale=why,
            )
            for name in get_args(Receiver)
            if name in self.card.verdicts
        }  # fmt: skip


def refusals(facts: Standing, receiver: str, waiver: Waiver | None = None) -> tuple[str, ...]:
    """Why a release is refused: a sentence a reason, none where it may be made.

    Args:
        facts: How things stand.
        receiver: For whom: `outside_trainer` or `public_release`.
        waiver: What outweighs a verdict that is no pass. It outweighs nothing else, and no verdict
            at all: there must be one to disregard.
    """
    return (
        *set_refusals(facts.manifests),
        *_keys(facts),
        *_checks(facts),
        *_verdict(facts, receiver, waiver),
        *_utility(facts),
        *_versions(facts),
    )


def set_refusals(manifests: Mapping[str, Manifest]) -> tuple[str, ...]:
    """Why sets can never be released as they are, whatever else is known: no waiver helps.

    Args:
        manifests: The manifests of the protected sets, by folder.
    """
    if not manifests:
        return ("There is no protected set to release: protect a drop by this scheme first.",)
    found = [reason for folder, one in sorted(manifests.items()) for reason in _set(folder, one)]
    return tuple(dict.fromkeys((*found, *_agreement(manifests))))


def release_facts(
    facts: Standing,
    receiver: Receiver,
    waiver: Waiver | None = None,
    *,
    released: date,
    spent: Spent | None,
    commit: str | None,
    packages: Mapping[str, str],
) -> Predicate:
    """What the statement of a release says.

    Args:
        facts: How things stand.
        receiver: For whom it is made.
        waiver: Recorded for ever, also where the verdict would have passed without.
        released: The day.
        spent: What `veilset.release.ledger.spend` returned under the scheme's metric when this
            release was entered; None where it guarantees nothing.
        commit: Of the code and settings, or None.
        packages: Versions by name, as far as they bear on the result.

    Raises:
        ReleaseError: It is refused, with all reasons; or it spends a budget that was not entered;
            or a fact does not fit into a statement.
    """
    reasons = refusals(facts, receiver, waiver)
    if reasons:
        raise ReleaseError(" ".join(reasons))
    first = next(iter(facts.manifests.values()))
    record = dict(first.scheme or {})
    cost = budget(record)
    if cost is not None and (spent is None or spent.metric != cost[0]):
        raise ReleaseError(
            f"{facts.scheme} spends {cost[1]:g} of each image's privacy budget ({cost[0]}), and "
            "the ledger does not tell what they have spent in all: enter this release into it."
        )
    try:
        return Predicate(
            dataset=first.dataset, released=released, receiver=receiver,
            scheme=SchemeFacts.model_validate(record), key_fingerprint=str(first.key_fingerprint),
            sets=tuple(SetFacts.of(folder, one) for folder, one in facts.manifests.items()),
            verdicts=facts.verdicts, utility=facts.utility,
            floors=Floors(**facts.params.model_dump()),
            budget=BudgetFacts.of(cost, spent) if cost and spent else None,
            waiver=waiver, checks={folder: facts.checks[folder] for folder in facts.manifests},
            commit=commit, packages=dict(packages),
        )  # fmt: skip
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "it"
        raise ReleaseError(
            f"The statement of this release cannot be made, because of {where}: {fault['msg']}."
        ) from None


# ------------------------------------------------------------------------------ the sets


def _set(folder: str, manifest: Manifest) -> Iterator[str]:
    if manifest.kind != "protected":
        yield (
            f"{folder} is a set of plain images, which are never released: protect it, and release "
            "what comes of that."
        )
        return
    record = manifest.scheme or {}
    if _protects_nothing(record):
        yield (
            "The scheme `plain` protects nothing, so its images are the originals, which are never "
            "released: choose another scheme."
        )
    elif not dict(record.get("declaration") or {}).get("releasable", True):
        yield (
            f"{record.get('title') or folder} as it is set here is for comparison only and is "
            "never released: change its parameters and protect again."
        )
    if manifest.key_fingerprint in (None, DEMO_PROTECTION_KEY.fingerprint):
        yield (
            f"{folder} was protected under the public demo key (or none is named), so anybody can "
            "undo or join it: run `veilset key new protection`, then `dvc repro`."
        )
    if manifest.notes:
        yield (
            f"The manifest of {folder} has notes, which might tell of the originals and would be "
            "published: protect it again with this version of Veilset."
        )
    private = [name for name, kind in manifest.columns.items() if _tells(name, kind)]
    if private:
        yield (
            f"{folder} has the column {private[0]!r}, which might name persons or files and would "
            "be published: protect it again with a scheme that publishes no text."
        )
    if not manifest.splits.get("train"):
        yield (
            f"{folder} has no training images, so nobody can train on it: leave it out, or protect "
            "a drop that has some."
        )


def _tells(column: str, kind: str) -> bool:
    """Side information is numbers; text could be anything."""
    return kind == "string" or column == "group"


def _protects_nothing(record: Mapping[str, Any]) -> bool:
    """The scheme, or each step of it, is `plain`."""
    steps = record.get("steps") or ()
    return record.get("name") == Plain.name or (bool(steps) and all(map(_protects_nothing, steps)))


def _agreement(manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """What a receiver of several sets would stumble over."""
    for words, values in (
        ("the same scheme with the same parameters", [m.scheme for m in manifests.values()]),
        ("the same key", [m.key_fingerprint for m in manifests.values()]),
        ("the name of one data set", [m.dataset for m in manifests.values()]),
        ("images of one size", [m.shape for m in manifests.values()]),
        ("the same classes", [m.classes for m in manifests.values()]),
        ("the same columns", [m.columns for m in manifests.values()]),
    ):
        if any(value != values[0] for value in values):
            yield (
                f"The sets {_listed(sorted(manifests))} have not {words}, so they are no one "
                "release: run `dvc repro`, or release them one by one."
            )


# ------------------------------------------------------------------------------ all else


def _keys(facts: Standing) -> Iterator[str]:
    if facts.ids_fingerprint == DEMO_IDS_KEY.fingerprint:
        yield (
            "Image ids and roles come from the public demo key, so anybody who holds an image can "
            "compute them: run `veilset key new ids`, then `dvc repro`."
        )


def _checks(facts: Standing) -> Iterator[str]:
    for folder in sorted(facts.manifests):
        found = facts.checks.get(folder)
        if found is None:
            yield (
                f"{folder} was not checked by Great Expectations, so nothing is known of its "
                "quality: run `dvc repro`."
            )
        elif found.critical_failed:
            yield (
                f"{folder} fails the critical checks {_listed(found.critical_failed)}, so it is no "
                "sound basis for anybody: mend the drop and run `dvc repro`."
            )


def _verdict(facts: Standing, receiver: str, waiver: Waiver | None) -> Iterator[str]:
    if receiver not in get_args(Receiver):
        yield (
            f"{receiver!r} is no receiver of protected images: release to "
            f"{' or '.join(get_args(Receiver))}."
        )
        return
    if waiver is not None:
        yield from _waiver(waiver)
    who, found = TEMPLATE_WORDS[receiver], facts.verdicts.get(receiver)
    if found is None:
        yield (
            f"There is no verdict on {facts.scheme} as it is set here for {who}, so nobody knows "
            "what it leaks, and a waiver has nothing to disregard: run the attacks and the gate "
            "(`dvc repro`)."
        )
    elif waiver is not None:
        return
    elif found.stale:
        yield (
            f"The verdict on {facts.scheme} for {who} is stale and so no pass ({found.stale}): run "
            "`dvc repro`, or waive it with a reason and your name."
        )
    elif found.verdict != "pass":
        yield (
            f"The verdict on {facts.scheme} for {who} is {found.verdict!r} and no pass "
            f"({found.words.rstrip('.')}): choose other parameters or another scheme, or waive it "
            "with a reason and your name."
        )


def _waiver(waiver: Waiver) -> Iterator[str]:
    if len(" ".join(waiver.reason.split())) < MIN_REASON:
        yield (
            "The reason of the waiver is too short to be understood by who reads it years later: "
            f"say in at least {MIN_REASON} characters why this release is made all the same."
        )
    if len(" ".join(waiver.name.split())) < MIN_NAME:
        yield "A waiver needs the name of who answers for it: give it in full."


def _utility(facts: Standing) -> Iterator[str]:
    params, rows = facts.params, facts.utility
    low = max((row.low for row in rows if row.low is not None), default=None)
    lost = min((row.loss_high for row in rows if row.loss_high is not None), default=None)
    again = "train on it (`dvc repro`), or change the floor in the block `release` of params.yaml"
    if params.min_accuracy is not None and (low is None or low < params.min_accuracy):
        what = "was not measured" if low is None else f"may be as low as {100 * low:.1f} %"
        yield (
            f"The accuracy of CNNs trained on {facts.scheme} {what}, and the floor is "
            f"{100 * params.min_accuracy:g} %, so it may be of no use: {again}."
        )
    if params.max_loss_points is not None and (lost is None or lost > params.max_loss_points):
        what = "was not measured" if lost is None else f"may be as much as {lost:.1f} points"
        yield (
            f"What CNNs lose by training on {facts.scheme} instead of plain images {what}, and at "
            f"most {params.max_loss_points:g} points are allowed: {again}."
        )


def _versions(facts: Standing) -> Iterator[str]:
    if facts.unclean is None:
        yield (
            "It is not known whether the results belong to the present data and settings, because "
            "`dvc status` was not asked: run this in a project that DVC versions."
        )
    elif facts.unclean:
        yield (
            f"`dvc status` lists {_listed(facts.unclean)} as changed, so the evidence may be of "
            "other data or settings: run `dvc repro` and commit `dvc.lock`."
        )
    if facts.uncommitted is None:
        yield (
            "The project is in no git repository, so nobody could tell later which code and "
            "settings made this release: run `git init`, and commit code, settings and `dvc.lock`."
        )
    elif facts.uncommitted:
        yield (
            f"{_listed(facts.uncommitted)} differ from what git has, so the commit that the "
            "statement names would not be what made this release: commit them."
        )


def _attacked(card: Card, manifests: Mapping[str, Manifest]) -> bool:
    """The card is of the scheme that made these sets, as it was set."""
    found = card.scheme.version, card.scheme.parameters
    records = (manifest.scheme or {} for manifest in manifests.values())
    return all((one.get("version"), one.get("parameters")) == found for one in records)


def _outdated(card: Card, manifests: Mapping[str, Manifest], params: GateParams) -> str | None:
    """Why the card's verdicts say nothing of these sets any more, or None."""
    roots = {manifest.root for manifest in manifests.values()}
    if card.repeat.release is not None and roots != {card.repeat.release}:
        return "the release is not the one that was attacked"
    return card.stale or stale(card.suite, params)


def _listed(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
