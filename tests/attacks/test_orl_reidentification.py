"""The study of re-identification on ORL faces: the rates that were measured before, or better."""

from pathlib import Path

import numpy as np
import pytest
from studies.orl_reidentification import LaplaceNoise, measure, read, ways

from veilset.errors import SourceError
from veilset.keys import Key
from veilset.types import Images, IntArray

ORL = Path(__file__).parents[2].parent / "shared/datasets/orl_faces"


@pytest.fixture(scope="module")
def faces() -> tuple[Images, IntArray]:
    if not ORL.is_dir():
        pytest.skip(f"the shared data set {ORL} is not here")
    return read(ORL)


@pytest.mark.parametrize(
    "way, before, likeness",
    [
        ("VisualMixer, regions of 16 px", 0.88, 0.2),
        pytest.param("pixel block mixing, all faces one class", 0.73, 0.6, marks=pytest.mark.slow),
        pytest.param("Laplace noise, deviation 1", 0.88, 0.05, marks=pytest.mark.slow),
    ],
)
def test_people_are_recognised_as_often_as_measured_before(
    way: str, before: float, likeness: float, faces: tuple[Images, IntArray]
) -> None:
    row = measure(way, dict(ways())[way], *faces)
    assert row.rank1 >= before
    assert row.ssim < likeness
    assert row.control < 0.1
    assert row.chance == 0.025


def test_a_folder_without_faces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no Parquet"):
        read(tmp_path)


def test_the_noise_has_the_deviation_that_is_claimed() -> None:
    grey = np.full((40, 64, 64, 1), 128, dtype=np.uint8)
    ids = np.random.default_rng(0).integers(0, 256, (40, 16), dtype=np.uint8)
    labels = np.zeros(40, dtype=np.int64)
    made = LaplaceNoise(deviation=0.1).protect(grey, labels, ids, Key(b"k" * 32)).images
    # Cut at 0 and 255, which are seven scales away.
    assert made.astype(float).std() == pytest.approx(25.5, rel=0.02)
    assert abs(made.mean() - 128) < 0.5
