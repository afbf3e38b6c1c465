"""Data sets with the columns that they have on the Hub; `load_dataset` is replaced, since no test has a network."""

import ast
import importlib.util
from pathlib import Path

import datasets
import jinja2
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hyperlora.errors import UserError
from training.parts import hub_tasks, sni
from training.tasks import load_tasks

NAME = "task1146_country_capital"
PROMPT = (
    "Definition: Name the capital..\n\nPositive Example 1 -\nInput: Peru\nOutput: Lima\n\n"
    "Now complete the following example -\nInput: {}\nOutput:"
)
CHOICES = {"text": ["a rock", "a tree", "a cloud"], "label": ["A", "B", "C"]}
YES_NO = ClassLabel(names=["False", "True"])

# one row of each benchmark's training split
ROWS = {
    "arc_challenge": {"id": "1", "question": "What grows?", "choices": CHOICES, "answerKey": "B"},
    "arc_easy": {
        "id": "2",
        "question": "What drifts?",
        "choices": CHOICES | {"label": ["1", "2", "3"]},
        "answerKey": "3",
    },
    "boolq": {"question": "can rocks grow", "passage": "Rocks lie still.", "idx": 0, "label": 0},
    "gsm8k": {"question": "What is twice 4?", "answer": "4 + 4 = <<4+4=8>>8\n#### 8"},
    "hellaswag": {
        "ind": 4,
        "activity_label": "Planting a tree",
        "ctx_a": "[header] How to plant a tree [title] Dig a hole.",
        "ctx_b": "then",
        "ctx": "[header] How to plant a tree [title] Dig a hole. then",
        "endings": ["leave.", " put the tree  in. [substeps] Water it.", "sing.", "run."],
        "source_id": "wikihow~1",
        "split": "train",
        "split_type": "indomain",
        "label": "1",
    },
    "mbpp": {
        "task_id": 601,
        "text": "Add two numbers.",
        "code": "def add(a, b):\r\n  return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
        "test_setup_code": "",
        "challenge_test_list": [],
    },
    "openbookqa": {"id": "7-980", "question_stem": "Rain falls from", "choices": CHOICES, "answerKey": "C"},
    "piqa": {"goal": "open a jar", "sol1": "Shout at it.", "sol2": "Turn the lid.", "label": 1},
    "winogrande": {
        "sentence": "Ann thanked Bea because _ had helped her.",
        "option1": "Ann",
        "option2": "Bea",
        "answer": "2",
    },
}


def rows_of(name: str) -> Dataset:
    data = Dataset.from_list([ROWS[name]])
    return data.cast_column("label", YES_NO) if name in ("boolq", "piqa") else data


def instructions(inputs: list[str]) -> Dataset:
    features = Features({"input": Value("string"), "output": datasets.List(Value("string")), "id": Value("string")})
    rows = [{"input": PROMPT.format(i), "output": [f"City {i}", "?"], "id": f"task1146-{i}"} for i in inputs]
    return Dataset.from_list(rows, features=features)


@pytest.fixture
def sets(monkeypatch) -> dict[tuple[str, str | None], DatasetDict]:
    """What the Hub holds: (path, config) -> splits."""
    found = {(b.path, b.config): DatasetDict(train=rows_of(name)) for name, b in hub_tasks.BENCHMARKS.items()}
    task = {"train": instructions(list("abcdefgh")), "valid": instructions(["x"]), "test": instructions(["y", "a"])}
    found[f"Lots-of-LoRAs/{NAME}", None] = DatasetDict(task)

    def load_dataset(path: str, name: str | None = None) -> DatasetDict:
        if (path, name) not in found:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub.")
        return found[path, name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return found


def test_a_copy_of_natural_instructions(sets):
    [task] = load_tasks(f"hub:Lots-of-LoRAs/{NAME}")
    assert (task.name, task.descriptions) == (NAME, ["Name the capital."])
    assert task.train[0] == {"input": "Name the capital.\n\na", "output": "City a", "outputs": ["City a", "?"]}
    assert len(task.train) == 8
    assert [e["output"] for e in task.test] == ["City y"]  # the other one is trained on
    [task] = load_tasks(f"hub:Lots-of-LoRAs/{NAME}", definition=False, limit=3)
    assert len(task.train) == 3 and {e["input"] for e in task.train} < set("abcdefgh")


def test_the_benchmarks_training_splits(sets):
    tasks = {task.name: task for task in load_tasks("hub:benchmarks")}
    assert list(tasks) == list(ROWS) and "humaneval" not in tasks
    assert all(len(task.train) == 1 and not task.test and task.group == "benchmarks" for task in tasks.values())
    assert load_tasks("hub:gsm8k") == [tasks["gsm8k"]]
    [mbpp] = tasks["mbpp"].train
    assert all(part in mbpp["input"] for part in [ROWS["mbpp"]["text"], *ROWS["mbpp"]["test_list"]])
    assert mbpp["output"] == "```python\ndef add(a, b):\n  return a + b\n```"


class Loader(yaml.SafeLoader):
    """lm-eval's configs, their functions by name."""


Loader.add_constructor("!function", lambda loader, node: node.value)


def lm_eval_s(name: str) -> tuple[str, str]:
    """Prompt and right answer of the row, as lm-eval's own config of the benchmark makes them."""
    root = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
    places = {"arc_challenge": "arc/arc_easy", "arc_easy": "arc/arc_easy", "boolq": "super_glue/boolq/default"}
    places["winogrande"] = "winogrande/default"
    path = root / f"{places.get(name, f'{name}/{name}')}.yaml"
    config = yaml.load(path.read_text(), Loader)
    assert config["dataset_path"] == hub_tasks.BENCHMARKS[name].path
    row = ROWS[name]

    def function(full_name: str):
        file, _, own = full_name.rpartition(".")
        spec = importlib.util.spec_from_file_location("from_lm_eval", path.with_name(f"{file}.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, own)

    if name == "winogrande":  # its choices are prompts, and the answer is how the sentence goes on
        text, target, choice = (function(config[f"doc_to_{part}"]) for part in ("text", "target", "choice"))
        return choice(row)[text(row)], target(row)
    if "process_docs" in config:
        row = next(iter(function(config["process_docs"])(Dataset.from_list([row]))))

    def value(key: str):
        wanted = config[key]
        return row[wanted] if wanted in row else jinja2.Template(wanted).render(**row)

    answer = value("doc_to_target")
    if choices := config.get("doc_to_choice"):
        choices = choices if isinstance(choices, list) else value("doc_to_choice")
        answer = (ast.literal_eval(choices) if isinstance(choices, str) else choices)[int(answer)]
    return value("doc_to_text"), answer


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
@pytest.mark.parametrize("name", [name for name in ROWS if name != "mbpp"])
def test_an_oracle_is_trained_on_what_lm_eval_asks(name, sets):
    [task] = load_tasks(f"hub:{name}")
    assert [(e["input"], e["output"]) for e in task.train] == [lm_eval_s(name)]


def test_a_list_of_the_selection_is_loaded_and_what_is_missing_skipped(sets, capsys, monkeypatch):
    monkeypatch.setattr(sni, "selection", lambda name: ["task0_gone", NAME])
    assert [task.name for task in load_tasks("hub:held_out", strict=False)] == [NAME]
    assert "Skipped 1 of 2" in (errors := capsys.readouterr().err) and "Lots-of-LoRAs/task0_gone" in errors
    with pytest.raises(UserError, match="hub:Lots-of-LoRAs/task0_gone could not be fetched"):
        load_tasks("hub:held_out")
    assert [task.name for task in load_tasks("hub:held_out", names=[NAME])] == [NAME]


def test_no_network_ends_it_at_once(monkeypatch):
    asked = []

    def load_dataset(path, name=None):
        asked.append(path)
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"could not be fetched: Couldn't reach .* on the Hub\.$"):
        load_tasks("hub:train", strict=False)
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["humaneval", "imdb", "someone/else", "", "Lots-of-LoRAs/gone"])
def test_a_name_that_is_none_is_one_sentence(name, sets):
    with pytest.raises(UserError, match=f"hub:{name} "):
        load_tasks(f"hub:{name}")


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"input": "Peru", "output": ["Lima"], "id": "1"}],
        [{"input": PROMPT, "output": [], "id": "1"}],
        [{"input": PROMPT, "output": "Lima", "id": "1"}],
        [{"question": "Peru", "answer": "Lima"}],
    ],
)
def test_a_data_set_of_another_form_is_named(rows, sets):
    sets[f"Lots-of-LoRAs/{NAME}", None] = DatasetDict(train=Dataset.from_list(rows))
    with pytest.raises(UserError, match=NAME) as error:
        load_tasks(f"hub:Lots-of-LoRAs/{NAME}")
    assert "\n" not in str(error.value)
