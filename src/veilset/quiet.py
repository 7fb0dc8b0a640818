"""Telemetry off, offline first: the platform's environment switches, set in one place.

Every tool reads its switch when it is imported or started, so `quiet` is called before the first
import of a platform package. A value that the user has set is never overridden.
"""

import os
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Switch:
    """One environment variable, and the value that keeps its tool quiet.

    Attributes:
        tool: Whose variable it is.
        variable: The name of the environment variable.
        value: What `quiet` sets where nothing is set.
        telemetry: Whether it stops data from leaving (otherwise it only keeps the tool offline,
            safe or patient).
    """

    tool: str
    variable: str
    value: str
    telemetry: bool = True


SWITCHES: Final = (
    Switch("every tool that honours it", "DO_NOT_TRACK", "1"),
    Switch("MLflow", "MLFLOW_DISABLE_TELEMETRY", "true"),
    Switch("Prefect", "PREFECT_SERVER_ANALYTICS_ENABLED", "false"),
    Switch("DVC", "DVC_NO_ANALYTICS", "1"),
    Switch("DVC Studio", "DVC_STUDIO_OFFLINE", "true"),
    Switch("Great Expectations", "GX_ANALYTICS_ENABLED", "false"),
    Switch("Ray", "RAY_USAGE_STATS_ENABLED", "0"),
    Switch("Hugging Face", "HF_HUB_DISABLE_TELEMETRY", "1"),
    # A pickled model runs code when it is read; ours are safetensors.
    Switch("MLflow", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false", telemetry=False),
    # A flow starts its own server where none is configured; 20 s are too few on a busy machine.
    Switch("Prefect", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true", telemetry=False),
    Switch("Prefect", "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180", telemetry=False),
)

_ON: Final = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True)
class SwitchState:
    """What the environment says about one switch.

    Attributes:
        tool: Whose switch it is.
        variable: The environment variable.
        value: Its value, or None where it is not set.
        off: Whether the tool sends nothing.
    """

    tool: str
    variable: str
    value: str | None
    off: bool


def quiet(environment: MutableMapping[str, str] | None = None) -> None:
    """Sets every switch that is not set yet.

    Args:
        environment: Where to set them; this process and its children by default.
    """
    target = os.environ if environment is None else environment
    for switch in SWITCHES:
        target.setdefault(switch.variable, switch.value)


def telemetry_state(
    environment: MutableMapping[str, str] | None = None,
) -> tuple[SwitchState, ...]:
    """What each tool would send, for `veilset doctor`.

    Args:
        environment: Which environment to look at; this process's by default.

    Returns:
        One state for each telemetry switch, in a fixed order; `off` is True where the variable has
        a value that silences its tool.
    """
    target = os.environ if environment is None else environment
    return tuple(
        _state(switch, target.get(switch.variable)) for switch in SWITCHES if switch.telemetry
    )


def _state(switch: Switch, value: str | None) -> SwitchState:
    off = value is not None and _means_on(switch, value) == _means_on(switch, switch.value)
    return SwitchState(tool=switch.tool, variable=switch.variable, value=value, off=off)


def _means_on(switch: Switch, value: str) -> bool:
    if switch.variable == "DVC_NO_ANALYTICS":
        # DVC asks whether the variable is set at all: even "0" silences it.
        return bool(value)
    return value.strip().lower() in _ON
