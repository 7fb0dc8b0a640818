"""Errors that a user can act on.

Each message is one sentence: what went wrong, where, why, and what to do. The command line and the
stages print the message alone and exit with a non-zero code; anything that is not a `VeilsetError`
is a bug and keeps its traceback.
"""

from typing import ClassVar


class VeilsetError(Exception):
    """Base of every error that is the user's to act on.

    Attributes:
        exit_code: With what a command ends that it stops.
    """

    exit_code: ClassVar[int] = 1


class SettingsError(VeilsetError):
    """A setting is unknown, missing or out of range."""


class SourceError(VeilsetError):
    """A data source is missing, unreadable or not what its settings say."""


class KeyFileError(VeilsetError):
    """A key is missing, malformed, readable by others, or not the expected one."""


class CorruptError(VeilsetError):
    """Stored bytes disagree with their recorded hash, length or format."""


class BusyError(VeilsetError):
    """Another run holds the lock of the place that this one wants to write."""


class DiskFullError(VeilsetError):
    """The disk has not the room that the output needs."""


class ProtectionError(VeilsetError):
    """A scheme cannot protect these images as asked, and nothing was written."""


class RefusedImagesError(ProtectionError):
    """What is asked is right, but a scheme cannot protect these very images, e.g. by their labels.

    It has an exit code of its own, so that a run over many drops can tell one that cannot be
    protected from settings that are wrong and from a machine that fails.
    """

    exit_code = 3


class CheckError(VeilsetError):
    """A critical check of the data failed."""


class TrainingError(VeilsetError):
    """A training or an attack diverged or cannot run as asked."""


class ReleaseError(VeilsetError):
    """A release is refused, or cannot be made or reached as asked."""


class AuditError(VeilsetError):
    """The audit record cannot be written or disagrees with the versions it records."""
