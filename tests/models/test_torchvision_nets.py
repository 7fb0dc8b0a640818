"""torchvision's CNNs: as published at published sizes, and of use from 7 pixels on."""

import copy
import socket
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import densenet, inception, resnet

from veilset.errors import SettingsError
from veilset.models.device import Engine, cuda_works, kernels
from veilset.models.registry import architecture, make_model

# The least that each can be made of, for tests of what does not depend on the width.
THIN: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 16}, "resnet34": {"width": 16}, "resnet50": {"width": 16},
    "densenet121": {"growth": 4}, "inception_v3": {"dropout": 0.0},
}  # fmt: skip
NAMES = tuple(THIN)
PUBLISHED = {"resnet18": 224, "resnet34": 224, "resnet50": 224, "densenet121": 224,
             "inception_v3": 299}  # fmt: skip


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def sizes(model: nn.Module, layers: list[str], x: torch.Tensor) -> list[tuple[int, ...]]:
    """Heights and widths of what the layers pass on."""
    seen: list[tuple[int, ...]] = []
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(
            lambda _, __, out: seen.append(tuple(out.shape[2:]))
        )
    with torch.inference_mode():
        model.eval()(x)
    return seen


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def learn(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet18", 11.69),
        ("resnet34", 21.80),
        ("resnet50", 25.56),
        ("densenet121", 7.98),
        ("inception_v3", 23.83),
    ],
)
def test_sizes_are_the_published_ones(name: str, millions: float) -> None:
    side = PUBLISHED[name]
    model = make_model(name, (side, side, 3), 1000)
    assert count(model) / 1e6 == pytest.approx(millions, abs=0.005)
    assert all(isinstance(value, torch.Tensor) for value in model.state_dict().values())


def test_at_published_sizes_they_are_torchvisions_bit_for_bit() -> None:
    theirs = {
        "resnet18": lambda: resnet.resnet18(num_classes=5),
        "resnet50": lambda: resnet.resnet50(num_classes=5),
        "densenet121": lambda: densenet.densenet121(num_classes=5),
        "inception_v3": lambda: inception.inception_v3(
            num_classes=5, aux_logits=False, init_weights=True
        ),
    }
    for name, make in theirs.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            wanted = make().eval()
        side = 96
        model = make_model(name, (side, side, 3), 5, seed=3).eval()
        assert equal(state(model), state(wanted)), name
        x = some(1, 3, side, side)
        with torch.inference_mode():
            assert torch.equal(model(x), wanted(x)), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 0, 1), (0, 13, 3), (33, 20, 1), (0, 80, 3)])
def test_grey_rgb_and_odd_sizes_in_any_layout(name: str, shape: tuple[int, int, int]) -> None:
    least = architecture(name).smallest
    height, width, channels = shape[0] or least, shape[1] or least, shape[2]
    model = make_model(name, (height, width, channels), 7, **THIN[name])
    inputs = some(3, channels, height, width)
    logits = model.eval()(inputs).detach()
    assert logits.shape == (3, 7) and logits.dtype == torch.float32
    # The memory layout changes no answer.
    model, inputs = (each.to(memory_format=torch.channels_last) for each in (model, inputs))
    assert torch.allclose(model(inputs), logits, atol=1e-4 * max(1, float(logits.abs().max())))
    model.train()(inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_under_the_smallest_size_nothing_would_be_left(name: str) -> None:
    least = architecture(name).smallest
    with pytest.raises(SettingsError, match=f"{name} needs images of {least}x{least} pixels"):
        make_model(name, (least - 1, 40, 3), 2)
    # The network itself could not; ResNets could, but would see single pixels in two stages.
    if not name.startswith("resnet"):
        model = make_model(name, (least, least, 1), 2, **THIN[name]).eval()
        with pytest.raises(RuntimeError, match=r"too small|can't be greater"):
            model(some(1, 1, least - 1, least - 1))


@pytest.mark.parametrize(
    ("name", "layers", "shape", "wanted"),
    [
        ("resnet18", ["layer1", "layer4"], (32, 32), [(32, 32), (4, 4)]),
        ("resnet50", ["layer1", "layer4"], (63, 90), [(63, 90), (8, 12)]),
        ("resnet34", ["layer1", "layer4"], (64, 65), [(16, 17), (2, 3)]),
        ("densenet121", ["features.denseblock1", "features.norm5"], (33, 32), [(33, 32), (4, 4)]),
        ("densenet121", ["features.denseblock1", "features.norm5"], (64, 64), [(16, 16), (2, 2)]),
        ("inception_v3", ["Mixed_5b", "Mixed_6b", "Mixed_7b"], (32, 32),
         [(32, 32), (15, 15), (7, 7)]),
        ("inception_v3", ["Mixed_5b", "Mixed_6b", "Mixed_7b"], (64, 70),
         [(32, 35), (15, 17), (7, 8)]),
        ("inception_v3", ["Mixed_5b", "Mixed_6b", "Mixed_7b"], (75, 75), [(7, 7), (3, 3), (1, 1)]),
        ("inception_v3", ["Mixed_5b", "Mixed_6b", "Mixed_7b"], (299, 299),
         [(35, 35), (17, 17), (8, 8)]),
    ],
)  # fmt: skip
def test_the_stem_suits_the_size(
    name: str, layers: list[str], shape: tuple[int, int], wanted: list[tuple[int, int]]
) -> None:
    model = make_model(name, (*shape, 1), 2, **THIN[name])
    assert sizes(model, layers, some(1, 1, *shape)) == wanted


@pytest.mark.parametrize(
    ("name", "layer", "small", "published"),
    [
        ("resnet18", "layer1", (80, 80), (20, 20)),
        ("densenet121", "features.denseblock1", (80, 80), (20, 20)),
        ("inception_v3", "Mixed_5b", (40, 40), (7, 7)),
    ],
)
def test_either_stem_can_be_asked_for(
    name: str, layer: str, small: tuple[int, int], published: tuple[int, int]
) -> None:
    x = some(1, 3, 80, 80)
    for stem, wanted in (("small", small), ("published", published), ("auto", published)):
        model = make_model(name, (80, 80, 3), 2, stem=stem, **THIN[name])
        assert sizes(model, [layer], x) == [wanted]


def test_the_published_stem_is_refused_where_it_leaves_nothing() -> None:
    for name, least in (("densenet121", 29), ("inception_v3", 75)):
        words = rf"model {name}\.stem is published, .*{least}x{least} .* not 90x{least - 1}: use"
        with pytest.raises(SettingsError, match=words):
            make_model(name, (90, least - 1, 3), 2, stem="published")
        model = make_model(name, (least, least, 3), 2, stem="published", **THIN[name]).eval()
        assert model(some(2, 3, least, least)).shape == (2, 2)
    model = make_model("resnet18", (8, 8, 3), 2, stem="published", width=16).eval()
    assert model(some(2, 3, 8, 8)).shape == (2, 2)


def test_a_thin_resnet_is_built_as_torchvision_builds_a_wide_one() -> None:
    for name, kind in (("resnet18", "BasicBlock"), ("resnet50", "Bottleneck")):
        wide = make_model(name, (32, 32, 3), 10)
        thin = make_model(name, (32, 32, 3), 10, width=16)
        shapes = {n: tuple(v.shape) for n, v in thin.state_dict().items()}
        for layer, value in wide.state_dict().items():
            free = (3, 10) if layer in ("conv1.weight", "fc.weight", "fc.bias") else ()
            scaled = tuple(n if n < 4 or n in free or i > 1 else n // 4
                           for i, n in enumerate(value.shape))  # fmt: skip
            assert shapes.pop(layer) == scaled, layer
        assert not shapes
        strides = [[m.stride for m in net.modules() if isinstance(m, nn.Conv2d)]
                   for net in (wide, thin)]  # fmt: skip
        assert strides[0] == strides[1]
        assert {type(block).__name__ for block in thin.layer3} == {kind}
    conv = make_model("resnet18", (32, 32, 1), 2, width=32).layer4[1].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)


def test_resnet18_at_small_images_has_the_usual_size() -> None:
    assert count(make_model("resnet18", (32, 32, 3), 10)) == 11_173_962


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_the_weights(name: str) -> None:
    before = torch.get_rng_state()
    first = state(make_model(name, (16, 16, 1), 3, seed=1, **THIN[name]))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = state(make_model(name, (16, 16, 1), 3, seed=1, **THIN[name]))
    other = state(make_model(name, (16, 16, 1), 3, seed=2, **THIN[name]))
    assert equal(first, again)
    drawn = [key for key, value in first.items() if value.ndim > 1]
    assert drawn and not any(torch.equal(first[key], other[key]) for key in drawn)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network was asked for")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in NAMES:
        make_model(name, (32, 32, 3), 2, **THIN[name])


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast_gives_nearly_the_same_logits(name: str) -> None:
    model = make_model(name, (16, 16, 3), 4, **THIN[name]).to(memory_format=torch.channels_last)
    x = some(4, 3, 16, 16).to(memory_format=torch.channels_last)
    # Running statistics as of training: without any, activations grow from layer to layer.
    for _ in range(20):
        model.train()(x)
    with torch.inference_mode():
        plain = model.eval()(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(x)
    assert mixed.dtype == torch.bfloat16
    assert (mixed.float() - plain).norm() < 0.3 * plain.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()(x).float().square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_they_learn_which_half_is_bright_and_twice_the_same(name: str) -> None:
    side = architecture(name).smallest
    draws = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 2, (16,), generator=draws)
    images = torch.rand(16, 1, side, side, generator=draws)
    images[labels == 1, :, : side // 2] += 1
    images[labels == 0, :, side // 2 :] += 1
    again, model = (make_model(name, (side, side, 1), 2, **THIN[name]) for _ in range(2))
    assert (copy.deepcopy(model)(images).argmax(dim=1) == labels).float().mean() < 0.9
    for each in (again, model):
        learn(each, images, labels, 3)
    assert equal(state(again), state(model))
    learn(model, images, labels, 7)
    assert (model(images).argmax(dim=1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_training_moves_statistics_and_evaluation_does_not(name: str) -> None:
    model = make_model(name, (16, 16, 1), 3, **THIN[name])
    x = some(6, 1, 16, 16)
    with torch.inference_mode():
        first = model.eval()(x)
        assert torch.equal(model(x), first)
        # An image's answer does not depend on the others of its batch.
        alone = model(x[:1])
        assert torch.allclose(alone, first[:1], atol=1e-4 * max(1, float(first.abs().max())))
        before = state(model)
        assert equal(state(model), before)
        model.train()(x)
    moved = {key for key, value in state(model).items() if not torch.equal(value, before[key])}
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    assert moved == {f"{norm}.{kind}" for norm in norms for kind in kinds}


@pytest.mark.parametrize("name", ["densenet121", "inception_v3"])
def test_dropout_draws_in_training_only(name: str) -> None:
    thin = {**THIN[name], "dropout": 0.5}
    model = make_model(name, (8, 8, 1), 2, **thin)
    x = some(4, 1, 8, 8)
    with torch.inference_mode():
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))
        model = make_model(name, (8, 8, 1), 2, **{**THIN[name], "dropout": 0})
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("resnet18", {"width": 8}, "width is 8"),
        ("resnet50", {"shortcut": "A"}, "shortcut is unknown"),
        ("densenet121", {"growth": 3}, "growth is 3"),
        ("densenet121", {"dropout": 1.0}, "dropout is 1.0"),
        ("inception_v3", {"stem": "large"}, "stem is 'large'"),
        ("inception_v3", {"width": 64}, "width is unknown"),
    ],
)
def test_wrong_parameters_are_refused_by_name(
    name: str, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError, match=rf"model {name}\.{words}"):
        make_model(name, (32, 32, 3), 10, **params)


@pytest.mark.skipif(not cuda_works(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [32, 96])
def test_a_gpu_trains_them_reproducibly(name: str, side: int) -> None:
    engine = Engine(torch.device("cuda"), "bf16")
    labels = torch.arange(8, device="cuda") % 2
    x = some(8, 3, side, side).to("cuda", memory_format=torch.channels_last)
    found = []
    with kernels(engine, deterministic=True):
        for _ in range(2):
            model = make_model(name, (side, side, 3), 2, **THIN[name]).to("cuda")
            model = model.to(memory_format=torch.channels_last)
            with engine.autocast():
                loss = nn.functional.cross_entropy(model(x).float(), labels)
            loss.backward()
            found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
