"""A network compiled once a process: its next training of the same form takes the compiled one."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from veilset.errors import TrainingError
from veilset.models.device import Engine

Forward = Callable[[Tensor], Tensor]

WORTH_IT: Final = 4000
"""Steps from which `auto` compiles. An estimate: compiling takes about a minute, and a step of 512
small images about 20 ms on a large GPU, of which a compiled network saves a quarter or more."""

_KEPT: Final = 4
_known: dict[Hashable, tuple[nn.Module, Forward]] = {}


def choose_compile(
    asked: Literal["auto", "on", "off"], engine: Engine, *, steps: int, processes: int
) -> bool:
    """Whether a network is compiled; it depends on nothing that differs from run to run.

    Args:
        asked: What the parameters say.
        engine: Where it computes.
        steps: Steps of the whole run.
        processes: That train it together.

    Raises:
        TrainingError: It was asked for, and several processes train.
    """
    if asked == "on" and processes > 1:
        raise TrainingError(
            f"compile is on, but {processes} processes train together, whose network cannot be "
            "compiled: use auto or off."
        )
    if asked != "auto":
        return asked == "on"
    there = engine.device.type == "cuda" and find_spec("triton") is not None
    return there and steps >= WORTH_IT and processes == 1


@contextmanager
def compiled(
    model: nn.Module, form: Hashable, *, deterministic: bool
) -> Iterator[tuple[nn.Module, Forward]]:
    """A compiled network with a given one's weights, for the time of the block.

    Args:
        model: The network, on its device.
        form: Equal for two networks if and only if the same compiled code serves both: what built
            them, and the sizes of their batches.
        deterministic: Deterministic kernels only.

    Yields:
        A network of that form with the weights of `model`, maybe another object, and its compiled
        forward pass.
    """
    # Taken out while it is used: a training within a training has one of its own.
    found = _known.pop(form, None)
    if found is None:
        found = (model, _compile(model, deterministic))
    else:
        found[0].load_state_dict(model.state_dict())
    try:
        yield found
    finally:
        for parameter in found[0].parameters():
            parameter.grad = None
        _known[form] = found
        while len(_known) > _KEPT:
            _known.pop(next(iter(_known)), None)


def _compile(model: nn.Module, deterministic: bool) -> Forward:
    from torch._dynamo import config  # noqa: PLC0415 - takes seconds
    from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415

    # Each form and size of batch counts as one more compilation of the same lines of Python.
    settings: Any = config
    settings.recompile_limit = max(settings.recompile_limit, 64)
    options: dict[str, Any] | None = {"deterministic": True} if deterministic else None
    fast = torch.compile(model, dynamic=False, options=options)

    def forward(inputs: Tensor) -> Tensor:
        try:
            return fast(inputs)  # type: ignore[no-any-return]
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"the network cannot be compiled here ({reason}): set compile to off."
            ) from None

    return forward
