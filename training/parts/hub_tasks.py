"""Tasks on the Hugging Face Hub: natural-instructions (Lots-of-LoRAs/task*), and the benchmarks' training splits.

The prompts and answers of the benchmarks are those of lm-eval's tasks of the same names without examples, so that an
oracle is trained on what it is measured on. MBPP's prompt is worded here; its answer is a block of code, as there.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from hyperlora.errors import UserError, first_line
from training.parts import sni

ORGANISATION = "Lots-of-LoRAs/"
SELECTIONS = ("train", "held_out", "removed")  # the lists of selection.json


class Benchmark(NamedTuple):
    """Where a benchmark lies on the Hub, what its model is asked to do, and a row -> (prompt, answer)."""

    path: str
    config: str | None
    description: str
    example: Callable[[dict[str, Any]], tuple[str, str]]


def _chosen(row: dict[str, Any]) -> str:
    return row["choices"]["text"][row["choices"]["label"].index(row["answerKey"].strip())]


def _arc(row: dict[str, Any]) -> tuple[str, str]:
    return f"Question: {row['question']}\nAnswer:", _chosen(row)


def _boolq(row: dict[str, Any]) -> tuple[str, str]:
    return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ("no", "yes")[row["label"]]


def _hellaswag(row: dict[str, Any]) -> tuple[str, str]:
    def clean(text: str) -> str:  # half of the rows come from WikiHow, with its marks in square brackets
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    start = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return clean(start), clean(row["endings"][int(row["label"])])


def _mbpp(row: dict[str, Any]) -> tuple[str, str]:
    tests, code = "\n".join(row["test_list"]), row["code"].replace("\r\n", "\n").strip()
    return f"{row['text']}\nAnswer with Python code that passes:\n{tests}", f"```python\n{code}\n```"


def _piqa(row: dict[str, Any]) -> tuple[str, str]:
    return f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"])[int(row["label"])]


def _winogrande(row: dict[str, Any]) -> tuple[str, str]:
    """The sentence up to its blank with the right name in it, and how it goes on."""
    before, _, after = row["sentence"].partition("_")
    return before + row[f"option{row['answer']}"], after.strip()


BENCHMARKS = {
    "arc_challenge": Benchmark(
        "allenai/ai2_arc", "ARC-Challenge", "Answer a hard science question from a school exam.", _arc
    ),
    "arc_easy": Benchmark("allenai/ai2_arc", "ARC-Easy", "Answer a science question from a school exam.", _arc),
    "boolq": Benchmark(
        "aps/super_glue", "boolq", "Read the passage and say whether the answer to the question is yes or no.", _boolq
    ),
    "gsm8k": Benchmark(
        "openai/gsm8k",
        "main",
        "Solve the word problem step by step and end with the number that answers it.",
        lambda row: (f"Question: {row['question']}\nAnswer:", row["answer"]),
    ),
    "hellaswag": Benchmark(
        "Rowan/hellaswag", None, "Go on with the text in the way that makes the most sense.", _hellaswag
    ),
    "mbpp": Benchmark(
        "google-research-datasets/mbpp", "full", "Write a short Python program that does what is asked.", _mbpp
    ),
    "openbookqa": Benchmark(
        "allenai/openbookqa",
        "main",
        "Answer an elementary science question with a fact and some common sense.",
        lambda row: (row["question_stem"], _chosen(row)),
    ),
    "piqa": Benchmark("baber/piqa", None, "Say how best to do something with everyday things.", _piqa),
    "winogrande": Benchmark(
        "allenai/winogrande", "winogrande_xl", "Work out who or what a sentence speaks of, and finish it.", _winogrande
    ),
}


def names(name: str) -> list[str]:
    """What one name stands for: `benchmarks`, or a list of selection.json; any other name is a single task's."""
    if name == "benchmarks":
        return list(BENCHMARKS)
    return [ORGANISATION + task for task in sni.selection(name)] if name in SELECTIONS else [name]


def as_task(name: str, definition: bool = True) -> dict[str, Any]:
    """A data set of the Hub -> the content of a task file (`training/tasks.py`).

    name: Lots-of-LoRAs/task..., of which the train and test splits are read, or a benchmark's. definition: as in
    `sni.as_task`; a benchmark's prompts never hold its description. Raises UserError where the name is unknown, the
    rows have another form, or the Hub cannot be reached (its cause is then a ConnectionError).
    """
    if name == "humaneval":
        raise UserError("hub:humaneval has no training split: there is nothing to train on.")
    if name in BENCHMARKS:
        path, config, description, read = BENCHMARKS[name]
        rows = _rows(name, _load(name, path, config), "train", read)
        train = [{"input": prompt, "output": answer} for prompt, answer in rows]
        return {"name": name, "descriptions": [description], "train": train, "group": "benchmarks"}
    if not name.startswith(ORGANISATION):
        known = ", ".join([*BENCHMARKS, "benchmarks", *SELECTIONS])
        raise UserError(f"hub:{name} is unknown: there are hub:{ORGANISATION}task... and, after hub:, {known}.")
    splits = _load(name, name, None)
    train, test = (_rows(name, splits, split, _instruction) for split in ("train", "test"))
    trained = {text for _, text, _ in train}
    test = [row for row in test if row[1] not in trained]

    def examples(rows: list[tuple[str, str, list[str]]]) -> list[dict[str, Any]]:
        return [sni.example(text, outputs, own if definition else None) for own, text, outputs in rows]

    task = {"name": name.removeprefix(ORGANISATION), "descriptions": [train[0][0]] if train else []}
    return task | {"train": examples(train), "test": examples(test)}


def _instruction(row: dict[str, Any]) -> tuple[str, str, list[str]]:
    """A row of a copy of natural-instructions: definition, input, outputs."""
    parts, outputs = sni.split_prompt(row["input"]), row["output"]
    if parts is None:
        raise ValueError("its input is not a definition, examples and a query")
    if not isinstance(outputs, list) or not outputs:
        raise ValueError("its output is not a list of texts")
    return *parts, outputs


def _load(name: str, path: str, config: str | None) -> Mapping[str, Iterable[dict[str, Any]]]:
    """Split -> rows, from the Hub or the cache of earlier downloads."""
    try:
        import datasets  # a second's import, and in a group of its own: only where it is needed
    except ImportError:
        raise UserError("Tasks of the Hub need the package datasets: pip install --group train.") from None
    try:
        return datasets.load_dataset(path, config)
    except Exception as error:  # no network, no such data set, no access, a full disk: one sentence for all
        raise UserError(f"hub:{name} could not be fetched: {first_line(error)}.") from error


def _rows(name: str, splits: Mapping[str, Iterable[dict[str, Any]]], split: str, read: Callable) -> list:
    """All rows of a split through `read`; none where there is no such split."""
    read_rows = []
    for i, row in enumerate(splits.get(split, ())):
        try:
            read_rows.append(read(row))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"hub:{name} has another form than expected: {split} row {i}, {error}.") from None
    return read_rows
