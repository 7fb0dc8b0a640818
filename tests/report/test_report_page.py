"""The page as a reader, a browser and an outsider meet it."""

import base64
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_project import CLASSES, NUMBERS, SECRET_NAME, TITLES, pictures, write_project

from veilset.report import view
from veilset.report.load import load_inputs
from veilset.report.model import ReportInputs
from veilset.report.page import render, render_card, write_report

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VOID = {"meta", "link", "img", "br", "input", "hr"}
HEADINGS = {f"h{level}": level for level in range(1, 7)}


class Page(HTMLParser):
    """Collects what must hold of any page, and stops at the first unbalanced tag."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.levels: list[int] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        values = {name: value or "" for name, value in attrs}
        self.tags.append((tag, values))
        if "id" in values:
            self.ids.append(values["id"])
        if tag in HEADINGS:
            self.levels.append(HEADINGS[tag])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()} closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def inputs(project: Path) -> ReportInputs:
    return load_inputs(project, commit=COMMIT)


@pytest.fixture(scope="module")
def html(inputs: ReportInputs) -> str:
    return render(inputs)


@pytest.fixture(scope="module")
def public_html(inputs: ReportInputs) -> str:
    return render(replace(inputs, public=True))


@pytest.fixture(scope="module")
def empty_html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(load_inputs(tmp_path_factory.mktemp("empty")))


@pytest.fixture(scope="module")
def card_html(inputs: ReportInputs) -> str:
    card = inputs.cards["visualmixer"].model_copy(update={"demo_key": True})
    return render_card(card, inputs.examples["visualmixer"], CLASSES)


@pytest.fixture(params=["html", "public_html", "empty_html", "card_html"])
def any_html(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def shown_pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def test_page_is_well_formed(any_html: str) -> None:
    page = Page(any_html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)), "an id occurs twice"
    assert next(values["lang"] for tag, values in page.tags if tag == "html") == "en"


def test_every_reference_has_its_target(any_html: str) -> None:
    page = Page(any_html)
    links = [values.get("href", "") for _, values in page.tags]
    inner = {link[1:] for link in links if link.startswith("#")}
    inner |= set(re.findall(r"url\(#([^)]+)\)", any_html))
    for _, values in page.tags:
        inner |= set(values.get("aria-labelledby", "").split())
        if values.get("xlink:href", "").startswith("#"):
            inner.add(values["xlink:href"][1:])
    assert inner
    assert inner <= set(page.ids)


def test_headings_descend_one_level_at_a_time(any_html: str) -> None:
    levels = Page(any_html).levels
    assert levels.count(1) == 1
    assert levels[0] == 1
    steps = [after - before for before, after in pairwise(levels)]
    assert max(steps) <= 1


def test_pictures_tables_and_plots_are_described(html: str) -> None:
    page = Page(html)
    alts = [values.get("alt", "") for tag, values in page.tags if tag == "img"]
    assert alts
    assert all(alts)
    scopes = [values.get("scope") for tag, values in page.tags if tag == "th"]
    assert scopes
    assert set(scopes) <= {"col", "row", "rowgroup"}
    tables = [tag for tag, _ in page.tags if tag in ("table", "caption")]
    assert tables.count("table") == tables.count("caption") > 5
    for tag, values in page.tags:
        if tag == "svg":
            # A plot whose points are links is a group: readers skip links inside an image.
            linked = values["aria-labelledby"].startswith("privacy-utility")
            assert values["role"] == ("group" if linked else "img")
            assert len(values["aria-labelledby"].split()) == 2


def test_page_needs_nothing_else(any_html: str) -> None:
    page = Page(any_html)
    for tag, values in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base")
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert values.get(name, "#")[0] == "#" or values[name].startswith("data:")
        assert not any(name.startswith("on") for name in values)
    assert "@import" not in any_html
    assert not re.search(r"url\((?!#)", any_html)
    assert "default-src 'none'" in any_html
    addresses = set(re.findall(r"https?://[^\"' <]+", any_html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_verdict_comes_first_and_in_words(html: str) -> None:
    text = Page(html).text
    first = text.index("No attack got past")
    assert text.index("Verdict") < first < text.index("What was tested, and what was not")
    assert "DP-Pix and VisualMixer pass." in text
    assert "VisualMixer and Pixel block mixing fail." in text
    assert "Image to perturbation is undecided, which is not a pass." in text
    for word in ("Pass", "Fail", "Undecided", "Not applicable"):
        assert f">{word}</span>" in html


def test_figures_intervals_and_anchors_are_on_the_page(html: str) -> None:
    text = Page(html).text
    for figure in ("93.0 %", "88.6 to 95.8 %", "98.5 %", "0.3 to 3.6 %", "0.603"):
        assert figure in text
    assert "the set names no persons or groups" in text
    assert "the oracle is weak, so nothing follows" in text
    assert "pseudonymisation for as long as its key exists. Whoever holds the key" in text
    assert "No formal guarantee." in text
    assert "region 8" in text
    assert "truncated 2, animated 1" in text
    assert COMMIT in text


def test_honest_notes(html: str) -> None:
    text = Page(html).text
    for note in ("Small set: 2024-01 has 90", "Few targets", "Quick attacks", "One run",
                 "No persons are recorded", "up to 1.8 % possible"):  # fmt: skip
        assert note in text


def test_demo_key_has_a_banner_and_another_key_has_none(html: str, tmp_path: Path) -> None:
    sentence = "The public demo key was used: nothing here is protected from anyone."
    assert sentence in html
    other = load_inputs(write_project(tmp_path, demo=False))
    assert other.demo_keys == ()
    assert sentence not in render(other)


def test_all_pictures_are_embedded_without_loss(html: str) -> None:
    found = [picture.tobytes() for picture in shown_pictures(html)]
    for scheme in NUMBERS:
        for name in ("original", "protected", "reconstruction"):
            if scheme != "plain":
                for picture in pictures(scheme)[name]:
                    assert picture.tobytes() in found


def test_public_page_shows_no_original_and_no_reconstruction(public_html: str) -> None:
    found = {picture.tobytes() for picture in shown_pictures(public_html)}
    private = {
        picture.tobytes()
        for scheme in NUMBERS
        for name in ("original", "reconstruction")
        for picture in pictures(scheme)[name]
    }
    assert not found & private
    passed = {picture.tobytes() for picture in pictures("dp_pix")["protected"]}
    failed = {picture.tobytes() for picture in pictures("pixel_block_mixing")["protected"]}
    assert found == passed
    assert not found & failed
    assert "Best reconstruction" not in public_html


def test_public_page_hides_a_scheme_that_passes_but_leaves_one_image_as_it_was(
    inputs: ReportInputs,
) -> None:
    examples = inputs.examples["dp_pix"]
    leaky = examples.protected.copy()
    leaky[3] = examples.original[3]
    changed = replace(examples, protected=leaky)
    public = replace(inputs, examples={"dp_pix": changed}, public=True)
    assert shown_pictures(render(public)) == []


def test_public_page_has_no_digest_of_raw_images(inputs: ReportInputs, public_html: str) -> None:
    private = [drop.root[:16] for drop in inputs.drops]
    private += [stage.outs for stage in inputs.stages if stage.outs]
    private += ["f" * 16, "unexpected 4"]
    full = render(inputs)
    for digest in private:
        assert digest in full
        assert digest not in public_html


def test_source_file_names_stay_off_the_page(html: str, public_html: str) -> None:
    assert SECRET_NAME not in html
    assert SECRET_NAME not in public_html


def test_same_evidence_gives_the_same_bytes_anywhere(
    inputs: ReportInputs, html: str, tmp_path: Path
) -> None:
    copy = write_project(tmp_path / "elsewhere")
    output = tmp_path / "new" / "index.html"
    write_report(load_inputs(copy, commit=COMMIT), output)
    assert output.read_text() == html
    assert str(tmp_path) not in html
    assert [path.name for path in output.parent.iterdir()] == ["index.html"]


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script>'
    names = (nasty, "a&b", "$x^2$", "' onload='y")
    root = write_project(tmp_path, classes=names)
    text = (root / "reports/verdicts.json").read_text()
    (root / "reports/verdicts.json").write_text(text.replace('"VisualMixer"', '"<b onclick=z>V"'))
    csv = "name,reason\na,<img src=x onerror=y>\n"
    (root / "data/quarantine/2024-01/quarantine.csv").write_text(csv)
    html = render(load_inputs(root))
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "b"}
    assert not any(name.startswith("on") for _, values in page.tags for name in values)
    assert nasty in page.text
    assert "<b onclick=z>V" in page.text
    assert "<img src=x onerror=y>" in page.text


def test_nothing_is_invented_when_everything_is_missing(empty_html: str) -> None:
    text = Page(empty_html).text
    assert "No verdict is available" in text
    assert "not available" in text
    assert "Evidence not available" in text
    for name in ("reports/verdicts.json", "reports/evaluation.json", "dvc.lock"):
        assert name in text
    assert "Pass" not in text
    assert "passes" not in text
    assert not re.search(r"\d\.\d %", text)


OPTIONAL = ["reports/verdicts.json", "reports/evaluation.json", "reports/cards",
            "reports/comparison.json",
            "data/attacks", "data/ingested", "data/protected", "data/models", "data/checks",
            "data/quarantine", "keys", "dvc.lock",
            "data/ingested/2024-01/index.parquet", "data/attacks/dp_pix/examples.npz"]  # fmt: skip


@pytest.mark.parametrize("name", OPTIONAL)
def test_each_missing_part_is_named_and_the_rest_stays(
    name: str, project: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(project, tmp_path / "copy")
    gone = root / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    inputs = load_inputs(root)
    found = [item for item in inputs.missing if item.startswith(name)]
    if name != "data/quarantine":  # the index has the reasons as well
        assert found
    page = Page(render(inputs))
    assert all(item in page.text for item in found)
    assert all(title in page.text for title in TITLES.values())


def test_who_leaks_less_is_told_for_each_receiver(inputs: ReportInputs, html: str) -> None:
    found = {one.title: one for one in view.standings(inputs, "public_release")}
    assert found["DP-Pix"].level == ("Image to perturbation",)
    assert found["DP-Pix"].less == ("Pixel block mixing", "Plain", "VisualMixer")
    assert found["VisualMixer"].less == ("Pixel block mixing", "Plain")
    assert found["VisualMixer"].more == ("DP-Pix", "Image to perturbation")
    assert found["Plain"].less == ()
    assert next(iter(found)) == "DP-Pix"
    text = Page(html).text
    assert text.count("shown by 10 comparisons on the same images") == 2
    assert "\N{MINUS SIGN}98.0" in text
    assert "below 0.001" in text
    assert "p-value below 0.05" in text
    without = Page(render(replace(inputs, comparison=None))).text
    assert "Comparison of schemes: not available." in without


def test_attacks_made_for_other_kinds_are_one_quiet_line(html: str) -> None:
    text = Page(html).text
    assert "2 attacks are made for other kinds of schemes, and say nothing of some" in text
    assert html.count("2 attacks are made for other kinds of schemes</summary>") == 4
    assert html.count("1 attack is made for other kinds of schemes</summary>") == 1
    head, tail = text.split("Not applicable, which is never a pass")
    assert "not made for this kind of scheme: it does not suit denoising" in head
    assert "not made for this kind" not in tail
    assert 'title="not made for this kind of scheme: it does not suit denoising"' in html


def test_each_scheme_starts_with_its_leakage_card(inputs: ReportInputs, html: str) -> None:
    page = Page(html)
    labels = [values.get("aria-label", "") for _, values in page.tags]
    assert [name for name in labels if name.startswith("Leakage card of")] == [
        f"Leakage card of {title}"
        for title in ("DP-Pix", "Image to perturbation", "VisualMixer", "Pixel block mixing",
                      "Plain")
    ]  # fmt: skip
    section = page.text.split("Schemes in detail")[2]
    assert section.index("State") < section.index("Name")
    for said in ("Complete: every attack that counts gave a figure.", "effort quick, seed 0",
                 "Person in another photograph: the set names no persons or groups"):  # fmt: skip
        assert said in section
    worst = html.split('aria-label="Original, the three worst, VisualMixer"')[1]
    shown = shown_pictures(worst.split('aria-label="Protected, the three worst')[0])
    first = pictures("visualmixer")["original"][::-1][:3]
    assert [picture.tobytes() for picture in shown] == [image.tobytes() for image in first]
    assert "Stale" not in page.text
    old = {
        name: card.model_copy(update={"stale": "too old"}) for name, card in inputs.cards.items()
    }
    assert (
        "These figures no longer count: too old." in Page(render(replace(inputs, cards=old))).text
    )


def test_a_card_is_a_page_of_its_own(inputs: ReportInputs, card_html: str) -> None:
    page = Page(card_html)
    assert page.open == []
    text = page.text
    for said in ("VisualMixer on Handwritten digits: what leaks", "An attack succeeds.",
                 "nothing here is protected from anyone", "38.0 %", "31.6 to 44.9 %",
                 "2 attacks are made for other kinds of schemes", "Few targets",
                 "the set names no persons or groups",
                 "2,016 bits of keyed choices, which is never a reason to pass"):  # fmt: skip
        assert said in text
    alts = [values["alt"] for tag, values in page.tags if tag == "img"]
    assert len(alts) == 9
    assert alts[0] == f"Original 1: {CLASSES[pictures('visualmixer')['labels'][::-1][0]]}"
    plain = render_card(inputs.cards["visualmixer"], inputs.examples["plain"])
    assert "nothing here is protected" not in plain
    assert "What others receive are the originals." in plain
    assert shown_pictures(plain) == []


def test_many_classes_get_a_list_of_confusions(project: Path) -> None:
    inputs = load_inputs(project)
    assert inputs.evaluation is not None
    size = 20
    counts = np.eye(size, dtype=int) * 5
    counts[3, 7] = 4
    row = inputs.evaluation.rows[0].model_copy(
        update={"confusion": tuple(map(tuple, counts.tolist())), "per_class": ()}
    )
    wide = inputs.evaluation.model_copy(update={"rows": (row,)})
    text = Page(render(replace(inputs, evaluation=wide))).text
    assert "3 taken for 7: 4 images" in text
    assert "True class" not in text


def test_class_names_label_the_pictures(html: str) -> None:
    alts = {values["alt"] for tag, values in Page(html).tags if tag == "img"}
    labels = pictures("dp_pix")["labels"][::-1]
    assert {
        f"Protected {place + 1}: {CLASSES[label]}" for place, label in enumerate(labels)
    } <= alts


def test_a_cnn_that_was_attacked_has_its_verdict_and_figures(inputs: ReportInputs) -> None:
    text = Page(render(inputs)).text
    part = text[text.index("If a trained CNN is handed out") :]
    assert "resnet20, trained on VisualMixer" in part
    assert "74 of 200 are betrayed." in part
    assert "Holder of the CNN" in part
    assert "No CNN was attacked" not in part


def test_that_no_cnn_was_attacked_is_said(inputs: ReportInputs) -> None:
    assert inputs.verdicts is not None
    without = replace(inputs, verdicts=inputs.verdicts.model_copy(update={"models": {}}))
    assert "No CNN was attacked" in Page(render(without)).text


def test_the_results_behind_a_verdict_on_a_cnn_are_missed(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy)
    shutil.rmtree(copy / "data/attacks_model")
    found = load_inputs(copy)
    assert "data/attacks_model/visualmixer/resnet20/results.json" in found.missing
    assert "resnet20, trained on VisualMixer" in Page(render(found)).text
