"""The drop place: what is taken, what stays and why, and what a killed run leaves."""

import json
import os
import stat
import tempfile
from pathlib import Path

import pytest
import yaml
from drop_places import REPOSITORY, bare_project, class_folders, tree
from hypothesis import given
from hypothesis import strategies as st

from veilset.drops import place as drop_place_module
from veilset.drops.place import (
    Entry,
    drop_place,
    entries,
    finish_taking,
    is_ready,
    read_note,
    take_entry,
    write_reasons,
)
from veilset.drops.policy import DropPolicy, load_policy, training_due, untrained
from veilset.drops.record import DropRecord, now, read_drops
from veilset.errors import SettingsError, SourceError
from veilset.keys import DEMO_IDS_KEY

NOTE = "licence: CC BY\nconsent: form 3\nby: Ann Owner\n"
POLICY = DropPolicy(settle_seconds=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return bare_project(tmp_path / "project")


def entry(root: Path, name: str, first: int = 0) -> Entry:
    place = drop_place(root, POLICY)
    class_folders(place / name, first=first)
    return next(one for one in entries(place) if one.path.name == name)


def take(root: Path, one: Entry, policy: DropPolicy = POLICY) -> DropRecord:
    return take_entry(root, one, policy, DEMO_IDS_KEY, lambda _: None)[0]


def test_the_place_is_closed_where_it_is_ours(root: Path, tmp_path: Path) -> None:
    place = drop_place(root, POLICY)
    assert place == root / "data/incoming"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o755)
    assert stat.S_IMODE(drop_place(root, POLICY).stat().st_mode) == 0o700
    assert (place / ".gitignore").read_text() == "*\n", "what waits there is nobody else's"
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    drop_place(root, DropPolicy(place=str(theirs)))
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o755
    assert list(theirs.iterdir()) == []


@pytest.mark.parametrize("inside", [True, False])
def test_an_entry_is_taken_whole_and_then_gone(root: Path, inside: bool) -> None:
    one = entry(root, "maria")
    images = tree(one.path)
    (one.inside if inside else one.note).write_text(NOTE + "name: ward\n")
    record = take(root, one)
    assert (record.name, record.state, record.by) == ("ward", "arrived", "Ann Owner")
    assert tree(root / "data/raw/ward/drop") == images, "the note is no image"
    assert tree(root / "data/incoming") == {".gitignore": b"*\n"}


def test_by_policy_it_is_kept_aside(root: Path) -> None:
    one = entry(root, "maria")
    images = tree(one.path)
    one.note.write_text(NOTE)
    name = take(root, one, DropPolicy(settle_seconds=0, taken="keep")).name
    kept = root / "data/incoming/.taken" / name
    assert tree(kept / "maria") == images
    assert (kept / "maria.yaml").read_text() == NOTE
    assert entries(root / "data/incoming") == ()


def test_without_a_note_it_stays(root: Path) -> None:
    one = entry(root, "maria")
    before = tree(one.path)
    assert is_ready(one, {}) is None
    with pytest.raises(SourceError, match=r"^It has no note: say licence, consent and by"):
        take(root, one)
    assert tree(one.path) == before
    assert read_drops(root) == ()
    defaults = {"licence": "CC0", "consent": "public", "by": "Ann"}
    assert is_ready(one, defaults) is not None
    assert take(root, one, DropPolicy(settle_seconds=0, defaults=defaults)).licence == "CC0"


@pytest.mark.parametrize(
    ("note", "told"),
    [
        ("licence: CC BY\n", "consent is missing"),
        (NOTE + "colour: red\n", "colour is unknown"),
        (NOTE + "by: ''\n", "by is ''"),
        ("- a list\n", "is no note"),
        ("a: &a [x, x]\nb: [*a, *a]\n", "is no note"),
        ("[" * 5000, "is no note"),
        ("1: 2\n", "is no note"),
        (NOTE + "# " + "x" * 70_000, "is no note"),
    ],
)
def test_a_bad_note_is_one_sentence_and_takes_nothing(root: Path, note: str, told: str) -> None:
    one = entry(root, "maria")
    one.note.write_text(note)
    with pytest.raises(SourceError, match=told) as caught:
        take(root, one)
    assert "\n" not in str(caught.value)
    assert one.path.is_dir() and read_drops(root) == ()


@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_a_note_holds_it_is_a_note_or_a_sentence(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        one = Entry(path, path.with_name("x.yaml"), path / "drop.yaml")
        one.note.write_bytes(raw)
        with pytest.raises(SourceError) as caught:
            read_note(one, {})
        assert str(caught.value)


def test_a_link_as_note_is_not_followed(root: Path, tmp_path: Path) -> None:
    one = entry(root, "maria")
    (tmp_path / "secret").write_text(NOTE)
    one.note.symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="no note"):
        take(root, one)


def test_what_changes_after_it_was_read_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = entry(root, "maria")
    one.note.write_text(NOTE)
    real = drop_place_module.add_drop

    def late(*values: object) -> object:
        made = real(*values)  # type: ignore[arg-type]
        class_folders(one.path, 2, first=50)
        return made

    monkeypatch.setattr(drop_place_module, "add_drop", late)
    with pytest.raises(SourceError, match="changed since: it stays"):
        take(root, one)
    monkeypatch.undo()
    assert len(tree(one.path)) == 10, "nothing that nobody has read is removed"
    assert len(read_drops(root)) == 1
    take(root, one)
    assert [record.counts["files"] for record in read_drops(root)] == [8, 10]
    assert entries(root / "data/incoming") == ()


@pytest.mark.parametrize("after", ["add", "note", "entry"])
def test_a_run_that_was_killed_is_finished(
    root: Path, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = entry(root, "maria")
    one.inside.write_text(NOTE + "name: ward\n")
    images = {name: b for name, b in tree(one.path).items() if name != "drop.yaml"}

    class Killed(BaseException):
        pass

    def killed(*values: object) -> None:
        raise Killed

    # Where the process ends: before the copy, before the entry is moved, after it was.
    target = {"note": "add_drop", "add": "_take_away", "entry": "_move_note"}[after]
    with monkeypatch.context() as patched:
        patched.setattr(drop_place_module, target, killed)
        with pytest.raises(Killed):
            take(root, one)
    finish_taking(root / "data/incoming", POLICY)
    left = entries(root / "data/incoming")
    assert bool(left) == (after != "entry")
    for again in left:
        assert take(root, again).name == "ward"
    assert len(read_drops(root)) == 1
    assert tree(root / "data/raw/ward/drop") == images
    assert tree(root / "data/incoming") == {".gitignore": b"*\n"}


def test_the_note_of_the_next_entry_of_a_name_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = entry(root, "maria")
    one.note.write_text(NOTE)
    with monkeypatch.context() as patched:
        # As if it had been killed between the entry and its note.
        patched.setattr(drop_place_module, "_move_note", lambda *_: None)
        take(root, one, DropPolicy(settle_seconds=0, taken="keep"))
    again = entry(root, "maria", first=30)
    again.note.write_text(NOTE.replace("Ann", "Bea"))
    finish_taking(root / "data/incoming", POLICY)
    assert read_note(again, {}).by == "Bea Owner"


def test_reasons_are_for_the_owner_alone(root: Path) -> None:
    place = drop_place(root, POLICY)
    name = os.fsdecode(b"mari\xff")
    write_reasons(place, {name: "no note"})
    path = place / ".reasons.json"
    assert json.loads(path.read_text()) == {"mari\\udcff": "no note"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_reasons(place, {})
    assert not path.exists()


# -------------------------------------------------------------------------------------- the policy


def record(name: str, state: str = "protected", *events: str) -> DropRecord:
    return DropRecord.model_validate(
        {
            "name": name, "state": state, "licence": "x", "consent": "x", "by": "x", "at": now(),
            "digest": "0" * 64, "counts": {}, "source": "folder", "path": "x", "options": {},
            "decisions": [{"event": event, "at": now()} for event in events],
        }
    )  # fmt: skip


def test_the_policy_of_the_project_is_read_and_checked(root: Path) -> None:
    assert load_policy(root) == DropPolicy()
    text = (root / "params.yaml").read_text()
    for block, told in (
        ("{place: inbox, taken: keep}", None),
        ("{schemes: [none_such]}", "none_such"),
        ("{defaults: {name: x}}", "name"),
        ("{commit: main}", "commit"),
        ("{branch: '../x'}", "branch"),
        ("{train: {every: -1}}", "train.every"),
    ):
        (root / "params.yaml").write_text(f"{text}\ndrop_policy: {block}\n")
        if told is None:
            assert load_policy(root).taken == "keep"
        else:
            with pytest.raises(SettingsError, match=told):
                load_policy(root)


def test_when_a_training_is_due() -> None:
    policy = DropPolicy().train
    five = [record(f"d{n}") for n in range(5)]
    names = [one.name for one in five]
    assert "5 drops" in training_due(policy, five, names, trained=True)
    assert training_due(policy, five, names[1:], trained=True) == ""
    assert training_due(policy, five, names[1:], trained=False) == "nothing was trained yet"
    assert training_due(policy, five, [], trained=False) == ""
    drifted = record("odd", "protected", "held", "approved")
    assert "'odd'" in training_due(policy, [drifted], ["odd"], trained=True)
    calm = policy.model_copy(update={"on_drift": False})
    assert training_due(calm, [drifted], ["odd"], trained=True) == ""
    never = policy.model_copy(update={"every": 0})
    assert training_due(never, five, names, trained=True) == ""
    held = record("held", "held")
    assert training_due(policy, [held], ["held"], trained=False) == ""


def test_what_no_training_has_seen(root: Path) -> None:
    assert untrained(root, ["digits"]) == (), "nothing is protected of it"


def test_the_page_has_every_setting_with_its_default() -> None:
    page = (REPOSITORY / "docs/schedule.md").read_text(encoding="utf-8")
    part = page.split("## Policy")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in part.splitlines() if line.startswith("| `")]
    told = {}
    for names, values in rows:
        shown = [name.strip().strip("`") for name in names.split(",")]
        told |= dict(zip(shown, values.split(",") if len(shown) > 1 else [values], strict=True))
    policy = DropPolicy().model_dump()
    flat = {name: value for name, value in policy.items() if name != "train"}
    flat |= {f"train.{name}": value for name, value in policy["train"].items()}
    assert told.keys() == flat.keys()
    for name, value in flat.items():
        said = told[name].strip().strip("`")
        assert said == "all" if name == "schemes" else yaml.safe_load(said) == value, name


def test_the_note_of_the_page_is_one(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/schedule.md").read_text(encoding="utf-8")
    one = Entry(tmp_path / "x", tmp_path / "x.yaml", tmp_path / "x" / "drop.yaml")
    one.note.write_text(page.split("```yaml\n")[1].split("```")[0])
    assert read_note(one, {}).name == "ward_7"
