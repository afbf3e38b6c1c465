"""Whole answers of a batch: what evaluation shares with a local model that writes descriptions."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

from hyperlora.base import end_tokens
from hyperlora.batch import Batch, select
from hyperlora.chat import Options

LEFT = 0.75  # the batch is made smaller once so much of it is still being answered: a copy, which each row costs


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    tokenizer,
    prompts: Sequence[list[int]],
    max_new_tokens: int | Sequence[int],
    temperature: float = 0.0,
    using: Callable[[list[int]], AbstractContextManager] = lambda rows: nullcontext(),
) -> list[list[int]]:
    """Token ids of each prompt's answer, without the one that ends it; greedy where the temperature is 0.

    `max_new_tokens` may be given for each row. Rows that are done leave the batch, a quarter of it at a time, and
    `using(rows)`, the prompts that are still in it, is entered around their forwards: the adapters of those rows.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    device, ends = model.get_input_embeddings().weight.device, end_tokens(model, tokenizer)
    said = Options.said_by(model.generation_config) | {"do_sample": temperature > 0}
    options = Options(**said | ({"temperature": temperature} if temperature else {}))
    processors, answers = options.processors(), [[] for _ in prompts]
    only_last = "logits_to_keep" in signature(model.forward).parameters
    last = {"logits_to_keep": torch.tensor([-1])} if only_last else {}  # an index: see `ChatEngine`
    length = max(map(len, prompts))
    pad = torch.tensor([length - len(prompt) for prompt in prompts], device=device)
    tokens = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts], device=device)
    batch, left = Batch(list(range(len(prompts))), pad=pad), set(range(len(prompts)))
    while left:
        with using(batch.rows):
            while left and len(left) > LEFT * len(batch.rows):
                columns = torch.arange(batch.length + tokens.shape[1], device=device)
                logits = model(
                    input_ids=tokens,
                    attention_mask=(columns >= batch.pad[:, None]).long(),
                    position_ids=(columns[batch.length :] - batch.pad[:, None]).clamp(min=0),
                    past_key_values=batch.cache,
                    use_cache=True,
                    **last,
                ).logits[:, -1]
                batch.length = len(columns)
                texts = [prompts[row] + answers[row] for row in batch.rows] if processors is not None else []
                chosen = _choose(logits, texts, processors, options.do_sample).tolist()
                for row, token in zip(batch.rows, chosen, strict=True):
                    if row in left and token not in ends:
                        answers[row].append(token)
                    if token in ends or len(answers[row]) == limits[row]:
                        left.discard(row)
                tokens = torch.tensor(chosen, device=device)[:, None]
        token_of = dict(zip(batch.rows, chosen, strict=True))
        batch = select(batch, [i for i, row in enumerate(batch.rows) if row in left])
        tokens = torch.tensor([[token_of[row]] for row in batch.rows], device=device)
    return answers


def _choose(logits: Tensor, texts: Sequence[list[int]], processors: LogitsProcessorList | None, sample: bool) -> Tensor:
    """logits [rows, vocabulary] of the rows' texts so far -> token ids [rows]."""
    if processors is None:
        return logits.argmax(dim=-1)
    rows = zip(texts, logits.float().split(1), strict=True)
    scores = torch.cat([processors(torch.tensor([text], device=logits.device), row) for text, row in rows])
    return torch.multinomial(scores.softmax(dim=-1), 1)[:, 0] if sample else scores.argmax(dim=-1)
