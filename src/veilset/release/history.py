"""The owner's lasting list of releases: made, refused, made in spite of a verdict, withdrawn.

It is a journal in git (`reports/releases.jsonl`), so that whoever audits a year later finds what
was let out, what was not and why, and who answered for it. It names no image and no person but
those who decided. Receivers have a list of their own, signed, of what stands and what does not.
All of it is ours.
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from veilset.errors import CorruptError
from veilset.files import json_text
from veilset.journal import append_to_journal, read_journal_as
from veilset.params import Params
from veilset.release.signing import PublicKey, SigningKey, seal, unseal
from veilset.release.statement import Predicate, Receiver, Waiver

RELEASES: Final = Path("reports/releases.jsonl")
"""The list, from the project's folder."""

STATEMENTS: Final = Path("reports/releases")
"""Where the owner keeps a copy of each signed statement."""

LIST_TYPE: Final = "application/vnd.veilset.releases+json"
"""What the signed list for receivers is signed as."""

Event = Literal["released", "refused", "withdrawn"]


class ReleaseEvent(Params):
    """One line of the list.

    Attributes:
        event: What happened.
        at: When.
        by: Who did it, as git knows them; empty where git does not.
        dataset: The data set's name.
        scheme: The scheme's name in `params.yaml`.
        what: Protected images, or what a scheme learnt from plain ones.
        receiver: For whom.
        name: The release's name, `<data set>-<scheme>-<first 12 digits of root>`; empty for one
            that was refused.
        root: Root digest of all its sets together; empty for one that was refused.
        sets: Roots of its protected sets.
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
    what: Literal["images", "learnt"] = "images"
    receiver: Receiver
    name: str = ""
    root: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    sets: tuple[str, ...] = ()
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
        if self.event != "refused" and not (self.name and self.root):
            raise ValueError(f"what was {self.event} has a name and a root")
        if self.what == "images" and self.event != "refused" and not self.statement:
            raise ValueError(f"images that were {self.event} have a statement")
        return self


def enter_release(journal: Path, event: ReleaseEvent) -> None:
    """Adds a line to the list. Raises as `append_to_journal` does."""
    append_to_journal(journal, event.model_dump(mode="json"))


def read_releases(journal: Path) -> tuple[ReleaseEvent, ...]:
    """All lines, oldest first.

    Raises:
        CorruptError: The list is not as it was written.
    """
    return read_journal_as(journal, ReleaseEvent)


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


def release_name(facts: Predicate, scheme: str) -> str:
    """`<data set>-<scheme>-<first 12 digits of root>`: names a release in lists and on remotes.

    Args:
        facts: What the statement says.
        scheme: The scheme's name in `params.yaml`.
    """
    dataset = re.sub(r"[^A-Za-z0-9]+", "_", facts.dataset).strip("_") or "data"
    return f"{dataset}-{scheme}-{facts.root[:12]}"


# ------------------------------------------------------------------------ what receivers are told


class Listed(Params):
    """A release that stands.

    Attributes:
        name: Its folder on the remote.
        root: Root digest of all its sets together.
        released: The day.
    """

    name: str
    root: str
    released: date


class Withdrawn(Params):
    """A release that was withdrawn: whoever has a copy should delete it.

    Attributes:
        name: What it was called.
        root: Root digest of all its sets together.
        withdrawn: The day.
        reason: Why, as receivers shall read it.
    """

    name: str
    root: str
    withdrawn: date
    reason: str


class ReleaseList(Params):
    """What a remote offers, signed, so that a receiver learns of what was withdrawn.

    Attributes:
        standing: Releases that stand.
        withdrawn: Releases that do not.
    """

    standing: tuple[Listed, ...] = ()
    withdrawn: tuple[Withdrawn, ...] = ()

    def with_release(self, one: Listed) -> "ReleaseList":
        """The list after a release."""
        others = tuple(each for each in self.standing if each.name != one.name)
        return ReleaseList(standing=(*others, one), withdrawn=self.withdrawn)

    def with_withdrawal(self, one: Withdrawn) -> "ReleaseList":
        """The list after a withdrawal."""
        standing = tuple(each for each in self.standing if each.name != one.name)
        others = tuple(each for each in self.withdrawn if each.name != one.name)
        return ReleaseList(standing=standing, withdrawn=(*others, one))

    def withdrawal_of(self, root: str) -> Withdrawn | None:
        """Whether the release of this root was withdrawn and none of it stands."""
        if any(each.root == root for each in self.standing):
            return None
        return next((each for each in self.withdrawn if each.root == root), None)

    def sealed(self, key: SigningKey) -> bytes:
        """The list as a signed envelope."""
        return seal(json_text(self.model_dump(mode="json")).encode(), key, LIST_TYPE)

    @classmethod
    def unsealed(cls, raw: bytes, key: PublicKey) -> "ReleaseList":
        """The list in a signed envelope.

        Raises:
            CorruptError: It was altered, is no such list, or somebody else signed it.
        """
        payload = unseal(raw, key, LIST_TYPE)
        try:
            return cls.model_validate(json.loads(payload))
        except (ValidationError, ValueError):
            raise CorruptError(
                "The list of releases is signed, but has a layout that this version of Veilset "
                "does not know: update Veilset."
            ) from None


def read_release_list(path: Path, key: PublicKey) -> ReleaseList:
    """Reads an owner's list of releases from a file.

    Raises:
        CorruptError: It cannot be read, was altered, is none, or somebody else signed it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CorruptError(f"{path} cannot be read ({error.strerror}): fetch it again.") from None
    return ReleaseList.unsealed(raw, key)
