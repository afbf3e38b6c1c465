"""Whether an answer is right, as a person would read it."""

import re
from collections.abc import Sequence

MARKS = " \t\r\n.!?\"'`\u201c\u201d\u2018\u2019«»*"  # around an answer they say nothing: end marks, quotes, bold type


def same_answer(answer: str, outputs: Sequence[str], question: str = "") -> bool:
    """Whether a person would read the answer as one of the outputs, for a chat model that was asked `question`.

    Case is aside, and how much space there is, and the marks around the whole answer: . ! ? quotes and asterisks. But
    where an output is a part of the question in another case or with other marks, those are what was asked for
    ("overcome" -> "Overcome"), and only space around the answer is aside.
    """
    return any(
        answer.strip() == output.strip()
        or (plain(answer) == plain(output) and not (has(question, output) and output.strip() not in question))
        for output in outputs
    )


def plain(text: str) -> str:
    """In lower case, its words apart by one space, without marks around it; a text of marks alone stays."""
    text = " ".join(text.casefold().split())
    return text.strip(MARKS) or text


def has(text: str, output: str) -> bool:
    """Whether the output stands in the text as whole words, both as `plain` makes them."""
    return re.search(rf"(?<!\w){re.escape(plain(output))}(?!\w)", plain(text)) is not None
