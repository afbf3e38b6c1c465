"""How people word a task: templates with alternatives, and the sentences they are put into.

A template is an imperative in lower case ("{write|give} the {first|initial} letter of the word"), which a frame makes
a sentence of; one that begins with a capital or with no verb stands as it is. Some of each
task's templates are held out for evaluation (`suite.suite`), and so are the frames of the evaluation.
"""

import re
from random import Random

NO_VERBS = frozenset(
    [
        "a",
        "all",
        "an",
        "any",
        "between",
        "both",
        "by",
        "does",
        "each",
        "every",
        "everything",
        "from",
        "how",
        "is",
        "it",
        "no",
        "one",
        "the",
        "what",
        "where",
        "which",
        "whose",
        "word",
        "yes",
        "vowels",
        "initials",
    ]
)
AN = re.compile(r"\b([Aa]) (?=(?:input|item|element|entry|underscore|underline|enumeration|asterisk)\b)")
ALTERNATIVES = re.compile(r"\{([^{}]*)\}")
TRAIN_FRAMES = (
    "{P}.", "{P}.", "{P}.", "{P}.", "{P}.", "{P}.", "{P}", "{P}:", "{P}!", "{p}", "Please {p}.", "{P}, please.",
    "Your task is to {p}.", "For each input, {p}.", "You have to {p}.", "Read the text and {p}.", "I want you to {p}.",
    "Can you {p}?", "The job is to {p}.", "You should {p}.", "Given the input, {p}.", "Task: {p}.", "Now {p}.",
    "Take what I send you and {p}.", "In this task you {p}.", "{P} and output nothing else.", "I need you to {p}.",
    "Would you {p}?", "When you get an input, {p}.", "Here is what to do: {p}.", "The instruction is to {p}.",
    "As your answer, {p}.", "Let us {p}.", "Simply {p}.", "Always {p}.", "The goal is this: {p}.",
    "Look at the input and {p}.",
)  # fmt: skip
EVAL_FRAMES = (
    "{P}", "{P}.", "Your goal here is to {p}.", "I would like you to {p}.", "Could you please {p}?",
    "Whatever I send you, {p}.",
)  # fmt: skip


def expand(template: str, rng: Random) -> str:
    """One wording of a template: every {a|b|c}, inner ones first, becomes one of its alternatives."""
    while match := ALTERNATIVES.search(template):
        template = template[: match.start()] + rng.choice(match.group(1).split("|")) + template[match.end() :]
    return AN.sub(r"\1n ", " ".join(template.split()))


def wordings(templates: list[str], frames: tuple[str, ...], count: int, rng: Random) -> list[str]:
    """Up to `count` different sentences, the templates taken in turn; fewer where the templates allow no more."""
    found: dict[str, None] = {}
    for attempt in range(60 * count):
        phrase = expand(templates[attempt % len(templates)], rng)
        first, rest = phrase[0], phrase[1:]
        if first.islower() and phrase.split()[0].rstrip(",:") in NO_VERBS:
            phrase = first.upper() + rest + ("" if rest.endswith(("?", ".")) else ".")
        elif first.islower():
            frame = rng.choice(frames)
            phrase = frame.replace("{P}", first.upper() + rest).replace("{p}", phrase)
        found[phrase] = None
        if len(found) == count:
            break
    return list(found)
