"""Known pairs: fixed-key ciphers fall, and nothing else does."""

# ruff: noqa: ARG002
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attack_cases import Black, Noise, Planted, build, digit_case
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.attacks.base import OTHER_KIND, Case
from veilset.attacks.known_plaintext import (
    Decryption,
    Informed,
    KnownPlaintext,
    KnownPlaintextParams,
    _apart,
    from_units,
    layouts,
    match,
    one_transform,
    recover,
    to_units,
)
from veilset.keys import Key
from veilset.metrics.statistics import wilson
from veilset.schemes.base import Pool, Protected, Scheme
from veilset.schemes.plain import Plain
from veilset.schemes.randomness import Stream
from veilset.schemes.registry import make_scheme
from veilset.types import Ids, Images, Labels

CIFAR = Path(__file__).parents[2].parent / "shared/datasets/cifar10"

FIXED = [
    ("negative_positive", {"keys": "fixed"}, "pixels"),
    ("learnable_encryption", {}, "half-bytes of 4, one table"),
    ("learnable_encryption", {"extended": True}, "half-bytes of 4"),
    ("etc_encryption", {"block_px": 4}, "blocks of 4"),
]


class PerImage(KnownPlaintext):
    """Attacks schemes that it is not made for as well."""

    def applies(self, case: Case) -> str | None:
        del case
        return None


class Wired(Planted):
    """One permutation of all values of all images, with noise in the lowest two bits."""

    name = "wired"

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        flat = images.reshape(len(images), -1)
        fixed = np.zeros((1, 16), dtype=np.uint8)
        order = stream.permutations(fixed, "order", 1, flat.shape[1])[0, 0]
        noise = stream.bits(fixed, "noise", flat.size).reshape(flat.shape) & 3
        return Protected((flat[:, order] & 0xFC | noise).reshape(images.shape))


@pytest.mark.parametrize("name, values, layout", FIXED)
def test_a_fixed_key_falls_to_a_few_pairs(name: str, values: dict[str, Any], layout: str) -> None:
    scheme = make_scheme(name, values, "test")
    result = KnownPlaintext().run(digit_case(scheme, targets=240))
    assert result.status == "ok"
    assert result.targets == 220
    assert result.value > 0.95
    assert layout in max(result.variants, key=lambda n: (result.variants[n], n == layout))
    assert result.details["exact_values"] > 0.98
    assert result.details["ssim"] > 0.95 > result.details["unattacked_ssim"]
    assert result.control.low <= result.chance <= result.control.high
    assert result.oracle.value > 0.99


def test_a_transform_that_no_layout_describes_exactly_is_assigned_by_what_agrees_best() -> None:
    result = KnownPlaintext(KnownPlaintextParams(pairs=60)).run(digit_case(Wired(), targets=270))
    assert result.value > 0.8
    assert "anywhere" in result.variant


@pytest.mark.parametrize(
    "scheme",
    [make_scheme(name, {**values, "keys": "per_image"}, "test") for name, values, _ in FIXED]
    + [make_scheme("visualmixer", {"region_px": 16, "n": 4}, "test"), Noise()],
    ids=lambda scheme: f"{scheme.name} {len(scheme.params.canonical())}",
)
def test_each_image_of_its_own_transform_is_left_alone(scheme: Scheme[Any]) -> None:
    result = KnownPlaintext().run(digit_case(scheme, targets=40, auxiliary=60))
    assert not result.applicable
    assert result.reason.startswith(f"{OTHER_KIND}: each image has a transform")


@pytest.mark.parametrize(
    "scheme",
    [make_scheme("learnable_encryption", {"extended": True, "keys": "per_image"}, "test"),
     make_scheme("negative_positive", {"keys": "per_image"}, "test"), Noise()],
    ids=lambda scheme: scheme.name,
)  # fmt: skip
def test_pairs_tell_nothing_of_other_images_transforms(scheme: Scheme[Any]) -> None:
    case = digit_case(scheme, targets=420)
    attack = PerImage()
    known = Informed(
        **vars(case.attacker), known_protected=case.release.images[:20],
        known_plain=case.truth.originals[:20],
    )  # fmt: skip
    fitted = attack._fit(case.release, known, np.random.default_rng(0), None, None)
    rest = case.take(np.arange(20, 420))
    views = fitted.matcher.view(_batch(rest))
    # Of negated values half are right by chance; undoing other images' negations repairs none.
    error = np.abs(views - rest.truth.originals).mean()
    before = np.abs(rest.release.images.astype(float) - rest.truth.originals).mean()
    assert error > 0.9 * before


def _batch(case: Case) -> Any:
    from veilset.attacks.features import Batch

    return Batch(case.release.images, case.release.side)


def test_noise_is_at_chance_and_black_exactly() -> None:
    result = PerImage().run(digit_case(Noise(), targets=620))
    found = wilson(result.value * result.targets, result.targets, 0.999)
    assert found.low <= result.chance <= found.high
    result = KnownPlaintext().run(digit_case(Black(), targets=120))
    assert result.value == pytest.approx(result.chance)


def test_without_a_key_or_enough_images_it_is_not_applicable() -> None:
    assert KnownPlaintext().run(digit_case(Plain())).reason.startswith(OTHER_KIND)
    scheme = make_scheme("etc_encryption", {}, "test")
    for sizes in ({"targets": 22}, {"auxiliary": 10}):
        result = KnownPlaintext().run(digit_case(scheme, **sizes))
        assert not result.applicable
        assert not result.reason.startswith(OTHER_KIND)


def test_known_pairs_are_no_targets() -> None:
    case = digit_case(make_scheme("etc_encryption", {}, "test"), targets=60)
    seen: list[Informed] = []

    class Watching(KnownPlaintext):
        def _fit(self, release: Any, attacker: Any, *rest: Any) -> Any:
            seen.append(attacker)
            assert len(release.images) == 40
            shown = {image.tobytes() for image in release.images}
            assert not shown & {image.tobytes() for image in attacker.known_protected}
            return super()._fit(release, attacker, *rest)

    Watching().run(case)
    plain = [image.tobytes() for image in case.truth.originals]
    shown = [image.tobytes() for image in case.release.images]
    for protected, original in zip(seen[0].known_protected, seen[0].known_plain, strict=True):
        assert plain.index(original.tobytes()) == shown.index(protected.tobytes())
    with pytest.raises(TypeError, match="known pairs"):
        KnownPlaintext()._fit(case.release, case.attacker, np.random.default_rng(0), None, None)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(8, 21), width=st.integers(8, 21), channels=st.sampled_from([1, 3]),
    which=st.integers(0, 3), seed=st.integers(0, 10_000),
)  # fmt: skip
def test_random_pairs_tell_the_whole_transform(
    height: int, width: int, channels: int, which: int, seed: int
) -> None:
    name, values, layout = FIXED[which]
    scheme = make_scheme(name, values, "test")
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (40, height, width, channels), dtype=np.uint8)
    ids = rng.integers(0, 256, (40, 16), dtype=np.uint8)
    made = scheme.protect(images, np.zeros(40, dtype=np.int64), ids, Key(bytes(32))).images
    found = layouts((height, width, channels), scheme)
    view = recover(*found[layout], images[:30], made[:30])
    units = len(view.source)
    assert sorted(view.source) == list(range(units))
    from veilset.attacks.features import Batch

    np.testing.assert_array_equal(view(Batch(made[30:], {})), images[30:])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]), st.integers(0, 999))
def test_units_cover_an_image_once(height: int, width: int, channels: int, seed: int) -> None:
    shape = (height, width, channels)
    images = np.random.default_rng(seed).integers(0, 256, (2, *shape), dtype=np.uint8)
    for kind in ("bytes", "half-bytes"):
        units = to_units(images, kind)
        np.testing.assert_array_equal(from_units(units, kind, images.shape), images)
    for kind, parts in layouts(shape, None).values():
        covered = np.concatenate([part.cells.ravel() for part in parts])
        assert sorted(covered) == list(range(to_units(images, kind).shape[1]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 9999))
def test_a_match_is_a_permutation_of_the_least_cost_where_rows_are_equal(
    n: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    before = rng.integers(0, 3, (n, width), dtype=np.uint8)
    order = rng.permutation(n)
    came = match(before, before[order], _apart)
    assert sorted(came) == list(range(n))
    np.testing.assert_array_equal(before[came], before[order])
    np.testing.assert_array_equal(match(before, before, _apart), np.arange(n))
    other = rng.integers(0, 3, (n, width), dtype=np.uint8)
    assert sorted(match(before, other, _apart)) == list(range(n))


def test_a_decryption_negates_and_puts_back() -> None:
    from veilset.attacks.features import Batch

    view = Decryption("bytes", np.array([2, 0, 1]), np.array([True, False, False]))
    image = np.array([10, 20, 30], dtype=np.uint8).reshape(1, 1, 3, 1)
    assert view(Batch(image, {})).ravel().tolist() == [20, 30, 245]


def test_an_id_that_changes_nothing_is_noticed() -> None:
    attacker = digit_case(Plain(), targets=5, auxiliary=40).attacker
    assert one_transform(make_scheme("learnable_encryption", {}, "test"), attacker)
    assert not one_transform(make_scheme("masked_image", {}, "test"), attacker)
    steps = ({"scheme": "pixelate"}, {"scheme": "etc_encryption"})
    assert one_transform(make_scheme("composition", {"steps": steps}, "test"), attacker)
    mixing = make_scheme("pixel_block_mixing", {"block_height": 4, "block_width": 4}, "test")
    labels = np.zeros_like(attacker.labels)
    assert not one_transform(mixing, replace(attacker, labels=labels))


@pytest.mark.parametrize("name, values, layout", FIXED)
def test_cifar_photographs_are_decrypted_exactly(
    name: str, values: dict[str, Any], layout: str
) -> None:
    result = KnownPlaintext(KnownPlaintextParams(auxiliary=60, targets=200)).run(
        cifar_case(make_scheme(name, values, "test"), 220, 60)
    )
    assert result.value == 1.0
    assert result.details["exact_values"] > 0.999


def cifar_case(scheme: Scheme[Any], targets: int, auxiliary: int) -> Case:
    if not CIFAR.is_dir():
        pytest.skip(f"CIFAR-10 is not at {CIFAR}")
    import io

    from PIL import Image

    frame = pd.read_parquet(CIFAR / "test1k.parquet").head(targets + auxiliary)
    images = np.stack([
        np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in frame["image"]
    ])  # fmt: skip
    rows = np.arange(len(frame), dtype=np.int64)
    nobody = np.full(len(rows), "", dtype=object)
    labels = frame["label"].to_numpy(dtype=np.int64)
    return build(scheme, images, labels, nobody, rows[:targets], rows[targets:], None, 0)
