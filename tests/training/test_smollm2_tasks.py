"""What is kept out of SmolLM2's training: held-out tasks, their test pairs, and the benchmark's test inputs."""

import json
from pathlib import Path

import pytest

from hyperlora.errors import UserError
from training.parts.requests import everyday_requests
from training.smollm2 import tasks as data
from training.smollm2.tasks import collect, is_research, own_descriptions, plain, suite_tasks, without_leaks
from training.tasks import Task


@pytest.fixture(autouse=True)
def real_tasks_alone(monkeypatch):
    monkeypatch.setattr(data, "suite", list)
    monkeypatch.setattr(data, "own_tasks", list)


def pairs(*texts: str) -> list[dict]:
    """ "a > b" -> an example; "a > b | c" accepts both."""
    found = []
    for text in texts:
        question, _, answers = text.partition(" > ")
        first, *others = answers.split(" | ")
        found.append({"input": question, "output": first} | ({"outputs": [first, *others]} if others else {}))
    return found


def write(folder: Path, name: str, train: list[dict], test: list[dict] | None = None, source: str = "facts") -> None:
    folder.mkdir(exist_ok=True)
    task = {"name": name, "descriptions": [f"Do {name}."], "train": train, "test": test or [], "source": source}
    (folder / f"{name}.json").write_text(json.dumps(task))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """colours is trained; verbs is held out."""
    write(tmp_path / "real", "colours", pairs("red > rot", "blue > blau", "Grow > Growth"), pairs("white > weiss"))
    write(
        tmp_path / "real",
        "verbs",
        pairs("go > going", "sit > sitting"),
        pairs("grow > growth | growing", "run > run-up"),
    )
    (tmp_path / "real" / "held_out.txt").write_text("verbs\tfar\n")
    return tmp_path / "real"


# ---- a held-out task in the training ----


@pytest.mark.parametrize("place", ["real", "open"])
def test_a_held_out_task_is_not_trained_on_by_its_name(folder, tmp_path, place):
    """In the folder itself its name takes it out; anywhere else it is refused."""
    if place == "real":
        found = collect(folder)
        assert [task.name for task in found.trained] == ["colours"] and found.held_out["far"][0].name == "verbs"
        return
    write(tmp_path / "open", "verbs", pairs("something > else"))
    with pytest.raises(UserError, match="The task 'verbs' is held out and trained on"):
        collect(folder, open_requests=tmp_path / "open")


@pytest.mark.parametrize(
    "copy",
    [
        pairs("go > going", "sit > sitting"),
        pairs("GO. > Going", "sit > sitting.", "own > another"),
        pairs("grow > growing", "run > run-up"),
        pairs(*(f"{i} > {i + 1}" for i in range(50)), "go > going", "sit > sitting", "run > run-up"),
    ],
    ids=["its training part", "typed otherwise", "its tests", "among others"],
)
@pytest.mark.parametrize("place", ["real", "open"])
def test_a_held_out_task_under_another_name_is_refused(folder, tmp_path, copy, place):
    write(tmp_path / place, "doing", copy)
    with pytest.raises(UserError, match="'doing' holds the examples of the held-out task 'verbs'"):
        collect(folder, open_requests=tmp_path / "open" if place == "open" else None)


def test_a_name_in_the_list_that_no_task_has_is_said(folder):
    (folder / "held_out.txt").write_text("verb near\n")
    with pytest.raises(UserError, match="names 'verb', and there is no such task"):
        collect(folder)
    (folder / "held_out.txt").write_text("verbs maybe\n")
    with pytest.raises(UserError, match="a task's name and near or far on each line"):
        collect(folder)


# ---- pairs and inputs that are measured ----


@pytest.mark.parametrize(
    "leak",
    [
        "grow > growth", "grow > growing", "growth > grow", "GROW > Growth", "Growing. > grow", "grow > other | growth",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["real", "open"])
def test_a_held_out_test_pair_is_left_out_in_either_order(folder, tmp_path, leak, place):
    rest = [f"{i} > {i + 1}" for i in range(9)]
    write(tmp_path / place, "more", pairs(leak, *rest))
    found = collect(folder, open_requests=tmp_path / "open" if place == "open" else None)
    trained = {task.name: task.train for task in found.trained}
    assert trained["more"] == pairs(*rest)
    own = 1  # "Grow > Growth" of the colours
    counts = {"real": found.left_out["real tasks: a held-out test pair"]}
    counts["open"] = found.left_out["open requests: a held-out test pair"]
    assert counts == ({"real": own + 1, "open": 0} if place == "real" else {"real": own, "open": 1})


@pytest.mark.parametrize("other", ["grow > larger", "growth > growing", "regrow > growth", "walk > growth"])
def test_what_only_shares_a_side_with_a_pair_stays(folder, tmp_path, other):
    write(folder, "more", pairs(other, "1 > 2"))
    assert {task.name: len(task.train) for task in collect(folder).trained}["more"] == 2


@pytest.mark.parametrize("typed", ["red", "Red", "RED.", " red "])
@pytest.mark.parametrize("place", ["real", "open"])
def test_no_test_input_of_the_benchmark_is_in_a_row(folder, tmp_path, typed, place):
    write(tmp_path / "induction", "sums", pairs("1 1 > 2"), pairs("Red > rouge", "yellow > jaune"))
    write(tmp_path / place, "more", pairs(f"{typed} > warm", "1 1 > 2"))
    found = collect(
        folder,
        open_requests=tmp_path / "open" if place == "open" else None,
        instruction_induction=tmp_path / "induction",
    )
    inputs = [plain(example["input"]) for task in found.trained for example in task.train]
    assert sorted(inputs) == ["1 1", "blue"]  # its training inputs stay
    assert sum(count for reason, count in found.left_out.items() if "instruction induction" in reason) == 2


def test_the_everyday_requests_are_never_trained_on(folder):
    request = everyday_requests()[0].examples[0]
    write(folder, "more", [{"input": request["input"].upper(), "output": request["output"]}, *pairs("1 > 2")])
    found = collect(folder)
    assert {task.name: len(task.train) for task in found.trained}["more"] == 1


def test_a_task_without_any_example_left_is_left_out(folder):
    task = Task("more", ["d"], train=pairs("a > b"))
    kept, counts = without_leaks([task], [Task("held", ["d"], test=pairs("b > a"))], [])
    assert kept == [] and counts["tasks without any example left"] == 1


# ---- sources ----


@pytest.mark.parametrize(
    ("source", "research"),
    [
        ("TREC (repo MIT; TREC questions: research)", True),
        ("Jeopardy (research; another: Apache 2.0)", True),
        ("upstream CC-BY-NC: research", True),
        ("google-research-datasets/wiki-split (CC-BY-SA)", False),
        ("facts", False),
    ],
)
def test_what_is_marked_research_is_trained_on_if_asked_alone(folder, source, research):
    write(folder, "more", pairs("1 > 2"), source=source)
    assert is_research(folder, "more") == research
    names = [[task.name for task in collect(folder, research=asked).trained] for asked in (False, True)]
    assert names == [["colours"] if research else ["colours", "more"], ["colours", "more"]]


def test_our_descriptions_come_first_and_the_folder_s_own_follow(folder):
    write(folder, "a_or_an", pairs("apple > an"))
    [task] = [task for task in collect(folder).trained if task.name == "a_or_an"]
    assert task.descriptions == [*own_descriptions()["a_or_an"], "Do a_or_an."]


def test_the_suite_comes_with_names_of_its_own(monkeypatch):
    monkeypatch.undo()
    from training.mini.suite import suite

    few = [task for task in suite() if task.name in ("past_tense", "third_person", "third_word")]
    monkeypatch.setattr(data, "suite", lambda: few)
    [task] = suite_tasks(20)
    assert (task.name, task.group, len(task.descriptions)) == ("text_past_tense", "text", 40)
    assert len(task.train) == 20 and len(set(task.descriptions)) == 40


# ---- descriptions near unseen ones ----


def test_our_descriptions_that_are_all_but_an_unseen_one_are_left_out(folder, tmp_path, monkeypatch, capsys):
    """By the encoder that comes along; a held-out task's and the benchmark's descriptions are unseen too."""
    task = json.loads((folder / "verbs.json").read_text())
    task["eval_descriptions"] = ["Write the form of the verb that ends in -ing."]
    (folder / "verbs.json").write_text(json.dumps(task))
    write(tmp_path / "benchmark", "colours_too", pairs("x > y"), pairs("z > w"))
    own = {
        "colours": [
            "Give me the German word for this colour.",
            "write the form of the verb that ends in -ing",  # the held-out task's
            "DO COLOURS TOO.",
            "How would a German call it?",
        ]
    }
    monkeypatch.setattr(data, "own_descriptions", lambda: own)
    benchmark = json.loads((tmp_path / "benchmark" / "colours_too.json").read_text())
    benchmark["descriptions"] = ["Do colours too."]
    (tmp_path / "benchmark" / "colours_too.json").write_text(json.dumps(benchmark))
    found = collect(folder, instruction_induction=tmp_path / "benchmark")
    [colours] = found.trained
    assert colours.descriptions == [own["colours"][0], own["colours"][3], "Do colours."]
    assert found.left_out["real tasks: descriptions near an unseen one"] == 2
    said = capsys.readouterr().out
    assert "'DO COLOURS TOO.': it is all but the unseen 'Do colours too.'" in said


def test_a_task_whose_descriptions_are_all_near_is_left_out(monkeypatch):
    monkeypatch.setattr(data, "own_descriptions", lambda: {"one": ["Sort the words by length."]})
    tasks = [Task("one", ["Sort the words by length."]), Task("two", ["Sort the words by length."])]
    kept, counts = data.without_near(tasks, ["Sort the words by length"])
    assert [task.name for task in kept] == ["two"]  # which is not of ours
    assert counts["tasks without any description left"] == 1


def test_every_source_of_the_training_is_known(folder):
    assert collect(folder).sources == {"facts": ["colours"]}
