"""Inversion: the CNN shows the classes it learnt, and no more of them than the protection left."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attack_cases import Noise, digit_case
from network_cases import Recipe, network_case

from veilset.attacks._network import answers
from veilset.attacks.base import NO_NETWORK, AttackResult, Diverged
from veilset.attacks.model_inversion import (
    ModelInversion,
    ModelInversionParams,
    apart,
    by_class,
    invert,
)
from veilset.attacks.registry import make_attack
from veilset.errors import SettingsError, TrainingError
from veilset.schemes.base import Scheme
from veilset.schemes.plain import Plain
from veilset.schemes.registry import make_scheme

SMALL: dict[str, Any] = {"steps": 100, "starts": 4}


def run(scheme: Scheme[Any], **values: Any) -> AttackResult:
    attack = ModelInversion(ModelInversionParams(**{**SMALL, **values}))
    return attack.run(network_case(scheme, Recipe(10, 8)))


@pytest.mark.parametrize("name", ["plain", "pixelate"])
def test_the_cnn_shows_its_classes(name: str) -> None:
    result = run(make_scheme(name, {}, "test"))
    assert result.status == "few_targets"
    assert (result.targets, result.gallery, result.chance) == (10, 10, 0.1)
    assert result.value >= 0.7
    assert result.control.value <= 0.3
    assert result.oracle.value >= 0.8
    assert result.details["ssim"] > result.details["control_ssim"] + 0.1
    assert "classes are recognised" in result.words
    assert result.examples is not None and result.examples.reconstruction.shape[1:] == (16, 16, 1)


def test_chance_where_it_was_trained_on_noise() -> None:
    results = [run(scheme) for scheme in (Noise(), make_scheme("visualmixer", {}, "test"))]
    # Of 20 classes at one in ten, more than 6 are guessed once in 400 times.
    assert sum(result.value * 10 for result in results) <= 6
    assert all(result.low <= 0.1 for result in results)
    assert all(result.oracle.value >= 0.8 for result in results)


def test_the_same_seed_gives_the_same_result() -> None:
    one, two = (run(Plain(), steps=20, starts=2).to_json() for _ in range(2))
    assert one | {"seconds": 0} == two | {"seconds": 0}


def test_an_inverted_image_is_taken_for_its_class_and_the_cnn_is_left_alone() -> None:
    case = network_case(Plain(), Recipe(10, 8))
    network = case.network
    assert network is not None
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    for parameter in network.module.parameters():
        parameter.grad = None
    labels = np.arange(10)
    params = ModelInversionParams(starts=1, smoothness=0.1, nearness=0.1)
    made = invert(network, labels, params, np.full((16, 16, 1), 0.4), "cpu", 0)
    assert made.shape == (10, 16, 16, 1) and made.dtype == np.uint8
    np.testing.assert_array_equal(answers(network, made, "cpu").argmax(axis=1), labels)
    for name, value in network.module.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in network.module.parameters())


def test_weights_hold_the_image_near_the_mean_and_smooth() -> None:
    network = network_case(Plain(), Recipe(5, 4)).network
    assert network is not None
    start = np.full((16, 16, 1), 0.4)

    def made(**values: float) -> Any:
        params = ModelInversionParams(**{**SMALL, "smoothness": 0, "nearness": 0, **values})
        return invert(network, np.arange(3), params, start, "cpu", 0) / 255.0

    free, near, smooth = made(), made(nearness=100), made(smoothness=20)
    assert np.abs(near - 0.4).mean() < 0.5 * np.abs(free - 0.4).mean()
    assert np.abs(np.diff(smooth, axis=1)).mean() < 0.5 * np.abs(np.diff(free, axis=1)).mean()


def test_a_cnn_that_answers_no_number_is_a_divergence() -> None:
    network = network_case(Plain(), Recipe(1, 4)).network
    assert network is not None
    with torch.no_grad():
        next(iter(network.module.parameters())).fill_(float("nan"))
    params = ModelInversionParams(steps=2, starts=1)
    with pytest.raises(Diverged):
        invert(network, np.arange(2), params, np.full((16, 16, 1), 0.5), "cpu", 0)


def test_rows_are_classes() -> None:
    case = network_case(Plain(), Recipe(1, 4))
    classes = by_class(case, 6, 40, np.random.default_rng(0))
    assert len(classes.trained_on[0]) == len(classes.trained_on[1]) == 40
    assert len(classes.release.labels) == len(set(classes.release.labels.tolist())) == 6
    value = int(classes.release.labels[2])
    wanted = case.truth.originals[case.release.labels == value].mean(axis=0)
    np.testing.assert_allclose(classes.truth.originals[2], wanted, atol=0.51)
    assert str(classes.truth.ids[2]) == f"class {value}"


def test_likeness_is_of_differences_from_what_is_usual() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 256, (5, 16, 16, 1)).astype(np.uint8)
    differences = (classes - classes.mean(axis=0)) / 255.0
    distances = apart(differences * 0.1, classes)
    np.testing.assert_allclose(np.diag(distances), 0, atol=1e-9)
    assert (distances.argmin(axis=1) == np.arange(5)).all()
    np.testing.assert_allclose(np.diag(apart(-differences, classes)), 2, atol=1e-9)


def test_it_says_what_is_missing() -> None:
    assert ModelInversion().applies(digit_case(Plain())) == NO_NETWORK
    case = network_case(Plain(), Recipe(1, 4))
    assert case.network is not None
    assert ModelInversion().applies(case) is None
    bare = replace(case, network=replace(case.network, retrain=None))
    assert "recipe" in str(ModelInversion().applies(bare))
    one = replace(case, release=replace(case.release, labels=case.release.labels % 2))
    assert "fewer than 3 classes" in str(ModelInversion().applies(one))


def test_an_oracle_that_cannot_be_trained_diverges() -> None:
    def refuse(*_: Any) -> Any:
        raise TrainingError("its loss became nan")

    case = network_case(Plain(), Recipe(1, 4))
    assert case.network is not None
    broken = replace(case, network=replace(case.network, retrain=refuse))
    result = ModelInversion(ModelInversionParams(steps=2, starts=1)).run(broken)
    assert result.status == "diverged"
    assert "its loss became nan" in str(result.words)


@pytest.mark.parametrize("values", [{"targets": 2}, {"starts": 0}, {"nearness": -1}])
def test_parameters_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        make_attack("model_inversion", values, "test")


def test_the_registry_finds_it() -> None:
    full = make_attack("model_inversion", {"starts": 2}, "test", "full").params
    assert (full.targets, full.steps, full.starts) == (1000, 1000, 2)
