"""A release on disk: whole, signed, nothing private in it, and no bit of it can change unseen."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from release_cases import DAY, IDS_KEY, KEY, TERMS, Made, card_of, made

from veilset.data.manifest import Manifest
from veilset.data.shards import ImageSet
from veilset.errors import CorruptError, ReleaseError, VeilsetError
from veilset.files import write_bytes
from veilset.release.bundle import (
    STATEMENT,
    told_privately,
    verify_release,
    write_release,
)
from veilset.release.datasheet import Terms
from veilset.release.signing import SigningKey, seal, unseal
from veilset.release.statement import Statement, Waiver
from veilset.schemes.registry import make_scheme

SIGNER, OTHER = SigningKey(bytes(range(2, 34))), SigningKey(bytes(32))


def write(case: Made, folder: Path, **changed: Any) -> Statement:
    arguments: dict[str, Any] = {
        "sets": case.sets, "facts": case.facts, "card": card_of(case.scheme), "terms": TERMS,
        "private": case.private,
    } | changed  # fmt: skip
    return write_release(folder, signing_key=SIGNER, **arguments)


@pytest.fixture(scope="module")
def release(project: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "release"
    write(project, folder)
    return folder


@pytest.fixture
def copy(release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "copy"))


def files(folder: Path) -> dict[str, Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}


# ------------------------------------------------------------------------------ writing


def test_it_holds_protected_data_and_what_is_said_of_it(release: Path, project: Made) -> None:
    assert set(files(release)) == {
        "README.md", "card.json", "croissant.json", "public-key.txt", "statement.dsse.json",
        *(f"{name}/{file}" for name in ("drop-0", "drop-1")
          for file in ("manifest.json", "test-00000.arrow", "train-00000.arrow")),
        "drop-1/validation-00000.arrow",
    }  # fmt: skip
    assert [path.name for path in release.parent.iterdir()] == ["release"]
    for name, one in project.sets.items():
        opened = ImageSet.open(release / name)
        assert opened.manifest == one.manifest
        assert (opened.images("train") == one.images("train")).all()


def test_what_was_signed_is_every_other_file(release: Path, project: Made) -> None:
    statement = Statement.from_bytes(unseal((release / STATEMENT).read_bytes(), SIGNER.public))
    found = files(release)
    del found[STATEMENT]
    assert statement.files == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()
    }
    assert statement.predicate == project.facts


def test_a_sound_release_is_found_sound(release: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_release(release, SIGNER.public, lambda *at: seen.append(at))
    assert report.sound
    assert report.faults == ()
    assert report.statement is not None
    found = files(release)
    size = sum(path.stat().st_size for path in found.values())
    assert report.files == len(found) - 1
    assert report.bytes == size - found[STATEMENT].stat().st_size
    assert seen[-1] == (report.bytes, report.bytes)
    assert seen == sorted(seen)


def test_it_is_checked_from_inside_as_the_page_says(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy)
    assert verify_release(Path(), SIGNER.public).faults == ()
    (copy / "drop-0/more").write_bytes(b"")
    (fault,) = verify_release(Path(), SIGNER.public).faults
    assert "'drop-0/more' is there" in fault


def test_nothing_but_the_public_key_is_needed(copy: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from veilset.release.bundle import verify_release\n"
        "from veilset.release.signing import PublicKey\n"
        f"key = PublicKey(bytes.fromhex('{SIGNER.public.raw.hex()}'))\n"
        f"assert verify_release(Path({str(copy)!r}), key).sound\n"
        "print(*(name for name in ('torch', 'sklearn', 'dvc', 'mlflow') if name in sys.modules))\n"
    )
    clean = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean, cwd=copy.parent, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == ""


def test_the_same_inputs_give_the_same_bytes(release: Path, project: Made, tmp_path: Path) -> None:
    write(project, tmp_path / "again")
    again = files(tmp_path / "again")
    assert {name: path.read_bytes() for name, path in again.items()} == {
        name: path.read_bytes() for name, path in files(release).items()
    }


def test_it_shares_no_file_with_its_owner(release: Path) -> None:
    assert {path.stat().st_nlink for path in files(release).values()} == {1}


def test_a_release_is_never_replaced(copy: Path, project: Made, tmp_path: Path) -> None:
    before = (copy / STATEMENT).read_bytes()
    with pytest.raises(VeilsetError, match="never replaced: choose another place"):
        write(project, copy)
    assert (copy / STATEMENT).read_bytes() == before
    (tmp_path / "empty").mkdir()
    write(project, tmp_path / "empty")
    assert verify_release(tmp_path / "empty", SIGNER.public).sound


def test_a_damaged_shard_is_not_released(project: Made, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(project.sets["drop-0"].folder, tmp_path / "broken"))
    sets = project.sets | {"drop-0": ImageSet.open(broken)}
    flip(broken / "train-00000.arrow", 9_000)
    with pytest.raises(CorruptError, match="is damaged in chunk 0"):
        write(project, tmp_path / "out", sets=sets)
    assert not (tmp_path / "out").exists()


def test_parquet_beside_the_shards_is_signed_as_well(project: Made, tmp_path: Path) -> None:
    write(project, tmp_path / "out", parquet=True)
    assert "drop-0-parquet/train-00000.parquet" in files(tmp_path / "out")
    assert verify_release(tmp_path / "out", SIGNER.public).sound


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda p: {"sets": {"drop-0": p.sets["drop-0"]}}, "not those that the statement tells of"),
     (lambda p: {"sets": dict(zip(p.sets, reversed(p.sets.values()), strict=True))},
      "not those that the statement tells of"),
     (lambda p: {"facts": p.facts.model_copy(update={"dataset": "other"})},
      "not those that the statement tells of"),
     (lambda _: {"sets": {}}, "no protected set to release"),
     (lambda p: {"card": card_of(p.scheme, results=[])}, "card has other verdicts")],
)  # fmt: skip
def test_facts_of_something_else_are_refused(
    project: Made, tmp_path: Path, change: Callable[[Made], dict[str, Any]], words: str
) -> None:
    with pytest.raises(ReleaseError, match=words):
        write(project, tmp_path / "out", **change(project))
    assert not list(tmp_path.iterdir())


def test_plain_images_are_refused_even_with_facts(project: Made, tmp_path: Path) -> None:
    plain = made(tmp_path / "plain", make_scheme("plain", {}, "test"), drops=1)
    with pytest.raises(ReleaseError, match="protects nothing"):
        write(project, tmp_path / "out", sets=plain.sets)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------ nothing private


def test_no_leak_of_raw_ids_hashes_names_groups_and_paths(release: Path, project: Made) -> None:
    assert len(project.private) > 500
    hosts = {os.uname().nodename, str(release.parent), str(Path.home())}
    published = b"\0".join(path.read_bytes() for path in files(release).values())
    statement = unseal((release / STATEMENT).read_bytes(), SIGNER.public)
    for raw in (published, statement):
        assert [word for word in project.private | hosts if word.encode() in raw] == []
    # No raw id and no raw image either, as the bytes that they are.
    for word in project.private:
        if len(word) == 32 and not set(word) - set("0123456789abcdef"):
            assert bytes.fromhex(word) not in published
    # Nor anything that the noise, the permutations or the ids come from.
    stream = project.scheme.stream(KEY).secret
    for secret in (KEY.secret, IDS_KEY.secret, SIGNER.secret, stream):
        assert secret not in published
        assert secret.hex().encode() not in published
        assert base64.b64encode(secret) not in published + statement


def test_the_card_has_figures_and_no_details_or_seeds(release: Path) -> None:
    card = json.loads((release / "card.json").read_text())
    inverse = card["attacks"][0]
    assert (inverse["attack"], inverse["high"], inverse["chance"]) == (
        "learned_inverse",
        0.03,
        0.01,
    )
    assert not {"details", "seed", "seconds", "variants"} & set(inverse)
    assert not {"repeat", "demo_key"} & set(card)
    assert card["not_tested"][0]["attack"] == "recognition"


@pytest.mark.parametrize(
    ("change", "where"),
    [(lambda _: {"terms": Terms("see /home/ana/licence.txt", "Clinic")}, "README.md"),
     (lambda _: {"terms": replace(TERMS, publisher="ward-seven")}, "README.md"),
     (lambda _: {"private": ["Example Clinic"]}, "README.md"),
     (lambda _: {"private": ["well"]}, "drop-0/manifest.json"),
     (lambda p: {"facts": p.facts.model_copy(update={"waiver": Waiver(
         reason="agreed, see\nC:\\papers\\contract.pdf", name="Ana", date=DAY)})}, STATEMENT),
     (lambda p: {"facts": p.facts.model_copy(update={"packages": {"x": "file:///opt/x"}})},
      STATEMENT)],
)  # fmt: skip
def test_a_text_that_would_tell_is_refused_before_anything_is_written(
    project: Made, tmp_path: Path, change: Callable[[Made], dict[str, Any]], where: str
) -> None:
    with pytest.raises(ReleaseError, match=rf"{where} of this release would tell"):
        write(project, tmp_path / "out", **change(project))
    assert not list(tmp_path.iterdir())


def test_a_user_or_host_with_the_name_of_a_field_stops_no_release(
    project: Made, tmp_path: Path
) -> None:
    write(project, tmp_path / "out", private=["root", "subject", "predicate", "commit", "sets"])
    assert verify_release(tmp_path / "out", SIGNER.public).sound


@pytest.mark.parametrize(
    ("text", "told"),
    [("see /home/ana/x.png", "/home/ana/x.png"), ("(/srv/a/)", "/srv/a/"), ("~/photos", "~/"),
     ("C:\\x", "C:\\"), ("\\\\server\\x", "\\\\s"), ("file://x", "file:/"), ("by ana", "ana"),
     ("ana-maria", "ana"), ("/a/b", "/a/b"),
     ("https://example.org/a/b", None), ("and/or/none", None), ("train/id", None),
     ("*/train-*.arrow", None), ("banana", None), ("a: /", None), ("1 / 2 / 3", None)],
)  # fmt: skip
def test_what_counts_as_private(text: str, told: str | None) -> None:
    assert told_privately(text, ["ana", ""]) == told


# ------------------------------------------------------------------------------ checking


def flip(path: Path, bit: int) -> None:
    """One bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def test_one_flipped_bit_anywhere_is_found(copy: Path) -> None:
    rng = np.random.default_rng(0)
    for name, path in files(copy).items():
        bits = 8 * path.stat().st_size
        some = {0, bits - 1, *rng.integers(0, bits, 12).tolist()}
        for bit in sorted(some):
            flip(path, bit)
            report = verify_release(copy, SIGNER.public)
            assert len(report.faults) == 1, (name, bit)
            assert ("statement" in report.faults[0].lower()) == (name == STATEMENT)
            assert name == STATEMENT or name in report.faults[0]
            flip(path, bit)
    assert verify_release(copy, SIGNER.public).sound


def add_hidden(folder: Path) -> None:
    (folder / "drop-0/.hidden").write_bytes(b"")


def add_folder(folder: Path) -> None:
    (folder / "drop-2").mkdir()


def cut(folder: Path) -> None:
    path = folder / "drop-0/train-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1])


def link(folder: Path) -> None:
    path = folder / "drop-0/train-00000.arrow"
    path.rename(folder.parent / "elsewhere.arrow")
    path.symlink_to(folder.parent / "elsewhere.arrow")


def link_folder(folder: Path) -> None:
    (folder / "drop-1").rename(folder.parent / "elsewhere")
    (folder / "drop-1").symlink_to(folder.parent / "elsewhere")


def swap(folder: Path) -> None:
    one, other = folder / "drop-0/train-00000.arrow", folder / "drop-1/train-00000.arrow"
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)


def pipe(folder: Path) -> None:
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")


@pytest.mark.parametrize(
    ("harm", "words", "count"),
    [(lambda f: (f / "README.md").unlink(), "README.md is missing", 1),
     (lambda f: shutil.rmtree(f / "drop-1"), "drop-1/manifest.json is missing", 4),
     (lambda f: (f / "more.txt").write_text("x"), "'more.txt' is there, but is no part", 1),
     (add_hidden, "'drop-0/.hidden' is there", 1),
     (add_folder, "'drop-2' is there", 1),
     (cut, "train-00000.arrow is not as its owner signed it", 1),
     (link, "train-00000.arrow is a link or folder", 1),
     (link_folder, "drop-1/manifest.json is missing", 5),
     (swap, "drop-0/train-00000.arrow is not as", 2),
     (pipe, "README.md is a link or folder", 1),
     (lambda f: (f / STATEMENT).unlink(), "is no release, or not a whole one", 1),
     (lambda f: (f / STATEMENT).write_bytes(b""), "no signed envelope", 1),
     (shutil.rmtree, "is no release, or not a whole one", 1)],
)  # fmt: skip
def test_each_kind_of_harm_has_its_sentence(
    copy: Path, harm: Callable[[Path], object], words: str, count: int
) -> None:
    harm(copy)
    report = verify_release(copy, SIGNER.public)
    assert not report.sound
    assert words in report.faults[0], report.faults
    assert len(report.faults) == count
    assert all(fault.endswith(".") for fault in report.faults)


def test_a_statement_that_is_a_link_or_pipe_is_not_read(copy: Path) -> None:
    path = copy / STATEMENT
    path.rename(copy.parent / STATEMENT)
    path.symlink_to(copy.parent / STATEMENT)
    assert "cannot be read" in verify_release(copy, SIGNER.public).faults[0]
    path.unlink()
    os.mkfifo(path)
    assert "is no statement of a release" in verify_release(copy, SIGNER.public).faults[0]


def test_somebody_elses_signature_is_no_signature(copy: Path) -> None:
    assert "use the public key" in verify_release(copy, OTHER.public).faults[0]
    # A forger who puts their own key and statement there fools only who trusts that file.
    write_bytes(copy / "public-key.txt", OTHER.public.text.encode())
    statement = Statement.from_bytes(unseal((copy / STATEMENT).read_bytes(), SIGNER.public))
    write_bytes(copy / STATEMENT, seal(statement.to_bytes(), OTHER))
    assert "do not trust" in verify_release(copy, SIGNER.public).faults[0]


def resigned(folder: Path, **changed: Any) -> None:
    """What an owner would sign who contradicts themselves."""
    old = Statement.from_bytes(unseal((folder / STATEMENT).read_bytes(), SIGNER.public))
    found = files(folder)
    del found[STATEMENT]
    hashes = {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in found.items()}
    statement = Statement.of(hashes, old.predicate.model_copy(update=changed))
    write_bytes(folder / STATEMENT, seal(statement.to_bytes(), SIGNER))


def test_an_owners_own_contradiction_is_found(copy: Path) -> None:
    resigned(copy)
    assert verify_release(copy, SIGNER.public).sound
    resigned(copy, key_fingerprint="0" * 16)
    assert "signed a contradiction" in verify_release(copy, SIGNER.public).faults[0]
    resigned(copy, key_fingerprint=KEY.fingerprint)
    # The shards of one set in the place of the other's, under its manifest.
    (copy / "drop-0/train-00000.arrow").write_bytes(
        (copy / "drop-1/train-00000.arrow").read_bytes()
    )
    resigned(copy)
    (fault,) = verify_release(copy, SIGNER.public).faults
    assert "manifest of drop-0 tells of other shards" in fault


def test_a_signed_set_of_plain_images_is_a_contradiction(copy: Path) -> None:
    manifest = Manifest.load(copy / "drop-0").model_copy(update={"kind": "ingested", "source": ""})
    manifest.save(copy / "drop-0")
    resigned(copy)
    assert "signed a contradiction" in verify_release(copy, SIGNER.public).faults[0]
