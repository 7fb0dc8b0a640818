"""Cases for the tests of attacks: embedded images, and schemes with planted leaks."""

# ruff: noqa: ARG002, PLR0917
import io
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from veilset.attacks.base import Attacker, Case, Gallery, Groups, Release, Truth
from veilset.attacks.features import area_resize
from veilset.keys import Key
from veilset.params import Params
from veilset.schemes.base import ArrayPool, Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, IntArray, Labels

DATASETS = Path(__file__).parents[2].parent / "shared/datasets"
OWNER, OTHER = Key(b"o" * 32), Key(b"a" * 32)


class NoParams(Params):
    pass


class Planted(Scheme[NoParams]):
    """The base of the schemes below."""

    title = "Planted"
    version = 1
    declares: ClassVar[Declaration] = Declaration(
        keyed=True, reversible=False, guarantee=None, protects_queries=True, uses_labels=False,
        provenance="ours", source="test",
    )  # fmt: skip
    Parameters = NoParams

    def noise(self, images: Images, ids: Ids, stream: Stream) -> Images:
        return stream.bits(ids, "noise", int(np.prod(images.shape[1:]))).reshape(images.shape)


class Noise(Planted):
    """Keyed noise: nothing of the image is left."""

    name = "noise"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        return Protected(self.noise(images, ids, stream))


class Black(Planted):
    """Every image is black."""

    name = "black"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        return Protected(np.zeros_like(images))


class OtherPeople(Planted):
    """Each image is replaced by another one of the pool, untouched."""

    name = "other_people"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        place = {row.tobytes(): i for i, row in enumerate(pool.ids)}
        own = np.array([place[row.tobytes()] for row in ids])
        step = stream.integers(ids, "step", 1, len(pool.ids) - 1)[:, 0] + 1
        return Protected(pool.take((own + step) % len(pool.ids)))


class Corner(Planted):
    """Noise, with a thumbnail left in a corner."""

    name = "corner"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        result = self.noise(images, ids, stream)
        result[:, :4, :4] = np.rint(area_resize(images, 4, 4)).astype(np.uint8)
        return Protected(result)


class LowestBits(Planted):
    """Noise, with a thumbnail left in the lowest bit of its pixels."""

    name = "lowest_bits"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        result = self.noise(images, ids, stream)
        small = np.rint(area_resize(images, 4, 4)).astype(np.uint8).reshape(len(images), -1)
        bits = np.unpackbits(small, axis=1)
        flat = result.reshape(len(images), -1)
        flat[:, : bits.shape[1]] = (flat[:, : bits.shape[1]] & 0xFE) | bits
        return Protected(flat.reshape(images.shape))


class Shuffled(Planted):
    """All pixels in random order: the histogram is kept."""

    name = "shuffled"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        flat = images.reshape(len(images), -1)
        order = stream.permutations(ids, "order", 1, flat.shape[1])[:, 0]
        return Protected(np.take_along_axis(flat, order, axis=1).reshape(images.shape))


class Negative(Planted):
    """The negative of some images, as the key decides."""

    name = "negative"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        flip = stream.bits(ids, "flip", 1)[:, :, None, None] & 1
        return Protected(np.where(flip == 1, 255 - images, images).astype(np.uint8))


class Side(Planted):
    """Noise, with a thumbnail published beside it."""

    name = "side"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        return Protected(self.noise(images, ids, stream), side={"mask": area_resize(images, 4, 4)})


@lru_cache
def digit_images(side: int = 16) -> tuple[Images, Labels]:
    found = load_digits()
    images = area_resize(found.images[..., None] * (255 / 16), side, side)
    return np.rint(images).astype(np.uint8), found.target.astype(np.int64)


def digit_case(
    scheme: Scheme[Any], targets: int = 240, auxiliary: int = 150, seed: int = 0
) -> Case:
    """Handwritten digits, 16 px, nobody named."""
    images, labels = digit_images()
    nobody = np.full(len(images), "", dtype=object)
    order = np.random.default_rng(seed).permutation(len(images))
    return build(
        scheme, images, labels, nobody, order[:targets], order[targets : targets + auxiliary],
        None, seed,
    )  # fmt: skip


def pattern_case(
    scheme: Scheme[Any], persons: int = 25, photos: int = 10, seed: int = 0, spread: float = 25.0
) -> Case:
    """People that are smooth random patterns; their photographs vary in light and noise."""
    rng = np.random.default_rng(seed + 100)
    faces = area_resize(rng.uniform(60, 200, (persons * 2, 4, 4, 1)), 16, 16)
    who = np.repeat(np.arange(persons * 2), photos)
    light = rng.normal(0, 8, (len(who), 1, 1, 1))
    seen = faces[who] + light + rng.normal(0, spread, (len(who), 16, 16, 1))
    images = np.clip(np.rint(seen), 0, 255).astype(np.uint8)
    names = np.array([f"person {i}" for i in who], dtype=object)
    number = np.tile(np.arange(photos), persons * 2)
    known = who < persons
    release = np.flatnonzero(known & (number >= photos // 2))
    gallery = np.flatnonzero(known & (number < photos // 2))
    auxiliary = np.flatnonzero(~known)
    return build(scheme, images, who % 2, names, release, auxiliary, gallery, seed)


def photographs(name: str, count: int) -> Images:
    """The first images of a shared Parquet file, uint8 (N, H, W, C); skips where it is absent."""
    path = DATASETS / name
    if not path.is_file():
        pytest.skip(f"the shared data set {path} is not here")
    import pyarrow.parquet as pq

    rows = pq.read_table(path, columns=["image"]).slice(0, count)["image"].to_pylist()
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in rows])
    return images if images.ndim == 4 else images[..., None]


def build(
    scheme: Scheme[Any], images: Images, labels: Labels, groups: Groups, release: IntArray,
    auxiliary: IntArray, gallery: IntArray | None, seed: int,
) -> Case:  # fmt: skip
    """A case of these rows; the owner's donors come from the release."""
    ids = np.random.default_rng(seed + 1).integers(0, 256, (len(images), 16), dtype=np.uint8)
    pool = ArrayPool.from_arrays(images[release], labels[release], ids[release])
    shown = scheme.protect(images[release], labels[release], ids[release], OWNER, pool)
    photographs = None
    if gallery is not None:
        photographs = Gallery(
            images=images[gallery], labels=labels[gallery], groups=groups[gallery]
        )
    return Case(
        release=Release(
            images=shown.images, labels=labels[release], scheme=scheme, side=shown.side
        ),
        attacker=Attacker(
            images=images[auxiliary], labels=labels[auxiliary], ids=ids[auxiliary],
            groups=groups[auxiliary], key=OTHER, gallery=photographs, seed=seed,
        ),
        truth=Truth(
            originals=images[release], groups=groups[release],
            ids=np.array([row.tobytes().hex() for row in ids[release]]),
        ),
    )  # fmt: skip
