"""Mask desensitization: patches that recognition needs are kept, all others are blanked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from veilset.errors import ProtectionError
from veilset.params import Params
from veilset.schemes._templates import (
    FILL,
    UNIT,
    Attribution,
    Grid,
    Rules,
    centre_first,
    choose,
    kept_patches,
    patch_scores,
    predictability,
    redundancy,
    whole,
)
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.fitted import Fitted, Lessons, Progress
from veilset.schemes.randomness import Stream
from veilset.types import BoolArray, FloatArray, Ids, Images, IntArray, Labels

_MOST_PATCHES: Final = 1024
_LEAST_IMAGES: Final = 8
_TEMPLATE_IMAGES: Final = 4096
_LANE: Final = 1024

_Place = Annotated[int, Field(ge=0, le=4096)]
_Side = Annotated[int, Field(ge=1, le=4096)]


class MaskDesensitizationParams(Params):
    """Parameters of mask desensitization.

    Patches are squares from the upper left; where they do not divide the image, those at the lower
    and right edge are smaller. An image has at most 1,024 of them. The authors' settings are not
    known to us; our defaults suit 32 px, and patches of 16 px suit 224.
    """

    patch_px: int = Field(
        default=8, ge=1, le=512,
        description="side of a patch in pixels, at most half the image's smaller side. Small ones "
        "serve recognition better and are inpainted more easily from their neighbours",
    )  # fmt: skip
    keep: float = Field(
        default=0.25, gt=0, lt=1, allow_inf_nan=False,
        description="share of the patches that is kept, rounded half up to whole patches",
    )  # fmt: skip
    scope: Literal["set", "class", "image"] = Field(
        default="set",
        description="what shares a mask: all images, those of a label (then the mask tells the "
        "label and test images stay plain), or none (then the mask tells what a classifier saw)",
    )
    selection: Literal["template", "attribution", "random", "centre"] = Field(
        default="template",
        description="template: what matters, less what would help to inpaint the rest. The others "
        "are ablations: attribution knows no penalty, random and centre no images",
    )
    attribution: Attribution = Field(
        default="grad_cam", description="how it is measured what matters to the teacher"
    )
    penalty: float = Field(
        default=1.0, ge=0, le=100, allow_inf_nan=False,
        description="weight of what a patch tells of masked ones, in steps of 1/1024",
    )  # fmt: skip
    sensitive_boxes: tuple[tuple[_Place, _Place, _Side, _Side], ...] = Field(
        default=(),
        description="rectangles (top, left, height, width) in pixels whose content must not be "
        "guessed; by default the whole image",
    )
    hard_sensitive: bool = Field(
        default=False, description="no patch that reaches into a sensitive box is kept"
    )
    teacher: Literal["small_cnn", "resnet20"] = Field(
        default="small_cnn", description="architecture of the classifier that is asked"
    )
    teacher_width: int = Field(
        default=16, ge=4, le=256, description="channels of the teacher's first convolution"
    )
    epochs: int = Field(
        default=12, ge=1, le=1000, description="passes over the images that the teacher learns from"
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="of the teacher, or of the random selection"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.selection in ("random", "centre") and self.scope != "set":
            raise ValueError(
                f"selection {self.selection} looks at no image, so scope has to be set, not "
                f"{self.scope}"
            )
        if self.hard_sensitive and not self.sensitive_boxes:
            raise ValueError("hard_sensitive needs sensitive_boxes to keep clear of")
        return self


class MaskDesensitization(Scheme[MaskDesensitizationParams]):
    """Keeps the patches that a classifier needs, and sets all other pixels to 128.

    A teacher is trained on plain images; an attribution says how much each patch mattered to it,
    and the mean over a scope is that scope's template. Patches are kept one after another by their
    score less a penalty for telling what is masked (`choose` in `_templates`).

    Side information: `mask`, uint8 (N, H, W), 1 where a pixel was kept. With the scopes `set` and
    `class` a masked pixel has no influence on the output whatever, given the mask.

    Source: Li, Liu, Sun, Zhang, Dou, arXiv 2312.08975, of which only the abstract is known to us:
    masks by an interpretation algorithm, which must not be inpainted. All else is ours.
    """

    name = "mask_desensitization"
    title = "Mask desensitization"
    version = 1
    declares = Declaration(
        keyed=False,
        reversible=False,
        guarantee=None,
        protects_queries=True,
        uses_labels=False,
        provenance="reconstruction",
        source="Li, Liu, Sun, Zhang, Dou: arXiv 2312.08975 (2023), known from its abstract",
        risk_notes=(
            "Kept patches are plain: whatever can be recognised in them is recognised.",
            "What serves recognition is kept, so where the task is to recognise persons, the mask "
            "keeps what identifies them.",
            "Where images are alike, masked patches can be guessed from kept ones; the penalty "
            "makes that harder and proves nothing.",
            "Whoever holds an original finds its release by the kept pixels.",
        ),
    )
    Parameters = MaskDesensitizationParams
    learns = True

    def __init__(
        self,
        params: MaskDesensitizationParams | None = None,
        *,
        fitted: Fitted | None = None,
        device: str = "cpu",
        **values: Any,
    ) -> None:
        """Binds parameters; the scopes `class` and `image` declare what their masks tell."""
        super().__init__(params, fitted=fitted, device=device, **values)
        self.declares = _declared(type(self).declares, self.params.scope)
        self._teacher: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # The network is rebuilt from what was learnt.
        return {**self.__dict__, "_teacher": None}

    def facts(self) -> Mapping[str, Any]:
        """The grey level of masked pixels, and once it was fitted how many patches are kept."""
        if self.fitted is None or "shape" not in self.fitted.arrays:
            return {"fill": FILL}
        patches = self._grid(self.fitted.arrays["shape"].tolist()).count
        kept = kept_patches(self.params.keep, patches)
        return {"fill": FILL, "patches": patches, "kept_patches": kept}

    # ----------------------------------------------------------------------------------- learning

    def _fit(
        self, lessons: Lessons, progress: Progress | None
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        images, shape = lessons.images, lessons.images.shape[1:]
        grid = self._grid(shape)
        self._require(len(images), grid)
        penalised = self.params.selection == "template" and self.params.penalty > 0
        told = redundancy(images[:_TEMPLATE_IMAGES], grid) if penalised else None
        rules = self._rules(grid, told)
        arrays: dict[str, npt.NDArray[Any]] = {"shape": np.array(shape, dtype=np.int64)}
        if self.params.selection in ("random", "centre"):
            kept = self._blind(rules)
            return arrays | {"kept": kept.astype(np.uint8)}, self._measured(lessons, kept, grid)
        teacher, facts = self._taught(lessons, progress)
        if self.params.scope == "image":
            from veilset.models.teacher import pack  # noqa: PLC0415 - most schemes need no torch

            arrays["told"] = rules.shares
            arrays["classes"] = np.array([lessons.classes], dtype=np.int64)
            return arrays | pack(teacher, "teacher"), facts
        scores = patch_scores(
            teacher, images[:_TEMPLATE_IMAGES], lessons.labels[:_TEMPLATE_IMAGES], grid,
            self.params.attribution, self.device,
        )  # fmt: skip
        if self.params.scope == "set":
            kept = choose(whole(scores.mean(axis=0, keepdims=True)), rules)[0]
            facts |= self._measured(lessons, kept, grid)
        else:
            templates = _by_class(scores, lessons.labels[:_TEMPLATE_IMAGES], lessons.classes)
            kept = choose(whole(templates), rules)
        return arrays | {"kept": kept.astype(np.uint8)}, facts

    def _taught(self, lessons: Lessons, progress: Progress | None) -> tuple[Any, dict[str, Any]]:
        """The teacher, and how good it is."""
        from veilset.models.teacher import Recipe, accuracy, train_teacher  # noqa: PLC0415

        recipe = Recipe(
            self.params.teacher, {"width": self.params.teacher_width}, self.params.epochs,
            seed=self.params.seed,
        )  # fmt: skip
        teacher = train_teacher(
            lessons.images, lessons.labels, lessons.classes, recipe, self.device, progress
        )
        right = accuracy(teacher, lessons.validation_images, lessons.validation_labels, self.device)
        return teacher, {"teacher_accuracy": right}

    def _measured(self, lessons: Lessons, kept: BoolArray, grid: Grid) -> dict[str, Any]:
        """How far a linear inpainter gets on the validation images."""
        learnt = lessons.images[:_TEMPLATE_IMAGES]
        judged = lessons.validation_images[:_TEMPLATE_IMAGES]
        return {"linear_inpainting_r2": round(predictability(learnt, judged, kept, grid), 4)}

    def _require(self, images: int, grid: Grid) -> None:
        if images < _LEAST_IMAGES:
            raise ProtectionError(
                f"{self.name} needs {_LEAST_IMAGES} images to learn from, not {images}: fit it on "
                "more."
            )
        if grid.count > _MOST_PATCHES:
            raise ProtectionError(
                f"patch_px {grid.patch} cuts images of {grid.height} x {grid.width} pixels into "
                f"{grid.count} patches, but {self.name} takes {_MOST_PATCHES} at most: raise "
                "patch_px."
            )

    def _rules(self, grid: Grid, told: IntArray | None) -> Rules:
        """What the parameters mean for these patches; without `told` there is no penalty."""
        params = self.params
        for top, left, height, width in params.sensitive_boxes:
            if top + height > grid.height or left + width > grid.width:
                raise ProtectionError(
                    f"the sensitive box ({top}, {left}, {height}, {width}) reaches beyond images "
                    f"of {grid.height} x {grid.width} pixels: give top, left, height, width inside."
                )
        inside = grid.touched(params.sensitive_boxes)
        count = kept_patches(params.keep, grid.count)
        allowed = ~inside if params.hard_sensitive else np.ones(grid.count, dtype=np.bool_)
        if allowed.sum() < count:
            raise ProtectionError(
                f"keep {params.keep} asks for {count} of {grid.count} patches, but only "
                f"{allowed.sum()} lie outside of the sensitive boxes: lower keep, or give smaller "
                "boxes."
            )
        nothing = np.zeros((grid.count, grid.count), dtype=np.int64)
        return Rules(
            grid=grid, count=count, penalty=round(params.penalty * UNIT),
            shares=nothing if told is None else told,
            hidden=inside if inside.any() else np.ones(grid.count, dtype=np.bool_),
            allowed=allowed,
        )  # fmt: skip

    def _blind(self, rules: Rules) -> BoolArray:
        """A mask that looks at no image."""
        if self.params.selection == "centre":
            order = centre_first(rules.grid)
        else:
            order = np.random.default_rng(self.params.seed).permutation(rules.grid.count)
        kept = np.zeros(rules.grid.count, dtype=np.bool_)
        kept[order[rules.allowed[order]][: rules.count]] = True
        return kept

    # --------------------------------------------------------------------------------- protecting

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del ids, stream, pool
        shape = tuple(self.learnt["shape"].tolist())
        if images.shape[1:] != shape:
            raise ProtectionError(
                f"{self.name} learnt from images {shape}, so it cannot protect images "
                f"{images.shape[1:]}: fit it on images of that shape."
            )
        grid = self._grid(shape)
        if self.params.scope == "image":
            kept = self._seen(images, grid)
        elif self.params.scope == "class":
            kept = self._of_labels(labels)
        else:
            kept = np.broadcast_to(self.learnt["kept"], (len(images), grid.count))
        mask = grid.spread(kept.astype(np.bool_))
        return Protected(np.where(mask[..., None], images, np.uint8(FILL)), side={"mask": mask})

    def _grid(self, shape: Sequence[int]) -> Grid:
        """The patches of images (H, W, C); any image has four or more."""
        height, width = int(shape[0]), int(shape[1])
        patch = max(1, min(self.params.patch_px, height // 2, width // 2))
        return Grid(height, width, patch)

    def _of_labels(self, labels: Labels) -> npt.NDArray[Any]:
        kept = self.learnt["kept"]
        unknown = labels[(labels < 0) | (labels >= len(kept))]
        if len(unknown):
            raise ProtectionError(
                f"{self.name} learnt masks of {len(kept)} classes, but an image has label "
                f"{unknown[0]}: fit it on images of all classes."
            )
        return kept[labels]

    def _seen(self, images: Images, grid: Grid) -> BoolArray:
        """Masks by what the teacher sees in each image, bool (N, patches)."""
        rules = self._rules(grid, self.learnt["told"])
        kept = np.empty((len(images), grid.count), dtype=np.bool_)
        for low in range(0, len(images), _LANE):
            lane = slice(low, low + _LANE)
            scores = patch_scores(
                self._network(), images[lane], None, grid, self.params.attribution, self.device
            )
            kept[lane] = choose(whole(scores), rules)
        return kept

    def _network(self) -> Any:
        """The teacher on the device, rebuilt once."""
        if self._teacher is None:
            from veilset.models.teacher import load_teacher  # noqa: PLC0415

            height, width, channels = self.learnt["shape"].tolist()
            found = load_teacher(
                self.learnt, "teacher", self.params.teacher, {"width": self.params.teacher_width},
                (height, width, channels), int(self.learnt["classes"][0]),
            )  # fmt: skip
            self._teacher = found.to(self.device)
        return self._teacher


def _declared(base: Declaration, scope: str) -> Declaration:
    """What the masks of a scope tell besides the image."""
    if scope == "class":
        note = (
            "Every class has its own mask, so the mask's shape tells the label without a look at "
            "the pixels."
        )
        return replace(
            base, protects_queries=False, uses_labels=True, risk_notes=(*base.risk_notes, note)
        )
    if scope == "image":
        note = (
            "Every image has its own mask, whose shape depends on masked pixels: it tells where "
            "the teacher looked, and often the class that it saw."
        )
        return replace(base, risk_notes=(*base.risk_notes, note))
    return base


def _by_class(scores: FloatArray, labels: Labels, classes: int) -> FloatArray:
    """The template of each class, (classes, patches); of a class without images that of all."""
    overall = scores.mean(axis=0)
    return np.stack([
        scores[labels == label].mean(axis=0) if (labels == label).any() else overall
        for label in range(classes)
    ])  # fmt: skip
