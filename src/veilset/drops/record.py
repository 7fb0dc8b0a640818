"""What happened to each drop: a journal that only grows, and the state that follows from it.

The journal (`data/drops.jsonl`) belongs into the owner's git. It holds who, when, licence, consent,
counts and decisions, and digests under the ids key; no file name, no path, no image, no group, and
nothing that says whether somebody holds an image. All of it is ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import AwareDatetime, Field, model_validator

from veilset.errors import CorruptError, SourceError
from veilset.journal import append_to_journal, read_journal_as
from veilset.params import Params

DROPS_JOURNAL: Final = Path("data/drops.jsonl")
"""The journal, from the project's folder."""

EventKind = Literal[
    "added", "accepted", "held", "approved", "protected", "refused", "retried", "removed", "erased"
]
State = Literal["arrived", "held", "accepted", "protected", "refused", "removed"]

# An erasure leaves a decision as it was; what was protected has to be protected anew.
_AFTER: Final[Mapping[EventKind, State]] = {
    "added": "arrived", "retried": "arrived", "held": "held", "accepted": "accepted",
    "approved": "accepted", "protected": "protected", "refused": "refused", "removed": "removed",
}  # fmt: skip
_BY_PERSONS: Final = frozenset({"added", "approved", "removed", "erased"})
_ALSO_BY_HAND: Final = frozenset({"removed", "erased"})
_WITH_REASONS: Final = frozenset({"held", "refused", "removed", "erased"})


class Erasure(Params):
    """What an erasure did to one drop; no content, no id, no group.

    Attributes:
        subject: Whether one image or all of a group was erased.
        digest: Of the image's id or of the group, under a key derived from the ids key.
        images: Likewise of each image that was erased, by which an ingest knows it again.
        receivers: Images of this drop that had received blocks from them.
        fitted: Schemes whose transform had learnt from this drop, each with the digest that DVC had
            for it, by which one that was made again is told from the old one.
        models: Likewise CNNs that had been trained on this drop's protected images.
        releases: Standing releases that concern this drop.
    """

    subject: Literal["image", "group"]
    digest: str = Field(pattern=r"^[0-9a-f]{32}$")
    images: tuple[str, ...] = ()
    receivers: int = Field(default=0, ge=0)
    fitted: dict[str, str] = Field(default_factory=dict)
    models: dict[str, str] = Field(default_factory=dict)
    releases: tuple[str, ...] = ()


class DropEvent(Params):
    """One line of the journal.

    Attributes:
        event: What happened.
        drop: To which drop.
        at: When.
        by: Who did it or answers for it; a program's decisions have none.
        digest: Keyed digest of the raw content as it arrived, 64 hex digits.
        licence: Under which terms the images may be used.
        consent: On what ground they may be processed.
        source: Which source reads them, as in `drops.yaml`.
        path: Where they lie in the project; never where they came from.
        options: Further parameters of the source.
        counts: E.g. `files` and `bytes` of what arrived, `images` of what was accepted.
        schemes: By which schemes it was protected.
        reasons: Why it was held, refused, removed or erased; a note of whoever approved.
        erasure: What was erased.
    """

    event: EventKind
    drop: str = Field(pattern=r"^[a-z][a-z0-9_]{0,47}$")
    at: AwareDatetime
    by: str = ""
    digest: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    licence: str = ""
    consent: str = ""
    source: str = ""
    path: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)
    schemes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    erasure: Erasure | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "DropEvent":
        if self.event == "added" and not (
            self.digest and self.licence and self.consent and self.path
        ):
            raise ValueError("a drop arrives with a digest, a licence, a consent and a place")
        if self.event in _BY_PERSONS and not self.by:
            raise ValueError(f"who {self.event} a drop is named")
        if self.event in _WITH_REASONS and not self.reasons:
            raise ValueError(f"what was {self.event} has a reason")
        if (self.event == "erased") != (self.erasure is not None):
            raise ValueError("what was erased is told, and nothing else is")
        return self


class Decision(Params):
    """One decision about a drop.

    Attributes:
        event: What was decided.
        at: When.
        by: Who decided; empty for a program.
        reasons: Why.
    """

    event: EventKind
    at: AwareDatetime
    by: str = ""
    reasons: tuple[str, ...] = ()


class DropRecord(Params):
    """One drop as the journal tells it.

    Attributes:
        name: Its name.
        state: Where it stands: `arrived` (waits), `held` (waits for a person), `accepted`,
            `protected`, `refused`, `removed`.
        licence: Under which terms its images may be used.
        consent: On what ground they may be processed.
        by: Who added it.
        at: When it was added.
        digest: Keyed digest of its raw content as it arrived.
        counts: The latest known, e.g. `files`, `bytes`, `images`, `quarantined`.
        source: Which source reads it.
        path: Where its raw images lie in the project.
        options: Further parameters of the source.
        schemes: By which schemes its present content is protected.
        erased: Images that were erased from it.
        decisions: All that followed its arrival, oldest first.
    """

    name: str
    state: State
    licence: str
    consent: str
    by: str
    at: AwareDatetime
    digest: str
    counts: dict[str, int]
    source: str
    path: str
    options: dict[str, Any]
    schemes: tuple[str, ...] = ()
    erased: int = 0
    decisions: tuple[Decision, ...] = ()

    def words(self) -> str:
        """State and erasures, for people."""
        parts = f", {self.erased:,} images erased" if self.erased else ""
        return f"{self.state}{parts}"


def enter(root: Path, *events: DropEvent) -> None:
    """Adds lines to the journal, all or none. Raises as `append_to_journal` does."""
    lines = [event.model_dump(mode="json", exclude_defaults=True) for event in events]
    append_to_journal(root / DROPS_JOURNAL, *lines)


def read_events(root: Path) -> tuple[DropEvent, ...]:
    """All lines of the journal, oldest first.

    Raises:
        CorruptError: It is not as it was written.
    """
    return read_journal_as(root / DROPS_JOURNAL, DropEvent)


def read_drops(root: Path) -> tuple[DropRecord, ...]:
    """All drops that were ever added, oldest first, removed ones included.

    Drops that were written into `drops.yaml` by hand are not in the journal, and not here.

    Raises:
        CorruptError: The journal is not as it was written.
    """
    return drop_records(read_events(root))


def find_drop(root: Path, name: str) -> DropRecord:
    """One drop's record.

    Raises:
        SourceError: No drop of that name was ever added.
        CorruptError: The journal is not as it was written.
    """
    records = read_drops(root)
    for record in records:
        if record.name == name:
            return record
    known = ", ".join(record.name for record in records) or "none yet"
    raise SourceError(f"No drop {name!r} was added to {root.resolve()}: there are {known}.")


def drop_records(events: Iterable[DropEvent]) -> tuple[DropRecord, ...]:
    """The drops that a journal tells of, oldest first. A pure function.

    Args:
        events: The journal's lines, oldest first.

    Raises:
        CorruptError: A line tells of a drop that had not arrived, or arrived twice.
    """
    found: dict[str, DropRecord] = {}
    erased: dict[str, set[str]] = {}
    for event in events:
        if event.drop not in found and event.event in _ALSO_BY_HAND:
            continue  # a drop that was written into `drops.yaml` by hand has no state here
        if (event.event == "added") == (event.drop in found):
            raise CorruptError(
                f"{DROPS_JOURNAL} tells of {event.drop!r} being {event.event} "
                f"{'twice' if event.drop in found else 'before it arrived'}: restore the file "
                "from a commit."
            )
        before = found.get(event.drop)
        found[event.drop] = _arrived(event) if before is None else _next(before, event)
        if event.erasure is not None:
            # A set, because an erasure that was cut short is on record twice.
            erased.setdefault(event.drop, set()).update(event.erasure.images)
    return tuple(
        record.model_copy(update={"erased": len(erased.get(name, ()))})
        for name, record in found.items()
    )


def erased_images(events: Sequence[DropEvent]) -> frozenset[str]:
    """Keyed digests of all images that were ever erased; an ingest leaves them out."""
    return frozenset(one for event in events if event.erasure for one in event.erasure.images)


def erased_groups(events: Sequence[DropEvent]) -> frozenset[str]:
    """Keyed digests of all groups that were ever erased; an ingest leaves them out."""
    erasures = (event.erasure for event in events if event.erasure)
    return frozenset(one.digest for one in erasures if one.subject == "group")


def now() -> datetime:
    """The time of an event: UTC, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def _arrived(event: DropEvent) -> DropRecord:
    return DropRecord(
        name=event.drop, state="arrived", licence=event.licence, consent=event.consent,
        by=event.by, at=event.at, digest=event.digest, counts=event.counts, source=event.source,
        path=event.path, options=event.options,
    )  # fmt: skip


def _next(record: DropRecord, event: DropEvent) -> DropRecord:
    state = _AFTER.get(event.event, "accepted" if record.state == "protected" else record.state)
    decision = Decision(event=event.event, at=event.at, by=event.by, reasons=event.reasons)
    return record.model_copy(
        update={
            "state": state,
            "counts": {**record.counts, **event.counts},
            "schemes": event.schemes if state == "protected" else (),
            "decisions": (*record.decisions, decision),
        }
    )
