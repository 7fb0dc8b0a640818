"""The unpaired GAN undoes what can be undone without pairs, and asks for no pair."""

# ruff: noqa: ARG002
from dataclasses import replace
from typing import Any, Never

import numpy as np
import pytest
import torch
from attack_cases import (
    Black,
    Noise,
    OtherPeople,
    Planted,
    digit_case,
    digit_images,
    pattern_case,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.attacks.base import AttackResult, Case, Diverged
from veilset.attacks.unpaired_gan import (
    FittedGan,
    Generator,
    Looks,
    Restorer,
    Start,
    UnpairedGan,
    UnpairedGanParams,
    match_values,
    train_gan,
    unlikeness,
)
from veilset.metrics.similarity import ssim
from veilset.metrics.statistics import wilson
from veilset.schemes.base import Pool, Protected
from veilset.schemes.plain import Plain
from veilset.schemes.randomness import Stream
from veilset.schemes.registry import make_scheme
from veilset.types import Ids, Images, Labels

SMALL = UnpairedGanParams(work_side=16, base=8, depth=1, width=8, steps=40, oracle_steps=10)
SHORT = SMALL.model_copy(update={"steps": 4, "checkpoints": 2, "oracle_steps": 2})


class Inverted(Planted):
    """The negative of every image."""

    name = "inverted"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        return Protected(255 - images)


class Dim(Planted):
    """Half as bright, on grey."""

    name = "dim"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        return Protected(images // 2 + np.uint8(60))


class FixedFlips(Planted):
    """Each place is negated or not, the same in all images: a cipher with one key."""

    name = "fixed_flips"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        flip = self.noise(images[:1], np.zeros((1, 16), np.uint8), stream) & 1
        return Protected(np.where(flip == 1, 255 - images, images).astype(np.uint8))


def restore(scheme: Any, params: UnpairedGanParams = SHORT, **sizes: int) -> AttackResult:
    return UnpairedGan(params).run(digit_case(scheme, **{"auxiliary": 400, **sizes}))


def relied_on(variant: str, attack: UnpairedGan, case: Case) -> float:
    """The rank-1 rate of one variant alone, as the oracle asks for it."""
    draws = (np.random.default_rng(seed) for seed in (1, 2))
    like = FittedGan(None, variant, {})
    fitted = attack._fit(case.release, case.attacker, next(draws), None, like)
    assert fitted.variant == variant
    return float(attack._measure(fitted, case, next(draws)).frame["success"].mean())


@pytest.mark.parametrize("scheme", [Plain, Inverted, Dim, FixedFlips])
def test_what_was_done_to_all_images_alike_is_undone_without_pairs(scheme: type[Planted]) -> None:
    result = restore(scheme())
    assert result.status == "ok"
    assert result.low > 0.9
    assert result.details["ssim"] > 0.8
    assert result.control.low <= result.chance <= result.control.high
    assert result.oracle.value >= 0.99


def test_the_flips_of_a_fixed_key_are_found_and_not_only_looked_through() -> None:
    case = digit_case(FixedFlips(), auxiliary=400)
    result = UnpairedGan(SHORT).run(case)
    assert result.variant == "matched"
    assert result.details["unattacked_ssim"] < 0.3
    assert result.details["likeness_matched"] > result.details["likeness_released"] + 0.3
    assert relied_on("released", UnpairedGan(SHORT), case) < 0.5
    assert relied_on("matched", UnpairedGan(SHORT), case) > 0.95


@pytest.mark.slow
def test_the_training_sharpens_what_is_blurred_without_any_pair() -> None:
    scheme = make_scheme("gaussian_blur", {"sigma_px": 1.5}, "test")
    case = digit_case(scheme, targets=150, auxiliary=300)
    blurred, plain = (
        images.astype(np.float64) for images in (case.release.images, case.attacker.images)
    )
    params = SMALL.model_copy(update={"base": 16, "depth": 2, "width": 16, "checkpoints": 2})
    *_, (end, net) = train_gan(blurred, plain, params, 120, "cpu", 0)
    assert end == 120
    made = Restorer(Start((16, 16)), net, "cpu")(case.release.images)
    before, after = (ssim(each, case.truth.originals).mean() for each in (blurred, made))
    assert after > before + 0.15
    # It shows without originals as well, which is how a checkpoint is chosen.
    assert unlikeness(made, plain) < unlikeness(blurred, plain) - 0.1


@pytest.mark.parametrize("scheme", [Noise, OtherPeople])
def test_chance_where_nothing_is_left(scheme: type[Planted]) -> None:
    result = restore(scheme(), targets=600)
    found = wilson(result.value * result.targets, result.targets, 0.999)
    assert found.low <= result.chance <= found.high
    assert result.value < 0.03


def test_black_images_are_at_chance() -> None:
    result = restore(Black(), targets=200)
    assert result.low <= result.chance <= result.high


class Blind(Planted):
    """A scheme that nobody but the owner can apply."""

    name = "blind"

    def protect(self, *_: Any, **__: Any) -> Never:
        raise AssertionError("the attacker protected an image")

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        raise NotImplementedError


def with_scheme(case: Case, scheme: Any) -> Case:
    return replace(case, release=replace(case.release, scheme=scheme))


def test_she_protects_nothing_and_does_not_know_the_scheme() -> None:
    case = digit_case(FixedFlips(), targets=60)
    known, unknown = (
        UnpairedGan(SHORT).run(with_scheme(case, scheme)) for scheme in (FixedFlips(), Blind())
    )
    assert known.to_json() | {"seconds": 0} == unknown.to_json() | {"seconds": 0}
    assert known.knowledge == "K0"
    assert "not the algorithm" in known.knowledge_words


def test_she_chooses_without_looking_at_originals() -> None:
    """Other originals change the scores, and nothing that was fitted."""
    case = digit_case(FixedFlips(), targets=60)
    rng = np.random.default_rng(5)
    others = rng.integers(0, 256, case.truth.originals.shape, dtype=np.uint8)
    lied = replace(case, truth=replace(case.truth, originals=others))
    one, two = (UnpairedGan(SHORT).run(each) for each in (case, lied))
    assert one.variant == two.variant
    kept = [name for name in one.details if name.startswith("likeness")]
    assert kept and all(one.details[name] == two.details[name] for name in kept)
    assert one.value > 0.9
    assert two.value < 0.2


def test_the_same_seed_repeats() -> None:
    scheme = make_scheme("gaussian_blur", {}, "test")
    one, two = (restore(scheme, targets=40).to_json() | {"seconds": 0} for _ in range(2))
    assert one == two
    assert one["status"] == "few_targets"


def test_divergence_is_no_privacy() -> None:
    wild = SHORT.model_copy(update={"learning_rate": 1e30})
    result = restore(Noise(), wild, targets=20)
    assert result.status == "diverged"
    assert result.value is None
    assert "nothing about privacy" in result.words


def test_a_generator_that_ruins_unprotected_images_is_a_weak_oracle() -> None:
    bare = digit_case(Noise(), targets=200).oracle()
    assert relied_on("gan from released", UnpairedGan(SMALL), bare) > 0.95
    wild = UnpairedGan(SMALL.model_copy(update={"learning_rate": 3.0}))
    assert relied_on("gan from released", wild, bare) < wild.oracle_floor


def test_a_weak_oracle_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def black(_: Start, images: Images) -> np.ndarray:
        return np.zeros((len(images), 16, 16, 1))

    monkeypatch.setattr(Start, "__call__", black)
    result = restore(Noise(), targets=200)
    assert result.status == "weak_oracle"


def test_colours_and_odd_sizes_pass() -> None:
    case = pattern_case(Inverted(), persons=8, photos=6)

    def tinted(images: Images) -> Images:
        return np.stack(
            [images[:, :15, :13, 0], images[:, 1:, :13, 0], 255 - images[:, :15, 3:, 0]], -1
        )

    coloured = replace(
        case, release=replace(case.release, images=tinted(case.release.images)),
        attacker=replace(case.attacker, images=tinted(case.attacker.images), gallery=None),
        truth=replace(case.truth, originals=tinted(case.truth.originals)),
    )  # fmt: skip
    result = UnpairedGan(SHORT.model_copy(update={"work_side": 8})).run(coloured)
    assert result.value > 10 * result.chance
    assert result.examples.reconstruction.shape[1:] == (15, 13, 3)


def test_training_repeats_and_leaves_torch_as_it_was() -> None:
    images = digit_images()[0][:60].astype(np.float64)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()

    def weights(seed: int) -> torch.Tensor:
        ((end, net),) = train_gan(
            images[:30], images[30:], SHORT.model_copy(update={"checkpoints": 1}), 3, "cpu", seed
        )
        assert end == 3
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    one, two, other = weights(7), weights(7), weights(8)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_generator_starts_as_the_identity() -> None:
    net = Generator((3, 9, 7), SMALL)
    images = torch.rand(2, 3, 9, 7)
    assert torch.equal(net(images), images)


def test_a_loss_that_is_not_a_number_ends_the_training() -> None:
    images = digit_images()[0][:40].astype(np.float64)
    wild = SHORT.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(Diverged, match="step"):
        list(train_gan(images, images, wild, 41, "cpu", 0))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3]))
def test_values_that_were_scaled_and_negated_are_matched(seed: int, channels: int) -> None:
    """By signs of any pattern, from images of two disjoint sets."""
    rng = np.random.default_rng(seed)
    images = rng.permutation(digit_images()[0])[:800]
    images = np.repeat(images, channels, axis=-1)
    shape = images.shape[1:]
    scale = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.0, shape)
    changed = np.rint((images[:400] - 127.5) * scale + 127.5).astype(np.uint8)
    made = Start(shape[:2], match_values(changed, images[400:]))(changed)
    assert ssim(made, images[:400]).mean() > 0.8
    assert ssim(changed, images[:400]).mean() < 0.5


def test_samples_of_one_kind_are_alike_and_those_of_two_kinds_are_not() -> None:
    images = np.random.default_rng(0).permutation(digit_images()[0]).astype(np.float64)
    assert abs(unlikeness(images[:300], images[300:600])) < 0.01
    assert unlikeness(images[:300], 255 - images[300:600]) > 0.2
    flat = np.zeros((5, 16, 16, 1))
    assert unlikeness(flat, flat) == 0.0
    assert 0.0 < unlikeness(images[:1], images[1:50]) < 1.0
    looks = Looks.of(images[:300].astype(np.uint8), images[300:600].astype(np.uint8), (16, 16))
    assert 0.0 <= looks.floor < 0.01
