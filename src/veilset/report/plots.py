"""Plots: privacy against utility and training curves, as SVG for the page, as PNG and CSV for DVC.

SVG bytes are the same for the same points: fixed hash salt, no date, text kept as text. Source:
ours.
"""

import csv
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from veilset.files import write_text
from veilset.report.model import Model, Verdict

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_INK, _MUTED, _GRID = "#1c2733", "#52606d", "#e3e8ed"
_COLOURS = {"pass": "#1b6e3c", "fail": "#a8261c", "undecided": "#8a5a00"}
_MARKERS = {"pass": "o", "fail": "X", "undecided": "D"}
_LEGEND = {"pass": "passes", "fail": "fails", "undecided": "undecided"}
_LINES = ("-", "--", "-.", ":")
_SERIES = ("#1f5f8b", "#a8501c", "#1b6e3c", "#6d3f8f", "#8a5a00", "#52606d")


@dataclass(frozen=True)
class Point:
    """One scheme in the plot of privacy against utility; fractions in 0..1.

    Attributes:
        scheme: Its name; `title` is its name for people.
        accuracy: Of the classifier in the declared way of use, with its interval.
        leakage: Success of the strongest attack, with its interval.
        attacker: The attacker template of that attack; `attack` is the attack's title.
        verdict: The worst verdict of the scheme.
    """

    scheme: str
    title: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    leakage: float
    leakage_low: float
    leakage_high: float
    attacker: str
    attack: str
    verdict: Verdict


def privacy_utility(points: Sequence[Point], baseline: float | None = None) -> str:
    """The plot as one `<svg>` element with title, description and a tooltip for each point.

    Args:
        points: One a scheme; may be empty.
        baseline: Accuracy on plain images in 0..1, drawn as a line.
    """
    texts = {f"point-{row}": _tooltip(point) for row, point in enumerate(points)}
    description = " ".join(texts.values()) or "No scheme has both figures."
    with _style("privacy-utility"):
        figure = _privacy_figure(points, baseline)
        return _svg(figure, "privacy-utility", "Leakage against accuracy", description, texts)


def privacy_utility_png(points: Sequence[Point], baseline: float | None = None) -> bytes:
    """The same plot as PNG bytes at 160 dots an inch, without metadata."""
    with _style("privacy-utility"):
        return _png(_privacy_figure(points, baseline))


def training(models: Sequence[Model], name: str = "training") -> str:
    """Validation accuracy by epoch, a line a model, as one `<svg>` element.

    Args:
        models: Models with at least one epoch.
        name: Prefix of the ids in the element; one of its own for each plot of a page.
    """
    last = [f"{item.name} ends at {_percent(_final(item))}." for item in models]
    with _style(name):
        figure = _training_figure(models)
        return _svg(figure, name, "Validation accuracy by epoch", " ".join(last), {})


def write_csvs(folder: Path, points: Sequence[Point], models: Sequence[Model]) -> None:
    """Writes `privacy_utility.csv` and `history.csv` into `folder` for `dvc plots`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(Point) if field.name not in ("title", "verdict")]
    names = [name for name in names if name != "attack"]
    rows: list[Mapping[str, Any]] = [asdict(point) for point in points]
    write_text(folder / "privacy_utility.csv", _csv(names, rows))
    epochs = [
        {"model": model.name, **epoch.model_dump()} for model in models for epoch in model.history
    ]
    columns = ["model", "epoch", "lr", "train_loss", "train_accuracy"]
    columns += ["validation_loss", "validation_accuracy"]
    write_text(folder / "history.csv", _csv(columns, epochs))


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """Our settings over matplotlib's defaults, so that a user's own file changes nothing."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rc("svg", hashsalt=f"veilset-{salt}", fonttype="none")
        mpl.rc("font", family="DejaVu Sans", size=10.5)
        mpl.rc("text", parse_math=False, color=_INK)
        mpl.rc("axes", edgecolor=_MUTED, labelcolor=_INK)
        mpl.rc("axes.spines", top=False, right=False)
        mpl.rc("xtick", color=_MUTED)
        mpl.rc("ytick", color=_MUTED)
        mpl.rc("path", simplify=False)
        yield


def _axes(size: tuple[float, float], xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    # Fixed margins in inches: half the time of a computed layout, and equal across plots.
    left, bottom, right, top = 0.62, 0.55, 0.1, 0.35
    width, height = size
    axes: Axes = figure.add_axes(
        (left / width, bottom / height,
         1 - (left + right) / width, 1 - (bottom + top) / height)
    )  # fmt: skip
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _privacy_figure(points: Sequence[Point], baseline: float | None) -> Figure:
    figure, axes = _axes(
        (5.7, 4.5), "Leakage: success of the strongest attack, %", "Accuracy on test images, %"
    )
    for row, point in enumerate(points):
        _draw_point(axes, point, f"point-{row}")
    _limits(axes, points, baseline)
    if baseline is not None:
        _draw_baseline(axes, baseline)
    _legend(axes, points)
    _place_labels(figure, axes, points)
    return figure


def _draw_baseline(axes: Axes, baseline: float) -> None:
    """A line with its label on the left, where the unprotected set's own point never is."""
    axes.axhline(100 * baseline, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"trained on plain images: {_percent(baseline)}", (-2, 100 * baseline), (0, 4),
        textcoords="offset points", color=_MUTED, fontsize=9.5,
    )  # fmt: skip


def _draw_point(axes: Axes, point: Point, gid: str) -> None:
    x, y = 100 * point.leakage, 100 * point.accuracy
    colour = _COLOURS[point.verdict]
    axes.errorbar(
        x, y,
        xerr=[[x - 100 * point.leakage_low], [100 * point.leakage_high - x]],
        yerr=[[y - 100 * point.accuracy_low], [100 * point.accuracy_high - y]],
        fmt="none", ecolor=colour, elinewidth=1.3, capsize=3, alpha=0.75,
    )  # fmt: skip
    marker = _MARKERS[point.verdict]
    axes.scatter([x], [y], s=80, marker=marker, color=colour, edgecolor="white", gid=gid, zorder=3)


def _limits(axes: Axes, points: Sequence[Point], baseline: float | None) -> None:
    axes.set_xlim(-3, 103)
    heights = [100 * point.accuracy_low for point in points]
    heights += [] if baseline is None else [100 * baseline]
    bottom = max(0.0, 10 * (min(heights, default=0) // 10) - 5)
    axes.set_ylim(bottom - 2 if bottom == 0 else bottom, 104)


def _legend(axes: Axes, points: Sequence[Point]) -> None:
    for verdict, marker in _MARKERS.items():
        if any(point.verdict == verdict for point in points):
            axes.scatter(
                [], [], s=60, marker=marker, color=_COLOURS[verdict], label=_LEGEND[verdict]
            )
    if points:
        axes.figure.legend(
            loc="upper left", ncols=3, frameon=False, handletextpad=0.2, borderpad=0.1
        )


def _place_labels(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Writes each title beside its point, where it covers least of what is already there."""
    dots = [axes.transData.transform((100 * p.leakage, 100 * p.accuracy)) for p in points]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in dots]
    taken += [box for p in points for box in _bars(axes, p)]
    taken += [text.get_window_extent() for text in axes.texts]
    inside = axes.get_window_extent()
    for point, dot in zip(points, dots, strict=True):
        width, height = 7.8 * len(point.title), 17.0
        spots = _spots(width, height)
        boxes = [Bbox.from_bounds(dot[0] + dx, dot[1] + dy, width, height) for dx, dy in spots]
        costs = [_cost(box, taken, inside) + 0.01 * row for row, box in enumerate(boxes)]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        _write(axes, point, spots[best], figure.dpi)


def _bars(axes: Axes, point: Point) -> list[Bbox]:
    """The error bars of a point as thin boxes, in dots."""
    place = axes.transData.transform
    x, y = 100 * point.leakage, 100 * point.accuracy
    ends = [
        ((100 * point.leakage_low, y), (100 * point.leakage_high, y)),
        ((x, 100 * point.accuracy_low), (x, 100 * point.accuracy_high)),
    ]
    return [Bbox([place(low) - 2, place(high) + 2]) for low, high in ends]


def _spots(width: float, height: float) -> list[tuple[float, float]]:
    """Lower left corners to try for a label, in dots from the point, the best liked first."""
    return [
        (10, 5), (-10 - width, 5), (10, -5 - height), (-10 - width, -5 - height),
        (-width / 2, 18), (-width / 2, -18 - height), (10, 24), (-10 - width, 24),
        (10, -24 - height), (-10 - width, -24 - height),
        (-width / 2, 40), (-width / 2, -40 - height),
    ]  # fmt: skip


def _cost(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Area that a label would cover of others, and ten times what would leave the plot."""
    common = Bbox.intersection(box, inside)
    outside = box.width * box.height - (common.width * common.height if common else 0)
    overlaps = [Bbox.intersection(box, other) for other in taken]
    return float(sum(item.width * item.height for item in overlaps if item) + 10 * outside)


def _write(axes: Axes, point: Point, spot: tuple[float, float], dpi: float) -> None:
    axes.annotate(
        point.title, (100 * point.leakage, 100 * point.accuracy),
        (spot[0] * 72 / dpi, (spot[1] + 2) * 72 / dpi), textcoords="offset points",
        fontsize=10.5, color=_INK, annotation_clip=False,
    )  # fmt: skip


def _training_figure(models: Sequence[Model]) -> Figure:
    figure, axes = _axes((5.7, 3.0), "Epoch", "Validation accuracy, %")
    for row, model in enumerate(models):
        kept = [item for item in model.history if item.validation_accuracy is not None]
        axes.plot(
            [item.epoch for item in kept],
            [100 * (item.validation_accuracy or 0) for item in kept],
            color=_SERIES[row % len(_SERIES)], linestyle=_LINES[row % len(_LINES)],
            marker="o" if len(kept) < 3 else None, label=model.name,
        )  # fmt: skip
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if models:
        axes.legend(loc="lower right", frameon=False, fontsize=9.5)
    return figure


def _final(model: Model) -> float:
    values = [item.validation_accuracy for item in model.history]
    return next((value for value in reversed(values) if value is not None), 0.0)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _tooltip(point: Point) -> str:
    return (
        f"{point.title}: accuracy {_percent(point.accuracy)} "
        f"({_percent(point.accuracy_low)} to {_percent(point.accuracy_high)}), "
        f"leakage {_percent(point.leakage)} "
        f"({_percent(point.leakage_low)} to {_percent(point.leakage_high)}) "
        f"by {point.attack}; {_LEGEND[point.verdict]}."
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def _svg(
    figure: Figure, name: str, title: str, description: str, tooltips: Mapping[str, str]
) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    svg = ET.fromstring(buffer.getvalue())  # noqa: S314  (our own output of a moment ago)
    _strip(svg)
    _explain(svg, tooltips)
    _own_ids(svg, name)
    _name(svg, name, title, description)
    return ET.tostring(svg, encoding="unicode")


def _strip(svg: ET.Element) -> None:
    """Drops metadata, and a style sheet that would reach the whole page around the plot."""
    for parent in list(svg.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    svg.set("style", "stroke-linejoin: round; stroke-linecap: butt")


def _explain(svg: ET.Element, tooltips: Mapping[str, str]) -> None:
    """Gives each named group its tooltip as `<title>`."""
    for element in svg.iter():
        text = tooltips.get(element.get("id", ""))
        if text is not None:
            ET.SubElement(element, f"{{{_SVG}}}title").text = text
            element[:] = [element[-1], *element[:-1]]


def _own_ids(svg: ET.Element, name: str) -> None:
    """Prefixes ids that are referred to and drops the others: several plots share one page."""
    used = set(re.findall(r"url\(#([^)]+)\)", ET.tostring(svg, encoding="unicode")))
    used |= {element.get(_XLINK, "")[1:] for element in svg.iter()}
    for element in svg.iter():
        found = element.attrib.pop("id", None)
        if found in used:
            element.set("id", f"{name}-{found}")
        for key, value in element.attrib.items():
            if key == _XLINK:
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))


def _name(svg: ET.Element, name: str, title: str, description: str) -> None:
    for attribute in ("width", "height", "version"):
        svg.attrib.pop(attribute, None)
    svg.set("role", "img")
    svg.set("aria-labelledby", f"{name}-title {name}-desc")
    for tag, text in (("desc", description), ("title", title)):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        svg.insert(0, element)
