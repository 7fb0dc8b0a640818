"""Which image is used for what: roles by keyed hash, so that a new drop never moves an old image.

Roles: `train`, `validation`, `test` (what may be released), `auxiliary` (the attacker's own images)
and `gallery` (other photographs of released people, for re-identification). All of it is ours.

* Without groups the image is drawn; with groups (people), the whole group, so that nobody is both
  in train and in test by our doing, and auxiliary people are disjoint from released ones.
* The source's own test and validation images stay what they are. Its train images, and those it
  gives no split, are divided among train, auxiliary and whatever of validation and test the source
  has not; shares are renormalised. A person with a test or validation image of the source's is
  never auxiliary.
* Closed set: where each group is one label (a data set of faces, labelled by person), the image is
  drawn, i.e. the split is inside the groups.
* A cluster of near duplicates takes one role where the image is drawn: test if one of its images is
  of the source's test split, else validation likewise, else that of its smallest id.
* Gallery: of each group's released images a keyed share, at least one where there are two, and
  never all. The source's own test and validation images are taken only where there are no others.
"""

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from veilset.data.sources.base import Split
from veilset.keys import Key, role_fraction
from veilset.params import Params

Role = Literal["train", "validation", "test", "auxiliary", "gallery"]

ROLES: Final[tuple[Role, ...]] = ("train", "validation", "test", "auxiliary", "gallery")

_DRAWN: Final[tuple[Literal["train", "validation", "test", "auxiliary"], ...]] = (
    "train", "validation", "test", "auxiliary",
)  # fmt: skip
_KEPT: Final[tuple[Split, ...]] = ("test", "validation")


class RoleShares(Params):
    """How images or groups are divided: shares of 1.

    Attributes:
        train: Share of train.
        validation: Share of validation.
        test: Share of test.
        auxiliary: Share of the attacker's; 0 leaves attacks that learn nothing to learn from.
        gallery: Of the released images of each group, the share that becomes its gallery.
    """

    train: float = Field(default=0.45, ge=0.05, le=1)
    validation: float = Field(default=0.1, ge=0, le=0.9)
    test: float = Field(default=0.2, ge=0, le=0.9)
    auxiliary: float = Field(default=0.25, ge=0, le=0.9)
    gallery: float = Field(default=0.3, ge=0, le=0.9)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        total = self.train + self.validation + self.test + self.auxiliary
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, validation, test and auxiliary add up to {total:g}, not to 1")
        return self


@dataclass(frozen=True)
class RoleRow:
    """What decides on an image's role.

    Attributes:
        image_id: 16 bytes.
        group: Who is shown, "" if unknown.
        split: The source's own split, or None.
        cluster: Index of the row that stands for its near duplicates (the one with the smallest
            id); its own index where it has none.
    """

    image_id: bytes
    group: str
    split: Split | None
    cluster: int


def is_closed_set(groups: Sequence[str], labels: Sequence[object]) -> bool:
    """Whether the group is the label itself: every image has a group, one group a label.

    Args:
        groups: Who is shown, per image.
        labels: The class, per image.
    """
    pairs = set(zip(groups, labels, strict=True))
    people = {group for group, _ in pairs}
    classes = {label for _, label in pairs}
    return "" not in people and len(pairs) == len(people) == len(classes) > 1


def assign_role(
    ids_key: Key,
    image_id: bytes,
    group: str,
    split: Split | None,
    shares: RoleShares,
    closed_set: bool,
    *,
    source_splits: Set[Split] = frozenset(),
    released: bool = False,
) -> Role:
    """The role of one image before galleries are taken.

    Args:
        ids_key: The ids key.
        image_id: 16 bytes.
        group: Who is shown, "" if unknown.
        split: The source's own split of this image, or None.
        shares: How to divide.
        closed_set: The group is the label, so the image is drawn.
        source_splits: All splits that occur in the source.
        released: The group has a test or validation image of the source's, so it is not auxiliary.
    """
    if split in _KEPT:
        return split
    taken: set[str] = set(source_splits & set(_KEPT))
    by_group = bool(group) and not closed_set
    if released and by_group:
        taken.add("auxiliary")
    value = b"group\0" + group.encode() if by_group else b"image\0" + image_id
    return _drawn(role_fraction(ids_key, value), shares, taken)


def assign_roles(
    ids_key: Key, rows: Sequence[RoleRow], shares: RoleShares, closed_set: bool
) -> list[Role]:
    """The roles of all images of a drop, in the order of the rows.

    Args:
        ids_key: The ids key.
        rows: What decides, per image; ids are all different.
        shares: How to divide.
        closed_set: See `is_closed_set`.
    """
    source_splits = frozenset(row.split for row in rows if row.split is not None)
    released = {row.group for row in rows if row.split in _KEPT and row.group}
    kept = _cluster_splits(rows)
    roles: list[Role] = []
    for row in rows:
        by_image = closed_set or not row.group
        image_id, split = row.image_id, row.split
        if by_image:
            image_id, split = rows[row.cluster].image_id, kept.get(row.cluster, split)
        roles.append(
            assign_role(
                ids_key, image_id, row.group, split, shares, closed_set,
                source_splits=source_splits, released=row.group in released,
            )
        )  # fmt: skip
    return _with_galleries(ids_key, rows, roles, shares.gallery)


def _drawn(fraction: float, shares: RoleShares, taken: Set[str]) -> Role:
    """The role whose range the fraction falls into, among those that are open."""
    open_roles = [role for role in _DRAWN if role not in taken]
    point = fraction * sum(getattr(shares, role) for role in open_roles)
    for role in open_roles:
        share = getattr(shares, role)
        if point < share:
            return role
        point -= share
    return "train"  # Only by rounding: a sum of shares may fall short of itself by one ulp.


def _cluster_splits(rows: Sequence[RoleRow]) -> dict[int, Split]:
    """For each cluster with an image of the source's test or validation split, that split."""
    found: dict[int, Split] = {}
    for row in rows:
        if row.split == "test" or (row.split == "validation" and row.cluster not in found):
            found[row.cluster] = row.split
    return found


def _with_galleries(
    ids_key: Key, rows: Sequence[RoleRow], roles: list[Role], share: float
) -> list[Role]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.group and roles[index] != "auxiliary":
            members[row.group].append(index)
    result = list(roles)
    for photographs in members.values():
        for index in _gallery(ids_key, rows, photographs, share):
            result[index] = "gallery"
    return result


def _gallery(
    ids_key: Key, rows: Sequence[RoleRow], photographs: list[int], share: float
) -> list[int]:
    """Which photographs of one person become the gallery."""
    if len(photographs) < 2 or share == 0:
        return []
    free = [i for i in photographs if rows[i].split not in _KEPT] or photographs
    drawn = sorted((role_fraction(ids_key, b"gallery\0" + rows[i].image_id), i) for i in free)
    # A threshold, not a rank, so that a further photograph moves no other one.
    count = max(1, sum(fraction < share for fraction, _ in drawn))
    if count == len(photographs):
        count -= 1  # Somebody without any released photograph could not be sought.
    return [index for _, index in drawn[:count]]
