"""Deployments of the flows of drops: schedules, the event of an arrival, and runs that died.

One process serves them and looks at the drop place; it holds no state that a restart would lose.
All of it is ours.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import State, StateType
from prefect.events import emit_event
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.deployment_triggers import DeploymentEventTrigger
from prefect.events.schemas.events import ResourceSpecification
from prefect.runner import Runner
from prefect.schedules import Cron

from veilset.adapters.prefect_drops import RUN, end_runs
from veilset.adapters.prefect_home import deployment_name
from veilset.drops.intake import Look
from veilset.drops.place import drop_place, entries, is_ready
from veilset.drops.policy import load_policy
from veilset.drops.record import DropRecord, read_drops
from veilset.errors import BusyError
from veilset.files import locked

ARRIVED: Final = "veilset.drop.arrived"
"""The event that starts a run: something settled lies in the drop place, or a run was cut short."""

HEARTBEAT: Final = 30
"""Seconds between a run's signs of life."""

_REMIND: Final = 900.0
"""Seconds after which an arrival that is still there is told again; each time twice as many."""


@dataclass(frozen=True)
class Sighting:
    """What is known of an entry of the drop place.

    Attributes:
        look: What lay there when it was last looked at.
        since: When that was seen first, seconds of the clock that was given.
        told: When it was last told; None for never.
        wait: After how many seconds it is told again.
    """

    look: Look
    since: float
    told: float | None = None
    wait: float = _REMIND


def seen_now(
    before: Mapping[str, Sighting], looks: Mapping[str, Look], now: float, settle: float
) -> tuple[dict[str, Sighting], int]:
    """What is known after another look, and how many arrivals are to be told. A pure function.

    An arrival is told once its files did not change for `settle` seconds. An event may be lost, so
    that one which stays is told again, ever more seldom.

    Args:
        before: What was known, by entry.
        looks: What lies there now.
        now: The time, seconds.
        settle: How long nothing must change, seconds.
    """
    known, due = {}, 0
    for name, look in looks.items():
        old = before.get(name)
        if old is None or old.look != look:
            known[name] = Sighting(look, now)
            if settle > 0:
                continue
        one = known.get(name) or before[name]
        if now - one.since < settle:
            known[name] = one
        elif one.told is None:
            known[name] = Sighting(look, one.since, now)
            due += 1
        elif now - one.told >= one.wait:
            known[name] = Sighting(look, one.since, now, 2 * one.wait)
            due += 1
        else:
            known[name] = one
    return known, due


class Poller:
    """Looks at the drop place and emits an event when something has settled there."""

    def __init__(self, root: Path, emit: Callable[[int], object]) -> None:
        """`emit` is told how many arrivals there are."""
        self._root, self._emit = root, emit
        self._known: dict[str, Sighting] = {}
        self._decided = decided_by_persons(read_drops(root))
        self._stop = threading.Event()

    def look(self) -> int:
        """Looks once; returns how many arrivals and decisions of persons were told."""
        policy = load_policy(self._root)
        looks = {}
        for entry in entries(drop_place(self._root, policy)):
            look = is_ready(entry, policy.defaults)
            if look is not None:
                looks[entry.path.name] = look
        now = time.monotonic()
        self._known, due = seen_now(self._known, looks, now, policy.settle_seconds)
        decided = decided_by_persons(read_drops(self._root))
        due += len(decided - self._decided)
        self._decided = decided
        if due:
            self._emit(due)
        return due

    def run(self) -> None:
        """Looks again and again until `stop`; a fault of one look does not end it."""
        while True:
            seconds = 60.0
            try:
                self.look()
                seconds = load_policy(self._root).poll_seconds
            except Exception as error:
                logging.getLogger("prefect.veilset").warning("the drop place: %s", error)
            if self._stop.wait(seconds):
                return

    def stop(self) -> None:
        """Has `run` end."""
        self._stop.set()


def decided_by_persons(records: Iterable[DropRecord]) -> frozenset[tuple[str, int]]:
    """Drops that wait for a run because of what a person did last. A pure function.

    Args:
        records: All drops.

    Returns:
        Each with the number of its decisions, by which a later one is told from it.
    """
    return frozenset(
        (one.name, len(one.decisions))
        for one in records
        if one.state in ("arrived", "accepted")
        and one.decisions
        and one.decisions[-1].event in ("approved", "retried", "erased")
    )


def unfinished(root: Path) -> bool:
    """Whether a drop waits for a run."""
    return any(record.state in ("arrived", "accepted") for record in read_drops(root))


def tell_arrival(root: Path, count: int) -> object:
    """Emits the event of an arrival.

    Args:
        root: The project's folder.
        count: How many arrivals.
    """
    resource = {"prefect.resource.id": _resource(root)}
    return emit_event(ARRIVED, resource=resource, payload={"arrivals": count})


def serve_flows(root: Path, drops: Any, train: Any) -> None:
    """Deploys both flows and runs them when they are due, one at a time, until it is stopped.

    Args:
        root: The project's folder.
        drops: The flow that protects new data.
        train: The flow that trains.
    """
    policy, name = load_policy(root), deployment_name(root)
    arrival = DeploymentEventTrigger(
        name=f"{name}: an arrival", expect={ARRIVED},
        match=ResourceSpecification({"prefect.resource.id": _resource(root)}),
    )  # fmt: skip
    runner = Runner(
        name=f"veilset {name}", limit=1, pause_on_shutdown=False, heartbeat_seconds=HEARTBEAT,
        query_seconds=min(5.0, policy.poll_seconds), prefetch_seconds=1,
    )  # fmt: skip
    deployments = [
        flow.to_deployment(
            name, parameters={"root": str(root)}, triggers=triggers,
            schedules=[Cron(cron, timezone=policy.timezone)] if cron else [],
        )
        for flow, cron, triggers in (
            (drops, policy.cron, [arrival]),
            (train, policy.train.cron, []),
        )
    ]  # fmt: skip
    ids = [UUID(str(runner.add_deployment(one))) for one in deployments]
    watch_heartbeats(name, ids)
    end_lost_runs(root, ids)
    # It would say every few seconds that the next run waits for this one.
    logging.getLogger("prefect.runner").setLevel(logging.WARNING)
    poller = Poller(root, lambda count: tell_arrival(root, count))
    looking = threading.Thread(target=poller.run, daemon=True)
    looking.start()
    if unfinished(root):
        tell_arrival(root, 0)
    try:
        asyncio.run(runner.start())
    finally:
        poller.stop()


def watch_heartbeats(name: str, deployments: Sequence[UUID]) -> UUID:
    """Has the server mark runs as crashed that gave no sign of life for three heartbeats.

    Args:
        name: The deployments' name.
        deployments: Whose runs.

    Returns:
        The automation's id. One that is the same stays, with the signs of life that it knows.
    """
    ends = {f"prefect.flow-run.{one}" for one in ("Completed", "Failed", "Cancelled", "Crashed")}
    alive = "prefect.flow-run.heartbeat"
    related = ResourceSpecification(
        {"prefect.resource.id": [f"prefect.deployment.{one}" for one in deployments]}
    )
    called = f"{name}: runs without a heartbeat"
    automation = AutomationCore(
        name=called, description="A run that gives no sign of life has crashed; the next goes on.",
        trigger=EventTrigger(
            after={alive}, expect={alive, *ends}, posture=Posture.Proactive, threshold=1,
            within=timedelta(seconds=3 * HEARTBEAT), for_each={"prefect.resource.id"},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=related,
        ),
        actions=[ChangeFlowRunState(
            state=StateType.CRASHED, name="Crashed", force=False,
            message="It gave no sign of life; the next run goes on with its work.",
        )],
    )  # fmt: skip
    with get_client(sync_client=True) as client:
        for old in client.read_automations_by_name(called):
            if _conditions(old.trigger) == _conditions(automation.trigger):
                return old.id
            client.delete_automation(old.id)
        return client.create_automation(automation)


def end_lost_runs(root: Path, deployments: Sequence[UUID]) -> int:
    """Ends runs whose process was killed: at its start the only worker has begun none.

    A run that outlived its worker holds the project's lock; then nothing is ended here.

    Returns:
        How many.
    """
    begun = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    asked = filters.FlowRunFilter(
        deployment_id=filters.FlowRunFilterDeploymentId(any_=list(deployments)),
        state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=begun)),
    )
    lost = State(type=StateType.CRASHED, message="Its process was killed; the next run goes on.")
    try:
        with locked(root / RUN):
            return end_runs(asked, lost)
    except BusyError:
        return 0


def _conditions(trigger: Any) -> tuple[Any, ...]:
    """What decides when a trigger fires."""
    parts = trigger.model_dump(mode="json")
    sets = (sorted(parts[name]) for name in ("after", "expect", "for_each"))
    related = {name: sorted(values) for name, values in parts["match_related"].items()}
    return (*sets, parts["match"], related, parts["posture"], parts["within"])


def _resource(root: Path) -> str:
    return f"veilset.project.{deployment_name(root)}"
