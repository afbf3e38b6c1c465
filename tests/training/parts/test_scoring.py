"""Answers of many rows at once, their exact match, and what does not fit a base's context."""

from dataclasses import replace

import pytest
import torch

from hyperlora.errors import UserError
from training.parts.answers import Answers
from training.parts.batches import encode_prompts
from training.parts.decode import decode
from training.parts.scoring import Trial, answer, chat_scores, fitting, fitting_trials, respond, score
from training.tasks import Task


def echo_first_words(tokenizer, count: int):
    """In place of `decode`: the first `count` letters of the last message, cut at each row's limit."""

    def decode(model, tokenizer, prompts, limits, using):
        texts = [tokenizer.decode(ids).rpartition("[INST] ")[2].removesuffix(" [/INST]")[:count] for ids in prompts]
        answers = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        return [ids[:limit] for ids, limit in zip(answers, limits, strict=True)]

    return decode


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
    """A model that echoes the input's first letter and ends."""
    monkeypatch.setattr("training.parts.scoring.decode", echo_first_words(tokenizer, 1))
    task = Task("first", ["Do first."])
    right, wrong = {"input": "abc", "output": " a "}, {"input": "abc", "output": "b"}
    trials = [Trial(task, [right, wrong]), Trial(task, [right]), Trial(task, [wrong])]
    assert score(adapted, tokenizer, trials) == [0.5, 1, 0]


def test_an_answer_that_goes_on_is_wrong(adapted, tokenizer, monkeypatch):
    """The limit on new tokens must not cut a longer answer into the expected one."""
    monkeypatch.setattr("training.parts.scoring.decode", echo_first_words(tokenizer, 99))
    assert score(adapted, tokenizer, [Trial(Task("t", ["Do it."]), [{"input": "xxxxxx", "output": "xxx"}])]) == [0]


def spy_on_prompts(tokenizer, monkeypatch) -> list[str]:
    """What is decoded from now on, as text."""
    seen, echo = [], echo_first_words(tokenizer, 1)

    def decode(model, tok, prompts, limits, using):
        seen.extend(tok.batch_decode(prompts))
        return echo(model, tok, prompts, limits, using)

    monkeypatch.setattr("training.parts.scoring.decode", decode)
    return seen


def test_shots_are_turns_before_the_prompt_as_far_as_they_fit(adapted, tokenizer, monkeypatch):
    seen = spy_on_prompts(tokenizer, monkeypatch)
    shots = [{"input": text, "output": text[0]} for text in ("x" * 120, "y" * 120, "zoo")]
    trial = Trial(Task("t", ["Do it."]), [{"input": "abc", "output": "a"}], shots=shots)
    assert score(adapted, tokenizer, [trial]) == [1]
    assert seen == [f"<s>[INST] {'y' * 120} [/INST] y</s>[INST] zoo [/INST] z</s>[INST] abc [/INST]"]


def test_a_description_is_in_front_of_the_first_message_as_in_chat(adapted, tokenizer, monkeypatch):
    """Before shots and before an example's own earlier turns. The tiny tokenizer does not know line ends."""
    seen = spy_on_prompts(tokenizer, monkeypatch)
    example = {"input": "and c", "output": "a", "turns": [("b", "B")]}
    trial = Trial(Task("t", []), [example], "unseen", "Do it.", style="description_input")
    respond(adapted, tokenizer, [trial, replace(trial, shots=[{"input": "a", "output": "A"}])])
    turns = "[INST] b [/INST] B</s>[INST] and c [/INST]"
    assert sorted(seen) == [f"<s>[INST] Do it.<unk>a [/INST] A</s>{turns}", f"<s>[INST] Do it.<unk>{turns[7:]}"]


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
        "training.parts.scoring.decode",
        lambda model, tok, prompts, limits, using: asked.extend(limits) or [[]] * len(prompts),
    )
    long = {"input": "x" * 200, "output": "y"}
    respond(adapted, tokenizer, [Trial(tasks[0], [long])], limit=lambda longest: 256)
    [prompt] = encode_prompts(tokenizer, [long["input"]])
    assert asked == [256 - len(prompt)]


def test_a_batch_is_rows_of_like_length_and_bounded_in_tokens(adapted, tokenizer, monkeypatch):
    batches = []
    monkeypatch.setattr("training.parts.scoring.BATCH_TOKENS", 100)
    monkeypatch.setattr(
        "training.parts.scoring.decode",
        lambda model, tok, prompts, limits, using: batches.append([len(p) for p in prompts]) or [[]] * len(prompts),
    )
    prompts = [[5] * n for n in (90, 10, 11, 150, 12, 13, 14)]
    answer(adapted, tokenizer, prompts, [None] * 7, max_new_tokens=10, batch_size=3)
    assert batches == [[10, 11, 12], [13, 14], [90], [150]]


def test_what_was_answered_is_not_decoded_again(adapted, tokenizer, strong, tmp_path, monkeypatch):
    """A killed evaluation goes on after its last whole batch; equal rows are decoded once."""
    prompts = encode_prompts(tokenizer, [f"{'word ' * (i % 3)}{i}" for i in range(6)])
    adapters = [strong(1), None] * 3
    expected = answer(adapted, tokenizer, prompts, adapters, max_new_tokens=4)
    decoded, path = [], tmp_path / "answers.jsonl"

    def count_and_fail(model, tok, rows, limits, using):
        decoded.extend(rows)
        if len(decoded) > 4:
            raise KeyboardInterrupt
        return decode(model, tok, rows, limits, using=using)

    monkeypatch.setattr("training.parts.scoring.decode", count_and_fail)
    with pytest.raises(KeyboardInterrupt):
        answer(adapted, tokenizer, prompts, adapters, max_new_tokens=4, batch_size=2, saved=Answers(path, "base"))
    with path.open("ab") as file:
        file.write(b'["cut')  # as a kill in the middle of a line leaves it
    decoded.clear()
    again = [strong(1), None] * 3  # other objects, the same weights
    saved = Answers(path, "base")
    assert len(saved.found) == 4
    assert answer(adapted, tokenizer, prompts * 2, again * 2, max_new_tokens=4, saved=saved) == expected * 2
    assert len(decoded) == 2
    assert len(Answers(path).found) == 6


@pytest.mark.parametrize("other", [{"adapter": 2}, {"prompt": [7]}, {"limit": 5}, {"router": "arrow"}, {"base": "b"}])
def test_answers_are_known_by_all_that_they_follow_from(make_adapter, other):
    def key(base="a", prompt=(1, 2), adapter=1, limit=4, router=""):
        return Answers(base=base).key(list(prompt), make_adapter(adapter), limit, router)

    assert key() == key() != key(**other)
    assert Answers().key([1], make_adapter(1).scaled(0.5), 4) != Answers().key([1], make_adapter(1), 4)


@pytest.mark.parametrize("content", ["{}\n", '["a"]\n', '["a", 1]\n', "junk\n", "\xff\n"])
def test_a_file_that_holds_no_answers_is_refused(tmp_path, content):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="does not hold an evaluation's answers"):
        Answers(path)


def test_a_chat_answer_is_measured_by_the_length_of_what_the_task_expects():
    short = Task("t", [], test=[{"input": "France", "output": "Paris"}])
    trial = Trial(short, short.test * 2)
    assert chat_scores(trial, ["paris.", "It is Paris."], 30) == {"score": 0.5, "contains": 1.0}
    long = Task("t", [], test=[{"input": "Er geht.", "output": "one two three four"}])
    trial = Trial(long, long.test)
    assert chat_scores(trial, ["one two"], 10)["score"] == pytest.approx(2 / 3)
    assert chat_scores(trial, ["one two"], 30)["score"] == 0
