"""The small project, reproduced once for all tests of the pipeline."""

import pytest
from small_project import SmallProject, copy_project


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> SmallProject:
    """The small project after its first `dvc repro`; tests that change it must work on a copy."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    ran = project.repro()
    assert len(ran) == len(set(ran)) > 10
    return project
