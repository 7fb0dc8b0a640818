"""How erased images and groups are known again without keeping anything of them.

What stays is a digest of an image's id, or of a group's name, under a key derived from the ids key.
With that key, and the image at hand, one can tell that it was erased; without either, nothing. An
ingest leaves out what it knows again, also where it arrives in a later drop. All of it is ours.
"""

import hmac
from pathlib import Path
from typing import Final

from veilset.data.ingest import Unwanted
from veilset.drops.record import erased_groups, erased_images, read_events
from veilset.keys import Key, derive_key

_HEX: Final = 32  # 128 bits, as ids have


def image_digest(ids_key: Key, image_id: bytes) -> str:
    """What is kept of an erased image, 32 hex digits."""
    return _digest(ids_key, "erased image", image_id)


def group_digest(ids_key: Key, group: str) -> str:
    """What is kept of an erased group, 32 hex digits."""
    return _digest(ids_key, "erased group", group.encode("utf-8", "surrogateescape"))


def unwanted(root: Path, ids_key: Key) -> Unwanted | None:
    """What an ingest must leave out; None where nothing was ever erased.

    Raises:
        CorruptError: The journal is not as it was written.
    """
    events = read_events(root)
    images, groups = erased_images(events), erased_groups(events)
    if not images and not groups:
        return None
    known: dict[str, bool] = {}

    def is_unwanted(image_id: bytes, group: str) -> bool:
        if group and group not in known:
            known[group] = group_digest(ids_key, group) in groups
        if group and known[group]:
            return True
        return bool(image_id) and image_digest(ids_key, image_id) in images

    return is_unwanted


def _digest(ids_key: Key, label: str, content: bytes) -> str:
    key = derive_key(ids_key, label)
    return hmac.digest(key.secret, content, "sha256").hex()[:_HEX]
