"""What a new drop of 1 % more images costs: `python -m benchmarks.drops`.

The work of protecting it as a drop of its own is compared with that of protecting all images again,
both from disk to disk. Some of it costs the same whatever the drop's size: files that are synced,
the start of a process, DVC's look at the project. Two sizes of drop show the first, and the others
are measured apart, in seconds of this machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import Case, machine, measured, save, table
from veilset.data.shards import ImageSet, write_set
from veilset.keys import Key
from veilset.schemes.protect import protect_set
from veilset.schemes.registry import make_scheme

KEY = Key(bytes(range(32)))
SCHEMES = ("plain", "masked_image", "visualmixer", "pixel_block_mixing")
SHARE = 100  # all images are so many times the new ones
SIZES = (500, 5000)  # new images; of the smaller drop, making files is most of the work
PX = 32


def image_set(folder: Path, count: int, seed: int) -> ImageSet:
    """Random colour images in ten classes, all for training, on disk."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, PX, PX, 3), dtype=np.uint8)
    ids = rng.integers(0, 256, (count, 16), dtype=np.uint8)
    classes = tuple("abcdefghij")
    write_set(folder, kind="ingested", dataset="bench", classes=classes,
              parts={"train": (ids, np.arange(count) % 10, images, {})})  # fmt: skip
    return ImageSet.open(folder)


def cases(folder: Path, new: int) -> Iterator[Case]:
    """A drop of `new` images beside all `SHARE * new` of them, by scheme."""
    drop = image_set(folder / "drop", new, seed=1)
    every = image_set(folder / "all", SHARE * new, seed=2)
    for name in SCHEMES:

        def protect(source: ImageSet, name: str = name) -> float:
            # The disk has to be through with what the other run gave it, else this one waits too.
            os.sync()
            begun = time.perf_counter()
            # Each replaces what it made before, and not what the other made.
            out = folder / f"{source.folder.name}-{name}"
            protect_set(source, make_scheme(name, {}, name), KEY, out / "out", out / "links",
                        dataset="bench")  # fmt: skip
            return time.perf_counter() - begun

        yield Case(
            f"1 % new: {name}", f"{new:,} of {SHARE * new:,} at {PX} px", partial(protect, drop),
            partial(protect, every), "all again", new, own_time=True,
            goal=1 / SHARE if new == SIZES[-1] else None,
        )  # fmt: skip


def start_up(rounds: int, project: Path) -> dict[str, float]:
    """Seconds, the median, of what each stage costs before its first image.

    Args:
        rounds: How often each is measured.
        project: Where to make a DVC project of one stage that has nothing to do.
    """
    project.mkdir()
    (project / "dvc.yaml").write_text("stages:\n  one:\n    cmd: 'true'\n")
    dvc = [sys.executable, "-m", "dvc"]
    stage = [sys.executable, "-c", "import veilset.stages.protect"]
    for command in ([*dvc, "init", "-q", "--no-scm"], [*dvc, "repro", "-q"]):
        subprocess.run(command, cwd=project, check=True)
    return {
        what: float(np.median([_seconds(command, project) for _ in range(rounds)]))
        for what, command in (("dvc", [*dvc, "repro", "-q"]), ("stage", stage))
    }


def _seconds(command: list[str], folder: Path) -> float:
    begun = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images and rounds: seconds")
    quick: bool = parser.parse_args().quick
    rounds = 3
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for new in (20,) if quick else SIZES:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                results += [measured(case, rounds) for case in cases(Path(place), new)]
        seconds = start_up(rounds, Path(folder) / "project")
    print(table(results))
    print(
        f"beside it, for each stage and whatever the drop's size: {seconds['dvc']:.1f} s of DVC's "
        f"start and {seconds['stage']:.1f} s of the stage's"
    )
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    name = "drops-quick" if quick else "drops"
    print(f"written to {save(name, results, facts={'start_up_seconds': seconds})}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
