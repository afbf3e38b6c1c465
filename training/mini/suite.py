"""The text tasks of the mini model: what goes in, what comes out, and how people say it.

`suite()` lists every task in one of three groups: `trained`; `combination`, a new combination of parts that are
trained apart (the third word, where first and second word, third letter and third item are trained); and
`operation`, something that no trained task does. The last two are held out of every stage of the training.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

from hyperlora.config import read_json

from .blind import is_blind
from .grid import Example, Slots, grid
from .singles import SINGLES
from .wordings import EVAL_FRAMES, TRAIN_FRAMES, wordings

TRAIN_WORDINGS, EVAL_WORDINGS = 64, 5
SPOKEN: dict[str, list[str]] = read_json(Path(__file__).with_name("spoken.json"))
"""Name of a trained task -> descriptions that follow no template, written from examples of it alone."""


@dataclass(frozen=True)
class TextTask:
    """`make(rng)` draws one (input, output); the descriptions for training and for evaluation are disjoint.

    weight: how often the base sees it; what shares no part with other tasks, and arithmetic, takes more practice.
    """

    name: str
    group: str
    make: Example
    descriptions: tuple[str, ...]
    eval_descriptions: tuple[str, ...]
    weight: float


# Spread over the grid so that every part, and almost every pair of parts, of a held-out task is trained.
COMBINATIONS = frozenset(
    """
    third_word fourth_item second_digit drop_second_word drop_last_item repeat_third_word repeat_first_letter
    stars_for_last_word first_three_words last_two_items swap_ends_item slash_between_words plus_between_letters
    hyphen_between_digits brackets_last_word stars_each_word quotes_first_item upper_last_word lower_first_word
    reversed_second_word
    """.split()  # noqa: SIM905
)

# tasks that take the base more practice: their weights
HARDER = re.compile(r"drop_|repeat_|reverse|swap_ends_|add_|subtract_|.*_to_(end|front)$")
HARD = {"sum": 8.0, "diff": 8.0, "digit_sum": 4.0, "double": 4.0, "half": 4.0}


def suite() -> list[TextTask]:
    """All tasks, always in the same order and with the same wordings."""
    tasks = []
    for e in grid():
        group = "combination" if e.name in COMBINATIONS else "trained"
        weight = 2.0 if HARDER.match(e.name) else 1.0
        tasks.append(_worded(e.name, group, e.make, e.plain + e.varied, e.more, weight, e.slots))
    for name, group, make, plain, varied, more in SINGLES:
        tasks.append(_worded(name, group, make, plain + varied, more, HARD.get(name, 2.0)))
    return tasks


def _worded(
    name: str,
    group: str,
    make: Example,
    templates: list[str],
    more: list[str],
    weight: float,
    slots: Slots | None = None,
) -> TextTask:
    """A task with its descriptions: those of SPOKEN, and templates', of which every third is held out, none of `more`;
    never trained, all but one.
    """
    rng = Random(name)
    held = templates[1:] if group == "operation" else templates[2::3]
    kept = [t for t in templates if t not in held] + more
    seen = SPOKEN.get(name, [])
    seen = seen + wordings(kept, TRAIN_FRAMES, TRAIN_WORDINGS - len(seen), rng, slots)
    seen = [text for text in seen if not is_blind(text)]
    unseen = wordings(held, EVAL_FRAMES, EVAL_WORDINGS, rng, slots, besides=seen)
    return TextTask(name, group, make, tuple(seen), tuple(unseen), weight)
