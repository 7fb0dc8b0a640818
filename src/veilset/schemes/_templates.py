"""Masks of patches: how much each patch matters, what it tells of others, and which are kept.

Scores are integers before anything is chosen by them, so that equal scores give equal masks
whatever summed them up. All of it is ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from veilset.types import BoolArray, FloatArray, Images, IntArray, Labels

if TYPE_CHECKING:
    from torch import Tensor, nn

    from veilset.models.teacher import Teacher

Attribution = Literal["grad_cam", "integrated_gradients"]
Box = tuple[int, int, int, int]

UNIT: Final = 1 << 10
"""Scores and shares are whole numbers of this part of 1."""

FILL: Final = 128
"""The grey level of masked pixels: a constant, as a mean colour would tell of the image."""

CLUSTER: Final = 4
"""Most kept patches that touch by their sides: as many as a square of 2x2 has."""

_EXEMPT: Final = 20
_FINE_PATCHES: Final = 256
_LANE: Final = 256
_RIDGE: Final = 0.01
_STEPS: Final = 16
_MICRO_BATCH: Final = 32
_MICRO_PIXELS: Final = 1 << 20
_NEVER: Final = np.int64(1) << 50
_LATER: Final = np.int64(1) << 40


@dataclass(frozen=True)
class Grid:
    """An image in square patches from the upper left; those at the far edges may be smaller.

    Attributes:
        height: Of the image in pixels.
        width: Of the image in pixels.
        patch: Side of a patch in pixels.
    """

    height: int
    width: int
    patch: int

    @cached_property
    def rows(self) -> IntArray:
        """First row of each row of patches."""
        return np.arange(0, self.height, self.patch)

    @cached_property
    def columns(self) -> IntArray:
        """First column of each column of patches."""
        return np.arange(0, self.width, self.patch)

    @property
    def count(self) -> int:
        """How many patches there are, numbered row by row."""
        return len(self.rows) * len(self.columns)

    def sums(self, values: FloatArray) -> FloatArray:
        """Sums over each patch: (N, H, W) to (N, patches)."""
        down = np.add.reduceat(values, self.rows, axis=1)
        return np.add.reduceat(down, self.columns, axis=2).reshape(len(values), self.count)

    def spread(self, kept: BoolArray) -> npt.NDArray[np.uint8]:
        """Patches as pixels: bool (..., patches) to uint8 (..., H, W), 1 where kept."""
        grid = kept.reshape(*kept.shape[:-1], len(self.rows), len(self.columns))
        tall = np.repeat(grid, np.diff(self.rows, append=self.height), axis=-2)
        return np.repeat(tall, np.diff(self.columns, append=self.width), axis=-1).astype(np.uint8)

    def touched(self, boxes: Sequence[Box]) -> BoolArray:
        """Which patches have a pixel in a box (top, left, height, width), bool (patches,)."""
        inside = np.zeros((1, self.height, self.width))
        for top, left, height, width in boxes:
            inside[0, top : top + height, left : left + width] = 1
        found: BoolArray = self.sums(inside)[0] > 0
        return found

    @cached_property
    def neighbours(self) -> IntArray:
        """The patches at the four sides of each, (patches, 4); `count` where there is none."""
        numbers = np.full((len(self.rows) + 2, len(self.columns) + 2), self.count)
        numbers[1:-1, 1:-1] = np.arange(self.count).reshape(len(self.rows), len(self.columns))
        sides = (numbers[:-2, 1:-1], numbers[2:, 1:-1], numbers[1:-1, :-2], numbers[1:-1, 2:])
        return np.stack(sides, axis=-1).reshape(self.count, 4)

    def cells(self, images: Images) -> FloatArray:
        """What a patch shows, coarsely: the mean grey levels of its quarters.

        Of images with many patches only the mean of each.

        Returns:
            float64 (N, patches, 4 or 1).
        """
        lanes = [self._lane_cells(images[i : i + _LANE]) for i in range(0, len(images), _LANE)]
        return np.concatenate(lanes)

    def _lane_cells(self, images: Images) -> FloatArray:
        grey = images.mean(axis=3)
        if self.count > _FINE_PATCHES or self.patch == 1:
            sizes = self.sums(np.ones((1, self.height, self.width)))
            return (self.sums(grey) / sizes)[..., None]
        rows, columns = (
            _halved(starts, length)
            for starts, length in ((self.rows, self.height), (self.columns, self.width))
        )
        sums, sizes = (
            np.add.reduceat(np.add.reduceat(each, rows, axis=1), columns, axis=2)
            for each in (grey, np.ones_like(grey[:1]))
        )
        parts = (sums / sizes).reshape(len(images), len(self.rows), 2, len(self.columns), 2)
        return parts.transpose(0, 1, 3, 2, 4).reshape(len(images), self.count, 4)


def _halved(starts: IntArray, length: int) -> IntArray:
    """Where both halves of each patch begin; a side of one pixel counts for both halves."""
    sides = np.diff(starts, append=length)
    return np.stack([starts, starts + sides // 2], axis=1).ravel()


def kept_patches(keep: float, patches: int) -> int:
    """How many patches are kept: `keep`, as the decimal that is written, rounded half up.

    At least one, and at least one is masked.
    """
    exact = int(Fraction(repr(keep)) * patches + Fraction(1, 2))
    return min(max(exact, 1), patches - 1)


# ------------------------------------------------------------------------------------ attribution


def patch_scores(
    teacher: "Teacher", images: Images, labels: Labels | None, grid: Grid, method: Attribution,
    device: str,
) -> FloatArray:  # fmt: skip
    """How much each patch of each image mattered to a classifier.

    Images are taken in batches of one size, the last one filled up, and by one thread, so that the
    answer to an image does not depend on what else was asked.

    Args:
        teacher: A frozen classifier of pixels in 0..1, on the device.
        images: uint8 (N, H, W, C).
        labels: The class that is to be explained, int64 (N,); None for the one that it sees.
        grid: The patches of these images.
        method: `grad_cam`: Grad-CAM at the last block, enlarged bilinearly. `integrated_gradients`:
            the absolute attributions of 16 steps from an image that is masked whole.
        device: As torch names it.

    Returns:
        float64 (N, patches), each row with sum 1, or 0 where nothing mattered.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017, eq. 1 and 2; Sundararajan et al., Axiomatic
    Attribution for Deep Networks, ICML 2017, eq. 3; as captum computes them.
    """
    found = [
        grid.sums(part.cpu().numpy().astype(np.float64))
        for part in _explained(teacher, images, labels, method, device)
    ]
    scores = np.concatenate(found)[: len(images)]
    total = scores.sum(axis=1, keepdims=True)
    shares: FloatArray = np.divide(scores, total, out=np.zeros_like(scores), where=total > 0)
    return shares


def _explained(
    teacher: "Teacher", images: Images, labels: Labels | None, method: Attribution, device: str
) -> Iterator["Tensor"]:
    """Attributions (size, H, W), not negative, a batch at a time; the last ones of no image."""
    import torch  # noqa: PLC0415 - most schemes need none

    from veilset.models.device import Engine, kernels  # noqa: PLC0415
    from veilset.models.teacher import pixels_of  # noqa: PLC0415

    size = _micro_batch(images.shape, method)
    with kernels(Engine(torch.device(device), "fp32"), deterministic=True, threads=1):
        for low in range(0, len(images), size):
            part = images[low : low + size]
            filled = np.zeros((size, *images.shape[1:]), dtype=np.uint8)
            filled[: len(part)] = part
            pixels = pixels_of(filled, device)
            if labels is None:
                with torch.inference_mode():
                    target = teacher(pixels).argmax(dim=1)
                target = target.clone()
            else:
                target = torch.zeros(size, dtype=torch.int64, device=device)
                target[: len(part)] = torch.from_numpy(labels[low : low + size]).to(device)
            yield _ATTRIBUTIONS[method](teacher, pixels, target)


def _micro_batch(shape: tuple[int, ...], method: Attribution) -> int:
    pixels = shape[1] * shape[2] * (_STEPS if method == "integrated_gradients" else 1)
    return max(1, min(_MICRO_BATCH, _MICRO_PIXELS // pixels))


def _grad_cam(teacher: "Teacher", pixels: "Tensor", target: "Tensor") -> "Tensor":
    from captum.attr import LayerGradCam  # noqa: PLC0415 - a second to import
    from torch.nn import functional  # noqa: PLC0415

    explainer = LayerGradCam(teacher, _last_block(teacher.net))
    # The weights are frozen, so gradients have to start at the pixels.
    found = explainer.attribute(pixels.requires_grad_(), target=target, relu_attributions=True)
    size = (pixels.shape[2], pixels.shape[3])
    return functional.interpolate(found.detach(), size, mode="bilinear")[:, 0]


def _integrated_gradients(teacher: "Teacher", pixels: "Tensor", target: "Tensor") -> "Tensor":
    from captum.attr import IntegratedGradients  # noqa: PLC0415 - a second to import

    found = IntegratedGradients(teacher).attribute(
        pixels, baselines=FILL / 255, target=target, n_steps=_STEPS
    )
    return found.detach().abs().sum(dim=1)  # type: ignore[no-any-return]


_ATTRIBUTIONS: Final = {
    "grad_cam": _grad_cam,
    "integrated_gradients": _integrated_gradients,
}


def _last_block(net: "nn.Module") -> "nn.Module":
    """The layer whose activations Grad-CAM weights: the last one that still has places."""
    from veilset.models.small_cnn import SmallCnn  # noqa: PLC0415

    # Of the small network the activations before its last maximum, which halves the places.
    block: nn.Module = net.stages[-1][2] if isinstance(net, SmallCnn) else net.blocks[-1]  # type: ignore[index,assignment]
    return block


# -------------------------------------------------------------------------- what a patch tells


def redundancy(images: Images, grid: Grid) -> IntArray:
    """How much of each patch another patch tells: what an inpainter could make use of.

    A ridge regression predicts the cells of every patch from those of one; it is fitted on every
    second image and judged on the others.

    Args:
        images: uint8 (N, H, W, C), at least 4.
        grid: Their patches.

    Returns:
        int64 (patches, patches) in units of 1/1024: [p, j] is the share of the variance of patch j
        that patch p explains (R^2, not below 0); 0 for p = j, and where patch j never varies.

    Source: ours, after the requirement that masked images must not be inpainted (Li et al., arXiv
    2312.08975, abstract).
    """
    cells = grid.cells(images) / 255
    learnt, judged = cells[::2], cells[1::2]
    centre = learnt.mean(axis=0)
    learnt, judged = learnt - centre, judged - centre
    depth = cells.shape[2]
    answers, truth = learnt.reshape(len(learnt), -1), judged.reshape(len(judged), -1)
    spread = (judged**2).sum(axis=(0, 2))
    shares = np.zeros((grid.count, grid.count))
    for patch in range(grid.count):
        gram = learnt[:, patch].T @ learnt[:, patch]
        ridge = _RIDGE * np.trace(gram) / depth + 1e-9
        weights = np.linalg.solve(gram + ridge * np.eye(depth), learnt[:, patch].T @ answers)
        missed = ((truth - judged[:, patch] @ weights) ** 2).sum(axis=0)
        missed = missed.reshape(grid.count, depth).sum(axis=1)
        known = np.divide(missed, spread, out=np.ones(grid.count), where=spread > 0)
        shares[patch] = np.clip(1 - known, 0, 1)
    np.fill_diagonal(shares, 0)
    return np.rint(shares * UNIT).astype(np.int64)


def predictability(images: Images, judged: Images, kept: BoolArray, grid: Grid) -> float:
    """How much of what is masked a linear inpainter reads off what is kept: R^2, not below 0.

    Args:
        images: What it learns from, uint8 (N, H, W, C).
        judged: What it is judged by, uint8 (M, H, W, C).
        kept: One mask for all of them, bool (patches,).
        grid: The patches.

    Source: ours.
    """
    learnt, truth = (grid.cells(each) / 255 for each in (images, judged))
    centre = learnt.mean(axis=0)
    learnt, truth = learnt - centre, truth - centre
    seen, hidden = (learnt[:, part].reshape(len(learnt), -1) for part in (kept, ~kept))
    gram = seen.T @ seen
    ridge = _RIDGE * np.trace(gram) / len(gram) + 1e-9
    weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), seen.T @ hidden)
    wanted = truth[:, ~kept].reshape(len(truth), -1)
    missed = ((wanted - truth[:, kept].reshape(len(truth), -1) @ weights) ** 2).sum()
    spread = (wanted**2).sum()
    return float(max(0.0, 1 - missed / spread)) if spread > 0 else 0.0


# ------------------------------------------------------------------------------------ the choice


def whole(scores: FloatArray) -> IntArray:
    """Scores (N, patches) as shares of each row's largest, in units of 1/1024, int64."""
    largest = scores.max(axis=1, keepdims=True)
    shares = np.divide(scores, largest, out=np.zeros_like(scores), where=largest > 0)
    units: IntArray = np.rint(shares * UNIT).astype(np.int64)
    return units


@dataclass(frozen=True)
class Rules:
    """What decides which patches are kept, besides their scores.

    Attributes:
        grid: The patches.
        count: How many are kept.
        penalty: lambda in units of 1/1024.
        shares: What a patch tells of others, as `redundancy` returns it.
        hidden: Patches whose content must not be guessed, bool (patches,).
        allowed: Patches that may be kept, bool (patches,), at least `count`.
    """

    grid: Grid
    count: int
    penalty: int
    shares: IntArray
    hidden: BoolArray
    allowed: BoolArray


def choose(scores: IntArray, rules: Rules) -> BoolArray:
    """Keeps patches that matter and tell little of what is masked, one after another.

    Each time the patch with the largest A_p - lambda R_p is kept. A_p is its score. R_p is the mean
    share that it tells of the hidden patches that are still masked, relative to the largest such
    mean before anything was kept. A patch that would make a cluster of more than four patches waits
    until no other is left, unless its score is among the highest 5 %. Ties go to the first patch.

    Args:
        scores: int64 (N, patches), 0..1024.
        rules: The same for all images.

    Returns:
        bool (N, patches), `rules.count` true in each row.

    Source: ours.
    """
    grid, images = rules.grid, np.arange(len(scores))
    kept = np.zeros(scores.shape, dtype=np.bool_)
    cluster = np.full((len(scores), grid.count + 1), -1, dtype=np.int64)
    size = np.zeros((len(scores), grid.count), dtype=np.int64)
    told = np.broadcast_to(rules.shares[:, rules.hidden].sum(axis=1), scores.shape).copy()
    masked = np.full(len(scores), rules.hidden.sum(), dtype=np.int64)
    most = max(1, int(told.max(initial=0)))
    all_hidden = int(rules.hidden.sum())
    exempt = _highest(scores)
    for _ in range(rules.count):
        mean = UNIT * told * all_hidden // (np.maximum(masked, 1)[:, None] * most)
        value = UNIT * scores - rules.penalty * mean
        merged = _merged(cluster, size, grid)
        value -= np.where((merged > CLUSTER) & ~exempt, _LATER, 0)
        value -= np.where(kept | ~rules.allowed, _NEVER, 0)
        chosen = value.argmax(axis=1)
        for side in grid.neighbours[chosen].T:
            label = cluster[images, side]
            joins = (label >= 0)[:, None] & (cluster == label[:, None])
            cluster = np.where(joins, chosen[:, None], cluster)
        kept[images, chosen] = True
        cluster[images, chosen] = chosen
        size[images, chosen] = merged[images, chosen]
        told -= rules.shares.T[chosen] * rules.hidden[chosen][:, None]
        masked -= rules.hidden[chosen]
    return kept


def _merged(cluster: IntArray, size: IntArray, grid: Grid) -> IntArray:
    """How large the cluster would be that each patch makes or joins, int64 (N, patches)."""
    labels = cluster[:, grid.neighbours]
    merged = np.ones(labels.shape[:2], dtype=np.int64)
    for side in range(4):
        label = labels[..., side]
        new = label >= 0
        for earlier in range(side):
            new &= labels[..., earlier] != label
        merged += np.where(new, np.take_along_axis(size, np.maximum(label, 0), axis=1), 0)
    return merged


def _highest(scores: IntArray) -> BoolArray:
    """The highest 5 % of each row, rounded down; among equals the first."""
    best = np.zeros(scores.shape, dtype=np.bool_)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : scores.shape[1] // _EXEMPT]
    np.put_along_axis(best, order, True, axis=1)
    return best


def centre_first(grid: Grid) -> IntArray:
    """All patches, those nearest to the image's centre first, int64 (patches,)."""
    down, across = (
        2 * starts + np.diff(starts, append=length) - length
        for starts, length in ((grid.rows, grid.height), (grid.columns, grid.width))
    )
    return np.argsort((down[:, None] ** 2 + across**2).ravel(), kind="stable")
