"""The report for publication: what is left out of it, and a last look before it is written.

Two steps that know nothing of each other. `for_publication` takes out what may not be shown, by
kind. `refuse_private` then holds the finished page against the raw images themselves, their ids and
their names, so that a slip of the first step, or of a template, does not get out. Source: ours.
"""

import base64
import getpass
import hashlib
import html
import io
import re
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from PIL import Image

from veilset.data.shards import ImageSet
from veilset.errors import ReleaseError
from veilset.files import read_table
from veilset.report.load import read_examples
from veilset.report.model import (
    AttackFile,
    AttackResult,
    Card,
    Drop,
    EvaluationFile,
    EvaluationRow,
    Model,
    ReportInputs,
    Stage,
)
from veilset.types import Images

R = TypeVar("R", AttackResult, EvaluationRow)

_FACTS: Final = frozenset({
    "architecture", "batch", "epochs", "precision", "recipe", "scheme", "seconds", "seed",
    "training_images", "validation_accuracy", "weight_count",
})  # fmt: skip
_PICTURE: Final = re.compile(r"data:image/[a-z+]+;base64,([A-Za-z0-9+/=]*)")
_BETWEEN: Final = re.compile(r"[\s<>\"'=&;,()|:\[\]{}]+")
_ROWS: Final = 4096
_SHORTEST: Final = 4


def for_publication(inputs: ReportInputs) -> ReportInputs:
    """The same evidence without what may not be published; a second time changes nothing.

    Left out are pictures but those of schemes that pass, digests, names of drops and of their
    stages, what the checks observed, where files lie, and what a model's file says of the machine.
    Where each person is a class, class names are names of persons: they become numbers.
    """
    classes = _class_names(inputs.drops)
    drops = tuple(
        _public_drop(drop, place, classes) for place, drop in enumerate(inputs.drops, start=1)
    )
    evaluation = inputs.evaluation
    if evaluation is not None:
        evaluation = EvaluationFile(
            baseline=evaluation.baseline,
            rows=tuple(_public_row(row, classes) for row in evaluation.rows),
            contrasts=evaluation.contrasts,
        )
    return replace(
        inputs,
        drops=drops,
        evaluation=evaluation,
        attacks={name: _public_attacks(file) for name, file in inputs.attacks.items()},
        model_attacks={name: _public_attacks(file) for name, file in inputs.model_attacks.items()},
        cards={name: _public_card(card) for name, card in inputs.cards.items()},
        models=tuple(_public_model(model) for model in inputs.models),
        stages=tuple(_public_stages(inputs.stages)),
        keys={kind: print_ for kind, print_ in inputs.keys.items() if kind == "protection"},
        public=True,
    )


def _class_names(drops: Collection[Drop]) -> dict[str, str]:
    """Class name -> number in words, for closed sets of persons; empty for others."""
    if not any(drop.groups_are_classes for drop in drops):
        return {}
    names = dict.fromkeys(name for drop in drops for name in drop.classes)
    return {name: f"class {place}" for place, name in enumerate(names, start=1)}


def _public_drop(drop: Drop, place: int, classes: Mapping[str, str]) -> Drop:
    counts = drop.counts
    if counts is not None:
        counts = {
            role: {classes.get(name, name): number for name, number in row.items()}
            for role, row in counts.items()
        }
    return replace(
        drop,
        name=f"Drop {place}",
        root="",
        classes=tuple(classes.get(name, name) for name in drop.classes),
        counts=counts,
        checks=None
        if drop.checks is None
        else tuple(
            check.model_copy(update={"observed": None, "words": None}) for check in drop.checks
        ),
    )


def _public_row(row: EvaluationRow, classes: Mapping[str, str]) -> EvaluationRow:
    found = tuple(
        one.model_copy(update={"class_name": classes.get(one.class_name, one.class_name)})
        for one in row.per_class
    )
    return row.model_copy(update={"per_class": found})


def _public_result(result: AttackResult) -> AttackResult:
    """Figures stay; what else an attack noted down may name anything."""
    details = {
        key: value
        for key, value in (result.details or {}).items()
        if isinstance(value, int | float)
    }
    return result.model_copy(update={"details": details})


def _public_attacks(file: AttackFile) -> AttackFile:
    return file.model_copy(update={"results": tuple(map(_public_result, file.results))})


def _public_card(card: Card) -> Card:
    repeat = card.repeat.model_copy(update={"release": None})
    attacks = tuple(map(_public_result, card.attacks))
    return card.model_copy(update={"attacks": attacks, "repeat": repeat})


def _public_model(model: Model) -> Model:
    return replace(
        model, facts={name: value for name, value in model.facts.items() if name in _FACTS}
    )


def _public_stages(stages: Collection[Stage]) -> Iterator[Stage]:
    """Kinds of stages, for the small graph: an item may be the name of a drop."""
    for stage in stages:
        kind = stage.name.split("@")[0]
        yield Stage(name=kind, params=None, outs=None, needs=(), level=stage.level)


# ------------------------------------------------------------------------------------- a last look


@dataclass(frozen=True)
class Private:
    """What must not be on a page for publication.

    Attributes:
        words: By what they are, e.g. `the id of an image`: words, each compared as a whole.
        phrases: Likewise, but found in the middle of a word as well.
        pictures: SHA-256 over shape and pixels of what shows an original.
    """

    words: Mapping[str, frozenset[str]]
    phrases: Mapping[str, frozenset[str]]
    pictures: frozenset[str]


def refuse_private(page: str, root: Path, known: Collection[str] = ()) -> None:
    """Holds a page against the raw images of a project, and what they and their places are called.

    Every drop that was ingested is looked at, also those that the pipeline no longer runs over.
    What any text may have by chance is not looked for: names that are shorter than four characters,
    or a mere word or number.

    Args:
        page: The page.
        root: The project's folder.
        known: Names that may be published although something private bears them as well, e.g. that
            of the data set.

    Raises:
        ReleaseError: Something private is on it; the message says what kind of thing, not which.
        CorruptError: A private file is there but cannot be read.
    """
    pictures = frozenset(_shown(page))
    private = gather(root, known, pictures=bool(pictures))
    text = html.unescape(_PICTURE.sub(" ", page))
    words = {word.strip(".") for word in _BETWEEN.split(text)}
    found = [kind for kind, names in private.words.items() if names & words]
    found += [
        kind for kind, names in private.phrases.items() if any(name in text for name in names)
    ]
    if pictures & private.pictures:
        found.append("a picture that is an original or a reconstruction")
    if found:
        raise ReleaseError(
            f"The public page would show {found[0]}, so it was not written: rename what in "
            "params.yaml or in the classes is called like it, or report a fault of Veilset."
        )


def gather(root: Path, known: Collection[str] = (), *, pictures: bool = True) -> Private:
    """What a page of this project must not show; see `refuse_private`.

    Args:
        root: The project's folder.
        known: Names that may be shown.
        pictures: Read the images as well.
    """
    ids: set[str] = set()
    names: set[str] = set()
    groups: set[str] = set()
    drops: set[str] = set()
    for path in sorted((root / "data/ingested").glob("[!.]*/index.parquet")):
        table = read_table(path)
        ids |= set(table["id"].dropna().astype(str)) - {""}
        names |= {form for name in table["name"].dropna() for form in _forms(str(name))}
        groups |= set(table["group"].dropna().astype(str))
        drops.add(path.parent.name)
    allowed = set(known)
    here = {str(root.resolve()), str(Path.home())} - {"/"}
    machine = {socket.gethostname(), _user()}
    return Private(
        words={
            "the id of an image": frozenset(ids),
            "the name of an image's file": _telling(names) - allowed,
            "the name of a person or group": _telling(groups) - allowed,
            "the name of a drop": _telling(drops) - allowed,
            "the name of this machine or its user": _telling(machine) - allowed,
        },
        phrases={
            "a folder of this machine": frozenset(here),
            "the name of an image's file": frozenset(
                name for name in _telling(names) if _BETWEEN.search(name)
            ) - allowed,
        },
        pictures=frozenset(_originals(root)) if pictures else frozenset(),
    )  # fmt: skip


def _forms(name: str) -> set[str]:
    """A file's name with and without its folder, and without its suffix."""
    path = Path(name)
    return {name, path.name, path.stem}


def _telling(found: Collection[str]) -> frozenset[str]:
    """Those that no text has by chance: long enough, and neither a word nor a number."""
    return frozenset(
        word
        for word in found
        if len(word) >= _SHORTEST and not word.isalpha() and not word.isdigit()
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _shown(page: str) -> Iterator[str]:
    """Fingerprints of the pictures on a page."""
    for found in _PICTURE.finditer(page):
        if found[1]:
            with Image.open(io.BytesIO(base64.b64decode(found[1]))) as picture:
                pixels = np.asarray(picture)
            yield _fingerprint(pixels[..., None] if pixels.ndim == 2 else pixels)


def _originals(root: Path) -> Iterator[str]:
    """Fingerprints of all ingested images, and of what attacks made of them."""
    for manifest in sorted((root / "data/ingested").glob("[!.]*/manifest.json")):
        opened = ImageSet.open(manifest.parent)
        for split in opened.splits:
            for start in range(0, opened.count(split), _ROWS):
                yield from _fingerprints(opened.images(split, slice(start, start + _ROWS)))
    for folder in ("data/attacks", "data/attacks_model"):
        for path in sorted((root / folder).rglob("examples.npz")):
            examples = read_examples(path)
            yield from _fingerprints(examples.original)
            # An attack may have nothing better than the protected image itself.
            own = (examples.reconstruction != examples.protected).any(axis=(1, 2, 3))
            yield from _fingerprints(examples.reconstruction[own])


def _fingerprints(images: Images) -> Iterator[str]:
    for image in images:
        yield _fingerprint(image)


def _fingerprint(image: Any) -> str:
    pixels = np.ascontiguousarray(image)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
