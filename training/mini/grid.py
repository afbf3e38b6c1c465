"""The tasks of the mini suite that are made of parts: an operation, a place, and a kind of text.

Every part is trained in many tasks, so that a new combination of parts is made of known ones. What people say for the
parts and the operations is data: `grid.json`. Its templates hold `{alternatives|like these}` and slots `<like_this>`,
which `wordings.expand` fills: a kind of text has <unit>, <whole> ("list"), <text> ("the list", "what I type"),
<owner> ("list's") and <intro> (a sentence about what comes in); a place has <place> ("last"), <target> ("the last
item", "the item at the end"), <owned> (with the text it is in) and <keep> ("and leave the rest alone").
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from . import words as w
from .inputs import apply, bare, before_mark, digits, items, line, small, typed

Example = Callable[[Random], tuple[str, str]]
"""Draws an input and its output."""
Slots = dict[str, list[str]]
"""What may stand in a template's slot, by the slot's name."""


@dataclass(frozen=True)
class Entry:
    """A task: its examples, and its templates with their slots. `suite.suite` holds out none of `more`."""

    name: str
    make: Example
    plain: list[str]
    varied: list[str]
    more: list[str]
    slots: Slots


@dataclass(frozen=True)
class Domain:
    """A kind of text, made of units. make: draws a text of at least so many units, few enough for a short prompt."""

    name: str
    make: Callable[[Random, int], str]
    split: Callable[[str], list[str]]
    join: Callable[[list[str]], str]
    least: int


LETTER = Domain("letter", lambda r, low: typed(r, w.random_word(r, low, 8)), list, "".join, 2)
WORD = Domain("word", lambda r, low: line(r, low, 6), str.split, " ".join, 1)
ITEM = Domain("item", lambda r, low: typed(r, items(r, low, 5)), lambda s: s.split(", "), ", ".join, 1)
DIGIT = Domain("digit", lambda r, low: digits(r, low, 7), list, "".join, 1)
DOMAINS = (LETTER, WORD, ITEM, DIGIT)

PLACES = {"first": 0, "second": 1, "third": 2, "fourth": 3, "last": -1, "next_to_last": -2}
SLICES = {
    "first_two": slice(0, 2),
    "last_two": slice(-2, None),
    "first_three": slice(0, 3),
    "last_three": slice(-3, None),
}
MARKS = {
    "hyphen": "-", "comma": ",", "underscore": "_", "period": ".", "slash": "/", "plus": "+", "space": " ",
    "colon": ":", "semicolon": ";",
}  # fmt: skip
WRAPS = {"parentheses": "()", "brackets": "[]", "quotes": '""', "stars": "**", "angles": "<>", "braces": "{}"}
CASES = {"upper": str.upper, "lower": str.lower, "reversed": lambda s: s[::-1]}


@cache
def wording() -> dict[str, dict]:
    return json.loads(Path(__file__).with_name("grid.json").read_text(encoding="utf-8"))


def entry(name: str, make: Example, operations: list[str], *slots: Slots) -> Entry:
    """A task worded by all the operations named that have templates: `pick`, `pick_first`, `pick_first_letter`."""
    found: dict[str, list[str]] = {"plain": [], "varied": [], "more": []}
    for operation in dict.fromkeys(operations):
        for kind, templates in wording()["operations"].get(operation, {}).items():
            found[kind] += templates
    filled = wording()["slots"].copy()
    for parts in slots:
        filled |= parts
    return Entry(name, make, **found, slots=filled)


def said(operation: str, d: Domain, *places: str) -> list[str]:
    """The operations that word one in this kind of text, at these places, or both."""
    return [
        operation,
        f"{operation}_{d.name}",
        *(f"{operation}_{p}{end}" for p in places for end in ("", f"_{d.name}")),
    ]


def needed(i: int) -> int:
    """The number of units that a text must have for a unit at this place."""
    return i + 1 if i >= 0 else -i


def over_units(d: Domain, do: Callable[[list[str]], list[str]], low: int = 1, part: bool = False) -> Example:
    """Examples in which the units change. The end mark of a text is no word's: it stays where it is, or, where the
    answer is only a part of the text, goes."""

    def change(text: str) -> str:
        return d.join(do(d.split(text)))

    return apply(lambda r: d.make(r, max(low, d.least)), (lambda t: change(bare(t))) if part else before_mark(change))


def at_unit(d: Domain, i: int, do: Callable[[str], str], change: Callable[[Random, str], str] | None = None) -> Example:
    """Examples in which one unit is changed and the others are kept. change: makes another input of the one drawn."""

    def make(rng: Random) -> str:
        text = d.make(rng, max(needed(i), d.least))
        return change(rng, text) if change else text

    def at(text: str) -> str:
        units = d.split(text)
        units[i] = do(units[i])
        return d.join(units)

    return apply(make, before_mark(at))


def picks(d: Domain, kind: Slots) -> list[Entry]:
    return [
        entry(
            f"{name}_{d.name}",
            over_units(d, lambda xs, i=i: [xs[i]], needed(i), part=True),
            said("pick", d, name),
            kind,
            place,
        )
        for name, i, place in places()
    ]


def places(*names: str) -> list[tuple[str, int, Slots]]:
    """The places named, or all: name, index, slots."""
    return [(name, PLACES[name], wording()["places"][name]) for name in names or PLACES]


def drops(d: Domain, kind: Slots) -> list[Entry]:
    found = []
    for name, i, place in places():
        do = lambda xs, i=i: [x for k, x in enumerate(xs) if k != i % len(xs)]  # noqa: E731
        make = over_units(d, do, max(2, needed(i)))
        found.append(entry(f"drop_{name}_{d.name}", make, said("drop", d, name), kind, place))
    return found


def repeats(d: Domain, kind: Slots) -> list[Entry]:
    found = []
    for name, i, place in places("first", "second", "third", "last", "next_to_last"):
        do = lambda xs, i=i: [*xs[:i], xs[i], *xs[i:]]  # noqa: E731
        make = over_units(d, do, needed(i))
        found.append(entry(f"repeat_{name}_{d.name}", make, said("repeat", d, name), kind, place))
    return found


def stars_for(d: Domain, kind: Slots) -> list[Entry]:
    """One star in place of a unit; of a word, in place of each of its letters."""
    star = wording()["stars"]["word" if d is WORD else "other"]
    found = []
    for name, i, place in places("first", "second", "third", "last", "next_to_last"):
        hide = at_unit(d, i, lambda s: "*" * len(s) if d is WORD else "*")
        found.append(entry(f"stars_for_{name}_{d.name}", hide, said("stars", d, name), kind, place, star))
    return found


def slices(d: Domain, kind: Slots) -> list[Entry]:
    found = []
    for name, cut in SLICES.items():
        make = over_units(d, lambda xs, cut=cut: xs[cut], 3 if name.endswith("three") else 2, part=True)
        operations = said("slice", d, name.split("_")[0])
        found.append(entry(f"{name}_{d.name}s", make, operations, kind, wording()["slices"][name]))
    return found


def moves(d: Domain, kind: Slots) -> list[Entry]:
    """Reverse, swap the ends, move an end, count."""
    count = apply(lambda r: d.make(r, d.least), lambda t: str(len(d.split(t))))
    changes = {
        f"reverse_{d.name}s": ("reverse", over_units(d, lambda xs: xs[::-1])),
        f"swap_ends_{d.name}": ("swap", over_units(d, lambda xs: [xs[-1], *xs[1:-1], xs[0]], 2)),
        f"first_{d.name}_to_end": ("first_to_end", over_units(d, lambda xs: [*xs[1:], xs[0]])),
        f"last_{d.name}_to_front": ("last_to_front", over_units(d, lambda xs: [xs[-1], *xs[:-1]])),
        f"count_{d.name}s": ("count", count),
    }
    return [entry(name, make, said(operation, d), kind) for name, (operation, make) in changes.items()]


def separators(d: Domain, kind: Slots) -> list[Entry]:
    found = []
    for name, mark in MARKS.items():
        if mark == " " and d in (WORD, ITEM):
            continue
        make = apply(lambda r: d.make(r, d.least), before_mark(lambda t, m=mark: m.join(d.split(t))))
        operations = said("separator", d, name)
        if d is ITEM and mark == ",":
            operations.remove("separator_item")  # "use commas instead of the commas"
        found.append(entry(f"{name}_between_{d.name}s", make, operations, kind, wording()["marks"][name]))
    return found


def wraps(d: Domain, kind: Slots) -> list[Entry]:
    """Marks around the whole text, around each of its units, or around one."""
    names = ["first", "second", "third", "last", "each"] + (["next_to_last", "whole"] if d is WORD else [])
    found = []
    for mark, (left, right) in list(WRAPS.items())[: {"letter": 4, "item": 5, "word": 6}[d.name]]:
        around = lambda s, a=left, b=right: a + s + b  # noqa: E731
        for place in names:
            name = f"{mark}_{place}_{d.name}"
            if place == "whole":
                name, make = f"{mark}_whole", apply(line, around)
            elif place == "each":
                make = over_units(d, lambda xs, f=around: [f(x) for x in xs])
            else:
                make = at_unit(d, PLACES[place], around)
            operations = [*said("wrap", d, place), f"wrap_{mark}"]
            found.append(entry(name, make, operations, kind, wording()["places"][place], wording()["wraps"][mark]))
    return found


def with_capitals(rng: Random, text: str) -> str:
    """The text with capitals to make small: mostly nothing else, or one in every word, or anywhere."""
    kind = rng.random()
    if kind < 0.65:
        return text.upper()
    if kind < 0.85:
        return text.title()
    return "".join(rng.choice((c, c.upper())) for c in text)


def cases(d: Domain, kind: Slots) -> list[Entry]:
    """Upper or lower case, or backward spelling, of one unit; of the whole text, its case."""
    found = []
    for case, do in CASES.items():
        if case == "reversed" and d is not WORD and d is not ITEM:
            continue
        change = with_capitals if case == "lower" else None
        for place in ("whole", "first", "second", "third", "last", "next_to_last"):
            if place == "whole" and (d is not WORD or case == "reversed"):
                continue
            if place == "whole":
                name = f"{case}_whole"
                make = apply((lambda r: with_capitals(r, line(r))) if case == "lower" else line, do)
            else:
                name = f"{case}_{place}_{d.name}"
                make = at_unit(d, PLACES[place], do, change)
            operations = (
                said("reversed", d) if case == "reversed" else [*said("case", d), *said(f"case_{case}", d, place)]
            )
            found.append(entry(name, make, operations, kind, wording()["places"][place], wording()["cases"][case]))
    return found


def arithmetic() -> list[Entry]:
    found = []
    for k in (1, 2, 3, 5, 10, 20, 100):
        number = wording()["numbers"][str(k)]
        add = apply(small, lambda t, k=k: str(int(t) + k))
        found.append(entry(f"add_{k}", add, ["add", f"add_{k}"], number))
        if k in (1, 2, 5, 10):
            subtract = apply(lambda r, k=k: str(r.randint(k, 109)), lambda t, k=k: str(int(t) - k))
            found.append(entry(f"subtract_{k}", subtract, ["subtract", f"subtract_{k}"], number))
    return found


def grid() -> list[Entry]:
    found: list[Entry] = []
    for d in DOMAINS:
        kind = wording()["domains"][d.name]
        for operation in (picks, drops, repeats, stars_for, slices, moves, separators):
            found += operation(d, kind)
        if d is not DIGIT:
            found += wraps(d, kind) + cases(d, kind)
    return found + arithmetic()
