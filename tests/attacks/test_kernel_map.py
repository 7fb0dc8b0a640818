"""Kernel regression restores what no line does, from side information alone."""

from dataclasses import replace

import numpy as np
import pytest

from veilset.attacks import _kernel_map as module
from veilset.attacks._kernel_map import fit_kernel
from veilset.attacks.features import Batch, Pairs, fit_linear


def pairs(count: int, seed: int, side: int = 16) -> Pairs:
    """Plain images of four grey quarters, told by sines of the grey levels."""
    rng = np.random.default_rng(seed)
    levels = rng.random((count, 2, 2, 1))
    plain = np.rint(levels.repeat(side // 2, 1).repeat(side // 2, 2) * 255).astype(np.uint8)
    angles = 2 * np.pi * levels.reshape(count, 4)
    told = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
    images = rng.integers(0, 256, plain.shape).astype(np.uint8)
    return Pairs(Batch(images, {"told": told}), plain, np.arange(count))


def error(view: object, unseen: Pairs) -> float:
    made = view(unseen.batch)  # type: ignore[operator]
    assert made.shape == unseen.plain.shape and made.min() >= 0 and made.max() <= 255
    return float(np.abs(made - unseen.plain).mean())


def test_it_bends_where_no_line_fits() -> None:
    fit, tuning, unseen = pairs(600, 0), pairs(100, 1), pairs(100, 2)
    kernel = error(fit_kernel(fit, tuning, "told", 16), unseen)
    linear = error(fit_linear(fit, tuning, 16, bits=False), unseen)
    assert kernel < 0.6 * linear


def test_only_the_named_column_is_read() -> None:
    fit, tuning, unseen = pairs(60, 0), pairs(20, 1), pairs(20, 2)
    view = fit_kernel(fit, tuning, "told", 16)
    other = Batch(np.zeros_like(unseen.batch.images), {**unseen.batch.side, "more": np.ones(20)})
    np.testing.assert_array_equal(view(other), view(unseen.batch))


def test_restorations_are_no_larger_than_asked() -> None:
    view = fit_kernel(pairs(60, 0), pairs(20, 1), "told", 8)
    assert view(pairs(5, 2).batch).shape == (5, 8, 8, 1)


def test_side_information_that_never_changes_gives_the_mean() -> None:
    fit, tuning = pairs(60, 0), pairs(20, 1)
    same = Batch(fit.batch.images, {"told": np.ones((60, 3))})
    view = fit_kernel(replace(fit, batch=same), replace(tuning, batch=same.take(slice(0, 20))),
                      "told", 16)  # fmt: skip
    mean = fit.plain.mean(axis=0)
    np.testing.assert_allclose(view(same), np.broadcast_to(mean, fit.plain.shape), atol=0.5)


def test_large_side_information_is_cut_to_fewer_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NUMBERS", 240)
    assert len(fit_kernel(pairs(60, 0), pairs(20, 1), "told", 16).known) == 30
