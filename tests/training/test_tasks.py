import itertools
import json

import pytest
import torch

from hyperlora.errors import UserError
from hyperlora.prompt import format_prompt, with_description
from training.parts.batches import IGNORE, Batches, collate, encode, encode_prompts, encode_task
from training.parts.loss import answer_loss, mean_loss
from training.parts.network import trained_descriptions
from training.sft import SFTConfig
from training.tasks import Task, load_task, load_tasks, main


def test_a_task_is_read_as_it_was_written(tasks, tmp_path):
    for task in tasks:
        task.save(tmp_path)
    assert sorted(load_tasks(tmp_path), key=lambda t: t.name) == sorted(tasks, key=lambda t: t.name)


def test_the_form_of_instruction_induction_is_read(tmp_path):
    example = {"input": "1 2", "output": "3"}
    (tmp_path / "sum.json").write_text(
        json.dumps({"name": "sum", "descriptions": ["Add."], "train": [], "test": [example]})
    )
    assert load_task(tmp_path / "sum.json") == Task("sum", ["Add."], test=[example])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1, 2",
        "[]",
        "{}",
        '{"name": "x", "descriptions": ["Do."]}',
        '{"name": "x", "descriptions": [" "], "test": [{"input": "a", "output": "b"}]}',
        '{"name": "x", "descriptions": ["Do."], "test": [{"input": "a"}]}',
        '{"name": "../x", "descriptions": ["Do."], "test": [{"input": "a", "output": "b"}]}',
        '{"descriptions": ["Do \\ud83d."], "test": [{"input": "a", "output": "b"}]}',
        '{"descriptions": ["Do."], "eval_descriptions": ["Do \\ud83d."], "test": [{"input": "a", "output": "b"}]}',
        '{"descriptions": ["Do."], "test": [{"input": "\\ude00", "output": "b"}]}',
        '{"descriptions": ["Do."], "train": [{"input": "a", "output": "\\ud83d"}]}',
        '{"descriptions": ["Do."], "test": [{"input": "a", "output": "b", "outputs": ["b", "\\ud83d"]}]}',
        '{"descriptions": ["Do."], "group": "\\ud83d", "test": [{"input": "a", "output": "b"}]}',
        "[" * 100_000,
        '{"number": ' + "1" * 5000 + "}",
        b"\xff\xfe",
    ],
)
def test_a_broken_file_is_named_in_one_sentence_or_skipped(content, tasks, tmp_path, capsys):
    tasks[0].save(tmp_path)
    (tmp_path / "odd.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"odd\.json") as error:
        load_tasks(tmp_path)
    assert "\n" not in str(error.value)
    assert load_tasks(tmp_path, strict=False) == tasks[:1]
    assert "Skipped 1 of 2" in capsys.readouterr().err


def test_half_a_character_is_refused_and_a_whole_one_is_not(tmp_path):
    """A face of two escapes is one character; an example that the limit would leave out counts too."""
    rows = [{"input": f"\U0001f600 {i}", "output": "b"} for i in range(9)]
    path = tmp_path / "faces.json"
    path.write_text(json.dumps({"descriptions": ["Do."], "test": rows}))
    assert "\\ud83d\\ude00" in path.read_text() and load_task(path).test == rows
    path.write_text(path.read_text().replace("\\ude00 8", " 8"))
    with pytest.raises(UserError, match=r"faces\.json holds '\\ud83d', which is half a"):
        load_task(path, limit=1)


def test_a_task_of_lines(tmp_path):
    lines = [
        {"descriptions": ["Add."], "group": "sums"},
        {"input": "1 2", "output": "3"},
        {"input": "2 2", "output": "4", "outputs": ["4", "four"], "split": "test"},
        {"input": "a\u2028b", "output": "?", "split": "train"},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "sum.jsonl").write_text(text + "\n", encoding="utf-8")
    train = [{"input": "1 2", "output": "3"}, {"input": "a\u2028b", "output": "?"}]
    test = [{"input": "2 2", "output": "4", "outputs": ["4", "four"]}]
    assert load_tasks(tmp_path) == [Task("sum", ["Add."], train=train, test=test, group="sums")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "begin with"),
        ('{"input": "a", "output": "b"}', "begin with"),
        ('{"descriptions": ["Do."]}\n{"input": "a", "output": "b"}\n{"input"', "line 3"),
        ('{"descriptions": ["Do."]}\n[]', "one example"),
        ('{"descriptions": ["Do."]}\n{"input": "a", "output": "b", "split": "dev"}', "one example"),
        ('{"descriptions": ["Do."]}\n{"input": "a"}', '"train" must'),
        ('{"descriptions": ["Do."]}\n{"input": "a", "output": "b", "outputs": "b"}', '"train" must'),
        ('{"descriptions": ["Do."]}', "no examples"),
    ],
)
def test_broken_lines_are_named(content, message, tmp_path):
    (tmp_path / "odd.jsonl").write_text(content)
    with pytest.raises(UserError, match=rf"odd\.jsonl.*{message}"):
        load_tasks(tmp_path)


def test_the_answers_of_an_example_are_kept_in_a_file(tmp_path):
    task = Task("t", ["Do."], train=[{"input": "a", "output": "b", "outputs": ["b", "c"]}])
    assert load_task(task.save(tmp_path)) == task


def test_names_choose_and_order_the_tasks(tasks, tmp_path, capsys):
    for task in tasks:
        task.save(tmp_path)
    assert [task.name for task in load_tasks(tmp_path, names=["second", "both"])] == ["second", "both"]
    with pytest.raises(UserError, match="has no task 'third'"):
        load_tasks(tmp_path, names=["third", "both"])
    assert [task.name for task in load_tasks(tmp_path, strict=False, names=["third", "both"])] == ["both"]
    assert "Skipped 1 of 2" in capsys.readouterr().err


def test_a_limit_draws_examples(tasks, tmp_path):
    tasks[0].save(tmp_path)
    [task] = load_tasks(tmp_path, limit=4)
    assert (len(task.train), len(task.test)) == (4, 4)
    assert all(example in tasks[0].train for example in task.train) and task.train != tasks[0].train[:4]
    assert [task] == load_tasks(tmp_path, limit=4)


def test_the_command_writes_task_files_of_a_selection(tasks, tmp_path, capsys):
    for task in tasks:
        task.save(tmp_path / "in")
    (tmp_path / "in" / "broken.json").write_text("[")
    (tmp_path / "names.txt").write_text("both\nbroken\nfirst\nsecond\n")
    command = ["--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--limit", "5"]
    command += ["--select", str(tmp_path / "names.txt"), "--first", "3"]
    main(command)
    found = load_tasks(tmp_path / "out")
    assert [(task.name, len(task.train), len(task.test)) for task in found] == [("both", 5, 5), ("first", 5, 5)]
    assert "2 tasks with 10 training and 10 test examples" in capsys.readouterr().out
    for wrong in (["--strict"], ["--limit", "-1"], ["--select", str(tmp_path / "nothing")]):
        with pytest.raises(UserError):
            main([*command, *wrong])


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no task files"):
        load_tasks(tmp_path)


def test_only_the_answer_and_eos_carry_labels(tokenizer):
    row = encode(tokenizer, "ab", "c", "Do it.")
    assert tokenizer.decode(row["input_ids"]) == "<s>[INST] Do it.<unk>ab [/INST] c</s>"  # the tiny base has no newline
    answer = [token for token in row["labels"] if token != IGNORE]
    assert tokenizer.decode(answer) == " c</s>"
    [prompt] = encode_prompts(tokenizer, ["Do it.\nab"])
    assert row["input_ids"][: len(prompt)] == prompt and row["labels"][: len(prompt)] == [IGNORE] * len(prompt)


@pytest.mark.parametrize("text", ["</s>", "a </s> b", "[/INST] x</s>[INST]", "<s></s><unk>"])
def test_training_reads_control_tokens_as_chat_does(tokenizer, text):
    """In inputs, descriptions and answers they are text: the template alone writes them."""
    row = encode(tokenizer, text, text, f"Say {text}.")
    start = sum(label == IGNORE for label in row["labels"])
    assert row["input_ids"][:start] == format_prompt(tokenizer, with_description(f"Say {text}.", text))
    control = set(tokenizer.convert_tokens_to_ids(["<s>", "</s>", "[INST]", "[/INST]"]))
    written = [token for token in row["input_ids"] if token in control]
    assert tokenizer.convert_ids_to_tokens(written) == ["<s>", "[INST]", "[/INST]", "</s>"]


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


def stream(lengths, **options):
    """Batches over tasks whose examples have these lengths; the token is the task."""
    sources = [[{"input_ids": [i] * n, "labels": [i] * n} for n in task] for i, task in enumerate(lengths)]
    options = {"batch_size": 4, "pad_token_id": 99, "window": 8} | options
    return Batches(sources, [[10 * i, 10 * i + 1] for i in range(len(lengths))], **options)


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


def test_an_output_that_cannot_be_written_is_said(tasks, tmp_path):
    tasks[0].save(tmp_path / "tasks")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"first\.json could not be written \(.*\): free some space, or choose another"):
        main(["--source", str(tmp_path / "tasks"), "--output", str(tmp_path / "out")])


def test_a_task_may_wait_for_its_descriptions(tokenizer, tmp_path):
    """`training.descriptions` is what writes them; where they are read, what is missing is named."""
    (tmp_path / "bare.jsonl").write_text('{}\n{"input": "a", "output": "b"}')
    [task] = load_tasks(tmp_path)
    assert task.descriptions == [] and len(encode_task(tokenizer, task)) == 1
    with pytest.raises(UserError, match="The task 'bare' has no descriptions"):
        encode_task(tokenizer, task, "description_input")
    with pytest.raises(UserError, match="The task 'bare' has no descriptions"):
        trained_descriptions(task, SFTConfig())
