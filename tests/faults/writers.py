"""Every kind of file and folder that is written, small: each function fills a folder."""

from pathlib import Path

import numpy as np
import pandas as pd

from veilset.data.manifest import Manifest
from veilset.data.shards import write_set
from veilset.files import atomic_file, staged_folder, write_bytes, write_json, write_table
from veilset.journal import append_to_journal
from veilset.schemes.fitted import Fitted, save_fitted


def atomically(place: Path) -> None:
    with atomic_file(place / "file") as file:
        for _ in range(40):
            file.write(b"x" * 1000)


def table(place: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 1 << 60, 5000)
    write_table(place / "table.parquet", pd.DataFrame({"n": numbers}))


def folder(place: Path) -> None:
    with staged_folder(place / "folder", "plan") as staging:
        for name in "abcd":
            write_bytes(staging / name, name.encode() * 9000)


def image_set(place: Path) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    ids = draw.integers(0, 256, (60, 16), dtype=np.uint8)
    write_set(
        place / "set", kind="ingested", dataset="d", classes=("a",), shard_bytes=20 * 768,
        parts={"train": (ids, np.zeros(60, dtype=np.int64), images, {})},
    )  # fmt: skip


def manifest(place: Path) -> None:
    notes = {"words": "x" * 20_000}
    Manifest(
        kind="ingested", dataset="d", shape=(4, 4, 1), classes=("a",), splits={}, shards=(),
        notes=notes,
    ).save(place)  # fmt: skip


def journal(place: Path) -> None:
    append_to_journal(place / "journal.jsonl", {"words": "x" * 9000})


def fitted(place: Path) -> None:
    save_fitted(place / "fit", Fitted("s", 1, "{}", {"a": np.arange(5000)}, {"images": 4}))


def checkpoint(place: Path) -> None:
    import torch

    from veilset.training.checkpoint import save_checkpoint

    save_checkpoint(place, {"epoch": 1, "weights": torch.arange(5000)})


def evidence(place: Path) -> None:
    write_json(place / "verdicts.json", {"words": "x" * 20_000})


WRITERS = (
    atomically, table, folder, image_set, manifest, journal, fitted, checkpoint, evidence,
)  # fmt: skip
