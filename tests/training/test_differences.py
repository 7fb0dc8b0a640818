import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilset.metrics.statistics import wilson
from veilset.training.differences import difference_of, difference_of_counts

counts = st.integers(0, 60)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Newcombe 1998 (paired data), method 10, to four places.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        # The same method elsewhere, margins of zero.
        ((27, 3, 0, 0), -0.0310, 0.2562),
        ((15, 0, 15, 0), -0.6685, -0.2969),
        ((0, 0, 1, 29), -0.1667, 0.0834),
    ],
)
def test_published_paired_limits(table: tuple[int, int, int, int], low: float, high: float) -> None:
    found = difference_of_counts(*table)
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_published_unpaired_limits() -> None:
    # Newcombe 1998 (independent proportions), table II, 56/70 - 48/80, method 10.
    found = difference_of(wilson(56, 70), wilson(48, 80))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (
        pytest.approx(0.0524, abs=6e-5),
        pytest.approx(0.3339, abs=6e-5),
    )


@given(counts, counts, counts, counts)
def test_paired_limits_enclose_swap_and_stay_in_range(a: int, b: int, c: int, d: int) -> None:
    if a + b + c + d == 0:
        with pytest.raises(ValueError, match="n above 0"):
            difference_of_counts(a, b, c, d)
        return
    found, swapped = difference_of_counts(a, b, c, d), difference_of_counts(a, c, b, d)
    assert -1 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.value == pytest.approx((b - c) / (a + b + c + d))
    assert (found.low, found.high) == (pytest.approx(-swapped.high), pytest.approx(-swapped.low))


@pytest.mark.parametrize("agreement", [0.0, 0.8])
def test_paired_interval_covers_as_often_as_it_says(agreement: float) -> None:
    rng = np.random.default_rng(3)
    n, first, second = 100, 0.9, 0.8
    hits = 0
    for _ in range(600):
        u, v = rng.random((2, n))
        v = np.where(rng.random(n) < agreement, u, v)
        x, y = u < first, v < second
        found = difference_of_counts(
            int((x & y).sum()), int((x & ~y).sum()), int((~x & y).sum()), int((~x & ~y).sum())
        )
        hits += found.low <= first - second <= found.high
    assert 0.92 <= hits / 600 <= 0.99


def test_pairing_narrows_where_both_fail_on_the_same_images() -> None:
    paired = difference_of_counts(80, 8, 2, 10)
    apart = difference_of(wilson(88, 100), wilson(82, 100))
    assert paired.value == pytest.approx(apart.value)
    assert paired.high - paired.low < 0.75 * (apart.high - apart.low)
