import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from veilset.errors import SettingsError
from veilset.models import registry
from veilset.models.registry import architectures, make_model, model_names


def _bytes(model: nn.Module) -> bytes:
    return b"".join(v.numpy().tobytes() for v in model.state_dict().values())


def test_finds_every_file_of_the_package() -> None:
    assert {
        "densenet121", "inception_v3", "resnet18", "resnet20", "resnet34", "resnet50", "small_cnn",
        "vgg16_bn",
    } <= set(model_names())  # fmt: skip
    assert list(model_names()) == sorted(model_names())


def test_a_new_model_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "from veilset.models.registry import Architecture\n"
        "from veilset.params import Params\n"
        "class Mine(Params):\n    wide: bool = False\n"
        "def build(shape, classes, params):\n"
        "    h, w, c = shape\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(h * w * c, classes))\n"
        "ARCHITECTURES = {'mine': Architecture('Mine', 'ours', 1, Mine, build)}\n"
    )
    monkeypatch.setattr(registry.package, "__path__", [*registry.package.__path__, str(tmp_path)])
    architectures.cache_clear()
    try:
        assert "mine" in model_names()
        assert make_model("mine", (3, 4, 1), 2)(torch.zeros(5, 1, 3, 4)).shape == (5, 2)
        (tmp_path / "again.py").write_text((tmp_path / "mine.py").read_text())
        architectures.cache_clear()
        with pytest.raises(SettingsError, match="mine is defined twice"):
            model_names()
    finally:
        architectures.cache_clear()


@pytest.mark.parametrize("name", ["resnet20", "small_cnn"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 3), (33, 20, 1), (28, 28, 3)])
def test_the_fast_ones_take_grey_rgb_and_odd_sizes(name: str, shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    model = make_model(name, shape, 7, width=4)
    inputs = torch.randn(3, channels, height, width)
    logits = model.eval()(inputs)
    assert logits.shape == (3, 7) and logits.dtype == torch.float32
    # The memory layout changes no answer.
    model, inputs = (each.to(memory_format=torch.channels_last) for each in (model, inputs))
    assert torch.allclose(model(inputs), logits, atol=1e-4)
    model.train()(inputs).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _bytes(make_model("resnet20", (8, 8, 1), 3, seed=1, width=4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert _bytes(make_model("resnet20", (8, 8, 1), 3, seed=1, width=4)) == first
    assert _bytes(make_model("resnet20", (8, 8, 1), 3, seed=2, width=4)) != first


def test_torchvision_is_imported_late_and_changes_no_weight() -> None:
    script = (
        "import hashlib, sys\n"
        "from veilset.models.registry import make_model\n"
        "make_model('vgg16_bn', (8, 8, 1), 2, width=4)\n"
        "make_model('small_cnn', (8, 8, 1), 2)\n"
        "late = {'torchvision', 'torch._dynamo'} & set(sys.modules)\n"
        "assert not late, late\n"
        "for _ in range(2):\n"
        "    net = make_model('resnet18', (8, 8, 1), 2, seed=4, width=16)\n"
        "    print(hashlib.sha256(net.layer4[1].conv2.weight.detach().numpy()).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    net: Any = make_model("resnet18", (8, 8, 1), 2, seed=4, width=16)
    here = hashlib.sha256(net.layer4[1].conv2.weight.detach().numpy()).hexdigest()
    assert done.stdout.split() == [here, here]


@pytest.mark.parametrize(
    ("arguments", "params", "words"),
    [
        (("vgg", (32, 32, 3), 10), {}, "no model 'vgg': choose one of .*resnet20"),
        (("resnet20", (32, 32, 3), 1), {}, "at least 2 classes"),
        (("resnet20", (7, 32, 3), 2), {}, "8x8 pixels or more"),
        (("resnet20", (32, 32, 3), 2), {"depth": 3}, "model resnet20.depth is unknown"),
        (("resnet20", (32, 32, 3), 2), {"width": 2}, "model resnet20.width is 2"),
    ],
)
def test_refusals_say_what_to_do(arguments: Any, params: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        make_model(*arguments, **params)
