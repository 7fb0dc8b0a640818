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


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint with its tensors on the CPU, or None if there is none.

    Only tensors and plain values are unpickled (`weights_only`), after the digest was compared.

    Raises:
        CorruptError: The file was altered, or holds anything else.
    """
    path = folder / NAME
    if not path.exists():
        return None
    data = path.read_bytes()
    try:
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            raise ValueError("its digest is another")
        state: dict[str, Any] = torch.load(
            io.BytesIO(data[_DIGEST:]), map_location="cpu", weights_only=True
        )
    except Exception as error:  # torch raises many kinds; none of them may end in a guess
        reason = " ".join(str(error).split())[:200]
        raise CorruptError(
            f"{path} cannot be resumed from ({reason}): remove {folder} and train again."
        ) from None
    return state


def remove_checkpoint(folder: Path) -> None:
    """Removes the folder's checkpoint, if there is one."""
    (folder / NAME).unlink(missing_ok=True)
