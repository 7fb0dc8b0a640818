"""Protected sets on disk for the tests of trainings that read from there."""

from pathlib import Path

import numpy as np
from small_sets import stripes

from veilset.data.shards import write_set


def write_drops(root: Path, *, masks: bool = False, count: int = 60) -> list[Path]:
    """Two drops of `count` images in all, in shards of ten; a few images came in both.

    Training images are mixed up among the drops, so that their order by id is in neither.
    """
    made = {
        "train": stripes(count, (8, 9, 3)), "validation": stripes(13, (8, 9, 3), seed=1),
        "test": stripes(21, (8, 9, 3), seed=2),
    }  # fmt: skip
    rng = np.random.default_rng(5)
    ids = {split: rng.integers(0, 256, (len(each.images), 16), dtype=np.uint8)
           for split, each in made.items()}  # fmt: skip
    folders = [root / "first", root / "second"]
    for folder, (low, high) in zip(folders, ((0.0, 0.6), (0.5, 1.0)), strict=True):
        parts = {}
        for split, each in made.items():
            n = len(each.images)
            at = slice(int(low * n), int(high * n))
            mask = (each.images[at, ..., 0] > 120).astype(np.uint8)
            columns = {"mask": mask} if masks else {}
            parts[split] = ids[split][at], each.labels[at], each.images[at], columns
        write_set(folder, kind="protected", dataset="t", classes=("a", "b"), parts=parts,
                  shard_bytes=10 * 8 * 9 * 3)  # fmt: skip
    return folders
