"""`veilset report` on a real project of DVC and git."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from audit_project import AuditProject, make_project, make_version, put
from cli_run import Run, sentence

from veilset.quiet import quiet

WIDTH_4, WIDTH_8 = "HEAD~2", "HEAD"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> AuditProject:
    quiet()
    return make_project(tmp_path_factory.mktemp("reported"))


@pytest.fixture
def project(
    original: AuditProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> AuditProject:
    """A copy to change, which is the current folder."""
    root = Path(shutil.copytree(original.root, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(root)
    return AuditProject(root)


def changes(run: Run, revision: str) -> dict[str, Any]:
    code, out, err = run("report", "--against", revision, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def judge(
    project: AuditProject, verdict: str, value: float, half: float = 0.03, accuracy: float = 0.9,
    metric: str = "rank-1 in a gallery of 100", attack: str = "linkage",
) -> None:  # fmt: skip
    """Writes results of these figures, and records them."""
    root = project.root
    figures = {"value": value, "low": value - half, "high": value + half}
    worst = {"attack": attack, "title": attack.capitalize(), "threshold": 0.2, "chance": 0.01,
             "metric_words": metric, **figures}  # fmt: skip
    judged = {"verdict": verdict, "words": "As measured.", "worst": worst}
    put(root / "reports/verdicts.json", {
        "suite": "2",
        "schemes": {"mixer": {"title": "Mixing", "templates": {"public_release": judged}}},
    })  # fmt: skip
    put(root / "data/attacks/mixer/results.json", {"scheme": "mixer", "results": [
        {"attack": "linkage", "title": "Linkage", "attacker": "public_release", "metric": "rank1",
         "gallery": 100, "status": "ok", **figures},
    ]})  # fmt: skip
    loss = 100 * (0.95 - accuracy)
    row = {
        "scheme": "mixer", "model": "tiny", "test_on": "plain", "declared": True,
        "accuracy": accuracy, "low": accuracy - 0.02, "high": accuracy + 0.02,
        "loss_points": loss, "loss_low": loss - 1, "loss_high": loss + 1,
    }  # fmt: skip
    put(root / "reports/evaluation.json", {"rows": [row]})
    project.dvc("commit", "-f", "-q")


def test_what_was_set_otherwise_is_told_with_defaults(project: AuditProject, run: Run) -> None:
    found = changes(run, WIDTH_4)
    assert found["before"][1] == project.git("rev-parse", WIDTH_4)
    assert found["after"] == ["the workspace", None]
    assert found["parameters"]["Schemes"] == [
        {"name": "scheme.mixer.block_width", "before": "4", "after": "8"}
    ]
    made = found["parameters"]["Protection as it was made, defaults included"]
    assert made == [{"name": "mixer: block width", "before": "4", "after": "8"}]
    assert found["data"] == []
    assert found["gaps"] == []
    assert found["leakage"][0]["before"] == found["leakage"][0]["after"] == "fail"
    assert found["utility"][0]["accuracy"]["direction"] == "the same"
    assert "No verdict changed." in found["headline"]


def test_figures_are_compared_with_intervals(project: AuditProject, run: Run) -> None:
    judge(project, "fail", 0.5, accuracy=0.9)
    project.commit("2026-04-01T10:00:00+00:00")
    judge(project, "pass", 0.1, accuracy=0.89)
    found = changes(run, "HEAD")
    (leak,) = found["leakage"]
    assert (leak["before"], leak["after"]) == ("fail", "pass")
    assert leak["bounds"] == pytest.approx([0.53, 0.13])
    shift = leak["shift"]
    assert shift["difference"]["value"] == pytest.approx(-0.4)
    assert shift["difference"]["high"] == pytest.approx(-0.4 + 0.03 * 2**0.5)
    assert (shift["overlap"], shift["direction"]) == (False, "lower")
    (use,) = found["utility"]
    assert (use["accuracy"]["overlap"], use["accuracy"]["direction"]) == (
        True, "no difference shown",
    )  # fmt: skip
    assert use["loss"]["difference"]["value"] == pytest.approx(1.0)
    assert "Mixing, public release: was fail, is pass." in found["headline"]
    code, out, _ = run("report", "--against", "HEAD")
    assert code == 0
    for said in ("Mixing, public release: was fail, is pass.", "intervals apart: lower",
                 "Accuracy: no difference shown for 1 trained scheme."):  # fmt: skip
        assert said in out
    page = (project.root / "reports/changes.html").read_text(encoding="utf-8")
    for said in ("was fail, is pass", "\N{MINUS SIGN}40.0", "no difference shown"):
        assert said in page


def test_unlike_attacks_are_not_subtracted(project: AuditProject, run: Run) -> None:
    judge(project, "fail", 0.5)
    project.commit("2026-04-01T10:00:00+00:00")
    judge(project, "fail", 0.4, attack="known_pairs")
    (leak,) = changes(run, "HEAD")["leakage"]
    assert leak["shift"]["difference"] is None
    assert "another attack is the strongest" in leak["shift"]["note"]
    assert changes(run, "HEAD")["attacks"][0]["shift"]["difference"]["value"] == pytest.approx(-0.1)
    judge(project, "fail", 0.4, metric="rank-1 in a gallery of 50")
    (leak,) = changes(run, "HEAD")["leakage"]
    assert leak["shift"]["note"] == "the attack is measured in another way"


def outputs(project: AuditProject, *stages: str) -> list[str]:
    return [str(out["md5"]) for stage in stages for out in project.lock[stage]["outs"]]


def drop_from_cache(project: AuditProject, digests: list[str]) -> None:
    """DVC's run cache may hold what its cache does not keep by itself."""
    for digest in digests:
        (project.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink(missing_ok=True)


def test_reports_that_nobody_committed_are_said_to_be_missing(
    project: AuditProject, run: Run
) -> None:
    with (project.root / ".gitignore").open("a", encoding="utf-8") as file:
        file.write("/reports/\n")
    project.git("rm", "-q", "-r", "--cached", "reports")
    old = project.commit("2026-04-01T10:00:00+00:00")
    digests = outputs(project, "gate", "evaluate")
    make_version(project, width=4)
    judge(project, "pass", 0.1)
    drop_from_cache(project, digests)
    found = changes(run, old)
    gaps = {gap["what"]: gap["why"] for gap in found["gaps"]}
    assert set(gaps) == {"reports/verdicts.json", "reports/evaluation.json"}
    for why in gaps.values():
        assert "it was not committed, and DVC's cache has no copy" in why
    assert found["leakage"][0]["before"] is None
    assert found["leakage"][0]["shift"]["direction"] == "not comparable"
    assert (
        f"Verdicts: not on record for commit {old[:12]}, so none is compared."
        in (found["headline"])
    )
    # What DVC caches is still there: parameters in manifests.
    assert found["parameters"]["Protection as it was made, defaults included"]


def test_a_cache_that_lost_everything_is_told_thing_by_thing(
    project: AuditProject, run: Run
) -> None:
    judge(project, "pass", 0.1)
    shutil.rmtree(project.root / ".dvc/cache")
    gaps = {gap["what"]: gap["why"] for gap in changes(run, WIDTH_4)["gaps"]}
    assert "dvc fetch --all-commits" in gaps["data/protected/mixer/first/manifest.json"]
    assert "reports/verdicts.json" not in gaps


def test_a_report_that_is_not_the_recorded_one_is_not_believed(
    project: AuditProject, run: Run
) -> None:
    path = project.root / "reports/verdicts.json"
    # A version of its own, which git has not.
    judge(project, "fail", 0.5)
    drop_from_cache(project, outputs(project, "gate"))
    path.write_text(path.read_text(encoding="utf-8").replace("fail", "pass"), encoding="utf-8")
    found = changes(run, WIDTH_4)
    (gap,) = found["gaps"]
    assert gap["what"] == "reports/verdicts.json"
    assert "another one lies here: run `dvc repro`" in gap["why"]
    assert found["leakage"][0]["after"] is None


def test_settings_that_have_not_run_yet_are_a_caution(project: AuditProject, run: Run) -> None:
    path = project.root / "params.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert not any("dvc repro" in said for said in changes(run, WIDTH_4)["cautions"])
    settings["gate"] = {"limit": 0.5}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    cautions = changes(run, WIDTH_4)["cautions"]
    assert any("In the workspace, params.yaml is not what the results" in said and "gate" in said
               for said in cautions)  # fmt: skip
    assert any("thresholds of the gate changed" in said for said in cautions)


def test_nothing_but_the_page_is_written(project: AuditProject, run: Run) -> None:
    before = {path: path.read_bytes() for path in project.root.rglob("*") if path.is_file()}
    changes(run, WIDTH_4)
    after = {path: path.read_bytes() for path in project.root.rglob("*") if path.is_file()}
    page = project.root / "reports/changes.html"
    assert set(after) - set(before) == {page}
    assert all(after[path] == data for path, data in before.items() if ".git" not in path.parts)
    first = after[page]
    changes(run, WIDTH_4)
    assert page.read_bytes() == first


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--against", "nowhere"), "git knows no revision 'nowhere'"),
        (("--against", "--output=/x"), "git knows no revision"),
        (("--against", "HEAD", "--public"), "cannot be given together"),
        (("--json",), "give --against COMMIT"),
        (("--output", "x.html"), "give --against or --public"),
        ((), "reports/index.html is not here yet: run `make repro`"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    project: AuditProject, run: Run, words: tuple[str, ...], said: str
) -> None:
    code, _, err = run("report", *words)
    assert code == 1
    assert said in sentence(err)
    assert not (project.root / "reports/changes.html").exists()


def test_a_revision_from_before_the_project_is_refused(project: AuditProject, run: Run) -> None:
    empty = project.git("commit-tree", "4b825dc642cb6eb9a060e54bf8d69288fbee4904", "-m", "Nothing")
    code, _, err = run("report", "--against", empty)
    assert code == 1
    assert "is no version of this project" in sentence(err)
