"""From examples to descriptions: the likeliest of the training's, and which of the examples each adapter gets right."""

import json
import logging
import math
import time
from collections.abc import Iterator
from html import escape
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

import gradio as gr

from hyperlora.describe import ask_for, parse_descriptions
from hyperlora.endpoint import Host, endpoint
from hyperlora.errors import UserError, sentence
from hyperlora.marking import same_answer
from hyperlora.model import Model
from hyperlora.table import Table
from hyperlora.ui.session import read_file, read_object
from hyperlora.ui.words import js, source_html

if TYPE_CHECKING:  # torch takes seconds to import, and the page opens before that
    from hyperlora.suggest import Suggestion

Example = tuple[str, str]  # input, output
COUNT, MAX_RUNS = 5, 3  # descriptions; searches at a time, of all visitors together
ASKED, PATIENCE = 10, 30.0  # of a host or the model itself; seconds that are waited for them
WRITTEN = 300  # tokens of the model's
SETTLED = 4  # rounds that one has to be the best to be tried before the end
SHOWN = 200  # characters of a text that the page is given to show
NOTHING = (
    "This hypernetwork came without the descriptions that it was trained with, so there are none to choose from: "
    "describe the task in your own words."
)
PLACE = "house =&gt; houses&#10;box =&gt; boxes&#10;city =&gt; cities"
PAIRS = f"""<p>Give two to twenty examples of what the model should do. Of the descriptions of its training, and of
what a model that chats writes itself, the {COUNT} come that make their outputs likeliest.</p>
{source_html(6, "Examples, a line each", "a line each: the input, then a tab or “ =&gt; ”, then the output", PLACE)}"""
ASK = '<label id="ask_host"><input type="checkbox"> Ask {} for descriptions too: the examples are sent there</label>'
FOUND = """<div class="run"><button type="button" id="find" class="go" disabled>Find descriptions</button>
<button type="button" id="stop_find">Stop</button>
<button type="button" id="leave_pairs">Back to the conversation</button></div>
<div id="found_said" role="status"></div><ol id="found"></ol>"""
log = logging.getLogger(__name__)


class Examples:
    """The searches that run now, one for each visitor's page; `host` is asked too where the visitor agrees."""

    def __init__(self, model: Model, host: Host | None = None):
        self.model, self.host = model, host
        self._runs: dict[str | None, SimpleQueue] = {}
        self._lock = Lock()

    def find(self, given: object, request: gr.Request) -> Iterator[str]:
        """-> JSON, again and again: what is "found" so far, the best first, whether examples were "held" out for the
        "marks", and at the "end" how it ended, with a "notice" if there is one; or the "error".

        Each has its "description", the "likelihood" of a token of the examples' outputs under its adapter (geometric
        mean), and, once it has been tried, "marks": [input, answer, output, right].
        """
        from hyperlora.suggest import split, suggest

        visitor, ended = request.session_hash, SimpleQueue()
        with self._lock:
            here, many = visitor in self._runs, len(self._runs) >= MAX_RUNS
            if not (here or many):
                self._runs[visitor] = ended
        if here or many:
            busy = "A search runs already: wait for its end, or stop it."
            yield json.dumps({"error": busy if here else "Others are searching: try again in a minute."})
            return
        best: list[Suggestion] = []
        marks: dict[str, list[tuple]] = {}
        held: list[Example] = []
        shown = held
        gone, notice = Event(), ""

        def told(**more: str) -> str:
            found = []
            for each in best:
                found.append({"description": each.description, "likelihood": math.exp(-each.loss)})
                if each.description in marks:
                    found[-1]["marks"] = marks[each.description]
            return json.dumps({"found": found, "held": held != shown} | more)

        try:
            pipe = self.model.pipe
            shown, held = split(read_pairs(read_file(given)))
            options = self.model.allow(max((text for pair in (*shown, *held) for text in pair), key=len), {})
            asked = self.host is not None and read_object(given).get("ask") is True
            ask = self._ask if asked else self._ask_model if pipe.multi_turn else None
            if not (pipe.hyperlora.descriptions or ask):
                raise UserError(NOTHING)
            answer: SimpleQueue[tuple[list[str], str]] = SimpleQueue()
            if ask:
                Thread(target=lambda: answer.put(ask(shown, gone)), daemon=True).start()
            else:
                answer.put(([], ""))

            def written() -> Iterator[str]:
                """What the host or the model wrote, once it has: what is found among the training's comes meanwhile."""
                nonlocal notice
                until = time.monotonic() + PATIENCE
                while ended.empty() and time.monotonic() < until:
                    try:
                        texts, notice = answer.get(timeout=0.1)
                    except Empty:
                        continue
                    yield from texts
                    return
                if asked and ended.empty():
                    notice = f"{self.host.name} did not answer in time."

            rounds = 0  # that the best one has been the best
            for found in suggest(pipe, shown, written(), COUNT):
                rounds = rounds + 1 if best[:1] == found[:1] else 0
                best = found
                yield told()
                if rounds == SETTLED:
                    self._try(best[0].description, held, ended, marks, options)
                if not ended.empty():
                    break
            for each in best:
                self._try(each.description, held, ended, marks, options)
                yield told()
            yield told(end="done" if ended.empty() else "stopped", notice=notice)
        except Exception as error:
            yield told(error=sentence(error))
        finally:
            gone.set()
            del self._runs[visitor]

    def _ask(self, examples: list[Example], gone: Event) -> tuple[list[str], str]:
        """What the host writes, and a notice where it does not; once the visitor is `gone` it is not tried again."""
        try:
            [reply] = endpoint(self.host, gone)([ask_for(examples, ASKED)], 0)
            return parse_descriptions(reply.text)[:ASKED], ""
        except Exception as error:
            log.warning("The host could not be asked for descriptions: %s", error)
            return [], f"{self.host.name} could not be asked; the server's log says why."

    def _ask_model(self, examples: list[Example], gone: Event) -> tuple[list[str], str]:
        """What the base model writes itself; nothing where its context is too short for the question."""
        try:
            stream = self.model.pipe.chat(ask_for(examples, COUNT), stream=True, max_new_tokens=WRITTEN)
            for _ in stream:
                if gone.is_set():
                    stream.stop()
            return parse_descriptions(stream.text)[:ASKED], ""
        except UserError as error:
            log.info("The model was not asked for descriptions: %s", error)
        except Exception as error:
            sentence(error)  # for the log: the search goes on with what the training had
        return [], ""

    def _try(
        self,
        description: str,
        held: list[Example],
        ended: SimpleQueue,
        marks: dict[str, list[tuple]],
        options: dict[str, Any],
    ) -> None:
        """The marks of the description's adapter, where there are none yet; none where all is stopped."""
        if description in marks or not ended.empty():
            return
        pipe = self.model.pipe
        questions = [question for question, _ in held]
        answers = dict(pipe.chat_all(questions, pipe.adapt(description), ended=ended, **options))
        if len(answers) < len(held):
            ended.put(None)  # it was taken out there, and is still meant
            return
        marks[description] = [
            (
                question[:SHOWN],
                str(answers[i])[:SHOWN],
                output[:SHOWN],
                not isinstance(answers[i], UserError) and same_answer(answers[i], [output], question),
            )
            for i, (question, output) in enumerate(held)
        ]

    async def stop(self, request: gr.Request) -> None:
        """End this visitor's search; what has been found stays."""
        if ended := self._runs.get(request.session_hash):
            ended.put(None)

    def build(self, limits: dict[str, object]) -> None:
        """The mode, in the layout that is open, and its events; `limits` are those of all chats."""
        plain = {"js_on_load": None, "apply_default_css": False}
        given, found = (gr.Textbox("", visible="hidden") for _ in range(2))
        find, stop = (gr.Button(visible="hidden", elem_id=f"press_{name}") for name in ("find", "stop_find"))
        with gr.Column(elem_id="pairs", elem_classes="mode"):
            ask = ASK.format(escape(self.host.name)) if self.host else ""
            gr.HTML(PAIRS + ask + FOUND, **plain)
        finding = find.click(self.find, [given], [found], js=js("pairsGiven"), api_visibility="private", **limits)
        found.change(None, [found], None, js=js("pairsFound", "text"))
        for over in (finding.then, finding.failure):  # the latter where the server goes
            over(None, [found], [found], js=js("pairsEnded", "text"))
        stop.click(self.stop, None, None, api_visibility="private", show_progress="hidden", queue=False)


def read_pairs(table: Table) -> list[Example]:
    """The inputs and outputs of a table; `UserError` where it is not known which they are, or one is blank."""
    inputs, outputs = table.guess()
    if outputs is None:
        raise UserError("An example is an input and its output: put a tab or “ => ” between them in each line.")
    pairs = list(zip(table.column(inputs), table.column(outputs), strict=True))
    for number, pair in enumerate(pairs, 1):
        if not all(text.strip() for text in pair):
            side = "output" if pair[0].strip() else "input"
            raise UserError(f"Example {number} has no {side}: write it, or leave the example out.")
    return pairs
