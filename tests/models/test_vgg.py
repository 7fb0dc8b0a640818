"""VGG-16: the size of its source, stages for gates, and any image from 8 pixels on."""

import pytest
import torch
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from veilset.errors import SettingsError
from veilset.models.registry import make_model


def test_it_has_the_sources_layers_and_size() -> None:
    model = make_model("vgg16_bn", (32, 32, 3), 10)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [
        64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512,
    ]  # fmt: skip
    assert len([m for m in model.modules() if isinstance(m, nn.Linear)]) == 3
    before = [3, *(conv.out_channels for conv in convs[:-1])]
    wanted = sum(b * 9 * c.out_channels for b, c in zip(before, convs, strict=True))
    wanted += sum(2 * conv.out_channels for conv in convs)
    wanted += 2 * (512 * 512 + 512) + 512 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == wanted


def test_vgg16_is_torchvisions_up_to_its_head() -> None:
    ours = make_model("vgg16_bn", (32, 32, 3), 10).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = make_layers(cfgs["D"], batch_norm=True).eval()
    convs = [m for m in ours.stages.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in ours.stages.modules() if isinstance(m, nn.BatchNorm2d)]
    millions = sum(p.numel() for p in ours.stages.parameters()) / 1e6
    assert millions == pytest.approx(14.72, abs=0.005)
    wanted = [m for m in theirs if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    with torch.inference_mode():
        for conv, norm, own_conv, own_norm in zip(
            wanted[::2], wanted[1::2], convs, norms, strict=True
        ):
            nn.init.zeros_(conv.bias)  # ours has none: the normalisation would take it away
            conv.weight.copy_(own_conv.weight)
            norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(2))
            own_norm.weight.copy_(norm.weight)
        x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(6))
        found = ours.pool(ours.stages(x))
        assert found.shape == (2, 512, 2, 3)
        assert torch.allclose(found, theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 13, 3), (33, 20, 1), (32, 32, 3), (8, 70, 3)])
def test_it_takes_grey_rgb_and_odd_sizes_in_any_layout(shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    model = make_model("vgg16_bn", shape, 7, width=4, dropout=0)
    inputs = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(1))
    logits = model.eval()(inputs)
    assert logits.shape == (3, 7)
    assert logits.dtype == torch.float32
    model, inputs = (each.to(memory_format=torch.channels_last) for each in (model, inputs))
    assert torch.allclose(model(inputs), logits, atol=1e-4)
    model.train()(inputs).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_gate_after_every_stage_that_is_open_changes_nothing() -> None:
    model = make_model("vgg16_bn", (32, 32, 3), 10, width=4).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    wanted, sizes = model(x), []
    handles = [
        stage.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])) or out)
        for stage in model.stages
    ]
    assert torch.equal(model(x), wanted)
    assert sizes == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4), (32, 2, 2)]
    for handle in handles:
        handle.remove()
    model.stages[1].register_forward_hook(lambda _, __, out: 0 * out)
    shut = model(x)
    assert torch.equal(shut[0], shut[1])
    assert not torch.equal(wanted[0], wanted[1])


def test_features_are_those_of_relu2_2() -> None:
    model = make_model("vgg16_bn", (17, 32, 1), 2, width=4).eval()
    x = torch.randn(2, 1, 17, 32, generator=torch.Generator().manual_seed(3))
    found = model.features(x)
    assert found.shape == (2, 8, 9, 16)
    assert (found >= 0).all()
    assert (found == 0).any()
    kinds = [type(m).__name__ for m in model.stages[:2].modules()]
    assert (kinds.count("Conv2d"), kinds.count("MaxPool2d"), kinds[-1]) == (4, 1, "ReLU")
    rest = model.pool(model.stages[2:](found))
    assert torch.equal(model.head(rest.mean(dim=(2, 3))), model(x))


def test_dropout_draws_in_training_only() -> None:
    model = make_model("vgg16_bn", (8, 8, 1), 2, width=16, dropout=0.5).eval()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(model(x), model(x))
    head = model.head.train()
    assert not torch.equal(head(torch.ones(4, 128)), head(torch.ones(4, 128)))


def test_it_learns_which_half_is_bright() -> None:
    draws = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 2, (64,), generator=draws)
    images = torch.rand(64, 1, 8, 8, generator=draws)
    images[labels == 1, :, :4] += 1
    images[labels == 0, :, 4:] += 1
    model = make_model("vgg16_bn", (8, 8, 1), 2, width=4, dropout=0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    right = (model(images).argmax(dim=1) == labels).float().mean()
    assert right > 0.95


@pytest.mark.parametrize(
    ("params", "words"),
    [({"width": 2}, "width is 2"), ({"dropout": 1.0}, "dropout is 1.0"), ({"n": 1}, "n is unkn")],
)
def test_wrong_parameters_are_refused_by_name(params: dict[str, float], words: str) -> None:
    with pytest.raises(SettingsError, match=rf"model vgg16_bn\.{words}"):
        make_model("vgg16_bn", (32, 32, 3), 10, **params)


def test_images_under_8_pixels_are_refused() -> None:
    with pytest.raises(SettingsError, match="8x8 pixels or more"):
        make_model("vgg16_bn", (7, 32, 3), 10)
