"""The model card of the mini model, made from what was measured."""

import json
from pathlib import Path

from training.mini.blind import blind_descriptions
from training.mini.suite import EVAL_WORDINGS, TRAIN_WORDINGS, suite
from training.parts.cards import failed, notices
from training.parts.kinds import UNSEEN
from training.parts.results import mean_by_task, read_results, summary_table

ORACLE = """ "oracle" is a task's own LoRA, on a training split that nothing else saw; it exists for {oracles} trained
tasks and for all new combinations. Those {oracles} are all that "Arrow routing" and "nearest task's LoRA", where
listed, can choose among."""
FROM_SCRATCH = """Both were trained from scratch: the base for {base_steps:,} steps, the hypernetwork for
{hyperlora_steps:,}."""
FROM_EARLIER = """Both went on from an earlier model of the same form: the base for {base_steps:,} steps, the
hypernetwork for {hyperlora_steps:,}, each with a new optimizer."""
NOTICES = {
    "unseen": "the unseen descriptions of trained tasks and new combinations (the threshold is set so)",
    "blind": "the blind ones",
    "everyday requests": "a hundred everyday requests to an assistant, most of which this model does not know",
    "random strings": "random strings",
}
CARD = """---
license: apache-2.0
library_name: hyperlora
base_model: none
tags: [hypernetwork, lora]
---

# HyperLoRA mini

A character-level `MistralForCausalLM` of {parameters:.1f} million parameters and a hypernetwork (head M)
that turns a sentence into a rank-8 LoRA adapter for it. It is there so that a machine without a GPU, a hub or an
account can do all that the large model does. It knows operations on text (letters, words, lists, numbers, a little
grammar), not the world, and it answers each message on its own.
{start}

## What it was trained on

{trained} tasks made by rules (`training/mini/suite.py`), each with up to {seen} training descriptions and up to
{unseen} others that no stage of the training sees: some of a task's templates are held out, with all their
wordings. Most tasks are cells of a grid: an operation, a place, a kind of text (`training/mini/grid.py`).
{combinations} new combinations of trained parts and {operations} operations that no trained task has are held out
of every stage. Inputs are English words (three in four) and random letters; one input in eight, in whatever task,
is kept for tests and one for the tasks' own LoRAs. Task inputs: all-MiniLM-L6-v2, L2-normalised, times √384.
Offset: a multi-task LoRA, added to A and B (Eq. 6).

**The prompt is the input alone.** The description reaches the model through the adapter only. The paper's prompts
carry an instruction too, so that its multi-task LoRA can read what the task is; here a multi-task LoRA knows the task
only by the look of the input, and guesses. The base was trained half on inputs alone, half on inputs with a training
description in front, so that prompting it is a fair opponent.

## Results

Exact match on test inputs, mean over tasks{spread} ({examples} inputs and
{descriptions} descriptions a task and seed). "seen" are training descriptions, "unseen" are not; on held-out tasks
all are unseen. "blind descriptions" are {blind} of the trained tasks, and the unseen descriptions there were written
from examples alone, by a writer who had not read the suite's: unseen ones of the suite are held-out templates of the
same hand, so they say less about people's own words. "retrieval" is its adapter of the nearest training
description.{oracle}

{table}
{failed}

| new combination | exact match |
| --- | --- |
{combination_rows}

| new operation | exact match |
| --- | --- |
{operation_rows}

{notices}

Made by `python -m training.mini`.
"""


def write_card(path: Path, work: Path) -> None:
    """Write the card from the results in the work folder, and from what its stages were shaped by."""
    from safetensors import safe_open

    rows, settings = read_results(work / "results.json")
    notice = json.loads((work / "notice.json").read_text())
    stages = json.loads((work / "stages.json").read_text())
    shaped = stages["hyperlora-M"]["shaped by"]
    start = FROM_EARLIER if shaped["content of init"] else FROM_SCRATCH
    groups = [task.group for task in suite()]
    trained = mean_by_task(rows, "trained tasks", UNSEEN, "HyperLoRA M")
    table_rows = {}
    for split in ("new combinations", "new operations"):
        found = mean_by_task(rows, split, UNSEEN, "HyperLoRA M")
        table_rows[split] = "\n".join(f"| {task} | {score:.2f} |" for task, score in found.items())
    with safe_open(work / "base" / "model.safetensors", "pt") as file:
        parameters = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    oracles = {row["task"] for row in rows if row["method"] == "oracle LoRA" and row["split"] == "trained tasks"}
    text = CARD.format(
        parameters=parameters / 1e6,
        start=start.format(**shaped),
        blind=len(blind_descriptions()),
        trained=groups.count("trained"),
        combinations=groups.count("combination"),
        operations=groups.count("operation"),
        seen=TRAIN_WORDINGS,
        unseen=EVAL_WORDINGS,
        examples=settings["examples"],
        descriptions=settings["descriptions"],
        oracle=ORACLE.format(oracles=len(oracles)) if oracles else "",
        spread=f" ± standard deviation over {settings['seeds']} evaluation seeds" if settings["seeds"] > 1 else "",
        table=summary_table(rows),
        failed=failed(trained),
        combination_rows=table_rows["new combinations"],
        operation_rows=table_rows["new operations"],
        notices=notices(notice["threshold"], notice["flagged"], NOTICES),
    )
    path.write_text(text, encoding="utf-8")
