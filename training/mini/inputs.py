"""What the mini suite's tasks get to read: words, sentences, lists and numbers, drawn at random."""

from collections.abc import Callable
from random import Random

from . import words as w


def word(rng: Random) -> str:
    return w.random_word(rng)


def sentence(rng: Random, low: int = 3, high: int = 5) -> str:
    return " ".join(w.random_word(rng, 2, 7) for _ in range(rng.randint(low, high)))


def items(rng: Random, low: int = 3, high: int = 5) -> str:
    return ", ".join(w.random_word(rng, 3, 7) for _ in range(rng.randint(low, high)))


def digits(rng: Random) -> str:
    return str(rng.randint(1000, 9_999_999))


def small(rng: Random) -> str:
    return str(rng.randint(0, 99))


def pair(rng: Random) -> str:
    return f"{rng.randint(0, 99)} {rng.randint(0, 99)}"


def number_list(rng: Random) -> str:
    return ", ".join(str(rng.randint(0, 99)) for _ in range(rng.randint(3, 5)))


def apply(make: Callable[[Random], str], do: Callable[[str], str]) -> Callable[[Random], tuple[str, str]]:
    def draw(rng: Random) -> tuple[str, str]:
        text = make(rng)
        return text, do(text)

    return draw
