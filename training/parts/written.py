"""What a language model wrote: the descriptions in its answer, and which of them give a task's answers away."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from training.tasks import Task

MAX_DESCRIPTION = 1000  # characters
LEAK_WORDS = 6  # so many words of a longer answer, in a row, give it away
LABEL_SHARE = 0.05  # an answer to so many of a task's questions is a class
_MARK = re.compile(  # "3.", "(3)", "- ", "Description 3:", also two of them, also in bold
    r"[\s>#*_]*(?:(?:[-•*+]\s+|\(?#?\d{1,3}\s*[.):](?=[\s*_]|$)"
    r"|(?:task\s+)?description\s*#?\s*\d{1,3}[\s*_]*(?:[.):\u2013\u2014-]|$))[\s*_]*)+",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```\w*\n(.*?)(?:```|\Z)", re.DOTALL)
_JSON = re.compile(r"[\[{]\s*[\[{\"]")
_JSON_TEXT = re.compile(r'(?<=[\s\[{:,])"(?:[^"\\\n]|\\.)*"(?=\s*(?:[,\]}\n]|\Z))')  # a whole value; a key has a colon


def parse_descriptions(text: str) -> list[str]:
    """The descriptions in a model's answer: a list with numbers or bullets, or JSON, even if it breaks off.

    Whatever stands before, between and after them is left out, and so is what is too short or long to be a description.
    """
    text = text.rpartition("</think>")[2].partition("<think>")[0]  # what a reasoning model thinks is no answer
    if fence := _FENCE.search(text):
        text = fence[1]
    start = _JSON.search(text)
    if start and not text[: start.start()].strip():
        found = list(_from_json(text[start.start() :]))
    else:
        found = _from_list(text) or (list(_from_json(text[start.start() :])) if start else [])
    cleaned = map(_clean, found)
    return [item for item in cleaned if len(item) <= MAX_DESCRIPTION and len(words(item)) > 1]


def _from_list(text: str) -> list[str]:
    items, is_open = [], False
    for line in text.splitlines():
        if mark := _MARK.match(line):
            items.append(line[mark.end() :])
            is_open = True
        elif not line.strip():
            is_open = is_open and not items[-1].strip()  # a description may stand below its number
        elif is_open:
            items[-1] += f" {line}"
    return items


def _from_json(text: str) -> Iterator[str]:
    try:
        yield from _texts(json.JSONDecoder(strict=False).raw_decode(text)[0])
    except (ValueError, RecursionError):
        for part in _JSON_TEXT.findall(text):
            with suppress(ValueError):
                yield json.loads(part, strict=False)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value; of an object that names them, those under "description..." alone."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        named = [item for key, item in value.items() if key.casefold().startswith("description")]
        yield from _texts(named or list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _clean(text: str) -> str:
    text = text.encode(errors="replace").decode()  # half a surrogate pair could not be written to a file
    text = " ".join(text.replace("**", "").split()).strip("*_ ")
    return text[1:-1].strip() if text[:1] in ('"', "“") and text[-1:] in ('"', "”") else text


def words(text: str) -> list[str]:
    """The words, without case and punctuation."""
    return re.findall(r"[^\W_]+", re.sub("['\u2019]", "", text.casefold()))


FUNCTION_WORDS = frozenset(
    words(  # stand in any sentence, so that their being there tells nothing
        "a about after all an and any are as at be been before but by can could did do does each for from had has "
        "have he her him his how i if in into is it its may me more most my no nor not of off on one or our out "
        "over she should so some such than that the their them then there these they this those to too up us was "
        "we were what when where which who whom whose why will with would yes you your"
    )
)


def labels(task: Task) -> set[str]:
    """The task's classes: answers to several of its questions, one in twenty at least, as compared by `leaks`.

    A description that names them ("is the review positive?") gives no question's answer away.
    """
    counts = Counter(" ".join(words(example["output"])) for example in task.train)
    return {answer for answer, n in counts.items() if n > 1 and n >= LABEL_SHARE * len(task.train)}


def leaks(description: str, answers: Sequence[str], classes: set[str] = frozenset()) -> bool:
    """Whether an answer stands in the description, whatever the case and the punctuation.

    Of a longer answer, six words in a row do. Not counted are classes, single characters ("a", "7") and answers
    of nothing but function words ("in the").
    """
    text = f" {' '.join(words(description))} "
    for answer in answers:
        own = words(answer)
        if len("".join(own)) < 2 or FUNCTION_WORDS.issuperset(own) or " ".join(own) in classes:
            continue
        n = min(len(own), LEAK_WORDS)
        if any(f" {' '.join(own[i : i + n])} " in text for i in range(len(own) - n + 1)):
            return True
    return False
