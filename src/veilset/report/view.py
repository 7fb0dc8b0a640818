"""What follows from the evidence, ready to be laid out: no figure on the page is made elsewhere.

Source: ours.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from veilset.report import words
from veilset.report.model import (
    AttackResult,
    Contrast,
    EvaluationRow,
    ModelVerdict,
    ReportInputs,
    SchemeVerdict,
    TemplateVerdict,
    Verdict,
    Worst,
)
from veilset.report.plots import Point

_ORDER: tuple[Verdict, ...] = ("pass", "undecided", "fail")


@dataclass(frozen=True)
class Leak:
    """The strongest attack on a scheme, with what it is to be compared with."""

    template: str
    worst: Worst
    result: AttackResult | None

    @property
    def title(self) -> str:
        """The attack's name for people."""
        return self.worst.title or (self.result.title if self.result else "") or self.worst.attack

    @property
    def metric(self) -> str | None:
        """Name of the figure."""
        return self.result.metric if self.result else None

    @property
    def metric_words(self) -> str | None:
        """The figure in words."""
        return self.worst.metric_words or (self.result.metric_words if self.result else None)

    @property
    def value(self) -> float | None:
        """The measured success."""
        return self.worst.value

    @property
    def high(self) -> float | None:
        """Upper bound of the success: what a scheme is judged by."""
        return self.worst.high

    @property
    def chance(self) -> float | None:
        """What guessing scores."""
        return self.worst.chance if self.worst.chance is not None else _chance(self.result)

    @property
    def excess(self) -> float:
        """Upper bound beyond chance, in 0..1: what makes different attacks comparable."""
        chance = min(self.chance or 0.0, 0.999)
        high = self.worst.high if self.worst.high is not None else self.worst.value
        return -1.0 if high is None else (high - chance) / (1 - chance)


@dataclass(frozen=True)
class SchemeRow:
    """One scheme in the overview.

    Attributes:
        name: Its name; `title` is its name for people.
        baseline: It is the unprotected set.
        verdicts: Verdicts by attacker template.
        overall: The worst of them; None where there is none.
        utility: Accuracy in the declared way of use, of the model all schemes are compared with.
        leak: The strongest attack.
    """

    name: str
    title: str
    baseline: bool
    verdicts: Mapping[str, TemplateVerdict]
    overall: Verdict | None
    utility: EvaluationRow | None
    leak: Leak | None


@dataclass(frozen=True)
class Cell:
    """One attack on one scheme for one attacker: a word and the figure behind it.

    `elsewhere` says that the attack is made for other kinds of schemes.
    """

    word: str
    text: str
    reason: str
    elsewhere: bool = False


@dataclass(frozen=True)
class MatrixRow:
    """One attack for one attacker over all schemes; a scheme without a result has None."""

    attack: str
    title: str
    attacker: str
    knowledge: str
    risk: str
    metric_words: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Group:
    """The same reason for the same attack, and the schemes that it holds for."""

    title: str
    attacker: str
    reason: str
    schemes: tuple[str, ...]


def scheme_rows(inputs: ReportInputs) -> tuple[SchemeRow, ...]:
    """One row a scheme that any file knows: best verdict first, the unprotected set last."""
    base = baseline(inputs)
    model = compared_model(inputs)
    rows = [_scheme_row(inputs, name, base, model) for name in scheme_names(inputs)]
    return tuple(sorted(rows, key=_rank))


def baseline(inputs: ReportInputs) -> str:
    """Name of the scheme that leaves images as they are."""
    return inputs.evaluation.baseline if inputs.evaluation else "plain"


def compared_model(inputs: ReportInputs) -> str | None:
    """The model by which schemes are compared: trained for most of them, then the best on plain."""
    if inputs.evaluation is None:
        return None
    rows = [row for row in inputs.evaluation.rows if row.declared]
    seen = Counter(row.model for row in rows)
    best = {row.model: row.accuracy or 0 for row in rows if row.scheme == baseline(inputs)}
    return min(seen, key=lambda name: (-seen[name], -best.get(name, 0), name), default=None)


def baseline_accuracy(inputs: ReportInputs) -> float | None:
    """Accuracy of the compared model on unprotected images."""
    row = _utility(inputs, baseline(inputs), compared_model(inputs))
    return row.accuracy if row else None


def points(inputs: ReportInputs) -> tuple[Point, ...]:
    """For each receiver the schemes that have both an accuracy and a measured leak.

    A scheme's leak for a receiver is the worst attack that counts there: the plot and its CSV have
    a point for each scheme and receiver.
    """
    rows = scheme_rows(inputs)
    found = (_point(inputs, row, name) for name in template_names(inputs) for row in rows)
    return tuple(point for point in found if point is not None)


def scheme_title(inputs: ReportInputs, name: str) -> str:
    """A scheme's name for people, from whichever file has it."""
    verdicts = inputs.verdicts.schemes if inputs.verdicts else {}
    titles = (
        verdicts[name].title if name in verdicts else "",
        inputs.attacks[name].scheme_title if name in inputs.attacks else "",
        inputs.protected[name].title if name in inputs.protected else "",
    )
    return next((title for title in titles if title), words.label(name).capitalize())


def template_names(inputs: ReportInputs) -> tuple[str, ...]:
    """The attacker templates: the known ones first, then others in the files."""
    schemes = inputs.verdicts.schemes.values() if inputs.verdicts else ()
    others = {name for scheme in schemes for name in scheme.templates}
    return (*words.TEMPLATES, *sorted(others - set(words.TEMPLATES)))


def headline(inputs: ReportInputs, template: str) -> str:
    """The verdict over all schemes for one attacker, in a sentence without the unprotected set."""
    rows = [row for row in scheme_rows(inputs) if not row.baseline]
    judged = [row for row in rows if template in row.verdicts]
    if not judged:
        return "No verdict is available."
    by_word: dict[str, list[str]] = {}
    for row in judged:
        by_word.setdefault(row.verdicts[template].verdict, []).append(row.title)
    passed = by_word.get("pass", [])
    parts = []
    if passed:
        parts.append(f"{words.listed(passed)} {'passes' if len(passed) == 1 else 'pass'}.")
    else:
        parts.append(
            "No scheme passes." if len(judged) > 1 else f"{judged[0].title} does not pass."
        )
    if "undecided" in by_word:
        names = by_word["undecided"]
        verb = "is" if len(names) == 1 else "are"
        parts.append(f"{words.listed(names)} {verb} undecided, which is not a pass.")
    if passed and "fail" in by_word:
        names = by_word["fail"]
        parts.append(f"{words.listed(names)} {'fails' if len(names) == 1 else 'fail'}.")
    return " ".join(parts)


def matrix(inputs: ReportInputs, rows: Iterable[SchemeRow]) -> tuple[MatrixRow, ...]:
    """Every attack for every attacker over these schemes, but for those made for none of them."""
    schemes = [row.name for row in rows]
    first: dict[tuple[str, str], AttackResult] = {}
    for name in schemes:
        for result in _results(inputs, name):
            first.setdefault((result.attacker, result.attack), result)
    order = {name: place for place, name in enumerate(template_names(inputs))}
    keys = sorted(first, key=lambda key: (order.get(key[0], len(order)), first[key].title, key[1]))
    found = (_matrix_row(inputs, first[key], schemes) for key in keys)
    return tuple(row for row in found if any(cell and not cell.elsewhere for cell in row.cells))


@dataclass(frozen=True)
class Standing:
    """What comparisons show of a scheme; titles of the schemes that it is less, or more, than."""

    title: str
    less: tuple[str, ...]
    level: tuple[str, ...]
    more: tuple[str, ...]


SIGNIFICANT = 0.05
"""A difference is shown where its p-value, corrected by Holm, is below this."""


def contrasts(inputs: ReportInputs, template: str) -> tuple[Contrast, ...]:
    """All pairs of schemes that were compared for a receiver."""
    found = inputs.comparison.contrasts if inputs.comparison else ()
    return tuple(item for item in found if item.template == template)


def standings(inputs: ReportInputs, template: str) -> tuple[Standing, ...]:
    """For each compared scheme those that it leaks less than, as much as far as known, and more."""
    return _standings(
        inputs,
        (
            (item.scheme, item.other, item.difference.value, item.adjusted)
            for item in contrasts(inputs, template)
        ),
    )


def utility_standings(inputs: ReportInputs) -> tuple[Standing, ...]:
    """For each scheme those that it is less accurate than, as accurate as far as known, and more.

    Under the model by which schemes are compared, each in its declared use.
    """
    found = inputs.evaluation.contrasts if inputs.evaluation else ()
    model = compared_model(inputs)
    return _standings(
        inputs,
        (
            (item.scheme, item.other, item.difference.value, item.adjusted)
            for item in found
            if item.model == model
        ),
    )


def _standings(
    inputs: ReportInputs, pairs: Iterable[tuple[str, str, float, float]]
) -> tuple[Standing, ...]:
    """Of (scheme, other, difference, corrected p-value), for each scheme how it stands to others.

    Those that are less than most others come first.
    """
    relations: dict[str, dict[str, list[str]]] = {}
    for scheme, other, difference, adjusted in pairs:
        sign = difference if adjusted < SIGNIFICANT else 0.0
        word = "level" if sign == 0 else "less" if sign < 0 else "more"
        back = {"less": "more", "more": "less", "level": "level"}[word]
        for one, two, how in ((scheme, other, word), (other, scheme, back)):
            relation = relations.setdefault(one, {"less": [], "level": [], "more": []})
            relation[how].append(scheme_title(inputs, two))
    found = [
        Standing(scheme_title(inputs, name), *(tuple(sorted(part)) for part in relation.values()))
        for name, relation in relations.items()
    ]
    return tuple(sorted(found, key=lambda one: (-len(one.less), len(one.more), one.title)))


@dataclass(frozen=True)
class NetworkRow:
    """One CNN that was attacked itself."""

    title: str
    verdict: ModelVerdict
    results: tuple[AttackResult, ...]


def networks(inputs: ReportInputs) -> tuple[NetworkRow, ...]:
    """The attacked CNNs, best verdict first."""
    judged = inputs.verdicts.models if inputs.verdicts else {}
    rows = [
        NetworkRow(
            f"{verdict.model}, trained on {scheme_title(inputs, verdict.scheme)}",
            verdict,
            inputs.model_attacks[name].results if name in inputs.model_attacks else (),
        )
        for name, verdict in judged.items()
    ]
    return tuple(sorted(rows, key=lambda row: (_ORDER.index(row.verdict.verdict), row.title)))


def not_applicable(inputs: ReportInputs) -> tuple[Group, ...]:
    """Attacks that could not be run, with reasons: never a pass.

    Attacks made for other kinds of schemes are not among them: see `elsewhere`.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in scheme_names(inputs):
        for result in _results(inputs, name):
            if not result.applicable and not result.elsewhere:
                key = (result.title or result.attack, "", result.reason or "no reason is recorded")
                found.setdefault(key, []).append(scheme_title(inputs, name))
    return _groups(found)


def elsewhere(inputs: ReportInputs) -> tuple[Group, ...]:
    """Attacks made for other kinds of schemes, an entry for each attack and reason."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in scheme_names(inputs):
        for result in _results(inputs, name):
            if result.elsewhere:
                told = result.untested()
                key = (told.title, "", told.reason)
                found.setdefault(key, []).append(scheme_title(inputs, name))
    return _groups(found)


def undecided(inputs: ReportInputs) -> tuple[Group, ...]:
    """Findings that support neither verdict, and verdicts undecided as a whole, with reasons."""
    receivers: dict[tuple[str, str, str], list[str]] = {}
    for scheme, verdict in inputs.verdicts.schemes.items() if inputs.verdicts else ():
        for template, outcome in verdict.templates.items():
            for attack, reason, counts in _open_questions(outcome):
                result = find_result(inputs, scheme, attack, template)
                if result is not None and _is_told(result, counts):
                    continue
                title = result.title if result and result.title else attack
                key = (title, reason or "no reason is recorded", scheme_title(inputs, scheme))
                receivers.setdefault(key, []).append(words.template_title(template))
    found: dict[tuple[str, str, str], list[str]] = {}
    for (title, reason, scheme), names in receivers.items():
        found.setdefault((title, words.listed(names), reason), []).append(scheme)
    return _groups(found)


def _is_told(result: AttackResult, counts: bool) -> bool:
    """Its reason stands among what is not applicable; a verdict's own need is told here as well."""
    return not result.applicable and not (result.elsewhere and counts)


def _open_questions(outcome: TemplateVerdict) -> list[tuple[str, str | None, bool]]:
    """(attack, reason, whether it bears on the verdict) of what is undecided."""
    findings = [item for item in outcome.findings if item.verdict == "undecided"]
    if outcome.verdict == "undecided" and not findings:
        return [("The verdict", outcome.words, True)]
    return [(item.attack, item.reason, item.counts) for item in findings]


def find_result(
    inputs: ReportInputs, scheme: str, attack: str, template: str
) -> AttackResult | None:
    """The result of an attack for this attacker, else for any."""
    results = [item for item in _results(inputs, scheme) if item.attack == attack]
    exact = [item for item in results if item.attacker == template]
    return next(iter(exact or results), None)


def metric_of(inputs: ReportInputs, scheme: str, attack: str, template: str) -> str | None:
    """Name of the figure of an attack, which decides the unit it is shown in."""
    result = find_result(inputs, scheme, attack, template)
    return result.metric if result else None


def _groups(found: Mapping[tuple[str, str, str], list[str]]) -> tuple[Group, ...]:
    """One entry for attacks that share attacker, reason and schemes."""
    titles: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (title, attacker, reason), schemes in sorted(found.items()):
        key = (attacker, reason, tuple(dict.fromkeys(schemes)))
        titles.setdefault(key, []).append(title)
    return tuple(Group(words.listed(titles[key]), *key) for key in titles)


def scheme_names(inputs: ReportInputs) -> list[str]:
    """Names of all schemes that any file knows, sorted."""
    verdicts = inputs.verdicts.schemes if inputs.verdicts else {}
    rows = inputs.evaluation.rows if inputs.evaluation else ()
    names = {*verdicts, *inputs.attacks, *inputs.protected, *(row.scheme for row in rows)}
    return sorted(names)


def _results(inputs: ReportInputs, scheme: str) -> tuple[AttackResult, ...]:
    file = inputs.attacks.get(scheme)
    return file.results if file else ()


def _scheme_row(inputs: ReportInputs, name: str, base: str, model: str | None) -> SchemeRow:
    schemes = inputs.verdicts.schemes if inputs.verdicts else {}
    verdict = schemes.get(name)
    templates = verdict.templates if verdict else {}
    found = [item.verdict for item in templates.values()]
    return SchemeRow(
        name=name,
        title=scheme_title(inputs, name),
        baseline=name == base,
        verdicts=templates,
        overall=max(found, key=_ORDER.index, default=None),
        utility=_utility(inputs, name, model),
        leak=_leak(inputs, name, verdict),
    )


def _rank(row: SchemeRow) -> tuple[bool, list[int], str]:
    """Sorts the public's verdict before the outside trainer's: it is the harder one to pass."""
    names = ("public_release", "outside_trainer")
    found = [row.verdicts[name].verdict if name in row.verdicts else None for name in names]
    return (row.baseline, [3 if word is None else _ORDER.index(word) for word in found], row.title)


def _utility(inputs: ReportInputs, scheme: str, model: str | None) -> EvaluationRow | None:
    rows = inputs.evaluation.rows if inputs.evaluation else ()
    fitting = [row for row in rows if row.scheme == scheme and row.declared]
    chosen = [row for row in fitting if row.model == model] or fitting
    return next(iter(chosen), None)


def _leak(inputs: ReportInputs, name: str, verdict: SchemeVerdict | None) -> Leak | None:
    """The strongest attack that the verdicts name, else the strongest sound result."""
    leaks = [
        Leak(template, item.worst, find_result(inputs, name, item.worst.attack, template))
        for template, item in (verdict.templates if verdict else {}).items()
        if item.worst is not None
    ]
    if not leaks:
        leaks = [
            Leak(item.attacker, Worst(**_figures(item)), item)
            for item in _results(inputs, name)
            if item.applicable and item.value is not None and item.status in (None, "ok")
        ]
    return max(leaks, key=lambda leak: leak.excess, default=None)


def _figures(item: AttackResult) -> dict[str, object]:
    names = ("attack", "title", "metric_words", "value", "low", "high", "chance", "words")
    return {name: getattr(item, name) for name in names}


def _chance(result: AttackResult | None) -> float | None:
    return result.chance if result else None


def _point(inputs: ReportInputs, row: SchemeRow, template: str) -> Point | None:
    outcome, utility = row.verdicts.get(template), row.utility
    if outcome is None or outcome.worst is None or utility is None or utility.accuracy is None:
        return None
    worst, accuracy = outcome.worst, utility.accuracy
    leak = Leak(template, worst, find_result(inputs, row.name, worst.attack, template))
    if worst.value is None or not words.is_share(leak.metric):
        return None
    return Point(
        scheme=row.name,
        title=row.title,
        accuracy=accuracy,
        accuracy_low=accuracy if utility.low is None else utility.low,
        accuracy_high=accuracy if utility.high is None else utility.high,
        leakage=worst.value,
        leakage_low=worst.value if worst.low is None else worst.low,
        leakage_high=worst.value if worst.high is None else worst.high,
        attacker=template,
        attack=leak.title,
        verdict=outcome.verdict,
    )


def _matrix_row(inputs: ReportInputs, result: AttackResult, schemes: list[str]) -> MatrixRow:
    return MatrixRow(
        attack=result.attack,
        title=result.title or words.label(result.attack),
        attacker=words.template_title(result.attacker),
        knowledge=": ".join(text for text in (result.knowledge, result.knowledge_words) if text),
        risk=words.label(result.risk),
        metric_words=result.metric_words or "",
        cells=tuple(_cell(inputs, name, result.attack, result.attacker) for name in schemes),
    )


def _cell(inputs: ReportInputs, scheme: str, attack: str, attacker: str) -> Cell | None:
    fitting = (r for r in _results(inputs, scheme) if (r.attack, r.attacker) == (attack, attacker))
    result = next(fitting, None)
    if result is None:
        return None
    if not result.applicable:
        return Cell("not applicable", "", result.reason or "", result.elsewhere)
    word = _finding_word(inputs, scheme, attack, attacker)
    high = result.high if result.high is not None else result.value
    return Cell(word, words.figure(high, result.metric), result.words or "")


def _finding_word(inputs: ReportInputs, scheme: str, attack: str, attacker: str) -> str:
    """The verdict on one attack; an attacker that is no template has no verdict of its own."""
    schemes = inputs.verdicts.schemes if inputs.verdicts else {}
    outcome = schemes[scheme].templates.get(attacker) if scheme in schemes else None
    findings = outcome.findings if outcome else ()
    found = [finding.verdict for finding in findings if finding.attack == attack]
    return max(found, key=_ORDER.index) if found else "no verdict"
