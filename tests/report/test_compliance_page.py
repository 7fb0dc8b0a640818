"""`docs/compliance.md` names commands, files, stages and sections: each of them is there."""

import re
from pathlib import Path

import click
import pytest
import typer
import yaml
from typer.core import TyperGroup

from veilset.attacks.registry import ATTACKS
from veilset.cli import app
from veilset.report.load import load_inputs
from veilset.report.page import render
from veilset.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/compliance.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`]+)`", TEXT)
COMMANDS = sorted({code for code in CODE if code.startswith("veilset ")})
PATHS = sorted(
    {code for code in CODE if re.fullmatch(r"[\w.]+(/[\w.]*)+|[\w]+\.(yaml|lock)", code)}
)
PIPELINE = (ROOT / "dvc.yaml").read_text(encoding="utf-8")


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and what follows it."""
    command: click.Command = typer.main.get_command(app)
    while words and isinstance(command, TyperGroup):
        found = command.commands.get(words[0])
        assert found is not None, f"there is no command {words[0]!r}"
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_exists_with_its_options(words: str) -> None:
    command, rest = resolve(words.split()[1:])
    known = {name for one in command.params for name in one.opts}
    assert {word for word in rest if word.startswith("--")} <= known


def test_enough_is_named_to_be_worth_a_test() -> None:
    assert len(COMMANDS) > 15
    assert len(PATHS) > 10


@pytest.mark.parametrize("path", PATHS)
def test_every_file_is_in_the_repository_or_made_by_a_stage(path: str) -> None:
    parts = path.replace("SCHEME", "${item.scheme}").rstrip("/")
    names = {parts, *(str(parent) for parent in Path(parts).parents)} - {".", "data", "reports"}
    written = path in ("dvc.lock", "reports/releases.jsonl")
    assert written or (ROOT / path).exists() or any(name in PIPELINE for name in names)


def test_stages_blocks_and_risks_are_called_so() -> None:
    stages = yaml.safe_load(PIPELINE)["stages"]
    for code in CODE:
        if "@" in code:
            assert code.split("@")[0] in stages
    for block in ("gate", "attacked_models"):
        assert f"`{block}`" in TEXT
        assert block in Settings.model_fields
    told = {risk for risk in ("singling_out", "linkability", "inference") if f"`{risk}`" in TEXT}
    assert told == {attack.risk for attack in ATTACKS.values()}


def test_sections_of_the_report_are_titles_of_the_report(project: Path) -> None:
    page = render(load_inputs(project))
    titles = set(re.findall(r"<h[23][^>]*>([^<]+)</h[23]>", page))
    named = set(re.findall(r"\"([A-Z][^\"]+)\"", TEXT))
    assert len(named) > 4
    assert named <= titles


def test_every_part_says_what_it_does_not_cover() -> None:
    parts = re.split(r"^## ", TEXT, flags=re.M)[1:4]
    assert [part.splitlines()[0].split()[0] for part in parts] == ["WP29", "EU", "NIST"]
    for part in parts:
        assert "**Not covered.**" in part
    assert "no legal advice and no promise" in TEXT
