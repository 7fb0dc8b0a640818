"""Where MLflow shows a stage result. The store is only read: none is made, none is migrated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from veilset.adapters.audit_facts import RunFacts
from veilset.adapters.audit_records import KEY
from veilset.adapters.mlflow_audit import quiet_mlflow, tracking_address
from veilset.errors import AuditError

_LOCAL: Final = "http://127.0.0.1:5000"
_FILE: Final = "sqlite:///"


def find_runs(root: Path, dataset: str, stages: Mapping[str, str]) -> tuple[RunFacts, ...]:
    """The runs of stage results, in their order; none where there is no store that can be read.

    Args:
        root: The project's folder.
        dataset: The data set's name, which its experiment bears.
        stages: The names of the stages by their keys, see `stage_key`.
    """
    client = _client(root)
    if client is None or not stages:
        return ()
    with quiet_mlflow():
        try:
            experiment = client.get_experiment_by_name(dataset)
            return tuple(_found(client, experiment, stages, root)) if experiment else ()
        except _refused():
            return ()


def registered_stage(root: Path, value: str) -> tuple[str, str]:
    """Which model a name in MLflow's registry means: `<scheme>-<model>-<seed>`, and its stage key.

    Args:
        root: The project's folder.
        value: Name and version in the registry, as `digits.visualmixer.resnet20/1`.

    Raises:
        AuditError: There is no store, or it has no such model.
    """
    name, _, number = value.rpartition("/")
    client = _client(root)
    if client is None:
        raise AuditError(
            f"There is no MLflow store that might know {value}: name the model as "
            "SCHEME-MODEL-SEED, or run `veilset audit sync`."
        )
    with quiet_mlflow():
        try:
            version = client.get_model_version(name, number)
            tags = client.get_run(version.run_id).data.tags
            stage, key = str(tags.get("veilset.stage_name", "")), str(tags.get(KEY, ""))
        except _refused():
            raise AuditError(
                f"MLflow's registry has no model {value}: it is named NAME/VERSION, as the "
                "registry's page shows it."
            ) from None
    return stage.removeprefix("train@"), key


def _client(root: Path) -> Any:
    address = tracking_address(root, None)
    if address.startswith(_FILE) and not Path(address.removeprefix(_FILE)).is_file():
        return None
    with quiet_mlflow():
        from mlflow.tracking import MlflowClient  # noqa: PLC0415 - seconds to import

        try:
            client = MlflowClient(tracking_uri=address, registry_uri=address)
            client.search_experiments(max_results=1)
        except _refused():
            return None
    return client


def _refused() -> tuple[type[Exception], ...]:
    """What MLflow raises where a store cannot be read or has no such thing."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    return MlflowException, SQLAlchemyError, OSError


def _found(client: Any, experiment: Any, stages: Mapping[str, str], root: Path) -> list[RunFacts]:
    address = tracking_address(root, None)
    base = _page(address) if address.startswith("http") else _LOCAL
    found = []
    for key, stage in stages.items():
        told = f"tags.`{KEY}` = '{key}'"
        for run in client.search_runs([experiment.experiment_id], told, max_results=1):
            page = f"{base}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"
            found.append(RunFacts(stage, run.info.run_id, page))
    return found


def _page(address: str) -> str:
    """A server's address without the password that it may hold."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
