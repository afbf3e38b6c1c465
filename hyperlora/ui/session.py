"""What one visitor has: descriptions on a shelf, and a conversation.

Their page holds both, as JSON, and sends them with what it asks: no restart of the server, and no lost connection,
takes anything away.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from hyperlora.errors import UserError
from hyperlora.text import check_text

KEPT = "What the page kept"
DAMAGED = "What the page kept of this visit is damaged: open it in a new tab."
MAX_SHELF = 32
MAX_TURNS = 100
MAX_CHARACTERS = 1_000_000  # of the turns but the last; older ones leave


@dataclass
class Turn:
    """One message and its answer; `by` says which adapter answered, `end` how the answer ended."""

    question: str
    by: str
    answer: str = ""
    end: str = ""
    """A `ChatStream.finish_reason`, or "error"; empty while the answer is written, or where its end never came."""
    markdown: bool = False
    """Whether the answer is shown as Markdown."""


def write(shelf_or_turns: list[str] | list[Turn]) -> str:
    """As the page holds it."""
    return json.dumps([item if isinstance(item, str) else asdict(item) for item in shelf_or_turns], ensure_ascii=False)


def read_shelf(kept: object) -> list[str]:
    """The descriptions, the oldest first. Raises `UserError` for what no page holds."""
    shelf = _read(kept, 3 * MAX_CHARACTERS)
    for description in shelf:
        check_text(description, KEPT)
    return shelf[-MAX_SHELF:]


def read_turns(kept: object) -> list[Turn]:
    """The conversation's last turns. Raises `UserError` for what no page holds."""
    turns: list[Turn] = []
    characters = 0
    for item in reversed(_read(kept, 10 * MAX_CHARACTERS)[-MAX_TURNS:]):
        try:
            turn = Turn(**item)
        except TypeError:
            raise UserError(DAMAGED) from None
        for text in (turn.question, turn.by, turn.answer, turn.end):
            check_text(text, KEPT)
        characters += len(turn.question) + len(turn.answer)
        if turns and characters > MAX_CHARACTERS:
            break
        turns.insert(0, turn)
    return turns


def put(shelf: list[str], description: str) -> list[str]:
    """The shelf with that description as its newest; the oldest leaves a full one."""
    return [*(other for other in shelf if other != description), description][-MAX_SHELF:]


def _read(kept: object, most: int) -> list[Any]:
    if not isinstance(kept, str) or len(kept) > most:
        raise UserError(DAMAGED)
    try:
        items = json.loads(kept or "[]")
    except (ValueError, RecursionError):
        raise UserError(DAMAGED) from None
    if not isinstance(items, list):
        raise UserError(DAMAGED)
    return items
