"""Attribute inference: what a protected image tells of a person or thing beside its label.

The attacker knows the attribute of her own images, protects them herself, and trains classifiers on
the results. Features with classical classifiers come first, because they need few images; with
`full` a convolutional network joins them. What does best on her tuning part is used.

Every value of the attribute is as frequent among the targets as any other, so that the share of
right guesses cannot be raised by guessing the frequent value. It is stated as an advantage: 0 for
guessing, 1 for certainty.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from veilset.attacks.base import (
    NO_ATTRIBUTE,
    Attack,
    Attacker,
    AttackParams,
    AttackResult,
    Case,
    Diverged,
    Groups,
    Knowledge,
    Progress,
    Release,
    Risk,
    Scores,
    Template,
)
from veilset.attacks.features import (
    Batch,
    Feature,
    Pairs,
    features_for,
    protect_as_attacker,
    split_attacker,
)
from veilset.attacks.linkage import enough_images, join
from veilset.metrics.statistics import Interval
from veilset.schemes.base import Scheme
from veilset.types import FloatArray, IntArray

NETWORK: Final = "network"

_FEWEST: Final = 10
_SVM_ROWS: Final = 1500


class AttributeInferenceParams(AttackParams):
    """Parameters of `attribute_inference`; the training's length is in steps, so that it repeats.

    Attributes:
        attribute: Which attribute; "" for the first one in alphabetical order.
        targets: At most so many released images are attacked, of each value as many.
        versions: How many times the attacker protects her own images, under fresh keys.
        auxiliary: At most so many of her images are used.
        tuning_share: Share of her images that chooses among the classifiers.
        steps: Training steps of the network; 0 for none.
        width: Channels of its first convolution.
        batch: Images a step.
        learning_rate: At its highest; it falls to nothing along a cosine.
    """

    attribute: str = ""
    targets: int = Field(500, ge=2, le=100_000)
    versions: int = Field(3, ge=1, le=50)
    auxiliary: int = Field(1000, ge=20, le=1_000_000)
    tuning_share: float = Field(0.3, gt=0, lt=1)
    steps: int = Field(0, ge=0, le=1_000_000)
    width: int = Field(32, ge=4, le=256)
    batch: int = Field(64, ge=2, le=4096)
    learning_rate: float = Field(3e-3, gt=0, le=1)

    FULL: ClassVar[Mapping[str, Any]] = {
        "targets": 5000, "repeats": 3, "versions": 8, "auxiliary": 20_000, "steps": 5000,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Observer(Attacker):
    """An attacker who knows an attribute of her own images.

    Attributes:
        values: (M,) strings, "" where unknown.
    """

    values: Groups


class Classifier(Protocol):
    """Tells the number of the value that an image has."""

    def __call__(self, batch: Batch) -> IntArray:
        """int64 (N,)."""


@dataclass(frozen=True)
class FittedInference:
    """The chosen classifier.

    Attributes:
        name: Its name, `feature/way`, or `network`.
        classifier: The classifier.
        values: The values in the order of their numbers, (K,).
        table: Share of right guesses of each on the tuning part, each value counting the same.
        by_label: The likeliest number for each label, as her images have it.
    """

    name: str
    classifier: Classifier
    values: Groups
    table: Mapping[str, float]
    by_label: Mapping[int, int]


class AttributeInference(Attack[AttributeInferenceParams, FittedInference]):
    """Infers an attribute of protected images from other images' attributes.

    Source: training on protected images after McPherson, Shokri and Shmatikov (arXiv 1609.00408);
    the advantage is the membership advantage of Yeom et al. (CSF 2018) for several values.
    """

    name = "attribute_inference"
    title = "Inference of an attribute"
    risk: ClassVar[Risk] = "inference"
    attacker: ClassVar[Template] = "outside_trainer"
    knowledge: ClassVar[Knowledge] = "K2"
    cost = "seconds (quick) to many minutes (full, no GPU)"
    metric = "advantage"
    metric_words = "advantage over guessing among {gallery} values"
    deed = "have their attribute guessed right"
    oracle_floor = 0.5
    Parameters = AttributeInferenceParams

    def applies(self, case: Case) -> str | None:
        """None where an attribute is named, and enough images have it."""
        if not case.attributes:
            return NO_ATTRIBUTE
        wanted = self.params.attribute
        if wanted and wanted not in case.attributes:
            known = ", ".join(sorted(case.attributes))
            return f"the set names no attribute {wanted}: choose one of {known}"
        reason = enough_images(case)
        if reason is not None:
            return reason
        if len(self._values(case)) < 2:
            return (
                f"the attribute {self._name(case)} has fewer than 2 values that {_FEWEST} images "
                "of the attacker and 2 released ones have: there is nothing to infer"
            )
        return None

    def _name(self, case: Case) -> str:
        return self.params.attribute or min(case.attributes)

    def _told(self, case: Case) -> tuple[Groups, Groups]:
        """The values of the attacker's images and of the released ones."""
        told = case.attributes[self._name(case)]
        own = [told.get(row.tobytes().hex(), "") for row in case.attacker.ids]
        shown = [told.get(str(name), "") for name in case.truth.ids]
        return np.array(own, dtype=np.str_), np.array(shown, dtype=np.str_)

    def _values(self, case: Case) -> Groups:
        """The values that can be learnt and tested, in alphabetical order."""
        own, shown = self._told(case)
        values = np.unique(own[own != ""])
        enough = [(own == v).sum() >= _FEWEST and (shown == v).sum() >= 2 for v in values]
        return np.asarray(values[np.array(enough, dtype=np.bool_)])

    def _eligible(self, case: Case) -> IntArray:
        values, (_, shown) = self._values(case), self._told(case)
        each = min(int(min((shown == v).sum() for v in values)), self._targets() // len(values))
        rng = np.random.default_rng([case.attacker.seed, zlib.crc32(b"balanced targets")])
        rows = [rng.choice(np.flatnonzero(shown == v), max(each, 1), replace=False) for v in values]
        return np.sort(np.concatenate(rows)).astype(np.int64)

    def _run(self, case: Case, progress: Progress | None) -> AttackResult:
        own = self._told(case)[0]
        own = np.where(np.isin(own, self._values(case)), own, "")
        return super()._run(
            replace(case, attacker=Observer(**vars(case.attacker), values=own)), progress
        )

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedInference | None,
    ) -> FittedInference:  # fmt: skip
        if not isinstance(attacker, Observer):
            raise TypeError("this attack needs images with attributes: start it by run()")
        params = self.params
        values, number = np.unique(attacker.values, return_inverse=True)
        told = attacker.values != ""
        number = number.ravel().astype(np.int64) - int(not told.all())
        values = values[values != ""]
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        if not ((fitting & told).any() and (tuned & told).any()):
            raise Diverged("she has no images to learn from, or none to tune with")
        versions = protect_as_attacker(
            release.scheme, attacker, fitting & told, params.versions, rng
        )
        tuning = protect_as_attacker(release.scheme, attacker, tuned & told, 1, rng)[0]
        fit = join(versions)
        wanted = number[tuning.rows]
        found: dict[str, tuple[float, Classifier]] = {}
        for name, made in self._classifiers(release, attacker, fit, number[fit.rows], rng, like):
            if progress:
                progress(f"attribute_inference: {name}", len(found), len(found) + 1)
            classifier = made()
            found[name] = _balanced(classifier(tuning.batch), wanted, len(values)), classifier
        best = max(found, key=lambda name: found[name][0])
        labels = attacker.labels[told]
        by_label = {
            int(label): int(np.bincount(number[told][labels == label]).argmax())
            for label in np.unique(labels)
        }
        table = {name: score for name, (score, _) in found.items()}
        return FittedInference(best, found[best][1], values, table, by_label)

    def _classifiers(
        self, release: Release, attacker: Attacker, fit: Pairs, wanted: IntArray,
        rng: np.random.Generator, like: FittedInference | None,
    ) -> list[tuple[str, Callable[[], Classifier]]]:  # fmt: skip
        """What to try, by name; the oracle trains a network only where one was relied on."""
        params = self.params
        made: list[tuple[str, Callable[[], Classifier]]] = []
        features = _features(release)
        for name, feature in features.items():
            for way in _WAYS:
                made.append((f"{name}/{way}", _Later(name, feature, way, fit.batch, wanted)))
        if params.steps and (like is None or like.name == NETWORK):
            seed = int(rng.integers(2**31))
            made.append((
                NETWORK,
                lambda: train_network(
                    fit.batch, wanted, release.scheme, params, attacker.device, seed
                ),
            ))  # fmt: skip
        return made

    def _measure(self, fitted: FittedInference, case: Case, rng: np.random.Generator) -> Scores:
        del rng
        shown = self._told(case)[1]
        wanted = np.searchsorted(fitted.values, shown).astype(np.int64)
        guessed = fitted.classifier(Batch(case.release.images, case.release.side))
        labels = [fitted.by_label.get(int(label), 0) for label in case.release.labels]
        frame = pd.DataFrame({"success": (guessed == wanted).astype(np.float64)})
        details = {
            "accuracy": float(frame["success"].mean()),
            "accuracy_by_label_alone": float((np.array(labels) == wanted).mean()),
            "values": float(len(fitted.values)),
        }
        return Scores(frame, len(fitted.values), None, details)

    def _chosen(self, fitted: FittedInference) -> tuple[str, Mapping[str, float]]:
        table: dict[str, float] = {}
        for name, score in fitted.table.items():
            row = name.split("/", maxsplit=1)[0]
            table[row] = max(table.get(row, 0.0), score)
        return fitted.name, table

    def _weigh(
        self, case: Case, fitted: FittedInference, anchors: Mapping[str, Scores],
        rng: np.random.Generator,
    ) -> AttackResult:  # fmt: skip
        result = super()._weigh(case, fitted, anchors, rng)
        if result.value is None or result.low is None or result.high is None:
            return result
        chance = 1.0 / len(fitted.values)
        control, oracle = (_advantages(rate, chance) for rate in (result.control, result.oracle))
        return replace(
            result, chance=0.0, control=control, oracle=oracle,
            value=_advantage(result.value, chance), low=_advantage(result.low, chance),
            high=_advantage(result.high, chance), words=self._words(result.value),
            status=self._status(oracle, result.targets or 0) if oracle else result.status,
        )  # fmt: skip


def _advantage(rate: float, chance: float) -> float:
    """0 for guessing or worse, 1 for certainty."""
    return max(0.0, (rate - chance) / (1.0 - chance))


def _advantages(rate: Interval | None, chance: float) -> Interval | None:
    if rate is None:
        return None
    return Interval(
        _advantage(rate.value, chance), _advantage(rate.low, chance), _advantage(rate.high, chance)
    )


def _balanced(guessed: IntArray, wanted: IntArray, values: int) -> float:
    """Share of right guesses, each value counting the same."""
    shares = [(guessed[wanted == v] == v).mean() for v in range(values) if (wanted == v).any()]
    return float(np.mean(shares))


# --- Features and classical classifiers -------------------------------------------------------

_WAYS: Final = ("linear", "neighbours", "kernel")


def _features(release: Release) -> dict[str, Callable[[Batch], FloatArray]]:
    """Features of released images, and numeric side information as it is."""
    found: dict[str, Callable[[Batch], FloatArray]] = {
        name: _of_images(feature)
        for name, feature in features_for(release.shape, release.scheme).items()
    }
    for name in sorted(release.side):
        if release.side[name].dtype.kind in "biuf":
            found[f"side {name}"] = _of_side(name)
    return found


def _of_images(feature: Feature) -> Callable[[Batch], FloatArray]:
    return lambda batch: feature(batch.images)


def _of_side(name: str) -> Callable[[Batch], FloatArray]:
    def read(batch: Batch) -> FloatArray:
        values = batch.side[name]
        return np.nan_to_num(values.reshape(len(values), -1).astype(np.float64))

    return read


@dataclass(frozen=True)
class _Later:
    """Fits a classical classifier when it is called."""

    name: str
    feature: Callable[[Batch], FloatArray]
    way: str
    batch: Batch
    wanted: IntArray

    def __call__(self) -> Classifier:
        from sklearn.linear_model import RidgeClassifier  # noqa: PLC0415 - slow to import
        from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415
        from sklearn.svm import SVC  # noqa: PLC0415

        columns = self.feature(self.batch)
        mean, spread = columns.mean(axis=0), columns.std(axis=0)
        spread = spread + 0.1 * spread.mean() + 1e-9
        scaled = (columns - mean) / spread
        rows = np.arange(len(scaled))
        model: Any
        if self.way == "linear":
            model = RidgeClassifier(alpha=0.1 * len(rows), class_weight="balanced")
        elif self.way == "neighbours":
            model = KNeighborsClassifier(n_neighbors=min(5, len(rows)), weights="distance")
        else:
            rows = rows[:: -(-len(rows) // _SVM_ROWS)]
            model = SVC(C=10.0, class_weight="balanced")
        if len(np.unique(self.wanted[rows])) < 2:
            raise Diverged("her images show a single value")
        model.fit(scaled[rows], self.wanted[rows])
        return _Classical(self.feature, mean, spread, model)


@dataclass(frozen=True)
class _Classical:
    """A fitted classifier of scikit-learn over a standardised feature."""

    feature: Callable[[Batch], FloatArray]
    mean: FloatArray
    spread: FloatArray
    model: Any

    def __call__(self, batch: Batch) -> IntArray:
        scaled = (self.feature(batch) - self.mean) / self.spread
        return np.asarray(self.model.predict(scaled), dtype=np.int64)


# --- The network ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Network:
    """A trained network as a classifier.

    Attributes:
        net: In evaluation mode.
        reader: How it reads released images.
        device: Where it runs.
    """

    net: Any
    reader: Callable[[Batch], npt.NDArray[np.float32]]
    device: str

    def __call__(self, batch: Batch) -> IntArray:
        import torch  # noqa: PLC0415 - the classical classifiers need no torch

        from veilset.models.device import Engine, kernels  # noqa: PLC0415

        engine = Engine(torch.device(self.device), "fp32")
        made = []
        with torch.no_grad(), kernels(engine, deterministic="where there are"):
            for start in range(0, len(batch.images), 256):
                inputs = torch.from_numpy(self.reader(batch.take(slice(start, start + 256))))
                made.append(self.net(inputs.to(self.device)).argmax(dim=1).cpu().numpy())
        return np.concatenate(made).astype(np.int64)


def train_network(
    batch: Batch, wanted: IntArray, scheme: Scheme[Any], params: AttributeInferenceParams,
    device: str, seed: int,
) -> Classifier:  # fmt: skip
    """Trains a small convolutional network on protected images.

    The same images, parameters and seed give the same network on the same kind of device.

    Args:
        batch: Protected images with side information.
        wanted: The number of each one's value, int64 (N,).
        scheme: For the sizes of its regions, whose pixels are given in ascending order as well.
        params: Sizes and rates.
        device: As torch names it.
        seed: Of the initial weights and the batches.

    Returns:
        The classifier.

    Raises:
        Diverged: The loss became NaN or infinite.

    Source: ours; cross-entropy, each value drawn as often.
    """
    import torch  # noqa: PLC0415 - the classical classifiers need no torch
    from torch.nn import functional  # noqa: PLC0415

    from veilset.attacks.learned_inverse import reader_for  # noqa: PLC0415
    from veilset.models.device import Engine, kernels  # noqa: PLC0415
    from veilset.models.optimiser import Adam, falling  # noqa: PLC0415
    from veilset.models.registry import make_model  # noqa: PLC0415

    reader = reader_for(batch, 1, scheme)
    height, width = batch.images.shape[1:3]
    channels = reader(batch.take(slice(0, 1))).shape[1]
    classes = int(wanted.max()) + 1
    net = make_model("small_cnn", (height, width, channels), classes, seed=seed, width=params.width)
    net = net.to(device)
    optimiser, draws = Adam(net), np.random.default_rng(seed)
    rows_of = [np.flatnonzero(wanted == value) for value in range(classes)]
    with kernels(Engine(torch.device(device), "fp32"), deterministic="where there are"):
        for step in range(params.steps):
            values = draws.integers(0, classes, params.batch)
            rows = np.array([draws.choice(rows_of[value]) for value in values], dtype=np.int64)
            inputs = torch.from_numpy(reader(batch.take(rows))).to(device)
            loss = functional.cross_entropy(net(inputs), torch.from_numpy(values).to(device))
            optimiser.forget_gradients()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step(falling(params.learning_rate, step, params.steps))
            if (step % 100 == 0 or step == params.steps - 1) and not bool(torch.isfinite(loss)):
                raise Diverged(f"the loss was not a number at step {step}")
    return _Network(net.eval(), reader, device)
