"""All attacks on one scheme, and their evidence as files."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from veilset.attacks.base import SUITE_VERSION, AttackResult, Case, Examples, Progress
from veilset.attacks.registry import make_attack
from veilset.files import write_bytes, write_json, write_table

__all__ = ["SUITE_VERSION", "SuiteResult", "run_suite"]


@dataclass(frozen=True)
class SuiteResult:
    """What the attacks on one scheme found.

    Attributes:
        scheme: The scheme's name in `params.yaml`.
        title: Its name for people.
        dataset: What the data set is called.
        shape: (H, W, C) of an image.
        results: One result an attack, in the order asked for.
    """

    scheme: str
    title: str
    dataset: str
    shape: tuple[int, int, int]
    results: tuple[AttackResult, ...]

    def to_json(self) -> dict[str, Any]:
        """The contents of `results.json`."""
        return {
            "schema": 1, "suite": SUITE_VERSION, "scheme": self.scheme,
            "scheme_title": self.title, "dataset": self.dataset, "shape": list(self.shape),
            "results": [result.to_json() for result in self.results],
        }  # fmt: skip

    def scores(self) -> pd.DataFrame:
        """One row an attack, anchor and target; figures that an attack has not are missing."""
        frames = [result.scores for result in self.results if len(result.scores)]
        if not frames:
            return pd.DataFrame({"attack": pd.Series(dtype=str), "anchor": pd.Series(dtype=str),
                                 "target": pd.Series(dtype=str)})  # fmt: skip
        return pd.concat(frames, ignore_index=True)

    def examples(self) -> Examples:
        """The worst leaks of the attack that restores best, or of the first that has pictures."""
        height, width, channels = self.shape
        none = np.empty((0, height, width, channels), dtype=np.uint8)
        found = [result for result in self.results if result.examples is not None]
        restoring = [result for result in found if "ssim" in result.details]
        for result in sorted(restoring, key=lambda r: -r.details["ssim"]) + found:
            if result.examples is not None:
                return result.examples
        return Examples(none, none, none, np.empty(0, dtype=np.int64))

    def write(self, folder: Path) -> None:
        """Writes `examples.npz`, `scores.parquet` and, last, `results.json`; each is atomic.

        Args:
            folder: Where; made where missing.

        Raises:
            DiskFullError: The disk has not the room.
        """
        write_bytes(folder / "examples.npz", _npz(self.examples()))
        write_table(folder / "scores.parquet", self.scores())
        write_json(folder / "results.json", self.to_json())


def run_suite(
    case: Case,
    attacks: Mapping[str, Mapping[str, Any]],
    *,
    dataset: str,
    scheme_name: str | None = None,
    progress: Progress | None = None,
) -> SuiteResult:
    """Runs attacks on one release.

    Args:
        case: The release under attack.
        attacks: Parameters that differ from the defaults of `case.attacker.effort`, by the
            attack's name; the order of the names is the order of the results.
        dataset: What the data set is called.
        scheme_name: The scheme's name in `params.yaml`, where it is not its own.
        progress: Called while it works, or None.

    Returns:
        The results, those not applicable among them.

    Raises:
        SettingsError: No such attack, or a parameter is refused; nothing has run then.
    """
    made = [
        make_attack(name, values, f"params.yaml: attack.{name}", case.attacker.effort)
        for name, values in attacks.items()
    ]
    scheme = case.release.scheme
    return SuiteResult(
        scheme=scheme_name or scheme.name, title=scheme.title, dataset=dataset,
        shape=case.release.shape, results=tuple(attack.run(case, progress) for attack in made),
    )  # fmt: skip


def _npz(examples: Examples) -> bytes:
    """The examples as the bytes of an npz file, the same for the same pictures."""
    buffer = io.BytesIO()
    np.savez(
        buffer, original=examples.original, protected=examples.protected,
        reconstruction=examples.reconstruction, labels=examples.labels,
        order=np.arange(len(examples.labels), dtype=np.int64),
    )  # fmt: skip
    return buffer.getvalue()
