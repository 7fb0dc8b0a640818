"""The ledger adds up what each image spends, once a release, whatever happens."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.errors import BusyError, CorruptError, ProtectionError
from veilset.files import locked
from veilset.release.ledger import budget, read, spend, totals


def record(eps: float | None, metric: str = "L1") -> dict[str, Any]:
    return {"name": "s", "facts": {"metric": metric, "eps_total": eps}}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sets(st.sampled_from("abcdef"), min_size=1), st.integers(1, 9))))
def test_totals_are_sums_over_releases(
    tmp_path_factory: pytest.TempPathFactory, releases: list[tuple[set[str], int]]
) -> None:
    ledger = tmp_path_factory.mktemp("l") / "ledger.parquet"
    expected: dict[str, int] = {}
    for number, (ids, eps) in enumerate(releases):
        for _ in range(2):  # entered again, it changes nothing
            said = spend(ledger, f"root{number}", record(eps), [*ids, *ids])
        for name in ids:
            expected[name] = expected.get(name, 0) + eps
        assert said["L1"].most == max(expected.values())
        assert said["L1"].least == min(expected.values())
        assert (said["L1"].images, said["L1"].releases) == (len(expected), number + 1)


def test_metrics_are_kept_apart(tmp_path: Path) -> None:
    ledger = tmp_path / "deep" / "ledger.parquet"
    spend(ledger, "one", record(3), ["a"])
    said = spend(ledger, "two", record(5, "bits"), ["a", "b"])
    assert (said["L1"].most, said["bits"].most) == (3, 5)
    assert totals(read(ledger)) == said
    assert "1 images have spent 3 in 1 releases (L1)" in said["L1"].words()


def test_no_guarantee_no_entry(tmp_path: Path) -> None:
    assert budget({"name": "plain"}) is None
    with pytest.raises(ProtectionError, match="guarantees nothing"):
        spend(tmp_path / "l", "one", record(None), ["a"])
    assert not list(tmp_path.iterdir())


def test_a_busy_or_broken_ledger_is_left_alone(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.parquet"
    spend(ledger, "one", record(3), ["a"])
    before = ledger.read_bytes()
    with locked(ledger), pytest.raises(BusyError):
        spend(ledger, "two", record(3), ["a"])
    assert ledger.read_bytes() == before
    ledger.write_bytes(before[:40])
    with pytest.raises(CorruptError):
        spend(ledger, "two", record(3), ["a"])
    assert ledger.read_bytes() == before[:40]
