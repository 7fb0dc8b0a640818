"""All pages against rules of accessibility and of HTML that need no browser."""

import re
from dataclasses import replace
from pathlib import Path

import html_rules as rules
import pytest
from report_project import CLASSES
from test_changes import snapshot

from veilset.report import plots
from veilset.report.changes import Gap, Snapshot, compare
from veilset.report.changes_page import render_changes
from veilset.report.load import load_inputs
from veilset.report.page import render, render_card

STYLE = Path(plots.__file__).parent / "templates/style.css"


@pytest.fixture(scope="module")
def pages(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    inputs = load_inputs(project, commit="0" * 40)
    card = inputs.cards["visualmixer"].model_copy(update={"stale": "too old"})
    gap = Gap(version="commit 0", what="reports/verdicts.json", why="it was not committed.")
    later = replace(snapshot("the workspace"), settings={"gate": {"min_targets": 3}}, gaps=(gap,))
    return {
        "own": render(inputs),
        "public": render(replace(inputs, public=True)),
        "empty": render(load_inputs(tmp_path_factory.mktemp("empty"))),
        "card": render_card(card, inputs.examples["visualmixer"], CLASSES),
        "changes": render_changes(compare(snapshot(), later), inputs.dataset),
        "no changes": render_changes(compare(Snapshot(title="a"), Snapshot(title="b")), "x"),
    }


PAGES = ("own", "public", "empty", "card", "changes", "no changes")


@pytest.mark.parametrize("page", PAGES)
def test_no_rule_is_broken(pages: dict[str, str], page: str) -> None:
    text = pages[page]
    root = rules.tree(text)
    broken = [*rules.document(root, text)]
    for rule in (rules.controls, rules.regions, rules.structure, rules.headings, rules.references,
                 rules.colour_only):  # fmt: skip
        broken += rule(root)
    assert broken == []


BREAKS = {
    "document": [("<html lang", "<html data"), ("</main>", "</main><p>x</p>"),
                 ("initial-scale=1", "user-scalable=no")],
    "controls": [('<a href="#data">Data</a>', '<a href="#data"></a>'),
                 ('tabindex="0"', ""), ('tabindex="0"', 'tabindex="3"'),
                 ('<a class="skip"', '<a aria-hidden="true"')],
    "regions": [('role="note"', 'role="notes"'), ('aria-label="Every attack on every scheme"', ""),
                ('aria-labelledby="data-title"', 'aria-label="Lineage"')],
    "headings": [("<h3", "<h4")],
    "structure": [('<th scope="col"', "<th"), ('alt="', 'data-alt="'),
                  ("<caption", "<p"), ("<li>", "<p>"), ("<desc", "<g")],
    "references": [('id="data"', 'id="lineage"'), ('href="#verdict"', 'href="#nowhere"')],
    "colour_only": [("</span>Fail</span>", "</span></span>")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "good", "bad"), [(rule, *pair) for rule, pairs in BREAKS.items() for pair in pairs]
)
def test_every_rule_can_be_broken(pages: dict[str, str], rule: str, good: str, bad: str) -> None:
    text = pages["own"]
    assert good in text
    for close in ("caption", "li", "desc", "h3"):
        if good in (f"<{close}", f"<{close}>"):
            other = re.match(r"<(\w+)", bad)
            assert other is not None
            text = text.replace(f"</{close}>", f"</{other[1]}>", 1)
    text = text.replace(good, bad, 1)
    root = rules.tree(text)
    check = getattr(rules, rule)
    found = list(check(root, text) if rule == "document" else check(root))
    assert found


def palette() -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", STYLE.read_text(encoding="utf-8")))


TEXT_ON = [
    ("ink", "paper"), ("ink", "wash"), ("ink", "open-wash"), ("muted", "paper"), ("muted", "wash"),
    ("accent", "paper"), ("accent", "wash"), ("pass", "pass-wash"), ("fail", "fail-wash"),
    ("open", "open-wash"), ("none", "none-wash"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "ground"), TEXT_ON)
def test_text_has_contrast(text: str, ground: str) -> None:
    assert rules.contrast(palette()[text], palette()[ground]) >= 4.5


def test_no_other_colour_is_used_for_text() -> None:
    """A colour beside the palette would not be held against its ground."""
    sheet = STYLE.read_text(encoding="utf-8").split("}", 1)[1]
    assert set(re.findall(r"(?<![-\w])color: ([^;}]+)", sheet)) <= {
        "inherit", *(f"var(--{name})" for name, _ in TEXT_ON)
    }  # fmt: skip


def test_contrast_is_wcags() -> None:
    assert rules.contrast("#000", "#ffffff") == pytest.approx(21)
    assert rules.contrast("#767676", "#fff") == pytest.approx(4.54, abs=0.005)
    assert rules.contrast("#777777", "#fff") < 4.5


def test_plots_have_contrast_and_more_than_colour() -> None:
    for colour in (plots._INK, plots._MUTED):
        assert rules.contrast(colour, "#fff") >= 4.5
    for colour in (*plots._COLOURS.values(), *plots._SERIES):
        assert rules.contrast(colour, "#fff") >= 3
    assert len(set(plots._MARKERS.values())) == len(plots._MARKERS) == len(plots._COLOURS)
    assert len(set(plots._LINES)) == len(plots._LINES) > 3


def test_the_darkest_cell_of_a_confusion_is_legible() -> None:
    """Ink on the accent at its strongest, mixed with the paper."""
    found = re.search(r"rgb\((\d+) (\d+) (\d+) / calc\(var\(--v\) \* (\d+)%\)\)", STYLE.read_text())
    assert found is not None
    *parts, strength = (int(one) for one in found.groups())
    mixed = "#" + "".join(f"{round(255 - strength / 100 * (255 - one)):02x}" for one in parts)
    assert rules.contrast(palette()["ink"], mixed) >= 4.5
