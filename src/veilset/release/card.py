"""Leakage cards: a file for each scheme that says what attacks found, and for whom that will do.

Source: ours, after the idea of model cards (Mitchell et al., FAT* 2019).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from veilset.attacks.base import SUITE_VERSION
from veilset.errors import CorruptError
from veilset.files import write_json
from veilset.release.gate import GateParams, stale
from veilset.report.model import AttackFile, Card
from veilset.schemes.base import Scheme

SCHEMA = 1
"""Version of the layout of a card."""

_FIGURES = (
    "attack", "title", "risk", "attacker", "knowledge", "knowledge_words", "words", "metric",
    "metric_words", "value", "low", "high", "confidence", "method", "chance", "control", "oracle",
    "residual", "targets", "gallery", "variant", "status", "seconds", "size", "seed",
)  # fmt: skip


def leakage_card(
    found: AttackFile,
    judged: Mapping[str, Any],
    scheme: Scheme[Any],
    params: GateParams,
    *,
    asked: Iterable[str] = (),
    release: str | None = None,
    demo_key: bool = False,
) -> dict[str, Any]:
    """The card of one scheme, as `reports/cards/<scheme>.json` holds it.

    Args:
        found: What the attacks found.
        judged: Its verdicts, as `verdicts_of` returns them.
        scheme: The scheme, for its parameters.
        params: What it was judged by.
        asked: Names of the attacks asked for; empty for all of the suite.
        release: Root digest of the protected set, where there is one set alone.
        demo_key: The public demo key was used.

    Returns:
        Plain values for JSON; `Card` describes them.

    Source: ours.
    """
    templates = judged["templates"]
    run = [result for result in found.results if result.applicable]
    absent = [result for result in found.results if not result.applicable]
    return {
        "schema": SCHEMA,
        "dataset": found.dataset,
        "scheme": _scheme(found, scheme),
        "suite": found.suite,
        "demo_key": demo_key,
        "complete": bool(run) and not any(map(_open, templates.values())),
        "stale": stale(found.suite, params),
        "verdicts": {
            name: {
                "verdict": templates[name]["verdict"], "words": templates[name]["words"],
                "limits": params.limits(name).model_dump(),
            }
            for name in templates
        },
        "attacks": [result.model_dump(include=set(_FIGURES)) for result in run],
        "not_tested": [
            *(result.untested().model_dump() for result in absent if not result.elsewhere),
            *_not_run(found, params),
        ],
        "other_kinds": [r.untested().model_dump() for r in absent if r.elsewhere],
        "key_space_bits": judged["key_space_bits"],
        "key_space_words": _key_space(judged["key_space_bits"]),
        "repeat": {
            "attacks": list(asked),
            "seed": next((r.seed for r in found.results if r.seed is not None), 0),
            "effort": next((r.size for r in found.results if r.size is not None), "quick"),
            "release": release,
        },
    }  # fmt: skip


def write_cards(folder: Path, cards: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes a card a scheme as `<scheme>.json`, each atomically, and removes those of no scheme.

    Args:
        folder: Where; made where missing.
        cards: From `leakage_card`, by the schemes' names.

    Raises:
        DiskFullError: The disk has not the room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, card in cards.items():
        write_json(folder / f"{name}.json", card)
    for path in folder.glob("*.json"):
        if path.stem not in cards:
            path.unlink()


def read_card(path: Path) -> Card:
    """Reads a card.

    Raises:
        CorruptError: It is missing, not JSON, or no card.
    """
    try:
        return Card.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise CorruptError(
            f"{path} is missing, so there is no verdict to look at again: run `veilset attack`."
        ) from None
    except (ValidationError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptError(f"{path} is no leakage card ({reason}): run `veilset attack`.") from None


def outdated(card: Card, release: str) -> str | None:
    """Why a card's figures say nothing of a release any more, or None.

    Args:
        card: The card.
        release: Root digest of the release as it is now.
    """
    if card.suite != SUITE_VERSION:
        return f"its verdict is stale: suite {card.suite} gave it, and now there is {SUITE_VERSION}"
    if card.repeat.release != release:
        return "its verdict is stale: the release is not the one that was attacked"
    return None


def _scheme(found: AttackFile, scheme: Scheme[Any]) -> dict[str, Any]:
    return {
        "name": found.scheme,
        "title": scheme.title,
        "version": scheme.version,
        "parameters": scheme.params.model_dump(mode="json"),
        "digest": hashlib.sha256(scheme.params.canonical().encode()).hexdigest()[:16],
    }


def _open(outcome: Mapping[str, Any]) -> bool:
    """Something that counts for this receiver has no figure."""
    findings = outcome["findings"]
    return any(finding["counts"] and finding["value"] is None for finding in findings)


def _not_run(found: AttackFile, params: GateParams) -> list[dict[str, str]]:
    """Attacks that a verdict needs and that nobody asked for."""
    present = {result.attack for result in found.results}
    return [
        {"attack": name, "title": name, "reason": "required for a verdict, but it was not run"}
        for name in params.required("public_release")
        if name not in present
    ]


def _key_space(bits: float | None) -> str:
    if bits is None:
        return "The number of keyed choices is not known, and never a reason to pass."
    if bits == 0:
        return "There is no key."
    return (
        f"One image has about {round(bits):,} bits of keyed choices, which is never a reason to "
        "pass: attacks need not try keys."
    )
