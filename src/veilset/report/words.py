"""Figures and terms as people read them. Source: ours."""

import re
from collections.abc import Mapping
from typing import Any

NONE = "not available"

TEMPLATES: Mapping[str, tuple[str, str]] = {
    "outside_trainer": (
        "Outside trainer",
        "a party that is given the protected images in order to train on them",
    ),
    "public_release": (
        "Public release",
        "anybody at all, once the protected images are published",
    ),
}
"""Who may receive protected images, by name: title, and who that is."""

MODEL_HOLDER = (
    "Holder of the CNN",
    "a party that is given a CNN trained on protected images, or sees it being trained",
)
"""Who may receive a trained CNN."""

VERDICTS: Mapping[str, str] = {"pass": "Pass", "fail": "Fail", "undecided": "Undecided"}
STATUS: Mapping[str, str] = {
    "weak_oracle": "the attack hardly works on unprotected images either, so its failure here "
    "shows nothing",
    "diverged": "the attack's training diverged",
    "few_targets": "too few targets for a narrow interval",
}
_UNITLESS = ("ssim", "psnr", "auc", "correlation", "lpips", "epsilon", "mse", "distance")


def is_share(metric: str | None) -> bool:
    """Whether a metric of this name is a share of cases, to be shown in per cent."""
    return not any(word in (metric or "") for word in _UNITLESS)


def figure(value: float | None, metric: str | None = None) -> str:
    """A figure: a share as per cent with one decimal, others with three."""
    if value is None:
        return NONE
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.3f}"


def interval(low: float | None, high: float | None, metric: str | None = None) -> str:
    """An interval in the unit of its figure; empty where there is none."""
    if low is None or high is None:
        return ""
    if is_share(metric):
        return f"{100 * low:.1f} to {100 * high:.1f} %"
    return f"{low:.3f} to {high:.3f}"


def points(value: float | None) -> str:
    """Percentage points with one decimal and a true minus sign."""
    return NONE if value is None else f"{value:.1f}".replace("-", "\N{MINUS SIGN}")


def ratio(value: float | None) -> str:
    """How many times as much: two significant digits."""
    return NONE if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def number(value: float | None) -> str:
    """A count with thin spaces between thousands, or a number with at most three decimals."""
    if value is None:
        return NONE
    text = f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}"
    return text.replace(",", "\N{NARROW NO-BREAK SPACE}")


def seconds(value: float | None) -> str:
    """A duration in the unit that reads best."""
    if value is None:
        return NONE
    if value < 100:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 6000 else f"{value / 3600:.1f} h"


def plain(value: Any) -> str:
    """Any value of a settings or facts file on one line, long digests cut to 16 digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in sorted(value.items())) or "none"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,}", value):
        return value[:16] + "\N{HORIZONTAL ELLIPSIS}"
    return NONE if value is None else str(value)


def label(name: str) -> str:
    """A name from a file as words: `train_seconds` becomes `train seconds`."""
    return name.replace("_", " ")


def count(number_of: int, one: str, many: str = "") -> str:
    """`1 image`, `2 images`."""
    return f"{number_of:,} {one if number_of == 1 else many or one + 's'}"


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def template_title(name: str) -> str:
    """An attacker template's name for people."""
    if name == "model_holder":
        return MODEL_HOLDER[0]
    return TEMPLATES[name][0] if name in TEMPLATES else label(name).capitalize()
