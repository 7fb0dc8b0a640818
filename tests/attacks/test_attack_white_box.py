"""Inversion through a transform: finds what the network keeps, and nothing if it keeps nothing."""

# ruff: noqa: ARG002
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from attack_cases import Noise, Planted, digit_case
from torch import Tensor, nn

from veilset.attacks.base import OTHER_KIND, AttackResult
from veilset.attacks.features import Batch
from veilset.attacks.white_box import Refined, WhiteBox, WhiteBoxParams
from veilset.errors import SettingsError
from veilset.schemes.base import Pool, Protected
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, Labels


class Mixing(nn.Module):
    """Random convolutions and a sigmoid: nothing to see, and little is lost."""

    def __init__(self, kept: float) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.first = nn.Conv2d(1, 16, 5, padding=2, padding_mode="circular")
            self.last = nn.Conv2d(16, 1, 5, padding=2, padding_mode="circular")
        self.kept = kept

    def forward(self, pixels: Tensor) -> Tensor:
        mixed = self.last(torch.tanh(4 * self.first(pixels)))
        return torch.sigmoid(3 * self.kept * mixed)


class Network(Planted):
    """Protects by a network that its receivers hold."""

    name = "network"
    kept = 1.0

    @cached_property
    def net(self) -> Mixing:
        return Mixing(self.kept).eval()

    def transform_network(self) -> nn.Module:
        return self.net

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        with torch.no_grad():
            made = self.net(torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255)))
        levels = np.rint(made.numpy().transpose(0, 2, 3, 1) * 255)
        return Protected(levels.astype(np.uint8))


class Blind(Network):
    """Its network answers grey to everything."""

    name = "blind"
    kept = 0.0


def attack(scheme: Planted, targets: int = 120, **values: Any) -> AttackResult:
    asked = {"versions": 1, "descents": 40, **values}
    return WhiteBox(WhiteBoxParams(**asked)).run(digit_case(scheme, targets, 120))


def test_the_transform_is_undone_by_whoever_holds_it() -> None:
    result = attack(Network())
    assert result.value > 0.95
    assert result.details["ssim"] > result.details["unattacked_ssim"] + 0.5
    assert result.control.low <= result.chance <= result.control.high
    assert result.oracle.value > 0.95
    assert result.knowledge == "K5"


def test_descent_finds_an_image_with_the_released_transform() -> None:
    case = digit_case(Network(), 30, 30)
    batch = Batch(case.release.images, {})

    def grey(seen: Batch) -> np.ndarray:
        return np.full(seen.images.shape, 127.5)

    def error(descents: int) -> tuple[float, float]:
        net = case.release.scheme.transform_network()
        made = Refined(grey, net, descents, 0.1, 0.0, "cpu")(batch)
        with torch.no_grad():
            again = net(torch.from_numpy(made.transpose(0, 3, 1, 2).astype(np.float32) / 255))
        missed = again.numpy().transpose(0, 2, 3, 1) * 255 - case.release.images
        return float((missed**2).mean()), float(np.abs(made - case.truth.originals).mean())

    (far, blank), (near, restored) = error(1), error(300)
    assert near < far / 30
    assert restored < blank / 2


def test_a_network_that_keeps_nothing_gives_nothing_away() -> None:
    result = attack(Blind())
    assert result.value == pytest.approx(result.chance, abs=0.03)


def test_it_is_for_networks_only_and_refuses_what_is_out_of_range() -> None:
    result = attack(Noise())
    assert not result.applicable
    assert result.reason.startswith(OTHER_KIND)
    with pytest.raises(SettingsError, match="descents"):
        WhiteBoxParams.for_effort("quick", {"descents": 0}, "attack.white_box")


def test_the_same_seed_repeats_and_a_trained_start_may_be_asked_for() -> None:
    one, two = (attack(Network(), 40, steps=20, oracle_steps=5) for _ in range(2))
    assert one.to_json() | {"seconds": 0} == two.to_json() | {"seconds": 0}
    assert "unet" in one.variants
