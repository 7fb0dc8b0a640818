"""A small convolutional network for quick runs (ours): three convolutions, three poolings."""

import torch
from pydantic import Field
from torch import Tensor, nn

from veilset.models.registry import Architecture, Shape
from veilset.params import Params


class SmallCnnParams(Params):
    """Parameters of the small network.

    Attributes:
        width: Channels of the first convolution; the next two have twice and four times as many.
    """

    width: int = Field(16, ge=4, le=256)


class SmallCnn(nn.Module):
    """Three times convolution, batch normalisation, ReLU, 2x2 maximum; then mean and linear."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        """Builds it for images of so many channels."""
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        befores = (channels, *widths[:-1])
        stages = [_stage(before, width) for before, width in zip(befores, widths, strict=True)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to logits (N, classes)."""
        return self.head(torch.mean(self.stages(x), dim=(2, 3)))  # type: ignore[no-any-return]


def _stage(channels: int, width: int) -> nn.Module:
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))


def _small_cnn(shape: Shape, classes: int, params: SmallCnnParams) -> nn.Module:
    return SmallCnn(shape[2], params.width, classes)


ARCHITECTURES = {"small_cnn": Architecture("Small CNN", "ours", 8, SmallCnnParams, _small_cnn)}
"""What this file adds to the registry."""
