"""Every block of the settings is parsed at once: nobody waits an hour for a typing error."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from veilset.errors import SettingsError
from veilset.stages.settings_check import check_all

SETTINGS: dict[str, Any] = {
    "schemes": ["plain"], "scheme": {"plain": {}}, "models": ["tiny"],
    "model": {"tiny": {"kind": "small_cnn"}}, "attacks": ["linkage"], "seeds": [0, 3],
    "attacked_models": ["tiny"], "model_attacks": ["membership"],
}  # fmt: skip


def project(folder: Path, **changes: Any) -> Path:
    (folder / "params.yaml").write_text(yaml.safe_dump({**SETTINGS, **changes}))
    drops = {"names": ["one"], "fit_drops": ["one"], "drops": {"one": {"path": "raw"}}}
    (folder / "drops.yaml").write_text(yaml.safe_dump(drops))
    return folder


def test_sound_settings_are_counted(tmp_path: Path) -> None:
    assert "1 models under 2 seeds" in check_all(project(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"epochs": 0}}, "train.epochs is 0"),
        ({"train": {"seed": 4}}, "train.seed is not read"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "a seed is listed twice"),
        ({"seeds": [-1]}, "seeds"),
        ({"attacked_models": ["other"]}, "'other' is in `attacked_models` but not in `models`"),
        ({"model_attacks": ["linkage"]}, "no attack on a CNN"),
        ({"attack": {"membership": {"shadows": 7}}}, "membership.shadows is 7"),
        ({"model": {"tiny": {"kind": "resnet18", "width": 3}}}, "model.tiny.width is 3"),
        ({"gate": {"required": ["x"]}}, "gate.required is unknown"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_all(project(tmp_path, **changes))
    assert words in str(caught.value)
