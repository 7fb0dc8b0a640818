"""Croissant metadata: what it says, and what mlcroissant says of it where it is installed."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from release_cases import TERMS, Made, card_of

from veilset.errors import ReleaseError, SettingsError
from veilset.files import write_json
from veilset.release.bundle import write_release
from veilset.release.croissant import (
    ARROW,
    CONFORMS_TO,
    PARQUET,
    croissant,
    croissant_faults,
)
from veilset.release.signing import SigningKey
from veilset.release.statement import SchemeFacts
from veilset.schemes.registry import make_scheme, scheme_names


def write(case: Made, folder: Path, **more: Any) -> Path:
    write_release(
        folder, case.sets, case.facts, SigningKey(bytes(32)), card=card_of(case.scheme),
        terms=TERMS, **more,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def release(project: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(project, tmp_path_factory.mktemp("out") / "release")


@pytest.fixture(scope="module")
def with_parquet(project: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(project, tmp_path_factory.mktemp("out") / "release", parquet=True)


def read(release: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((release / "croissant.json").read_text())
    return found


def test_every_shard_is_a_file_with_its_hash(release: Path) -> None:
    files = [one for one in read(release)["distribution"] if one["@type"] == "cr:FileObject"]
    assert [one["contentUrl"] for one in files] == sorted(
        path.relative_to(release).as_posix() for path in release.rglob("*.arrow")
    )
    for one in files:
        raw = (release / one["contentUrl"]).read_bytes()
        assert one["sha256"] == hashlib.sha256(raw).hexdigest()
        assert one["contentSize"] == f"{len(raw)} B"
        assert one["encodingFormat"] == ARROW


def test_every_split_is_a_record_set_of_its_files(release: Path) -> None:
    found = read(release)
    assert [one["name"] for one in found["recordSet"]] == ["test", "train", "validation"]
    train = found["recordSet"][1]
    assert [field["name"] for field in train["field"]] == ["id", "label", "image"]
    globs = {
        one["@id"]: one["includes"] for one in found["distribution"] if one["@type"] == "cr:FileSet"
    }
    source = train["field"][0]["source"]["fileSet"]["@id"]
    assert {path.name for path in release.glob(globs[source])} == {"train-00000.arrow"}
    assert len(list(release.glob(globs[source]))) == 2


def test_it_says_what_the_statement_says(release: Path, project: Made) -> None:
    found = read(release)
    assert found["conformsTo"] == CONFORMS_TO
    assert (found["name"], found["datePublished"]) == ("faces", "2026-03-01")
    assert (found["license"], found["creator"]["name"]) == (TERMS.licence, TERMS.publisher)
    assert "pseudonymised and not anonymous" in found["description"]
    assert "Labels are not covered by the guarantee." in found["rai:dataLimitations"]
    assert project.facts.root in found["citeAs"]
    assert found["version"] == f"1.0.0+{project.facts.root[:16]}"


def test_with_parquet_the_record_sets_are_of_it(with_parquet: Path) -> None:
    found = read(with_parquet)
    kinds = {one["encodingFormat"] for one in found["distribution"] if "sha256" in one}
    assert kinds == {ARROW, PARQUET}
    sets = [one for one in found["distribution"] if one["@type"] == "cr:FileSet"]
    assert {one["encodingFormat"] for one in sets} == {PARQUET}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("uint8[8,8]", "sc:Text"), ("int64", "sc:Integer"), ("uint8", "sc:Integer"),
     ("float32", "sc:Float"), ("bool", "sc:Boolean")],
)  # fmt: skip
def test_side_information_has_its_type(project: Made, kind: str, expected: str) -> None:
    one = project.facts.sets[0].model_copy(update={"columns": {"side": kind}})
    facts = project.facts.model_copy(update={"sets": (one,)})
    field = croissant(facts, {}, TERMS)["recordSet"][0]["field"][-1]
    assert (field["name"], field["dataType"]) == ("side", expected)


def test_without_mlcroissant_the_check_says_how_to_get_it(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlcroissant", None)
    with pytest.raises(SettingsError, match="not installed here: install it"):
        croissant_faults(release / "croissant.json")


def test_metadata_that_are_not_valid_are_not_released(
    project: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faults(path: Path) -> tuple[str, ...]:
        return ("No name.",) if json.loads(path.read_text())["name"] == "faces" else ()

    monkeypatch.setattr("veilset.release.croissant.croissant_faults", faults)
    with pytest.raises(ReleaseError, match=r"does not accept .* \(No name\), so nothing"):
        write(project, tmp_path / "release", check_metadata=True)
    assert not (tmp_path / "release").exists()


# ------------------------------------------------------------------------------ by mlcroissant


@pytest.fixture
def mlcroissant() -> Any:
    return pytest.importorskip("mlcroissant")


def test_mlcroissant_finds_nothing_wrong(
    mlcroissant: Any, release: Path, with_parquet: Path, project: Made, tmp_path: Path
) -> None:
    write(project, tmp_path / "release", check_metadata=True)
    for folder in (release, with_parquet):
        assert croissant_faults(folder / "croissant.json") == ()


@pytest.mark.parametrize("name", scheme_names())
def test_mlcroissant_accepts_the_words_of_every_scheme(
    mlcroissant: Any, project: Made, tmp_path: Path, name: str
) -> None:
    scheme = SchemeFacts.model_validate(make_scheme(name, {}, "test").record())
    facts = project.facts.model_copy(update={"scheme": scheme, "dataset": "My faces 1.0_b"})
    files = {"drop-0/train-00000.arrow": ("0" * 64, 12)}
    write_json(tmp_path / "croissant.json", croissant(facts, files, TERMS))
    assert croissant_faults(tmp_path / "croissant.json") == ()


def test_mlcroissant_names_what_is_wrong(mlcroissant: Any, release: Path, tmp_path: Path) -> None:
    path = tmp_path / "croissant.json"
    found = read(release)
    del found["name"]
    found["recordSet"][0]["field"][0]["source"]["fileSet"]["@id"] = "nothing"
    write_json(path, found)
    assert croissant_faults(path)
    path.write_text("{")
    assert croissant_faults(path)


def test_mlcroissant_loads_a_release_with_parquet(
    mlcroissant: Any, with_parquet: Path, project: Made
) -> None:
    data = mlcroissant.Dataset(jsonld=str(with_parquet / "croissant.json"))
    rows = list(data.records("train"))
    ids = [bytes(row["train/id"]).decode() for row in rows]
    expected = {
        row.tobytes().hex(): image.tobytes()
        for one in project.sets.values()
        for row, image in zip(one.ids("train"), one.images("train"), strict=True)
    }
    pixels = [row["train/image"] for row in rows]
    assert dict(zip(ids, pixels, strict=True)) == expected
