from pathlib import Path

import pytest
from report_project import write_project


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete project; tests must not change it."""
    return write_project(tmp_path_factory.mktemp("project"))
