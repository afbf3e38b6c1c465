"""Where a checkpoint does not say which module type is which, the loss on labelled examples does."""

import json
from itertools import permutations

import pytest
import torch

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.config import HyperLoRAConfig
from hyperlora.generator import HyperLoRA
from hyperlora.interop.order import choose_order, with_order
from hyperlora.presets import assets_dir

MODULES = {"q_proj": (64, 64), "k_proj": (64, 32), "v_proj": (64, 32), "o_proj": (64, 64), "up_proj": (64, 128)}


def random_hyperlora(minilm, names: list[str], **fields) -> HyperLoRA:
    """A network whose adapters change the tiny base's answers, each module type's in another way."""
    modules = {name: MODULES[name] for name in names}
    torch.manual_seed(0)
    fields = {"head": "M", "num_layers": 2, "d_emb": 384, "module_order_assumed": True} | fields
    hyperlora = HyperLoRA(HyperLoRAConfig(target_modules=modules, **fields)).eval()
    with torch.no_grad():
        for head in hyperlora.network.heads.values():
            torch.nn.init.normal_(head.weight, std=1.0)
    hyperlora.embedder = minilm
    return hyperlora


@pytest.mark.parametrize("head", ["L", "M", "S", "R"])
def test_another_order_is_another_row_of_the_module_types_embedding(minilm, head):
    hyperlora = random_hyperlora(minilm, ["q_proj", "v_proj"], head=head)
    other = with_order(hyperlora, ["v_proj", "q_proj"])
    assert list(other.config.target_modules) == ["v_proj", "q_proj"] and not other.config.module_order_assumed
    with torch.no_grad():
        [swapped] = other.generate("Reverse the words.")
        encoder = hyperlora.network.module_encoder[0]
        encoder.weight.copy_(encoder.weight.flip(0).clone())
        [wanted] = hyperlora.generate("Reverse the words.")
    for name in MODULES.keys() & wanted.weights.keys():
        torch.testing.assert_close(swapped.weights[name], wanted.weights[name])


def loss_of_merged(tiny_base, hyperlora: HyperLoRA, order) -> float:
    """The examples' loss in that order, as `transformers` computes it for bases with the adapters in their weights."""
    total, network = 0.0, with_order(hyperlora, order)
    for example in json.loads((assets_dir() / "labelled.json").read_text()):
        model, tokenizer = load_base(tiny_base)
        [adapter] = network.generate(example["description"])
        for name, layer, linear in AdaptedModel(model, list(adapter.weights)).linears():
            linear.weight += adapter.delta_w(name, layer)
        between = {"input": None, "description_input": "\n", "definition_input": "\n\n"}[hyperlora.config.prompt_style]
        described = example["description"] + between if between else ""
        prompt = f"<s>[INST] {described}{example['input']} [/INST]"
        texts = (prompt, " " + example["output"])  # the space is the template's, as in training
        prompt, answer = (tokenizer(text, add_special_tokens=False).input_ids for text in texts)
        answer = [*answer, tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            total += model(input_ids=torch.tensor([prompt + answer]), labels=labels).loss.item()
    return total


@pytest.mark.parametrize("prompt_style", ["input", "description_input", "definition_input"])
@pytest.mark.parametrize("names", [["q_proj", "v_proj"], ["up_proj", "q_proj", "v_proj"]])
def test_the_order_with_the_lowest_loss_is_chosen(names, prompt_style, tiny_base, minilm):
    hyperlora = random_hyperlora(minilm, names, prompt_style=prompt_style)
    losses = {order: loss_of_merged(tiny_base, hyperlora, order) for order in permutations(names)}
    best = min(losses, key=losses.get)
    assert sorted(losses.values())[1] > losses[best] + 1e-3

    model, tokenizer = load_base(tiny_base)
    adapted = AdaptedModel(model, {name: MODULES[name] for name in names})
    for given in (best, best[::-1]):
        assumed = with_order(hyperlora, given)
        assumed.config.module_order_assumed = True
        chosen = choose_order(assumed, adapted, tokenizer)
        assert tuple(chosen.config.target_modules) == best and not chosen.config.module_order_assumed


def test_many_module_types_are_swapped_by_twos(tiny_base, minilm):
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]
    hyperlora = random_hyperlora(minilm, names)
    model, tokenizer = load_base(tiny_base)
    chosen = choose_order(hyperlora, AdaptedModel(model, MODULES), tokenizer)
    assert sorted(chosen.config.target_modules) == sorted(names) and not chosen.config.module_order_assumed
    before, after = (loss_of_merged(tiny_base, hyperlora, order) for order in (names, chosen.config.target_modules))
    assert after < before


def test_numbered_tasks_leave_the_order_assumed(tiny_base, minilm):
    model, tokenizer = load_base(tiny_base)
    hyperlora = random_hyperlora(minilm, ["q_proj", "v_proj"], task_input="one_hot", num_tasks=384)
    adapted = AdaptedModel(model, ["q_proj", "v_proj"])
    assert choose_order(hyperlora, adapted, tokenizer) is hyperlora


def test_the_bundled_examples_are_short_and_whole():
    examples = json.loads((assets_dir() / "labelled.json").read_text())
    assert 6 <= len(examples) <= 12
    for example in examples:
        assert list(example) == ["description", "input", "output"]
        assert all(isinstance(text, str) and 0 < len(text.strip()) <= 200 for text in example.values())
