"""natural-instructions (Wang et al. 2022): its task files, the prompts of its copies on the Hub, and which are used.

A task file holds "Definition" (a text, or a list whose first text counts), "Instances" ([{"input", "output": [..]}])
and, in newer files, "Input_language", "Output_language", "Instruction_language" and "Categories". The rest is not read.

"Positive Examples" are left out on purpose: what the paper trains and tests on are Instances, and the few-shot row of
`training.evaluate` draws its examples from a task's training ones, as it does for tasks of every other source. The
prompts of the copies on the Hub, which hold such examples, are rid of them too (`split_prompt`).
"""

import json
import random
import re
from pathlib import Path
from typing import Any

from hyperlora.errors import UserError

LIMIT = 500  # samples a task (Sec. 4)
TEST_FRACTION = 0.1  # as in the copies on the Hub
SELECTION = Path(__file__).with_name("selection.json")
LANGUAGES = ("Input_language", "Output_language", "Instruction_language")
QUERY = "Now complete the following example -"


class NotEnglish(UserError):
    """A whole task whose input, output or instruction is in another language: left out, not broken."""


def as_task(data: dict[str, Any], name: str, where: str, definition: bool = True) -> dict[str, Any]:
    """A task file's content -> the content of one of `training/tasks.py`: one description, train and test examples.

    definition: put the Definition in front of each input, with an empty line between. A tenth of the instances, drawn
    by the task's name, is for tests; of equal inputs the first counts. Raises UserError, which begins with `where`, and
    NotEnglish where a language other than English is declared.
    """
    text = data.get("Definition")
    text = text[0] if isinstance(text, list) and text else text
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{where} has no "Definition".')
    languages = {language for key in LANGUAGES for language in _texts(data.get(key))}
    if other := {language for language in languages if language.strip().casefold() != "english"}:
        raise NotEnglish(f"{where} is not in English: it declares {min(other)!r}.")
    rows = data["Instances"]
    if not isinstance(rows, list) or not rows:
        raise UserError(f'{where} has no "Instances".')
    examples = {}
    for i, row in enumerate(rows):
        outputs = _texts(row.get("output")) if isinstance(row, dict) else []
        if not outputs or not isinstance(row.get("input"), str):
            raise UserError(f'{where}: number {i} of its "Instances" is not {{"input": text, "output": [text, ..]}}.')
        examples.setdefault(row["input"], example(row["input"], outputs, text if definition else None))
    examples = list(examples.values())
    random.Random(name).shuffle(examples)
    tests = int(len(examples) * TEST_FRACTION)
    group = next(iter(_texts(data.get("Categories"))), None)
    task = {"name": name, "descriptions": [text.strip()], "train": examples[tests:], "test": examples[:tests]}
    return task | ({"group": group} if group else {})


def example(input: str, outputs: list[str], definition: str | None = None) -> dict[str, Any]:
    """One example: the first output is what training teaches, evaluation accepts them all."""
    prompt = input if definition is None else f"{definition.strip()}\n\n{input}"
    return {"input": prompt, "output": outputs[0], "outputs": outputs}


def split_prompt(text: str) -> tuple[str, str] | None:
    """A prompt of the Hub's copies (definition, worked examples, query) -> its definition and the query's input.

    None where it is no such prompt.
    """
    head, found, query = text.rpartition(QUERY)
    definition, query = re.split(r"\n(?:Positive|Negative) Example \d+ -", head)[0].strip(), query.strip()
    if not found or not definition.startswith("Definition:"):
        return None
    if not query.startswith("Input:") or not query.endswith("Output:"):
        return None
    definition = definition.removeprefix("Definition:").strip()
    definition = re.sub(r"(?<!\.)\.\.$", ".", definition)  # a full stop was added to every definition, needed or not
    return definition, query.removeprefix("Input:").removesuffix("Output:").strip()


def selection(name: str) -> list[str]:
    """Names of tasks: `train` (479), `held_out` (11) or `removed` (10) of selection.json, or the lines of a file."""
    lists = json.loads(SELECTION.read_text(encoding="utf-8"))
    if name != "about" and name in lists:
        return lists[name]
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        choices = ", ".join(key for key in lists if key != "about")
        raise UserError(f"{name!r} is neither one of {choices} nor a readable file of names ({error}).") from None
    if names := [line.strip().removesuffix(".json") for line in lines if line.strip()]:
        return names
    raise UserError(f"{name} holds no names: write one task's name a line.")


def _texts(value: Any) -> list[str]:
    """A text or a list of texts as a list; empty for anything else."""
    values = [value] if isinstance(value, str) else value
    return values if isinstance(values, list) and all(isinstance(v, str) for v in values) else []
