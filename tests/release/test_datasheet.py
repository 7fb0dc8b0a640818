"""The receiver's page: what it says of each kind of release, and that its lines run as they are."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from release_cases import DAY, INVERSE, RECOGNITION, TERMS, Made, card_of, evaluation, made, spent

from veilset.release.bundle import write_release
from veilset.release.datasheet import Terms, category, datasheet, plain, snippets
from veilset.release.readiness import ReleaseParams, Standing, release_facts
from veilset.release.signing import SigningKey
from veilset.release.statement import CheckFacts, Predicate, SchemeFacts, Waiver
from veilset.schemes.registry import make_scheme

SECTIONS = [
    "What it is", "How it was made", "For whom", "What was measured", "What it is good for",
    "Limits and residual risks", "What it must not be used for", "Licence", "How to verify it",
    "How to load it",
]  # fmt: skip


def unescaped(text: str) -> str:
    """The page as people read it."""
    return re.sub(r"\\([^\w\s]|_)", r"\1", text)


def page(case: Made, terms: Terms = TERMS, card: Any = None, **changed: Any) -> str:
    facts = case.facts.model_copy(update=changed)
    return unescaped(datasheet(facts, card or card_of(case.scheme), ("ill", "well"), terms))


def scheme_facts(name: str) -> SchemeFacts:
    return SchemeFacts.model_validate(make_scheme(name, {}, "test").record())


# ------------------------------------------------------------------------------ what it says


def test_every_section_is_there_and_nothing_is_left_open(project: Made) -> None:
    text = page(project)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert text.startswith("# faces, protected by Masked image\n")
    assert text.endswith("```\n")
    assert "None" not in text
    assert "not available" not in text


def test_what_how_and_for_whom(project: Made) -> None:
    text = page(project)
    assert "64 grey images of 16 x 16 pixels in 2 classes (20 test, 39 train, 5 valida" in text
    assert "Released by Example Clinic on 2026-03-01" in text
    assert "Labels: 0 ill, 1 well." in text
    assert "| `eps_n` | `8.0` |" in text
    assert "9 for this release; with it, single images have spent up to 12 in 2 rel" in text
    assert f"root `{project.sets['drop-1'].manifest.root}`" in text
    assert "warnings: imbalance" in text
    assert "made for one kind of receiver: **outside trainer**" in text
    assert "- Outside trainer: **pass**." in text
    assert "- Public release: **fail**." in text
    assert "singling out 0.2; attack suite" in text
    assert "Passing it on" in text
    assert "waived" not in text


def test_what_was_measured_has_intervals_and_what_was_not_is_said(project: Made) -> None:
    text = page(project)
    assert (
        "- Learned inverse (singling out; by who is given it to train on): 1 of 100 is restored. "
        "rank-1: 1.0 % (0.0 to 3.0 %), guessing 1.0 %, 500 targets."
    ) in text
    assert "- Recognition: **not tested**, because the set names no persons." in text
    weak = card_of(project.scheme, results=[INVERSE | {"status": "weak_oracle"}, RECOGNITION])
    assert "It supports no conclusion: the attack hardly works" in page(project, card=weak)
    none = card_of(project.scheme, results=[RECOGNITION])
    assert "- No attack gave a figure." in page(project, card=none)


def test_utility_with_and_without_floors(project: Made) -> None:
    text = page(project)
    assert (
        "- small_cnn: accuracy 90.0 % (85.0 to 94.0 %) on 100 protected test images over 3 seeds, "
        "5.0 points (2.0 to 8.0) less than trained on plain images."
    ) in text
    assert "No floor of utility was set for this release." in text
    params = ReleaseParams(min_accuracy=0.8, max_loss_points=10)
    facts = of_standing(replace(project.standing, params=params))
    assert (
        "- The release had to show an accuracy of at least 80 % and a loss of at most 10 points."
    ) in unescaped(datasheet(facts, card_of(project.scheme), ("a",), TERMS))
    exact = replace(project.standing, evaluation=evaluation(loss_low=0.0))
    told = datasheet(of_standing(exact), card_of(project.scheme), ("a",), TERMS)
    assert "5.0 points (0.0 to 8.0) less" in told
    assert "No CNN was trained on it" in page(project, utility=())


def of_standing(standing: Standing) -> Predicate:
    return release_facts(
        standing, "outside_trainer", released=DAY, spent=spent(), commit=None, packages={}
    )


def test_a_waiver_is_told_to_the_receiver(project: Made) -> None:
    waiver = Waiver(reason="On site only, the machine is wiped.", name="Ana Roth", date=DAY)
    text = page(project, waiver=waiver)
    assert "**The verdict was waived** by Ana Roth on 2026-03-01, with this reason: On" in text
    stale = project.facts.verdicts["outside_trainer"].model_copy(update={"stale": "suite 0"})
    assert "It is stale: suite 0." in page(project, verdicts={"outside_trainer": stale})


def test_a_keyed_scheme_is_called_pseudonymisation(project: Made) -> None:
    text = page(project)
    assert text.count("pseudonymised and not anonymous while the owner's key exists") == 2
    assert "whoever holds it can undo the scheme" in category(scheme_facts("visualmixer"))
    assert "whoever holds it can repeat" in category(scheme_facts("masked_image"))
    assert "the scheme itself has no key" in category(scheme_facts("gaussian_blur"))
    for name in ("visualmixer", "masked_image", "gaussian_blur"):
        assert "pseudonymised and not anonymous" in category(scheme_facts(name))


def test_a_public_release_may_be_passed_on(project: Made) -> None:
    text = page(project, receiver="public_release")
    assert "made for one kind of receiver: **public release**" in text
    assert "Passing it on" not in text


def test_what_the_owner_writes_is_no_markup(project: Made) -> None:
    name = "</td><script>alert(1)</script> ![x](http://x/y) *a* `b` &lt; | \n# c"
    facts = project.facts.model_copy(update={"waiver": Waiver(reason=name, name=name, date=DAY)})
    terms = Terms(licence="```\n## Not a title\n````", publisher=name)
    text = datasheet(facts, card_of(project.scheme), (name, "well"), terms)
    outside = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<script>" not in outside
    assert not re.search(r"(?<!\\)\]\(", outside)
    assert re.findall(r"^## (.*)$", outside, re.MULTILINE) == SECTIONS
    assert "\n# c" not in outside
    assert plain("a_b <c>") == r"a\_b \<c\>"
    assert unescaped(plain("a_b <c> \\ &")) == "a_b <c> \\ &"


def test_many_classes_are_cut(project: Made) -> None:
    names = tuple(f"c{i}" for i in range(150))
    text = datasheet(project.facts, card_of(project.scheme), names, TERMS)
    assert "99 c99, and 50 more." in text
    assert "c100" not in text


def test_side_information_is_named(project: Made) -> None:
    sets = tuple(
        one.model_copy(update={"columns": {"mask": "uint8[16,16]"}}) for one in project.facts.sets
    )
    assert "Beside each image: `mask`, uint8[16,16]." in page(project, sets=sets)


# ------------------------------------------------------------------------------ its lines


@pytest.fixture(scope="module")
def release(project: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "release"
    write_release(
        folder, project.sets, project.facts, SigningKey(bytes(32)),
        card=card_of(project.scheme), terms=TERMS,
    )  # fmt: skip
    return folder


def blocks(release: Path) -> dict[str, list[str]]:
    """The lines of each `python` block of the page as a receiver copies them, by its title."""
    text = (release / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^With (.*?):\n\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {title.strip("`"): lines.splitlines() for title, lines in found}


def test_there_are_three_lines_for_each(release: Path) -> None:
    found = blocks(release)
    assert list(found) == ["datasets", "pandas", "torch"]
    assert {len(lines) for lines in found.values()} == {3}


@pytest.mark.parametrize("title", [title.strip("`") for title in snippets("1, 1, 1")])
def test_the_lines_run_and_load_what_was_released(
    release: Path, project: Made, tmp_path: Path, title: str
) -> None:
    if find_spec(title) is None:
        pytest.skip(f"{title} is not installed")
    before = {path: path.stat().st_mtime_ns for path in release.rglob("*")}
    script = "\n".join([*blocks(release)[title], "import numpy, sys",
                        "numpy.savez(sys.argv[1], images=images, labels=labels)"])  # fmt: skip
    output = tmp_path / "loaded.npz"
    quiet = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(output)], cwd=release, check=True,
        env=os.environ | quiet, capture_output=True,
    )  # fmt: skip
    loaded = np.load(output)
    expected = np.concatenate([one.images("train") for one in project.sets.values()])
    if title == "torch":
        expected = expected.transpose(0, 3, 1, 2)
    assert loaded["images"].dtype == np.uint8
    assert (loaded["images"] == expected).all()
    labels = np.concatenate([one.labels("train") for one in project.sets.values()])
    assert (loaded["labels"] == labels).all()
    assert {path: path.stat().st_mtime_ns for path in release.rglob("*")} == before


def test_a_page_in_colour(tmp_path: Path) -> None:
    case = made(tmp_path, make_scheme("visualmixer", {"region_px": 8}, "test"), drops=1)
    one = case.sets["drop-0"].manifest
    standing = replace(case.standing, checks={"drop-0": CheckFacts()})
    facts = release_facts(
        standing, "outside_trainer", released=DAY, spent=None, commit=None, packages={}
    )
    assert facts.budget is None
    assert facts.sets[0].root == one.root
    sets = (facts.sets[0].model_copy(update={"shape": (16, 16, 3)}),)
    facts = facts.model_copy(update={"sets": sets})
    text = datasheet(facts, card_of(case.scheme), one.classes, TERMS)
    assert "Privacy budget" not in text
    assert "colour images of 16 x 16" in text
    assert "Guarantee: none." in text
    assert "commit not recorded" in text
