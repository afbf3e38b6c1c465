"""What one visitor has: a shelf of recipes and a conversation. It lives in `gr.State`, so nobody else can reach it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperlora.chat import ChatStream

MAX_SHELF = 32
MAX_TURNS = 100


@dataclass
class Recipe:
    """An adapter in a few bytes: its weights are generated again from the description whenever they are needed."""

    key: str
    description: str
    notice: str | None


@dataclass
class Turn:
    """One message and its answer; `by` says which adapter answered."""

    question: str
    by: str
    answer: str = ""


@dataclass
class Session:
    """What one visitor has: adapters made, the chat, and how many recipes there ever were (their keys)."""

    shelf: list[Recipe] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    stream: "ChatStream | None" = None  # the answer being written, where there is one
    made: int = 0

    def add(self, description: str, notice: str | None) -> Recipe:
        """The description's recipe on the shelf, or a new one there; the oldest leaves a full shelf."""
        for recipe in self.shelf:
            if recipe.description == description:
                return recipe
        self.made += 1
        recipe = Recipe(str(self.made), description, notice)
        self.shelf = [*self.shelf[-(MAX_SHELF - 1) :], recipe]
        return recipe

    def find(self, key: str | None) -> Recipe | None:
        return next((recipe for recipe in self.shelf if recipe.key == key), None)
