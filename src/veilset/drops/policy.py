"""What is done with new data by itself, and when: the block `drop_policy` of `params.yaml`.

It is not called `drops`, because DVC would take it for those of `drops.yaml`. All of it is ours.
"""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from veilset.data.manifest import Manifest
from veilset.drops.record import DropRecord
from veilset.errors import CorruptError
from veilset.params import Params
from veilset.settings import PARAMS_FILE, load_settings

_PROTECTED: Final = Path("data/protected")
_MODELS: Final = Path("data/models")
_BRANCH: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)*$"


class TrainPolicy(Params):
    """When CNNs are trained anew: looked at on a schedule of its own.

    Attributes:
        cron: When to look whether a training is due; "" for never.
        every: Due when so many protected drops are in no training yet; 0 for never.
        on_drift: Due as well when one of them was held for drift, and a person approved it.
    """

    cron: str = "0 4 * * *"
    every: int = Field(default=5, ge=0)
    on_drift: bool = True


class DropPolicy(Params):
    """The block `drop_policy` of `params.yaml`; every setting may be left out.

    Attributes:
        place: The drop place: a folder, from the project's folder or absolute.
        taken: What becomes of an entry once it is in the project, under DVC and on record:
            `remove` it, or `keep` it in `.taken` of the drop place. What is kept there is reached
            by no erasure.
        settle_seconds: An entry is taken when nothing in it changed for so long.
        poll_seconds: How often the drop place is looked at.
        show_names: Whether logs and tables may name entries; names may tell who is in the images.
        defaults: What holds where an entry's note does not say it, e.g. `licence` or `by`.
        schemes: By which schemes of `params.yaml` new drops are protected; none stands for all.
        cron: When to look for new data even if no event came; "" for never.
        timezone: Of both schedules.
        port: Of this project's Prefect server, on this machine alone.
        io_retries: How often a step is tried again after an I/O error or a held lock.
        retry_seconds: How long to wait before that.
        commit: Whether `dvc.lock` and the journal are committed by git: on the branch that is
            checked `out`, on a `branch` of their own without a touch to the checkout, or not at
            all (`none`).
        branch: That branch.
        push: Whether versions go to the remote `private`.
        notify: A notification block of Prefect, e.g. `slack-webhook/veilset`; "" for none.
        train: When CNNs are trained anew.
    """

    place: str = Field(default="data/incoming", min_length=1)
    taken: Literal["remove", "keep"] = "remove"
    settle_seconds: float = Field(default=5.0, ge=0, le=3600)
    poll_seconds: float = Field(default=10.0, ge=0.1, le=3600)
    show_names: bool = False
    defaults: dict[str, Any] = Field(default_factory=dict)
    schemes: tuple[str, ...] = ()
    cron: str = "0 1 * * *"
    timezone: str = "UTC"
    port: int = Field(default=4200, ge=1, le=65_535)
    io_retries: int = Field(default=3, ge=0, le=100)
    retry_seconds: float = Field(default=20.0, ge=0, le=3600)
    commit: Literal["out", "branch", "none"] = "out"
    branch: str = Field(default="drops", pattern=_BRANCH, max_length=100)
    push: bool = True
    notify: str = Field(default="", pattern=r"^([a-z0-9-]+/[a-z0-9-]+)?$")
    train: TrainPolicy = TrainPolicy()

    @model_validator(mode="after")
    def _defaults_are_of_a_note(self) -> "DropPolicy":
        unknown = sorted(set(self.defaults) - {"licence", "consent", "by", "source", "options"})
        if unknown:
            raise ValueError(f"defaults has {unknown[0]!r}, which is not for all entries alike")
        return self


def load_policy(root: Path) -> DropPolicy:
    """The policy of a project.

    Raises:
        SettingsError: `params.yaml` cannot be read, or a value is refused.
    """
    settings = load_settings(root)
    policy = DropPolicy.parse(settings.drop_policy, f"{PARAMS_FILE}: drop_policy")
    for name in policy.schemes:
        settings.scheme_block(name)
    return policy


def schemes_of(root: Path, policy: DropPolicy) -> tuple[str, ...]:
    """By which schemes new drops are protected, in the order of `params.yaml`."""
    every = load_settings(root).schemes
    return tuple(name for name in every if not policy.schemes or name in policy.schemes)


def training_due(
    policy: TrainPolicy, records: Iterable[DropRecord], new: Collection[str], *, trained: bool
) -> str:
    """Why a training is due, or "". A pure function.

    Args:
        policy: The policy.
        records: All drops.
        new: Those that are in no training yet.
        trained: Whether anything was trained before.
    """
    open_ = [one for one in records if one.name in new and one.state in ("accepted", "protected")]
    if not open_:
        return ""
    if not trained:
        return "nothing was trained yet"
    drifted = [one for one in open_ if any(d.event == "approved" for d in one.decisions)]
    if policy.on_drift and drifted:
        return f"the drop {drifted[0].name!r} changes the picture, and was approved"
    done = [one for one in open_ if one.state == "protected"]
    if policy.every and len(done) >= policy.every:
        return f"{len(done)} drops are in no training yet"
    return ""


def untrained(root: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Those drops that a scheme has protected and no CNN here was trained on.

    CNNs say what they were trained on by the roots of the protected sets, so that a drop that
    changed, e.g. by an erasure, counts as new.

    Raises:
        CorruptError: A model's card or a protected set's manifest is none.
    """
    known = trained_on(root)
    return tuple(
        name
        for name in names
        if any(
            Manifest.load(path.parent).root not in known
            for path in sorted((root / _PROTECTED).glob(f"*/{name}/manifest.json"))
        )
    )


def trained_on(root: Path) -> frozenset[str]:
    """Roots of all protected sets that a CNN here was trained on.

    Raises:
        CorruptError: A model's card is none.
    """
    cards = sorted((root / _MODELS).glob("*/model.json"))
    return frozenset(one for path in cards for one in _trained_on(path))


def _trained_on(path: Path) -> list[str]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["trained_on"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CorruptError(f"{path} is damaged: `dvc checkout` it.") from None
