"""Whole answers of a batch: what evaluation shares with a local model that writes descriptions."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import takewhile

import torch
from transformers import GenerationConfig, PreTrainedModel

from hyperlora.base import end_tokens
from hyperlora.chat import Options


@torch.no_grad()
def decode(
    model: PreTrainedModel, tokenizer, prompts: Sequence[list[int]], max_new_tokens: int, temperature: float = 0.0
) -> list[list[int]]:
    """Token ids of each prompt's answer, without the one that ends it; greedy where the temperature is 0."""
    length, device = max(map(len, prompts)), model.get_input_embeddings().weight.device
    ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    ends = end_tokens(model, tokenizer)
    said = Options.said_by(model.generation_config) | {
        "do_sample": temperature > 0,
        "max_new_tokens": min(max_new_tokens, 10**6),
    }
    options = Options(**said | ({"temperature": temperature} if temperature else {}))
    config = GenerationConfig(  # all of it said, since what is not is filled in from the model's
        eos_token_id=sorted(ends) or None,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **asdict(options),
    )
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, length:].tolist()
    return [list(takewhile(lambda token: token not in ends, row)) for row in out]
