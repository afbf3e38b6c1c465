import json

import pytest

from hyperlora.errors import UserError
from training.parts.batches import encode_task
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
