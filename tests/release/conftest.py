"""One project a test run: making it takes longer than looking at it."""

import pytest
from release_cases import Made, made


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("ward"))
