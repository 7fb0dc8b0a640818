"""The study of all attacks on CIFAR-10, in the small."""

from pathlib import Path

import numpy as np
import pytest
from studies.cifar_attacks import attack, build, fitted, read

from veilset.errors import SourceError
from veilset.schemes.plain import Plain
from veilset.schemes.visualmixer import VisualMixer

CIFAR = Path(__file__).parents[2].parent / "shared/datasets/cifar10"


@pytest.mark.skipif(not CIFAR.is_dir(), reason="shared/datasets is not beside the repository")
def test_attacks_are_timed_and_told_with_their_anchors() -> None:
    released, hers = read(CIFAR, "test", 60), read(CIFAR, "train", 120)
    assert released.images.shape == (60, 32, 32, 3)
    assert fitted(Plain(), hers).name == "plain"
    case = build(VisualMixer(), released, hers.part(20, 120), "quick", "cpu")
    assert len(case.attacker.images) == 100
    (row,) = attack(VisualMixer(), case, ["linkage", "denoising"])
    assert row["attack"] == "linkage"
    assert row["targets"] == 60
    assert row["value"] > 0.9 > row["control"]["value"]
    assert row["seconds"] > 0


@pytest.mark.skipif(not CIFAR.is_dir(), reason="shared/datasets is not beside the repository")
def test_no_image_comes_twice() -> None:
    for count in (1000, 2000):
        images = read(CIFAR, "test", count).images
        assert len(np.unique(images.reshape(count, -1), axis=0)) == len(images) == count


def test_a_folder_without_photographs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no test\*\.parquet"):
        read(tmp_path, "test", 10)
