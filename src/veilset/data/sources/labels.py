"""Labels that are written as text or numbers, and the order of their classes."""

import re
from collections.abc import Iterable
from typing import Any

from veilset.data.sources.text import printable

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def class_names(found: Iterable[str]) -> tuple[str, ...]:
    """Different class names in label order.

    Whole numbers, if all are, are ordered by value; anything else by the bytes of its UTF-8.
    """
    names = set(found)
    if all(_WHOLE.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names, key=lambda name: name.encode("utf-8")))


def whole_number(text: str) -> int | None:
    """The value of a whole number of up to 18 digits, or None if the text is none."""
    return int(text) if _WHOLE.fullmatch(text) else None


def cell_text(value: Any) -> str:
    """A table's cell as printable text: "" for null, "3" for 3 and for 3.0 (a column with gaps)."""
    if value is None or value != value:  # noqa: PLR0124 - a gap may be NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return printable(value.strip() if isinstance(value, str | bytes) else str(value))
