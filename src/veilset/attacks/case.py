"""Reads sets from disk into a case: what the attacker sees and owns, and the truth.

The auxiliary images are those of the role `auxiliary`: they were never released, and with groups
they show other people. The targets are released images, drawn at random.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from veilset.attacks.base import Attacker, Case, Effort, Gallery, Release, Truth
from veilset.data.shards import ImageSet
from veilset.errors import CorruptError, SettingsError
from veilset.files import read_table
from veilset.keys import Key
from veilset.schemes.base import Scheme
from veilset.types import Columns, Ids, Images, IntArray, Labels

Texts = npt.NDArray[Any]

MAX_TARGETS = 10_000
MAX_AUXILIARY = 50_000


@dataclass(frozen=True)
class Released:
    """One drop as the owner has it: originals, what was released of them, and the link."""

    ingested: Path
    protected: Path
    provenance: Path


@dataclass(frozen=True)
class _Rows:
    """Rows of sets as arrays: images, labels, ids, groups."""

    images: Images
    labels: Labels
    ids: Ids
    groups: Texts


@dataclass(frozen=True)
class _Targets:
    """Released rows, and what is known of the original of each."""

    images: Images
    labels: Labels
    side: Columns
    originals: Images
    ids: Texts
    groups: Texts


def load_case(
    drops: Sequence[Released],
    scheme: Scheme[Any],
    *,
    seed: int,
    effort: Effort,
    device: str = "cpu",
) -> Case:
    """The case of a scheme's release of these drops.

    Args:
        drops: Where each drop lies; an image that came in several counts once.
        scheme: The algorithm and parameters that made the release.
        seed: Of the draw of targets and of everything the attacker draws.
        effort: `quick` or `full`.
        device: Where the attacker trains, as torch names it.

    Raises:
        CorruptError: A link names an image that is not in the set.
        SettingsError: Nothing was released, or there are no auxiliary images.
    """
    rng = np.random.default_rng([seed, 0])
    release, truth = _targets(drops, scheme, rng)
    auxiliary = _gather([drop.ingested for drop in drops], "auxiliary", MAX_AUXILIARY, rng)
    if auxiliary is None:
        raise SettingsError(
            "no image has the role auxiliary, so no attacker can be trained: give "
            "ingest.shares.auxiliary a share, or leave attacks out of the pipeline."
        )
    photographs = _gather([drop.ingested for drop in drops], "gallery", MAX_AUXILIARY, rng)
    gallery = photographs and Gallery(
        images=photographs.images, labels=photographs.labels, groups=photographs.groups
    )
    attacker = Attacker(
        images=auxiliary.images, labels=auxiliary.labels, ids=auxiliary.ids,
        groups=auxiliary.groups, key=attacker_key(seed), gallery=gallery,
        seed=seed, device=device, effort=effort,
    )  # fmt: skip
    return Case(release=release, attacker=attacker, truth=truth)


def attacker_key(seed: int) -> Key:
    """The key that the attacker of this seed uses for her own images: public, never the owner's."""
    return Key(hashlib.sha256(f"veilset attacker's own key {seed}".encode()).digest())


def _targets(
    drops: Sequence[Released], scheme: Scheme[Any], rng: np.random.Generator
) -> tuple[Release, Truth]:
    links = _links(drops)
    if links.empty:
        raise SettingsError(
            f"nothing was released under {scheme.name}, so there is nothing to attack: give "
            "ingest.shares.train a share."
        )
    if len(links) > MAX_TARGETS:
        links = links.iloc[np.sort(rng.choice(len(links), MAX_TARGETS, replace=False))]
    parts = [
        _linked(drops[drop], str(split), part)
        for (drop, split), part in links.groupby(["drop", "split"], sort=True)
    ]
    side = {name: np.concatenate([p.side[name] for p in parts]) for name in parts[0].side}
    release = Release(
        images=np.concatenate([p.images for p in parts]),
        labels=np.concatenate([p.labels for p in parts]),
        scheme=scheme,
        side=side,
    )
    truth = Truth(
        originals=np.concatenate([p.originals for p in parts]),
        ids=np.concatenate([p.ids for p in parts]),
        groups=np.concatenate([p.groups for p in parts]),
    )
    return release, truth


def _links(drops: Sequence[Released]) -> pd.DataFrame:
    """Every released image once: drop (position), split, id, published_id."""
    tables = [
        read_table(path)[["id", "published_id"]].assign(
            drop=position, split=path.stem.removeprefix("links-")
        )
        for position, drop in enumerate(drops)
        for path in sorted(drop.provenance.glob("links-*.parquet"))
    ]
    if not tables:
        return pd.DataFrame(columns=["id", "published_id", "drop", "split"])
    return pd.concat(tables, ignore_index=True).drop_duplicates("id", ignore_index=True)


def _linked(drop: Released, split: str, links: pd.DataFrame) -> _Targets:
    """The released rows of one split of a drop, and their originals, in the order of the links."""
    public, private = ImageSet.open(drop.protected), ImageSet.open(drop.ingested)
    shown = _find(public, split, links["published_id"])
    source = _find(private, split, links["id"])
    return _Targets(
        images=public.images(split, shown),
        labels=public.labels(split)[shown],
        side={name: public.column(split, name)[shown] for name in public.manifest.columns},
        originals=private.images(split, source),
        ids=links["id"].to_numpy(dtype=object),
        groups=_groups(private, split)[source],
    )


def _find(images: ImageSet, split: str, wanted: "pd.Series[str]") -> IntArray:
    """The rows of these hex ids."""
    place = pd.Index([row.tobytes().hex() for row in images.ids(split)])
    rows = place.get_indexer(pd.Index(wanted)).astype(np.int64)
    if (rows < 0).any():
        raise CorruptError(
            f"{images.folder} lacks an image of {split} that its provenance names: protect the "
            "drop again."
        )
    return rows


def _gather(
    folders: Sequence[Path], split: str, limit: int, rng: np.random.Generator
) -> _Rows | None:
    """At most `limit` rows of a split over all drops, each id once; None where there are none."""
    parts = list(_unseen(folders, split))
    total = sum(len(rows) for _, rows in parts)
    if total == 0:
        return None
    chosen = np.sort(rng.choice(total, min(limit, total), replace=False))
    ends = np.cumsum([len(rows) for _, rows in parts])
    cut = [
        (images, rows[chosen[(chosen >= end - len(rows)) & (chosen < end)] - (end - len(rows))])
        for (images, rows), end in zip(parts, ends, strict=True)
    ]
    return _Rows(
        images=np.concatenate([images.images(split, rows) for images, rows in cut]),
        labels=np.concatenate([images.labels(split)[rows] for images, rows in cut]),
        ids=np.concatenate([images.ids(split)[rows] for images, rows in cut]),
        groups=np.concatenate([_groups(images, split)[rows] for images, rows in cut]),
    )


def _unseen(folders: Sequence[Path], split: str) -> Iterator[tuple[ImageSet, IntArray]]:
    """Each set that has the split, with its rows whose id no earlier set has."""
    seen: set[bytes] = set()
    for folder in folders:
        images = ImageSet.open(folder)
        if split not in images.splits:
            continue
        ids = [row.tobytes() for row in images.ids(split)]
        rows = [row for row, image_id in enumerate(ids) if image_id not in seen]
        seen.update(ids)
        yield images, np.array(rows, dtype=np.int64)


def _groups(images: ImageSet, split: str) -> Texts:
    if "group" not in images.manifest.columns:
        return np.full(images.count(split), "", dtype=object)
    return np.asarray(images.column(split, "group"), dtype=object)
