"""Task files as natural-instructions has them: task[NUMBER]_[SOURCE]_[KIND].json in the folder `tasks` of a clone."""

import json

import pytest

from hyperlora.errors import UserError
from training.parts import sni
from training.tasks import load_task, load_tasks

DEFINITION = "Name the capital of the country."


def write(clone, name: str, instances, **other):
    """A task file with all the keys of the newest ones."""
    content = {
        "Contributors": ["Nobody"],
        "Source": ["atlas"],
        "URL": ["https://example.org"],
        "Categories": ["Question Answering"],
        "Reasoning": [],
        "Definition": [DEFINITION],
        "Input_language": ["English"],
        "Output_language": ["English"],
        "Instruction_language": ["English"],
        "Domains": ["Geography"],
        "Positive Examples": [{"input": "Peru", "output": "Lima", "explanation": "Lima is its capital."}],
        "Negative Examples": [{"input": "Peru", "output": "Cusco", "explanation": "Cusco is not its capital."}],
        "Instances": instances,
        "Instance License": ["CC0"],
    }
    path = clone / "tasks" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content | other), encoding="utf-8")
    return path


def capitals(count: int) -> list[dict]:
    return [{"id": f"task1-{i}", "input": f"Country {i}", "output": [f"City {i}"]} for i in range(count)]


def test_a_clone_is_read_with_definitions_as_descriptions(tmp_path):
    write(tmp_path, "task1_atlas_question_answering", capitals(20))
    write(tmp_path, "task2_atlas_old_form", capitals(3), Definition=DEFINITION)  # a text, as in older files
    first, second = load_tasks(tmp_path)
    assert (first.name, first.group) == ("task1_atlas_question_answering", "Question Answering")
    assert first.descriptions == second.descriptions == [DEFINITION]
    assert (len(first.train), len(first.test), len(second.train), len(second.test)) == (18, 2, 3, 0)
    rows = {(e["input"], e["output"]) for e in first.train + first.test}
    assert rows == {(f"{DEFINITION}\n\nCountry {i}", f"City {i}") for i in range(20)}


def test_the_input_may_stand_alone(tmp_path):
    write(tmp_path, "task1_a", capitals(20))
    [with_it], [without] = load_tasks(tmp_path), load_tasks(tmp_path, definition=False)
    assert [e["input"] for e in with_it.train] == [f"{DEFINITION}\n\n{e['input']}" for e in without.train]
    assert without.descriptions == [DEFINITION]


def test_the_first_output_trains_and_all_are_kept(tmp_path):
    path = write(tmp_path, "task1_a", [{"input": "Bolivia", "output": ["Sucre", "La Paz", "Sucre"]}])
    [example] = load_task(path, definition=False).train
    assert example == {"input": "Bolivia", "output": "Sucre", "outputs": ["Sucre", "La Paz"]}


def test_at_most_500_samples_and_no_input_both_trained_and_tested(tmp_path):
    path = write(tmp_path, "task1_a", capitals(3000) + capitals(3000))
    task = load_task(path)
    assert (len(task.train), len(task.test)) == (500, 300)
    assert not {e["input"] for e in task.train} & {e["input"] for e in task.test}
    assert load_task(path) == task  # the draw depends on the name alone
    assert [len(load_task(path, limit=7).train), len(load_task(path, limit=10_000).train)] == [7, 2700]


def test_only_english_tasks_are_taken_and_the_others_counted(tmp_path, capsys):
    write(tmp_path, "task1_a", capitals(3))
    for number, key in enumerate(sni.LANGUAGES):
        write(tmp_path, f"task{number + 2}_b", capitals(3), **{key: ["English", "Spanish"]})
    assert [task.name for task in load_tasks(tmp_path)] == ["task1_a"]  # strict: they are not broken
    assert "Left out 3 tasks" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"task2_b\.json is not in English: it declares 'Spanish'"):
        load_task(tmp_path / "tasks" / "task2_b.json")


@pytest.mark.parametrize(
    "content",
    [
        {"Instances": []},
        {"Instances": None},
        {"Instances": [{"input": "Peru"}]},
        {"Instances": [{"input": "Peru", "output": []}]},
        {"Instances": [{"input": None, "output": ["Lima"]}]},
        {"Instances": ["Peru"]},
        {"Definition": []},
        {"Definition": " "},
        {"Definition": [None]},
        {"Definition": ["Name the capital \ud83d."]},
        {"Instances": [{"input": "Peru \ud83d", "output": ["Lima"]}]},
        {"Instances": [{"input": "Peru", "output": ["Lima", "\ud83d"]}]},
        {"Categories": ["\ud83d"]},
    ],
)
def test_a_broken_task_is_named_and_skipped_with_a_count(content, tmp_path, capsys):
    write(tmp_path, "task1_a", capitals(3))
    write(tmp_path, "task2_broken", capitals(3), **content)
    with pytest.raises(UserError, match=r"task2_broken\.json") as error:
        load_tasks(tmp_path)
    assert "\n" not in str(error.value)
    assert [task.name for task in load_tasks(tmp_path, strict=False)] == ["task1_a"]
    errors = capsys.readouterr().err
    assert "Skipped 1 of 2" in errors and "task2_broken.json" in errors


def test_the_release_s_selection():
    train, held_out, removed = (sni.selection(name) for name in ("train", "held_out", "removed"))
    assert (len(train), len(held_out), len(removed)) == (479, 11, 10)
    assert len({*train, *held_out, *removed}) == 500  # the number of tasks of the paper
    assert train[0] == "task742_lhoestq_answer_generation_frequency"


def test_a_selection_of_one_s_own_is_a_file_of_names(tmp_path):
    (tmp_path / "mine.txt").write_text("task2_b\n\ntask1_a.json\n")
    assert sni.selection(str(tmp_path / "mine.txt")) == ["task2_b", "task1_a"]
    (tmp_path / "empty.txt").touch()
    for wrong in ("trian", "about", str(tmp_path / "empty.txt")):
        with pytest.raises(UserError, match="names"):
            sni.selection(wrong)


PROMPT = """Definition: {definition}

Positive Example 1 -
Input: Peru
Output: Lima

Negative Example 1 -
Input: Peru
Output: Cusco

Now complete the following example -
Input: {input}
Output:"""


@pytest.mark.parametrize("input", ["Chile", "Context: a land.\n\nInput: Chile\nOutput: ?", ""])
def test_a_prompt_of_the_hub_is_its_definition_and_its_input(input):
    for written, meant in [("Answer..", "Answer."), ("Answer.", "Answer."), ("Go on...", "Go on...")]:
        assert sni.split_prompt(PROMPT.format(definition=written, input=input)) == (meant, input)
    bare = "Definition: Answer.\n\nNow complete the following example -\nInput: x\nOutput: "
    assert sni.split_prompt(bare) == ("Answer.", "x")


@pytest.mark.parametrize(
    "text", ["", "Name the capital.", PROMPT[12:], PROMPT[:60], PROMPT.replace("Input: {input}", "")]
)
def test_another_prompt_is_not_taken_for_one(text):
    assert sni.split_prompt(text) is None
