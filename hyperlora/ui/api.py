"""What the page does, for programs: Gradio's clients, HTTP and, where it is switched on, MCP.

No call rests on another: each carries the recipes of its adapters, and nothing is kept between them.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import gradio as gr

from hyperlora.errors import UserError, sentence
from hyperlora.model import Model
from hyperlora.recipe import Recipe
from hyperlora.text import check_text
from hyperlora.ui.session import Shelved, check_strength, one_line
from hyperlora.ui.settings import Settings, read_settings
from hyperlora.ui.words import REDRAW


class Api:
    """The endpoints over one model; their docstrings and hints are what programs are told of them, a parameter a line.

    Mistakes come as `gr.Error`, which Gradio passes on.
    """

    def __init__(self, model: Model):
        self.model = model
        self._archive: gr.DownloadButton | None = None

    def adapt(self, recipe: str | dict) -> dict:
        """Makes a LoRA adapter for the language model from a description of a task, in a second or so. Gives its
        recipe, which stands for it in further calls, its rank, its norm, the training description that is nearest,
        and a notice, empty or a sentence, where the adapter may not do what was asked.

        Parameters:
            recipe: what the model should do, in a sentence; or a recipe, as an object or its JSON
        """
        with told():
            if (shelved := read_recipe(recipe)) is None:
                raise UserError("The description is empty: say in a sentence what the model should do.")
            adapter = self.model.of(shelved)
            notices = adapter.notice, self.model.pipe.hyperlora.norm_notice(adapter)
            return {
                "recipe": json.loads(replace(shelved.recipe, strength=shelved.strength).to_json()),
                "rank": adapter.rank,
                "norm": adapter.norm(),
                "nearest": adapter.nearest[0] if adapter.nearest else "",
                "notice": " ".join(filter(None, notices)),
            }

    def chat(
        self,
        messages: str | list[dict[str, str]],
        recipe: str | dict = "",
        strength: float = 1.0,
        describe: bool | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: list[str] | None = None,
        seed: int | None = None,
    ) -> str:  # again and again, each time with more of it
        """Answers a message with the language model under an adapter. The answer streams: all of it so far, each time.

        Parameters:
            messages: a message; or a list of {"role", "content"}: system, user, assistant, who may begin the answer
            recipe: of the adapter, or a description of the task, of which one is made; none is the base model
            strength: of the adapter, times the recipe's own; from -4 to 4, where 0 is the base model
            describe: whether the prompt holds the description too; if not given, as in the adapter's training
            max_tokens: of the answer, at most
            temperature: from 0, which takes the likeliest token each time, to 5
            top_p: from 0.01 to 1
            repetition_penalty: from 0.5 to 2
            stop: texts before which the answer ends
            seed: of what is sampled
        """
        with told():
            shelved = read_recipe(recipe, strength)
            asked = read_options(max_tokens, temperature, top_p, repetition_penalty, stop, seed)
            chat, options = self._allow(messages, asked)
            adapter = self.model.of(shelved) if shelved else None
            stream, _ = self.model.chat(chat, adapter, describe, options)
            try:
                answer, told_at = "", 0.0
                for piece in stream:
                    answer += piece
                    if time.monotonic() - told_at > REDRAW:
                        told_at = time.monotonic()
                        yield answer
                yield answer
            finally:
                stream.stop()  # where the client has gone

    def compare(
        self,
        messages: str | list[dict[str, str]],
        left: str | dict,
        right: str | dict = "",
        describe: bool | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: list[str] | None = None,
        seed: int | None = None,
    ) -> dict:
        """Answers a message twice, under two adapters, or under one and with the base model; gives both answers, by
        the names left and right.

        Parameters:
            messages: a message; or a list of {"role", "content"}: system, user, assistant, who may begin the answers
            left: the recipe of an adapter, or a description of the task
            right: another; none is the base model
            describe: whether the prompts hold the descriptions too; if not given, as in the adapters' training
            max_tokens: of each answer, at most
            temperature: from 0, which takes the likeliest token each time, to 5
            top_p: from 0.01 to 1
            repetition_penalty: from 0.5 to 2
            stop: texts before which the answers end
            seed: of what is sampled
        """
        with told():
            sides = [read_recipe(recipe) for recipe in (left, right)]
            asked = read_options(max_tokens, temperature, top_p, repetition_penalty, stop, seed)
            chat, options = self._allow(messages, asked)
            self.model.limits.take("chats")  # the second one
            adapters = [self.model.of(shelved) if shelved else None for shelved in sides]
            chats = [self.model.fit(chat, adapter, describe, options) for adapter in adapters]
            answers = self.model.pipe.chat_batch(chats, adapters, describe=describe, **options)
            return dict(zip(("left", "right"), answers, strict=True))

    def export(self, recipe: str | dict, strength: float = 1.0) -> gr.FileData:
        """Gives an adapter as a file: a zip that plain PEFT reads, with a card that says how.

        Parameters:
            recipe: of the adapter, or a description of the task
            strength: of the adapter, times the recipe's own; the weights in the zip are at that strength
        """
        with told():
            if (shelved := read_recipe(recipe, strength)) is None:
                raise UserError("Without an adapter there is nothing to export: give a description, or a recipe.")
            with tempfile.TemporaryDirectory() as folder:
                path = self.model.export(self.model.of(shelved), folder)
                # Where Gradio serves it from, and takes it away from after an hour.
                served = self._archive.move_resource_to_block_cache(path)
            return gr.FileData(path=served, orig_name=path.name).model_dump()

    def _allow(self, messages: object, asked: Settings) -> tuple[list[dict[str, str]], dict]:
        """The messages and options of a chat that this visitor may have now."""
        from hyperlora.prompt import check_messages

        chat = check_messages(messages)
        return chat, self.model.allow(max((message["content"] for message in chat), key=len), asked.options)

    def build(self, chats: dict[str, object], mcp: bool) -> None:
        """The endpoints, in the layout that is open; `chats` are the limits of all chats. Those that are listed are
        also the tools of MCP, among which is none that gives a file."""
        self._archive = gr.DownloadButton(visible="hidden")
        gr.api(self.adapt)
        gr.api(self.chat, **chats)
        gr.api(self.compare, **chats)
        gr.api(self.export, api_visibility="undocumented" if mcp else "public")


@contextmanager
def told() -> Iterator[None]:
    """Inside, an error is one that a program is told as a sentence."""
    try:
        yield
    except Exception as error:
        raise gr.Error(sentence(error), print_exception=False) from error


def read_recipe(given: object, strength: object = 1) -> Shelved | None:
    """A description, or a recipe, which may be a JSON text; None for none. Raises `UserError` for anything else."""
    if given is None or given == "":
        check_strength(strength)
        return None
    if isinstance(given, dict):
        recipe = Recipe.from_json(json.dumps(given))
    elif check_text(given, "The recipe").lstrip().startswith("{"):
        recipe = Recipe.from_json(given)
    else:
        recipe = Recipe(one_line(given))
    return Shelved(replace(recipe, strength=1), "", check_strength(recipe.strength * check_strength(strength)))


def read_options(
    max_tokens: object, temperature: object, top_p: object, repetition_penalty: object, stop: object, seed: object
) -> Settings:
    """As the page's own, which are texts; None is the model's own. Raises `UserError` for what no setting is."""
    numbers = {
        "max_new_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    typed = {name: str(value) for name, value in numbers.items() if value is not None}
    if not isinstance(stop, list | None):
        raise UserError("The stop strings must be a list of texts.")
    lines = [check_text(each, "A stop string").replace("\n", r"\n") for each in stop or []]
    return read_settings(json.dumps(typed | {"stop": "\n".join(lines)}))
