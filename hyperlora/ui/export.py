"""An adapter leaves the page: as a file for other tools, in a model of its own, or to the Hugging Face Hub."""

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Unfinished
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_space, get_upload_folder

from hyperlora.bounds import App, reply
from hyperlora.errors import UserError, sentence
from hyperlora.hub import Cancelled, gigabytes
from hyperlora.model import Model
from hyperlora.text import check_text
from hyperlora.ui.session import DAMAGED, read_adapter, read_object
from hyperlora.ui.words import js

if TYPE_CHECKING:
    from hyperlora.lora import Adapter

MAX_MERGES = 1  # models that are written at once: each is as large as the base
MAX_PUSHES = 4
TELL = 0.2  # seconds between two updates of the page
MERGED = ("merged", "merged-gguf")
# value, name, what it is, what the button says
FORMS = (
    ("peft", "PEFT", "For PEFT, transformers and vLLM: the adapter with its card, as a zip.", "Download zip"),
    (
        "gguf",
        "Ollama, llama.cpp",
        "The adapter as GGUF, to be used over the base model's GGUF file, with a Modelfile for Ollama, as a zip.",
        "Download GGUF",
    ),
    (
        "merged",
        "Merged model",
        "The base model with the adapter in its weights, which needs neither beside it. It takes a while to make.",
        "Make and download",
    ),
    (
        "hub",
        "Hugging Face Hub",
        "The adapter with its card, in a new repository of yours. It is private unless you say otherwise.",
        "Push to the Hub",
    ),
)
TOKENS = "https://huggingface.co/settings/tokens"
SIGN_IN = "Sign in with Hugging Face"
OAUTH = ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL")
BUTTON = '<button type="button" data-mode="export" aria-pressed="false">Export</button>'
TOKEN = f"""<label>Token <input type="password" id="hub_token" autocomplete="off" spellcheck="false"></label>
<p>One with the right to write, from your <a href="{TOKENS}" target="_blank" rel="noopener noreferrer">settings
on the Hub</a>. It is used once, and not kept.</p>"""
NO_SIGN_IN = "This Space has no sign-in: its README needs hf_oauth, with the scope contribute-repos."
RUN = """<div class="run"><button type="button" id="export_go" class="go" disabled></button>
<button type="button" id="stop_export">Cancel</button><span id="export_size"></span></div>
<progress id="export_done" aria-label="How much is written"></progress>
<div id="export_said" role="status"></div>
<div id="commands"></div>"""


def sign_in() -> str:
    """How the page hears who pushes: by "oauth" in a Space that has it, "nothing" in one that has not, by "token"
    elsewhere, where Gradio would stand in for OAuth with this machine's own account."""
    if not os.environ.get("SPACE_ID"):
        return "token"
    there = get_space() and all(map(os.environ.get, OAUTH)) and find_spec("authlib") and find_spec("itsdangerous")
    return "oauth" if there else "nothing"


@dataclass
class Job:
    """A file that is written for a page."""

    done: float = 0.0
    size: float = 0.0
    ended: bool = False
    """Nobody waits for it any more."""

    def report(self, done: float, size: float) -> None:
        """Bytes so far and in all; `Cancelled` where nobody waits."""
        self.done, self.size = done, size
        if self.ended:
            raise Cancelled


class Leaving:
    """An ASGI app that takes the last word of a page, POST /leave?SESSION: Gradio's own way holds a connection open for
    each tab, of which a browser has six."""

    def __init__(self, app: App, leave: Callable[[str], None]):
        self.app, self.leave = app, leave

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or scope["path"] != "/leave" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        self.leave(scope["query_string"].decode("latin-1"))
        return await reply(send, 200, {})


class Export:
    """The files that are written now, and those that were, one for each visitor's page.

    `merges`: whether this host writes whole models.
    """

    def __init__(self, model: Model, merges: bool = True):
        self.model, self.merges = model, merges
        self._jobs: dict[str | None, Job] = {}
        self._folders: dict[str | None, Path] = {}
        self._merging = threading.BoundedSemaphore(MAX_MERGES)

    def look(self, asked: object, request: gr.Request) -> str:
        """-> JSON: the "name" that a file, or a repository, would have, its "size", and the "commands" that use it,
        each a tool and a text; or the "error" that there is none. The "session" is what the page says as it goes."""
        from hyperlora.export import commands, export_name, export_size

        try:
            adapter, form = self._read(asked)
            said = gigabytes(export_size(self.model.pipe, adapter, form))
            name = export_name(adapter, form)
            told = {"name": name, "size": "under 1 MB" if said == "0 MB" else said, "session": request.session_hash}
            return json.dumps(told | {"commands": commands(self.model.pipe, adapter, form)})
        except Exception as error:
            return json.dumps({"error": sentence(error)})

    def make(self, asked: object, request: gr.Request) -> Iterator[tuple]:
        """-> JSON: the bytes that are "done", of the "size", again and again, then the "name" of the file or an
        "error"; the file, which goes with the visitor, with the next one, or after an hour."""
        visitor, job = request.session_hash, Job()
        if self._jobs.setdefault(visitor, job) is not job:
            yield _told(error="A file is being made for you already: wait for its end, or cancel it.")
            return
        try:
            adapter, form = self._read(asked)
            self.model.limits.take("exports")
            written = self._write(adapter, form, self._folder(visitor), job)
            while True:
                try:
                    path = written.result(TELL)
                    break
                except Unfinished:
                    yield _told(done=job.done, size=job.size)
            yield _told(str(path), name=path.name)
        except Cancelled:
            yield _told(error="Cancelled.")
        except Exception as error:
            yield _told(error=sentence(error))
        finally:
            job.ended = True  # also when the visitor has gone: Gradio closes this generator
            del self._jobs[visitor]

    def _write(self, adapter: "Adapter", form: str, folder: Path, job: Job) -> "Future[Path]":
        """Begin to write it in a thread of its own, which hears of the visitor's leaving; one model at a time."""
        from hyperlora.export import export, export_name

        merges, written = form in MERGED, Future()
        if merges and not self._merging.acquire(blocking=False):
            raise UserError("Another visitor's model is being made: try again in a few minutes.")

        def work() -> None:
            try:
                path = export(self.model.pipe, adapter, form, folder / export_name(adapter, form), job.report)
                if job.ended:  # at the last moment
                    raise Cancelled
                written.set_result(path)
            except BaseException as error:
                shutil.rmtree(folder, ignore_errors=True)
                written.set_exception(error)
            finally:
                if merges:
                    self._merging.release()

        threading.Thread(target=work, name="export", daemon=True).start()
        return written

    def _read(self, asked: object) -> tuple["Adapter", str]:
        """The adapter at its strength, and the form that it is to have. Raises `UserError` for what no page asks."""
        item = read_object(asked)
        form, shelved = item.get("form"), read_adapter(item.get("adapter"))
        if form not in ("peft", "gguf", *MERGED):
            raise UserError(DAMAGED)
        if form in MERGED and not self.merges:
            raise UserError(
                "This server writes no merged models: take the adapter, and merge it on a machine of yours."
            )
        if shelved is None:
            raise UserError("Select an adapter first: without one there is nothing to export.")
        return self.model.of(shelved), form

    def _folder(self, visitor: str | None) -> Path:
        """An empty folder for the visitor's file, where Gradio deletes it after an hour and need not copy it; that of
        the last one goes."""
        for other, folder in list(self._folders.items()):
            if other == visitor or not (other in self._jobs or any(folder.glob("*"))):
                shutil.rmtree(self._folders.pop(other, folder), ignore_errors=True)
        root = Path(get_upload_folder())
        root.mkdir(parents=True, exist_ok=True)
        self._folders[visitor] = folder = Path(tempfile.mkdtemp(prefix="export-", dir=root))
        return folder

    async def stop(self, request: gr.Request) -> None:
        """End what is written for this visitor."""
        if job := self._jobs.get(request.session_hash):
            job.ended = True

    def leave(self, visitor: str) -> None:
        """The visitor has gone, and their file goes."""
        if job := self._jobs.get(visitor):
            job.ended = True
        if folder := self._folders.pop(visitor, None):
            shutil.rmtree(folder, ignore_errors=True)

    def push(self, asked: object, token: object, login: gr.OAuthToken | None = None) -> Iterator[tuple[str, str]]:
        """-> JSON: that it is "pushing", then the "url" of the new repository or an "error"; and nothing in place of
        the token, since Gradio holds what an event was given until it is given another value."""
        yield json.dumps({"pushing": True}), ""
        try:
            yield json.dumps({"url": self._push(asked, token, login)}), ""
        except Exception as error:
            yield json.dumps({"error": sentence(error)}), ""

    def _push(self, asked: object, token: object, login: gr.OAuthToken | None) -> str:
        from hyperlora.export import export
        from hyperlora.push import check_name, check_token, push

        by, item = sign_in(), read_object(asked)
        if by == "nothing":
            raise UserError(NO_SIGN_IN)
        if by == "oauth" and login is None:
            raise UserError(f"Sign in first: “{SIGN_IN}” is above.")
        token = check_token(login.token if by == "oauth" else check_text(token, "The token"))
        check_name(name := check_text(item.get("name"), "The repository's name").strip())
        adapter, _ = self._read(json.dumps(item | {"form": "peft"}))
        self.model.limits.take("exports")
        with tempfile.TemporaryDirectory() as folder:
            written = export(self.model.pipe, adapter, "peft", Path(folder) / "adapter")
            return push(written, name, token, private=item.get("public") is not True)

    def build(self) -> None:
        """The mode, in the layout that is open, and its events."""
        plain = {"js_on_load": None, "apply_default_css": False}
        quiet = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
        by = sign_in()
        asked, token, looked, told = (gr.Textbox("", visible="hidden") for _ in range(4))
        look, make, push, stop = (
            gr.Button(visible="hidden", elem_id=f"press_{name}") for name in ("look_at", "make", "push", "cancel")
        )
        archive = gr.DownloadButton(visible="hidden", elem_id="zip")
        with gr.Column(elem_id="export", elem_classes="mode"):
            gr.HTML(_choice(self.merges), **plain)
            if by == "oauth":
                gr.LoginButton(SIGN_IN, elem_id="sign_in", size="sm")
            fields = {"token": TOKEN, "nothing": f"<p>{NO_SIGN_IN}</p>", "oauth": ""}[by]
            gr.HTML(_fields(fields), **plain, elem_id="hub")
            gr.HTML(RUN, **plain)
        seen = look.click(
            self.look, [asked], [looked], js=js("exportLook"), trigger_mode="always_last", queue=False, **quiet
        )
        seen.success(None, [looked], None, js=js("exportSeen", "text"))
        many = {"concurrency_limit": 8, "concurrency_id": "export"}
        making = make.click(self.make, [asked], [told, archive], js=js("exportAsked"), **many, **quiet)
        pushing = push.click(
            self.push,
            [asked, token],
            [told, token],
            js=js("pushAsked"),
            concurrency_limit=MAX_PUSHES,
            concurrency_id="push",
            **quiet,
        )
        told.change(None, [told], None, js=js("exportTold", "text"))
        for event in (making, pushing):
            for over in (event.then, event.failure):  # the latter where the server goes
                over(None, [told], [told], js=js("exportEnded", "text"))
        stop.click(self.stop, None, None, queue=False, **quiet)


def _told(path: str | None = None, **said: object) -> tuple:
    return json.dumps(said), path or gr.skip()


def _choice(merges: bool) -> str:
    forms = "".join(
        f'<label><input type="radio" name="form" value="{value}" data-about="{about}" data-go="{go}"'
        f"{' checked' * (value == 'peft')}> {name}</label>"
        for value, name, about, go in FORMS
        if merges or value != "merged"
    )
    return f"""<h2>Export <span id="export_what"></span></h2>
<div id="forms" role="radiogroup" aria-label="Format">{forms}</div><p id="export_about"></p>
<label id="merged_as">As <select><option value="merged">safetensors, for transformers and vLLM</option>
<option value="merged-gguf">GGUF, for llama.cpp and Ollama</option></select></label>"""


def _fields(fields: str) -> str:
    return f"""<label>Repository <input id="hub_name" maxlength="96" autocomplete="off" spellcheck="false"></label>
<label class="tick"><input type="checkbox" id="hub_public"> Public: everybody may read it</label>{fields}"""
