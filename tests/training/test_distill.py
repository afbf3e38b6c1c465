"""A base's own answers to described requests, from a tiny random base."""

import json
from pathlib import Path

import pytest
import torch

import hyperlora
from hyperlora.chat import ChatEngine
from hyperlora.errors import UserError
from hyperlora.prompt import format_prompt
from training.distill import ANSWERS, Answer, Kind, Options, main, make_tasks
from training.tasks import load_tasks

KINDS = [
    {"kind": "pirate", "descriptions": ["Talk like a pirate.", "arrr"], "messages": ["hi", "sing", " boil an egg\n"]},
    {"kind": "haiku", "descriptions": ["Write a haiku."], "messages": ["rain", "snow", "a frog"]},
]


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.json"
    path.write_text(json.dumps(KINDS))
    return path


@pytest.fixture
def distill(tiny_base: Path, requests: Path, tmp_path: Path):
    """distill(output, *options): what the output folder then holds by file name, the answers in order."""

    def run(output: str, *more: str) -> dict[str, str | list[str]]:
        folder = tmp_path / output
        common = ["--base", str(tiny_base), "--requests", str(requests), "--output", str(folder)]
        main([*common, "--max_tokens", "120", "--temperature", "1.5", "--held_back", "1", *more])
        first, *rows = (folder / ANSWERS).read_text().splitlines()
        return {path.name: path.read_text() for path in folder.glob("*.json")} | {ANSWERS.name: [first, *sorted(rows)]}

    return run


def lines(found: dict[str, list[str]]) -> list[dict]:
    return [json.loads(line) for line in found[ANSWERS.name][1:]]


def test_each_description_becomes_a_task_of_the_answers_that_ended(distill, tmp_path, capsys):
    found = distill("out")
    rows = lines(found)
    pirate = {row["message"] for row in rows if row["description"] == "Talk like a pirate."}
    assert pirate == {"hi", "sing", "boil an egg"}
    assert len(rows) == 9 and {row["end"] for row in rows} == {"stop", "length"}
    kept = {(row["description"], row["message"]): row["answer"].strip() for row in rows if row["end"] == "stop"}
    tasks = load_tasks(tmp_path / "out")
    assert {task.group for task in tasks} <= {"pirate", "haiku"} and all(task.train for task in tasks)
    for task in tasks:
        [description] = task.descriptions
        assert len(task.test) <= 1
        for example in task.train + task.test:
            assert example["output"] == kept[description, example["input"]]
    said = capsys.readouterr().out
    assert f"Dropped: 0 in circles, {9 - len(kept)} cut at 120 tokens, 0 empty" in said


def test_the_prompt_is_the_one_that_chat_sends_with_the_description_in_it(
    distill, tiny_base, tiny_hyperlora, monkeypatch
):
    sent, row = [], ChatEngine._row
    monkeypatch.setattr(ChatEngine, "_row", lambda *given: sent.append(row(*given)) or sent[-1])
    distill("out")
    asked = [(d, message) for kind in KINDS for d in kind["descriptions"] for message in kind["messages"]]
    prompts = [row.ids[: len(row.ids) - row.made] for row in sent]
    pipe = hyperlora.pipeline(base=tiny_base, hyperlora=tiny_hyperlora)
    for (description, message), prompt in zip(asked, prompts, strict=True):
        messages = pipe.prepare(message, pipe.adapt(description), describe=True)
        assert format_prompt(pipe.tokenizer, messages) == prompt
    pipe.close()


def test_an_answer_depends_on_its_seed_and_not_on_what_is_decoded_beside_it(distill):
    found = distill("out", "--batch_size", "4")
    torch.manual_seed(3)
    assert distill("alone", "--batch_size", "1") == found
    assert lines(distill("other", "--seed", "1")) != lines(found)


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(distill, tmp_path, requests, monkeypatch):
    whole = distill("out")
    path = tmp_path / "out" / ANSWERS
    written = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(written[:6]) + written[6][:20])  # killed while it wrote
    asked, submit = [], ChatEngine.submit
    monkeypatch.setattr(ChatEngine, "submit", lambda self, *a, **b: asked.append(a) or submit(self, *a, **b))
    assert distill("out") == whole
    assert len(asked) == 4
    requests.write_text(json.dumps([*KINDS, {"kind": "new", "descriptions": ["Be brief."], "messages": ["hi"]}]))
    more = distill("out")
    assert set(whole[ANSWERS.name]) < set(more[ANSWERS.name])
    assert len(asked) == 5


def test_what_another_run_answered_is_not_mixed_in(distill, tmp_path):
    distill("out")
    with pytest.raises(UserError, match="was made with another top_p: use that of then, or another --output"):
        distill("out", "--top_p", "0.5")
    (tmp_path / "out" / ANSWERS).write_text("{}\nnonsense\n")
    with pytest.raises(UserError, match="is damaged: delete it"):
        distill("out")


def test_answers_that_teach_nothing_are_dropped_and_counted():
    kinds = [Kind("a", ["one", "two"], ["1", "2", "3", "4", "5"])]
    texts = {"1": "Fine.", "2": "No.\nNo.\nNo.", "3": " \n", "4": "It was the", "5": " Good. "}
    answers = {("one", message): Answer(text, "stop") for message, text in texts.items()}
    answers["one", "4"] = Answer("It was the", "length")
    answers |= {("two", message): Answer("", "stop") for message in texts}
    options = Options(base="", requests="", output="", held_back=1)
    [task], count = make_tasks(kinds, answers, options)
    assert task.name == "a-1" and task.descriptions == ["one"] and task.group == "a"
    kept = [(example["input"], example["output"]) for example in task.train + task.test]
    assert sorted(kept) == [("1", "Fine."), ("5", "Good.")]
    assert count == {"kept": 2, "looping": 1, "empty": 6, "cut": 1, "left": 1}


@pytest.mark.parametrize(
    ("kinds", "sentence"),
    [
        ({}, 'must be a list of {"kind"'),
        ([], 'must be a list of {"kind"'),
        ([{"kind": "../up", "descriptions": ["a"], "messages": ["b"]}], "not '../up'"),
        ([{"kind": "a", "descriptions": [" "], "messages": ["b"]}], "the descriptions of 'a' must be texts"),
        ([{"kind": "a", "descriptions": ["a"], "messages": ["b", "b "]}], "one of the messages of 'a' is there twice"),
        ([{"kind": "a", "descriptions": ["a"], "messages": ["b"]}] * 2, "two kinds of one name"),
        ([{"kind": "a", "descriptions": ["a"], "messages": ["b" * 300]}], "tokens long and the model reads 256"),
    ],
)
def test_requests_that_cannot_be_sent_are_one_sentence(distill, requests, kinds, sentence):
    requests.write_text(json.dumps(kinds))
    with pytest.raises(UserError, match=sentence):
        distill("out")
