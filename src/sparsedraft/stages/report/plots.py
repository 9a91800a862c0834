"""The plots, as matplotlib figures; SVG bytes depend on the data alone."""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsedraft.base.console import visible

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#666666",
)  # Okabe & Ito: safe for all eyes
MARKERS = "osD^vPX"


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _text(name: str) -> str:
    """`name` as a label: no formula, whatever dollars it has, and shown in the legend though it begins with "_"."""
    name = visible(name).replace("$", r"\$")
    return f"\u200b{name}" if name.startswith("_") else name


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def mal_against_macs(result: dict[str, Any], k: int) -> Figure:
    """One labelled point per drafter of known MACs: these against the dense model, MAL at K = k."""
    figure, axes = _axes("MACs per token, share of the target's", f"tokens per step (MAL), K = {k}")
    drafters = [d for d in result["drafters"] if d["macs_vs_dense"] is not None]
    points = [(d["macs_vs_dense"], d["k"][str(k)]["mal"], d["name"]) for d in drafters]
    heights = label_heights([y for _, y, _ in points], gap=0.075 * max(1.0, max(y for _, y, _ in points) - 1))
    for index, ((x, y, name), height) in enumerate(zip(points, heights, strict=True)):
        style = _style(index)
        axes.plot([x], [y], linestyle="none", markersize=8, **style)
        axes.annotate(
            f"{_text(name)}  {y:.2f}",
            (x, y),
            xytext=(x + 0.03, height),
            va="center",
            color=style["color"],
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "shrinkB": 4},
        )
    axes.axhline(1, color="#999999", linewidth=1, linestyle=":")
    axes.text(0.02, 1, "no drafter", va="bottom", color="#777777", fontsize=8)
    axes.set_xlim(0, max(1.0, max(x for x, _, _ in points) + 0.45))
    axes.set_ylim(0.85, max([*heights, *(y for _, y, _ in points)]) + 0.2)
    return figure


def label_heights(values: Sequence[float], gap: float) -> list[float]:
    """Heights for labels of `values`, in their order, at least `gap` apart: pushed up from the lowest."""
    heights = list(values)
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    for lower, upper in pairwise(order):
        heights[upper] = max(heights[upper], heights[lower] + gap)
    return heights


def accepted_by_position(result: dict[str, Any]) -> Figure:
    """Share of steps that accepted at least i drafts, at the greatest K."""
    k = max(result["k"])
    figure, axes = _axes(f"drafted token, K = {k}", "share of steps that accept it")
    for index, d in enumerate(result["drafters"]):
        counts, steps = d["k"][str(k)]["histogram"], d["k"][str(k)]["steps"]
        shares = [sum(counts[i:]) / steps for i in range(1, k + 1)]
        axes.plot(range(1, k + 1), shares, label=_text(d["name"]), **_style(index))
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8)
    return figure


def fine_tuning(curves: dict[str, list[dict[str, Any]]], key: str, ylabel: str, names: Sequence[str]) -> Figure:
    """`key` of the logs against training tokens, a line per fine-tuned drafter."""
    figure, axes = _axes("training tokens", ylabel)
    for name, log in curves.items():
        points = [(entry["tokens"], entry[key]) for entry in log if key in entry]
        style = _style(names.index(name) if name in names else len(names))
        if key == "loss":
            style["marker"] = ""
            points = [
                (x, sum(y for _, y in points[max(0, i - 4) : i + 1]) / min(5, i + 1)) for i, (x, _) in enumerate(points)
            ]
        axes.plot([x for x, _ in points], [y for _, y in points], label=_text(name), **style)
    axes.legend(frameon=False, fontsize=8)
    return figure


def svg(figure: Figure, salt: str) -> str:
    """The figure as an <svg> element; `salt` keeps ids apart when several stand in one page."""
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": "sans-serif"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, 144 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None}, facecolor="white")
    return buffer.getvalue()


def lengths(values: Sequence[int], label: str) -> Figure:
    """A histogram of lengths in tokens."""
    figure, axes = _axes(label, "rows")
    axes.hist(values, bins=min(40, max(1, len(set(values)))), color=COLOURS[0])
    return figure
