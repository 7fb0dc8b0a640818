"""Every bit of everything that is stored: flipped, and found before what it says is used."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from veilset import keys
from veilset.data.ingest import IngestParams, ingest
from veilset.data.manifest import Manifest
from veilset.data.records import INDEX
from veilset.data.roles import RoleShares
from veilset.data.shards import ImageSet
from veilset.data.sources.base import Item, Source, SourceParams
from veilset.errors import CorruptError, KeyFileError, VeilsetError
from veilset.files import read_table
from veilset.journal import append_to_journal, read_journal
from veilset.keys import DEMO_IDS_KEY, Key
from veilset.schemes.fitted import ARRAYS, CARD, Fitted, load_fitted, save_fitted
from veilset.schemes.protect import protect_set
from veilset.schemes.registry import make_scheme

KEY = Key(bytes(range(32)))


class Tiny(Source[SourceParams]):
    """Four pictures of 4 x 4."""

    name, title, Parameters = "tiny", "Four pictures", SourceParams

    def __init__(self) -> None:
        pass

    def classes(self) -> tuple[str, ...]:
        return ("a", "b")

    def count(self) -> int:
        return 4

    def items(self) -> Iterator[Item]:
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
            yield Item(f"{number}", pixels, class_name="ab"[number % 2], group=f"g{number}")


@dataclass(frozen=True)
class Stored:
    """A file, and what uses it.

    Attributes:
        path: The file.
        use: Uses it; gives what it says.
        error: How a change is refused.
        same: Whether a change may also leave everything as it was (a key's letters in capitals).
    """

    path: Path
    use: Callable[[], object]
    error: type[VeilsetError] = CorruptError
    same: bool = False


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of every kind."""
    from veilset.training.checkpoint import save_checkpoint

    root = tmp_path_factory.mktemp("stored")
    params = IngestParams(size=4, shares=RoleShares(train=1, validation=0, test=0, gallery=0,
                                                    auxiliary=0))  # fmt: skip
    ingest(Tiny(), params, DEMO_IDS_KEY, "d", root / "set", root / "quarantine")
    scheme = make_scheme("visualmixer", {"region_px": 4, "n": 2}, "test")
    protect_set(ImageSet.open(root / "set"), scheme, KEY, root / "out", root / "links", dataset="d")
    learnt = {"mean": np.arange(6, dtype=np.float32).reshape(2, 3), "shape": np.array([4, 4, 3])}
    save_fitted(root / "fit", Fitted("s", 1, '{"a":1}', learnt, {"images": 4, "loss": 0.25}))
    append_to_journal(root / "journal.jsonl", {"event": "made", "by": "Ä\x1f"}, {"event": "sent"})
    (root / "model").mkdir()
    save_checkpoint(root / "model", {"epoch": 3, "rate": 0.5})
    for kind in keys.KEY_KINDS:
        keys.new_key(kind, root)
    return root


def stored(root: Path) -> dict[str, Stored]:
    from veilset.training.checkpoint import read_checkpoint

    def verified(name: str) -> Callable[[], object]:
        return lambda: ImageSet.open(root / name).verify()

    found = {
        "shard": Stored(root / "set/train-00000.arrow", verified("set")),
        "protected shard": Stored(root / "out/train-00000.arrow", verified("out")),
        "manifest": Stored(root / "set/manifest.json", lambda: Manifest.load(root / "set")),
        "protected manifest": Stored(
            root / "out/manifest.json", lambda: Manifest.load(root / "out")
        ),
        "index": Stored(root / "set" / INDEX, lambda: read_table(root / "set" / INDEX)),
        "links": Stored(
            root / "links/links-train.parquet",
            lambda: read_table(root / "links/links-train.parquet"),
        ),
        "fitted arrays": Stored(root / "fit" / ARRAYS, lambda: load_fitted(root / "fit")),
        "fitted card": Stored(root / "fit" / CARD, lambda: load_fitted(root / "fit")),
        "journal": Stored(root / "journal.jsonl", lambda: read_journal(root / "journal.jsonl")),
        "checkpoint": Stored(root / "model/checkpoint.pt", lambda: read_checkpoint(root / "model")),
    }
    for kind in keys.KEY_KINDS:
        use = lambda kind=kind: keys.project_key(kind, root)  # noqa: E731
        found[f"{kind} key"] = Stored(keys.key_path(kind, root), use, KeyFileError, same=True)
        found[f"{kind} fingerprint"] = Stored(keys.fingerprint_path(kind, root), use, KeyFileError)
    return found


def flip_bits(one: Stored, step: int) -> int:
    """Flips bits one by one; gives how many. The file is then as before."""
    data, before = one.path.read_bytes(), one.use()
    flips = 0
    with one.path.open("r+b", buffering=0) as file:
        for bit in range(0, 8 * len(data), step):
            os.pwrite(file.fileno(), bytes([data[bit // 8] ^ (1 << bit % 8)]), bit // 8)
            try:
                after = one.use()
            except one.error as error:
                assert "\n" not in str(error)
            else:
                where = f"bit {bit % 8} of byte {bit // 8} of {one.path.name}"
                assert one.same and after == before, f"{where} was not noticed"
                assert data[bit // 8 : bit // 8 + 1].isalpha(), where
            os.pwrite(file.fileno(), data[bit // 8 : bit // 8 + 1], bit // 8)
            flips += 1
    assert one.path.read_bytes() == data
    one.use()
    return flips


KINDS = [
    "shard", "protected shard", "manifest", "protected manifest", "index", "links",
    "fitted arrays", "fitted card", "journal", "checkpoint",
    *(f"{kind} {what}" for kind in keys.KEY_KINDS for what in ("key", "fingerprint")),
]  # fmt: skip


def test_every_file_that_was_stored_is_among_those_that_are_flipped(place: Path) -> None:
    flipped = {one.path for one in stored(place).values()}
    assert list(stored(place)) == KINDS
    left = {path for path in place.rglob("*") if path.is_file()} - flipped
    # A table for people, which nothing reads; DVC has its hash.
    assert left == {place / "quarantine/quarantine.csv"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_before_use(place: Path, kind: str) -> None:
    one = stored(place)[kind]
    # An odd step meets all eight bits of a byte in turn.
    step = max(1, 8 * one.path.stat().st_size // 200 | 1)
    assert flip_bits(one, step) >= 100


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_found_before_use(
    place: Path, record_property: Callable[[str, object], None], kind: str
) -> None:
    one = stored(place)[kind]
    flips = flip_bits(one, 1)
    record_property("flips", flips)
    assert flips == 8 * one.path.stat().st_size


def test_other_readers_take_a_sealed_table_and_we_take_one_without_a_seal(
    place: Path, tmp_path: Path
) -> None:
    sealed = place / "set" / INDEX
    here = read_table(sealed)
    pd.testing.assert_frame_equal(pd.read_parquet(sealed)[["id", "role"]], here[["id", "role"]])
    pq.write_table(pq.read_table(sealed), tmp_path / "old.parquet", write_page_checksum=True)
    pd.testing.assert_frame_equal(read_table(tmp_path / "old.parquet"), here)


def test_the_flips_find_a_reader_that_does_not_look(place: Path) -> None:
    one = stored(place)["shard"]
    with pytest.raises(AssertionError, match="was not noticed"):
        flip_bits(replace(one, use=lambda: None), 997)
