"""The report of the reproduction: which claims held, and the cells and scores that they rest on."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from hyperlora.files import write_atomic, writing
from training.parts.claims import CLOSE, FLAT, HELD_OUT, TRAINED, Claim, compare, is_flat, scores, seeds_of, verdict
from training.parts.kinds import KINDS, NO_DESCRIPTION, UNSEEN
from training.parts.results import ORACLE, PROMPTED, paper_table, table


def prompted_base(found: Mapping[str, list[dict]]) -> str:
    """A sentence where the base that reads the description in its prompt is ahead of HyperLoRA M; else nothing."""
    ours = scores(found, *seeds_of(found, "sft"))
    ahead = compare(scores(found, "table-2", method=PROMPTED), ours)
    if ahead is None or ahead[0] <= 0:
        return ""
    return f"The base with the description in its prompt is ahead of HyperLoRA M on the held-out tasks, {ahead[2]}."


def write_report(
    report: Path, said: Sequence[Claim], trained: Mapping[str, dict], found: Mapping[str, list[dict]],
    figures: Mapping[str, dict], plain: Mapping[str, int],
) -> None:  # fmt: skip
    """REPORT/README.md, beside the figures. trained: of each cell trained.json; plain: the steps of plain LoRAs."""
    verdicts = [(verdict(claim, trained), claim) for claim in said]
    counts = ", ".join(
        f"{sum(v == word for v, _ in verdicts)} {word}" for word in ("held", "did not hold", "undecided")
    )
    cell_lines, score_lines = [], []
    for name, done in trained.items():
        slope = "" if done["slope"] is None else f"{done['slope']:+.4f}"
        changes = ", ".join("" if change is None else f"{100 * change:+.1f} %" for change in done["changes"])
        minutes = f"{done['seconds'] / 60:.1f}"
        flat = "yes" if is_flat(done) else "no"
        steps = done["tasks"], done["steps"], minutes
        cell_lines.append([name, *steps, f"{done['loss']:.4f}", slope, changes, flat])
        columns = [(HELD_OUT, UNSEEN), *((TRAINED, kind) for kind in (*KINDS, NO_DESCRIPTION))]
        values = [scores(found, name, split=split, kind=kind) for split, kind in columns]
        values.append(scores(found, name, split=TRAINED, kind=NO_DESCRIPTION, method=ORACLE))
        score_lines.append([name, *(f"{100 * statistics.fmean(v.values()):.1f}" if v else "" for v in values)])
    head = ["cell", "held-out, unseen", *(f"trained, {kind}" for kind in KINDS), "trained, one-hot", "own LoRAs"]
    claim_lines = []
    for word, claim in verdicts:
        shown = f"**{word}**" + (", within the error" if claim.unclear and word == "did not hold" else "")
        claim_lines.append([claim.source, claim.text, shown, claim.evidence, ", ".join(claim.cells)])
    measured = len({row["task"] for row in found["table-2"]})
    seeds = ", ".join(seeds_of(found, "sft"))
    unclear = sum(v == "did not hold" and claim.unclear for v, claim in verdicts)
    opening = f"Of {len(said)} claims: {counts}."
    if unclear:
        opening += f" Of those that did not hold {unclear} are within the error: more tasks might decide otherwise."
    opening = f"{opening} {prompted_base(found)}".strip()
    images = [
        f"![{name}]({name}.png)" if "missing" not in data else f"{name}: {data['missing']}"
        for name, data in figures.items()
    ]
    text = (
        f"""# The paper at mini scale

Written by `python -m training.reproduce`: {len(trained)} hypernetworks over {trained["sft-M-0"]["tasks"]} tasks,
measured on {measured} tasks that none was trained on. {opening}

"Better" held where the mean difference over tasks is above twice its standard error, "mean r > 0" where the mean over
targets is, "about as well" and "recovers" where the difference is within {100 * CLOSE:.0f} points. A claim is undecided
where the training loss of one of its cells still changed by {100 * FLAT:.0f} % or more of its whole fall over one of
the last two fifths of its steps, or where there is nothing to compare; after `--quick` all are. Plain LoRAs log no loss
here, so claims about them alone rest on their {plain["own"]} steps each. The spread over tasks says nothing about other
seeds; SFT with head M is the mean over {seeds}, or, in Table 5 and Fig. 5, the first of them, reconstruction in Table 6
that over as many, and all else is of one seed.

{table(["source", "claim", "verdict", "measured", "cells"], claim_lines)}
## Cells

Steps that each got, the loss over the last fifth of them and its slope a 1000 steps, and by how much of its whole fall
the loss changed over the last fifth but one and over the last.

{table(["cell", "tasks", "steps", "minutes", "final loss", "final slope", "changes", "flat"], cell_lines)}
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
