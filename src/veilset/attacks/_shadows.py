"""Shadow models, and what their answers tell of whether an image was trained on.

An attacker who wonders whether a CNN was trained on an image trains CNNs of her own, half of them
with that image and half without, and compares. All that she uses of an answer is its confidence:
the logit of the probability of the right class, which is about normally distributed over models.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import log_expit, logsumexp

from veilset.attacks._network import answers
from veilset.attacks.base import Attacker, Diverged, Network, Progress
from veilset.attacks.features import protect_once
from veilset.errors import TrainingError
from veilset.schemes.base import Scheme
from veilset.types import BoolArray, FloatArray, Images, IntArray, Labels

PROTECTED: Final = "protected"
PLAIN: Final = "plain"
RELEASED: Final = "released"
"""What the CNN is asked with: an image under her own key, the plain one, the released one."""

ONCE: Final = " once"
"""The same kind of question with a single view: more of them help only where she knows them."""

SHIFTS: Final = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))
"""Plain images are shown again, moved by so many pixels down and right."""

_OWN_SPREAD: Final = 32
"""With fewer models on a side, all images share one spread (Carlini et al., section VI: 64)."""

_LEAST_SPREAD: Final = 1e-6
_CORRECTIONS: Final = (0.3, 0.6, 1.0)
_WHISPER: Final = 1e-7


# --- Questions and replies --------------------------------------------------------------------


@dataclass(frozen=True)
class Questions:
    """What every model is asked.

    Attributes:
        views: By kind, the candidates as they are shown, each uint8 (N, H, W, C).
        labels: Of the candidates, int64 (N,).
        crowd: By kind, images that no model was trained on, each uint8 (Z, H, W, C).
        crowd_labels: int64 (Z,).
    """

    views: Mapping[str, Sequence[Images]]
    labels: Labels
    crowd: Mapping[str, Sequence[Images]]
    crowd_labels: Labels


@dataclass(frozen=True)
class Replies:
    """Confidences of one model, or of several stacked along a first axis.

    Attributes:
        candidates: float64 (..., V, N) for V views of N candidates.
        crowd: float64 (..., V, Z).
    """

    candidates: FloatArray
    crowd: FloatArray

    def take(self, models: IntArray) -> "Replies":
        """Those of these models only."""
        return Replies(self.candidates[models], self.crowd[models])


def confidence(logits: npt.NDArray[np.float32], labels: Labels) -> FloatArray:
    """log(p / (1 - p)) of the probability p of the right class, without overflow.

    Args:
        logits: float32 (N, K), K at least 2.
        labels: int64 (N,), 0..K-1.

    Returns:
        float64 (N,).

    Source: Carlini et al., S&P 2022, section V-B (the stable form).
    """
    rows = np.arange(len(logits))
    others = logits.astype(np.float64)
    right = others[rows, labels].copy()
    others[rows, labels] = -np.inf
    return np.asarray(right - logsumexp(others, axis=1))


def shifted(images: Images, down: int, right: int) -> Images:
    """Images moved by some pixels; the edge is repeated."""
    height, width = images.shape[1:3]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return np.asarray(images[:, rows[:, None], columns[None, :]])


def questions_for(
    scheme: Scheme[Any], attacker: Attacker, images: Images, labels: Labels, crowd: IntArray,
    count: int, rng: np.random.Generator,
) -> Questions:  # fmt: skip
    """Shows candidates and other images both plain and protected under keys of her own.

    Args:
        scheme: As it was released; one that learns protects with what its owner learnt, which
            makes this attacker stronger than one without the learnt transform.
        attacker: Her key, and the images that make the crowd.
        images: Candidates, plain, uint8 (N, H, W, C).
        labels: int64 (N,).
        crowd: Which of her images make the crowd.
        count: Views of each kind, 1..9.
        rng: Source of ids.

    Raises:
        ProtectionError: The scheme cannot protect these images.
    """
    others, named = attacker.images[crowd], attacker.labels[crowd]

    def kinds(shown: Images, told: Labels) -> dict[str, list[Images]]:
        plain = [shifted(shown, *shift) for shift in SHIFTS[:count]]
        # Where no key changes the outcome, only a shift makes a view differ from the others.
        sources = [shown] * count if scheme.declares.keyed else plain
        made = [
            protect_once(scheme, attacker, view, told, f"question {number}", rng).images
            for number, view in enumerate(sources)
        ]
        return {PROTECTED: made, PLAIN: plain}

    views, crowded = kinds(images, labels), kinds(others, named)
    return Questions(views, labels, crowded | {RELEASED: crowded[PROTECTED][:1]}, named)


def ask(
    network: Network, questions: Questions, released: Images, device: str
) -> dict[str, Replies]:
    """The model's replies by kind of question.

    Args:
        network: The model.
        questions: What it is asked.
        released: The candidates as the model's owner protected them, whether she trained on them
            or not, uint8 (N, H, W, C).
        device: As torch names it.

    Raises:
        Diverged: A reply is not finite.
    """
    views = {**questions.views, RELEASED: [released]}
    known: dict[bytes, FloatArray] = {}
    found: dict[str, Replies] = {}

    def reply(view: Images, labels: Labels) -> FloatArray:
        # Some kinds show the same images: all of them where nothing is protected.
        name = hashlib.sha256(view.tobytes()).digest()
        if name not in known:
            known[name] = confidence(answers(network, view, device), labels)
        return known[name]

    for kind, shown in views.items():
        candidates = np.stack([reply(view, questions.labels) for view in shown])
        crowd = np.stack([reply(view, questions.crowd_labels) for view in questions.crowd[kind]])
        found[kind] = Replies(candidates, crowd)
        if kind != RELEASED:
            found[kind + ONCE] = Replies(candidates[:1], crowd[:1])
    return found


# --- Shadow models ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Shadows:
    """What shadow models replied.

    Attributes:
        replies: By kind of question, stacked over S models.
        member: Which candidates each was trained on, bool (S, N); model 2k + 1 was trained on those
            that model 2k was not, so every candidate is in half of the models.
    """

    replies: Mapping[str, Replies]
    member: BoolArray

    def without(self, model: int) -> IntArray:
        """All models but this one and its counterpart: each candidate is in half of them."""
        rows = np.arange(len(self.member), dtype=np.int64)
        return np.asarray(rows[rows // 2 != model // 2])


def halves(labels: Labels, rng: np.random.Generator) -> BoolArray:
    """Draws half of the images of each class, to within one image.

    Args:
        labels: int64 (N,).
        rng: Source of the draw.

    Returns:
        bool (N,).
    """
    _, member, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((rng.random(len(labels)), member))
    first = np.cumsum(sizes) - sizes
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.arange(len(labels)) - first[member[order]]
    odd = rng.integers(0, 2, len(sizes))
    return np.asarray((place + odd[member]) % 2 == 0)


def train_shadows(
    retrain: Callable[[Images, Labels, int], Network], scheme: Scheme[Any], attacker: Attacker,
    images: Images, questions: Questions, count: int, rng: np.random.Generator, *,
    progress: Progress | None = None,
) -> Shadows:  # fmt: skip
    """Trains shadow models on halves of the candidates, and asks them.

    Args:
        retrain: The recipe.
        scheme: As it was released.
        attacker: Her key; each shadow protects under a fresh one derived from it, also what it is
            not trained on, as the release's owner does.
        images: The candidates, plain, uint8 (N, H, W, C).
        questions: What they are asked.
        count: How many, even.
        rng: Source of halves, ids and seeds.
        progress: Called after each model, or None.

    Raises:
        ProtectionError: The scheme cannot protect half of the candidates.
        Diverged: A training diverged.

    Source: Carlini et al., S&P 2022, section V; halves in pairs so that each image is in as many
    models as it is not.
    """
    labels, member, replies = questions.labels, [], []
    for number, trained in enumerate(_members(labels, count, rng)):
        released = np.empty_like(images)
        for part in (trained, ~trained):
            label = f"shadow {number}"
            own = protect_once(scheme, attacker, images[part], labels[part], label, rng)
            released[part] = own.images
        try:
            model = retrain(released[trained], labels[trained], int(rng.integers(2**31)))
        except TrainingError as error:
            raise Diverged(f"shadow model {number + 1}: {error}") from None
        member.append(trained)
        replies.append(ask(model, questions, released, attacker.device))
        if progress:
            progress("membership: shadow models", number + 1, count)
    stacked = {
        kind: Replies(
            np.stack([each[kind].candidates for each in replies]),
            np.stack([each[kind].crowd for each in replies]),
        )
        for kind in replies[0]
    }  # fmt: skip
    return Shadows(stacked, np.stack(member))


def _members(labels: Labels, count: int, rng: np.random.Generator) -> Iterator[BoolArray]:
    for _ in range(count // 2):
        half = halves(labels, rng)
        yield half
        yield ~half


# --- From replies to scores -------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """What is usual for each candidate and view, with and without training on it.

    Attributes:
        inside: Mean confidence of models trained on it, (V, N); `outside`, of the others.
        inside_spread: Standard deviations, (V, N) or (V, 1); `outside_spread` likewise.
        inside_chance: Mean probability of the right class, (V, N); `outside_chance` likewise.
        crowd_chance: That of images that none was trained on, (V, Z).
    """

    inside: FloatArray
    outside: FloatArray
    inside_spread: FloatArray
    outside_spread: FloatArray
    inside_chance: FloatArray
    outside_chance: FloatArray
    crowd_chance: FloatArray


def reference(replies: Replies, member: BoolArray) -> Reference:
    """Means and spreads over shadow models.

    Args:
        replies: Of S models.
        member: Which candidates each was trained on, bool (S, N): of each candidate at least two
            that were and two that were not.
    """
    seen, chances = replies.candidates, _probability(replies.candidates)
    means, spreads, mean_chances = [], [], []
    for side in (member, ~member):
        weights = side[:, None, :].astype(np.float64)
        count = weights.sum(axis=0)
        mean = (seen * weights).sum(axis=0) / count
        squares, free = ((seen - mean) ** 2 * weights).sum(axis=0), count - 1
        if count.min() < _OWN_SPREAD:
            squares, free = (part.sum(axis=1, keepdims=True) for part in (squares, free))
        means.append(mean)
        spreads.append(np.sqrt(squares / free) + _LEAST_SPREAD)
        mean_chances.append((chances * weights).sum(axis=0) / count)
    return Reference(
        means[0], means[1], spreads[0], spreads[1], mean_chances[0], mean_chances[1],
        _probability(replies.crowd).mean(axis=0),
    )  # fmt: skip


Method = Callable[[Replies, Reference], FloatArray]
"""Scores candidates by one model's replies, float64 (N,): the higher, the likelier trained on."""


def loss_threshold(replies: Replies, usual: Reference) -> FloatArray:
    """The confidence itself. Source: Yeom et al., CSF 2018, section 3.2, averaged over views."""
    del usual
    return np.asarray(replies.candidates.mean(axis=0))


def lira_online(replies: Replies, usual: Reference) -> FloatArray:
    """Log likelihood ratio of two Gaussians. Source: Carlini et al., S&P 2022, algorithm 1."""
    inside = (replies.candidates - usual.inside) / usual.inside_spread
    outside = (replies.candidates - usual.outside) / usual.outside_spread
    gain = outside**2 / 2 + np.log(usual.outside_spread)
    loss = inside**2 / 2 + np.log(usual.inside_spread)
    return np.asarray((gain - loss).mean(axis=0))


def lira_offline(replies: Replies, usual: Reference) -> FloatArray:
    """Deviations above what models without the image reply. Source: the same, section V-C."""
    above = (replies.candidates - usual.outside) / usual.outside_spread
    return np.asarray(above.mean(axis=0))


def rmia_online(replies: Replies, usual: Reference) -> FloatArray:
    """How many others an image outdoes in likelihood ratio, known from models of both kinds.

    Source: Zarifzadeh et al., ICML 2024, equations 3 to 5 with gamma = 1.
    """
    return _outdone(replies, (usual.inside_chance + usual.outside_chance) / 2, usual.crowd_chance)


@dataclass(frozen=True)
class RmiaOffline:
    """The same from models without the image alone, whose probabilities are corrected.

    Attributes:
        slope: The paper's a, 0..1: 1 for none.

    Source: Zarifzadeh et al., ICML 2024, appendix B.2: ((1 + a) P + 1 - a) / 2.
    """

    slope: float

    def __call__(self, replies: Replies, usual: Reference) -> FloatArray:
        """float64 (N,)."""
        own, crowd = (
            ((1 + self.slope) * each + 1 - self.slope) / 2
            for each in (usual.outside_chance, usual.crowd_chance)
        )
        return _outdone(replies, own, crowd)


METHODS: Final[Mapping[str, Method]] = {
    "lira online": lira_online,
    "rmia online": rmia_online,
    "lira offline": lira_offline,
    **{f"rmia offline {slope:g}": RmiaOffline(slope) for slope in _CORRECTIONS},
    "loss threshold": loss_threshold,
}
"""All methods by name; of equals the earlier one is preferred."""


def family(method: str) -> str:
    """The name of a method without its parameter."""
    return method.rstrip("0123456789.").rstrip()


def _outdone(replies: Replies, own: FloatArray, crowd: FloatArray) -> FloatArray:
    """Share of the crowd with a smaller ratio; ties at either end are broken by the ratio."""
    mine = log_expit(replies.candidates) - np.log(np.maximum(own, 1e-300))
    theirs = np.sort(log_expit(replies.crowd) - np.log(np.maximum(crowd, 1e-300)), axis=1)
    shares = [
        np.searchsorted(ranked, ratio, side="right") / len(ranked)
        for ratio, ranked in zip(mine, theirs, strict=True)
    ]
    return np.asarray(np.mean(shares, axis=0) + _WHISPER * np.clip(mine.mean(axis=0), -100, 100))


def _probability(confidences: FloatArray) -> FloatArray:
    return np.asarray(np.exp(log_expit(confidences)))


@dataclass(frozen=True)
class Trial:
    """Scores of each shadow model in turn as the target of the others.

    Attributes:
        scores: Of all candidates and models, float64 (S * N,).
        member: Whether the model was trained on the candidate, bool (S * N,).
    """

    scores: FloatArray
    member: BoolArray


def trials(shadows: Shadows, kind: str) -> dict[str, Trial]:
    """Tries every method on shadow models, one kind of question."""
    replies = shadows.replies[kind]
    found: dict[str, list[FloatArray]] = {name: [] for name in METHODS}
    for model in range(len(shadows.member)):
        others = shadows.without(model)
        usual = reference(replies.take(others), shadows.member[others])
        one = Replies(replies.candidates[model], replies.crowd[model])
        for name, method in METHODS.items():
            found[name].append(method(one, usual))
    truth = shadows.member.ravel()
    return {name: Trial(np.concatenate(each), truth) for name, each in found.items()}
