"""Gradients: images are restored from them, and what the protection took away is not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attack_cases import Noise, digit_case
from network_cases import Recipe, network_case
from torch.nn import functional

from veilset.attacks._network import normalised, pixels_of
from veilset.attacks.base import NO_NETWORK, AttackResult, Diverged, Network
from veilset.attacks.gradient_reconstruction import (
    GradientReconstruction,
    GradientReconstructionParams,
    gradients_of,
    reconstruct,
    roughness,
)
from veilset.attacks.registry import make_attack
from veilset.errors import SettingsError
from veilset.metrics.similarity import psnr
from veilset.schemes.base import Scheme
from veilset.schemes.plain import Plain
from veilset.schemes.registry import make_scheme


def run(scheme: Scheme[Any], **values: Any) -> AttackResult:
    attack = GradientReconstruction(GradientReconstructionParams(**values))
    return attack.run(network_case(scheme, Recipe(10, 8), hers=450))


@pytest.mark.parametrize("name", ["plain", "pixelate"])
def test_a_gradient_betrays_its_image(name: str) -> None:
    result = run(make_scheme(name, {}, "test"))
    assert result.status == "ok"
    assert (result.targets, result.gallery) == (250, 100)
    assert result.value > 0.5
    assert result.control.value < 0.05
    assert set(result.variants) == {"decoded"}
    assert result.details["ssim"] > result.details["control_ssim"] + 0.3


def test_the_label_alone_is_left_where_the_protected_image_is_noise() -> None:
    result = run(Noise())
    assert result.status == "ok"
    # Ten classes among a hundred candidates.
    assert result.details["label_rank1"] == pytest.approx(0.1, abs=0.02)
    assert result.low <= result.details["label_rank1"]
    assert "control_label_rank1" not in result.details


def test_the_same_seed_gives_the_same_result() -> None:
    one, two = (run(Plain(), targets=40, auxiliary=60).to_json() for _ in range(2))
    assert one | {"seconds": 0} == two | {"seconds": 0}


def test_directions_are_those_of_the_gradients() -> None:
    case = network_case(Plain(), Recipe(1, 4))
    network = case.network
    assert network is not None
    images, labels = case.release.images[:40], case.release.labels[:40]
    found = gradients_of(network, images, labels, "cpu")
    weights = dict(network.module.named_parameters())
    for row in (0, 39):
        pixels = pixels_of(images[row : row + 1], torch.device("cpu"))
        logits = network.module(normalised(network, pixels))
        loss = functional.cross_entropy(logits, torch.from_numpy(labels[row : row + 1]))
        last = torch.autograd.grad(loss, [weights["head.weight"]])[0].flatten()
        wanted = (last / last.norm()).numpy()
        starts = [at for at in range(found.shape[1] - len(wanted) + 1)
                  if np.allclose(found[row, at : at + len(wanted)], wanted, atol=1e-4)]  # fmt: skip
        assert len(starts) == 1


# --- The search -------------------------------------------------------------------------------


def test_the_search_finds_images_by_their_gradients() -> None:
    attack = GradientReconstruction(GradientReconstructionParams(targets=8, steps=60, starts=2))
    result = attack.run(network_case(Plain(), Recipe(3, 8)))
    assert set(result.variants) == {"decoded", "sought", "sought, linear"}
    assert result.variant.startswith("sought")
    assert (result.status, result.gallery) == ("few_targets", 8)
    # Five of eight by chance, at one in eight each, come once in a thousand times.
    assert result.value >= 5 / 8
    assert result.oracle.value >= 5 / 8
    assert result.details["protected_ssim"] > 0.4


def reconstructed(network: Network, seed: int, steps: int = 20, count: int = 3) -> Any:
    case = network_case(Plain(), Recipe(2, 4))
    params = GradientReconstructionParams(steps=steps, starts=2)
    return reconstruct(
        network, case.release.images[:count], case.release.labels[:count], params,
        torch.full((16, 16, 1), 0.5), "cpu", seed,
    )  # fmt: skip


def test_the_same_seed_gives_the_same_images_and_more_steps_better_ones() -> None:
    case = network_case(Plain(), Recipe(2, 4))
    assert case.network is not None
    one, two, other = (reconstructed(case.network, seed) for seed in (0, 0, 1))
    assert one.shape == (3, 16, 16, 1) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    wanted = case.release.images[:3]
    longer = reconstructed(case.network, 0, steps=80)
    assert psnr(longer, wanted).mean() > psnr(one, wanted).mean() + 1


def test_the_cnn_is_left_as_it_was() -> None:
    network = network_case(Plain(), Recipe(1, 4)).network
    assert network is not None
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    reconstructed(network, 0, steps=2)
    for name, value in network.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_gradient_that_is_no_number_is_a_divergence() -> None:
    network = network_case(Plain(), Recipe(1, 4)).network
    assert network is not None
    with torch.no_grad():
        next(iter(network.module.parameters())).fill_(float("nan"))
    with pytest.raises(Diverged, match="gradient"):
        reconstructed(network, 0, steps=2)


def test_roughness_is_the_mean_step() -> None:
    flat = torch.zeros(1, 1, 4, 4)
    stairs = torch.arange(4.0).repeat(1, 1, 4, 1)
    np.testing.assert_allclose(roughness(torch.cat([flat, stairs])).numpy(), [0.0, 1.0])


def test_it_says_what_is_missing() -> None:
    assert GradientReconstruction().applies(digit_case(Plain())) == NO_NETWORK
    case = network_case(Plain(), Recipe(1, 4))
    assert GradientReconstruction().applies(case) is None
    few = replace(case.attacker, images=case.attacker.images[:3])
    assert GradientReconstruction().applies(replace(case, attacker=few)) is not None


@pytest.mark.parametrize("values", [{"targets": 1}, {"starts": 0}, {"smoothness": -1}])
def test_parameters_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        make_attack("gradient_reconstruction", values, "test")


def test_the_registry_finds_it() -> None:
    full = make_attack("gradient_reconstruction", {"starts": 2}, "test", "full").params
    assert (full.targets, full.steps, full.starts) == (250, 2000, 2)
