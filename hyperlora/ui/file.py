"""A file of messages through an adapter: answers beside its rows as they come, and the file with them."""

import json
import time
from collections.abc import Iterator
from queue import SimpleQueue

import gradio as gr

from hyperlora.errors import UserError
from hyperlora.marking import same_answer
from hyperlora.table import Table, write_table
from hyperlora.ui.model import Model
from hyperlora.ui.session import read_adapter, read_file, read_object
from hyperlora.ui.words import js, sentence, source_html

MAX_RUNS = 3  # files that are answered at once: as many rows wait for the engine as it lets wait
FIRST = 5  # rows that are shown before they are answered
SHOWN = 500  # characters of a cell that the page is given to show
TELL = 0.2  # seconds between two updates of the page, at least
PASTE = "Or paste messages, a line each; an answer that is expected comes after a tab or “ =&gt; ”."
SOURCE = source_html(3, "Messages, a line each", "CSV, TSV, JSON lines, or a message a line", PASTE)
FILE = f"""{SOURCE}
<div id="columns"><label>Messages <select id="messages_by" aria-label="Messages"></select></label>
<label>Expected <select id="answers_by" aria-label="Expected"></select></label></div>
<div class="run"><button type="button" id="run_file" class="go" disabled>Run</button>
<button type="button" id="stop_file">Stop</button>
<button type="button" id="save_file" disabled>Download</button>
<span id="file_by"></span></div>
<progress id="file_done" aria-label="Rows answered" value="0"></progress>
<div id="file_state"></div><div id="file_said" role="status"></div>
<div id="rows" role="region" aria-label="Rows and answers" tabindex="0"></div>
<label id="amiss"><input type="checkbox"> Only those that are wrong or failed</label>"""


class File:
    """The files that are answered now, one for each visitor's page."""

    def __init__(self, model: Model):
        self.model = model
        self._runs: dict[str | None, SimpleQueue] = {}

    def read(self, given: object) -> str:
        """-> JSON: of a file its "columns", how many "rows" it has, the "first" ones, and which columns are "messages"
        and "answers", as far as can be guessed; or the "error" in it."""
        try:
            table = read_file(given)
            messages, answers = table.guess()
            first = [[cell[:SHOWN] for cell in row] for row in table.rows[:FIRST]]
            found = {"columns": table.columns, "rows": len(table.rows), "first": first}
            return json.dumps(found | {"messages": messages, "answers": answers})
        except Exception as error:
            return json.dumps({"error": sentence(error)})

    def run(self, given: object, asked: object, request: gr.Request) -> Iterator[str]:
        """-> lines of JSON, more and more of them: {"rows", "header"}, then a list a row as it is answered; at the end
        {"end"}, "done" or "stopped", or {"error"}.

        A row is its number, message, answer, expected answer, whether it is right (None: not to be told), what is wrong
        with the row, and it all as a line of CSV.
        """
        visitor, text = request.session_hash, ""
        ended: SimpleQueue = SimpleQueue()
        if self._runs.setdefault(visitor, ended) is not ended:
            yield json.dumps({"error": "A file is being answered already: wait for its end, or stop it."}) + "\n"
            return
        try:
            if len(self._runs) > MAX_RUNS:
                raise UserError(f"{MAX_RUNS} files of others are being answered: try again in a few minutes.")
            table, item = read_file(given), read_object(asked)
            questions = table.column(item.get("messages"))
            wanted = table.column(item["answers"]) if item.get("answers") else [""] * len(questions)
            shelved = read_adapter(item.get("adapter"))
            adapter = self.model.of(shelved) if shelved else None
            header = _csv(table, None)
            text += json.dumps({"rows": len(questions), "header": header}) + "\n"
            yield text
            done, told, describe = 0, time.monotonic(), item.get("describe") is True
            answers = self.model.pipe.chat_all(questions, adapter, describe=describe, ended=ended, seed=0)
            for i, answer in answers:
                done += 1
                answer, error = ("", str(answer)) if isinstance(answer, UserError) else (answer, "")
                right = same_answer(answer, [wanted[i]], questions[i]) if wanted[i].strip() and not error else None
                line = _csv(table, i, answer, right, error)[len(header) :]
                shown = [cell[:SHOWN] for cell in (questions[i], answer, wanted[i])]
                text += json.dumps([i, *shown, right, error, line]) + "\n"
                if time.monotonic() - told > TELL:
                    told = time.monotonic()
                    yield text
            yield text + json.dumps({"end": "done" if done == len(questions) else "stopped"}) + "\n"
        except Exception as error:
            yield text + json.dumps({"error": sentence(error)}) + "\n"
        finally:
            del self._runs[visitor]

    async def stop(self, request: gr.Request) -> None:
        """End what is answered for this visitor."""
        if ended := self._runs.get(request.session_hash):
            ended.put(None)

    def build(self, limits: dict[str, object]) -> None:
        """The mode, in the layout that is open, and its events; `limits` are those of all chats."""
        plain = {"js_on_load": None, "apply_default_css": False}
        quick = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False, "queue": False}
        given, asked, read, rows = (gr.Textbox("", visible="hidden") for _ in range(4))
        look, run, stop = (gr.Button(visible="hidden", elem_id=f"press_{name}") for name in ("look", "run", "stop"))
        with gr.Column(elem_id="file", elem_classes="mode"):
            gr.HTML(FILE, **plain)
        looked = look.click(self.read, [given], [read], js=js("fileGiven"), trigger_mode="always_last", **quick)
        looked.success(None, [read], None, js=js("fileRead", "text"))
        running = run.click(self.run, [given, asked], [rows], js=js("fileAsked"), api_visibility="private", **limits)
        rows.change(None, [rows], None, js=js("rowsCame", "text"))
        for over in (running.then, running.failure):  # the latter where the server goes
            over(None, [rows], None, js=js("fileEnded", "text"))
        stop.click(self.stop, None, None, **quick)


def _csv(table: Table, i: int | None, answer: str = "", right: bool | None = None, error: str = "") -> str:
    """The first line of the file with answers, and row `i` of it where that is given."""
    rows = [] if i is None else [table.rows[i]]
    added = {"answer": answer, "right": {True: "yes", False: "no", None: ""}[right], "error": error}
    return write_table(Table(table.columns, rows), {name: [cell] * len(rows) for name, cell in added.items()})
