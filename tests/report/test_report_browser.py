"""The pages in a real browser, at the widths of a phone and a desk, and on paper."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import chromium
import pytest
from report_project import CLASSES, NUMBERS
from test_changes import snapshot

from veilset.report.changes import compare
from veilset.report.changes_page import write_changes
from veilset.report.load import load_inputs
from veilset.report.page import render_card, write_report

pytestmark = [
    pytest.mark.skipif(chromium.PROGRAM is None, reason="no Chromium is installed"),
    pytest.mark.xdist_group("chromium"),
]
PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def pages(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    inputs = load_inputs(project, commit="0" * 40)
    write_report(inputs, folder / "own.html")
    write_report(replace(inputs, public=True), folder / "public.html")
    later = replace(snapshot("the workspace"), settings={"gate": {"min_targets": 3}})
    write_changes(compare(snapshot(), later), inputs.dataset, folder / "changes.html")
    card = render_card(inputs.cards["visualmixer"], inputs.examples["visualmixer"], CLASSES)
    (folder / "card.html").write_text(card, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("page", ["own", "public", "changes", "card"])
def test_nothing_is_cut_off_loaded_or_complained_of(
    pages: Path, tab: chromium.Browser, page: str, width: int
) -> None:
    path = pages / f"{page}.html"
    tab.open(path, width)
    tab.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value("document.body.scrollWidth") <= width
    # Only what scrolls by itself may be wider than the page, and all of it can be scrolled.
    wide = tab.value(
        "[...document.querySelectorAll('main *')].filter(one =>"
        " !one.closest('.scroll, pre, .unseen')"
        " && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML)"
    )
    assert wide == []
    assert tab.complaints() == []
    assert tab.requests() == [path.resolve().as_uri()]
    broken = "[...document.images].filter(one => one.naturalWidth === 0).length"
    assert tab.value(broken) == 0


@pytest.mark.parametrize("page", ["own", "public", "changes"])
def test_fingers_find_their_targets(pages: Path, tab: chromium.Browser, page: str) -> None:
    """24 by 24 px, as WCAG 2.2 asks of links that stand alone."""
    tab.open(pages / f"{page}.html", PHONE)
    small = tab.value(
        "[...document.querySelectorAll('nav a, summary')].map(one => [one.textContent,"
        " one.getBoundingClientRect()]).filter(([, box]) => box.height < 24 || box.width < 24)"
        ".map(([text]) => text)"
    )
    assert small == []


def test_the_verdict_is_what_one_sees_first(pages: Path, tab: chromium.Browser) -> None:
    for width in (PHONE, DESK):
        tab.open(pages / "own.html", width)
        said = "document.querySelector('.answer .said').getBoundingClientRect().bottom"
        assert tab.value(said) < 900


def test_the_plot_says_the_figures_of_a_point_that_is_reached(
    pages: Path, tab: chromium.Browser
) -> None:
    tab.open(pages / "own.html", DESK)
    shown = (
        "[...document.querySelectorAll('.plot .tip')].filter(one =>"
        " getComputedStyle(one).display !== 'none').map(one => one.textContent).join(' ')"
    )
    assert tab.value(shown) == ""
    count = tab.value("document.querySelectorAll('.plot a').length")
    assert count == 2 * len(NUMBERS)
    labels = set()
    for place in range(count):
        tab.value(f"document.querySelectorAll('.plot a')[{place}].focus()")
        label = tab.value("document.activeElement.getAttribute('aria-label')")
        assert tab.value(shown) == label
        labels.add(label)
        inside = tab.value(
            "[...document.querySelectorAll('.plot .tip')].filter(one =>"
            " getComputedStyle(one).display !== 'none').every(one => one.getBoundingClientRect()"
            ".right <= one.closest('svg').getBoundingClientRect().right)"
        )
        assert inside, f"{label} is cut off"
    assert len(labels) == count


def sheets(printed: bytes) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", printed))


def test_paper_has_everything(pages: Path, tab: chromium.Browser) -> None:
    """Folded parts are printed as well, and nothing is left of what only a screen can do."""
    tab.open(pages / "own.html", DESK)
    printed = tab.pdf()
    assert printed.startswith(b"%PDF-")
    tab.value("document.querySelectorAll('details').forEach(one => one.remove())")
    assert sheets(printed) > 1.2 * sheets(tab.pdf()) > 3
    tab.do("Emulation.setEmulatedMedia", media="print")
    hidden = "['nav', '.skip', '.plot .hint'].every(one => getComputedStyle("
    assert tab.value(f"{hidden}document.querySelector(one)).display === 'none')")
    tab.do("Emulation.setEmulatedMedia", media="")


def test_a_page_that_is_too_wide_is_noticed(tmp_path: Path, tab: chromium.Browser) -> None:
    page = tmp_path / "wide.html"
    page.write_text(
        "<!DOCTYPE html><html lang=en><meta name=viewport content='width=device-width'><title>x"
        "</title><main><p style='width: 900px'>x</p><script>console.log('x')</script></main>"
    )
    tab.open(page, PHONE)
    assert tab.value("document.documentElement.scrollWidth") > PHONE
    assert tab.complaints()
