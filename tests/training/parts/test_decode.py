"""Whole answers of a batch: as chat gives them, whatever the base's files say of sampling and of its last token."""

import pytest
import torch

from hyperlora.base import load_base
from hyperlora.prompt import format_prompt
from training.parts.decode import decode

PROMPTS = ["one two three", "a", "42 + 17"]


@pytest.fixture
def tokenizer(tiny_base):
    return load_base(tiny_base)[1]


@pytest.mark.parametrize(
    "said",
    [
        {"do_sample": False, "temperature": 0.0, "top_k": -1, "top_p": 0.0},
        {"do_sample": True, "temperature": 0.0, "repetition_penalty": 0.0},
        {"do_sample": True, "top_k": -1, "top_p": 1.5},
    ],
    ids=str,
)
def test_what_means_nothing_in_a_generation_config_changes_nothing(tiny_model, tokenizer, said):
    prompts = [format_prompt(tokenizer, prompt) for prompt in PROMPTS]
    greedy = decode(tiny_model, tokenizer, prompts, 6)
    for name, value in said.items():
        setattr(tiny_model.generation_config, name, value)
    assert decode(tiny_model, tokenizer, prompts, 6) == greedy
    torch.manual_seed(0)
    assert decode(tiny_model, tokenizer, prompts, 6, temperature=2.0) != greedy


@pytest.mark.parametrize("place", [0, 2, 5])
def test_the_last_token_is_no_part_of_an_answer(tiny_model, tokenizer, place):
    prompt = format_prompt(tokenizer, "one two three")
    [answer] = decode(tiny_model, tokenizer, [prompt], 6)
    tiny_model.generation_config.eos_token_id = answer[place]  # a letter: a special one would not be seen in the text
    assert decode(tiny_model, tokenizer, [prompt], 6) == [answer[: answer.index(answer[place])]]
