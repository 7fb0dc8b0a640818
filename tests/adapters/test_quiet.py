"""The environment that keeps every tool quiet."""

import pytest

from veilset.quiet import SWITCHES, quiet, telemetry_state


def test_quiet_silences_every_tool() -> None:
    environment: dict[str, str] = {}
    assert not any(state.off for state in telemetry_state(environment))
    quiet(environment)
    assert all(state.off for state in telemetry_state(environment))
    assert set(environment) == {switch.variable for switch in SWITCHES}


def test_a_value_that_the_user_set_stays_and_is_told() -> None:
    environment = {"PREFECT_SERVER_ANALYTICS_ENABLED": "true"}
    quiet(environment)
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "true"
    on = [state.variable for state in telemetry_state(environment) if not state.off]
    assert on == ["PREFECT_SERVER_ANALYTICS_ENABLED"]


@pytest.mark.parametrize(
    ("variable", "value", "off"),
    [
        ("DO_NOT_TRACK", "0", False),
        ("DO_NOT_TRACK", "true", True),
        ("MLFLOW_DISABLE_TELEMETRY", "false", False),
        ("GX_ANALYTICS_ENABLED", "False", True),
        ("GX_ANALYTICS_ENABLED", "1", False),
        ("DVC_NO_ANALYTICS", "", False),
    ],
)
def test_a_value_means_what_its_tool_takes_it_for(variable: str, value: str, off: bool) -> None:
    (state,) = [s for s in telemetry_state({variable: value}) if s.variable == variable]
    assert state.off is off


def test_the_tools_agree_that_they_are_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.analytics import is_enabled
    from mlflow.telemetry.utils import is_telemetry_disabled

    for switch in SWITCHES:
        monkeypatch.delenv(switch.variable, raising=False)
    monkeypatch.delenv("CI", raising=False)
    quiet()
    for variable in ("DO_NOT_TRACK", "CI"):
        monkeypatch.delenv(variable, raising=False)
    assert not is_enabled()
    assert is_telemetry_disabled()
