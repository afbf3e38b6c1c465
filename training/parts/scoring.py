"""Answers of an adapted base to many prompts at once, each row with its own adapter, and their exact match."""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hyperlora.adapted import AdaptedModel
from hyperlora.base import context_length
from hyperlora.config import PromptStyle
from hyperlora.lora import Adapter
from hyperlora.prompt import encode_chats, encode_texts, with_description
from training.parts.batches import encode_prompts
from training.parts.decode import decode
from training.parts.kinds import NO_DESCRIPTION
from training.parts.metrics import accepted, exact_match
from training.tasks import Example, Task

TEMPLATE = 128  # tokens that a chat template is allowed before they are counted


@torch.no_grad()
def answer(
    adapted: AdaptedModel,
    tokenizer,
    prompts: Sequence[list[int]],
    adapters: Sequence[Adapter | None],
    max_new_tokens: int | Sequence[int] = 64,
    batch_size: int = 256,
) -> list[str]:
    """Greedy answers to token ids of prompts, each with its own adapter or none, stripped of surrounding space.

    Rows of like length share a forward, whatever their adapters. `max_new_tokens` may be given for each row; a row's
    answer is cut there or later.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    answers = [""] * len(prompts)
    by_adapter: dict[int, list[int]] = defaultdict(list)
    for row, adapter in enumerate(adapters):
        by_adapter[id(adapter)].append(row)
    groups = list(by_adapter.values())
    for first in range(0, len(groups), adapted.max_adapters):  # as many adapters as there are slots
        part = groups[first : first + adapted.max_adapters]
        slots = {}
        for rows in part:
            adapter = adapters[rows[0]]
            slots[id(adapter)] = None if adapter is None else adapted.load(adapter)
        order = sorted((row for rows in part for row in rows), key=lambda row: (limits[row], len(prompts[row])))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            with adapted.use([slots[id(adapters[row])] for row in rows]):
                found = decode(adapted.model, tokenizer, [prompts[r] for r in rows], max(limits[r] for r in rows))
            texts = tokenizer.batch_decode(found, skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text.strip()
        for slot in slots.values():
            if slot is not None:
                adapted.unload(slot)
    return answers


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


def respond(
    adapted: AdaptedModel, tokenizer, trials: Sequence[Trial], batch_size: int = 256, max_new_tokens: int | None = None
) -> list[list[str]]:
    """Answers to each trial's examples, all trials in shared batches.

    An answer is cut after `max_new_tokens`, or, with None, where it is longer than every accepted output: an exact
    match needs no more of it. Of a trial's shots the first are left out where the context is too short for all.
    """
    examples = [(trial, example) for trial in trials for example in trial.examples]
    texts = [with_description(trial.description, example["input"], trial.style) for trial, example in examples]
    if not examples:
        return [[] for _ in trials]
    outputs = [accepted(example) for _, example in examples]
    flat = [" " + output for part in outputs for output in part]  # with the space that some templates put there
    lengths = map(len, encode_texts(tokenizer, flat))
    limits = [max(itertools.islice(lengths, len(part))) + 2 for part in outputs]
    prompts, context = encode_prompts(tokenizer, texts), context_length(adapted.model)
    if max_new_tokens is not None:
        limits = [max(1, min(max_new_tokens, context - len(prompt))) for prompt in prompts]
    for row, (trial, _) in enumerate(examples):
        if trial.shots:
            longest = context - limits[row]
            prompts[row] = _with_shots(tokenizer, trial.shots, texts[row], longest) or prompts[row]
    answers = iter(answer(adapted, tokenizer, prompts, [trial.adapter for trial, _ in examples], limits, batch_size))
    return [list(itertools.islice(answers, len(trial.examples))) for trial in trials]


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


def _with_shots(tokenizer, shots: Sequence[Example], text: str, longest: int) -> list[int] | None:
    """The chat's token ids with as many of the last shots as fit in `longest`; None where not even one does."""
    for first in range(len(shots)):
        turns = [(shot["input"], shot["output"]) for shot in shots[first:]]
        chat = [{"role": r, "content": t} for turn in turns for r, t in zip(("user", "assistant"), turn, strict=True)]
        chat.append({"role": "user", "content": text})
        [ids] = encode_chats(tokenizer, [chat])
        if len(ids) <= longest:
            return ids
    return None


def score(adapted: AdaptedModel, tokenizer, trials: Sequence[Trial], batch_size: int = 256) -> list[float]:
    """Exact match of each trial, 0 to 1, a mean over its examples; all trials are answered in shared batches."""
    return [
        mean_score(exact_match, trial, texts)
        for trial, texts in zip(trials, respond(adapted, tokenizer, trials, batch_size), strict=True)
    ]


def mean_score(metric, trial: Trial, answers: Sequence[str]) -> float:
    return statistics.fmean(
        metric(text, accepted(example)) for text, example in zip(answers, trial.examples, strict=True)
    )
