"""The state of a training between two epochs, complete enough to go on bit for bit."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from veilset.errors import CorruptError
from veilset.files import atomic_file

NAME = "checkpoint.pt"
_DIGEST = 32


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replaces the folder's checkpoint atomically: a digest of 32 bytes, then what torch saves.

    Args:
        folder: The staging folder of the model.
        state: Tensors, numbers, texts, lists and dicts of them; nothing else would load again.

    Raises:
        DiskFullError: The disk has no room; the old checkpoint stays.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    with atomic_file(folder / NAME, size=_DIGEST + len(data)) as file:
        file.write(hashlib.sha256(data).digest())
        file.write(data)


def read_checkpoint(folder: Path) -> bytes | None:
    """What `save_checkpoint` saved, its digest compared, or None if there is nothing.

    Raises:
        CorruptError: The file was altered.
    """
    path = folder / NAME
    if not path.exists():
        return None
    data = path.read_bytes()
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        raise _no_use(folder, "its digest is another")
    return data[_DIGEST:]


def unpack_checkpoint(data: bytes, folder: Path) -> dict[str, Any]:
    """The state in a checkpoint's bytes, with its tensors on the CPU.

    Only tensors and plain values are unpickled (`weights_only`).

    Raises:
        CorruptError: The bytes hold anything else; the folder is named.
    """
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; none of them may end in a guess
        raise _no_use(folder, " ".join(str(error).split())[:200]) from None
    return state


def remove_checkpoint(folder: Path) -> None:
    """Removes the folder's checkpoint, if there is one."""
    (folder / NAME).unlink(missing_ok=True)


def _no_use(folder: Path, reason: str) -> CorruptError:
    return CorruptError(
        f"{folder / NAME} cannot be resumed from ({reason}): remove {folder} and train again."
    )
