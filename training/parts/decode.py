"""Whole answers of a batch: what evaluation shares with a local model that writes descriptions."""

from collections.abc import Sequence
from itertools import takewhile

import torch
from transformers import GenerationConfig, PreTrainedModel

from hyperlora.base import end_tokens


@torch.no_grad()
def decode(
    model: PreTrainedModel, tokenizer, prompts: Sequence[list[int]], max_new_tokens: int, temperature: float = 0.0
) -> list[list[int]]:
    """Token ids of each prompt's answer, without the one that ends it; greedy where the temperature is 0."""
    length, device = max(map(len, prompts)), model.get_input_embeddings().weight.device
    ids = torch.tensor([[tokenizer.pad_token_id] * (length - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    ends = end_tokens(model, tokenizer)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends) or None,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, length:].tolist()
    return [list(takewhile(lambda token: token not in ends, row)) for row in out]
