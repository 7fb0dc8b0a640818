"""Linkage of two releases: across keys, schemes and drops, and by chance where nothing is left."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attack_cases import Noise, OtherPeople, digit_case

from veilset.attacks.base import NO_OTHER, AttackResult, Case, Release
from veilset.attacks.linkage import LinkageParams
from veilset.attacks.registry import make_attack
from veilset.attacks.version_linkage import VersionLinkage, same_ids
from veilset.keys import Key
from veilset.metrics.statistics import wilson
from veilset.schemes.base import ArrayPool, Scheme
from veilset.schemes.etc_encryption import EtcEncryption
from veilset.schemes.pixel_block_mixing import PixelBlockMixing
from veilset.schemes.plain import Plain
from veilset.schemes.visualmixer import VisualMixer

SMALL = LinkageParams(versions=2)
MIXER = VisualMixer(region_px=8, n=8)


AGAIN = Key(b"a" * 32)


def released_again(case: Case, scheme: Scheme[Any]) -> Case:
    """The same images once more, under other ids as well: another drop."""
    images, labels = case.truth.originals, case.release.labels
    ids = np.random.default_rng(9).integers(0, 256, (len(images), 16), dtype=np.uint8)
    made = scheme.protect(images, labels, ids, AGAIN, ArrayPool.from_arrays(images, labels, ids))
    other = Release(images=made.images, labels=labels, scheme=scheme, side=made.side)
    return replace(case, attacker=replace(case.attacker, other=other))


def link(one: Scheme[Any], two: Scheme[Any], **sizes: int) -> AttackResult:
    return VersionLinkage(SMALL).run(released_again(digit_case(one, **sizes), two))


@pytest.mark.parametrize(
    "one, two, least",
    [
        (MIXER, MIXER, 0.95),
        (MIXER, Plain(), 0.95),
        (EtcEncryption(), EtcEncryption(), 0.9),
        (MIXER, PixelBlockMixing(block_height=4, block_width=4), 0.3),
    ],
    ids=["two keys", "a plain one", "two keys of a cipher", "two schemes"],
)
def test_versions_of_one_image_are_linked(one: Scheme[Any], two: Scheme[Any], least: float) -> None:
    result = link(one, two, targets=200, auxiliary=200)
    assert result.status == "ok"
    assert result.low > least - 0.1
    assert result.value >= least
    assert result.control.value < 0.06
    assert "images of the other release" in result.metric_words
    assert result.attacker == "outside_trainer"


@pytest.mark.parametrize("one, two", [(Noise(), Plain()), (MIXER, Noise()), (MIXER, OtherPeople())])
def test_chance_where_one_of_them_tells_nothing(one: Scheme[Any], two: Scheme[Any]) -> None:
    result = link(one, two, targets=400, auxiliary=100)
    found = wilson(result.value * result.targets, result.targets, 0.999)
    assert found.low <= result.chance <= found.high


def test_without_another_release_it_says_so() -> None:
    result = VersionLinkage(SMALL).run(digit_case(MIXER, targets=20))
    assert not result.applicable
    assert result.reason == NO_OTHER


def test_the_order_of_the_other_release_is_not_used() -> None:
    """Rows in the same order would make even noise look linked."""
    case = released_again(digit_case(Noise(), targets=300), Noise())
    assert VersionLinkage(SMALL).run(case).value < 0.05


def test_rows_of_the_other_release_follow_the_targets() -> None:
    case = released_again(digit_case(MIXER, targets=30), Plain())
    taken = case.take(np.array([4, 2]))
    assert taken.attacker.other is not None
    np.testing.assert_array_equal(taken.attacker.other.images, case.truth.originals[[4, 2]])


def test_ids_that_two_releases_share_link_them() -> None:
    ids = np.random.default_rng(3).integers(0, 256, (200, 16), dtype=np.uint8)
    case = released_again(digit_case(Noise(), targets=200), Noise())
    assert case.attacker.other is not None
    release = replace(case.release, published_ids=ids)
    for shared, rate in ((200, 1.0), (100, 0.5), (0, 0.01)):
        theirs = ids.copy()
        theirs[shared:] ^= 1
        other = replace(case.attacker.other, published_ids=theirs)
        changed = replace(case, release=release, attacker=replace(case.attacker, other=other))
        result = VersionLinkage(SMALL).run(changed)
        assert result.details["shared_ids"] == shared / 200
        assert result.value == pytest.approx(rate, abs=0.03)
        assert result.control.value < 0.04


def test_the_oracle_cannot_go_by_ids() -> None:
    """Both sides of the oracle are the same originals: by ids it would hold for any attack."""
    ids = np.random.default_rng(3).integers(0, 256, (40, 16), dtype=np.uint8)
    case = released_again(digit_case(MIXER, targets=40), Plain())
    ideal = replace(case, release=replace(case.release, published_ids=ids)).oracle()
    assert ideal.attacker.other is not None
    np.testing.assert_array_equal(ideal.attacker.other.images, ideal.release.images)
    assert same_ids(ideal.release.published_ids, ideal.attacker.other.published_ids) is None


def test_the_registry_finds_it() -> None:
    assert make_attack("version_linkage", {}, "test", "full").params.versions == 16
