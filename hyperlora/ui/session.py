"""What a page sends of what its visitor has: an adapter of the shelf, and the turns of a conversation.

The browser keeps both (`assets/page.js`), and sends what a question needs, as JSON: no restart of the server, and no
lost connection, takes anything away. Nothing of it is trusted.
"""

import base64
import binascii
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hyperlora.errors import UserError
from hyperlora.recipe import MAX_STRENGTH, Recipe
from hyperlora.table import MAX_BYTES, Table, read_table, too_large
from hyperlora.text import check_text

KEPT = "What the page kept"
DAMAGED = "What the page kept of this adapter or conversation is damaged: delete it, and begin a new one."
MAX_NAME = 2_000  # characters, as of a description, which a name is by default
SIDES = ("left", "right")
MAX_SHELF = 32
MAX_TURNS = 100
MAX_OTHERS = 19  # answers to a message beside the one that is shown
MAX_CHARACTERS = 1_000_000  # of the turns but the last; older ones leave


@dataclass(frozen=True)
class Shelved:
    """An adapter of the shelf: what it is made from, at strength 1, and what the visitor calls it."""

    recipe: Recipe
    name: str
    strength: float = 1.0


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
    id: str = ""
    """The page's, by which it knows what is answered."""
    speed: float = 0.0
    """Tokens a second; 0 where that is not known."""
    missed: int = 0
    """How many of the oldest turns the model was not given, since they did not fit."""
    how: str = ""
    """Stands for all that a whole answer rests on; empty where the same again may give another answer."""
    others: list[str] = field(default_factory=list)
    """`how` of each other answer to the message; the answers are the page's to keep."""
    place: int = 0
    """How many of them came before this one."""


def write(turn: Turn) -> str:
    """As the page holds it."""
    return json.dumps(asdict(turn), ensure_ascii=False)


def one_line(description: object) -> str:
    """The description without line breaks, double and outer spaces."""
    return " ".join(check_text(description, "The description").split())


def read_adapter(kept: object) -> Shelved | None:
    """The adapter that is to answer, None for none. Raises `UserError` for what no page holds."""
    if kept == "":
        return None
    item = read_json(kept, 10 * MAX_CHARACTERS)
    if not isinstance(item, dict):
        raise UserError(DAMAGED)
    description, name, strength = one_line(item.get("description")), item.get("name"), item.get("strength")
    recipe = Recipe.from_json(json.dumps(item["recipe"])) if "recipe" in item else Recipe(description)
    if len(check_text(name, KEPT)) > MAX_NAME:
        raise UserError(DAMAGED)
    return Shelved(replace(recipe, strength=1), one_line(name) or description, check_strength(strength))


def check_strength(strength: object) -> float:
    """The strength as it is; `UserError` where it is none."""
    if type(strength) not in (int, float) or not abs(strength) <= MAX_STRENGTH:  # NaN fails the comparison
        raise UserError(f"The strength must be a number from {-MAX_STRENGTH} to {MAX_STRENGTH}.")
    return strength


def read_shelf(kept: object) -> list[Shelved]:
    """The adapters of a shelf; `UserError` for what no page holds."""
    items = read_json(kept, 10 * MAX_CHARACTERS)
    if not isinstance(items, list):
        raise UserError(DAMAGED)
    return [adapter for item in items[:MAX_SHELF] if (adapter := read_adapter(item))]


def read_side(kept: object) -> tuple[str, Shelved | None, bool, bool, object]:
    """One of two that are compared: which, its adapter, whether the description is in its prompt too, whether it is
    the base model with nothing but that, and the settings, unread. Raises `UserError` for what no page holds."""
    item = read_object(kept)
    if item.get("side") not in SIDES:
        raise UserError(DAMAGED)
    describe, prompted = item.get("describe") is True, item.get("prompted") is True
    return item["side"], read_adapter(item.get("adapter")), describe, prompted, item.get("settings", "")


def read_object(asked: object) -> dict[str, Any]:
    """What a page asks, by names. Raises `UserError` for what no page asks."""
    item = read_json(asked, 10 * MAX_CHARACTERS)
    if not isinstance(item, dict):
        raise UserError(DAMAGED)
    return item


def read_file(given: object) -> Table:
    """A file that the page has read: its name, and its bytes in base64. Raises `UserError` for what is no table."""
    if isinstance(given, str) and len(given) > 2 * MAX_BYTES:
        raise too_large()
    item = read_object(given)
    try:
        data = base64.b64decode(check_text(item.get("data"), "The file's base64"), validate=True)
    except binascii.Error:
        raise UserError("The file came damaged: choose it again.") from None
    return read_table(data, check_text(item.get("name"), "The file's name"))


def read_turns(kept: object) -> list[Turn]:
    """The conversation's last turns. Raises `UserError` for what no page holds."""
    return read_conversation(kept)[0]


def read_conversation(kept: object) -> tuple[list[Turn], int]:
    """The conversation's last turns, and how many came before them; raises as `read_turns`."""
    items = read_json(kept, 10 * MAX_CHARACTERS)
    if not isinstance(items, list):
        raise UserError(DAMAGED)
    turns: list[Turn] = []
    characters = 0
    for item in reversed(items[-MAX_TURNS:]):
        try:
            turn = Turn(**item)
        except TypeError:
            raise UserError(DAMAGED) from None
        if not isinstance(turn.others, list) or len(turn.others) > MAX_OTHERS:
            raise UserError(DAMAGED)
        for text in (turn.question, turn.by, turn.answer, turn.end, turn.id, turn.how, *turn.others):
            check_text(text, KEPT)
        if type(turn.missed) is not int or type(turn.place) is not int or type(turn.speed) not in (int, float):
            raise UserError(DAMAGED)
        if not (turn.missed >= 0 and 0 <= turn.place <= len(turn.others) and 0 <= turn.speed < 1e9):
            raise UserError(DAMAGED)
        characters += len(turn.question) + len(turn.answer)
        if turns and characters > MAX_CHARACTERS:
            break
        turns.insert(0, turn)
    return turns, len(items) - len(turns)


def messages_of(turns: list[Turn], question: str, multi_turn: bool) -> list[dict[str, str]]:
    """What a chat is asked: the question, after the turns before where the model is to see them."""
    before = [
        message
        for turn in (turns if multi_turn else [])
        for message in ({"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer})
    ]
    return [*before, {"role": "user", "content": question}]


def read_json(kept: object, most: int) -> Any:
    """The value of a JSON text of at most so many characters; `UserError` where it is none."""
    if not isinstance(kept, str) or len(kept) > most:
        raise UserError(DAMAGED)
    try:
        return json.loads(kept or "[]")
    except (ValueError, RecursionError):
        raise UserError(DAMAGED) from None
