"""A composition is its steps one after another, and never more than they are together."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.attacks.features import region_sizes
from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.schemes.base import ArrayPool
from veilset.schemes.composition import Composition
from veilset.schemes.registry import make_scheme

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
MIXER = {"scheme": "visualmixer", "region_px": 8, "n": 4}
MIXING = {"scheme": "pixel_block_mixing", "block_height": 8, "block_width": 8}


def composed(*steps: dict[str, Any]) -> Composition:
    return Composition(steps=steps)


def batch(count: int = 10, side: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return images, np.arange(count) % 2, rng.integers(0, 256, (count, 16), dtype=np.uint8)


def test_steps_are_taken_in_order_by_keys_of_their_own() -> None:
    images, labels, ids = batch()
    scheme = composed({"scheme": "plain"}, MIXER)
    made = scheme.protect(images, labels, ids, KEY)
    keys = scheme._keys(scheme.stream(KEY))
    alone = make_scheme("visualmixer", {"region_px": 8, "n": 4}, "t")
    assert (made.images == alone.protect(images, labels, ids, keys[1]).images).all()
    assert (made.images != alone.protect(images, labels, ids, KEY).images).any()


def test_a_step_that_occurs_twice_has_two_streams() -> None:
    images, labels, ids = batch()
    scheme = composed(MIXER, MIXER)
    assert len({key.secret for key in scheme._keys(scheme.stream(KEY))}) == 2
    twice = scheme.protect(images, labels, ids, KEY)
    assert (scheme.recover(twice.images, labels, ids, KEY, twice.private) == images).all()
    assert (scheme.recover(twice.images, labels, ids, OTHER, twice.private) != images).any()


def test_donors_of_a_later_step_are_protected_by_the_steps_before() -> None:
    images, labels, ids = batch(40)
    images[:] = images | 1  # odd pixels everywhere: only an unprotected donor shows any
    blank = {"scheme": "pixelate", "block_px": 16}
    scheme = composed(blank, MIXING)
    pool = ArrayPool.from_arrays(images, labels, ids)
    made = scheme.protect(images[:7], labels[:7], ids[:7], KEY, pool)
    for image in made.images:
        for row in (0, 8):
            for column in (0, 8):
                block = image[row : row + 8, column : column + 8]
                assert (block == block[0, 0]).all()
    donors = made.private["2/donors"]
    assert (donors != np.repeat(ids[:7, None], donors.shape[1], axis=1)).any()


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(9)), st.integers(1, 9))
def test_batches_and_order_change_no_byte(order: list[int], cut: int) -> None:
    images, labels, ids = batch(9)
    pool = ArrayPool.from_arrays(images, labels, ids)
    scheme = composed(MIXER, MIXING, MIXER)
    whole = scheme.protect(images, labels, ids, KEY, pool).images
    for rows in (order[:cut], order[cut:]):
        part = scheme.protect(images[rows], labels[rows], ids[rows], KEY, pool)
        assert (part.images == whole[rows]).all()


def test_it_declares_the_weaker() -> None:
    both = composed(MIXER, MIXING).declares
    assert both.keyed
    assert both.uses_labels
    assert not both.protects_queries
    assert not both.reversible
    assert both.guarantee is None
    reversible = composed({"scheme": "plain"}, MIXER).declares
    assert reversible.reversible
    assert reversible.protects_queries
    private_first = composed({"scheme": "masked_image"}, MIXER).declares
    assert private_first.guarantee is not None
    assert "post-processing" in private_first.guarantee
    assert composed(MIXER, {"scheme": "masked_image"}).declares.guarantee is None
    notes = both.risk_notes
    assert any(note.startswith("VisualMixer: ") for note in notes)
    assert any(note.startswith("Pixel block mixing: ") for note in notes)


def test_attackers_know_the_regions_of_every_step() -> None:
    assert {8} <= region_sizes(composed(MIXER, {"scheme": "plain"}))


def test_the_record_tells_every_step() -> None:
    record = composed(MIXER, MIXING).record()
    assert [step["name"] for step in record["steps"]] == ["visualmixer", "pixel_block_mixing"]
    assert record["title"] == "VisualMixer then Pixel block mixing"
    assert composed(MIXER, MIXER).key_space_bits((16, 16, 1)) == pytest.approx(
        2 * make_scheme("visualmixer", {"region_px": 8, "n": 4}, "t").key_space_bits((16, 16, 1))
    )


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([MIXER], "at least 2"),
        ([MIXER, {"region_px": 8}], "step 2 has no `scheme`"),
        ([MIXER, {"scheme": "blur"}], r"steps\[2\] asks for the scheme 'blur'"),
        ([MIXER, {"scheme": "plain", "size": 1}], r"steps\[2\]\.size is unknown"),
        ([MIXER, {"scheme": "composition"}], "list its steps"),
        ([MIXER, {"scheme": "mask_desensitization"}], "put it first"),
    ],
)
def test_what_is_no_composition_is_refused_by_name(steps: list[Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        composed(*steps)


def test_a_class_without_donors_is_refused_before_anything_is_written() -> None:
    assert "single image" in str(composed(MIXER, MIXING).refuse(np.array([0, 0, 1])))
    images, labels, ids = batch(3)
    with pytest.raises(ProtectionError, match="single image"):
        composed(MIXER, MIXING).protect(images, labels, ids, KEY)
