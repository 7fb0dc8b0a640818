"""ResNet-20 for small images (He et al., Deep Residual Learning, CVPR 2016).

It is the network of section 4.2 (CIFAR-10): 6n+2 layers with n = 3, widths 16-32-64, 3x3
convolutions, subsampling by stride 2 between stages, global average pooling. The deeper ones of
table 1 are torchvision's.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilset.models.registry import Architecture, Shape
from veilset.params import Params

Shortcut = Literal["A", "B"]


class ResNet20Params(Params):
    """Parameters of ResNet-20.

    Attributes:
        width: Channels of the first stage; the next two have twice and four times as many.
        shortcut: Where a block changes the size: "A" subsamples and pads with zero channels and has
            no parameters, "B" is a 1x1 convolution with batch normalisation.
    """

    width: int = Field(16, ge=4, le=256)
    shortcut: Shortcut = "A"


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (figure 2, left)."""

    def __init__(self, channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        """Binds the sizes: `channels` in, `width` out, subsampled by `stride`."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.missing = width - channels
        changes = stride != 1 or channels != width
        self.project = _projection(channels, width) if changes and shortcut == "B" else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, channels, H, W) to (N, width, ceil(H / stride), ceil(W / stride))."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return functional.relu(y + self._skip(x))

    def _skip(self, x: Tensor) -> Tensor:
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.project is not None:
            return self.project(x)  # type: ignore[no-any-return]
        return functional.pad(x, (0, 0, 0, 0, 0, self.missing)) if self.missing else x


class ResNet(nn.Module):
    """A small-image residual network of equally deep stages."""

    def __init__(
        self, channels: int, widths: tuple[int, ...], blocks: int, classes: int, shortcut: Shortcut
    ) -> None:
        """Builds and initialises it: `blocks` blocks in each stage, one stage a width."""
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(Block(before, width, stride, shortcut))
                before = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to logits (N, classes)."""
        x = self.blocks(functional.relu(self.norm(self.stem(x))))
        return self.head(torch.mean(x, dim=(2, 3)))  # type: ignore[no-any-return]


def initialise(module: nn.Module) -> None:
    """Kaiming-normal weights (He et al. 2015, eq. 14) for convolutions and linear layers."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.zeros_(module.bias)


def _projection(channels: int, width: int) -> nn.Module:
    # Its input is subsampled already, which is what stride 2 would do: the backward pass of torch
    # 2.15's strided 1x1 convolution writes beyond its memory on a CPU with two or more threads,
    # in channels_last with fewer than 16 channels.
    conv = nn.Conv2d(channels, width, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def _resnet20(shape: Shape, classes: int, params: ResNet20Params) -> nn.Module:
    widths = (params.width, 2 * params.width, 4 * params.width)
    return ResNet(shape[2], widths, 3, classes, params.shortcut)


ARCHITECTURES = {
    "resnet20": Architecture(
        "ResNet-20", "He et al. 2016, section 4.2", 8, ResNet20Params, _resnet20
    ),
}
"""What this file adds to the registry."""
