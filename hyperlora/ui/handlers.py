"""What the page does on each event. A mistake becomes one sentence on the page, anything unexpected goes to the log."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from hyperlora.errors import UserError, sentence
from hyperlora.hub import gigabytes
from hyperlora.model import Model
from hyperlora.presets import load_examples
from hyperlora.recipe import Recipe
from hyperlora.text import check_text
from hyperlora.ui.documents import card, readme
from hyperlora.ui.markdown import to_html
from hyperlora.ui.session import KEPT, MAX_OTHERS, Turn, messages_of, one_line, read_adapter, read_conversation, write
from hyperlora.ui.settings import check, read_settings
from hyperlora.ui.words import ENDS, REDRAW, status

if TYPE_CHECKING:
    from hyperlora.chat import ChatStream
    from hyperlora.lora import Adapter
    from hyperlora.pipe import Pipeline

NO_ADAPTER, LOADING, INSTEAD = "No adapter", "Loading the model…", "Use a small model instead"
# For the chat, the turn, the message box, Retry, Undo, Clear and who answers; what yields nothing would empty them.
SKIP = (gr.skip(),) * 7
NEW, AGAIN, ON = "new", "again", "on"  # a message: a new one, the last one once more, or its answer goes on
SAMPLED, CONTINUED = " · sampled", " · continued by "
OTHER = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}  # where the likeliest answer has been given already
SAVE = 1.0  # seconds between two updates of what the page keeps of a streamed answer
log = logging.getLogger(__name__)


def verbatim(text: str) -> dict[str, str]:
    """A part of a Chatbot message that is seen as it is: the Chatbot takes the indentation from a plain string, and
    reads HTML even where its Markdown is off."""
    return {"type": "text", "text": escape(text).replace("\r", "&#13;")}


def bubbles(turns: list[Turn], busy: bool = False, first: int = 0) -> list[dict]:
    """The turns, of which the page counts the first as `first`, as Chatbot messages, answers in Markdown as HTML."""
    earlier = f'<div class="missed">Older messages ({first}) are kept, and not shown.</div>'
    messages = [{"role": "assistant", "content": [{"type": "text", "text": earlier}]}] if first else []
    for number, turn in enumerate(turns, first):
        messages.append({"role": "user", "content": [verbatim(turn.question)]})
        written = busy and turn is turns[-1]
        answer = verbatim(turn.answer if turn.answer.strip() else "…" if written else "(no text)")
        if turn.markdown is True and turn.answer.strip() and (html := to_html(turn.answer)):
            answer = {"type": "text", "text": html}
        messages.append(
            {"role": "assistant", "content": [answer, {"type": "text", "text": caption(turn, number, written)}]}
        )
    return messages


def caption(turn: Turn, number: int, written: bool = False) -> str:
    """What is under an answer, as HTML: who gave it, how fast and why it is not whole, and what can be done with it.

    Of that the page shows a line; its title is the whole. Gradio lets a button keep its title and its value, which is
    the number of the turn.
    """
    end = ENDS.get(turn.end, turn.end) if not written and turn.end != "stop" else ""
    by, pace = f"{turn.by} · {end}" if end else turn.by, f"{turn.speed:.3g} tokens/s" if turn.speed else ""
    whole = " · ".join(filter(None, (by, pace, "ended by itself" if turn.end == "stop" else "")))
    parts = [f'<span class="by">{escape(by)}</span>', f'<span class="pace">{pace}</span>' * bool(pace)]
    if not written:
        place, last = turn.place, len(turn.others)
        if last:
            parts += [_act("previous", number, "The answer before", off=place == 0)]
            parts += [f'<span class="place">{place + 1}/{last + 1}</span>']
            parts += [_act("next", number, "The next answer", off=place == last)]
        if turn.end != "stop" and turn.answer.strip():
            parts.append(_act("on", number, "Let the answer go on", "Continue"))
        parts += [_act("copy", number, "Copy the answer"), _act("edit", number, "Edit the message")]
    missed = ""
    if turn.missed:
        what = "The first message was" if turn.missed == 1 else f"The first {turn.missed} messages were"
        missed = f'<div class="missed">{what} not read for this answer: the model cannot take in more at once.</div>'
    return f'{missed}<div class="caption" title="{escape(whole)}">{"".join(parts)}</div>'.replace("\r", "&#13;")


def _act(act: str, number: int, title: str, text: str = "", off: bool = False) -> str:
    more = f'value="{number}" title="{title}"{" disabled" * off}'
    return f'<button type="button" class="act {act}" {more}>{text}</button>'


def about(pipe: "Pipeline") -> str:
    """Which model answers, what it can do and what not: a line of HTML that opens to more."""
    if pipe.preset is None or not pipe.preset.summary:
        base, hyperlora = pipe.adapted.model.name_or_path, pipe.hyperlora.name
        return escape(f"{Path(base).name} answers; adapters come from {hyperlora}.")
    line, more = escape(pipe.preset.summary), escape(pipe.preset.description)
    return f"<details><summary>{line}</summary><p>{more}</p></details>"


def progress(done: float, size: float, seconds: float) -> str:
    """A download so far, as a line and a bar."""
    part = done / size if size else 0.0
    text = f"{gigabytes(done)} of {gigabytes(size)}" if size else "The download begins."
    if part > 0.01 and seconds > 5:
        minutes = seconds * (1 - part) / part / 60
        text += f", about {minutes:.0f} minutes left" if minutes >= 1.5 else ", about a minute left"
    return f'<p>{text}</p><div class="bar"><div style="width: {100 * part:.1f}%"></div></div>'


def _key(*parts: object) -> str:
    """The same for the same, in few characters."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


class Handlers:
    """The page's events over one model; each gives the new values of the components that it names."""

    def __init__(self, model: Model):
        self.model = model
        self._lock = threading.Lock()
        self._streams: dict[str | None, ChatStream | None] = {}
        """The answer that each visitor's page is given now; None until it begins."""

    async def ready(self, described: bool | None = None) -> tuple:
        """-> status, Generate, message box, about, line, describe, examples: their texts and chips, the box that shows
        the first, timer. Asked every second until that is there.

        `described` is what the visitor has chosen before the page was loaded again.
        """
        if not self.model.settled:
            return (gr.skip(),) * 9 + (gr.Timer(active=True),)
        try:
            pipe = self.model.pipe
        except UserError as error:
            return status("error", str(error)), *(gr.skip(),) * 8, gr.Timer(active=False)
        examples = self.examples(pipe)
        return (
            "",
            gr.Button("Generate", interactive=True),
            gr.Textbox(placeholder="Message", submit_btn="Send"),
            about(pipe),
            "" if pipe.multi_turn else "This model answers each message on its own; it does not see earlier ones.",
            pipe.describe if described is None else gr.skip(),
            json.dumps(examples),
            gr.Dataset(samples=[[example["description"]] for example in examples], visible=bool(examples)),
            gr.Textbox(placeholder=examples[0]["description"] if examples else ""),
            gr.Timer(active=False),
        )

    @staticmethod
    def examples(pipe: "Pipeline") -> list[dict[str, str]]:
        """The model's, each a description and a message; none where they cannot be read."""
        try:
            found = load_examples(pipe.preset.name if pipe.preset else None)
        except UserError as error:
            log.warning("The page goes on without examples: %s", error)
            return []
        return [{key: example[key] for key in ("description", "message")} for example in found]

    async def offer(self) -> tuple:
        """-> panel, its text, its two buttons, Generate, message box: a download that is asked for, or that runs."""
        question, download = self.model.question, self.model.download
        if self.model.settled:
            return gr.Column(visible=False), *(gr.skip(),) * 5
        if question is not None:
            question = escape(question).replace(" GB", "&nbsp;GB")
            text, other, waiting = f"<p>{question}</p>", INSTEAD, "Waiting for your choice…"
        elif download is not None:
            text, other, waiting = progress(*download), "Cancel", "Downloading the model…"
        else:
            return gr.Column(visible=False), *(gr.skip(),) * 3, gr.Button(LOADING), gr.Textbox(placeholder=LOADING)
        buttons = gr.Button(visible=question is not None), gr.Button(other)
        return gr.Column(visible=True), text, *buttons, gr.Button(waiting), gr.Textbox(placeholder=waiting)

    async def allow(self) -> None:
        self.model.answer(True)

    async def refuse(self) -> None:
        """No download, or no more of it: a smaller model."""
        self.model.answer(False)

    def read(self, name: object) -> str:
        """-> the card of the model that answers, or the README, as HTML."""
        try:
            return readme() if name == "readme" else card(self.model.pipe)
        except Exception as error:
            return f"<p>{escape(sentence(error))}</p>"

    def show(self, kept: object) -> tuple:
        """-> chat, Retry, Undo, Clear: a conversation that the page holds."""
        try:
            turns, unread = read_conversation(kept)
        except UserError as error:
            gr.Warning(escape(str(error)))
            turns, unread = [], 0
        return bubbles(turns, first=unread), *self._buttons(turns)

    def check(self, typed: object) -> str:
        """-> JSON: what is wrong with the settings that are typed, and what empty ones mean."""
        try:
            return check(typed, self.model.pipe)
        except Exception as error:
            return json.dumps({"wrong": {}, "default": {}, "hint": {"system": sentence(error)}})

    def generate(self, ordered: object) -> tuple[str, str]:
        """-> status, what was made: as the order is, and no description if it failed.

        An order is its number, a space, the description.
        """
        order = ""
        try:
            order, _, description = check_text(ordered, "The description").partition(" ")
            description = one_line(description)
            recipe = Recipe(description)
            known = self.model.has(recipe)
            started = time.perf_counter()
            adapter = self.model.adapter(recipe)
            milliseconds = (time.perf_counter() - started) * 1000
            notices = self._notices(adapter)
        except Exception as error:
            return status("error", sentence(error)), f"{order} "
        text = status("done", "Ready." if known else f"Made in {milliseconds:.0f} ms.") + notices
        # The page selects it, unless the visitor has selected another one, or pressed again, since.
        return text, f"{order} {description}"

    def select(self, chosen: object) -> str:
        """-> status: what there is to know of the selected adapter at its strength."""
        try:
            shelved = read_adapter(chosen)
            return self._notices(self.model.of(shelved)) if shelved else ""
        except Exception as error:
            return status("error", sentence(error))

    def share(self, chosen: object) -> str:
        """-> JSON: the "link" to an adapter of the shelf, as a URL's fragment, or the "error" that there is none."""
        try:
            if (shelved := read_adapter(chosen)) is None:
                raise UserError("Select an adapter first: without one there is nothing to share.")
            if any(leaf.upload for leaf in shelved.recipe.leaves):
                raise UserError("A link holds no weights, and this adapter was uploaded: export it, and send the zip.")
            recipe = replace(shelved.recipe, strength=shelved.strength)
            return json.dumps({"link": recipe.link(self.model.pipe.hyperlora.checkpoint)})
        except Exception as error:
            return json.dumps({"error": sentence(error)})

    def open_link(self, fragment: object) -> str:
        """-> JSON: the "description" that a link is to, and its "strength" or, of a blend, the "recipe"; or the "error"
        in it. Nothing is made yet."""
        try:
            recipe = Recipe.from_link(fragment, self.model.pipe.hyperlora.checkpoint)
            if any(leaf.upload for leaf in recipe.leaves):
                raise UserError("The link is to an uploaded adapter, whose weights are not in it: ask for its zip.")
            if recipe.blend:
                return json.dumps({"description": str(recipe), "recipe": json.loads(recipe.to_json())})
            return json.dumps({"description": one_line(recipe.description), "strength": recipe.strength})
        except Exception as error:
            return json.dumps({"error": sentence(error)})

    def _notices(self, adapter: "Adapter") -> str:
        notices = adapter.notice, self.model.pipe.hyperlora.norm_notice(adapter)
        return "".join(" " + status("notice", notice) for notice in notices if notice)

    def send(
        self,
        id: object,
        chosen: object,
        describe: object,
        kept: object,
        typed: object,
        message: object,
        request: gr.Request,
    ) -> Iterator[tuple]:
        """-> chat, turn, message box, Retry, Undo, Clear, who answers; again and again while the answer streams.

        `id` is the page's for the turn, `chosen` the adapter, `kept` the turns before and `typed` the settings, as the
        page holds them.
        """
        yield from self._answer(request.session_hash, NEW, id, chosen, describe, kept, typed, message)

    def retry(
        self, id: object, chosen: object, describe: object, kept: object, typed: object, request: gr.Request
    ) -> Iterator[tuple]:
        """Asks the last message again, of the adapter that is selected now: another answer beside those before."""
        yield from self._answer(request.session_hash, AGAIN, id, chosen, describe, kept, typed)

    def go_on(
        self, id: object, chosen: object, describe: object, kept: object, typed: object, request: gr.Request
    ) -> Iterator[tuple]:
        """Lets the last answer go on where it ended."""
        yield from self._answer(request.session_hash, ON, id, chosen, describe, kept, typed)

    def _answer(self, visitor: str | None, *asked: object) -> Iterator[tuple]:
        """One answer at a time for each visitor, however many tabs or clicks ask."""
        with self._lock:
            if free := visitor not in self._streams:
                self._streams[visitor] = None
        if not free:
            gr.Warning("Your last message is still being answered: wait for the end, or stop it.")
            yield SKIP
            return
        try:
            yield from self._stream(visitor, *asked)
        finally:
            # Also when the visitor has gone: Gradio closes this generator, and the engine need not go on.
            if stream := self._streams.pop(visitor):
                stream.stop()

    def _stream(
        self,
        visitor: str | None,
        asks: str,
        id: object,
        chosen: object,
        describe: object,
        kept: object,
        typed: object,
        message: object = None,
    ) -> Iterator[tuple]:
        off = (gr.Button(interactive=False),) * 3
        waiting = False
        try:
            pipe = self.model.pipe
            before, unread = read_conversation(kept)
            settings, earlier, last = read_settings(typed), before, None
            if asks != NEW:
                if not before:
                    raise UserError("There is no message to ask again.")
                *earlier, last = before
                message = last.question
            turn = Turn(check_text(message, "The message"), NO_ADAPTER, settings.begin, id=check_text(id, KEPT))
            turn.markdown, adapter = pipe.markdown, None
            if shelved := read_adapter(chosen):
                if not self.model.has(shelved.recipe):
                    waiting = True
                    box = gr.Textbox(interactive=False, submit_btn="Waiting for the adapter…")
                    yield *SKIP[:2], box, *off, gr.skip()
                adapter, turn.by = self.model.of(shelved), shelved.name
                turn.by += f" · strength {shelved.strength:g}" if shelved.strength != 1 else ""
                turn.by += " · description in the prompt" if describe else ""
            options = self.model.allow(turn.question, settings.options)
            sampled = options.get("do_sample", pipe.defaults.do_sample)
            how = "" if sampled else _key(shelved, bool(describe), settings)
            if asks == AGAIN:
                turn.others = [*last.others, last.how][-MAX_OTHERS:]
                turn.place = len(turn.others)
                if how and how in turn.others:
                    how, options = "", options | OTHER
                    turn.by += SAMPLED
            elif asks == ON:
                how, turn.answer, turn.others, turn.place = "", last.answer.rstrip(" "), last.others, last.place
                same = turn.by in (last.by.removesuffix(SAMPLED), last.by.rpartition(CONTINUED)[2])
                turn.by = last.by if same else last.by + CONTINUED + turn.by
            if "seed" in options:
                options["seed"] = (options["seed"] + turn.place) % 2**63
            messages = settings.messages(messages_of(earlier, turn.question, pipe.multi_turn), turn.answer)
            stream, missed = self.model.chat(messages, adapter, bool(describe), options)
            turn.missed = missed // 2 + unread if pipe.multi_turn else 0
        except Exception as error:
            gr.Warning(escape(sentence(error)))
            yield (*SKIP[:2], *self._idle(before)) if waiting else SKIP
            return
        self._streams[visitor] = stream  # in place before Stop appears, so that Stop works from the first moment on
        turns = [*earlier, turn]
        emptied = {"value": ""} if asks == NEW else {}
        box = gr.Textbox(**emptied, interactive=True, submit_btn=False, stop_btn="Stop")
        # A page that was open before this server was started names another model, perhaps.
        yield bubbles(turns, busy=True, first=unread), write(turn), box, *off, about(pipe)
        try:
            drawn, saved, began = 0.0, time.monotonic(), None
            for piece in stream:
                turn.answer += piece
                now = time.monotonic()
                began = began or now
                if now - drawn > REDRAW:
                    drawn, save = now, now - saved > SAVE
                    saved = now if save else saved
                    yield bubbles(turns, True, unread), write(turn) if save else gr.skip(), *SKIP[2:]
            turn.end = stream.finish_reason
            if began and stream.tokens > 1 and (seconds := time.monotonic() - began) > 0:
                turn.speed = (stream.tokens - 1) / seconds
            turn.how = how if turn.end in ("stop", "length") else ""
        except Exception as error:
            gr.Warning(escape(sentence(error)))
            turn.end = "error"
        yield bubbles(turns, first=unread), write(turn), *self._idle(turns)

    @staticmethod
    def _buttons(turns: list[Turn]) -> tuple[gr.Button, ...]:
        """-> Retry, Undo, Clear as they are when nothing is being written."""
        return (gr.Button(interactive=bool(turns)),) * 3

    def _idle(self, turns: list[Turn]) -> tuple:
        """-> message box, Retry, Undo, Clear as they are when nothing is being written; who answers."""
        return gr.Textbox(interactive=True, submit_btn="Send", stop_btn=False), *self._buttons(turns), gr.skip()

    async def stop(self, request: gr.Request) -> None:
        """End what this visitor is answered now."""
        if stream := self._streams.get(request.session_hash):
            stream.stop()
