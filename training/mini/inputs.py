"""What the mini suite's tasks get to read: words, sentences, lists and numbers, drawn at random."""

import re
from collections.abc import Callable
from random import Random

from . import words as w

END_MARKS = ".!?"
SHORT = ("I", "a", "is", "it", "in", "of", "on", "to", "we", "he", "my", "go", "no", "at", "as", "so", "do", "or")
WORD_START = re.compile(r"(?<!\S)[a-z]")  # a lower-case letter that begins a word


def typed(rng: Random, text: str, ends: bool = False) -> str:
    """The text as somebody types it: a third begin with a capital, and with `ends` a fifth have an end mark.

    Of those with a capital a few have one in every word, or capitals alone; some texts have a name in them.
    """
    kind = rng.random()
    if kind < 0.02:
        text = text.upper()
    elif kind < 0.07:
        text = WORD_START.sub(lambda m: m.group().upper(), text)
    elif kind < 0.34:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.08:
        starts = [m.start() for m in WORD_START.finditer(text)]
        if starts:
            i = rng.choice(starts)
            text = text[:i] + text[i].upper() + text[i + 1 :]
    if ends and rng.random() < 0.2:
        text += rng.choice("...!?")
    return text


def word(rng: Random) -> str:
    return w.random_word(rng)


def sentence(rng: Random, low: int = 3, high: int = 5) -> str:
    return " ".join(w.random_word(rng, 2, 7) for _ in range(rng.randint(low, high)))


def line(rng: Random, low: int = 1, high: int = 6) -> str:
    """A sentence as typed, with very short words among the others."""
    words = [
        rng.choice(SHORT) if rng.random() < 0.12 else w.random_word(rng, 2, 7) for _ in range(rng.randint(low, high))
    ]
    return typed(rng, " ".join(words), ends=True)


def items(rng: Random, low: int = 3, high: int = 5) -> str:
    return ", ".join(w.random_word(rng, 3, 7) for _ in range(rng.randint(low, high)))


def digits(rng: Random, low: int = 4, high: int = 7) -> str:
    """A number of `low` to `high` digits."""
    count = rng.randint(low, high)
    return str(rng.randint(10 ** (count - 1), 10**count - 1))


def small(rng: Random) -> str:
    return str(rng.randint(0, 99))


def pair(rng: Random) -> str:
    return f"{rng.randint(0, 99)} {rng.randint(0, 99)}"


def number_list(rng: Random) -> str:
    return ", ".join(str(rng.randint(0, 99)) for _ in range(rng.randint(3, 5)))


def bare(text: str) -> str:
    """The text without its end mark."""
    return text.rstrip(END_MARKS)


def before_mark(do: Callable[[str], str]) -> Callable[[str], str]:
    """Changes what is before the end mark and keeps the mark."""
    return lambda t: do(bare(t)) + t[len(bare(t)) :]


def apply(make: Callable[[Random], str], do: Callable[[str], str]) -> Callable[[Random], tuple[str, str]]:
    def draw(rng: Random) -> tuple[str, str]:
        text = make(rng)
        return text, do(text)

    return draw
