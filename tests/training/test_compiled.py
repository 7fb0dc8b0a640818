import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_sets import params, stripes, subject
from torch import Tensor, nn

from veilset.errors import TrainingError
from veilset.models.device import Engine
from veilset.training import compiled as module
from veilset.training.compiled import WORTH_IT, choose_compile, compiled
from veilset.training.loop import TrainResult, train

CPU, CUDA = (Engine(torch.device(name), "fp32") for name in ("cpu", "cuda"))


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_known", {})


def test_auto_compiles_on_cuda_where_it_earns_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: name == "triton" or None)
    long, short = WORTH_IT, WORTH_IT - 1
    assert choose_compile("auto", CUDA, steps=long, processes=1)
    assert not choose_compile("auto", CUDA, steps=short, processes=1)
    assert not choose_compile("auto", CUDA, steps=long, processes=2)
    assert not choose_compile("auto", CPU, steps=long, processes=1)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert not choose_compile("auto", CUDA, steps=long, processes=1)


def test_what_was_asked_for_is_done_or_refused() -> None:
    for engine in (CPU, CUDA):
        assert choose_compile("on", engine, steps=1, processes=1)
        assert not choose_compile("off", engine, steps=10**6, processes=1)
    with pytest.raises(TrainingError, match="compile is on, but 2 processes train together"):
        choose_compile("on", CPU, steps=1, processes=2)


def _watch(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Puts a pass-through in the place of the compiler; what it was given is noted."""
    seen: list[nn.Module] = []

    def compile_(model: nn.Module, deterministic: bool) -> Any:
        seen.append(model)
        return model

    monkeypatch.setattr(module, "_compile", compile_)
    return seen


def _train(folder: Path, **changes: Any) -> TrainResult:
    return train(
        stripes(50), stripes(13, seed=1), params(**{"compile": "on", **changes}), subject(), folder
    )


def test_a_network_is_compiled_once_for_all_seeds_and_schemes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _watch(monkeypatch)
    plain = [_train(tmp_path / f"off {seed}", compile="off", seed=seed) for seed in (0, 1, 0)]
    assert not seen and not plain[0].card.compiled
    fast = [_train(tmp_path / f"on {seed}", seed=seed) for seed in (0, 1)]
    other = subject(scheme="visualmixer", classes=2)
    parts = stripes(50), stripes(13, seed=1)
    fast.append(train(*parts, params(compile="on"), other, tmp_path / "other"))
    assert len(seen) == 1
    assert all(each.card.compiled for each in fast)
    # A network that was trained before leaves nothing behind in the next training.
    for one, two in zip(plain, fast, strict=True):
        assert one.card.weights_sha256 == two.card.weights_sha256
        assert one.history == two.history


def test_another_form_is_compiled_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _watch(monkeypatch)
    _train(tmp_path / "a")
    for number, change in enumerate(({"batch_size": 20}, {"deterministic": False})):
        _train(tmp_path / f"b{number}", **change)
    wide = subject(model_params={"width": 8})
    train(stripes(50), stripes(13), params(compile="on"), wide, tmp_path / "c")
    train(stripes(50, (8, 9, 1)), stripes(13, (8, 9, 1)), params(compile="on"), subject(),
          tmp_path / "d")  # fmt: skip
    assert len(seen) == 5
    assert len(module._known) == 4  # older ones are let go, with their memory


def test_a_training_within_a_training_has_its_own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _watch(monkeypatch)
    models = [nn.Linear(2, 2) for _ in range(3)]
    with compiled(models[0], "form", deterministic=True) as (outer, _):
        with compiled(models[1], "form", deterministic=True) as (inner, _):
            assert inner is not outer
        outer.weight.grad = torch.ones(2, 2)
    assert seen == models[:2] and outer.weight.grad is None
    with compiled(models[2], "form", deterministic=True) as (again, _):
        assert again is outer
        assert torch.equal(again.weight, models[2].weight)


def test_what_cannot_be_compiled_is_one_sentence() -> None:
    from torch._dynamo.exc import TorchDynamoException

    def fail(model: nn.Module, **_: Any) -> Any:
        def forward(x: Tensor) -> Tensor:
            raise TorchDynamoException("no\ncompiler")

        return forward

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", fail)
        forward = module._compile(nn.Linear(1, 1), deterministic=True)
    with pytest.raises(TrainingError, match=r"compiled here \(no compiler\): set compile"):
        forward(torch.ones(1))


def test_the_default_path_imports_no_compiler(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from small_sets import *\n"
        "from veilset.training.loop import train\n"
        "train(stripes(50), stripes(13), params(epochs=1), subject(), Path(sys.argv[2]))\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'triton')"
        " if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_network_trains_as_the_plain_one(tmp_path: Path) -> None:
    plain, fast, again = (
        _train(tmp_path / name, compile=how, precision="fp32", threads=1, lr=0.02)
        for name, how in (("plain", "off"), ("fast", "on"), ("again", "on"))
    )
    assert fast.card.compiled and len(module._known) == 1
    assert fast.card.weights_sha256 == again.card.weights_sha256
    for one, two in zip(plain.history, fast.history, strict=True):
        assert two.train_loss == pytest.approx(one.train_loss, abs=1e-3)
