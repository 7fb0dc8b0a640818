"""The owner's lasting list of releases: made, refused, approved in spite of a verdict, withdrawn.

It is a journal in git (`reports/releases.jsonl`), so that whoever audits a year later finds what was
let out, what was not and why, and who answered for it. It names no image and no person but those
who decided. All of it is ours.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from veilset.errors import CorruptError
from veilset.journal import append_to_journal, read_journal
from veilset.params import Params
from veilset.release.statement import Receiver, Waiver

RELEASES: Final = Path("reports/releases.jsonl")
"""The list, from the project's folder."""

Event = Literal["released", "refused", "withdrawn"]


class ReleaseEvent(Params):
    """One line of the list.

    Attributes:
        event: What happened.
        at: When.
        by: Who did it, as git knows them; empty where git does not.
        dataset: The data set's name.
        scheme: The scheme's name in `params.yaml`.
        receiver: For whom.
        name: The release's name, `<data set>-<scheme>-<first 12 digits of root>`; empty for one
            that was refused.
        root: Root digest of the statement's subjects; empty for one that was refused.
        to: Folder or remote that it was put in.
        commit: Of the code and settings, or None.
        statement: SHA-256 of the signed statement's file; empty for one that was refused.
        key_fingerprint: Of the signing key; empty for one that was refused.
        waiver: What outweighed the verdict, if anything did.
        reasons: Why it was refused, or why it was withdrawn.
    """

    event: Event
    at: AwareDatetime
    by: str = ""
    dataset: str
    scheme: str
    receiver: Receiver
    name: str = ""
    root: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    to: str = ""
    commit: str | None = None
    statement: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    key_fingerprint: str = ""
    waiver: Waiver | None = None
    reasons: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> "ReleaseEvent":
        if self.event != "released" and not self.reasons:
            raise ValueError(f"what was {self.event} has a reason")
        if self.event != "refused" and not (self.name and self.root and self.statement):
            raise ValueError(f"what was {self.event} has a name, a root and a statement")
        return self


def enter_release(journal: Path, event: ReleaseEvent) -> None:
    """Adds a line to the list. Raises as `append_to_journal` does."""
    append_to_journal(journal, event.model_dump(mode="json"))


def read_releases(journal: Path) -> tuple[ReleaseEvent, ...]:
    """All lines, oldest first.

    Raises:
        CorruptError: The list is not as it was written.
    """
    entries = read_journal(journal)
    try:
        return tuple(ReleaseEvent.model_validate(entry) for entry in entries)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "an entry"
        raise CorruptError(
            f"{journal}: {where}: {fault['msg']}. It was written by a newer Veilset, or by hand: "
            "update Veilset, or restore the file from a commit."
        ) from None


def standing_releases(events: Sequence[ReleaseEvent]) -> tuple[ReleaseEvent, ...]:
    """The releases that were made and not withdrawn since, oldest first."""
    standing: dict[tuple[str, str], ReleaseEvent] = {}
    for event in events:
        if event.event == "released":
            standing[event.name, event.to] = event
        elif event.event == "withdrawn":
            standing = {key: one for key, one in standing.items() if key[0] != event.name}
    return tuple(standing.values())


def now() -> datetime:
    """The time of an event: UTC, whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)
