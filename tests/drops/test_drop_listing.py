"""Edits of drops.yaml: comments, order and layout stay, and a bad edit is none."""

from pathlib import Path

import pytest
from drop_places import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from veilset.drops.listing import accept_drop, list_drop, unlist_drop, waiting_drops
from veilset.errors import SettingsError
from veilset.settings import load_drops

TEXT = """\
# A heading that people wrote.
names:
  - digits   # the first
  - other
fit_drops:
  - digits
  - other
drops:
  # Kept as it is.
  digits:
    path: data/raw/digits
    source: digits
  other: {path: "data/raw/other", options: {group_pattern: '/(p[0-9]+)_'}}
"""
BLOCK = {"path": "data/raw/new/drop", "source": "folder"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "drops.yaml").write_text(TEXT)
    return tmp_path


def text(root: Path) -> str:
    return (root / "drops.yaml").read_text()


def test_a_listed_drop_waits_until_it_is_accepted(root: Path) -> None:
    list_drop(root, "new", BLOCK)
    assert text(root) == f"{TEXT}  new:\n    path: data/raw/new/drop\n    source: folder\n"
    assert waiting_drops(load_drops(root)) == ("new",)
    accept_drop(root, "new")
    accept_drop(root, "new")
    assert load_drops(root).names == ("digits", "other", "new")
    assert load_drops(root).fit_drops == ("digits", "other")
    assert waiting_drops(load_drops(root)) == ()
    assert text(root).replace("  - new\n", "", 1).startswith(TEXT)


def test_an_unlisted_drop_leaves_the_rest_as_it_was(root: Path) -> None:
    list_drop(root, "new", BLOCK)
    accept_drop(root, "new")
    unlist_drop(root, "new")
    assert text(root) == TEXT
    unlist_drop(root, "other")
    assert load_drops(root).fit_drops == ("digits",)
    assert "# Kept as it is." in text(root) and "# the first" in text(root)


def test_the_last_drop_that_schemes_learn_from_stays(root: Path) -> None:
    unlist_drop(root, "other")
    before = text(root)
    with pytest.raises(SettingsError, match="left as it is"):
        unlist_drop(root, "digits")
    assert text(root) == before


def test_a_drop_that_is_not_there_cannot_be_accepted(root: Path) -> None:
    with pytest.raises(SettingsError, match="'none' is in `names`, but has no block"):
        accept_drop(root, "none")
    assert text(root) == TEXT


def test_a_file_that_is_not_valid_is_not_touched(root: Path) -> None:
    (root / "drops.yaml").write_text("names: [a]\n")
    with pytest.raises(SettingsError):
        list_drop(root, "new", BLOCK)
    assert text(root) == "names: [a]\n"


texts = st.one_of(st.text(max_size=30), st.sampled_from(["yes", "on", "1e3", "0o7", "~", "1:2"]))
options = st.dictionaries(
    st.text("abcony_", min_size=1), st.one_of(texts, st.booleans(), st.integers())
)


@settings(max_examples=40, deadline=None)
@given(options)
def test_whatever_options_hold_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, object]
) -> None:
    root = tmp_path_factory.mktemp("listing")
    (root / "drops.yaml").write_text(TEXT)
    list_drop(root, "new", {**BLOCK, "options": options})
    assert load_drops(root).drops["new"].options == options
    unlist_drop(root, "new")
    assert text(root) == TEXT


def test_the_projects_own_file_keeps_its_layout(tmp_path: Path) -> None:
    before = (REPOSITORY / "drops.yaml").read_text()
    (tmp_path / "drops.yaml").write_text(before)
    list_drop(tmp_path, "new", BLOCK)
    unlist_drop(tmp_path, "new")
    assert text(tmp_path) == before
