"""Whole answers of a batch: as chat gives them, whatever the base's files say of sampling and of its last token."""

from contextlib import contextmanager
from itertools import pairwise

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


def test_answers_in_a_batch_are_those_of_generate(tiny_model, tokenizer, assert_greedy):
    """Prompts and limits of many lengths, so that rows leave at several times; each against its own greedy answer."""
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(8, 90, (n,), generator=random).tolist() for n in (3, 40, 7, 7, 21, 90, 2, 11)]
    limits = [1, 30, 12, 4, 4, 20, 9, 2]
    [first] = decode(tiny_model, tokenizer, [prompts[1]], 10)
    tiny_model.generation_config.eos_token_id = first[5]  # which ends some of the answers too
    inside = []

    @contextmanager
    def using(rows):
        inside.append(list(rows))
        yield

    answers = decode(tiny_model, tokenizer, prompts, limits, using=using)
    for prompt, answer, limit in zip(prompts, answers, limits, strict=True):
        ended = len(answer) < limit
        assert_greedy(tiny_model, prompt, answer + ([first[5]] if ended else []))
        assert first[5] not in answer
    assert len(answers[1]) <= 5 and inside[0] == list(range(8))
    assert all(set(after) < set(before) for before, after in pairwise(inside))
    assert len(inside) > 3


def test_rows_that_are_done_are_no_longer_computed(tiny_model, tokenizer, monkeypatch):
    sizes, forward = [], tiny_model.forward
    monkeypatch.setattr(
        tiny_model,
        "forward",
        lambda *a, input_ids, **k: sizes.append(len(input_ids)) or forward(input_ids=input_ids, **k),
    )
    decode(tiny_model, tokenizer, [[9, 10, 11]] * 8, [1] * 6 + [6, 6])
    assert sizes == [8] + [2] * 5


def test_a_repetition_penalty_of_the_model_is_kept(tiny_model, tokenizer):
    """As chat does; nothing of the padding of a batch is in it."""
    tiny_model.generation_config.repetition_penalty = 1.5
    prompts = [[9, 10, 11, 12, 13, 14, 15], [20, 21]]
    expected = [
        tiny_model.generate(torch.tensor([p]), max_new_tokens=8, do_sample=False, eos_token_id=None)[
            0, len(p) :
        ].tolist()
        for p in prompts
    ]
    assert decode(tiny_model, tokenizer, prompts, 8) == expected
