"""Places with images for drops, and a project without a pipeline."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from veilset.drops.intake import Arrival

REPOSITORY = Path(__file__).parents[2]
SAID = Arrival(licence="CC BY 4.0", consent="form 3", by="Ann Owner")


def picture(seed: int, size: int = 16) -> Image.Image:
    """A smooth random picture: no two nearly equal each other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def class_folders(place: Path, images: int = 8, first: int = 0) -> Path:
    """A folder with the classes cat and dog, alternating."""
    for number in range(first, first + images):
        path = place / ("cat", "dog")[number % 2] / f"maria_{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return place


def bare_project(root: Path) -> Path:
    """A project with keys and drops.yaml, and nothing that runs."""
    (root / "keys").mkdir(parents=True)
    for path in (REPOSITORY / "keys").glob("*.fingerprint"):
        shutil.copy(path, root / "keys")
    for name in ("drops.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, root / name)
    shutil.copytree(REPOSITORY / "data/raw/digits", root / "data/raw/digits")
    return root


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder that are not ours."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
