"""Tasks: their files, their prompts, and the batches that every stage of training reads.

A task is one JSON file: {"name", "descriptions": [..], "train": [{"input", "output"}, ..], "test": [..]} and, if
wanted, "eval_descriptions": [..] (never trained on) and "group": a name for reports.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from hyperlora.errors import UserError

IGNORE = -100  # the label of tokens that carry no loss
MAX_FILE_BYTES = 256 * 2**20

Example = dict[str, str]  # {"input": ..., "output": ...}
Encoded = dict[str, list[int]]  # {"input_ids": [t], "labels": [t]}


@dataclass
class Task:
    """One task t^i of the paper's Section 2: descriptions Z^i and examples (X^i, Y^i)."""

    name: str
    descriptions: list[str]
    eval_descriptions: list[str] = field(default_factory=list)
    train: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)
    group: str | None = None

    def save(self, folder: str | Path) -> Path:
        """Write the task as FOLDER/NAME.json, in the form that `load_task` reads."""
        path = Path(folder) / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return path


def load_task(path: str | Path) -> Task:
    """Read one task's file. Raises UserError, naming the file, when it is not a task."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB: split the task into smaller files.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a readable JSON file ({error}): mend it or take it away.") from None
    if not isinstance(data, dict):
        raise UserError(f'{path} must hold one JSON object with "name", "descriptions", "train" and "test".')

    def texts(key: str) -> list[str]:
        values = data.get(key, [])
        if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
            raise UserError(f'{path}: "{key}" must be a list of texts that are not blank.')
        return values

    def examples(key: str) -> list[Example]:
        rows = data.get(key, [])
        good = isinstance(rows, list) and all(
            isinstance(r, dict) and isinstance(r.get("input"), str) and isinstance(r.get("output"), str) for r in rows
        )
        if not good:
            raise UserError(f'{path}: "{key}" must be a list of {{"input": text, "output": text}}.')
        return [{"input": r["input"], "output": r["output"]} for r in rows]

    name, group = data.get("name", path.stem), data.get("group")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,199}", name) or not isinstance(group, str | None):
        raise UserError(f'{path}: "name" must be of letters, digits, "_", "-" and ".", and "group" a text or absent.')
    task = Task(name, texts("descriptions"), texts("eval_descriptions"), examples("train"), examples("test"), group)
    if not task.descriptions:
        raise UserError(f'{path} has no "descriptions": a task needs at least one.')
    if not task.train and not task.test:
        raise UserError(f'{path} has no examples: give it "train", "test" or both.')
    return task


def load_tasks(folder: str | Path, strict: bool = True) -> list[Task]:
    """All tasks of a folder of JSON files, by file name.

    A broken file raises UserError; with `strict=False` it is skipped, and the number skipped goes to stderr.
    """
    paths = sorted(Path(folder).glob("*.json"))
    if not paths:
        raise UserError(f"{folder} holds no task files (*.json).")
    tasks, problems = [], []
    for path in paths:
        try:
            tasks.append(load_task(path))
        except UserError as error:
            if strict:
                raise
            problems.append(str(error))
    if problems:
        print(f"Skipped {len(problems)} of {len(paths)} task files; the first: {problems[0]}", file=sys.stderr)
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError(f"{folder} holds two tasks of the same name: rename one.")
    if not tasks:
        raise UserError(f"{folder} holds no readable task.")
    return tasks


def prompt_text(input: str, description: str | None = None) -> str:
    """The user's message: the input alone, or the description, a newline and the input."""
    return input if description is None else f"{description}\n{input}"


def encode_prompts(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """User messages -> token ids through the chat template, up to where the answer starts."""
    if not texts:
        return []
    chats = [[{"role": "user", "content": text}] for text in texts]
    return tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)


def encode_all(
    tokenizer, examples: Sequence[Example], descriptions: Sequence[str | None] | None = None
) -> list[Encoded]:
    """Examples -> `{"input_ids", "labels"}` through the chat template, the labels -100 on the prompt, ending in eos.

    descriptions: one for each example, put in front of its input; None for the input alone.
    """
    if not examples:
        return []
    descriptions = descriptions or [None] * len(examples)
    texts = [prompt_text(e["input"], d) for e, d in zip(examples, descriptions, strict=True)]
    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": e["output"]}]
        for text, e in zip(texts, examples, strict=True)
    ]
    encoded = []
    prompts = encode_prompts(tokenizer, texts)
    for prompt, ids in zip(prompts, tokenizer.apply_chat_template(chats, return_dict=False), strict=True):
        if ids[: len(prompt)] != prompt:
            raise UserError(
                "The chat template changes the prompt once an answer follows: training needs one that does not."
            )
        if ids[-1] != tokenizer.eos_token_id:
            ids = [*ids, tokenizer.eos_token_id]
        encoded.append({"input_ids": ids, "labels": [IGNORE] * len(prompt) + ids[len(prompt) :]})
    return encoded


def encode(tokenizer, input: str, output: str, description: str | None = None) -> Encoded:
    """One example, as in `encode_all`."""
    return encode_all(tokenizer, [{"input": input, "output": output}], [description])[0]


def encode_task(tokenizer, task: Task, prompt_style: str = "input", split: str = "train") -> list[Encoded]:
    """All examples of a task's split. With the style "description_input" each has one of its descriptions, in turn."""
    examples, texts = getattr(task, split), task.descriptions
    shown = [texts[i % len(texts)] if prompt_style == "description_input" else None for i in range(len(examples))]
    return encode_all(tokenizer, examples, shown)


def collate(rows: Sequence[Encoded], pad_token_id: int) -> dict[str, Tensor]:
    """Right-padded `input_ids` and `labels`, int64 [b, t]. Causal attention never looks right, so no mask is needed."""
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), length), pad_token_id)
    labels = torch.full((len(rows), length), IGNORE)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[i, :n] = torch.tensor(row["input_ids"])
        labels[i, :n] = torch.tensor(row["labels"])
    return {"input_ids": ids, "labels": labels}


class Batches(IterableDataset):
    """Endless batches of like length, the same for the same seed, from any step on.

    sources: one list of encoded examples a task; tasks are drawn evenly, whatever their size.
    choices: for each source the ids that a draw takes one of (descriptions, or an adapter): `index` of a batch.
    Within a window of batches the draws are sorted by length; then the batches are shuffled, in an order that depends
    on (seed, window) only through the window, so that the streams of several seeds stay alike in length.
    Yields {"input_ids" [b, t], "labels" [b, t], "index" [b]}, all int64.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[Encoded]],
        choices: Sequence[Sequence[int]],
        batch_size: int,
        pad_token_id: int,
        seed: int = 0,
        start: int = 0,
        window: int = 64,
    ):
        if not sources or not all(sources) or not all(len(c) for c in choices):
            raise UserError("There is a task without training examples or without descriptions.")
        self.sources, self.choices = sources, choices
        self.batch_size, self.pad_token_id = batch_size, pad_token_id
        self.seed, self.start, self.window = seed, start, window

    def _window(self, number: int) -> list[list[tuple[int, int, int]]]:
        """The batches of one window: (source, example, choice) of each row."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        count, n = self.window * self.batch_size, len(self.sources)
        rounds = [torch.randperm(n, generator=random) for _ in range(-(-count // n))]
        # floats in float64: one draw serves lists of any length
        picks = torch.rand(count, 2, generator=random, dtype=torch.float64).tolist()
        draws = []
        for source, (p, q) in zip(torch.cat(rounds)[:count].tolist(), picks, strict=True):
            options = self.choices[source]
            draws.append((source, int(p * len(self.sources[source])), options[int(q * len(options))]))
        draws.sort(key=lambda d: len(self.sources[d[0]][d[1]]["input_ids"]))
        order = torch.randperm(self.window, generator=torch.Generator().manual_seed(number)).tolist()
        return [draws[i * self.batch_size : (i + 1) * self.batch_size] for i in order]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        number, skip = divmod(self.start, self.window)
        while True:
            for draws in self._window(number)[skip:]:
                batch = collate([self.sources[s][e] for s, e, _ in draws], self.pad_token_id)
                batch["index"] = torch.tensor([choice for _, _, choice in draws])
                yield batch
            number, skip = number + 1, 0
