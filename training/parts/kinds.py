"""Kinds of description (Table 5), and how some of each are drawn for a task."""

import random
import string
from collections.abc import Sequence

from training.tasks import Task

# Kinds of description (Table 5). A task that no stage trained on has unseen descriptions only.
SEEN, UNSEEN, OTHER, RANDOM, NO_DESCRIPTION = "seen", "unseen", "another task's", "random string", "none"
KINDS = (SEEN, UNSEEN, OTHER, RANDOM)


def random_strings(count: int, draw: random.Random) -> list[str]:
    """`count` strings of 10 to 40 random letters and digits (App. A.4)."""
    letters = string.ascii_letters + string.digits
    return ["".join(draw.choices(letters, k=draw.randint(10, 40))) for _ in range(count)]


def pick_descriptions(task: Task, kind: str, trained: Sequence[Task], count: int, draw: random.Random) -> list[str]:
    """Up to `count` descriptions of one kind; another task's, where asked for, is a trained task's. Maybe none."""
    seen = next((other.descriptions for other in trained if other.name == task.name), None)
    if kind == RANDOM:
        return random_strings(count, draw)
    if kind == OTHER:
        others = [other for other in trained if other.name != task.name and other.descriptions]
        return [draw.choice(draw.choice(others).descriptions) for _ in range(count)] if others else []
    if kind == SEEN:
        pool = seen or []
    else:
        pool = task.eval_descriptions if seen is not None else task.descriptions + task.eval_descriptions
    return draw.sample(pool, min(count, len(pool)))
