"""The order of the module types where a checkpoint does not say it: the one under which a few labelled examples are
likeliest."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hyperlora.adapted import AdaptedModel
from hyperlora.config import read_json
from hyperlora.generator import HyperLoRA
from hyperlora.likelihood import likelihoods
from hyperlora.presets import assets_dir
from hyperlora.prompt import with_description

ALL_ORDERS = 4  # of so many module types every order is tried; of more, only what swaps of two lead to

Order = tuple[str, ...]


def with_order(hyperlora: HyperLoRA, order: Sequence[str]) -> HyperLoRA:
    """The same network with its module types numbered in this order, which is then settled; it shares the tensors."""
    old = list(hyperlora.config.target_modules)
    modules = {name: hyperlora.config.target_modules[name] for name in order}
    state = hyperlora.state_dict()
    embeddings = state.pop("embeddings")
    if "network.ab_embedding" in state:  # unlike E[m], an A/B embedding is a module's by name
        state["network.ab_embedding"] = state["network.ab_embedding"][[old.index(name) for name in order]]
    with torch.device("meta"):  # shapes without memory
        new = HyperLoRA(replace(hyperlora.config, target_modules=modules, module_order_assumed=False))
    new.load_state_dict(state | {"embeddings": embeddings[:0]}, assign=True)
    new.set_descriptions(hyperlora.descriptions, embeddings)
    new.name, new._embedder = hyperlora.name, hyperlora._embedder
    return new.train(hyperlora.training)


@torch.no_grad()
def choose_order(hyperlora: HyperLoRA, adapted: AdaptedModel, tokenizer: PreTrainedTokenizerBase) -> HyperLoRA:
    """The network with the order of its module types settled: the one that gives assets/labelled.json the lowest loss.

    `adapted` is the base model with the network's targets; `tokenizer` has the chat template of training. A network
    that reads no descriptions comes back as it is. Each example costs a forward pass of as many rows as orders.
    """
    if hyperlora.config.task_input != "text":
        return hyperlora
    examples = read_json(assets_dir() / "labelled.json")
    task_inputs = hyperlora.embedder.embed([example["description"] for example in examples])
    best = tuple(hyperlora.config.target_modules)
    losses: dict[Order, float] = {}
    for _ in best:
        new = [order for order in _near(best) if order not in losses]
        if not new:
            break
        networks = [with_order(hyperlora, order).eval() for order in new]
        total = sum(
            _losses(networks, adapted, tokenizer, example, task_input)
            for example, task_input in zip(examples, task_inputs, strict=True)
        )
        losses |= zip(new, total.tolist(), strict=True)
        best = min(losses, key=losses.get)
    return with_order(hyperlora, best)


def _near(order: Order) -> list[Order]:
    """The order itself and those to try beside it."""
    if len(order) <= ALL_ORDERS:
        return list(permutations(order))
    return [order, *(tuple({a: b, b: a}.get(name, name) for name in order) for a, b in combinations(order, 2))]


def _losses(
    networks: Sequence[HyperLoRA],
    adapted: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    example: dict[str, str],
    task_input: Tensor,
) -> Tensor:
    """The answer's mean loss a token under each network's adapter, [networks]; one forward pass."""
    text = with_description(example["description"], example["input"], networks[0].config.prompt_style)
    chat = [{"role": "user", "content": text}, {"role": "assistant", "content": example["output"]}]
    adapters = [network.generate(embeddings=task_input[None])[0] for network in networks]
    return torch.tensor([row.loss for row in likelihoods(adapted, tokenizer, [chat] * len(adapters), adapters)])
