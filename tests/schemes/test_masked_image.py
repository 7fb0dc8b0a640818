"""Masked image: the claimed privacy holds, planted faults are refuted, batches do not matter."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from privacy_checks import Mechanism, faults

from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.schemes import _discrete_laplace as law
from veilset.schemes.masked_image import (
    CELL,
    EDGE_BOUND,
    LEVELS,
    MaskedImage,
    cell_sums,
    edge_noise,
    sensitivity,
    weight_levels,
)
from veilset.schemes.randomness import Stream, derive_stream
from veilset.schemes.registry import make_scheme

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
SHAPES = st.tuples(st.integers(1, 61), st.integers(1, 61), st.sampled_from([1, 3]))


def some_images(
    count: int, shape: tuple[int, ...] = (32, 32, 3), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.zeros(count, np.int64), rng.integers(0, 256, (count, 16), dtype=np.uint8)


def flat(value: int, count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.full((count, *shape), value, dtype=np.uint8)


def released(value: int, eps: float) -> np.ndarray:
    """A million pixels of one value under uniform noise."""
    _, labels, ids = some_images(100, (1, 1, 1), seed=value)
    images = flat(value, 100, (100, 100, 1))
    return MaskedImage(mode="uniform", eps_n=eps).protect(images, labels, ids, KEY).images.ravel()


# ------------------------------------------------------------------------------ the claim


def mechanism(eps: int = 8, **planted: Any) -> Mechanism:
    sound: dict[str, Any] = {
        "eps": Fraction(eps),
        "channel": law.noise_channel(law.laplace_law(Fraction(eps)).masses),
        "draw": lambda x: released(x, eps),
        "edges": cell_sums,
        "edge_scale": Fraction(sensitivity(3) * 255),
    }
    return Mechanism(**{**sound, **planted})


def drawn_from(masses: tuple[int, ...]) -> Any:
    def draw(x: int) -> np.ndarray:
        rng = np.random.default_rng(x)
        sizes = rng.choice(256, 1_000_000, p=np.array(masses) / float(sum(masses)))
        return np.clip(x + sizes * rng.choice([-1, 1], len(sizes)), 0, 255)

    return draw


def rounded_luma(images: np.ndarray) -> np.ndarray:
    """The map of 8-bit luma, in the same units."""
    grey = (images.astype(np.int64) @ np.array([77, 150, 29]) + 128) >> 8
    return cell_sums(grey[..., None].astype(np.uint8))


def test_the_claim_withstands_every_check() -> None:
    assert faults(mechanism()) == set()


def test_a_wrong_scale_is_refuted() -> None:
    masses = law.laplace_masses(Fraction(16))
    planted = mechanism(channel=law.noise_channel(masses), draw=drawn_from(masses))
    assert faults(planted) == {"enumeration", "sampling"}


def test_a_slightly_wrong_scale_is_refuted() -> None:
    masses = law.laplace_masses(Fraction(8) * Fraction(1_000_001, 1_000_000))
    assert faults(mechanism(channel=law.noise_channel(masses))) == {"enumeration"}


def test_a_table_of_12_bits_is_refuted() -> None:
    masses = law.laplace_masses(Fraction(8), bits=12)
    planted = mechanism(channel=law.noise_channel(masses), draw=drawn_from(masses))
    assert faults(planted) == {"enumeration", "sampling"}
    assert law.budget(law.worst_step(planted.channel)) == math.inf


def test_rounded_luma_is_refuted() -> None:
    assert faults(mechanism(edges=rounded_luma)) == {"edges"}


def test_a_smaller_edge_noise_is_refuted() -> None:
    assert faults(mechanism(edge_scale=Fraction(2399 * 255))) == {"edges"}


@pytest.mark.parametrize("eps", ["0.001", "0.5", "8", "24", "32", "35"])
def test_the_enumerated_channel_is_the_claimed_mechanism(eps: str) -> None:
    masses = law.laplace_law(Fraction(eps)).masses
    point = {k: m / 2**64 for k, m in enumerate(masses)}
    point[0] *= 2
    channel = law.noise_channel(masses)
    rng = np.random.default_rng(0)
    for x in (0, 1, 254, 255, *rng.integers(0, 256, 5).tolist()):
        row = [0.0] * 256
        for z in range(-255, 256):
            row[min(max(x + z, 0), 255)] += point[abs(z)]
        assert np.allclose(channel[x] / 2**64, row, rtol=1e-9, atol=0)
        assert sum(channel[x].tolist()) == 2**64
    found = law.budget(law.worst_step(channel))
    assert 0.98 * float(eps) < found <= float(eps)
    q = math.exp(-found / 255)
    ideal = [(1 - q) / (1 + q) * q**k for k in range(255)]
    assert np.allclose([point[k] for k in range(255)], ideal, rtol=0.2 if eps == "35" else 0.01)


def test_every_weight_keeps_the_noise_budget() -> None:
    scheme = MaskedImage(eps_n=16.0, w_max=7.0)
    facts = scheme.facts()
    assert facts["eps_total"] == 17
    assert 0 <= facts["slack"] < 1e-6
    assert facts["eps_noise_enumerated"] == pytest.approx(16, abs=1e-6)


def test_draws_follow_the_tables() -> None:
    # Against the exact law of a byte in the middle, and at both ends, where the tails are lumped.
    channel = law.noise_channel(law.laplace_law(Fraction(8)).masses) / 2.0**64
    for x in (0, 100, 255):
        counts = np.bincount(released(x, 8.0), minlength=256)
        keep = channel[x] * 1e6 > 20
        chi = ((counts - channel[x] * 1e6)[keep] ** 2 / (channel[x][keep] * 1e6)).sum()
        assert chi < keep.sum() + 5 * math.sqrt(2 * keep.sum())


def test_buckets_and_further_bits_make_one_number() -> None:
    # A stream that is known word for word: the draw is the symbol of its 63-bit number.
    masses = law.laplace_law(Fraction(8)).masses
    laws = law.ByteLaws.of([law.ByteLaw.of(masses)])
    stream = MaskedImage().stream(KEY)
    _, _, ids = some_images(3)
    count = 4000
    got = laws.symbols(stream, ids, "t", count)
    ends = np.cumsum(np.array(masses, dtype=object))
    for n in range(3):
        lanes = stream.bits(ids[n : n + 1], "t", 2 * count).view("<u2")[0].tolist()
        words = iter(stream.words(ids[n : n + 1], "t/more", 400)[0].tolist())
        for i, lane in enumerate(lanes):
            low, high = lane >> 1 << 48, ((lane >> 1) + 1 << 48) - 1
            symbol = int((ends <= low).sum())
            if symbol != (ends <= high).sum() or symbol == 254:
                symbol = int((ends <= low + (next(words) >> 16)).sum())
            assert got[n, i] == symbol


def test_an_image_that_needs_many_further_bits_gets_them() -> None:
    masses = law.laplace_law(Fraction(8)).masses
    laws = law.ByteLaws.of([law.ByteLaw.of(masses)])
    hungry = law.ByteLaws(laws.tables, laws.starts, undecided=0.0)
    stream = MaskedImage().stream(KEY)
    _, _, ids = some_images(5)
    assert (hungry.symbols(stream, ids, "t", 5000) == laws.symbols(stream, ids, "t", 5000)).all()
    images, levels = flat(128, 5, (40, 50, 3)), np.zeros((5, 5, 7), np.uint8)
    made = [np.empty_like(images) for _ in range(2)]
    for each, out in zip((laws, hungry), made, strict=True):
        each.add_noise(images, levels, (3, 8, 8), stream, ids, "t", out)
    assert (made[0] == made[1]).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_noise_is_the_draws_however_many_are_undecided(share: float) -> None:
    # Buckets may be called undecided at will: the number that both parts make stays the same.
    rng = np.random.default_rng(0)
    made = law.ByteLaws.of([law.laplace_law(Fraction(eps)) for eps in ("0.5", "8", "30")])
    tables = np.where(rng.random(made.tables.shape) < share, 254, made.tables).astype(np.uint8)
    laws = law.ByteLaws(tables, made.starts, undecided=float((tables == 254).mean()))
    stream, (_, _, ids) = MaskedImage().stream(KEY), some_images(3)
    images = rng.integers(0, 256, (3, 19, 21, 3), dtype=np.uint8)
    levels = rng.integers(0, 3, (3, 3, 3), dtype=np.uint8)
    out = np.empty_like(images)
    laws.add_noise(images, levels, (3, 8, 8), stream, ids, "t", out)
    for n in range(3):
        lanes = iter(stream.bits(ids[n : n + 1], "t", 2 * images[n].size).view("<u2")[0].tolist())
        words = iter(stream.words(ids[n : n + 1], "t/more", images[n].size)[0].tolist())
        for y, x, c in np.ndindex(images.shape[1:]):
            lane, level = next(lanes), levels[n, y // 8, x // 8]
            symbol = int(tables[level, lane >> 1])
            if symbol == 254:
                number = (lane >> 1 << 48) + (next(words) >> 16)
                symbol = int(np.searchsorted(made.starts[level], number, side="right")) - 1
            expected = int(images[n, y, x, c]) + (-symbol if lane & 1 else symbol)
            assert out[n, y, x, c] == min(max(expected, 0), 255)


# ------------------------------------------------------------------------------ the edge map


def naive_sums(image: np.ndarray) -> np.ndarray:
    height, width, channels = image.shape
    luma = image.astype(int) @ (np.array([77, 150, 29]) if channels == 3 else np.array([256]))
    sums = np.zeros((-(-height // CELL), -(-width // CELL)), dtype=int)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            part = luma[y - 1 : y + 2, x - 1 : x + 2]
            sums[y // CELL, x // CELL] += abs((part * kernel).sum()) + abs((part * kernel.T).sum())
    return sums


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.integers(0, 2**32))
def test_the_map_is_sobel_of_luma_without_the_border(shape: tuple[int, ...], seed: int) -> None:
    images, _, _ = some_images(2, shape, seed)
    for image, sums in zip(images, cell_sums(images), strict=True):
        assert (sums == naive_sums(image)).all()


@settings(deadline=None, max_examples=80)
@given(SHAPES, st.integers(0, 2**32), st.data())
def test_the_map_moves_by_no_more_than_its_sensitivity(
    shape: tuple[int, ...], seed: int, data: st.DataObject
) -> None:
    images, _, _ = some_images(1, shape, seed)
    step = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 255), fill=st.just(0)))
    other = images ^ step
    distance = int(np.abs(images.astype(int) - other).sum())
    change = np.abs(cell_sums(images) - cell_sums(other)).sum()
    assert change <= sensitivity(shape[2]) * distance


@pytest.mark.parametrize(("channels", "most"), [(1, 4096), (3, 2400)])
def test_the_sensitivity_is_reached(channels: int, most: int) -> None:
    # Around a peak every gradient that it takes part in grows with it.
    hill = 200 - 9 * np.add.outer(np.abs(np.arange(16) - 11), np.abs(np.arange(16) - 12))
    images = np.repeat(hill[:, :, None], channels, axis=2).astype(np.uint8)[None]
    other = images.copy()
    other[0, 11, 12, channels // 2] += 1
    assert np.abs(cell_sums(images) - cell_sums(other)).sum() == most == sensitivity(channels)


def test_no_cell_exceeds_the_bound() -> None:
    y, x = np.ogrid[:24, :24]
    for phase in range(16):
        image = (((x + y + phase) // 2) % 2 * 255).astype(np.uint8)
        assert cell_sums(image[None, :, :, None]).max() <= EDGE_BOUND


@pytest.mark.parametrize("eps", ["0.001", "0.1", "1", "16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_maps_noise_keeps_its_budget_between_any_neighbours(eps: str, channels: int) -> None:
    noise = edge_noise(Fraction(eps), channels)
    step = Fraction(eps) / (sensitivity(channels) * 255)
    rng = np.random.default_rng(0)
    near = [0, 254, 255, 256, 65535, 65536, 2**24 - 1, 2**24, EDGE_BOUND - 1]
    for z in [*near, *rng.integers(0, EDGE_BOUND, 20).tolist()]:
        for a, b in ((z, z + 1), (-z, -z - 1), (z, -z), (z, 0)):
            one, two = noise.mass(a), noise.mass(b)
            if one < two:
                one, two = two, one
            ratio = one / two
            assert law.within((ratio.numerator, ratio.denominator), max(abs(a - b), 1) * step)


def test_the_maps_noise_has_the_claimed_scale() -> None:
    noise = edge_noise(Fraction(1), 3)
    _, _, ids = some_images(400)
    drawn = noise.draw(MaskedImage().stream(KEY), ids, "t", 500).ravel()
    scale = 2400 * 255
    assert np.abs(drawn).mean() == pytest.approx(scale, rel=0.01)
    assert (drawn >= 0).mean() == pytest.approx(0.5, abs=0.005)
    for cut in (0.1, 1, 3):
        assert (np.abs(drawn) > cut * scale).mean() == pytest.approx(math.exp(-cut), rel=0.04)
    assert len(np.unique(drawn % 256)) == 256


def test_all_bits_decide_where_the_first_do_not() -> None:
    noise = edge_noise(Fraction(1), 3)
    rest = noise.bits - 32
    for k, limits in enumerate(noise.thresholds):
        limit = limits[len(limits) // 2]
        lanes = [0] * noise.lanes
        lanes[k] = limit >> rest
        for shift in (-1, 0):
            further = [0] * noise.lanes
            further[k] = (limit + shift) % (1 << rest)
            raw = b"".join(value.to_bytes(rest // 8, "big") for value in further)
            got = noise.exactly(lanes, raw)
            value = len(limits) // 2 + 1 + shift
            assert got == (-value if k == 0 else value << (8 * (k - 1)))


class Scripted(Stream):
    """A stream whose first 32 bits are the ones that do not decide."""

    def bits(self, ids: Any, purpose: str, n_bytes: int, start: int = 0) -> Any:
        if purpose.endswith("/more"):
            return super().bits(ids, purpose, n_bytes, start)
        noise = edge_noise(Fraction(1), 3)
        top = [limits[len(limits) // 2] >> (noise.bits - 32) for limits in noise.thresholds]
        row = np.array(top, dtype="<u4").view(np.uint8)
        return np.tile(row, (len(ids), n_bytes // len(row)))


def test_undecided_draws_take_bits_of_their_own() -> None:
    noise, stream = edge_noise(Fraction(1), 3), Scripted(bytes(32))
    _, _, ids = some_images(3)
    drawn = noise.draw(stream, ids, "t", 40)
    lanes = stream.bits(ids[:1], "t", 4 * noise.lanes).view("<u4")[0].tolist()
    size = noise.lanes * (noise.bits - 32) // 8
    for n in range(3):
        more = stream.bits(ids[n : n + 1], "t/more", 40 * size).tobytes()
        expected = [noise.exactly(lanes, more[i * size : i * size + size]) for i in range(40)]
        assert drawn[n].tolist() == expected
    assert len(np.unique(drawn)) > 8


# ------------------------------------------------------------------------------ the weights


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.int64, st.tuples(st.just(2), st.integers(1, 5), st.integers(1, 5)),
               elements=st.integers(0, EDGE_BOUND)),
    st.fractions(0, 1, max_denominator=100),
)  # fmt: skip
def test_levels_follow_the_map(sums: np.ndarray, quantile: Fraction) -> None:
    levels = weight_levels(sums, quantile)
    for cells, got in zip(sums, levels, strict=True):
        ordered = sorted(cells.ravel().tolist())
        tau = max(ordered[max(0, math.ceil(quantile * len(ordered)) - 1)], 1)
        for value, level in zip(cells.ravel().tolist(), got.ravel().tolist(), strict=True):
            exactly = Fraction((LEVELS - 1) * min(value, tau), tau)
            assert 0 <= level < LEVELS
            assert abs(level - exactly) <= Fraction(1, 2)


@pytest.mark.parametrize("shape", [(32, 32, 3), (21, 30, 1)])
def test_noise_depends_on_the_image_through_the_private_map_only(shape: tuple[int, ...]) -> None:
    # A negative has the same gradients, so under one id the same private map and the same noise.
    images, labels, ids = some_images(20, shape)
    images = images // 4 + 96
    scheme = MaskedImage(eps_n=16.0)
    one = scheme.protect(images, labels, ids, KEY).images.astype(int)
    two = scheme.protect(255 - images, labels, ids, KEY).images.astype(int)
    inside = (one > 0) & (one < 255) & (two > 0) & (two < 255)
    assert inside.mean() > 0.3
    assert (one - images == two - (255 - images.astype(int)))[inside].all()


def test_the_oracle_reads_the_true_map() -> None:
    images, labels, ids = some_images(60)
    images[:, :, :16] = 128  # no edges on the left
    deviation = {}
    for mode in ("edges", "oracle_edges", "uniform"):
        scheme = MaskedImage(mode=mode, eps_n=16.0, eps_e=0.01)
        made = scheme.protect(images, labels, ids, KEY).images.astype(int)
        deviation[mode] = np.abs(made[:, 8:24, 2:6] - 128).mean()
    # With hardly any budget for the map, private weights know nothing of the flat part.
    assert deviation["oracle_edges"] > 1.3 * deviation["edges"] > 1.3 * deviation["uniform"]


def test_ablations_declare_what_they_are() -> None:
    assert "eps_e + eps_n" in str(MaskedImage().declares.guarantee)
    oracle, uniform = MaskedImage(mode="oracle_edges"), MaskedImage(mode="uniform")
    assert oracle.declares.guarantee is None
    assert not oracle.declares.releasable
    assert "without any bound" in oracle.declares.risk_notes[0]
    assert oracle.facts()["eps_total"] is oracle.facts()["eps_edge"] is None
    assert "eps_e" not in str(uniform.declares.guarantee)
    assert uniform.facts()["eps_total"] == 8
    assert MaskedImage.declares.guarantee == MaskedImage().declares.guarantee


# ------------------------------------------------------------------------------ two releases


class SharedKeystream(MaskedImage):
    """Planted: the keystream ignores the parameters."""

    def stream(self, key: Key) -> Stream:
        return derive_stream(key, scheme=self.name, version=1, parameters="", fitted_hash="")


def subtraction_error(kind: type[MaskedImage]) -> float:
    """Mean error of 2 y(eps 8) - y(eps 4), which cancels noise of one keystream."""
    images, labels, ids = some_images(40)
    images = images // 8 + 112
    one, two = (
        kind(mode="uniform", eps_n=eps).protect(images, labels, ids, KEY).images.astype(int)
        for eps in (8.0, 4.0)
    )
    open_ = (two > 0) & (two < 255) & (one > 0) & (one < 255)
    return float(np.abs(2 * one - two - images)[open_].mean())


def test_two_settings_cannot_be_subtracted_and_a_shared_keystream_can() -> None:
    assert subtraction_error(MaskedImage) > 40
    assert subtraction_error(SharedKeystream) < 2


@pytest.mark.parametrize("change", [{"eps_n": 8.1}, {"eps_e": 1.1}, {"w_max": 4.1}])
def test_two_settings_share_no_noise(change: dict[str, float]) -> None:
    _, labels, ids = some_images(60)
    images = flat(128, 60, (32, 32, 3))
    one, two = (
        MaskedImage(**values).protect(images, labels, ids, KEY).images.ravel().astype(float)
        for values in ({}, change)
    )
    correlation = np.corrcoef(one, two)[0, 1]
    assert abs(correlation) < 5 / math.sqrt(images.size)


def test_pixels_channels_and_images_have_independent_noise() -> None:
    _, labels, ids = some_images(60)
    made = MaskedImage(mode="uniform").protect(flat(128, 60, (32, 32, 3)), labels, ids, KEY).images
    noise = made.astype(float) - made.mean()
    for axis in range(4):
        near = noise * np.roll(noise, 1, axis=axis)
        assert abs(near.mean() / noise.var()) < 5 / math.sqrt(noise.size)


def test_whoever_holds_the_key_gets_back_what_was_not_clipped() -> None:
    # The declaration says so; at one weight, noise of a grey image shows it.
    images, labels, ids = some_images(5)
    scheme = MaskedImage(mode="uniform", eps_n=16.0)
    made = scheme.protect(images, labels, ids, KEY).images.astype(int)
    noise = scheme.protect(flat(128, 5, (32, 32, 3)), labels, ids, KEY).images.astype(int) - 128
    known = (made > 0) & (made < 255) & (np.abs(noise) < 127)
    assert known.mean() > 0.8
    assert (made - noise == images)[known].all()


# ------------------------------------------------------------------------------ the scheme


@settings(deadline=None, max_examples=25)
@given(
    SHAPES, st.integers(2, 12), st.integers(0, 2**32),
    st.sampled_from(["edges", "uniform", "oracle_edges"]),
)  # fmt: skip
def test_no_image_depends_on_its_batch(
    shape: tuple[int, int, int], count: int, seed: int, mode: str
) -> None:
    images, labels, ids = some_images(count, shape, seed)
    scheme = MaskedImage(mode=mode)
    whole = scheme.protect(images, labels, ids, KEY).images
    order = np.random.default_rng(seed).permutation(count)
    for part in np.array_split(order, 3):
        got = scheme.protect(images[part], labels[part], ids[part], KEY).images
        assert (got == whole[part]).all()


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 300, 3), (512, 512, 3), (224, 224, 3)])
def test_any_size_is_protected(shape: tuple[int, int, int]) -> None:
    images, labels, ids = some_images(3, shape)
    made = MaskedImage().protect(images, labels, ids, KEY).images
    assert made.shape == images.shape
    changed = made != images
    assert changed.mean() > 0.9
    assert (made[:1] == MaskedImage().protect(images[:1], labels[:1], ids[:1], KEY).images).all()
    other = MaskedImage().protect(images, labels, ids, OTHER).images
    assert (other == made).mean() < 0.5


def test_batches_larger_than_a_chunk_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, ids = some_images(30)
    whole = MaskedImage().protect(images, labels, ids, KEY).images
    monkeypatch.setattr("veilset.schemes.masked_image._CHUNK_BYTES", 7 * 3072)
    assert (MaskedImage().protect(images, labels, ids, KEY).images == whole).all()


@pytest.mark.parametrize("value", [0, 255])
def test_the_ends_of_the_range_clip(value: int) -> None:
    _, labels, ids = some_images(50)
    made = MaskedImage(mode="uniform").protect(flat(value, 50, (32, 32, 3)), labels, ids, KEY)
    # P(Z <= 0) = 1 / (1 + q).
    q = math.exp(-8 / 255)
    assert (made.images == value).mean() == pytest.approx(1 / (1 + q), abs=0.01)


def test_no_image_at_all_is_fine() -> None:
    images, labels, ids = some_images(0)
    assert MaskedImage().protect(images, labels, ids, KEY).images.shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eps_n": 40}, r"here\.eps_n is 40.*at most 35"),
        ({"eps_n": 0}, r"here\.eps_n is 0.*greater than or equal to 0\.001"),
        ({"eps_e": 17}, r"here\.eps_e is 17.*less than or equal to 16"),
        ({"eps_e": float("nan")}, r"here\.eps_e"),
        ({"w_max": 0.5}, r"here\.w_max is 0\.5.*greater than or equal to 1"),
        ({"edge_quantile": 2}, r"here\.edge_quantile"),
        ({"mode": "canny"}, r"here\.mode is 'canny'"),
        ({"cell": 4}, r"here\.cell is unknown"),
    ],
)
def test_wrong_settings_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_scheme("masked_image", values, "here")


def test_wrong_images_are_refused() -> None:
    images, labels, ids = some_images(2)
    with pytest.raises(ProtectionError, match="uint8"):
        MaskedImage().protect(images / 255, labels, ids, KEY)
