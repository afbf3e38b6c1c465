"""How good an answer is against the outputs that its example accepts: exact match and ROUGE-L."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from hyperlora.errors import UserError


def accepted(example: Mapping[str, Any]) -> list[str]:
    """The outputs that count as right: "output", and those of the list "outputs" where the example has one."""
    return list(dict.fromkeys([example["output"], *(example.get("outputs") or [])]))


def exact_match(answer: str, outputs: Sequence[str]) -> bool:
    """Whether the answer is one of the outputs, space around them aside."""
    return answer.strip() in {output.strip() for output in outputs}


def rouge_l(answer: str, outputs: Sequence[str]) -> float:
    """ROUGE-L of the nearest output, 0 to 1: the F1 of the longest common subsequence of stemmed English words.

    Needs the package `rouge-score` (group `eval`); raises UserError without it.
    """
    return _scorer().score_multi(list(outputs), answer)["rougeL"].fmeasure


@cache
def _scorer():
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("ROUGE-L needs the package rouge-score: pip install --group eval.") from None
    return RougeScorer(["rougeL"], use_stemmer=True)
