"""Rows of the style `either`: the prompts that chat sends, shares of groups, and lengths."""

import itertools
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest

from hyperlora.config import HyperLoRAConfig
from hyperlora.errors import UserError
from hyperlora.pipe import Pipeline
from hyperlora.prompt import format_prompt
from training.parts.batches import IGNORE, Batches
from training.parts.rows import Row, RowOptions, Rows, sources, task_weights
from training.tasks import Task

PLAIN = RowOptions(prompt_style="either", earlier_turns=0, other_system=0, retyped=0)
TEMPLATES = {
    "no system turn": None,  # the tiny base's own, which refuses a system message
    "a default system turn": (  # the form of SmolLM2's
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<s>be good{% endif %}"
        "[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    ),
}


def sent(tokenizer, row: Row, describe: bool) -> list[int]:
    """The prompt that `Pipeline.chat` makes of the row's messages, given without the description."""
    chat = replace(row, description=None).messages()[:-1]
    config = HyperLoRAConfig("M", {"q_proj": (4, 4)}, 1, 4, prompt_style="either")
    pipe = SimpleNamespace(multi_turn=True, describe=config.chat_style != "input", _style=config.chat_style)
    adapter = SimpleNamespace(description=row.description)
    return format_prompt(tokenizer, Pipeline.prepare(pipe, chat, adapter, describe))


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_row_is_token_by_token_what_chat_sends(tokenizer, tasks, template):
    tokenizer.chat_template = TEMPLATES[template] or tokenizer.chat_template
    options = replace(PLAIN, earlier_turns=0.5, other_system=0.3, retyped=0.5)
    rows = Rows(tokenizer, tasks, options, 10_000)
    draws = [(i % 3, i % 30, i / 60) for i in range(60)]
    drawn = [rows.draw(draw, random) for random in [Random(0)] for draw in draws]
    encoded = rows.encode(draws, Random(0))
    kinds = set()
    for row, made in zip(drawn, encoded, strict=True):
        start = sum(label == IGNORE for label in made["labels"])
        assert made["input_ids"][:start] == sent(tokenizer, row, describe=row.description is not None)
        assert tokenizer.decode(made["labels"][start:]).strip() == row.turns[-1][1] + "</s>"
        assert made["labels"][start:] == made["input_ids"][start:]
        kinds.add((row.description is None, row.system is None, len(row.turns)))
    assert {(a, b) for a, b, _ in kinds} == {(False, False), (False, True), (True, False), (True, True)}
    assert {turns for *_, turns in kinds} == {1, 2, 3, 4}


def test_the_description_is_the_one_that_the_adapter_is_made_of(tokenizer, tasks):
    """Its place among the descriptions is the `index` of the batch."""
    examples, rows = sources(tokenizer, tasks, replace(PLAIN, described=1), 256)
    texts = [text for task in tasks for text in task.descriptions]
    found = set()
    for batch in itertools.islice(Batches(examples, [[0, 1], [2, 3], [4, 5]], 8, 0, rows=rows), 20):
        for ids, choice in zip(batch["input_ids"], batch["index"].tolist(), strict=True):
            text = tokenizer.decode(ids).replace("<unk>", "\n")  # the tiny base has no newline
            assert text.startswith(f"<s>[INST] {texts[choice]}\n")
            found.add(choice)
    assert len(found) == 6


def test_as_many_rows_are_described_and_follow_turns_as_asked(tokenizer, tasks):
    options = replace(PLAIN, described=0.75, earlier_turns=0.2, other_system=0.1)
    rows, random = Rows(tokenizer, tasks, options, 256), Random(1)
    drawn = [rows.draw((i % 3, i % 30, 0.0), random) for i in range(3000)]
    assert sum(row.description is not None for row in drawn) / 3000 == pytest.approx(0.75, abs=0.03)
    assert sum(len(row.turns) > 1 for row in drawn) / 3000 == pytest.approx(0.2, abs=0.03)
    assert sum(row.system is not None for row in drawn) / 3000 == pytest.approx(0.1, abs=0.03)
    earlier = [(question, row.turns[-1][0]) for row in drawn for question, _ in row.turns[:-1]]
    assert all(question != last for question, last in earlier)  # else the answer would stand there already


def test_what_is_too_long_goes_without_turns_and_then_without_description(tokenizer, tasks):
    options = replace(PLAIN, described=1, earlier_turns=1)
    task = replace(tasks[0], descriptions=["d" * 40])
    [bare] = Rows(tokenizer, [task], replace(PLAIN, described=0), 99).encode([(0, 0, 0.0)], Random(0))
    alone = len(bare["input_ids"])
    for longest, length in ((1000, None), (alone + 45, alone + 41), (alone + 10, alone)):
        [row] = Rows(tokenizer, [task], options, longest).encode([(0, 0, 0.0)], Random(0))
        assert len(row["input_ids"]) == length or (length is None and len(row["input_ids"]) > alone + 45)


def test_examples_that_never_fit_are_left_out(tokenizer, tasks, capsys):
    task = replace(tasks[0], train=[*tasks[0].train, {"input": "x" * 300, "output": "y"}])
    examples, rows = sources(tokenizer, [task], PLAIN, 200)
    assert examples == [tasks[0].train] == rows.examples
    assert "Left out 1 of 31 examples, which are longer than 200 tokens." in capsys.readouterr().out


def test_the_text_suite_is_typed_already_and_answers_that_repeat_the_input_keep_it(tokenizer):
    example = {"input": "Paris is big.", "output": "positive"}
    copied = {"input": "Paris is big.", "output": "Paris is not big."}
    kinds = [("a", example, "x"), ("b", copied, "x"), ("c", example, "text")]
    tasks = [Task(name, ["d"], train=[each], group=group) for name, each, group in kinds]
    rows, random = Rows(tokenizer, tasks, replace(PLAIN, retyped=1), 256), Random(0)
    written = [{rows.draw((task, 0, 0.0), random).turns[-1][0] for _ in range(50)} for task in range(3)]
    assert written[0] == {"Paris is big.", "paris is big.", "Paris is big", "paris is big"}
    assert written[1] == written[2] == {"Paris is big."}


# ---- shares ----


def grouped(**counts: int) -> list[Task]:
    return [Task(f"{group}{i}", ["d"], group=group) for group, count in counts.items() for i in range(count)]


def test_a_group_gets_its_share_whatever_its_size(tokenizer):
    tasks = grouped(text=30, open=2, real=8)
    often = task_weights(tasks, "text=0.15,open=0.2")
    sums = {"text": 0.0, "open": 0.0, "real": 0.0}
    for weight, task in zip(often, tasks, strict=True):
        sums[task.group] += weight
    assert sums == pytest.approx({"text": 0.15, "open": 0.2, "real": 0.65})
    row = [{"input_ids": [1, 2], "labels": [IGNORE, 2]}]
    batches = Batches([row] * 40, [[i] for i in range(40)], 20, 0, weights=often, window=50)
    stream = iter(batches)
    drawn = [tasks[i].group for _ in range(50) for i in next(stream)["index"].tolist()]
    assert {g: drawn.count(g) for g in sums} == pytest.approx({"text": 150, "open": 200, "real": 650}, abs=2)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ("text", "must be of the form"),
        ("text=much", "must be of the form"),
        ("texts=0.1", "names the group 'texts', and no task is of it"),
        ("text=0.7,real=0.7", "at most 1 together"),
        ("text=-0.1", "from 0 to 1"),
        ("text=0.5,real=0.2", "or 1 for all groups"),
    ],
)
def test_shares_that_cannot_be_are_refused(shares, message):
    with pytest.raises(UserError, match=message):
        task_weights(grouped(text=2, real=2), shares)
