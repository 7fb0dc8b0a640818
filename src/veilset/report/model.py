"""What the report knows: the records of the evidence files, frozen and checked on reading.

The pydantic records mirror the JSON files of other stages. They ignore keys that they do not know,
so that a newer stage does not break the page, but they never guess: a missing figure stays None and
the page says "not available", and a verdict other than the three known words is refused.
Source: ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from veilset.attacks.base import OTHER_KIND
from veilset.types import Images, IntArray

Verdict = Literal["pass", "fail", "undecided"]
"""What the gate may say of a scheme: `fail` as soon as one attack that counts succeeds."""


class Record(BaseModel):
    """A frozen record that ignores unknown keys."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Estimate(Record):
    """A figure with its interval; all three None where nothing was measured."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


class AttackResult(Estimate):
    """One attack on one scheme, as in `data/attacks/<scheme>/results.json`.

    Attributes:
        attack: Its name; `title` is its name for people.
        risk: Which risk it measures: singling out, linkability or inference.
        attacker: The attacker template it counts for.
        knowledge: K0 (ciphertext only) to K5 (white box); `knowledge_words` says it in words.
        applicable: False where it cannot be run on this set or scheme; `reason` says why.
        metric: Name of the figure; `metric_words` says it in words.
        targets: Number of images attacked.
        gallery: Number of candidates among which one was sought, or None.
        chance: What guessing scores.
        control: The same attack with the correspondence broken.
        oracle: The same attack on unprotected images.
        residual: Success beyond the control.
        status: `ok`, or why the figure supports no conclusion.
        seconds: How long it ran.
    """

    attack: str
    title: str = ""
    risk: str = ""
    attacker: str = ""
    knowledge: str = ""
    knowledge_words: str = ""
    applicable: bool = True
    reason: str | None = None
    metric: str | None = None
    metric_words: str | None = None
    confidence: float | None = None
    method: str | None = None
    targets: int | None = None
    gallery: int | None = None
    chance: float | None = None
    control: Estimate | None = None
    oracle: Estimate | None = None
    residual: Estimate | None = None
    variant: str | None = None
    variants: dict[str, float | None] | None = None
    status: str | None = None
    words: str | None = None
    details: dict[str, Any] | None = None
    seconds: float | None = None
    size: str | None = None
    seed: int | None = None

    @property
    def elsewhere(self) -> bool:
        """It is made for other kinds of schemes, so it says nothing of this one."""
        return not self.applicable and (self.reason or "").startswith(OTHER_KIND)

    def untested(self) -> "Untested":
        """Why it could not be run, without the words that begin all reasons of `elsewhere`."""
        reason = (self.reason or "").removeprefix(OTHER_KIND).lstrip(": ")
        return Untested(
            attack=self.attack,
            title=self.title or self.attack,
            reason=reason or "no reason is recorded",
        )


class Untested(Record):
    """An attack that could not be run, and why."""

    attack: str
    title: str
    reason: str


class AttackFile(Record):
    """`data/attacks/<scheme>/results.json`."""

    scheme: str
    scheme_title: str = ""
    dataset: str = ""
    suite: str = ""
    results: tuple[AttackResult, ...] = ()


class Finding(Estimate):
    """What one attack means for one attacker template; `counts` says it bears on the verdict."""

    attack: str
    risk: str = ""
    verdict: Verdict
    threshold: float | None = None
    reason: str | None = None
    counts: bool = True


class Worst(Estimate):
    """The attack with the highest upper bound of a template."""

    attack: str
    title: str = ""
    metric_words: str | None = None
    threshold: float | None = None
    chance: float | None = None
    words: str | None = None


class TemplateVerdict(Record):
    """The verdict of one scheme against one attacker template."""

    verdict: Verdict
    words: str = ""
    worst: Worst | None = None
    findings: tuple[Finding, ...] = ()


class Declared(Record):
    """What a scheme says of itself (`veilset.schemes.base.Declaration` as JSON)."""

    keyed: bool | None = None
    reversible: bool | None = None
    guarantee: str | None = None
    protects_queries: bool | None = None
    uses_labels: bool | None = None
    provenance: str | None = None
    source: str | None = None
    risk_notes: tuple[str, ...] = ()


class SchemeVerdict(Record):
    """The verdicts of one scheme, by attacker template."""

    title: str = ""
    templates: dict[str, TemplateVerdict] = {}
    declared: Declared | None = None
    key_space_bits: float | None = None


class ModelVerdict(TemplateVerdict):
    """The verdict of one CNN, for whoever holds it."""

    scheme: str
    model: str


class VerdictFile(Record):
    """`reports/verdicts.json`; `models` has the CNNs that were attacked, as `<scheme>-<model>`."""

    suite: str = ""
    schemes: dict[str, SchemeVerdict] = {}
    models: dict[str, ModelVerdict] = {}


class CardScheme(Record):
    """The scheme that a leakage card is about; `digest` is over its parameters, 16 hex digits."""

    name: str
    title: str
    version: int
    parameters: dict[str, Any]
    digest: str


class CardVerdict(Record):
    """A verdict on a card: in words, with the limit of each risk that it was judged by."""

    verdict: Verdict
    words: str
    limits: dict[str, float]


class Repeat(Record):
    """What is needed to attack once more.

    Attributes:
        attacks: Names of the attacks asked for; empty for all of the suite.
        seed: The attacker's seed.
        effort: `quick` or `full`.
        release: Root digest of the protected set; None in a pipeline, where `dvc.lock` has it.
    """

    attacks: tuple[str, ...]
    seed: int
    effort: Literal["quick", "full"]
    release: str | None


class Card(Record):
    """A leakage card: all that the attacks say of one scheme on one data set.

    Attributes:
        schema_: Version of the layout.
        dataset: Name of the data set.
        scheme: What was attacked.
        suite: Version of the attack suite.
        demo_key: The public demo key was used, so that nothing is protected from anyone.
        complete: Every attack that counts gave a figure.
        stale: Why the figures no longer count, or None.
        verdicts: By attacker template.
        attacks: What was measured.
        not_tested: What could not be run.
        other_kinds: Attacks made for other kinds of schemes: they say nothing of this one.
        key_space_bits: Of one image, or None; `key_space_words` says what it is worth.
        repeat: How to attack once more.
    """

    schema_: int = Field(alias="schema")
    dataset: str
    scheme: CardScheme
    suite: str
    demo_key: bool
    complete: bool
    stale: str | None
    verdicts: dict[str, CardVerdict]
    attacks: tuple[AttackResult, ...]
    not_tested: tuple[Untested, ...]
    other_kinds: tuple[Untested, ...]
    key_space_bits: float | None
    key_space_words: str
    repeat: Repeat


class Difference(Record):
    """A difference of two rates with its interval, -1..1."""

    value: float
    low: float
    high: float


class Contrast(Record):
    """Two schemes for one receiver, as `veilset.release.comparison.Contrast` tells."""

    template: str
    scheme: str
    other: str
    attack: str
    other_attack: str
    targets: int
    rate: float
    other_rate: float
    difference: Difference
    p_value: float
    adjusted: float


class ComparisonFile(Record):
    """`reports/comparison.json`."""

    contrasts: tuple[Contrast, ...] = ()


class ClassAccuracy(Record):
    """Accuracy on the test images of one class."""

    class_name: str = Field(alias="class")
    n: int
    accuracy: float | None
    low: float | None = None
    high: float | None = None


class SeedAccuracy(Record):
    """Accuracy of the classifier of one seed."""

    seed: int
    accuracy: float
    low: float | None = None
    high: float | None = None


class EvaluationRow(Record):
    """One classifier on one test set: fractions in 0..1, losses in percentage points.

    Attributes:
        protected_by: The scheme behind protected test images, where it is not that of the training.
        runs: Seeds; `correct` is of `n` images under each.
        train_time_ratio: How many times as long as on plain images its training took.
    """

    scheme: str
    model: str
    test_on: str
    protected_by: str | None = None
    declared: bool = False
    runs: int = 1
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    correct: int | None = None
    baseline_accuracy: float | None = None
    loss_points: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None
    ece: float | None = None
    per_class: tuple[ClassAccuracy, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    train_seconds: float | None = None
    train_time_ratio: float | None = None
    images_per_second: float | None = None
    seeds: tuple[SeedAccuracy, ...] = ()


class UtilityContrast(Record):
    """Two schemes under one model: `veilset.training.comparison.UtilityContrast` tells more."""

    model: str
    scheme: str
    other: str
    runs: int
    n: int
    difference: Difference
    p_value: float
    adjusted: float


class EvaluationFile(Record):
    """`reports/evaluation.json`."""

    baseline: str = "plain"
    rows: tuple[EvaluationRow, ...] = ()
    contrasts: tuple[UtilityContrast, ...] = ()


class Check(Record):
    """One expectation on the data and what was observed."""

    rule: str = ""
    expectation: str
    column: str | None = None
    severity: str | None = None
    success: bool
    observed: Any = None
    words: str | None = None


class Epoch(Record):
    """One row of `history.csv`."""

    epoch: int
    lr: float | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Pictures of an attack, uint8 (K, H, W, C), the worst leaks first.

    `reconstruction` is the best picture that any attack produced of each original.
    """

    original: Images
    protected: Images
    reconstruction: Images
    labels: IntArray


@dataclass(frozen=True, kw_only=True)
class Drop:
    """What one drop of images holds, as ingested.

    Attributes:
        name: Its folder under `data/ingested`.
        dataset: The set's name; shape (H, W, C); class names.
        splits: Kept images by role.
        root: Digest over the shards.
        counts: Kept images by role, then by class name; None without an index.
        duplicates: Images left out as exact duplicates; None without an index.
        near_duplicates: Images that resemble another one; None without an index.
        groups: Number of groups (persons); 0 where none is recorded; None without an index.
        groups_are_classes: Each group is a class of its own: a closed set.
        quarantined: Refused images by reason; None where not available.
        checks: The checks of the data; None where not available.
    """

    name: str
    dataset: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    splits: Mapping[str, int]
    root: str
    counts: Mapping[str, Mapping[str, int]] | None = None
    duplicates: int | None = None
    near_duplicates: int | None = None
    groups: int | None = None
    groups_are_classes: bool = False
    quarantined: Mapping[str, int] | None = None
    checks: tuple[Check, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ProtectedSet:
    """How a protected set was made: from the `scheme` block of its manifest."""

    scheme: str
    title: str
    version: str
    parameters: Mapping[str, Any]
    key_fingerprint: str | None
    root: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained classifier: the values of `model.json` and its epochs."""

    name: str
    facts: Mapping[str, Any]
    history: tuple[Epoch, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One recorded stage.

    Attributes:
        name: Its name in `dvc.lock`.
        params: Digest of its parameters, 16 hex digits; None without parameters.
        outs: Digest over its outputs, 16 hex digits; None without outputs.
        needs: Stages whose outputs it reads.
        level: Length of the longest chain of stages before it.
    """

    name: str
    params: str | None
    outs: str | None
    needs: tuple[str, ...]
    level: int


DEFAULT_COMMANDS = ("make setup", "dvc pull", "dvc repro")


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Everything on the page. What is absent is None or empty and listed in `missing`.

    Attributes:
        dataset: Name of the data set.
        verdicts: Verdicts by scheme.
        evaluation: Accuracy of the classifiers.
        attacks: Attack results by scheme.
        model_attacks: Results of the attacks on CNNs, as `<scheme>-<model>`.
        examples: Pictures by scheme.
        cards: Leakage cards by scheme.
        comparison: Which schemes leak less than which.
        drops: The ingested drops.
        protected: How each protected set was made, by scheme.
        models: The trained classifiers.
        stages: The recorded stages, by level, then name.
        keys: Fingerprints by kind of key.
        demo_keys: Kinds of key, or schemes, for which the public demo key was used.
        commit: The git commit of code and settings.
        commands: How to reproduce, one command a line.
        missing: Evidence that was looked for and not found, as paths below the project.
        public: Leave out what shows an original or a reconstruction, and digests of raw images.
    """

    dataset: str
    verdicts: VerdictFile | None = None
    evaluation: EvaluationFile | None = None
    attacks: Mapping[str, AttackFile] = field(default_factory=dict)
    model_attacks: Mapping[str, AttackFile] = field(default_factory=dict)
    examples: Mapping[str, Examples] = field(default_factory=dict)
    cards: Mapping[str, Card] = field(default_factory=dict)
    comparison: ComparisonFile | None = None
    drops: tuple[Drop, ...] = ()
    protected: Mapping[str, ProtectedSet] = field(default_factory=dict)
    models: tuple[Model, ...] = ()
    stages: tuple[Stage, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    demo_keys: tuple[str, ...] = ()
    commit: str | None = None
    commands: tuple[str, ...] = DEFAULT_COMMANDS
    missing: tuple[str, ...] = ()
    public: bool = False
