"""Every attack against nothing at all, and planted leaks against the attack meant for each."""

# ruff: noqa: ARG002
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attack_cases import (
    OWNER,
    Corner,
    LowestBits,
    Noise,
    NoParams,
    OtherPeople,
    Planted,
    digit_case,
    pattern_case,
)
from pydantic import Field

from veilset.attacks.base import AttackResult, Case
from veilset.attacks.registry import ATTACKS, attack_names, make_attack
from veilset.keys import Key
from veilset.params import Params
from veilset.schemes.base import Pool, Protected
from veilset.schemes.plain import Plain
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, Labels

SHORT = {"targets": 200, "steps": 40, "oracle_steps": 10, "versions": 2, "repeats": 1}


def run(name: str, case: Case) -> AttackResult:
    """The attack with a short training, where it trains."""
    known = ATTACKS.find(name, "test").Parameters.model_fields
    return make_attack(name, {k: v for k, v in SHORT.items() if k in known}, "test").run(case)


@pytest.mark.parametrize("name", attack_names())
@pytest.mark.parametrize("scheme", [Noise, OtherPeople])
@pytest.mark.parametrize("persons", [False, True], ids=["images", "persons"])
def test_nothing_is_found_where_there_is_nothing(
    name: str, scheme: type[Planted], persons: bool
) -> None:
    case = pattern_case(scheme(), persons=30) if persons else digit_case(scheme(), targets=200)
    result = run(name, case)
    if result.applicable:
        # Of some thirty such figures one or two leave their 95 % interval by luck.
        assert result.low - 0.03 <= result.chance <= result.high + 0.03
        assert result.value < result.chance + 0.06
    else:
        assert result.reason


class RepeatedPad(Planted):
    """All images under one pad, by exclusive or: a one-time pad that is used many times."""

    name = "repeated_pad"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        return Protected(images ^ self.noise(images[:1], np.zeros((1, 16), np.uint8), stream))


class AddedPad(Planted):
    """The same, added modulo 256."""

    name = "added_pad"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        return Protected(images + self.noise(images[:1], np.zeros((1, 16), np.uint8), stream))


class PadParams(Params):
    strength: int = Field(1, ge=1, le=9)


class Pad(Planted):
    """Strength times the image, hidden by a pad that covers all of it."""

    name = "pad"
    Parameters = PadParams

    def pad(self, images: Images, ids: Ids, stream: Stream) -> Images:
        return self.noise(images, ids, stream)

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        hidden = images // 16 * np.uint8(self.params.strength)
        return Protected(hidden + self.pad(images, ids, stream))


class SharedPad(Pad):
    """The planted mistake: the pad forgets the setting."""

    name = "shared_pad"

    def pad(self, images: Images, ids: Ids, stream: Stream) -> Images:
        return self.noise(images, ids, Plain().stream(OWNER))


@pytest.mark.parametrize("scheme, least", [(Pad, None), (SharedPad, 0.9)])
def test_two_settings_of_one_key_are_told_apart_by_subtraction_only_where_the_pad_is_shared(
    scheme: type[Pad], least: float | None
) -> None:
    one, other = (digit_case(scheme(PadParams(strength=s)), targets=200) for s in (1, 3))
    np.testing.assert_array_equal(one.truth.ids, other.truth.ids)
    difference = other.release.images - one.release.images
    # The attacker's own pairs of differences: the shared pad is gone from them as well.
    pair = replace(one, release=replace(one.release, images=difference, scheme=Difference(scheme)))
    alone, together = run("linkage", one), run("linkage", pair)
    assert alone.value < 0.06
    if least is None:
        assert together.value < 0.06
    else:
        assert together.value > least


class Difference(Planted):
    """What is left of two settings after subtraction, as the attacker makes it herself."""

    name = "difference"

    def __init__(self, scheme: type[Pad]) -> None:
        super().__init__(NoParams())
        self.schemes = [scheme(PadParams(strength=strength)) for strength in (1, 3)]

    def protect(
        self, images: Images, labels: Labels, ids: Ids, key: Key, pool: Any = None
    ) -> Protected:
        one, other = (s.protect(images, labels, ids, key, pool).images for s in self.schemes)
        return Protected(other - one)

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        raise NotImplementedError


@pytest.mark.parametrize(
    "scheme, name, least",
    [
        (Plain, "linkage", 0.99), (Plain, "learned_inverse", 0.95), (Corner, "linkage", 0.8),
        (Corner, "learned_inverse", 0.6), (LowestBits, "linkage", 0.5),
        (RepeatedPad, "known_plaintext", 0.95), (AddedPad, "known_plaintext", 0.95),
    ],
)  # fmt: skip
def test_a_planted_leak_is_caught_by_the_attack_meant_for_it(
    scheme: type[Planted], name: str, least: float
) -> None:
    result = make_attack(name, {"targets": 180}, "test").run(digit_case(scheme(), targets=200))
    assert result.value >= least
