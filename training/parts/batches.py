"""Examples as token ids with labels, and the batches that every stage of training reads."""

import os
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel

from hyperlora.base import context_length
from hyperlora.errors import UserError
from hyperlora.prompt import encode_answers, encode_chats, with_description
from training.tasks import Example, Task, descriptions_of

AHEAD = 64  # batches that wait for a GPU: while they are trained on, the next window is made
ROOM = 8  # tokens more than there are bytes, at the edges of texts
IGNORE = -100  # the label of tokens that carry no loss
Encoded = dict[str, list[int]]  # {"input_ids": [t], "labels": [t]}
Draw = tuple[int, int, float]  # task, example, and where among the task's descriptions, from 0 to 1


def encode_prompts(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """User messages -> token ids through the chat template, up to where the answer starts."""
    return encode_chats(tokenizer, [[{"role": "user", "content": text}] for text in texts])


def encode_all(
    tokenizer, examples: Sequence[Example], descriptions: Sequence[str | None] | None = None
) -> list[Encoded]:
    """Examples -> `{"input_ids", "labels"}` through the chat template, the labels -100 on the prompt, ending as the
    template ends a turn, or else in eos.

    descriptions: one for each example, put in front of its input; None for the input alone.
    """
    descriptions = descriptions or [None] * len(examples)
    texts = [with_description(d, e["input"]) for e, d in zip(examples, descriptions, strict=True)]
    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": e["output"]}]
        for text, e in zip(texts, examples, strict=True)
    ]
    return [labelled(*pair) for pair in encode_answers(tokenizer, chats)]


def labelled(prompt: list[int], answer: list[int]) -> Encoded:
    """The token ids of a prompt and of its answer, which alone is labelled."""
    return {"input_ids": prompt + answer, "labels": [IGNORE] * len(prompt) + answer}


def encode(tokenizer, input: str, output: str, description: str | None = None) -> Encoded:
    """One example, as in `encode_all`."""
    return encode_all(tokenizer, [{"input": input, "output": output}], [description])[0]


def encode_task(tokenizer, task: Task, prompt_style: str = "input", split: str = "train") -> list[Encoded]:
    """All examples of a task's split. With the style "description_input" each has one of its descriptions, in turn."""
    examples = getattr(task, split)
    if prompt_style != "description_input":
        return encode_all(tokenizer, examples)
    texts = descriptions_of(task)
    return encode_all(tokenizer, examples, [texts[i % len(texts)] for i in range(len(examples))])


def row_length(model: PreTrainedModel, longest: int = 0) -> int:
    """The most tokens of a row: `longest`, or what the model was made for where that is less or `longest` is 0."""
    return min(longest or context_length(model), context_length(model))


def encode_tasks(
    tokenizer, tasks: Sequence[Task], longest: int, prompt_style: str = "input", split: str = "train", say: bool = True
) -> list[list[Encoded]]:
    """`encode_task` of each task without the rows of more than `longest` tokens; `say` prints how many these are.

    Raises `UserError` where a task is left without any.
    """
    encoded = [encode_task(tokenizer, task, prompt_style, split) for task in tasks]
    return _within(longest, tasks, [[len(row["input_ids"]) for row in rows] for rows in encoded], encoded, say)


def fitting_examples(
    tokenizer, tasks: Sequence[Task], longest: int, split: str = "train", say: bool = True
) -> list[list[Example]]:
    """Each task's examples whose row with the input alone has at most `longest` tokens; else as `encode_tasks`."""
    items = [getattr(task, split) for task in tasks]
    template = len(encode(tokenizer, "", "")["input_ids"]) + ROOM
    sizes = [[template + len((e["input"] + e["output"]).encode()) for e in own] for own in items]
    for own, of in zip(items, sizes, strict=True):  # a token has a byte at least: most need not be counted
        long = [i for i, size in enumerate(of) if size > longest]
        for i, row in zip(long, encode_all(tokenizer, [own[i] for i in long]), strict=True):
            of[i] = len(row["input_ids"])
    return _within(longest, tasks, sizes, items, say)


def _within(longest: int, tasks: Sequence[Task], sizes: list[list[int]], items: list[list], say: bool) -> list[list]:
    """Those `items` of each task whose size is at most `longest` tokens."""
    kept = [
        [item for item, size in zip(own, of, strict=True) if size <= longest]
        for own, of in zip(items, sizes, strict=True)
    ]
    for task, before, after in zip(tasks, items, kept, strict=True):
        if before and not after:
            raise UserError(
                f"All examples of the task {task.name!r} are longer than {longest} tokens: take it away, or raise "
                "--longest where the base model takes more."
            )
    whole, left = (sum(map(len, rows)) for rows in (items, kept))
    if say and left < whole:
        print(f"Left out {whole - left} of {whole} examples, which are longer than {longest} tokens.", flush=True)
    return kept


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


def loader(batches: Iterable[dict[str, Tensor]], device: str) -> DataLoader:
    """Ready batches, in their order. For a GPU a process of its own makes them, so that it need not wait for rows."""
    ahead = {} if device == "cpu" else {"num_workers": 1, "prefetch_factor": AHEAD, "worker_init_fn": _forked}
    # a generator of its own: a loader that draws from the global one would change the noise after a resume
    return DataLoader(batches, batch_size=None, generator=torch.Generator(), **ahead)


def _forked(worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as it is after a fork: else tokenizers says so at length


class RowMaker(Protocol):
    """Makes rows of draws, anew each time; training/parts/rows.py has one."""

    def encode(self, draws: Sequence[Draw], random: Random) -> list[Encoded]: ...


class Batches(IterableDataset):
    """Endless batches of like length, the same for the same seed, from any batch on.

    sources: one list of encoded examples a task, or of what `rows` makes them of.
    choices: for each source the ids that a draw takes one of (descriptions, or an adapter): `index` of a batch.
    weights: how often each source is drawn, in proportion; None: evenly, whatever its size.
    batch_size, passes, processes: an optimizer step is `passes` batches of `batch_size` rows in each of `processes`
    processes; what is drawn for it depends on their product alone, so that a step is the same however it is cut.
    process: whose batches these are. start: the number of this process's first batch.
    Within a window of steps the draws are sorted by length; then the steps are shuffled, in an order that depends
    on (seed, window) only through the window, so that the streams of several seeds stay alike in length.
    Yields {"input_ids" [b, t], "labels" [b, t], "index" [b], "attention_mask" [b, t]}, all int64; by the last, which
    no model needs, the Trainer counts tokens.
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
        passes: int = 1,
        process: int = 0,
        processes: int = 1,
        weights: Sequence[float] | None = None,
        rows: RowMaker | None = None,
    ):
        if not sources or not all(sources) or not all(len(c) for c in choices):
            raise UserError("There is a task without training examples or without descriptions.")
        self.sources, self.choices = sources, choices
        self.batch_size, self.pad_token_id = batch_size, pad_token_id
        self.seed, self.start, self.window = seed, start, window
        self.passes, self.process, self.processes = passes, process, processes
        self.weights = torch.tensor([1.0] * len(sources) if weights is None else weights, dtype=torch.float64)
        self.rows = rows

    def _window(self, number: int) -> list[list[tuple[Encoded, int]]]:
        """This process's batches of one window: each row with its choice."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        size, n = self.batch_size, len(self.sources)
        parts = self.passes * self.processes  # batches of a step
        count = self.window * size * parts
        # at even distances along the sources, each as long as its weight, so that each comes as often as it should
        order = torch.randperm(n, generator=random)
        ends = self.weights[order].cumsum(0)
        points = (torch.arange(count) + torch.rand(1, generator=random, dtype=torch.float64)) * (ends[-1] / count)
        chosen = order[torch.searchsorted(ends, points, right=True).clamp(max=n - 1)]
        chosen = chosen[torch.randperm(count, generator=random)].tolist()
        # floats in float64: one draw serves lists of any length
        picks = torch.rand(count, 2, generator=random, dtype=torch.float64).tolist()
        draws = [(s, int(p * len(self.sources[s])), q) for s, (p, q) in zip(chosen, picks, strict=True)]
        if self.rows is None:
            rows = [self.sources[s][e] for s, e, _ in draws]
        else:
            rows = self.rows.encode(draws, Random(f"{self.seed} {number}"))
        choices = [self.choices[s][int(q * len(self.choices[s]))] for s, _, q in draws]
        made = sorted(zip(rows, choices, strict=True), key=lambda pair: len(pair[0]["input_ids"]))
        steps = torch.randperm(self.window, generator=torch.Generator().manual_seed(number)).tolist()
        # the processes' batches of one pass lie side by side, so that none waits for another's longer rows
        firsts = [i * parts + j for i in steps for j in range(self.process, parts, self.processes)]
        return [made[first * size : (first + 1) * size] for first in firsts]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        number, skip = divmod(self.start, self.window * self.passes)
        while True:
            for pairs in self._window(number)[skip:]:
                batch = collate([row for row, _ in pairs], self.pad_token_id)
                batch["index"] = torch.tensor([choice for _, choice in pairs])
                lengths = torch.tensor([len(row["input_ids"]) for row, _ in pairs])
                batch["attention_mask"] = (torch.arange(batch["labels"].shape[1]) < lengths[:, None]).long()
                yield batch
            number, skip = number + 1, 0
