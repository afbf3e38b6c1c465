"""A file of messages through an adapter: answers beside its rows as they come, and the file with them."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue

import gradio as gr

from hyperlora.errors import UserError, sentence
from hyperlora.marking import same_answer
from hyperlora.model import Model
from hyperlora.table import Table, write_table
from hyperlora.ui.session import read_adapter, read_file, read_object
from hyperlora.ui.words import js, source_html

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


@dataclass
class Run:
    """A file that is answered for a page."""

    ended: SimpleQueue = field(default_factory=SimpleQueue)
    """None in it ends the run."""
    taken: int = 0
    """Lines that the page has, and needs not be given again."""


class File:
    """The files that are answered now, one for each visitor's page."""

    def __init__(self, model: Model):
        self.model = model
        self._runs: dict[str | None, Run] = {}

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
        """-> lines of JSON, the first of which is how many are left out before the second; more and more of them come.

        They are {"rows", "header"}, then a list a row as it is answered, at the end {"end"}, "done" or "stopped", or
        {"error"}. A row is its number, message, answer, expected answer, whether it is right (None: not to be told),
        what is wrong with the row, and it all as a line of CSV. So nothing is lost where the page hears of every other
        text only, and nothing is sent again: of a text that begins as the last one Gradio sends what is new.
        """
        visitor, run = request.session_hash, Run()
        if self._runs.setdefault(visitor, run) is not run:
            yield _lines(0, [json.dumps({"error": "A file is being answered already: wait for its end, or stop it."})])
            return
        gone, lines = 0, []  # what the page has taken, and what not yet

        def told(*new: object) -> str:
            nonlocal gone
            lines.extend(map(json.dumps, new))
            taken = min(run.taken, len(lines) + gone)
            del lines[: max(0, taken - gone)]
            gone = max(gone, taken)
            return _lines(gone, lines)

        try:
            if len(self._runs) > MAX_RUNS:
                raise UserError(f"{MAX_RUNS} files of others are being answered: try again in a few minutes.")
            table, item = read_file(given), read_object(asked)
            questions = table.column(item.get("messages"))
            options = self.model.allow(max(questions, key=len, default=""), {})
            wanted = table.column(item["answers"]) if item.get("answers") else [""] * len(questions)
            shelved = read_adapter(item.get("adapter"))
            adapter = self.model.of(shelved) if shelved else None
            header = _csv(table, None)
            yield told({"rows": len(questions), "header": header})
            done, time_told, describe = 0, time.monotonic(), item.get("describe") is True
            options |= {"describe": describe, "ended": run.ended, "seed": 0}
            answers = self.model.pipe.chat_all(questions, adapter, **options)
            for i, answer in answers:
                done += 1
                answer, error = ("", str(answer)) if isinstance(answer, UserError) else (answer, "")
                right = same_answer(answer, [wanted[i]], questions[i]) if wanted[i].strip() and not error else None
                line = _csv(table, i, answer, right, error)[len(header) :]
                shown = [cell[:SHOWN] for cell in (questions[i], answer, wanted[i])]
                lines.append(json.dumps([i, *shown, right, error, line]))
                if time.monotonic() - time_told > TELL:
                    time_told = time.monotonic()
                    yield told()
            yield told({"end": "done" if done == len(questions) else "stopped"})
        except Exception as error:
            yield told({"error": sentence(error)})
        finally:
            del self._runs[visitor]

    async def stop(self, request: gr.Request) -> None:
        """End what is answered for this visitor."""
        if run := self._runs.get(request.session_hash):
            run.ended.put(None)

    async def take(self, taken: object, request: gr.Request) -> None:
        """The page has so many lines of its run."""
        if (run := self._runs.get(request.session_hash)) and type(taken) is int:
            run.taken = taken

    def build(self, limits: dict[str, object]) -> None:
        """The mode, in the layout that is open, and its events; `limits` are those of all chats."""
        plain = {"js_on_load": None, "apply_default_css": False}
        quick = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False, "queue": False}
        given, asked, read, rows = (gr.Textbox("", visible="hidden") for _ in range(4))
        look, run, stop, take = (
            gr.Button(visible="hidden", elem_id=f"press_{name}") for name in ("look", "run", "stop", "take")
        )
        taken = gr.Number(visible="hidden")
        with gr.Column(elem_id="file", elem_classes="mode"):
            gr.HTML(FILE, **plain)
        looked = look.click(self.read, [given], [read], js=js("fileGiven"), trigger_mode="always_last", **quick)
        looked.success(None, [read], None, js=js("fileRead", "text"))
        running = run.click(self.run, [given, asked], [rows], js=js("fileAsked"), api_visibility="private", **limits)
        rows.change(None, [rows], None, js=js("rowsCame", "text"))
        for over in (running.then, running.failure):  # the latter where the server goes
            over(None, [rows], [rows], js=js("fileEnded", "text"))
        stop.click(self.stop, None, None, **quick)
        take.click(self.take, [taken], None, js=js("rowsTaken"), **quick)


def _lines(gone: int, lines: list) -> str:
    return f"{gone}\n" + "".join(f"{line}\n" for line in lines)


def _csv(table: Table, i: int | None, answer: str = "", right: bool | None = None, error: str = "") -> str:
    """The first line of the file with answers, and row `i` of it where that is given."""
    rows = [] if i is None else [table.rows[i]]
    added = {"answer": answer, "right": {True: "yes", False: "no", None: ""}[right], "error": error}
    return write_table(Table(table.columns, rows), {name: [cell] * len(rows) for name, cell in added.items()})
