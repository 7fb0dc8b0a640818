"""The examples in the docs run as they are printed."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from veilset.attacks.base import KNOWLEDGE_WORDS
from veilset.attacks.registry import ATTACKS, make_attack
from veilset.data.shards import ImageSet, write_set
from veilset.drops.record import read_drops
from veilset.keys import Key
from veilset.schemes.protect import protect_set
from veilset.schemes.registry import make_scheme, scheme_names
from veilset.schemes.visualmixer import VisualMixer
from veilset.stages.attack import CommonAttackParams

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def test_the_code_of_the_schemes_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    ids = rng.integers(0, 256, (6, 16), dtype=np.uint8)
    write_set(tmp_path / "plain", kind="ingested", dataset="t", classes=("a", "b"),
              parts={"train": (ids, np.arange(6) % 2, images, {})})  # fmt: skip
    key = Key(bytes(range(32)))
    protect_set(ImageSet.open(tmp_path / "plain"), VisualMixer(), key, tmp_path / "protected",
                None, dataset="t")  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = "\n".join(blocks(ROOT / "docs/schemes.md", "python"))
    names: dict[str, object] = {}
    exec(compile(code, "docs/schemes.md", "exec"), names)  # noqa: S102
    stored = ImageSet.open(tmp_path / "protected").images("train")
    assert np.array_equal(names["pixels"], stored)
    assert names["protected"].shape == (4, 32, 32, 3)  # type: ignore[attr-defined]
    assert len(names["frame"]) == 6  # type: ignore[arg-type]
    assert len(names["rows"]) == 6  # type: ignore[arg-type]
    assert sum(len(labels) for _, labels in names["loader"]) == 6  # type: ignore[attr-defined]


def test_the_settings_of_the_schemes_page_are_understood() -> None:
    for block in blocks(ROOT / "docs/schemes.md", "yaml"):
        values = yaml.safe_load(block)
        for name in values["schemes"]:
            settings = dict(values["scheme"][name])
            make_scheme(settings.pop("kind", name), settings, name)


def test_the_schemes_page_names_every_scheme() -> None:
    text = (ROOT / "docs/schemes.md").read_text(encoding="utf-8")
    hidden = [name for name in scheme_names() if f"`{name}`" not in text and name != "composition"]
    assert hidden == ["plain"]


def test_the_attacks_page_says_of_every_attack_what_the_attack_says() -> None:
    text = (ROOT / "docs/attacks.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\w+) \| (\w+) \| (K\d) \|$", text, re.M)
    told = {name: tuple(rest) for name, *rest in rows}
    assert len(told) == len(rows)
    assert told == {
        name: (attack.attacker, attack.risk, attack.knowledge) for name, attack in ATTACKS.items()
    }
    for level, words in KNOWLEDGE_WORDS.items():
        assert level in text, words


def test_the_settings_of_the_attacks_page_are_understood() -> None:
    for block in blocks(ROOT / "docs/attacks.md", "yaml"):
        values = yaml.safe_load(block)["attack"]
        CommonAttackParams.parse(values.pop("common"), "docs")
        for name, settings in values.items():
            make_attack(name, settings, "docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_embedded_images_are_on_record() -> None:
    (digits,) = read_drops(ROOT)
    assert digits.name == "digits"
    assert digits.licence.startswith("CC BY 4.0")
    assert digits.counts["images"] == 1797
