"""Settings: every fault is one sentence that names the key, its value and what is allowed."""

from pathlib import Path

import pytest
import yaml

from veilset.errors import SettingsError
from veilset.settings import load_drops, load_settings

GOOD = {
    "schemes": ["plain", "vm_wide"],
    "scheme": {"plain": {}, "vm_wide": {"kind": "visualmixer", "region_px": 32}},
    "models": ["resnet20"],
    "model": {"resnet20": {}},
}
REPOSITORY = Path(__file__).parents[1]


def write(root: Path, values: object, name: str = "params.yaml") -> Path:
    (root / name).write_text(yaml.safe_dump(values), encoding="utf-8")
    return root


def test_the_projects_own_settings_load() -> None:
    settings = load_settings(REPOSITORY)
    drops = load_drops(REPOSITORY)
    assert "plain" in settings.schemes
    assert set(drops.names) == set(drops.drops)


def test_a_block_may_be_a_second_setting_of_a_scheme(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, GOOD))
    assert settings.scheme_block("vm_wide") == ("visualmixer", {"region_px": 32})
    assert settings.scheme_block("plain") == ("plain", {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shemes": ["plain"]}, ["shemes", "unknown"]),
        ({"schemes": []}, ["schemes", "at least 1"]),
        ({"schemes": ["plain", "plain"]}, ["schemes", "twice"]),
        ({"schemes": ["../plain"]}, ["schemes", "../plain", "a-z"]),
        ({"schemes": ["dp_pix"]}, ["dp_pix", "scheme.dp_pix"]),
        ({"models": ["vgg"]}, ["vgg", "model.vgg"]),
        ({"resources": {"workers": 0}}, ["resources.workers", "0", "greater than or equal to 1"]),
        ({"data": {"name": "<script>"}}, ["data.name", "<script>"]),
        ({"data": {"log_originals": "perhaps"}}, ["data.log_originals", "perhaps"]),
    ],
)
def test_a_bad_setting_is_one_sentence(
    tmp_path: Path, change: dict[str, object], words: list[str]
) -> None:
    write(tmp_path, {**GOOD, **change})
    with pytest.raises(SettingsError) as caught:
        load_settings(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for word in ["params.yaml", *words]:
        assert word in message


def test_a_missing_file_and_bad_yaml_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"params\.yaml is not in"):
        load_settings(tmp_path)
    (tmp_path / "params.yaml").write_text("schemes: [plain\nmodels: }")
    with pytest.raises(SettingsError, match="not valid YAML") as caught:
        load_settings(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_drop_is_named_and_described_or_refused(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"names": ["a", "b"], "fit_drops": ["a"], "drops": {"a": {"path": "x"}}},
        "drops.yaml",
    )
    with pytest.raises(SettingsError, match="'b' is in `names`, but has no block"):
        load_drops(tmp_path)


def test_an_unknown_block_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, GOOD))
    with pytest.raises(SettingsError, match=r"scheme\.other.*plain, vm_wide"):
        settings.scheme_block("other")
