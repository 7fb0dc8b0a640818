"""The ledger: how much privacy budget each image has spent, over all its releases.

Budgets of several releases of one image add up (sequential composition, McSherry 2009, theorem 3),
so a release that looks harmless alone may not be. The ledger is the owner's and private: it names
images by their internal ids. All of it is ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from veilset.errors import ProtectionError
from veilset.files import locked, read_table, write_table

_COLUMNS: Final = ("id", "release", "scheme", "metric", "eps")


@dataclass(frozen=True)
class Spent:
    """What images have spent under one metric.

    Attributes:
        metric: What the budget is measured in.
        images: How many images have spent any.
        releases: In how many releases.
        most: The largest total of one image.
        least: The smallest total of one image that spent any.
    """

    metric: str
    images: int
    releases: int
    most: float
    least: float

    def words(self) -> str:
        """The line for people."""
        spread = f"{self.most:g}" if self.most == self.least else f"{self.least:g} to {self.most:g}"
        return (
            f"{self.images:,} images have spent {spread} in {self.releases} releases "
            f"({self.metric})"
        )


def budget(record: Mapping[str, Any]) -> tuple[str, float] | None:
    """Metric and cost of one release by a scheme, None where it guarantees nothing.

    Args:
        record: What `Scheme.record` returned, as a manifest has it.
    """
    facts = dict(record.get("facts") or {})
    eps = facts.get("eps_total")
    return None if eps is None else (str(facts.get("metric", "eps")), float(eps))


def spend(
    ledger: Path, release: str, record: Mapping[str, Any], ids: Sequence[str]
) -> Mapping[str, Spent]:
    """Enters a release; the same release entered again changes nothing.

    Args:
        ledger: The ledger, a Parquet file; made where missing.
        release: Root digest of the released set.
        record: The scheme's record in its manifest.
        ids: Internal ids of the released images, hex.

    Returns:
        The totals after it, by metric.

    Raises:
        ProtectionError: The scheme guarantees nothing, so there is no budget to enter.
        BusyError: Another run writes the ledger.
        CorruptError: The ledger cannot be read.
        DiskFullError: The disk has no room.
    """
    cost = budget(record)
    if cost is None:
        raise ProtectionError(
            f"{record.get('name')} guarantees nothing, so it has no budget to enter into {ledger}: "
            "leave the ledger out."
        )
    metric, eps = cost
    with locked(ledger):
        entries = read(ledger)
        if not (entries["release"] == release).any():
            added = pd.DataFrame({
                "id": sorted(set(ids)), "release": release, "scheme": str(record.get("name")),
                "metric": metric, "eps": eps,
            })  # fmt: skip
            entries = added if entries.empty else pd.concat([entries, added], ignore_index=True)
            ledger.parent.mkdir(parents=True, exist_ok=True)
            write_table(ledger, entries)
    return totals(entries)


def read(ledger: Path) -> pd.DataFrame:
    """All entries: a row an image and release; empty where there is no ledger yet.

    Raises:
        CorruptError: It cannot be read.
    """
    if not ledger.exists():
        return pd.DataFrame({name: pd.Series(dtype=object) for name in _COLUMNS})
    return read_table(ledger)[list(_COLUMNS)]


def totals(entries: pd.DataFrame) -> dict[str, Spent]:
    """What images have spent, by metric."""
    found: dict[str, Spent] = {}
    for metric, part in entries.groupby("metric", sort=True):
        each = part.groupby("id")["eps"].sum()
        found[str(metric)] = Spent(
            metric=str(metric), images=len(each), releases=int(part["release"].nunique()),
            most=float(each.max()), least=float(each.min()),
        )  # fmt: skip
    return found
