"""VGG-16 with batch normalisation for images of any size (Simonyan & Zisserman, ICLR 2015).

Ours and not torchvision's, of which only the list of widths would remain: its first layer takes
three channels, its maxima leave nothing of images under 32 pixels, 120 of its 138 million weights
are for the 7x7 places that 224 pixels leave, and gates and feature losses need stages.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from veilset.models.registry import Architecture, Shape
from veilset.models.resnet import initialise
from veilset.params import Params

_DEPTHS = (2, 2, 3, 3, 3)
_WIDTHS = (1, 2, 4, 8, 8)


class Vgg16Params(Params):
    """Parameters of VGG-16.

    Attributes:
        width: Channels of the first of its five stages; the next ones have 2, 4, 8 and 8 times as
            many.
        dropout: Share of features that are dropped before each hidden linear layer in training.
    """

    width: int = Field(64, ge=4, le=256)
    dropout: float = Field(0.5, ge=0, lt=1, allow_inf_nan=False)


class Vgg16(nn.Module):
    """Five stages of 3x3 convolutions, 2x2 maxima between them, and three linear layers.

    Maxima of an odd side take the last row or column alone, so a side of one pixel stays one; what
    is left of larger images is averaged before the linear layers. At 32x32 pixels neither happens.
    The linear layers are the source's three, with dropout, but as narrow as what they read (the
    custom for CIFAR): the source's have 4096 features, too many for few and small images.

    Attributes:
        stages: Convolution, normalisation, ReLU, two or three times; from the second stage on after
            a 2x2 maximum. So each stage ends in ReLU, and the first two end in relu2_2.
        head: From the last stage's maxima, averaged, to logits.
    """

    def __init__(self, channels: int, width: int, classes: int, dropout: float) -> None:
        """Builds and initialises it for images of so many channels."""
        super().__init__()
        widths = [width * times for times in _WIDTHS]
        befores = [channels, *widths[:-1]]
        self.stages = nn.Sequential(
            *(_stage(befores[i], widths[i], _DEPTHS[i], first=i == 0) for i in range(len(widths)))
        )
        self.pool = _halve()
        last = widths[-1]
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(last, last), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(last, last), nn.ReLU(),
            nn.Linear(last, classes),
        )  # fmt: skip
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to logits (N, classes)."""
        x = self.pool(self.stages(x))
        return self.head(torch.mean(x, dim=(2, 3)))  # type: ignore[no-any-return]

    def features(self, x: Tensor, stages: int = 2) -> Tensor:
        """What comes out of the first stages; two of them end in relu2_2.

        Args:
            x: Normalised images (N, C, H, W).
            stages: How many, 1 to 5.

        Returns:
            (N, channels, h, w); of two stages (N, 2 width, ceil(H / 2), ceil(W / 2)).
        """
        return self.stages[:stages](x)  # type: ignore[no-any-return]


def _stage(channels: int, width: int, depth: int, *, first: bool) -> nn.Sequential:
    layers: list[nn.Module] = [] if first else [_halve()]
    for index in range(depth):
        before = width if index else channels
        conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


def _halve() -> nn.Module:
    return nn.MaxPool2d(2, ceil_mode=True)


def _vgg16(shape: Shape, classes: int, params: Vgg16Params) -> nn.Module:
    return Vgg16(shape[2], params.width, classes, params.dropout)


ARCHITECTURES = {
    "vgg16_bn": Architecture(
        "VGG-16 with batch normalisation",
        "Simonyan & Zisserman 2015, configuration D; normalisation and the small head are the "
        "custom for CIFAR",
        8, Vgg16Params, _vgg16,
    )
}  # fmt: skip
"""What this file adds to the registry."""
