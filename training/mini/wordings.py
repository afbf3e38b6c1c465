"""How people word a task: templates with alternatives, and the sentences they are put into.

A template is an imperative in lower case ("{write|give} the {first|initial} letter of the word"), which a frame makes
a sentence of; one that begins with a capital or with no verb stands as it is. Some of each
task's templates are held out for evaluation (`suite.suite`), and so are the frames of the evaluation.
"""

import re
from collections.abc import Collection, Mapping
from random import Random

from . import words as w

# A template that begins with one of these is no imperative.
NO_VERBS = frozenset(
    """
    a after all an any as before between both by does each every everything from how initials instead is it
    like minus my no of on one plus the there this twice two vowels what where whatever which whose word yes
    your
    """.split()  # noqa: SIM905
)
AN = re.compile(
    r"\b([Aa]) (?=(?:input|item|element|entry|underscore|underline|enumeration|asterisk|opening|initial|upper)\b)"
)
SLOT = re.compile(r"<(\w+)>(s?)")
ALTERNATIVES = re.compile(r"\{([^{}]*)\}")
TRAIN_FRAMES = (
    "{P}.", "{P}.", "{P}.", "{P}.", "{P}.", "{P}.", "{P}", "{P}:", "{P}!", "{p}", "Please {p}.", "{P}, please.",
    "Your task is to {p}.", "For each input, {p}.", "You have to {p}.", "Read the text and {p}.", "I want you to {p}.",
    "Can you {p}?", "The job is to {p}.", "You should {p}.", "Given the input, {p}.", "Task: {p}.", "Now {p}.",
    "Take what I send you and {p}.", "In this task you {p}.", "{P} and output nothing else.", "I need you to {p}.",
    "Would you {p}?", "When you get an input, {p}.", "Here is what to do: {p}.", "The instruction is to {p}.",
    "As your answer, {p}.", "Let us {p}.", "Simply {p}.", "Always {p}.", "The goal is this: {p}.",
    "Look at the input and {p}.",
    "{P}, thanks.", "{P}. Thanks!", "{P}. Nothing else.", "{P}, and nothing more.",
    "{P}. No explanation, just the result.", "hey, {p}", "hi, could you {p}", "Hey, please {p}.", "please {p}",
    "can you {p}", "pls {p}", "ok, {p}", "Okay, {p}.", "I'd like you to {p}.", "I'd love it if you could {p}.",
    "It would be great if you could {p}.", "Do me a favour and {p}.", "Instruction: {P}.", "Instructions: {p}.",
    "Task description: {P}.", "Goal: {p}.", "Job: {p}", "Command: {p}", "To do: {P}.", "What you do is this: {p}.",
    "You must {p}.", "You need to {p}.", "You are asked to {p}.", "You will be asked to {p}.",
    "All you have to do is {p}.", "Your job is simple: {p}.", "You are a program whose job is to {p}.",
    "You are a helpful tool; {p}.", "Be so kind as to {p}.", "Kindly {p}.", "Just {p}.", "just {p}", "Try to {p}.",
    "Make sure to {p}.", "Remember to {p}.", "Every time I write something, {p}.",
    "With every message that I send, {p}.", "Whenever you get something, {p}.", "No matter what I type, {p}.",
    "I'm going to send you something. {P}.", "I will type something and you {p}.", "The following is your task: {p}.",
    "What I'd like: {p}.", "How about you {p}?", "Would you mind? {P}.", "For me, {p}.", "From now on, {p}.",
    "First read what I send, then {p}.", "Without any comment, {p}.", "My request: {p}.",
)  # fmt: skip
EVAL_FRAMES = (
    "{P}", "{P}.", "Your goal here is to {p}.", "I would like you to {p}.", "Could you please {p}?",
    "Whatever I send you, {p}.",
)  # fmt: skip


def expand(template: str, rng: Random, slots: Mapping[str, list[str]] | None = None) -> str:
    """One wording of a template: every {a|b|c}, inner ones first, becomes one of its alternatives.

    Every <slot> becomes one of the templates that `slots` has for it, the same wherever it stands; <Slot> begins with
    a capital, <slot>s is the plural of a noun. « and » stand for braces.
    """
    chosen: dict[str, str] = {}

    def fill(text: str) -> str:
        while match := ALTERNATIVES.search(text):
            text = text[: match.start()] + rng.choice(match.group(1).split("|")) + text[match.end() :]
        return SLOT.sub(put, text) if slots else text

    def put(match: re.Match) -> str:
        slot, plural = match.groups()
        name = slot.lower()
        if name not in chosen:
            chosen[name] = fill(rng.choice(slots[name]))
        said = w.plural(chosen[name]) if plural else chosen[name]
        return said[0].upper() + said[1:] if slot[0].isupper() else said

    text = " ".join(fill(template).split()).replace(" but one one", " but one")  # the last but one (one)
    return AN.sub(r"\1n ", text).replace("«", "{").replace("»", "}")


def wordings(
    templates: list[str],
    frames: tuple[str, ...],
    count: int,
    rng: Random,
    slots: Mapping[str, list[str]] | None = None,
    besides: Collection[str] = (),
) -> list[str]:
    """Up to `count` different sentences, the templates taken in turn; fewer if there are no more, none of `besides`."""
    found: dict[str, None] = {}
    for attempt in range(60 * count):
        phrase = expand(templates[attempt % len(templates)], rng, slots)
        first, rest = phrase[0], phrase[1:]
        if first.islower() and phrase.split()[0].rstrip(",:") in NO_VERBS:
            phrase = first.upper() + rest + ("" if rest.endswith(("?", ".")) else ".")
        elif first.islower():
            frame = rng.choice(frames)
            phrase = frame.replace("{P}", first.upper() + rest).replace("{p}", phrase)
        if phrase not in besides:
            found[phrase] = None
        if len(found) == count:
            break
    return list(found)
