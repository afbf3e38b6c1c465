"""What the paper claims, held against the cells of `training.reproduce`, and the report that says so."""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from training.parts.kinds import NO_DESCRIPTION, OTHER, RANDOM, SEEN, UNSEEN
from training.parts.paired import ALPHA, Scores, p_value
from training.parts.results import MULTI_TASK, NEAREST, ORACLE, mean_by_task

FLAT = 0.05  # flat is a loss whose line changes by less than this part of its fall over each of the last two fifths
CLOSE = 0.05  # scores this near to each other count as equal
HELD_OUT, TRAINED = "held-out tasks", "trained tasks"


def ending(losses: Sequence[tuple[int, float]], steps: int) -> dict:
    """The last fifth of a log: its mean loss, and the slope of its line a 1000 steps.

    "changes": by what part of the fall, from the log's first value to that mean, the line changes over the last fifth
    but one, and over the last. (Not by what part of the loss: one that nears 0 halves again and again and is flat for
    every purpose.) Slopes and changes are None where a fifth has fewer than three values or the loss has not fallen.
    """
    fifths = [[(step, loss) for step, loss in losses if i < 5 * step / steps <= i + 1] for i in (3, 4)]
    means = [statistics.fmean(loss for _, loss in part or losses[-1:]) for part in fifths]
    slopes = [statistics.linear_regression(*zip(*p, strict=True)).slope if len(p) > 2 else None for p in fifths]
    fall = losses[0][1] - means[1]
    changes = [0.2 * s * steps / fall if s is not None and fall > 0 else None for s in slopes]
    slope = None if slopes[1] is None else 1000 * slopes[1]
    return {"loss": means[1], "slope": slope, "changes": changes}


def is_flat(done: Mapping) -> bool:
    """Over the last two fifths: in the last alone the learning rate, which falls to 0, would flatten any loss."""
    return all(change is not None and abs(change) < FLAT for change in done["changes"])


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, the cells it rests on, whether it held (None: it cannot be said), and the numbers."""

    source: str
    text: str
    cells: tuple[str, ...]
    held: bool | None
    evidence: str
    p: float | None = None
    """Of the test that says so; None where there is none to make, as for a single number."""


class Ruling(NamedTuple):
    """The end of a `Claim`."""

    held: bool | None
    evidence: str
    p: float | None = None


def verdict(claim: Claim, trained: Mapping[str, Mapping]) -> str:
    """Undecided where a cell's loss was not flat yet; otherwise what was measured."""
    if claim.held is None or not all(is_flat(trained[name]) for name in claim.cells):
        return "undecided"
    return "held" if claim.held else "did not hold"


def scores(
    found: Mapping[str, list[dict]], *names: str, split: str = HELD_OUT, kind: str = UNSEEN, method: str = "HyperLoRA"
) -> Scores:
    """Mean over the cells, task by task; the method "HyperLoRA" is that of any head."""
    return mean_by_task((row for name in names for row in found[name]), split, kind, method)


def error(values: Sequence[float]) -> float:
    """Twice the standard error of the mean of two or more values."""
    return 2 * statistics.stdev(values) / math.sqrt(len(values))


def compare(first: Scores, second: Scores) -> tuple[list[float], str] | None:
    """The differences over the tasks that both have, and their mean in words; None: too few."""
    tasks = [task for task in first if task in second]
    if len(tasks) < 2:
        return None
    found = [first[task] - second[task] for task in tasks]
    sides = [100 * statistics.fmean(side[task] for task in tasks) for side in (first, second)]
    text = f"{sides[0]:.1f} against {sides[1]:.1f}, difference {100 * statistics.fmean(found):+.1f}"
    return found, f"{text} ± {100 * error(found):.1f} ({len(tasks)} tasks)"


def ruled(found: tuple[Sequence[float], str] | None, margin: float = 0.0) -> Ruling:
    """Held where the values' mean is above `margin`, did not hold where it is below; by less than `ALPHA`, neither."""
    if found is None:
        return Ruling(None, "not measured")
    values, text = found
    above = [value - margin for value in values]
    p = p_value(above)
    return Ruling(statistics.fmean(above) > 0 if p < ALPHA else None, text, p)


def within(found: tuple[Sequence[float], str] | None, margin: float) -> Ruling:
    """Held where the values' mean is above -margin and below margin, did not hold where it is beyond one of them."""
    if found is None:
        return Ruling(None, "not measured")
    values, text = found
    sides = ruled(found, -margin), ruled(([-value for value in values], text), -margin)
    beyond = [side for side in sides if side.held is False]
    if beyond:
        return beyond[0]
    return Ruling(True if all(side.held for side in sides) else None, text, max(side.p for side in sides))


def better(first: Scores, second: Scores) -> Ruling:
    """Held where the first is higher over the tasks."""
    return ruled(compare(first, second))


def alike(first: Scores, second: Scores, floor: Scores) -> Ruling:
    """Held where they differ by less than `CLOSE`; not to be said where neither is better than the floor."""
    if (found := compare(first, second)) and not (better(first, floor).held or better(second, floor).held):
        return Ruling(None, f"{found[1]}, neither above what needs no description")
    return within(found, CLOSE)


def no_worse(first: Scores, second: Scores) -> Ruling:
    """Held where the first is not lower by `CLOSE` or more."""
    return ruled(compare(first, second), -CLOSE)


def number(data: Mapping, value: Callable[[Mapping], float | None], holds: Callable) -> Ruling:
    """Of a figure's data one number, and whether it is as claimed."""
    if "missing" in data:
        return Ruling(None, data["missing"])
    found = value(data)
    return Ruling(None, "nothing that differs") if found is None else Ruling(holds(found), f"{found:.2f}")


def correlations(data: Mapping, measure: str) -> tuple[list[float], str] | None:
    """Pearson's r of a figure's targets, and their mean in words; None: too few."""
    known = [r for r in data["r"][measure].values() if r is not None]
    if len(known) < 2:
        return None
    return known, f"{statistics.fmean(known):.2f} ± {error(known):.2f} ({len(known)} targets)"


def error_r(data: Mapping) -> float | None:
    """Fig. 3's r; None where the relative performances are all within `CLOSE`: r would be that of their noise."""
    performances = [instance["relative_performance"] for instance in data["instances"]]
    return data["r"] if max(performances) - min(performances) >= CLOSE else None


def seeds_of(found: Mapping[str, list[dict]], scheme: str) -> tuple[str, ...]:
    """The cells of head M on all tasks that differ in the seed alone; scheme: sft or recon."""
    return tuple(name for name in found if re.fullmatch(rf"{scheme}-M-\d+", name))


def claims(
    fewer_descriptions: Sequence[int], found: Mapping[str, list[dict]], figures: Mapping[str, dict]
) -> list[Claim]:
    """What the paper says of its tables and figures, held against the cells' results and "table-2".

    fewer_descriptions: the cells of Fig. 12; figures: name -> data. SFT with head M is the mean over its seeds' cells,
    but for Table 5 and Fig. 5: only the first one is measured on trained tasks and drawn.
    """
    m, sfts, recons = "sft-M-0", seeds_of(found, "sft"), seeds_of(found, "recon")
    full = scores(found, *sfts)

    def row(method: str, kind: str = NO_DESCRIPTION) -> Scores:
        return scores(found, "table-2", kind=kind, method=method)

    def mixed(name: str, *kinds: str) -> Scores:
        parts = [scores(found, name, split=TRAINED, kind=kind) for kind in kinds]
        common = [task for task in parts[0] if all(task in part for part in parts)]
        return {task: statistics.fmean(part[task] for part in parts) for task in common}

    said = []
    for kind, inputs, what in ((NO_DESCRIPTION, "one_hot", "one-hot inputs"), (UNSEEN, "text", "unseen descriptions")):
        for head in "LMS":
            name = f"recon-{head}-{inputs}"
            own = scores(found, name, split=TRAINED, kind=NO_DESCRIPTION, method=ORACLE)
            pair = no_worse(scores(found, name, split=TRAINED, kind=kind), own)
            text = f"Reconstruction, head {head}, with {what} recovers the tasks' own LoRAs"
            said.append(Claim("Table 1", text, (name,), *pair))
    plain = {method: row(method) for method in (MULTI_TASK, "base", "average LoRA", "Arrow routing")}
    plain[NEAREST] = row(NEAREST, UNSEEN)  # it is found by the description
    for head, names in (("M", sfts), ("L", ("sft-L",)), ("S", ("sft-S",))):
        for method, other in plain.items():
            pair = better(scores(found, *names), other)
            said.append(Claim("Table 2", f"SFT with head {head} is better than: {method}", names, *pair))
    pair = better(row(ORACLE), full)
    said.append(Claim("Table 2", "SFT with head M does not close the gap to the tasks' own LoRAs", sfts, *pair))
    for name in ("sft-L", "sft-S"):
        pair = better(full, scores(found, name))
        said.append(Claim("Table 2", f"Head M is better than head {name[-1]}", (*sfts, name), *pair))
    rungs = sorted(int(n.split("-")[2]) for n in found if n.startswith("sft-M-") and n.endswith("-tasks"))
    for rung in rungs:
        name = f"sft-M-{rung}-tasks"
        pair = better(full, scores(found, name))
        text = f"All tasks are better than {rung}, in as many steps"
        said.append(Claim("Table 3, Fig. 1", text, (*sfts, name), *pair))

    def near(first: Scores, second: Scores) -> Ruling:
        return alike(first, second, row("base"))

    pairs = [
        ("Table 4", "The base's last token does about as well as a sentence encoder", "sft-M-last-token", near),
        ("Fig. 6", "The multi-task LoRA as offset is better than no offset", "sft-M-no-offset", better),
        ("Fig. 6", "The average LoRA as offset does about as well", "sft-M-average-offset", near),
        ("App. E", "An offset on A and B (Eq. 6) is better than one on ΔW (Eq. 8)", "sft-M-delta-offset", better),
    ]
    for n in fewer_descriptions:
        text = f"Results are mixed: {n} to a task do about as well as all"
        pairs.append(("Fig. 12", text, f"sft-M-{n}-descriptions", near))
    for source, text, name, rule in pairs:
        said.append(Claim(source, text, (*sfts, name), *rule(full, scores(found, name))))
    for scheme, name in (("SFT", m), ("reconstruction", "recon-M-text")):
        pair = better(mixed(name, SEEN, UNSEEN), mixed(name, OTHER, RANDOM))
        said.append(Claim("Table 5", f"Aligned descriptions are better than unaligned ones, {scheme}", (name,), *pair))
        pair = alike(mixed(name, SEEN), mixed(name, UNSEEN), mixed(name, OTHER, RANDOM))
        said.append(Claim("Table 5", f"Unseen descriptions do about as well as seen ones, {scheme}", (name,), *pair))
    pair = better(full, scores(found, *recons))
    said.append(Claim("Table 6", "SFT is better than reconstruction in equal time", sfts + recons, *pair))
    if "recon-M-delta" in found:
        pair = no_worse(scores(found, *recons), scores(found, "recon-M-delta"))
        text = "Reconstruction of ΔW does not outperform that of A and B"
        said.append(Claim("App. E", text, (*recons, "recon-M-delta"), *pair))
    ladder = tuple(name for name in found if name.startswith("recon-M-") and name.endswith("-tasks"))
    for source, text, names, figure, value, holds in (
        ("Fig. 3", "The larger the error, the lower the performance (r < 0)", ladder, "figure-3",
         error_r, lambda r: r < 0),
        ("Fig. 5", "Tasks cluster in the task encoder (silhouette > 0)", (m,), "figure-5",
         lambda d: d["silhouette"]["task_encoder"], lambda s: s > 0),
        ("Fig. 5", "Tasks cluster in the last block (silhouette > 0)", (m,), "figure-5",
         lambda d: d["silhouette"]["last_block"], lambda s: s > 0),
    ):  # fmt: skip
        said.append(Claim(source, text, names, *number(figures[figure], value, holds)))
    for source, text, figure, measure, margin in (
        ("Fig. 4", "A and B are not alike where descriptions are (mean r within 0.2)", "figure-4", "factors", 0.2),
        ("Fig. 4", "LoRAs of tasks described alike do better (mean r > 0)", "figure-4", "performance", None),
        ("Fig. 10", "ΔW are a little alike where descriptions are (mean r > 0)", "figure-10", "delta", None),
    ):
        data = figures[figure]
        if "missing" in data:
            pair = Ruling(None, data["missing"])
        else:
            found_r = correlations(data, measure)
            pair = ruled(found_r) if margin is None else within(found_r, margin)
        said.append(Claim(source, text, (), *pair))
    return said
