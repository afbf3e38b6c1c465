"""Answers of many rows at once, their exact match, and what does not fit a base's context."""

from dataclasses import replace

import pytest
import torch

from training.parts.batches import encode_prompts
from training.parts.scoring import Trial, answer, fitting, fitting_trials, respond, score
from training.tasks import Task


def echo_first_words(tokenizer, count: int):
    """A model that answers with the first `count` letters of the last message."""

    def generate(input_ids, generation_config, **_):
        rows = []
        for ids in input_ids.tolist():
            text = tokenizer.decode(ids).rpartition("[INST] ")[2].removesuffix(" [/INST]")[:count]
            out = tokenizer(text, add_special_tokens=False).input_ids[: generation_config.max_new_tokens]
            rows.append(ids + out + [tokenizer.eos_token_id] * (count + 1 - len(out)))
        return torch.tensor(rows)

    return generate


def test_rows_of_a_batch_are_the_answers_of_single_generation(adapted, tokenizer, strong):
    """More adapters than slots, prompts of several lengths, rows without adapter; against one row at a time.

    A batch sums in another order than a row alone: where two tokens are as good as each other, either is right.
    """
    adapted.max_adapters = 2
    adapters = [strong(1), None, strong(2), strong(3)] * 3
    prompts = encode_prompts(tokenizer, [f"{'word ' * (i % 5)}{i}" for i in range(12)])
    together = answer(adapted, tokenizer, prompts, adapters, max_new_tokens=8, batch_size=5)
    for prompt, adapter, text in zip(prompts, adapters, together, strict=True):
        with adapted.use([None if adapter is None else adapted.load(adapter)]):
            alone = adapted.model.generate(
                torch.tensor([prompt]),
                do_sample=False,
                max_new_tokens=8,
                output_logits=True,
                return_dict_in_generate=True,
            )
        best = torch.cat(alone.logits).topk(2).values
        expected = tokenizer.decode(alone.sequences[0, len(prompt) :], skip_special_tokens=True).strip()
        assert text == expected or (best[:, 0] - best[:, 1]).min() < 1e-4
    assert len(set(together)) > 4  # the adapters do differ


def test_the_score_is_the_share_of_exact_matches(adapted, tokenizer, monkeypatch):
    """A model that echoes the input's last letter and ends."""

    def echo(input_ids, **_):
        answer = input_ids[:, -3:-2]  # before " [/INST]"
        return torch.cat([input_ids, answer, torch.full_like(answer, tokenizer.eos_token_id)], dim=1)

    monkeypatch.setattr(adapted.model, "generate", echo)
    task = Task("last", ["Do last."])
    right, wrong = {"input": "abc", "output": " c "}, {"input": "abc", "output": "b"}
    assert score(adapted, tokenizer, [Trial(task, [right, wrong]), Trial(task, [right]), Trial(task, [wrong])]) == [
        0.5,
        1,
        0,
    ]


def test_an_answer_that_goes_on_is_wrong(adapted, tokenizer, monkeypatch):
    """The limit on new tokens must not cut a longer answer into the expected one."""
    monkeypatch.setattr(
        adapted.model,
        "generate",
        lambda input_ids, generation_config, **_: torch.cat(
            [input_ids, tokenizer("x" * generation_config.max_new_tokens, return_tensors="pt").input_ids], dim=1
        ),
    )
    task = Task("t", ["Do it."])
    assert score(adapted, tokenizer, [Trial(task, [{"input": "abc", "output": "xxx"}])]) == [0]


def test_shots_are_turns_before_the_prompt_as_far_as_they_fit(adapted, tokenizer, monkeypatch):
    seen = []
    generate = echo_first_words(tokenizer, 1)

    def spy(input_ids, **kwargs):
        seen.extend(tokenizer.batch_decode(input_ids))
        return generate(input_ids, **kwargs)

    monkeypatch.setattr(adapted.model, "generate", spy)
    shots = [{"input": text, "output": text[0]} for text in ("x" * 120, "y" * 120, "zoo")]
    trial = Trial(Task("t", ["Do it."]), [{"input": "abc", "output": "a"}], shots=shots)
    assert score(adapted, tokenizer, [trial]) == [1]
    assert seen == [f"<s>[INST] {'y' * 120} [/INST] y</s>[INST] zoo [/INST] z</s>[INST] abc [/INST]"]


@pytest.mark.parametrize(("length", "fits"), [(10, True), (200, True), (250, False), (300, False), (5000, False)])
def test_examples_that_do_not_fit_are_left_out_and_counted(adapted, tokenizer, tasks, capsys, length, fits):
    """The base takes 256 tokens, one a character."""
    long = {"input": "x" * length, "output": "y"}
    found = fitting(adapted, tokenizer, tasks[0], [tasks[0].test[0], long])
    assert found == [tasks[0].test[0], *([long] if fits else [])]
    said = "" if fits else "first: left out 1 of 2 test examples, too long for a context of 256.\n"
    assert capsys.readouterr().out == said


def test_an_answer_needs_room_too(adapted, tokenizer, tasks):
    long = {"input": "x" * 100, "output": "y", "outputs": ["y", "z" * 200]}
    assert fitting(adapted, tokenizer, tasks[0], [long]) == []


@pytest.mark.parametrize(("length", "fits"), [(10, True), (200, True), (250, False), (3000, False)])
def test_a_description_that_does_not_fit_the_prompt_is_left_out_of_it_alone(adapted, tokenizer, tasks, length, fits):
    trial = Trial(tasks[0], tasks[0].test[:2], "unseen", "d" * length, style="description_input")
    assert fitting_trials(adapted, tokenizer, [trial]) == ([trial] if fits else [])
    read = replace(trial, style="input")  # by the hypernetwork
    assert fitting_trials(adapted, tokenizer, [read]) == [read]


def test_answers_end_with_the_context(adapted, tokenizer, tasks, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "training.parts.scoring.decode", lambda model, tok, prompts, most: asked.append(most) or [[]] * len(prompts)
    )
    long = {"input": "x" * 200, "output": "y"}
    respond(adapted, tokenizer, [Trial(tasks[0], [long])], max_new_tokens=256)
    [prompt] = encode_prompts(tokenizer, [long["input"]])
    assert asked == [256 - len(prompt)]
