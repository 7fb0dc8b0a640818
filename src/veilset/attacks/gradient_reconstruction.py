"""Reconstruction from gradients: in federated learning a server sees what an image would change.

A client computes the gradient of the CNN's loss on one protected image with its label, and sends
it. The attacker, who holds the CNN, protects images of her own, computes their gradients, and
learns the way back from gradients to plain images. Given steps, she also seeks the protected image
whose gradient points the same way. She looks for the plain original by whatever does best on
gradients of her own; nothing but the gradients of the released images is read, never their pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from veilset.attacks._kernel_map import fit_kernel
from veilset.attacks._network import NetworkAttack, held, normalised, on_device, pixels_of
from veilset.attacks._reidentified import quality, reidentify
from veilset.attacks.base import (
    Attacker,
    AttackParams,
    Case,
    Diverged,
    Knowledge,
    Network,
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
    Matcher,
    Pairs,
    Planes,
    View,
    fit_linear,
    judge_first,
    own_among_others,
    protect_as_attacker,
    split_attacker,
    tune,
)
from veilset.attacks.linkage import enough_images, join
from veilset.metrics.retrieval import draw_galleries, pick
from veilset.models.optimiser import Adam, falling
from veilset.schemes.base import Scheme
from veilset.types import Images, Labels

DECODED: Final = "decoded"
SOUGHT: Final = "sought"
LABEL: Final = "label"
GRADIENT: Final = "gradient"

_SAMPLES: Final = 24
"""So many of her images are sought by their gradients, to choose how to compare what is found."""

_SIDE: Final = 32
_SPREAD: Final = 0.2
_TOGETHER: Final = 32
_GRADIENTS: Final = 1 << 25
"""So many numbers of gradients are kept at once, several times over."""

_LARGEST: Final = 1 << 16
_ENOUGH: Final = 1500


class GradientReconstructionParams(AttackParams):
    """Parameters of `gradient_reconstruction`.

    Attributes:
        targets: At most so many released images are attacked.
        gallery: Size of the galleries; smaller where there are fewer candidates.
        auxiliary: At most so many of her images are used.
        tuning_share: Share of her images that chooses among the variants.
        versions: How many times she protects her own images, under fresh keys.
        steps: Steps of the search for an image by its gradient; 0 for no search, which is costly:
            thousands of gradients of second order for each image.
        starts: So many starts of the search for each image, of which the best is kept.
        learning_rate: Of the search in units of 0..1; it falls to nothing along a cosine.
        smoothness: Weight of the total variation in the search.
    """

    targets: int = Field(250, ge=2, le=100_000)
    gallery: int = Field(100, ge=2, le=10_000)
    auxiliary: int = Field(1000, ge=20, le=1_000_000)
    tuning_share: float = Field(0.3, gt=0, lt=1)
    versions: int = Field(2, ge=1, le=50)
    steps: int = Field(0, ge=0, le=1_000_000)
    starts: int = Field(4, ge=1, le=1000)
    learning_rate: float = Field(0.2, gt=0, le=10)
    smoothness: float = Field(0.1, ge=0, le=1000)

    FULL: ClassVar[Mapping[str, Any]] = {
        "auxiliary": 20_000, "versions": 4, "steps": 2000, "starts": 8,
    }  # fmt: skip


@dataclass(frozen=True)
class Server:
    """What the server sees of images: their gradients, and what it seeks by them.

    Attributes:
        network: The CNN.
        params: Of the search.
        start: What searches start from, float (H, W, C), 0..1.
        device: Where the CNN runs.
        seed: Of the starts.
        known: What was found by image and label: the control shows the same images again.
    """

    network: Network
    params: GradientReconstructionParams
    start: Tensor
    device: str
    seed: int
    known: dict[bytes, Images] = field(default_factory=dict)

    def decode(self, images: Images, labels: Labels) -> Batch:
        """Gradients as side information beside black images."""
        seen = gradients_of(self.network, images, labels, self.device)
        return Batch(np.zeros_like(images), {GRADIENT: seen})

    def seek(self, images: Images, labels: Labels) -> Images:
        """Images found by their gradients, uint8 (N, H, W, C)."""
        names = [
            image.tobytes() + int(label).to_bytes(8, "little", signed=True)
            for image, label in zip(images, labels, strict=True)
        ]
        new = [row for row, name in enumerate(names) if name not in self.known]
        if new:
            made = reconstruct(
                self.network, images[new], labels[new], self.params, self.start, self.device,
                self.seed,
            )  # fmt: skip
            self.known.update({names[row]: made[i] for i, row in enumerate(new)})
        return np.stack([self.known[name] for name in names])


@dataclass(frozen=True)
class FromGradients:
    """A view that reads the gradients of images, not their pixels.

    Attributes:
        view: Reads gradients, or what was found by them.
        server: Sees them.
        seeks: The view reads what was found.
    """

    view: View
    server: Server
    seeks: bool

    def __call__(self, batch: Batch) -> Planes:
        """Restorations of images with the side information `label`, grey levels 0..255."""
        labels = batch.side[LABEL]
        if self.seeks:
            return self.view(Batch(self.server.seek(batch.images, labels), {}))
        return self.view(self.server.decode(batch.images, labels))


@dataclass(frozen=True)
class FittedGradients:
    """The chosen view and measure, and the server."""

    matcher: Matcher
    server: Server


class GradientReconstruction(NetworkAttack[GradientReconstructionParams, FittedGradients]):
    """Restores images from the gradients that they cause, and singles their originals out.

    Source: a way back that is learnt from gradients of other images: Wu et al. (Learning to
    Invert), UAI 2023; ours is a kernel regression on directions of gradients. Search: Geiping et
    al., NeurIPS 2020, section 4 (cosine distance, total variation, signs of gradients), with the
    label known as in Zhao et al. (iDLG, 2020); the start from the mean image is ours. What the
    label achieves by itself stands in the details as `label_rank1`.
    """

    name = "gradient_reconstruction"
    title = "Reconstruction from gradients"
    risk: ClassVar[Risk] = "singling_out"
    attacker: ClassVar[Template] = "model_holder"
    knowledge: ClassVar[Knowledge] = "K5"
    cost = "seconds (quick), or hours (full, no GPU)"
    metric_words = "rank-1 of the image restored from its gradient in a gallery of {gallery}"
    deed = "are restored from one gradient so well that their original is singled out"
    oracle_floor = 0.5
    Parameters = GradientReconstructionParams

    def _lacks(self, case: Case, network: Network) -> str | None:
        del network
        return enough_images(case)

    def _fit(
        self, release: Release, attacker: Attacker, rng: np.random.Generator,
        progress: Progress | None, like: FittedGradients | None,
    ) -> FittedGradients:  # fmt: skip
        params, scheme = self.params, release.scheme
        if progress:
            progress("gradient_reconstruction: learning", 1, 2)
        fitting, tuned = split_attacker(attacker, params.tuning_share, params.auxiliary, rng)
        # Unprotected images are the same in every version.
        versions = params.versions if like is None else 1
        fit = protect_as_attacker(scheme, attacker, fitting, versions, rng)
        tuning = protect_as_attacker(scheme, attacker, tuned, 1, rng)[0]
        tuning = tuning.take(rng.permutation(len(tuning.plain)).astype(np.int64))
        start = torch.from_numpy(fit[0].batch.images.mean(axis=0) / 255.0).float()
        server = Server(
            held(attacker), params, start, attacker.device, int(rng.integers(2**31))
        )  # fmt: skip

        def decoded(pairs: Pairs) -> Pairs:
            seen = server.decode(pairs.batch.images, attacker.labels[pairs.rows])
            return replace(pairs, batch=seen)

        judge = own_among_others(len(tuning.plain), params.gallery, rng)
        learnt, checked = decoded(join(fit)), decoded(tuning)
        views: dict[str, View] = {DECODED: fit_kernel(learnt, checked, GRADIENT, _SIDE)}
        first = np.arange(len(fit[0].plain), dtype=np.int64)
        best = tune(views, learnt.take(first), checked, scheme, judge, by_view=True)
        if params.steps:
            other = self._tune_search(server, fit[0], tuning, attacker, rng, scheme)
            table = {**best.table, **other.table}
            best = replace(max(best, other, key=lambda each: each.score), table=table)
        seeks = best.view_name != DECODED
        return FittedGradients(
            replace(best, view=FromGradients(best.view, server, seeks)), server
        )  # fmt: skip

    def _measure(self, fitted: FittedGradients, case: Case, rng: np.random.Generator) -> Scores:
        released, size = case.release, self.params.gallery
        told = replace(released, side={LABEL: released.labels})
        scores = reidentify(fitted.matcher, replace(case, release=told), size, rng)
        details = dict(scores.details)
        if not len(case.truth.sources):
            details["label_rank1"] = _by_label(case, size, rng)
        if fitted.matcher.view_name != DECODED:
            made = fitted.server.seek(released.images, released.labels)
            found = quality(made, released.images, "")
            details |= {f"protected_{name}": value for name, value in found.items()}
        return replace(scores, details=details)

    def _chosen(self, fitted: FittedGradients) -> tuple[str, Mapping[str, float]]:
        return fitted.matcher.name, fitted.matcher.table

    def _tune_search(
        self, server: Server, fit: Pairs, tuning: Pairs, attacker: Attacker,
        rng: np.random.Generator, scheme: Scheme[Any],
    ) -> Matcher:  # fmt: skip
        """How best to compare what is found by gradients, learnt on a sample of her images."""
        sample = tuning.take(np.arange(min(_SAMPLES, len(tuning.plain)), dtype=np.int64))
        made = server.seek(sample.batch.images, attacker.labels[sample.rows])
        error = float(np.sqrt(((made - sample.batch.images.astype(np.float64)) ** 2).mean()))
        like, checked = (_disturbed(pairs, error, rng) for pairs in (fit, tuning))
        views: dict[str, View] = {
            SOUGHT: _as_it_is, f"{SOUGHT}, linear": fit_linear(like, checked, _SIDE, bits=False)
        }  # fmt: skip
        return tune(
            views, like, replace(sample, batch=Batch(made, {})), scheme,
            _first_among(len(sample.plain), len(tuning.plain), self.params.gallery, rng),
            candidates=tuning.plain, by_view=True,
        )  # fmt: skip


# --- What the server sees ---------------------------------------------------------------------


def gradients_of(
    network: Network, images: Images, labels: Labels, device: str
) -> npt.NDArray[np.float32]:
    """Directions of the gradients of single images by some weights that tell much at little cost.

    Those are scales, shifts and fully connected layers near the network's end (measured).

    Args:
        network: The CNN, in evaluation mode.
        images: uint8 (N, H, W, C).
        labels: Sent along, int64 (N,).
        device: As torch names it.

    Returns:
        float32 (N, D), in the order of the layers; the gradient of each tensor has length 1.

    Raises:
        Diverged: A gradient is not finite.
    """
    made = []
    with on_device(network, device) as place:
        gradients = _gradients(network, light=True)
        for low in range(0, len(images), _TOGETHER):
            shown = pixels_of(images[low : low + _TOGETHER], place)
            wanted = torch.from_numpy(labels[low : low + _TOGETHER]).to(place)
            parts = [functional.normalize(part, dim=1) for part in gradients(shown, wanted)]
            made.append(torch.cat(parts, dim=1).cpu().numpy())
    found = np.concatenate(made)
    if not np.isfinite(found).all():
        raise Diverged("a gradient is not a number")
    return found


def _light(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of weights from the end on, scales, shifts and fully connected ones first."""
    names = [name for name in reversed(list(weights)) if weights[name].numel() <= _LARGEST]
    names.sort(key=lambda name: weights[name].ndim > 2)
    sizes = np.cumsum([weights[name].numel() for name in names])
    return {name: weights[name] for name in names[: int(np.searchsorted(sizes, _ENOUGH)) + 1]}


def _gradients(network: Network, *, light: bool) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Gradients of single images (N, C, H, W), 0..1, with labels: by all weights or the light ones.

    What it returns has a row an image for each tensor of weights, and is differentiable.
    """
    # Imported here, because it may take seconds.
    from torch.func import functional_call, grad, vmap  # noqa: PLC0415

    module = network.module
    weights = {name: value.detach() for name, value in module.named_parameters()}
    moved = _light(weights) if light else weights
    fixed = {**weights, **dict(module.named_buffers())}

    def loss(known: dict[str, Tensor], pixels: Tensor, label: Tensor) -> Tensor:
        inputs = normalised(network, pixels[None])
        logits = functional_call(module, {**fixed, **known}, (inputs,))
        return functional.cross_entropy(logits, label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    return lambda pixels, labels: [part.flatten(1) for part in each(moved, pixels, labels).values()]


# --- The search ---------------------------------------------------------------------------------


def reconstruct(
    network: Network, images: Images, labels: Labels, params: GradientReconstructionParams,
    start: Tensor, device: str, seed: int,
) -> Images:  # fmt: skip
    """Seeks images by the gradients that they cause, each alone, with the CNN in evaluation mode.

    The images are read to compute the gradients that a client would send, and for nothing else.

    Args:
        network: The CNN.
        images: uint8 (N, H, W, C).
        labels: Sent along, int64 (N,).
        params: Steps and rates.
        start: Mean of images of this kind, float (H, W, C), 0..1.
        device: As torch names it.
        seed: Of the starts.

    Returns:
        uint8 (N, H, W, C), the best of all starts by the attacker's own loss.

    Raises:
        Diverged: A loss is not finite.

    Source: Geiping et al., NeurIPS 2020, section 4.
    """
    size = sum(parameter.numel() for parameter in network.module.parameters())
    together = max(1, _GRADIENTS // (size * params.starts))
    generator = torch.Generator().manual_seed(seed)
    made = []
    with on_device(network, device) as place:
        parts = _gradients(network, light=False)

        def gradients(pixels: Tensor, labels: Tensor) -> Tensor:
            return torch.cat(parts(pixels, labels), dim=1)

        for low in range(0, len(images), together):
            shown = pixels_of(images[low : low + together], place)
            wanted = torch.from_numpy(labels[low : low + together]).to(place)
            goal = gradients(shown, wanted).detach().repeat_interleave(params.starts, 0)
            noise = torch.randn((len(goal), *shown.shape[1:]), generator=generator)
            first = (start.permute(2, 0, 1) + _SPREAD * noise).clamp(0, 1).to(place)
            wanted = wanted.repeat_interleave(params.starts)
            found, loss = _sought(gradients, goal, wanted, first, params)
            best = loss.view(-1, params.starts).argmin(dim=1)
            rows = torch.arange(len(best), device=place) * params.starts + best
            made.append(torch.round(found[rows] * 255).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(made).astype(np.uint8)


def _sought(
    gradients: Callable[[Tensor, Tensor], Tensor], goal: Tensor, labels: Tensor, first: Tensor,
    params: GradientReconstructionParams,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Images (N, C, H, W) whose gradients point as the goals do, and the loss of each."""
    pixels = nn.Parameter(first.clone())
    optimiser = Adam(nn.ParameterList([pixels]))
    best, least = first.clone(), torch.full((len(first),), torch.inf, device=first.device)
    for step in range(params.steps):
        apart = 1 - functional.cosine_similarity(gradients(pixels, labels), goal, dim=1)
        loss = apart + params.smoothness * roughness(pixels)
        better = loss.detach() < least
        best[better], least[better] = pixels.detach()[better], loss.detach()[better]
        optimiser.forget_gradients()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            if pixels.grad is not None:
                pixels.grad.sign_()
            optimiser.step(falling(params.learning_rate, step, params.steps))
            pixels.clamp_(0, 1)
    if not bool(torch.isfinite(least).all()):
        raise Diverged("a gradient is not a number")
    return best, least


def roughness(pixels: Tensor) -> Tensor:
    """Total variation of images (N, C, H, W): mean absolute differences of neighbours, (N,)."""
    down = (pixels[:, :, 1:] - pixels[:, :, :-1]).abs().mean(dim=(1, 2, 3))
    right = (pixels[..., 1:] - pixels[..., :-1]).abs().mean(dim=(1, 2, 3))
    return down + right


def _by_label(case: Case, size: int, rng: np.random.Generator) -> float:
    """Rank-1 of who knows nothing of an image but the label that is sent along."""
    labels = case.release.labels
    apart = (labels[:, None] != labels).astype(np.float64)
    frame, _, _ = score_candidates(apart, case, np.arange(len(labels)), size, rng)
    return float(frame["success"].mean())


def _first_among(targets: int, candidates: int, size: int, rng: np.random.Generator) -> Judge:
    """Judges distances (targets, candidates), where the first candidates are the targets' own."""
    own = np.arange(targets, dtype=np.int64)
    galleries = draw_galleries(own, candidates, size, rng, own)
    return lambda distances: judge_first(pick(distances, galleries))


def _as_it_is(batch: Batch) -> Planes:
    """What was found; unlike a released image it is never searched for exact copies."""
    return np.asarray(batch.images, dtype=np.float64)


def _disturbed(pairs: Pairs, error: float, rng: np.random.Generator) -> Pairs:
    """Pairs whose protected images are as far off as what is found by gradients."""
    images = pairs.batch.images
    noisy = np.clip(np.rint(images + rng.normal(0, error, images.shape)), 0, 255)
    return replace(pairs, batch=Batch(noisy.astype(np.uint8), {}))
