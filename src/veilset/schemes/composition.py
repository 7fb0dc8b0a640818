"""A composition: several schemes one after another, which together are a scheme."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy.typing as npt
from pydantic import Field, field_validator

from veilset.errors import SettingsError
from veilset.keys import Key, derive_key
from veilset.params import Params
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.fitted import Fitted, Lessons, Progress
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, IntArray, Labels

_LEARNT: Final = "0/"


class CompositionParams(Params):
    """The steps in order: a block each, with the scheme's name as `scheme` and its parameters."""

    steps: tuple[dict[str, Any], ...] = Field(
        default=({"scheme": "pixelate"}, {"scheme": "visualmixer"}),
        min_length=2, max_length=8,
        description="schemes in order: `{scheme: NAME, PARAMETER: VALUE, ...}` each",
    )  # fmt: skip

    @field_validator("steps")
    @classmethod
    def _named(cls, steps: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for number, step in enumerate(steps):
            if not isinstance(step.get("scheme"), str):
                raise ValueError(f"step {number + 1} has no `scheme`, the name of one")
            if step["scheme"] == Composition.name:
                raise ValueError("a composition cannot be a step of a composition: list its steps")
        return steps


class Composition(Scheme[CompositionParams]):
    """Protects by each step what the step before it returned.

    It declares the weaker of what its steps declare. A guarantee of the first step remains, because
    the others see nothing but its output; a guarantee of a later step is about what that step
    received, and is not claimed. Each step has a key of its own, derived from the owner's key and
    all steps, so a scheme that occurs twice, or alone beside the composition, shares no stream.
    Donors of a later step are protected by the steps before it. A scheme that learns must be the
    first: it learns from plain images.

    Private information has the number of its step before its name (`2/donors`), and so has side
    information of all steps but the first.

    Source: ours; post-processing of a private mechanism: Dwork and Roth 2014, proposition 2.1.
    """

    name = "composition"
    title = "Composition"
    version = 1
    declares = Declaration(
        keyed=True, reversible=False, guarantee=None, protects_queries=False, uses_labels=False,
        provenance="ours", source="ours",
        risk_notes=("What its steps leave is known step by step; together they may leave less.",),
    )  # fmt: skip
    Parameters = CompositionParams

    def __init__(
        self, params: CompositionParams | None = None, *, fitted: Fitted | None = None,
        device: str = "cpu", **values: Any,
    ) -> None:  # fmt: skip
        super().__init__(params, fitted=fitted, device=device, **values)
        later = next((step.name for step in self.steps[1:] if step.learns), None)
        if later is not None:
            raise SettingsError(
                f"composition: {later} learns from plain images, which only the first step sees: "
                "put it first."
            )
        self.learns = self.steps[0].learns
        self.uses_pool = any(step.uses_pool for step in self.steps)
        self.title = " then ".join(step.title for step in self.steps)
        self.declares = _weaker(self.steps)

    @cached_property
    def steps(self) -> tuple[Scheme[Any], ...]:
        """The schemes in order.

        Raises:
            SettingsError: No such scheme, or a parameter of one is refused.
        """
        made = [_made(number, step) for number, step in enumerate(self.params.steps)]
        first = made[0]
        if self.fitted is not None and first.learns:
            arrays = {n.removeprefix(_LEARNT): a for n, a in self.fitted.arrays.items()}
            learnt = Fitted(first.name, first.version, first.params.canonical(), arrays)
            made[0] = type(first)(first.params, fitted=learnt, device=self.device)
        return tuple(made)

    def record(self) -> dict[str, Any]:
        """The composition with the record of each step."""
        return {**super().record(), "steps": [step.record() for step in self.steps]}

    def facts(self) -> Mapping[str, Any]:
        """Those of the first step, whose budget remains: the others see only its output."""
        return self.steps[0].facts()

    def refuse(self, labels: Labels) -> str | None:
        """The first reason of a step."""
        reasons = (step.refuse(labels) for step in self.steps)
        return next((reason for reason in reasons if reason is not None), None)

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """The sum over the steps, None where one does not tell."""
        bits = [step.key_space_bits(shape) for step in self.steps]
        known = [value for value in bits if value is not None]
        return sum(known) if len(known) == len(bits) else None

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        keys = self._keys(stream)
        made = Protected(images)
        side: dict[str, npt.NDArray[Any]] = {}
        private: dict[str, npt.NDArray[Any]] = {}
        for number, step in enumerate(self.steps):
            before = self._before(pool, keys, number)
            made = step.protect(made.images, labels, ids, keys[number], before)
            # Readers find what a first step publishes under its own name.
            mark = f"{number + 1}/" if number else ""
            side |= {f"{mark}{name}": values for name, values in made.side.items()}
            private |= {f"{number + 1}/{name}": v for name, v in made.private.items()}
        return Protected(made.images, side, private)

    def recover(
        self,
        images: Images,
        labels: Labels,
        ids: Ids,
        key: Key,
        private: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> Images:
        """Undoes the steps from the last to the first.

        Raises:
            ProtectionError: A step is one-way, or needs private information that is missing.
        """
        keys = self._keys(self.stream(key))
        for number, step in reversed(list(enumerate(self.steps))):
            mark = f"{number + 1}/"
            own = {
                name.removeprefix(mark): values
                for name, values in (private or {}).items()
                if name.startswith(mark)
            }
            images = step.recover(images, labels, ids, keys[number], own)
        return images

    def _before(self, pool: Pool, keys: list[Key], number: int) -> Pool:
        if number == 0 or not self.steps[number].uses_pool:
            return pool
        return _Steps(pool, self.steps[:number], keys)

    def _keys(self, stream: Stream) -> list[Key]:
        """A key for each step; the stream covers the owner's key and all parameters."""
        secret = Key(stream.secret)
        return [derive_key(secret, f"step {number}") for number in range(len(self.steps))]

    def _fit(
        self, lessons: Lessons, progress: Progress | None
    ) -> tuple[Mapping[str, npt.NDArray[Any]], Mapping[str, Any]]:
        fitted = self.steps[0].fit(lessons, progress)
        return {f"{_LEARNT}{name}": a for name, a in fitted.arrays.items()}, fitted.facts


class _Steps:
    """A pool whose images went through the steps before: donors are never plain."""

    def __init__(self, pool: Pool, steps: tuple[Scheme[Any], ...], keys: list[Key]) -> None:
        self._pool, self._steps, self._step_keys = pool, steps, keys

    @property
    def ids(self) -> Ids:
        return self._pool.ids

    @property
    def labels(self) -> Labels:
        return self._pool.labels

    def take(self, rows: IntArray) -> Images:
        """Images of these rows as the steps before return them."""
        images, labels, ids = self._pool.take(rows), self.labels[rows], self.ids[rows]
        pool = self._pool
        for number, step in enumerate(self._steps):
            images = step.protect(images, labels, ids, self._step_keys[number], pool).images
            pool = _Steps(self._pool, self._steps[: number + 1], self._step_keys)
        return images


def _made(number: int, step: Mapping[str, Any]) -> Scheme[Any]:
    from veilset.schemes.registry import make_scheme  # noqa: PLC0415 - the registry finds this file

    values = {name: value for name, value in step.items() if name != "scheme"}
    return make_scheme(step["scheme"], values, f"composition.steps[{number + 1}]")


def _weaker(steps: tuple[Scheme[Any], ...]) -> Declaration:
    """What all steps together may say."""
    declared = [step.declares for step in steps]
    serious = [step.declares for step in steps if step.name != "plain"]
    guarantee = declared[0].guarantee
    if guarantee is not None:
        guarantee = f"{guarantee} (of the first step; the others are post-processing)"
    notes = [f"{step.title}: {note}" for step in steps for note in step.declares.risk_notes]
    return Declaration(
        keyed=any(each.keyed for each in declared),
        reversible=all(each.reversible for each in declared),
        guarantee=guarantee,
        protects_queries=all(each.protects_queries for each in declared),
        uses_labels=any(each.uses_labels for each in declared),
        shift_safe=all(each.shift_safe for each in declared),
        releasable=bool(serious) and all(each.releasable for each in serious),
        provenance="ours",
        source="; ".join(each.source for each in declared),
        risk_notes=(*Composition.declares.risk_notes, *dict.fromkeys(notes)),
    )
