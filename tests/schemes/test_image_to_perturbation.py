"""Image to perturbation: answers stay, features go, and nothing but the pixels counts."""

import io
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.errors import CorruptError, ProtectionError, SettingsError
from veilset.keys import Key
from veilset.metrics.similarity import ssim
from veilset.models.augment import Augmentation
from veilset.models.teacher import Recipe, pixels_of
from veilset.schemes import _perturbation
from veilset.schemes._perturbation import (
    Features,
    PaperUNet,
    Plan,
    imagenet_features,
    loss_of,
    make_transform,
    own_features,
    run,
    steps_in,
    transformed,
)
from veilset.schemes.fitted import Fitted, Lessons
from veilset.schemes.image_to_perturbation import ImageToPerturbation
from veilset.schemes.registry import make_scheme

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
TINY: dict[str, Any] = {
    "width": 8, "feature_width": 4, "base": 8, "depth": 2, "fold": 4, "crop": 0, "least_steps": 1,
    "classifier_epochs": 5, "feature_epochs": 2, "epochs": 20, "learning_rate": 0.01, "alpha": 5.0,
}  # fmt: skip
HASTY = TINY | {"classifier_epochs": 1, "feature_epochs": 1, "epochs": 1}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bars(count: int, seed: int, shape: tuple[int, int, int] = (16, 16, 1)) -> Any:
    """Noise with a bright bar: the class is its direction."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 100, (count, *shape), dtype=np.uint8)
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        start = rng.integers(2, min(shape[:2]) - 4)
        place = slice(start, start + 3)
        image[(place, slice(None)) if label else (slice(None), place)] += 150
    return images, labels.astype(np.int64)


def lessons_of(count: int, shape: tuple[int, int, int] = (16, 16, 1), seed: int = 0) -> Lessons:
    images, labels = bars(count, seed, shape)
    return Lessons(images, labels, *bars(max(4, count // 2), seed + 1, shape), 2)


def noise(count: int, shape: tuple[int, int, int] = (16, 16, 1), seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.zeros(count, np.int64), rng.integers(0, 256, (count, 16), dtype=np.uint8)


LESSONS = lessons_of(192)


@pytest.fixture(scope="module")
def scheme() -> ImageToPerturbation:
    plain = ImageToPerturbation(**TINY)
    return plain.with_fitted(plain.fit(LESSONS))


# ------------------------------------------------------------------------------ what it promises


def test_answers_stay_while_features_go(scheme: ImageToPerturbation) -> None:
    images, labels = LESSONS.validation_images, LESSONS.validation_labels
    _, _, ids = noise(len(images))
    made = scheme.protect(images, labels, ids, KEY).images
    assert (scheme.classify(images).argmax(axis=1) == labels).mean() > 0.95
    assert (scheme.classify(made).argmax(axis=1) == labels).mean() > 0.9
    assert np.abs(ssim(made, images)).mean() < 0.25

    values = {"width": 4, "dropout": 0.0}
    recipe = Recipe("vgg16_bn", values, 2, batch_size=32, lr=0.05, crop=0, seed=1)
    phi = own_features(LESSONS, recipe, "cpu", None)
    fresh = make_transform("small", 1, base=8, depth=2, fold=4, seed=0).eval()
    start = transformed(fresh, images, "cpu")
    with torch.no_grad():
        plain = pixels_of(images)
        before, after = (float(phi.distance(pixels_of(x), plain).mean()) for x in (start, made))
    assert after > before + 0.1
    assert after == pytest.approx(scheme.fitted.facts["feature_distance"], abs=0.01)


def test_facts_are_what_can_be_measured(scheme: ImageToPerturbation) -> None:
    facts = dict(scheme.fitted.facts)
    images, labels = LESSONS.validation_images, LESSONS.validation_labels
    for name, protected in (("plain", True), ("protected", False)):
        right = (scheme.classify(images, protected=protected).argmax(axis=1) == labels).mean()
        assert facts[f"classifier_accuracy_{name}"] == pytest.approx(right, abs=1e-4)
    assert "same plain images" in facts["features"]
    assert scheme.fitted.arrays["shape"].tolist() == [16, 16, 1, 2]
    kinds = {name.split("/")[0] for name in scheme.fitted.arrays}
    assert kinds == {"shape", "transform", "classifier"}


def test_classifying_protects_first_where_asked(scheme: ImageToPerturbation) -> None:
    images, labels, ids = noise(5)
    made = scheme.protect(images, labels, ids, KEY).images
    logits = scheme.classify(made)
    assert (scheme.classify(images, protected=False) == logits).all()
    assert logits.dtype == np.float32
    assert logits.shape == (5, 2)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 70), st.integers(0, 2**32), st.integers(1, 6))
def test_no_image_depends_on_its_batch(
    scheme: ImageToPerturbation, count: int, seed: int, parts: int
) -> None:
    images, labels, ids = noise(count, seed=seed)
    whole = scheme.protect(images, labels, ids, KEY).images
    logits = scheme.classify(whole)
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, min(parts, count)):
        got = scheme.protect(images[part], labels[part], ids[part], KEY).images
        assert (got == whole[part]).all()
        assert (scheme.classify(got) == logits[part]).all()


def test_threads_change_no_byte_and_stay_as_they_were(scheme: ImageToPerturbation) -> None:
    images, labels, ids = noise(40)
    one = scheme.protect(images, labels, ids, KEY).images
    torch.set_num_threads(2)
    try:
        two = scheme.with_fitted(scheme.fitted).protect(images, labels, ids, KEY).images
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert (one == two).all()


def test_neither_key_nor_label_nor_id_counts(scheme: ImageToPerturbation) -> None:
    images, labels, ids = noise(3)
    one = scheme.protect(images, labels, ids, KEY)
    two = scheme.protect(images, labels + 1, ids[::-1], OTHER)
    assert (one.images == two.images).all()
    assert not one.side
    assert not one.private
    assert (scheme.protect(images[:0], labels[:0], ids[:0], KEY).images == images[:0]).all()
    with pytest.raises(ProtectionError, match="cannot be undone"):
        scheme.recover(one.images, labels, ids, KEY)


@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 21, 1), (16, 20, 3)])
def test_any_size_is_learnt_and_protected(shape: tuple[int, int, int]) -> None:
    plain = ImageToPerturbation(**HASTY)
    images, labels = noise(12, shape)[0], np.arange(12) % 2
    done: list[tuple[int, int]] = []
    lessons = Lessons(images, labels, images[:3], labels[:3], 2)
    fitted = plain.fit(lessons, lambda *step: done.append(step))
    assert done == [(1, 3), (2, 3), (3, 3)]
    _, _, ids = noise(12)
    made = plain.with_fitted(fitted).protect(images, labels, ids, KEY).images
    assert made.shape == images.shape
    assert (made != images).any()


def test_large_images_go_in_small_batches() -> None:
    net = make_transform("small", 1, base=4, depth=2, fold=8, seed=0).eval()
    sizes: list[int] = []
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    images = noise(3, (512, 500, 1))[0]
    made = transformed(net, images, "cpu")
    assert made.shape == images.shape
    assert (transformed(net, images[2:], "cpu") == made[2:]).all()
    assert set(sizes) == {1}


def test_grey_levels_are_rounded_to_the_nearest() -> None:
    class Half(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return (pixels * 255 + 0.4).clamp(0, 255) / 255

    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert (transformed(Half(), images, "cpu") == images).all()


# ------------------------------------------------------------------------------ learning


def test_the_same_seed_learns_the_same_and_another_another() -> None:
    lessons = lessons_of(40)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = ImageToPerturbation(**HASTY).fit(lessons)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert ImageToPerturbation(**HASTY).fit(lessons).hash == one.hash
    other = ImageToPerturbation(**HASTY, seed=1).fit(lessons)
    assert other.hash != one.hash
    names = [name for name in one.arrays if name.endswith("weight")]
    assert all((one.arrays[n] != other.arrays[n]).any() for n in names if one.arrays[n].ndim > 1)


@pytest.mark.parametrize("classifier", ["resnet20", "vgg16_bn"])
def test_other_classifiers_are_learnt_and_answer(classifier: str) -> None:
    plain = ImageToPerturbation(**HASTY | {"width": 4}, classifier=classifier)
    fitted = plain.with_fitted(plain.fit(lessons_of(16)))
    assert fitted.classify(noise(3)[0]).shape == (3, 2)


def test_the_papers_network_has_its_size_and_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        net = PaperUNet(3)
    assert sum(p.numel() for p in net.parameters()) == 34_527_171
    monkeypatch.setattr(_perturbation, "_PAPER_WIDTH", 4)
    plain = ImageToPerturbation(**HASTY, network="paper")
    lessons = lessons_of(16, (18, 33, 3))
    fitted = plain.with_fitted(plain.fit(lessons))
    images, labels, ids = noise(3, (18, 33, 3))
    whole = fitted.protect(images, labels, ids, KEY).images
    assert (fitted.protect(images[1:2], labels[:1], ids[1:2], KEY).images == whole[1:2]).all()
    statistics = [v for n, v in fitted.fitted.arrays.items() if n.endswith("running_mean")]
    assert all(values.any() for values in statistics)


def test_small_sets_are_passed_over_more_often() -> None:
    scheme = ImageToPerturbation(least_steps=100, epochs=7, classifier_epochs=30, feature_epochs=1)
    assert scheme._epochs(160) == (5, 30, 20)
    assert scheme._epochs(32_000) == (1, 30, 7)
    assert steps_in(160, 32) == 5


@pytest.mark.parametrize(("clamp", "wanted"), [(None, -0.5 * 2.0), (2.5, 0.5 * 1.0)])
def test_the_loss_is_cross_entropy_and_the_distance(clamp: float | None, wanted: float) -> None:
    plan = Plan(1, 2, 0.1, 0.5, clamp, Augmentation(flip=False, crop=0), 0)
    # Distances 1 and 3: a mean of 2, or of 1.5 and 0 below the clamp of 2.5, times alpha 0.5.
    term = float(plan.term(torch.tensor([1.0, 3.0])))
    assert term == pytest.approx(wanted if clamp is None else 0.5 * (1.5 + 0) / 2)

    mean, std = torch.full((1, 1, 1), 0.25), torch.full((1, 1, 1), 0.5)
    phi = Features(torch.nn.Identity(), mean, std, unit=2.0)
    made, plain = torch.full((2, 1, 2, 2), 0.75), torch.zeros(2, 1, 2, 2)
    assert phi.distance(made, plain).tolist() == pytest.approx([0.75**2 / 0.25 / 2] * 2)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    loss = loss_of(lambda _: logits, phi, replace(plan, alpha=0.0))
    expected = (np.log(1 + np.exp(-2.0)) + np.log(1 + np.exp(1.0))) / 2
    assert float(loss(made, plain, torch.tensor([0, 0]))) == pytest.approx(expected)


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("term", ["clamped", "unbounded"])
def test_a_transform_that_lost_the_classes_is_refused(term: str) -> None:
    if term == "unbounded":
        values = TINY | {"feature_term": term, "alpha": 1000.0, "epochs": 4}
    else:
        values = TINY | {"clamp": 1e6, "alpha": 1000.0, "epochs": 4}
    with pytest.raises(ProtectionError, match=r"lost the classes.*alpha 1000\.0"):
        ImageToPerturbation(**values).fit(LESSONS)


def test_weights_that_are_no_numbers_are_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "term", lambda plan, distance: -plan.alpha * (distance * 1e38).mean())
    with pytest.raises(ProtectionError, match=r"diverged with alpha 7\.0.*feature_term: clamped"):
        ImageToPerturbation(**HASTY | {"alpha": 7.0, "feature_term": "unbounded"}).fit(
            lessons_of(16)
        )


def test_missing_imagenet_weights_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("VEILSET_VGG16_WEIGHTS", raising=False)
    scheme = ImageToPerturbation(**HASTY, features="imagenet")
    wanted = r"not at .*checkpoints/vgg16-397923af\.pth and nothing is ever downloaded.*own"
    with pytest.raises(ProtectionError, match=wanted) as caught:
        scheme.fit(lessons_of(8))
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("VEILSET_VGG16_WEIGHTS", str(tmp_path / "w.pth"))
    with pytest.raises(ProtectionError, match=r"not at .*/w\.pth"):
        scheme.fit(lessons_of(8))
    (tmp_path / "w.pth").write_bytes(b"nothing")
    with pytest.raises(ProtectionError, match=r"w\.pth does not hold the weights"):
        scheme.fit(lessons_of(8))


@pytest.mark.parametrize("channels", [1, 3])
def test_imagenet_weights_on_the_disk_are_used_as_they_are(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = torch.Generator().manual_seed(0)
    sizes = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128)}
    state = {}
    for place, (before, after) in sizes.items():
        state[f"features.{place}.weight"] = torch.randn(after, before, 3, 3, generator=draws) / 30
        state[f"features.{place}.bias"] = torch.randn(after, generator=draws) / 30
    state["classifier.6.bias"] = torch.zeros(1000)
    path = tmp_path / "vgg.pth"
    torch.save(state, path)
    monkeypatch.setenv("VEILSET_VGG16_WEIGHTS", str(path))
    phi = imagenet_features(channels, "cpu")
    images = noise(2, (8, 10, channels))[0]
    x = pixels_of(images)
    if channels == 3:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        x = (x - mean) / std
    else:
        x = ((x - sum(IMAGENET_MEAN) / 3) / (sum(IMAGENET_STD) / 3)).repeat(1, 3, 1, 1)
    for place in sizes:
        weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
        x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, padding=1))
        x = torch.nn.functional.max_pool2d(x, 2) if place == 2 else x
    assert x.shape == (2, 128, 4, 5)
    assert torch.allclose(torch.from_numpy(run(phi, images, "cpu")), x, atol=1e-5)
    scheme = ImageToPerturbation(**HASTY, features="imagenet")
    assert "ImageNet" in scheme.fit(lessons_of(8, (8, 10, channels))).facts["features"]


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 17, 1), (20, 16, 1)])
def test_images_of_another_shape_are_refused(
    scheme: ImageToPerturbation, shape: tuple[int, int, int]
) -> None:
    images, labels, ids = noise(2, shape)
    with pytest.raises(ProtectionError, match=r"fitted on images of \(16, 16, 1\), not of"):
        scheme.protect(images, labels, ids, KEY)
    with pytest.raises(ProtectionError, match=r"fitted on images of \(16, 16, 1\), not of"):
        scheme.classify(images)


def test_arrays_that_do_not_fit_are_refused(scheme: ImageToPerturbation) -> None:
    images, labels, ids = noise(1)
    arrays = dict(scheme.fitted.arrays)
    name = "transform/net.last.weight"
    faults = [
        {key: value for key, value in arrays.items() if key != "shape"},
        {key: value for key, value in arrays.items() if key != name},
        arrays | {name: arrays[name][:, :-1]},
    ]
    for fault in faults:
        broken = scheme.with_fitted(replace(scheme.fitted, arrays=fault))
        with pytest.raises(CorruptError, match="fit it again"):
            broken.protect(images, labels, ids, KEY)
    with pytest.raises(ProtectionError, match="fit it first"):
        ImageToPerturbation(**TINY).classify(images)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alpha": -1}, "alpha is -1"), ({"alpha": float("nan")}, "alpha is nan"),
        ({"base": 6}, "base is 6"), ({"fold": 0}, "fold is 0"), ({"clamp": 0}, "clamp is 0"),
        ({"mode": "train"}, "mode is 'train'"), ({"classifier": "vgg"}, "classifier is 'vgg'"),
        ({"features": "none"}, "features is 'none'"), ({"seed": -1}, "seed is -1"),
        ({"strength": 1}, "strength is unknown"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused_by_name(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=rf"here\.{words}"):
        make_scheme("image_to_perturbation", values, "here")


def test_one_image_is_not_enough_to_learn_from() -> None:
    images, labels = bars(1, 0)
    with pytest.raises(ProtectionError, match="at least 2 images"):
        ImageToPerturbation(**HASTY).fit(Lessons(images, labels, images, labels, 2))


# ------------------------------------------------------------------------------ being sent, said


def test_pickling_drops_the_networks_and_still_works(scheme: ImageToPerturbation) -> None:
    images, labels, ids = noise(3)
    wanted = scheme.protect(images, labels, ids, KEY).images
    assert scheme._networks
    cold = pickle.dumps(scheme.with_fitted(scheme.fitted))
    sent = pickle.dumps(scheme)
    assert len(sent) == len(cold)
    back = pickle.load(io.BytesIO(sent))  # noqa: S301
    assert "_networks" not in vars(back)
    assert (back.protect(images, labels, ids, KEY).images == wanted).all()
    network = scheme._network("transform")
    assert scheme._network("transform") is network


def test_the_two_modes_make_the_same_pixels_and_other_claims() -> None:
    lessons = lessons_of(16)
    query, dataset = (ImageToPerturbation(**HASTY, mode=mode) for mode in ("query", "dataset"))
    images, labels, ids = noise(2)
    made = [
        each.with_fitted(each.fit(lessons)).protect(images, labels, ids, KEY).images
        for each in (query, dataset)
    ]
    assert (made[0] == made[1]).all()
    assert (query.declares.provenance, dataset.declares.provenance) == ("reconstruction", "ours")
    assert set(query.declares.risk_notes) < set(dataset.declares.risk_notes)
    assert ImageToPerturbation.declares.provenance == "reconstruction"


def test_a_record_needs_no_network(scheme: ImageToPerturbation) -> None:
    fitted = Fitted(scheme.name, scheme.version, scheme.params.canonical(), {"weights": np.ones(3)})
    assert scheme.with_fitted(fitted).record()["fitted_hash"] == fitted.hash
