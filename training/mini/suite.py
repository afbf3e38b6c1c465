"""The text tasks of the mini model: what goes in, what comes out, and how people say it.

`suite()` lists every task in one of three groups: `trained`; `combination`, a new combination of parts that are
trained apart (the third word, where first and second word, third letter and third item are trained); and
`operation`, something that no trained task does. The last two are held out of every stage of the training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from . import words as w
from .inputs import apply, digits, items, sentence, small
from .singles import SINGLES
from .wordings import EVAL_FRAMES, TRAIN_FRAMES, wordings

TRAIN_WORDINGS, EVAL_WORDINGS = 20, 5


@dataclass(frozen=True)
class TextTask:
    """`make(rng)` draws one (input, output); the descriptions for training and for evaluation are disjoint."""

    name: str
    group: str
    make: Callable[[Random], tuple[str, str]]
    descriptions: tuple[str, ...]
    eval_descriptions: tuple[str, ...]


# Domains: a text is made of units. Templates call the unit and the whole by plain or by more varied words.


@dataclass(frozen=True)
class Domain:
    name: str
    make: Callable[[Random], str]
    split: Callable[[str], list[str]]
    join: Callable[[list[str]], str]
    unit: str
    whole: str
    varied_unit: str
    varied_whole: str


LETTER = Domain("letter", lambda r: w.random_word(r, 4, 8), list, "".join, "{letter|character}",
                "{word|given word|input word}", "{letter|character}", "{word you receive|supplied word}")  # fmt: skip
WORD = Domain("word", lambda r: sentence(r, 4, 6), str.split, " ".join, "word",
              "{sentence|phrase|text|line of words}", "word", "{message|line of text|string of words}")  # fmt: skip
ITEM = Domain("item", lambda r: items(r, 4, 5), lambda s: s.split(", "), ", ".join, "{item|element|entry}",
              "{list|comma-separated list|list of things}", "{item|element|list member}",
              "{listing|supplied list|enumeration}")  # fmt: skip
DIGIT = Domain("digit", digits, list, "".join, "{digit|figure}", "{number|given number}", "digit",
               "{numeral|supplied number}")  # fmt: skip
DOMAINS = (LETTER, WORD, ITEM, DIGIT)

POSITIONS = {
    "first": (0, "{first|first|initial|very first|1st}", "{first|opening}"),
    "second": (1, "{second|second|2nd}", "second"),
    "third": (2, "{third|third|3rd}", "third"),
    "fourth": (3, "{fourth|fourth|4th}", "fourth"),
    "last": (-1, "{last|last|final|very last}", "{last|closing}"),
    "next_to_last": (-2, "{second to last|next to last|penultimate|last but one}", "{next to last|second to last}"),
}
OUT = "{write|output|give|return|print|show|say|write down}"
VARIED_OUT = "{answer with|reply with|tell me|state|respond with}"

# A task's name, what draws an example, and its templates: plain ones, then more varied ones.
Entry = tuple[str, Callable[[Random], tuple[str, str]], list[str], list[str]]


def over_units(d: Domain, do: Callable[[list[str]], list[str]]) -> Callable[[Random], tuple[str, str]]:
    return apply(d.make, lambda text: d.join(do(d.split(text))))


def picks(d: Domain) -> list[Entry]:
    found = []
    for name, (i, said, varied_said) in POSITIONS.items():
        u, whole = d.unit, d.whole
        plain = [
            f"{OUT} the {said} {u} of the {whole}",
            f"{{extract|pick|take|find|get|select}} the {said} {u} {{of|from|in}} the {whole}",
            f"{OUT} {{only|just}} the {said} {u}",
            f"What is the {said} {u} {{of|in}} the {whole}?",
            f"The {said} {u} of the {whole}",
            f"Given a {d.whole}, {OUT} its {said} {u}.",
            f"Which {u} {{is|comes}} {said} in the {whole}?",
            f"keep the {said} {u} {{and drop the rest|and remove all others|only}}",
            f"{OUT} the {u} that {{comes|is|stands}} {said}",
        ]
        varied = [
            f"{VARIED_OUT} the {varied_said} {d.varied_unit} of the {d.varied_whole}",
            f"identify the {varied_said} {d.varied_unit} and {{leave out everything else|ignore the others}}",
            f"You will get a {d.varied_whole}; I only need the {varied_said} {d.varied_unit}.",
            f"Look at the {d.varied_whole} and name its {varied_said} {d.varied_unit}.",
            f"Exactly one {d.varied_unit} is wanted: the {varied_said} one in the {d.varied_whole}.",
        ]
        found.append((f"{name}_{d.name}", apply(d.make, lambda t, i=i: d.split(t)[i]), plain, varied))
    return found


def drops(d: Domain) -> list[Entry]:
    found = []
    for name in ("first", "second", "last"):
        i, said, varied_said = POSITIONS[name]
        plain = [
            f"{{remove|delete|drop|cut|erase}} the {said} {d.unit} {{of|from}} the {d.whole}",
            f"{OUT} the {d.whole} without {{its|the}} {said} {d.unit}",
            f"{{remove|delete|drop}} the {said} {d.unit} {{and keep the rest|and keep all the others|}}",
            f"{OUT} {{everything|all}} {{except|but}} the {said} {d.unit}",
            f"{{leave out|omit|skip}} the {said} {d.unit} of the {d.whole}",
            f"Given a {d.whole}, {{remove|delete|take away}} its {said} {d.unit}.",
            f"What is left when the {said} {d.unit} of the {d.whole} is {{removed|deleted}}?",
        ]
        varied = [
            f"strip the {varied_said} {d.varied_unit} off and {VARIED_OUT} what remains",
            f"{VARIED_OUT} the {d.varied_whole} with the {varied_said} {d.varied_unit} taken out",
            f"get rid of the {varied_said} {d.varied_unit}",
            f"repeat the {d.varied_whole}, leaving the {varied_said} {d.varied_unit} behind",
            f"Everything in the {d.varied_whole} should stay apart from the {varied_said} {d.varied_unit}.",
        ]
        i = i if i >= 0 else None
        do = (lambda xs: xs[:-1]) if i is None else (lambda xs, i=i: xs[:i] + xs[i + 1 :])
        found.append((f"drop_{name}_{d.name}", over_units(d, do), plain, varied))
    return found


def slices(d: Domain) -> list[Entry]:
    found = []
    for name, said, cut in (
        ("first_two", "first {two|2}", slice(0, 2)),
        ("last_two", "{last|final} {two|2}", slice(-2, None)),
        ("first_three", "first {three|3}", slice(0, 3)),
    ):
        u = d.unit.replace("entry", "item").replace("}", "}s") if "{" in d.unit else d.unit + "s"
        eu = d.varied_unit.replace("}", "}s") if "{" in d.varied_unit else d.varied_unit + "s"
        plain = [
            f"{OUT} the {said} {u} of the {d.whole}",
            f"{{extract|pick|take|get|select}} the {said} {u} {{of|from}} the {d.whole}",
            f"{OUT} {{only|just}} the {said} {u}",
            f"What are the {said} {u} of the {d.whole}?",
            f"keep the {said} {u} and {{drop|remove}} the {{rest|others}}",
            f"Given a {d.whole}, {OUT} its {said} {u}.",
        ]
        amount = name.replace("_", " ")
        varied = [
            f"{VARIED_OUT} the {amount} {eu} of the {d.varied_whole}",
            f"shorten the {d.varied_whole} to its {amount} {eu}",
            f"I only need the {amount} {eu} of the {d.varied_whole}.",
            f"copy the {amount} {eu} and nothing more",
            f"From the {d.varied_whole}, all but the {amount} {eu} can go.",
        ]
        found.append((f"{name}_{d.name}s", over_units(d, lambda xs, cut=cut: xs[cut]), plain, varied))
    return found


def moves(d: Domain) -> list[Entry]:
    """Reverse, swap the ends, move an end, double an end, count."""
    u, us = d.unit, d.name + "s"
    eu = d.varied_unit
    return [
        (f"reverse_{us}", over_units(d, lambda xs: xs[::-1]), [
            f"{{reverse|invert|flip}} the order of the {us} {{in|of}} the {d.whole}",
            f"{OUT} the {us} of the {d.whole} in {{reverse|reversed|backward}} order",
            f"{{reverse|flip}} the {us} of the {d.whole}",
            f"{OUT} the {d.whole} {{backwards|in reverse}}, {{{d.name} by {d.name}|one {d.name} at a time}}",
            f"{{list|write|give}} the {us} from {{last to first|the last to the first|the end to the start}}",
            f"Given a {d.whole}, {{reverse|turn around}} the order of its {us}.",
            f"put the {us} of the {d.whole} in the opposite order",
        ], [
            f"turn the {d.varied_whole} around so that the last {d.name} comes first",
            f"{VARIED_OUT} the {us} starting at the end of the {d.varied_whole} and going back",
            f"rearrange the {us} back to front",
            f"mirror the sequence of {us}",
            f"The {us} of the {d.varied_whole} should come out in inverse order.",
        ]),
        (f"swap_ends_{d.name}", over_units(d, lambda xs: [xs[-1], *xs[1:-1], xs[0]]), [
            f"{{swap|exchange|switch}} the first and {{last|final}} {u} of the {d.whole}",
            f"{{swap|exchange|interchange}} the first {u} {{with|and}} the last {u}",
            f"{OUT} the {d.whole} with {{its|the}} first and last {u} {{swapped|exchanged|switched}}",
            f"make the first and the last {u} of the {d.whole} {{trade|change}} places",
            f"Given a {d.whole}, {{swap|switch}} its first and last {us}.",
        ], [
            f"let the opening and the closing {eu} change places",
            f"put the last {eu} where the first one is, and the first where the last one is",
            f"{VARIED_OUT} the {d.varied_whole} after trading its two outer {us}",
            f"the two {us} at the ends of the {d.varied_whole} must be interchanged",
            f"flip the positions of the first and last {us} only",
        ]),
        (f"first_{d.name}_to_end", over_units(d, lambda xs: [*xs[1:], xs[0]]), [
            f"{{move|put|shift|bring}} the first {u} {{of the {d.whole} |}}to the {{end|back}}",
            f"{OUT} the {d.whole} with {{its|the}} first {u} moved to the {{end|back}}",
            f"take the first {u} of the {d.whole} and {{put|place|write}} it {{last|at the end}}",
            f"{{move|place}} the {{first|initial}} {u} behind {{all the others|the last one|the rest}}",
            f"Given a {d.whole}, {{move|put}} its first {u} at the end.",
        ], [
            f"send the opening {eu} to the very end",
            f"transfer the first {eu} of the {d.varied_whole} to the tail",
            f"relocate the first {eu} so that it becomes the last",
            f"The first {eu} of the {d.varied_whole} should go after all the others.",
            f"rotate the {d.varied_whole} so that what was first stands last",
        ]),
        (f"last_{d.name}_to_front", over_units(d, lambda xs: [xs[-1], *xs[:-1]]), [
            f"{{move|put|shift|bring}} the last {u} {{of the {d.whole} |}}to the {{front|start|beginning}}",
            f"{OUT} the {d.whole} with {{its|the}} last {u} moved to the {{front|start}}",
            f"take the last {u} of the {d.whole} and {{put|place|write}} it {{first|at the start}}",
            f"{{move|place}} the {{last|final}} {u} before {{all the others|the first one|the rest}}",
            f"Given a {d.whole}, {{move|put}} its last {u} at the front.",
        ], [
            f"send the closing {eu} to the very beginning",
            f"transfer the last {eu} of the {d.varied_whole} to the head",
            f"relocate the final {eu} so that it becomes the first",
            f"The last {eu} of the {d.varied_whole} should go ahead of all the others.",
            f"rotate the {d.varied_whole} so that what was last stands first",
        ]),
        (f"repeat_last_{d.name}", over_units(d, lambda xs: [*xs, xs[-1]]), [
            f"{{repeat|double|duplicate}} the {{last|final}} {u} of the {d.whole}",
            f"{OUT} the {d.whole} with {{its|the}} last {u} {{repeated|doubled|written twice}}",
            f"{OUT} the {d.whole} and {{then its|add its}} last {u} {{again|once more}}",
            f"{{write|say}} the last {u} {{twice|two times}} {{and leave the rest as it is|and keep the rest}}",
            f"Given a {d.whole}, {{repeat|duplicate}} its last {u} at the end.",
        ], [
            f"append another copy of the closing {eu}",
            f"copy the {d.varied_whole} and have its last {eu} appear a second time",
            f"make the final {eu} of the {d.varied_whole} occur two times in a row",
            f"stutter on the last {eu}",
            f"The {d.varied_whole} should end on a double {d.name}.",
        ]),
        (f"repeat_first_{d.name}", over_units(d, lambda xs: [xs[0], *xs]), [
            f"{{repeat|double|duplicate}} the {{first|initial}} {u} of the {d.whole}",
            f"{OUT} the {d.whole} with {{its|the}} first {u} {{repeated|doubled|written twice}}",
            f"{{write|say}} the first {u} {{twice|two times}} {{and leave the rest as it is|and keep the rest}}",
            f"Given a {d.whole}, {{repeat|duplicate}} its first {u} at the {{start|beginning}}.",
            f"{{begin|start}} with the first {u} twice and then {{go on with|write}} the rest of the {d.whole}",
        ], [
            f"put another copy of the opening {eu} in front",
            f"copy the {d.varied_whole} and have its first {eu} appear a second time at the start",
            f"make the initial {eu} of the {d.varied_whole} occur two times in a row",
            f"stutter on the first {eu}",
            f"The {d.varied_whole} should begin with a double {d.name}.",
        ]),
        (f"count_{us}", apply(d.make, lambda t: str(len(d.split(t)))), [
            f"count the {{number of |}}{us} {{in|of}} the {d.whole}",
            f"{OUT} {{how many}} {us} {{there are in|are in}} the {d.whole}",
            f"{OUT} the number of {us} in the {d.whole}",
            f"How many {us} are in the {d.whole}?",
            f"{{find|compute}} {{how many|how many}} {us} the {d.whole} has",
            f"Given a {d.whole}, count its {us}.",
        ], [
            f"{VARIED_OUT} the total of {us} the {d.varied_whole} is made of",
            f"tally up the {us}",
            f"work out how many {us} make up the {d.varied_whole}",
            f"The answer is how many {us} I sent.",
            f"Of how many {us} does the {d.varied_whole} consist?",
        ]),
    ]  # fmt: skip


SEPARATORS = {
    "hyphen": ("-", "{hyphen|dash}", "{hyphens|dashes}"),
    "comma": (",", "comma", "commas"),
    "underscore": ("_", "underscore", "underscores"),
    "period": (".", "{period|full stop|dot}", "{periods|full stops|dots}"),
    "slash": ("/", "{slash|forward slash}", "slashes"),
    "plus": ("+", "plus sign", "plus signs"),
    "space": (" ", "{space|blank}", "{spaces|blanks}"),
}


def separators(d: Domain) -> list[Entry]:
    found = []
    for name, (mark, one, many) in SEPARATORS.items():
        if mark == " " and d is WORD:
            continue
        plain = [
            f"{{put|insert|place|write}} {{a|one}} {one} between the {d.name}s of the {d.whole}",
            f"{{join|connect|link}} the {d.name}s {{of the {d.whole} |}}with {many}",
            f"{{separate|split}} the {d.name}s of the {d.whole} {{with|by}} {many}",
            f"{OUT} the {d.name}s of the {d.whole} {{separated|divided}} by {many}",
            f"{{put|place}} {many} between {{all|the}} {d.name}s",
            f"{OUT} the {d.whole} with a {one} between each {{{d.name}|pair of {d.name}s}}",
            f"Given a {d.whole}, {{insert|add}} a {one} between its {d.name}s.",
        ]
        if d is WORD:
            plain.append(f"{{replace|replace}} {{the|all}} spaces {{with|to|by}} {many}")
        if mark == " ":
            plain += [
                f"{{spell|spell out}} the {d.whole}, {d.name} by {d.name}",
                f"{OUT} {{each|every}} {d.name} {{of the {d.whole} |}}apart, with spaces in between",
                f"{{break|split}} the {d.whole} {{up into|into}} {{single|separate|its}} {d.name}s",
            ]
        varied = [
            f"use {many} to keep the {d.name}s of the {d.varied_whole} apart",
            f"{VARIED_OUT} the {d.name}s with {many} in the gaps",
            f"a {one} must stand between every two neighbouring {d.name}s",
            f"delimit the {d.name}s by {many}",
            f"The {d.name}s of the {d.varied_whole} should be strung together with {many}.",
        ]
        found.append((f"{name}_between_{d.name}s", apply(d.make, lambda t, m=mark: m.join(d.split(t))), plain, varied))
    return found


WRAPS = {
    "parentheses": ("(", ")", "{parentheses|round brackets}"),
    "brackets": ("[", "]", "square brackets"),
    "quotes": ('"', '"', "{quotation marks|double quotes|quotes}"),
    "stars": ("*", "*", "{stars|asterisks}"),
    "angles": ("<", ">", "{angle brackets|pointed brackets}"),
}
WRAPPED = {
    "whole": ("{whole text|whole input|entire text}", "{complete message|full text}", None),
    "each_word": ("{each|every} word", "{every single word|all of the words}", "each"),
    "first_word": ("first word", "{opening|first} word", 0),
    "last_word": ("{last|final} word", "{closing|last} word", -1),
}


def change_words(where: str | int | None, do: Callable[[str], str]) -> Callable[[str], str]:
    """Does `do` to the whole text (None), to each word ("each") or to the word at one place."""

    def change(text: str) -> str:
        if where is None:
            return do(text)
        parts = text.split()
        for i in range(len(parts)) if where == "each" else [where]:
            parts[i] = do(parts[i])
        return " ".join(parts)

    return change


def wraps() -> list[Entry]:
    found = []
    for mark, (left, right, many) in WRAPS.items():
        for where, (said, varied_said, at) in WRAPPED.items():
            plain = [
                f"{{put|place|write|enclose}} the {said} in {many}",
                f"{{surround|wrap|enclose}} the {said} {{with|in}} {many}",
                f"{{put|add}} {many} around the {said}",
                f"{OUT} the text with {many} around the {said}",
                f"{{put|place}} the {said} {{inside|between}} {many}",
                f"Given a text, {{wrap|surround}} the {said} {{with|in}} {many}.",
            ]
            varied = [
                f"the {varied_said} must stand within {many}",
                f"{VARIED_OUT} the text after fencing the {varied_said} with {many}",
                f"bracket the {varied_said} by {many}",
                f"have {many} on both sides of the {varied_said}",
                f"On both sides of the {varied_said} there should be {many}.",
            ]
            plain = [t.replace("the {each", "{each") for t in plain]
            varied = [t.replace("the {every", "{every") for t in varied]
            do = change_words(at, lambda s, a=left, b=right: a + s + b)
            found.append((f"{mark}_{where}", apply(sentence, do), plain, varied))
    return found


CASES = {
    "upper": (str.upper, "{upper case|capitals|capital letters|uppercase}", "{block capitals|upper case}", False),
    "lower": (str.lower, "{lower case|small letters|lowercase}", "{small letters|lower case}", True),
    "stars_for": (lambda s: "*" * len(s), "{stars|asterisks}, one for each letter", "{asterisks|stars}", False),
    "reversed": (lambda s: s[::-1], "{reverse|backward spelling}", "{reversed spelling|reverse}", False),
}
CASED = {
    "whole": ("{whole text|whole input|entire text}", "{complete message|full text}", None),
    "first_word": ("first word", "{opening|first} word", 0),
    "second_word": ("second word", "second word", 1),
    "last_word": ("{last|final} word", "{closing|last} word", -1),
}


def cases() -> list[Entry]:
    found = []
    for case, (do, said_case, varied_case, from_upper) in CASES.items():
        for where, (said, varied_said, at) in CASED.items():
            if case in ("stars_for", "reversed") and where == "whole":
                continue
            if case == "reversed":
                plain = [
                    f"{{reverse|flip}} the {{letters of the |}}{said}{{| of the text| and keep the others}}",
                    f"{{write|spell}} the {said} {{backwards|in reverse|from back to front}}",
                    f"{OUT} the text with the {said} {{spelled|written}} {{backwards|in reverse}}",
                    f"{{reverse|turn around}} only the {said}, {{letter by letter|leaving the others alone}}",
                ]
            elif case == "stars_for":
                plain = [
                    f"{{replace|hide|mask|cover}} the {said} {{with|by}} {said_case}",
                    f"{{hide|mask|censor}} the {said} with {{stars|asterisks}}",
                    f"{OUT} the text with the {said} {{hidden|masked}} by {{stars|asterisks}}",
                    f"{{put|write}} {{stars|asterisks}} in place of the {{letters of the |}}{said}",
                ]
            else:
                plain = [
                    f"{{write|put|print|set}} the {said} in {said_case}",
                    f"{{change|turn|convert}} the {said} {{to|into}} {said_case}",
                    f"{{make|turn}} the {said} {said_case}",
                    f"{OUT} the text with the {said} in {said_case}",
                    f"{case}case the {said}",
                    f"Given a text, {{write|put}} the {said} in {said_case}.",
                ]
            varied = [
                f"the {varied_said} should {{appear|come out}} in {varied_case}",
                f"{VARIED_OUT} the text, but have the {varied_said} in {varied_case}",
                f"switch the {varied_said} over to {varied_case}",
                f"render the {varied_said} in {varied_case} and leave anything else",
                f"For the {varied_said}, use {varied_case}.",
            ]
            make = (lambda r: sentence(r).upper()) if from_upper else sentence
            found.append((f"{case}_{where}", apply(make, change_words(at, do)), plain, varied))
    return found


ADDS = {1: "one", 2: "two", 3: "three", 5: "five", 10: "ten", 20: "twenty", 100: "one hundred"}


def arithmetic() -> list[Entry]:
    found = []
    for k, name in ADDS.items():
        said = f"{{{name}|{k}}}"
        found.append((f"add_{k}", apply(small, lambda t, k=k: str(int(t) + k)), [
            f"add {said} to the number",
            f"{{increase|raise}} the {{number|value}} by {said}",
            f"{OUT} the number plus {said}",
            f"What is the number plus {said}?",
            f"{OUT} the {{result of adding|sum of the number and}} {said}",
            f"Given a number, add {said} to it.",
        ], [
            f"{VARIED_OUT} the number that is {name} larger",
            f"go up by {name} from the number you get",
            f"count {name} further than the number",
            f"Take any number and make it {name} bigger.",
            f"raise what I send by {name}",
        ]))  # fmt: skip
        if k in (1, 10):
            make = lambda r, k=k: str(r.randint(k, 109))  # noqa: E731
            found.append((f"subtract_{k}", apply(make, lambda t, k=k: str(int(t) - k)), [
                f"subtract {said} from the number",
                f"{{decrease|lower|reduce}} the {{number|value}} by {said}",
                f"{OUT} the number minus {said}",
                f"What is the number minus {said}?",
                f"take {said} away from the number",
                f"Given a number, subtract {said} from it.",
            ], [
                f"{VARIED_OUT} the number that is {name} smaller",
                f"go down by {name} from the number you get",
                f"count back {name} from the number",
                f"Take any number and make it {name} less.",
                f"deduct {name} from what I send",
            ]))  # fmt: skip
    return found


COMBINATIONS = {
    "third_word", "fourth_item", "second_digit", "next_to_last_letter", "drop_second_word", "drop_last_item",
    "drop_first_digit", "last_two_items", "first_two_digits", "swap_ends_item", "first_word_to_end",
    "repeat_last_item", "repeat_first_letter", "slash_between_words", "plus_between_letters", "brackets_last_word",
    "stars_each_word", "upper_last_word", "lower_first_word", "reversed_second_word",
}  # fmt: skip
# Cells of the grid that are in no group, to keep the suite at a size that can be trained well.
UNUSED = {
    "angles_each_word", "quotes_last_word", "angles_first_word", "parentheses_last_word", "angles_last_word",
    "stars_whole", "brackets_first_word", "stars_first_word", "parentheses_first_word",
    "last_digit_to_front", "repeat_last_digit", "repeat_first_digit", "swap_ends_digit", "first_digit_to_end",
    "last_item_to_front", "repeat_first_item", "plus_between_digits", "underscore_between_digits",
    "period_between_digits", "slash_between_digits", "period_between_words", "fourth_digit", "next_to_last_digit",
    "add_20", "add_3", "stars_for_last_word", "lower_second_word", "first_three_digits", "last_two_digits",
    "comma_between_digits",
}  # fmt: skip


def suite() -> list[TextTask]:
    """All tasks, always in the same order and with the same wordings."""
    entries: list[Entry] = []
    for d in DOMAINS:
        entries += picks(d) + drops(d) + slices(d) + moves(d)
        if d is not ITEM:
            entries += separators(d)
    entries += wraps() + cases() + arithmetic()
    groups = {name: "combination" if name in COMBINATIONS else "trained" for name, *_ in entries}
    for name, group, make, plain, varied in SINGLES:
        entries.append((name, make, plain, varied))
        groups[name] = group
    tasks = []
    for name, make, plain, varied in entries:
        if name in UNUSED:
            continue
        rng = Random(name)
        templates = plain + varied
        held = templates[1:] if groups[name] == "operation" else templates[2::3]
        kept = [t for t in templates if t not in held]
        seen = wordings(kept, TRAIN_FRAMES, TRAIN_WORDINGS, rng)
        unseen = [d for d in wordings(held, EVAL_FRAMES, EVAL_WORDINGS + len(seen), rng) if d not in seen][
            :EVAL_WORDINGS
        ]
        tasks.append(TextTask(name, groups[name], make, tuple(seen), tuple(unseen)))
    return tasks
