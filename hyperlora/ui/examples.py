"""From examples to descriptions: the likeliest of the training's, and which of the examples each adapter gets right."""

import json
import math
from collections.abc import Iterator
from queue import SimpleQueue

import gradio as gr

from hyperlora.errors import UserError
from hyperlora.marking import same_answer
from hyperlora.suggest import LEAST, MOST, Example, split, suggest
from hyperlora.table import Table
from hyperlora.ui.model import Model
from hyperlora.ui.session import read_file
from hyperlora.ui.words import js, sentence, source_html

COUNT = 5  # descriptions
SHOWN = 200  # characters of a text that the page is given to show
NOTHING = (
    "This hypernetwork came without the descriptions that it was trained with, so there are none to choose from: "
    "describe the task in your own words."
)
PLACE = "house =&gt; houses&#10;box =&gt; boxes&#10;city =&gt; cities"
PAIRS = f"""<p>Give {LEAST} to {MOST} examples of what the model should do. Of the descriptions of its training, the
{COUNT} come that make their outputs likeliest.</p>
{source_html(6, "Examples, a line each", "a line each: the input, then a tab or “ =&gt; ”, then the output", PLACE)}
<div class="run"><button type="button" id="find" class="go" disabled>Find descriptions</button>
<button type="button" id="stop_find">Stop</button>
<button type="button" id="leave_pairs">Back to the conversation</button></div>
<div id="found_said" role="status"></div><ol id="found"></ol>"""


class Examples:
    """The searches that run now, one for each visitor's page."""

    def __init__(self, model: Model):
        self.model = model
        self._runs: dict[str | None, SimpleQueue] = {}

    def find(self, given: object, request: gr.Request) -> Iterator[str]:
        """-> JSON, again and again: what is "found" so far, the best first, whether examples were "held" out for the
        "marks", and at the "end" how it ended; or the "error".

        Each has its "description", the "likelihood" of a token of the examples' outputs under its adapter (geometric
        mean), and, once it has been tried, "marks": [input, answer, output, right].
        """
        visitor, ended = request.session_hash, SimpleQueue()
        if self._runs.setdefault(visitor, ended) is not ended:
            yield json.dumps({"error": "A search runs already: wait for its end, or stop it."})
            return
        found: dict[str, object] = {"found": [], "held": False}
        try:
            pipe = self.model.pipe
            shown, held = split(read_pairs(read_file(given)))
            if not pipe.hyperlora.descriptions:
                raise UserError(NOTHING)
            found["held"] = held != shown
            for suggestions in suggest(pipe, shown, count=COUNT):
                found["found"] = [
                    {"description": each.description, "likelihood": math.exp(-each.loss)} for each in suggestions
                ]
                yield json.dumps(found)
                if not ended.empty():
                    break
            for each in found["found"]:
                if ended.empty() and (marks := self._try(each["description"], held, ended)):
                    each["marks"] = marks
                    yield json.dumps(found)
            yield json.dumps(found | {"end": "done" if ended.empty() else "stopped"})
        except Exception as error:
            yield json.dumps(found | {"error": sentence(error)})
        finally:
            del self._runs[visitor]

    def _try(self, description: str, held: list[Example], ended: SimpleQueue) -> list[tuple] | None:
        """The marks of the description's adapter; None where that was stopped."""
        pipe = self.model.pipe
        answers = dict(pipe.chat_all([question for question, _ in held], pipe.adapt(description), ended=ended))
        if len(answers) < len(held):
            ended.put(None)  # it was taken out there, and is still meant
            return None
        marks = []
        for i, (question, output) in enumerate(held):
            right = not isinstance(answers[i], UserError) and same_answer(answers[i], [output], question)
            marks.append((question[:SHOWN], str(answers[i])[:SHOWN], output[:SHOWN], right))
        return marks

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
            gr.HTML(PAIRS, **plain)
        finding = find.click(self.find, [given], [found], js=js("pairsGiven"), api_visibility="private", **limits)
        found.change(None, [found], None, js=js("pairsFound", "text"))
        finding.then(None, [found], None, js=js("pairsEnded", "text"))
        stop.click(self.stop, None, None, api_visibility="private", show_progress="hidden", queue=False)


def read_pairs(table: Table) -> list[Example]:
    """The inputs and outputs of a table; `UserError` where it is not known which they are, or one is blank."""
    inputs, outputs = table.guess()
    if outputs is None:
        raise UserError("An example is an input and its output: put a tab or “ => ” between them in each line.")
    pairs = list(zip(table.column(inputs), table.column(outputs), strict=True))
    for number, pair in enumerate(pairs, 1):
        if not all(text.strip() for text in pair):
            raise UserError(
                f"Example {number} lacks its {'output' if pair[0].strip() else 'input'}: write it, or drop it."
            )
    return pairs
