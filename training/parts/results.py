"""Results: rows of scores, their means, the file that keeps them, and Markdown tables.

A row is {"method", "split", "kind", "task", "seed", "score", ..}: how a method did on a task's tests with one kind of
description, from 0 to 1, with whatever else its stage writes. In a file rows that share method, split, kind and seed
lie together, each value a list, and a task is its number in "tasks": a tenth of their length as JSON.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hyperlora.config import read_json
from hyperlora.errors import UserError
from hyperlora.files import write_atomic, writing
from training.parts.kinds import NO_DESCRIPTION, SEEN, UNSEEN

MAX_FILE_BYTES = 512 * 2**20
SHARED = ("method", "split", "kind", "seed")
MAX_TASK_COLUMNS = 12
WITH_PROMPT = ", prompted"  # behind a method's name: with the description in the prompt, where it has two forms
MULTI_TASK, ORACLE = "multi-task LoRA", "oracle LoRA"
PROMPTED, NEAREST = f"base{WITH_PROMPT}", "nearest task's LoRA"  # both read a description
FEW_SHOT, MAJORITY = "base, few-shot", "majority label"
UNADAPTED = ("base", FEW_SHOT, MAJORITY, "average LoRA", MULTI_TASK)
SECTIONS = ("No test-time adaptation", "Zero-shot adaptation", "Oracle")


def prompted(method: str) -> str:
    """The name of the method with the description in its prompt, where it is measured without it too."""
    return method + WITH_PROMPT


# ---- files ----


def check_output(path: str | Path) -> None:
    """Make the folder of the results. UserError where that cannot be: before hours of measuring, not after them."""
    path = Path(path)
    if path.suffix == ".md" or path.is_dir():
        raise UserError(f"{path} cannot hold the results: give --output a file, such as results.json.")
    with writing(path, "choose another output"):
        path.parent.mkdir(parents=True, exist_ok=True)


def write_results(path: str | Path, rows: Sequence[Mapping], settings: Mapping[str, object]) -> None:
    """{"settings", "summary", "tasks", "groups"} as one JSON file, that `read_results` gives back as rows."""
    numbers = {task: i for i, task in enumerate(dict.fromkeys(row["task"] for row in rows))}
    groups: dict[tuple, list[Mapping]] = defaultdict(list)
    for row in rows:
        groups[*(row[key] for key in SHARED), *row].append(row)
    packed = []
    for own in groups.values():
        group = {key: own[0][key] for key in SHARED} | {"task": [numbers[row["task"]] for row in own]}
        packed.append(group | {key: [row[key] for row in own] for key in own[0] if key not in group})
    data = {"settings": settings, "summary": summary(rows), "tasks": list(numbers), "groups": packed}
    _write(Path(path), json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_table(path: str | Path, text: str) -> None:
    """Beside the results in `path`, as Markdown."""
    _write(Path(path).with_suffix(".md"), text)


def _write(path: Path, text: str) -> None:
    with writing(path, "free some space or choose another output"):
        write_atomic(path, text.encode())


def read_results(path: str | Path, metric: str = "score") -> tuple[list[dict], dict]:
    """The rows and the settings of a file that `write_results` wrote. UserError where it is none."""
    data = read_json(Path(path), MAX_FILE_BYTES)
    try:
        rows, settings = [row for group in data["groups"] for row in _unpacked(group, data["tasks"])], data["settings"]
    except (LookupError, TypeError, ValueError, AttributeError):
        rows, settings = [], None
    if not isinstance(settings, dict) or not all(_is_row(row, metric) for row in rows):
        raise UserError(
            f'{path} must be results as training.evaluate writes them, with "{metric}", 0 to 1, in every row.'
        )
    return rows, settings


def _unpacked(group: Mapping, tasks: Sequence[str]) -> list[dict]:
    shared = {key: group[key] for key in SHARED}
    names = [key for key in group if key not in SHARED]
    rows = [shared | dict(zip(names, values, strict=True)) for values in zip(*(group[n] for n in names), strict=True)]
    return [row | {"task": tasks[row["task"]]} for row in rows]


def _is_row(row: dict, metric: str) -> bool:
    texts = all(isinstance(row.get(key), str) for key in ("method", "split", "kind", "task"))
    return texts and type(row.get("seed")) is int and type(row.get(metric)) in (int, float) and 0 <= row[metric] <= 1


# ---- means ----


def means(rows: Iterable[Mapping], *keys: str, metric: str = "score") -> dict[tuple, float]:
    """The rows' values of `keys` -> the mean over the rows that share them, in the order of the first of each."""
    found = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys)].append(row[metric])
    return {shared: statistics.fmean(values) for shared, values in found.items()}


def mean_by_task(rows: Iterable[Mapping], split: str, kind: str, method: str) -> dict[str, float]:
    """Task -> mean score, over seeds and results files. The method "HyperLoRA" is that of any head."""
    chosen = (
        row
        for row in rows
        if (row["split"], row["kind"]) == (split, kind) and method in (row["method"], row["method"].split(" ")[0])
    )
    return {task: mean for (task,), mean in means(chosen, "task").items()}


def summary(rows: Sequence[Mapping], metric: str = "score") -> list[dict]:
    """One entry a method, kind and split: the mean over tasks and its standard deviation over seeds."""
    cells = defaultdict(list)
    for (*cell, _), mean in means(rows, "method", "kind", "split", "seed", metric=metric).items():
        cells[tuple(cell)].append(mean)
    tasks = defaultdict(set)
    for row in rows:
        tasks[row["method"], row["kind"], row["split"]].add(row["task"])
    return [
        {"method": method, "kind": kind, "split": split, "mean": statistics.fmean(each)}
        | {"spread": statistics.stdev(each) if len(each) > 1 else 0.0, "tasks": len(tasks[method, kind, split])}
        for (method, kind, split), each in cells.items()
    ]


# ---- tables ----


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Markdown of a head and rows of as many cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def summary_table(rows: Sequence[Mapping], metric: str = "score") -> str:
    """Methods and kinds of description down, splits across; mean over tasks ± spread over several seeds."""
    several = len({row["seed"] for row in rows}) > 1
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for entry in summary(rows, metric):
        spread = f" ± {entry['spread']:.2f}" if several else ""
        cells[entry["method"], entry["kind"]][entry["split"]] = f"{entry['mean']:.2f}{spread}"
    splits = list(dict.fromkeys(split for own in cells.values() for split in own))
    lines = [[*cell, *(own.get(split, "") for split in splits)] for cell, own in cells.items()]
    return table(["method", "description", *splits], lines)


def paper_table(rows: Sequence[Mapping], metric: str = "score", labels: Mapping[str, str] | None = None) -> str:
    """Table 2's form, per cent: methods down, in three sections; tasks, or, where they are more than 12, splits across.

    rows: of a method that reads descriptions the figure is the one with unseen ones, or with seen ones where a task has
    no others. labels: a task's name -> its column's. Bold: above the multi-task LoRA. †: above the oracle. (n): only n
    of a split's tasks were measured. Means over tasks follow; where methods lack tasks, a first one over those that all
    methods have.
    """
    aligned = {(row["method"], row["split"], row["task"]) for row in rows if row["kind"] in (NO_DESCRIPTION, UNSEEN)}
    counted = [
        row
        for row in rows
        if row["kind"]
        in ((NO_DESCRIPTION, UNSEEN) if (row["method"], row["split"], row["task"]) in aligned else (SEEN,))
    ]
    scores: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    for (method, *key), score in means(counted, "method", "split", "task", metric=metric).items():
        scores[method][tuple(key)] = score
    tasks = list(dict.fromkeys(key for found in scores.values() for key in found))
    columns: dict[str, list[tuple[str, str]]] = {}  # a column's name -> its tasks
    for split, task in tasks:
        name = split if len(tasks) > MAX_TASK_COLUMNS else (labels or {}).get(task, task)
        if len(tasks) <= MAX_TASK_COLUMNS and name in columns:  # a task of that name is in another split
            name = f"{name}, {split}"
        columns.setdefault(name, []).append((split, task))
    if len(tasks) <= MAX_TASK_COLUMNS:
        shared = [key for key in tasks if all(key in found for found in scores.values())]
        if 0 < len(shared) < len(tasks):
            columns[f"Avg. ({len(shared)} tasks)"] = shared
        columns["Avg."] = tasks

    def mean(method: str, name: str) -> tuple[float, int]:
        """Over those of the column's tasks that were measured, and how many these are."""
        found = [scores[method][key] for key in columns[name] if key in scores.get(method, {})]
        return 100 * statistics.fmean(found) if found else math.nan, len(found)

    def beats(method: str, other: str, name: str) -> bool:
        theirs, n = mean(other, name)
        return n == len(columns[name]) and mean(method, name)[0] > theirs

    def cell(method: str, name: str) -> str:
        value, n = mean(method, name)
        if n < len(columns[name]):
            return f"{value:.1f} ({n})" if n and not name.startswith("Avg.") else "N/A"
        text = f"**{value:.1f}**" if beats(method, MULTI_TASK, name) else f"{value:.1f}"
        return text + "†" if beats(method, ORACLE, name) else text

    sections: dict[str, list[str]] = {title: [] for title in SECTIONS}
    for method in scores:
        plain = method.removesuffix(WITH_PROMPT)
        sections[SECTIONS[0 if plain in UNADAPTED else 2 if plain == ORACLE else 1]].append(method)
    lines = []
    for title, methods in sections.items():
        if methods:
            lines.append([f"*{title}*", *[""] * len(columns)])
            lines += [[method, *(cell(method, name) for name in columns)] for method in methods]
    return table(["", *columns], lines)
