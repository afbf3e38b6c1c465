"""How good an answer is against the outputs that its example accepts: exact match, token F1 and ROUGE-L; and whether
it loops."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from hyperlora.errors import UserError
from hyperlora.marking import has


def accepted(example: Mapping[str, Any]) -> list[str]:
    """The outputs that count as right: "output", and those of the list "outputs" where the example has one."""
    return list(dict.fromkeys([example["output"], *(example.get("outputs") or [])]))


def exact_match(answer: str, outputs: Sequence[str]) -> bool:
    """Whether the answer is one of the outputs, space around them aside."""
    return answer.strip() in {output.strip() for output in outputs}


def contains(answer: str, outputs: Sequence[str]) -> bool:
    """Whether one of the outputs is in the answer, as a talkative model gives it: whole words, case and marks aside."""
    return any(has(answer, output) for output in outputs)


def token_f1(answer: str, outputs: Sequence[str]) -> float:
    """Token F1 of the nearest output, 0 to 1: the harmonic mean of the shares of the answer's words that the output
    has, and of the output's that the answer has, each word as often as it is there.

    Words are runs of letters and digits, in lower case, and every other sign but space is a word too, so that code and
    emoji count. Unlike SQuAD's F1 it keeps articles.
    """
    given = Counter(_words(answer))
    found = []
    for output in outputs:
        wanted = Counter(_words(output))
        total = given.total() + wanted.total()
        found.append(2 * (given & wanted).total() / total if total else 1.0)
    return max(found)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def rouge_l(answer: str, outputs: Sequence[str]) -> float:
    """ROUGE-L of the nearest output, 0 to 1: the F1 of the longest common subsequence of stemmed English words.

    Needs the package `rouge-score` (group `eval`); raises UserError without it.
    """
    return _scorer().score_multi(list(outputs), answer)["rougeL"].fmeasure


LINES, TIMES, LEAST = 3, 3, 8  # a line so often; words so often at the end, so many in all


def loops(text: str) -> bool:
    """Whether an answer goes round in circles: a line is in it three times, or it ends in the same words over and over.

    Lines are compared without case, and without what is before their first letter: numbers and bullets of a list. The
    words at the end are there three times at least, the last time perhaps in part, and eight or more.
    """
    lines = Counter(re.sub(r"^[\W\d_]+", "", line.casefold()).strip() for line in text.splitlines())
    if any(times >= LINES for line, times in lines.items() if line):
        return True
    words = text.casefold().split()[::-1]
    for n in range(1, len(words) // TIMES + 1):
        same = next((i for i, pair in enumerate(zip(words, words[n:], strict=False)) if pair[0] != pair[1]), None)
        repeated = n + (len(words) - n if same is None else same)
        if repeated >= max(TIMES * n, LEAST):
            return True
    return False


@cache
def _scorer():
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("ROUGE-L needs the package rouge-score: pip install --group eval.") from None
    return RougeScorer(["rougeL"], use_stemmer=True)
