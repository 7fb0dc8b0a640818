"""What a scheme learnt, as a signed bundle for those who need it: clients and providers.

    README.md            what it is, for whom, its limits, and how to use it
    membership.json      what an attacker who holds it recognises
    fitted.json          which scheme learnt it, and how well
    fitted.safetensors   what was learnt
    public-key.txt       which key it should be signed by; information, not proof
    statement.dsse.json  the SHA-256 of every other file, and what is claimed of them, signed

It was learnt from plain images, so it leaves its owner in no other way, and only after it was
attacked. It is one piece: its hash is in the published sets, and both a client, who protects
queries, and a provider, who answers them, check theirs against it. Source: ours.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from veilset.errors import CorruptError, ReleaseError, VeilsetError
from veilset.files import json_text, sha256_file, staged_folder, write_bytes, write_text
from veilset.release.bundle import (
    PUBLIC_KEY,
    README,
    STATEMENT,
    compare_files,
    read_statement,
    told_privately,
)
from veilset.release.datasheet import Terms
from veilset.release.history import ReleaseEvent, now
from veilset.release.signing import PublicKey, SigningKey, seal, unseal
from veilset.release.statement import (
    LearntPredicate,
    LearntStatement,
    MembershipFacts,
    SchemeFacts,
    Waiver,
)
from veilset.schemes.base import Scheme
from veilset.schemes.fitted import ARRAYS, CARD, load_fitted

if TYPE_CHECKING:
    from veilset.attacks.learnt_membership import LearntMembership

MEMBERSHIP: Final = "membership.json"

_PAGE: Final = """\
# What {title} learnt from {dataset}

{purpose}

It was learnt from plain images that nobody but their owner may see, released {released} by
{publisher}. Terms: {licence}

## What it tells of those images

{words} Chance is {chance:.0%} and the attack finds {oracle:.0%} in something that has learnt its
images by heart. {members:,} images that it was fitted on and {others:,} others were tried, with
{shadows} fits of the attacker's own ({variant}). The owner tolerates {limit:.0%}; verdict:
**{verdict}**.{waiver}

Other attacks are thinkable. Do not pass it on.

## How to use it

```
veilset verify FOLDER --public-key signing.public
veilset protect IMAGES OUTPUT --scheme {scheme} --fitted FOLDER --key-file KEY
```

The owner's public key comes by another way than this folder. `fitted.json` names the hash of what
was learnt ({hash}), which the manifests of protected sets name as well.
"""

_PURPOSE: Final = (
    "A client protects images with it before they are sent to a model, as the owner protected the "
    "training images. A provider holds what answers protected images, where the scheme has such a "
    "part."
)


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What is handed out, and what is known of it.

    Attributes:
        scheme: With its parameters and what it learnt.
        folder: Where that lies.
        dataset: The data set's name.
        membership: What the attack found.
        limit: The highest tolerated rate.
        waiver: Who hands it out in spite of that, and why.
        commit: Of the code and settings, or None.
        packages: Versions by name.
    """

    scheme: Scheme[Any]
    folder: Path
    dataset: str
    membership: "LearntMembership"
    limit: float
    waiver: Waiver | None
    commit: str | None
    packages: dict[str, str]

    @property
    def facts(self) -> LearntPredicate:
        """What the statement says."""
        found = self.membership
        return LearntPredicate(
            dataset=self.dataset, released=date.today(),
            scheme=SchemeFacts.model_validate(self.scheme.record()), limit=self.limit,
            verdict=found.verdict(self.limit), waiver=self.waiver, commit=self.commit,
            packages=self.packages,
            membership=MembershipFacts(
                value=found.rate.value, low=found.rate.low, high=found.rate.high,
                confidence=found.confidence, chance=found.chance, control=found.control.value,
                oracle=found.oracle.value, members=found.members, others=found.others,
                shadows=found.shadows, variant=found.variant,
            ),
        )  # fmt: skip


def membership_words(facts: MembershipFacts) -> str:
    """What the attack found, in words."""
    return (
        f"At one false alarm in 100, {facts.value:.1%} of the images that it was fitted on are "
        f"recognised as such ({facts.low:.1%} to {facts.high:.1%})."
    )


def learnt_refusals(learnt: Learnt, unclean: Collection[str]) -> tuple[str, ...]:
    """Why it may not be handed out: a sentence a reason, none where it may.

    Args:
        learnt: What is to be handed out.
        unclean: What `dvc status` or git lists as changed.
    """
    facts, reasons = learnt.facts, []
    if facts.verdict != "pass" and learnt.waiver is None:
        reasons.append(
            f"The verdict on what {learnt.scheme.name} learnt is {facts.verdict!r} and no pass "
            f"({membership_words(facts.membership).rstrip('.')}, and {facts.limit:.0%} is "
            "tolerated): fit it on more images, or waive it with a reason and your name."
        )
    if unclean:
        shown = ", ".join(sorted(unclean)[:5])
        reasons.append(
            f"{shown} changed since it was recorded, so the evidence may be of something else: run "
            "`dvc repro` and commit."
        )
    return tuple(reasons)


def write_learnt(
    folder: Path,
    learnt: Learnt,
    signing_key: SigningKey,
    terms: Terms,
    private: Collection[str] = (),
) -> LearntStatement:
    """Builds a bundle, which appears whole and signed, or not at all.

    Args:
        folder: Where; one that is there is never replaced.
        learnt: What is handed out.
        signing_key: The owner's.
        terms: What the owner adds.
        private: Words that no text may hold.

    Raises:
        ReleaseError: A text would tell a path or one of the private words.
        VeilsetError: The folder is there.
        CorruptError: What was learnt is not as it was written.
        DiskFullError: The disk has no room.
    """
    if folder.exists() or folder.is_symlink():
        raise VeilsetError(
            f"{folder} is there already, and a bundle is never replaced: choose another place."
        )
    if load_fitted(learnt.folder).hash != learnt.scheme.fitted_hash:
        raise CorruptError(
            f"{learnt.folder} is not what was attacked: run the command again."
        )  # fmt: skip
    facts = learnt.facts
    texts = {
        README: _page(facts, terms),
        MEMBERSHIP: json_text(facts.membership.model_dump(mode="json")),
        PUBLIC_KEY: signing_key.public.text,
    }
    for place, text in texts.items():
        told = told_privately(text, private) if place != PUBLIC_KEY else None
        if told is not None:
            raise ReleaseError(
                f"{place} would tell {told!r}, which is private: change the names that hold it."
            )
    with staged_folder(folder, f"learnt {os.urandom(8).hex()}") as staging:
        for name in (CARD, ARRAYS):
            write_bytes(staging / name, (learnt.folder / name).read_bytes())
        for place, text in texts.items():
            write_text(staging / place, text)
        files = {place: sha256_file(staging / place) for place in (CARD, ARRAYS, *texts)}
        statement = LearntStatement.of(files, facts)
        write_bytes(staging / STATEMENT, seal(statement.to_bytes(), signing_key))
    return statement


def _page(facts: LearntPredicate, terms: Terms) -> str:
    found, waiver = facts.membership, ""
    if facts.waiver is not None:
        waiver = (
            f" It is handed out all the same: {facts.waiver.reason} ({facts.waiver.name}, "
            f"{facts.waiver.date})"
        )
    return _PAGE.format(
        title=facts.scheme.title, dataset=facts.dataset, purpose=_PURPOSE, released=facts.released,
        publisher=terms.publisher, licence=terms.licence, words=membership_words(found),
        chance=found.chance, oracle=found.oracle, members=found.members, others=found.others,
        shadows=found.shadows, variant=found.variant, limit=facts.limit, verdict=facts.verdict,
        waiver=waiver, scheme=facts.scheme.name, hash=facts.scheme.fitted_hash[:16],
    )  # fmt: skip


@dataclass(frozen=True)
class LearntReport:
    """What a receiver's check of a bundle found.

    Attributes:
        faults: A sentence each; none where every byte is as its owner signed it.
        statement: What was signed; None where that cannot be told.
    """

    faults: tuple[str, ...]
    statement: LearntStatement | None


def verify_learnt(
    folder: Path, public_key: PublicKey, progress: Callable[[int, int], None] | None = None
) -> LearntReport:
    """Checks a bundle against its owner's signature: every byte, no file more, no file less.

    Args:
        folder: The bundle.
        public_key: The owner's, from a source that the receiver trusts.
        progress: Told after each file.
    """
    try:
        raw = read_statement(folder / STATEMENT)
        statement = LearntStatement.from_bytes(unseal(raw, public_key))
    except CorruptError as error:
        return LearntReport((str(error),), None)
    faults = compare_files(folder, statement.files, progress).faults
    if not faults and load_fitted(folder).hash != statement.predicate.scheme.fitted_hash:
        faults = (
            f"{CARD} names another hash than the statement, so the owner signed a contradiction: "
            "ask the owner.",
        )
    return LearntReport(faults, statement)


def learnt_event(
    event: Literal["released", "refused"],
    facts: LearntPredicate,
    scheme: str,
    to: str,
    by: str,
    reasons: tuple[str, ...] = (),
) -> ReleaseEvent:
    """The line of the owner's list of releases.

    Args:
        event: What happened.
        facts: What the statement says, or would say.
        scheme: The scheme's name in `params.yaml`.
        to: Where it went.
        by: Who did it.
        reasons: Why it was refused.
    """
    digest = facts.scheme.fitted_hash
    made = {"name": f"{facts.dataset}-{scheme}-learnt-{digest[:12]}", "root": digest}
    return ReleaseEvent(
        event=event, at=now(), by=by, dataset=facts.dataset, scheme=scheme, what="learnt",
        receiver="outside_trainer", to=to, commit=facts.commit, waiver=facts.waiver,
        reasons=reasons, **(made if event == "released" else {}),
    )  # fmt: skip
