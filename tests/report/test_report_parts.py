"""The loader, the plots, the pictures and what is derived from the figures."""

import csv
import io
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_project import NUMBERS, TITLES, TRAINED, lock, pictures
from scipy.stats import beta

from veilset.errors import CorruptError
from veilset.report import page, plots, view, words
from veilset.report.lineage import families, stages_of
from veilset.report.load import load_inputs
from veilset.report.model import Finding, ReportInputs, SchemeVerdict, TemplateVerdict
from veilset.report.notes import zero_bound
from veilset.report.pictures import as_picture, contact_sheet, data_uri, png


@pytest.fixture(scope="module")
def inputs(project: Path) -> ReportInputs:
    return load_inputs(project)


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314  (our own output)


def altered(project: Path, tmp_path: Path, name: str, content: str | bytes) -> Path:
    root = Path(shutil.copytree(project, tmp_path / "copy"))
    data = content.encode() if isinstance(content, str) else content
    (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("reports/verdicts.json", "{"),
        ("reports/verdicts.json", '{"schemes": {"a": {"templates": {"t": {"verdict": "fine"}}}}}'),
        ("reports/evaluation.json", '{"rows": [{"scheme": "a"}]}'),
        ("reports/evaluation.json", '{"rows": [], "x": NaN}'),
        ("data/attacks/dp_pix/results.json", "[" * 100_000),
        ("data/attacks/dp_pix/results.json", b"\xff\xfe"),
        ("reports/cards/dp_pix.json", '{"schema": 1}'),
        ("data/attacks/dp_pix/examples.npz", b"PK broken"),
        ("data/ingested/2024-01/index.parquet", b"PAR1 broken"),
        ("data/checks/2024-01/results.json", '{"results": [{"column": 3}]}'),
        ("data/models/dp_pix-small_cnn/history.csv", "epoch,lr\nx,1\n"),
        ("data/quarantine/2024-01/quarantine.csv", "name,why\na,b\n"),
        ("dvc.lock", "stages: [1, 2"),
        ("dvc.lock", "stages: 3"),
    ],
)
def test_malformed_evidence_is_refused_by_path(
    project: Path, tmp_path: Path, name: str, content: str | bytes
) -> None:
    root = altered(project, tmp_path, name, content)
    with pytest.raises(CorruptError, match=Path(name).name):
        load_inputs(root)


def test_pickled_examples_are_refused(project: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    hostile = pictures("dp_pix") | {"labels": np.array([{"a": 1}] * 8, dtype=object)}
    np.savez(buffer, **hostile)
    root = altered(project, tmp_path, "data/attacks/dp_pix/examples.npz", buffer.getvalue())
    with pytest.raises(CorruptError):
        load_inputs(root)


@pytest.mark.parametrize("change", ["shape", "dtype", "order"])
def test_inconsistent_examples_are_refused(project: Path, tmp_path: Path, change: str) -> None:
    arrays = pictures("dp_pix")
    if change == "shape":
        arrays["protected"] = arrays["protected"][:-1]
    elif change == "dtype":
        arrays["protected"] = arrays["protected"].astype(float)
    else:
        arrays["order"] = np.array([0, 8])
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    root = altered(project, tmp_path, "data/attacks/dp_pix/examples.npz", buffer.getvalue())
    with pytest.raises(CorruptError):
        load_inputs(root)


def test_examples_come_in_their_order(inputs: ReportInputs) -> None:
    raw = pictures("visualmixer")
    assert np.array_equal(inputs.examples["visualmixer"].original, raw["original"][raw["order"]])


def test_data_counts_leave_out_what_was_not_kept(inputs: ReportInputs) -> None:
    drop = inputs.drops[0]
    assert drop.counts is not None
    assert {role: sum(names.values()) for role, names in drop.counts.items()} == drop.splits
    assert (drop.duplicates, drop.near_duplicates, drop.groups) == (3, 4, 0)
    assert drop.quarantined == {"truncated": 2, "animated": 1}


def test_the_worst_attack_is_the_one_furthest_above_chance(inputs: ReportInputs) -> None:
    rows = {row.name: row for row in view.scheme_rows(inputs)}
    mixing = rows["pixel_block_mixing"].leak
    assert mixing is not None
    assert (mixing.worst.attack, mixing.template) == ("linkage", "public_release")
    assert mixing.excess == pytest.approx((mixing.worst.high - 0.01) / 0.99)  # type: ignore[operator]


def test_without_verdicts_the_strongest_sound_result_counts(inputs: ReportInputs) -> None:
    bare = replace(inputs, verdicts=None)
    rows = {row.name: row for row in view.scheme_rows(bare)}
    assert rows["visualmixer"].overall is None
    leak = rows["visualmixer"].leak
    assert leak is not None
    assert leak.worst.attack == "linkage"
    unsound = rows["image_to_perturbation"].leak
    assert unsound is not None
    assert unsound.worst.attack in ("known_pairs", "reconstruction")
    assert view.points(bare) == ()


def test_schemes_are_ordered_best_first_and_plain_last(inputs: ReportInputs) -> None:
    names = [row.name for row in view.scheme_rows(inputs)]
    assert names == ["dp_pix", "image_to_perturbation", "visualmixer", "pixel_block_mixing",
                     "plain"]  # fmt: skip


def test_schemes_are_compared_by_one_model(inputs: ReportInputs) -> None:
    assert view.compared_model(inputs) == "small_cnn"
    used = {row.utility.model for row in view.scheme_rows(inputs) if row.utility}
    assert used == {"small_cnn"}
    uses = {row.name: row.utility.test_on for row in view.scheme_rows(inputs) if row.utility}
    assert uses["pixel_block_mixing"] == "plain"
    assert uses["visualmixer"] == "protected"


def test_a_result_without_a_finding_gets_no_verdict(inputs: ReportInputs) -> None:
    file = inputs.attacks["dp_pix"]
    extra = file.results[0].model_copy(update={"attack": "new", "title": "New"})
    attacks = {**inputs.attacks, "dp_pix": file.model_copy(update={"results": (extra,)})}
    changed = replace(inputs, attacks=attacks)
    rows = view.matrix(changed, view.scheme_rows(changed))
    line = next(row for row in rows if row.attack == "new")
    assert [cell.word if cell else None for cell in line.cells] == ["no verdict", *[None] * 4]


def test_attacks_made_for_other_kinds_stay_out_of_the_way(inputs: ReportInputs) -> None:
    rows = view.scheme_rows(inputs)
    lines = {line.attack: line for line in view.matrix(inputs, rows)}
    assert "jigsaw" not in lines, "it is made for none of these schemes"
    cells = {row.name: cell for row, cell in zip(rows, lines["denoising"].cells, strict=True)}
    assert all(cell and cell.elsewhere == (name != "dp_pix") for name, cell in cells.items())
    assert {group.title for group in view.not_applicable(inputs)} == {
        "Person in another photograph"
    }
    found = {(group.title, group.reason): group.schemes for group in view.elsewhere(inputs)}
    assert len(found["Jigsaw", "it does not suit jigsaw"]) == len(NUMBERS)
    assert TITLES["dp_pix"] not in found["Denoising", "it does not suit denoising"]


def test_a_verdict_that_needs_an_attack_made_for_others_says_so(inputs: ReportInputs) -> None:
    assert inputs.verdicts is not None
    scheme = inputs.verdicts.schemes["visualmixer"]
    outcome = scheme.templates["public_release"]
    assert not any(group.title == "Jigsaw" for group in view.undecided(inputs))
    for counts in (True, False):
        finding = Finding(attack="jigsaw", verdict="undecided", reason="why", counts=counts)
        told = outcome.model_copy(update={"findings": (finding,)})
        changed = scheme.model_copy(update={"templates": {"public_release": told}})
        verdicts = inputs.verdicts.model_copy(update={"schemes": {"visualmixer": changed}})
        found = view.undecided(replace(inputs, verdicts=verdicts))
        assert [group.title for group in found] == (["Jigsaw"] if counts else [])


def test_the_same_question_for_both_receivers_is_told_once(inputs: ReportInputs) -> None:
    assert inputs.verdicts is not None
    finding = Finding(attack="linkage", verdict="undecided", reason="the oracle is weak")
    outcome = TemplateVerdict(verdict="undecided", findings=(finding,))
    scheme = SchemeVerdict(templates={"outside_trainer": outcome, "public_release": outcome})
    verdicts = inputs.verdicts.model_copy(update={"schemes": {"visualmixer": scheme}})
    (group,) = view.undecided(replace(inputs, verdicts=verdicts))
    assert group.attacker == "Outside trainer and Public release"
    assert group.schemes == ("VisualMixer",)


def test_csvs_for_dvc(inputs: ReportInputs, tmp_path: Path) -> None:
    points = view.points(inputs)
    plots.write_csvs(tmp_path / "plots", points, inputs.models)
    with (tmp_path / "plots/privacy_utility.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["scheme", "accuracy", "accuracy_low", "accuracy_high", "leakage",
                             "leakage_low", "leakage_high", "attacker"]  # fmt: skip
    found = {(row["scheme"], row["attacker"]): row for row in rows}
    assert len(found) == len(rows) == 2 * len(NUMBERS)
    for name, (accuracy, linkage, reconstruction, _) in NUMBERS.items():
        for receiver, leak in (
            ("public_release", linkage), ("outside_trainer", reconstruction),
        ):  # fmt: skip
            row = found[name, receiver]
            assert float(row["accuracy"]) == accuracy
            assert float(row["leakage"]) == leak
    with (tmp_path / "plots/history.csv").open() as file:
        epochs = list(csv.DictReader(file))
    assert len(epochs) == 12 * len(TRAINED)
    assert epochs[0]["validation_loss"] == ""


def test_plot_is_accessible_deterministic_and_complete(inputs: ReportInputs) -> None:
    points = view.points(inputs)
    text = plots.privacy_utility(points, 0.975)
    assert text == plots.privacy_utility(points, 0.975)
    svg = parsed(text)
    space = "{http://www.w3.org/2000/svg}"
    assert [svg[0].tag, svg[1].tag] == [f"{space}title", f"{space}desc"]
    tips = [element.text or "" for element in svg.iter(f"{space}title")][1:]
    assert len(tips) == len(points)
    shown = {"".join(element.itertext()).strip() for element in svg.iter(f"{space}text")}
    assert {*TITLES.values(), "Outside trainer", "Public release"} <= shown
    assert sum("public release" in tip for tip in tips) == len(TITLES)
    assert not list(svg.iter(f"{space}metadata"))
    assert not list(svg.iter(f"{space}style"))


def test_plots_on_one_page_share_no_id(inputs: ReportInputs) -> None:
    texts = [plots.training(inputs.models[:2], name) for name in ("a", "b")]
    ids = [{e.get("id") for e in parsed(text).iter() if e.get("id")} for text in texts]
    assert all(ids)
    assert not ids[0] & ids[1]


heights = st.lists(st.floats(0, 100), max_size=16)


@given(heights, st.floats(0.1, 5))
def test_labels_are_apart_in_order_and_no_farther_than_they_must(
    wanted: list[float], gap: float
) -> None:
    places = plots.spread(wanted, gap, 0, 100)
    order = np.argsort(wanted, kind="stable")
    assert len(places) == len(wanted)
    assert np.all(np.diff(np.array(places)[order]) >= gap - 1e-9)
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in places)
    if np.all(np.diff(np.sort(wanted)) > gap):
        assert places == pytest.approx(wanted)


def test_labels_without_room_share_what_there_is() -> None:
    assert plots.spread([5, 5, 5], 60, 0, 10) == pytest.approx([0, 5, 10])
    assert plots.spread([1, 9], 4, 0, 10) == pytest.approx([1, 9])
    assert plots.spread([5, 5], 4, 0, 10) == pytest.approx([3, 7])
    assert plots.spread([], 4, 0, 10) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 16), st.integers(0, 1000))
def test_no_two_leaders_of_labels_cross(count: int, seed: int) -> None:
    dots = [
        (float(x), float(y)) for x, y in np.random.default_rng(seed).uniform(0, 100, (count, 2))
    ]
    before = plots.spread([y for _, y in dots], 6, 0, 100)
    after = plots._uncross(dots, before)
    assert sorted(after) == sorted(before)
    leaders = [(x, y, place) for (x, y), place in zip(dots, after, strict=True)]
    for (x, y, place), (x2, y2, place2) in combinations(sorted(leaders), 2):
        at = y + (place - y) * (x2 - x) / (106 - x)  # height of the first where the second starts
        assert (at > y2) == (place > place2)


def test_sixteen_crowded_schemes_have_sixteen_readable_labels(inputs: ReportInputs) -> None:
    point = view.points(inputs)[0]
    same = [replace(point, title=f"Scheme {letter}") for letter in "ABCDEFGHIJKLMNOP"]
    svg = parsed(plots.privacy_utility(same))
    texts = list(svg.iter("{http://www.w3.org/2000/svg}text"))
    labels = [e for e in texts if "Scheme" in "".join(e.itertext())]
    assert len(labels) == 16
    places = [[float(n) for n in re.findall(r"[-\d.]+", e.attrib["transform"])] for e in labels]
    tops = sorted(place[-1] for place in places)
    assert min(np.diff(tops)) > 9.5, "lines of 9.5 points lie on each other"
    width = float(svg.attrib["viewBox"].split()[2])
    lefts = {place[-2] for place in places}
    assert len(lefts) == 1
    assert lefts.pop() < width - 8 * 5


def test_plot_survives_no_points_and_odd_titles(inputs: ReportInputs) -> None:
    assert "No scheme has both figures." in plots.privacy_utility(())
    odd = replace(view.points(inputs)[0], title="<b>$\\frac{1}{2}$ & ]]>")
    assert "<b>$" in "".join(parsed(plots.privacy_utility([odd])).itertext())


def test_plot_does_not_touch_global_settings(inputs: ReportInputs) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plots.privacy_utility_png(view.points(inputs))
    assert dict(mpl.rcParams) == before


def test_plot_as_png(inputs: ReportInputs) -> None:
    data = plots.privacy_utility_png(view.points(inputs), 0.9)
    picture = Image.open(io.BytesIO(data))
    assert min(picture.size) > 400
    assert "Software" not in picture.info
    assert data == plots.privacy_utility_png(view.points(inputs), 0.9)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_every_pixel(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, channels), dtype=np.uint8)
    back = np.asarray(Image.open(io.BytesIO(png(as_picture(image)))))
    assert np.array_equal(back.reshape(image.shape), image)
    assert data_uri(image).startswith("data:image/png;base64,")


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 4), count=st.integers(1, 5), scale=st.integers(1, 4))
def test_contact_sheet_holds_every_image_magnified(rows: int, count: int, scale: int) -> None:
    rng = np.random.default_rng(rows * 100 + count * 10 + scale)
    groups = [
        (f"Scheme {row}", rng.integers(0, 256, (count, 5, 6, 1 + 2 * (row % 2)), dtype=np.uint8))
        for row in range(rows)
    ]
    sheet = contact_sheet(groups, scale)
    pixels = np.asarray(sheet)
    assert sheet.mode == "RGB"
    for line, (_, images) in enumerate(groups):
        top = 6 + line * (5 * scale + 6)
        for column, image in enumerate(images):
            left = sheet.width - (count - column) * (6 * scale + 6)
            part = pixels[top : top + 5 * scale : scale, left : left + 6 * scale : scale]
            assert np.array_equal(part, np.broadcast_to(image, (5, 6, 3)))


def test_contact_sheet_refuses_rows_that_do_not_match() -> None:
    one, two = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="same number"):
        contact_sheet([("a", one), ("b", two)])
    with pytest.raises(ValueError, match="scale"):
        contact_sheet([("a", one)], 0)
    with pytest.raises(ValueError, match="rows"):
        contact_sheet([])


def test_lineage_follows_outputs_into_folders_and_out_of_them() -> None:
    stages = {stage.name: stage for stage in stages_of(lock())}
    assert stages["ingest@2024-01"].level == 0
    assert stages["attack@dp_pix"].needs == ("protect@dp_pix",)
    assert len(stages["evaluate"].needs) == len(NUMBERS)
    assert families(tuple(stages.values()))[0] == [("ingest", 1)]
    assert ("train", 5) in families(tuple(stages.values()))[2]


def test_lineage_digests_change_with_params_and_outputs() -> None:
    before = {stage.name: stage for stage in stages_of(lock())}["protect@dp_pix"]
    changed = lock()
    changed["stages"]["protect@dp_pix"]["params"]["params.yaml"]["seed"] = 2
    changed["stages"]["protect@dp_pix"]["outs"][0]["md5"] = "e" * 32
    after = {stage.name: stage for stage in stages_of(changed)}["protect@dp_pix"]
    assert before.params != after.params
    assert before.outs != after.outs


def test_lineage_refuses_a_circle() -> None:
    stages = {
        "a": {"deps": [{"path": "y"}], "outs": [{"path": "x"}]},
        "b": {"deps": [{"path": "x"}], "outs": [{"path": "y"}]},
    }
    with pytest.raises(ValueError, match="circle"):
        stages_of({"stages": stages})


@given(st.integers(1, 100_000))
def test_bound_after_no_success_is_clopper_pearson(targets: int) -> None:
    assert zero_bound(targets) == pytest.approx(beta.ppf(0.975, 1, targets))


@given(st.floats(0, 1), st.floats(0, 1))
def test_shares_read_as_per_cent(low: float, high: float) -> None:
    shown = words.interval(low, high, "rank1").removesuffix(" %").split(" to ")
    assert [float(text) for text in shown] == pytest.approx([100 * low, 100 * high], abs=0.051)


def test_words() -> None:
    assert words.figure(None) == "not available"
    assert words.figure(0.5, "auc") == "0.500"
    assert words.points(-1.25) in ("−1.2", "−1.3")
    assert words.number(1234567) == "1\u202f234\u202f567"
    assert words.seconds(600) == "10.0 min"
    assert words.plain({"b": [1, 2.5], "a": None}) == "a not available, b 1, 2.5"
    assert words.plain("ab" * 32) == "abababababababab…"
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"


def test_schemes_go_by_the_name_of_their_folder(project: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(project, tmp_path / "copy"))
    for part in ("data/attacks", "data/protected"):
        (root / part / "dp_pix").rename(root / part / "dp_pix-weak")
    (root / "data/models/dp_pix-small_cnn").rename(root / "data/models/dp_pix-weak-small_cnn")
    inputs = load_inputs(root)
    assert "dp_pix-weak" in inputs.attacks
    assert "dp_pix-weak" in inputs.examples
    assert inputs.protected["dp_pix-weak"].parameters["region"] == 8
    models = {name: page._models(inputs, name) for name in ("dp_pix", "dp_pix-weak")}
    assert [len(found) for found in models.values()] == [0, 1]
