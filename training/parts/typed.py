"""Texts as people type them: with and without capitals and end marks."""

import re
from random import Random

END_MARKS = ".!?"
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


def retyped(rng: Random, text: str) -> str:
    """A text that is written well as somebody types it: without its first capital and full stop, or with them.

    A first word that has capitals inside (an abbreviation, a Roman numeral) stays.
    """
    first = text.split(maxsplit=1)[0] if text.strip() else ""
    if first[1:].islower() or first in ("A", "I"):
        text = (text[0].lower() if rng.random() < 0.6 else text[0].upper()) + text[1:]
    if text.endswith(".") and not text.endswith("..") and rng.random() < 0.6:
        return text[:-1]
    if text[-1:].isalpha() and " " in text and rng.random() < 0.2:
        return text + "."
    return text
