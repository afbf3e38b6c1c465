"""The figures of an evaluation over SmolLM2 as Markdown, each beside what was to be reached: for card and README."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from training.parts.conversations import AFTER_ANOTHER, FIRST, FOURTH
from training.parts.kinds import NO_DESCRIPTION, UNSEEN
from training.parts.paired import ALPHA, Difference, Scores, difference, holm
from training.parts.results import (
    MULTI_TASK,
    ORACLE,
    PROMPTED,
    means,
    prompted,
    summary_table,
    table,
)

TRAINED, NEAR, FAR = "trained tasks", "near tasks", "far tasks"
INDUCTION, EVERYDAY, DIALOGUES = "instruction induction", "everyday requests", "dialogues"
REQUESTS = "requests"  # what the splits of requests are called, our own and others
OWN_SHARE, GAP, RIGHT, TURN, KL, LENGTH = 0.9, 0.5, 0.7, 0.03, 0.5, 0.7  # to reach
OURS = "HyperLoRA"


@dataclass(frozen=True)
class Figure:
    """What was measured, in words, what was to be reached, and whether it was; None: nothing was to be."""

    name: str
    measured: str
    wanted: str = ""
    reached: bool | None = None


class Results:
    """The rows of an evaluation by split and method, each score a mean over seeds and descriptions."""

    def __init__(self, rows: Sequence[Mapping]):
        chosen = [row for row in rows if row["kind"] in (UNSEEN, NO_DESCRIPTION)]
        self._scores: dict[tuple[str, str], Scores] = {}
        for (split, method, task), mean in means(chosen, "split", "method", "task").items():
            self._scores.setdefault((split, method), {})[task] = mean
        self.splits = list(dict.fromkeys(split for split, _ in self._scores))
        labels = (method for _, method in self._scores if method.startswith(OURS))
        self.label = next(labels, OURS).removesuffix(prompted(""))
        pair = [(self.best(split, self.label), self.of(split, prompted(self.label))) for split in (TRAINED, NEAR)]
        self.describe = next((best == both for best, both in pair if best), True)
        """Whether ours does best with the description in the prompt too, on trained tasks, or else on near ones."""

    def of(self, split: str, method: str) -> Scores:
        return self._scores.get((split, method), {})

    def best(self, split: str, method: str) -> Scores:
        """The method with the input alone or with the description in the prompt, whichever has the higher mean."""
        found = [scores for name in (method, prompted(method)) if (scores := self.of(split, name))]
        return max(found, key=lambda scores: statistics.fmean(scores.values()), default={})

    def ours(self, split: str) -> Scores:
        """In the form that does best on trained tasks, whatever it does here."""
        return self.of(split, prompted(self.label) if self.describe else self.label) or self.best(split, self.label)


def figures(results: Results, open_rows: Sequence[Mapping], marks: Mapping[str, Mapping[str, str]]) -> list[Figure]:
    """All that was to be reached, as far as it was measured, and what stands beside it."""
    return [
        *_trained(results),
        *_near(results),
        *(figure for split in results.splits if REQUESTS in split for figure in _requests(results, split, marks)),
        *_turns(results),
        *_others(results, marks),
        *_open(results, open_rows),
    ]


def _mean(scores: Scores) -> float:
    return statistics.fmean(scores.values())


def _trained(results: Results) -> list[Figure]:
    ours, own = results.ours(TRAINED), results.best(TRAINED, ORACLE)
    found = []
    if ours:
        found.append(Figure(f"{TRAINED}, unseen descriptions", f"{_mean(ours):.2f} ({len(ours)} tasks)"))
    if (both := difference(ours, own)) is None:
        return found
    share = both.first / both.second if both.second else 1.0
    text = f"{share:.2f} ({both.first:.2f} of {both.second:.2f}, {both.tasks} tasks)"
    found.append(Figure(f"{TRAINED}: part of what their own LoRAs reach", text, f"≥ {OWN_SHARE}", share >= OWN_SHARE))
    multi = results.of(TRAINED, prompted(MULTI_TASK)) or results.of(TRAINED, MULTI_TASK)
    if gap := difference({task: own[task] for task in own if task in ours}, multi):
        closed = (both.first - gap.second) / gap.mean if gap.mean > 0 else 1.0
        text = f"{closed:.2f} (multi-task {gap.second:.2f}, own {gap.first:.2f})"
        name = f"{TRAINED}: part closed of the gap from the prompted multi-task LoRA to own LoRAs"
        found.append(Figure(name, text, f"≥ {GAP}", closed >= GAP))
    return found


def _near(results: Results) -> list[Figure]:
    ours = results.ours(NEAR)
    others = {PROMPTED: results.of(NEAR, PROMPTED)}
    others |= {method: results.best(NEAR, method) for method in (MULTI_TASK, "Arrow routing", "retrieval")}
    found = {name: each for name, scores in others.items() if (each := difference(ours, scores))}
    corrected = holm([each.p for each in found.values()])
    wanted = f"above, p < {ALPHA} after Holm"
    return [
        Figure(f"{NEAR}, against {name}", _with_p(each, p), wanted, each.mean > 0 and p < ALPHA)
        for (name, each), p in zip(found.items(), corrected, strict=True)
    ]


def _with_p(each: Difference, p: float) -> str:
    return f"{each}, p {'= ' + format(p, '.3f') if p >= 0.001 else '< 0.001'}, {each.tasks} tasks"


def _requests(results: Results, split: str, marks: Mapping[str, Mapping[str, str]]) -> list[Figure]:
    ours = results.ours(split)
    if not ours:
        return []
    found = [Figure(f"{split}, answered", f"{_mean(ours):.2f} ({len(ours)})", f"≥ {RIGHT:.2f}", _mean(ours) >= RIGHT)]
    if each := difference(ours, results.best(split, MULTI_TASK)):
        reached = each.mean > 0 and each.p < ALPHA
        found.append(Figure(f"{split}, against {MULTI_TASK}", _with_p(each, each.p), f"above, p < {ALPHA}", reached))
    return found + _marked(split, ours, marks.get(split, {}))


def _marked(split: str, scores: Scores, marks: Mapping[str, str]) -> list[Figure]:
    """The mean of each mark's tasks."""
    groups: dict[str, list[float]] = {}
    for task, score in scores.items():
        if task in marks:
            groups.setdefault(marks[task], []).append(score)
    return [
        Figure(f"{split}, {mark}", f"{statistics.fmean(values):.2f} ({len(values)})") for mark, values in groups.items()
    ]


def _turns(results: Results) -> list[Figure]:
    first = results.ours(FIRST)
    found = []
    for split in (FOURTH, AFTER_ANOTHER):
        if each := difference(results.ours(split), first):
            found.append(Figure(f"{split}, against the first", str(each), f"≥ -{TURN}", each.mean >= -TURN))
    return found


def _others(results: Results, marks: Mapping[str, Mapping[str, str]]) -> list[Figure]:
    found = []
    for split in (FAR, INDUCTION, DIALOGUES):
        if ours := results.ours(split):
            against = results.of(split, PROMPTED)
            text = f"{_mean(ours):.2f}, {PROMPTED} {_mean(against):.2f} ({len(ours)} tasks)"
            found += [Figure(split, text), *_marked(split, ours, marks.get(split, {}))]
    return found


def _open(results: Results, rows: Sequence[Mapping]) -> list[Figure]:
    """Of the hypernetwork with the message alone, against the base without and with the request in its prompt."""
    ours, base, wanted = (
        [row for row in rows if row["method"] == method] for method in (results.label, "base", PROMPTED)
    )
    if not ours:
        return []
    kl, none = (statistics.fmean(row["kl"] for row in own) for own in (ours, base))
    length, whole = (statistics.fmean(row["length"] for row in own) for own in (ours, wanted))
    looping = sum(row["loops"] for row in ours)
    ratio, part = kl / none if none else 1.0, length / whole if whole else 1.0
    said = f"{sum(row['loops'] for row in wanted)} of the prompted base's"
    return [
        Figure(
            "open requests, message alone: KL per token from the prompted base, in parts of the unprompted base's",
            f"{ratio:.2f} ({kl:.3f} of {none:.3f} nats)", f"< {KL}", ratio < KL,
        ),
        Figure(
            "open requests: length of answers in parts of the prompted base's",
            f"{part:.2f} ({length:.0f} of {whole:.0f} tokens)", f"≥ {LENGTH}", part >= LENGTH,
        ),
        Figure("open requests: answers that loop", f"{looping} ({said})", "0", looping == 0),
    ]  # fmt: skip


def report(
    rows: Sequence[Mapping], open_rows: Sequence[Mapping], marks: Mapping[str, Mapping[str, str]]
) -> tuple[str, bool]:
    """Markdown: the figures, all methods, and instruction induction task by task; and whether ours does best with the
    description in its prompt too (`Results.describe`)."""
    results = Results(rows)
    words = {True: "yes", False: "**no**", None: ""}
    lines = [[f.name, f.measured, f.wanted, words[f.reached]] for f in figures(results, open_rows, marks)]
    form = "with the description in its prompt" if results.describe else "with the input alone"
    own = [row for row in rows if row["split"] not in (FIRST, FOURTH, AFTER_ANOTHER)]
    parts = []
    if lines:
        head = (
            f"{results.label} {form}, the form that does best on trained tasks; other methods in their better form. "
            "Differences with their 95 % interval over tasks."
        )
        parts.append(f"{head}\n\n" + table(["what", "measured", "to reach", "reached"], lines))
    parts.append(f"Exact match, or token F1 of long answers:\n\n{summary_table(own)}")
    base = [row for row in own if row["method"] in ("base", PROMPTED)]
    parts.append(f"The base, an accepted answer being in what it says:\n\n{summary_table(base, 'contains')}")
    if tasks := results.of(INDUCTION, PROMPTED):
        columns = {
            PROMPTED: tasks,
            MULTI_TASK: results.best(INDUCTION, MULTI_TASK),
            results.label: results.ours(INDUCTION),
        }
        columns = {name: scores for name, scores in columns.items() if scores}
        lines = [
            [task.removeprefix("induction_"), marks[INDUCTION][task], *(f"{of[task]:.2f}" for of in columns.values())]
            for task in tasks
        ]
        parts.append(f"{INDUCTION.capitalize()}:\n\n" + table(["task", "kind", *columns], lines))
    return "\n".join(parts), results.describe
