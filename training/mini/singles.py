"""The tasks of the mini suite that stand alone: numbers, grammar, spelling, questions about a text.

`singles.json` holds each task's group and how people word it, this file what goes in and what comes out. What people
type may begin with a capital, be all capitals, or end with a mark: a task that makes other words writes them as the
text is typed; one about letters takes both cases; an end mark is part of no word.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

from . import inputs
from . import words as w
from .inputs import apply, bare, before_mark, digits, line, number_list, pair, small, typed

Make = Callable[[Random], str]
Do = Callable[[str], str]

VOWELS = "aeiouAEIOU"

# Drawing texts


def one_of(choices: Callable[[], tuple[str, ...]]) -> Make:
    return lambda rng: choices()[int(len(choices()) * rng.random() ** 1.5)]


def as_typed(make: Make, marks: bool = False) -> Make:
    """The texts of `make` with the capitals, and the end marks, that people type."""
    return lambda rng: typed(rng, make(rng), marks)


def drawn_until(make: Make, fits: Callable[[str], bool]) -> Make:
    def draw(rng: Random) -> str:
        while not fits(text := make(rng)):
            pass
        return text

    return draw


NOUN, VERB, ADJECTIVE = one_of(w.nouns), one_of(w.verbs), one_of(w.adjectives)
noun, verb, adjective = as_typed(NOUN), as_typed(VERB), as_typed(ADJECTIVE)
word, items = as_typed(inputs.word), as_typed(inputs.items)
short_line, some_words = (lambda rng, high=high: line(rng, 1, high) for high in (3, 4))
small_line = drawn_until(line, lambda t: t[1:].islower())  # at most its first letter is a capital

SUBJECTS = ("he", "she", "it", "the dog", "the king", "my sister", "the child", "our teacher")
PLACES = ("here", "there", "happy", "late", "ready", "at home", "in the park", "very old", "tired", "hungry", "in town")


def statement(rng: Random, verbs: tuple[str, ...] = ("is", "was")) -> str:
    subject = rng.choice(SUBJECTS) if rng.random() < 0.5 else "the " + NOUN(rng)
    place = rng.choice(PLACES) if rng.random() < 0.6 else rng.choice(w.adverb_adjectives())
    return f"{subject} {rng.choice(verbs)} {place}"


def about_him(rng: Random) -> str:
    parts = [w.random_word(rng, 2, 6) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.8:
        parts.insert(rng.randint(0, len(parts)), rng.choice(("he", "him", "his")))
    return "he " + " ".join(parts)


def about_me(rng: Random) -> str:
    mine = f" my {w.random_word(rng, 3, 6)}" if rng.random() < 0.5 else ""
    return "i " + " ".join(w.random_word(rng, 2, 6) for _ in range(rng.randint(1, 4))) + mine


def mixed_case(rng: Random) -> str:
    return " ".join(x.upper() if rng.random() < 0.5 else x for x in line(rng).split())


def items_of_different_lengths(rng: Random) -> str:
    return ", ".join(w.random_word(rng, n, n) for n in rng.sample(range(3, 10), 3))


def vowel_first(rng: Random) -> str:
    return rng.choice(w.VOWELS) + w.random_word(rng, 2, 6) if rng.random() < 0.4 else w.random_word(rng)


def with_vowels_first(rng: Random) -> str:
    return " ".join(
        rng.choice(w.VOWELS) + w.random_word(rng, 2, 5) if rng.random() < 0.4 else w.random_word(rng, 2, 6)
        for _ in range(rng.randint(2, 5))
    )


def two_words(rng: Random) -> str:
    first = w.random_word(rng)
    return f"{first} {first if rng.random() < 0.5 else w.random_word(rng)}"


def with_a_double(rng: Random) -> str:
    x, y, z = (w.random_word(rng, 3, 6) for _ in range(3))
    return ", ".join(rng.sample([x, x, y, z], 4))


def maybe_palindrome(rng: Random) -> str:
    half = w.random_word(rng, 2, 4)
    return half + half[::-1] if rng.random() < 0.5 else w.random_word(rng)


# Changing texts


def capital(text: str) -> str:
    """The text with its first letter as a capital, the others as they are."""
    return text[:1].upper() + text[1:]


def in_its_case(do: Do) -> Do:
    """What `do` makes of the text in small letters, in capitals as the text: Window gives Windows, BOX gives BOXES."""

    def change(text: str) -> str:
        typed_words = text.split()
        if text.isupper() and len(text) > 1:
            return do(text.lower()).upper()
        if len(typed_words) > 1 and all(x[0].isupper() for x in typed_words):
            return " ".join(map(capital, do(text.lower()).split()))
        return capital(do(text[0].lower() + text[1:])) if text[0].isupper() else do(text)

    return change


def each_word(do: Do, between: str = " ") -> Do:
    return lambda t: between.join(map(do, t.split()))


def each_letter(do: Do) -> Do:
    return lambda t: "".join(map(do, t))


def numbers(do: Callable[[list[int]], int], between: str = " ") -> Do:
    return lambda t: str(do([int(x) for x in t.split(between)]))


def number(do: Callable[[int], object]) -> Do:
    return lambda t: str(do(int(t)))


def yes_if(true: Callable[[str], bool]) -> Do:
    return lambda t: "yes" if true(t) else "no"


def around_be(form: str) -> Do:
    """Puts what is before and after the is or was of a statement, and that verb itself, into a form."""
    return in_its_case(lambda t: re.sub(r"^(.*?) (is|was) (.*)$", form, t, flags=re.IGNORECASE))


def exchanged(words: dict[str, str]) -> Do:
    def other(word: str) -> str:
        found = words.get(word.lower(), word)
        return capital(found) if word[0].isupper() and word != "I" else found

    return before_mark(in_its_case(each_word(other)))


def without_vowels(text: str) -> str:
    return " ".join(filter(None, ("".join(c for c in x if c not in VOWELS) for x in text.split())))


def camel_case(text: str) -> str:
    first, *others = bare(text).lower().split()
    return first + "".join(map(capital, others))


def next_letter(letter: str) -> str:
    start = ord("A" if letter.isupper() else "a")
    return chr((ord(letter) - start + 1) % 26 + start)


def without_doubles(text: str) -> str:
    found: dict[str, str] = {}
    for item in text.split(", "):
        found.setdefault(item.lower(), item)
    return ", ".join(found.values())


NUMBERS_IN_WORDS = {w.number_in_words(n): str(n) for n in range(1000)}

TASKS: dict[str, tuple[Make, Do]] = {
    # numbers
    "sum": (pair, numbers(sum)),
    "diff": (lambda r: "{1} {0}".format(*sorted(r.randint(0, 99) for _ in range(2))), numbers(lambda n: n[0] - n[1])),
    "max_of_two": (pair, numbers(max)),
    "max_of_list": (number_list, numbers(max, ", ")),
    "min_of_two": (pair, numbers(min)),
    "min_of_list": (number_list, numbers(min, ", ")),
    "double": (small, number(lambda n: 2 * n)),
    "half": (lambda r: str(2 * r.randint(0, 99)), number(lambda n: n // 2)),
    "even_odd": (lambda r: digits(r, 1, 7), number(lambda n: "odd" if n % 2 else "even")),
    "number_to_words": (
        lambda r: str(r.randint(0, 99) if r.random() < 0.25 else r.randint(100, 9999)),
        number(w.number_in_words),
    ),
    "words_to_number": (
        as_typed(lambda r: w.number_in_words(r.randint(0, 999)), marks=True),
        lambda t: NUMBERS_IN_WORDS[bare(t).lower()],
    ),
    "ordinal": (small, number(w.ordinal)),
    "add_zero": (lambda r: str(r.randint(1, 99)), lambda t: t + "0"),
    "count_up": (small, number(lambda n: f"{n + 1} {n + 2} {n + 3}")),
    "greater_than_fifty": (small, yes_if(lambda t: int(t) > 50)),
    "digit_sum": (lambda r: str(r.randint(10, 99)), lambda t: str(sum(map(int, t)))),
    # grammar
    "plural": (noun, in_its_case(w.plural)),
    "singular": (
        as_typed(lambda r: w.plural(NOUN(r))),
        in_its_case(lambda t: next(n for n in w.nouns() if w.plural(n) == t)),
    ),
    "past_tense": (verb, in_its_case(w.past)),
    "gerund": (verb, in_its_case(w.gerund)),
    "agent": (verb, in_its_case(w.agent)),
    "third_person": (verb, in_its_case(w.plural)),
    "comparative": (adjective, in_its_case(w.comparative)),
    "superlative": (adjective, in_its_case(w.superlative)),
    "adverb": (as_typed(one_of(w.adverb_adjectives)), in_its_case(w.adverb)),
    "article": (noun, in_its_case(lambda t: ("an " if t[0] in VOWELS else "a ") + t)),
    "negate": (as_typed(statement, marks=True), around_be(r"\1 \2 not \3")),
    "to_question": (as_typed(statement, marks=True), lambda t: around_be(r"\2 \1 \3?")(bare(t))),
    "to_past": (as_typed(lambda r: statement(r, ("is",)), marks=True), around_be(r"\1 was \3")),
    "he_to_she": (
        as_typed(about_him, marks=True),
        exchanged({"he": "she", "him": "her", "his": "her", "himself": "herself"}),
    ),
    "i_to_we": (as_typed(about_me, marks=True), exchanged({"i": "we", "my": "our"})),
    "possessive": (as_typed(lambda r: f"{NOUN(r)} {NOUN(r)}"), in_its_case(lambda t: "the {}'s {}".format(*t.split()))),
    "not_prefix": (adjective, in_its_case(lambda t: "un" + t)),
    "hello": (as_typed(lambda r: r.choice(w.vocabulary()[500:6000])), lambda t: f"hello {bare(t)}!"),
    "too": (line, before_mark(lambda t: t + " too")),
    # texts
    "copy": (line, str),
    "twice": (line, lambda t: f"{t} {t}"),
    "word_three_times": (word, lambda t: f"{t} {t} {t}"),
    "exclaim": (line, lambda t: bare(t) + "!"),
    "question_mark": (line, lambda t: bare(t) + "?"),
    "capitalize_each": (drawn_until(line, lambda t: not t.isupper()), each_word(capital)),
    "capitalize_first": (small_line, capital),
    "swap_case": (mixed_case, str.swapcase),
    "remove_vowels": (drawn_until(line, lambda t: without_vowels(bare(t)) != ""), before_mark(without_vowels)),
    "only_vowels": (word, lambda t: "".join(c for c in t if c in VOWELS) or "none"),
    "star_vowels": (line, each_letter(lambda c: "*" if c in VOWELS else c)),
    "no_spaces": (line, each_word(str, "")),
    "initials": (line, each_word(lambda x: x[0], "")),
    "first_letter_last_word": (line, lambda t: t.split()[-1][0]),
    "last_letter_first_word": (line, lambda t: bare(t).split()[0][-1]),
    "first_letters_dots": (short_line, each_word(lambda x: x[0] + ".")),
    "reverse_each_word": (line, before_mark(each_word(lambda x: x[::-1]))),
    "a_to_e": (line, lambda t: t.replace("a", "e").replace("A", "E")),
    "spaces_to_newline_words": (some_words, each_word(str, " and ")),
    "double_letters": (word, each_letter(lambda c: c * 2)),
    "double_words": (some_words, before_mark(each_word(lambda x: f"{x} {x}"))),
    "sentence_punctuation": (small_line, lambda t: capital(bare(t)) + "."),
    "hash_tag": (short_line, lambda t: "#" + "".join(bare(t).split())),
    "camel_case": (short_line, camel_case),
    # lists
    "and_list": (items, lambda t: " and ".join(t.rsplit(", ", 1))),
    "list_to_words": (items, lambda t: t.replace(", ", " ")),
    "words_to_list": (line, each_word(str, ", ")),
    "brackets_list": (items, lambda t: f"[{t}]"),
    "longest_item": (as_typed(items_of_different_lengths), lambda t: max(t.split(", "), key=len)),
    "shortest_item": (as_typed(items_of_different_lengths), lambda t: min(t.split(", "), key=len)),
    "numbered_list": (
        as_typed(lambda r: inputs.items(r, 3, 3)),
        lambda t: " ".join(f"{i}. {x}" for i, x in enumerate(t.split(", "), 1)),
    ),
    # questions
    "starts_with_vowel": (as_typed(vowel_first), yes_if(lambda t: t[0] in VOWELS)),
    "contains_a": (word, yes_if(lambda t: "a" in t.lower())),
    "word_or_number": (
        lambda r: word(r) if r.random() < 0.5 else digits(r, 1, 7),
        lambda t: "number" if t.isdigit() else "word",
    ),
    "same_words": (as_typed(two_words), yes_if(lambda t: len(set(bare(t).lower().split())) == 1)),
    # never trained
    "sort_letters": (as_typed(lambda r: w.random_word(r, 3, 6)), lambda t: "".join(sorted(t, key=str.lower))),
    "next_letter": (as_typed(lambda r: w.random_word(r, 3, 5)), each_letter(next_letter)),
    "middle_word": (lambda r: line(r, 5, 5), lambda t: t.split()[2]),
    "every_other_word": (lambda r: line(r, 4, 6), lambda t: " ".join(bare(t).split()[::2])),
    "product": (lambda r: f"{r.randint(2, 12)} {r.randint(2, 12)}", numbers(lambda n: n[0] * n[1])),
    "sort_numbers": (number_list, lambda t: ", ".join(sorted(t.split(", "), key=int))),
    "remove_duplicates": (as_typed(with_a_double), without_doubles),
    "palindrome": (as_typed(maybe_palindrome), yes_if(lambda t: t.lower() == t.lower()[::-1])),
    "count_vowels": (word, lambda t: str(sum(c in VOWELS for c in t))),
    "words_with_a": (
        as_typed(with_vowels_first, marks=True),
        lambda t: " ".join(x for x in bare(t).split() if "a" in x.lower()) or "none",
    ),
}
WORDINGS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
# each: name, group, examples, plain templates, varied ones, and more, of which none is held out
SINGLES = [
    (name, said["group"], apply(*TASKS[name]), said["plain"], said["varied"], said["more"])
    for name, said in WORDINGS.items()
]
