"""What a scheme learnt is kept whole or refused, and belongs to the scheme that learnt it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veilset.errors import CorruptError, ProtectionError, SettingsError
from veilset.keys import Key
from veilset.params import Params
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.fitted import ARRAYS, CARD, Fitted, Lessons, Progress, load_fitted, save_fitted
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, Labels


class ShiftParams(Params):
    """By how much more."""

    more: int = 0


class Shift(Scheme[ShiftParams]):
    """Adds the mean of what it learnt from, so that what was learnt shows."""

    name = "shift"
    title = "Shift"
    version = 3
    learns = True
    declares = Declaration(
        keyed=False, reversible=True, guarantee=None, protects_queries=True, uses_labels=False,
        provenance="ours", source="test",
    )  # fmt: skip
    Parameters = ShiftParams

    def _fit(
        self, lessons: Lessons, progress: Progress | None
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        if progress is not None:
            progress(1, 1)
        mean = np.array([round(float(lessons.images.mean()))], np.uint8)
        return {"mean": mean, "steps": np.array(7)}, {"images": len(lessons.images)}

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, ids, stream, pool
        return Protected(images + self.learnt["mean"])


KEY = Key(bytes(range(32)))
IMAGES = np.full((4, 8, 8, 1), 20, np.uint8)
LABELS = np.array([0, 1, 0, 1])
IDS = np.arange(64, dtype=np.uint8).reshape(4, 16)
LESSONS = Lessons(IMAGES, LABELS, IMAGES[:1], LABELS[:1], 2)


def test_a_scheme_that_learns_protects_only_after_it_was_fitted() -> None:
    with pytest.raises(ProtectionError, match=r"shift learns from plain images.*fit it first"):
        Shift().protect(IMAGES, LABELS, IDS, KEY)
    fitted = Shift().fit(LESSONS)
    made = Shift().with_fitted(fitted).protect(IMAGES, LABELS, IDS, KEY)
    assert (made.images == 40).all()
    assert fitted.facts == {"images": 4}


def test_what_was_learnt_survives_the_disk_and_decides_the_stream(tmp_path: Path) -> None:
    fitted = Shift(more=2).fit(LESSONS)
    save_fitted(tmp_path / "f", fitted)
    back = load_fitted(tmp_path / "f")
    assert back == replace(fitted, arrays=back.arrays)
    assert back.hash == fitted.hash
    assert Shift(more=2, fitted=back).record()["fitted_hash"] == fitted.hash
    other = replace(fitted, arrays={**fitted.arrays, "mean": fitted.arrays["mean"] + 1})
    one, two = (Shift(more=2, fitted=each).stream(KEY) for each in (fitted, other))
    assert one.secret != two.secret
    save_fitted(tmp_path / "f", other)
    assert load_fitted(tmp_path / "f").hash == other.hash


@pytest.mark.parametrize("change", [{"parameters": '{"more":1}'}, {"version": 2}, {"scheme": "x"}])
def test_what_another_scheme_learnt_is_refused(change: dict[str, Any]) -> None:
    fitted = replace(Shift().fit(LESSONS), **change)
    with pytest.raises(SettingsError, match="fit it again"):
        Shift(fitted=fitted)


def test_an_altered_file_is_never_used(tmp_path: Path) -> None:
    with pytest.raises(ProtectionError, match="holds nothing"):
        load_fitted(tmp_path)
    for name in (ARRAYS, CARD):
        save_fitted(tmp_path / "f", Shift().fit(LESSONS))
        data = bytearray((tmp_path / "f" / name).read_bytes())
        data[-4] ^= 1
        (tmp_path / "f" / name).write_bytes(data)
        with pytest.raises(CorruptError, match="fit the scheme again"):
            load_fitted(tmp_path / "f")
    (tmp_path / "f" / ARRAYS).unlink()
    with pytest.raises(CorruptError):
        load_fitted(tmp_path / "f")


def test_nothing_to_learn_from_is_a_sentence() -> None:
    with pytest.raises(ProtectionError, match="no validation image"):
        Lessons(IMAGES, LABELS, IMAGES[:0], LABELS[:0], 2)


def test_a_scheme_that_learns_nothing_has_no_hash(tmp_path: Path) -> None:
    save_fitted(tmp_path / "p", Fitted("plain", 1, "{}"))
    assert load_fitted(tmp_path / "p").hash == ""
    assert not (tmp_path / "p" / ARRAYS).exists()
