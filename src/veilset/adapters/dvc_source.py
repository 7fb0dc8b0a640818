"""An MLflow data set source that is a path versioned by DVC.

MLflow finds it through the entry point group `mlflow.dataset_source`.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlflow.data.dataset_source import DatasetSource

from veilset.adapters.audit_versions import History
from veilset.adapters.dvc import StageRecord, file_md5, folder_md5, read_lock
from veilset.errors import AuditError


class DvcDatasetSource(DatasetSource):
    """A folder or file of a DVC project, by path and digest.

    The source names no commit: MLflow keeps the first source of a data set with one name and
    digest, so a commit in it would be wrong from the second run on. The run's tags hold it.

    Args:
        path: Relative to the project, with forward slashes.
        digest: DVC's digest, e.g. `<md5>.dir`.
        repo: Where the project lives: a git address, or `.` for the current folder.
    """

    def __init__(self, path: str, digest: str, repo: str = ".") -> None:
        self.path = path
        self.digest = digest
        self.repo = repo

    @staticmethod
    def _get_source_type() -> str:
        return "dvc"

    def load(self, rev: str | None = None) -> str:
        """The local path of the data.

        Args:
            rev: The git commit to take it from. Without one it is the workspace, if that holds
                this very version, else the newest commit whose `dvc.lock` names it.

        Returns:
            The path in the workspace, or a fresh temporary folder into which that version was
            fetched from the project's cache or remote.

        Raises:
            AuditError: Neither the workspace nor a commit has this version.
        """
        if rev is not None:
            return self._fetch(rev)
        root = Path(self.repo)
        if self._is_here(root):
            return str(root / self.path)
        history = History.of(root)
        for commit in history.commits:
            if self._named(history.stages(commit.id)):
                return self._fetch(commit.id)
        raise AuditError(
            f"Neither the workspace nor a commit of {root.resolve()} has {self.path} at "
            f"{self.digest}: run this in the project, or give the commit, as in load(rev=...)."
        )

    def _is_here(self, root: Path) -> bool:
        """Whether the workspace holds this version: on record, or compared file by file."""
        place = root / self.path
        if not place.exists() or not (root / "dvc.lock").is_file():
            return False
        outs = {entry.path: entry.md5 for stage in read_lock(root) for entry in stage.outs}
        if self.path in outs:
            return outs[self.path] == self.digest
        # A folder that several stages fill is an output of none of them.
        return (folder_md5(place) if place.is_dir() else file_md5(place)) == self.digest

    def _named(self, stages: Iterable[StageRecord]) -> bool:
        entries = (entry for stage in stages for entry in (*stage.deps, *stage.outs))
        return any((one.path, one.md5) == (self.path, self.digest) for one in entries)

    def _fetch(self, rev: str) -> str:
        from dvc.api import DVCFileSystem  # noqa: PLC0415 - seconds to import, seldom needed

        target = Path(tempfile.mkdtemp(prefix="veilset-")) / Path(self.path).name
        DVCFileSystem(self.repo, rev=rev).get(self.path, str(target), recursive=True)
        return str(target)

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return isinstance(raw_source, str) and raw_source.startswith("dvc://")

    @classmethod
    def _resolve(cls, raw_source: Any) -> "DvcDatasetSource":
        """From `dvc://<path>@<digest>`, in the current folder's project."""
        path, _, digest = str(raw_source).removeprefix("dvc://").rpartition("@")
        return cls(path=path, digest=digest)

    def to_dict(self) -> dict[str, Any]:
        """Path, digest and repository: what the store keeps."""
        return {"path": self.path, "digest": self.digest, "repo": self.repo}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> "DvcDatasetSource":
        """The inverse of `to_dict`."""
        return cls(
            path=str(source_dict["path"]),
            digest=str(source_dict["digest"]),
            repo=str(source_dict.get("repo", ".")),
        )
