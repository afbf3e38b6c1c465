"""From examples to descriptions: those that the hypernetwork was trained with, tried and ranked by how likely the
examples' answers are under their adapters."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperlora.errors import UserError
from hyperlora.likelihood import likelihoods

if TYPE_CHECKING:
    from hyperlora.pipe import Pipeline

Example = tuple[str, str]
LEAST, MOST = 2, 20  # examples that are taken
LONGEST = 2_000  # characters of an input or an output
ENOUGH = 6  # of which half are held out, for the descriptions to be tried on
READ = 6  # examples that a description is ranked by
ALIKE, SPREAD, NEAR = 16, 96, 16  # candidates: like the examples' own words, all over, and beside each of the best
AT_ONCE = 4


@dataclass(frozen=True)
class Suggestion:
    """A description, and the mean loss a token of the examples' answers under its adapter."""

    description: str
    loss: float


def split(examples: Sequence[Example], seed: int = 0) -> tuple[list[Example], list[Example]]:
    """The examples that descriptions are made and ranked by, and those that they are tried on: a half each, drawn by
    `seed`; all are both where there are fewer than six. `UserError` for too few, too many and too long ones."""
    if not LEAST <= len(examples) <= MOST:
        raise UserError(f"Give {LEAST} to {MOST} examples: there are {len(examples)}.")
    for number, example in enumerate(examples, 1):
        if max(map(len, example)) > LONGEST:
            raise UserError(f"Example {number} has more than {LONGEST:,} characters on a side: shorten it.")
    if len(examples) < ENOUGH:
        return list(examples), list(examples)
    order = Random(seed).sample(range(len(examples)), len(examples))
    half = (len(examples) + 1) // 2
    return [examples[i] for i in sorted(order[:half])], [examples[i] for i in sorted(order[half:])]


def suggest(
    pipe: "Pipeline", examples: Sequence[Example], given: Iterable[str] = (), count: int = 5
) -> Iterator[list[Suggestion]]:
    """(input, output) pairs -> the best `count` descriptions so far, the best first, again and again as more are tried.

    First those of the hypernetwork's training that are like the examples in words, and some that are spread over all;
    then `given`, descriptions from elsewhere, which may come late; last those of the training beside the best.
    """
    tried: dict[str, float] = {}

    def best() -> list[Suggestion]:
        ranked = sorted(tried.items(), key=lambda item: item[1])
        return [Suggestion(*item) for item in ranked[:count]]

    for make in (
        lambda: _alike(pipe, examples),
        lambda: _spread(pipe),
        lambda: given,
        lambda: _near(pipe, best()),
    ):
        new = [text for text in dict.fromkeys(make()) if text not in tried]
        for first in range(0, len(new), AT_ONCE):
            part = new[first : first + AT_ONCE]
            tried |= zip(part, pipe.engine.call(lambda part=part: _losses(pipe, examples[:READ], part)), strict=True)
            yield best()


def _losses(pipe: "Pipeline", examples: Sequence[Example], descriptions: list[str]) -> list[float]:
    """The mean loss a token under each description's adapter; one forward pass, in the engine's thread."""
    adapters = pipe.hyperlora.generate(descriptions)
    rows = [(adapter, example) for adapter in adapters for example in examples]
    chats = [
        [*pipe.prepare(question, adapter), {"role": "assistant", "content": answer}]
        for adapter, (question, answer) in rows
    ]
    found = likelihoods(pipe.adapted, pipe.tokenizer, chats, [adapter for adapter, _ in rows])
    n = len(examples)
    return [
        -float(torch.cat([each.log_probs for each in found[i * n : i * n + n]]).mean()) for i in range(len(adapters))
    ]


def _unit(pipe: "Pipeline") -> Tensor:
    return F.normalize(pipe.hyperlora.embeddings.float(), dim=-1)  # [descriptions, d_emb]


def _alike(pipe: "Pipeline", examples: Sequence[Example]) -> list[str]:
    """The training descriptions that are nearest to the examples themselves, as text."""
    if not pipe.hyperlora.descriptions:
        return []
    texts = [f"{question} {answer}"[:500] for question, answer in examples[:READ]]
    asked = pipe.engine.call(lambda: pipe.hyperlora.embedder.embed(texts)).to(pipe.hyperlora.embeddings.device)
    cosine = (F.normalize(asked.float(), dim=-1) @ _unit(pipe).T).mean(dim=0)
    return [pipe.hyperlora.descriptions[i] for i in cosine.topk(min(ALIKE, len(cosine))).indices.tolist()]


def _spread(pipe: "Pipeline") -> list[str]:
    """Training descriptions from all over: each the middle one of those that are nearest to one of the centres, which
    lie as far from each other as they can."""
    unit = _unit(pipe)
    if not len(unit):
        return []
    centres = [0]
    nearest = unit @ unit[0]
    while len(centres) < min(SPREAD, len(unit)):
        centres.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, unit @ unit[centres[-1]])
    cells = (unit @ unit[centres].T).argmax(dim=1)
    found = []
    for cell in range(len(centres)):
        own = (cells == cell).nonzero()[:, 0]
        if len(own):
            found.append(int(own[(unit[own] @ unit[own].mean(dim=0)).argmax()]))
    return [pipe.hyperlora.descriptions[i] for i in found]


def _near(pipe: "Pipeline", best: Sequence[Suggestion]) -> list[str]:
    """The training descriptions beside the best ones."""
    places = {text: i for i, text in enumerate(pipe.hyperlora.descriptions)}
    unit, found = _unit(pipe), []
    for suggestion in best[:3]:
        if (at := places.get(suggestion.description)) is not None:
            near = (unit @ unit[at]).topk(min(NEAR, len(unit))).indices
            found += [pipe.hyperlora.descriptions[i] for i in near.tolist()]
    return found
