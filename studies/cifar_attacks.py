"""What every attack takes out of protected CIFAR-10, and how long each takes.

Test photographs are released, training photographs are in the attacker's hands. She knows the
scheme and its parameters, not the key.

    python studies/cifar_attacks.py CIFAR_FOLDER [--full] [--device cuda] [--targets 10000]

CIFAR_FOLDER holds Parquet files in the Hugging Face layout (`image`, `label`), `test*` and
`train*`. Writes `studies/results/cifar_attacks-<effort>-<cpu or cuda>.json`. Needs neither DVC nor
MLflow.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from PIL import Image

from veilset.attacks.base import Attacker, Case, Effort, Release, Truth
from veilset.attacks.case import attacker_key
from veilset.attacks.registry import attack_names
from veilset.attacks.suite import run_suite
from veilset.console import progress, run_reporting_errors, say
from veilset.errors import SourceError
from veilset.files import write_json
from veilset.keys import DEMO_PROTECTION_KEY
from veilset.models.device import choose_engine, device_name
from veilset.schemes.base import ArrayPool, Scheme
from veilset.schemes.fitted import Lessons
from veilset.schemes.registry import make_scheme
from veilset.types import Images, IntArray

RESULTS = Path(__file__).parent / "results"
SEED = 0
SCHEMES = (
    "plain", "masked_image", "visualmixer", "mask_desensitization", "image_to_perturbation",
    "pixel_block_mixing",
)  # fmt: skip
FIGURES = (
    "attack", "value", "low", "high", "chance", "control", "oracle", "targets", "gallery",
    "variant", "status", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Photographs:
    """Images uint8 (N, H, W, C), and their classes (N,)."""

    images: Images
    labels: IntArray

    def part(self, start: int, stop: int) -> "Photographs":
        """Those from `start` on, before `stop`."""
        return Photographs(self.images[start:stop], self.labels[start:stop])


def read(folder: Path, kind: str, most: int) -> Photographs:
    """The first images of the files named `<kind>*.parquet`; up to a thousand lossless ones.

    Raises:
        SourceError: There are no such files.
    """
    files = sorted(folder.glob(f"{kind}*.parquet"))
    if not files:
        raise SourceError(f"{folder} holds no {kind}*.parquet: give the folder of CIFAR-10.")
    if kind == "test" and most > 1000:
        # The thousand lossless images are in the large file as well, as JPEG.
        files = files[1:] or files
    rows: list[pd.DataFrame] = []
    for file in files:
        if sum(map(len, rows)) < most:
            rows.append(pd.read_parquet(file))
    table = pd.concat(rows, ignore_index=True)[:most]
    pictures = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table["image"]]
    return Photographs(
        np.stack([np.asarray(picture) for picture in pictures]),
        table["label"].to_numpy(dtype=np.int64),
    )


def fitted(scheme: Scheme[Any], own: Photographs) -> Scheme[Any]:
    """The scheme, with what it learns from the owner's own training photographs."""
    if not scheme.learns:
        return scheme
    cut = len(own.labels) * 9 // 10
    lessons, judged = own.part(0, cut), own.part(cut, len(own.labels))
    return scheme.with_fitted(
        scheme.fit(
            Lessons(lessons.images, lessons.labels, judged.images, judged.labels, classes=10)
        )
    )


def build(
    scheme: Scheme[Any], released: Photographs, hers: Photographs, effort: Effort, device: str
) -> Case:
    """The release of one scheme, and an attacker who holds other photographs."""
    rng = np.random.default_rng(SEED)
    ids = rng.integers(0, 256, (len(released.labels), 16), dtype=np.uint8)
    pool = ArrayPool.from_arrays(released.images, released.labels, ids)
    made = scheme.protect(released.images, released.labels, ids, DEMO_PROTECTION_KEY, pool)

    def nobody(count: int) -> Any:
        return np.full(count, "", dtype=object)

    return Case(
        release=Release(images=made.images, labels=released.labels, scheme=scheme, side=made.side),
        attacker=Attacker(
            images=hers.images, labels=hers.labels, groups=nobody(len(hers.labels)),
            ids=rng.integers(0, 256, (len(hers.labels), 16), dtype=np.uint8),
            key=attacker_key(SEED), seed=SEED, device=device, effort=effort,
        ),
        truth=Truth(
            originals=released.images, groups=nobody(len(released.labels)),
            ids=np.array([row.tobytes().hex() for row in ids]),
        ),
    )  # fmt: skip


def attack(scheme: Scheme[Any], case: Case, attacks: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of each attack that is made for this scheme."""
    chosen = {name: {"targets": len(case.truth.ids)} for name in attacks}
    with progress(f"attack {scheme.name}", None, "step") as advance:

        def on_step(what: str, done: int, total: int) -> None:
            del what, done, total
            advance(1)

        suite = run_suite(case, chosen, dataset="CIFAR-10", progress=on_step)
    found = [result for result in suite.results if result.applicable]
    for result in found:
        say(f"{scheme.name}: {result.words} ({result.seconds:.0f} s, {result.status})")
    return [{name: result.to_json()[name] for name in FIGURES} for result in found]


def main() -> int:
    """Runs the study and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="the long attacks of a release")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--targets", type=int, default=10_000)
    parser.add_argument("--auxiliary", type=int, default=20_000, help="photographs of hers")
    parser.add_argument("--scheme", action="append", help="repeatable; by default plain and five")
    parser.add_argument("--attack", action="append", help="repeatable; by default all")
    options = parser.parse_args()
    engine = choose_engine(options.device, "fp32")
    device, effort = str(engine.device), cast(Effort, "full" if options.full else "quick")
    released = read(options.folder, "test", options.targets)
    theirs = read(options.folder, "train", options.auxiliary + 5000)
    hers, own = theirs.part(5000, len(theirs.labels)), theirs.part(0, 5000)
    rows = {}
    for name in options.scheme or SCHEMES:
        scheme = fitted(make_scheme(name, {}, "study", device=device), own)
        case = build(scheme, released, hers, effort, device)
        rows[name] = attack(scheme, case, options.attack or attack_names())
    about = {
        "device": device_name(engine), "torch": torch.__version__, "effort": effort,
        "released": len(released.labels), "auxiliary": len(hers.labels), "seed": SEED,
    }  # fmt: skip
    place = RESULTS / f"cifar_attacks-{effort}-{engine.device.type}.json"
    write_json(place, {"about": about, "schemes": rows})
    say(f"written to {place}")
    return 0


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
