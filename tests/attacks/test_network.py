"""A saved CNN in an attacker's hands: it answers as it was saved, and is trained anew alike."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_cases import digit_case, digit_images
from network_cases import Recipe, network_case

from veilset.attacks._network import (
    READS_MASKS,
    answers,
    first_half_map,
    layer_output,
    network_of,
    normalised,
    on_device,
    pixels_of,
)
from veilset.attacks.base import Diverged, Network
from veilset.attacks.feature_reconstruction import FeatureReconstruction
from veilset.attacks.registry import make_attack
from veilset.errors import CorruptError, TrainingError
from veilset.schemes.base import Declaration
from veilset.schemes.plain import Plain
from veilset.training.evaluation import predict
from veilset.training.loader import Samples
from veilset.training.loop import Subject, train
from veilset.training.params import TrainingParams
from veilset.training.saved import load_model

PARAMS = TrainingParams(epochs=3, batch_size=32, lr=0.05, device="cpu", flip=True, crop=2, seed=4)
LOCAL = Declaration(
    keyed=True, reversible=False, guarantee=None, protects_queries=True, uses_labels=False,
    provenance="ours", source="test",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = digit_images()
    path: Path = tmp_path_factory.mktemp("network") / "model"
    names = [str(value) for value in range(10)]
    subject = Subject("small_cnn", names, "test", LOCAL, {"width": 4})
    seen = Samples(images[:8], labels[:8])
    train(Samples(images[:200], labels[:200]), seen, PARAMS, subject, path)
    return path


@pytest.fixture(scope="module")
def network(folder: Path) -> Network:
    return network_of(folder, device="cpu")


def test_it_answers_as_the_saved_cnn(folder: Path, network: Network) -> None:
    images = digit_images()[0][:600]
    said = answers(network, images, "cpu")
    assert said.shape == (600, 10) and said.dtype == np.float32
    np.testing.assert_allclose(said, predict(*load_model(folder), images, device="cpu"), atol=1e-4)
    assert not network.module.training
    assert (network.architecture, network.parameters) == ("small_cnn", {"width": 4})


def test_the_same_images_and_seed_give_the_same_cnn(folder: Path, network: Network) -> None:
    images, labels = digit_images()
    assert network.retrain is not None
    again = network.retrain(images[:200], labels[:200], PARAMS.seed)
    said = answers(network, images[:50], "cpu")
    np.testing.assert_array_equal(answers(again, images[:50], "cpu"), said)
    other = network.retrain(images[:200], labels[:200], 2**33 + 1)
    assert np.abs(answers(other, images[:50], "cpu") - said).max() > 0.1
    assert (again.mean, again.std) == (network.mean, network.std)
    assert other.retrain is not None and other.outsiders is None


def test_training_anew_leaves_no_files(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    images, labels = digit_images()
    assert network.retrain is not None
    network.retrain(images[:60], labels[:60], 0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrainingError, match="one class"):
        network.retrain(images[:60], np.zeros(60, dtype=np.int64), 0)
    assert list(tmp_path.iterdir()) == []


def test_outsiders_are_carried(folder: Path) -> None:
    case = digit_case(Plain(), targets=5)
    given = network_of(folder, (case.release, case.truth)).outsiders
    assert given is not None
    assert given[0] is case.release and given[1] is case.truth


def test_a_missing_cnn_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"model\.json"):
        network_of(tmp_path)


def test_gradients_reach_the_pixels(network: Network) -> None:
    images = digit_images()[0][:3]
    with on_device(network, "cpu") as place:
        pixels = pixels_of(images, place).requires_grad_()
        network.module(normalised(network, pixels)).sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    shown = pixels.detach().numpy().transpose(0, 2, 3, 1)
    assert shown.min() >= 0 and shown.max() <= 1
    np.testing.assert_array_equal(np.rint(shown * 255), images)


def test_an_answer_that_is_no_number_is_a_divergence(network: Network) -> None:
    broken = Network(
        module=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 2)),
        mean=network.mean, std=network.std, architecture="broken",
    )  # fmt: skip
    torch.nn.init.constant_(broken.module[1].weight, float("inf"))  # type: ignore[index]
    with pytest.raises(Diverged, match="none"):
        answers(broken, digit_images()[0][:3], "cpu")


def test_a_layer_is_read_by_name(network: Network) -> None:
    images = digit_images()[0][:300]
    layer = first_half_map(network, images[:1], "cpu")
    assert layer == "stages.0.3"
    maps = layer_output(network, layer, images, "cpu")
    assert maps.shape == (300, 8, 8, 4) and maps.dtype == np.float32
    stages = network.module.stages
    with torch.no_grad():
        wanted = stages[0](normalised(network, pixels_of(images, torch.device("cpu"))))
    np.testing.assert_allclose(maps, wanted.permute(0, 2, 3, 1).numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="no layer"):
        layer_output(network, "nothing", images, "cpu")


def test_what_comes_after_the_wanted_layer_is_not_computed(network: Network) -> None:
    reached: list[str] = []
    hook = network.module.head.register_forward_hook(lambda *_: reached.append("head"))
    try:
        layer_output(network, "stages.0", digit_images()[0][:5], "cpu")
        assert not reached
        answers(network, digit_images()[0][:5], "cpu")
    finally:
        hook.remove()
    assert reached


def test_a_layer_that_passes_on_no_number_is_a_divergence(network: Network) -> None:
    layer = torch.nn.Conv2d(1, 2, 3, stride=2)
    torch.nn.init.constant_(layer.weight, float("inf"))
    broken = Network(
        module=torch.nn.Sequential(layer), mean=network.mean, std=network.std, architecture="b"
    )
    with pytest.raises(Diverged, match="none"):
        layer_output(broken, "0", digit_images()[0][:3], "cpu")


@pytest.mark.parametrize("name, values", [
    ("feature_reconstruction", {"base": 4, "depth": 1, "oracle_steps": 2, "versions": 1}),
    ("gradient_reconstruction", {"starts": 1, "versions": 1}),
    ("model_inversion", {"starts": 1, "oracle_images": 60}),
])  # fmt: skip
def test_the_full_size_runs_over_two_seeds_on_a_short_search(
    name: str, values: dict[str, int]
) -> None:
    short = {"targets": 20, "steps": 2, "repeats": 2, **values}
    attack = make_attack(name, short, "test", "full")
    result = attack.run(network_case(Plain(), Recipe(1, 4), members=60, others=10))
    assert result.applicable and result.value is not None
    assert result.low <= result.value <= result.high
    assert result.details["repeats"] == 2


def test_a_cnn_that_reads_masks_is_left_alone(network: Network) -> None:
    case = digit_case(Plain(), targets=30)
    masked = replace(case.release, side={"mask": np.ones((30, 16, 16), np.uint8)})
    for name, reason in (("small_cnn", None), ("masknet_resnet20", READS_MASKS)):
        held = replace(network, architecture=name)
        given = replace(case, release=masked, network=held)
        assert FeatureReconstruction().applies(given) == reason
        assert FeatureReconstruction().applies(replace(case, network=held)) is None
