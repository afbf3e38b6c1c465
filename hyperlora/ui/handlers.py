"""What the page does on each event. A mistake becomes one sentence on the page, anything unexpected goes to the log."""

import logging
import tempfile
import time
from collections.abc import Iterator
from html import escape

import gradio as gr

from hyperlora.errors import UserError
from hyperlora.hub import gigabytes
from hyperlora.ui.model import Model
from hyperlora.ui.session import MAX_TURNS, Session, Turn

NO_ADAPTER, LOADING, INSTEAD = "No adapter", "Loading the model…", "Use the mini model instead"
SKIP = (
    gr.skip(),
) * 5  # for the chat, the message box, Retry, Undo and Clear; a generator that yields nothing empties them
REDRAW = 0.05  # seconds between two updates of a streamed answer
UNEXPECTED = "Something went wrong on the server; its log says what. Please try again."
log = logging.getLogger(__name__)


def status(kind: str, text: str) -> str:
    """A line of HTML of that class; the text is escaped."""
    return f'<span class="{kind}">{escape(text)}</span>'


def bubbles(turns: list[Turn], busy: bool = False) -> list[dict]:
    """The turns as Chatbot messages. Text is escaped: the Chatbot reads HTML even where its Markdown is off."""
    messages = []
    for turn in turns:
        messages.append({"role": "user", "content": escape(turn.question)})
        answer = escape(turn.answer) or ("…" if busy and turn is turns[-1] else "(no text)")
        messages.append({"role": "assistant", "content": [answer, escape(turn.by)]})
    return messages


def choices(session: Session) -> list[tuple[str, str]]:
    """(label, key) of the adapters that a visitor may chat with, the newest first; no adapter is ""."""
    return [(NO_ADAPTER, ""), *((recipe.description, recipe.key) for recipe in reversed(session.shelf))]


def sentence(error: Exception) -> str:
    """What a visitor reads of an error; one that is no `UserError` goes to the log."""
    if isinstance(error, UserError):
        return str(error)
    log.error("Unexpected error on the page", exc_info=error)
    return UNEXPECTED


def progress(done: float, size: float, seconds: float) -> str:
    """A download so far, as a line and a bar."""
    part = done / size if size else 0.0
    text = f"{gigabytes(done)} of {gigabytes(size)}" if size else "The download begins."
    if part > 0.01 and seconds > 5:
        minutes = seconds * (1 - part) / part / 60
        text += f", about {minutes:.0f} minutes left" if minutes >= 1.5 else ", about a minute left"
    return f'<p>{text}</p><div class="bar"><div style="width: {100 * part:.1f}%"></div></div>'


class Handlers:
    """The page's events over one model; each gives the new values of the components that it names."""

    def __init__(self, model: Model):
        self.model = model

    async def ready(self, session: Session):
        """-> status, Generate, message box, line, describe, timer, session. Asked every second until that is there."""
        if not self.model.settled:
            return (gr.skip(),) * 5 + (gr.Timer(active=True), session)
        try:
            pipe = self.model.pipe
        except UserError as error:
            return status("error", str(error)), *(gr.skip(),) * 4, gr.Timer(active=False), session
        line = "This model answers each message on its own; it does not see earlier ones."
        if pipe.multi_turn:
            line = escape((pipe.base_name or "").rstrip("/").rpartition("/")[2])
        return (
            "",
            gr.Button("Generate", interactive=True),
            gr.Textbox(placeholder="Message", submit_btn="Send"),
            line,
            pipe.describe or gr.skip(),
            gr.Timer(active=False),
            session,
        )

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
        """No download, or no more of it: the mini model."""
        self.model.answer(False)

    def generate(self, description: str, session: Session):
        """-> status, shelf, session."""
        description = " ".join(description.split())
        try:
            started = time.perf_counter()
            adapter = self.model.adapt(description)
            milliseconds = (time.perf_counter() - started) * 1000
        except Exception as error:
            return status("error", sentence(error)), gr.skip(), session
        recipe = session.add(description, adapter.notice)
        text = status("done", f"Made in {milliseconds:.0f} ms.")
        if recipe.notice:
            text += " " + status("notice", recipe.notice)
        return text, gr.Radio(choices(session), value=recipe.key), session

    async def select(self, key: str, session: Session) -> str:
        """-> status: the selected adapter's notice, if it has one."""
        recipe = session.find(key)
        return status("notice", recipe.notice) if recipe and recipe.notice else ""

    def send(
        self, message: str, key: str, strength: float, session: Session, describe: bool = False
    ) -> Iterator[tuple]:
        """-> chat, message box, Retry, Undo, Clear; again and again while the answer streams."""
        if session.stream is None:
            yield from self._answer(message, session.turns, key, strength, session, describe)
        else:
            yield SKIP

    def retry(self, key: str, strength: float, session: Session, describe: bool = False) -> Iterator[tuple]:
        """Asks the last message again, of the adapter that is selected now."""
        if session.stream is None and session.turns:
            yield from self._answer(session.turns[-1].question, session.turns[:-1], key, strength, session, describe)
        else:
            yield SKIP

    def _answer(
        self, message: str, earlier: list[Turn], key: str, strength: float, session: Session, describe: bool
    ) -> Iterator[tuple]:
        try:
            pipe = self.model.pipe
            recipe = session.find(key)
            adapter = self.model.adapter(recipe.description).scaled(strength) if recipe else None
            by = recipe.description if recipe else NO_ADAPTER
            if recipe and strength != 1:
                by += f" · strength {strength:g}"
            if recipe and describe:
                by += " · description in the prompt"
            messages = []
            for turn in earlier if pipe.multi_turn else []:
                messages += [
                    {"role": "user", "content": turn.question},
                    {"role": "assistant", "content": turn.answer},
                ]
            messages.append({"role": "user", "content": message})
            stream = pipe.chat(messages, adapter=adapter, stream=True, describe=describe)
        except Exception as error:
            gr.Warning(escape(sentence(error)))
            yield SKIP
            return
        turn = Turn(message, by)
        session.turns = [*earlier[-(MAX_TURNS - 1) :], turn]
        session.stream = stream
        off = gr.Button(interactive=False)
        try:
            # The stream is in place before Stop appears, so that Stop works from the first moment on.
            yield bubbles(session.turns, busy=True), gr.Textbox("", submit_btn=False, stop_btn="Stop"), off, off, off
            drawn = 0.0
            for piece in stream:
                turn.answer += piece
                if time.monotonic() - drawn > REDRAW:
                    drawn = time.monotonic()
                    yield bubbles(session.turns, busy=True), *SKIP[1:]
        except Exception as error:
            gr.Warning(escape(sentence(error)))
        finally:
            # Also when the visitor has gone: Gradio closes this generator, and the engine need not go on.
            stream.stop()
            session.stream = None
        yield bubbles(session.turns), *self._idle(session)

    @staticmethod
    def _idle(session: Session) -> tuple:
        """-> message box, Retry, Undo, Clear as they are when nothing is being written."""
        button = gr.Button(interactive=bool(session.turns))
        return gr.Textbox(submit_btn="Send", stop_btn=False), button, button, button

    async def stop(self, session: Session) -> None:
        if session.stream is not None:
            session.stream.stop()

    async def undo(self, session: Session) -> tuple:
        """Takes the last turn back; its message returns to the message box."""
        if session.stream is not None or not session.turns:
            return SKIP
        *session.turns, last = session.turns
        _, *buttons = self._idle(session)
        return bubbles(session.turns), last.question, *buttons

    async def clear(self, session: Session) -> tuple:
        if session.stream is not None:
            return SKIP
        session.turns = []
        return [], *self._idle(session)

    def export(self, key: str, strength: float, session: Session) -> Iterator[str]:
        """-> the zip; Gradio has its own copy when the folder goes."""
        from hyperlora.export import export_zip

        recipe = session.find(key)
        if recipe is None:
            raise gr.Error("Select an adapter first: there is nothing to export without one.", print_exception=False)
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = export_zip(self.model.adapter(recipe.description).scaled(strength), folder)
            except Exception as error:
                raise gr.Error(escape(sentence(error)), print_exception=False) from error
            yield str(path)
