"""A language model is asked for descriptions, and its answer read."""

import json

import pytest

from hyperlora.describe import ask_for, parse_descriptions

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


def test_the_request_holds_the_pairs_and_not_the_middle_of_a_long_one():
    system, asked = ask_for([("one two", "[one] [two]"), ("x" * 999, "y")], 7, most=90)
    assert system["role"] == "system" and asked["role"] == "user"
    assert "Question:\none two\nAnswer:\n[one] [two]" in asked["content"]
    assert (
        f"{'x' * 60} [...] {'x' * 30}\nAnswer:\ny" in asked["content"]
        and "Reply with 7 descriptions" in asked["content"]
    )
    [alone] = ask_for([("a", "b")], 7, system=False)
    assert alone["content"].startswith(system["content"])
