"""Cases with a CNN: small ones that were trained in memory on embedded digits."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from attack_cases import build, digit_images
from torch.nn import functional

from veilset.attacks.base import Case, Network
from veilset.models.augment import measure_normalisation
from veilset.models.optimiser import Adam
from veilset.models.registry import make_model
from veilset.schemes.base import Scheme
from veilset.types import Images, Labels


@dataclass(frozen=True)
class Recipe:
    """Trains a small CNN with Adam, without augmentation."""

    epochs: int = 30
    width: int = 16

    def __call__(self, images: Images, labels: Labels, seed: int) -> Network:
        normaliser = measure_normalisation(images)
        parameters = {"width": self.width}
        net = make_model("small_cnn", images.shape[1:], 10, seed=seed, **parameters)
        shown = normaliser.apply(torch.from_numpy(np.moveaxis(images, -1, 1).copy()))
        wanted, optimiser = torch.from_numpy(labels), Adam(net)
        draws = np.random.default_rng(seed)
        for _ in range(self.epochs * max(1, len(images) // 50)):
            rows = torch.from_numpy(draws.integers(0, len(images), 50))
            loss = functional.cross_entropy(net(shown[rows]), wanted[rows])
            optimiser.forget_gradients()
            loss.backward()
            optimiser.step(4e-3)
        return Network(
            module=net.eval(), mean=normaliser.mean, std=normaliser.std,
            architecture="small_cnn", parameters=parameters, retrain=self,
        )  # fmt: skip


def network_case(
    scheme: Scheme[Any], recipe: Recipe | None = None, *, members: int = 250, others: int = 250,
    hers: int = 150, wrong: float = 0.0, seed: int = 0, on_others: bool = False,
) -> Case:  # fmt: skip
    """Digits, some with a wrong label, and a CNN trained on the released ones.

    With `on_others` it was trained on yet other digits instead: there are no members.
    """
    images, labels = noisy_digits(wrong)
    nobody = np.full(len(images), "", dtype=object)
    order = np.random.default_rng(seed).permutation(len(images))
    cut = np.cumsum([members, others, hers, members])
    own, outside, auxiliary, rest = np.split(order, cut)[:4]
    case, unseen, other = (
        build(scheme, images, labels, nobody, rows, auxiliary, None, seed)
        for rows in (own, outside, rest)
    )
    trained = (other if on_others else case).release
    network = (recipe or Recipe())(trained.images, trained.labels, seed + 1)
    return replace(case, network=replace(network, outsiders=(unseen.release, unseen.truth)))


@lru_cache
def noisy_digits(wrong: float) -> tuple[Images, Labels]:
    """Digits of 16 pixels, a share of them with a random label."""
    images, labels = digit_images()
    rng = np.random.default_rng(5)
    drawn = rng.random(len(labels)) < wrong
    return images, np.where(drawn, rng.integers(0, 10, len(labels)), labels).astype(np.int64)
