"""Whether a new drop may join the earlier ones, with Great Expectations.

The rules of `great_expectations_check` on the drop itself, and beside them rules on how it differs
from the earlier drops (`veilset.drops.drift`). A drop that breaks one of the first is bad; one that
breaks only the others changes the picture, and a person decides. The evidence is written as there.
All of it is ours.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from veilset.adapters.great_expectations_check import (
    CheckParams,
    CheckResult,
    Finding,
    Rule,
    Table,
    _as_json,
    _clear,
    _quiet_gx,
    _require,
    _validate,
    make_rules,
    make_tables,
    verdict,
)
from veilset.drops.drift import Comparison, DriftParams
from veilset.files import staged_folder, write_json

_HISTORY: Final = "EU AI Act Art. 10(2), 15(4): the data set stays what it was measured on"
_LABELS: Final = "EU AI Act Art. 10(3): equal labels mean equal classes"
_TWICE: Final = "sound evaluation: no image counts as new that was there before"


def check_drop(
    frame: pd.DataFrame, classes: Sequence[str], comparison: Comparison | None, limits: CheckParams,
    output: Path,
) -> CheckResult:  # fmt: skip
    """Checks a new drop by itself and against the earlier ones, and writes the evidence.

    Args:
        frame: Its index table.
        classes: Class names by label.
        comparison: How it differs from the earlier drops; None where there are none.
        limits: The limits of both.
        output: The folder to write, as `check_index` does.

    Returns:
        The findings; `is_drift` tells of which kind one is.

    Raises:
        CheckError: The table has no rows or lacks a column.
        BusyError: Another run writes the same folder.
    """
    _require(frame)
    tables = make_tables(frame, classes)
    rules = make_rules(tables, classes, limits)
    if comparison is not None:
        tables["drift"] = pd.DataFrame([dataclasses.asdict(comparison)])
        rules = (*rules, *drift_rules(comparison, limits.drift))
    with staged_folder(output, plan="drift") as staging:
        _clear(staging)
        with _quiet_gx():
            findings = _validate(tables, rules, staging / "data_docs")
        result = CheckResult(findings=findings, output=output)
        write_json(staging / "results.json", _as_json(result))
        write_json(staging / "verdict.json", verdict(result))
    return result


def is_drift(finding: Finding) -> bool:
    """Whether a finding is about the difference from earlier drops."""
    table: Table = "drift"
    return finding.table == table


def drift_rules(comparison: Comparison, limits: DriftParams) -> tuple[Rule, ...]:
    """The rules on how a drop differs from the earlier ones, in the order of the report."""
    drops = f"{comparison.earlier_drops} earlier drop{'s' * (comparison.earlier_drops != 1)}"
    against = f"{comparison.images:,} images against {comparison.earlier_images:,} of {drops}"

    def shift(column: str, most: float, what: str) -> Rule:
        words = f"the {what} differ by at most {most:g} beyond chance ({against})"
        return _rule(column, most, _HISTORY, words)

    return (
        shift("class_shift", limits.max_class_shift, "shares of the classes"),
        shift("pixels_shift", limits.max_size_shift, "sizes of the originals"),
        shift("aspect_shift", limits.max_size_shift, "shapes of the originals"),
        shift("brightness_shift", limits.max_brightness_shift, "brightnesses"),
        shift("contrast_shift", limits.max_contrast_shift, "contrasts"),
        _rule("known_share", limits.max_known_share, _TWICE,
              f"at most {limits.max_known_share:.2%} of the images are in the {drops} already"),
        _rule("nearly_known_share", limits.max_nearly_known_share, _TWICE,
              f"at most {limits.max_nearly_known_share:.2%} of the images nearly equal one of the "
              f"{drops}"),
        _rule("unknown_classes", 0, _HISTORY, f"no class is new to the {drops}"),
        _rule("other_classes", 0, _LABELS,
              f"the list of classes is that of the {drops} (else name it in params.yaml, as "
              "ingest.classes)"),
    )  # fmt: skip


def _rule(column: str, most: float, control: str, words: str) -> Rule:
    limit: dict[str, Any] = {"max_value": most}
    return Rule(
        column, "drift", "ExpectColumnMaxToBeBetween", column, "critical", control, limit, words
    )
