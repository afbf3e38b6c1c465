"""Rows as chat sends them: with a description or without, after earlier turns, with or without the usual system turn.

What a row is made of is drawn anew each time. Its prompt is token by token what `hyperlora.prompt.format_prompt` makes
of the same messages; the last answer alone is labelled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from hyperlora.errors import UserError
from hyperlora.prompt import Message, encode_answers, with_description
from training.parts.batches import Draw, Encoded, encode_tasks, fitting_examples, labelled
from training.parts.options import option
from training.parts.typed import retyped
from training.tasks import Example, Task, descriptions_of

SYSTEM = ("", "You are a helpful assistant.", "Answer briefly.", "You are a helpful AI assistant.")
MOST_TURNS = 3  # before the last one


@dataclass
class RowOptions:
    """What rows are, and how often they are of which tasks. All but the first two shape the style `either` alone."""

    prompt_style: Literal["input", "description_input", "either"] = option(
        "input", "what prompts hold: the input, a description and the input, or the first in some rows, as chats are"
    )
    shares: str = option(
        "", "parts of the rows that groups of tasks get, as in text=0.15,open=0.2; else all are drawn alike"
    )
    described: float = option(0.75, "part of the rows with a description in front", least=0, most=1)
    earlier_turns: float = option(0.2, "part of the rows with one to three earlier turns", least=0, most=1)
    other_system: float = option(0.1, "part of the rows with another system message than usual", least=0, most=1)
    retyped: float = option(0.3, "part of the texts with capitals and full stops in another way", least=0, most=1)


def task_weights(tasks: Sequence[Task], shares: str) -> list[float]:
    """How often each task is drawn, together 1; the groups that `shares` names get as much, the others alike the rest.

    Raises `UserError` where that is not a list of groups and their parts.
    """
    parts = parse_shares(shares)
    counts = {group: sum(task.group == group for task in tasks) for group in parts}
    if missing := [group for group, count in counts.items() if not count]:
        raise UserError(f"shares names the group {missing[0]!r}, and no task is of it.")
    others = len(tasks) - sum(counts.values())
    left = 1 - sum(parts.values())
    if not all(0 <= part <= 1 for part in parts.values()) or left < -1e-9 or (not others and abs(left) > 1e-9):
        raise UserError(
            f"shares is {shares!r}: the parts must be from 0 to 1 and at most 1 together, or 1 for all groups."
        )
    return [parts[t.group] / counts[t.group] if t.group in parts else max(left, 0) / others for t in tasks]


def parse_shares(text: str) -> dict[str, float]:
    """`text=0.15,open=0.2` -> each group's part; `UserError` where it is not of that form."""
    parts = {}
    for item in filter(None, text.split(",")):
        group, _, share = item.partition("=")
        try:
            parts[group.strip()] = float(share)
        except ValueError:
            raise UserError(f"shares is {text!r}, but must be of the form text=0.15,open=0.2.") from None
    return parts


@dataclass(frozen=True)
class Row:
    """A chat to learn from: a system message or the usual, a description or none, and turns, the last to be learnt."""

    system: str | None
    description: str | None
    turns: tuple[tuple[str, str], ...]

    def messages(self) -> list[Message]:
        """The chat with its answer; the description is in front of the first message, as `Pipeline.chat` puts it."""
        chat = [] if self.system is None else [{"role": "system", "content": self.system}]
        for i, (question, answer) in enumerate(self.turns):
            question = with_description(self.description if i == 0 else None, question)
            chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return chat


class Rows:
    """Draws of the style `either` -> encoded rows of at most `longest` tokens. Each task has descriptions."""

    def __init__(self, tokenizer, tasks: Sequence[Task], options: RowOptions, longest: int, split: str = "train"):
        self.tokenizer, self.tasks, self.options, self.longest = tokenizer, tasks, options, longest
        self.examples = [getattr(task, split) for task in tasks]
        self.descriptions = [descriptions_of(task) for task in tasks]

    def encode(self, draws: Sequence[Draw], random: Random) -> list[Encoded]:
        """What is too long goes without its earlier turns and then without its description."""
        rows = [self.draw(draw, random) for draw in draws]
        encoded = self._encode(rows)
        for shorter in (lambda row: replace(row, turns=row.turns[-1:]), lambda row: replace(row, description=None)):
            long = [i for i, row in enumerate(encoded) if len(row["input_ids"]) > self.longest]
            for i in long:
                rows[i] = shorter(rows[i])
            for i, row in zip(long, self._encode([rows[i] for i in long]), strict=True):
                encoded[i] = row
        return encoded

    def draw(self, draw: Draw, random: Random) -> Row:
        """The row of one draw: (task, example, position of its description from 0 to 1)."""
        options, (number, example, position) = self.options, draw
        system = random.choice(SYSTEM) if random.random() < options.other_system else None
        description = None
        if random.random() < options.described:
            texts = self.descriptions[number]
            description = self._typed(texts[int(position * len(texts))].strip(), random)
        own = self.examples[number]
        shown = []
        if random.random() < options.earlier_turns:
            shown = [own[i] for i in random.sample(range(len(own)), min(len(own), random.randint(1, MOST_TURNS)))]
        last = own[example]
        shown = [earlier for earlier in shown if earlier["input"] != last["input"]]
        written = self.tasks[number].group == "text"  # the suite's inputs are as people type them already
        return Row(system, description, tuple(self._turn(each, written, random) for each in (*shown, last)))

    def _turn(self, example: Example, written: bool, random: Random) -> tuple[str, str]:
        question, answer = example["input"].strip(), example["output"].strip()
        words = question.split()
        # where an answer repeats the input its capitals are the answer's too
        if not written and words and words[0].lower() not in answer.lower() and "\n" not in question:
            question = self._typed(question, random)
        return question, answer

    def _typed(self, text: str, random: Random) -> str:
        return retyped(random, text) if random.random() < self.options.retyped else text

    def _encode(self, rows: Sequence[Row]) -> list[Encoded]:
        return [labelled(*pair) for pair in encode_answers(self.tokenizer, [row.messages() for row in rows])]


def sources(
    tokenizer, tasks: Sequence[Task], options: RowOptions, longest: int, split: str = "train", say: bool = True
) -> tuple[list[Sequence], Rows | None]:
    """What `Batches` draws from: encoded examples of each task or, for the style `either`, examples and `Rows`.

    Examples of more than `longest` tokens are left out, as `encode_tasks` does.
    """
    if options.prompt_style != "either":
        return encode_tasks(tokenizer, tasks, longest, options.prompt_style, split, say), None
    kept = fitting_examples(tokenizer, tasks, longest, split, say)
    tasks = [replace(task, **{split: examples}) for task, examples in zip(tasks, kept, strict=True)]
    return kept, Rows(tokenizer, tasks, options, longest, split)
