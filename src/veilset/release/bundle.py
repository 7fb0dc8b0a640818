"""The folder that is released, and how a receiver checks it with nothing but the public key.

    README.md            what it is, for whom, its limits, and how to load it
    card.json            what attacks found
    croissant.json       metadata for catalogues and loaders
    public-key.txt       which key it should be signed by; information, not proof
    statement.dsse.json  the SHA-256 of every other file, and what is claimed of them, signed
    <set>/               one folder a protected set: shards and manifest

Nothing but protected shards and what is written here goes into it. Source: ours.
"""

import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from veilset.data.export import export_set
from veilset.data.manifest import Manifest
from veilset.data.shards import ImageSet
from veilset.errors import CorruptError, ReleaseError, VeilsetError
from veilset.files import (
    json_text,
    require_space,
    sha256_file,
    staged_folder,
    write_bytes,
    write_text,
)
from veilset.release.signing import PublicKey, SigningKey, seal, unseal
from veilset.release.statement import LEARNT_TYPE, Predicate, SchemeFacts, SetFacts, Statement

if TYPE_CHECKING:
    from veilset.release.datasheet import Terms
    from veilset.report.model import Card

STATEMENT: Final = "statement.dsse.json"
README: Final = "README.md"
CARD: Final = "card.json"
CROISSANT: Final = "croissant.json"
PUBLIC_KEY: Final = "public-key.txt"

Advance = Callable[[int, int], None]
"""Told bytes done and bytes in all."""

_TOP: Final = frozenset({STATEMENT, README, CARD, CROISSANT, PUBLIC_KEY})
_STATEMENT_LIMIT: Final = 1 << 28
_SPARE_BYTES: Final = 1 << 20
_PATH: Final = re.compile(
    r"""(?<![\w:/.>])/(?:[\w.@+-]+/)+[\w.@+-]*  # /home/somebody/photographs
    | (?<!\w)[A-Za-z]:\\ | \\\\\w | (?<!\w)~/ | file:/""",
    re.VERBOSE,
)
_ATTACK: Final = (
    "attack", "title", "risk", "attacker", "knowledge", "knowledge_words", "words", "metric",
    "metric_words", "value", "low", "high", "confidence", "method", "chance", "control", "oracle",
    "residual", "targets", "gallery", "variant", "status", "size",
)  # fmt: skip


# ------------------------------------------------------------------------------ writing


def write_release(
    folder: Path,
    sets: Mapping[str, ImageSet],
    facts: Predicate,
    signing_key: SigningKey,
    *,
    card: "Card",
    terms: "Terms",
    private: Collection[str] = (),
    parquet: bool = False,
    check_metadata: bool = False,
) -> Statement:
    """Builds a release, which appears whole and signed, or not at all.

    Every byte of the shards is verified while it is copied, and nothing is linked: what happens to
    the owner's files later does not reach the release.

    Args:
        folder: Where; a release that is there is never replaced.
        sets: The protected sets by the folder that each has in the release.
        facts: What `veilset.release.readiness.release_facts` returned for exactly these sets.
        signing_key: The owner's.
        card: The leakage card; what repeats the attacks, or might show an image, stays out.
        terms: What the owner adds.
        private: Words that must not occur in any text: names of hosts, users, files, persons.
        parquet: Also write the same rows as Parquet into `<set>-parquet`, which doubles the release
            and lets Croissant loaders read it.
        check_metadata: Have mlcroissant check the metadata, which takes seconds.

    Returns:
        The statement that was signed.

    Raises:
        ReleaseError: The sets are not those of the facts, can never be released, a text would tell
            a path or one of the private words, or the metadata is not valid.
        SettingsError: The metadata shall be checked, and mlcroissant is not installed.
        VeilsetError: The folder is there and not empty.
        CorruptError: A stored byte is not as recorded.
        DiskFullError: The disk has no room.
        BusyError: Another run writes this folder.
    """
    manifests = {name: one.manifest for name, one in sorted(sets.items())}
    _require_same(manifests, facts, card)
    _require_public(manifests, facts, card, terms, private)
    if folder.is_symlink() or (folder.exists() and not _is_empty(folder)):
        raise VeilsetError(
            f"{folder} is there already, and a release is never replaced: choose another place."
        )
    size = sum(one.bytes for one in facts.sets) * (2 if parquet else 1)
    require_space(folder.parent, size + _SPARE_BYTES)
    with staged_folder(folder, f"release {facts.root} {os.urandom(8).hex()}") as staging:
        for name, one in sorted(sets.items()):
            export_set(one, staging / name, "arrow")
            if parquet:
                export_set(one, staging / f"{name}-parquet", "parquet")
        data = {path.relative_to(staging).as_posix(): path for path in staging.glob("*/*")}
        files = {place: (sha256_file(path), path.stat().st_size) for place, path in data.items()}
        texts = _texts(files, manifests, facts, card, terms)
        for place, text in (texts | {PUBLIC_KEY: signing_key.public.text}).items():
            write_text(staging / place, text)
            files[place] = (sha256_file(staging / place), len(text))
        if check_metadata:
            _require_valid(staging / CROISSANT)
        statement = Statement.of({place: digest for place, (digest, _) in files.items()}, facts)
        write_bytes(staging / STATEMENT, seal(statement.to_bytes(), signing_key))
    return statement


def public_card(card: "Card") -> dict[str, Any]:
    """What may be published of a leakage card: figures and words, no details and no seeds."""
    return {
        "schema": card.schema_,
        "dataset": card.dataset,
        "scheme": card.scheme.model_dump(mode="json"),
        "suite": card.suite,
        "complete": card.complete,
        "stale": card.stale,
        "verdicts": {name: one.model_dump(mode="json") for name, one in card.verdicts.items()},
        "attacks": [one.model_dump(mode="json", include=set(_ATTACK)) for one in card.attacks],
        "not_tested": [one.model_dump(mode="json") for one in card.not_tested],
        "other_kinds": [one.model_dump(mode="json") for one in card.other_kinds],
        "key_space_bits": card.key_space_bits,
        "key_space_words": card.key_space_words,
        "effort": card.repeat.effort,
    }


def _require_same(manifests: Mapping[str, Manifest], facts: Predicate, card: "Card") -> None:
    """The facts are of these sets and this card, and the sets may be released at all."""
    from veilset.release.readiness import set_refusals  # noqa: PLC0415 - seconds

    reasons = set_refusals(manifests)
    if reasons:
        raise ReleaseError(" ".join(reasons))
    made = tuple(SetFacts.of(name, one) for name, one in manifests.items())
    told = {name: (one.verdict, one.words) for name, one in facts.verdicts.items()}
    carded = {name: (one.verdict, one.words) for name, one in card.verdicts.items()}
    if made != facts.sets or not all(_is_of(one, facts) for one in manifests.values()):
        raise ReleaseError(
            "The sets to release are not those that the statement tells of: gather the facts again "
            "from the sets as they are now."
        )
    if any(carded.get(name) != said for name, said in told.items()):
        raise ReleaseError(
            "The leakage card has other verdicts than the statement: gather the facts again from "
            "the card as it is now."
        )
    taken = [name for name in manifests if name in _TOP or f"{name}-parquet" in manifests]
    if taken:
        raise ReleaseError(
            f"A set cannot have the folder {taken[0]!r} in a release, because something else has "
            "that name there: give it another."
        )


def _is_of(manifest: Manifest, facts: Predicate) -> bool:
    record = manifest.scheme or {}
    return (
        manifest.kind == "protected"
        and manifest.dataset == facts.dataset
        and manifest.key_fingerprint == facts.key_fingerprint
        and bool(record)
        and SchemeFacts.model_validate(record) == facts.scheme
    )


def _texts(
    files: Mapping[str, tuple[str, int]],
    manifests: Mapping[str, Manifest],
    facts: Predicate,
    card: "Card",
    terms: "Terms",
) -> dict[str, str]:
    """What is written for people and catalogues, by its place."""
    from veilset.release.croissant import croissant  # noqa: PLC0415
    from veilset.release.datasheet import datasheet  # noqa: PLC0415 - seconds

    classes = next(iter(manifests.values())).classes
    data = {name: one for name, one in files.items() if name.endswith((".arrow", ".parquet"))}
    return {
        CARD: json_text(public_card(card)),
        CROISSANT: json_text(croissant(facts, data, terms)),
        README: datasheet(facts, card, classes, terms),
    }


def _require_valid(path: Path) -> None:
    from veilset.release.croissant import croissant_faults  # noqa: PLC0415

    faults = croissant_faults(path)
    if faults:
        raise ReleaseError(
            f"mlcroissant does not accept the metadata of this release ({faults[0].rstrip('.')}), "
            "so nothing was released: change the data set's name, the licence or the publisher."
        )


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _require_public(
    manifests: Mapping[str, Manifest],
    facts: Predicate,
    card: "Card",
    terms: "Terms",
    private: Collection[str],
) -> None:
    """Refuses a release of which a text would tell a path or a private word.

    All that is written is made of these values and of words of ours, which tell nothing.
    """
    said: dict[str, Any] = {
        f"{name}/manifest.json": one.model_dump(mode="json") for name, one in manifests.items()
    }
    said |= {STATEMENT: facts.model_dump(mode="json"), CARD: public_card(card)}
    said[README] = [terms.licence, terms.publisher]
    for place, value in said.items():
        told = told_privately("\n".join(_strings(value)), private)
        if told is not None:
            raise ReleaseError(
                f"{place} of this release would tell {told!r}, which is private, so nothing was "
                "written: change where it comes from (class names, licence, publisher, waiver)."
            )


def told_privately(text: str, private: Collection[str] = ()) -> str | None:
    """The first path of this machine, or private word, that a text tells; None where it does not.

    Args:
        text: Plain text.
        private: Words; each counts where it stands as a word of its own.
    """
    path = _PATH.search(text)
    if path is not None:
        return path[0]
    present = (word for word in private if word and word in text)
    for word in present:
        if re.search(rf"(?<![0-9A-Za-z]){re.escape(word)}(?![0-9A-Za-z])", text):
            return word
    return None


def _strings(value: Any) -> Iterator[str]:
    """All texts in plain JSON; the names of its fields are ours."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


# ------------------------------------------------------------------------------ checking


@dataclass(frozen=True)
class ReleaseReport:
    """What a receiver's check found.

    Attributes:
        faults: A sentence each; none where every byte is as its owner signed it.
        statement: What was signed; None where that cannot be told.
        files: How many files were compared.
        bytes: How long they are.
    """

    faults: tuple[str, ...]
    statement: Statement | None
    files: int = 0
    bytes: int = 0

    @property
    def sound(self) -> bool:
        """Whether the release may be relied on."""
        return not self.faults


def verify_release(
    folder: Path, public_key: PublicKey, progress: Advance | None = None
) -> ReleaseReport:
    """Checks a release against its owner's signature: every byte, no file more, no file less.

    It needs nothing but the folder and the key, writes nothing and follows no link.

    Args:
        folder: The release.
        public_key: The owner's, from a source that the receiver trusts: never the one beside the
            data.
        progress: Told after each file.

    Returns:
        What was found; it raises for nothing that is wrong with the release.
    """
    try:
        raw = read_statement(folder / STATEMENT)
        statement = Statement.from_bytes(unseal(raw, public_key))
    except CorruptError as error:
        return ReleaseReport((str(error),), None)
    compared = compare_files(folder, statement.files, progress)
    faults = compared.faults or tuple(_sets(folder, statement))
    return ReleaseReport(faults, statement, compared.files, compared.bytes)


@dataclass(frozen=True)
class Compared:
    """What came of comparing a folder with what was signed.

    Attributes:
        faults: A sentence each.
        files: How many files were compared.
        bytes: How long they are.
    """

    faults: tuple[str, ...]
    files: int
    bytes: int


def compare_files(
    folder: Path, signed: Mapping[str, str], progress: Advance | None = None
) -> Compared:
    """Compares every file below a folder, but for its statement, with what was signed.

    Args:
        folder: The folder.
        signed: SHA-256 of each file by its place.
        progress: Told after each file.
    """
    found = dict(_found(folder))
    faults = [*_places(signed, found)]
    present = [name for name in sorted(signed) if found.get(name) == "file"]
    total = sum((folder / name).lstat().st_size for name in present)
    done = 0
    for name in present:
        size, fault = _compare(folder / name, name, signed[name])
        faults += [fault] if fault else []
        done += size
        if progress is not None:
            progress(done, total)
    return Compared(tuple(faults), len(present), done)


def read_statement(path: Path) -> bytes:
    """The bytes of a statement's envelope; no link is followed.

    Raises:
        CorruptError: There is none.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise CorruptError(
            f"{path} cannot be read ({error.strerror}), so {path.parent} is no release, or not a "
            "whole one: fetch it again."
        ) from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _STATEMENT_LIMIT:
            raise CorruptError(f"{path} is no statement of a release: fetch it again.")
        return file.read(_STATEMENT_LIMIT)


def is_bundle(folder: Path, public_key: PublicKey) -> bool:
    """Whether a folder's statement is signed, and is about what a scheme learnt."""
    try:
        raw = unseal(read_statement(folder / STATEMENT), public_key)
    except CorruptError:
        return False
    return f'"{LEARNT_TYPE}"'.encode() in raw


def _found(folder: Path) -> Iterator[tuple[str, str]]:
    """Everything below a folder but the statement: its place, and `file`, `folder` or `other`."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda one: one.name)
        except OSError:
            continue  # What is in it counts as missing.
        for entry in entries:
            place = Path(entry.path).relative_to(folder).as_posix()
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
                yield place, "folder"
            elif place != STATEMENT:
                yield place, "file" if entry.is_file(follow_symlinks=False) else "other"


def _places(signed: Mapping[str, str], found: Mapping[str, str]) -> Iterator[str]:
    """Files that are missing, too many, or none."""
    folders = {parent.as_posix() for name in signed for parent in Path(name).parents}
    for name in sorted(signed):
        if name not in found:
            yield f"{name} is missing, though its owner signed it: fetch the release again."
        elif found[name] != "file":
            yield f"{name} is a link or folder where its owner signed a file: fetch it again."
    for name, kind in sorted(found.items()):
        known = name in signed or (kind == "folder" and name in folders)
        if not known:
            yield (
                f"{name!r} is there, but is no part of what its owner signed: do not use it, and "
                "remove it."
            )


def _compare(path: Path, name: str, expected: str) -> tuple[int, str | None]:
    """Length of a file, and what is wrong with its bytes."""
    try:
        size, digest = path.lstat().st_size, sha256_file(path)
    except OSError as error:
        return 0, f"{name} cannot be read ({error.strerror}): fetch it again."
    if digest == expected:
        return size, None
    return size, f"{name} is not as its owner signed it, in one bit or more: fetch it again."


def _sets(folder: Path, statement: Statement) -> Iterator[str]:
    """Whether the sets are those that the statement tells of; their bytes were compared before."""
    for one in statement.predicate.sets:
        try:
            manifest = Manifest.load(folder / one.folder)
            same = SetFacts.of(one.folder, manifest) == one
            same = same and _is_of(manifest, statement.predicate)
        except (CorruptError, ValidationError):
            same = False
        named = {f"{one.folder}/{e.file}": e.sha256 for e in manifest.shards} if same else {}
        if not same or not named.items() <= statement.files.items():
            yield (
                f"The manifest of {one.folder} tells of other shards or another set than the "
                "statement, so the owner signed a contradiction: ask the owner."
            )


__all__ = [
    "CARD", "CROISSANT", "PUBLIC_KEY", "README", "STATEMENT", "Compared", "ReleaseReport",
    "compare_files", "is_bundle", "public_card", "read_statement", "told_privately",
    "verify_release", "write_release",
]  # fmt: skip
