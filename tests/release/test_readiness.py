"""What stands against a release: one sentence a reason, and what no waiver can waive."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from release_cases import DAY, INVERSE, LINKAGE, Made, card_of, evaluation, spent

from veilset.data.manifest import Manifest
from veilset.keys import DEMO_IDS_KEY, DEMO_PROTECTION_KEY
from veilset.release.readiness import (
    ReleaseError,
    ReleaseParams,
    refusals,
    release_facts,
    set_refusals,
)
from veilset.release.statement import CheckFacts, Waiver
from veilset.schemes.composition import Composition
from veilset.schemes.masked_image import MaskedImage
from veilset.schemes.plain import Plain

WAIVER = Waiver(
    reason="Under contract and on site; the trainer's machine is wiped.", name="Ana Roth", date=DAY
)


def sets(case: Made, **changed: Any) -> dict[str, Manifest]:
    """The manifests with something changed in all of them."""
    return {n: s.manifest.model_copy(update=changed) for n, s in case.sets.items()}


def record(case: Made, **changed: Any) -> dict[str, Any]:
    return {**case.scheme.record(), **changed}


def test_all_in_order_is_refused_for_nothing(project: Made) -> None:
    assert refusals(project.standing, "outside_trainer") == ()
    assert refusals(project.standing, "outside_trainer", WAIVER) == ()


Change = Callable[[Made], dict[str, Any]]

NEVER_WAIVED: list[tuple[str, Change]] = [
    ("no protected set", lambda _: {"manifests": {}}),
    ("is a set of plain images", lambda p: {"manifests": sets(p, kind="ingested")}),
    ("the originals", lambda p: {"manifests": sets(p, scheme=Plain().record())}),
    ("comparison only and is never released", lambda p: {"manifests": sets(
        p, scheme=MaskedImage(mode="oracle_edges").record())}),
    ("comparison only and is never", lambda p: {"manifests": sets(p, scheme=Composition(steps=(
        {"scheme": "visualmixer"}, {"scheme": "masked_image", "mode": "oracle_edges"},
    )).record())}),
    ("the originals", lambda p: {"manifests": sets(p, scheme=Composition(steps=(
        {"scheme": "plain"}, {"scheme": "plain"})).record())}),
    ("public demo key", lambda p: {"manifests": sets(
        p, key_fingerprint=DEMO_PROTECTION_KEY.fingerprint)}),
    ("or none is named", lambda p: {"manifests": sets(p, key_fingerprint=None)}),
    ("come from the public demo key", lambda _: {"ids_fingerprint": DEMO_IDS_KEY.fingerprint}),
    ("has notes", lambda p: {"manifests": sets(p, notes={"held_back": 3})}),
    ("column 'group'", lambda p: {"manifests": sets(p, columns={"group": "int64"})}),
    ("column 'who'", lambda p: {"manifests": sets(p, columns={"who": "string"})}),
    ("no training images", lambda p: {"manifests": sets(p, splits={"test": 20})}),
    ("drop-0, drop-1 have not the same key", lambda p: {"manifests": {
        **sets(p), "drop-1": p.sets["drop-1"].manifest.model_copy(
            update={"key_fingerprint": "0" * 16})}}),
    ("have not images of one size", lambda p: {"manifests": {
        **sets(p), "drop-1": p.sets["drop-1"].manifest.model_copy(update={"shape": (8, 8, 1)})}}),
    ("drop-0 was not checked", lambda _: {"checks": {"drop-1": CheckFacts()}}),
    ("fails the critical checks min_side, quarantine_rate", lambda p: {"checks": {
        **p.standing.checks, "drop-1": CheckFacts(critical_failed=("min_side", "quarantine_rate"))
    }}),
    ("nobody knows what it leaks", lambda _: {"card": None}),
    ("no verdict on scheme_in_params as it is set here", lambda _: {"card": card_of(
        MaskedImage(eps_n=4.0))}),
    ("lists protect@a, train@b as changed", lambda _: {"unclean": ("protect@a", "train@b")}),
    ("and 2 more as changed", lambda _: {"unclean": tuple("abcdefg")}),
    ("was not asked", lambda _: {"unclean": None}),
    ("src/a.py differ from what git has", lambda _: {"uncommitted": ("src/a.py",)}),
    ("in no git repository", lambda _: {"uncommitted": None}),
    ("may be as low as 85.0 %, and the floor is 86 %", lambda _: {
        "params": ReleaseParams(min_accuracy=0.86)}),
    ("may be as much as 8.0 points, and at most 7", lambda _: {
        "params": ReleaseParams(max_loss_points=7)}),
    ("was not measured, and the floor is 10 %", lambda _: {
        "params": ReleaseParams(min_accuracy=0.1), "evaluation": None}),
    ("was not measured, and at most 50", lambda _: {
        "params": ReleaseParams(max_loss_points=50), "evaluation": evaluation(loss_high=None)}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "change"), NEVER_WAIVED)
def test_what_no_waiver_waives(project: Made, words: str, change: Change) -> None:
    facts = replace(project.standing, **change(project))
    found = refusals(facts, "outside_trainer", WAIVER)
    assert any(words in reason for reason in found), found
    assert len(set(found)) == len(found)
    for reason in found:
        # What is wrong, and after a colon what to do: one sentence.
        assert reason.endswith(".")
        assert ": " in reason
        assert ". " not in reason


def test_a_plain_step_beside_one_that_protects_is_no_reason(project: Made) -> None:
    both = Composition(steps=({"scheme": "plain"}, {"scheme": "visualmixer"})).record()
    assert set_refusals(sets(project, scheme=both)) == ()


def test_one_thing_wrong_gives_one_sentence(project: Made) -> None:
    facts = replace(project.standing, checks={"drop-0": CheckFacts(critical_failed=("a",)),
                                              "drop-1": CheckFacts()})  # fmt: skip
    assert len(refusals(facts, "outside_trainer")) == 1
    shared = replace(project.standing, manifests=sets(project, scheme=Plain().record()))
    # Said once, though both sets are plain; and the verdict is of another scheme.
    assert len(refusals(shared, "outside_trainer", WAIVER)) == 2


WAIVED: list[tuple[str, Change]] = [
    ("is 'fail' and no pass (Fails for an outside trainer", lambda p: {"card": card_of(
        p.scheme, results=[INVERSE | {"low": 0.9, "value": 0.95, "high": 1.0}, LINKAGE])}),
    ("is 'undecided' and no pass", lambda p: {"card": card_of(p.scheme, results=[LINKAGE])}),
    ("stale and so no pass (measured by suite 0", lambda p: {"card": card_of(p.scheme, "0")}),
    ("stale and so no pass (the release is not", lambda p: {"card": card_of(
        p.scheme, release="0" * 64)}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "change"), WAIVED)
def test_a_verdict_that_is_no_pass_is_waived_by_name_and_reason(
    project: Made, words: str, change: Change
) -> None:
    facts = replace(project.standing, **change(project))
    (reason,) = refusals(facts, "outside_trainer")
    assert words in reason
    assert "waive it with a reason and your name" in reason
    assert refusals(facts, "outside_trainer", WAIVER) == ()


def test_each_receiver_has_a_verdict_of_its_own(project: Made) -> None:
    (reason,) = refusals(project.standing, "public_release")
    assert "for a public release is 'fail'" in reason
    assert refusals(project.standing, "public_release", WAIVER) == ()
    (reason,) = refusals(project.standing, "model_holder", WAIVER)
    assert "'model_holder' is no receiver of protected images" in reason


def test_a_card_goes_stale_with_the_suite_even_if_it_does_not_know(project: Made) -> None:
    card = card_of(project.scheme).model_copy(update={"suite": "1", "stale": None})
    (reason,) = refusals(replace(project.standing, card=card), "outside_trainer")
    assert "measured by suite 1" in reason


def test_a_verdict_on_the_released_set_itself_counts(project: Made) -> None:
    one = {"drop-0": project.sets["drop-0"].manifest}
    card = card_of(project.scheme, release=one["drop-0"].root)
    assert refusals(replace(project.standing, manifests=one, card=card), "outside_trainer") == ()


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"reason": "because"}, "at least 20 characters"),
     ({"reason": "x" + " " * 40 + "y"}, "at least 20 characters"),
     ({"name": " R "}, "needs the name of who answers")],
)  # fmt: skip
def test_a_waiver_needs_a_reason_and_a_name(
    project: Made, changed: dict[str, str], words: str
) -> None:
    (reason,) = refusals(project.standing, "outside_trainer", WAIVER.model_copy(update=changed))
    assert words in reason


def test_utility_is_that_of_the_best_cnn_on_declared_test_images(project: Made) -> None:
    facts = replace(project.standing, params=ReleaseParams(min_accuracy=0.85, max_loss_points=8.0))
    assert refusals(facts, "outside_trainer") == ()
    (row,) = facts.utility
    assert (row.model, row.low, row.loss_high) == ("small_cnn", 0.85, 8.0)


def test_a_refused_release_has_no_facts(project: Made) -> None:
    facts = replace(project.standing, card=None, unclean=("a",))
    with pytest.raises(ReleaseError, match=r"no verdict .* `dvc status` lists"):
        release_facts(
            facts, "outside_trainer", released=DAY, spent=spent(), commit=None, packages={}
        )


def test_a_budget_that_was_not_entered_is_no_release(project: Made) -> None:
    for totals in (None, replace(spent(), metric="bits")):
        with pytest.raises(ReleaseError, match="spends 9 of each image's privacy budget"):
            release_facts(
                project.standing, "outside_trainer", released=DAY, spent=totals, commit=None,
                packages={},
            )  # fmt: skip


def test_facts_that_do_not_fit_have_their_sentence(project: Made) -> None:
    with pytest.raises(ReleaseError, match="because of commit"):
        release_facts(
            project.standing, "outside_trainer", released=DAY, spent=spent(), commit="main",
            packages={},
        )  # fmt: skip
    odd = replace(project.standing, manifests=sets(project, scheme=record(project, more="x")))
    with pytest.raises(ReleaseError, match="because of more"):
        release_facts(odd, "outside_trainer", released=DAY, spent=spent(), commit=None, packages={})


def test_the_rules_on_sets_alone_need_nothing_else(project: Made) -> None:
    assert set_refusals(project.standing.manifests) == ()
    assert len(set_refusals(sets(project, notes={"a": 1}))) == 2
