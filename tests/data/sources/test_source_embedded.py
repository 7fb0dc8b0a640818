import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sources_support import checked

from veilset.data.sources import open_source


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    source = open_source({"source": "digits", "path": "data/raw/digits"}, tmp_path)
    items = checked(source)
    bunch = load_digits()
    pixels = np.stack([item.content for item in items])
    assert pixels.shape == (1797, 8, 8) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.floor(bunch.images * 255 / 16 + 0.5))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert [item.label for item in items] == bunch.target.tolist()
    assert source.classes() == tuple("0123456789")
    assert len({item.name for item in items}) == 1797


def test_lfw_subset_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the source went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    items = checked(open_source("lfw_subset", tmp_path))
    assert [item.class_name for item in items] == ["face"] * 100 + ["other"] * 100
    pixels = np.stack([item.content for item in items])
    assert pixels.shape == (200, 25, 25) and pixels.dtype == np.uint8
    assert pixels.max() > 250 and pixels.min() < 5


def test_an_embedded_name_wins_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "digits" / "cat").mkdir(parents=True)
    (tmp_path / "digits" / "cat" / "a.png").write_bytes(b"x")
    assert open_source("digits", tmp_path).name == "digits"
    assert open_source("./digits", tmp_path).name == "folder"


def test_opening_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pathlib import Path; from veilset.data.sources import open_source;"
        "open_source('digits', Path()); open_source('torchvision:CIFAR10', Path());"
        "print([m for m in ('torch', 'torchvision', 'sklearn', 'skimage') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
