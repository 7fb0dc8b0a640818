"""What is decided about a drop, with the real checks: accepted, held, or refused with a reason."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from drop_places import REPOSITORY, SAID, bare_project
from PIL import Image
from sklearn.datasets import load_digits

from veilset.drops import admission
from veilset.drops.intake import ORIGINS, add_drop, origin_of
from veilset.drops.record import DROPS_JOURNAL, DropRecord, find_drop
from veilset.errors import SettingsError
from veilset.files import write_text
from veilset.keys import DEMO_IDS_KEY
from veilset.settings import load_drops
from veilset.stages import ingest as ingest_stage
from veilset.stages.admission import DRIFT, decide, drop_folders, set_aside

DIGITS = load_digits()
PIXELS = (DIGITS.images * 255 / 16).astype(np.uint8)


def digit_folder(place: Path, first: int, change: int = 0) -> Path:
    """Six of each digit, every one with noise of its own, in the classes of the embedded set."""
    random = np.random.default_rng(first)
    rows = random.permutation(len(PIXELS))
    for row in np.concatenate([rows[DIGITS.target[rows] == n][:6] for n in range(10)]):
        noise = random.integers(-30, 31, (8, 8)) + change
        pixels = np.clip(PIXELS[row].astype(int) + noise, 0, 255).astype(np.uint8)
        path = place / str(DIGITS.target[row]) / f"maria_{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return place


@pytest.fixture(scope="session")
def with_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the embedded digits are ingested."""
    root = bare_project(tmp_path_factory.mktemp("decisions") / "project")
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    # All in one role, so that even 60 images in ten classes are enough of each.
    shares = {"train": 1, "validation": 0, "test": 0, "auxiliary": 0, "gallery": 0}
    values["ingest"] = {"size": 8, "channels": 1, "shares": shares}
    write_text(root / "params.yaml", yaml.safe_dump(values))
    ingest_stage.run(root, "digits")
    return root


def decided(root: Path, place: Path, **said: Any) -> DropRecord:
    record, _ = add_drop(root, place, replace(SAID, **said), DEMO_IDS_KEY, lambda _: None, 0.0)
    ingest_stage.run(root, record.name)
    return decide(root, record.name)


def loosened(root: Path, **check: Any) -> None:
    values = yaml.safe_load((root / "params.yaml").read_text())
    write_text(root / "params.yaml", yaml.safe_dump({**values, "check": check}))


def test_a_drop_like_the_earlier_ones_is_accepted(with_digits: Path, tmp_path: Path) -> None:
    record = decided(with_digits, digit_folder(tmp_path / "p", first=1), name="alike")
    assert record.state == "accepted", record.decisions
    assert record.counts["images"] == 60
    assert load_drops(with_digits).names[-1] == "alike"
    verdict = with_digits / DRIFT / "alike/checks/verdict.json"
    assert json.loads(verdict.read_text())["critical_failed"] == []
    assert "class_shift" in (with_digits / DRIFT / "alike/checks/results.json").read_text()
    assert list((with_digits / DRIFT / "alike/checks/data_docs").rglob("*.html"))


def test_a_drop_that_changes_the_picture_waits_for_a_person(
    with_digits: Path, tmp_path: Path
) -> None:
    root = with_digits
    before = load_drops(root).names
    record = decided(root, digit_folder(tmp_path / "p", first=2, change=60), name="dark")
    assert record.state == "held"
    (reason,) = [one for one in record.decisions[-1].reasons if one.startswith("brightness_shift")]
    assert "60 images against" in reason and "observed 0." in reason
    assert load_drops(root).names == before and "dark" in load_drops(root).drops
    with pytest.raises(SettingsError, match="--by is empty"):
        admission.approve(root, "dark", " ")
    approved = admission.approve(root, "dark", "Ann Owner", ["new scanner"])
    assert approved.state == "accepted"
    assert (approved.decisions[-1].by, approved.decisions[-1].reasons) == (
        "Ann Owner", ("new scanner",),
    )  # fmt: skip
    assert load_drops(root).names == (*before, "dark")
    with pytest.raises(SettingsError, match="'dark' is accepted"):
        admission.approve(root, "dark", "Ann Owner")
    assert load_drops(root).fit_drops == ("digits",)


def test_a_drop_that_cannot_be_protected_leaves_the_pipeline_until_somebody_decides(
    with_digits: Path, tmp_path: Path
) -> None:
    root = with_digits
    before = load_drops(root).names
    assert decided(root, digit_folder(tmp_path / "p", first=12), name="hard").state == "accepted"
    made = root / "data/protected/plain/hard"
    made.mkdir(parents=True)
    (root / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  protect@plain-hard: {cmd: x}\n  protect@plain-digits: {cmd: x}\n"
    )
    with pytest.raises(SettingsError, match="--reason is empty"):
        set_aside(root, "hard", " ")
    assert set_aside(root, "hard", "it cannot be mixed").state == "held"
    assert load_drops(root).names == before and "hard" in load_drops(root).drops
    assert not made.exists() and (root / "data/raw/hard/drop").is_dir()
    assert "hard" not in (root / "dvc.lock").read_text()
    with pytest.raises(SettingsError, match="'hard' is held"):
        set_aside(root, "hard", "again")
    assert admission.approve(root, "hard", "Ann Owner").state == "accepted"
    assert load_drops(root).names == (*before, "hard")
    (root / "dvc.lock").unlink()


def test_what_killed_runs_left_of_a_drop_is_among_what_is_taken_away(tmp_path: Path) -> None:
    places = ("data/ingested/.w.partial", "data/quarantine/.w.old", "data/ingested/w",
              "data/protected/plain/.w.partial", "data/provenance/plain/w")  # fmt: skip
    for place in (*places, "data/ingested/.ww.partial"):
        (tmp_path / place).mkdir(parents=True)
    found = {str(path.relative_to(tmp_path)) for path in drop_folders(tmp_path, "w")}
    assert set(places) <= found
    assert not any("ww" in path for path in found)


def test_the_last_drop_of_a_pipeline_stays_in_it(tmp_path: Path) -> None:
    root = bare_project(tmp_path / "project")
    record, _ = add_drop(
        root, digit_folder(tmp_path / "p", first=1), replace(SAID, name="only"), DEMO_IDS_KEY,
        lambda _: None, 0.0,
    )  # fmt: skip
    write_text(root / "drops.yaml", yaml.safe_dump({
        "names": ["only"], "fit_drops": ["only"], "drops": {"only": admission.block_of(record)},
    }))  # fmt: skip
    admission.accept(root, "only", {"images": 60})
    with pytest.raises(SettingsError, match="would no longer be valid"):
        set_aside(root, "only", "it cannot be mixed")
    assert find_drop(root, "only").state == "accepted"


def test_a_bad_drop_is_refused_and_leaves_the_pipeline(with_digits: Path, tmp_path: Path) -> None:
    root = with_digits
    place = digit_folder(tmp_path / "p", first=4)
    for number in range(20):
        (place / "1" / f"maria_broken_{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    record = decided(root, place, name="bad")
    assert record.state == "refused"
    assert record.decisions[-1].reasons == ("quarantine_rate: observed 0.25",)
    assert "bad" not in load_drops(root).drops
    assert (root / "data/raw/bad/drop").is_dir()
    with pytest.raises(SettingsError, match="'bad' is refused"):
        admission.approve(root, "bad", "Ann Owner")
    assert admission.retry(root, "bad", "Ann Owner").state == "arrived"
    assert load_drops(root).drops["bad"].path == "data/raw/bad/drop"
    loosened(root, max_quarantine_rate=0.3)
    try:
        assert decide(root, "bad").state == "accepted"
    finally:
        loosened(root)


def test_reasons_name_no_class_and_no_file(with_digits: Path, tmp_path: Path) -> None:
    root = with_digits
    place = digit_folder(tmp_path / "p", first=5)
    (place / "9").rename(place / "maria_callas")
    record = decided(root, place, name="callas")
    assert record.state in ("held", "refused")
    assert "maria" not in (root / DROPS_JOURNAL).read_text()
    admission.remove(root, "callas", "Ann", "a test", [])


def test_another_list_of_classes_is_held_with_what_to_do(with_digits: Path, tmp_path: Path) -> None:
    root = with_digits
    place = digit_folder(tmp_path / "p", first=6)
    for path in (place / "9").iterdir():
        path.rename(place / "8" / f"other_{path.name}")
    (place / "9").rmdir()
    record = decided(root, place, name="nine")
    assert record.state == "held"
    reasons = {one.partition(":")[0]: one for one in record.decisions[-1].reasons}
    assert "ingest.classes" in reasons["other_classes"]
    assert admission.retry(root, "nine").state == "arrived"


def test_the_first_drop_of_a_project_has_nothing_to_be_compared_with(
    with_digits: Path, tmp_path: Path
) -> None:
    root = bare_project(tmp_path / "project")
    shutil.rmtree(root / "data/raw/digits")
    write_text(root / "params.yaml", (with_digits / "params.yaml").read_text())
    place = digit_folder(tmp_path / "p", change=60, first=7)
    record, _ = add_drop(
        root, place, replace(SAID, name="first"), DEMO_IDS_KEY, lambda _: None, 0.0
    )
    (block,) = [value for name, value in load_drops(root).drops.items() if name == "first"]
    values = {"names": ["first"], "fit_drops": ["first"], "drops": {"first": block.model_dump()}}
    write_text(root / "drops.yaml", yaml.safe_dump(values))
    ingest_stage.run(root, record.name)
    assert decide(root, "first").state == "accepted"


def test_a_removed_drop_leaves_nothing_and_may_come_again(
    with_digits: Path, tmp_path: Path
) -> None:
    root = with_digits
    place = digit_folder(tmp_path / "p", first=8)
    decided(root, place, name="gone")
    folders = (root / "data/raw/gone", *drop_folders(root, "gone"))
    assert sum(path.exists() for path in folders) >= 4
    with pytest.raises(SettingsError, match="--reason is empty"):
        admission.remove(root, "gone", "Ann", "", folders)
    record = admission.remove(root, "gone", "Ann", "no consent", folders)
    assert record is not None and record.state == "removed"
    assert not any(path.exists() for path in folders)
    assert "gone" not in (root / "drops.yaml").read_text()
    assert "gone" not in (root / ORIGINS).read_text() and origin_of(root, "gone") == ""
    assert admission.remove(root, "gone", "Ann", "twice", folders) == record
    again, new = add_drop(root, place, SAID, DEMO_IDS_KEY, lambda _: None, 0.0)
    assert new and again.name != "gone"
    admission.remove(root, again.name, "Ann", "a test", [root / "data/raw" / again.name])


def test_what_was_protected_is_on_record_once(with_digits: Path, tmp_path: Path) -> None:
    root = with_digits
    decided(root, digit_folder(tmp_path / "p", first=9), name="kept")
    record = admission.protected(root, "kept", ["plain", "visualmixer"])
    assert (record.state, record.schemes) == ("protected", ("plain", "visualmixer"))
    lines = (root / DROPS_JOURNAL).read_text()
    assert admission.protected(root, "kept", ["plain", "visualmixer"]) == record
    assert (root / DROPS_JOURNAL).read_text() == lines
    record, _ = add_drop(
        root, digit_folder(tmp_path / "q", first=10), replace(SAID, name="new"), DEMO_IDS_KEY,
        lambda _: None, 0.0,
    )  # fmt: skip
    with pytest.raises(SettingsError, match="'new' is arrived"):
        admission.protected(root, "new", ["plain"])
    assert find_drop(root, "new").state == "arrived"
