"""Answers of an adapted base to many prompts at once, each row with its own adapter, and how good they are."""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from hyperlora.adapted import AdaptedModel
from hyperlora.base import context_length
from hyperlora.config import PromptStyle
from hyperlora.lora import Adapter
from hyperlora.marking import same_answer
from hyperlora.prompt import encode_chats, encode_texts, with_description
from training.parts.answers import Answers
from training.parts.batches import encode_prompts
from training.parts.decode import decode
from training.parts.kinds import NO_DESCRIPTION
from training.parts.metrics import accepted, contains, exact_match, token_f1
from training.tasks import Example, Task

TEMPLATE = 128  # tokens that a chat template is allowed before they are counted
BATCH_TOKENS = 2**14  # of prompts and answers decoded together: what their keys and values take


@torch.no_grad()
def answer(
    adapted: AdaptedModel,
    tokenizer,
    prompts: Sequence[list[int]],
    adapters: Sequence[Adapter | None],
    max_new_tokens: int | Sequence[int] = 64,
    batch_size: int = 256,
    saved: Answers | None = None,
    router: str = "",
) -> list[str]:
    """Greedy answers to token ids of prompts, each with its own adapter or none, stripped of surrounding space.

    Rows of like length share a forward, whatever their adapters. `max_new_tokens` may be given for each row. What is in
    `saved` is not decoded, and what is decoded is put there batch by batch; router: as in `Answers.key`.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    saved = Answers() if saved is None else saved
    keys = [saved.key(*row, router) for row in zip(prompts, adapters, limits, strict=True)]
    new = {key: row for row, key in enumerate(keys) if key not in saved.found}
    by_adapter: dict[int, list[int]] = defaultdict(list)
    for row in new.values():
        by_adapter[id(adapters[row])].append(row)
    groups = list(by_adapter.values())
    for first in range(0, len(groups), adapted.max_adapters):  # as many adapters as there are slots
        part = groups[first : first + adapted.max_adapters]
        slots = {}
        for rows in part:
            adapter = adapters[rows[0]]
            slots[id(adapter)] = None if adapter is None else adapted.load(adapter)
        order = sorted((row for rows in part for row in rows), key=lambda row: len(prompts[row]) + limits[row])
        for rows in _batches(order, [len(prompts[row]) + limits[row] for row in order], batch_size):
            of_rows = [slots[id(adapters[row])] for row in rows]
            found = decode(
                adapted.model,
                tokenizer,
                [prompts[row] for row in rows],
                [limits[row] for row in rows],
                using=lambda left, of_rows=of_rows: adapted.use([of_rows[i] for i in left]),
            )
            texts = tokenizer.batch_decode(found, skip_special_tokens=True)
            saved.add({keys[row]: text.strip() for row, text in zip(rows, texts, strict=True)})
        for slot in slots.values():
            if slot is not None:
                adapted.unload(slot)
    return [saved.found[key] for key in keys]


def _batches(rows: Sequence[int], lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """The rows, whose lengths ascend, in batches of at most so many of them, and of `BATCH_TOKENS` with padding."""
    batch: list[int] = []
    for row, length in zip(rows, lengths, strict=True):
        if batch and (len(batch) == batch_size or (len(batch) + 1) * length > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@dataclass
class Trial:
    """A task's examples answered in one way."""

    task: Task
    examples: Sequence[Example]
    kind: str = NO_DESCRIPTION
    description: str | None = None
    adapter: Adapter | None = None
    style: PromptStyle = "input"  # whether the description is in the prompt too
    shots: Sequence[Example] = ()  # examples in front of the prompt, as turns of the chat


def just_enough(longest: int) -> int:
    """Tokens of an answer that an exact match needs, the longest accepted output having so many."""
    return longest + 2


def respond(
    adapted: AdaptedModel,
    tokenizer,
    trials: Sequence[Trial],
    batch_size: int = 256,
    limit: Callable[[int], int] = just_enough,
    saved: Answers | None = None,
    router: str = "",
) -> list[list[str]]:
    """Answers to each trial's examples, all trials in shared batches; saved, router: as in `answer`.

    limit: the most tokens of the outputs that an example accepts -> the most tokens that an answer to it may have; it
    ends with the context too. A trial's shots, then an example's own earlier turns are in front of its input, and the
    description, where it is in the prompt, in front of the first of them, as in chat; the first turns are left out
    where the context is too short for all.
    """
    examples = [(trial, example) for trial in trials for example in trial.examples]
    if not examples:
        return [[] for _ in trials]
    outputs = [accepted(example) for _, example in examples]
    flat = [" " + output for part in outputs for output in part]  # with the space that some templates put there
    lengths = map(len, encode_texts(tokenizer, flat))
    context = context_length(adapted.model)
    turns = [_turns(trial, example) for trial, example in examples]
    prompts = encode_chats(
        tokenizer, [_chat(trial, before, each["input"]) for (trial, each), before in zip(examples, turns, strict=True)]
    )
    limits = [limit(max(itertools.islice(lengths, len(part)))) for part in outputs]
    for row, (trial, example) in enumerate(examples):
        while turns[row] and len(prompts[row]) + limits[row] > context:
            turns[row] = turns[row][1:]
            [prompts[row]] = encode_chats(tokenizer, [_chat(trial, turns[row], example["input"])])
        limits[row] = max(1, min(limits[row], context - len(prompts[row])))
    adapters = [trial.adapter for trial, _ in examples]
    answers = iter(answer(adapted, tokenizer, prompts, adapters, limits, batch_size, saved, router))
    return [list(itertools.islice(answers, len(trial.examples))) for trial in trials]


def _turns(trial: Trial, example: Example) -> list[tuple[str, str]]:
    """The messages and answers in front of an example."""
    return [*((shot["input"], shot["output"]) for shot in trial.shots), *map(tuple, example.get("turns", ()))]


def _chat(trial: Trial, turns: Sequence[tuple[str, str]], text: str) -> list[dict[str, str]]:
    roles = itertools.cycle(("user", "assistant"))
    said = [*(part for turn in turns for part in turn), text]
    said[0] = with_description(trial.description, said[0], trial.style)
    return [{"role": role, "content": content} for role, content in zip(roles, said, strict=False)]


def fitting(adapted: AdaptedModel, tokenizer, task: Task, examples: Sequence[Example]) -> list[Example]:
    """The task's examples that fit the base's context with every accepted answer; says how many others there are."""
    found = [example for example in examples if _fits(adapted, tokenizer, example["input"], accepted(example))]
    if len(found) < len(examples):
        left, context = len(examples) - len(found), context_length(adapted.model)
        print(
            f"{task.name}: left out {left} of {len(examples)} test examples, too long for a context of {context}.",
            flush=True,
        )
    return found


def fitting_trials(adapted: AdaptedModel, tokenizer, trials: Sequence[Trial]) -> list[Trial]:
    """The trials whose description fits the base's context too, in front of each example, where it is in the prompt."""

    def fits(trial: Trial) -> bool:
        return trial.style == "input" or all(
            _fits(adapted, tokenizer, with_description(trial.description, each["input"], trial.style), accepted(each))
            for each in trial.examples
        )

    found = [trial for trial in trials if fits(trial)]
    if len(found) < len(trials):
        left, context = len(trials) - len(found), context_length(adapted.model)
        print(f"Left out {left} of {len(trials)} descriptions, too long for a context of {context}.", flush=True)
    return found


def _fits(adapted: AdaptedModel, tokenizer, text: str, outputs: Sequence[str]) -> bool:
    context = context_length(adapted.model)
    most = TEMPLATE + max(len(part.encode()) for part in outputs) + len(text.encode())
    if most <= context:  # a token has a byte at least
        return True
    [prompt] = encode_prompts(tokenizer, [text])
    return len(prompt) + max(map(len, encode_texts(tokenizer, [" " + output for output in outputs]))) + 2 <= context


def score(adapted: AdaptedModel, tokenizer, trials: Sequence[Trial], batch_size: int = 256) -> list[float]:
    """Exact match of each trial, 0 to 1, a mean over its examples; all trials are answered in shared batches."""
    return [
        mean_score(exact_match, trial, texts)
        for trial, texts in zip(trials, respond(adapted, tokenizer, trials, batch_size), strict=True)
    ]


def is_long(task: Task, above: int) -> bool:
    """Whether the median answer of its tests has more than so many characters."""
    return statistics.median(len(example["output"]) for example in task.test) > above


def chat_scores(trial: Trial, answers: Sequence[str], f1_above: int) -> dict[str, float]:
    """ "score", `same_answer` or, for a task of long answers, `token_f1`, and "contains": means over its examples."""
    pairs = list(zip(answers, trial.examples, strict=True))
    if is_long(trial.task, f1_above):
        scores = [token_f1(text, accepted(example)) for text, example in pairs]
    else:
        scores = [same_answer(text, accepted(example), example["input"]) for text, example in pairs]
    found = statistics.fmean(contains(text, accepted(example)) for text, example in pairs)
    return {"score": statistics.fmean(scores), "contains": found}


def mean_score(metric, trial: Trial, answers: Sequence[str]) -> float:
    return statistics.fmean(
        metric(text, accepted(example)) for text, example in zip(answers, trial.examples, strict=True)
    )
