"""Ten turns with the real SmolLM2: a small model that takes the likeliest token soon says the same again and again."""

from collections import Counter

import pytest

import hyperlora
from hyperlora.presets import assets_dir
from training.parts.metrics import loops

TURNS = ["Tell me a story about a dog.", "Go on.", "Go on.", "And then?", "Go on.", "Why?", "Go on.", "Tell me more.",
         "What happened next?", "How does it end?"]  # fmt: skip


def check(answers: list[str]) -> None:
    """None goes in circles, and no sentence is said in three of them."""
    assert [answer for answer in answers if loops(answer)] == []
    lines = Counter(line.strip() for answer in answers for line in set(answer.splitlines()) if len(line.split()) > 3)
    assert [line for line, times in lines.items() if times > 2] == []


def talk(say) -> list[str]:
    messages: list[dict[str, str]] = []
    for turn in TURNS:
        messages.append({"role": "user", "content": turn})
        messages.append({"role": "assistant", "content": say(messages)})
    return [message["content"] for message in messages if message["role"] == "assistant"]


def test_ten_turns_with_an_adapter() -> None:
    if not (assets_dir() / "smollm2").is_dir():
        pytest.skip("assets/smollm2 is not there: no hypernetwork for SmolLM2 has been trained yet")
    pipe = hyperlora.pipeline("smollm2-135m")
    adapter = pipe.adapt("You are a helpful assistant.")
    check(talk(lambda messages: pipe.chat(messages, adapter=adapter, max_new_tokens=96)))
    pipe.close()
