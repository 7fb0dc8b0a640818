"""Several models under several seeds, through the real pipeline."""

import json

import pytest
from small_project import SHORT, copy_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MODELS = ("small_cnn", "resnet20", "resnet18")
SEEDS = (0, 1, 2)


def test_three_models_under_three_seeds(tmp_path_factory: pytest.TempPathFactory) -> None:
    project = copy_project(tmp_path_factory.mktemp("seeds"))
    project.change(
        "params.yaml",
        schemes=["plain", "visualmixer"],
        models=list(MODELS),
        model={"small_cnn": {}, "resnet20": {"width": 4}, "resnet18": {"width": 16}},
        seeds=list(SEEDS),
        train={**SHORT["train"], "epochs": 3},
    )
    ran = project.repro()
    trained = {name for name in ran if name.startswith("train@")}
    assert trained == {
        f"train@{scheme}-{model}-{seed}"
        for scheme in ("plain", "visualmixer")
        for model in MODELS
        for seed in SEEDS
    }
    found = json.loads((project.root / "reports/evaluation.json").read_text())
    rows = {
        (row["scheme"], row["model"], row["test_on"], row["protected_by"]): row
        for row in found["rows"]
    }
    for model in MODELS:
        plain = rows["plain", model, "plain", None]
        assert [one["seed"] for one in plain["seeds"]] == list(SEEDS)
        assert len({one["accuracy"] for one in plain["seeds"]}) > 1, "seeds train differently"
        assert plain["low"] < plain["accuracy"] < plain["high"]
        across = rows["plain", model, "protected", "visualmixer"]
        assert across["accuracy"] < plain["accuracy"], "a plain CNN cannot read protected images"
        assert rows["visualmixer", model, "protected", None]["declared"]
        assert rows["visualmixer", model, "plain", None]["train_time_ratio"] > 0
    assert {(one["model"], one["scheme"], one["other"]) for one in found["contrasts"]} == {
        (model, "plain", "visualmixer") for model in MODELS
    }
    assert all(one["runs"] == 3 for one in found["contrasts"])
    # One more seed trains what is new, and nothing else.
    project.change("params.yaml", seeds=[*SEEDS, 7], models=["small_cnn"])
    again = {name for name in project.repro() if name.startswith(("train@", "protect@"))}
    assert again == {"train@plain-small_cnn-7", "train@visualmixer-small_cnn-7"}
    page = (project.root / "reports/index.html").read_text()
    assert "4 seeds" in page
    synced = project.veilset("audit", "sync").stdout
    assert "recorded" in synced
