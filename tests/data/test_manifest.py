"""The manifest: one spelling, its own hash, and nothing hostile gets through."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.data.manifest import CHUNK, NAME, Manifest, ShardEntry, shard_name, split_shard_name
from veilset.errors import CorruptError
from veilset.files import json_text


def entry(split: str = "train", index: int = 0, rows: int = 3, size: int = 100) -> ShardEntry:
    digest = hashlib.sha256(f"{split}{index}{rows}".encode()).hexdigest()
    return ShardEntry(
        file=shard_name(split, index), split=split, rows=rows, bytes=size, sha256=digest,
        chunks=(digest,) * -(-size // CHUNK),
    )  # fmt: skip


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "kind": "protected", "dataset": "d", "shape": (2, 2, 1), "classes": ("a", "é"),
        "splits": {"train": 3, "test": 0}, "columns": {"group": "string"}, "shards": (entry(),),
        "source": "", "scheme": {"name": "plain", "parameters": {"x": 0.1}},
        "key_fingerprint": "00ff", "notes": {"held_back": {"train": 2}},
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def forge(folder: Path, values: Any) -> None:
    """Writes values with a right hash, as somebody with bad intentions can."""
    digest = hashlib.sha256(json_text(values).encode()).hexdigest()
    (folder / NAME).write_text(json_text({**values, "sha256": digest}))


def plain(found: Manifest) -> dict[str, Any]:
    values: dict[str, Any] = found.model_dump(mode="json")
    return values


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest()
    assert loaded.root == manifest().root
    loaded.save(tmp_path / "again")
    assert (tmp_path / NAME).read_bytes() == (tmp_path / "again" / NAME).read_bytes()


words = st.text(st.characters(codec="utf-8"), max_size=9)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(words, unique=True, max_size=4), words,
    st.dictionaries(words, st.none() | st.integers() | st.floats(allow_nan=False,
                    allow_infinity=False) | words, max_size=4),
    st.dictionaries(st.sampled_from(["train", "test", "gallery"]),
                    st.lists(st.integers(1, 9), max_size=3)),
)  # fmt: skip
def test_any_manifest_round_trips(
    tmp_path_factory: pytest.TempPathFactory, classes: list[str], name: str,
    notes: dict[str, Any], rows: dict[str, list[int]],
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("m")
    made = manifest(
        classes=tuple(classes), dataset=name, notes=notes, source=name,
        splits={split: sum(counts) for split, counts in rows.items()},
        shards=tuple(entry(s, i, n) for s, c in rows.items() for i, n in enumerate(c)),
    )  # fmt: skip
    made.save(folder)
    assert Manifest.load(folder) == made


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    path = tmp_path / NAME
    data = path.read_bytes()
    for flip in range(8 * len(data)):
        broken = bytearray(data)
        broken[flip // 8] ^= 1 << flip % 8
        with pytest.raises(CorruptError, match=NAME):
            Manifest.from_bytes(bytes(broken), path)
        if flip % 997 == 0:  # The same by way of the disk.
            path.write_bytes(broken)
            with pytest.raises(CorruptError, match=NAME):
                Manifest.load(tmp_path)


def test_every_cut_and_every_addition_is_noticed(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    path = tmp_path / NAME
    data = path.read_bytes()
    others = [data[:length] for length in range(len(data))]
    others += [data + b"\n", b"\n" + data, b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n")]
    for other in others:
        with pytest.raises(CorruptError):
            Manifest.from_bytes(other, path)


def test_a_missing_manifest_says_that_the_set_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="no finished image set"):
        Manifest.load(tmp_path)
    (tmp_path / NAME).mkdir()
    with pytest.raises(CorruptError):
        Manifest.load(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]":,0e-nulltrs\\ud8', max_size=60).map(str.encode))
def test_rubbish_is_corrupt_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / NAME).write_bytes(data)
    with pytest.raises(CorruptError):
        Manifest.load(folder)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        '{"sha256": ' + "9" * 10_000 + "}",
        '{"sha256": "", "notes": {"x": NaN}}',
        '{"sha256": "\\ud800"}',
        "null",
        "[]",
        '"sha256"',
    ],
)
def test_hostile_json_is_corrupt(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(CorruptError) as caught:
        Manifest.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("shards", 0, "file"), "../train-00000.arrow"),
        (("shards", 0, "file"), "/etc/train-00000.arrow"),
        (("shards", 0, "file"), "sub/train-00000.arrow"),
        (("shards", 0, "file"), "train-00000.arrow\n"),
        (("shards", 0, "file"), "train-00000.arrow\x00"),
        (("shards", 0, "file"), "train-00001.arrow"),
        (("shards", 0, "split"), "test"),
        (("shards", 0, "rows"), 4),
        (("shards", 0, "rows"), 0),
        (("shards", 0, "rows"), -3),
        (("shards", 0, "rows"), 3.0),
        (("shards", 0, "rows"), "3"),
        (("shards", 0, "rows"), 10**30),
        (("shards", 0, "bytes"), CHUNK + 1),
        (("shards", 0, "bytes"), 0),
        (("shards", 0, "sha256"), "x" * 64),
        (("shards", 0, "chunks"), []),
        (("shards", 0, "chunks"), ["00"]),
        (("shards", 0, "extra"), 1),
        (("shards",), None),
        (("shards",), {}),
        (("splits", "train"), -1),
        (("splits", "../x"), 0),
        (("splits",), []),
        (("format",), 2),
        (("format",), "1"),
        (("kind",), "other"),
        (("shape",), [2, 2]),
        (("shape",), [2, 2, 4]),
        (("shape",), [0, 2, 1]),
        (("shape",), [2**40, 2**40, 3]),
        (("classes",), ["a", "a"]),
        (("columns", "group"), "object"),
        (("columns", "group"), "uint8[0]"),
        (("columns", "group"), "uint8[-1]"),
        (("columns", "image"), "int64"),
        (("columns", "id"), "string"),
        (("surprise",), 1),
    ],
)
def test_a_well_hashed_manifest_that_lies_is_corrupt(
    tmp_path: Path, where: tuple[Any, ...], value: Any
) -> None:
    values = plain(manifest())
    place: Any = values
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    forge(tmp_path, values)
    with pytest.raises(CorruptError, match=NAME):
        Manifest.load(tmp_path)


def test_the_forger_of_these_tests_forges_well(tmp_path: Path) -> None:
    forge(tmp_path, plain(manifest()))
    assert Manifest.load(tmp_path) == manifest()


def test_another_spelling_of_the_same_values_is_refused(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    values = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps(values, sort_keys=True))
    with pytest.raises(CorruptError, match="does not agree with the hash"):
        Manifest.load(tmp_path)


def test_the_root_is_of_the_shards_and_not_of_their_order() -> None:
    two = {"splits": {"train": 6, "test": 3}}
    shards = (entry("train", 0), entry("train", 1), entry("test", 0))
    one = manifest(**two, shards=shards)
    assert one.root == manifest(**two, shards=shards[::-1]).root
    assert one.root == manifest(**two, shards=shards, notes={}, dataset="other").root
    changed = shards[0].model_copy(update={"sha256": "0" * 64})
    assert one.root != manifest(**two, shards=(changed, *shards[1:])).root


def test_a_manifest_holds_no_time_host_or_version(tmp_path: Path) -> None:
    manifest().save(tmp_path)
    values = json.loads((tmp_path / NAME).read_text())
    assert set(values) == {*Manifest.model_fields, "sha256"}
    assert set(values["shards"][0]) == {*ShardEntry.model_fields}


def test_it_is_frozen() -> None:
    with pytest.raises((ValueError, dataclasses.FrozenInstanceError)):
        manifest().dataset = "other"  # type: ignore[misc]


def test_shard_names() -> None:
    assert shard_name("train", 7) == "train-00007.arrow"
    assert split_shard_name("train-00007.arrow") == ("train", 7)
    for split, index in [("Train", 0), ("", 0), ("a/b", 0), ("..", 0), ("train", 100_000)]:
        with pytest.raises(ValueError, match="shard name"):
            shard_name(split, index)
