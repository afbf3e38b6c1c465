"""The mini suite: what the tasks are, and that what is held out stays out."""

import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from training.mini import words
from training.mini.grid import DIGIT, ITEM, WORD, grid
from training.mini.inputs import line, typed
from training.mini.splits import examples, split_of
from training.mini.suite import SPOKEN, suite
from training.mini.wordings import expand, wordings

ROOT = Path(__file__).parents[2]
ODD = re.compile(r"<\w+>| [?,]( |$)|,[.?]|\b(\w+) \1\b|\b[Aa] (item|element|entry|underscore|asterisk|input)\b")
TASKS = {task.name: task for task in suite()}
GRID = {entry.name: entry for entry in grid()}
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


def test_every_part_of_a_wording_is_filled_in():
    for name in GRID:
        task = TASKS[name]
        assert 60 <= len(task.descriptions) <= 64 and len(task.eval_descriptions) == 5, name
        for text in (*task.descriptions, *task.eval_descriptions):
            if text in SPOKEN.get(name, []):
                continue
            shown = text.replace("<->", "").replace("->", "")
            strange = "|" + ("" if "braces" in name else "{}") + ("" if "angles" in name else "<>")
            assert text.isascii() and not set(strange) & set(shown), (name, text)
            assert not ODD.search(text), (name, text)


def test_every_trained_task_is_described_in_words_of_its_own():
    assert set(SPOKEN) == {task.name for task in TASKS.values() if task.group == "trained"}
    for name, texts in SPOKEN.items():
        assert len(texts) == len({text.lower() for text in texts}) >= 20, name
        assert all(text.isascii() and text == " ".join(text.split()) for text in texts), name


def test_every_slot_of_the_grid_has_words():
    for entry in GRID.values():
        templates = entry.plain + entry.varied + entry.more
        used = {slot.lower() for text in templates for slot in re.findall(r"<(\w+)>", text)}
        assert used and all(entry.slots[slot] for slot in used), entry.name


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


def test_texts_are_written_as_people_type_them():
    rng = Random(0)
    texts = [line(rng) for _ in range(3000)]
    assert {len(text.split()) for text in texts} == {1, 2, 3, 4, 5, 6} and max(map(len, texts)) <= 48
    assert 0.25 < sum(text[0].isupper() for text in texts) / len(texts) < 0.45
    assert 0.15 < sum(text[-1] in ".!?" for text in texts) / len(texts) < 0.25
    assert any(text.isupper() and len(text) > 9 for text in texts) and any(
        text.istitle() and " " in text for text in texts
    )
    assert {typed(Random(seed), "red, blue") for seed in range(300)} == {
        "red, blue", "Red, blue", "red, Blue", "Red, Blue", "RED, BLUE",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fewest"),
    [
        ("first_word", 1), ("second_word", 2), ("third_item", 3), ("next_to_last_word", 2), ("last_item", 1),
        ("brackets_each_word", 1), ("parentheses_whole", 1), ("quotes_first_item", 1), ("count_words", 1),
        ("upper_first_word", 1), ("upper_whole", 1), ("lower_last_word", 1), ("hyphen_between_words", 1),
        ("swap_ends_word", 2), ("drop_first_word", 2), ("repeat_last_item", 1), ("stars_for_second_word", 2),
        ("first_three_words", 3), ("reverse_items", 1), ("first_word_to_end", 1), ("first_digit", 1),
    ],
)  # fmt: skip
def test_inputs_begin_at_the_fewest_units_that_make_sense(name: str, fewest: int):
    split = ITEM.split if "item" in name else DIGIT.split if "digit" in name else WORD.split
    rng = Random(0)
    assert min(len(split(TASKS[name].make(rng)[0])) for _ in range(300)) == fewest


@pytest.mark.parametrize("name", sorted(GRID))
def test_every_split_has_enough_inputs(name: str):
    for split in ("train", "test", "oracle"):
        least = 5 if name.startswith(("add_", "subtract_")) else 40
        assert len(examples(TASKS[name], split, 40, 0)) >= least, split


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("first_word", "Hello", "Hello"),
        ("last_word", "How are you?", "you"),
        ("next_to_last_word", "Wait here.", "Wait"),
        ("drop_last_word", "Go home now!", "Go home!"),
        ("repeat_first_word", "Blue sky.", "Blue Blue sky."),
        ("stars_for_last_word", "See you soon!", "See you ****!"),
        ("first_two_words", "Tom saw Ann.", "Tom saw"),
        ("reverse_words", "Hello", "Hello"),
        ("reverse_words", "Tom saw Ann.", "Ann saw Tom."),
        ("swap_ends_word", "Come here.", "here Come."),
        ("first_word_to_end", "Now we go.", "we go Now."),
        ("count_words", "Stop!", "1"),
        ("hyphen_between_words", "Hello", "Hello"),
        ("period_between_words", "Go on.", "Go.on."),
        ("brackets_each_word", "Hi", "[Hi]"),
        ("brackets_each_word", "Hi there!", "[Hi] [there]!"),
        ("braces_whole", "It works.", "{It works.}"),
        ("upper_whole", "It works.", "IT WORKS."),
        ("lower_first_word", "READ IT.", "read IT."),
        ("reversed_last_word", "Well done.", "Well enod."),
        ("first_letter", "Blue", "B"),
        ("reverse_letters", "Blue", "eulB"),
        ("brackets_each_letter", "Up", "[U][p]"),
        ("lower_first_letter", "Blue", "blue"),
        ("swap_ends_item", "Salt, pepper", "pepper, Salt"),
        ("semicolon_between_items", "Salt", "Salt"),
        ("quotes_last_item", "Salt, Pepper", 'Salt, "Pepper"'),
        ("drop_first_digit", "50", "0"),
        ("count_digits", "7", "1"),
        ("add_10", "0", "10"),
    ],
)
def test_answers_keep_capitals_and_end_marks(monkeypatch, name: str, text: str, answer: str):
    for draw in ("line", "typed", "digits", "small", "with_capitals"):
        monkeypatch.setattr(f"training.mini.grid.{draw}", lambda *_: text)
    task = next(entry for entry in grid() if entry.name == name)
    assert task.make(Random(0)) == (text, answer)


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
    assert wordings(["go", "Is it so?"], ("Please {p}.",), 2, Random(0), besides=["Please go."]) == ["Is it so?"]


def test_wordings_fill_slots_the_same_way_throughout():
    slots = {"unit": ["entry", "dash"], "target": ["the {first|1st} <unit>"], "mark": ["« and »"]}
    found = {expand("<Target>: a <unit> of <unit>s in <mark> <>", Random(seed), slots) for seed in range(60)}
    assert found == {
        f"The {place} {unit}: {one} of {units} in {{ and }} <>"
        for place in ("first", "1st")
        for unit, one, units in (("entry", "an entry", "entries"), ("dash", "a dash", "dashes"))
    }
