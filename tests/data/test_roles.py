"""Roles: keyed, stable, honest about people, true to the source's own splits."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.data.roles import (
    ROLES,
    RoleRow,
    RoleShares,
    assign_role,
    assign_roles,
    is_closed_set,
)
from veilset.errors import SettingsError
from veilset.keys import DEMO_IDS_KEY, Key

KEY = DEMO_IDS_KEY
SHARES = RoleShares()
RELEASED = ("train", "validation", "test", "gallery")


def image_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def rows_of(
    groups: Sequence[str], splits: Sequence[str | None], clusters: Sequence[int] | None = None
) -> list[RoleRow]:
    given_clusters = range(len(groups)) if clusters is None else clusters
    return [
        RoleRow(image_id(i), group, split, cluster)  # type: ignore[arg-type]
        for i, (group, split, cluster) in enumerate(
            zip(groups, splits, given_clusters, strict=True)
        )
    ]


def plain(count: int, split: str | None = None) -> list[RoleRow]:
    return rows_of([""] * count, [split] * count)


def test_shares_are_met() -> None:
    counts = Counter(assign_roles(KEY, plain(20_000), SHARES, closed_set=False))
    for role, share in [("train", 0.45), ("validation", 0.1), ("test", 0.2), ("auxiliary", 0.25)]:
        assert abs(counts[role] / 20_000 - share) < 0.015  # Four standard deviations.
    assert counts["gallery"] == 0


def test_another_key_gives_other_roles() -> None:
    rows = plain(500)
    one = assign_roles(KEY, rows, SHARES, False)
    assert one == assign_roles(KEY, rows, SHARES, False)
    assert one != assign_roles(Key(bytes(32)), rows, SHARES, False)


def test_a_new_image_moves_no_old_one() -> None:
    before = assign_roles(KEY, plain(300), SHARES, False)
    assert assign_roles(KEY, plain(400), SHARES, False)[:300] == before


def test_source_splits_are_honoured_and_the_rest_renormalised() -> None:
    splits = ["test"] * 100 + ["validation"] * 100 + ["train"] * 9000
    roles = assign_roles(KEY, rows_of([""] * 9200, splits), SHARES, False)
    assert set(roles[:100]) == {"test"} and set(roles[100:200]) == {"validation"}
    counts = Counter(roles[200:])
    assert set(counts) == {"train", "auxiliary"}
    assert abs(counts["train"] / 9000 - 0.45 / 0.7) < 0.025


def test_train_gives_the_validation_that_a_source_has_not() -> None:
    splits = ["test"] * 10 + ["train"] * 5000
    counts = Counter(assign_roles(KEY, rows_of([""] * 5010, splits), SHARES, False)[10:])
    assert set(counts) == {"train", "validation", "auxiliary"}
    assert abs(counts["validation"] / 5000 - 0.1 / 0.8) < 0.025


def test_no_auxiliary_where_its_share_is_none() -> None:
    shares = RoleShares(train=0.7, validation=0.1, test=0.2, auxiliary=0)
    assert "auxiliary" not in assign_roles(KEY, plain(2000), shares, False)


people = st.lists(
    st.tuples(
        st.sampled_from(["", "ann", "bob", "cy", "dee", "eve", "fay"]),
        st.sampled_from([None, "train", "validation", "test"]),
    ),
    min_size=1,
    max_size=60,
)


@given(people, st.binary(min_size=32, max_size=32))
@settings(max_examples=80, deadline=None)
def test_what_is_promised_of_people(who: list[tuple[str, str | None]], secret: bytes) -> None:
    groups, splits = [g for g, _ in who], [s for _, s in who]
    roles = assign_roles(Key(secret), rows_of(groups, splits), SHARES, closed_set=False)
    auxiliary = {g for g, r in zip(groups, roles, strict=True) if g and r == "auxiliary"}
    released = {g for g, r in zip(groups, roles, strict=True) if g and r in RELEASED}
    assert not auxiliary & released
    of: dict[str, list[str]] = defaultdict(list)
    for group, split, role in zip(groups, splits, roles, strict=True):
        assert role in ROLES
        of[group].append(role)
        if split in ("validation", "test"):
            assert role in (split, "gallery")
        if not group:
            assert role != "gallery"
    for group in released:
        if len(of[group]) >= 2:
            assert "gallery" in of[group]
        assert set(of[group]) - {"gallery"}


@given(people)
@settings(max_examples=100, deadline=None)
def test_people_are_not_torn_apart_without_source_splits(who: list[tuple[str, str | None]]) -> None:
    groups = [g for g, _ in who]
    roles = assign_roles(KEY, rows_of(groups, [None] * len(groups)), SHARES, closed_set=False)
    for person in set(groups) - {""}:
        own = {r for g, r in zip(groups, roles, strict=True) if g == person}
        assert len(own - {"gallery"}) == 1


def test_the_gallery_has_its_share_and_spares_the_test_split() -> None:
    groups = [f"p{i % 40}" for i in range(4000)]
    roles = assign_roles(KEY, rows_of(groups, [None] * 4000), SHARES, closed_set=False)
    released = [r for r in roles if r != "auxiliary"]
    assert abs(released.count("gallery") / len(released) - 0.3) < 0.04
    splits = ["test" if i >= 2800 else "train" for i in range(4000)]
    roles = assign_roles(KEY, rows_of(groups, splits), SHARES, closed_set=True)
    assert set(roles[2800:]) == {"test"}
    assert 0.25 < roles[:2800].count("gallery") / (2800 - roles.count("auxiliary")) < 0.35


def test_a_photograph_of_a_person_moves_no_other_one() -> None:
    # From the second on: a single photograph is never the gallery, two always share one.
    for count in range(12, 20):
        one = assign_roles(KEY, rows_of(["ann"] * count, [None] * count), SHARES, False)
        more = assign_roles(KEY, rows_of(["ann"] * 20, [None] * 20), SHARES, False)
        assert more[:count] == one


def test_closed_set_splits_inside_groups() -> None:
    groups = [f"p{i % 10}" for i in range(400)]
    assert is_closed_set(groups, [int(g[1:]) for g in groups])
    roles = assign_roles(KEY, rows_of(groups, [None] * 400), SHARES, closed_set=True)
    for person in set(groups):
        own = {r for g, r in zip(groups, roles, strict=True) if g == person}
        assert {"train", "test", "auxiliary", "gallery"} <= own


@pytest.mark.parametrize(
    ("groups", "labels", "closed"),
    [
        (["a", "b", "a"], [0, 1, 0], True),
        (["a", "b", "c"], [0, 1, 0], False),
        (["a", "a", "b"], [0, 1, 1], False),
        (["a", "b", ""], [0, 1, 2], False),
        (["a", "a"], [0, 0], False),
        ([], [], False),
    ],
)
def test_what_a_closed_set_is(groups: list[str], labels: list[int], closed: bool) -> None:
    assert is_closed_set(groups, labels) is closed


def test_near_duplicates_share_a_role() -> None:
    clusters = [i // 4 * 4 for i in range(400)]
    roles = assign_roles(KEY, rows_of([""] * 400, [None] * 400, clusters), SHARES, False)
    assert all(len(set(roles[i : i + 4])) == 1 for i in range(0, 400, 4))
    assert roles[0::4] == [
        assign_role(KEY, image_id(i), "", None, SHARES, False) for i in range(0, 400, 4)
    ]


def test_a_near_copy_of_a_test_image_is_no_training_image() -> None:
    splits = ["train", "train", "test", "validation", "train"]
    rows = rows_of([""] * 5, splits, [0, 0, 0, 3, 3])
    assert assign_roles(KEY, rows, SHARES, False) == ["test"] * 3 + ["validation"] * 2


@pytest.mark.parametrize("values", [{"train": 0.5}, {"auxiliary": -0.1}, {"train": 0}, {"x": 1}])
def test_shares_that_are_none(values: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        RoleShares.parse(values, "params.yaml: ingest.shares")
