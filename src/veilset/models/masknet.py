"""Feature-selection MaskNet: classifiers that are told which pixels of an image were masked.

The adjustment of models that goes with mask desensitization. Of the paper nothing but its abstract
is known to us ("feature selection masknet"); what is here is a reconstruction: a first convolution
that passes over masked pixels, and gates that choose features by themselves and the mask.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilset.models.registry import Architecture, Shape
from veilset.models.resnet import ResNet, ResNet20Params, initialise
from veilset.models.torchvision_nets import ARCHITECTURES as TORCHVISION
from veilset.models.torchvision_nets import ResNetParams
from veilset.models.vgg import Vgg16, Vgg16Params
from veilset.params import Params

_WINDOW = 3
_LEAST_SHARE = 0.1
_PRICE = 1e-4
_OPEN = 2.0
_SOURCE = "reconstruction after Li et al., arXiv 2312.08975, of which only the abstract is known"


class MaskedResNet20Params(ResNet20Params):
    """Parameters of the masked ResNet-20.

    Attributes:
        gates: Without them only the first convolution reads the mask (an ablation).
    """

    gates: bool = True


class MaskedResNet18Params(Params):
    """Parameters of the masked ResNet-18, whose stem is always the small one.

    Attributes:
        width: As for ResNet-18.
        gates: As for ResNet-20.
    """

    width: int = Field(64, ge=16, le=256)
    gates: bool = True


class MaskedVgg16Params(Vgg16Params):
    """Parameters of the masked VGG-16.

    Attributes:
        gates: As for ResNet-20.
    """

    gates: bool = True


class Gate(nn.Module):
    """sigmoid(conv1x1(relu(bn(conv3x3([features; mask]))))): how far each feature is let through.

    It begins nearly open (0.88 on average), so that a network of many gates still learns.
    """

    def __init__(self, channels: int) -> None:
        """Builds it for features of so many channels."""
        super().__init__()
        inner = max(1, channels // 4)
        self.look = nn.Conv2d(channels + 1, inner, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(inner)
        self.choose = nn.Conv2d(inner, channels, 1)
        self.apply(initialise)
        nn.init.normal_(self.choose.weight, std=0.01)
        nn.init.constant_(self.choose.bias, _OPEN)  # type: ignore[arg-type]

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Maps features (N, channels, H, W) and mask (N, 1, H, W) to gates in 0..1."""
        seen = self.look(torch.cat([features, mask.to(features.dtype)], dim=1))
        return torch.sigmoid(self.choose(functional.relu(self.norm(seen))))


class MaskNet(nn.Module):
    """A classifier whose features are gated after its stem and each of its stages.

    Attributes:
        first: The first convolution, 3x3 of stride 1.
        sections: What follows, in parts that each end in features to gate.
        last: What the last features go through before their mean is taken.
        head: From that mean to logits.
        gates: One a section, or None.
        channels: Of the images.
    """

    def __init__(
        self,
        first: nn.Conv2d,
        sections: Sequence[tuple[nn.Module, int]],
        last: nn.Module,
        head: nn.Module,
        *,
        gates: bool,
    ) -> None:
        """Takes over the parts of a network; each section comes with its number of channels."""
        super().__init__()
        self.first, self.last, self.head = first, last, head
        self.channels = first.in_channels
        self.sections = nn.ModuleList(section for section, _ in sections)
        self.gates = nn.ModuleList(Gate(width) for _, width in sections) if gates else None
        self._open: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to logits (N, classes).

        Args:
            x: Normalised images and their mask, 0 or 1, as the last channel: (N, C + 1, H, W). Of
                (N, C, H, W) nothing is masked.
        """
        images = x[:, : self.channels]
        mask = x[:, self.channels :] if x.shape[1] > self.channels else torch.ones_like(x[:, :1])
        features = self.first(images * mask) * renormalisation(mask)
        self._open = []
        for index, section in enumerate(self.sections):
            features = section(features)
            if self.gates is not None:
                small = functional.adaptive_avg_pool2d(mask, features.shape[2:])
                gate = self.gates[index](features, small)
                if self.training:
                    self._open.append(gate.float().mean())
                features = features * gate
        return self.head(torch.mean(self.last(features), dim=(2, 3)))  # type: ignore[no-any-return]

    def penalty(self) -> Tensor | float:
        """What training adds to the mean loss: 1e-4 of the mean gate in the last batch."""
        return _PRICE * torch.stack(self._open).mean() if self._open else 0.0


def renormalisation(mask: Tensor) -> Tensor:
    """By how much a 3x3 convolution of masked images is raised, so that masks do not dim it.

    Args:
        mask: 0 or 1, (N, 1, H, W).

    Returns:
        1 / max(share of the 3x3 window inside the image that is not masked, 0.1) where the pixel
        itself is not masked, else 1: (N, 1, H, W).

    Source: after Liu et al., Image Inpainting for Irregular Holes Using Partial Convolutions, ECCV
    2018, eq. 1; the bounds are ours.
    """
    share = functional.avg_pool2d(mask, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)
    return torch.where(mask > 0, 1 / share.clamp_min(_LEAST_SHARE), torch.ones_like(mask))


def _resnet20(shape: Shape, classes: int, params: MaskedResNet20Params) -> nn.Module:
    widths = [params.width * times for times in (1, 2, 4)]
    body = ResNet(shape[2], tuple(widths), 3, classes, params.shortcut)
    stem = nn.Sequential(body.norm, nn.ReLU())
    parts = [stem, body.blocks[:3], body.blocks[3:6], body.blocks[6:]]
    sections = list(zip(parts, widths[:1] + widths, strict=True))
    return MaskNet(body.stem, sections, nn.Identity(), body.head, gates=params.gates)


def _resnet18(shape: Shape, classes: int, params: MaskedResNet18Params) -> nn.Module:
    plain = ResNetParams(width=params.width, stem="small")
    body: Any = TORCHVISION["resnet18"].build(shape, classes, plain)
    widths = [params.width * times for times in (1, 1, 2, 4, 8)]
    stem = nn.Sequential(body.bn1, nn.ReLU())
    parts = [stem, body.layer1, body.layer2, body.layer3, body.layer4]
    sections = list(zip(parts, widths, strict=True))
    return MaskNet(body.conv1, sections, nn.Identity(), body.fc, gates=params.gates)


def _vgg16(shape: Shape, classes: int, params: MaskedVgg16Params) -> nn.Module:
    body = Vgg16(shape[2], params.width, classes, params.dropout)
    stages: list[list[nn.Module]] = [list(stage) for stage in body.stages]  # type: ignore[call-overload]
    first, *rest = stages[0]
    widths = [params.width * times for times in (1, 1, 2, 4, 8, 8)]
    parts = [nn.Sequential(*part) for part in (rest[:2], rest[2:], *stages[1:])]
    sections = list(zip(parts, widths, strict=True))
    return MaskNet(cast(nn.Conv2d, first), sections, body.pool, body.head, gates=params.gates)


ARCHITECTURES = {
    "masknet_resnet20": Architecture(
        "MaskNet on ResNet-20", _SOURCE, 8, MaskedResNet20Params, _resnet20, reads_mask=True
    ),
    "masknet_resnet18": Architecture(
        "MaskNet on ResNet-18 (small images)", _SOURCE, 8, MaskedResNet18Params, _resnet18,
        reads_mask=True,
    ),
    "masknet_vgg16": Architecture(
        "MaskNet on VGG-16 with batch normalisation (small images)", _SOURCE, 8, MaskedVgg16Params,
        _vgg16, reads_mask=True,
    ),
}  # fmt: skip
"""What this file adds to the registry."""
