"""A trained CNN as attacks hold it: read from disk, asked, and trained anew by its own recipe."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from veilset.attacks.base import (
    NO_NETWORK,
    Attack,
    Attacker,
    AttackResult,
    Case,
    Diverged,
    F,
    Network,
    P,
    Progress,
    Release,
    Truth,
)
from veilset.models.device import Engine, kernels
from veilset.models.registry import architecture
from veilset.schemes.plain import Plain
from veilset.training.loader import MASK, Samples
from veilset.training.loop import Subject, train
from veilset.training.params import TrainingParams
from veilset.training.saved import ModelCard, load_model
from veilset.types import Images, Labels

READS_MASKS = "the CNN reads masks, and this attack shows it none"

_BATCH: Final = 64
_LOOKED_AT: Final = 8
"""A training must be shown some validation images; nothing is chosen by them."""


@dataclass(frozen=True, kw_only=True)
class Holder(Attacker):
    """An attacker who holds the CNN.

    Attributes:
        network: The CNN.
    """

    network: Network


class NetworkAttack(Attack[P, F]):
    """An attack on a CNN, which its attacker holds; the stage `attack_model` runs it."""

    def applies(self, case: Case) -> str | None:
        """None where a CNN is given, and whatever else is needed."""
        if case.network is None:
            return NO_NETWORK
        if MASK in case.release.side and architecture(case.network.architecture).reads_mask:
            return READS_MASKS
        return self._lacks(case, case.network)

    @abstractmethod
    def _lacks(self, case: Case, network: Network) -> str | None:
        """What else this attack needs and is not there, or None."""

    def _run(self, case: Case, progress: Progress | None) -> AttackResult:
        return super()._run(in_her_hands(case), progress)


def in_her_hands(case: Case) -> Case:
    """The same case, whose attacker holds its CNN.

    Raises:
        ValueError: There is none.
    """
    if case.network is None:
        raise ValueError("this attack needs a CNN; applies() says so")
    return replace(case, attacker=Holder(**vars(case.attacker), network=case.network))


def held(attacker: Attacker) -> Network:
    """The CNN in an attacker's hands.

    Raises:
        TypeError: She holds none.
    """
    if not isinstance(attacker, Holder):
        raise TypeError("this attack needs a CNN: start it by run()")
    return attacker.network


def network_of(
    folder: Path, outsiders: tuple[Release, Truth] | None = None, device: str = "cpu"
) -> Network:
    """A saved CNN as an attacker holds it, with its recipe.

    Args:
        folder: What `veilset.training.loop.train` wrote.
        outsiders: Protected by the owner like the release, but not trained on; truth included.
        device: Where further ones are trained, as torch names it.

    Returns:
        The CNN. Its `retrain` trains in a temporary folder, which is gone afterwards, without
        masks, and raises TrainingError where the images cannot be trained on.

    Raises:
        CorruptError: A file is missing or altered.
        SettingsError: The architecture is not known here.
    """
    return _network(folder, _Recipe(load_model(folder)[1], device), outsiders)


@dataclass(frozen=True)
class _Recipe:
    """Trains by what a card says; the augmentation is that of the card, whatever the scheme."""

    card: ModelCard
    device: str

    def __call__(self, images: Images, labels: Labels, seed: int) -> Network:
        """A CNN trained on protected images uint8 (N, H, W, C) with their labels."""
        card = self.card
        known = {name: card.recipe[name] for name in TrainingParams.model_fields}
        params = TrainingParams.parse(
            {**known, "seed": seed % 2**32, "device": torch.device(self.device).type},
            "the CNN's recipe",
        )
        subject = Subject(
            card.architecture, card.classes, card.scheme, Plain.declares, card.parameters
        )
        seen = Samples(images[:_LOOKED_AT], labels[:_LOOKED_AT])
        with TemporaryDirectory(prefix="veilset-shadow-") as place:
            made = train(Samples(images, labels), seen, params, subject, Path(place) / "model")
            return _network(made.folder, self, None)


def _network(folder: Path, recipe: _Recipe, outsiders: tuple[Release, Truth] | None) -> Network:
    module, card = load_model(folder)
    normaliser = card.normaliser
    # Where nothing is trained, whole planes are faster on a CPU (measured).
    module = module.to(memory_format=torch.contiguous_format)
    return Network(
        module=module, mean=normaliser.mean, std=normaliser.std, architecture=card.architecture,
        parameters=card.parameters, retrain=recipe, outsiders=outsiders,
    )  # fmt: skip


@contextmanager
def on_device(network: Network, device: str) -> Iterator[torch.device]:
    """Inside the block the CNN is on the device in evaluation mode, and sums are repeatable."""
    place = torch.device(device)
    before = next(network.module.parameters()).device
    network.module.to(place).eval()
    try:
        with kernels(Engine(place, "fp32"), deterministic="where there are"):
            yield place
    finally:
        network.module.to(before)


def normalised(network: Network, pixels: Tensor) -> Tensor:
    """What the CNN reads of images float (N, C, H, W), 0..1; gradients pass."""
    mean, std = (pixels.new_tensor(each).view(-1, 1, 1) for each in (network.mean, network.std))
    return (pixels - mean) / std


def pixels_of(images: Images, device: torch.device) -> Tensor:
    """Images uint8 (N, H, W, C) as float32 (N, C, H, W), 0..1."""
    planes = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device)
    return planes.permute(0, 3, 1, 2).float() / 255.0


def answers(network: Network, images: Images, device: str) -> npt.NDArray[np.float32]:
    """The CNN's logits.

    Args:
        network: The CNN.
        images: uint8 (N, H, W, C).
        device: As torch names it.

    Returns:
        float32 (N, classes).

    Raises:
        Diverged: A logit is not finite.
    """
    made = []
    with torch.inference_mode(), on_device(network, device) as place:
        for start in range(0, len(images), _BATCH):
            pixels = pixels_of(images[start : start + _BATCH], place)
            made.append(network.module(normalised(network, pixels)).float().cpu().numpy())
    logits = np.concatenate(made)
    if not np.isfinite(logits).all():
        raise Diverged("the CNN answers with a number that is none")
    return logits


def first_half_map(network: Network, image: Images, device: str) -> str:
    """The name of the first layer whose maps have at most half the image's height and width.

    Args:
        network: The CNN.
        image: uint8 (1, H, W, C).
        device: As torch names it.

    Raises:
        ValueError: There is none.
    """
    _, height, width, _ = image.shape
    found: list[str] = []

    def look(name: str) -> Callable[[object, object, object], None]:
        def keep(_: object, __: object, made: object) -> None:
            if isinstance(made, Tensor) and made.ndim == 4:
                small = 2 * made.shape[2] <= height + 1 and 2 * made.shape[3] <= width + 1
                if small:
                    found.append(name)

        return keep

    modules = [(name, module) for name, module in network.module.named_modules() if name]
    hooks = [module.register_forward_hook(look(name)) for name, module in modules]
    try:
        answers(network, image, device)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError("no layer of this CNN makes maps of half the image's size")
    return found[0]


class _Seen(Exception):  # noqa: N818 - it is no error
    """The wanted layer has passed on its maps."""


def layer_output(
    network: Network, layer: str, images: Images, device: str
) -> npt.NDArray[np.float32]:
    """What a layer passes on.

    Args:
        network: The CNN.
        layer: Its name within the module; its output has four axes.
        images: uint8 (N, H, W, C).
        device: As torch names it.

    Returns:
        float32 (N, h, w, channels).

    Raises:
        ValueError: There is no such layer.
        Diverged: It passes on a number that is none.
    """
    modules = dict(network.module.named_modules())
    if layer not in modules:
        raise ValueError(f"the CNN has no layer {layer!r}")
    made: list[npt.NDArray[np.float32]] = []

    def keep(_: object, __: object, output: Tensor) -> None:
        made.append(output.float().permute(0, 2, 3, 1).cpu().numpy())
        raise _Seen  # What comes after this layer need not be computed.

    hook = modules[layer].register_forward_hook(keep)
    try:
        with torch.inference_mode(), on_device(network, device) as place:
            for start in range(0, len(images), _BATCH):
                pixels = pixels_of(images[start : start + _BATCH], place)
                with suppress(_Seen):
                    network.module(normalised(network, pixels))
    finally:
        hook.remove()
    maps = np.concatenate(made)
    if not np.isfinite(maps).all():
        raise Diverged("the CNN answers with a number that is none")
    return maps
