"""Feature maps: what the protection leaves is restored from them, what it takes away is not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attack_cases import Noise, OtherPeople, digit_case
from network_cases import Recipe, network_case

from veilset.attacks._network import in_her_hands
from veilset.attacks.base import NO_NETWORK, AttackResult
from veilset.attacks.feature_reconstruction import (
    FeatureReconstruction,
    FeatureReconstructionParams,
    maps_of,
)
from veilset.attacks.features import Batch
from veilset.attacks.registry import make_attack
from veilset.errors import SettingsError
from veilset.schemes.base import Scheme
from veilset.schemes.plain import Plain
from veilset.schemes.registry import make_scheme

NET: dict[str, Any] = {
    "work_side": 16, "base": 8, "depth": 1, "steps": 60, "oracle_steps": 20, "batch": 16,
}  # fmt: skip


def run(scheme: Scheme[Any], **values: Any) -> AttackResult:
    attack = FeatureReconstruction(FeatureReconstructionParams(**values))
    return attack.run(network_case(scheme, Recipe(10, 8)))


@pytest.mark.parametrize("name, least", [("plain", 0.97), ("pixelate", 0.9)])
def test_what_the_protection_leaves_is_restored(name: str, least: float) -> None:
    result = run(make_scheme(name, {}, "test"))
    assert result.status == "ok"
    assert result.value > least
    assert result.control.value < 0.05
    assert result.oracle.value > 0.95
    assert set(result.variants) == {"linear", "kernel"}
    assert result.details["ssim"] > 0.7
    assert result.details["ssim"] > result.details["control_ssim"] + 0.2
    assert result.details["protected_rank1"] > 0.9
    assert "control_protected_rank1" not in result.details


def test_a_u_net_corrects_the_linear_map() -> None:
    result = run(make_scheme("pixelate", {}, "test"), **NET)
    assert set(result.variants) == {"linear", "kernel", "unet"}
    assert result.variants["unet"] >= result.variants["linear"] - 0.05
    assert result.oracle.value > 0.95


@pytest.mark.parametrize("scheme", [Noise, OtherPeople])
def test_chance_where_nothing_is_left_but_the_protected_image_shows(scheme: type) -> None:
    result = run(scheme())
    assert result.status == "ok"
    assert result.low <= result.chance + 0.01
    assert result.value < 0.045
    assert result.details["protected_rank1"] > 0.8


def test_the_same_seed_gives_the_same_result() -> None:
    one, two = (run(make_scheme("pixelate", {}, "test"), **NET).to_json() for _ in range(2))
    assert one | {"seconds": 0} == two | {"seconds": 0}


def test_only_maps_are_read() -> None:
    case = network_case(Plain(), Recipe(1, 4))
    assert case.network is not None
    images = case.release.images[:5]
    seen = maps_of(case.network, "stages.0", Batch(images, {"told": np.ones(5)}), "cpu")
    assert not seen.images.any()
    assert set(seen.side) == {"maps"}
    assert seen.side["maps"].shape == (5, 8, 8, 4)


def test_a_deeper_layer_tells_less() -> None:
    scheme = make_scheme("pixelate", {"block_px": 2}, "test")
    first, last = (run(scheme, layer=f"stages.{number}").details["ssim"] for number in (0, 2))
    assert first > last + 0.05


def test_it_says_what_is_missing() -> None:
    assert FeatureReconstruction().applies(digit_case(Plain())) == NO_NETWORK
    case = network_case(Plain(), Recipe(1, 4))
    attack = FeatureReconstruction(FeatureReconstructionParams(layer="stages.9"))
    assert attack.applies(case) == "the CNN has no layer stages.9"
    assert FeatureReconstruction().applies(case) is None
    few = replace(case.attacker, images=case.attacker.images[:3])
    assert FeatureReconstruction().applies(replace(case, attacker=few)) is not None
    with pytest.raises(ValueError, match="needs a CNN"):
        in_her_hands(digit_case(Plain()))


@pytest.mark.parametrize("values", [{"steps": -1}, {"auxiliary": 3}, {"depths": 2}])
def test_parameters_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        make_attack("feature_reconstruction", values, "test")


def test_the_registry_finds_it() -> None:
    full = make_attack("feature_reconstruction", {"base": 64}, "test", "full").params
    assert (full.base, full.steps, full.versions) == (64, 6000, 8)
