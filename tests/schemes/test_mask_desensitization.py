"""Mask desensitization: exactly the share that was asked for is kept, and nothing else survives."""

import json
import pickle
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from veilset.errors import ProtectionError, SettingsError
from veilset.keys import Key
from veilset.models.teacher import Recipe, Teacher, pixels_of, train_teacher
from veilset.schemes._templates import (
    CLUSTER,
    FILL,
    UNIT,
    Grid,
    Rules,
    choose,
    kept_patches,
    patch_scores,
    predictability,
    redundancy,
    whole,
)
from veilset.schemes.fitted import Fitted, Lessons
from veilset.schemes.mask_desensitization import MaskDesensitization
from veilset.schemes.registry import make_scheme

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))
SMALL = {"teacher_width": 4, "epochs": 4}


def noise(count: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def ids_of(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 16), dtype=np.uint8)


def planted(
    count: int, shape: tuple[int, int, int], place: tuple[int, int], seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose only sign of the class is the texture of a square of 8 px."""
    rng = np.random.default_rng(seed)
    images = rng.integers(90, 160, (count, *shape), dtype=np.uint8)
    labels = rng.integers(0, 2, count)
    stripes = np.where(np.indices((8, 8)) % 4 < 2, 0, 255).astype(np.uint8)
    top, left = place
    images[:, top : top + 8, left : left + 8] = stripes[labels][..., None]
    return images, labels.astype(np.int64)


def lessons(shape: tuple[int, int, int], place: tuple[int, int], count: int = 160) -> Lessons:
    return Lessons(*planted(count, shape, place), *planted(60, shape, place, 1), 2)


def by_hand(shape: tuple[int, int, int], kept: np.ndarray, **values: Any) -> MaskDesensitization:
    """The scheme with a mask that nobody had to learn."""
    made = MaskDesensitization(**values)
    arrays = {"shape": np.array(shape), "kept": kept.astype(np.uint8)}
    return made.with_fitted(Fitted(made.name, made.version, made.params.canonical(), arrays))


@pytest.fixture(scope="module", params=["set", "class", "image"])
def fitted(request: pytest.FixtureRequest) -> MaskDesensitization:
    scheme = MaskDesensitization(scope=request.param, patch_px=6, **SMALL)
    return scheme.with_fitted(scheme.fit(lessons((16, 20, 3), (0, 12))))


SHAPES = st.tuples(st.integers(8, 64), st.integers(8, 64), st.sampled_from([1, 3]))
KEEPS = st.one_of(st.floats(0.001, 0.999), st.integers(1, 99).map(lambda hundred: hundred / 100))


# ------------------------------------------------------------------------------ what is released


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(3, 24), KEEPS, st.integers(0, 99))
def test_exactly_the_share_is_kept_and_all_else_is_grey(
    shape: tuple[int, int, int], patch: int, keep: float, seed: int
) -> None:
    side = min(patch, shape[0] // 2, shape[1] // 2)
    across, grid = -(-shape[1] // side), Grid(*shape[:2], side)
    assert grid.count == -(-shape[0] // side) * across
    exact = (Decimal(repr(keep)) * grid.count).to_integral_value(ROUND_HALF_UP)
    scheme = MaskDesensitization(selection="random", patch_px=patch, keep=keep, seed=seed)
    images, labels = noise(9, shape, seed), np.arange(9) % 2
    scheme = scheme.with_fitted(scheme.fit(Lessons(images, labels, images[:3], labels[:3], 2)))
    kept = scheme.learnt["kept"]
    assert kept.sum() == min(max(int(exact), 1), grid.count - 1)
    assert scheme.facts()["kept_patches"] == kept.sum()
    made = scheme.protect(images, labels, ids_of(9), KEY)
    mask = made.side["mask"]
    assert mask.shape == images.shape[:3] and mask.dtype == np.uint8
    for y in range(shape[0]):
        for x in range(shape[1]):
            assert (mask[:, y, x] == kept[y // side * across + x // side]).all()
    assert (made.images[mask == 1] == images[mask == 1]).all()
    assert (made.images[mask == 0] == FILL).all()


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.integers(3, 16), st.integers(0, 10**6))
def test_masked_pixels_leave_no_trace(shape: tuple[int, int, int], patch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = Grid(*shape[:2], min(patch, shape[0] // 2, shape[1] // 2))
    scheme = by_hand(shape, rng.random(grid.count) < 0.5, patch_px=patch)
    images, others = noise(3, shape, seed), noise(3, shape, seed + 1)
    labels = np.zeros(3, np.int64)
    mask = scheme.protect(images, labels, ids_of(3), KEY).side["mask"]
    others[mask == 1] = images[mask == 1]
    one = scheme.protect(images, labels, ids_of(3), KEY)
    two = scheme.protect(others, labels + 1, ids_of(3), OTHER)
    assert (one.images == two.images).all()
    assert (one.side["mask"] == two.side["mask"]).all()


def test_images_of_512_px_are_masked_by_the_patch() -> None:
    kept = np.arange(32 * 19) % 3 == 0
    scheme = by_hand((512, 300, 3), kept, patch_px=16)
    images = noise(2, (512, 300, 3))
    made = scheme.protect(images, np.zeros(2, np.int64), ids_of(2), KEY)
    expected = np.kron(kept.reshape(32, 19), np.ones((16, 16)))[:, :300]
    assert (made.side["mask"] == expected).all()
    assert (made.images == np.where(expected[..., None] == 1, images, 128)).all()


def test_bytes_are_the_same_for_any_batch_and_order(fitted: MaskDesensitization) -> None:
    images, labels = planted(70, (16, 20, 3), (8, 0), seed=3)
    images[::3] = noise(24, (16, 20, 3))
    ids = ids_of(70)
    once = fitted.protect(images, labels, ids, KEY)
    order = np.random.default_rng(0).permutation(70)
    fresh = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    for size in (1, 9, 32, 70):
        for low in range(0, 70, size):
            rows = order[low : low + size]
            made = fresh.protect(images[rows], labels[rows], ids[rows], OTHER)
            assert (made.images == once.images[rows]).all()
            assert (made.side["mask"] == once.side["mask"][rows]).all()
    shares = once.side["mask"].reshape(70, -1).sum(axis=1)
    assert (shares == shares[0]).all() or fitted.params.scope != "set"
    patches = once.side["mask"][:, ::6, ::6].sum(axis=(1, 2))
    assert (patches == kept_patches(0.25, 12)).all()


# --------------------------------------------------------------------------------------- scopes


def test_each_scope_declares_what_its_mask_tells(fitted: MaskDesensitization) -> None:
    images, labels = planted(40, (16, 20, 3), (0, 12), seed=3)
    ids = ids_of(40)
    one = fitted.protect(images, labels, ids, KEY)
    two = fitted.protect(images, 1 - labels, ids, KEY)
    scope, declares = fitted.params.scope, fitted.declares
    assert declares.uses_labels == (scope == "class")
    assert declares.protects_queries == (scope != "class")
    assert (one.images != two.images).any() == declares.uses_labels or scope == "class"
    notes = " ".join(declares.risk_notes)
    assert ("tells the label" in notes) == (scope == "class")
    assert ("where the teacher looked" in notes) == (scope == "image")
    assert MaskDesensitization.declares.protects_queries


def test_the_mask_of_a_class_is_that_of_its_label() -> None:
    kept = np.array([[1, 0, 0, 0], [0, 0, 1, 1]])
    scheme = by_hand((8, 8, 1), kept, scope="class")
    images, labels = noise(6, (8, 8, 1)), np.array([0, 1, 1, 0, 0, 1])
    mask = scheme.protect(images, labels, ids_of(6), KEY).side["mask"]
    for row, label in zip(mask, labels, strict=True):
        assert row[::4, ::4].ravel().tolist() == kept[label].tolist()
    for odd in (-1, 2):
        with pytest.raises(ProtectionError, match=f"masks of 2 classes.*label {odd}"):
            scheme.protect(images, np.full(6, odd), ids_of(6), KEY)


@pytest.mark.parametrize("scope", ["set", "class"])
def test_templates_are_means_of_what_mattered_for_the_true_class(scope: Any) -> None:
    taught = lessons((16, 24, 1), (8, 8))
    scheme = MaskDesensitization(scope=scope, patch_px=4, penalty=0.0, keep=0.4, **SMALL)
    teacher = train_teacher(
        taught.images, taught.labels, 2, Recipe("small_cnn", {"width": 4}, epochs=4)
    )
    grid = Grid(16, 24, 4)
    scores = patch_scores(teacher, taught.images, taught.labels, grid, "grad_cam", "cpu")
    groups = [taught.labels >= 0] if scope == "set" else [taught.labels == k for k in (0, 1)]
    every, none = np.ones(24, dtype=np.bool_), np.zeros((24, 24), dtype=np.int64)
    means = whole(np.stack([scores[rows].mean(axis=0) for rows in groups]))
    expected = choose(means, Rules(grid, 10, 0, none, every, every))
    assert (scheme.fit(taught).arrays["kept"] == np.squeeze(expected)).all()
    assert scope == "set" or (expected[0] != expected[1]).any()


# ------------------------------------------------------------------------------- what was learnt


@pytest.mark.parametrize("method", ["grad_cam", "integrated_gradients"])
@pytest.mark.parametrize(("shape", "place"), [((24, 32, 1), (8, 16)), ((32, 24, 3), (0, 8))])
def test_attribution_finds_the_planted_square(
    method: Any, shape: tuple[int, int, int], place: tuple[int, int]
) -> None:
    scheme = MaskDesensitization(
        patch_px=8, keep=0.05, penalty=0.0, attribution=method, epochs=6, teacher_width=8
    )
    fitted = scheme.fit(lessons(shape, place, 240))
    kept = fitted.arrays["kept"].reshape(shape[0] // 8, shape[1] // 8)
    assert np.argwhere(kept).tolist() == [[place[0] // 8, place[1] // 8]]
    assert fitted.facts["teacher_accuracy"] > 0.95
    assert "teacher_accuracy" not in json.dumps(scheme.with_fitted(fitted).record())


@pytest.mark.parametrize("teacher", ["small_cnn", "resnet20"])
def test_grad_cam_is_the_papers(teacher: str) -> None:
    images, labels = planted(40, (16, 24, 1), (8, 8))
    known = train_teacher(images, labels, 2, Recipe(teacher, {"width": 4}, 1))
    grid = Grid(16, 24, 5)
    found = patch_scores(known, images, labels, grid, "grad_cam", "cpu")
    for row in range(5):
        cam = _cam(known, images[row : row + 1], int(labels[row]))
        sums = np.array([[cam[y : y + 5, x : x + 5].sum() for x in range(0, 24, 5)]
                         for y in range(0, 16, 5)]).ravel()  # fmt: skip
        assert found[row] == pytest.approx(sums / max(sums.sum(), 1e-30), abs=1e-5)


def _cam(teacher: Teacher, image: np.ndarray, label: int) -> np.ndarray:
    """Grad-CAM step by step: the network is cut open behind its last block."""
    net, x = teacher.net, (pixels_of(image) - teacher.mean) / teacher.std
    if hasattr(net, "stages"):
        maps = net.stages[-1][:3](net.stages[:-1](x)).detach().requires_grad_()
        logits = net.head(net.stages[-1][3](maps).mean(dim=(2, 3)))
    else:
        maps = net.blocks(torch.relu(net.norm(net.stem(x)))).detach().requires_grad_()
        logits = net.head(maps.mean(dim=(2, 3)))
    (slopes,) = torch.autograd.grad(logits[0, label], maps)
    cam = torch.relu((slopes.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1, keepdim=True))
    size = (image.shape[1], image.shape[2])
    cam = torch.nn.functional.interpolate(cam, size, mode="bilinear", align_corners=False)
    return cam[0, 0].detach().numpy().astype(np.float64)


def test_what_is_learnt_repeats_and_depends_on_the_images() -> None:
    scheme = MaskDesensitization(scope="image", patch_px=8, teacher_width=4, epochs=1)
    taught = lessons((16, 16, 1), (0, 8), 40)
    assert scheme.fit(taught).hash == scheme.fit(taught).hash != ""
    assert scheme.fit(lessons((16, 16, 1), (8, 8), 40)).hash != scheme.fit(taught).hash


def test_ablations_that_look_at_no_image() -> None:
    taught = Lessons(noise(20, (32, 32, 1)), np.arange(20) % 2, noise(5, (32, 32, 1)),
                     np.zeros(5, np.int64), 2)  # fmt: skip
    centre = (
        MaskDesensitization(selection="centre", patch_px=4).fit(taught).arrays["kept"].reshape(8, 8)
    )
    assert (centre == np.pad(np.ones((4, 4)), 2)).all()
    drawn = [
        MaskDesensitization(selection="random", seed=seed, patch_px=4).fit(taught).arrays["kept"]
        for seed in (0, 1, 0)
    ]
    assert (drawn[0] == drawn[2]).all() and (drawn[0] != drawn[1]).any()
    for selection in ("centre", "random"):
        clear = MaskDesensitization(
            selection=selection, patch_px=4, sensitive_boxes=((9, 9, 10, 10),), hard_sensitive=True
        )
        kept = clear.fit(taught).arrays["kept"].reshape(8, 8)
        assert kept.sum() == 16 and not kept[2:5, 2:5].any()


# ------------------------------------------------------------------------------ inpaintability


def test_redundancy_is_the_ridge_regressions_held_out_share() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (60, 10, 13, 3)).astype(np.uint8)
    images[:, :5, 5:10] = images[:, :5, :5] // 2 + images[:, 5:, :5] // 4
    grid = Grid(10, 13, 5)
    found = redundancy(images, grid)
    assert found.shape == (6, 6) and not np.diag(found).any()
    cells = np.stack([_quarters(image.mean(axis=2) / 255, 5) for image in images])
    centre = cells[::2].mean(axis=0)
    for p in range(6):
        x, judged = (cells[i::2, p] - centre[p] for i in (0, 1))
        alpha = 0.01 * (x**2).sum() / 4 + 1e-9
        for j in range(6):
            if j == p:
                continue
            y, truth = (cells[i::2, j] - centre[j] for i in (0, 1))
            guess = Ridge(alpha, fit_intercept=False).fit(x, y).predict(judged)
            share = max(0.0, 1 - ((truth - guess) ** 2).sum() / (truth**2).sum())
            assert abs(found[p, j] - UNIT * share) <= 1
    assert found[0, 1] > UNIT // 3 > UNIT // 10 > found[4, 5]


def _quarters(grey: np.ndarray, patch: int) -> np.ndarray:
    rows = []
    for y in range(0, grey.shape[0], patch):
        for x in range(0, grey.shape[1], patch):
            part = grey[y : y + patch, x : x + patch]
            h, w = part.shape[0] // 2, part.shape[1] // 2
            rows.append(
                [q.mean() for q in (part[:h, :w], part[:h, w:], part[h:, :w], part[h:, w:])]
            )
    return np.array(rows)


def test_the_penalty_avoids_a_patch_that_tells_the_masked_rest() -> None:
    # Patch 0 is copied, with some noise, into all others but patch 5, which stands alone.
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (200, 24, 24, 1), dtype=np.uint8)
    source = rng.integers(0, 180, (200, 8, 8, 1), dtype=np.uint8)
    for place in range(9):
        y, x = place // 3 * 8, place % 3 * 8
        if place != 5:
            images[:, y : y + 8, x : x + 8] += source
    grid = Grid(24, 24, 8)
    told = redundancy(images, grid)
    scores = np.full((1, 9), UNIT // 2)
    scores[0, [0, 5]] = UNIT, UNIT - 1
    every = np.ones(9, dtype=np.bool_)
    chosen = {
        penalty: choose(scores, Rules(grid, 1, penalty, told, every, every))[0]
        for penalty in (0, UNIT)
    }
    assert chosen[0].nonzero()[0].tolist() == [0]
    assert chosen[UNIT].nonzero()[0].tolist() == [5]
    easy, hard = (
        predictability(images[:100], images[100:], kept, grid) for kept in chosen.values()
    )
    assert easy > 0.5 and hard < 0.05


def test_the_penalty_counts_what_is_sensitive_only() -> None:
    told = np.zeros((4, 4), dtype=np.int64)
    told[0, 3], told[1, 2] = 900, 800  # patch 0 tells patch 3, patch 1 tells patch 2
    grid, every = Grid(8, 8, 4), np.ones(4, dtype=np.bool_)
    scores = np.array([[1000, 1000, 10, 10]])
    for box, kept in (((4, 4, 4, 4), 1), ((4, 0, 4, 4), 0)):
        rules = Rules(grid, 1, UNIT, told, grid.touched([box]), every)
        assert choose(scores, rules)[0].nonzero()[0].tolist() == [kept]


@settings(deadline=None, max_examples=25)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(3, 9), st.data())
def test_sensitive_boxes_are_never_kept(
    height: int, width: int, patch: int, data: st.DataObject
) -> None:
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    tall = data.draw(st.integers(1, height - top))
    wide = data.draw(st.integers(1, width - left))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    grid = Grid(height, width, patch)
    inside = grid.touched([(top, left, tall, wide)])
    pixels = grid.spread(inside)
    assert pixels[top : top + tall, left : left + wide].all()
    for number in inside.nonzero()[0]:
        part = grid.spread(np.arange(grid.count) == number).astype(bool)
        assert part[top : top + tall, left : left + wide].any()
    count = min(int((~inside).sum()), max(1, grid.count // 3))
    if count == 0:
        return
    told = rng.integers(0, UNIT, (grid.count, grid.count))
    scores = rng.integers(0, UNIT + 1, (4, grid.count))
    kept = choose(scores, Rules(grid, count, UNIT, told, inside, ~inside))
    assert (kept.sum(axis=1) == count).all()
    assert not (grid.spread(kept)[:, top : top + tall, left : left + wide]).any()


# ------------------------------------------------------------------------------------ the choice


def _slow_choice(
    scores: list[int], told: np.ndarray, hidden: np.ndarray, allowed: np.ndarray, penalty: int,
    count: int, grid: Grid,
) -> set[int]:  # fmt: skip
    """The greedy choice as it is described, patch by patch."""
    across, patches = len(grid.columns), range(grid.count)
    ranked = sorted(patches, key=lambda p: (-scores[p], p))
    exempt = set(ranked[: grid.count // 20])
    most = max(1, *(sum(int(told[p, j]) for j in patches if hidden[j]) for p in patches))
    kept: set[int] = set()

    def cluster(p: int) -> int:
        seen, front = {p}, [p]
        while front:
            y, x = divmod(front.pop(), across)
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                q = v * across + u
                if 0 <= u < across and q in kept and q not in seen:
                    seen.add(q)
                    front.append(q)
        return len(seen)

    for _ in range(count):
        masked = [j for j in patches if hidden[j] and j not in kept]
        best = max(
            (p for p in patches if allowed[p] and p not in kept),
            key=lambda p: (
                cluster(p) <= CLUSTER or p in exempt,
                UNIT * scores[p] - penalty * (
                    UNIT * sum(int(told[p, j]) for j in masked) * int(hidden.sum())
                    // (max(1, len(masked)) * most)
                ),
                -p,
            ),
        )  # fmt: skip
        kept.add(best)
    return kept


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 3 * UNIT), st.integers(0, 10**6))
def test_the_choice_is_the_greedy_one(down: int, across: int, penalty: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = Grid(4 * down, 4 * across - 1, 4)
    patches = grid.count
    told = rng.integers(0, UNIT + 1, (patches, patches)) * (1 - np.eye(patches, dtype=np.int64))
    hidden = rng.random(patches) < 0.7
    hidden[0] = True
    allowed = rng.random(patches) < 0.8
    allowed[:2] = True
    count = int(rng.integers(1, allowed.sum() + 1))
    scores = rng.integers(0, rng.choice([3, UNIT + 1]), (3, patches))
    kept = choose(scores, Rules(grid, count, penalty, told, hidden, allowed))
    for row, found in zip(scores, kept, strict=True):
        expected = _slow_choice(row.tolist(), told, hidden, allowed, penalty, count, grid)
        assert set(found.nonzero()[0].tolist()) == expected


def test_scores_are_shares_of_the_largest() -> None:
    found = whole(np.array([[0.1, 0.4, 0.2], [0.0, 0.0, 0.0]]))
    assert found.tolist() == [[256, 1024, 512], [0, 0, 0]]


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"selection": "random", "scope": "image"}, "scope has to be set, not image"),
        ({"selection": "centre", "scope": "class"}, "looks at no image"),
        ({"hard_sensitive": True}, "needs sensitive_boxes"),
        ({"sensitive_boxes": [[0, 0, 0, 4]]}, r"sensitive_boxes\.0\.2 is 0"),
        ({"keep": 1.0}, "t.keep is 1.0"),
        ({"patch_px": 0}, "t.patch_px is 0"),
        ({"attribution": "guess"}, "t.attribution is 'guess'"),
        ({"teacher": "vgg"}, "t.teacher is 'vgg'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(values: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        make_scheme("mask_desensitization", values, "t")


@pytest.mark.parametrize(
    ("values", "count", "words"),
    [
        ({"sensitive_boxes": [[8, 8, 9, 4]]}, 20, r"box \(8, 8, 9, 4\) reaches beyond.*16 x 16"),
        (
            {"sensitive_boxes": [[0, 0, 15, 15]], "hard_sensitive": True}, 20,
            "1 of 4 patches, but only 0 lie outside",
        ),
        ({}, 7, "needs 8 images to learn from, not 7"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_refused(values: Any, count: int, words: str) -> None:
    images, labels = planted(count, (16, 16, 1), (0, 0))
    with pytest.raises(ProtectionError, match=words):
        MaskDesensitization(**values).fit(Lessons(images, labels, images, labels, 2))


def test_too_many_patches_and_other_shapes_are_refused() -> None:
    images, labels = noise(9, (33, 32, 1)), np.arange(9) % 2
    with pytest.raises(ProtectionError, match="into 1056 patches"):
        MaskDesensitization(patch_px=1).fit(Lessons(images, labels, images, labels, 2))
    scheme = by_hand((8, 8, 1), np.array([1, 0, 0, 0]))
    for shape in ((8, 9, 1), (8, 8, 3)):
        with pytest.raises(ProtectionError, match=r"learnt from images \(8, 8, 1\).*fit it on"):
            scheme.protect(noise(9, shape), labels, ids_of(9), KEY)
    with pytest.raises(ProtectionError, match="fit it first"):
        MaskDesensitization().protect(noise(9, (8, 8, 1)), labels, ids_of(9), KEY)
