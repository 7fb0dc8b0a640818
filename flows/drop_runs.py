"""The flows that `flows/drops.py` serves. Prefect loads this file for every run of its own."""

from pathlib import Path

from prefect import flow

from veilset.adapters.prefect_drops import DropsResult, Steps, protect_drops, train_if_due
from veilset.adapters.prefect_pipeline import quiet_logs
from veilset.quiet import quiet
from veilset.stages.admission import set_aside, take_in
from veilset.stages.drop_attack import attack_drop

quiet()
quiet_logs()


@flow(name="drops", validate_parameters=False, persist_result=False, log_prints=False)
def drops(root: str = ".") -> DropsResult:
    """Takes in, protects, attacks, judges and records what is new."""
    return protect_drops(Path(root).resolve(), Steps(take_in, set_aside, attack_drop))


@flow(name="train", validate_parameters=False, persist_result=False, log_prints=False)
def train(root: str = ".") -> DropsResult:
    """Trains anew where the policy says that it is time."""
    return train_if_due(Path(root).resolve())
