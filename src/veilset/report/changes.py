"""What changed between two versions of a project: data, parameters, leakage and utility.

Nothing is read here and nothing is guessed: where one of the two versions has no figure on record,
none is compared, and `Snapshot.gaps` says why. Source: ours, but for the interval of a difference.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import hypot
from typing import Any, Literal

from veilset.report import words
from veilset.report.model import (
    AttackFile,
    AttackResult,
    Estimate,
    EvaluationFile,
    EvaluationRow,
    TemplateVerdict,
    Verdict,
    VerdictFile,
)

Direction = Literal["higher", "lower", "no difference shown", "the same", "not comparable"]
"""How a figure of the later version stands to that of the earlier one."""

_ROUNDING = 1e-9
_ATTACKS = "src/veilset/attacks"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Evidence that one version has not on record.

    Attributes:
        version: The version's title.
        what: What is not on record, e.g. a path below the project.
        why: Why, and what may bring it, as a sentence.
    """

    version: str
    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class DropState:
    """A drop in one version; what is not on record is None.

    Attributes:
        path: Where its raw images are, below the project.
        digest: DVC's digest of these; `files` is how many they are.
        images: Ingested images by role.
        classes: Class names in the order of the labels.
        shape: Height, width, channels.
        refused: Images in the quarantine by reason.
    """

    path: str = ""
    digest: str | None = None
    files: int | None = None
    images: Mapping[str, int] | None = None
    classes: tuple[str, ...] | None = None
    shape: tuple[int, ...] | None = None
    refused: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class SchemeState:
    """How a scheme protected in one version, defaults included: from its manifest."""

    title: str
    version: str
    parameters: Mapping[str, Any]
    key_fingerprint: str | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of a project, as far as it is on record.

    Attributes:
        title: How it is called, e.g. `commit 0123456789ab` or `the workspace`.
        commit: 40 hex characters; None for the workspace.
        settings: `params.yaml`.
        drop_settings: `drops.yaml`.
        drops: The ingested drops.
        schemes: How each scheme protected.
        code: Digests of the code that the results depend on, by path below the project.
        keys: Fingerprints by kind of key.
        verdicts: The verdicts.
        attacks: Attack results by scheme.
        evaluation: Accuracy of the classifiers.
        outdated: Results that were made with other settings than `settings` has, as sentences.
        gaps: What is not on record.
    """

    title: str
    commit: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    drop_settings: Mapping[str, Any] = field(default_factory=dict)
    drops: Mapping[str, DropState] = field(default_factory=dict)
    schemes: Mapping[str, SchemeState] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    verdicts: VerdictFile | None = None
    attacks: Mapping[str, AttackFile] = field(default_factory=dict)
    evaluation: EvaluationFile | None = None
    outdated: tuple[str, ...] = ()
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Changed:
    """A value that is not what it was, in words."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A figure in two versions, in the unit of the figure.

    Attributes:
        before: In the earlier version; None where it is not on record.
        after: In the later one.
        difference: After less before, with its interval; None where they are not comparable.
        overlap: Whether the two intervals have a value in common; None likewise.
        direction: Where the later figure stands; a difference is shown only where the interval of
            the difference leaves out zero. `the same`: value and interval are what they were.
        note: Why they are not comparable, or empty.
    """

    before: Estimate | None
    after: Estimate | None
    difference: Estimate | None
    overlap: bool | None
    direction: Direction
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LeakChange:
    """The verdict on a scheme for one receiver, and the strongest attack behind it.

    Attributes:
        scheme: Its name, or `<scheme>-<model>` for a CNN; `title` is its name for people.
        receiver: Who receives it, in words.
        before: The verdict in the earlier version; None where none is on record.
        after: Likewise in the later one.
        attack_before: Title of the strongest attack then; None where none is on record.
        attack_after: Likewise.
        bounds: The upper bounds that the verdicts go by, before and after, in 0..1.
        limits: The highest bounds that were tolerated of these attacks, before and after.
        shift: The measured success, where it is of the same attack, measured alike.
    """

    scheme: str
    title: str
    receiver: str
    before: Verdict | None
    after: Verdict | None
    attack_before: str | None
    attack_after: str | None
    bounds: tuple[float | None, float | None]
    limits: tuple[float | None, float | None]
    shift: Shift

    @property
    def moved(self) -> bool:
        """Whether the verdict is another one."""
        return self.before != self.after and None not in (self.before, self.after)


@dataclass(frozen=True, kw_only=True)
class AttackChange:
    """One attack on one scheme for one receiver: like with like."""

    scheme: str
    title: str
    attack: str
    receiver: str
    metric: str | None
    metric_words: str
    shift: Shift


@dataclass(frozen=True, kw_only=True)
class UtilityChange:
    """One model trained on one scheme, in the scheme's declared use.

    `accuracy` is in 0..1; `loss` against plain training in percentage points.
    """

    scheme: str
    title: str
    model: str
    accuracy: Shift
    loss: Shift


@dataclass(frozen=True, kw_only=True)
class Changes:
    """All that differs between two versions.

    Attributes:
        before: Title of the earlier version, and its commit.
        after: Likewise of the later one.
        headline: What a reader should know first, as sentences.
        cautions: Why figures of the two versions may not be comparable.
        data: What changed in drops, images and classes.
        parameters: What changed in settings, by group.
        leakage: Verdicts, by scheme and receiver.
        attacks: Every attack that either version has a figure of.
        utility: Accuracy and loss.
        gaps: What is not on record, and why.
    """

    before: tuple[str, str | None]
    after: tuple[str, str | None]
    headline: tuple[str, ...]
    cautions: tuple[str, ...]
    data: tuple[Changed, ...]
    parameters: Mapping[str, tuple[Changed, ...]]
    leakage: tuple[LeakChange, ...]
    attacks: tuple[AttackChange, ...]
    utility: tuple[UtilityChange, ...]
    gaps: tuple[Gap, ...]


def compare(before: Snapshot, after: Snapshot) -> Changes:
    """What changed from one version to another."""
    data = (*_drop_changes(before, after), *_group(before, after, "data"))
    parameters = _parameters(before, after)
    leakage = tuple(_leakage(before, after))
    attacks = tuple(_attacks(before, after))
    utility = tuple(_utility(before, after))
    return Changes(
        before=(before.title, before.commit),
        after=(after.title, after.commit),
        headline=tuple(_headline(before, after, data, parameters, (leakage, attacks, utility))),
        cautions=tuple(_cautions(before, after)),
        data=data,
        parameters=parameters,
        leakage=leakage,
        attacks=attacks,
        utility=utility,
        gaps=(*before.gaps, *after.gaps),
    )


def shift(before: Estimate | None, after: Estimate | None, note: str = "") -> Shift:
    """A figure in two versions, and their difference.

    The interval of the difference is MOVER (Newcombe, Statistics in Medicine 1998, method 10,
    for proportions; Zou and Donner 2008 for others): each end combines the distances of two ends
    from their figures. It takes the figures for independent. Where the same images were attacked
    it is wider than need be, so a difference may go unnoticed but is not made up.

    Args:
        before: The earlier figure, or None.
        after: The later figure, or None.
        note: Why they are not comparable; empty where they are.
    """
    if not note:
        note = _unknown(before, after)
    if note or before is None or after is None:
        return Shift(before=before, after=after, difference=None, overlap=None,
                     direction="not comparable", note=note)  # fmt: skip
    (v1, l1, h1), (v2, l2, h2) = _ends(before), _ends(after)
    value = v2 - v1
    low, high = value - hypot(v2 - l2, h1 - v1), value + hypot(h2 - v2, v1 - l1)
    return Shift(
        before=before,
        after=after,
        difference=Estimate(value=value, low=low, high=high),
        overlap=l1 <= h2 and l2 <= h1,
        direction="the same" if _ends(before) == _ends(after) else _direction(low, high),
    )


def _unknown(before: Estimate | None, after: Estimate | None) -> str:
    """Why two figures have no difference: one is not on record, or has no interval."""
    for item, when in ((before, "earlier"), (after, "later")):
        if item is None or item.value is None:
            return f"no figure of the {when} version is on record"
        if item.low is None or item.high is None:
            return f"the figure of the {when} version has no interval"
    return ""


def _ends(item: Estimate) -> tuple[float, float, float]:
    """Value and ends; rounding may leave an end on the wrong side of its value."""
    value, low, high = float(item.value or 0), float(item.low or 0), float(item.high or 0)
    return value, min(low, value), max(high, value)


def _direction(low: float, high: float) -> Direction:
    if low > _ROUNDING:
        return "higher"
    return "lower" if high < -_ROUNDING else "no difference shown"


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by dotted key; lists and empty blocks are values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            found |= flat(value, name)
        else:
            found[name] = value
    return found


# ------------------------------------------------------------------------------ data, parameters

_GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": ("data", "ingest", "check"),
    "Schemes": ("schemes", "scheme", "fit"),
    "Attacks": ("attacks", "attack", "attacked_models", "model_attacks"),
    "Gate thresholds": ("gate", "release"),
    "Models and training": ("models", "model", "train", "seeds", "evaluate"),
}
_ABSENT = "not set"


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], say: Callable[[Any], str] = words.plain
) -> Iterator[Changed]:
    """Keys whose values differ; one that is missing is `not set`."""
    for key in sorted({*before, *after}):
        old, new = (say(side[key]) if key in side else _ABSENT for side in (before, after))
        both = key in before and key in after
        if old != new or (both and before[key] != after[key]):
            yield Changed(name=key, before=old, after=new)


def _setting(value: Any) -> str:
    """A setting as it is written in the file, as far as that fits into a line."""
    return "defaults" if value == {} else words.plain(value)


def _group(before: Snapshot, after: Snapshot, group: str) -> tuple[Changed, ...]:
    """Settings of `params.yaml` in this group that differ."""
    names = _GROUPS[group]
    return tuple(_settings_that_differ(before, after, lambda key: key in names))


def _settings_that_differ(
    before: Snapshot, after: Snapshot, wanted: Callable[[str], bool]
) -> Iterator[Changed]:
    """Settings under the top-level keys that are wanted; an emptied block is told by its keys."""
    old, new = (
        {key: value for key, value in flat(side.settings).items() if wanted(key.split(".")[0])}
        for side in (before, after)
    )
    for one, other in ((old, new), (new, old)):
        for key in [key for key, value in one.items() if value == {}]:
            if any(name.startswith(f"{key}.") for name in other):
                del one[key]
    yield from _differences(old, new, _setting)


def _parameters(before: Snapshot, after: Snapshot) -> dict[str, tuple[Changed, ...]]:
    """What changed in settings, keys and code, by group; groups without a change are left out."""
    found = {name: _group(before, after, name) for name in _GROUPS if name != "data"}
    known = {name for names in _GROUPS.values() for name in names}
    found["Other settings"] = tuple(
        _settings_that_differ(before, after, lambda key: key not in known)
    )
    found["Protection as it was made, defaults included"] = tuple(_made(before, after))
    found["Keys, by fingerprint"] = tuple(_differences(before.keys, after.keys))
    found["Code that results depend on, by digest"] = tuple(_differences(before.code, after.code))
    return {name: changed for name, changed in found.items() if changed}


def _made(before: Snapshot, after: Snapshot) -> Iterator[Changed]:
    """Schemes of both versions that protected otherwise, and those of one version."""
    for name in sorted({*before.schemes, *after.schemes}):
        old, new = before.schemes.get(name), after.schemes.get(name)
        if old is None or new is None:
            found = ["protected" if side else "no set on record" for side in (old, new)]
            yield Changed(name=name, before=found[0], after=found[1])
            continue
        for one in _differences(_scheme_facts(old), _scheme_facts(new)):
            yield Changed(name=f"{name}: {one.name}", before=one.before, after=one.after)


def _scheme_facts(state: SchemeState) -> dict[str, Any]:
    facts = {words.label(key): value for key, value in flat(state.parameters).items()}
    return facts | {"version": state.version, "key fingerprint": state.key_fingerprint or "no key"}


def _drop_changes(before: Snapshot, after: Snapshot) -> Iterator[Changed]:
    for name in sorted({*before.drops, *after.drops}):
        old, new = before.drops.get(name), after.drops.get(name)
        if old is None or new is None:
            found = ["absent" if side is None else _drop_words(side) for side in (old, new)]
            yield Changed(name=f"drop {name}", before=found[0], after=found[1])
            continue
        for one in _differences(_drop_facts(old), _drop_facts(new)):
            yield Changed(name=f"drop {name}: {one.name}", before=one.before, after=one.after)
    for one in _differences(_drop_lists(before), _drop_lists(after)):
        yield Changed(name=f"drops.yaml: {one.name}", before=one.before, after=one.after)
    for one in _differences(flat(_blocks(before)), flat(_blocks(after)), _setting):
        yield Changed(name=f"drops.yaml: drops.{one.name}", before=one.before, after=one.after)


def _drop_lists(side: Snapshot) -> dict[str, Any]:
    return {key: side.drop_settings.get(key) for key in ("names", "fit_drops")}


def _blocks(side: Snapshot) -> Mapping[str, Any]:
    blocks = side.drop_settings.get("drops")
    return blocks if isinstance(blocks, Mapping) else {}


def _drop_words(drop: DropState) -> str:
    if drop.images is None:
        return "present, its images are not on record"
    return words.count(sum(drop.images.values()), "image")


def _drop_facts(drop: DropState) -> dict[str, Any]:
    """What a drop is, for comparison; what one version has not on record reads so."""
    images = drop.images
    facts = {
        "raw images, DVC's digest": drop.digest,
        "raw files": drop.files,
        "kept images": None if images is None else sum(images.values()),
        "kept images by role": images,
        "classes": drop.classes,
        "height, width, channels": drop.shape,
        "refused images by reason": drop.refused,
    }
    return {name: "not on record" if value is None else value for name, value in facts.items()}


# ------------------------------------------------------------------------------ leakage, utility


def _titles(*sides: Snapshot) -> Callable[[str], str]:
    """A scheme's name for people, from the later version first."""
    found: dict[str, str] = {}
    for side in sides:
        found |= {name: one.title for name, one in side.schemes.items() if one.title}
        found |= {name: one.scheme_title for name, one in side.attacks.items() if one.scheme_title}
        judged = side.verdicts.schemes if side.verdicts else {}
        found |= {name: one.title for name, one in judged.items() if one.title}
    return lambda name: found.get(name) or words.label(name).capitalize()


def _judged(side: Snapshot) -> dict[tuple[str, str], TemplateVerdict]:
    """Verdicts by (scheme or CNN, receiver)."""
    if side.verdicts is None:
        return {}
    found = {
        (scheme, receiver): outcome
        for scheme, verdict in side.verdicts.schemes.items()
        for receiver, outcome in verdict.templates.items()
    }
    return found | {
        (f"{one.scheme}-{one.model}", "model_holder"): one for one in side.verdicts.models.values()
    }


def _leakage(before: Snapshot, after: Snapshot) -> Iterator[LeakChange]:
    title = _titles(before, after)
    old, new = _judged(before), _judged(after)
    for scheme, receiver in sorted({*old, *new}):
        sides = old.get((scheme, receiver)), new.get((scheme, receiver))
        worst = [side.worst if side else None for side in sides]
        yield LeakChange(
            scheme=scheme,
            title=scheme if receiver == "model_holder" else title(scheme),
            receiver=words.template_title(receiver),
            before=sides[0].verdict if sides[0] else None,
            after=sides[1].verdict if sides[1] else None,
            attack_before=(worst[0].title or worst[0].attack) if worst[0] else None,
            attack_after=(worst[1].title or worst[1].attack) if worst[1] else None,
            bounds=(worst[0].high if worst[0] else None, worst[1].high if worst[1] else None),
            limits=(
                worst[0].threshold if worst[0] else None, worst[1].threshold if worst[1] else None
            ),
            shift=shift(_estimate(worst[0]), _estimate(worst[1]), _unlike(*worst)),
        )  # fmt: skip


def _unlike(before: Any, after: Any) -> str:
    """Why the strongest attacks of two versions cannot be subtracted; empty where they can."""
    if before is None or after is None:
        return ""
    if before.attack != after.attack:
        return "another attack is the strongest one; see the attacks one by one"
    if before.metric_words != after.metric_words:
        return "the attack is measured in another way"
    return ""


def _estimate(item: Estimate | None) -> Estimate | None:
    return None if item is None else Estimate(value=item.value, low=item.low, high=item.high)


def _figures(side: Snapshot) -> dict[tuple[str, str, str], AttackResult]:
    return {
        (scheme, one.attacker, one.attack): one
        for scheme, file in side.attacks.items()
        for one in file.results
        if one.applicable
    }


def _attacks(before: Snapshot, after: Snapshot) -> Iterator[AttackChange]:
    title = _titles(before, after)
    old, new = _figures(before), _figures(after)
    for scheme, attacker, attack in sorted({*old, *new}):
        key = (scheme, attacker, attack)
        one, two = old.get(key), new.get(key)
        told = two or old[key]
        yield AttackChange(
            scheme=scheme,
            title=title(scheme),
            attack=told.title or words.label(attack),
            receiver=words.template_title(attacker),
            metric=told.metric,
            metric_words=told.metric_words or "",
            shift=shift(_estimate(one), _estimate(two), _measured_otherwise(one, two)),
        )


def _measured_otherwise(before: AttackResult | None, after: AttackResult | None) -> str:
    if before is None or after is None:
        return ""
    if (before.metric, before.gallery) != (after.metric, after.gallery):
        return "the attack is measured in another way"
    unsound = [side for side in (before, after) if side.status in ("weak_oracle", "diverged")]
    return f"the attack was not sound: {words.STATUS[str(unsound[0].status)]}" if unsound else ""


def _utility(before: Snapshot, after: Snapshot) -> Iterator[UtilityChange]:
    title = _titles(before, after)
    old, new = _declared(before), _declared(after)
    for scheme, model in sorted({*old, *new}):
        one, two = old.get((scheme, model)), new.get((scheme, model))
        note = ""
        if one is not None and two is not None and one.test_on != two.test_on:
            note = "the declared use is another one: other test images"
        yield UtilityChange(
            scheme=scheme,
            title=title(scheme),
            model=model,
            accuracy=shift(_accuracy(one), _accuracy(two), note),
            loss=shift(_loss(one), _loss(two), note),
        )


def _declared(side: Snapshot) -> dict[tuple[str, str], EvaluationRow]:
    rows = side.evaluation.rows if side.evaluation else ()
    return {(row.scheme, row.model): row for row in rows if row.declared}


def _accuracy(row: EvaluationRow | None) -> Estimate | None:
    if row is None:
        return None
    return Estimate(value=row.accuracy, low=row.low, high=row.high)


def _loss(row: EvaluationRow | None) -> Estimate | None:
    if row is None:
        return None
    return Estimate(value=row.loss_points, low=row.loss_low, high=row.loss_high)


# ---------------------------------------------------------------------------------------- in short


def _headline(
    before: Snapshot,
    after: Snapshot,
    data: Iterable[Changed],
    parameters: Mapping[str, tuple[Changed, ...]],
    figures: tuple[tuple[LeakChange, ...], tuple[AttackChange, ...], tuple[UtilityChange, ...]],
) -> Iterator[str]:
    """What a reader should know first: verdicts, leakage, utility, then what was changed."""
    leakage, attacks, utility = figures
    yield from _verdict_sentences(before, after, leakage)
    compared = [one for one in leakage if one.shift.difference is not None]
    alike = [one for one in attacks if one.shift.difference is not None]
    if compared:
        yield _tally("Leakage", [one.shift.direction for one in compared], "scheme and receiver",
                     "schemes and receivers")  # fmt: skip
    elif alike:
        yield _tally("Success of attacks", [one.shift.direction for one in alike],
                     "attack on a scheme", "attacks on schemes")  # fmt: skip
    known = [one for one in utility if one.accuracy.difference is not None]
    if known:
        yield _tally("Accuracy", [one.accuracy.direction for one in known], "trained scheme",
                     "trained schemes")  # fmt: skip
    elif before.evaluation is None or after.evaluation is None:
        yield "Accuracy: not on record in both versions, so nothing is compared."
    rows = [one for group in parameters.values() for one in group]
    parts = ((len(tuple(data)), "data"), (len(rows), "settings, keys and code"))
    changed = [f"{words.count(number, 'change')} in {name}" for number, name in parts if number]
    yield f"{words.listed(changed)}." if changed else "No change in data, settings, keys and code."


def _verdict_sentences(
    before: Snapshot, after: Snapshot, leakage: tuple[LeakChange, ...]
) -> Iterator[str]:
    if before.verdicts is None or after.verdicts is None:
        sides = [side.title for side in (before, after) if side.verdicts is None]
        yield f"Verdicts: not on record for {words.listed(sides)}, so none is compared."
        return
    moved = [one for one in leakage if one.moved]
    for one in moved:
        yield (
            f"{one.title}, {one.receiver.lower()}: was {words.VERDICTS[str(one.before)].lower()}, "
            f"is {words.VERDICTS[str(one.after)].lower()}."
        )
    for name, side in (("new", "before"), ("no longer there", "after")):
        alone = [f"{one.title} for {one.receiver.lower()}" for one in leakage
                 if getattr(one, side) is None]  # fmt: skip
        if alone:
            yield f"Verdicts that are {name}: {words.listed(alone)}."
    if not moved and any(one.before and one.after for one in leakage):
        yield "No verdict changed."


def _tally(what: str, directions: list[Direction], one: str, many: str) -> str:
    """How many figures are higher, lower, or show no difference."""
    parts = [
        f"{said} for {words.count(directions.count(direction), one, many)}"
        for direction, said in (
            ("higher", "higher"), ("lower", "lower"),
            ("no difference shown", "no difference shown"), ("the same", "the same"),
        )
        if direction in directions
    ]  # fmt: skip
    return f"{what}: {words.listed(parts)}."


def _cautions(before: Snapshot, after: Snapshot) -> Iterator[str]:
    """Why figures may differ for other reasons than the one that the reader has in mind."""
    suites = [side.verdicts.suite for side in (before, after) if side.verdicts]
    if len(set(suites)) > 1:
        yield (
            f"The attack suite is another one ({suites[0] or 'unknown'}, then "
            f"{suites[1] or 'unknown'}): attacks may be stronger now on the same images."
        )
    elif len({side.code.get(_ATTACKS, "") for side in (before, after)} - {""}) > 1:
        yield "The code of the attacks changed, so a shift may come from the attack."
    if _group(before, after, "Attacks"):
        yield "The settings of the attacks changed, so a shift may come from the attack."
    if any(one.name.startswith("drop ") for one in _drop_changes(before, after)):
        yield "The data changed, so the figures are of other images."
    if _group(before, after, "Gate thresholds"):
        yield "The thresholds of the gate changed, so a verdict may move with no figure moving."
    yield from before.outdated
    yield from after.outdated
    yield (
        "The interval of a difference takes the two versions for independent. On the same images "
        "it is wider than need be: a small difference may go unnoticed."
    )
