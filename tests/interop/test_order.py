"""Where a checkpoint does not say which module type is which, the loss on labelled examples does."""

import json

import pytest
import torch

from hyperlora.adapted import AdaptedModel
from hyperlora.base import load_base
from hyperlora.config import HyperLoRAConfig
from hyperlora.generator import HyperLoRA
from hyperlora.interop.order import choose_order, with_order
from hyperlora.pipe import Pipeline
from hyperlora.presets import assets_dir

MODULES = {"q_proj": (64, 64), "v_proj": (64, 32), "up_proj": (64, 128)}
DESCRIPTIONS = ["Reverse the words.", "Add the two numbers.", "Name the colour of the thing."]


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


@pytest.fixture
def base(tiny_base):
    return load_base(tiny_base)


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


@pytest.mark.parametrize("prompt_style", ["input", "description_input"])
@pytest.mark.parametrize("names", [["q_proj", "v_proj"], ["up_proj", "q_proj", "v_proj"]])
def test_the_order_with_the_lowest_loss_is_chosen(names, prompt_style, base, minilm, tmp_path, monkeypatch):
    model, tokenizer = base
    adapted = AdaptedModel(model, {name: MODULES[name] for name in names})
    right = random_hyperlora(minilm, names, prompt_style=prompt_style)
    # What the model answers with the right network's adapters is what that network is best at.
    pipe, examples = Pipeline(right, adapted, tokenizer), []
    for description in DESCRIPTIONS:
        message = "one two" if prompt_style == "input" else f"{description}\none two"
        answer = pipe.chat(message, pipe.adapt(description), max_new_tokens=32, do_sample=False)
        examples.append({"description": description, "input": "one two", "output": answer})
    pipe.engine.close()
    (tmp_path / "labelled.json").write_text(json.dumps(examples))
    monkeypatch.setattr("hyperlora.interop.order.assets_dir", lambda: tmp_path)

    wrong = with_order(right, names[::-1])
    wrong.config.module_order_assumed = True
    for given in (right, wrong):
        chosen = choose_order(given, adapted, tokenizer)
        assert list(chosen.config.target_modules) == names and not chosen.config.module_order_assumed
        [a], [b] = chosen.generate(DESCRIPTIONS[0]), right.generate(DESCRIPTIONS[0])
        torch.testing.assert_close(a.weights, b.weights)


def test_numbered_tasks_leave_the_order_assumed(base, minilm):
    model, tokenizer = base
    hyperlora = random_hyperlora(minilm, ["q_proj", "v_proj"], task_input="one_hot", num_tasks=384)
    adapted = AdaptedModel(model, ["q_proj", "v_proj"])
    assert choose_order(hyperlora, adapted, tokenizer) is hyperlora


def test_the_bundled_examples_are_short_and_whole():
    examples = json.loads((assets_dir() / "labelled.json").read_text())
    assert 6 <= len(examples) <= 12
    for example in examples:
        assert list(example) == ["description", "input", "output"]
        assert all(isinstance(text, str) and 0 < len(text.strip()) <= 200 for text in example.values())
