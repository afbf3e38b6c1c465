"""The mini suite: what the tasks are, and that what is held out stays out."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from training.mini import words
from training.mini.splits import examples, split_of
from training.mini.suite import suite
from training.mini.wordings import expand, wordings

ROOT = Path(__file__).parents[2]
TASKS = {task.name: task for task in suite()}
GROUPS = Counter(task.group for task in TASKS.values())


def test_the_suite_is_as_large_as_the_card_says():
    card = (ROOT / "assets" / "mini" / "README.md").read_text()
    assert f"\n{GROUPS['trained']} tasks made by rules" in card
    assert f"\n{GROUPS['combination']} new combinations of trained parts and {GROUPS['operation']} operations" in card


def test_descriptions_for_evaluation_are_never_trained_on():
    trained = {text.lower() for task in TASKS.values() if task.group == "trained" for text in task.descriptions}
    for task in TASKS.values():
        assert len(set(task.eval_descriptions)) >= 4, task.name
        assert trained.isdisjoint(text.lower() for text in task.eval_descriptions), task.name
        if task.group == "trained":
            assert len(set(task.descriptions)) >= 8, task.name


def test_no_sentence_describes_two_tasks():
    owners = Counter()
    for task in TASKS.values():
        owners.update({*task.descriptions, *task.eval_descriptions})
    assert max(owners.values()) == 1


def test_new_combinations_are_of_trained_parts():
    """A part is a word of a task's name: `third_word` is of those in `first_word` and `third_letter`."""
    trained = {part for name, task in TASKS.items() if task.group == "trained" for part in name.split("_")}
    combinations = [name for name, task in TASKS.items() if task.group == "combination"]
    assert "third_word" in combinations
    assert all(trained.issuperset(name.split("_")) for name in combinations)


def test_test_inputs_are_in_no_other_split():
    for name in ("third_word", "sum", "plural"):
        inputs = {
            split: {e["input"] for e in examples(TASKS[name], split, 50, 0)} for split in ("train", "test", "oracle")
        }
        assert inputs["test"] and inputs["train"].isdisjoint(inputs["test"] | inputs["oracle"])
        assert all(split_of(text) == split for split, texts in inputs.items() for text in texts)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_answers_are_plain_text(name: str):
    for seed in range(20):
        text, answer = TASKS[name].make(Random(seed))
        assert text and answer and text == text.strip() and answer == answer.strip()
        assert (text + answer).isascii() and len(text) < 80 and len(answer) < 130


def answer_to(name: str, condition=lambda text: True) -> tuple[str, str]:
    """The first example of a task whose input meets the condition."""
    rng = Random(0)
    return next(pair for pair in iter(lambda: TASKS[name].make(rng), None) if condition(pair[0]))


def test_tasks_do_what_they_say():
    text, answer = answer_to("third_word")
    assert answer == text.split()[2]
    text, answer = answer_to("drop_last_item")
    assert text == f"{answer}, {text.split(', ')[-1]}"
    text, answer = answer_to("swap_ends_letter")
    assert (answer[0], answer[-1], answer[1:-1]) == (text[-1], text[0], text[1:-1])
    text, answer = answer_to("stars_each_word")
    assert answer == " ".join(f"*{word}*" for word in text.split())
    text, answer = answer_to("number_to_words", lambda t: int(t) > 1000)
    assert answer.startswith(words.ONES[int(text[0])] + " thousand")
    text, answer = answer_to("diff")
    assert int(answer) == int(text.split()[0]) - int(text.split()[1]) >= 0


def test_english_rules():
    assert [words.plural(n) for n in ("dog", "box", "city", "day", "child", "wife")] == [
        "dogs",
        "boxes",
        "cities",
        "days",
        "children",
        "wives",
    ]
    assert (words.past("stop"), words.past("try"), words.past("love")) == ("stopped", "tried", "loved")
    assert (words.gerund("stop"), words.gerund("see"), words.gerund("make")) == ("stopping", "seeing", "making")
    assert words.number_in_words(2357) == "two thousand three hundred and fifty-seven"
    assert [words.ordinal(n) for n in (1, 2, 3, 4, 11, 22, 113)] == [
        "1st",
        "2nd",
        "3rd",
        "4th",
        "11th",
        "22nd",
        "113th",
    ]


def test_wordings_expand_every_alternative():
    found = {expand("{put|{set|lay}} it {down|}", Random(seed)) for seed in range(60)}
    assert found == {"put it", "put it down", "set it", "set it down", "lay it", "lay it down"}
    assert wordings(["go", "Is it so?"], ("Please {p}.",), 2, Random(0)) == ["Please go.", "Is it so?"]
