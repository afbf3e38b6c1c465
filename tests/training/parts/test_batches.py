"""Examples as token ids, rows that do not fit, and batches."""

import itertools
from dataclasses import replace

import pytest
import torch

from hyperlora.errors import UserError
from hyperlora.prompt import format_prompt, with_description
from training.parts.batches import (
    IGNORE,
    Batches,
    collate,
    encode,
    encode_prompts,
    encode_task,
    encode_tasks,
    loader,
    row_length,
)
from training.parts.loss import answer_loss, mean_loss
from training.parts.rows import RowOptions, sources


def test_only_the_answer_and_eos_carry_labels(tokenizer):
    row = encode(tokenizer, "ab", "c", "Do it.")
    assert tokenizer.decode(row["input_ids"]) == "<s>[INST] Do it.<unk>ab [/INST] c</s>"  # the tiny base has no newline
    answer = [token for token in row["labels"] if token != IGNORE]
    assert tokenizer.decode(answer) == " c</s>"
    [prompt] = encode_prompts(tokenizer, ["Do it.\nab"])
    assert row["input_ids"][: len(prompt)] == prompt and row["labels"][: len(prompt)] == [IGNORE] * len(prompt)


def test_eos_ends_an_answer_whose_template_has_none(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "")
    assert encode(tokenizer, "ab", "c")["labels"][-1] == tokenizer.eos_token_id


def test_nothing_is_learnt_behind_eos(tokenizer):
    """ChatML and Gemma put a newline there, which no answer ever gets to."""
    plain = encode(tokenizer, "abc", "cba")
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "{{ eos_token }}!")
    assert encode(tokenizer, "abc", "cba") == plain


def test_a_model_that_may_think_first_learns_to_answer_at_once(tokenizer):
    thinking = tokenizer.chat_template.replace("[/INST]", "[/INST]{% if enable_thinking is false %} <>{% endif %}")
    tokenizer.chat_template = thinking
    row = encode(tokenizer, "abc", "cba")
    start = sum(label == IGNORE for label in row["labels"])
    assert row["input_ids"][:start] == format_prompt(tokenizer, "abc") == encode_prompts(tokenizer, ["abc"])[0]
    assert tokenizer.decode(row["input_ids"][:start]).endswith("[/INST] <>")


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="chat template"):
        encode(tokenizer, "ab", "c")


def test_tasks_are_drawn_evenly_whatever_their_size():
    batches = list(itertools.islice(stream([[3], [3] * 50, [3] * 7, [3]]), 40))
    index = torch.cat([batch["index"] for batch in batches])
    assert (index // 10).bincount().tolist() == [40] * 4
    assert all((batch["index"] // 10 == batch["input_ids"][:, 0]).all() for batch in batches)
    assert index.unique().tolist() == [0, 1, 10, 11, 20, 21, 30, 31]


def test_batches_are_of_like_length_and_shuffled():
    batches = list(itertools.islice(stream([list(range(2, 60))] * 4, window=64), 64))
    padding = sum(int((b["input_ids"] == 99).sum()) for b in batches) / sum(b["input_ids"].numel() for b in batches)
    lengths = [b["input_ids"].shape[1] for b in batches]
    assert padding < 0.05 and lengths != sorted(lengths)


def test_batches_from_any_step_on_are_those_of_the_whole_stream():
    whole = list(itertools.islice(stream([[3, 4, 5], [6, 7]], seed=3), 30))
    for start in (0, 5, 8, 21):
        for a, b in zip(stream([[3, 4, 5], [6, 7]], seed=3, start=start), whole[start:], strict=False):
            assert all(torch.equal(a[key], b[key]) for key in a)
    other = next(iter(stream([[3, 4, 5], [6, 7]], seed=4)))
    assert not all(torch.equal(other[key], whole[0][key]) for key in other)


def test_a_task_without_examples_is_refused():
    with pytest.raises(UserError, match="without"):
        stream([[3], []])


def test_the_loss_is_the_library_s_own(tiny_model, tokenizer, tasks):
    """Logits at the answers alone and no mask, against transformers' loss with mask and all logits."""
    rows = [*encode_task(tokenizer, tasks[0])[:3], encode(tokenizer, "a longer input", "a longer answer")]
    batch = collate(rows, tokenizer.pad_token_id)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(batch["labels"].shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        theirs = tiny_model(**batch, attention_mask=mask).loss
        torch.testing.assert_close(mean_loss(tiny_model, **batch), theirs)
        losses = answer_loss(tiny_model, **batch)
    assert losses.shape[0] == 4 and (losses[0] > 0).sum() == 3  # a space, the letter, eos


def test_description_prompts_hold_the_descriptions_in_turn(tokenizer, tasks):
    rows = encode_task(tokenizer, tasks[0], "description_input")
    texts = [
        tokenizer.decode(row["input_ids"]).replace("<unk>", "\n") for row in rows[:2]
    ]  # the tiny base has no newline
    assert texts == ["<s>[INST] Do first.\nas [/INST] a</s>", "<s>[INST] Please first.\nat [/INST] a</s>"]


def stream(lengths, **options):
    """Batches over tasks whose examples have these lengths; the token is the task."""
    sources = [[{"input_ids": [i] * n, "labels": [i] * n} for n in task] for i, task in enumerate(lengths)]
    options = {"batch_size": 4, "pad_token_id": 99, "window": 8} | options
    return Batches(sources, [[10 * i, 10 * i + 1] for i in range(len(lengths))], **options)


# ---- rows that do not fit ----


@pytest.mark.parametrize(
    ("length", "longest", "most"),
    [(1000, 0, 256), (300, 0, 256), (100, 0, None), (100, 50, 50), (100, 1000, None), (5000, 1000, 256)],
)
def test_rows_that_do_not_fit_are_left_out_and_counted(adapted, tokenizer, tasks, capsys, length, longest, most):
    """A row is "<s>[INST] as [/INST]a</s>", a token a character, and the base takes 256; `longest` may say fewer."""
    usual = tasks[0].train
    task = replace(tasks[0], train=[*usual, {"input": "x" * length, "output": "y"}])
    rows = encode_tasks(tokenizer, [task, tasks[1]], row_length(adapted.model, longest))
    assert [len(own) for own in rows] == [len(usual) + (most is None), len(tasks[1].train)]
    said = "" if most is None else f"Left out 1 of 61 examples, which are longer than {most} tokens.\n"
    assert capsys.readouterr().out == said


def test_a_row_that_just_fits_stays(tokenizer, tasks):
    exact = {"input": "x" * (256 - len(encode(tokenizer, "", "y")["input_ids"])), "output": "y"}
    [[row]] = encode_tasks(tokenizer, [replace(tasks[0], train=[exact])], 256)
    assert len(row["input_ids"]) == 256
    exact["input"] += "x"
    with pytest.raises(UserError, match="All examples of the task 'first' are longer than 256 tokens"):
        encode_tasks(tokenizer, [replace(tasks[0], train=[exact])], 256)


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**32])
def test_no_seed_overflows(seed):
    rows = [{"input_ids": [1, 2], "labels": [IGNORE, 2]}]
    batches = Batches([rows], [[0]], batch_size=2, pad_token_id=0, seed=seed, start=2**31)
    assert next(iter(batches))["input_ids"].tolist() == [[1, 2], [1, 2]]


@pytest.mark.parametrize("text", ["</s>", "a </s> b", "[/INST] x</s>[INST]", "<s></s><unk>"])
def test_training_reads_control_tokens_as_chat_does(tokenizer, text):
    """In inputs, descriptions and answers they are text: the template alone writes them."""
    row = encode(tokenizer, text, text, f"Say {text}.")
    start = sum(label == IGNORE for label in row["labels"])
    assert row["input_ids"][:start] == format_prompt(tokenizer, with_description(f"Say {text}.", text))
    control = set(tokenizer.convert_tokens_to_ids(["<s>", "</s>", "[INST]", "[/INST]"]))
    written = [token for token in row["input_ids"] if token in control]
    assert tokenizer.convert_ids_to_tokens(written) == ["<s>", "[INST]", "[/INST]", "</s>"]


@pytest.mark.parametrize("start", [0, 100])
def test_batches_made_in_another_process_are_the_same(tokenizer, tasks, start):
    """Also rows that are made anew each time, from any batch on, over the end of a window."""
    examples, rows = sources(tokenizer, tasks, RowOptions(prompt_style="either"), 100)
    batches = Batches(examples, [[0, 1], [2], [3]], 4, tokenizer.pad_token_id, start=start, rows=rows)
    here, there = (list(itertools.islice(loader(batches, device), 70)) for device in ("cpu", "cuda"))
    assert loader(batches, "cuda").num_workers == 1
    for a, b in zip(here, there, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
