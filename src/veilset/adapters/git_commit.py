"""Commits made by a program: these files and no others, on this branch or on one beside it."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from veilset.adapters.dvc import git_user
from veilset.errors import BusyError, VeilsetError

_NOBODY: Final = {
    "GIT_AUTHOR_NAME": "Veilset", "GIT_AUTHOR_EMAIL": "veilset@localhost",
    "GIT_COMMITTER_NAME": "Veilset", "GIT_COMMITTER_EMAIL": "veilset@localhost",
}  # fmt: skip
"""Who commits where git knows nobody."""


def commit_out(root: Path, paths: Sequence[str], message: str) -> bool:
    """Commits files as they are on the branch that is checked out.

    What else is staged stays staged, and what else is changed stays so.

    Args:
        root: The project's folder.
        paths: Files, from the project's folder; those that are missing or ignored are left out.
        message: Its first line.

    Returns:
        Whether there was anything to commit.

    Raises:
        BusyError: Another git command is at work.
        VeilsetError: There is no repository, or git refuses, e.g. during a merge.
    """
    there = _there(root, paths)
    if not there:
        return False
    _git(root, "add", "--", *there)
    if not _git(root, "diff", "--cached", "--name-only", "--", *there):
        return False
    _git(root, "commit", "--quiet", "--message", message, "--only", "--", *there)
    return True


def commit_beside(root: Path, paths: Sequence[str], message: str, branch: str) -> bool:
    """The same on another branch, which begins at the present commit; the checkout is not touched.

    Args:
        root: The project's folder.
        paths: Files, from the project's folder; those that are missing or ignored are left out.
        message: Its first line.
        branch: The branch.

    Returns:
        Whether there was anything to commit.

    Raises:
        BusyError: Another git command is at work.
        VeilsetError: There is no repository or no commit yet, or git refuses.
    """
    there = _there(root, paths)
    ref = f"refs/heads/{branch}"
    old = _git(root, "rev-parse", "--verify", "--quiet", ref, ok=(0, 1))
    parent = old or _git(root, "rev-parse", "--verify", "HEAD")
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git(root, "read-tree", parent, more=index)
        if there:
            _git(root, "add", "--", *there, more=index)
        tree = _git(root, "write-tree", more=index)
    if tree == _git(root, "rev-parse", f"{parent}^{{tree}}"):
        return False
    new = _git(root, "commit-tree", tree, "-p", parent, "-m", message)
    # Only from the commit that was built upon, so that nobody's commit is lost.
    _git(root, "update-ref", ref, new, old or "0" * len(new))
    return True


def _there(root: Path, paths: Sequence[str]) -> list[str]:
    """Those that are there, and that git is not told to ignore."""
    there = [path for path in paths if (root / path).is_file()]
    ignored = _git(root, "check-ignore", "--", *there, ok=(0, 1)) if there else ""
    return [path for path in there if path not in ignored.splitlines()]


def _git(
    root: Path, *arguments: str, more: dict[str, str] | None = None, ok: tuple[int, ...] = (0,)
) -> str:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", **(more or {})}
    if arguments[0].startswith("commit") and not git_user(root):
        environment |= _NOBODY
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, env=environment, text=True, capture_output=True,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        raise VeilsetError(f"git cannot be run ({error}): install it.") from None
    if done.returncode not in ok:
        said = " ".join((done.stderr or done.stdout).split()) or "it said nothing"
        if ".lock': File exists" in said:
            raise BusyError(f"git {arguments[0]} waits for another git command ({said})")
        raise VeilsetError(
            f"git {arguments[0]} failed ({said}): correct it, or set drop_policy.commit to none."
        )
    return done.stdout.strip()
