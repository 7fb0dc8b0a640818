"""What an answer of `veilset audit` is made of: plain facts, the same for words and for JSON.

No image is named, no digest of raw images, no secret, and no person but those who recorded or
decided something.
"""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

Question = Literal["dataset", "model", "scheme", "drop", "commit", "date"]


@dataclass(frozen=True)
class Recorded:
    """When a stage result came onto the record, by whom, and what made it.

    Attributes:
        stage: The stage's name in `dvc.lock`.
        commit: The commit that brought it, 40 hex characters, or None.
        at: Its date, or None.
        by: Its author's name, or None.
        code: Whether git has, at that commit, the very code that ran; None where unknown.
        parameters: The values from `params.yaml` and `drops.yaml` that it was made with.
    """

    stage: str
    commit: str | None
    at: datetime | None
    by: str | None
    code: bool | None
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DropFacts:
    """A drop of raw images behind a version.

    Attributes:
        name: Its name in `drops.yaml`.
        source: What reads it.
        state: Where it stands, e.g. `accepted`; empty where nobody recorded it.
        licence: Under which terms the images were given.
        consent: What the persons or owners agreed to.
        by: Who handed it in, or None.
        at: When, or None.
        decisions: What was decided about it, and by whom, in words.
        images: Readable images by role; empty where not known.
        failed: Critical checks that fail; None where it was not checked.
        warnings: Other checks that fail.
    """

    name: str
    source: str
    state: str = ""
    licence: str = ""
    consent: str = ""
    by: str | None = None
    at: datetime | None = None
    decisions: tuple[str, ...] = ()
    images: dict[str, int] = field(default_factory=dict)
    failed: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProtectedFacts:
    """A protected set: one drop under one scheme.

    Attributes:
        names: `<data set>/<scheme>/<split>` for each split.
        scheme: The scheme's name in `params.yaml`.
        drop: The drop's name.
        digest: DVC's digest of the folder.
        root: SHA-256 root of the shards; None where the manifest is not to be had.
        kind: What the scheme is.
        title: The same for people.
        version: Of the scheme.
        parameters: All parameters of the transformation.
        reversible: Whether the key undoes it.
        guarantee: What is proven, if anything.
        learns: Whether it was fitted on plain images.
        fitted_on: The drops that it was fitted on.
        key: Fingerprint of the protection key.
        demo_key: Whether that is the public one, which protects nothing.
        images: Protected images by split.
        recorded: When and by whom.
    """

    names: tuple[str, ...]
    scheme: str
    drop: str
    digest: str
    recorded: Recorded
    root: str | None = None
    kind: str = ""
    title: str = ""
    version: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    reversible: bool | None = None
    guarantee: str | None = None
    learns: bool = False
    fitted_on: tuple[str, ...] = ()
    key: str | None = None
    demo_key: bool = False
    images: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackFacts:
    """What one attack means for one receiver; figures are rates unless the attack says otherwise.

    Attributes:
        attack: Its name.
        risk: Singling out, linkability or inference.
        value: The figure, None where the attack could not be run.
        low: Lower end of the interval.
        high: Upper end.
        threshold: The highest that is tolerated.
        verdict: What it means.
        counts: Whether it bears on the verdict.
        reason: Why.
    """

    attack: str
    risk: str
    value: float | None
    low: float | None
    high: float | None
    threshold: float | None
    verdict: str
    counts: bool
    reason: str


@dataclass(frozen=True)
class VerdictFacts:
    """A verdict on a scheme, or on a CNN itself.

    Attributes:
        of: The scheme's name, or `<scheme>-<model>`.
        receiver: For whom: `outside_trainer`, `public_release` or `model_holder`.
        verdict: `pass`, `fail` or `undecided`.
        words: The same in words.
        suite: Version of the attack suite.
        stale: Why it no longer counts, or None.
        attacks: What it rests on.
    """

    of: str
    receiver: str
    verdict: str
    words: str
    suite: str
    stale: str | None
    attacks: tuple[AttackFacts, ...]


@dataclass(frozen=True)
class UtilityFacts:
    """What a model achieves on test images; accuracies in 0..1, losses in percentage points.

    Attributes:
        test_on: `plain` or `protected`.
        declared: Whether these are the images that the scheme is meant for.
        runs: Over how many seeds.
        accuracy: The figure, with its interval `low` to `high`.
        baseline: The accuracy of training on plain images.
        loss: What is lost against that, with its interval `loss_low` to `loss_high`.
    """

    test_on: str
    declared: bool
    runs: int
    accuracy: float | None
    low: float | None
    high: float | None
    baseline: float | None
    loss: float | None
    loss_low: float | None
    loss_high: float | None


@dataclass(frozen=True)
class ModelFacts:
    """A trained CNN.

    Attributes:
        name: `<scheme>-<model>-<seed>`.
        scheme: The scheme that it learnt from.
        architecture: The network.
        images: Training images, or None.
        sets: The protected sets that it learnt from, as `<scheme>/<drop>`.
        validation_accuracy: After training, 0..1, or None.
        device: What trained it.
        torch: Version of torch that trained it.
        utility: Accuracy and loss on test images.
        recorded: When and by whom.
    """

    name: str
    scheme: str
    recorded: Recorded
    architecture: str = ""
    images: int | None = None
    sets: tuple[str, ...] = ()
    validation_accuracy: float | None = None
    device: str = ""
    torch: str = ""
    utility: tuple[UtilityFacts, ...] = ()


@dataclass(frozen=True)
class ReleaseFacts:
    """An entry of the list of releases.

    Attributes:
        event: `released`, `refused` or `withdrawn`.
        at: When.
        by: Who, as git knows them.
        scheme: The scheme's name.
        receiver: For whom.
        name: The release's name, empty for one that was refused.
        to: Where it was put.
        commit: Of the code and settings, or None.
        this_version: Whether it has the very images asked about; None where that is not known.
        waived_by: Who decided to release in spite of the verdict, or None.
        waived_on: When, or None.
        waived_because: Why, or None.
        reasons: Why it was refused or withdrawn.
    """

    event: str
    at: datetime
    by: str
    scheme: str
    receiver: str
    name: str
    to: str
    commit: str | None
    this_version: bool | None
    waived_by: str | None
    waived_on: str | None
    waived_because: str | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RunFacts:
    """Where MLflow shows a stage result.

    Attributes:
        stage: The stage's name.
        run: The run's id.
        address: Of its page; of a local store, once `make ui` shows it.
    """

    stage: str
    run: str
    address: str


@dataclass(frozen=True)
class SampleFacts:
    """What came of protecting a sample of a set once more.

    Attributes:
        set: `<scheme>/<drop>`.
        images: How many images were protected again.
        equal: How many came out as they are stored, bit for bit.
        obstacle: Why it could not be done, or None.
        remark: What may explain a difference, or None.
    """

    set: str
    images: int
    equal: int
    obstacle: str | None = None
    remark: str | None = None

    @property
    def succeeded(self) -> bool:
        """All of the sample came out as it is stored."""
        return self.obstacle is None and self.images == self.equal


@dataclass(frozen=True)
class ChangeFacts:
    """A commit that changed what is on record.

    Attributes:
        commit: 40 hex characters.
        at: Its date.
        by: Its author's name.
        stages: The stage results that it brought.
    """

    commit: str
    at: datetime
    by: str
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """An answer to one question.

    Attributes:
        question: What was asked about.
        value: Its name, as it was given.
        subject: What that is, in words.
        commit: The version that was looked at; None for the workspace.
        drops: Raw drops behind it.
        protected: Protected sets.
        packages: Versions pinned where it was recorded, by name.
        verdicts: Verdicts with the attacks behind them.
        models: What learnt from it.
        releases: What was released, refused and withdrawn.
        changes: What was recorded when, oldest first.
        samples: What came of protecting samples again; None where it was not asked for.
        runs: Where MLflow shows it; no source, only a place to look.
        missing: What the record lacks, a sentence each; empty where it is complete.
    """

    question: Question
    value: str
    subject: str
    commit: str | None = None
    drops: tuple[DropFacts, ...] = ()
    protected: tuple[ProtectedFacts, ...] = ()
    packages: dict[str, str] = field(default_factory=dict)
    verdicts: tuple[VerdictFacts, ...] = ()
    models: tuple[ModelFacts, ...] = ()
    releases: tuple[ReleaseFacts, ...] = ()
    changes: tuple[ChangeFacts, ...] = ()
    samples: tuple[SampleFacts, ...] | None = None
    runs: tuple[RunFacts, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Nothing is missing."""
        return not self.missing

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, with `complete`."""
        plain: dict[str, Any] = _plain({**asdict(self), "complete": self.complete})
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value
