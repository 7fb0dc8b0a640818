"""What is decided about a drop, and what that does to `drops.yaml`.

Every step first writes what it does, then the record, and may be repeated: a run that was killed in
between is finished by the next. All of it is ours.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from veilset.drops.intake import forget_origin
from veilset.drops.listing import accept_drop, list_drop, shelve_drop, unlist_drop
from veilset.drops.record import DropEvent, DropRecord, enter, find_drop, now, read_drops
from veilset.errors import SettingsError
from veilset.settings import load_drops


def block_of(record: DropRecord) -> dict[str, Any]:
    """The block of `drops.yaml` that reads a drop."""
    block: dict[str, Any] = {"path": record.path, "source": record.source}
    return {**block, "options": record.options} if record.options else block


def accept(root: Path, name: str, counts: Mapping[str, int]) -> DropRecord:
    """The checks found nothing against it: from now on the pipeline runs over it.

    Args:
        root: The project's folder.
        name: The drop.
        counts: What is known of it now, e.g. `images`.
    """
    accept_drop(root, name)
    return _decided(root, DropEvent(event="accepted", drop=name, at=now(), counts=dict(counts)))


def hold(root: Path, name: str, reasons: Sequence[str], counts: Mapping[str, int]) -> DropRecord:
    """It changes the picture, so that it waits for a person; nothing else waits for it."""
    event = DropEvent(
        event="held", drop=name, at=now(), reasons=tuple(reasons), counts=dict(counts)
    )
    return _decided(root, event)


def hold_back(
    root: Path, name: str, reasons: Sequence[str], folders: Sequence[Path], by: str = ""
) -> DropRecord:
    """An accepted drop leaves the pipeline until a person decides, so that it stops nothing.

    Args:
        root: The project's folder.
        name: The drop.
        reasons: Why, e.g. that a scheme cannot protect it.
        folders: What schemes made of it so far, which leaves the working set; DVC's cache has it.
        by: Who decides; empty for a program.

    Raises:
        SettingsError: It is not in the pipeline, or the last drop there, or there is no reason.
    """
    record = find_drop(root, name)
    if record.state not in ("accepted", "protected"):
        raise SettingsError(
            f"The drop {name!r} is {record.state}, so the pipeline does not run over it: only what "
            "is accepted or protected can be held."
        )
    if not all(reason.strip() for reason in reasons):
        raise SettingsError("--reason is empty: say why the drop is held.")
    shelve_drop(root, name)
    _take_away(folders)
    event = DropEvent(event="held", drop=name, at=now(), by=by, reasons=tuple(reasons))
    return _decided(root, event)


def refuse(
    root: Path, name: str, reasons: Sequence[str], folders: Sequence[Path] = ()
) -> DropRecord:
    """It is bad: it leaves `drops.yaml`, so that it stops nothing. Its raw images stay.

    Args:
        root: The project's folder.
        name: The drop.
        reasons: Why.
        folders: What is to leave the working set, e.g. what an ingest that failed has left.
    """
    unlist_drop(root, name)
    _take_away(folders)
    return _decided(root, DropEvent(event="refused", drop=name, at=now(), reasons=tuple(reasons)))


def approve(root: Path, name: str, by: str, reasons: Sequence[str] = ()) -> DropRecord:
    """A person takes a held drop as it is.

    Raises:
        SettingsError: It is not held, or nobody answers for it.
    """
    _require_person(by)
    record = find_drop(root, name)
    if record.state != "held":
        raise SettingsError(
            f"The drop {name!r} is {record.state}, so there is nothing to approve: only what is "
            "held waits for a person."
        )
    accept_drop(root, name)
    event = DropEvent(event="approved", drop=name, at=now(), by=by, reasons=tuple(reasons))
    return _decided(root, event)


def retry(root: Path, name: str, by: str = "") -> DropRecord:
    """A drop that was held or refused is checked again, e.g. under other settings.

    Raises:
        SettingsError: It is neither held nor refused.
    """
    record = find_drop(root, name)
    if record.state not in ("held", "refused"):
        raise SettingsError(
            f"The drop {name!r} is {record.state}, so there is nothing to try again: only what is "
            "held or refused is."
        )
    list_drop(root, name, block_of(record))
    return _decided(root, DropEvent(event="retried", drop=name, at=now(), by=by))


def protected(
    root: Path, name: str, schemes: Sequence[str], verdicts: Sequence[str] = ()
) -> DropRecord:
    """It went through the pipeline: these schemes have protected it; the same twice is one line.

    Args:
        root: The project's folder.
        name: The drop.
        schemes: By which schemes.
        verdicts: What attacks on it alone came to, for the record.
    """
    record = find_drop(root, name)
    if record.state == "protected" and record.schemes == tuple(schemes):
        return record
    if record.state not in ("accepted", "protected"):
        raise SettingsError(f"The drop {name!r} is {record.state}, so it is not to be protected.")
    return _decided(
        root,
        DropEvent(
            event="protected", drop=name, at=now(), schemes=tuple(schemes), reasons=tuple(verdicts)
        ),
    )  # fmt: skip


def remove(
    root: Path, name: str, by: str, reason: str, folders: Sequence[Path]
) -> DropRecord | None:
    """Takes a drop out of `drops.yaml` and its files out of the working set.

    Args:
        root: The project's folder.
        name: The drop; one that was written into `drops.yaml` by hand is removed as well.
        by: Who decides.
        reason: Why.
        folders: All that was made of it, its raw folder among it.

    Returns:
        Its record; None for a drop that is not in the journal.

    Raises:
        SettingsError: There is no such drop, nobody answers for it, or it is the last one that
            schemes learn from.
    """
    _require_person(by)
    if not reason.strip():
        raise SettingsError("--reason is empty: say why the drop is removed.")
    listed = name in load_drops(root).drops
    record = None if listed and not _on_record(root, name) else find_drop(root, name)
    if record is not None and record.state == "removed":
        return record
    unlist_drop(root, name)
    _take_away(folders)
    forget_origin(root, name)
    enter(root, DropEvent(event="removed", drop=name, at=now(), by=by, reasons=(reason,)))
    return None if record is None else find_drop(root, name)


def _take_away(folders: Sequence[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)


def _on_record(root: Path, name: str) -> bool:
    return any(record.name == name for record in read_drops(root))


def _require_person(by: str) -> None:
    if not by.strip():
        raise SettingsError("--by is empty: say who decides.")


def _decided(root: Path, event: DropEvent) -> DropRecord:
    enter(root, event)
    return find_drop(root, event.drop)
