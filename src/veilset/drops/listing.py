"""The drops in `drops.yaml`: which there are, and which of them the pipeline runs over.

A drop under `drops` is ingested. One that is also in `names` was accepted, and goes through the
pipeline; a drop that is not waits for a decision and blocks nothing. Edits keep comments, order and
layout, and replace the file atomically. All of it is ours.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from veilset.errors import SettingsError
from veilset.files import locked, write_text
from veilset.settings import DROPS_FILE, Drops, load_drops

_NEVER: Final = 1 << 20  # columns after which a line would be folded


def list_drop(root: Path, name: str, block: Mapping[str, Any]) -> None:
    """Writes a drop under `drops`, where it waits until it is accepted.

    Args:
        root: The project's folder.
        name: The drop's name.
        block: `path`, `source` and, where there are any, `options`.

    Raises:
        SettingsError: `drops.yaml` cannot be read, or would no longer be valid.
        BusyError: Another run edits it.
    """

    def edit(values: Any) -> None:
        own = dict(block)
        if "options" in own:
            own["options"] = _quoted(own["options"])
        values["drops"][name] = own

    _edit(root, edit)


def accept_drop(root: Path, name: str) -> None:
    """Puts a drop into `names`, behind all others, so that the pipeline runs over it.

    Raises:
        SettingsError: `drops.yaml` cannot be read, or does not have the drop.
        BusyError: Another run edits it.
    """

    def edit(values: Any) -> None:
        if name not in values["names"]:
            values["names"].append(name)

    _edit(root, edit)


def shelve_drop(root: Path, name: str) -> None:
    """Takes a drop out of `names` and `fit_drops`; under `drops` it waits for a decision.

    Raises:
        SettingsError: It is the last drop, or the last that schemes learn from.
        BusyError: Another run edits the file.
    """
    _edit(root, lambda values: _leave_pipeline(values, name))


def unlist_drop(root: Path, name: str) -> None:
    """Takes a drop out of all of `drops.yaml`; one that is not there is no error.

    Raises:
        SettingsError: It is the last drop, or the last that schemes learn from.
        BusyError: Another run edits the file.
    """

    def edit(values: Any) -> None:
        _leave_pipeline(values, name)
        values["drops"].pop(name, None)

    _edit(root, edit)


def waiting_drops(drops: Drops) -> tuple[str, ...]:
    """Names of drops that are ingested and not accepted, in the file's order."""
    return tuple(name for name in drops.drops if name not in drops.names)


def _leave_pipeline(values: Any, name: str) -> None:
    for part in ("names", "fit_drops"):
        if name in values[part]:
            values[part].remove(name)


def _edit(root: Path, change: Callable[[Any], None]) -> None:
    path = root / DROPS_FILE
    with locked(path):
        load_drops(root)
        before = path.read_text(encoding="utf-8")
        wanted = yaml.safe_load(before)
        change(wanted)
        _require_valid(path, wanted)
        after = _rewritten(before, change)
        if _read(after) != wanted:
            raise SettingsError(
                f"{path} is laid out in a way that cannot be edited and kept: write the lists one "
                "name a line, then try again."
            )
        if after != before:
            write_text(path, after)


def _rewritten(before: str, change: Callable[[Any], None]) -> str:
    layout = YAML()
    layout.preserve_quotes = True
    layout.width = _NEVER
    layout.indent(mapping=2, sequence=4, offset=2)
    values = layout.load(before)
    change(values)
    text = io.StringIO(newline="")
    layout.dump(values, text)
    return text.getvalue()


def _quoted(value: Any) -> Any:
    """Texts in quotes: `yes` and `1e3` are texts to one version of YAML and not to another."""
    if isinstance(value, str):
        return DoubleQuotedScalarString(value)
    if isinstance(value, Mapping):
        return {_quoted(key): _quoted(one) for key, one in value.items()}
    return [_quoted(one) for one in value] if isinstance(value, list | tuple) else value


def _read(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _require_valid(path: Path, values: Any) -> None:
    try:
        Drops.parse(values, DROPS_FILE)
    except SettingsError as error:
        raise SettingsError(
            f"{path} is left as it is, because it would no longer be valid: {error}"
        ) from None
