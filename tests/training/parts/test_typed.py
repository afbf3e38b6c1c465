"""Texts as people type them."""

from random import Random

import pytest

from training.parts.typed import retyped


@pytest.mark.parametrize(
    ("text", "ways"),
    [
        ("Turn it off.", {"Turn it off.", "Turn it off", "turn it off.", "turn it off"}),
        ("some words", {"some words", "Some words", "some words.", "Some words."}),
        ("XIV", {"XIV"}),
        ("HER", {"HER"}),
        ("Wait...", {"Wait...", "wait..."}),
        ("Why?", {"Why?", "why?"}),
        ("12 + 3", {"12 + 3"}),
        ("", {""}),
    ],
)
def test_capitals_and_full_stops_come_and_go(text, ways):
    assert {retyped(Random(seed), text) for seed in range(200)} == ways
