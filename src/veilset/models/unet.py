"""A small U-Net: an image in, an image of the same size out."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class UNet(nn.Module):
    """Encoder and decoder with skip connections, for images of any size.

    Group normalisation knows no running statistics: an image is treated alike alone and in any
    batch. Upsampling shuffles channels into pixels, which has deterministic gradients on every
    device. Squares of `fold` x `fold` pixels become channels at the entrance and pixels again at
    the exit: no pixel is lost, and the costly convolutions at full resolution are not needed.

    Attributes:
        depth: How many times the resolution is halved.
        fold: Side of the squares.
    """

    def __init__(
        self, inputs: int, outputs: int, base: int = 16, depth: int = 3, fold: int = 1
    ) -> None:
        """Builds the network.

        Args:
            inputs: Channels in.
            outputs: Channels out.
            base: Channels at the highest resolution, a multiple of 4; doubled at each level.
            depth: Levels below the highest resolution, at least 1.
            fold: Side of the squares that are folded into channels; 1 folds nothing.

        Source: Ronneberger et al., MICCAI 2015, in the small; normalisation and sizes are ours.
        """
        super().__init__()
        self.depth = depth
        self.fold = fold
        widths = [base * 2**level for level in range(depth + 1)]
        self.first = _block(inputs * fold**2, base)
        self.down = nn.ModuleList(_block(widths[i], widths[i + 1]) for i in range(depth))
        levels = list(reversed(range(depth)))
        self.rise = nn.ModuleList(nn.Conv2d(widths[i + 1], 4 * widths[i], 1) for i in levels)
        self.up = nn.ModuleList(_block(2 * widths[i], widths[i]) for i in levels)
        self.last = nn.Conv2d(base, outputs * fold**2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Maps float (N, inputs, H, W) to float (N, outputs, H, W); sizes are padded inside."""
        height, width = images.shape[-2:]
        step = self.fold * 2**self.depth
        x = functional.pad(images, (0, -width % step, 0, -height % step), mode="replicate")
        x = self.first(functional.pixel_unshuffle(x, self.fold))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(functional.avg_pool2d(x, 2))
        for rise, block in zip(self.rise, self.up, strict=True):
            x = block(torch.cat([functional.pixel_shuffle(rise(x), 2), skips.pop()], dim=1))
        return functional.pixel_shuffle(self.last(x), self.fold)[..., :height, :width]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(4, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(4, outputs),
        nn.SiLU(),
    )
