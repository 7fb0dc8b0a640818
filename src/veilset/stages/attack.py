"""Stage `attack`: every attack of the suite on what a scheme released."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from veilset.attacks.base import AttackResult, Effort, Progress
from veilset.attacks.case import Released, load_case
from veilset.attacks.suite import SuiteResult, run_suite
from veilset.console import progress, say
from veilset.params import Params
from veilset.settings import PARAMS_FILE, load_drops, load_settings
from veilset.stages.project import Project, block, existing, fitted_scheme

COMMON = "common"


class CommonAttackParams(Params):
    """What holds for all attacks: the block `attack.common`.

    Attributes:
        effort: `quick` for every run, `full` for a release.
        seed: Of everything the attacker draws.
        device: Where the attacker trains, as torch names it.
    """

    effort: Effort = "quick"
    seed: int = Field(0, ge=0, lt=2**32)
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")


def run(root: Path, scheme_name: str) -> None:
    """Writes `data/attacks/<scheme>/`: `results.json`, `scores.parquet`, `examples.npz`."""
    project = Project(root)
    with show_progress(scheme_name) as report:
        suite = attacked(root, scheme_name, released_drops(project, scheme_name), report)
    suite.write(project.attacks(scheme_name))
    say(table(suite.results))


def attacked(
    root: Path, scheme_name: str, released: Sequence[Released], progress: Progress | None = None
) -> SuiteResult:
    """Runs all attacks of the settings on what a scheme released of some drops.

    Args:
        root: The project's folder.
        scheme_name: The scheme's name in `params.yaml`.
        released: The drops, which the attacker has together.
        progress: Called while it works, or None.
    """
    project, settings = Project(root), load_settings(root)
    common = CommonAttackParams.parse(
        block(settings.attack, COMMON), f"{PARAMS_FILE}: attack.{COMMON}"
    )
    case = load_case(
        released, fitted_scheme(project, settings, scheme_name),
        seed=common.seed, effort=common.effort, device=common.device,
    )  # fmt: skip
    chosen = {name: block(settings.attack, name) for name in settings.attacks}
    return run_suite(
        case, chosen, dataset=settings.data.name, scheme_name=scheme_name, progress=progress
    )


def released_drops(project: Project, scheme_name: str) -> list[Released]:
    """Where each drop lies that a scheme released something of."""
    return [
        released_drop(project, scheme_name, drop)
        for drop in load_drops(project.root).names
        if existing([project.protected(scheme_name, drop)])
    ]


def released_drop(project: Project, scheme_name: str, drop: str) -> Released:
    """Where one drop lies, as it was, as a scheme released it, and how they belong together."""
    return Released(
        project.ingested(drop),
        project.protected(scheme_name, drop),
        project.provenance(scheme_name, drop),
    )


@contextmanager
def show_progress(scheme_name: str) -> Iterator[Progress]:
    """A bar whose total grows with each step that an attack announces."""
    with progress(f"attack {scheme_name}", None, "step") as advance:
        last: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            del total
            advance(max(0, done - last.get(what, 0)))
            last[what] = done

        yield report


def table(results: Sequence[AttackResult]) -> str:
    """The results as text: a line an attack."""
    return "\n".join(f"{result.attack}: {_line(result)}" for result in results)


def _line(result: AttackResult) -> str:
    if not result.applicable:
        return f"not applicable: {result.reason}"
    if result.value is None or result.control is None or result.oracle is None:
        return f"{result.status}: {result.words}"
    return (
        f"{result.words} {result.metric_words} {result.value:.3f} "
        f"[{result.low:.3f}, {result.high:.3f}], chance {result.chance:.3f}, "
        f"control {result.control.value:.3f}, oracle {result.oracle.value:.3f} ({result.status})"
    )
