"""Two answers to one message, side by side: two adapters, or one against the base model."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING

import gradio as gr

from hyperlora.errors import UserError, sentence
from hyperlora.model import Model
from hyperlora.text import check_text
from hyperlora.ui.session import SIDES, read_side
from hyperlora.ui.settings import read_settings
from hyperlora.ui.words import ENDS, REDRAW, answer_html, js, status

if TYPE_CHECKING:
    from hyperlora.chat import ChatStream
    from hyperlora.lora import Adapter
    from hyperlora.pipe import Chat

WHO = """<label>Left <select id="left_by" aria-label="Left"></select></label>
<label>Right <select id="right_by" aria-label="Right"></select></label>
<label title="The two are shuffled, and unnamed until you have voted.">
<input type="checkbox" id="blind"> Guess</label>"""
VOTE = """<div role="group" aria-label="Your vote">
<button type="button" id="left_wins" disabled>Left is better</button>
<button type="button" id="same" disabled>Both alike</button>
<button type="button" id="right_wins" disabled>Right is better</button>
</div><div id="verdict" role="status"></div>"""
MOMENT = 0.2  # seconds that one side waits for the other


class Compare:
    """The answers that are written now, one for each side of each visitor's page."""

    def __init__(self, model: Model):
        self.model = model
        self._streams: dict[str, ChatStream] = {}
        self._waiting: dict[str, tuple[Chat, Adapter | None, Future]] = {}
        """The first side of each round, until the second comes."""
        self._lock = threading.Lock()

    def answer(self, side: object, message: object, seed: object, request: gr.Request) -> Iterator[str]:
        """-> one of two answers to a message, as HTML; again and again while it streams."""
        visitor, answer = None, ""
        try:
            pipe = self.model.pipe
            which, shelved, describe, prompted, typed = read_side(side)
            settings = read_settings(typed)
            question = {"role": "user", "content": check_text(message, "The message")}
            messages = settings.messages([question], settings.begin)
            adapter = self.model.of(shelved) if shelved else None
            if prompted:
                messages, adapter = pipe.prepare(messages, adapter, describe=True), None
            options = {"seed": seed, "describe": describe} | self.model.allow(question["content"], settings.options)
            stream = self._begin(f"{request.session_hash} {seed!r}"[:200], messages, adapter, options)
            visitor = f"{request.session_hash} {which}"
            if before := self._streams.get(visitor):
                before.stop()  # asked again meanwhile
            self._streams[visitor] = stream
            answer, drawn = settings.begin, 0.0
            for piece in stream:
                answer += piece
                if time.monotonic() - drawn > REDRAW:
                    drawn = time.monotonic()
                    yield _html(answer, "", pipe.markdown)
            yield _html(answer, stream.finish_reason, pipe.markdown)
        except Exception as error:
            yield _html(answer, "error", False) * bool(answer) + status("error", sentence(error))
        finally:
            if visitor is not None:
                stream.stop()
                if self._streams.get(visitor) is stream:
                    del self._streams[visitor]

    def _begin(self, pair: str, messages: "Chat", adapter: "Adapter | None", options: dict) -> "ChatStream":
        """The stream of one side. Both begin together, since two prompts are read in much less than twice the time of
        one; a side goes alone if the other does not come in a moment, or the two cannot be asked together."""
        pipe, mine = self.model.pipe, (messages, adapter, Future())
        with self._lock:
            if (other := self._waiting.pop(pair, None)) is None:
                self._waiting[pair] = mine
        if other is not None:
            streams: list[ChatStream | None] = [None, None]
            try:
                with suppress(UserError):  # which each then hears on its own
                    streams = pipe.chat_batch([other[0], messages], [other[1], adapter], stream=True, **options)
            finally:
                other[2].set_result(streams[0])
            found = streams[1]
        else:
            with suppress(TimeoutError):
                mine[2].result(MOMENT)
            with self._lock:
                if alone := self._waiting.get(pair) is mine:
                    del self._waiting[pair]
            found = None if alone else mine[2].result()
        return found or pipe.chat(messages, adapter=adapter, stream=True, **options)

    async def stop(self, request: gr.Request) -> None:
        """End both answers of this visitor's."""
        for side in SIDES:
            if stream := self._streams.get(f"{request.session_hash} {side}"):
                stream.stop()

    def build(self, limits: dict[str, object]) -> None:
        """The mode, in the layout that is open, and its events; `limits` are those of all chats."""
        plain = {"js_on_load": None, "apply_default_css": False}
        side, seed = gr.Textbox("", visible="hidden"), gr.Number(visible="hidden")
        asks = [gr.Button(visible="hidden", elem_id=f"ask_{side}") for side in SIDES]
        with gr.Column(elem_id="compare", elem_classes="mode"):
            gr.HTML(WHO, **plain, elem_id="who_answers")
            with gr.Row(elem_id="answers"):
                answers = [gr.HTML("", elem_id=side) for side in SIDES]
            gr.HTML(VOTE, **plain, elem_id="vote")
            question = gr.Textbox(
                label="Message to both",
                show_label=False,
                placeholder="A message to both",
                submit_btn="Ask both",
                max_lines=6,
                elem_id="question",
            )
            halt = gr.Button("Stop", size="sm", elem_id="halt")
        question.submit(None, None, None, js=js("askBoth"))
        for which, ask, answer in zip(SIDES, asks, answers, strict=True):
            asked = ask.click(  # an event of its own each: Gradio answers those of one event one after the other
                self.answer,
                [side, question, seed],
                [answer],
                js=f"(side, message) => hyperlora.askSide('{which}', message)",
                api_visibility="private",
                **limits,
            )
            asked.success(None, js=js("sideAnswered"))
            asked.failure(None, js=js("sideFailed"))  # also where the server went
        halt.click(self.stop, None, None, api_visibility="private", show_progress="hidden", queue=False)


def _html(answer: str, end: str, markdown: bool) -> str:
    """An answer which says why it is not whole; `end` is empty while it is written."""
    shown = answer_html(answer, markdown, "(no text)" if end else "…")
    return shown + (status("done", ENDS[end].capitalize() + ".") if end not in ("", "stop") else "")
