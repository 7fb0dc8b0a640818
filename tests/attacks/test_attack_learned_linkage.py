"""Learned linkage finds planted leaks, nothing where nothing is left, and admits dead networks."""

# ruff: noqa: ARG002
from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from attack_cases import (
    Black,
    Corner,
    LowestBits,
    Negative,
    Noise,
    OtherPeople,
    Planted,
    Shuffled,
    digit_case,
    digit_images,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.attacks.base import AttackResult, Diverged
from veilset.attacks.features import Batch
from veilset.attacks.learned_linkage import (
    Cosine,
    FreshPairs,
    Front,
    LearnedLinkage,
    LearnedLinkageParams,
    Tower,
    Trainer,
    bit_planes,
    contrast,
    mixed_in_regions,
    spread_out,
)
from veilset.attacks.linkage import Linkage, LinkageParams
from veilset.keys import Key
from veilset.metrics.statistics import wilson
from veilset.schemes.base import Pool, Protected
from veilset.schemes.plain import Plain
from veilset.schemes.randomness import Stream
from veilset.schemes.registry import make_scheme
from veilset.types import Ids, Images, Labels

SMALL = LearnedLinkageParams(
    rounds=2, trials=2, comparisons=2, width=16, dimensions=32, steps=80, oracle_steps=20
)
SHORT = SMALL.model_copy(update={"width": 8, "steps": 10, "oracle_steps": 10, "keys": 4})


def link(scheme: Any, params: LearnedLinkageParams = SMALL, **sizes: int) -> AttackResult:
    return LearnedLinkage(params).run(digit_case(scheme, **sizes))


@pytest.mark.parametrize("scheme", [Corner, Shuffled])
def test_a_planted_leak_is_caught(scheme: type[Planted]) -> None:
    result = link(scheme())
    assert result.status == "ok"
    assert result.low > 0.9
    assert result.control.low <= result.chance <= result.control.high
    assert result.oracle.value >= 0.99
    assert result.details["chosen_round"] > 0
    assert result.details["loss_of_guessing"] < 0.7
    assert result.details["versions_rank1"] > 0.9
    assert result.details["tar_at_far_0.001"] > 0.5
    assert result.details["impostor_pairs"] == 240 * 239
    assert result.details["control_impostor_pairs"] == 240 * 238
    assert result.details["control_tar_at_far_0.001"] < 0.05


def test_a_leak_in_the_lowest_bits_is_beyond_what_linkage_without_training_finds() -> None:
    case = digit_case(LowestBits())
    trained, untrained = LearnedLinkage(SMALL).run(case), Linkage(LinkageParams()).run(case)
    assert trained.status == untrained.status == "ok"
    assert trained.low > untrained.high


class FixedFlips(Planted):
    """Blocks of 4 x 4 pixels are negated or not, the same ones in all images of a key."""

    name = "fixed_flips"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        bits = self.noise(images[:1, ::4, ::4], np.zeros((1, 16), np.uint8), stream) & 1
        flip = bits.repeat(4, axis=1).repeat(4, axis=2)
        return Protected(np.where(flip == 1, 255 - images, images).astype(np.uint8))


def test_a_key_that_all_images_share_is_no_accident_of_luck() -> None:
    """Trained under few keys, it found all images of some keys and none of others."""
    case = digit_case(FixedFlips())
    attack = LearnedLinkage(SMALL)
    fitted = attack._fit(case.release, case.attacker, np.random.default_rng(0), None, None)
    rng = np.random.default_rng(1)
    for number in range(6):
        made = FixedFlips().protect(
            case.truth.originals, case.release.labels,
            rng.integers(0, 256, (240, 16), dtype=np.uint8), Key(bytes([number]) * 32),
        )  # fmt: skip
        release = replace(case.release, images=made.images)
        scores = attack._measure(fitted, replace(case, release=release), rng)
        assert scores.frame["success"].mean() > 0.9, number


@pytest.mark.parametrize("scheme", [Noise, OtherPeople])
def test_chance_where_nothing_is_left(scheme: type[Planted]) -> None:
    result = link(scheme(), SHORT, targets=600)
    found = wilson(result.value * result.targets, result.targets, 0.999)
    assert found.low <= result.chance <= found.high
    assert result.value < 0.03
    assert result.details["loss_of_guessing"] > 0.9
    assert result.oracle.value > 0.95


def test_black_images_are_at_chance() -> None:
    result = link(Black(), SHORT, targets=200)
    assert result.low <= result.chance <= result.high


def test_an_untrained_embedding_is_said_to_be_one() -> None:
    result = link(Plain(), SHORT.model_copy(update={"steps": 1, "rounds": 1}), targets=40)
    assert result.details["chosen_round"] == 0.0
    assert "untrained" in result.variant
    assert result.value > 0.95


def test_a_dead_embedding_is_a_weak_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = Tower.forward

    def dead(tower: Tower, images: torch.Tensor) -> torch.Tensor:
        return alive(tower, images) * 0 + 0.5

    monkeypatch.setattr(Tower, "forward", dead)
    result = link(Plain(), SHORT, targets=200)
    assert result.status == "weak_oracle"
    assert result.value == pytest.approx(result.chance)
    assert result.oracle.value == pytest.approx(result.chance)
    assert result.details["loss_of_guessing"] == pytest.approx(1.0)


def test_a_training_on_wrong_pairs_is_a_weak_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FreshPairs.draw

    def wrong(fresh: FreshPairs, *how: Any) -> tuple[Images, Batch, Batch]:
        plain, one, two = right(fresh, *how)
        return np.roll(plain, 1, axis=0), one, two

    monkeypatch.setattr(FreshPairs, "draw", wrong)
    params = SHORT.model_copy(update={"oracle_steps": 40, "learning_rate": 5e-3})
    assert link(Noise(), params, targets=200).status == "weak_oracle"


def test_divergence_is_no_privacy() -> None:
    wild = SHORT.model_copy(update={"learning_rate": 1e30})
    result = link(Corner(), wild, targets=20)
    assert result.status == "diverged"
    assert result.value is None
    assert "nothing about privacy" in result.words


def test_the_same_seed_repeats_and_few_pairs_state_no_rate_of_acceptance() -> None:
    one, two = link(Negative(), SHORT, targets=25), link(Negative(), SHORT, targets=25)
    assert one.to_json() | {"seconds": 0} == two.to_json() | {"seconds": 0}
    assert one.status == "few_targets"
    assert one.details["impostor_pairs"] == 25 * 24
    assert not [name for name in one.details if "tar_at_far" in name]


def test_too_few_images_are_not_applicable() -> None:
    result = link(Plain(), SHORT, auxiliary=10)
    assert not result.applicable
    assert "auxiliary" in result.reason


def test_candidates_that_cannot_be_protected_are_compared_as_they_are() -> None:
    """A single candidate of a class has no donors; the release, which was larger, had some."""
    mixing = make_scheme("pixel_block_mixing", {"block_height": 8, "block_width": 4}, "test")
    case = digit_case(mixing, targets=60)
    first = np.unique(case.release.labels, return_index=True)[1].astype(np.int64)
    assert mixing.refuse(case.release.labels[first])
    result = LearnedLinkage(SHORT).run(case.take(first))
    assert result.applicable, result.reason
    assert "versions_rank1" not in result.details
    assert result.details["original_rank1"] >= 0.0


class Masked(Planted):
    """The upper half is black, and the mask is published, in one channel."""

    name = "masked"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        made = images.copy()
        made[:, :8] = 0
        mask = np.ones(images.shape[:3], dtype=np.uint8)
        mask[:, :8] = 0
        return Protected(made, side={"mask": mask})


def test_colours_with_a_mask_beside_them_are_read() -> None:
    case = digit_case(Masked(), targets=60)

    def coloured(images: Images) -> Images:
        return np.concatenate([images, images // 2, 255 - images], axis=-1)

    case = replace(
        case, release=replace(case.release, images=coloured(case.release.images)),
        attacker=replace(case.attacker, images=coloured(case.attacker.images)),
        truth=replace(case.truth, originals=coloured(case.truth.originals)),
    )  # fmt: skip
    result = LearnedLinkage(SHORT).run(case)
    assert result.value > 0.5
    assert result.oracle.value > 0.9


# --- Parts ------------------------------------------------------------------------------------


def fresh_pairs(scheme: Planted | Plain, count: int = 30) -> FreshPairs:
    attacker = digit_case(scheme, targets=3, auxiliary=count).attacker
    return FreshPairs.of(scheme, attacker, np.ones(count, dtype=bool), np.random.default_rng(0))


def test_each_batch_has_keys_of_its_own_and_each_version_has_others() -> None:
    fresh, rng = fresh_pairs(FixedFlips()), np.random.default_rng(1)
    plain, one, two = fresh.draw(16, 4, rng)
    flips = [(batch.images != plain).reshape(16, -1) for batch in (one, two)]
    kept = plain.reshape(16, -1)
    for flipped in flips:
        # Four parts of one key each: a value is flipped in all images of a part or in none, unless
        # it is its own negative, which no byte is.
        parts = [np.unique(part, axis=0) for part in np.array_split(flipped, 4)]
        assert [len(part) for part in parts] == [1, 1, 1, 1]
        assert len(np.unique(flipped, axis=0)) > 1
    assert (flips[0] != flips[1]).any()
    assert len(np.unique(kept, axis=0)) == 16
    again = fresh.draw(16, 4, rng)[1].images
    assert not np.array_equal(again, one.images)


def test_a_scheme_without_a_key_is_protected_once() -> None:
    plain, one, two = fresh_pairs(Plain()).draw(64, 16, np.random.default_rng(0))
    assert len(plain) == 30
    assert one is two
    np.testing.assert_array_equal(one.images, plain)


def test_training_repeats_and_leaves_torch_as_it_was() -> None:
    fresh = fresh_pairs(Corner())
    batch = Batch(fresh.plain, {})
    params = SHORT.model_copy(update={"rounds": 1, "steps": 3})
    torch.manual_seed(3)
    before = torch.random.get_rng_state()

    def embedded(seed: int) -> Any:
        trainer = Trainer.start(batch, fresh, params, seed)
        trainer.train(1)
        return trainer.towers.plain(fresh.plain)

    one, two, other = embedded(7), embedded(7), embedded(8)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1.0, rtol=1e-5)


def test_a_loss_that_is_not_a_number_ends_the_training() -> None:
    fresh = fresh_pairs(Corner())
    params = SHORT.model_copy(update={"rounds": 1, "learning_rate": 1e30})
    trainer = Trainer.start(Batch(fresh.plain, {}), fresh, params, 0)
    with pytest.raises(Diverged, match="not a number"):
        trainer.train(1)
        trainer.towers.plain(fresh.plain)


def test_the_loss_is_that_of_guessing_where_all_embeddings_are_equal() -> None:
    same = torch.ones(10, 4) / 2
    assert float(contrast(same, same, 0.1)) == pytest.approx(log(10))
    apart = torch.eye(10)
    assert float(contrast(apart, apart, 0.01)) < 1e-3
    assert float(contrast(apart, apart.flip(0), 0.1)) > log(10)


def test_embeddings_that_hardly_differ_are_spread_out() -> None:
    rows = torch.ones(20, 8) + 0.1 * torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    made = spread_out(rows)
    assert float(made.mean(dim=0).abs().max()) < 0.1
    assert torch.allclose(made.norm(dim=1), torch.ones(20))
    still = torch.ones(20, 8, requires_grad=True)
    spread_out(still).sum().backward()
    assert torch.isfinite(still.grad).all()


def test_a_shift_of_all_embeddings_and_a_turn_of_them_are_seen_through() -> None:
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(40, 8))
    moved, turned = plain + 5, 3 - 2 * plain
    hits = {
        (name, each): (measure(rows, plain, []).argmin(axis=1) == np.arange(40)).mean()
        for name, measure in (
            ("cosine", Cosine("both")), ("standardised", Cosine("both", standardised=True)),
            ("either sign", Cosine("both", standardised=True, either_sign=True)),
        )
        for each, rows in (("moved", moved), ("turned", turned))
    }  # fmt: skip
    assert hits["cosine", "moved"] < 1.0
    assert hits["standardised", "moved"] == hits["either sign", "moved"] == 1.0
    assert hits["standardised", "turned"] < 0.1
    assert hits["either sign", "turned"] == 1.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3]))
def test_bits_and_sorted_regions_are_what_they_say(seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, 9, 8, channels), dtype=np.uint8)
    bits = bit_planes(images).reshape(2, 9, 8, channels, 8)
    assert set(np.unique(bits)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(np.packbits(bits > 0, axis=-1)[..., 0], images)
    shuffled = images.copy()
    region = shuffled[0, 4:8, :4]
    shuffled[0, 4:8, :4] = rng.permutation(region.ravel()).reshape(region.shape)
    one, two = mixed_in_regions(images, 4), mixed_in_regions(shuffled, 4)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one[:, 8], images[:, 8] / 127.5 - 1, atol=1e-6)


def test_all_that_is_read_of_an_image_comes_in_the_size_that_was_asked_for() -> None:
    images = digit_images(20)[0][:3]
    shuffling = make_scheme("visualmixer", {"region_px": 4, "n": 4}, "test")
    front = Front.of(Batch(images, {}), shuffling, 8)
    # Grey levels, their order in regions of 4, and 8 bits; squares of 3 x 3.
    assert front(Batch(images, {})).shape == (3, 10 * 9, 7, 7)
    large = np.zeros((1, 96, 96, 1), dtype=np.uint8)
    assert not Front.of(Batch(large, {}), Plain(), 32).bits
