"""What changed between two versions, as a page of its own and as lines for a terminal.

Source: ours.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from veilset.files import write_text
from veilset.report import words
from veilset.report.changes import (
    AttackChange,
    Changed,
    Changes,
    LeakChange,
    Shift,
    UtilityChange,
)
from veilset.report.model import Estimate
from veilset.report.page import environment

_SIGNS = {
    "higher": "↑",
    "lower": "↓",
    "no difference shown": "≈",
    "the same": "=",
    "not comparable": "–",
}


def write_changes(changes: Changes, dataset: str, output: Path) -> None:
    """Writes the page, atomically; its folder is made.

    Args:
        changes: What changed.
        dataset: The data set's name.
        output: The file, e.g. `reports/changes.html`.

    Raises:
        DiskFullError: No room for it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, render_changes(changes, dataset))


def render_changes(changes: Changes, dataset: str) -> str:
    """The page as text: self-contained, the same bytes for the same two versions."""
    page = environment().get_template("changes.html.j2")
    return page.render(
        title=f"{dataset}: what changed since {changes.before[0]}",
        dataset=dataset,
        changes=changes,
        signs=_SIGNS,
        gap_versions=list(dict.fromkeys(gap.version for gap in changes.gaps)),
    )


def to_json(changes: Changes) -> dict[str, Any]:
    """The same as plain JSON values: estimates as value, low and high."""
    found: dict[str, Any] = _plain(asdict(changes))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def lines(changes: Changes) -> Iterator[str]:
    """The same in plain words, the headline first."""
    yield f"From {changes.before[0]} to {changes.after[0]}:"
    yield from (f"  {sentence}" for sentence in changes.headline)
    yield from _part("Leakage", [_leak_line(one) for one in changes.leakage])
    shown = [one for one in changes.attacks if one.shift.direction in ("higher", "lower")]
    yield from _part("Attacks whose success differs", [_attack_line(one) for one in shown])
    yield from _part("Utility", [_utility_line(one) for one in changes.utility])
    yield from _part("Data", [_changed_line(one) for one in changes.data])
    for name, rows in changes.parameters.items():
        yield from _part(name, [_changed_line(one) for one in rows])
    yield from _part("Before comparing figures", list(changes.cautions))
    missing = [f"{gap.version}: {gap.what}: {gap.why}" for gap in changes.gaps]
    yield from _part("Not on record", missing)


def _part(title: str, rows: list[str]) -> Iterator[str]:
    if rows:
        yield ""
        yield title
        yield from (f"  {row}" for row in rows)


def _leak_line(one: LeakChange) -> str:
    said = [
        _NO_VERDICT if word is None else words.VERDICTS[word] for word in (one.before, one.after)
    ]
    moved = " -> ".join(said) if said[0] != said[1] else said[1]
    bounds = " -> ".join(words.figure(bound) for bound in one.bounds)
    attacks = [attack for attack in (one.attack_before, one.attack_after) if attack]
    by = f" by {' -> '.join(dict.fromkeys(attacks))}" if attacks else ""
    head = f"{one.title}, {one.receiver.lower()}: {moved}; upper bound {bounds}{by}"
    return f"{head}; {_shift_words(one.shift)}."


def _attack_line(one: AttackChange) -> str:
    figures = " -> ".join(_estimate_words(item, one.metric) for item in
                          (one.shift.before, one.shift.after))  # fmt: skip
    return f"{one.title}, {one.attack}: {figures}; {_shift_words(one.shift, one.metric)}."


def _utility_line(one: UtilityChange) -> str:
    accuracy = " -> ".join(_estimate_words(item) for item in
                           (one.accuracy.before, one.accuracy.after))  # fmt: skip
    loss = " -> ".join(words.points(item.value if item else None) for item in
                       (one.loss.before, one.loss.after))  # fmt: skip
    shift = _shift_words(one.accuracy)
    return f"{one.title}, {one.model}: accuracy {accuracy}; {shift}; loss in points {loss}."


def _changed_line(one: Changed) -> str:
    return f"{one.name}: {one.before} -> {one.after}"


_NO_VERDICT = "no verdict on record"


def _estimate_words(item: Estimate | None, metric: str | None = None) -> str:
    if item is None or item.value is None:
        return "not on record"
    interval = words.interval(item.low, item.high, metric)
    return f"{words.figure(item.value, metric)}{f' ({interval})' if interval else ''}"


def _shift_words(shift: Shift, metric: str | None = None) -> str:
    """The difference with its interval, whether the intervals overlap, and what follows."""
    if shift.difference is None:
        return shift.note or shift.direction
    if shift.direction == "the same":
        return "the same"
    share = words.is_share(metric)
    scale, unit = (100, " points") if share else (1, "")
    values = [
        f"{scale * (value or 0):+.{1 if share else 3}f}"
        for value in (shift.difference.value, shift.difference.low, shift.difference.high)
    ]
    overlap = "intervals overlap" if shift.overlap else "intervals apart"
    return f"{values[0]}{unit} ({values[1]} to {values[2]}), {overlap}: {shift.direction}"
