"""Descriptions for examples: those whose adapters make the examples' answers likely."""

import pytest
import torch

import hyperlora
from hyperlora.errors import UserError
from hyperlora.likelihood import likelihoods
from hyperlora.suggest import split, suggest

TEXTS = [f"Do what number {i} asks for." for i in range(40)]


@pytest.fixture(scope="module")
def mini():
    pipe = hyperlora.pipeline("mini")
    yield pipe
    pipe.close()


@pytest.mark.parametrize(
    "examples",
    [
        [(f"{a} {b}", f"[{a}] [{b}]") for a in ("river", "cat", "green") for b in ("house", "tree")],
        [(word, word[0]) for word in ("house", "garden", "tree", "boat", "window", "mill")],
        [(word, f"{word}s") for word in ("house", "garden", "tree")],
    ],
    ids=["brackets", "first letter", "plural"],
)
def test_what_is_found_answers_as_the_examples_do(mini, examples):
    shown, held = split(examples)
    rounds = list(suggest(mini, shown))
    losses = [round[0].loss for round in rounds]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.2
    assert all(len(round) <= 5 for round in rounds) and len({s.description for s in rounds[-1]}) == 5
    adapter = mini.adapt(rounds[-1][0].description)
    answers = mini.chat_batch([question for question, _ in held], [adapter] * len(held))
    assert sum(a == output for a, (_, output) in zip(answers, held, strict=True)) >= len(held) - 1


def test_descriptions_from_elsewhere_are_ranked_by_likelihood(mini, monkeypatch):
    for own in ("_alike", "_spread"):
        monkeypatch.setattr(f"hyperlora.suggest.{own}", lambda *_: [])
    examples = [("a b", "[a] [b]"), ("one two", "[one] [two]")]
    given = ["Write the plural of the word.", "Put each word in square brackets."]
    first = next(suggest(mini, examples, iter(given)))
    assert [s.description for s in first] == given[::-1] and first[0].loss < first[1].loss
    chats = [[*mini.prepare(q, None), {"role": "assistant", "content": a}] for q, a in examples]
    found = mini.engine.call(
        lambda: likelihoods(mini.adapted, mini.tokenizer, chats, mini.hyperlora.generate(given[1:]) * 2)
    )
    assert first[0].loss == pytest.approx(-float(torch.cat([row.log_probs for row in found]).mean()), abs=1e-4)


def test_without_training_descriptions_there_are_those_that_are_given(tiny_base, tiny_hyperlora):
    pipe = hyperlora.pipeline(base=tiny_base, hyperlora=tiny_hyperlora)
    pipe.hyperlora.set_descriptions([], pipe.hyperlora.embeddings[:0])
    examples = [("a", "b"), ("c", "d")]
    assert list(suggest(pipe, examples)) == []
    [*_, last] = suggest(pipe, examples, TEXTS, count=3)
    assert {s.description for s in last} <= set(TEXTS) and len(last) == 3
    pipe.close()


def test_half_of_enough_examples_is_held_out():
    examples = [(str(i), str(-i)) for i in range(20)]
    for n in range(2, 6):
        assert split(examples[:n]) == (examples[:n], examples[:n])
    for n in (6, 7, 20):
        shown, held = split(examples[:n], seed=3)
        assert sorted(shown + held) == sorted(examples[:n]) and len(shown) - len(held) in (0, 1)
        assert (shown, held) == split(examples[:n], seed=3) != split(examples[:n], seed=4)
    for n in (0, 1, 21):
        with pytest.raises(UserError, match=f"Give 2 to 20 examples: there are {n}"):
            split((examples * 2)[:n])


def test_examples_that_are_too_long_are_refused() -> None:
    with pytest.raises(UserError, match="Example 2 has more than 2,000 characters"):
        split([("a", "b"), ("a", "b" * 2001)])
