"""The sizes that a release is attacked with: they run, over several seeds, on a short training."""

from typing import Any

import pytest
from attack_cases import digit_case, pattern_case

from veilset.attacks.base import Case
from veilset.attacks.registry import ATTACKS, attack_names, make_attack
from veilset.schemes.registry import make_scheme

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHORT = {
    "targets": 60, "auxiliary": 150, "pairs": 10, "seed_bits": 8, "other_bits": 6,
    "vector_bits": 10, "steps": 4, "oracle_steps": 2, "rounds": 2, "repeats": 2,
}  # fmt: skip
MADE_FOR: dict[str, tuple[str, dict[str, Any]]] = {
    "denoising": ("masked_image", {}),
    "fold_and_neighbour": ("negative_positive", {}),
    "jigsaw": ("etc_encryption", {"block_px": 8}),
    "known_plaintext": ("learnable_encryption", {}),
    "unmixing": ("pixel_block_mixing", {"block_height": 8, "block_width": 4}),
}
ELSEWHERE = {
    "attribute_inference": "needs attributes",
    "feature_reconstruction": "needs a CNN",
    "gradient_reconstruction": "needs a CNN",
    "inpainting": "needs a scheme that learnt",
    "membership": "needs a CNN",
    "model_inversion": "needs a CNN",
    "version_linkage": "needs another release",
    "white_box": "needs a scheme that learnt",
}
"""Attacks with long tests of their own."""


def full_case(name: str) -> Case:
    kind, values = MADE_FOR.get(name, ("visualmixer", {"region_px": 8, "n": 8}))
    scheme = make_scheme(kind, values, "test")
    return (
        pattern_case(scheme, persons=30)
        if name == "recognition"
        else digit_case(scheme, targets=60, auxiliary=150)
    )


@pytest.mark.parametrize("name", [name for name in attack_names() if name not in ELSEWHERE])
def test_the_full_size_runs_over_two_seeds(name: str) -> None:
    known = ATTACKS.find(name, "test").Parameters.model_fields
    short = {key: value for key, value in SHORT.items() if key in known}
    result = make_attack(name, short, "test", "full").run(full_case(name))
    assert result.applicable, result.reason
    assert result.value is not None
    assert result.low <= result.value <= result.high
    assert result.details["repeats"] == 2
    assert result.method == "hierarchical_bootstrap"
