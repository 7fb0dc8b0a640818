"""Ingestion as a whole: what goes in, what comes out, and what never does."""

import csv
import io
import signal
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin
from test_decode import CORPUS, LOSSLESS, SHARED, saved, scene

from veilset.data import ingest as module
from veilset.data.ingest import ALL_REASONS, IngestParams, IngestSummary, ingest
from veilset.data.records import INDEX, QUARANTINE, QUARANTINE_COLUMNS, read_attributes
from veilset.data.roles import ROLES
from veilset.data.shards import ImageSet
from veilset.data.sources.base import Item, Source, SourceParams
from veilset.errors import BusyError, SettingsError, SourceError
from veilset.files import locked, read_table
from veilset.keys import DEMO_IDS_KEY, Key

PARAMS = IngestParams(size=16, near_duplicate_threshold=None)
INDEX_COLUMNS = {
    "id", "name", "label", "class_name", "group", "split", "role", "width", "height", "mode",
    "format", "duplicate_of", "near_duplicate_of", "drop", "brightness", "reason",
}  # fmt: skip


class Listed(Source[SourceParams]):
    """A source of given items."""

    name = "listed"
    title = "A list"
    Parameters = SourceParams

    def __init__(self, items: Sequence[Item], classes: tuple[str, ...] | None = None) -> None:
        self._items = items
        self._classes = classes

    def classes(self) -> tuple[str, ...] | None:
        return self._classes

    def items(self) -> Iterator[Item]:
        yield from self._items

    def count(self) -> int | None:
        return len(self._items)


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 16, 3), dtype=np.uint8)


def picture(seed: int, kind: str = "PNG") -> bytes:
    return saved(Image.fromarray(pixels(seed)), kind)


def items_of(count: int, files: bool = False) -> list[Item]:
    """Files, or (without the wait for a decoding process) pixels."""
    make = picture if files else pixels
    return [Item(f"{i:03}.png", make(i), class_name="ab"[i % 2]) for i in range(count)]


def run(
    tmp_path: Path, items: Sequence[Item], params: IngestParams = PARAMS, **more: Any
) -> tuple[IngestSummary, ImageSet, pd.DataFrame, list[dict[str, str]]]:
    classes = more.pop("classes", None)
    out, refuge = tmp_path / "ingested/d1", tmp_path / "quarantine/d1"
    summary = ingest(Listed(items, classes), params, DEMO_IDS_KEY, "d1", out, refuge, **more)
    found = ImageSet.open(out)
    found.verify()
    return summary, found, read_table(out / INDEX), quarantine_rows(refuge)


def quarantine_rows(refuge: Path) -> list[dict[str, str]]:
    with (refuge / QUARANTINE).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_set_of_photographs(tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    summary, found, index, refused = run(
        tmp_path, items_of(60, files=True), progress=lambda done, total: told.append((done, total))
    )
    assert summary.kept == summary.total == 60 == sum(summary.roles.values())
    assert told == [(i, 60) for i in range(1, 61)]
    assert found.classes == ("a", "b") and found.shape == (16, 16, 3)
    assert found.manifest.kind == "ingested" and found.manifest.dataset == "d1"
    assert set(index.columns) == INDEX_COLUMNS and len(index) == 60
    assert refused == []
    assert (tmp_path / "quarantine/d1" / QUARANTINE).read_text().strip() == ",".join(
        QUARANTINE_COLUMNS
    )
    by_id = index.set_index("id")
    seen = 0
    for role in found.splits:
        for row, image_id in enumerate(found.ids(role)):
            entry = by_id.loc[image_id.tobytes().hex()]
            number = int(entry["name"][:3])
            expected = Image.open(io.BytesIO(picture(number))).crop((0, 2, 16, 18))
            assert np.array_equal(found.images(role, np.array([row]))[0], np.array(expected))
            assert found.labels(role)[row] == number % 2 == entry["label"]
            assert entry["role"] == role and entry["class_name"] == "ab"[number % 2]
            assert (entry["width"], entry["height"], entry["mode"]) == (16, 20, "RGB")
            assert entry["brightness"] == np.array(expected.convert("L")).mean()
            seen += 1
    assert seen == 60
    assert set(index["drop"]) == {"d1"} and index["reason"].isna().all()


def mixed_items() -> list[Item]:
    """Good files, refused ones of most kinds, duplicates, arrays, people."""
    items = [Item(f"good/{i}.png", picture(i), class_name=f"c{i % 3}") for i in range(30)]
    items += [Item(f"person/{i}.png", picture(100 + i), class_name="c0", group=f"p{i % 5}")
              for i in range(20)]  # fmt: skip
    items += [Item(f"array/{i}", scene(9, 9 + i), class_name="c1") for i in range(4)]
    items += [
        Item("empty.jpg", b"", class_name="c0"),
        Item("page.jpg", b"<html>404</html>", class_name="c0"),
        Item("cut.png", picture(200)[:-15], class_name="c0"),
        Item("no label.png", picture(201)),
        Item("missing.png", b"", class_name="c0", fault="missing_file"),
        Item("again.png", picture(3), class_name="c0"),
        Item("array bad", np.zeros((5, 5, 2), np.uint8), class_name="c0"),
    ]
    return items


def test_what_is_refused_is_told_and_kept(tmp_path: Path) -> None:
    items = mixed_items()
    summary, found, index, refused = run(tmp_path, items)
    reasons = {row["name"]: row["reason"] for row in refused}
    assert reasons == {
        "empty.jpg": "empty", "page.jpg": "format_not_allowed", "cut.png": "incomplete",
        "no label.png": "no_label", "missing.png": "missing_file", "array bad": "unsupported_mode",
    }  # fmt: skip
    assert set(reasons.values()) <= set(ALL_REASONS)
    assert summary.quarantined == dict.fromkeys(sorted(reasons.values()), 1)
    assert summary.duplicates == 1 and summary.kept == 54 and summary.total == 61
    by_name = {item.name: item.content for item in items}
    refuge = tmp_path / "quarantine/d1"
    for row in refused:
        content = by_name[row["name"]]
        raw = content if isinstance(content, bytes) else content.tobytes()
        assert int(row["bytes"]) == len(raw) and row["sentence"].endswith(".")
        if raw:
            path = refuge / row["file"]
            assert path.read_bytes() == raw and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {p.name for p in refuge.iterdir()} == {QUARANTINE, *(r["file"] for r in refused)} - {""}
    rows = index.set_index("name")
    assert rows.loc["again.png", "role"] == "duplicate"
    assert rows.loc["again.png", "duplicate_of"] == rows.loc["good/3.png", "id"]
    assert rows.loc["cut.png", "role"] == "quarantined" and pd.isna(rows.loc["cut.png", "id"])
    assert rows.loc["no label.png", "label"] == -1
    assert set(found.column("train", "group")) <= {"", *(f"p{i}" for i in range(5))}
    assert (index["role"].isin(ROLES)).sum() == found.manifest.splits["train"] + sum(
        found.count(role) for role in ROLES if role != "train"
    )


def test_the_bytes_do_not_depend_on_workers_or_time(tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"near_duplicate_threshold": 2.0})
    outputs = []
    for name, workers in (("one", 1), ("two", 2)):
        run(tmp_path / name, mixed_items(), params.model_copy(update={"workers": workers}))
        outputs.append(files_of(tmp_path / name))
    assert outputs[0] == outputs[1]
    run(tmp_path / "one", mixed_items(), params)
    assert files_of(tmp_path / "one") == outputs[0]
    assert not any(".spool" in name or "partial" in name for name in outputs[0])


def test_several_shards_hold_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole", items_of(60))[1]
    monkeypatch.setattr(module, "rows_per_shard", lambda *_: 7)
    parts = run(tmp_path / "parts", items_of(60))[1]
    assert len(parts.manifest.shards) > len(whole.manifest.shards)
    for role in whole.splits:
        assert np.array_equal(whole.ids(role), parts.ids(role))
        assert np.array_equal(whole.images(role), parts.images(role))


def test_ids_follow_the_pixels_not_the_file(tmp_path: Path) -> None:
    one = [Item("x", pixels(1), class_name="a")]
    other = [Item("y.bmp", picture(1, "BMP"), class_name="b", group="z")]
    ids = [run(tmp_path / n, i)[2]["id"][0] for n, i in (("1", one), ("2", other))]
    assert ids[0] == ids[1]
    out = tmp_path / "3"
    ingest(Listed(one), PARAMS, Key(bytes(32)), "d", out / "i", out / "q")
    assert read_table(out / "i" / INDEX)["id"][0] != ids[0]


def test_conflicting_labels_quarantine_all_of_them(tmp_path: Path) -> None:
    items = [*items_of(10), Item("same.png", picture(4), class_name="b")]
    originals = [pixels(4).tobytes(), picture(4), picture(4, "BMP")]
    items.append(Item("same again.bmp", picture(4, "BMP"), class_name="a"))
    summary, found, index, refused = run(tmp_path, items)
    assert [row["name"] for row in refused] == ["004.png", "same.png", "same again.bmp"]
    assert {row["reason"] for row in refused} == {"conflicting_labels"}
    for row, content in zip(refused, originals, strict=True):
        assert (tmp_path / "quarantine/d1" / row["file"]).read_bytes() == content
    assert summary.kept == 9 and summary.duplicates == 0
    gone = index.loc[4, "id"]
    assert all(gone not in {i.tobytes().hex() for i in found.ids(r)} for r in found.splits)


def test_near_duplicates_share_a_role_and_are_recorded(tmp_path: Path) -> None:
    items = []
    for i in range(40):
        original = np.random.default_rng(i).integers(10, 240, (16, 16, 3), dtype=np.uint8)
        for copy in range(2):
            items.append(Item(f"{i}-{copy}", original + np.uint8(copy), class_name="a"))
    summary, _, index, _ = run(tmp_path, items, IngestParams(size=16))
    assert summary.near_duplicates == 40
    roles = index["role"].to_numpy().reshape(40, 2)
    assert (roles[:, 0] == roles[:, 1]).all() and len(set(roles[:, 0])) >= 3
    for pair in index["id"].to_numpy().reshape(40, 2):
        rows = index[index["id"].isin(list(pair))].set_index("id")
        assert rows.loc[max(pair), "near_duplicate_of"] == min(pair)
        assert pd.isna(rows.loc[min(pair), "near_duplicate_of"])


def test_a_second_drop_moves_no_image_of_the_first(tmp_path: Path) -> None:
    few, many = run(tmp_path / "1", items_of(30))[2], run(tmp_path / "2", items_of(50))[2]
    assert many.loc[:29, "role"].tolist() == few["role"].tolist()


# ---------------------------------------------------------------------------------------- labels


def test_classes_as_stated_by_the_source(tmp_path: Path) -> None:
    items = [Item(str(i), pixels(i), label=i % 3) for i in range(12)]
    items.append(Item("beyond", pixels(99), label=7))
    _, found, index, refused = run(tmp_path, items, classes=("z", "y", "x"))
    assert found.classes == ("z", "y", "x")
    assert index["label"].tolist() == [i % 3 for i in range(12)] + [-1]
    assert [(row["name"], row["reason"]) for row in refused] == [("beyond", "label_unknown")]


def test_classes_as_stated_by_the_settings(tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"classes": ("b", "a")})
    items = [*items_of(8), Item("other", pixels(50), class_name="c")]
    _, found, index, refused = run(tmp_path, items, params)
    assert found.classes == ("b", "a")
    assert index["label"].tolist() == [1, 0] * 4 + [-1]
    assert [row["reason"] for row in refused] == ["label_unknown"]


def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    items = [Item(str(i), pixels(i), class_name=str(i)) for i in (10, 9, 2, 1)]
    assert run(tmp_path, items)[1].classes == ("1", "2", "9", "10")


def test_images_without_label_get_a_class_where_one_is_named(tmp_path: Path) -> None:
    items = [Item(str(i), pixels(i)) for i in range(5)]
    with pytest.raises(SourceError, match="no_label"):
        run(tmp_path, items)
    params = PARAMS.model_copy(update={"default_class": "thing"})
    assert run(tmp_path, items, params)[1].classes == ("thing",)


# ---------------------------------------------------------------------------------------- faults


def test_no_readable_image_is_an_error_with_a_quarantine(tmp_path: Path) -> None:
    items = [Item(f"{i}.jpg", b"text", class_name="a") for i in range(3)]
    with pytest.raises(SourceError, match=r"None of the source's 3 images .*not_an_image"):
        run(tmp_path, items)
    assert not (tmp_path / "ingested/d1").exists()
    assert len(quarantine_rows(tmp_path / "quarantine/d1")) == 3
    with pytest.raises(SourceError, match="no images"):
        run(tmp_path, [])


def test_a_failed_run_leaves_the_old_output(tmp_path: Path) -> None:
    run(tmp_path, items_of(10))
    before = files_of(tmp_path / "ingested/d1")

    class Vanishing(Listed):
        def items(self) -> Iterator[Item]:
            yield from items_of(5)
            raise SourceError("the disk went away")

    out, refuge = tmp_path / "ingested/d1", tmp_path / "quarantine/d1"
    with pytest.raises(SourceError, match="went away"):
        ingest(Vanishing([]), PARAMS, DEMO_IDS_KEY, "d1", out, refuge)
    assert files_of(out) == before
    assert not list(tmp_path.rglob(".spool"))


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "ingested/d1"), pytest.raises(BusyError):
        run(tmp_path, items_of(3))


def test_a_decoder_that_dies_costs_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import acts

    # The planted decoder knows two words; everything else it decodes.
    monkeypatch.setattr(module, "decode_packed", acts.deadly_decode)
    deadly = saved(Image.fromarray(scene()), "PNG") + b"kill this decoder"
    hanging = saved(Image.fromarray(scene()[::-1]), "PNG") + b"hang this decoder"
    items = items_of(12)
    items.insert(5, Item("deadly", deadly, class_name="a"))
    items.insert(9, Item("hanging", hanging, class_name="a"))
    params = PARAMS.model_copy(update={"timeout_seconds": 1.0, "workers": 2})
    summary, _, _, refused = run(tmp_path, items, params)
    assert {row["name"]: row["reason"] for row in refused} == {
        "deadly": "decoder_died", "hanging": "decoder_timeout",
    }  # fmt: skip
    assert summary.kept == 12


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_ingest import run, mixed_items
print("ready", flush=True)
run(Path({folder!r}), mixed_items())
"""


def test_a_killed_run_leaves_nothing_torn(tmp_path: Path) -> None:
    run(tmp_path / "whole", mixed_items())
    expected = files_of(tmp_path / "whole")
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "killed"))
    for wait in (0.7,):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        for name in ("ingested", "quarantine"):
            place = tmp_path / "killed" / name / "d1"
            if place.exists():
                assert files_of(place) == files_of(tmp_path / "whole" / name / "d1")
    run(tmp_path / "killed", mixed_items())
    assert files_of(tmp_path / "killed") == expected


# ------------------------------------------------------------------------------------- privacy

MARK = "MARKER-jane-doe-51.5N"


def marked(kind: str) -> bytes:
    """A file with the marker wherever its format has room."""
    exif = Image.Exif()
    exif[0x010E], exif[0x9286], exif[0x0112] = MARK, MARK, 6
    info = PngImagePlugin.PngInfo()
    info.add_text("author", MARK)
    info.add_text("zipped", MARK * 3, zip=True)
    note = MARK.encode()
    options: dict[str, dict[str, Any]] = {
        "PNG": {"exif": exif, "pnginfo": info, "icc_profile": note},
        "JPEG": {"exif": exif, "comment": note, "icc_profile": note, "xmp": note},
        "WEBP": {"exif": exif, "icc_profile": note, "xmp": note, "lossless": True},
        "TIFF": {"exif": exif, "description": MARK, "icc_profile": note},
        "GIF": {"comment": note},
    }
    image = Image.fromarray(scene())
    return saved(image, kind, **options[kind]) + b"\r\n" + note


def test_metadata_never_survives(tmp_path: Path) -> None:
    items = []
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF"):
        content = marked(kind)
        assert MARK.encode() in content
        items.append(Item(f"{MARK}/{kind}", content, class_name="a"))
    for i in range(4):
        items.append(Item(f"{MARK}-{i}", picture(i), class_name="a"))
    run(tmp_path, items, PARAMS.model_copy(update={"size": (20, 12)}))
    needles = [MARK.encode(), MARK.encode("utf-16-le"), b"Exif", zlib.compress(MARK.encode())[2:9]]
    for name, content in files_of(tmp_path / "ingested").items():
        if not name.endswith(INDEX):
            assert not any(needle in content for needle in needles), name
    columns = read_table(tmp_path / "ingested/d1" / INDEX).drop(columns="name")
    assert MARK not in columns.to_csv()


def test_names_lead_nowhere(tmp_path: Path) -> None:
    names = ["../../evil.png", "/etc/passwd", "=cmd()", "new\nline", "\udcff", "a" * 300, 'q",x']
    items = [Item(name, b"text", class_name="a") for name in names]
    items += [Item("../up.png", pixels(1), class_name="../x", group="\udc80\n")]
    _, found, index, refused = run(tmp_path, items)
    assert {p.name for p in tmp_path.iterdir()} == {"ingested", "quarantine"}
    assert {p.name for p in (tmp_path / "quarantine").iterdir()} == {"d1"}
    assert [row["name"] for row in refused][2:5] == ["'=cmd()", "new\\u000aline", "\\xff"]
    assert len(refused) == len(names)
    assert len(index) == len(items) and found.classes == ("../x",)


def test_every_kind_of_file_has_a_row(tmp_path: Path) -> None:
    items = [Item(name, make(), class_name="a") for name, make in CORPUS.items()]
    items += [Item(f"cut {name}", make()[:30], class_name="a") for name, make in CORPUS.items()]
    summary, _, index, refused = run(tmp_path, items)
    assert len(index) == len(items) == summary.total
    assert {row["name"] for row in refused} == {i.name for i in items if i.name.startswith("cut")}
    assert summary.kept + summary.duplicates == len(CORPUS)
    assert summary.duplicates >= len(LOSSLESS) - 1


@pytest.mark.parametrize(
    "values",
    [{"workers": 0}, {"shares": {"train": 0.9}}, {"near_duplicate_threshold": -1}, {"sizes": 3},
     {"classes": []}, {"timeout_seconds": 0}],
)  # fmt: skip
def test_settings_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        IngestParams.parse(values, "params.yaml: ingest")


# ----------------------------------------------------------------------------------- real sets


def shared_items(folder: str, file: str, split: Any, people: bool, count: int) -> list[Item]:
    path = SHARED / folder / file
    if not path.is_file():
        pytest.skip(f"the shared data set {path} is not here")
    rows = pq.read_table(path).to_pylist()[:count]
    return [
        Item(f"{file}/{i}", row["image"]["bytes"], label=row["label"],
             class_name=f"s{row['label']}", group=f"s{row['label']}" if people else "", split=split)
        for i, row in enumerate(rows)
    ]  # fmt: skip


def test_faces_are_a_closed_set(tmp_path: Path) -> None:
    items = shared_items("orl_faces", "train.parquet", "train", True, 999)
    items += shared_items("orl_faces", "test.parquet", "test", True, 999)
    params = IngestParams(size=(56, 46), channels=1)
    summary, found, index, refused = run(tmp_path, items, params)
    assert summary.closed_set and summary.groups == 40 and summary.kept == 400 and not refused
    assert found.manifest.notes["closed_set"] is True
    assert found.count("test") == 120  # The source's own, all of them.
    people = index.groupby("group")["role"].agg(set)
    assert all("gallery" in roles and "test" in roles for roles in people)


def test_photographs_with_exif(tmp_path: Path) -> None:
    items = shared_items("sign_digits_exif", "test.parquet", "test", False, 40)
    summary, found, index, _ = run(tmp_path, items, IngestParams(size=32))
    assert summary.kept == found.count("test") == 40 and not summary.closed_set
    assert (index["format"] == "JPEG").all()
    for content in files_of(tmp_path / "ingested").values():
        for needle in (b"Exif", b"Photoshop", b"Apple", b"ICC_PROFILE", b"http"):
            assert needle not in content


def test_attributes_are_in_the_index_alone(tmp_path: Path) -> None:
    items = [
        replace(item, attributes={"age": f"{number}", "site": "north" if number else ""})
        for number, item in enumerate(items_of(12))
    ]
    _, found, index, _ = run(tmp_path, items)
    assert set(index.columns) == INDEX_COLUMNS | {"attribute_age", "attribute_site"}
    known = read_attributes([found.folder, tmp_path / "nothing"])
    ids = {row.tobytes().hex() for split in found.splits for row in found.ids(split)}
    assert set(known["age"]) == ids
    assert set(known["site"]) == set(index.loc[1:, "id"])
    assert known["age"][index.loc[5, "id"]] == "5"
    assert found.manifest.columns == {"group": "string"}
