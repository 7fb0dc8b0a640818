"""Leakage cards: what they hold, what makes them stale, and that a broken one is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from veilset.attacks.base import NO_PERSONS, OTHER_KIND, SUITE_VERSION
from veilset.errors import CorruptError
from veilset.release.card import leakage_card, outdated, read_card, write_cards
from veilset.release.gate import GateParams, Results, verdicts_of
from veilset.report.model import AttackFile, Card
from veilset.schemes.plain import Plain
from veilset.schemes.visualmixer import VisualMixer

RUN = {"applicable": True, "chance": 0.01, "targets": 500, "gallery": 100, "status": "ok",
       "metric_words": "rank-1", "size": "full", "seed": 7, "seconds": 3.0}  # fmt: skip
RESULTS: list[dict[str, Any]] = [
    RUN | {"attack": "learned_inverse", "title": "Learned inverse", "risk": "singling_out",
           "attacker": "outside_trainer", "value": 0.01, "low": 0.0, "high": 0.03,
           "words": "1 of 100 is restored."},
    RUN | {"attack": "linkage", "title": "Linkage", "risk": "linkability",
           "attacker": "public_release", "value": 0.5, "low": 0.4, "high": 0.6,
           "words": "50 of 100 are linked."},
    {"attack": "recognition", "title": "Recognition", "risk": "singling_out",
     "attacker": "outside_trainer", "applicable": False, "reason": NO_PERSONS},
    {"attack": "jigsaw", "title": "Jigsaw", "risk": "singling_out", "attacker": "outside_trainer",
     "applicable": False, "reason": f"{OTHER_KIND}: no blocks are moved"},
]  # fmt: skip


def card_of(results: list[dict[str, Any]], suite: str = SUITE_VERSION, **more: Any) -> Card:
    scheme, params = VisualMixer(VisualMixer.Parameters.parse({}, "test")), GateParams()
    content = {
        "suite": suite, "scheme": "visualmixer", "dataset": "set", "shape": (32, 32, 1),
        "results": results,
    }  # fmt: skip
    judged = verdicts_of(Results.model_validate(content), scheme, params)
    found = AttackFile.model_validate(content)
    written = leakage_card(found, judged, scheme, params, **more)
    return Card.model_validate(json.loads(json.dumps(written)))


def test_a_card_holds_attackers_figures_anchors_verdicts_and_gaps() -> None:
    card = card_of(RESULTS, release="r00t", asked=["linkage", "learned_inverse"])
    assert [result.attack for result in card.attacks] == ["learned_inverse", "linkage"]
    linkage = card.attacks[1]
    assert (linkage.value, linkage.low, linkage.high) == (0.5, 0.4, 0.6)
    assert (linkage.chance, linkage.targets, linkage.gallery) == (0.01, 500, 100)
    assert linkage.attacker == "public_release"
    assert card.verdicts["outside_trainer"].verdict == "pass"
    assert card.verdicts["public_release"].verdict == "fail"
    assert card.verdicts["public_release"].limits["linkability"] == 0.2
    assert [item.attack for item in card.not_tested] == ["recognition"]
    assert [item.attack for item in card.other_kinds] == ["jigsaw"]
    assert card.other_kinds[0].reason == "no blocks are moved"
    assert card.complete
    assert card.scheme.parameters["region_px"] == 16
    assert card.repeat.model_dump() == {
        "attacks": ("linkage", "learned_inverse"), "seed": 7, "effort": "full", "release": "r00t",
    }  # fmt: skip


def test_an_attack_that_was_not_run_makes_it_incomplete() -> None:
    card = card_of(RESULTS[1:])
    assert not card.complete
    assert card.not_tested[-1].attack == "learned_inverse"
    assert "not run" in card.not_tested[-1].reason
    assert not card_of([]).complete


def test_a_key_space_is_never_a_reason_to_pass() -> None:
    assert "never a reason to pass" in card_of(RESULTS).key_space_words
    assert (card_of(RESULTS).key_space_bits or 0) > 100


def test_a_card_goes_stale_with_the_suite_and_with_the_release() -> None:
    card = card_of(RESULTS, release="r00t")
    assert card.stale is None
    assert outdated(card, "r00t") is None
    assert "not the one that was attacked" in (outdated(card, "other") or "")
    old = card_of(RESULTS, suite="0", release="r00t")
    assert old.stale is not None
    assert f"now there is {SUITE_VERSION}" in (outdated(old, "r00t") or "")


def test_cards_of_schemes_that_are_gone_go(tmp_path: Path) -> None:
    card = card_of(RESULTS).model_dump(by_alias=True, mode="json")
    write_cards(tmp_path / "cards", {"one": card, "two": card})
    write_cards(tmp_path / "cards", {"two": card})
    assert [path.name for path in (tmp_path / "cards").iterdir()] == ["two.json"]
    assert read_card(tmp_path / "cards/two.json") == card_of(RESULTS)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', "[" * 100_000])
def test_what_is_no_card_is_refused_with_what_to_do(tmp_path: Path, content: str) -> None:
    path = tmp_path / "card.json"
    with pytest.raises(CorruptError, match=r"is missing.*run `veilset attack`"):
        read_card(path)
    path.write_text(content)
    with pytest.raises(CorruptError, match=r"no leakage card.*run `veilset attack`"):
        read_card(path)


def test_without_a_key_the_card_says_so() -> None:
    scheme, params = Plain(), GateParams()
    content = {"suite": SUITE_VERSION, "scheme": "plain", "shape": (8, 8, 1), "results": ()}
    judged = verdicts_of(Results.model_validate(content), scheme, params)
    card = leakage_card(AttackFile(scheme="plain", suite=SUITE_VERSION), judged, scheme, params)
    assert card["key_space_words"] == "There is no key."
