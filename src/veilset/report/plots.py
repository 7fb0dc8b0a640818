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
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from veilset.files import write_text
from veilset.report import words
from veilset.report.model import Model, Verdict

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_INK, _MUTED, _GRID = "#1c2733", "#52606d", "#e3e8ed"
_COLOURS = {"pass": "#1b6e3c", "fail": "#a8261c", "undecided": "#8a5a00"}
_MARKERS = {"pass": "o", "fail": "X", "undecided": "D"}
_LEGEND = {"pass": "passes", "fail": "fails", "undecided": "undecided"}
_LINES = ("-", "--", "-.", ":")
_SERIES = ("#1f5f8b", "#a8501c", "#1b6e3c", "#6d3f8f", "#8a5a00", "#52606d")

# The plot of privacy against utility, in inches: a panel, what is around it, a line of a label.
_PANEL_WIDTH, _PANEL_HEIGHT, _BETWEEN = 4.3, 2.5, 0.6
_LEFT, _BOTTOM, _TOP, _RIGHT = 0.62, 0.55, 0.62, 0.35
_LINE, _LETTER = 0.17, 0.082
_EDGE, _LEADER_END = 103.0, 106.0
_READOUT = 28.0  # points of room below the plot


@dataclass(frozen=True)
class Point:
    """One scheme and receiver in the plot of privacy against utility; fractions in 0..1.

    Attributes:
        scheme: Its name; `title` is its name for people.
        accuracy: Of the classifier in the declared way of use, with its interval.
        leakage: Success of the strongest attack that counts for this receiver, with its interval.
        attacker: The receiver, as an attacker template; `attack` is the attack's title.
        verdict: The scheme's verdict for this receiver.
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


def privacy_utility(
    points: Sequence[Point],
    baseline: float | None = None,
    links: Mapping[str, str] | None = None,
) -> str:
    """The plot as one `<svg>` element with title, description and a tooltip for each point.

    Each receiver has a panel of its own. Where points are links, a line below the panels says the
    figures of the one that is pointed at or reached by keyboard, by the page's style alone.

    Args:
        points: One a scheme and receiver; may be empty.
        baseline: Accuracy on plain images in 0..1, drawn as a line.
        links: By scheme, the id of the element of the page that tells more.
    """
    texts = {f"point-{row}": _tooltip(point) for row, point in enumerate(points)}
    description = " ".join(texts.values()) or "No scheme has both figures."
    with _style("privacy-utility"):
        figure = _privacy_figure(points, baseline)
        text = _svg(figure, "privacy-utility", "Leakage against accuracy", description, texts)
    found = {
        row: links[point.scheme] for row, point in enumerate(points)
        if links and point.scheme in links
    }  # fmt: skip
    return _linked(text, points, found) if found else text


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


def _figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, box: tuple[float, float, float, float], ylabel: str) -> Axes:
    """Axes at (left, bottom, width, height) in inches.

    Fixed places take half the time of a computed layout, and are equal across plots.
    """
    width, height = figure.get_size_inches()
    axes: Axes = figure.add_axes(
        (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    )  # fmt: skip
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_ylabel(ylabel)
    return axes


def _privacy_figure(points: Sequence[Point], baseline: float | None) -> Figure:
    """A panel for each receiver, one below the other, on the same scales."""
    receivers = list(dict.fromkeys(point.attacker for point in points)) or [""]
    numbered = list(enumerate(points))
    panels = [[pair for pair in numbered if pair[1].attacker == name] for name in receivers]
    # A panel is never too low for its column of labels.
    height = max([_PANEL_HEIGHT, *(_LINE * (len(panel) + 1) for panel in panels)])
    longest = max((len(point.title) for point in points), default=0)
    figure = _figure((
        _LEFT + _PANEL_WIDTH + _RIGHT + _LETTER * longest,
        _BOTTOM + _TOP + len(panels) * height + (len(panels) - 1) * _BETWEEN,
    ))  # fmt: skip
    limits = _limits(points, baseline)
    for row, (name, panel) in enumerate(zip(receivers, panels, strict=True)):
        bottom = _BOTTOM + (len(panels) - 1 - row) * (height + _BETWEEN)
        axes = _axes(figure, (_LEFT, bottom, _PANEL_WIDTH, height), "Accuracy on test images, %")
        axes.set_xlim(-3, _EDGE)
        axes.set_ylim(*limits)
        axes.set_title(words.template_title(name), loc="left", fontsize=10.5, fontweight="bold")
        _draw_panel(axes, panel, _LINE * (limits[1] - limits[0]) / height)
        if baseline is not None:
            _draw_baseline(axes, baseline)
    figure.axes[-1].set_xlabel("Leakage: success of the strongest attack, %")
    _legend(figure, points)
    return figure


def _draw_panel(axes: Axes, panel: Sequence[tuple[int, Point]], line: float) -> None:
    """Points, and their titles in a column on the right; `line` is the height of a title."""
    dots = [(100 * point.leakage, 100 * point.accuracy) for _, point in panel]
    low, high = axes.get_ylim()
    places = spread([y for _, y in dots], line, low + line / 2, high - line / 2)
    places = _uncross(dots, places)
    for (row, point), (x, y), place in zip(panel, dots, places, strict=True):
        axes.plot([x, _LEADER_END], [y, place], color=_MUTED, linewidth=0.6, clip_on=False)
        _draw_point(axes, point, f"point-{row}")
        axes.annotate(
            point.title, (_LEADER_END + 1, place), va="center", fontsize=9.5, color=_INK,
            annotation_clip=False,
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels: as near as can be to those wanted, and apart.

    Args:
        wanted: Where each label would be best.
        gap: The least distance of two labels; less where there is no room for it.
        low: The lowest place.
        high: The highest place.

    Returns:
        One place for each, in the order of `wanted`; who wants a higher place has one.

    Source: least squares under an order by pooling adjacent violators (Ayer et al., Annals of
    Mathematical Statistics 1955); the use is ours.
    """
    count = len(wanted)
    gap = min(gap, (high - low) / max(count - 1, 1))
    order = sorted(range(count), key=lambda row: wanted[row])
    pools: list[tuple[float, int]] = []
    for place, row in enumerate(order):
        mean, size = wanted[row] - place * gap, 1
        while pools and pools[-1][0] >= mean:
            other, more = pools.pop()
            mean, size = (mean * size + other * more) / (size + more), size + more
        pools.append((mean, size))
    flat = [mean for mean, size in pools for _ in range(size)]
    top = high - (count - 1) * gap
    found = {
        row: min(max(value, low), top) + place * gap
        for place, (row, value) in enumerate(zip(order, flat, strict=True))
    }
    return [found[row] for row in range(count)]


def _uncross(dots: Sequence[tuple[float, float]], places: Sequence[float]) -> list[float]:
    """Exchanges the places of labels whose leaders cross, until none do.

    An exchange makes the two leaders shorter together, so this comes to an end.
    """
    placed = list(places)
    for _ in range(len(dots) ** 2):
        pairs = combinations(range(len(dots)), 2)
        leaders = [(x, y, place) for (x, y), place in zip(dots, placed, strict=True)]
        found = next(((a, b) for a, b in pairs if _cross(leaders[a], leaders[b])), None)
        if found is None:
            break
        a, b = found
        placed[a], placed[b] = placed[b], placed[a]
    return placed


def _cross(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    """Two leaders, as (x, y) of the point and height of the label, cross each other."""
    (left, y, place), (right, height, end) = sorted((one, other))
    passing = y + (place - y) * (right - left) / (_LEADER_END - left)
    return (passing - height) * (place - end) < 0


def _draw_baseline(axes: Axes, baseline: float) -> None:
    """A line, explained above the panel, where no point can lie on the words."""
    axes.axhline(100 * baseline, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_title(
        f"dashed: trained on plain images, {_percent(baseline)}", loc="right", fontsize=9,
        color=_MUTED,
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


def _limits(points: Sequence[Point], baseline: float | None) -> tuple[float, float]:
    """The lowest and highest accuracy shown, in per cent."""
    heights = [100 * point.accuracy_low for point in points]
    heights += [] if baseline is None else [100 * baseline]
    bottom = max(0.0, 10 * (min(heights, default=0) // 10) - 5)
    return (bottom - 2 if bottom == 0 else bottom), 104.0


def _legend(figure: Figure, points: Sequence[Point]) -> None:
    axes = figure.axes[0]
    for verdict, marker in _MARKERS.items():
        if any(point.verdict == verdict for point in points):
            axes.scatter(
                [], [], s=60, marker=marker, color=_COLOURS[verdict], label=_LEGEND[verdict]
            )
    if points:
        figure.legend(loc="upper left", ncols=3, frameon=False, handletextpad=0.2, borderpad=0.1)


def _training_figure(models: Sequence[Model]) -> Figure:
    figure = _figure((5.7, 3.0))
    axes = _axes(figure, (_LEFT, _BOTTOM, 4.98, 2.1), "Validation accuracy, %")
    axes.set_xlabel("Epoch")
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
        f"{point.title}, {words.template_title(point.attacker).lower()}: "
        f"accuracy {_percent(point.accuracy)} "
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


def _linked(text: str, points: Sequence[Point], links: Mapping[int, str]) -> str:
    """The plot with points that are links, and room below for what the chosen one says."""
    svg = ET.fromstring(text)  # noqa: S314  (our own output of a moment ago)
    left, top, width, height = (float(part) for part in svg.attrib["viewBox"].split())
    svg.set("viewBox", f"{left:g} {top:g} {width:g} {height + _READOUT:g}")
    # Readers announce links inside a group, not inside an image.
    svg.set("role", "group")
    parents = {child: parent for parent in svg.iter() for child in parent}
    tips = {_tooltip(point): row for row, point in enumerate(points) if row in links}
    hint = "Point at a mark, or reach it by keyboard, for its figures; follow it for all."
    svg.append(_line(hint, height + _READOUT / 2, "hint"))
    found = [
        (group, tips[title.text or ""])
        for group in svg.iter(f"{{{_SVG}}}g")
        for title in group.findall(f"{{{_SVG}}}title")
        if title.text in tips
    ]
    for group, row in found:
        parents[group].remove(group)
        label = _tooltip(points[row])
        link = ET.SubElement(
            svg, f"{{{_SVG}}}a", {"href": f"#{links[row]}", "class": "point", "aria-label": label}
        )
        link.append(group)
        mark = next(group.iter(f"{{{_SVG}}}use"))
        place = {"cx": mark.attrib["x"], "cy": mark.attrib["y"], "r": "11"}
        ET.SubElement(link, f"{{{_SVG}}}circle", {**place, "class": "target"})
        head, _, tail = label.partition(": ")
        for line, part in enumerate((f"{head}:", tail)):
            link.append(_line(part, height + 10 + 13 * line, "tip"))
    return ET.tostring(svg, encoding="unicode")


def _line(text: str, y: float, kind: str) -> ET.Element:
    attributes = {"x": "8", "y": f"{y:g}", "class": kind, "aria-hidden": "true"}
    element = ET.Element(
        f"{{{_SVG}}}text", {**attributes, "style": f"font-size: 9px; fill: {_INK}"}
    )
    element.text = text
    return element


def _name(svg: ET.Element, name: str, title: str, description: str) -> None:
    for attribute in ("width", "height", "version"):
        svg.attrib.pop(attribute, None)
    svg.set("role", "img")
    svg.set("aria-labelledby", f"{name}-title {name}-desc")
    for tag, text in (("desc", description), ("title", title)):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        svg.insert(0, element)
