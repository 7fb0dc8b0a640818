"""How fast the schemes are beside a plain copy of the same bytes: `python -m benchmarks.schemes`.

One thread, unless workers are named. `copy / 18` means: takes as long as 18 copies. Schemes that
learn are fitted on a few images in as few steps as there can be: how well they learnt does not
change how fast they are.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Case, Result, machine, measured, save, table
from veilset.data.shards import ImageSet, write_set
from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.metrics.vfe import vfe_released, vfe_valid
from veilset.schemes._kernels import mix_channels, network, sort_keys, words_for
from veilset.schemes.base import ArrayPool
from veilset.schemes.fitted import Lessons
from veilset.schemes.pixel_block_mixing import PixelBlockMixingParams, _copy
from veilset.schemes.protect import protect_set
from veilset.schemes.registry import SCHEMES, make_scheme
from veilset.schemes.visualmixer import VisualMixer, VisualMixerParams
from veilset.types import Ids, Images, IntArray, Labels

KEY = Key(bytes(range(32)))

LEARNERS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("mask_desensitization", "", {"epochs": 1}),
    ("mask_desensitization", ", a mask for each image", {"epochs": 1, "scope": "image"}),
    (
        "image_to_perturbation", "",
        {"classifier_epochs": 1, "feature_epochs": 1, "epochs": 1, "least_steps": 1},
    ),
)  # fmt: skip
"""Schemes that learn, what sets a setting apart, and a setting whose network has its usual size."""


def some_images(count: int, px: int) -> tuple[Images, Labels, Ids]:
    """Random colour images in ten classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, px, px, 3), dtype=np.uint8)
    return images, np.arange(count) % 10, rng.integers(0, 256, (count, 16), dtype=np.uint8)


def cases(px: int, count: int) -> Iterator[Case]:
    """All comparisons with a copy at one size."""
    images, labels, ids = some_images(count, px)
    out = np.zeros_like(images)
    size = f"{px} px"

    def copy() -> None:
        np.copyto(out, images)

    def case(name: str, run: object, goal: float | None = None) -> Case:
        return Case(name, size, run, copy, "copy", count, goal=goal)  # type: ignore[arg-type]

    mixer = VisualMixer(VisualMixerParams())
    stream = mixer.stream(KEY)
    goal = 18 if px == 32 else 20
    yield case("keystream, a byte for each", lambda: stream.bits(ids, "p", images[0].size))
    yield case(
        "permutation of 2-px blocks in 16-px regions",
        lambda: mixer._moved(images, ids, stream, 8, undo=False), goal,
    )  # fmt: skip
    single = VisualMixer(VisualMixerParams(region_px=8))
    yield case(
        "permutation of pixels in 8-px regions",
        lambda: single._moved(images, ids, stream, 8, undo=False),
    )
    words = stream.words(ids, "channels", words_for(px * px))
    yield case("channel shuffle", lambda: mix_channels(images, words, undo=False), 5)
    yield case(
        "channel shuffle with its keystream",
        lambda: mix_channels(images, stream.words(ids, "channels", words_for(px * px)), undo=False),
    )
    yield from _mixing(images, px, size)
    yield case("VFE as published", lambda: vfe_released(images))
    yield case("VFE without padding", lambda: vfe_valid(images))
    yield from _vfe_beside_loop(images, size)
    pool = ArrayPool.from_arrays(images, labels, ids)
    for name in SCHEMES.names():
        if SCHEMES[name].learns:
            continue
        values = _values(name, px)
        scheme = make_scheme(name, values, "benchmark")
        try:
            scheme.protect(images[:64], labels[:64], ids[:64], KEY)
        except (ProtectionError, SettingsError) as error:
            print(f"{name} is left out at {size}: {error}")
            continue
        yield case(
            f"protect: {name}",
            lambda scheme=scheme: scheme.protect(images, labels, ids, KEY, pool),
            35 if name == "masked_image" else None,
        )
    # A part of the images, and those unlike noise: flat regions merge, and are cut finer.
    target = make_scheme("visualmixer", {"mode": "target_vfe"}, "benchmark")
    part = slice(0, max(1, count // 8))
    faded = images[part] >> (np.arange(px, dtype=np.uint8) // 16 * 2 % 6)[:, None, None]
    yield Case(
        "protect: visualmixer, target_vfe", size,
        lambda: target.protect(faded, labels[part], ids[part], KEY), copy, "copy", len(faded),
        base_items=count,
    )  # fmt: skip


def _values(name: str, px: int) -> dict[str, object]:
    """Parameters that a size asks for: the published shares of the image."""
    if name == "pixel_block_mixing":
        return {"block_height": px // 2, "block_width": px // 8}
    return {}


def _mixing(images: Images, px: int, size: str) -> Iterator[Case]:
    """Half of the sixteen blocks of each image out of others, which were drawn already."""
    count = len(images)
    rng = np.random.default_rng(1)
    params = PixelBlockMixingParams(block_height=px // 2, block_width=px // 8)
    out, base = np.zeros_like(images), np.zeros_like(images)
    to, block = np.nonzero(rng.random((count, 16)) < 0.5)
    by = rng.integers(0, count, len(to))

    def mix() -> None:
        _copy(out, images, params, block, to, by, images)

    yield Case(
        "block mixing", size, mix, lambda: np.copyto(base, images), "copy", count, goal=4
    )  # fmt: skip


def _vfe_beside_loop(images: Images, size: str) -> Iterator[Case]:
    """Beside a loop that visits each pixel, on the upper left 32 pixels of an image."""
    patch = images[:1, :32, :32].copy()
    many = np.repeat(patch, 256, axis=0)

    def loop() -> int:
        total = 0
        for c in range(3):
            for y in range(32):
                for x in range(32):
                    if x + 1 < 32:
                        total += (int(patch[0, y, x + 1, c]) - int(patch[0, y, x, c])) ** 2
                    if y + 1 < 32:
                        total += (int(patch[0, y + 1, x, c]) - int(patch[0, y, x, c])) ** 2
        return total

    if size == "32 px":
        yield Case(
            "VFE without padding", size, lambda: vfe_valid(many), loop, "loop", len(many),
            base_items=1, faster=True, goal=1000,
        )  # fmt: skip


def learnt_cases(px: int, count: int, device: str) -> Iterator[Case]:
    """Schemes that learnt, on `cpu` (one core) or `cuda`, beside a copy by one core."""
    images, labels, ids = some_images(count, px)
    out = np.zeros_like(images)
    # A processor needs long for a network: fewer images there, none too few for a batch.
    part = slice(0, count if device == "cuda" else max(4, count // 64))
    lessons = Lessons(*bars(16, px), *bars(8, px), classes=2)
    for name, what, values in LEARNERS:
        plain = make_scheme(name, values, "benchmark", device=device)
        scheme = plain.with_fitted(plain.fit(lessons))
        yield Case(
            f"protect: {name}{what}, {device}", f"{px} px",
            partial(scheme.protect, images[part], labels[part], ids[part], KEY),
            lambda: np.copyto(out, images), "copy", len(images[part]), base_items=count,
            wall=device == "cuda",
        )  # fmt: skip


def bars(count: int, px: int, seed: int = 2) -> tuple[Images, Labels]:
    """Grey noise with a bright bar, whose direction is the class."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 100, (count, px, px, 3), dtype=np.uint8)
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        bar = image if label else image.swapaxes(0, 1)
        start = int(rng.integers(0, px - px // 8))
        bar[start : start + px // 8] += 150
    return images, labels


def threads(px: int, count: int) -> Case:
    """Batches protected by two threads, beside one: the compiled loops release the lock."""
    images, labels, ids = some_images(count, px)
    scheme = VisualMixer(VisualMixerParams())
    parts = np.array_split(np.arange(count), 16)

    def protect(part: IntArray) -> None:
        scheme.protect(images[part], labels[part], ids[part], KEY)

    def run(count_of_threads: int) -> None:
        with ThreadPoolExecutor(count_of_threads) as pool:
            list(pool.map(protect, parts))

    return Case(
        "protect in 2 threads", f"{px} px", lambda: run(2), lambda: run(1), "1 thread", count,
        faster=True, goal=1.7, wall=True,
    )  # fmt: skip


def two_cores() -> Case:
    """What this machine's cores give to two threads that share nothing: the others' ceiling."""
    words = np.random.default_rng(0).integers(0, 1 << 32, (96, 64), dtype=np.uint32)
    rows, pairs = np.arange(96), network(64)

    def sort(times: int) -> None:
        order, tied = np.empty((96, 64), np.uint16), np.empty(96, np.bool_)
        for _ in range(times):
            sort_keys(words, rows, pairs, order, tied)

    def run(count_of_threads: int) -> None:
        with ThreadPoolExecutor(count_of_threads) as pool:
            list(pool.map(sort, [4_000] * 4))

    return Case(
        "sorting in the cache, 2 threads", "6 KiB", lambda: run(2), lambda: run(1), "1 thread",
        16_000 * 96, faster=True, wall=True,
    )  # fmt: skip


@contextmanager
def on_one_core() -> Iterator[None]:
    """This thread, and those that it starts, on one core, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def workers(px: int, count: int, folder: Path) -> Case:
    """A whole set protected with two workers, beside one on one core; hashing and disk included.

    One worker that may use two cores hashes on the second what it writes from the first.
    """
    images, labels, ids = some_images(count, px)
    write_set(
        folder / "in", kind="ingested", dataset="random", classes=tuple("abcdefghij"),
        parts={"train": (ids, labels, images, {})},
    )  # fmt: skip
    source = ImageSet.open(folder / "in")
    scheme = VisualMixer(VisualMixerParams())
    shard = max(1, images.nbytes // 16)

    def run(count_of_workers: int) -> None:
        protect_set(
            source, scheme, KEY, folder / f"out-{count_of_workers}", None, dataset="random",
            workers=count_of_workers, shard_bytes=shard,
        )  # fmt: skip

    def alone() -> None:
        with on_one_core():
            run(1)

    return Case(
        "protect_set with 2 workers", f"{px} px", lambda: run(2), alone, "1 worker, core",
        count, faster=True, goal=1.7, wall=True,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few images and rounds: seconds")
    parser.add_argument(
        "--device", action="append", choices=("cpu", "cuda"), metavar="NAME",
        help="where networks run, cpu or cuda, once or twice; by default wherever they can",
    )  # fmt: skip
    options = parser.parse_args()
    quick: bool = options.quick
    devices: list[str] = options.device or ["cpu", *["cuda"] * torch.cuda.is_available()]
    if "cuda" in devices and not torch.cuda.is_available():
        parser.error("this machine has no CUDA")
    rounds, worker_rounds = (3, 2) if quick else (15, 5)
    sizes = {32: 1024, 224: 24} if quick else {32: 8192, 224: 160}
    results: list[Result] = []
    for px, count in sizes.items():
        results += [measured(case, rounds) for case in cases(px, count)]
    for px, count in sizes.items():
        for device in devices:
            results += [measured(case, worker_rounds) for case in learnt_cases(px, count, device)]
    results.append(measured(two_cores(), rounds))
    for px, count in sizes.items():
        results.append(measured(threads(px, 8 * count), rounds))
    # TMPDIR on a memory disk leaves the disk out of it.
    with tempfile.TemporaryDirectory() as folder:
        for px, count in sizes.items():
            place = Path(folder) / str(px)
            place.mkdir()
            results.append(measured(workers(px, 48 * count, place), worker_rounds))
    print(table(results))
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print(f"written to {save('schemes-quick' if quick else 'schemes', results)}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
