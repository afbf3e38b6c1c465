"""What several parts of the page say and draw in the same way."""

from html import escape

from hyperlora.table import MAX_BYTES
from hyperlora.ui.markdown import to_html

# How an answer ended that is not whole.
ENDS = {"length": "cut off at the token limit", "stopped": "stopped", "error": "ended by an error", "": "interrupted"}
REDRAW = 0.05  # seconds between two updates of a streamed answer


def status(kind: str, text: str) -> str:
    """A line of HTML of that class; the text is escaped."""
    return f'<span class="{kind}">{escape(text)}</span>'


def answer_html(answer: str, markdown: bool, empty: str) -> str:
    """An answer as HTML, in Markdown or as it is; `empty` stands for none."""
    shown = to_html(answer) if markdown and answer.strip() else None
    return shown or f'<div class="verbatim">{escape(answer) or empty}</div>'


def js(name: str, *parameters: str) -> str:
    """A call of the page's JavaScript with the values of the event's inputs."""
    values = ", ".join(parameters)
    return f"({values}) => hyperlora.{name}({values})"


def source_html(rows: int, label: str, hint: str, placeholder: str) -> str:
    """A box of so many rows for pasted lines, and a button for a file in their place; `assets/file.js` reads both."""
    return f"""<div class="source"><label class="pick">Choose a file
<input type="file" accept=".csv,.tsv,.jsonl,.json,.ndjson,.txt,text/*" data-limit="{MAX_BYTES}"></label>
<span class="chosen">{hint}</span><button type="button" class="unpick">Paste instead</button></div>
<textarea rows="{rows}" aria-label="{label}" placeholder="{placeholder}"></textarea>"""
