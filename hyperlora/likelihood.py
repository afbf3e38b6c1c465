"""How likely given answers are under adapters: what descriptions are ranked by, and where adapter and base disagree."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hyperlora.adapted import AdaptedModel
from hyperlora.base import context_length, device_of
from hyperlora.errors import UserError
from hyperlora.lora import Adapter
from hyperlora.prompt import Message, encode_answers

if TYPE_CHECKING:
    from hyperlora.pipe import Chat, Pipeline


MAX_TOKENS = 4_096  # of a forward pass, each of which has a logit for every word of the vocabulary


@dataclass(frozen=True)
class Likelihood:
    """Of one answer, its end token included: all [tokens]."""

    ids: list[int]
    log_probs: Tensor
    """Of each token behind those before it, float32."""
    best: list[int]
    """The likeliest token at each place."""

    @property
    def loss(self) -> float:
        """Mean negative log-probability of a token."""
        return -float(self.log_probs.mean())


@torch.inference_mode()
def likelihoods(
    adapted: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[list[Message]],
    adapters: Sequence[Adapter | None],
) -> list[Likelihood]:
    """Chats whose last message is the answer, each under its own adapter or none, as many at once as memory has room
    for their logits.

    At most as many adapters as there are free slots. Runs where no other forward pass does: in `ChatEngine.call`.
    """
    pairs = encode_answers(tokenizer, chats)
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    if longest > context_length(adapted.model):
        raise UserError(
            f"Prompt and answer are {longest:,} tokens long, and the model reads {context_length(adapted.model):,}: "
            "shorten them."
        )
    slots: dict[int, int] = {}
    found: list[Likelihood] = []
    at_once = max(1, MAX_TOKENS // longest)
    try:
        for adapter in adapters:
            if adapter is not None and id(adapter) not in slots:
                slots[id(adapter)] = adapted.load(adapter, pinned=True)
        for first in range(0, len(pairs), at_once):
            rows = [None if one is None else slots[id(one)] for one in adapters[first : first + at_once]]
            found += _pass(adapted, pairs[first : first + at_once], rows)
    finally:
        for slot in slots.values():
            adapted.unload(slot)
    return found


def _pass(adapted: AdaptedModel, pairs: list[tuple[list[int], list[int]]], slots: list[int | None]) -> list[Likelihood]:
    """Rows of (prompt, answer) token ids, each with a slot, in one forward pass."""
    length = max(len(prompt) + len(answer) for prompt, answer in pairs)
    first = min(len(prompt) for prompt, _ in pairs) - 1
    device = device_of(adapted.model.get_input_embeddings())
    # Right-padded: causal attention never looks there.
    ids = torch.tensor([[*p, *a] + [0] * (length - len(p) - len(a)) for p, a in pairs], device=device)
    only = {"logits_to_keep": torch.arange(first, length - 1, device=device)}
    if "logits_to_keep" not in signature(adapted.model.forward).parameters:
        only, first = {}, 0
    with adapted.use(slots):
        logits = adapted.model(input_ids=ids, use_cache=False, **only).logits
    found = []
    for row, (prompt, answer) in zip(logits, pairs, strict=True):
        at = len(prompt) - 1 - first
        log_probs = row[at : at + len(answer)].float().log_softmax(dim=-1)
        targets = torch.tensor(answer, device=log_probs.device)
        own = log_probs.gather(1, targets[:, None])[:, 0].cpu()
        found.append(Likelihood(answer, own, log_probs.argmax(dim=-1).tolist()))
    return found


@dataclass(frozen=True)
class Token:
    """A piece of an answer, with its log-probability under the adapter and under the base, and what that would say."""

    text: str
    adapted: float
    base: float
    instead: str


def disagreements(
    pipe: "Pipeline", messages: "Chat", answer: str, adapter: Adapter, describe: bool | None = None
) -> list[Token]:
    """An answer token by token, under its adapter and without, after the same prompt. Its end is the last token.

    Raises `UserError` where prompt and answer are longer than the context.
    """
    chat = [*pipe.prepare(messages, adapter, describe), {"role": "assistant", "content": answer}]
    own, base = pipe.engine.call(lambda: likelihoods(pipe.adapted, pipe.tokenizer, [chat] * 2, [adapter, None]))
    texts = [pipe.tokenizer.decode(own.ids[:n], skip_special_tokens=True) for n in range(len(own.ids) + 1)]
    return [
        Token(after[len(before) :], float(a), float(b), pipe.tokenizer.decode([instead], skip_special_tokens=True))
        for before, after, a, b, instead in zip(
            texts, texts[1:], own.log_probs, base.log_probs, base.best, strict=False
        )
    ]
