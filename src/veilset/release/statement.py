"""The statement of a release: which bytes it is, how they were made, and what was found of them.

Its frame is an in-toto Statement v1 (subjects and a predicate); the predicate is ours. Everything
in it is published, so its records hold what is named here and nothing else: no raw hash, id, group,
file, path, host or user. Sets are named by the root of their protected shards, and what they were
made from by a keyed digest alone.

Source: ours; frame: in-toto attestation framework, Statement v1.
"""

import datetime
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from veilset.data.manifest import Manifest
from veilset.errors import CorruptError
from veilset.files import json_text

if TYPE_CHECKING:
    from veilset.release.ledger import Spent
    from veilset.report.model import EvaluationRow

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"

PREDICATE_TYPE: Final = "https://veilset.dev/release/v1"
"""Names the layout of the predicate; nothing is ever fetched from there."""

LEARNT_TYPE: Final = "https://veilset.dev/learnt/v1"
"""Likewise of a bundle of what a scheme learnt."""

Receiver = Literal["outside_trainer", "public_release"]
"""For whom a release is made."""

_HASH = r"^[0-9a-f]{64}$"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


class DeclarationFacts(_Record):
    """What the scheme says of itself, as `veilset.schemes.base.Declaration`."""

    keyed: bool
    reversible: bool
    guarantee: str | None
    protects_queries: bool
    uses_labels: bool
    provenance: str
    source: str
    risk_notes: tuple[str, ...] = ()
    shift_safe: bool = False
    releasable: bool = True


class SchemeFacts(_Record):
    """The scheme, as `Scheme.record` tells it; a composition has its steps."""

    name: str
    title: str
    version: int
    parameters: dict[str, Any]
    declaration: DeclarationFacts
    facts: dict[str, Any] = {}
    fitted_hash: str = ""
    steps: tuple["SchemeFacts", ...] = ()


class SetFacts(_Record):
    """One protected set of the release.

    Attributes:
        folder: Its folder in the release.
        root: Root of its manifest.
        source: What it was made from: a keyed digest, which confirms nothing to anybody else.
        shape: Height, width and channels.
        classes: How many classes.
        splits: Images by split.
        columns: Types of what is published beside the images.
        bytes: Length of its shards.
    """

    folder: str
    root: str = Field(pattern=_HASH)
    source: str = Field(pattern=_HASH)
    shape: tuple[int, int, int]
    classes: int = Field(ge=0)
    splits: dict[str, int]
    columns: dict[str, str] = {}
    bytes: int = Field(ge=1)

    @classmethod
    def of(cls, folder: str, manifest: Manifest) -> Self:
        """The facts of a protected set."""
        return cls(
            folder=folder, root=manifest.root, source=manifest.source, shape=manifest.shape,
            classes=len(manifest.classes), splits=manifest.splits, columns=manifest.columns,
            bytes=sum(entry.bytes for entry in manifest.shards),
        )  # fmt: skip


class VerdictFacts(_Record):
    """The verdict for one receiver.

    Attributes:
        verdict: What the gate said.
        words: The same in words.
        limits: The highest tolerated rate by risk.
        suite: Version of the attack suite.
        stale: Why it no longer counts, or None.
    """

    verdict: Literal["pass", "fail", "undecided"]
    words: str
    limits: dict[str, float]
    suite: str
    stale: str | None = None


class UtilityFacts(_Record):
    """What a CNN trained on the release achieves, on test images as the scheme declares them.

    Accuracies are fractions of 1 and losses percentage points, with 95 % intervals.
    """

    model: str
    test_on: str
    runs: int
    n: int | None = None
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    baseline_accuracy: float | None = None
    loss_points: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None

    @classmethod
    def of(cls, rows: "Iterable[EvaluationRow]", scheme: str) -> tuple[Self, ...]:
        """The rows of a scheme that count for it, by model.

        Args:
            rows: Rows of `evaluation.json`.
            scheme: The scheme's name in `params.yaml`.
        """
        own = (row for row in rows if row.scheme == scheme and row.declared)
        fields = set(cls.model_fields)
        return tuple(cls(**row.model_dump(include=fields)) for row in own)


class Floors(_Record):
    """What utility had to reach; None where no floor was set."""

    min_accuracy: float | None = None
    max_loss_points: float | None = None


class BudgetFacts(_Record):
    """The privacy budget.

    Attributes:
        metric: What it is measured in.
        release: What this release costs each image.
        releases: How many releases spent any on these images, this one among them.
        most: The largest total of one image over all of them.
        least: The smallest total of one image.
    """

    metric: str
    release: float
    releases: int
    most: float
    least: float

    @classmethod
    def of(cls, cost: tuple[str, float], spent: "Spent") -> Self:
        """The facts of one release.

        Args:
            cost: What `veilset.release.ledger.budget` returned.
            spent: The totals under the same metric, from `veilset.release.ledger.spend`.
        """
        return cls(
            metric=cost[0], release=cost[1], releases=spent.releases, most=spent.most,
            least=spent.least,
        )  # fmt: skip


class CheckFacts(_Record):
    """Which checks of the data failed, by name; what they observed stays with the owner."""

    critical_failed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Waiver(_Record):
    """Who releases in spite of a verdict, why and when: on record for ever."""

    reason: str
    name: str
    date: datetime.date


class Predicate(_Record):
    """What is claimed of the files of a release.

    Attributes:
        dataset: The data set's name.
        released: The day, given by the owner.
        receiver: For whom it is made.
        scheme: How it was protected.
        key_fingerprint: Names the protection key and does not tell it.
        sets: The protected sets.
        verdicts: By receiver.
        utility: By model.
        floors: What utility had to reach.
        budget: The privacy budget spent, or None where nothing is guaranteed.
        waiver: Or None.
        checks: By set.
        commit: Of the code and settings, 40 hex characters, or None.
        packages: Versions by name.
    """

    dataset: str
    released: datetime.date
    receiver: Receiver
    scheme: SchemeFacts
    key_fingerprint: str = Field(pattern=r"^[0-9a-f]{16}$")
    sets: tuple[SetFacts, ...] = Field(min_length=1)
    verdicts: dict[str, VerdictFacts]
    utility: tuple[UtilityFacts, ...] = ()
    floors: Floors = Floors()
    budget: BudgetFacts | None = None
    waiver: Waiver | None = None
    checks: dict[str, CheckFacts]
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    packages: dict[str, str] = {}

    @property
    def root(self) -> str:
        """The identity of all sets together, 64 hex characters."""
        lines = "".join(f"{one.root}  {one.folder}\n" for one in self.sets)
        return hashlib.sha256(lines.encode()).hexdigest()

    @field_validator("sets")
    @classmethod
    def _folders(cls, sets: tuple[SetFacts, ...]) -> tuple[SetFacts, ...]:
        """By folder, each a plain name of its own."""
        names = [one.folder for one in sets]
        if len(set(names)) != len(names) or not all(map(_NAME.fullmatch, names)):
            raise ValueError("the folders of the sets are no plain names, or one occurs twice")
        return tuple(sorted(sets, key=lambda one: one.folder))


class Digest(_Record):
    """The hash of a file, hex."""

    sha256: str = Field(pattern=_HASH)


class Subject(_Record):
    """One file of the release: its place below the release's folder, and its hash."""

    name: str
    digest: Digest

    @field_validator("name")
    @classmethod
    def _inside(cls, name: str) -> str:
        parts = PurePosixPath(name).parts
        if not parts or "/".join(parts) != name or not all(map(_NAME.fullmatch, parts)):
            raise ValueError(f"{name!r} is no plain place inside the release")
        return name


class _Frame(_Record):
    """The frame of an in-toto statement about files; what is claimed of them is added below."""

    model_config = ConfigDict(populate_by_name=True)

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(STATEMENT_TYPE, alias="_type")
    subject: tuple[Subject, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        names = [subject.name for subject in self.subject]
        if names != sorted(set(names)):
            raise ValueError("the subjects are not in order, or one occurs twice")
        return self

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file by its place."""
        return {subject.name: subject.digest.sha256 for subject in self.subject}

    def to_bytes(self) -> bytes:
        """Its one spelling: what is signed."""
        return json_text(self.model_dump(mode="json", by_alias=True)).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Reads a statement after its signature was checked.

        Raises:
            CorruptError: It is none, or has another layout than the one known here.
        """
        try:
            values = json.loads(raw.decode("utf-8"))
            found = cls.model_validate(values)
        except (ValidationError, ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            layout = cls.model_fields["predicate_type"].default
            raise CorruptError(
                f"The statement is signed, but has not the layout {layout} that this "
                f"version of Veilset knows ({reason}): use the version that made the release."
            ) from None
        if found.to_bytes() != raw:
            raise CorruptError(
                "The statement is signed, but not spelt as Veilset spells one: do not trust it."
            )
        return found


def _subjects(files: Mapping[str, str]) -> tuple[Subject, ...]:
    return tuple(
        Subject(name=name, digest=Digest(sha256=files[name])) for name in sorted(files)
    )  # fmt: skip


class Statement(_Frame):
    """An in-toto statement about the files of a release."""

    predicate_type: Literal["https://veilset.dev/release/v1"] = Field(
        PREDICATE_TYPE, alias="predicateType"
    )
    predicate: Predicate

    @classmethod
    def of(cls, files: Mapping[str, str], predicate: Predicate) -> Self:
        """The statement on some files.

        Args:
            files: SHA-256 of each file of the release by its place, hex.
            predicate: What is claimed of them.
        """
        return cls(subject=_subjects(files), predicate=predicate)


# ------------------------------------------------------------------- what a scheme learnt


class MembershipFacts(_Record):
    """Whether what was learnt tells on which images: rates at one false alarm in 100.

    Attributes:
        value: Share of the images it was fitted on that are recognised; `low`, `high`: its limits.
        confidence: Of the limits.
        chance: What guessing gives.
        control: The same with members and others dealt anew.
        oracle: The same of something that has learnt by heart.
        members: How many were tested.
        others: How many that it was not fitted on.
        shadows: How often the attacker fitted the scheme herself.
        variant: What she asked.
    """

    value: float
    low: float
    high: float
    confidence: float
    chance: float
    control: float
    oracle: float
    members: int
    others: int
    shadows: int
    variant: str


class LearntPredicate(_Record):
    """What is claimed of the files of a bundle.

    Attributes:
        dataset: The data set's name.
        released: The day, given by the owner.
        scheme: What learnt, with its parameters and the hash of what it learnt.
        membership: What an attacker who holds it recognises.
        limit: The highest tolerated rate.
        verdict: What follows.
        waiver: Or None.
        commit: Of the code and settings, 40 hex characters, or None.
        packages: Versions by name.
    """

    dataset: str
    released: datetime.date
    scheme: SchemeFacts
    membership: MembershipFacts
    limit: float
    verdict: Literal["pass", "fail", "undecided"]
    waiver: Waiver | None = None
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    packages: dict[str, str] = {}


class LearntStatement(_Frame):
    """An in-toto statement about the files of a bundle."""

    predicate_type: Literal["https://veilset.dev/learnt/v1"] = Field(
        LEARNT_TYPE, alias="predicateType"
    )
    predicate: LearntPredicate

    @classmethod
    def of(cls, files: Mapping[str, str], predicate: LearntPredicate) -> Self:
        """The statement on some files: see `Statement.of`."""
        return cls(subject=_subjects(files), predicate=predicate)


__all__ = [
    "LEARNT_TYPE", "PREDICATE_TYPE", "STATEMENT_TYPE", "BudgetFacts", "CheckFacts",
    "DeclarationFacts", "Digest", "Floors", "LearntPredicate", "LearntStatement",
    "MembershipFacts", "Predicate", "Receiver", "SchemeFacts", "SetFacts", "Statement", "Subject",
    "UtilityFacts", "VerdictFacts", "Waiver",
]  # fmt: skip
