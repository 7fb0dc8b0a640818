"""Erasure: nothing of an image or person comes back, and nothing of them is kept."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from drop_places import REPOSITORY, SAID, bare_project, class_folders, picture

from veilset.data.ingest import IngestParams
from veilset.data.manifest import Manifest
from veilset.data.shards import ImageSet
from veilset.drops.admission import accept
from veilset.drops.erased import group_digest, image_digest
from veilset.drops.erasure import Decree, Done, Target, erase, still_marked
from veilset.drops.intake import add_drop
from veilset.drops.record import DROPS_JOURNAL, find_drop, now, read_drops, read_events
from veilset.errors import SettingsError, SourceError
from veilset.files import read_sealed_parquet, read_table, write_text
from veilset.keys import DEMO_IDS_KEY
from veilset.release.history import RELEASES, ReleaseEvent, enter_release
from veilset.stages import ingest as ingest_stage
from veilset.stages import protect as protect_stage
from veilset.stages.admission import workings
from veilset.stages.project import Project

DECREE = Decree(by="Ann Owner", reason="consent withdrawn")
SCHEME = "pixel_block_mixing"


def small_settings(root: Path, **changes: Any) -> None:
    values = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    # All in one role, so that even a small drop has donors.
    shares = {"train": 1, "validation": 0, "test": 0, "auxiliary": 0, "gallery": 0}
    ingest = {"size": 16, "channels": 1, "shares": shares}
    values |= {"schemes": [SCHEME, "plain"], "ingest": ingest, **changes}
    write_text(root / "params.yaml", yaml.safe_dump(values))


def made(root: Path, place: Path, **said: Any) -> str:
    """A drop that was added, accepted, ingested and protected."""
    record, _ = add_drop(root, place, replace(SAID, **said), DEMO_IDS_KEY, lambda _: None, 0.0)
    accept(root, record.name, {})
    ingest_stage.run(root, record.name)
    for scheme in (SCHEME, "plain"):
        protect_stage.run(root, scheme, record.name)
    return record.name


def people(place: Path) -> Path:
    """A table of six persons, with four images each, in two classes."""
    class_folders(place, images=24)
    lines = [
        f"{('cat', 'dog')[n % 2]}/maria_{n:03}.png,{('cat', 'dog')[n % 2]},person{n % 6},train"
        for n in range(24)
    ]
    (place / "table.csv").write_text("\n".join(["path,label,group,split", *lines]) + "\n")
    return place


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = bare_project(tmp_path / "project")
    small_settings(root)
    return root


def index(root: Path, drop: str) -> pd.DataFrame:
    return read_table(Project(root).ingested(drop) / "index.parquet")


def erase_it(root: Path, subject: str, value: str) -> Done:
    target = Target(subject, value)  # type: ignore[arg-type]
    params = IngestParams(size=16, channels=1)
    return erase(root, target, DECREE, DEMO_IDS_KEY, params, workings(root))


def holding(root: Path, needles: Iterable[bytes]) -> list[Path]:
    """Files of a project that hold one of these bytes."""
    files = (path for path in root.rglob("*") if path.is_file())
    wanted = list(needles)
    return [path for path in files if any(one in path.read_bytes() for one in wanted)]


def donors(root: Path, drop: str) -> dict[str, set[str]]:
    """For each image the images whose blocks it received."""
    path = Project(root).provenance(SCHEME, drop) / "links-train.parquet"
    table = read_sealed_parquet(path)
    rows = [np.frombuffer(row, np.uint8).reshape(-1, 16) for row in table["donors"].to_pylist()]
    names = table["id"].to_pylist()
    return {
        name: {one.tobytes().hex() for one in row} for name, row in zip(names, rows, strict=True)
    }


def test_an_image_leaves_raw_data_and_every_version_to_come(root: Path, tmp_path: Path) -> None:
    drop = made(root, class_folders(tmp_path / "p", images=24))
    before = index(root, drop)
    row = before[before["role"] == "train"].iloc[0]
    raw = (root / "data/raw" / drop / "drop" / row["name"]).read_bytes()
    project = Project(root)
    source = ImageSet.open(project.ingested(drop))
    at = [one.tobytes().hex() for one in source.ids("train")].index(row["id"])
    pixels = source.images("train", np.array([at])).tobytes()
    receivers = {name for name, found in donors(root, drop).items() if row["id"] in found}
    trace = [raw, row["id"].encode(), bytes.fromhex(row["id"]), pixels]
    assert len(holding(root, trace)) >= 4

    done = erase_it(root, "image", row["id"])

    assert done.images == {drop: 1}
    assert done.receivers == {drop: len(receivers - {row["id"]})}
    assert holding(root, trace) == []
    assert not project.protected(SCHEME, drop).exists()
    ingest_stage.run(root, drop)
    protect_stage.run(root, SCHEME, drop)
    assert holding(root, trace) == []
    assert sorted(index(root, drop)["id"]) == sorted(before[before["id"] != row["id"]]["id"])
    assert not any(row["id"] in found for found in donors(root, drop).values())


def test_a_person_leaves_with_all_images_and_rows(root: Path, tmp_path: Path) -> None:
    drop = made(root, people(tmp_path / "p"), table="table.csv")
    rows = index(root, drop).query("group == 'person3'")
    assert len(rows) == 4
    names = [name.rpartition("/")[2].encode() for name in rows["name"]]
    done = erase_it(root, "group", "person3")
    assert done.images == {drop: 4}
    assert holding(root, [*names, b"person3"]) == []
    ingest_stage.run(root, drop)
    assert set(index(root, drop)["group"]) == {f"person{n}" for n in (0, 1, 2, 4, 5)}
    assert len(list((root / "data/raw" / drop / "drop").rglob("*.png"))) == 20


def test_the_record_keeps_digests_and_counts_alone(root: Path, tmp_path: Path) -> None:
    drop = made(root, people(tmp_path / "p"), table="table.csv")
    ids = index(root, drop).query("group == 'person2'")["id"].tolist()
    erase_it(root, "group", "person2")
    event = read_events(root)[-1]
    assert event.erasure is not None
    assert event.erasure.digest == group_digest(DEMO_IDS_KEY, "person2")
    expected = {image_digest(DEMO_IDS_KEY, bytes.fromhex(one)) for one in ids}
    assert set(event.erasure.images) == expected and len(expected) == 4
    text = (root / DROPS_JOURNAL).read_text()
    assert not any(one in text for one in (*ids, "person2", "maria"))
    assert find_drop(root, drop).erased == 4
    assert find_drop(root, drop).state == "accepted"


def test_copies_in_other_drops_are_erased_as_well(root: Path, tmp_path: Path) -> None:
    first = made(root, class_folders(tmp_path / "p", images=24))
    other = class_folders(tmp_path / "q", images=24, first=24)
    picture(2).save(other / "dog/other_name.png")  # in the first drop it is a cat
    picture(2).save(other / "dog/again.png")
    second = made(root, other)
    one = index(root, first).query("name == 'cat/maria_002.png'")["id"].item()
    done = erase_it(root, "image", one)
    assert done.images == {first: 1, second: 2}
    assert [event.drop for event in read_events(root) if event.erasure] == [first, second]


def test_what_was_erased_does_not_come_back_in_a_later_drop(root: Path, tmp_path: Path) -> None:
    place = people(tmp_path / "p")
    drop = made(root, place, table="table.csv")
    rows = index(root, drop)
    one = rows.query("group == 'person0'")["id"].iloc[0]
    erase_it(root, "image", one)
    erase_it(root, "group", "person1")
    ingest_stage.run(root, drop)
    # Again, under other names; and a new image of the person.
    later = class_folders(tmp_path / "q", images=24, first=24)
    for n in range(6):
        picture(n).save(later / "cat" / f"renamed_{n}.png")
    picture(77).save(later / "dog/new_of_person1.png")
    names = sorted(path.relative_to(later).as_posix() for path in later.rglob("*.png"))
    lines = [f"{n},{n[:3]},{'person1' if 'person1' in n else 'x' + n[-7:-4]}" for n in names]
    (later / "t.csv").write_text("\n".join(["path,label,group", *lines]) + "\n")
    second, _ = add_drop(
        root, later, replace(SAID, table="t.csv"), DEMO_IDS_KEY, lambda _: None, 0.0
    )
    ingest_stage.run(root, second.name)
    found = index(root, second.name)
    erased = found[found["reason"] == "erased"]
    # person0's one image, person1's image 1, and the new one of person1.
    assert len(erased) == 3
    assert set(erased["name"]) == {"(erased)"}
    assert set(erased["group"].fillna("")) == {""}
    assert erased["id"].isna().all() and one not in set(found["id"])
    assert "person1" not in set(found["group"])
    quarantine = Project(root).quarantine(second.name)
    assert [path.name for path in quarantine.iterdir()] == ["quarantine.csv"]
    assert "new_of_person1" not in (quarantine / "quarantine.csv").read_text()


def test_where_nothing_was_erased_an_ingest_makes_the_same_bytes(
    root: Path, tmp_path: Path
) -> None:
    drop = made(root, class_folders(tmp_path / "p", images=24))
    other = made(root, class_folders(tmp_path / "q", images=24, first=24))
    before = Manifest.load(Project(root).ingested(drop)).root
    erase_it(root, "image", index(root, other)["id"].iloc[0])
    ingest_stage.run(root, drop)
    assert Manifest.load(Project(root).ingested(drop)).root == before


def test_killed_after_the_record_another_call_finishes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from veilset.drops import erasure

    drop = made(root, class_folders(tmp_path / "p", images=24))
    row = index(root, drop).query("role == 'train'").iloc[0]
    with monkeypatch.context() as patch:
        patch.setattr(erasure, "take_out", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            erase_it(root, "image", row["id"])
    assert (root / "data/raw" / drop / "drop" / row["name"]).exists()
    assert erase_it(root, "image", row["id"]).images == {drop: 1}
    assert not (root / "data/raw" / drop / "drop" / row["name"]).exists()
    assert find_drop(root, drop).erased == 1


def test_killed_after_raw_data_another_call_finishes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from veilset.drops import erasure

    drop = made(root, class_folders(tmp_path / "p", images=24))
    row = index(root, drop).query("role == 'train'").iloc[0]
    with monkeypatch.context() as patch:
        patch.setattr(erasure, "_remove", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            erase_it(root, "image", row["id"])
    assert Project(root).ingested(drop).exists()
    assert erase_it(root, "image", row["id"]).images == {drop: 0}
    assert not Project(root).ingested(drop).exists()
    assert len([event for event in read_events(root) if event.erasure]) == 1
    with pytest.raises(SourceError, match="it was erased before"):
        erase_it(root, "image", row["id"])


def test_models_and_transforms_are_marked_until_they_are_made_again(
    root: Path, tmp_path: Path
) -> None:
    small_settings(root, schemes=["plain", "mask_desensitization"], models=["resnet20"])
    record, _ = add_drop(
        root, class_folders(tmp_path / "p"), SAID, DEMO_IDS_KEY, lambda _: None, 0.0
    )
    drop = record.name
    accept(root, drop, {})
    ingest_stage.run(root, drop)
    protect_stage.run(root, "plain", drop)
    drops = yaml.safe_load((root / "drops.yaml").read_text())
    drops["fit_drops"].append(drop)
    write_text(root / "drops.yaml", yaml.safe_dump(drops))
    for name in ("data/fitted/mask_desensitization", "data/models/plain-resnet20-0"):
        (root / name).mkdir(parents=True)
    lock = {
        "fit@mask_desensitization": "data/fitted/mask_desensitization",
        "train@plain-resnet20-0": "data/models/plain-resnet20-0",
    }

    def locked(digest: str) -> None:
        stages = {
            name: {"cmd": "x", "outs": [{"path": path, "md5": digest}]}
            for name, path in lock.items()
        }
        write_text(root / "dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": stages}))

    locked("a" * 32)
    done = erase_it(root, "image", index(root, drop)["id"].iloc[0])
    assert done.fitted == ("mask_desensitization",)
    assert done.models == ("plain-resnet20-0",)
    names = ("mask_desensitization", "plain-resnet20-0")
    assert still_marked(root, dict.fromkeys(names, "a" * 32)) == names
    assert still_marked(root, {**dict.fromkeys(names, "a" * 32), names[0]: "b" * 32}) == names[1:]


def test_releases_that_concern_it_are_listed(root: Path, tmp_path: Path) -> None:
    drop = made(root, class_folders(tmp_path / "p", images=24))
    sets = Manifest.load(Project(root).protected(SCHEME, drop)).root
    added = read_drops(root)[0].at

    def released(name: str, **values: Any) -> None:
        event = {
            "event": "released", "at": now(), "dataset": "x", "scheme": SCHEME, "name": name,
            "receiver": "outside_trainer", "root": "1" * 64, "statement": "2" * 64, "to": "there",
            **values,
        }  # fmt: skip
        enter_release(root / RELEASES, ReleaseEvent.model_validate(event))

    released("by-sets", sets=(sets,))
    released("later")
    released("before", at=added - timedelta(days=1))
    released("other-scheme", scheme="visualmixer")
    released("withdrawn")
    released("withdrawn", event="withdrawn", reasons=("why",))
    done = erase_it(root, "image", index(root, drop)["id"].iloc[0])
    assert [(one.name, one.how) for one in done.releases] == [
        ("by-sets", "sets"), ("later", "scheme and date"),
    ]  # fmt: skip
    event = read_events(root)[-1]
    assert event.erasure is not None and event.erasure.releases == ("by-sets", "later")


def test_a_drop_that_is_not_ingested_is_read(root: Path, tmp_path: Path) -> None:
    record, _ = add_drop(
        root, people(tmp_path / "p"), replace(SAID, table="table.csv"), DEMO_IDS_KEY,
        lambda _: None, 0.0,
    )  # fmt: skip
    assert erase_it(root, "group", "person4").images == {record.name: 4}
    assert find_drop(root, record.name).state == "arrived"
    ingest_stage.run(root, record.name)
    assert len(index(root, record.name)) == 20


def test_near_duplicates_are_told_and_stay(root: Path, tmp_path: Path) -> None:
    place = class_folders(tmp_path / "p", images=24)
    near = np.asarray(picture(4)).copy()
    near[0, 0] ^= 1
    from PIL import Image

    Image.fromarray(near).save(place / "cat/nearly.png")
    drop = made(root, place)
    rows = index(root, drop)
    first = rows[rows["near_duplicate_of"].notna()]["near_duplicate_of"].item()
    assert erase_it(root, "image", first).near == {drop: 1}


def test_what_nobody_holds_is_refused_and_changes_nothing(root: Path, tmp_path: Path) -> None:
    drop = made(root, class_folders(tmp_path / "p", images=24))
    gone, _ = add_drop(
        root, class_folders(tmp_path / "w", first=30), SAID, DEMO_IDS_KEY, lambda _: None, 0.0
    )
    shutil.rmtree(root / "data/raw" / gone.name)
    before = (root / DROPS_JOURNAL).read_bytes()
    with pytest.raises(SourceError, match=f"unreadable: {gone.name}"):
        erase_it(root, "image", "0" * 32)
    with pytest.raises(SourceError, match="No drop holds this group"):
        erase_it(root, "group", "nobody")
    with pytest.raises(SettingsError, match="32 hex digits"):
        erase_it(root, "image", "maria_000.png")
    with pytest.raises(SettingsError, match="must not be empty"):
        erase(root, Target("group", "x"), replace(DECREE, by=" "), DEMO_IDS_KEY,
              IngestParams(size=16, channels=1), workings(root))  # fmt: skip
    assert (root / DROPS_JOURNAL).read_bytes() == before
    assert Project(root).ingested(drop).exists()


def test_embedded_images_cannot_be_erased(root: Path) -> None:
    ingest_stage.run(root, "digits")
    with pytest.raises(SourceError, match="come with an installed package"):
        erase_it(root, "image", index(root, "digits")["id"].iloc[0])
    assert Project(root).ingested("digits").exists()


def test_a_journal_line_is_plain_json(root: Path, tmp_path: Path) -> None:
    drop = made(root, class_folders(tmp_path / "p", images=24))
    erase_it(root, "image", index(root, drop)["id"].iloc[0])
    lines = (root / DROPS_JOURNAL).read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["added", "accepted", "erased"]
