"""What the mini suite's tasks get to read: words, sentences, lists and numbers, drawn at random."""

from collections.abc import Callable
from random import Random

from training.parts.typed import END_MARKS, typed

from . import words as w

SHORT = ("I", "a", "is", "it", "in", "of", "on", "to", "we", "he", "my", "go", "no", "at", "as", "so", "do", "or")


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
