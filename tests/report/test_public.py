"""The page for publication: what is left out, and the last look that finds what was not."""

import getpass
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_project import CLASSES, write_project

from veilset.data.shards import ImageSet
from veilset.errors import ReleaseError
from veilset.files import read_table, write_table
from veilset.report.load import load_inputs
from veilset.report.model import ReportInputs
from veilset.report.page import render
from veilset.report.pictures import data_uri
from veilset.report.public import for_publication, gather, refuse_private

NAME = "ward_7/scan of Mrs Example-0042.png"
PERSON = "patient_0815"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose index has telling names, persons, and the ids of its images."""
    made = write_project(tmp_path_factory.mktemp("private"))
    path = made / "data/ingested/2024-01/index.parquet"
    table = read_table(path)
    ids = ImageSet.open(path.parent).ids("train")
    table.loc[: len(ids) - 1, "id"] = [bytes(one).hex() for one in ids]
    table.loc[0, "name"], table.loc[1, "name"] = NAME, "holiday/IMG_20240501.jpg"
    table.loc[:1, "group"] = PERSON
    write_table(path, table)
    return made


@pytest.fixture(scope="module")
def inputs(root: Path) -> ReportInputs:
    return load_inputs(root, public=True, commit="0" * 40)


@pytest.fixture(scope="module")
def page(inputs: ReportInputs) -> str:
    return render(inputs)


def test_the_page_as_it_is_passes_the_last_look(root: Path, page: str) -> None:
    refuse_private(page, root)


def test_the_page_has_no_byte_of_an_id_name_path_or_drop(
    root: Path, inputs: ReportInputs, page: str
) -> None:
    table = read_table(root / "data/ingested/2024-01/index.parquet")
    private = {*table["id"].dropna(), *table["name"], NAME, PERSON, "2024-01", str(root), "data/",
               str(Path.home()), "model.json", "results.json"}  # fmt: skip
    private |= {drop.root[:16] for drop in inputs.drops}
    private |= {stage.outs for stage in inputs.stages if stage.outs}
    private |= {name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4}
    assert len(private) > 100
    assert [word for word in private if word in page] == []
    # Whoever writes the owner's page by mistake is stopped.
    with pytest.raises(ReleaseError, match="was not written"):
        refuse_private(render(replace(inputs, public=False)), root)


def test_no_picture_is_an_original(root: Path, page: str) -> None:
    opened = ImageSet.open(root / "data/ingested/2024-01")
    shown = set(re.findall(r"data:image/png;base64,[A-Za-z0-9+/=]+", page))
    assert shown, "a scheme that passes shows what others receive"
    for split in opened.splits:
        assert not shown & {data_uri(image) for image in opened.images(split)}


@pytest.mark.parametrize(
    ("leak", "kind"),
    [
        (NAME, "the name of an image's file"),
        ("scan of Mrs Example-0042", "the name of an image's file"),
        ("IMG_20240501.jpg", "the name of an image's file"),
        ("IMG_20240501", "the name of an image's file"),
        (PERSON, "the name of a person or group"),
        ("2024-01", "the name of a drop"),
    ],
)
def test_a_planted_word_is_found(root: Path, page: str, leak: str, kind: str) -> None:
    for planted in (f"<p>{leak}</p>", f'<p title="{leak}">x</p>', f"<p>See ({leak}).</p>"):
        with pytest.raises(ReleaseError, match=kind) as error:
            refuse_private(page.replace("</main>", f"{planted}</main>"), root)
        assert leak not in str(error.value)
    assert refuse_private(page, root) is None


@given(st.integers(0, 89))
def test_every_planted_id_is_found(root: Path, page: str, place: int) -> None:
    found = bytes(ImageSet.open(root / "data/ingested/2024-01").ids("train")[place]).hex()
    with pytest.raises(ReleaseError, match="the id of an image"):
        refuse_private(page.replace("</main>", f"<code>{found}</code></main>"), root)


def test_a_planted_folder_is_found(root: Path, page: str) -> None:
    with pytest.raises(ReleaseError, match="a folder of this machine"):
        refuse_private(page.replace("</main>", f"<p>{root}/reports</p></main>"), root)


@pytest.mark.parametrize("split", ["train", "test", "auxiliary"])
def test_a_planted_picture_is_found(root: Path, page: str, split: str) -> None:
    image = ImageSet.open(root / "data/ingested/2024-01").images(split)[-1]
    planted = f'<img src="{data_uri(image)}" alt="x">'
    with pytest.raises(ReleaseError, match="an original or a reconstruction"):
        refuse_private(page.replace("</main>", f"{planted}</main>"), root)


def test_a_planted_reconstruction_is_found(root: Path, page: str, inputs: ReportInputs) -> None:
    planted = f'<img src="{data_uri(inputs.examples["visualmixer"].reconstruction[0])}" alt="x">'
    with pytest.raises(ReleaseError, match="an original or a reconstruction"):
        refuse_private(page.replace("</main>", f"{planted}</main>"), root)


def test_what_may_be_shown_is_let_through(root: Path, page: str) -> None:
    planted = page.replace("</main>", "<p>2024-01</p></main>")
    refuse_private(planted, root, known=("2024-01",))
    assert "2024-01" not in gather(root, ("2024-01",)).words["the name of a drop"]


def test_common_words_are_not_looked_for(tmp_path: Path) -> None:
    root = write_project(tmp_path)
    path = root / "data/ingested/2024-01/index.parquet"
    table = read_table(path)
    table["name"] = "attack"
    table["group"] = "42"
    write_table(path, table)
    refuse_private(render(load_inputs(root, public=True)), root)


def test_persons_who_are_classes_become_numbers(inputs: ReportInputs) -> None:
    closed = replace(
        inputs, drops=tuple(replace(drop, groups_are_classes=True) for drop in inputs.drops)
    )
    text = render(closed)
    open_text = render(inputs)
    for name in CLASSES:
        assert f">{name}<" in open_text
        assert f': {name}"' in open_text
        assert f">{name}<" not in text
        assert f': {name}"' not in text
    assert ">class 1<" in text


def test_stripping_twice_changes_nothing(inputs: ReportInputs) -> None:
    once = for_publication(inputs)
    assert render(once) == render(inputs)


def test_notes_of_an_attack_that_are_no_figures_are_left_out(inputs: ReportInputs) -> None:
    file = inputs.attacks["visualmixer"]
    noted = file.results[0].model_copy(update={"details": {"target": NAME, "rank": 2.5}})
    told = replace(
        inputs,
        attacks={"visualmixer": file.model_copy(update={"results": (noted, *file.results[1:])})},
    )
    assert NAME not in render(told)
    assert "rank 2.5" in render(told)
