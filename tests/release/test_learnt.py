"""A bundle of what a scheme learnt: signed, attacked first, refused where it tells of images."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veilset.attacks.learnt_membership import LearntMembership
from veilset.errors import CorruptError, ReleaseError, VeilsetError
from veilset.metrics.statistics import Interval
from veilset.release.bundle import STATEMENT, is_bundle, verify_release
from veilset.release.datasheet import Terms
from veilset.release.learnt import (
    Learnt,
    learnt_event,
    learnt_refusals,
    verify_learnt,
    write_learnt,
)
from veilset.release.signing import SigningKey
from veilset.release.statement import Waiver
from veilset.schemes.fitted import Fitted, load_fitted, save_fitted
from veilset.schemes.mask_desensitization import MaskDesensitization

KEY, TERMS = SigningKey(bytes(range(32))), Terms("CC BY 4.0", "Example Clinic")
WAIVER = Waiver(reason="An exercise on noise alone.", name="Ada Byron", date=date(2026, 3, 1))
LOW, HIGH = Interval(0.01, 0.0, 0.03), Interval(0.6, 0.5, 0.7)
BY_HEART = Interval(0.95, 0.9, 1.0)
PASSES = LearntMembership(LOW, LOW, BY_HEART, 0.01, 500, 500, 8, "distance, lira online")


@pytest.fixture
def learnt(tmp_path: Path) -> Learnt:
    plain = MaskDesensitization()
    arrays = {"shape": np.array([16, 16, 1]), "kept": np.ones(16, dtype=np.uint8)}
    fitted = Fitted(plain.name, plain.version, plain.params.canonical(), arrays, {"kept": 16})
    save_fitted(tmp_path / "fitted", fitted)
    return Learnt(
        scheme=plain.with_fitted(fitted), folder=tmp_path / "fitted", dataset="faces",
        membership=PASSES, limit=0.05, waiver=None, commit="a" * 40, packages={"veilset": "0.1.0"},
    )  # fmt: skip


def write(learnt: Learnt, folder: Path, **more: Any) -> Path:
    write_learnt(folder, learnt, KEY, TERMS, **more)
    return folder


def test_a_bundle_is_signed_and_what_was_learnt_is_used_from_it(
    learnt: Learnt, tmp_path: Path
) -> None:
    folder = write(learnt, tmp_path / "bundle")
    assert is_bundle(folder, KEY.public)
    found = verify_learnt(folder, KEY.public)
    assert found.faults == ()
    assert found.statement is not None
    assert found.statement.predicate.membership.members == 500
    assert load_fitted(folder).hash == learnt.scheme.fitted_hash
    page = (folder / "README.md").read_text()
    assert "1.0% of the images that it was fitted on" in page
    assert "**pass**" in page and "--scheme mask_desensitization" in page
    # It is no release of images.
    assert verify_release(folder, KEY.public).faults
    assert not is_bundle(folder, SigningKey(bytes(32)).public)


@pytest.mark.parametrize("name", ["fitted.safetensors", "fitted.json", "README.md", STATEMENT])
def test_any_flipped_bit_is_found(learnt: Learnt, tmp_path: Path, name: str) -> None:
    folder = write(learnt, tmp_path / "bundle")
    raw = bytearray((folder / name).read_bytes())
    for at in range(0, len(raw), max(1, len(raw) // 12)):
        (folder / name).write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        assert verify_learnt(folder, KEY.public).faults, at
    (folder / name).write_bytes(bytes(raw))
    assert verify_learnt(folder, KEY.public).faults == ()
    (folder / "more").write_text("x")
    assert "is no part" in verify_learnt(folder, KEY.public).faults[0]


def test_what_tells_on_its_images_is_refused_unless_somebody_answers_for_it(
    learnt: Learnt, tmp_path: Path
) -> None:
    assert learnt_refusals(learnt, ()) == ()
    leaks = replace(learnt, membership=replace(PASSES, rate=HIGH))
    (reason,) = learnt_refusals(leaks, ())
    assert "'fail' and no pass" in reason and "60.0%" in reason
    weak = replace(learnt, membership=replace(PASSES, oracle=LOW))
    assert "'undecided'" in learnt_refusals(weak, ())[0]
    waived = replace(leaks, waiver=WAIVER)
    assert learnt_refusals(waived, ()) == ()
    assert "src/a.py changed" in learnt_refusals(waived, ("src/a.py",))[0]
    page = (write(waived, tmp_path / "bundle") / "README.md").read_text()
    assert "An exercise on noise alone. (Ada Byron, 2026-03-01)" in page and "**fail**" in page


def test_nothing_private_is_told_and_nothing_is_replaced(learnt: Learnt, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="which is private"):
        write(learnt, tmp_path / "bundle", private=("faces",))
    assert not (tmp_path / "bundle").exists()
    folder = write(learnt, tmp_path / "bundle")
    with pytest.raises(VeilsetError, match="never replaced"):
        write(learnt, folder)
    other = Fitted(
        learnt.scheme.name, learnt.scheme.version, learnt.scheme.params.canonical(),
        {"shape": np.array([16, 16, 1]), "kept": np.zeros(16, dtype=np.uint8)},
    )  # fmt: skip
    save_fitted(tmp_path / "other", other)
    with pytest.raises(CorruptError, match="not what was attacked"):
        write(replace(learnt, folder=tmp_path / "other"), tmp_path / "again")


def test_the_line_of_the_list_names_what_was_learnt(learnt: Learnt) -> None:
    made = learnt_event("released", learnt.facts, "masks", "out", "somebody")
    assert made.name == f"faces-masks-learnt-{learnt.scheme.fitted_hash[:12]}"
    assert made.what == "learnt" and made.root == learnt.scheme.fitted_hash
    refused = learnt_event("refused", learnt.facts, "masks", "out", "somebody", ("why",))
    assert refused.name == "" and refused.reasons == ("why",)
