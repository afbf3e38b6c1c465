"""The paper's figures as this project draws them, and their numbers in words."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: draws by Agg, and needs no display

from hyperlora.files import write_atomic, writing

MAX_TARGETS = 49  # as many as there are pairs of a colour and a marker
# Okabe and Ito's palette, which the colour-blind tell apart, without its yellow, faint on white
BLUE, VERMILLION = "#0072B2", "#D55E00"
COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX"
GREY = "#777777"
# What a pair of LoRAs is compared by -> its name and its axis
MEASURES = {
    "factors": ("A and B", "cosine of A and B"),
    "delta": ("ΔW", "cosine of ΔW"),
    "performance": ("relative performance", "score / own LoRA's score"),
}
OUTPUTS = {"task_encoder": "task encoder", "last_block": "last block"}


def draw_against_error(data: dict) -> Figure:
    """A line a head over its instances; the numbers are how many tasks each was trained on."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--", label="the tasks' own LoRAs")
    heads = sorted({instance["head"] for instance in data["instances"]})
    for i, head in enumerate(heads):
        own = sorted((x for x in data["instances"] if x["head"] == head), key=lambda x: x["error"])
        points = [(x["error"], x["relative_performance"]) for x in own]
        axes.plot(*zip(*points, strict=True), color=COLOURS[i], marker=MARKERS[i], label=f"HyperLoRA {head}")
        for instance, point in zip(own, points, strict=True):
            number = f"{instance['trained_tasks']}"
            axes.annotate(number, point, (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3))
    axes.margins(y=0.1)
    axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], 1.0))  # room for the numbers
    axes.set_xlabel("mean absolute error of an element of A and B, in training")
    metric = {"score": "exact match", "rouge_l": "ROUGE-L"}[data["metric"]]
    axes.set_ylabel(f"{metric} / own LoRA's {metric}")
    axes.set_title(f"{r_text(data['r'])}, mean over {len(data['tasks'])} tasks; numbers: tasks trained on", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def axes_of(points: Sequence[dict], target: str, measure: str) -> tuple[list[float], list[float]]:
    found = [p for p in points if p["target"] == target and p[measure] is not None]
    return [p["descriptions"] for p in found], [p[measure] for p in found]


def draw_against_descriptions(data: dict) -> Figure:
    """A panel a measure and target, five in a row, all of a measure at one scale; a point is one task's LoRA."""
    r, points = data["r"], data["points"]
    targets = list(next(iter(r.values())))
    columns = min(5, len(targets))
    depth = -(-len(targets) // columns)
    size = (max(5.5, 2.4 * columns + 0.6), 2.3 * depth * len(r) + 1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(depth * len(r), columns, squeeze=False)
    x_range = _range([point["descriptions"] for point in points])
    for i, measure in enumerate(r):
        y_range = _range([point[measure] for point in points if point[measure] is not None])
        panels = grid[i * depth : (i + 1) * depth].flatten()
        for panel in panels[len(targets) :]:
            panel.remove()
        for j, (panel, target) in enumerate(zip(panels, targets, strict=False)):
            x, y = axes_of(points, target, measure)
            panel.scatter(x, y, s=8, alpha=0.6, linewidths=0, color=(VERMILLION if measure == "performance" else BLUE))
            if r[measure][target] is not None:
                slope, start = np.polyfit(x, y, 1)
                panel.plot(x_range, [start + slope * end for end in x_range], color=GREY, linewidth=1)
            panel.set(xlim=x_range, ylim=y_range)
            panel.tick_params(labelsize=7, labelleft=j % columns == 0)
            panel.set_title(f"{_short(target)}\n{r_text(r[measure][target]) if x else 'not defined'}", fontsize=8)
            if j % columns == 0:
                panel.set_ylabel(MEASURES[measure][1], fontsize=8)
    figure.supxlabel("cosine of the tasks' mean description embeddings", fontsize=9)
    figure.suptitle(means_text(data), fontsize=10)
    return figure


def draw_activations(data: dict) -> Figure:
    """Task encoder on the left, last block on the right; every task its own colour and marker."""
    tasks = list(dict.fromkeys(point["task"] for point in data["points"]))
    figure = Figure(figsize=(9.5, 4), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, 2)
    for panel, (name, title) in zip(panels, OUTPUTS.items(), strict=True):
        for i, task in enumerate(tasks):
            places = [point[name] for point in data["points"] if point["task"] == task]
            # markers go on a step further each time that the colours are through
            marker = MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
            panel.scatter(
                *zip(*places, strict=True), s=36, color=COLOURS[i % len(COLOURS)], marker=marker, label=_short(task)
            )
        panel.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
        panel.set_title(f"{title}, silhouette of tasks {number_text(data['silhouette'][name])}", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure


def means_text(data: dict) -> str:
    """Each measure's mean r, and over how many targets."""
    counts = {measure: sum(value is not None for value in r.values()) for measure, r in data["r"].items()}
    parts = [f"{MEASURES[m][0]} {number_text(v)} ({counts[m]} targets)" for m, v in data["mean_r"].items()]
    return f"mean r: {', '.join(parts)}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The values' ends with some room."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.05 * (high - low) or 0.05
    return low - room, high + room


def number_text(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"


def r_text(value: float | None) -> str:
    return f"r = {value:.2f}" if value is not None else "r not defined"


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}…"


def save_figure(output: str | Path, name: str, data: Mapping, figure: Figure) -> None:
    """OUTPUT/NAME.png and OUTPUT/NAME.json, the data."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for suffix, content in (("json", text.encode()), ("png", image.getvalue())):
        path = Path(output) / f"{name}.{suffix}"
        with writing(path, "free some space and run it again"):
            write_atomic(path, content)


def draw_bars(values: Mapping[str, float], label: str) -> Figure:
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axes = figure.subplots()
    drawn = axes.bar(list(values), [100 * value for value in values.values()], color=BLUE, width=0.6)
    axes.bar_label(drawn, fmt="%.1f", fontsize=8)
    axes.margins(y=0.1)
    axes.set_xlabel(label)
    axes.set_ylabel("exact match on held-out tasks, per cent")
    return figure
