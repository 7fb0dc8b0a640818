"""The pipeline as a Prefect flow: a task a DVC stage, and DVC alone decides what is up to date.

Prefect adds the schedule, the logs, the states and the artifacts. It caches nothing and repeats
nothing that failed for a reason of its own.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from veilset.adapters.dvc import Outcome, changed_stages, reproduce, stage_graph
from veilset.adapters.mlflow_audit import SyncReport, sync
from veilset.errors import BusyError, DiskFullError, VeilsetError

REPORT: Final = Path("reports/index.html")
VERDICTS: Final = Path("reports/verdicts.json")
_NO_SERVER: Final = "Failed to reach API"
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class FlowResult:
    """What a run of the pipeline did.

    Attributes:
        outcomes: What happened to each stage, in order.
        audit: What the audit sync did.
    """

    outcomes: Mapping[str, Outcome]
    audit: SyncReport


def is_io_error(task: Any, run: Any, state: Any) -> bool:
    """Whether a failed stage may be tried again: the lock was held, or the system refused I/O.

    A full disk is not tried again: it does not empty itself.
    """
    del task, run
    try:
        state.result()
    except DiskFullError:
        return False
    except (BusyError, OSError):
        return True
    except Exception:
        return False
    return False


@task(name="stage", cache_policy=NO_CACHE, retry_condition_fn=is_io_error, persist_result=False)
def run_stage(stage: str, root: Path, changed: bool) -> Outcome:
    """Reproduces one stage; its lines are the task's log.

    Args:
        stage: The stage's name.
        root: The project's folder.
        changed: Whether DVC found it, or something before it, changed.

    Raises:
        VeilsetError: The stage failed; the message is its own sentence.
    """
    logger = get_run_logger()
    if not changed:
        logger.info("up to date")
        return "unchanged"
    outcome = reproduce(stage, root, lambda line: logger.info("%s", _COLOUR.sub("", line)))
    logger.info("%s: %s", stage, outcome)
    return outcome


@task(name="audit", cache_policy=NO_CACHE, persist_result=False)
def run_audit(root: Path, options: Mapping[str, Any]) -> SyncReport:
    """Brings the audit store up to date.

    Args:
        root: The project's folder.
        options: Keyword arguments of `veilset.adapters.mlflow_audit.sync`.
    """
    report = sync(root, **options)
    get_run_logger().info("%s", report.words)
    return report


@flow(name="veilset", validate_parameters=False, persist_result=False, log_prints=False)
def pipeline(
    root: str = ".",
    io_retries: int = 0,
    tracking_uri: str | None = None,
    log_originals: bool = False,
    report_is_clean: bool = False,
) -> FlowResult:
    """Runs all stages that are not up to date, then writes the audit record and the artifacts.

    Args:
        root: The project's folder.
        io_retries: How often a stage is tried again after an I/O error or a held lock; other
            failures are never tried again.
        tracking_uri: The audit store, see `veilset.adapters.mlflow_audit.tracking_address`.
        log_originals: Whether the audit store may hold pictures of originals.
        report_is_clean: Whether the report page shows none.

    Returns:
        What was done.

    Raises:
        VeilsetError: A stage failed; the message is the stage's sentence. Later stages did not run.
    """
    place = Path(root).resolve()
    graph = stage_graph(place)
    changed = changed_stages(place, graph)
    outcomes: dict[str, Outcome] = {}
    for stage in graph:
        one = run_stage.with_options(
            name=stage.partition("@")[0], task_run_name=stage, retries=io_retries,
            retry_delay_seconds=10,
        )  # fmt: skip
        outcomes[stage] = one(stage, place, stage in changed)
    options = {"tracking_uri": tracking_uri, "log_originals": log_originals,
               "report_is_clean": report_is_clean}  # fmt: skip
    audit = run_audit(place, options)
    publish(place, outcomes, audit)
    return FlowResult(outcomes, audit)


@contextmanager
def server_needed() -> Iterator[None]:
    """Turns what is raised where Prefect's server is away, or goes away, into one sentence."""
    from httpx import TransportError  # noqa: PLC0415 - what Prefect's client lets through

    try:
        yield
    except (TransportError, RuntimeError) as error:
        # What Prefect says of a server that was never there is a plain error of its own.
        if isinstance(error, RuntimeError) and _NO_SERVER not in str(error):
            raise
        raise VeilsetError(
            f"Prefect's server cannot be reached ({error}): start it and run again, which goes on "
            "after the stages that were finished."
        ) from None


def publish(root: Path, outcomes: Mapping[str, Outcome], audit: SyncReport) -> None:
    """Makes the run's artifacts: the stages, the verdicts, and where report and record are."""
    create_table_artifact(
        key="stages", description="What was done",
        table=[{"stage": stage, "outcome": outcome} for stage, outcome in outcomes.items()],
    )  # fmt: skip
    if rows := verdict_rows(root / VERDICTS):
        create_table_artifact(key="verdicts", table=rows, description="Verdicts of the gate")
    report = (root / REPORT).resolve()
    link = f"[{REPORT}]({report.as_uri()})" if report.is_file() else "no report was written"
    text = f"# Report\n\n{link}\n\n# Audit record\n\n{audit.words}\n\n`{audit.tracking_uri}`\n"
    create_markdown_artifact(key="report", markdown=text, description="Report and audit record")


def verdict_rows(path: Path) -> list[dict[str, str]]:
    """The gate's verdicts, a row a scheme and template; empty where there are none.

    Args:
        path: `verdicts.json`.

    Raises:
        VeilsetError: The file is not what the gate writes.
    """
    if not path.is_file():
        return []
    try:
        schemes = json.loads(path.read_text(encoding="utf-8"))["schemes"]
        return [
            {
                "scheme": scheme,
                "for": template,
                "verdict": str(judged["verdict"]),
                "words": str(judged.get("words", "")),
            }
            for scheme, said in schemes.items()
            for template, judged in said["templates"].items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise VeilsetError(f"{path} is not a file of the gate: run `dvc repro gate`.") from None


def quiet_logs() -> None:
    """Keeps the server's and its clients' chatter out of the flow's own log."""
    for name in ("httpx", "httpcore", "uvicorn", "alembic", "prefect.server"):
        logging.getLogger(name).setLevel(logging.WARNING)
