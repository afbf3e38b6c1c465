"""The report of the reproduction: which claims held, and the cells and scores that they rest on."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from hyperlora.files import write_atomic, writing
from training.parts.claims import CLOSE, FLAT, HELD_OUT, TRAINED, Claim, compare, is_flat, scores, seeds_of, verdict
from training.parts.kinds import KINDS, NO_DESCRIPTION, UNSEEN
from training.parts.paired import ALPHA, holm, p_value
from training.parts.results import ORACLE, PROMPTED, paper_table, table, write_results

ROWS = "rows.json"
CELL_COLUMNS = (
    "cell", "optimizer", "rate", "noise", "tasks", "steps", "minutes", "final loss", "final slope", "changes", "flat",
)  # fmt: skip


def p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def prompted_base(found: Mapping[str, list[dict]]) -> str:
    """A sentence where the base that reads the description in its prompt is ahead of HyperLoRA M; else nothing."""
    ours = scores(found, *seeds_of(found, "sft"))
    ahead = compare(scores(found, "table-2", method=PROMPTED), ours)
    if ahead is None or statistics.fmean(ahead[0]) <= 0:
        return ""
    return (
        f"The base with the description in its prompt is ahead of HyperLoRA M on the held-out tasks, {ahead[1]}, "
        f"p = {p_text(p_value(ahead[0]))}."
    )


def claims_table(verdicts: Sequence[tuple[str, Claim]]) -> str:
    """Markdown: a claim a line, with its test's p and that corrected for the number of tests."""
    tested = [claim for _, claim in verdicts if claim.p is not None]
    corrected = dict(zip(map(id, tested), holm([claim.p for claim in tested]), strict=True))
    lines = []
    for word, claim in verdicts:
        p = ["", ""] if claim.p is None else [p_text(claim.p), p_text(corrected[id(claim)])]
        lines.append([claim.source, claim.text, f"**{word}**", claim.evidence, *p, ", ".join(claim.cells)])
    return table(["source", "claim", "verdict", "measured", "p", "p, Holm", "cells"], lines)


def opening(verdicts: Sequence[tuple[str, Claim]], found: Mapping[str, list[dict]]) -> str:
    """How many claims held, by how many tests."""
    words = ("held", "did not hold", "undecided")
    counts = ", ".join(f"{sum(v == word for v, _ in verdicts)} {word}" for word in words)
    tested = [claim.p for _, claim in verdicts if claim.p is not None]
    low, stand = (sum(p < ALPHA for p in values) for values in (tested, holm(tested)))
    text = (
        f"Of {len(verdicts)} claims: {counts}. {len(tested)} were tested, of which {low} have p < {ALPHA}, and {stand} "
        "still have with Holm's correction for so many tests."
    )
    return f"{text} {prompted_base(found)}".strip()


def write_report(
    report: Path, said: Sequence[Claim], trained: Mapping[str, dict], found: Mapping[str, list[dict]],
    figures: Mapping[str, dict], plain: Mapping[str, int],
) -> None:  # fmt: skip
    """REPORT/README.md, beside the figures, and REPORT/rows.json, all scores, each row with the name of its cell.

    trained: of each cell trained.json; plain: the steps of plain LoRAs.
    """
    verdicts = [(verdict(claim, trained), claim) for claim in said]
    cell_lines, score_lines = [], []
    for name, done in trained.items():
        slope = "" if done["slope"] is None else f"{done['slope']:+.4f}"
        changes = ", ".join("" if change is None else f"{100 * change:+.1f} %" for change in done["changes"])
        minutes = f"{done['seconds'] / 60:.1f}"
        flat = "yes" if is_flat(done) else "no"
        how = done["optimizer"], f"{done['learning_rate']:g}", f"{done['noise']:g}" if done["noise"] else ""
        steps = done["tasks"], done["steps"], minutes
        cell_lines.append([name, *how, *steps, f"{done['loss']:.4f}", slope, changes, flat])
        columns = [(HELD_OUT, UNSEEN), *((TRAINED, kind) for kind in (*KINDS, NO_DESCRIPTION))]
        values = [scores(found, name, split=split, kind=kind) for split, kind in columns]
        values.append(scores(found, name, split=TRAINED, kind=NO_DESCRIPTION, method=ORACLE))
        score_lines.append([name, *(f"{100 * statistics.fmean(v.values()):.1f}" if v else "" for v in values)])
    head = ["cell", "held-out, unseen", *(f"trained, {kind}" for kind in KINDS), "trained, one-hot", "own LoRAs"]
    measured = len({row["task"] for row in found["table-2"]})
    seeds = ", ".join(seeds_of(found, "sft"))
    images = [
        f"![{name}]({name}.png)" if "missing" not in data else f"{name}: {data['missing']}"
        for name, data in figures.items()
    ]
    text = (
        f"""# The paper at mini scale

Written by `python -m training.reproduce`: {len(trained)} hypernetworks over {trained["sft-M-0"]["tasks"]} tasks,
measured on {measured} tasks that none was trained on. {opening(verdicts, found)}

"Better", "about as well" and "recovers" are tested by a paired permutation test over the tasks, "mean r" by one over
the targets; ± is twice the standard error. A claim holds where p < {ALPHA} (two-sided, before any correction), does not
hold where the opposite has such a p, and is undecided otherwise. "About as well" and "recovers" hold where the
difference is shown to be within {100 * CLOSE:.0f} points. A claim is undecided too where the training loss of one of
its cells still changed by {100 * FLAT:.0f} % or more of its whole fall over one of the last two fifths of its steps, or
where there is nothing to compare; after `--quick` all are. Plain LoRAs log no loss here, so claims about them alone
rest on their {plain["own"]} steps each. The test over tasks says nothing about other seeds; SFT with head M is the mean
over {seeds}, or, in Table 5 and Fig. 5, the first of them, reconstruction in Table 6 that over as many, and all else is
of one seed.

{claims_table(verdicts)}
## Cells

How each was trained (noise: the standard deviation of that on a description's embedding, whose entries are about 1),
the steps that it got, the loss over the last fifth of them and its slope a 1000 steps, and by how much of its whole
fall the loss changed over the last fifth but one and over the last.

{table(CELL_COLUMNS, cell_lines)}
## Scores (Tables 1 and 3 to 6)

Exact match, per cent. The multi-task LoRA got {plain["multi-task"]} steps, each task's own {plain["own"]}.

{table(head, score_lines)}
## Table 2

Exact match on the held-out tasks, per cent; HyperLoRA M is the first seed.

{paper_table(found["table-2"])}
## Figures

"""
        + "\n\n".join(images)
        + "\n"
    )
    with writing(report, "free some space and start again"):
        write_atomic(report / "README.md", text.encode())
    write_results(report / ROWS, [row | {"cell": name} for name, rows in found.items() for row in rows], {})
