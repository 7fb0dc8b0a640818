"""Membership: what was learnt by heart is recognised, what was never seen is not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from attack_cases import digit_case
from hypothesis import given, settings
from hypothesis import strategies as st
from network_cases import Recipe, network_case
from scipy.special import expit
from scipy.stats import norm

from veilset.attacks import membership
from veilset.attacks._shadows import (
    METHODS,
    PLAIN,
    PROTECTED,
    RELEASED,
    Replies,
    ask,
    confidence,
    halves,
    lira_offline,
    lira_online,
    reference,
    rmia_online,
    shifted,
)
from veilset.attacks.base import NO_NETWORK, AttackResult, Case
from veilset.attacks.membership import (
    FittedMembership,
    Membership,
    MembershipParams,
    Suspects,
    gather_suspects,
    prober,
    rate_at,
    recognised,
    threshold,
)
from veilset.attacks.registry import make_attack
from veilset.errors import ProtectionError, SettingsError
from veilset.schemes.plain import Plain
from veilset.schemes.registry import make_scheme
from veilset.types import FloatArray

# One worker for all: the CNNs that they share are trained once.
pytestmark = pytest.mark.xdist_group("membership")


class Watched(Membership):
    """Remembers what it learnt and whom it tested; first the attack itself, then the oracle."""

    def __init__(self, params: MembershipParams) -> None:
        super().__init__(params)
        self.seen: list[tuple[FittedMembership, Suspects]] = []

    def _found(self, fitted: FittedMembership, case: Suspects) -> Mapping[str, FloatArray]:
        self.seen.append((fitted, case))
        return super()._found(fitted, case)


def run(case: Case, **values: Any) -> AttackResult:
    return Membership(MembershipParams(**{"shadows": 6, "questions": 1, **values})).run(case)


@pytest.fixture
def small_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """An oracle that learns in no time, and little."""
    monkeypatch.setattr(membership, "_LEARNING_STEPS", 3)
    monkeypatch.setattr(membership, "_PLANTED", 200)


@pytest.fixture(scope="module")
def overfitted() -> Case:
    """A CNN that learnt images by heart which are hardly protected, a part with wrong labels."""
    return network_case(make_scheme("gaussian_blur", {"sigma_px": 0.5}, "test"), wrong=0.3)


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched(MembershipParams(questions=2))


@pytest.fixture(scope="module")
def found(overfitted: Case, watched: Watched) -> AttackResult:
    return watched.run(overfitted)


def test_an_overfitted_cnn_betrays_its_training_images(found: AttackResult) -> None:
    assert found.status == "ok"
    assert (found.risk, found.chance, found.targets) == ("inference", 0.01, 250)
    assert found.value > 0.15
    assert found.control.value < 0.05
    assert found.oracle.value > 0.6 and found.oracle.low > 0
    assert found.details["auc"] > 0.8
    assert found.details["balanced_accuracy"] > 0.7
    assert found.details["non_members"] == 250
    assert "tpr_at_1_in_1000" not in found.details, "250 others cannot tell one in 1000"
    assert "At one false alarm in 100, " in found.words


@pytest.mark.parametrize("kind, least", [(RELEASED, 0.2), (PROTECTED, 0.15), (PLAIN, 0.08)])
def test_lira_and_rmia_beat_the_loss_threshold(
    kind: str, least: float, found: AttackResult, watched: Watched
) -> None:
    """Asked with the protected originals as they were released, or with the plain ones."""
    fitted, suspects = watched.seen[0]
    assert suspects.network is not None
    replies = ask(suspects.network, fitted.questions, suspects.release.images, "cpu")[kind]
    usual = reference(fitted.shadows.replies[kind], fitted.shadows.member)
    rates = {
        name: rate_at(method(replies, usual), suspects.member, 0.01)
        for name, method in METHODS.items()
    }
    assert rates["lira online"] > rates["loss threshold"] + least
    assert rates["lira offline"] > rates["loss threshold"] + least / 2
    assert rates["rmia online"] > rates["loss threshold"] + least / 2
    assert found.variants[f"{kind}/loss threshold"] < 0.03
    assert found.variants[f"{kind}/lira online"] > 4 * found.variants[f"{kind}/loss threshold"]
    assert not found.variant.endswith("loss threshold")


def test_the_oracle_needs_more_than_a_loss_threshold(found: AttackResult, watched: Watched) -> None:
    fitted, planted = watched.seen[1]
    assert planted.network is not None
    replies = ask(planted.network, fitted.questions, planted.release.images, "cpu")[PLAIN]
    usual = reference(fitted.shadows.replies[PLAIN], fitted.shadows.member)
    loss = rate_at(METHODS["loss threshold"](replies, usual), planted.member, 0.01)
    assert loss < Membership.oracle_floor < found.oracle.value


def test_scores_name_photographs_once_and_who_is_a_member(
    found: AttackResult, overfitted: Case
) -> None:
    main = found.scores[found.scores["anchor"] == "main"]
    members = set(main.loc[main["member"], "target"])
    assert len(main) == 500 and main["target"].is_unique
    assert members == {str(name) for name in overfitted.truth.ids}
    alarms = main.loc[~main["member"], "success"]
    assert alarms.sum() <= 0.01 * (len(alarms) + 1)
    assert main.loc[main["member"], "success"].mean() == found.value
    assert (
        main.loc[main["success"] == 1, "score"].min()
        > main.loc[main["success"] == 0, "score"].max() - 1e-12
    )
    assert set(found.scores["anchor"]) == {"main", "control", "oracle"}


@pytest.mark.usefixtures("small_oracle")
def test_the_same_seed_gives_the_same_result() -> None:
    case = network_case(Plain(), Recipe(2, 4), members=120, others=130, wrong=0.3)
    one, two = (run(case) for _ in range(2))
    assert one.to_json() | {"seconds": 0} == two.to_json() | {"seconds": 0}
    other = run(replace(case, attacker=replace(case.attacker, seed=case.attacker.seed + 1)))
    assert other.variants != one.variants
    joined = run(case, repeats=2)
    for name in ("value", "low", "high"):
        assert getattr(joined, name) == pytest.approx(
            (getattr(one, name) + getattr(other, name)) / 2
        )
    assert joined.targets == one.targets == 120
    assert len(joined.scores) == len(one.scores) + len(other.scores)


@pytest.mark.usefixtures("small_oracle")
@pytest.mark.parametrize("name", ["plain", "visualmixer"])
def test_chance_where_the_cnn_never_saw_the_photographs(name: str) -> None:
    scheme = make_scheme(name, {}, "test")
    result = run(network_case(scheme, Recipe(8, 8), wrong=0.3, on_others=True))
    assert result.value <= 0.04
    assert result.low <= 0.01
    # Four standard deviations of the area under the curve of 250 and 250 scores without meaning.
    assert abs(result.details["auc"] - 0.5) < 4 * np.sqrt(501 / (12 * 250**2))
    assert result.details["released_image_tpr"] <= 0.04
    assert result.status == "weak_oracle", "that of these tests has learnt nothing"


@pytest.mark.usefixtures("small_oracle")
def test_the_very_released_image_tells_more_than_one_under_another_key() -> None:
    scheme = make_scheme("visualmixer", {}, "test")
    case = network_case(scheme, Recipe(30, 8), members=150, others=150, wrong=0.3)
    result = run(case)
    assert result.details["released_image_tpr"] > 0.3
    assert result.details["released_image_high"] > result.details["released_image_tpr"]
    assert result.value < 0.15


def test_it_says_what_is_missing(overfitted: Case) -> None:
    assert Membership().applies(digit_case(Plain())) == NO_NETWORK
    network = overfitted.network
    assert network is not None and network.outsiders is not None

    def without(**changes: Any) -> str | None:
        return Membership().applies(replace(overfitted, network=replace(network, **changes)))

    assert "recipe" in str(without(retrain=None))
    assert "not trained on" in str(without(outsiders=None))
    few = network.outsiders[0].take(np.arange(99)), network.outsiders[1]
    assert "fewer than 100" in str(without(outsiders=few))
    alone = replace(overfitted.attacker, images=overfitted.attacker.images[:0])
    assert "of her own" in str(Membership().applies(replace(overfitted, attacker=alone)))
    assert Membership().applies(overfitted) is None


@pytest.mark.parametrize(
    "values", [{"shadows": 7}, {"shadows": 4}, {"questions": 10}, {"targets": 99}, {"pool": 100}]
)
def test_parameters_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        make_attack("membership", values, "test")


def test_the_registry_finds_it() -> None:
    full = make_attack("membership", {"questions": 4}, "test", "full").params
    assert (full.shadows, full.questions) == (64, 4)


# --- Who is suspected -------------------------------------------------------------------------


def test_photographs_are_joined_in_an_order_that_tells_nothing(overfitted: Case) -> None:
    suspects = gather_suspects(overfitted, 4000, 150, np.random.default_rng(0))
    assert len(suspects.member) == 500 and suspects.member.sum() == 250
    assert suspects.tested.sum() == 300 and suspects.member[suspects.tested].sum() == 150
    assert 0.4 < suspects.member[:250].mean() < 0.6
    own = {image.tobytes() for image in overfitted.truth.originals}
    seen = np.array([image.tobytes() in own for image in suspects.truth.originals])
    np.testing.assert_array_equal(seen, suspects.member)
    hers = prober(suspects)
    assert not {"member", "tested"} & set(vars(hers))
    np.testing.assert_array_equal(hers.photographs, suspects.truth.originals)


def test_rare_classes_are_left_out(overfitted: Case) -> None:
    labels = overfitted.release.labels.copy()
    labels[:3] = 77
    case = replace(overfitted, release=replace(overfitted.release, labels=labels))
    suspects = gather_suspects(case, 4000, 2000, np.random.default_rng(0))
    assert 77 not in suspects.release.labels
    assert len(suspects.member) == 497
    lonely = replace(case, release=replace(case.release, labels=np.arange(250) + 100))
    with pytest.raises(ProtectionError, match="share a class"):
        gather_suspects(lonely, 4000, 2000, np.random.default_rng(0))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 99))
def test_halves_halve_every_class(classes: list[int], seed: int) -> None:
    labels = np.array(classes, dtype=np.int64)
    half = halves(labels, np.random.default_rng(seed))
    for value in np.unique(labels):
        assert abs(int(half[labels == value].sum()) - int((~half)[labels == value].sum())) <= 1


def test_a_shift_moves_the_image() -> None:
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(shifted(images, 0, 0), images)
    np.testing.assert_array_equal(shifted(images, 1, 0)[0, 1:], images[0, :-1])
    np.testing.assert_array_equal(shifted(images, 0, -1)[0, :, :-1], images[0, :, 1:])
    np.testing.assert_array_equal(shifted(images, 0, -1)[0, :, -1], images[0, :, -1])


# --- Scores -----------------------------------------------------------------------------------


def test_confidence_is_the_logit_of_the_probability() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (50, 4)).astype(np.float32)
    labels = rng.integers(0, 4, 50)
    chances = np.exp(logits.astype(np.float64))
    chances /= chances.sum(axis=1, keepdims=True)
    right = chances[np.arange(50), labels]
    np.testing.assert_allclose(confidence(logits, labels), np.log(right / (1 - right)), rtol=1e-6)
    sure = confidence(np.array([[900.0, 0.0], [900.0, 0.0]], np.float32), np.array([0, 1]))
    np.testing.assert_allclose(sure, [900, -900])


def gaussian_replies(models: int, n: int = 400, seed: int = 0) -> tuple[Replies, Any, Any]:
    """Confidences as the theory has them: each image its own means, 1.5 apart, spread 1."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(0, 3, n)
    member = np.concatenate([np.stack([half, ~half]) for half in
                             (halves(np.zeros(n), rng) for _ in range(models // 2))])  # fmt: skip
    seen = middle + 1.5 * member + rng.normal(0, 1, (models, n))
    crowd = rng.normal(0, 3, 100) + rng.normal(0, 1, (models, 100))
    return Replies(seen[:, None], crowd[:, None]), member, middle


@pytest.mark.parametrize("models", [8, 64])
def test_lira_approaches_the_best_possible_test(models: int) -> None:
    replies, member, middle = gaussian_replies(models + 2)
    shadows = np.arange(models)
    usual = reference(replies.take(shadows), member[shadows])
    target = Replies(replies.candidates[-1], replies.crowd[-1])
    truth = member[-1]
    ideal = rate_at(target.candidates[0] - middle, truth, 0.1)
    for method in (lira_online, lira_offline):
        assert rate_at(method(target, usual), truth, 0.1) > ideal - (0.2 if models == 8 else 0.1)
    assert rate_at(target.candidates[0], truth, 0.1) < ideal - 0.2
    shapes = {8: (1, 1), 64: (1, 400)}
    assert usual.inside_spread.shape == shapes[models]
    np.testing.assert_allclose(usual.inside_spread.mean(), 1.0, atol=0.1)
    np.testing.assert_allclose((usual.inside - usual.outside).mean(), 1.5, atol=0.1)


def test_lira_online_is_the_log_ratio_of_gaussians() -> None:
    replies, member, _ = gaussian_replies(8, 20)
    usual = reference(replies, member)
    one = Replies(replies.candidates[0], replies.crowd[0])
    wanted = norm.logpdf(one.candidates, usual.inside, usual.inside_spread) - norm.logpdf(
        one.candidates, usual.outside, usual.outside_spread
    )
    np.testing.assert_allclose(lira_online(one, usual), wanted[0], rtol=1e-6)


def test_rmia_counts_those_outdone() -> None:
    replies, member, _ = gaussian_replies(8, 20)
    usual = reference(replies, member)
    one = Replies(replies.candidates[0], replies.crowd[0])
    mine = expit(one.candidates[0]) / ((usual.inside_chance + usual.outside_chance)[0] / 2)
    theirs = expit(one.crowd[0]) / usual.crowd_chance[0]
    wanted = (mine[:, None] >= theirs).mean(axis=1)
    np.testing.assert_allclose(rmia_online(one, usual), wanted, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_ignores_who_is_a_member(name: str) -> None:
    """A score depends on the target's replies and the shadows alone, image by image."""
    replies, member, _ = gaussian_replies(10, 40)
    usual = reference(replies.take(np.arange(8)), member[:8])
    one = Replies(replies.candidates[-1], replies.crowd[-1])
    scores = METHODS[name](one, usual)
    louder = one.candidates.copy()
    louder[:, 7] += 2.0
    changed = METHODS[name](Replies(louder, one.crowd), usual)
    assert changed[7] > scores[7] or name == "lira online"
    np.testing.assert_array_equal(np.delete(changed, 7), np.delete(scores, 7))


# --- Figures ----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=300), st.sampled_from([0.5, 0.1, 0.01, 0.001])
)
def test_the_threshold_allows_no_more_alarms(values: list[int], rate: float) -> None:
    others = np.array(values, dtype=np.float64)
    level = threshold(others, rate)
    allowed = int(rate * (len(others) + 1) + 1e-9)
    assert (others >= level).sum() <= allowed
    if allowed == 0:
        assert level == np.inf
    elif len(set(values)) == len(values):
        assert (others >= level).sum() == min(allowed, len(others))


def test_false_alarms_on_fresh_images_are_as_rare_as_stated() -> None:
    rng = np.random.default_rng(0)
    rates = [(rng.normal(size=2000) >= threshold(rng.normal(size=250), 0.01)).mean()
             for _ in range(400)]  # fmt: skip
    assert np.mean(rates) == pytest.approx(2 / 251, abs=0.0012)


@pytest.mark.parametrize("n, gain", [(200, 1.0), (1000, 0.0), (1000, 2.0)])
def test_limits_cover_the_true_rate(n: int, gain: float) -> None:
    rng = np.random.default_rng(1)
    true = norm.sf(norm.isf(0.01) - gain)
    covered = 0
    for _ in range(200):
        scores = np.concatenate([rng.normal(gain, 1, n), rng.normal(0, 1, n)])
        limits = recognised(scores, np.repeat([True, False], n))
        assert limits.low <= limits.value <= limits.high
        covered += limits.low <= true <= limits.high
    assert covered >= 190


def test_limits_are_narrow_where_there_are_many() -> None:
    rng = np.random.default_rng(2)
    scores = np.concatenate([rng.normal(6, 1, 5000), rng.normal(0, 1, 5000)])
    limits = recognised(scores, np.repeat([True, False], 5000))
    assert limits.low > 0.99
    nothing = recognised(rng.normal(0, 1, 10_000), np.repeat([True, False], 5000))
    assert nothing.high < 0.025
