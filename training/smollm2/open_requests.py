"""Open requests (explain it to a child, be a pirate, write a haiku), which no text answers alone: how near a model with
the message alone comes to the base with the request in its prompt."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperlora.adapted import AdaptedModel
from hyperlora.config import read_json
from hyperlora.lora import Adapter
from hyperlora.prompt import encode_answers, encode_texts, with_description
from training.parts.answers import Answers
from training.parts.batches import encode_prompts
from training.parts.metrics import loops
from training.parts.scoring import answer

PATH = Path(__file__).with_name("open_evaluation.json")
ROWS = 4  # of a forward whose logits are compared: each has tokens times vocabulary of them, twice


@dataclass(frozen=True)
class OpenRequest:
    """What somebody wants once of all answers, and messages."""

    description: str
    messages: tuple[str, ...]


def open_requests(path: str | Path = PATH) -> list[OpenRequest]:
    """Forty of ours with five messages each, on which nothing is trained."""
    return [OpenRequest(entry["description"], tuple(entry["messages"])) for entry in read_json(path)]


def measure_open(
    adapted: AdaptedModel,
    tokenizer,
    requests: Sequence[OpenRequest],
    methods: dict[str, Sequence[Adapter | None]],
    max_new_tokens: int,
    batch_size: int = 256,
    saved: Answers | None = None,
) -> list[dict]:
    """One row a method and request; the first are those of the prompted base itself, "base, prompted".

    methods: name -> an adapter for each request, or None for the base, to be asked with the message alone. A row:
    {"method", "request", "kl", "length", "loops"}: the request's number; nats per token of the prompted base's greedy
    answer from its distribution to the method's, teacher-forced; the mean length of the method's own greedy answers in
    tokens, both cut at `max_new_tokens`; how many of them loop.
    """
    asked = [(request, message) for request in requests for message in request.messages]
    of = [i for i, request in enumerate(requests) for _ in request.messages]
    prompted = encode_prompts(tokenizer, [with_description(r.description, message) for r, message in asked])
    alone = encode_prompts(tokenizer, [message for _, message in asked])

    def answers(prompts: list[list[int]], adapters: Sequence[Adapter | None]) -> list[str]:
        return answer(adapted, tokenizer, prompts, adapters, max_new_tokens, batch_size, saved)

    wanted = answers(prompted, [None] * len(asked))
    chats = [
        [{"role": "user", "content": message}, {"role": "assistant", "content": text}]
        for (_, message), text in zip(asked, wanted, strict=True)
    ]
    forced = [ids[:max_new_tokens] for _, ids in encode_answers(tokenizer, chats)]
    said = {"base, prompted": (wanted, [0.0] * len(asked))}
    for method, each in methods.items():
        adapters = [each[i] for i in of]
        said[method] = answers(alone, adapters), _kl(adapted, prompted, alone, forced, adapters)
    rows = []
    for method, (texts, kl) in said.items():
        lengths = list(map(len, encode_texts(tokenizer, texts)))
        for i in range(len(requests)):
            own = [row for row, number in enumerate(of) if number == i]
            rows.append(
                {
                    "method": method,
                    "request": i,
                    "kl": statistics.fmean(kl[row] for row in own),
                    "length": statistics.fmean(lengths[row] for row in own),
                    "loops": sum(loops(texts[row]) for row in own),
                }
            )
    return rows


@torch.no_grad()
def _kl(
    adapted: AdaptedModel,
    prompted: Sequence[list[int]],
    alone: Sequence[list[int]],
    forced: Sequence[list[int]],
    adapters: Sequence[Adapter | None],
) -> list[float]:
    """KL(prompted base || model with the message alone) of each row, a mean over the tokens of the forced answer."""
    found = [math.nan] * len(forced)
    for _, group in groupby(range(len(forced)), key=lambda row: id(adapters[row])):
        rows = list(group)
        slot = None if adapters[rows[0]] is None else adapted.load(adapters[rows[0]])
        for first in range(0, len(rows), ROWS):
            part = rows[first : first + ROWS]
            answers = [forced[row] for row in part]
            base = _log_probabilities(adapted, [prompted[row] for row in part], answers, None)
            model = _log_probabilities(adapted, [alone[row] for row in part], answers, slot)
            kl = F.kl_div(model, base, reduction="none", log_target=True).sum(-1)
            for i, row in enumerate(part):
                found[row] = kl[i, : len(forced[row])].mean().item()
        if slot is not None:
            adapted.unload(slot)
    return found


def _log_probabilities(
    adapted: AdaptedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]], slot: int | None
) -> Tensor:
    """Of every token of the answers, float32 [b, longest answer, vocabulary]; what follows a shorter one means nothing.

    Prompts end, and answers begin, in the same column.
    """
    device, before = adapted.model.get_input_embeddings().weight.device, max(map(len, prompts))
    after = max(map(len, answers))
    padded = [[0] * (before - len(p)) + p + a + [0] * (after - len(a)) for p, a in zip(prompts, answers, strict=True)]
    pad = torch.tensor([before - len(p) for p in prompts], device=device)[:, None]
    columns = torch.arange(before + after, device=device)
    with adapted.use([slot] * len(prompts)):
        logits = adapted.model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=(columns >= pad).long(),
            position_ids=(columns - pad).clamp(min=0),
            use_cache=False,
            logits_to_keep=after + 1,
        ).logits[:, :-1]
    return logits.float().log_softmax(-1)
