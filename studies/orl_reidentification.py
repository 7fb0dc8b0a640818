"""How often people are recognised on protected faces: ORL, 40 people, no training at all.

Five photographs of each person are released, the other five are in the attacker's hands. She knows
the scheme and its parameters, not the key, and names the person on each released photograph among
40. Chance is 2.5 %. SSIM stands beside the rates because it is so often taken for privacy.

    python studies/orl_reidentification.py ORL_FOLDER

ORL_FOLDER holds the faces as Parquet files in the Hugging Face layout (`image`, `label`). Writes
`studies/results/orl_reidentification.json`.
"""

import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import Field

from veilset.attacks.base import Attacker, Case, Gallery, Release, Truth
from veilset.attacks.case import attacker_key
from veilset.attacks.features import area_resize
from veilset.attacks.recognition import Recognition, RecognitionParams
from veilset.console import run_reporting_errors, say
from veilset.errors import SourceError
from veilset.files import write_json
from veilset.keys import DEMO_PROTECTION_KEY
from veilset.metrics.similarity import ssim
from veilset.params import Params
from veilset.schemes.base import ArrayPool, Declaration, Pool, Protected, Scheme
from veilset.schemes.pixel_block_mixing import PixelBlockMixing
from veilset.schemes.plain import Plain
from veilset.schemes.randomness import Stream
from veilset.schemes.visualmixer import VisualMixer
from veilset.types import Ids, Images, IntArray, Labels

RESULTS = Path(__file__).parent / "results"
SIDE = 96
SEED = 0


class LaplaceNoiseParams(Params):
    """Parameters of `LaplaceNoise`: `deviation` is in units of the whole grey scale."""

    deviation: float = Field(1.0, gt=0, le=10)


class LaplaceNoise(Scheme[LaplaceNoiseParams]):
    """Independent Laplace noise on each pixel, cut to 0..255: what many call anonymisation.

    Source: the strawman of the notes on masked image; drawn in floats, so no privacy is claimed.
    """

    name = "laplace_noise"
    title = "Laplace noise"
    version = 1
    declares = Declaration(
        keyed=True, reversible=False, guarantee=None, protects_queries=True, uses_labels=False,
        provenance="ours", source="strawman",
    )  # fmt: skip
    Parameters = LaplaceNoiseParams

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, pool
        draws = stream.words(ids, "noise", int(np.prod(images.shape[1:]))).reshape(images.shape)
        share = (draws.astype(np.float64) + 0.5) / 2.0 ** (8 * draws.dtype.itemsize) - 0.5
        scale = 255 * self.params.deviation / np.sqrt(2)
        noise = -scale * np.sign(share) * np.log1p(-2 * np.abs(share))
        return Protected(np.clip(np.rint(images + noise), 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Row:
    """How often people are recognised under one setting.

    Attributes:
        way: In words.
        ssim: Mean SSIM of the released images to their originals.
        rank1: Share of released photographs whose person is named; low, high: 95 %, by persons.
        rank5: Share whose person is among the first five.
        control: The same with photographs of other people; `chance` is what guessing scores.
        variant: What the attacker compared.
    """

    way: str
    ssim: float
    rank1: float
    low: float
    high: float
    rank5: float
    control: float
    chance: float
    variant: str


def ways() -> tuple[tuple[str, Scheme[Any]], ...]:
    """Each setting in words, and its scheme."""
    mixing = PixelBlockMixing(block_height=SIDE // 2, block_width=SIDE // 8)
    return (
        ("plain", Plain()),
        *((f"VisualMixer, regions of {px} px", VisualMixer(region_px=px)) for px in (16, 32, 48)),
        ("VisualMixer, one region", VisualMixer(region_px=SIDE, n=SIDE)),
        ("pixel block mixing, all faces one class", mixing),
        *((f"Laplace noise, deviation {d:g}", LaplaceNoise(deviation=d)) for d in (1.0, 2.0)),
    )


def read(folder: Path) -> tuple[Images, IntArray]:
    """Faces uint8 (N, 96, 96, 1), and who is on each.

    Raises:
        SourceError: There are no Parquet files.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise SourceError(f"{folder} holds no Parquet files: give the folder of the ORL faces.")
    table = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    pictures = [Image.open(io.BytesIO(row["bytes"])).convert("L") for row in table["image"]]
    planes = np.stack([np.asarray(picture) for picture in pictures])[..., None]
    faces = np.rint(area_resize(planes, SIDE, SIDE)).astype(np.uint8)
    return faces, table["label"].to_numpy(dtype=np.int64)


def build(scheme: Scheme[Any], faces: Images, persons: IntArray) -> Case:
    """Half of each person's photographs are released, the others are the gallery."""
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(persons))
    place = np.zeros(len(persons), dtype=np.int64)
    for person in np.unique(persons):
        own = order[persons[order] == person]
        place[own] = np.arange(len(own))
    shown, known = np.flatnonzero(place % 2 == 0), np.flatnonzero(place % 2 == 1)
    ids = rng.integers(0, 256, (len(faces), 16), dtype=np.uint8)
    names = np.array([f"person {person}" for person in persons], dtype=object)
    one_class = np.zeros(len(faces), dtype=np.int64)
    pool = ArrayPool.from_arrays(faces[shown], one_class[shown], ids[shown])
    made = scheme.protect(faces[shown], one_class[shown], ids[shown], DEMO_PROTECTION_KEY, pool)
    none = np.empty(0, dtype=np.int64)
    return Case(
        release=Release(images=made.images, labels=one_class[shown], scheme=scheme, side=made.side),
        attacker=Attacker(
            images=faces[none], labels=one_class[none], ids=ids[none], groups=names[none],
            key=attacker_key(SEED), seed=SEED,
            gallery=Gallery(images=faces[known], labels=one_class[known], groups=names[known]),
        ),
        truth=Truth(
            originals=faces[shown], groups=names[shown],
            ids=np.array([row.tobytes().hex() for row in ids[shown]]),
        ),
    )  # fmt: skip


def measure(way: str, scheme: Scheme[Any], faces: Images, persons: IntArray) -> Row:
    """One row."""
    case = build(scheme, faces, persons)
    found = Recognition(RecognitionParams()).run(case)
    if found.value is None or found.control is None:
        raise ValueError(f"recognition says nothing of {way}: {found.reason or found.words}")
    return Row(
        way, float(ssim(case.release.images, case.truth.originals).mean()), found.value,
        found.low or 0.0, found.high or 0.0, found.details["top5"], found.control.value,
        found.chance or 0.0, found.variant or "",
    )  # fmt: skip


def main() -> int:
    """Runs the study and writes its results."""
    faces, persons = read(Path(sys.argv[1]))
    rows = []
    for way, scheme in ways():
        rows.append(measure(way, scheme, faces, persons))
        say(f"{way}: {rows[-1].rank1:.1%} at SSIM {rows[-1].ssim:.2f}")
    about = {"images": len(faces), "persons": len(np.unique(persons)), "side": SIDE, "seed": SEED}
    write_json(
        RESULTS / "orl_reidentification.json", {"about": about, "rows": [asdict(r) for r in rows]}
    )
    say(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
