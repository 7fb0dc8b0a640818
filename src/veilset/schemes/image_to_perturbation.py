"""Image to perturbation: a network redraws images so that only a classifier still knows them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from veilset.errors import CorruptError, ProtectionError
from veilset.metrics.similarity import psnr, ssim
from veilset.params import Params
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.fitted import Fitted, Lessons, Progress
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, Labels

if TYPE_CHECKING:
    from torch import nn

    from veilset.models.teacher import Teacher
    from veilset.schemes._perturbation import Features, Plan, Transform

_JUDGED: Final = 512
_EVIDENCE: Final = 3.0
_LEAST_KEPT: Final = 0.25

_RISKS: Final = (
    "Nothing is guaranteed: what the transform hides is what it happened to learn to hide.",
    "Whoever has the transform, and every client does, makes as many pairs of plain and protected "
    "images as they like and trains an inverse on them.",
    "There is no key: equal images give equal protected images, so whoever has the transform can "
    "confirm a suspected original exactly.",
    "Every protected image tells its class, because the transform learnt from the labels to keep "
    "it.",
    "Images can stay legible, e.g. as negatives, while SSIM, PSNR and the features' distance say "
    "that they are far away: look at some.",
)
_DATASET_RISKS: Final = (
    "Networks trained on protected images read what the transform itself knows about the classes, "
    "so their accuracy overrates what the images still hold.",
)


class ImageToPerturbationParams(Params):
    """Parameters of image to perturbation.

    The defaults are for a thousand small images on one processor core; colour photographs need a
    larger classifier and more epochs. The paper's are `classifier` resnet20, or vgg16_bn with width
    64, `network` paper, `features` imagenet, `feature_term` unbounded, `alpha` 0.01, `flip` true,
    `crop` 4, `batch_size` 128 and 200 epochs of each.
    """

    mode: Literal["query", "dataset"] = Field(
        default="query",
        description="query: the frozen classifier answers protected queries, as in the paper. "
        "dataset: protected images are published to train other networks on; the pixels are the "
        "same, the claims are not.",
    )
    classifier: Literal["resnet20", "vgg16_bn", "small_cnn"] = Field(
        default="small_cnn", description="the classifier whose answers are kept"
    )
    width: int = Field(default=16, ge=4, le=256, description="channels of its first stage")
    classifier_epochs: int = Field(
        default=8, ge=1, le=1000, description="passes that the classifier learns in"
    )
    network: Literal["small", "paper"] = Field(
        default="small",
        description="small: a U-Net of the next three sizes with group normalisation. paper: 34.5 "
        "million parameters with batch normalisation; the next three sizes are not read",
    )
    base: int = Field(default=16, ge=4, le=128, multiple_of=4, description="the U-Net's channels")
    depth: int = Field(default=3, ge=1, le=5, description="times the U-Net halves the resolution")
    fold: int = Field(
        default=4, ge=1, le=8,
        description="side of the squares that the U-Net folds into channels; with 1 or 2 shapes "
        "stay legible more easily",
    )  # fmt: skip
    epochs: int = Field(
        default=10, ge=1, le=1000, description="passes that the transform learns in"
    )
    least_steps: int = Field(
        default=240, ge=1, le=100_000,
        description="small sets are passed over more often, until classifier and transform have "
        "each learnt in so many steps, and the own features in a quarter of them",
    )  # fmt: skip
    batch_size: int = Field(default=32, ge=2, le=4096, description="images a step")
    learning_rate: float = Field(
        default=0.005, gt=0, le=1, allow_inf_nan=False, description="peak rate of the transform"
    )
    alpha: float = Field(
        default=1.0, ge=0, le=1000, allow_inf_nan=False,
        description="weight of the features' distance beside the classifier's cross-entropy; the "
        "paper has 0.01 with imagenet",
    )  # fmt: skip
    feature_term: Literal["clamped", "unbounded"] = Field(
        default="clamped",
        description="clamped: max(0, clamp - distance), so features that are far enough are left "
        "alone. unbounded: minus the distance, as published",
    )
    clamp: float = Field(
        default=1.0, gt=0, le=1e6, allow_inf_nan=False,
        description="the distance that is far enough, in the features' unit; much farther is worse "
        "hidden, because what is farthest from an image is its negative",
    )  # fmt: skip
    features: Literal["own", "imagenet"] = Field(
        default="own",
        description="own: relu2_2 of a narrow VGG-16 trained on the same images; unit: the mean "
        "square of the plain images' features. imagenet: of torchvision's VGG-16, whose weights "
        "must be on this disk; unit 1",
    )
    feature_width: int = Field(
        default=8, ge=4, le=64, description="channels of the first stage of the own features"
    )
    feature_epochs: int = Field(
        default=2, ge=1, le=1000, description="passes that the own features learn in"
    )
    flip: bool = Field(default=False, description="mirror half of the images while learning")
    crop: int = Field(default=2, ge=0, le=7, description="shift by up to so many pixels meanwhile")
    seed: int = Field(default=0, ge=0, lt=2**31, description="of all weights, orders and shifts")


class ImageToPerturbation(Scheme[ImageToPerturbationParams]):
    """A U-Net redraws images: a frozen classifier keeps its answers, other features move away.

    `fit` trains a classifier psi on plain images and freezes it; then a network h, whose sigmoid
    output is the protected image, with the loss CE(psi(h(x)), y) - alpha * MSE(phi(h(x)), phi(x)).
    In `query` mode psi serves protected queries (`classify`). In `dataset` mode, which is ours, the
    same protected images are there for networks trained afresh. There is no key, and protecting
    reads no label. Sizes and channels of images are those that the scheme was fitted on.

    What was learnt: `transform/*` and `classifier/*`, the weights of h and psi, and `shape`,
    int64 (4,): H, W, C and the number of classes. The facts tell psi's accuracy on plain and on
    protected validation images, in 0..1, the distance of their features, SSIM and PSNR, and which
    features were used.

    Source: Ito, Kinoshita, Aprilpyone, Kiya, IEEE Access 2021, after the authors' published code;
    a reconstruction. Differences: sizes and epochs are smaller by default; h is trained by Adam
    with one rise and fall of the rate instead of SGD in steps, and its last weights are taken
    rather than those of the least validation loss; the feature term is clamped unless `unbounded`;
    phi is a network of ours unless ImageNet's weights are there; psi normalises by the mean and
    deviation of its own images; VGG-16 learns without dropout.
    """

    name = "image_to_perturbation"
    title = "Image to perturbation"
    version = 1
    learns = True
    declares = Declaration(
        keyed=False,
        reversible=False,
        guarantee=None,
        protects_queries=True,
        uses_labels=False,
        provenance="reconstruction",
        source="Ito, Kinoshita, Aprilpyone, Kiya: Image to Perturbation, IEEE Access 2021",
        risk_notes=_RISKS,
    )
    Parameters = ImageToPerturbationParams

    def __init__(
        self, params: ImageToPerturbationParams | None = None, *, fitted: Fitted | None = None,
        device: str = "cpu", **values: Any,
    ) -> None:  # fmt: skip
        """As every scheme; in `dataset` mode the declaration says that this use is ours."""
        super().__init__(params, fitted=fitted, device=device, **values)
        if self.params.mode == "dataset":
            self.declares = Declaration(
                keyed=False,
                reversible=False,
                guarantee=None,
                protects_queries=True,
                uses_labels=False,
                provenance="ours",
                source=f"the transform of {type(self).declares.source}, used on a data set",
                risk_notes=(*_RISKS, *_DATASET_RISKS),
            )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the networks, which workers build again from the arrays."""
        return {name: value for name, value in self.__dict__.items() if name != "_networks"}

    def classify(self, images: Images, *, protected: bool = True) -> npt.NDArray[np.float32]:
        """What the frozen classifier answers to protected images.

        Args:
            images: uint8 (N, H, W, C), at least one.
            protected: They are protected already; otherwise they are protected first.

        Returns:
            Logits, float32 (N, classes): the same for any batch and order on one kind of device.

        Raises:
            ProtectionError: The scheme was not fitted, or on images of another shape.
        """
        from veilset.schemes._perturbation import run, transformed  # noqa: PLC0415

        self._require_shape(images)
        if not protected:
            images = transformed(self._network("transform"), images, self.device)
        return run(self._network("classifier"), images, self.device)

    def transform_network(self) -> "nn.Module":
        """The transform h in evaluation mode: float (N, C, H, W) in 0..1 to the same.

        Whoever holds it can compute which image gives a protected one: see the attack `white_box`.

        Raises:
            ProtectionError: The scheme was not fitted.
            CorruptError: What it learnt cannot be used.
        """
        return self._network("transform")

    # -------------------------------------------------------------------------- protection

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        from veilset.schemes._perturbation import transformed  # noqa: PLC0415

        del labels, ids, stream, pool
        self._require_shape(images)
        return Protected(transformed(self._network("transform"), images, self.device))

    def _require_shape(self, images: Images) -> None:
        height, width, channels, _ = self._shape
        if images.shape[1:] != (height, width, channels):
            raise ProtectionError(
                f"{self.name} was fitted on images of {(height, width, channels)}, not of "
                f"{images.shape[1:]}: fit it on images like these."
            )

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        """H, W, C and the number of classes of the images that it was fitted on."""
        found = self.learnt.get("shape")
        if found is None or found.shape != (4,) or found.dtype.kind not in "iu":
            raise CorruptError(f"what {self.name} learnt has no shape: fit it again.")
        height, width, channels, classes = (int(value) for value in found)
        return height, width, channels, classes

    @cached_property
    def _networks(self) -> dict[tuple[str, str], "nn.Module"]:
        """Networks that were used before, by part and device."""
        return {}

    def _network(self, part: Literal["transform", "classifier"]) -> "nn.Module":
        if (part, self.device) not in self._networks:
            try:
                net = self._load(part)
            except (RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise CorruptError(
                    f"the {part} that {self.name} learnt cannot be used ({reason}): fit it again."
                ) from None
            import torch  # noqa: PLC0415

            net = net.to(self.device).to(memory_format=torch.channels_last)
            self._networks[part, self.device] = net
        return self._networks[part, self.device]

    def _load(self, part: Literal["transform", "classifier"]) -> "nn.Module":
        """The network of a part with its learnt weights, on the CPU."""
        from veilset.models.teacher import load_teacher, unpack  # noqa: PLC0415

        height, width, channels, classes = self._shape
        if part == "transform":
            return unpack(self._make(channels), self.learnt, part)
        return load_teacher(
            self.learnt, part, self.params.classifier, self._psi_parameters,
            (height, width, channels), classes,
        )  # fmt: skip

    def _make(self, channels: int) -> "Transform":
        """The transform before it learnt anything."""
        from veilset.schemes._perturbation import make_transform  # noqa: PLC0415

        p = self.params
        return make_transform(
            p.network, channels, base=p.base, depth=p.depth, fold=p.fold, seed=p.seed
        )

    # -------------------------------------------------------------------------- learning

    def _fit(
        self, lessons: Lessons, progress: Progress | None
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        from veilset.models.teacher import pack  # noqa: PLC0415
        from veilset.schemes._perturbation import loss_of, steps_in, train_transform  # noqa: PLC0415

        if len(lessons.images) < 2:
            raise ProtectionError(f"{self.name} needs at least 2 images to learn from, not 1.")
        steps = steps_in(len(lessons.images), self.params.batch_size)
        epochs = self._epochs(len(lessons.images))
        report = _in_turn([steps * each for each in epochs], progress)
        phi = self._features(lessons, epochs[0], report[0])
        psi = self._classifier(lessons, epochs[1], report[1])
        plan = self._plan(epochs[2])
        fresh = self._make(lessons.images.shape[3])
        h = train_transform(
            fresh, loss_of(psi, phi, plan), lessons, plan, self.device, report[2]
        )  # fmt: skip
        shape = np.array([*lessons.images.shape[1:], lessons.classes], dtype=np.int64)
        arrays = {**pack(h, "transform"), **pack(psi, "classifier"), "shape": shape}
        # Judged as it will be used: from the arrays, with grey levels.
        fitted = Fitted(self.name, self.version, self.params.canonical(), arrays)
        facts = self.with_fitted(fitted)._judge(lessons, phi)
        return arrays, facts

    def _epochs(self, count: int) -> tuple[int, int, int]:
        """Passes over so many images that features, classifier and transform learn in."""
        from veilset.schemes._perturbation import steps_in  # noqa: PLC0415

        p, steps = self.params, steps_in(count, self.params.batch_size)
        whole, quarter = ceil(p.least_steps / steps), ceil(p.least_steps / (4 * steps))
        own = max(p.feature_epochs, quarter) if p.features == "own" else 0
        return own, max(p.classifier_epochs, whole), max(p.epochs, whole)

    @property
    def _psi_parameters(self) -> dict[str, Any]:
        fixed = {"dropout": 0.0} if self.params.classifier == "vgg16_bn" else {}
        return {"width": self.params.width, **fixed}

    def _classifier(self, lessons: Lessons, epochs: int, progress: Progress | None) -> "Teacher":
        from veilset.models.teacher import Recipe, train_teacher  # noqa: PLC0415

        p = self.params
        recipe = Recipe(
            p.classifier, self._psi_parameters, epochs, batch_size=p.batch_size,
            lr=0.05 if p.classifier == "vgg16_bn" else 0.1, flip=p.flip, crop=p.crop, seed=p.seed,
        )  # fmt: skip
        return train_teacher(
            lessons.images, lessons.labels, lessons.classes, recipe, self.device, progress
        )

    def _features(self, lessons: Lessons, epochs: int, progress: Progress | None) -> "Features":
        from veilset.models.teacher import Recipe  # noqa: PLC0415
        from veilset.schemes._perturbation import imagenet_features, own_features  # noqa: PLC0415

        p = self.params
        if p.features == "imagenet":
            return imagenet_features(lessons.images.shape[3], self.device)
        # Another seed than the classifier's: with vgg16_bn, psi's own first layers would move away.
        recipe = Recipe(
            "vgg16_bn", {"width": p.feature_width, "dropout": 0.0}, epochs,
            batch_size=p.batch_size, lr=0.05, flip=p.flip, crop=p.crop, seed=p.seed + 1,
        )  # fmt: skip
        return own_features(lessons, recipe, self.device, progress)

    def _plan(self, epochs: int) -> "Plan":
        from veilset.models.augment import Augmentation  # noqa: PLC0415
        from veilset.schemes._perturbation import Plan  # noqa: PLC0415

        p = self.params
        return Plan(
            epochs=epochs, batch_size=p.batch_size, learning_rate=p.learning_rate, alpha=p.alpha,
            clamp=p.clamp if p.feature_term == "clamped" else None,
            augmentation=Augmentation(p.flip, p.crop), seed=p.seed,
        )  # fmt: skip

    def _judge(self, lessons: Lessons, phi: "Features") -> dict[str, Any]:
        """How well the transform keeps and hides validation images, as facts."""
        from veilset.schemes._perturbation import run, transformed  # noqa: PLC0415

        plain, labels = lessons.validation_images, lessons.validation_labels
        made = transformed(self._network("transform"), plain, self.device)
        said = [self.classify(images).argmax(axis=1) for images in (plain, made)]
        before, after = (float((answers == labels).mean()) for answers in said)
        _require_kept(before, after, labels, self.params)
        few, shown = plain[:_JUDGED], made[:_JUDGED]
        features = [run(phi, images, self.device) for images in (few, shown)]
        distance = float(((features[0] - features[1]) ** 2).mean()) / phi.unit
        return {
            "classifier_accuracy_plain": round(before, 4),
            "classifier_accuracy_protected": round(after, 4),
            "feature_distance": round(distance, 4),
            "features": "VGG-16 of ImageNet, relu2_2" if self.params.features == "imagenet"
            else "a narrow VGG-16 trained on the same plain images, relu2_2",
            "ssim": round(float(ssim(shown, few).mean()), 4),
            "psnr": round(float(psnr(shown, few).mean()), 2),
        }  # fmt: skip


def _in_turn(steps: Sequence[int], progress: Progress | None) -> list[Progress | None]:
    """Where trainings of so many steps, one after another, report to as parts of a whole."""
    if progress is None:
        return [None] * len(steps)
    starts = [sum(steps[:index]) for index in range(len(steps))]

    def part(start: int) -> Progress:
        return lambda done, _: progress(start + done, sum(steps))

    return [part(start) for start in starts]


def _require_kept(
    before: float, after: float, labels: Labels, params: ImageToPerturbationParams
) -> None:
    """Refuses a transform that lost what the classifier had demonstrably learnt."""
    chance = float(np.bincount(labels).max()) / len(labels)
    learnt = before - chance
    if learnt * len(labels) ** 0.5 > _EVIDENCE and after - chance < _LEAST_KEPT * learnt:
        raise ProtectionError(
            f"the transform of image_to_perturbation lost the classes: its classifier is right on "
            f"{before:.0%} of plain and {after:.0%} of protected validation images with alpha "
            f"{params.alpha}: lower alpha, or raise epochs or least_steps."
        )
