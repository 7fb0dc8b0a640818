"""Learned linkage: two networks learn to place a protected image beside its original.

`linkage` compares what survives the protection by measures that were made in advance. Here the
attacker lets two networks find such a measure. One reads protected images, the other plain ones,
and both write a short vector, the embedding. She protects images of her own under ever fresh keys
and trains until the vectors of a protected image and its own original point the same way, and those
of others do not. Two protected versions of one image under two keys are drawn together as well:
that links two releases, and candidates that she protects herself.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from math import ceil, log
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilset.attacks._training import descend
from veilset.attacks.apply_and_compare import candidate_labels
from veilset.attacks.base import (
    Attack,
    Attacker,
    AttackParams,
    Case,
    Diverged,
    Knowledge,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
    score_candidates,
)
from veilset.attacks.features import (
    Batch,
    Judge,
    Pairs,
    own_among_others,
    protect_as_attacker,
    protect_once,
    split_attacker,
    usable_rows,
)
from veilset.attacks.learned_inverse import Reader, fold, reader_for
from veilset.attacks.linkage import enough_images, verified
from veilset.errors import ProtectionError
from veilset.keys import derive_key
from veilset.models.device import Engine, kernels
from veilset.models.optimiser import Adam
from veilset.schemes.base import ArrayPool, Scheme
from veilset.types import BoolArray, FloatArray, Ids, Images, IntArray, Labels

Way = Literal["original", "versions", "both"]
"""What a released image is compared with: the plain candidate, protected versions of it, both."""

_WAYS: Final[tuple[Way, ...]] = ("original", "versions", "both")
_MOST_BITS: Final = 64 * 64
"""Larger images are read without their bits: eight more layers would not fit in memory."""

_POOL: Final = 4


class LearnedLinkageParams(AttackParams):
    """Parameters of `learned_linkage`; the training's length is in steps, so that it repeats.

    Attributes:
        targets: At most so many released images are attacked.
        gallery: Size of the galleries; smaller where there are fewer candidates.
        rounds: After each of so many parts of the training the networks are tried on the tuning
            part.
        keys: Each batch is protected under so many keys, all of them fresh. A network that sees few
            keys learns those by heart, and is lost where a whole release shares another one.
        trials: Under so many keys the tuning part plays the release.
        comparisons: How many times she protects each candidate; similarities are averaged.
        auxiliary: At most so many of her images are used.
        tuning_share: Share of her images that chooses among rounds and measures.
        work_side: Squares of pixels are folded into channels until images are at most this large.
        width: Channels of the first layer, a multiple of 4; each further layer has twice as many.
        dimensions: Length of an embedding.
        steps: Training steps, all rounds together.
        oracle_steps: Training steps on unprotected images.
        batch: Images a step.
        temperature: Cosines are divided by this before the softmax.
        learning_rate: At its highest; it falls to nothing along a cosine.
    """

    targets: int = Field(500, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    rounds: int = Field(4, ge=1, le=1000)
    keys: int = Field(16, ge=1, le=4096)
    trials: int = Field(4, ge=1, le=50)
    comparisons: int = Field(3, ge=1, le=50)
    auxiliary: int = Field(2000, ge=20, le=1_000_000)
    tuning_share: float = Field(0.2, gt=0, lt=1)
    work_side: int = Field(16, ge=8, le=512)
    width: int = Field(32, ge=4, le=256, multiple_of=4)
    dimensions: int = Field(64, ge=2, le=1024)
    steps: int = Field(160, ge=1, le=1_000_000)
    oracle_steps: int = Field(40, ge=1, le=1_000_000)
    batch: int = Field(64, ge=2, le=4096)
    temperature: float = Field(0.1, gt=0, le=10)
    learning_rate: float = Field(2e-3, gt=0, le=1)

    FULL: ClassVar[Mapping[str, Any]] = {
        "targets": 2000, "repeats": 3, "rounds": 20, "keys": 32, "trials": 8, "comparisons": 8,
        "auxiliary": 20_000, "work_side": 32, "width": 64, "dimensions": 128, "steps": 12_000,
        "oracle_steps": 500, "batch": 256, "learning_rate": 1e-3,
    }  # fmt: skip


@dataclass(frozen=True)
class FittedEmbedding:
    """The networks of the chosen round, and how their embeddings are compared.

    Attributes:
        towers: Both networks.
        measure: How embeddings are compared.
        name: The chosen way, measure and round.
        table: The best rank-1 of each way and measure on the tuning part.
        scheme: What the attacker protects candidates with.
        attacker: Under whose keys.
        told: Of the training: the round that was chosen, 0 for networks that learnt nothing; and
            the loss of the last round as a share of that of guessing, 1 where nothing was learnt.
    """

    towers: "Towers"
    measure: "Cosine"
    name: str
    table: Mapping[str, float]
    scheme: Scheme[Any]
    attacker: Attacker
    told: Mapping[str, float]


class LearnedLinkage(Attack[LearnedLinkageParams, FittedEmbedding]):
    """Links protected images to their originals by embeddings that were trained to meet.

    Source: loss as in van den Oord et al. (CPC, arXiv 1807.03748) and Radford et al. (CLIP, ICML
    2021); as an attack on encodings: Carlini et al. (arXiv 2108.07256). Networks, front end, and
    the choice on a tuning part are ours.
    """

    name = "learned_linkage"
    title = "Learned linkage to the original"
    risk: ClassVar[Risk] = "linkability"
    attacker: ClassVar[Template] = "public_release"
    knowledge: ClassVar[Knowledge] = "K2"
    cost = "20 seconds (quick) to hours (full, no GPU)"
    deed = "are linked to their original by a trained network"
    oracle_floor = 0.9
    Parameters = LearnedLinkageParams

    def applies(self, case: Case) -> str | None:
        """None where there are targets and enough auxiliary images to train on."""
        return enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedEmbedding | None,
    ) -> FittedEmbedding:  # fmt: skip
        params, ways = self.params, _WAYS
        if like is not None:
            # Networks that start equal find unprotected images without training, and versions that
            # are all alike need none. The oracle asks what training leaves of it: both networks
            # shall still meet.
            params = params.model_copy(update={"steps": params.oracle_steps, "rounds": 1})
            ways = ("original",)
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        tuning = protect_as_attacker(
            release.scheme, attacker, tuned, params.trials + params.comparisons, rng
        )
        judge = own_among_others(len(tuning[0].plain), params.gallery, rng)
        trial = Trial(tuning[: params.trials], tuning[params.trials :], ways, judge)
        fresh = FreshPairs.of(release.scheme, attacker, fitting, rng)
        trainer = Trainer.start(tuning[0].batch, fresh, params, int(rng.integers(2**31)))
        tried: list[Tried] = []
        best, kept, loss = NOT_TRIED, trainer.towers, 1.0
        for number in range(params.rounds + 1):
            if number:
                loss = trainer.train(number, progress)
            elif like is not None:
                continue
            tried += trial.of(trainer.towers, number)
            found = max(tried, key=lambda each: each.score)
            if found.score > best.score:
                best, kept = found, trainer.towers.frozen()
        told = {"chosen_round": float(best.number), "loss_of_guessing": loss}
        return FittedEmbedding(
            kept, best.measure, best.name, _table(tried), release.scheme, attacker, told
        )

    def _measure(self, fitted: FittedEmbedding, case: Case, rng: np.random.Generator) -> Scores:
        originals, released = case.truth.originals, case.release
        shuffled = rng.permutation(len(originals)).astype(np.int64)
        candidates, labels = originals[shuffled], candidate_labels(case)[shuffled]
        mine = fitted.towers.protected(Batch(released.images, released.side))
        plain = fitted.towers.plain(candidates)
        versions = self._versions(fitted, candidates, labels, rng)
        size = self.params.gallery
        distances = fitted.measure(mine, plain, versions)
        frame, gallery, found = score_candidates(distances, case, shuffled, size, rng)
        details = {**verified(distances, case, shuffled), **fitted.told}
        for way in ("original", "versions") if versions else ("original",):
            alone = replace(fitted.measure, way=way)(mine, plain, versions)
            scored, _, _ = score_candidates(alone, case, shuffled, size, rng)
            details[f"{way}_rank1"] = float(scored["success"].mean())
        return Scores(frame, gallery, originals[found], details)

    def _versions(
        self, fitted: FittedEmbedding, candidates: Images, labels: Labels, rng: np.random.Generator
    ) -> list[FloatArray]:
        """Embeddings of candidates as she protects them; none where that cannot be done."""
        try:
            made = [
                protect_once(
                    fitted.scheme, fitted.attacker, candidates, labels, f"learned {number}", rng
                )
                for number in range(self.params.comparisons)
            ]
        except ProtectionError:
            return []  # e.g. a class of a single candidate, who has no donors
        return [fitted.towers.protected(version) for version in made]

    def _chosen(self, fitted: FittedEmbedding) -> tuple[str, Mapping[str, float]]:
        return fitted.name, fitted.table


# --- Comparing embeddings ---------------------------------------------------------------------


@dataclass(frozen=True)
class Cosine:
    """One minus the cosine of embeddings.

    Attributes:
        way: What a released image is compared with.
        standardised: Of each set of embeddings its own mean is removed first, and each dimension
            is divided by its own spread there. Under a key that all images share, the whole
            release is moved together, and this takes the move back.
        either_sign: Opposite embeddings count as alike: such a key may turn all of them round.
    """

    way: Way
    standardised: bool = False
    either_sign: bool = False

    def __call__(
        self, mine: FloatArray, plain: FloatArray, versions: Sequence[FloatArray]
    ) -> FloatArray:
        """Distances of released images to candidates.

        Args:
            mine: Embeddings of released images, (T, D).
            plain: Of plain candidates, (N, D).
            versions: Of protected versions of the candidates, each (N, D) and of one key. Without
                any, the plain candidates alone are compared.

        Returns:
            float64 (T, N), 0..2.
        """
        query = self._ready(mine)
        parts = []
        if self.way != "versions" or not versions:
            parts.append(self._cosines(query, self._ready(plain)))
        if self.way != "original" and versions:
            known = [self._cosines(query, self._ready(version)) for version in versions]
            parts.append(np.mean(known, axis=0))
        return np.asarray(1.0 - np.mean(parts, axis=0))

    def _cosines(self, query: FloatArray, known: FloatArray) -> FloatArray:
        cosines = query @ known.T
        return np.asarray(np.abs(cosines) if self.either_sign else cosines)

    def _ready(self, rows: FloatArray) -> FloatArray:
        """Rows of length 1."""
        if self.standardised:
            rows = (rows - rows.mean(axis=0)) / (rows.std(axis=0) + 1e-6)
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


@dataclass(frozen=True)
class Tried:
    """A variant on the tuning part: the round after which, the measure, and its score."""

    number: int
    measure: Cosine
    name: str
    score: tuple[float, ...]


NOT_TRIED: Final = Tried(0, Cosine("original"), "", ())
"""Worse than anything that was tried."""


@dataclass(frozen=True)
class Trial:
    """The tuning part, on which networks and measures are tried.

    Attributes:
        releases: Versions that play the release in turn, each under a key of its own: what one key
            makes look good is no good under another.
        versions: Versions that she compares with, rows in the same order.
        ways: What is tried.
        judge: Rates distances.
    """

    releases: Sequence[Pairs]
    versions: Sequence[Pairs]
    ways: Sequence[Way]
    judge: Judge

    def of(self, towers: "Towers", number: int) -> list[Tried]:
        """Networks as they are after a round, with every measure.

        Raises:
            Diverged: An embedding is not a number.
        """
        releases, versions = (
            [towers.protected(pairs.batch) for pairs in part]
            for part in (self.releases, self.versions)
        )
        plain = towers.plain(self.releases[0].plain)
        when = f"after round {number}" if number else "untrained"
        tried = []
        for way in self.ways:
            for kind, measure in (
                ("cosine", Cosine(way)), ("standardised", Cosine(way, standardised=True)),
                ("either sign", Cosine(way, standardised=True, either_sign=True)),
            ):  # fmt: skip
                scores = [self.judge(measure(mine, plain, versions)) for mine in releases]
                score = tuple(float(mean) for mean in np.mean(scores, axis=0))
                tried.append(Tried(number, measure, f"{way}/{kind}, {when}", score))
        return tried


def _table(tried: Sequence[Tried]) -> dict[str, float]:
    table: dict[str, float] = {}
    for each in tried:
        row = each.name.split(",", maxsplit=1)[0]
        table[row] = max(table.get(row, 0.0), each.score[0])
    return table


# --- The networks -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Front:
    """How images become a network's input: grey levels, side information, sorted regions, bits.

    Attributes:
        reader: Reads grey levels, regions in ascending order, and side information.
        factor: Squares of so many pixels a side become channels.
        bits: Reads the bits of each value as well.
        side: Shapes of the side information that is read, without the first axis, by name.
    """

    reader: Reader
    factor: int
    bits: bool
    side: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, batch: Batch, scheme: Scheme[Any], work_side: int) -> "Front":
        """The front end for images like these."""
        height, width = batch.images.shape[1:3]
        factor = max(1, ceil(max(height, width) / work_side))
        reader = reader_for(batch, 1, scheme)
        side = {name: batch.side[name].shape[1:] for name in reader.scales}
        return cls(reader, factor, height * width <= _MOST_BITS, side)

    def __call__(self, batch: Batch) -> npt.NDArray[np.float32]:
        """float32 (N, channels, ceil(H / factor), ceil(W / factor)), about -1..1."""
        layers = [np.moveaxis(self.reader(batch), 1, -1)]
        if batch.images.shape[-1] > 1:
            layers += [mixed_in_regions(batch.images, side) for side in self.reader.regions]
        if self.bits:
            layers.append(bit_planes(batch.images))
        return fold(np.concatenate(layers, axis=-1), self.factor)

    def without_side(self, images: Images) -> Batch:
        """Plain images, with side information that says nothing."""
        count = len(images)
        return Batch(images, {name: np.zeros((count, *shape)) for name, shape in self.side.items()})


def mixed_in_regions(images: Images, side: int) -> npt.NDArray[np.float32]:
    """Values of each whole square region in ascending order, all channels together, -1..1.

    Args:
        images: uint8 (N, H, W, C).
        side: Height and width of a region in pixels, at most those of the image.

    Returns:
        float32 (N, H, W, C); what lies in no whole region stays as it is.

    Source: the invariant of shuffles that change the channel as well.
    """
    n, height, width, channels = images.shape
    rows, columns = height // side, width // side
    cut = images[:, : rows * side, : columns * side]
    blocks = cut.reshape(n, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
    ordered = np.sort(blocks.reshape(n, rows, columns, -1), axis=-1)
    ordered = ordered.reshape(n, rows, columns, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    result = images.copy()
    result[:, : rows * side, : columns * side] = ordered.reshape(cut.shape)
    return result.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def bit_planes(images: Images) -> npt.NDArray[np.float32]:
    """Each bit of each value as -1 or 1; uint8 (N, H, W, C) to float32 (N, H, W, 8 C)."""
    n, height, width, channels = images.shape
    bits = np.unpackbits(images[..., None], axis=-1).reshape(n, height, width, 8 * channels)
    return bits.astype(np.float32) * 2 - 1


class Tower(nn.Module):
    """A small CNN that writes a vector of length 1.

    What a square of pixels shows goes on by three ways: through two convolutions with group
    normalisation; straight, because normalisation forgets how bright an image is; and by squares
    of twice the side that do not overlap, as blocks of ciphers do not. The first two end on a grid
    of a quarter of the resolution; the means of all three over the image, which no permutation of
    places changes, stand beside it. All is joined linearly.

    Args:
        inputs: Channels, height and width of the input.
        channels: Channels of the first layer, a multiple of 4.
        dimensions: Length of the embedding.
    """

    def __init__(self, inputs: tuple[int, int, int], channels: int, dimensions: int) -> None:
        super().__init__()
        depth, height, width = inputs
        self.stem = nn.Conv2d(depth, channels, 1)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(4, 2 * channels), nn.ReLU(),
            nn.Conv2d(2 * channels, 4 * channels, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(4, 4 * channels), nn.ReLU(),
        )  # fmt: skip
        self.squares = nn.Sequential(
            nn.Conv2d(depth, 2 * channels, 2, stride=2), nn.ReLU(),
            nn.Conv2d(2 * channels, 4 * channels, 1), nn.ReLU(),
        )  # fmt: skip
        places = ceil(height / _POOL) * ceil(width / _POOL)
        self.last = nn.Linear(5 * channels * places + 9 * channels, dimensions)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (N, C, h, w) to (N, dimensions), each row of length 1."""
        first = torch.relu(self.stem(images))
        straight = functional.avg_pool2d(first, _POOL, ceil_mode=True)
        grid = torch.cat([straight, self.body(first)], dim=1)
        means = [maps.mean(dim=(2, 3)) for maps in (grid, self.squares(images))]
        joined = torch.cat([grid.flatten(1), *means], dim=1)
        return functional.normalize(self.last(joined), dim=1)


@dataclass(frozen=True)
class Towers:
    """The network for protected images and the one for plain ones.

    Attributes:
        net: Both, `protected` and `plain`.
        front: How they read images.
        device: Where they run.
    """

    net: nn.ModuleDict
    front: Front
    device: str

    def protected(self, batch: Batch) -> FloatArray:
        """Embeddings of protected images, float64 (N, D).

        Raises:
            Diverged: One is not a number.
        """
        return self._embedded("protected", batch)

    def plain(self, images: Images) -> FloatArray:
        """Embeddings of plain images, float64 (N, D).

        Raises:
            Diverged: One is not a number.
        """
        return self._embedded("plain", self.front.without_side(images))

    def frozen(self) -> "Towers":
        """A copy that further training does not change."""
        return replace(self, net=deepcopy(self.net))

    def read(self, *batches: Batch) -> Tensor:
        """Batches one after the other as the networks' input."""
        stacked = np.concatenate([self.front(batch) for batch in batches])
        inputs = torch.from_numpy(stacked).to(self.device)
        return inputs.contiguous(memory_format=torch.channels_last)

    def _embedded(self, tower: str, batch: Batch) -> FloatArray:
        made = []
        engine = Engine(torch.device(self.device), "fp32")
        with torch.no_grad(), kernels(engine, deterministic="where there are"):
            for start in range(0, len(batch.images), 64):
                inputs = self.read(batch.take(slice(start, start + 64)))
                made.append(self.net[tower](inputs).cpu().numpy())
        # The last bits depend on the size of a batch: equal images shall tie.
        rows = np.concatenate(made).astype(np.float64).round(5)
        if not np.isfinite(rows).all():
            raise Diverged("an embedding is not a number")
        return rows


@dataclass(frozen=True)
class FreshPairs:
    """The attacker's images, protected anew for each batch, under keys that were never used before.

    A network that sees few keys learns those keys by heart: under a key that a whole release
    shares, it is lost on the next one.

    Attributes:
        scheme: The released scheme.
        attacker: Under whose keys.
        plain: Her images, uint8 (M, H, W, C).
        labels: int64 (M,).
        ids: uint8 (M, 16).
        pool: Where donors come from: all of these images, as the owner's come from the release.
    """

    scheme: Scheme[Any]
    attacker: Attacker
    plain: Images
    labels: Labels
    ids: Ids
    pool: ArrayPool

    @classmethod
    def of(
        cls, scheme: Scheme[Any], attacker: Attacker, part: BoolArray, rng: np.random.Generator
    ) -> "FreshPairs":
        """Those of a part of her images, a mask (M,).

        Raises:
            ProtectionError: The scheme cannot protect these images.
        """
        chosen = np.flatnonzero(part).astype(np.int64)
        rows = chosen[usable_rows(scheme, attacker.labels[chosen])]
        plain, labels = attacker.images[rows], attacker.labels[rows]
        ids = rng.integers(0, 256, (len(rows), 16), dtype=np.uint8)
        pool = ArrayPool.from_arrays(plain, labels, ids)
        return cls(scheme, attacker, plain, labels, ids, pool)

    def draw(self, size: int, keys: int, rng: np.random.Generator) -> tuple[Images, Batch, Batch]:
        """A batch of different images, plain and in two versions, rows in the same order.

        Args:
            size: At most so many.
            keys: Each version is protected in so many parts, each under a key of its own. A scheme
                without a key needs but one version.
            rng: Source of rows and keys.
        """
        count = len(self.plain)
        rows = rng.choice(count, min(size, count), replace=False)
        if not self.scheme.declares.keyed:
            only = self._version(rows, rng)
            return self.plain[rows], only, only
        one, two = (
            _joined(
                [self._version(part, rng) for part in np.array_split(rows, min(keys, len(rows)))]
            )
            for _ in range(2)
        )
        return self.plain[rows], one, two

    def _version(self, rows: IntArray, rng: np.random.Generator) -> Batch:
        """These rows under one fresh key."""
        key = derive_key(self.attacker.key, f"attack {rng.bytes(8).hex()}")
        made = self.scheme.protect(
            self.plain[rows], self.labels[rows], self.ids[rows], key, self.pool
        )
        return Batch(made.images, made.side)


def _joined(parts: Sequence[Batch]) -> Batch:
    side = {name: np.concatenate([part.side[name] for part in parts]) for name in parts[0].side}
    return Batch(np.concatenate([part.images for part in parts]), side)


@dataclass
class Trainer:
    """Trains both networks, round by round.

    Attributes:
        towers: The networks as they are.
        fresh: What they learn from.
        params: Sizes and rates.
        optimiser: Its moments last from round to round.
        draws: Source of the batches.
    """

    towers: Towers
    fresh: FreshPairs
    params: LearnedLinkageParams
    optimiser: Adam
    draws: np.random.Generator

    @classmethod
    def start(
        cls, batch: Batch, fresh: FreshPairs, params: LearnedLinkageParams, seed: int
    ) -> "Trainer":
        """Untrained networks; the same seed gives the same ones.

        Both start equal, so that what the protection left as it was meets from the start: from few
        images two strangers would not learn to agree on others.

        Args:
            batch: Protected images, that tell shape and side information.
            fresh: What they will learn from.
            params: Sizes and rates.
            seed: Of the initial weights and the batches.
        """
        front = Front.of(batch, fresh.scheme, params.work_side)
        device = fresh.attacker.device
        _, depth, height, width = front(batch.take(slice(0, 1))).shape
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            tower = Tower((depth, height, width), params.width, params.dimensions)
        net = nn.ModuleDict({"protected": tower, "plain": deepcopy(tower)})
        # Many layers are read at few places: channels side by side halve the time.
        net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(
            Towers(net, front, device), fresh, params, Adam(net), np.random.default_rng(seed)
        )

    def train(self, number: int, progress: Progress | None = None) -> float:
        """One round.

        Args:
            number: Of the round, from 1.
            progress: Called every 20 steps, or None.

        Returns:
            Its mean loss as a share of that of guessing; 1 where it has no steps.

        Raises:
            Diverged: The loss became NaN or infinite.
        """
        steps, rounds = self.params.steps, self.params.rounds
        first, end = (steps * each // rounds for each in (number - 1, number))
        losses = (self._loss() for _ in range(first, end))
        engine = Engine(torch.device(self.towers.device), "fp32")
        with kernels(engine, deterministic="where there are"):
            made = descend(
                self.towers.net, self.optimiser, losses, self.params.learning_rate, steps=steps,
                what="learned_linkage: training", progress=progress, span=range(first, end),
            )  # fmt: skip
        guessing = 2 * log(min(self.params.batch, len(self.fresh.plain)))
        return float(torch.stack(made).mean()) / guessing if made else 1.0

    def _loss(self) -> Tensor:
        """The loss of one batch: different images, each in two versions and plain."""
        towers, temperature = self.towers, self.params.temperature
        images, one, two = self.fresh.draw(self.params.batch, self.params.keys, self.draws)
        first, second = towers.net["protected"](towers.read(one, two)).chunk(2)
        known = towers.net["plain"](towers.read(towers.front.without_side(images)))
        first, second, known = (spread_out(rows) for rows in (first, second, known))
        return contrast(first, known, temperature) + contrast(first, second, temperature)


def spread_out(rows: Tensor) -> Tensor:
    """Embeddings of a batch, standardised in each dimension, and of length 1 again.

    Without it the training of hard cases begins by making all embeddings equal, where the loss is
    log N and the gradient vanishes: some seeds stay there.

    Args:
        rows: float (N, D), N at least 2.

    Source: batch normalisation (Ioffe and Szegedy, 2015), at the last layer only.
    """
    return functional.normalize(functional.batch_norm(rows, None, None, training=True), dim=1)


def contrast(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The symmetric contrastive loss: each row shall find its partner among the others' partners.

    Args:
        first: Rows of length 1, float (N, D).
        second: Their partners, row by row.
        temperature: Cosines are divided by this.

    Returns:
        A scalar, 0 or more; log N where nothing is found.

    Source: InfoNCE (van den Oord et al.), in both directions as in CLIP.
    """
    cosines = first @ second.T / temperature
    own = torch.arange(len(cosines), device=cosines.device)
    there, back = functional.cross_entropy(cosines, own), functional.cross_entropy(cosines.T, own)
    return (there + back) / 2
