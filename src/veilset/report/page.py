"""The report as one HTML page that needs nothing else: no network, no script, no other file.

The same inputs give the same bytes: no clock, no host name, no temporary name is on the page.
Source: ours.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from veilset.files import write_text
from veilset.report import plots, view, words
from veilset.report.lineage import families
from veilset.report.model import (
    AttackFile,
    AttackResult,
    Card,
    Declared,
    Drop,
    EvaluationRow,
    Examples,
    Model,
    ProtectedSet,
    ReportInputs,
    SchemeVerdict,
    Untested,
)
from veilset.report.notes import notes
from veilset.report.pictures import data_uri
from veilset.report.public import for_publication
from veilset.types import Images

_TEMPLATES = Path(__file__).parent / "templates"
_MATRIX_CLASSES = 12
_MOST_CONFUSED = 12
_MODELS_IN_PLOT = 6
_WORST = 3


@dataclass(frozen=True)
class Strip:
    """One labelled row of pictures: (data URI, alternative text) each."""

    label: str
    note: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Confusion:
    """Which classes a classifier takes for which.

    `matrix` has true classes as rows, as (count, share of its row); it is empty where there are
    too many classes, and `worst` (true class, predicted class, count) is shown instead.
    """

    classes: tuple[str, ...]
    matrix: tuple[tuple[tuple[int, float], ...], ...]
    worst: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class SchemeSection:
    """Everything on one scheme; `worst` are the first pictures of each of its strips."""

    row: view.SchemeRow
    card: Card | None
    worst: tuple[Strip, ...]
    declared: Declared | None
    key_words: str
    key_space_bits: float | None
    protected: ProtectedSet | None
    strips: tuple[Strip, ...]
    gallery_note: str
    results: tuple[AttackResult, ...]
    others: tuple[Untested, ...]
    evaluation: tuple[EvaluationRow, ...]
    confusions: tuple[tuple[EvaluationRow, Confusion], ...]
    models: tuple[Model, ...]
    curves: Markup


def write_report(inputs: ReportInputs, output: Path) -> None:
    """Writes the page, atomically.

    Args:
        inputs: What the page shows; see `load_inputs`.
        output: The file, e.g. `reports/index.html`; its folder is made.

    Raises:
        DiskFullError: No room for it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, render(inputs))


def render(inputs: ReportInputs) -> str:
    """The page as text; a public one is first stripped of what may not be published."""
    if inputs.public:
        inputs = for_publication(inputs)
    rows = view.scheme_rows(inputs)
    found = view.points(inputs)
    links = {row.name: f"scheme-{place}" for place, row in enumerate(rows, start=1)}
    plot = plots.privacy_utility(found, view.baseline_accuracy(inputs), links)
    elsewhere = [
        item.attack for file in inputs.attacks.values() for item in file.results if item.elsewhere
    ]
    page = environment().get_template("index.html.j2")
    return page.render(
        title=f"{inputs.dataset}: privacy and utility report",
        inputs=inputs,
        rows=rows,
        templates=[_template(inputs, name) for name in view.template_names(inputs)],
        comparisons=[
            (name, view.standings(inputs, name), view.contrasts(inputs, name))
            for name in view.template_names(inputs)
        ],
        significant=view.SIGNIFICANT,
        utility_standings=view.utility_standings(inputs),
        runs=max((row.runs for row in inputs.evaluation.rows), default=1)
        if inputs.evaluation
        else 1,
        scheme_title=partial(view.scheme_title, inputs),
        matrix=view.matrix(inputs, rows),
        networks=view.networks(inputs),
        model_holder=words.MODEL_HOLDER,
        not_applicable=view.not_applicable(inputs),
        elsewhere=view.elsewhere(inputs),
        other_attacks=len(set(elsewhere)),
        undecided=view.undecided(inputs),
        notes=notes(inputs),
        model=view.compared_model(inputs),
        baseline_accuracy=view.baseline_accuracy(inputs),
        points=found,
        plot=Markup(plot),  # noqa: S704  (our own plot, its texts escaped by the XML writer)
        sections=[_section(inputs, row) for row in rows],
        levels=families(inputs.stages),
        roles=[_roles(drop) for drop in inputs.drops],
        facts=_facts(inputs, rows),
        metric_of=partial(view.metric_of, inputs),
    )


def render_card(card: Card, examples: Examples, classes: Sequence[str] = ()) -> str:
    """A leakage card as a page of its own, with the worst examples. It shows originals.

    Args:
        card: What was found.
        examples: Pictures of the worst leaks, or none.
        classes: Class names in the order of the labels.
    """
    strips, note = _strips(examples, _class_names(classes, examples))
    found = AttackFile(scheme=card.scheme.name, results=card.attacks)
    page = environment().get_template("card.html.j2")
    return page.render(
        title=f"{card.scheme.title} on {card.dataset}: leakage card",
        card=card,
        worst=_worst(strips),
        pictures_note=note,
        notes=notes(ReportInputs(dataset=card.dataset, attacks={card.scheme.name: found})),
    )


@cache
def environment() -> jinja2.Environment:
    """What all pages are rendered with: escaping, and figures as people read them."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("figure", "interval", "points", "number", "seconds", "plain", "label", "listed",
             "ratio", "is_share")  # fmt: skip
    made.filters.update({name: getattr(words, name) for name in names})
    made.globals.update(VERDICTS=words.VERDICTS, STATUS=words.STATUS, NONE=words.NONE)
    made.globals.update(count=words.count, template_title=words.template_title)
    return made


def _template(inputs: ReportInputs, name: str) -> dict[str, str]:
    who = words.TEMPLATES.get(name, ("", ""))[1]
    return {
        "name": name,
        "title": words.template_title(name),
        "who": who,
        "headline": view.headline(inputs, name),
    }


def _facts(inputs: ReportInputs, rows: Sequence[view.SchemeRow]) -> list[str]:
    """What the page is about, in a few counts."""
    images = sum(sum(drop.splits.values()) for drop in inputs.drops)
    attacks = {item.attack for file in inputs.attacks.values() for item in file.results}
    schemes = sum(not row.baseline for row in rows)
    facts = [words.count(images, "image")] if inputs.drops else []
    facts += [words.count(schemes, "protection scheme"), words.count(len(attacks), "attack")]
    if inputs.verdicts and inputs.verdicts.suite:
        facts.append(f"attack suite {inputs.verdicts.suite}")
    return facts


def _section(inputs: ReportInputs, row: view.SchemeRow) -> SchemeSection:
    verdict = inputs.verdicts.schemes.get(row.name) if inputs.verdicts else None
    file = inputs.attacks.get(row.name)
    results = file.results if file else ()
    evaluation = inputs.evaluation.rows if inputs.evaluation else ()
    own = tuple(item for item in evaluation if item.scheme == row.name)
    models = _models(inputs, row.name)
    strips, note = _gallery(inputs, row)
    classes = inputs.drops[0].classes if inputs.drops else ()
    return SchemeSection(
        row=row,
        card=inputs.cards.get(row.name),
        worst=_worst(strips),
        declared=verdict.declared if verdict else None,
        key_words=_key_words(verdict),
        key_space_bits=verdict.key_space_bits if verdict else None,
        protected=inputs.protected.get(row.name),
        strips=strips,
        gallery_note=note,
        results=tuple(result for result in results if not result.elsewhere),
        others=tuple(result.untested() for result in results if result.elsewhere),
        evaluation=own,
        confusions=tuple((item, _confusion(item, classes)) for item in own if item.declared),
        models=models,
        curves=_curves(row.name, models),
    )


def _key_words(verdict: SchemeVerdict | None) -> str:
    """What the key means for the standing of the output."""
    declared = verdict.declared if verdict else None
    if declared is None or declared.keyed is None:
        return words.NONE
    if declared.keyed:
        undo = " Whoever holds the key can undo it." if declared.reversible else ""
        return f"Keyed: this is pseudonymisation for as long as its key exists.{undo}"
    if declared.reversible:
        return "No key, and reversible: anybody can undo it."
    return "No key, one-way."


def _models(inputs: ReportInputs, scheme: str) -> tuple[Model, ...]:
    """The models trained on this scheme: their folders are named `<scheme>-<model>`."""
    others = [name for name in view.scheme_names(inputs) if name.startswith(f"{scheme}-")]
    return tuple(
        model
        for model in inputs.models
        if model.name.startswith(f"{scheme}-")
        and not any(model.name.startswith(f"{name}-") for name in others)
    )


def _curves(scheme: str, models: Sequence[Model]) -> Markup:
    drawn = [model for model in models if model.history][:_MODELS_IN_PLOT]
    if not drawn:
        return Markup()
    safe = "".join(letter if letter.isalnum() else "-" for letter in scheme)
    return Markup(plots.training(drawn, f"training-{safe}"))  # noqa: S704  (as above)


def _gallery(inputs: ReportInputs, row: view.SchemeRow) -> tuple[tuple[Strip, ...], str]:
    """Labelled rows of pictures, and what to say where some are left out."""
    examples = inputs.examples.get(row.name)
    if examples is None or not len(examples.original):
        return (), f"Pictures: {words.NONE}."
    names = _class_names(inputs.drops[0].classes if inputs.drops else (), examples)
    return _public_gallery(row, examples, names) if inputs.public else _strips(examples, names)


def _strips(examples: Examples, names: Sequence[str]) -> tuple[tuple[Strip, ...], str]:
    """Originals, what others receive, and what attacks made of it."""
    if not len(examples.original):
        return (), f"Pictures: {words.NONE}."
    if not (examples.original != examples.protected).any():
        return (), "What others receive are the originals."
    best = "the closest that any attack came"
    return (
        _strip("Original", "what must stay private", examples.original, names),
        _strip("Protected", "what others receive", examples.protected, names),
        _strip("Best reconstruction", best, examples.reconstruction, names),
    ), ""


def _worst(strips: Sequence[Strip]) -> tuple[Strip, ...]:
    """The first few pictures of each row: those that leak most."""
    return tuple(replace(strip, pictures=strip.pictures[:_WORST]) for strip in strips)


def _public_gallery(
    row: view.SchemeRow, examples: Examples, names: Sequence[str]
) -> tuple[tuple[Strip, ...], str]:
    """Protected pictures alone, and only where the verdict permits their publication."""
    release = row.verdicts.get("public_release")
    touched = (examples.original != examples.protected).any(axis=(1, 2, 3)).all()
    if row.baseline or not touched or release is None or release.verdict != "pass":
        return (), "No pictures in this public version: the scheme does not pass public release."
    note = "Originals and reconstructions are left out of this public version."
    return (_strip("Protected", "what others receive", examples.protected, names),), note


def _strip(label: str, note: str, images: Images, names: Sequence[str]) -> Strip:
    shown = images[: _how_many(images)]
    pictures = (
        (data_uri(image), f"{label} {place}: {name}")
        for place, (image, name) in enumerate(zip(shown, names, strict=False), start=1)
    )
    return Strip(label, note, tuple(pictures))


def _how_many(images: Images) -> int:
    """Fewer of the large ones: pictures are embedded without compression."""
    side = max(images.shape[1:3])
    return 8 if side <= 64 else 6 if side <= 128 else 4


def _class_names(classes: Sequence[str], examples: Examples) -> list[str]:
    known: Mapping[int, str] = dict(enumerate(classes))
    return [known.get(int(label), f"class {label}") for label in examples.labels]


def _confusion(row: EvaluationRow, classes: Sequence[str]) -> Confusion:
    counts = row.confusion
    size = len(counts)
    if not size or any(len(line) != size for line in counts):
        return Confusion((), (), ())
    known = [item.class_name for item in row.per_class]
    names = known if len(known) == size else list(classes)
    names = names if len(names) == size else [str(place) for place in range(size)]
    if size <= _MATRIX_CLASSES:
        lines = tuple(_shares(line) for line in counts)
        return Confusion(tuple(names), lines, ())
    table = np.array(counts)
    np.fill_diagonal(table, 0)
    order = np.argsort(-table, axis=None, kind="stable")[:_MOST_CONFUSED]
    pairs = [(int(place) // size, int(place) % size) for place in order]
    worst = tuple((names[i], names[j], int(table[i, j])) for i, j in pairs if table[i, j])
    return Confusion(tuple(names), (), worst)


def _shares(line: Sequence[int]) -> tuple[tuple[int, float], ...]:
    total = max(sum(line), 1)
    return tuple((count, round(count / total, 3)) for count in line)


def _roles(drop: Drop) -> dict[str, Any]:
    """The table of counts of one drop: roles as columns, classes as rows, with sums."""
    counts = drop.counts or {}
    order = ["train", "validation", "test", "auxiliary", "gallery"]
    roles = [role for role in order if role in counts or role in drop.splits]
    roles += sorted(set(counts) - set(roles))
    seen = Counter(name for role in counts.values() for name in role)
    names = [name for name in drop.classes if name in seen]
    names += sorted(set(seen) - set(names))
    rows = [(name, [counts.get(role, {}).get(name, 0) for role in roles]) for name in names]
    totals = [sum(counts.get(role, {}).values()) or drop.splits.get(role, 0) for role in roles]
    return {"names": roles, "rows": rows, "totals": totals}
