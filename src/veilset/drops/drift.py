"""Whether a new drop changes the picture that the earlier ones give.

Four things are compared as distributions: classes, size (pixels and shape), brightness, contrast.
The distance is half the sum of differences of class shares (total variation), and for numbers the
largest difference of their cumulative shares (Kolmogorov and Smirnov). Both are between 0 and 1,
and both are large by chance alone where there are few images. So what counts is the *shift*: the
distance beyond what random halves of one set would show, but for a share `false_alarm` of them. A
shift is compared with a limit, because in large drops the smallest difference is beyond chance.

Two more are counted: images that the earlier drops hold already, exactly (equal ids) or nearly
(`veilset.data.duplicates`), and classes that they do not know.

Chance is that of independent images. Where images come in bursts, e.g. many of one person, drops
differ by more than that, and the limits are what to widen. All of it is ours; the distances are
textbook ones (N. Smirnov 1948; the noise of total variation by simulation).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from veilset.data.duplicates import Features, features, joined, near_duplicates
from veilset.data.records import INDEX
from veilset.data.shards import ImageSet
from veilset.errors import CheckError
from veilset.files import read_table, write_table
from veilset.params import Params
from veilset.types import BoolArray, FloatArray, Images, IntArray

_SIMULATIONS: Final = 1000
_STEP_BYTES: Final = 8 << 20
_BLOCKS: Final = 16
_BAND_BITS: Final = 16
_NUMBERS: Final = ("pixels", "aspect", "brightness", "contrast")


class DriftParams(Params):
    """By how much a new drop may differ from the earlier ones before a person decides.

    Attributes:
        false_alarm: The share of drops of the same kind whose distance counts as a shift at all,
            for each of the things compared.
        max_class_shift: Shift of the class shares, 0..1.
        max_size_shift: Shift of pixels or of width over height, 0..1.
        max_brightness_shift: Shift of the mean grey level, 0..1.
        max_contrast_shift: Shift of the grey levels' standard deviation, 0..1.
        max_known_share: Share of the images that the earlier drops hold exactly.
        max_nearly_known_share: Share of the images that nearly equal one of the earlier drops.
        near_threshold: Largest mean absolute difference of near duplicates, grey levels.
    """

    false_alarm: float = Field(default=0.001, gt=0, lt=0.5)
    max_class_shift: float = Field(default=0.1, ge=0, le=1)
    max_size_shift: float = Field(default=0.1, ge=0, le=1)
    max_brightness_shift: float = Field(default=0.1, ge=0, le=1)
    max_contrast_shift: float = Field(default=0.1, ge=0, le=1)
    max_known_share: float = Field(default=0.1, ge=0, le=1)
    max_nearly_known_share: float = Field(default=0.25, ge=0, le=1)
    near_threshold: float = Field(default=2.0, ge=0, le=64)


@dataclass(frozen=True, eq=False)
class Profile:
    """What is compared of one drop's N kept images.

    Attributes:
        classes: Class names in label order.
        ids: Hex, N of them.
        class_names: The class of each.
        numbers: float64 (N,) each: `pixels` and `aspect` of the original, `brightness` and
            `contrast` (standard deviation of grey levels) of the fitted image.
        features: What near duplicates are sought by.
        take: Fitted images by row, uint8 (len, H, W, C).
    """

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    numbers: dict[str, FloatArray]
    features: Features
    take: Callable[[IntArray], Images]


@dataclass(frozen=True)
class Comparison:
    """How a drop differs from the earlier ones; shifts as the module has them.

    Attributes:
        images: Kept images of the drop.
        earlier_images: Of the earlier drops together.
        earlier_drops: How many these are.
        class_shift: Of the class shares.
        pixels_shift: Of the number of pixels.
        aspect_shift: Of width over height.
        brightness_shift: Of the mean grey level.
        contrast_shift: Of the grey levels' standard deviation.
        known_share: Share of images that the earlier drops hold exactly.
        nearly_known_share: Share of images that nearly equal one of theirs, exact ones left out.
        unknown_classes: Classes with images that the earlier drops do not have.
        other_classes: 1 if its list of classes is not that of every earlier drop, so that equal
            labels mean different classes; else 0.
    """

    images: int
    earlier_images: int
    earlier_drops: int
    class_shift: float
    pixels_shift: float
    aspect_shift: float
    brightness_shift: float
    contrast_shift: float
    known_share: float
    nearly_known_share: float
    unknown_classes: int
    other_classes: int


def compare(new: Profile, earlier: Sequence[Profile], limits: DriftParams) -> Comparison:
    """Compares a drop with earlier ones, taken together.

    Args:
        new: The drop.
        earlier: At least one.
        limits: Of which `false_alarm` and `near_threshold` are used.

    Raises:
        CheckError: They are of different image sizes, so they were not ingested alike.
    """
    alarm = limits.false_alarm
    before = [name for profile in earlier for name in profile.class_names]

    def shift(number: str) -> float:
        values = np.concatenate([profile.numbers[number] for profile in earlier])
        return number_shift(new.numbers[number], values, alarm)

    known, nearly = known_images(new, earlier, limits.near_threshold)
    return Comparison(
        images=len(new.ids), earlier_images=len(before), earlier_drops=len(earlier),
        class_shift=class_shift(new.class_names, before, alarm),
        pixels_shift=shift("pixels"), aspect_shift=shift("aspect"),
        brightness_shift=shift("brightness"), contrast_shift=shift("contrast"),
        known_share=float(known.mean()), nearly_known_share=float(nearly.mean()),
        unknown_classes=len(set(new.class_names) - set(before)),
        other_classes=int(any(profile.classes != new.classes for profile in earlier)),
    )  # fmt: skip


def class_shift(new: Sequence[str], earlier: Sequence[str], false_alarm: float) -> float:
    """How far class shares are apart beyond chance, 0..1; at least one image each."""
    names = sorted({*new, *earlier})
    counts = [
        pd.Series(list(part)).value_counts().reindex(names, fill_value=0).to_numpy()
        for part in (new, earlier)
    ]
    distance = _variation(counts[0][None], counts[1][None])[0]
    shares = (counts[0] + counts[1]) / (len(new) + len(earlier))
    # A fixed seed: the verdict on the same drop must not depend on luck.
    random = np.random.default_rng(20_100_507)
    drawn = [random.multinomial(len(part), shares, size=_SIMULATIONS) for part in (new, earlier)]
    chance = _variation(drawn[0], drawn[1])
    # A sum over classes is nearly normal, whose tail is told by far fewer draws than its own.
    noise = chance.mean() + NormalDist().inv_cdf(1 - false_alarm) * chance.std()
    return max(0.0, float(distance - noise))


def number_shift(new: FloatArray, earlier: FloatArray, false_alarm: float) -> float:
    """How far two samples of numbers are apart beyond chance, 0..1; at least one value each."""
    values = np.unique(np.concatenate([new, earlier]))
    shares = [
        np.searchsorted(np.sort(part), values, side="right") / len(part) for part in (new, earlier)
    ]
    distance = np.abs(shares[0] - shares[1]).max()
    # Smirnov's limit; ties, e.g. one size for all, make it only more cautious.
    noise = math.sqrt(math.log(2 / false_alarm) / 2 * (1 / len(new) + 1 / len(earlier)))
    return max(0.0, float(distance - noise))


def known_images(
    new: Profile, earlier: Sequence[Profile], threshold: float
) -> tuple[BoolArray, BoolArray]:
    """Which images of a drop the earlier drops hold exactly, and which nearly; never both.

    Raises:
        CheckError: They are of different image sizes.
    """
    held = {one for profile in earlier for one in profile.ids}
    known = np.array([one in held for one in new.ids], dtype=bool)
    nearly = np.zeros(len(new.ids), dtype=bool)
    for profile in earlier:
        nearly |= _nearly(new, profile, threshold)
    return known, nearly & ~known


def profile_of(ingested: Path, cache: Path) -> Profile:
    """The profile of an ingested drop, kept so that old drops are not read for each new one.

    Args:
        ingested: The set's folder.
        cache: A private folder for the profile of this drop; the version of the set is part of the
            file's name, and profiles of other versions are removed.

    Raises:
        CorruptError: The set or its profile is not as it was written.
        CheckError: The drop has no image.
    """
    images = ImageSet.open(ingested)
    path = cache / f"profile-{images.manifest.root[:32]}.parquet"
    if not path.is_file():
        for old in cache.glob("profile-*.parquet"):
            old.unlink()
        cache.mkdir(parents=True, exist_ok=True)
        cache.chmod(0o700)
        write_table(path, _measured(images, read_table(ingested / INDEX)))
        path.chmod(0o600)
    return _profile(images, read_table(path))


# ------------------------------------------------------------------------------- small parts below


def _variation(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> FloatArray:
    """Total variation between shares by rows of counts, (S, classes) each."""
    gap = one / one.sum(axis=1, keepdims=True) - other / other.sum(axis=1, keepdims=True)
    distances: FloatArray = np.abs(gap).sum(axis=1) / 2
    return distances


def _nearly(new: Profile, old: Profile, threshold: float) -> BoolArray:
    """Which images of a drop are in one cluster of near duplicates with one of another."""
    count = len(new.ids)
    rows = np.flatnonzero(_shares_band(old.features.hash, new.features.hash))
    found = joined([new.features, old.features.take(rows)])

    def take(at: IntArray) -> Images:
        inside = at < count
        shape = new.take(at[:0]).shape[1:]
        if old.take(at[:0]).shape[1:] != shape:
            raise CheckError(
                "The drops have images of different sizes, because they were ingested under "
                "different settings: run `dvc repro`, then check again."
            )
        pixels = np.empty((len(at), *shape), dtype=np.uint8)
        pixels[inside] = new.take(at[inside])
        pixels[~inside] = old.take(rows[at[~inside] - count])
        return pixels

    # The same image may be on both sides, but ids here only have to be different.
    ids = [number.to_bytes(8, "big") for number in range(count + len(rows))]
    clusters = near_duplicates(found, ids, take, threshold)
    nearly: BoolArray = np.isin(clusters[:count], clusters[count:])
    return nearly


def _shares_band(hashes: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]) -> BoolArray:
    """Which hashes have a band in common with one that is wanted: all others cannot be near."""
    mask = np.uint64((1 << _BAND_BITS) - 1)
    found = np.zeros(len(hashes), dtype=bool)
    for band in range(64 // _BAND_BITS):
        by = np.uint64(band * _BAND_BITS)
        found |= np.isin((hashes >> by) & mask, (wanted >> by) & mask)
    return found


def _measured(images: ImageSet, index: pd.DataFrame) -> pd.DataFrame:
    """A row for each kept image: split, row in it, and all that a profile has."""
    step = max(1, _STEP_BYTES // int(np.prod(images.shape)))
    parts = []
    for split in images.splits:
        ids = [one.tobytes().hex() for one in images.ids(split)]
        for start in range(0, len(ids), step):
            rows = np.arange(start, min(start + step, len(ids)))
            parts.append(_part(split, rows, ids[start : start + step], images.images(split, rows)))
    if not parts:
        raise CheckError("The drop has no image to compare: see its quarantine.")
    kept = index[index["id"].notna()].drop_duplicates("id").set_index("id")
    table = pd.concat(parts, ignore_index=True)
    known = kept.loc[table["id"]]
    width, height = (known[side].to_numpy(dtype=np.float64) for side in ("width", "height"))
    return table.assign(
        class_name=known["class_name"].to_numpy(), pixels=width * height, aspect=width / height
    )


def _part(split: str, rows: IntArray, ids: list[str], pixels: Images) -> pd.DataFrame:
    found = features(pixels)
    blocks = {f"block_{n}": found.blocks[:, n] for n in range(_BLOCKS)}
    grey = pixels.mean(axis=3, dtype=np.float64)
    values = {
        "id": ids, "split": split, "row": rows, "brightness": found.brightness,
        "contrast": grey.std(axis=(1, 2)), "hash": found.hash.view(np.int64),
    }  # fmt: skip
    return pd.DataFrame({**values, **blocks})


def _profile(images: ImageSet, table: pd.DataFrame) -> Profile:
    splits = table["split"].to_numpy(dtype=object)
    rows = table["row"].to_numpy(dtype=np.int64)

    def take(at: IntArray) -> Images:
        pixels = np.empty((len(at), *images.shape), dtype=np.uint8)
        for split in images.splits:
            here = splits[at] == split
            if here.any():
                pixels[here] = images.images(split, rows[at[here]])
        return pixels

    blocks = np.stack([table[f"block_{n}"] for n in range(_BLOCKS)], axis=1).astype(np.float32)
    brightness = table["brightness"].to_numpy(dtype=np.float64)
    return Profile(
        classes=images.classes,
        ids=tuple(table["id"]),
        class_names=tuple(table["class_name"]),
        numbers={name: table[name].to_numpy(dtype=np.float64) for name in _NUMBERS},
        features=Features(table["hash"].to_numpy().view(np.uint64), blocks, brightness),
        take=take,
    )
