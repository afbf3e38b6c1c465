"""The tasks of the mini suite that are made of parts: an operation, a place, and a kind of text.

Every part is trained in many tasks, so that a new combination of parts is made of known ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from . import words as w
from .inputs import apply, digits, items, sentence, small

Example = Callable[[Random], tuple[str, str]]
"""Draws an input and its output."""
Entry = tuple[str, Example, list[str], list[str]]
"""A task's name, its examples, and its templates: plain ones, then more varied ones."""


@dataclass(frozen=True)
class Domain:
    """A kind of text, made of units. Templates call the unit and the whole by plain or by more varied words."""

    name: str
    make: Callable[[Random], str]
    split: Callable[[str], list[str]]
    join: Callable[[list[str]], str]
    unit: str
    units: str
    whole: str
    varied_unit: str
    varied_units: str
    varied_whole: str


LETTER = Domain("letter", lambda r: w.random_word(r, 4, 8), list, "".join, "{letter|letter|character}",
                "{letters|letters|characters}", "{word|given word|input word|word in the input}",
                "{letter|character}", "{letters|characters}",
                "{word you receive|supplied word|word I send}")  # fmt: skip
WORD = Domain("word", lambda r: sentence(r, 4, 6), str.split, " ".join, "word", "words",
              "{sentence|phrase|text|line of words|input text}", "word", "words",
              "{message|line of text|string of words|row of words}")  # fmt: skip
ITEM = Domain("item", lambda r: items(r, 4, 5), lambda s: s.split(", "), ", ".join, "{item|item|element|entry}",
              "{items|items|elements|entries}", "{list|comma-separated list|list of things|input list}",
              "{item|element|list member}", "{items|elements|list members}",
              "{listing|supplied list|enumeration}")  # fmt: skip
DIGIT = Domain("digit", digits, list, "".join, "{digit|digit|figure}", "{digits|digits|figures}",
               "{number|given number|input number}", "digit", "digits",
               "{numeral|supplied number|number I send}")  # fmt: skip
DOMAINS = (LETTER, WORD, ITEM, DIGIT)

PLACES = {
    "first": (0, "{first|first|initial|very first|1st}", "{first|opening|leading}"),
    "second": (1, "{second|second|2nd}", "second"),
    "third": (2, "{third|third|3rd}", "third"),
    "fourth": (3, "{fourth|fourth|4th}", "fourth"),
    "last": (-1, "{last|last|final|very last}", "{last|closing|final}"),
    "next_to_last": (-2, "{second to last|next to last|penultimate|last but one}", "{next to last|second to last}"),
}
OUT = "{write|output|give|return|print|show|say|write down}"
VARIED_OUT = "{answer with|reply with|tell me|state|respond with|come back with}"


def over_units(d: Domain, do: Callable[[list[str]], list[str]]) -> Example:
    return apply(d.make, lambda text: d.join(do(d.split(text))))


def at_unit(d: Domain, i: int, do: Callable[[str], str], make: Callable[[Random], str] | None = None):
    """Examples in which one unit is changed and the others are kept."""

    def change(text: str) -> str:
        units = d.split(text)
        units[i] = do(units[i])
        return d.join(units)

    return apply(make or d.make, change)


def picks(d: Domain) -> list[Entry]:
    found = []
    for name, (i, said, varied) in PLACES.items():
        u, whole, eu, ewhole = d.unit, d.whole, d.varied_unit, d.varied_whole
        found.append((f"{name}_{d.name}", apply(d.make, lambda t, i=i: d.split(t)[i]), [
            f"{OUT} the {said} {u} of the {whole}",
            f"{{extract|pick|take|find|get|select}} the {said} {u} {{of|from|in}} the {whole}",
            f"{OUT} {{only|just}} the {said} {u}",
            f"What is the {said} {u} {{of|in}} the {whole}?",
            f"The {said} {u} of the {whole}",
            f"Given a {d.whole}, {OUT} its {said} {u}.",
            f"Which {u} {{is|comes|stands}} {said} in the {whole}?",
            f"keep the {said} {u} {{and drop the rest|and remove all others|only}}",
            f"{OUT} the {u} that {{comes|is|stands}} {said}",
            f"{{look up|locate|retrieve}} the {said} {u}",
            f"I want {{only|just|nothing but}} the {said} {u} {{of|from|in}} the {whole}.",
            f"from the {whole}, {{take|pick|get}} the {said} {u}",
        ], [
            f"{VARIED_OUT} the {varied} {eu} of the {ewhole}",
            f"identify the {varied} {eu} and {{leave out everything else|ignore the others}}",
            f"You will get a {ewhole}; I only need the {varied} {eu}.",
            f"Look at the {ewhole} and name its {varied} {eu}.",
            f"Exactly one {eu} is wanted: the {varied} one in the {ewhole}.",
            f"the {varied} {eu}, nothing else",
            f"show me which {eu} the {ewhole} has in {{{varied} place|the {varied} position}}",
            f"all I need is the {eu} in the {varied} {{spot|position|place}}",
            f"The answer is the {varied} {eu} of what I send.",
            f"copy out the {varied} {eu} alone",
        ]))  # fmt: skip
    return found


def drops(d: Domain) -> list[Entry]:
    found = []
    for name in ("first", "second", "third", "fourth", "last", "next_to_last"):
        i, said, varied = PLACES[name]
        u, whole, eu, ewhole = d.unit, d.whole, d.varied_unit, d.varied_whole
        do = lambda xs, i=i: [x for k, x in enumerate(xs) if k != i % len(xs)]  # noqa: E731
        found.append((f"drop_{name}_{d.name}", over_units(d, do), [
            f"{{remove|delete|drop|cut|erase}} the {said} {u} {{of|from}} the {whole}",
            f"{OUT} the {whole} without {{its|the}} {said} {u}",
            f"{{remove|delete|drop|erase}} the {said} {u} {{and keep the rest|and keep all the others|}}",
            f"{OUT} {{everything|all}} {{except|but}} the {said} {u}",
            f"{{leave out|omit|skip}} the {said} {u} of the {whole}",
            f"Given a {d.whole}, {{remove|delete|take away}} its {said} {u}.",
            f"What is left when the {said} {u} of the {whole} is {{removed|deleted}}?",
            f"{{take|throw|cut}} {{out|away}} the {said} {u}",
            f"{OUT} all the {d.units} {{except for|other than|but not}} the {said} one",
            f"{{discard|eliminate|exclude}} the {said} {u} {{from the {whole}|}}",
            f"keep {{every|each}} {u} {{except|but}} the {said} one",
            f"the {whole} {{minus|without}} the {said} {u}",
        ], [
            f"strip the {varied} {eu} off and {VARIED_OUT} what remains",
            f"{VARIED_OUT} the {ewhole} with the {varied} {eu} taken out",
            f"get rid of the {varied} {eu}",
            f"repeat the {ewhole}, leaving the {varied} {eu} behind",
            f"Everything in the {ewhole} should stay apart from the {varied} {eu}.",
            f"the {varied} {eu} must go, the others stay",
            f"copy the {ewhole} but leave off the {varied} {eu}",
            f"I do not want the {varied} {eu}; give me the remaining {d.varied_units}.",
            f"make the {varied} {eu} disappear",
            f"take the {ewhole} and knock out its {varied} {eu}",
        ]))  # fmt: skip
    return found


def repeats(d: Domain) -> list[Entry]:
    found = []
    for name in ("first", "second", "third", "last", "next_to_last"):
        i, said, varied = PLACES[name]
        u, whole, eu, ewhole = d.unit, d.whole, d.varied_unit, d.varied_whole
        do = lambda xs, i=i: [*xs[:i], xs[i], *xs[i:]]  # noqa: E731
        found.append((f"repeat_{name}_{d.name}", over_units(d, do), [
            f"{{repeat|double|duplicate}} the {said} {u} of the {whole}",
            f"{OUT} the {whole} with {{its|the}} {said} {u} {{repeated|doubled|written twice|duplicated}}",
            f"{{write|say|put}} the {said} {u} {{twice|two times}} {{and leave the rest as it is|and keep the rest}}",
            f"Given a {d.whole}, {{repeat|duplicate|double}} its {said} {u}.",
            f"{{repeat|double|duplicate}} {{just|only}} the {said} {u}",
            f"{OUT} the {said} {u} {{twice|two times}} and every other {u} once",
            f"{{add|insert}} {{a second|another}} copy of the {said} {u} {{right after it|next to it|}}",
            f"{{make|let}} the {said} {u} {{appear|occur|stand there}} {{twice|two times}}",
            f"the {whole} with the {said} {u} {{doubled|repeated}}",
            f"{{copy|clone}} the {said} {u} {{of the {whole} |}}so that it {{stands|comes}} twice",
        ], [
            f"have the {varied} {eu} of the {ewhole} appear a second time",
            f"make the {varied} {eu} of the {ewhole} occur two times in a row",
            f"stutter on the {varied} {eu}",
            f"The {varied} {eu} should come out twice, one after the other.",
            f"{VARIED_OUT} the {ewhole}, saying its {varied} {eu} two times",
            f"the {varied} {eu} is to be there in duplicate",
            f"put one more copy of the {varied} {eu} beside it",
            f"say everything once but the {varied} {eu} twice",
        ]))  # fmt: skip
    return found


def stars_for(d: Domain) -> list[Entry]:
    """One star in place of a unit; of a word, in place of each of its letters."""
    found = []
    for name in ("first", "second", "third", "last", "next_to_last"):
        i, said, varied = PLACES[name]
        u, whole, eu, ewhole = d.unit, d.whole, d.varied_unit, d.varied_whole
        star = "{stars|asterisks}" if d is WORD else "{a star|an asterisk}"
        each = "{, one for each letter|, as many as it has letters|}" if d is WORD else ""
        hide = at_unit(d, i, lambda s: "*" * len(s) if d is WORD else "*")
        found.append((f"stars_for_{name}_{d.name}", hide, [
            f"{{replace|substitute|exchange}} the {said} {u} {{of the {whole} |}}{{with|by}} {star}{each}",
            f"{{hide|mask|censor|cover}} the {said} {u} with {star}",
            f"{OUT} the {whole} with the {said} {u} {{hidden|masked|covered}} by {star}",
            f"{{put|write|use}} {star} {{in place of|instead of}} the {said} {u}",
            f"{{change|turn}} the {said} {u} {{into|to}} {star}{each}",
            f"Given a {d.whole}, {{replace|mask}} its {said} {u} with {star}.",
            f"{{overwrite|blot out}} the {said} {u} with {star}",
            f"the {said} {u} {{becomes|as}} {star}, the rest {{as it is|unchanged}}",
            f"{{black out|conceal|obscure}} the {said} {u} {{using|with}} {star}",
            f"{OUT} the {whole}, but {{write|put}} {star} for the {said} {u}",
        ], [
            f"make the {varied} {eu} unreadable by putting {star} there",
            f"the {varied} {eu} must be hidden behind {star}",
            f"{VARIED_OUT} the {ewhole} after masking the {varied} {eu} with {star}",
            f"where the {varied} {eu} stands there should be {star} instead",
            f"keep the {varied} {eu} secret: show {star} for it",
            f"The {varied} {eu} is confidential and becomes {star}.",
            f"swap the {varied} {eu} for {star}",
            f"do not show the {varied} {eu}, show {star}",
        ]))  # fmt: skip
    return found


def slices(d: Domain) -> list[Entry]:
    found = []
    for name, said, cut in (
        ("first_two", "{first|first|initial} {two|2}", slice(0, 2)),
        ("last_two", "{last|last|final} {two|2}", slice(-2, None)),
        ("first_three", "{first|first|initial} {three|3}", slice(0, 3)),
        ("last_three", "{last|last|final} {three|3}", slice(-3, None)),
    ):
        u, whole, eu, ewhole = d.units, d.whole, d.varied_units, d.varied_whole
        amount = name.replace("_", " ")
        end, number = name.split("_")
        side = {"first": "{beginning|start|front}", "last": "{end|back}"}[end]
        found.append((f"{name}_{d.name}s", over_units(d, lambda xs, cut=cut: xs[cut]), [
            f"{OUT} the {said} {u} of the {whole}",
            f"{{extract|pick|take|get|select}} the {said} {u} {{of|from}} the {whole}",
            f"{OUT} {{only|just}} the {said} {u}",
            f"What are the {said} {u} of the {whole}?",
            f"keep the {said} {u} and {{drop|remove}} the {{rest|others}}",
            f"Given a {d.whole}, {OUT} its {said} {u}.",
            f"The {said} {u} of the {whole}",
            f"{OUT} {number} {u} from the {side} of the {whole}",
            f"{{cut|reduce}} the {whole} {{down |}}to the {said} {u}",
            f"I want {{only|just}} the {said} {u} {{of|from}} the {whole}.",
            f"{{remove|drop}} {{everything|all}} {{but|except}} the {said} {u}",
        ], [
            f"{VARIED_OUT} the {amount} {eu} of the {ewhole}",
            f"shorten the {ewhole} to its {amount} {eu}",
            f"I only need the {amount} {eu} of the {ewhole}.",
            f"copy the {amount} {eu} and nothing more",
            f"From the {ewhole}, all but the {amount} {eu} can go.",
            f"the {amount} {eu}, nothing else",
            f"trim the {ewhole} so that the {amount} {eu} are left",
            f"show me {number} {eu} counted from the {side}",
            f"The answer consists of the {amount} {eu}.",
        ]))  # fmt: skip
    return found


def moves(d: Domain) -> list[Entry]:
    """Reverse, swap the ends, move an end, count."""
    u, us, eu, eus, whole, ewhole = d.unit, d.name + "s", d.varied_unit, d.varied_units, d.whole, d.varied_whole
    return [
        (f"reverse_{us}", over_units(d, lambda xs: xs[::-1]), [
            f"{{reverse|invert|flip}} the order of the {us} {{in|of}} the {whole}",
            f"{OUT} the {us} of the {whole} in {{reverse|reversed|backward}} order",
            f"{{reverse|flip}} the {us} of the {whole}",
            f"{OUT} the {whole} {{backwards|in reverse}}, {{{d.name} by {d.name}|one {d.name} at a time}}",
            f"{{list|write|give}} the {us} from {{last to first|the last to the first|the end to the start}}",
            f"Given a {d.whole}, {{reverse|turn around}} the order of its {us}.",
            f"put the {us} of the {whole} in the opposite order",
            f"{OUT} the {us} backwards",
            f"{{begin|start}} with the last {u} and {{end|finish}} with the first",
            f"{{write|read}} the {us} of the {whole} {{from back to front|from the back}}",
            f"The {us} of the {whole} in reverse order",
            f"{{arrange|order}} the {us} {{in reverse|the other way around}}",
        ], [
            f"turn the {ewhole} around so that the last {d.name} comes first",
            f"{VARIED_OUT} the {us} starting at the end of the {ewhole} and going back",
            f"rearrange the {us} back to front",
            f"mirror the sequence of {us}",
            f"The {us} of the {ewhole} should come out in inverse order.",
            f"put the final {eu} first, then the one before it, and so on",
            f"invert the sequence in which the {us} come",
            f"go through the {us} from the end to the beginning and write them",
            f"the same {us} but with the order turned upside down",
        ]),
        (f"swap_ends_{d.name}", over_units(d, lambda xs: [xs[-1], *xs[1:-1], xs[0]]), [
            f"{{swap|exchange|switch}} the first and {{last|final}} {u} of the {whole}",
            f"{{swap|exchange|interchange}} the first {u} {{with|and}} the last {u}",
            f"{OUT} the {whole} with {{its|the}} first and last {u} {{swapped|exchanged|switched}}",
            f"make the first and the last {u} of the {whole} {{trade|change}} places",
            f"Given a {d.whole}, {{swap|switch}} its first and last {us}.",
            f"{{swap|switch|exchange}} the {{two |}}{us} at {{both|the}} ends of the {whole}",
            f"{{trade|interchange}} the {{initial|first}} {u} for the {{final|last}} {u} and the other way around",
            f"put the last {u} {{first|at the start}} and the first {u} {{last|at the end}}",
            f"{{swap|exchange}} the {{outer|outermost}} {us}",
        ], [
            f"let the opening and the closing {eu} change places",
            f"put the last {eu} where the first one is, and the first where the last one is",
            f"{VARIED_OUT} the {ewhole} after trading its two outer {us}",
            f"the two {us} at the ends of the {ewhole} must be interchanged",
            f"flip the positions of the first and last {us} only",
            f"The first {eu} and the last {eu} should switch positions.",
            f"have both end {us} trade their places and keep the middle",
            f"the {ewhole} begins with its last {eu} and ends with its first, the middle stays",
        ]),
        (f"first_{d.name}_to_end", over_units(d, lambda xs: [*xs[1:], xs[0]]), [
            f"{{move|put|shift|bring}} the first {u} {{of the {whole} |}}to the {{end|back}}",
            f"{OUT} the {whole} with {{its|the}} first {u} moved to the {{end|back}}",
            f"take the first {u} of the {whole} and {{put|place|write}} it {{last|at the end}}",
            f"{{move|place}} the {{first|initial}} {u} behind {{all the others|the last one|the rest}}",
            f"Given a {d.whole}, {{move|put}} its first {u} at the end.",
            f"{{shift|carry|push}} the first {u} {{behind|after}} {{everything else|the others}}",
            f"{{write|give}} the first {u} last and {{leave|keep}} the {{others|rest}} in order",
            f"the first {u} {{goes|should go}} to the end of the {whole}",
            f"{{start|begin}} with the second {u} and {{end|finish}} with the first {{one|{u}}}",
        ], [
            f"send the opening {eu} to the very end",
            f"transfer the first {eu} of the {ewhole} to the tail",
            f"relocate the first {eu} so that it becomes the last",
            f"The first {eu} of the {ewhole} should go after all the others.",
            f"rotate the {ewhole} so that what was first stands last",
            f"the leading {eu} has to line up behind the rest",
            f"make the {eu} in front the closing one",
            f"cut the first {eu} off and attach it at the end",
        ]),
        (f"last_{d.name}_to_front", over_units(d, lambda xs: [xs[-1], *xs[:-1]]), [
            f"{{move|put|shift|bring}} the last {u} {{of the {whole} |}}to the {{front|start|beginning}}",
            f"{OUT} the {whole} with {{its|the}} last {u} moved to the {{front|start}}",
            f"take the last {u} of the {whole} and {{put|place|write}} it {{first|at the start}}",
            f"{{move|place}} the {{last|final}} {u} before {{all the others|the first one|the rest}}",
            f"Given a {d.whole}, {{move|put}} its last {u} at the front.",
            f"{{shift|carry|pull}} the last {u} {{in front of|before}} {{everything else|the others}}",
            f"{{write|give}} the last {u} first and {{leave|keep}} the {{others|rest}} in order",
            f"the last {u} {{goes|should go}} to the front of the {whole}",
            f"{{start|begin}} with the last {u} and then {{give|write}} the others as they were",
        ], [
            f"send the closing {eu} to the very beginning",
            f"transfer the last {eu} of the {ewhole} to the head",
            f"relocate the final {eu} so that it becomes the first",
            f"The last {eu} of the {ewhole} should go ahead of all the others.",
            f"rotate the {ewhole} so that what was last stands first",
            f"the final {eu} has to lead the rest",
            f"make the {eu} at the back the opening one",
            f"cut the last {eu} off and attach it at the front",
        ]),
        (f"count_{us}", apply(d.make, lambda t: str(len(d.split(t)))), [
            f"count the {{number of |}}{us} {{in|of}} the {whole}",
            f"{OUT} {{how many}} {us} {{there are in|are in}} the {whole}",
            f"{OUT} the number of {us} in the {whole}",
            f"How many {us} are in the {whole}?",
            f"{{find|compute}} how many {us} the {whole} has",
            f"Given a {d.whole}, count its {us}.",
            f"{{count|count up}} {{all |}}the {us}",
            f"How many {us} does the {whole} have?",
            f"The number of {us} in the {whole}",
            f"{{tell|say}} {{me |}}how many {us} {{I gave you|you see|there are}}",
        ], [
            f"{VARIED_OUT} the total of {us} the {ewhole} is made of",
            f"tally up the {us}",
            f"work out how many {us} make up the {ewhole}",
            f"The answer is how many {us} I sent.",
            f"Of how many {us} does the {ewhole} consist?",
            f"a count of the {eus}",
            f"measure the length of the {ewhole} in {us}",
            f"determine the quantity of {us}",
        ]),
    ]  # fmt: skip


MARKS = {
    "hyphen": ("-", "{hyphen|dash}", "{hyphens|dashes}"),
    "comma": (",", "comma", "commas"),
    "underscore": ("_", "{underscore|underscore|underline character}", "underscores"),
    "period": (".", "{period|full stop|dot}", "{periods|full stops|dots}"),
    "slash": ("/", "{slash|forward slash}", "{slashes|forward slashes}"),
    "plus": ("+", "plus sign", "{plus signs|pluses}"),
    "space": (" ", "{space|blank}", "{spaces|blanks}"),
    "colon": (":", "colon", "colons"),
    "semicolon": (";", "semicolon", "semicolons"),
}


def separators(d: Domain) -> list[Entry]:
    found = []
    for name, (mark, one, many) in MARKS.items():
        if mark == " " and d in (WORD, ITEM):
            continue
        us, whole, ewhole = d.name + "s", d.whole, d.varied_whole
        plain = [
            f"{{put|insert|place|write}} {{a|one}} {one} between the {us} of the {whole}",
            f"{{join|connect|link}} the {us} {{of the {whole} |}}with {many}",
            f"{{separate|split}} the {us} of the {whole} {{with|by}} {many}",
            f"{OUT} the {us} of the {whole} {{separated|divided}} by {many}",
            f"{{put|place}} {many} between {{all|the}} {us}",
            f"{OUT} the {whole} with a {one} between each {{{d.name}|pair of {us}}}",
            f"Given a {d.whole}, {{insert|add}} a {one} between its {us}.",
            f"{{use|take}} {{a {one}|{many}}} as the separator between {us}",
            f"{{glue|tie|chain}} the {us} together {{with|using}} {many}",
            f"{OUT} the {us} {{with|using}} {many} between them",
            f"the {us} of the {whole}, {{separated by|joined with}} {many}",
            f"{{add|insert}} {many} {{in between|between}} {{neighboring|adjacent|the}} {us}",
        ]
        if d is WORD:
            plain.append(f"replace {{the|all}} spaces {{with|by}} {many}")
            plain.append(f"{{turn|change|convert}} {{every|each}} space into a {one}")
        if mark == " ":
            plain += [
                f"{{spell|spell out}} the {whole}, {d.name} by {d.name}",
                f"{OUT} {{each|every}} {d.name} {{of the {whole} |}}apart, with spaces in between",
                f"{{break|split}} the {whole} {{up into|into}} {{single|separate|its}} {us}",
                f"{{list|write}} the {us} of the {whole} {{one by one|one after another|individually}}",
                f"{OUT} the {us} of the {whole} {{spaced out|spread apart}}",
            ]
        varied = [
            f"use {many} to keep the {us} of the {ewhole} apart",
            f"{VARIED_OUT} the {us} with {many} in the gaps",
            f"a {one} must stand between every two neighbouring {us}",
            f"delimit the {us} by {many}",
            f"The {us} of the {ewhole} should be strung together with {many}.",
            f"let a {one} follow each {d.name} but the last",
            f"set the {us} off from one another by {many}",
            f"between one {d.name} and the next I want a {one}",
            f"take {many} to hold the {us} together",
        ]
        found.append((f"{name}_between_{us}", apply(d.make, lambda t, m=mark: m.join(d.split(t))), plain, varied))
    return found


WRAPS = {
    "parentheses": ("(", ")", "{parentheses|round brackets}"),
    "brackets": ("[", "]", "square brackets"),
    "quotes": ('"', '"', "{quotation marks|double quotes|quotes}"),
    "stars": ("*", "*", "{stars|asterisks}"),
    "angles": ("<", ">", "{angle brackets|pointed brackets}"),
    "braces": ("{", "}", "{curly brackets|braces|curly braces}"),
}


def wraps(d: Domain) -> list[Entry]:
    """Marks around the whole text, around each of its units, or around one."""
    places = {name: PLACES[name][1:] for name in ("first", "second", "third", "last")}
    places["each"] = "{each|every}", "{each|every single}"
    if d is WORD:
        places |= {name: PLACES[name][1:] for name in ("next_to_last",)} | {"whole": ("", "")}
    found = []
    for mark, (left, right, many) in list(WRAPS.items())[: {"letter": 4, "item": 5, "word": 6}[d.name]]:
        for place, (said, varied) in places.items():
            around = lambda s, a=left, b=right: a + s + b  # noqa: E731
            if place == "whole":
                name, make = f"{mark}_whole", apply(sentence, around)
                it, eit = "{the whole text|the whole input|the entire text}", "{the complete message|the full text}"
            elif place == "each":
                name = f"{mark}_each_{d.name}"
                make = over_units(d, lambda xs, f=around: [f(x) for x in xs])
                it, eit = f"{said} {d.unit}", f"{{{varied} {d.varied_unit}|all of the {d.name}s}}"
            else:
                name, make = f"{mark}_{place}_{d.name}", at_unit(d, PLACES[place][0], around)
                it, eit = f"the {said} {d.unit}", f"the {varied} {d.varied_unit}"
            found.append((name, make, [
                f"{{put|place|write|enclose}} {it} in {many}",
                f"{{surround|wrap|enclose}} {it} {{with|in}} {many}",
                f"{{put|add}} {many} around {it}",
                f"{OUT} the {{text|input}} with {many} around {it}",
                f"{{put|place}} {it} {{inside|between}} {many}",
                f"Given a {{text|{d.whole}}}, {{wrap|surround}} {it} {{with|in}} {many}.",
                f"{{use|write|set}} {many} {{on both sides of|before and after}} {it}",
                f"{{add|write}} {many} to {it}, {{one on each side|left and right}}",
                f"{{pack|frame}} {it} {{into|with}} {many}",
                f"There should be {many} around {it}.",
                f"{OUT} {it} {{inside|within|in}} {many} and {{leave|keep}} {{everything|anything}} else as it is",
            ], [
                f"have {eit} stand within {many}",
                f"{VARIED_OUT} the text after fencing {eit} with {many}",
                f"bracket {eit} by {many}",
                f"have {many} on both sides of {eit}",
                f"On both sides of {eit} there should be {many}.",
                f"I want {eit} between {many}.",
                f"make sure that {eit} gets {many} around it",
                f"let {many} enclose {eit}",
                f"hold {eit} in {many}",
            ]))  # fmt: skip
    return found


CASES = {
    "upper": (str.upper, "{upper case|capitals|capital letters|uppercase}", "{block capitals|upper case}"),
    "lower": (str.lower, "{lower case|small letters|lowercase}", "{small letters|lower case}"),
    "reversed": (lambda s: s[::-1], "{reverse|backward spelling}", "{reversed spelling|reverse}"),
}


def cases(d: Domain) -> list[Entry]:
    """Upper or lower case, or backward spelling, of one unit; of the whole text, its case."""
    found = []
    for case, (do, said_case, varied_case) in CASES.items():
        if case == "reversed" and d is not WORD and d is not ITEM:
            continue
        for place in ("whole", "first", "second", "third", "last", "next_to_last"):
            if place == "whole" and (d is not WORD or case == "reversed"):
                continue
            make = (lambda r: d.make(r).upper()) if case == "lower" else d.make
            if place == "whole":
                name = f"{case}_whole"
                it, eit = "the {whole text|whole input|entire text}", "the {complete message|full text}"
                draw = apply((lambda r: sentence(r).upper()) if case == "lower" else sentence, do)
            else:
                i, said, varied = PLACES[place]
                name = f"{case}_{place}_{d.name}"
                it, eit = f"the {said} {d.unit}", f"the {varied} {d.varied_unit}"
                draw = at_unit(d, i, do, make)
            if case == "reversed":
                plain = [
                    f"{{reverse|flip}} {it}{{ of the {d.whole}| and keep the others}}",
                    f"{{reverse|flip}} the letters of {it}",
                    f"{{write|spell}} {it} {{backwards|in reverse|from back to front}}",
                    f"{OUT} the {d.whole} with {it} {{spelled|written}} {{backwards|in reverse}}",
                    f"{{reverse|turn around}} only {it}, {{letter by letter|leaving the others alone}}",
                    f"Given a {d.whole}, {{reverse|spell backwards}} {it}.",
                    f"{{turn|flip}} {it} around, {{letter by letter|letter for letter}}",
                    f"{{change|put}} the letters of {it} {{in|into}} {{reverse|the opposite}} order",
                    f"{it} {{backwards|in reverse}}, the rest {{as it is|unchanged}}",
                ]
            else:
                plain = [
                    f"{{write|put|print|set}} {it} in {said_case}",
                    f"{{change|turn|convert}} {it} {{to|into}} {said_case}",
                    f"{{make|turn}} {it} {said_case}",
                    f"{OUT} the {d.whole} with {it} in {said_case}",
                    f"{case}case {it}",
                    f"Given a {d.whole}, {{write|put}} {it} in {said_case}.",
                    f"{{use|take}} {said_case} for {it}",
                    f"{it} in {said_case}, {{please|the rest as it is}}",
                    f"{{convert|transform}} {{only|just}} {it} to {said_case}"
                    if place != "whole"
                    else f"{{convert|transform}} everything to {said_case}",
                ]
            varied = [
                f"have {eit} {{appear|come out}} in {varied_case}",
                f"{VARIED_OUT} the {d.varied_whole}, but have {eit} in {varied_case}",
                f"switch {eit} over to {varied_case}",
                f"render {eit} in {varied_case} and leave anything else",
                f"For {eit}, use {varied_case}.",
                f"I want to see {eit} in {varied_case}.",
                f"rewrite the {d.varied_whole} so that {eit} is in {varied_case}",
                f"{eit} should be in {varied_case}",
            ]
            found.append((name, draw, plain, varied))
    return found


NUMBERS = {1: "one", 2: "two", 3: "three", 5: "five", 10: "ten", 20: "twenty", 100: "one hundred"}


def arithmetic() -> list[Entry]:
    found = []
    for k, name in NUMBERS.items():
        said = f"{{{name}|{k}}}"
        found.append((f"add_{k}", apply(small, lambda t, k=k: str(int(t) + k)), [
            f"add {said} to the number",
            f"{{increase|raise}} the {{number|value}} by {said}",
            f"{OUT} the number plus {said}",
            f"What is the number plus {said}?",
            f"{OUT} the {{result of adding|sum of the number and}} {said}",
            f"Given a number, add {said} to it.",
            f"{{put|lay}} {said} on top of the number",
            f"What do you get when you add {said}?",
            f"{OUT} the number {{increased|raised}} by {said}",
            f"make the number {said} {{more|larger|greater}}",
            f"the number that is {said} {{more|higher}}",
        ], [
            f"{VARIED_OUT} the number that is {name} larger",
            f"go up by {name} from the number you get",
            f"count {name} further than the number",
            f"Take any number and make it {name} bigger.",
            f"raise what I send by {name}",
            f"climb {name} above the number",
            f"let the number grow by {name}",
            f"the number and {name} together",
        ]))  # fmt: skip
        if k not in (1, 2, 5, 10):
            continue
        make = lambda r, k=k: str(r.randint(k, 109))  # noqa: E731
        found.append((f"subtract_{k}", apply(make, lambda t, k=k: str(int(t) - k)), [
            f"subtract {said} from the number",
            f"{{decrease|lower|reduce}} the {{number|value}} by {said}",
            f"{OUT} the number minus {said}",
            f"What is the number minus {said}?",
            f"take {said} away from the number",
            f"Given a number, subtract {said} from it.",
            f"{{take|deduct}} {said} {{off|from}} the number",
            f"What is left when you subtract {said}?",
            f"{OUT} the number {{decreased|reduced|lowered}} by {said}",
            f"make the number {said} {{less|smaller|lower}}",
        ], [
            f"{VARIED_OUT} the number that is {name} smaller",
            f"go down by {name} from the number you get",
            f"count back {name} from the number",
            f"Take any number and make it {name} less.",
            f"deduct {name} from what I send",
            f"let the number shrink by {name}",
            f"step {name} below the number",
        ]))  # fmt: skip
    return found


def grid() -> list[Entry]:
    found: list[Entry] = []
    for d in DOMAINS:
        found += picks(d) + drops(d) + repeats(d) + stars_for(d) + slices(d) + moves(d) + separators(d)
        if d is not DIGIT:
            found += wraps(d) + cases(d)
    return found + arithmetic()
