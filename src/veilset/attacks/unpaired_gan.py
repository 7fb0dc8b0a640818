"""The unpaired GAN: an attacker with photographs, but without pairs and without the algorithm.

She holds the release and other plain images of the same kind. Two generators translate between the
two kinds of image, and two discriminators tell what was translated from what was not; there and
back again an image shall be itself (CycleGAN). Nothing is ever protected by her, so an original
bears on no choice: she prefers the restoration whose images are distributed most like photographs.
The training starts from the release as it is, and from its values matched place by place; either
may be the best restoration already.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, ClassVar, Final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilset.attacks._reidentified import reidentify
from veilset.attacks.base import (
    Attack,
    Attacker,
    AttackParams,
    AttackResult,
    Case,
    Diverged,
    Knowledge,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
)
from veilset.attacks.features import (
    UNTUNED,
    Batch,
    Matcher,
    Planes,
    area_resize,
    features_for,
    measures_for,
    split_attacker,
)
from veilset.attacks.linkage import enough_images
from veilset.metrics.retrieval import squared_distances
from veilset.models.device import Engine, kernels
from veilset.models.optimiser import Adam
from veilset.models.unet import UNet
from veilset.types import FloatArray, Images

_MEASURE: Final = "pixels:either sign"
"""Without pairs no measure can be chosen, and no more than the looks tell an image from its
negative."""

_LOOKS: Final = ("pixels", "edges", "spectrum", "histogram")
"""Features that must be distributed alike: noise passes for an image in each, but not in all."""

_JUDGED: Final = 500
"""So many images of either kind are compared: more would hardly tell more."""

_LEVELS: Final = 16
"""So many quantiles tell how a value is distributed."""

_ROUNDS: Final = 200
"""Signs are settled so many times: a sign goes one place further each time."""

_PULL: Final = 3.0
"""What a neighbour that always goes along weighs against a value's own evidence."""

_DOUBT: Final = 0.05
"""This share of the usual spread is added to all spreads."""


class UnpairedGanParams(AttackParams):
    """Parameters of `unpaired_gan`; the training's length is in steps, so that it repeats.

    Attributes:
        targets: At most so many released images are attacked; she sees no others.
        gallery: Size of the galleries; smaller where there are fewer candidates.
        auxiliary: At most so many of her images are used.
        judging_share: Share of her images that no network sees, and that restorations are compared
            with.
        work_side: Images are restored at most this large.
        base: Channels of a generator at full resolution, a multiple of 4.
        depth: Levels of a generator.
        fold: Squares of so many pixels a side are channels inside a generator.
        width: Channels of a discriminator's first layer, a multiple of 4.
        steps: Training steps from either start.
        oracle_steps: Training steps on unprotected images.
        checkpoints: The generator is judged after each of so many parts of the training.
        batch: Images of either kind a step.
        learning_rate: In the first half; in the second it falls to nothing.
        cycle: Weight of what is lost there and back again.
        identity: Weight of what a generator changes in images that need no translation.
    """

    targets: int = Field(500, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    auxiliary: int = Field(2000, ge=20, le=1_000_000)
    judging_share: float = Field(0.3, gt=0, lt=1)
    work_side: int = Field(32, ge=8, le=512)
    base: int = Field(16, ge=4, le=256, multiple_of=4)
    depth: int = Field(2, ge=1, le=6)
    fold: int = Field(2, ge=1, le=8)
    width: int = Field(16, ge=4, le=256, multiple_of=4)
    steps: int = Field(80, ge=1, le=1_000_000)
    oracle_steps: int = Field(20, ge=1, le=1_000_000)
    checkpoints: int = Field(4, ge=1, le=1000)
    batch: int = Field(16, ge=2, le=4096)
    learning_rate: float = Field(1e-3, gt=0, le=1)
    cycle: float = Field(5.0, ge=0, le=1000)
    identity: float = Field(0.5, ge=0, le=1000)

    FULL: ClassVar[Mapping[str, Any]] = {
        "targets": 2000, "repeats": 3, "auxiliary": 20_000, "work_side": 64, "base": 32,
        "depth": 3, "fold": 1, "width": 64, "steps": 20_000, "oracle_steps": 1000,
        "checkpoints": 20, "batch": 32, "learning_rate": 2e-4,
    }  # fmt: skip


@dataclass(frozen=True)
class FittedGan:
    """The chosen restoration.

    Attributes:
        matcher: The restoration, and how it is compared with candidates.
        variant: `released` or `matched`, or a `gan from` either.
        likeness: How alike to plain images each variant's restorations are distributed, 0..1.
    """

    matcher: Matcher
    variant: str
    likeness: Mapping[str, float]


class UnpairedGan(Attack[UnpairedGanParams, FittedGan]):
    """Restores originals by an unpaired translation, and singles them out.

    Side information is not read: nobody told her what it means.

    Source: the attack of Sirichotedumrong and Kiya (EUSIPCO 2020) with the cycle of Zhu et al.
    (CycleGAN, ICCV 2017); the start, the choice without pairs, and the networks' sizes are ours.
    """

    name = "unpaired_gan"
    title = "Unpaired GAN"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K0"
    cost = "15 seconds (quick) to hours (full, no GPU)"
    metric_words = "rank-1 of the restored image in a gallery of {gallery}"
    deed = "are restored without pairs so well that their original is singled out"
    oracle_floor = 0.9
    Parameters = UnpairedGanParams

    def applies(self, case: Case) -> str | None:
        """None where there are targets and enough auxiliary images to train on."""
        return enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedGan | None,
    ) -> FittedGan:  # fmt: skip
        params = self.params
        fitting, judging = split_attacker(attacker, params.judging_share, params.auxiliary, rng)
        plain, unseen = attacker.images[fitting], attacker.images[judging]
        looks = Looks.of(unseen, plain, _size(release.shape, params.work_side))
        starts = {
            "released": Start(looks.size),
            "matched": Start(looks.size, match_values(release.images, plain)),
        }
        tried: list[_Judged] = []
        for name, start in starts.items():
            # The oracle asks whether the restoration that was relied on works at all.
            if like is None or like.variant == name:
                tried.append(looks.judged(name, name, start, release.images))
        for name, start in starts.items():
            variant = f"gan from {name}"
            if like is None or like.variant == variant:
                trained = train_gan(
                    start(release.images), looks.sized(plain), params,
                    params.steps if like is None else params.oracle_steps, attacker.device,
                    int(rng.integers(2**31)), progress,
                )  # fmt: skip
                for end, net in trained:
                    restorer = Restorer(start, net, attacker.device)
                    words = f"{variant}, {end} steps"
                    tried.append(looks.judged(variant, words, restorer, release.images))
        best = min(tried, key=lambda each: each.unlike)
        likeness: dict[str, float] = {}
        for each in tried:
            key = f"likeness_{each.variant.replace(' ', '_')}"
            likeness[key] = max(likeness.get(key, 0.0), 1.0 - each.unlike)
        return FittedGan(_matcher(best, release, looks), best.variant, likeness)

    def _measure(self, fitted: FittedGan, case: Case, rng: np.random.Generator) -> Scores:
        scores = reidentify(fitted.matcher, case, self.params.gallery, rng)
        return replace(scores, details={**scores.details, **fitted.likeness})

    def _chosen(self, fitted: FittedGan) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, {}

    def _blank(self, case: Case) -> AttackResult:
        words = "the protected images and other images of the same kind, not the algorithm"
        return replace(super()._blank(case), knowledge_words=words)


def _size(shape: tuple[int, int, int], work_side: int) -> tuple[int, int]:
    """Height and width at which images of this shape are restored."""
    height, width, _ = shape
    factor = max(1, ceil(max(height, width) / work_side))
    return ceil(height / factor), ceil(width / factor)


# --- The choice without pairs -----------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """A restoration and how unlike plain images its results are, 0..1."""

    variant: str
    name: str
    restore: "Start | Restorer"
    unlike: float


@dataclass(frozen=True)
class Looks:
    """What plain images look like, for want of pairs.

    Attributes:
        plain: Plain images that no network sees, planes (N, h, w, C).
        floor: How unlike two samples of plain images are: what is below is a matter of luck.
        size: (h, w).
    """

    plain: Planes
    floor: float
    size: tuple[int, int]

    @classmethod
    def of(cls, unseen: Images, others: Images, size: tuple[int, int]) -> "Looks":
        """The looks of unseen images, with others for comparison, in this size."""
        known, beside = (area_resize(part[:_JUDGED], *size) for part in (unseen, others))
        return cls(known, max(unlikeness(beside, known), 0.0), size)

    def sized(self, images: Images) -> Planes:
        """Images in the size of restorations."""
        return area_resize(images, *self.size)

    def judged(
        self, variant: str, name: str, restore: "Start | Restorer", released: Images
    ) -> _Judged:
        """A restoration after its results on released images.

        Raises:
            Diverged: A restored image is not a number.
        """
        made = restore(released[:_JUDGED])
        if not np.isfinite(made).all():
            raise Diverged("a restored image is not a number")
        unlike = max(unlikeness(made, self.plain), self.floor)
        return _Judged(variant, name, restore, unlike)


def unlikeness(first: Planes, second: Planes) -> float:
    """How differently two samples of images are distributed.

    Args:
        first: Planes (N, H, W, C).
        second: Planes (M, H, W, C).

    Returns:
        The mean over several features of the energy coefficient: about 0 (also a little below) for
        samples of one distribution, 1 for two that are single points apart.

    Source: energy statistics (Szekely and Rizzo, 2013), unbiased within samples; features are ours.
    """
    height, width, channels = second.shape[1:]
    features = features_for((height, width, channels), None)
    return float(np.mean([_energy(features[n](first), features[n](second)) for n in _LOOKS]))


def _energy(first: FloatArray, second: FloatArray) -> float:
    """(2 E|X - Y| - E|X - X'| - E|Y - Y'|) / (2 E|X - Y|); 0 where both are one point."""
    n, m = len(first), len(second)
    between = 2.0 * np.sqrt(squared_distances(first, second)).mean()
    within = sum(
        float(np.sqrt(squared_distances(part, part)).sum()) / max(size * (size - 1), 1)
        for part, size in ((first, n), (second, m))
    )
    return float((between - within) / between) if between > 0 else 0.0


def _matcher(best: _Judged, release: Release, looks: Looks) -> Matcher:
    """A restoration with a measure that no pair has chosen."""
    restore = best.restore

    def view(batch: Batch) -> Planes:
        return restore(batch.images)

    measure = measures_for(restore(release.images[:_JUDGED]), looks.plain, None, False)[_MEASURE]
    return Matcher(best.name, view, measure, UNTUNED, {})


# --- The start --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Released images as they are, or with their values matched place by place.

    Attributes:
        size: (h, w) of what it makes.
        match: Scale and shift of each value, (2, H, W, C); None leaves values as they are.
    """

    size: tuple[int, int]
    match: FloatArray | None = None

    def __call__(self, images: Images) -> Planes:
        """Planes (N, h, w, C), grey levels 0..255."""
        if self.match is None:
            return area_resize(images, *self.size)
        parts = []
        for start in range(0, len(images), 64):
            part = images[start : start + 64] * self.match[0] + self.match[1]
            parts.append(area_resize(np.clip(part, 0.0, 255.0), *self.size))
        return np.concatenate(parts)


def match_values(released: Images, plain: Images) -> FloatArray:
    """For each place and channel the scale, of either sign, and shift that make values alike.

    A value is matched in mean and spread. Its sign is that under which it is distributed like a
    plain one, and under which it goes along with its neighbours as plain ones do: what a cipher
    with one key for all images negates place by place is turned back, without any pair.

    Args:
        released: uint8 (N, H, W, C).
        plain: Other images, uint8 (M, H, W, C).

    Returns:
        float64 (2, H, W, C), scale and shift in grey levels.

    Source: ours; the signs are the mean field of an Ising model.
    """
    shape = released.shape[1:]
    here, there = _usual(released), _usual(plain)
    evidence, pulls = np.zeros(shape), np.zeros((3, *shape))
    above: tuple[FloatArray, FloatArray] | None = None
    # Row by row: all at once would not fit in memory as floating point.
    for row in range(shape[0]):
        mine = _standard(released[:, row], here[:, row])
        theirs = _standard(plain[:, row], there[:, row])
        evidence[row] = _evidence(mine, theirs)
        if above is not None:
            pulls[0, row - 1] = _pull(above[0], mine, above[1], theirs)
        pulls[1, row, :-1] = _pull(mine[:, :-1], mine[:, 1:], theirs[:, :-1], theirs[:, 1:])
        pulls[2, row, :, :-1] = _pull(
            mine[..., :-1], mine[..., 1:], theirs[..., :-1], theirs[..., 1:]
        )
        above = mine, theirs
    # Where a value hardly ever varies, its spread is a matter of luck.
    doubt = _DOUBT * there[1].mean() + 1e-6
    scale = (there[1] + doubt) / (here[1] + doubt) * _signs(evidence, pulls)
    return np.stack([scale, there[0] - scale * here[0]])


def _usual(images: Images) -> FloatArray:
    """Mean and spread of each value, (2, H, W, C)."""
    rows = [images[:, row].astype(np.float64) for row in range(images.shape[1])]
    return np.stack([
        np.stack([row.mean(axis=0) for row in rows]), np.stack([row.std(axis=0) for row in rows])
    ])  # fmt: skip


def _standard(values: Images, usual: FloatArray) -> FloatArray:
    """Values of a row of pixels less their mean, in units of their spread; (N, W, C)."""
    spread = np.where(usual[1] > 0, usual[1], 1.0)
    return np.asarray((values - usual[0]) / spread)


def _evidence(mine: FloatArray, theirs: FloatArray) -> FloatArray:
    """Above 0 where values are distributed like the others, below where their negative is; -1..1.

    Args:
        mine: Standardised values, (N, W, C).
        theirs: The same of other images, (M, W, C).
    """
    levels = (np.arange(_LEVELS) + 0.5) / _LEVELS
    one, other = (np.quantile(values, levels, axis=0) for values in (mine, theirs))
    straight, turned = (np.abs(each - other).mean(axis=0) for each in (one, -one[::-1]))
    return np.asarray((turned - straight) / np.maximum(turned + straight, 1e-9))


def _pull(
    mine: FloatArray, beside: FloatArray, theirs: FloatArray, their_beside: FloatArray
) -> FloatArray:
    """Above 0 where two values go together among released images as they do among others."""
    return np.asarray((mine * beside).mean(axis=0) * (theirs * their_beside).mean(axis=0))


def _signs(evidence: FloatArray, pulls: FloatArray) -> FloatArray:
    """The sign of each value, -1 or 1, by its evidence and that of its neighbours.

    Args:
        evidence: (H, W, C).
        pulls: Between each value and the next one along each of the three axes, (3, H, W, C).
    """
    signs = evidence
    for _ in range(_ROUNDS):
        field = evidence.copy()
        for axis, pull in enumerate(pulls):
            # The last pull of an axis is 0, so nothing goes round.
            field += _PULL * (pull * np.roll(signs, -1, axis) + np.roll(pull * signs, 1, axis))
        signs = np.tanh(2.0 * field)
    return np.where(signs >= 0, 1.0, -1.0)


# --- The networks -----------------------------------------------------------------------------


class Generator(nn.Module):
    """Translates images: scales and shifts each place, and adds what a U-Net finds lacking.

    It starts as the identity.

    Args:
        shape: Channels, height and width of an image.
        params: Sizes.
    """

    def __init__(self, shape: tuple[int, int, int], params: UnpairedGanParams) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.net = UNet(shape[0], shape[0], params.base, params.depth, params.fold)
        nn.init.zeros_(self.net.last.weight)
        nn.init.zeros_(self.net.last.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, C, h, w) to the same, about -1..1."""
        moved = self.scale * images + self.shift
        made: Tensor = moved + self.net(moved)
        return made


class Discriminator(nn.Module):
    """Says how genuine images are: 1 for genuine ones, 0 for translated ones.

    Args:
        shape: Channels, height and width of an image, at least 4 pixels a side.
        width: Channels of the first layer, a multiple of 4.
    """

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, width_px = shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.GroupNorm(4, 2 * width), nn.LeakyReLU(0.2),
        )  # fmt: skip
        # Faces and digits are centred: where something is counts.
        self.last = nn.Linear(2 * width * (height // 4) * (width_px // 4), 1)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, C, h, w) to (N, 1)."""
        said: Tensor = self.last(self.body(images).flatten(1))
        return said


@dataclass(frozen=True)
class Restorer:
    """A trained generator behind its start.

    Attributes:
        start: What it corrects.
        net: The generator, in evaluation mode.
        device: Where it runs.
    """

    start: Start
    net: Generator
    device: str

    def __call__(self, images: Images) -> Planes:
        """Planes (N, h, w, C), grey levels 0..255; not a number where it diverged."""
        made = []
        engine = Engine(torch.device(self.device), "fp32")
        with torch.no_grad(), kernels(engine, deterministic="where there are"):
            for low in range(0, len(images), 64):
                inputs = _tensor(self.start(images[low : low + 64]), self.device)
                made.append(self.net(inputs).clamp(-1, 1).cpu().numpy())
        planes = np.moveaxis(np.concatenate(made).astype(np.float64), 1, -1)
        return (planes + 1.0) * 127.5


def train_gan(
    released: Planes, plain: Planes, params: UnpairedGanParams, steps: int, device: str, seed: int,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Generator]]:  # fmt: skip
    """Trains a generator from released images to plain ones, without pairs.

    The same images, parameters and seed give the same networks on the same kind of device.

    Args:
        released: Planes (N, h, w, C), grey levels 0..255.
        plain: Other images, planes (M, h, w, C).
        params: Sizes, rates and weights.
        steps: Training steps.
        device: As torch names it.
        seed: Of the initial weights and the batches.
        progress: Called every 20 steps, or None.

    Yields:
        After each part of the training, the number of steps and the generator as it was then.

    Raises:
        Diverged: A loss became NaN or infinite.

    Source: CycleGAN (Zhu et al., ICCV 2017): least squares for the discriminators, L1 for the cycle
    and the identity.
    """
    shape = plain.shape[3], *plain.shape[1:3]
    engine = Engine(torch.device(device), "fp32")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        nets = nn.ModuleDict({name: Generator(shape, params) for name in ("back", "forth")})
        critics = nn.ModuleDict(
            {name: Discriminator(shape, params.width) for name in ("plain", "released")}
        )
    game = _Game(nets.to(device), critics.to(device), params)
    kinds = _tensor(released, device), _tensor(plain, device)
    optimisers = Adam(nets), Adam(critics)
    draws = np.random.default_rng(seed)
    ends = {steps * part // params.checkpoints for part in range(1, params.checkpoints + 1)}
    for step in range(steps):
        mine, theirs = (
            kind[torch.from_numpy(draws.integers(0, len(kind), params.batch)).to(device)]
            for kind in kinds
        )
        with kernels(engine, deterministic="where there are"):
            losses = game.play(mine, theirs, optimisers, min(1.0, 2.0 * (1.0 - step / steps)))
        if step % 20 == 0 or step == steps - 1:
            # Asking at every step would wait for the device each time.
            if not all(bool(torch.isfinite(loss)) for loss in losses):
                raise Diverged(f"a loss was not a number at step {step}")
            if progress:
                progress("unpaired_gan: training", step + 1, steps)
        if step + 1 in ends:
            yield step + 1, deepcopy(game.nets["back"]).eval()  # type: ignore[misc]


@dataclass(frozen=True)
class _Game:
    """Generators `back` (to plain images) and `forth`, and the critics of either kind."""

    nets: nn.ModuleDict
    critics: nn.ModuleDict
    params: UnpairedGanParams

    def play(
        self, released: Tensor, plain: Tensor, optimisers: tuple[Adam, Adam], pace: float
    ) -> tuple[Tensor, Tensor]:
        """One step of both sides; their losses."""
        nets, critics, params = self.nets, self.critics, self.params
        rate = params.learning_rate * pace
        # Both kinds in one pass: two small ones take longer.
        restored, kept = nets["back"](torch.cat([released, plain])).chunk(2)
        hidden, left = nets["forth"](torch.cat([plain, released])).chunk(2)
        caught = sum(
            (critics[kind](genuine) - 1).square().mean() + critics[kind](made).square().mean()
            for kind, genuine, made in (
                ("plain", plain, restored.detach()), ("released", released, hidden.detach())
            )
        )  # fmt: skip
        optimisers[1].forget_gradients()
        caught.backward()
        optimisers[1].step(rate, beta1=0.5)
        fooled = (critics["plain"](restored) - 1).square().mean()
        fooled = fooled + (critics["released"](hidden) - 1).square().mean()
        lost = functional.l1_loss(nets["forth"](restored), released)
        lost = lost + functional.l1_loss(nets["back"](hidden), plain)
        changed = functional.l1_loss(kept, plain) + functional.l1_loss(left, released)
        loss = fooled + params.cycle * lost + params.identity * changed
        optimisers[0].forget_gradients()
        loss.backward()
        optimisers[0].step(rate, beta1=0.5)
        return caught.detach(), loss.detach()


def _tensor(planes: Planes, device: str) -> Tensor:
    """Planes (N, h, w, C), 0..255, as float32 (N, C, h, w), -1..1."""
    moved = np.moveaxis(np.asarray(planes) / 127.5 - 1.0, -1, 1)
    return torch.from_numpy(np.ascontiguousarray(moved, dtype=np.float32)).to(device)
