"""The FR attack: what it undoes, its closed form against the published scan, and real schemes."""

from itertools import permutations, product

import numpy as np
import pytest
from attack_cases import Negative, Noise, OtherPeople, Planted, build, digit_case, photographs
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from veilset.attacks.base import OTHER_KIND, Case
from veilset.attacks.features import Batch, area_resize
from veilset.attacks.fold_and_neighbour import (
    FoldAndNeighbour,
    Polarity,
    Signed,
    advanced_view,
    fold_view,
    folded,
    grey_view,
)
from veilset.keys import Key
from veilset.metrics.similarity import ssim
from veilset.metrics.statistics import wilson
from veilset.schemes.base import ArrayPool, Pool, Protected, Scheme
from veilset.schemes.composition import Composition
from veilset.schemes.negative_positive import NegativePositive
from veilset.schemes.randomness import Stream
from veilset.schemes.registry import make_scheme
from veilset.types import Ids, Images, Labels


class NegativeOfOthers(Planted):
    """Another image of the pool, negated value by value."""

    name = "negative_of_others"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        others = OtherPeople()._protect(images, labels, ids, stream, pool).images
        masks = (self.noise(images, ids, stream) & 1) * 255
        return Protected(others ^ masks.astype(np.uint8))


class AlwaysApplied(FoldAndNeighbour):
    """The attack let loose on schemes that it is not made for."""

    def applies(self, case: Case) -> None:
        del case


def colour_case(scheme: Scheme, targets: int = 200, auxiliary: int = 120) -> Case:
    """Smooth random colour patterns of 24 x 16 px, light and dark."""
    rng = np.random.default_rng(5)
    n = targets + auxiliary
    # As in photographs, colours differ less than what they show.
    small = rng.normal(0, 35, (n, 6, 4, 1)) + rng.normal(0, 10, (n, 6, 4, 3))
    small += rng.choice([60.0, 195.0], (n, 1, 1, 1))
    images = np.clip(np.rint(area_resize(small, 24, 16)), 0, 255).astype(np.uint8)
    nobody = np.full(n, "", dtype=object)
    rows = np.arange(n)
    return build(
        scheme, images, rows % 2, nobody, rows[:targets], rows[targets:], None, 0
    )  # fmt: skip


def protected(images: Images) -> Images:
    ids = np.random.default_rng(0).integers(0, 256, (len(images), 16), dtype=np.uint8)
    labels = np.zeros(len(images), dtype=np.int64)
    pool = ArrayPool.from_arrays(images, labels, ids)
    return NegativePositive().protect(images, labels, ids, Key(b"k" * 32), pool).images


def batch(images: Images) -> Batch:
    return Batch(images, {})


def scan_as_published(images: Images, start: tuple[float, ...]) -> np.ndarray:
    """Every pixel tries all colour orders and negations against its decoded neighbours."""
    height, width, channels = images.shape
    made = np.zeros(images.shape)
    for y, x in product(range(height), range(width)):
        beside = [made[y, x - 1]] if x else []
        beside += [made[y - 1, x]] if y else []
        if not beside:
            made[y, x] = start
            continue
        best = None
        for order in permutations(range(channels)):
            for flips in product((False, True), repeat=channels):
                tried = [
                    255 - int(images[y, x, c]) if flip else int(images[y, x, c])
                    for c, flip in zip(order, flips, strict=True)
                ]
                cost = sum(np.abs(np.array(tried) - other).sum() for other in beside)
                if best is None or cost < best[0]:
                    best = cost, tried
        made[y, x] = best[1]
    return made


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))
def test_the_closed_form_is_the_published_scan(
    seed: int, height: int, width: int, channels: int
) -> None:
    images = np.random.default_rng(seed).integers(
        0, 256, (1, height, width, channels), dtype=np.uint8
    )
    ours = advanced_view(batch(images))[0]
    theirs = scan_as_published(images[0], tuple(ours[0, 0]))
    # Where several choices are equally near, the published scan takes any of them.
    np.testing.assert_array_equal(np.sort(np.minimum(theirs, 255 - theirs)), np.sort(ours))
    costs = [
        np.abs(np.diff(made, axis=0)).sum() + np.abs(np.diff(made, axis=1)).sum()
        for made in (ours, theirs)
    ]
    assert costs[0] <= costs[1] + 1e-9


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(8, 40), st.integers(8, 40), st.sampled_from([1, 3]))
def test_restorations_do_not_depend_on_the_key(
    seed: int, height: int, width: int, channels: int
) -> None:
    images = np.random.default_rng(seed).integers(
        0, 256, (2, height, width, channels), dtype=np.uint8
    )
    shown = protected(images)
    for view in (grey_view, advanced_view):
        np.testing.assert_array_equal(view(batch(shown)), view(batch(images)))
    if channels == 1:
        np.testing.assert_array_equal(folded(shown), folded(images))


@pytest.mark.parametrize("keys", ["per_image", "fixed"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_pixel_wise_encryption_is_undone(keys: str, shuffle: bool) -> None:
    scheme = make_scheme("negative_positive", {"keys": keys, "shuffle_channels": shuffle}, "test")
    result = FoldAndNeighbour().run(colour_case(scheme))
    assert result.low > 0.9
    assert result.oracle.low > 0.9
    assert result.control.value < 0.05
    assert result.examples is not None
    assert result.details["ssim_advanced"] > result.details["unattacked_ssim"] + 0.3


def test_a_planted_negative_is_caught() -> None:
    result = FoldAndNeighbour().run(digit_case(Negative()))
    assert result.low > 0.8


def test_handwritten_digits_are_singled_out() -> None:
    result = FoldAndNeighbour().run(digit_case(NegativePositive()))
    assert result.low > 0.85
    assert result.control.value < 0.05
    assert result.details["ssim"] > result.details["unattacked_ssim"]


@pytest.mark.parametrize("scheme", [Noise, NegativeOfOthers])
def test_chance_where_nothing_is_left(scheme: type[Planted]) -> None:
    result = AlwaysApplied().run(colour_case(scheme(), targets=400))
    found = wilson(result.value * result.targets, result.targets, 0.999)
    assert found.low <= result.chance <= found.high


def test_no_images_are_needed() -> None:
    case = digit_case(NegativePositive(), auxiliary=3)
    result = FoldAndNeighbour().run(case)
    assert result.variant == "fold/edges"
    assert result.low > 0.8


@pytest.mark.parametrize("name", ["visualmixer", "pixelate", "etc_encryption", "masked_image"])
def test_schemes_of_another_kind_are_left_alone(name: str) -> None:
    result = FoldAndNeighbour().run(digit_case(make_scheme(name, {}, "test"), targets=20))
    assert not result.applicable
    assert result.reason.startswith(OTHER_KIND)


def test_a_step_of_a_composition_is_attacked() -> None:
    steps = ({"scheme": "pixelate", "block_px": 2}, {"scheme": "negative_positive"})
    result = FoldAndNeighbour().run(digit_case(Composition(steps=steps)))
    assert result.applicable
    assert result.low > 10 * result.chance


def test_the_polarity_is_learnt_and_the_same_for_an_image_and_its_protection() -> None:
    rng = np.random.default_rng(0)
    edge = np.where(np.arange(16) % 15 == 0, 10, 60)[:, None, None]  # light ones have a dark rim
    light = rng.random(120) < 0.5
    dark = np.clip(edge + rng.normal(0, 4, (120, 16, 16, 1)), 0, 127)
    other = 255 - np.clip(70 - edge + rng.normal(0, 4, (120, 16, 16, 1)), 0, 127)
    images = np.where(light[:, None, None, None], other, dark).astype(np.uint8)
    learnt = Polarity.learn(images[:80])
    np.testing.assert_array_equal(learnt.light(images), learnt.light(255 - images))
    assert (learnt.light(images[80:]) == light[80:]).mean() > 0.95
    signed = Signed(fold_view, learnt)(batch(protected(images)))
    assert np.abs(signed - images).mean() < 10


def test_too_few_images_teach_no_polarity() -> None:
    assert Polarity.learn(np.zeros((5, 8, 8, 1), dtype=np.uint8)) is None


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket"])
def test_colour_photographs_become_legible(name: str) -> None:
    plain = getattr(data, name)()[None]
    plain = np.rint(area_resize(plain, 224, 224)).astype(np.uint8)
    shown = protected(plain)
    before = ssim(shown, plain)[0]
    after = max(ssim(view(batch(shown)), plain)[0] for view in (grey_view, advanced_view))
    assert before < 0.1
    assert after > before + 0.35


def test_trash_photographs_are_singled_out_and_half_an_ssim_better() -> None:
    images = photographs("trashnet96/test.parquet", 120)
    nobody, order = np.full(len(images), "", dtype=object), np.arange(len(images))
    case = build(
        NegativePositive(), images, order % 2, nobody, order[:60], order[60:], None, 0
    )  # fmt: skip
    result = FoldAndNeighbour().run(case)
    assert result.value > 0.9
    assert result.details["ssim"] > result.details["unattacked_ssim"] + 0.5
