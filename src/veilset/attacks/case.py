"""Reads sets from disk into a case: what the attacker sees and owns, and the truth.

The auxiliary images are those of the role `auxiliary`: they were never released, and with groups
they show other people. The targets are released images, drawn at random.

With a CNN that was trained on the release the targets are what it was trained on.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from veilset.attacks.base import Attacker, Case, Effort, Gallery, Release, Truth
from veilset.data.records import read_attributes
from veilset.data.shards import ImageSet
from veilset.data.splits import first_seen
from veilset.errors import CorruptError, SettingsError
from veilset.files import read_table
from veilset.keys import Key
from veilset.schemes.base import Scheme
from veilset.types import BoolArray, Columns, Ids, Images, IntArray, Labels

Texts = npt.NDArray[Any]

MAX_TARGETS = 10_000
MAX_AUXILIARY = 50_000

_TRAINED_ON: Final = "train"


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
    published_ids: Ids
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
        SettingsError: Nothing was released, another scheme or other parameters made it, or there
            are no auxiliary images.
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
    gallery = None
    if photographs is not None:
        gallery = Gallery(
            images=photographs.images, labels=photographs.labels, groups=photographs.groups
        )
    attacker = Attacker(
        images=auxiliary.images, labels=auxiliary.labels, ids=auxiliary.ids,
        groups=auxiliary.groups, key=attacker_key(seed), gallery=gallery,
        seed=seed, device=device, effort=effort,
    )  # fmt: skip
    attributes = read_attributes(drop.ingested for drop in drops)
    return Case(release=release, attacker=attacker, truth=truth, attributes=attributes)


def case_from_originals(
    release: ImageSet,
    originals: ImageSet,
    scheme: Scheme[Any],
    key: Key,
    *,
    seed: int,
    effort: Effort,
    device: str = "cpu",
) -> Case:
    """The case of a release whose originals and key are at hand, outside a pipeline.

    Originals that were not released are the attacker's. Where there are fewer than a quarter of
    them, a quarter of all is drawn for her, and what was released of those is no target. Persons
    are drawn whole: she trains on other people. Half of the photographs of each person who is left
    are the gallery in her hands, and the rest are targets.

    Args:
        release: The protected set.
        originals: The plain set, ingested with the ids secret of the release.
        scheme: The algorithm and parameters that made the release.
        key: The owner's key, by which published ids are linked; no attack sees it.
        seed: Of all draws.
        effort: `quick` or `full`.
        device: Where the attacker trains, as torch names it.

    Raises:
        SettingsError: No released image is found among the originals.
    """
    rng = np.random.default_rng([seed, 0])
    plain = _everything(originals, rng)
    published = [row.tobytes() for row in scheme.stream(key).published_ids(plain.ids)]
    places = _places(release)
    released = np.array([name in places for name in published], dtype=bool)
    if not released.any():
        raise SettingsError(
            f"no image of {release.folder} is found among the originals: give the very originals, "
            "and the key and ids key that it was made with."
        )
    auxiliary = ~released
    if auxiliary.sum() * 4 < len(released):
        auxiliary = _drawn_share(plain.groups, len(released) // 4, rng)
    gallery = _half_of_each(plain.groups, released & ~auxiliary, rng)
    rows = np.flatnonzero(released & ~auxiliary & ~gallery)[:MAX_TARGETS]
    shown = [places[published[row]] for row in rows]
    own = np.flatnonzero(auxiliary)
    return Case(
        release=_pick(release, shown, scheme),
        attacker=Attacker(
            images=plain.images[own], labels=plain.labels[own], ids=plain.ids[own],
            groups=plain.groups[own], key=attacker_key(seed), seed=seed, device=device,
            effort=effort, gallery=_gallery(plain, np.flatnonzero(gallery)),
        ),
        truth=Truth(
            originals=plain.images[rows], groups=plain.groups[rows],
            ids=np.array([plain.ids[row].tobytes().hex() for row in rows], dtype=object),
        ),
        attributes=read_attributes([originals.folder]),
    )  # fmt: skip


def with_network(case: Case, releases: Sequence[ImageSet], model: Path) -> Case:
    """The case with a CNN that was trained on the release in the attacker's hands.

    The images that it was trained on, those of the split `train`, stay targets; the others become
    its outsiders, those of `validation` too, because nothing was chosen by them.

    Args:
        case: The case of the release.
        releases: The protected sets that it was trained on, one a drop.
        model: What `veilset.training.loop.train` wrote.

    Raises:
        CorruptError: The model's files are missing or altered.
        SettingsError: It was trained on another release, or on no target.
    """
    # Imported here, because torch takes seconds.
    from veilset.attacks._network import network_of  # noqa: PLC0415
    from veilset.training.saved import load_card  # noqa: PLC0415

    if set(load_card(model).trained_on) != {images.manifest.root for images in releases}:
        raise SettingsError(f"{model} was trained on another release: train it again.")
    trained = {
        row.tobytes()
        for images in releases if _TRAINED_ON in images.splits for row in images.ids(_TRAINED_ON)
    }  # fmt: skip
    published = case.release.published_ids
    names = () if published is None else published
    member = np.array([row.tobytes() in trained for row in names], dtype=bool)
    if not member.any():
        raise SettingsError(f"{model} was trained on no image under attack: give the very release.")
    rest = case.take(np.flatnonzero(~member))
    outsiders = (rest.release, rest.truth) if len(rest.release.images) else None
    network = network_of(model, outsiders, case.attacker.device)
    return replace(case.take(np.flatnonzero(member)), network=network)


def with_other_release(case: Case, other: ImageSet, scheme: Scheme[Any], key: Key) -> Case:
    """The case with another release of the same images in the attacker's hands.

    Targets that the other release has not are no targets any more.

    Args:
        case: The case, of originals whose ids the owner knows.
        other: The other protected set.
        scheme: The algorithm and parameters that made it.
        key: The key that it was made with, by which its ids are linked; no attack sees it.

    Raises:
        SettingsError: No target is in the other release.
    """
    ids = np.array([list(bytes.fromhex(str(name))) for name in case.truth.ids], dtype=np.uint8)
    places = _places(other)
    names = [row.tobytes() for row in scheme.stream(key).published_ids(ids)]
    rows = np.array([row for row, name in enumerate(names) if name in places], dtype=np.int64)
    if not len(rows):
        raise SettingsError(
            f"no image under attack is in {other.folder}: give another release of the same "
            "originals under the same ids key, and the key that it was made with."
        )
    shown = _pick(other, [places[names[row]] for row in rows], scheme)
    taken = case.take(rows)
    return replace(taken, attacker=replace(taken.attacker, other=shown))


def _places(release: ImageSet) -> dict[bytes, tuple[str, int]]:
    """Split and number of each published id."""
    return {
        row.tobytes(): (split, number)
        for split in release.splits
        for number, row in enumerate(release.ids(split))
    }


def _drawn_share(groups: Texts, wanted: int, rng: np.random.Generator) -> BoolArray:
    """Marks at least `wanted` rows (one at the least), whole groups at a time."""
    alone = np.array([f"row {row}" for row in range(len(groups))], dtype=object)
    _, member = np.unique(np.where(groups == "", alone, groups).astype(str), return_inverse=True)
    sizes = np.bincount(member)
    order = rng.permutation(len(sizes))
    needed = int(np.searchsorted(np.cumsum(sizes[order]), max(1, wanted))) + 1
    drawn: BoolArray = np.isin(member, order[:needed])
    return drawn


def _half_of_each(groups: Texts, rows: BoolArray, rng: np.random.Generator) -> BoolArray:
    """Marks half, rounded down, of each named group's rows among these."""
    marked = np.zeros(len(groups), dtype=np.bool_)
    for name in sorted(set(groups[rows]) - {""}):
        own = np.flatnonzero(rows & (groups == name))
        marked[rng.choice(own, len(own) // 2, replace=False)] = True
    return marked


def _gallery(plain: _Rows, rows: IntArray) -> Gallery | None:
    if len(rows) == 0:
        return None
    return Gallery(images=plain.images[rows], labels=plain.labels[rows], groups=plain.groups[rows])


def _everything(images: ImageSet, rng: np.random.Generator) -> _Rows:
    """All splits as one, in random order, at most as many rows as one case can use."""
    parts = [_gather([images.folder], split, MAX_AUXILIARY, rng) for split in images.splits]
    found = [part for part in parts if part is not None]
    order = rng.permutation(sum(len(part.labels) for part in found))[:MAX_AUXILIARY]
    return _Rows(
        images=np.concatenate([part.images for part in found])[order],
        labels=np.concatenate([part.labels for part in found])[order],
        ids=np.concatenate([part.ids for part in found])[order],
        groups=np.concatenate([part.groups for part in found])[order],
    )


def _pick(images: ImageSet, places: Sequence[tuple[str, int]], scheme: Scheme[Any]) -> Release:
    """Released rows by split and number, in the order given."""
    pixels = np.empty((len(places), *images.shape), dtype=np.uint8)
    labels = np.empty(len(places), dtype=np.int64)
    ids = np.empty((len(places), 16), dtype=np.uint8)
    side: Columns = {}
    for split in images.splits:
        at = np.array([i for i, (name, _) in enumerate(places) if name == split], dtype=np.int64)
        if len(at) == 0:
            continue
        rows = np.array([places[i][1] for i in at], dtype=np.int64)
        pixels[at], labels[at] = images.images(split, rows), images.labels(split)[rows]
        ids[at] = images.ids(split)[rows]
        for name in images.manifest.columns:
            values = images.column(split, name)[rows]
            side.setdefault(name, np.empty((len(places), *values.shape[1:]), values.dtype))
            side[name][at] = values
    return Release(
        images=pixels, labels=labels, scheme=scheme, side=side, published_ids=ids
    )  # fmt: skip


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
        _linked(drop, scheme, str(split), part)
        for position, drop in enumerate(drops)
        for split, part in links[links["drop"] == position].groupby("split", sort=True)
    ]
    side = {name: np.concatenate([p.side[name] for p in parts]) for name in parts[0].side}
    release = Release(
        images=np.concatenate([p.images for p in parts]),
        labels=np.concatenate([p.labels for p in parts]),
        scheme=scheme,
        side=side,
        published_ids=np.concatenate([p.published_ids for p in parts]),
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


def _linked(drop: Released, scheme: Scheme[Any], split: str, links: pd.DataFrame) -> _Targets:
    """The released rows of one split of a drop, and their originals, in the order of the links."""
    public, private = ImageSet.open(drop.protected), ImageSet.open(drop.ingested)
    if not scheme.made(public.manifest.scheme):
        raise SettingsError(
            f"{drop.protected} was not made by {scheme.name} with the parameters that the settings "
            "have now, and an attack on another scheme proves nothing: protect the drop again, as "
            "`dvc repro` does, or attack it with the settings that made it."
        )
    shown = find_rows(public, split, links["published_id"])
    source = find_rows(private, split, links["id"])
    return _Targets(
        images=public.images(split, shown),
        labels=public.labels(split)[shown],
        published_ids=public.ids(split)[shown],
        side={name: public.column(split, name)[shown] for name in public.manifest.columns},
        originals=private.images(split, source),
        ids=links["id"].to_numpy(dtype=object),
        groups=_groups(private, split)[source],
    )


def find_rows(images: ImageSet, split: str, wanted: "pd.Series[str]") -> IntArray:
    """The rows of these hex ids."""
    place = pd.Index([row.tobytes().hex() for row in images.ids(split)])
    rows: IntArray = place.get_indexer(pd.Index(wanted)).astype(np.int64)
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
    parts = _unseen(folders, split)
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


def _unseen(folders: Sequence[Path], split: str) -> list[tuple[ImageSet, IntArray]]:
    """Each set that has the split, with its rows whose id no earlier set has."""
    sets = [images for folder in folders if split in (images := ImageSet.open(folder)).splits]
    kept = first_seen([images.ids(split) for images in sets]) if sets else []
    return list(zip(sets, kept, strict=True))


def _groups(images: ImageSet, split: str) -> Texts:
    if "group" not in images.manifest.columns:
        return np.full(images.count(split), "", dtype=object)
    return np.asarray(images.column(split, "group"), dtype=object)
