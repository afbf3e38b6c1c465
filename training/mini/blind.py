"""Descriptions of 60 trained tasks in words that owe nothing to the suite's: measured on, never trained on nor read.

They were written from examples of inputs and answers alone, before the suite's present wordings were. The suite's own
unseen descriptions share their author, and often their shape, with those that are trained on.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hyperlora.config import read_json

if TYPE_CHECKING:
    from training.tasks import Task

PATH = Path(__file__).with_name("blind.json")


def blind_descriptions() -> dict[str, list[str]]:
    """Name of a trained task -> its three descriptions."""
    return read_json(PATH)


@cache
def _all() -> frozenset[str]:
    return frozenset(_plain(text) for texts in blind_descriptions().values() for text in texts)


def _plain(text: str) -> str:
    return text.lower().rstrip(".!?")


def is_blind(text: str) -> bool:
    """Whether it is one of them, case and end mark aside: the suite leaves such a wording out."""
    return _plain(text) in _all()


def blind_tasks(trained: "list[Task]") -> "list[Task]":
    """Those 60 tasks, the blind descriptions in place of their unseen ones."""
    found = blind_descriptions()
    return [replace(task, eval_descriptions=found[task.name]) for task in trained if task.name in found]
