import json

import pytest

from tests.training.test_descriptions import capital
from training.parts.written import labels, leaks, parse_descriptions
from training.tasks import Task

TWO = ["Say which city rules.", "Name the seat of government."]


@pytest.mark.parametrize(
    "text",
    [
        "Description 1: Say which city rules.\n\nDescription 2: Name the seat of government.",
        "Of course! Here you are:\n\n1. Say which city rules.\n2. Name the seat\n   of government.\n\nGood luck.",
        "1) Say which city rules.\n2) Name the seat of government.",
        "**Description 1:** Say which city rules.\n**Description 2**: *Name the seat of government.*",
        "### Description 1\n\nSay which city rules.\n\n### Description 2\nName the seat of government.",
        '1. **Description 1:** "Say which city rules."\n2. “Name the seat of government.”',
        "- Say which city rules.\n- Name the seat of government.",
        "<think>\n1. Let me plan this.\n</think>\n* Say which city rules.\n* Name the seat of government.",
        json.dumps(TWO),
        json.dumps({"descriptions": TWO}, indent=2),
        json.dumps({f"Description {i}": text for i, text in enumerate(TWO, 1)}),
        f"Here is the list:\n```json\n{json.dumps([{'style': 'in short', 'description': text} for text in TWO])}\n```",
        f"Here is the list: {json.dumps(TWO)} Enjoy!",
        json.dumps([*TWO, "This one was never"])[:-8],
        '{"descriptions": ["Say which city rules.",\n"Name the seat of government.",\n]',
    ],
)
def test_descriptions_are_found_in_lists_and_json(text):
    assert parse_descriptions(text) == TWO


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot help with that.",
        "Description 1: TEXT\nDescription 2: TEXT",
        "[" * 100_000,
        "1. " + "long " * 1000,
        "<think>\n1. This thought was never finished",
    ],
)
def test_an_answer_without_descriptions_gives_none(text):
    assert parse_descriptions(text) == []


def test_half_a_surrogate_pair_can_be_written():
    [text] = parse_descriptions('["Say it with \\ud83d."]')
    assert text.encode() == b"Say it with ?."


def test_an_answer_is_found_whatever_its_case_and_punctuation():
    assert leaks("The capital is, of course, OSLO!", ["Oslo."])
    assert leaks("Write New-York.", ["new york"])
    assert leaks("Say: the quick brown fox jumps over it.", ["A long tale: the quick brown fox jumps over many dogs."])
    assert not leaks("Lisbonese words", ["Lisbon"])
    assert not leaks("Find a letter in the word.", ["a", "?", "", "in the"])


def test_classes_are_no_answers_that_could_leak():
    reviews = [{"input": str(i), "output": ("Positive", "negative.")[i % 2]} for i in range(40)]
    task = Task("reviews", ["Do."], train=[*reviews, {"input": "x", "output": "mixed"}])
    assert labels(task) == {"positive", "negative"}
    assert labels(capital()) == set()
    assert not leaks("Is the review positive?", ["Positive"], labels(task))
    assert leaks("Is the review mixed?", ["mixed"], labels(task))
