"""New data as Prefect flows: what arrives is taken in, protected, attacked, judged and recorded.

A run goes over the project as it is, and not over a list of its own: a drop that is not `protected`
in the journal is gone on with, and DVC alone decides what is up to date. So a run that was killed
is finished by the next, and the same run twice is one. `protected` is the last thing that is
written of a drop. All of it is ours.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import deployment, flow_run

from veilset.adapters.dvc import (
    CannotProtectError,
    Outcome,
    changed_stages,
    dvc_text,
    stage_graph,
)  # fmt: skip
from veilset.adapters.dvc_drops import is_tracked, track_raw
from veilset.adapters.dvc_remote import PRIVATE, remote_names
from veilset.adapters.git_commit import commit_beside, commit_out
from veilset.adapters.prefect_pipeline import (
    VERDICTS,
    is_io_error,
    publish,
    run_audit,
    run_stage,
    verdict_rows,
)  # fmt: skip
from veilset.drops.admission import protected
from veilset.drops.intake import RAW
from veilset.drops.place import (
    drop_place,
    entries,
    finish_taking,
    printable,
    take_entry,
    write_reasons,
)  # fmt: skip
from veilset.drops.policy import (
    DropPolicy,
    load_policy,
    schemes_of,
    trained_on,
    training_due,
    untrained,
)  # fmt: skip
from veilset.drops.record import DROPS_JOURNAL, DropRecord, find_drop, read_drops
from veilset.errors import BusyError, SettingsError, VeilsetError
from veilset.files import locked
from veilset.keys import project_key
from veilset.settings import DROPS_FILE, load_drops, load_settings

TakeIn = Callable[[Path, str, Callable[[str], None]], DropRecord]
"""Ingests and checks a drop that waits, and decides."""

SetAside = Callable[[Path, str, str], DropRecord]
"""Holds an accepted drop for a reason."""

AttackDrop = Callable[[Path, str, str], str]
"""Attacks what a scheme made of one drop alone; gives the verdicts in words."""


@dataclass(frozen=True)
class Steps:
    """What is done to one drop by the layers above, handed in.

    Attributes:
        take_in: Ingests and checks a drop that waits, and decides.
        set_aside: Holds an accepted drop that cannot be protected.
        attack: Attacks a drop alone.
    """

    take_in: TakeIn
    set_aside: SetAside
    attack: AttackDrop


RUN: Final = Path("data/drop_run")
"""What a run locks, from the project's folder."""

_PER_DROP: Final = frozenset({"ingest", "check", "fit_drops", "protect"})
_OF_DROPS: Final = frozenset({*_PER_DROP, "fit", "attack", "gate", "report"})
_OF_ALL: Final = frozenset(
    {"pipeline", "fit", "attack", "gate", "report", "commit", "push", "audit", "journal"}
)
_EVALUATION: Final = Path("reports/evaluation.json")


@dataclass(frozen=True)
class Row:
    """What a run's table says of a drop, or of an entry that was not taken.

    Attributes:
        drop: The drop's name, or what stands for the entry.
        state: Where it stands now.
        images: How many are used of it, where that is known.
        schemes: By which schemes it is protected.
        verdicts: Verdicts of the gate on these schemes for all drops together, and for it alone.
        words: Why, where there is a reason.
    """

    drop: str
    state: str
    images: int | None = None
    schemes: tuple[str, ...] = ()
    verdicts: str = ""
    words: str = ""

    def cells(self) -> dict[str, Any]:
        """For a table."""
        return {
            "drop": self.drop, "state": self.state,
            "images": "" if self.images is None else self.images,
            "schemes": ", ".join(self.schemes), "verdicts": self.verdicts, "words": self.words,
        }  # fmt: skip


@dataclass(frozen=True)
class DropsResult:
    """What a run did.

    Attributes:
        rows: A line for each drop and entry that it met.
        outcomes: What happened to each stage, in order.
        words: In a sentence.
    """

    rows: tuple[Row, ...]
    outcomes: Mapping[str, Outcome]
    words: str


def protect_drops(root: Path, steps: Steps) -> DropsResult:
    """One run: from what lies in the drop place to what is protected, versioned and on record.

    Call it in a flow. One bad drop never blocks the next; another run that is at work ends this one
    at once, and is no error.

    Args:
        root: The project's folder.
        steps: What is done to one drop.

    Raises:
        VeilsetError: Something failed that is no drop's decision, e.g. a full disk; all else was
            done, and the next run goes on.
    """
    with ExitStack() as stack:
        if not _locked(stack, root):
            return DropsResult((), {}, "another run is at work on this project")
        absorb_waiting_runs()
        return _Run(root, steps.set_aside).protect(steps.take_in, steps.attack)


def train_if_due(root: Path) -> DropsResult:
    """Trains, evaluates and judges anew where the policy says so; otherwise it says why not.

    Call it in a flow. It runs every stage that is not up to date.

    Args:
        root: The project's folder.

    Raises:
        VeilsetError: A stage failed; the message is the stage's sentence.
    """
    with ExitStack() as stack:
        if not _locked(stack, root):
            return DropsResult((), {}, "another run is at work on this project")
        absorb_waiting_runs()
        policy, logger = load_policy(root), get_run_logger()
        records = read_drops(root)
        new = untrained(root, [record.name for record in records])
        why = training_due(policy.train, records, new, trained=bool(trained_on(root)))
        if not why:
            words = f"no training is due: {len(new)} drops are in none yet"
            logger.info("%s", words)
            return DropsResult((), {}, words)
        logger.info("training, because %s", why)
        return _Run(root).training(why)


# ------------------------------------------------------------------------------ one run, in steps


class _Run:
    """The steps of one run; each may be repeated."""

    def __init__(self, root: Path, set_aside: SetAside | None = None) -> None:
        self.root = root
        self.set_aside = set_aside
        self.alone: dict[str, dict[str, str]] = {}
        self.policy = load_policy(root)
        self.logger = get_run_logger()
        self.schemes = schemes_of(root, self.policy)
        self.failures: dict[str, str] = {}
        self.rows: list[Row] = []

    def protect(self, take_in: TakeIn, attack: AttackDrop) -> DropsResult:
        before = _failing(self.root)
        self.arrivals()
        met = [record.name for record in read_drops(self.root) if record.state == "arrived"]
        if met:
            self.ingest_earlier()
        for name in met:
            self.check(name, take_in)
        todo = [record.name for record in read_drops(self.root) if record.state == "accepted"]
        outcomes = self.stages(todo) if todo else {}
        for name in todo:
            if self.is_done(name):
                self.attack_alone(name, attack)
        done = [name for name in todo if self.is_done(name)]
        self.record([*dict.fromkeys((*met, *todo))], done, outcomes)
        judged = _verdicts(self.root) if todo else {}
        for name in dict.fromkeys((*met, *todo)):
            self.rows.append(self.row(name, judged))
        result = DropsResult(tuple(self.rows), outcomes, self.words())
        self.tell(result, sorted(_failing(self.root) - before))
        if self.failures:
            raise VeilsetError(next(iter(self.failures.values())))
        return result

    def training(self, why: str) -> DropsResult:
        graph, changed = self.step(run_plan, "plan")(self.root)
        outcomes = self.reproduce(graph, changed, list(graph))
        self.commit("Training")
        if self.policy.push:
            self.attempt("push", run_push, self.root, list(outcomes))
        self.audit(outcomes)
        if self.failures:
            raise VeilsetError(next(iter(self.failures.values())))
        return DropsResult((), outcomes, f"trained, because {why}")

    def arrivals(self) -> None:
        """Takes what lies in the drop place; if it cannot be reached, earlier drops go on."""
        try:
            self.rows += self.step(run_arrivals, "arrivals")(self.root, self.policy)
        except (VeilsetError, OSError) as error:
            self.failures["arrivals"] = f"The drop place: {error}"

    def ingest_earlier(self) -> None:
        """New drops are compared with the earlier ones, which a fresh clone has not ingested."""
        earlier = [
            name for name in load_drops(self.root).names if not _is_ingested(self.root, name)
        ]
        for name in earlier:
            self.attempt(f"ingest@{name}", run_stage, f"ingest@{name}", self.root, True)

    def check(self, name: str, take_in: TakeIn) -> None:
        """Ingests and checks one drop; whatever it does, the next is checked as well."""
        try:
            self.step(run_check, f"check {name}")(self.root, name, take_in)
        except (VeilsetError, OSError) as error:
            self.failures[name] = f"{name}: {error}"
        except Exception as error:
            # A drop that finds a fault in the program must not stop the others every night.
            self.logger.exception("%s: unexpected", name)
            self.failures[name] = f"{name}: {type(error).__name__}, a fault of the program."

    def attack_alone(self, name: str, attack: AttackDrop) -> None:
        """Attacks a new drop by itself: among many others, what it leaks more is hardly seen."""
        one = self.step(run_attack_alone, f"attack {name} alone")
        try:
            self.alone[name] = {
                scheme: one(self.root, name, scheme, attack) for scheme in self.schemes
            }
        except (VeilsetError, OSError) as error:
            self.failures[name] = f"{name}: {error}"

    def stages(self, todo: Sequence[str]) -> dict[str, Outcome]:
        """Protects, attacks and judges all that is not up to date."""
        try:
            graph, changed = self.step(run_plan, "plan")(self.root)
        except (VeilsetError, OSError) as error:
            self.failures["pipeline"] = str(error)
            return {}
        targets = [f"attack@{scheme}" for scheme in self.schemes]
        targets += [f"protect@{scheme}-{drop}" for scheme in self.schemes for drop in todo]
        needed = _upstream(graph, targets)
        plan = [
            stage
            for stage in graph
            if stage in needed or (stage in ("gate", "report") and self.can_run(stage))
        ]
        return self.reproduce(graph, changed, plan)

    def can_run(self, stage: str) -> bool:
        """The report shows the last training too, so there has to be one."""
        return stage == "gate" or (self.root / _EVALUATION).is_file()

    def reproduce(
        self, graph: Mapping[str, Sequence[str]], changed: Collection[str], plan: Sequence[str]
    ) -> dict[str, Outcome]:
        """Runs stages in order; what a failed one stands before is not run."""
        outcomes: dict[str, Outcome] = {}
        held: set[str] = set()
        for stage in plan:
            if _drop_of(stage, graph) in held:
                continue
            broken = _blocking(stage, graph[stage], self.failures)
            if broken:
                self.failures[stage] = self.failures[broken]
                continue
            one = self.step(run_stage, stage, stage.partition("@")[0])
            try:
                outcomes[stage] = one(stage, self.root, stage in changed)
            except CannotProtectError as error:
                drop = _drop_of(stage, graph)
                if self.hold(drop, stage, str(error)):
                    held.add(drop)
                else:
                    self.failures[stage] = str(error)
            except (VeilsetError, OSError) as error:
                self.failures[stage] = str(error)
        return outcomes

    def hold(self, drop: str, stage: str, why: str) -> bool:
        """Takes a new drop that a scheme refuses out of the pipeline; returns whether it did.

        One that was protected before stays: then the settings changed, and not the drop.
        """
        # The scheme's own sentence may name a class, which may be a person; the record is in git.
        reason = f"{stage}: the scheme cannot protect it, and the log of this run says why"
        waits = {one.name for one in read_drops(self.root) if one.state == "accepted"}
        if self.set_aside is None or drop not in waits:
            return False
        try:
            self.set_aside(self.root, drop, reason)
        except SettingsError as error:
            self.logger.warning("%s stays in the pipeline: %s", drop, error)
            return False
        self.logger.warning("%s is held: %s", drop, why)
        return True

    def is_done(self, name: str) -> bool:
        """Whether it is in the pipeline, and nothing failed that its protection rests on."""
        if find_drop(self.root, name).state != "accepted":
            return False
        own = [f"protect@{scheme}-{name}" for scheme in self.schemes]
        own += [f"attack@{scheme}" for scheme in self.schemes]
        return not self.failures.keys() & {*own, "pipeline", "gate", "report", name}

    def record(
        self, met: Sequence[str], done: Sequence[str], outcomes: Mapping[str, Outcome]
    ) -> None:
        """Git, the private remote, MLflow, and at last the journal."""
        self.commit(_message(self.root, met))
        fine = "commit" not in self.failures
        targets = [*self.names_to_push(), *outcomes]
        if self.policy.push and targets:
            fine &= self.attempt("push", run_push, self.root, targets)
        if outcomes:
            fine &= self.audit(outcomes)
        if done and fine:
            alone = {
                name: [f"{one} alone: {words}" for one, words in self.alone[name].items()]
                for name in done
            }
            self.attempt("journal", run_journal, self.root, alone, self.schemes)
            self.commit(f"Protected: {', '.join(done)}")

    def names_to_push(self) -> list[str]:
        """Raw drops that may not be in the remote yet."""
        return [
            f"{RAW.as_posix()}/{record.name}.dvc"
            for record in read_drops(self.root)
            if record.state not in ("protected", "removed") and is_tracked(self.root, record.name)
        ]

    def commit(self, message: str) -> None:
        if self.policy.commit != "none":
            self.attempt("commit", run_commit, self.root, message, self.policy)

    def audit(self, outcomes: Mapping[str, Outcome]) -> bool:
        originals = load_settings(self.root).data.log_originals
        options = {"tracking_uri": None, "log_originals": originals, "report_is_clean": False}
        try:
            report = self.step(run_audit, "audit")(self.root, options)
        except (VeilsetError, OSError) as error:
            self.failures["audit"] = str(error)
            return False
        publish(self.root, outcomes, report)
        return True

    def attempt(self, name: str, one: Any, *values: Any) -> bool:
        """Runs a step; a failure is told at the end, and what does not need it is done."""
        try:
            self.step(one, name)(*values)
        except (VeilsetError, OSError) as error:
            self.failures[name] = str(error)
            return False
        return True

    def step(self, one: Any, run_name: str, name: str | None = None) -> Any:
        """A task under its name, tried again as the policy says."""
        return one.with_options(
            name=name or one.name, task_run_name=run_name, retries=self.policy.io_retries,
            retry_delay_seconds=self.policy.retry_seconds,
        )  # fmt: skip

    def row(self, name: str, judged: Mapping[str, str]) -> Row:
        record = find_drop(self.root, name)
        said = record.decisions[-1].reasons if record.state in ("held", "refused") else ()
        failed = [self.failures[one] for one in self.failures if _concerns(one, name)]
        return Row(
            name, record.state, record.counts.get("images"), record.schemes,
            "; ".join(
                f"{one}: {judged[one]} (alone: {self.alone.get(name, {}).get(one, 'not attacked')})"
                for one in record.schemes
                if one in judged
            ),
            "; ".join(dict.fromkeys((*said, *failed))),
        )  # fmt: skip

    def words(self) -> str:
        if not self.rows:
            return "nothing new"
        states = [row.state for row in self.rows]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        return ", ".join(f"{count} {state}" for state, count in counts.items())

    def tell(self, result: DropsResult, failing: Sequence[str]) -> None:
        """The run's table, and a message to whoever wants one."""
        self.logger.info("%s", result.words)
        if not result.rows:
            return
        create_table_artifact(
            key="drops", table=[row.cells() for row in result.rows], description=result.words
        )
        lines = [
            f"{row.drop}: {row.state}{f' ({row.words})' if row.words else ''}"
            for row in result.rows
            if row.state in ("held", "refused", "not taken") or row.words
        ]
        lines += [f"{one}: the verdict is fail" for one in failing]
        if self.policy.notify and lines:
            notify(self.policy.notify, f"Veilset: {result.words}", "\n".join(lines), self.logger)


# ------------------------------------------------------------------------------------- the tasks


@task(name="arrivals", cache_policy=NO_CACHE, retry_condition_fn=is_io_error, persist_result=False)
def run_arrivals(root: Path, policy: DropPolicy) -> list[Row]:
    """Takes all entries of the drop place that can be taken; returns a row for each other.

    Args:
        root: The project's folder.
        policy: The policy.
    """
    logger = get_run_logger()
    place = drop_place(root, policy)
    finish_taking(place, policy)
    rows, reasons = [], {}
    for number, entry in enumerate(entries(place), start=1):
        called = printable(entry.path.name) if policy.show_names else f"entry {number}"
        try:
            key = project_key("ids", root)
            record, new = take_entry(
                root, entry, policy, key, lambda folder: track_raw(root, folder.name)
            )
        except (VeilsetError, OSError) as error:
            if isinstance(error, BusyError):
                raise
            reasons[entry.path.name] = str(error)
            words = _without(str(error), entry.path, policy)
            logger.warning("%s was not taken: %s", called, words)
            rows.append(Row(called, "not taken", words=words))
            continue
        logger.info("%s is %s%s", called, record.name, "" if new else ", which was known")
    write_reasons(place, reasons)
    return rows


@task(name="plan", cache_policy=NO_CACHE, retry_condition_fn=is_io_error, persist_result=False)
def run_plan(root: Path) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    """The pipeline's stages in order with what each waits for, and those not up to date.

    Args:
        root: The project's folder.
    """
    graph = stage_graph(root)
    return graph, changed_stages(root, graph)


@task(name="check", cache_policy=NO_CACHE, retry_condition_fn=is_io_error, persist_result=False)
def run_check(root: Path, name: str, take_in: TakeIn) -> str:
    """Ingests and checks one drop; returns its state.

    Args:
        root: The project's folder.
        name: The drop.
        take_in: What does it.
    """
    logger = get_run_logger()
    record = take_in(root, name, lambda line: logger.info("%s", line))
    logger.info("%s: %s", name, record.words())
    return record.state


@task(name="alone", cache_policy=NO_CACHE, retry_condition_fn=is_io_error, persist_result=False)
def run_attack_alone(root: Path, name: str, scheme: str, attack: AttackDrop) -> str:
    """Attacks what a scheme made of one drop alone; returns the verdicts in words.

    Args:
        root: The project's folder.
        name: The drop.
        scheme: The scheme's name in `params.yaml`.
        attack: What does it.
    """
    words = attack(root, name, scheme)
    get_run_logger().info("%s by %s, attacked alone: %s", name, scheme, words)
    return words


@task(name="commit", cache_policy=NO_CACHE, retry_condition_fn=is_io_error, persist_result=False)
def run_commit(root: Path, message: str, policy: DropPolicy) -> bool:
    """Commits what git keeps of the drops; returns whether there was anything.

    Args:
        root: The project's folder.
        message: Its first line.
        policy: On which branch.
    """
    notes = [f"{RAW.as_posix()}/{record.name}.dvc" for record in read_drops(root)]
    figures = [path.relative_to(root).as_posix() for path in sorted(root.glob("reports/**/*.json"))]
    paths = ["dvc.lock", DROPS_FILE, DROPS_JOURNAL.as_posix(), *notes, *figures]
    if policy.commit == "branch":
        made = commit_beside(root, paths, message, policy.branch)
    else:
        made = commit_out(root, paths, message)
    get_run_logger().info("%s", message if made else "nothing to commit")
    return made


@task(name="push", cache_policy=NO_CACHE, persist_result=False)
def run_push(root: Path, targets: Sequence[str]) -> bool:
    """Sends versions to the remote `private`, and to no other; returns whether there is one.

    Args:
        root: The project's folder.
        targets: `.dvc` files and stages.

    Raises:
        StageError: DVC could not; the message is DVC's. All of it is I/O, so all is tried again.
    """
    if PRIVATE not in remote_names(root):
        get_run_logger().warning("there is no remote %r, so nothing was pushed", PRIVATE)
        return False
    dvc_text(root, "push", "--quiet", "-r", PRIVATE, *targets)
    return True


@task(name="journal", cache_policy=NO_CACHE, retry_condition_fn=is_io_error, persist_result=False)
def run_journal(root: Path, verdicts: Mapping[str, Sequence[str]], schemes: Sequence[str]) -> None:
    """Writes that these drops are protected.

    Args:
        root: The project's folder.
        verdicts: The drops, each with what attacks on it alone came to.
        schemes: By which schemes.
    """
    for name, alone in verdicts.items():
        protected(root, name, schemes, alone)


# --------------------------------------------------------------------------------- Prefect's side


def absorb_waiting_runs() -> int:
    """Cancels runs of this deployment that are due and wait: this run does their work.

    After a night without a server there is a run for each time that was missed.

    Returns:
        How many.
    """
    if deployment.id is None:
        return 0
    asked = filters.FlowRunFilter(
        deployment_id=filters.FlowRunFilterDeploymentId(any_=[UUID(deployment.id)]),
        state=filters.FlowRunFilterState(
            type=filters.FlowRunFilterStateType(any_=[StateType.SCHEDULED])
        ),
        next_scheduled_start_time=filters.FlowRunFilterNextScheduledStartTime(
            before_=cast(Any, datetime.now(UTC))
        ),
    )
    words = f"the run {flow_run.name} did its work"
    return end_runs(asked, State(type=StateType.CANCELLED, name="Missed", message=words))


def end_runs(asked: filters.FlowRunFilter, state: State[Any]) -> int:
    """Puts runs into a final state.

    Args:
        asked: Which; none of them may still fit once it is in that state.
        state: The state.

    Returns:
        How many.
    """
    count = 0
    with get_client(sync_client=True) as client:
        while found := client.read_flow_runs(
            flow_run_filter=asked, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=100
        ):
            for one in found:
                client.set_flow_run_state(one.id, state, force=True)
            count += len(found)
    return count


def notify(block: str, subject: str, body: str, logger: Any) -> bool:
    """Sends a message by a notification block of Prefect; a failure to send stops nothing.

    Args:
        block: `<type>/<name>`, as Prefect shows it.
        subject: The subject.
        body: The text.
        logger: Where to say that it could not be sent.

    Returns:
        Whether it was sent.
    """
    import prefect.blocks.notifications  # noqa: F401, PLC0415 - so that Prefect knows the types
    from prefect.blocks.core import Block  # noqa: PLC0415

    try:
        found: Any = Block.load(block)
        found.notify(body=body, subject=subject)
    except ValueError as error:
        logger.warning("the notification block %r cannot be used: %s", block, error)
        return False
    except Exception as error:
        logger.warning("nobody was notified by %r (%s)", block, type(error).__name__)
        return False
    return True


# ------------------------------------------------------------------------------- small parts below


def _locked(stack: ExitStack, root: Path) -> bool:
    """Takes the project's lock for as long as the stack; False where another run has it."""
    try:
        stack.enter_context(locked(root / RUN))
    except BusyError as busy:
        get_run_logger().info("%s", busy)
        return False
    return True


def _is_ingested(root: Path, name: str) -> bool:
    return (root / "data/ingested" / name / "manifest.json").is_file()


def _drop_of(stage: str, graph: Mapping[str, Sequence[str]]) -> str:
    """The drop of a stage that makes something of one drop alone, or ""."""
    kind, _, item = stage.partition("@")
    if kind != "protect":
        return item if kind in _PER_DROP else ""
    # A scheme's name may hold a hyphen no more than a drop's; what it waits for has the drop alone.
    return next((up.partition("@")[2] for up in graph[stage] if up.startswith("check@")), "")


def _upstream(graph: Mapping[str, Sequence[str]], targets: Collection[str]) -> set[str]:
    """The targets and all that they wait for, as far as it is a matter of drops."""
    found: set[str] = set()
    waiting = [one for one in targets if one in graph]
    while waiting:
        stage = waiting.pop()
        if stage not in found and stage.partition("@")[0] in _OF_DROPS:
            found.add(stage)
            waiting += graph[stage]
    return found


def _blocking(stage: str, upstream: Sequence[str], failed: Collection[str]) -> str:
    """A failed stage that keeps this one from running, or "".

    What is made of one drop alone keeps nothing from being made of the others, or of all.
    """
    kind = stage.partition("@")[0]
    return next(
        (
            one
            for one in upstream
            if one in failed
            and (one.partition("@")[0] not in _PER_DROP or kind in _PER_DROP or kind == "fit")
        ),
        "",
    )


def _concerns(failed: str, drop: str) -> bool:
    """Whether a failed step has to do with a drop: its own, or one of all drops."""
    kind, _, item = failed.partition("@")
    if kind not in _PER_DROP:
        return failed == drop or kind in _OF_ALL
    return item == drop or item.endswith(f"-{drop}")


def _verdicts(root: Path) -> dict[str, str]:
    """The gate's verdicts by scheme, in a few words."""
    found: dict[str, list[str]] = {}
    for row in verdict_rows(root / VERDICTS):
        found.setdefault(row["scheme"], []).append(f"{row['verdict']} for {row['for']}")
    return {scheme: ", ".join(words) for scheme, words in found.items()}


def _failing(root: Path) -> set[str]:
    """Schemes and receivers whose verdict is `fail`."""
    with suppress(VeilsetError):
        rows = verdict_rows(root / VERDICTS)
        return {f"{row['scheme']} for {row['for']}" for row in rows if row["verdict"] == "fail"}
    return set()


def _message(root: Path, names: Sequence[str]) -> str:
    """A commit's first line."""
    said = [f"{name} {find_drop(root, name).state}" for name in names]
    return f"Drops: {', '.join(said)}" if said else "Drops: what an earlier run left"


def _without(text: str, entry: Path, policy: DropPolicy) -> str:
    """A sentence without the name of an entry, unless the policy shows names."""
    if policy.show_names:
        return text
    name = rf"(?<!\w){re.escape(entry.name)}(?!\w)"
    return re.sub(name, "it", text.replace(str(entry), "it"))
