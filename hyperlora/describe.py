"""How a language model is asked for the descriptions of a task (App. F, Fig. 11), and which are in its answer."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

SYSTEM = "You are a helpful assistant with plenty of imagination."

# Figure 11 shows a question with choices and one without: so do these.
EXAMPLES = """\
Two examples show how descriptions follow from a task's pairs.

Example 1
Question:
Here is a question on economics with four possible answers, A, B, C and D. Exactly one of them is right. Reply with \
its letter and nothing else.

A city forbids rents above a limit that lies below what flats have cost so far. What will follow? (A) More flats will \
be on offer than people look for. (B) More people will look for flats than there are on offer. (C) Flats and people \
who look for one will be equally many. (D) Nobody will look for a flat.
Answer:
B
Fitting descriptions:
Description 1: Think about a question from economics and settle it with what you know of markets, prices and the \
choices that people make.
Description 2: Here your grasp of economic principles is put to the test: work out what they imply in the case at hand.

Example 2
Question:
You are given the name of a country. Return the name of its capital.

Uruguay
Answer:
Montevideo
Fitting descriptions:
Description 1: Say which city the given country is governed from.
Description 2: A country is named and you supply its capital. Solving this takes good knowledge of the world's \
geography."""

PROMPT = """\
You will see questions of one task, each with the answer expected. Write short descriptions that say what this task is.

{examples}

Now describe the task that these pairs belong to.

{pairs}

Take what the pairs tell you, and the descriptions above as a pattern, and write a number of descriptions that make \
clear what the task is. Each is plain text, in this form:

Description 1: TEXT
Description 2: TEXT
...

Be inventive: let length and sentence structure differ from one to the next, so that together they read as if many \
people with styles of their own had written them. Look past the single pairs, at the idea and the subject of the task \
as a whole.

- NEVER mention that there are options to choose from, or what form an answer has.
- NEVER tell in what form to answer, as in "pick the right option" or "reply with a single word".
- NEVER explain how to answer a question; tell what the task is about, and the skills and the knowledge that it needs.
- Steps of reasoning that lead to the expected answer may be mentioned.

Reply with {count} descriptions. Use simple words, be clear, and make no two descriptions alike."""

MAX_DESCRIPTION = 1000  # characters
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


def ask_for(
    pairs: Sequence[tuple[str, str]], count: int, most: int = 3000, system: bool = True
) -> list[dict[str, str]]:
    """The chat of Figure 11 that asks for `count` descriptions of the task behind (question, answer) pairs.

    Of a text longer than `most` characters the middle is left out; `system`: whether there is a system message.
    """
    parts = [f"Question:\n{_shorten(question, most)}\nAnswer:\n{_shorten(answer, most)}" for question, answer in pairs]
    prompt = PROMPT.format(examples=EXAMPLES, pairs="\n\n".join(parts), count=count)
    if not system:
        return [{"role": "user", "content": f"{SYSTEM}\n\n{prompt}"}]
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]


def _shorten(text: str, limit: int) -> str:
    """A long text without its middle: the instruction tends to be at its start, the question at its end."""
    end = limit // 3
    return text if len(text) <= limit else f"{text[: limit - end]} [...] {text[len(text) - end :]}"
