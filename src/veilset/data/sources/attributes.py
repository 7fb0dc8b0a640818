"""Columns of attributes: what a table says of an image beside its label.

They are for the attack that asks whether protected images betray them; no classifier sees them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from veilset.data.sources.labels import cell_text
from veilset.data.sources.text import printable

PREFIX: Final = "attribute_"
"""Columns whose names begin so are attributes of the rest of their name."""


def attribute_roles(header: Iterable[str], named: Iterable[str]) -> dict[str, str]:
    """Columns of attributes by role, `attribute_<name>`.

    Args:
        header: The columns that there are.
        named: The columns that the user named.
    """
    columns = dict.fromkeys([*named, *(name for name in header if name.startswith(PREFIX))])
    return {f"{PREFIX}{printable(name).removeprefix(PREFIX)}": name for name in columns}


def attributes_of(cells: Mapping[str, Any]) -> dict[str, str]:
    """The attributes among the cells of a row, by name; "" where a cell is empty.

    Args:
        cells: Values by role, as `attribute_roles` calls them; other roles are left out.
    """
    return {
        role.removeprefix(PREFIX): cell_text(value)
        for role, value in cells.items()
        if role.startswith(PREFIX)
    }
