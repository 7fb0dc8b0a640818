"""What VisualMixer's released setting means for small images.

Its authors enlarge CIFAR-10 from 32 to 224 pixels before they shuffle regions of 16: a region is
then 2.3 original pixels wide. This study does both, native and enlarged, and asks what is left
after the plainest attack there is: shrinking the image back.

    python studies/visualmixer_size.py CIFAR10_FOLDER

CIFAR10_FOLDER holds CIFAR-10 as Parquet files in the Hugging Face layout. Writes
`studies/results/visualmixer_size.{json,png}`.
"""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.data import lfw_subset

from veilset.attacks.features import area_resize
from veilset.console import progress, run_reporting_errors, say
from veilset.data.ingest import IngestParams, ingest
from veilset.data.sources.registry import open_source
from veilset.data.splits import read_split
from veilset.files import write_bytes, write_json
from veilset.keys import DEMO_IDS_KEY, DEMO_PROTECTION_KEY
from veilset.metrics.similarity import psnr, ssim
from veilset.metrics.statistics import wilson
from veilset.report import pictures as sheets
from veilset.schemes.base import Scheme
from veilset.schemes.plain import Plain
from veilset.schemes.visualmixer import VisualMixer
from veilset.training.evaluation import predict
from veilset.training.loader import Samples
from veilset.training.loop import Subject, train
from veilset.training.params import TrainingParams
from veilset.training.saved import load_model
from veilset.types import Ids, Images, Labels

RESULTS = Path(__file__).parent / "results"
TRAIN, TEST, SHOWN = 5000, 1000, 8
LARGE = 224
EPOCHS = 12


@dataclass(frozen=True)
class Row:
    """What one way of using VisualMixer keeps.

    Attributes:
        way: In words.
        region: Width of a region in original pixels.
        ssim: Mean SSIM of the release, at its own size, to the image that was protected.
        ssim_shrunk: The same after both were shrunk to 32 pixels.
        psnr_shrunk: In decibels.
        accuracy: Of a ResNet-20 trained on the release shrunk to 32 pixels; low, high: 95 %.
    """

    way: str
    region: float
    ssim: float
    ssim_shrunk: float
    psnr_shrunk: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Part:
    """Images of one role."""

    ids: Ids
    labels: Labels
    images: Images


def enlarged(images: Images, side: int) -> Images:
    """Bilinear enlargement to side x side pixels, as torchvision's Resize does it."""
    large = [
        sheets.as_picture(image).resize((side, side), Image.Resampling.BILINEAR) for image in images
    ]
    return np.stack([np.asarray(image) for image in large]).reshape(
        len(images), side, side, images.shape[3]
    )


def shrunk(images: Images) -> Images:
    """Mean over areas, to 32 pixels."""
    return np.rint(area_resize(images, 32, 32)).astype(np.uint8)


def protect(scheme: Scheme, part: Part, side: int) -> tuple[Images, float]:
    """The release shrunk to 32 pixels, and its SSIM at its own size (of the first 200)."""
    made, likeness = [], []
    for low in range(0, len(part.labels), 100):
        at = slice(low, low + 100)
        plain = part.images[at] if side == 32 else enlarged(part.images[at], side)
        out = scheme.protect(plain, part.labels[at], part.ids[at], DEMO_PROTECTION_KEY).images
        made.append(out if side == 32 else shrunk(out))
        if low < 200:
            likeness.append(ssim(out, plain))
    return np.concatenate(made), float(np.concatenate(likeness).mean())


def accuracy(scheme: Scheme, train_part: Part, test_part: Part, folder: Path) -> int:
    """Right answers on the test images of a ResNet-20 trained from scratch."""
    held = len(train_part.labels) // 10
    classes = [str(k) for k in range(10)]
    subject = Subject("resnet20", classes, scheme.name, scheme.declares)
    params = TrainingParams(epochs=EPOCHS, flip=True)
    with progress(f"train on {scheme.name}", EPOCHS, "epoch") as advance:
        train(
            Samples(train_part.images[held:], train_part.labels[held:]),
            Samples(train_part.images[:held], train_part.labels[:held]),
            params, subject, folder, lambda *_: advance(1),
        )  # fmt: skip
    model, card = load_model(folder)
    said = predict(model, card, test_part.images).argmax(axis=1)
    return int((said == test_part.labels).sum())


def read(folder: str, temporary: Path) -> tuple[Part, Part]:
    """Training and test images, drawn by their keyed ids."""
    spec = {"path": folder, "source": "huggingface", "options": {"files": ["train*"]}}
    share = TEST / (TRAIN + TEST)
    params = IngestParams.parse(
        {"size": 32, "channels": 3, "workers": 2,
         "shares": {"train": 1 - share, "test": share, "validation": 0, "auxiliary": 0,
                    "gallery": 0}}, "study",
    )  # fmt: skip
    ingest(open_source(spec, Path()), params, DEMO_IDS_KEY, "cifar10", temporary / "plain",
           temporary / "quarantine")  # fmt: skip
    parts = [read_split([temporary / "plain"], split, limit)
             for split, limit in (("train", TRAIN), ("test", TEST))]  # fmt: skip
    return Part(*parts[0]), Part(*parts[1])


def ways() -> tuple[tuple[str, Scheme, int], ...]:
    """Each way in words, its scheme, and the side that images have when it protects them."""
    return (
        ("plain", Plain(), 32), ("native 32 px", VisualMixer(), 32),
        ("enlarged to 224 px, as its authors do", VisualMixer(), LARGE),
        ("native, regions of 2 px", VisualMixer(region_px=2, n=2), 32),
    )  # fmt: skip


def study(folder: str, temporary: Path) -> list[Row]:
    """All rows."""
    train_part, test_part = read(folder, temporary)
    rows = []
    for number, (way, scheme, side) in enumerate(ways()):
        say(way)
        made, likeness = protect(scheme, train_part, side)
        tested, _ = protect(scheme, test_part, side)
        right = accuracy(
            scheme, Part(train_part.ids, train_part.labels, made),
            Part(test_part.ids, test_part.labels, tested), temporary / f"model{number}",
        )  # fmt: skip
        found = wilson(right, len(test_part.labels))
        region = 32.0 if scheme.name == "plain" else scheme.params.region_px * 32 / side
        rows.append(Row(
            way, region, likeness, float(ssim(tested, test_part.images).mean()),
            float(np.minimum(psnr(tested, test_part.images), 99).mean()),
            found.value, found.low, found.high,
        ))  # fmt: skip
    return rows


def picture() -> bytes:
    """Embedded faces under each way, shrunk to 32 pixels, as PNG."""
    faces = np.rint(lfw_subset()[:SHOWN] * 255).astype(np.uint8)[..., None]
    ids = np.arange(16 * SHOWN, dtype=np.uint8).reshape(SHOWN, 16)
    part = Part(ids, np.zeros(SHOWN, np.int64), enlarged(faces, 32))
    rows = [(way, protect(scheme, part, side)[0]) for way, scheme, side in ways()]
    return sheets.png(sheets.contact_sheet(rows, 2))


def main() -> int:
    """Runs the study and writes its results."""
    with tempfile.TemporaryDirectory() as temporary:
        rows = study(sys.argv[1], Path(temporary))
    about = {"train": TRAIN, "test": TEST, "epochs": EPOCHS, "model": "resnet20", "seed": 0}
    write_json(
        RESULTS / "visualmixer_size.json", {"about": about, "rows": [asdict(r) for r in rows]}
    )
    write_bytes(RESULTS / "visualmixer_size.png", picture())
    say(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main))
