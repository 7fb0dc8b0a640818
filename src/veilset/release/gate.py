"""The gate: attack results against thresholds, a verdict for each scheme and attacker.

Nothing passes by default. A scheme passes for an attacker when every required attack ran soundly
and the upper confidence bound of the worst one is within its threshold; it fails when the lower
bound of one is beyond; everything else is undecided, and says why.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from veilset.attacks.base import (
    MIN_TARGETS,
    NO_ATTRIBUTE,
    NO_NETWORK,
    NO_OTHER,
    NO_PERSONS,
    OTHER_KIND,
    SUITE_VERSION,
    Template,
)
from veilset.errors import CorruptError
from veilset.files import write_json
from veilset.params import Params
from veilset.schemes.base import Scheme

Verdict = Literal["pass", "fail", "undecided"]

TEMPLATES: tuple[Template, ...] = ("outside_trainer", "public_release")
"""Who may receive protected images."""

MODEL_HOLDER: Template = "model_holder"
"""Who receives a CNN that was trained on them."""

TEMPLATE_WORDS: Mapping[str, str] = {
    "outside_trainer": "an outside trainer",
    "public_release": "a public release",
    "model_holder": "someone who holds the CNN",
}


class Limits(Params):
    """The highest tolerated upper bound of an attack's success rate, by risk.

    One image in five is what a data holder accepts who asks that a record hide among at least five
    (cells of five). Stricter customs hold for clinical data in public (0.09, cells of eleven), but
    they cannot be met by any release that is of use and names its classes: among 100 candidates
    of 10 balanced classes the published label alone links 10 images of 100. Who releases fewer or
    no classes should set 0.09.

    Attributes:
        singling_out: For restored and recognised images.
        linkability: For images linked to their original.
        inference: For attributes inferred beyond the label.
    """

    singling_out: float = Field(0.20, ge=0, le=1)
    linkability: float = Field(0.20, ge=0, le=1)
    inference: float = Field(0.20, ge=0, le=1)


class GateParams(Params):
    """Parameters of the gate: the block `gate` of `params.yaml`.

    Attributes:
        outside_trainer: Limits for a release to an outside trainer.
        public_release: Limits for a release to everybody.
        model_holder: Limits for handing out a trained CNN. Membership is counted at one false alarm
            in 100, so that one member in 20 is already five times what guessing finds.
        required_outside_trainer: Attacks without which nothing passes for an outside trainer.
        required_public_release: Those needed on top for a public release, which must withstand the
            attacks of an outside trainer as well.
        required_model_holder: The attacks on a CNN that its verdict goes by. What a class looks
            like on average is told by every classifier: add `model_inversion` where each class is a
            person.
        max_suite_age: Results of so many versions of the suite ago still count; 0 asks for the
            present one. (Age is counted in versions: results carry no dates, so that the same
            inputs give the same files.)
        min_targets: Results on fewer targets support no pass.
    """

    outside_trainer: Limits = Limits()
    public_release: Limits = Limits()
    model_holder: Limits = Limits(inference=0.05)
    required_outside_trainer: tuple[str, ...] = ("learned_inverse", "recognition")
    required_public_release: tuple[str, ...] = ("linkage",)
    required_model_holder: tuple[str, ...] = (
        "membership", "gradient_reconstruction", "feature_reconstruction",
    )  # fmt: skip
    max_suite_age: int = Field(0, ge=0, le=1000)
    min_targets: int = Field(MIN_TARGETS, ge=1)

    EXCUSES: ClassVar[frozenset[str]] = frozenset({
        NO_PERSONS, NO_ATTRIBUTE, NO_NETWORK, NO_OTHER,
    })  # fmt: skip

    def limits(self, template: Template) -> Limits:
        """The limits of a template."""
        found: Limits = getattr(self, template)
        return found

    def required(self, template: Template) -> tuple[str, ...]:
        """The attacks without which nothing passes for a template."""
        if template == MODEL_HOLDER:
            return self.required_model_holder
        extra = self.required_public_release if template == "public_release" else ()
        return tuple(dict.fromkeys((*self.required_outside_trainer, *extra)))


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Result(_Record):
    """What the gate reads of one attack result; see `veilset.attacks.base.AttackResult`."""

    attack: str
    title: str = ""
    risk: Literal["singling_out", "linkability", "inference"]
    attacker: Template
    applicable: bool
    reason: str | None = None
    metric_words: str | None = None
    value: float | None = Field(None, ge=0, le=1)
    low: float | None = Field(None, ge=0, le=1)
    high: float | None = Field(None, ge=0, le=1)
    chance: float | None = None
    targets: int | None = None
    status: str | None = None
    words: str | None = None


class Results(_Record):
    """What the gate reads of `results.json`."""

    suite: str
    scheme: str
    shape: tuple[int, int, int] | None = None
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Finding:
    """What one attack means for one template.

    Attributes:
        attack: Its name.
        risk: The risk that it measures.
        verdict: What it means by itself.
        value: Success rate with limits `low` and `high`; None where nothing was measured.
        threshold: The highest tolerated upper bound; None where it does not count.
        reason: Why the verdict is this one.
        counts: It bears on the verdict of the template.
    """

    attack: str
    risk: str
    verdict: Verdict
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    counts: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def judge(found: Results, template: Template, params: GateParams) -> dict[str, Any]:
    """The verdict of one scheme for one template.

    Args:
        found: Its attack results.
        template: Who receives the release.
        params: Limits and required attacks.

    Returns:
        verdict, words, worst and findings, as `verdicts.json` holds them.

    Source: ours.
    """
    relevant = [r for r in found.results if r.attacker in _attackers(template)]
    outdated = stale(found.suite, params)
    findings = [_finding(result, template, params, outdated) for result in relevant]
    findings += _missing(relevant, params.required(template))
    verdict = _overall(findings)
    worst = _worst(relevant, findings)
    return {
        "verdict": verdict,
        "words": _words(verdict, template, findings, worst),
        "worst": worst,
        "findings": [finding.to_json() for finding in findings],
    }


def _attackers(template: Template) -> tuple[Template, ...]:
    """Whoever may download a public release may also train on it."""
    return TEMPLATES if template == "public_release" else (template,)


def stale(suite: str, params: GateParams) -> str | None:
    """Why results of this version of the suite no longer count, or None."""
    if suite == SUITE_VERSION:
        return None
    if suite.isdecimal() and 0 <= int(SUITE_VERSION) - int(suite) <= params.max_suite_age:
        return None
    return f"measured by suite {suite}, and the present one is {SUITE_VERSION}: attack again"


def _finding(
    result: Result, template: Template, params: GateParams, outdated: str | None
) -> Finding:
    asked = template != MODEL_HOLDER or result.attack in params.required(template)
    if not result.applicable:
        reason = f"not applicable: {result.reason or 'no reason given'}"
        excused = result.reason in params.EXCUSES or _is_elsewhere(result, params)
        counts = asked and not excused
        return Finding(result.attack, result.risk, "undecided", reason, counts=counts)
    threshold = float(getattr(params.limits(template), result.risk))
    verdict, reason = _verdict(result, threshold, params, outdated)
    return Finding(
        result.attack, result.risk, verdict, reason,
        result.value, result.low, result.high, threshold, counts=asked,
    )  # fmt: skip


def _is_elsewhere(result: Result, params: GateParams) -> bool:
    """The attack is made for other schemes, and nothing asks for it."""
    asked = result.attack in params.required("public_release")
    return not asked and (result.reason or "").startswith(OTHER_KIND)


def _verdict(
    result: Result, threshold: float, params: GateParams, outdated: str | None
) -> tuple[Verdict, str]:
    """What one result means by itself. Evidence of a leak counts even from an unsound attack."""
    low, high = result.low, result.high
    if result.status == "diverged" or low is None or high is None:
        return "undecided", "the attack diverged, which says nothing about privacy"
    if low > threshold:
        return "fail", f"even the lower bound {low:.3f} is beyond {threshold:g}"
    unsound = outdated or _unsound(result, params)
    if unsound:
        return "undecided", unsound
    if high > threshold:
        return (
            "undecided",
            f"the interval {low:.3f} to {high:.3f} holds the threshold {threshold:g}",
        )
    return "pass", f"the upper bound {high:.3f} is within {threshold:g}"


def _unsound(result: Result, params: GateParams) -> str | None:
    """Why a result supports no pass, or None."""
    if result.status == "weak_oracle":
        return "the attack is weak even on unprotected images, so its failure proves nothing"
    if result.status == "few_targets" or (result.targets or 0) < params.min_targets:
        return f"{result.targets or 0} targets are fewer than {params.min_targets}"
    if result.status != "ok":
        return f"its status is {result.status}"
    if result.value is None or not (result.low or 0.0) <= result.value <= (result.high or 0.0):
        return "its figures contradict each other"
    return None


def _missing(results: Sequence[Result], required: Sequence[str]) -> list[Finding]:
    present = {result.attack for result in results}
    return [
        Finding(name, "", "undecided", "required, but it was not run")
        for name in required
        if name not in present
    ]


def _overall(findings: Sequence[Finding]) -> Verdict:
    """Fail if one fails; pass only if something counts and all that counts passes."""
    verdicts = [finding.verdict for finding in findings if finding.counts]
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts and all(verdict == "pass" for verdict in verdicts) else "undecided"


def _worst(results: Sequence[Result], findings: Sequence[Finding]) -> dict[str, Any] | None:
    """The attack with the highest upper bound, relative to its threshold."""
    measured = [
        (result, finding)
        for result, finding in zip(results, findings, strict=False)
        if finding.high is not None and finding.threshold is not None and finding.counts
    ]
    if not measured:
        return None
    result, finding = max(measured, key=_excess)
    return {
        "attack": result.attack, "title": result.title, "metric_words": result.metric_words,
        "value": result.value, "low": result.low, "high": result.high,
        "threshold": finding.threshold, "chance": result.chance, "words": result.words,
    }  # fmt: skip


def _excess(pair: tuple[Result, Finding]) -> tuple[bool, float, float]:
    finding = pair[1]
    margin = (finding.high or 0.0) - (finding.threshold or 0.0)
    return finding.verdict == "fail", margin, finding.value or 0.0


def _words(
    verdict: Verdict,
    template: Template,
    findings: Sequence[Finding],
    worst: Mapping[str, Any] | None,
) -> str:
    who = TEMPLATE_WORDS[template]
    told = f" {worst['words']}" if worst and worst["words"] else ""
    if verdict == "fail":
        return f"Fails for {who}.{told}"
    if verdict == "pass":
        most = ceil(100 * float(worst["high"])) if worst else 0
        return f"Passes for {who}.{told} With 95 % confidence it is at most {most} of 100."
    why = "; ".join(
        f"{finding.attack}: {finding.reason}"
        for finding in findings
        if finding.counts and finding.verdict != "pass"
    )
    return f"Undecided for {who}: {why or 'no attack was run'}."


def read_results(path: Path) -> Results:
    """Reads an attack's `results.json`.

    Raises:
        CorruptError: It is missing, not JSON, or lacks what the gate needs.
    """
    try:
        return Results.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise CorruptError(f"{path} is missing: run the attacks on this scheme first.") from None
    except (ValidationError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptError(
            f"{path} is not a result of the attack suite ({reason}): attack this scheme again."
        ) from None


def templates_of(found: Results) -> tuple[Template, ...]:
    """For whom there is a verdict: for a holder of the CNN only where one was attacked."""
    attacked = any(r.attacker == MODEL_HOLDER and r.applicable for r in found.results)
    return (*TEMPLATES, MODEL_HOLDER) if attacked else TEMPLATES


def verdicts_of(found: Results, scheme: Scheme[Any], params: GateParams) -> dict[str, Any]:
    """All verdicts of one scheme, with what it declares, as `verdicts.json` holds them."""
    bits = scheme.key_space_bits(found.shape) if found.shape else None
    return {
        "title": scheme.title,
        "templates": {name: judge(found, name, params) for name in templates_of(found)},
        "declared": {**asdict(scheme.declares), "risk_notes": list(scheme.declares.risk_notes)},
        "key_space_bits": bits,
    }


def write_verdicts(
    results: Mapping[str, Path],
    schemes: Mapping[str, Scheme[Any]],
    params: GateParams,
    path: Path,
    *,
    networks: Mapping[tuple[str, str], Path] = MappingProxyType({}),
) -> dict[str, Any]:
    """Judges every scheme, and every CNN that was attacked, and writes `verdicts.json`.

    Args:
        results: The `results.json` of each scheme by its name in `params.yaml`.
        schemes: The schemes by the same names.
        params: Limits and required attacks.
        path: Where to write; replaced atomically.
        networks: The `results.json` of each attacked CNN by the names of its scheme and its model.

    Returns:
        What was written.

    Raises:
        CorruptError: A result is missing, unreadable, or of another scheme.
    """
    judged = {
        name: verdicts_of(_results_on(file, name), schemes[name], params)
        for name, file in results.items()
    }
    models = {
        f"{scheme}-{model}": {
            "scheme": scheme, "model": model,
            **judge(_results_on(file, scheme), MODEL_HOLDER, params),
        }
        for (scheme, model), file in networks.items()
    }  # fmt: skip
    value = {"schema": 1, "suite": SUITE_VERSION, "schemes": judged, "models": models}
    write_json(path, value)
    return value


def _results_on(file: Path, scheme: str) -> Results:
    found = read_results(file)
    if found.scheme != scheme:
        raise CorruptError(
            f"{file} holds results of {found.scheme!r} where {scheme!r} is expected: attack "
            "this scheme again."
        )
    return found
