"""ResNet-18, 34 and 50, DenseNet-121 and Inception-v3 of torchvision, for images of any size.

The networks, their initial weights and their batch normalisation are torchvision's, as published;
no weights are ever loaded. Ours is the choice of the stem: the published ones divide height and
width by 4 (Inception: by 8) before the first block, which leaves nothing of small images. Small
stems keep the size, as is the custom for CIFAR, and as the paper on DenseNet does in section 4.2.
"""

from functools import partial
from typing import Any, Literal

from pydantic import Field
from torch import nn

from veilset.errors import SettingsError
from veilset.models.registry import Architecture, Shape
from veilset.params import Params

Stem = Literal["auto", "small", "published"]

_PUBLISHED_WIDTH = 64
_HALVED_FROM = 48


class ResNetParams(Params):
    """Parameters of ResNet-18, 34 and 50.

    Attributes:
        width: Channels of the first of its four stages; each next one has twice as many, and those
            of ResNet-50 pass on four times as many. At least 16: with fewer, torch 2.15's backward
            pass of a strided 1x1 convolution writes beyond its memory on a CPU.
        stem: published is a 7x7 convolution and a 3x3 maximum, both of stride 2; small is a 3x3
            convolution of stride 1; auto is small for images with a side under 64 pixels.
    """

    width: int = Field(_PUBLISHED_WIDTH, ge=16, le=256)
    stem: Stem = "auto"


class DenseNetParams(Params):
    """Parameters of DenseNet-121.

    Attributes:
        growth: Channels that each layer adds (k in the paper); the stem has twice as many.
        dropout: Share of those that are dropped in training; the paper's 0.2 is for data sets that
            are not augmented.
        stem: As for ResNet.
    """

    growth: int = Field(32, ge=4, le=128)
    dropout: float = Field(0.0, ge=0, lt=1, allow_inf_nan=False)
    stem: Stem = "auto"


class InceptionParams(Params):
    """Parameters of Inception-v3.

    Attributes:
        dropout: Share of features that are dropped before the linear layer in training.
        stem: published halves height and width three times and trims them; small keeps them below
            48 pixels and halves them once from there on, so that the first block sees 32x32 pixels
            at 32 and 64 (35x35 at the published 299); auto is small for images with a side under
            75 pixels, of which the published one leaves nothing.
    """

    dropout: float = Field(0.5, ge=0, lt=1, allow_inf_nan=False)
    stem: Stem = "auto"


def _small(
    name: str, stem: Stem, shape: Shape, *, published_from: int, possible_from: int = 1
) -> bool:
    """Whether the stem is the small one.

    Args:
        name: Of the network, for the message.
        stem: What was asked for.
        shape: Of the images.
        published_from: The least side at which `auto` takes the published stem.
        possible_from: The least side of which the published stem leaves something.

    Raises:
        SettingsError: The published stem was asked for, and leaves nothing of such images.
    """
    side = min(shape[:2])
    if stem == "published" and side < possible_from:
        least = possible_from
        raise SettingsError(
            f"model {name}.stem is published, which needs images of {least}x{least} pixels or "
            f"more, not {shape[0]}x{shape[1]}: use auto or small."
        )
    return stem == "small" or (stem == "auto" and side < published_from)


def _stem(channels: int, width: int, *, small: bool) -> nn.Conv2d:
    if small:
        return nn.Conv2d(channels, width, 3, padding=1, bias=False)
    return nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)


# ------------------------------------------------------------------------------ ResNet


def _resnet(
    name: str, block: Literal["BasicBlock", "Bottleneck"], depths: tuple[int, ...],
    shape: Shape, classes: int, params: ResNetParams,
) -> nn.Module:  # fmt: skip
    # Here and below, not at the top: this import takes more than a second, since it brings along
    # torch's compiler, which no other network of ours needs.
    from torchvision.models import resnet  # noqa: PLC0415

    small = _small(name, params.stem, shape, published_from=64)
    width, channels = params.width, shape[2]
    kind: Any = getattr(resnet, block)
    net: Any = resnet.ResNet(kind, list(depths), num_classes=classes)
    if width != _PUBLISHED_WIDTH:
        net.bn1 = nn.BatchNorm2d(width)
        before = width
        for index, depth in enumerate(depths):
            stage = _stage(kind, before, width << index, depth, 2 if index else 1)
            setattr(net, f"layer{index + 1}", stage.apply(_initialise_resnet))
            before = (width << index) * kind.expansion
        net.fc = nn.Linear(before, classes)
    if small or (width, channels) != (_PUBLISHED_WIDTH, 3):
        net.conv1 = _stem(channels, width, small=small)
        _initialise_resnet(net.conv1)
    if small:
        net.maxpool = nn.Identity()
    return net  # type: ignore[no-any-return]


def _stage(block: Any, before: int, inner: int, depth: int, stride: int) -> nn.Sequential:
    """A stage of torchvision's blocks, as its own ResNet puts it together for 64 channels."""
    after, project = inner * block.expansion, None
    if stride != 1 or before != after:
        conv = nn.Conv2d(before, after, 1, stride, bias=False)
        project = nn.Sequential(conv, nn.BatchNorm2d(after))
    first = block(before, inner, stride, project)
    return nn.Sequential(first, *(block(after, inner) for _ in range(depth - 1)))


def _initialise_resnet(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


# ------------------------------------------------------------------------------ DenseNet


def _densenet121(shape: Shape, classes: int, params: DenseNetParams) -> nn.Module:
    from torchvision.models import densenet  # noqa: PLC0415

    small = _small("densenet121", params.stem, shape, published_from=64, possible_from=29)
    width, channels = 2 * params.growth, shape[2]
    net: Any = densenet.DenseNet(
        params.growth, (6, 12, 24, 16), width, drop_rate=params.dropout, num_classes=classes
    )
    if small or channels != 3:
        net.features.conv0 = _stem(channels, width, small=small)
        nn.init.kaiming_normal_(net.features.conv0.weight)
    if small:
        net.features.pool0 = nn.Identity()
    return net  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------ Inception


def _inception_v3(shape: Shape, classes: int, params: InceptionParams) -> nn.Module:
    from torchvision.models import inception  # noqa: PLC0415

    small = _small("inception_v3", params.stem, shape, published_from=75, possible_from=75)
    channels = shape[2]
    # Without the auxiliary classifier: its 5x5 convolution needs more than a small image leaves,
    # and it would be a second answer, which neither training nor attacks expect.
    net: Any = inception.Inception3(
        classes, aux_logits=False, init_weights=True, dropout=params.dropout
    )
    if small or channels != 3:
        stride, padding = (1, 1) if small else (2, 0)
        conv = nn.Conv2d(channels, 32, 3, stride, padding, bias=False)
        net.Conv2d_1a_3x3.conv = conv
        nn.init.trunc_normal_(conv.weight, std=0.1, a=-2, b=2)
    if small:
        for trimming in (net.Conv2d_2a_3x3, net.Conv2d_4a_3x3):
            trimming.conv.padding = (1, 1)
        halve = min(shape[:2]) >= _HALVED_FROM
        net.maxpool1 = nn.Identity()
        net.maxpool2 = nn.MaxPool2d(3, 2, padding=1) if halve else nn.Identity()
    return net  # type: ignore[no-any-return]


_RESNET = "He et al., Deep Residual Learning, CVPR 2016, table 1, as in torchvision"

ARCHITECTURES: dict[str, Architecture[Any]] = {
    "resnet18": Architecture(
        "ResNet-18", _RESNET, 8, ResNetParams,
        partial(_resnet, "resnet18", "BasicBlock", (2, 2, 2, 2)),
    ),
    "resnet34": Architecture(
        "ResNet-34", _RESNET, 8, ResNetParams,
        partial(_resnet, "resnet34", "BasicBlock", (3, 4, 6, 3)),
    ),
    "resnet50": Architecture(
        "ResNet-50", f"{_RESNET}: stride 2 in the 3x3 convolution", 8, ResNetParams,
        partial(_resnet, "resnet50", "Bottleneck", (3, 4, 6, 3)),
    ),
    "densenet121": Architecture(
        "DenseNet-121",
        "Huang et al., Densely Connected Convolutional Networks, CVPR 2017, table 1, as in "
        "torchvision",
        8, DenseNetParams, _densenet121,
    ),
    "inception_v3": Architecture(
        "Inception-v3",
        "Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, table 1, as in "
        "torchvision, without the auxiliary classifier",
        7, InceptionParams, _inception_v3,
    ),
}  # fmt: skip
"""What this file adds to the registry."""
