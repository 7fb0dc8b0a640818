"""What the tests of faults share: a small drop of images, work on it, and what a folder holds."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from veilset.data.ingest import IngestParams, ingest
from veilset.data.shards import ImageSet
from veilset.data.sources import open_source
from veilset.keys import DEMO_IDS_KEY, Key
from veilset.schemes.protect import protect_set
from veilset.schemes.registry import make_scheme

KEY: Final = Key(bytes(range(32)))
IMAGES: Final = 64
BROKEN: Final = {"text.png": b"no image at all", "cut.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF"}


def picture(seed: int, kind: str = "PNG", shape: tuple[int, int] = (20, 16)) -> bytes:
    """A file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def make_drop(folder: Path, seed: int = 0, count: int = IMAGES) -> Path:
    """A folder of two classes with `count` images, and two files that are none."""
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(1000 * seed + number, "PNG" if number % 4 else "JPEG"))
    for name, content in BROKEN.items():
        (folder / "a" / name).write_bytes(content)
    return folder


def ingest_drop(drop: Path, root: Path, **settings: Any) -> None:
    """Ingests a drop into `ingested/d1` and `quarantine/d1`."""
    params = IngestParams(**{"size": 16, **settings})
    source = open_source(str(drop), root)
    ingest(source, params, DEMO_IDS_KEY, "d1", root / "ingested/d1", root / "quarantine/d1")


def protect(source: Path, root: Path, name: str = "visualmixer", **settings: Any) -> None:
    """Protects an ingested set in four or more shards into `protected/d1` and `links/d1`."""
    values = {"dataset": "d", "shard_bytes": 10 * 16 * 16 * 3, **settings}
    scheme = make_scheme(name, values.pop("scheme", {}), "test")
    protect_set(
        ImageSet.open(source), scheme, KEY, root / "protected/d1", root / "links/d1", **values
    )


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, hidden ones too, by its path in it; no locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def names_in(folder: Path) -> set[str]:
    """All files and folders below a folder, by their path in it.

    Lock files are left out: without its process one locks nothing, and the next writer removes it.
    """
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix != ".lock"}


def quiet_environment(**more: str) -> dict[str, str]:
    """This environment with one thread, and what is added."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", **more}
