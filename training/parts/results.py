"""Results as a Markdown table in the form of the paper's Table 2."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

MAX_TASK_COLUMNS = 12
MULTI_TASK, ORACLE = "multi-task LoRA", "oracle LoRA"
PROMPTED, NEAREST = "base, prompted", "nearest task's LoRA"  # both read a description
UNADAPTED = ("base", PROMPTED, "base, few-shot", "average LoRA", MULTI_TASK)
SECTIONS = ("No test-time adaptation", "Zero-shot adaptation", "Oracle")


def mean_by_task(rows: Iterable[Mapping], split: str, kind: str, method: str) -> dict[str, float]:
    """Task -> mean score, over seeds and results files. The method "HyperLoRA" is that of any head."""
    values = defaultdict(list)
    for row in rows:
        if (row["split"], row["kind"]) == (split, kind) and method in (row["method"], row["method"].split(" ")[0]):
            values[row["task"]].append(row["score"])
    return {task: statistics.fmean(each) for task, each in values.items()}


def paper_table(rows: Sequence[dict], metric: str = "score", labels: Mapping[str, str] | None = None) -> str:
    """Per cent: methods down, in three sections; tasks (or, where they are more than 12, splits) across, then means.

    rows: as `training.evaluate.evaluate` returns them; of a method that reads descriptions the figure is the one with
    unseen ones, or with seen ones where a task has no others. labels: a task's name -> its column's. Bold: above the
    multi-task LoRA. †: above the oracle. (n): only n of a split's tasks were measured. Where methods lack tasks, a
    first mean is over those that all methods have.
    """
    aligned = {(row["method"], row["split"], row["task"]) for row in rows if row["kind"] in ("none", "unseen")}
    scores: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        key = row["method"], row["split"], row["task"]
        if row["kind"] in (("none", "unseen") if key in aligned else ("seen",)):
            scores[row["method"]][key[1:]].append(row[metric])
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
        found = [statistics.fmean(scores[method][key]) for key in columns[name] if key in scores.get(method, {})]
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

    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    sections: dict[str, list[str]] = {title: [] for title in SECTIONS}
    for method in scores:
        sections[SECTIONS[0 if method in UNADAPTED else 2 if method == ORACLE else 1]].append(method)
    for title, methods in sections.items():
        if methods:
            lines.append(f"| *{title}* |" + " |" * len(columns))
            lines += [
                f"| {method} | " + " | ".join(cell(method, name) for name in columns) + " |" for method in methods
            ]
    return "\n".join(lines) + "\n"
