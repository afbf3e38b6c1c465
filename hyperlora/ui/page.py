"""The layout: what is on the page and which handler each event calls."""

import json
import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr
from gradio.blocks import BlockFunction

from hyperlora.bounds import Bounds
from hyperlora.config import MAX_ZIP
from hyperlora.endpoint import Host
from hyperlora.errors import UserError
from hyperlora.health import Health
from hyperlora.hosting import bare
from hyperlora.model import Model
from hyperlora.presets import assets_dir
from hyperlora.recipe import MAX_STRENGTH
from hyperlora.ui.api import Api
from hyperlora.ui.compare import Compare
from hyperlora.ui.examples import Examples
from hyperlora.ui.export import BUTTON, Export, Leaving
from hyperlora.ui.file import File
from hyperlora.ui.handlers import INSTEAD, LOADING, Handlers
from hyperlora.ui.settings import MORE
from hyperlora.ui.signin import MESSAGE, SignIns
from hyperlora.ui.steer import Steer
from hyperlora.ui.understand import Understand
from hyperlora.ui.words import js, status

OTHERS = 20  # threads for handlers that wait, beside those of chats, so that the rest of the page goes on
SCRIPTS = ("page", "talk", "compare", "steer", "understand", "reader", "file", "examples", "export")
FONT = ["Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="slate",
    radius_size="lg",
    font=FONT,
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
)
# What a visitor has is drawn by `assets/page.js` into these; the rest of the page is Gradio's.
PAPER = "https://arxiv.org/abs/2506.06105"
TITLE = f"""<header><h1>HyperLoRA</h1><nav aria-label="About HyperLoRA">
<button type="button" onclick="document.querySelector('#card').click()">Card</button>
<button type="button" onclick="document.querySelector('#readme').click()">README</button>
<a href="{PAPER}" target="_blank" rel="noopener noreferrer">Paper</a>
<button type="button" id="theme" aria-label="Dark" title="Light or dark">◐</button>
</nav></header><p>Describe a task, get an adapter, chat with it.</p>"""
FROM = '<button type="button" data-mode="pairs" aria-pressed="false">From examples</button>'
SHELF = """<div id="shelf_head"><div class="label" id="shelf_label">Your adapters</div>
<button type="button" id="import">Import</button>
<button type="button" data-mode="blend" aria-pressed="false">Blend</button></div>
<div id="shelf" role="radiogroup" aria-labelledby="shelf_label"></div>
<div id="note" role="status"></div>
<div id="bounds" role="status"></div>"""
CHATS = """<select id="conversation" aria-label="Conversation"></select>
<button type="button" id="new_chat">New</button>
<div id="modes" role="group" aria-label="Beside the conversation">
<button type="button" data-mode="compare" aria-pressed="false">Compare</button>
<button type="button" data-mode="understand" aria-pressed="false">Understand</button>
<button type="button" data-mode="file" aria-pressed="false">File</button>
</div>
<button type="button" id="chat_menu" aria-haspopup="menu" aria-label="More for the conversation">⋯</button>
<div id="chat_note" role="status"></div>"""
KEPT = """<label title="What is new then stays in this tab, and goes when it is closed.">
<input type="checkbox" id="do_not_keep"> Do not keep</label>
<button type="button" id="forget">Forget everything</button>"""
log = logging.getLogger(__name__)


def read_asset(name: str) -> str:
    """The page's CSS or JavaScript; without its CSS the page is plain, but works."""
    try:
        return (assets_dir() / name).read_text(encoding="utf-8")
    except (OSError, UserError) as error:
        log.warning("The page goes on without %s: %s", name, error)
        return ""


def find_favicon() -> Path | None:
    """Gradio shows its own where there is none."""
    try:
        return assets_dir() / "favicon.svg"
    except UserError:
        return None


class Page(gr.Blocks):
    """Gradio's, but that it does not write what a visitor sent into the log where that is too little for an event."""

    model: Model
    leave: Callable[[str], None]
    """For the session of a page that has gone."""
    mcp: bool
    """Whether what the API lists are tools for MCP's clients too."""

    def validate_inputs(self, block_fn: BlockFunction, inputs: list) -> None:
        if len(inputs) < len(block_fn.inputs):
            said = f"/{block_fn.api_name} takes {len(block_fn.inputs)} values, and {len(inputs)} came: send them all."
            raise gr.Error(said, print_exception=False)


def build_page(model: Model, host: Host | None = None, merges: bool = True, mcp: bool = False) -> Page:
    """The page over `model`, which may still be loading; `host` writes descriptions for visitors who agree; `merges`:
    whether whole models are written, with an adapter in their weights. `mcp`: the API lists what may be a tool of MCP
    alone."""
    on = Handlers(model)
    plain = {"js_on_load": None, "apply_default_css": False}
    raw = {"preprocess": False}  # texts of page.js, that Gradio has not to look into
    chats = {"concurrency_limit": model.limits.chats, "concurrency_id": "chat"}
    limits = {"show_progress": "hidden", **chats, **raw}
    with Page(title="HyperLoRA", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as demo:
        demo.model, demo.mcp = model, mcp
        # What page.js gives a handler, in the order of its parameters, and what it is given.
        id, adapter, turns, turn, settings, checked = (gr.Textbox("", visible="hidden") for _ in range(6))
        made, examples, name, document = (gr.Textbox("", visible="hidden") for _ in range(4))
        ordered = gr.Textbox("", visible="hidden", elem_id="ordered")
        # What page.js presses.
        show, selected, placed, card, readme, share, opened, go_on, check = (
            gr.Button(visible="hidden", elem_id=name)
            for name in ("show", "selected", "placed", "card", "readme", "share", "opened", "go_on", "check")
        )
        timer = gr.Timer(1)
        with gr.Row(elem_id="page"):
            with gr.Column(elem_id="describe", min_width=320):
                gr.HTML(TITLE, **plain, elem_id="title")
                who = gr.HTML(elem_id="about")
                with gr.Column(visible=False, elem_id="download") as panel:
                    about = gr.HTML()
                    with gr.Row():
                        allow = gr.Button("Download", size="sm", variant="primary", elem_id="allow")
                        refuse = gr.Button(INSTEAD, size="sm", elem_id="refuse")
                gr.HTML(FROM, **plain, elem_id="from")
                description = gr.Textbox(
                    label="What should the model do?",
                    max_lines=4,
                    autofocus=True,
                    elem_id="description",
                )
                chips = gr.Dataset(
                    label="Examples",
                    components=[description],
                    samples=[],
                    samples_per_page=24,
                    type="index",
                    visible=False,  # until it is known which model answers
                    elem_id="examples",
                )
                generate = gr.Button(LOADING, variant="primary", interactive=False, elem_id="generate")
                state = gr.HTML(elem_id="status")
                gr.HTML(SHELF, **plain, elem_id="adapters")
                with gr.Row(elem_id="tools"):
                    strength = gr.Slider(
                        -MAX_STRENGTH, MAX_STRENGTH, value=1, step=0.1, label="Adapter strength", elem_id="strength"
                    )
                    gr.HTML(BUTTON, **plain, elem_id="to_export")
                describe = gr.Checkbox(label="Put the description in the prompt too", elem_id="in_prompt")
                gr.HTML(KEPT, **plain, elem_id="kept")
            with gr.Column(elem_id="talk", min_width=320):
                gr.HTML(CHATS, **plain, elem_id="chats")
                chat = gr.Chatbot(
                    show_label=False,
                    render_markdown=False,
                    latex_delimiters=[],
                    allow_tags=False,  # or it would show those of formulas as they are written
                    buttons=[],
                    height=None,
                    elem_id="chat",
                    placeholder="**Chat with the adapted model**\n\nGenerate an adapter, or ask the base model.",
                )
                message = gr.Textbox(
                    label="Message",
                    show_label=False,
                    placeholder=LOADING,
                    max_lines=6,
                    elem_id="message",
                )
                with gr.Row(elem_id="under"):
                    line = gr.HTML(elem_id="line")
                    retry, undo, clear = (
                        gr.Button(name, size="sm", interactive=False, elem_id=name.lower())
                        for name in ("Retry", "Undo", "Clear")
                    )
                    gr.HTML(MORE, **plain, elem_id="more")
                Compare(model).build(limits)
                Steer(model).build()
                Understand(model).build()
                File(model).build(limits)
                Examples(model, host).build(limits)
                export = Export(model, merges)
                export.build()
        demo.leave = export.leave

        link, shared = (gr.Textbox("", visible="hidden") for _ in range(2))

        private = {"api_visibility": "private", "show_progress": "hidden"}
        quick = {**private, "queue": False}

        typed = {"description": description, "message": message, "describe": describe}
        seen = [chat, retry, undo, clear]
        start = js("start", *typed)
        restored = demo.load(None, [*typed.values()], [*typed.values()], js=start)
        for shown in (restored.success, show.click):
            shown(on.show, [turns], seen, js=js("turns"), trigger_mode="always_last", **raw, **private)
        for event in (restored.success, selected.click, placed.click):
            event(None, None, [strength], js=js("strength"))
        for box, component in typed.items():
            component.change(None, component, None, js=f"(value) => hyperlora.keepTyped('{box}', value)")
        strength.input(None, [strength], None, js=js("setStrength", "value"))
        for event in (selected.click, strength.input):  # of the slider after the line above
            event(on.select, [adapter], [state], js=js("adapter"), trigger_mode="always_last", **raw, **quick)

        is_ready = ([describe], [state, generate, message, who, line, describe, examples, chips, description, timer])
        offer = (None, [panel, about, allow, refuse, generate, message])
        # One after the other: what `ready` finds settled when it stops the timer, `offer` finds settled too.
        for asked in (restored.success, timer.tick):
            there = asked(on.ready, *is_ready, js=js("described"), **quick).then(on.offer, *offer, **quick)
            there.then(None, js=js("scroll"))  # the examples of the model that answers take room
            there.then(None, js=js("follow"))  # a link is read once the model is there
        allow.click(on.allow, None, None, **quick).then(on.offer, *offer, **quick)
        refuse.click(on.refuse, None, None, **quick).then(on.offer, *offer, **quick)

        chips.click(
            None, [chips, examples, message], [description, message], js=js("example", "index", "all", "message")
        )
        pressed = [generate.click, description.submit, chips.click]  # of a chip after the line above
        order = f"(text) => [hyperlora.generate(text), {json.dumps(status('done', 'Making the adapter…'))}]"
        gr.on(pressed, None, [description], [ordered, state], js=order)
        # Pressed again meanwhile, the last order is made next.
        making = ordered.change(
            on.generate,
            [ordered],
            [state, made],
            trigger_mode="always_last",
            api_visibility="undocumented",
            show_progress="hidden",
            **raw,
        )
        making.success(None, [made], None, js=js("made", "text"))
        making.failure(None, None, [state], js="() => { hyperlora.failed(); return ''; }")

        talk = [chat, turn, message, retry, undo, clear, who]
        to = [id, adapter, describe, turns, settings]
        asking = "(id, adapter, describe, turns, settings, message) => hyperlora.ask('{}', describe, message)"
        new, again, on_it = ({"js": asking.format(asks), **limits} for asks in ("new", "again", "on"))
        sent = message.submit(on.send, [*to, message], talk, api_visibility="undocumented", **new)
        retried = retry.click(on.retry, to, talk, api_visibility="private", **again)
        more = go_on.click(on.go_on, to, talk, api_visibility="private", **on_it)
        turn.change(None, [turn], None, js=js("heardTurn", "text"))
        for answer in (sent, retried, more):
            answer.then(None, js=js("answered"))
        message.stop(on.stop, None, None, **quick)
        undo.click(None, [chat, message], [chat, message, retry, undo, clear], js=js("undo", "chat", "message"))
        clear.click(None, None, seen, js=js("clear"))

        checking = check.click(
            on.check, [settings], [checked], js=js("settings"), trigger_mode="always_last", **raw, **quick
        )
        checking.success(None, [checked], None, js=js("checked", "text"))

        sharing = share.click(on.share, [adapter], [shared], js=js("adapter"), **raw, **quick)
        sharing.success(None, [shared], None, js=js("copy", "text"))
        following = opened.click(on.open_link, [link], [shared], js=js("fragment"), **raw, **quick)
        following.success(None, [shared], None, js=js("offer", "text"))

        for asked, which in ((card, "card"), (readme, "readme")):
            found = asked.click(on.read, [name], [document], js=f"() => '{which}'", **raw, **quick)
            found.success(None, [document], None, js=js("show", "html"))

        Api(model).build(chats, mcp)

    return demo.queue(default_concurrency_limit=OTHERS, max_size=model.limits.queue, api_open=False)


def launch(
    demo: Page,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    check: Callable[[str, str], bool] | None = None,
    proxies: str = "",
    beside: Sequence[tuple] = (),
) -> str:
    """Serves the page and returns its address; `OSError` if it cannot be had. Nothing of it leaves this machine.

    `check` says whether a user and a password are right, where visitors are to sign in. A visitor's address is what
    one of the `proxies` (addresses or networks, with commas between) says of it, or else the one that they come from.
    `beside`: ASGI apps in front of the page, each with its arguments, as Starlette takes middleware.
    """
    host, limits = bare(host), demo.model.limits
    check_address(host, port)
    os.environ["FORWARDED_ALLOW_IPS"] = proxies  # uvicorn's own default trusts whoever comes from this machine
    _, url, _ = demo.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        max_threads=limits.chats + OTHERS,
        app_kwargs={
            "middleware": [
                (Health, (demo.model,), {}),
                (Leaving, (demo.leave,), {}),
                *beside,
                (Bounds, (limits,), {}),
                (SignIns, (limits,), {}),
            ],
            "openapi_url": None,  # and so without FastAPI's own pages, whose scripts are from elsewhere
        },
        auth=check,
        auth_message=MESSAGE,
        mcp_server=demo.mcp,
        max_file_size=MAX_ZIP,  # of an adapter that is imported
        state_session_capacity=1000,
        theme=THEME,
        favicon_path=find_favicon(),
        css=read_asset("style.css"),
        head="".join(f"<script>{read_asset(f'{name}.js')}</script>" for name in SCRIPTS),
    )
    return url


def check_address(host: str, port: int | None) -> None:
    """`OSError` where nothing can be served there: Gradio would try a hundred ports, for seconds each."""
    if "%" in host:
        raise OSError("no URL has an address with a zone")
    family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(address)
