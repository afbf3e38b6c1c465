"""The layout: what is on the page and which handler each event calls."""

import json
import logging
import socket

import gradio as gr

from hyperlora.errors import UserError
from hyperlora.presets import assets_dir
from hyperlora.ui.handlers import INSTEAD, LOADING, MAX_STRENGTH, NO_ADAPTER, Handlers, status
from hyperlora.ui.model import Model

# Threads for handlers that wait; the chat takes at most MAX_CHATS of them, so that the rest of the page goes on.
MAX_THREADS, MAX_CHATS = 80, 60
FONT = ["Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Base(
    primary_hue="teal",
    neutral_hue="slate",
    radius_size="lg",
    font=FONT,
    font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
)
DOWNLOAD = "() => document.querySelector('#zip').click()"
# Generate is an order: its number, a space, the description. From when it is pressed, and not from when the server has
# made the adapter, that is the one which is `wanted`, until it is made or the visitor selects another one.
ORDER = """(text) => {
    window.wanted = text.trim() ? text : null;
    window.order = (window.order ?? 0) + 1;
    return [`${window.order} ${text}`, %s];
}"""
MADE = """(made, chosen) => {
    const [order, ...words] = made.split(" ");
    if (Number(order) !== window.order || window.wanted === null) return chosen;
    window.wanted = null;
    return words.join(" ") || chosen;
}"""
CHOSEN = "() => { window.wanted = null; }"
FAILED = "() => { window.wanted = null; return ''; }"
FOR_WANTED = "(chosen, ...rest) => [window.wanted ?? chosen, ...rest]"
# Undo and Clear are the page's alone, so that nothing that is typed or sent meanwhile meets an older conversation.
UNDO = """(chat, kept, message) => {
    const turns = JSON.parse(kept), undone = turns.pop();
    const on = {interactive: turns.length > 0, __type__: "update"};
    return [chat.slice(0, -2), JSON.stringify(turns), message.trim() ? message : undone.question, on, on, on];
}"""
CLEAR = """(chat, kept, message) => {
    const off = {interactive: false, __type__: "update"};
    return [[], "[]", message, off, off, off];
}"""
# What a visitor has lives in the tab: it outlasts a reload, which is also what Gradio does after a lost connection.
KEEP = """(value) => {
    try { if (window.restored) sessionStorage.setItem("hyperlora.%s", JSON.stringify(value)); } catch {}
}"""
RESTORE = """(...values) => {
    window.restored = {};
    try {
        for (const name of %s) window.restored[name] = JSON.parse(sessionStorage.getItem("hyperlora." + name));
    } catch {}
    return Object.values(window.restored).map((value, i) => value ?? values[i]);
}"""
EXAMPLE = """(index, all, message) => {
    const examples = JSON.parse(all), typed = message.trim();
    const sample = examples.some((example) => example.message === typed) || !typed;
    return [examples[index].description, sample ? examples[index].message : message];
}"""
DESCRIBED = "() => window.restored.describe ?? null"
# The selected row of a long shelf is in view; the window itself stays where it is.
SCROLL = """() => {
    setTimeout(() => {
        const top = window.scrollY;
        document.querySelector("#shelf label.selected")?.scrollIntoView({block: "nearest"});
        window.scrollTo(window.scrollX, top);
    }, 100);
}"""
log = logging.getLogger(__name__)


def read_style() -> str:
    """The page's CSS; without it the page is plain, but works."""
    try:
        return (assets_dir() / "style.css").read_text(encoding="utf-8")
    except (OSError, UserError) as error:
        log.warning("The page goes on without its style: %s", error)
        return ""


def build_page(model: Model) -> gr.Blocks:
    """The page over `model`, which may still be loading."""
    on = Handlers(model)
    with gr.Blocks(title="HyperLoRA", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as demo:
        kept_shelf, kept_turns, ordered, made, examples = (gr.Textbox("", visible="hidden") for _ in range(5))
        timer = gr.Timer(1)
        with gr.Row(elem_id="page"):
            with gr.Column(elem_id="describe", min_width=320):
                gr.HTML("<h1>HyperLoRA</h1><p>Describe a task, get an adapter, chat with it.</p>", elem_id="title")
                who = gr.HTML(elem_id="about")
                with gr.Column(visible=False, elem_id="download") as panel:
                    about = gr.HTML()
                    with gr.Row():
                        allow = gr.Button("Download", size="sm", variant="primary", elem_id="allow")
                        refuse = gr.Button(INSTEAD, size="sm", elem_id="refuse")
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
                shelf = gr.Radio([(NO_ADAPTER, "")], value="", label="Your adapters", elem_id="shelf")
                with gr.Row(elem_id="tools"):
                    strength = gr.Slider(
                        0, MAX_STRENGTH, value=1, step=0.1, label="Adapter strength", elem_id="strength"
                    )
                    export = gr.Button("Export", size="sm", elem_id="export")
                describe = gr.Checkbox(
                    label="Put the description in the prompt too",
                    info="The model then reads it as well, ahead of your messages.",
                    elem_id="in_prompt",
                )
                archive = gr.DownloadButton(visible="hidden", elem_id="zip")
            with gr.Column(elem_id="talk", min_width=320):
                chat = gr.Chatbot(
                    show_label=False,
                    render_markdown=False,
                    latex_delimiters=[],
                    buttons=[],
                    height=None,
                    elem_id="chat",
                    placeholder="### Chat with the adapted model\nGenerate an adapter, or ask the base model as it is.",
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

        private = {"api_visibility": "private", "show_progress": "hidden"}
        quick = {**private, "queue": False}
        raw = {"preprocess": False}  # a shelf that the page holds is none that this server knows of

        kept = {
            "description": description,
            "message": message,
            "chosen": shelf,
            "strength": strength,
            "describe": describe,
            "shelf": kept_shelf,
            "turns": kept_turns,
        }
        restored = demo.load(None, [*kept.values()], [*kept.values()], js=RESTORE % json.dumps([*kept]))
        seen = [shelf, chat, retry, undo, clear]
        restored.success(on.show, [shelf, kept_shelf, kept_turns], seen, **raw, **quick).success(None, js=SCROLL)
        for name, component in kept.items():
            component.change(None, component, None, js=KEEP % name)

        is_ready = ([describe], [state, generate, message, who, line, describe, examples, chips, description, timer])
        offer = (None, [panel, about, allow, refuse, generate, message])
        # One after the other: what `ready` finds settled when it stops the timer, `offer` finds settled too.
        for asked in (restored.success, timer.tick):
            there = asked(on.ready, *is_ready, js=DESCRIBED, **quick).then(on.offer, *offer, **quick)
            there.then(None, js=SCROLL)  # the examples of the model that answers take room
        allow.click(on.allow, None, None, **quick).then(on.offer, *offer, **quick)
        refuse.click(on.refuse, None, None, **quick).then(on.offer, *offer, **quick)

        chips.click(None, [chips, examples, message], [description, message], js=EXAMPLE)
        pressed = [generate.click, description.submit, chips.click]  # of a chip after the line above
        gr.on(
            pressed, None, [description], [ordered, state], js=ORDER % json.dumps(status("done", "Making the adapter…"))
        )
        # Pressed again meanwhile, the last order is made next.
        making = ordered.change(
            on.generate,
            [ordered, kept_shelf],
            [state, shelf, kept_shelf, made],
            trigger_mode="always_last",
            api_visibility="undocumented",
            show_progress="hidden",
            **raw,
        )
        making.success(None, [made, shelf], [shelf], js=MADE)
        making.failure(None, None, [state], js=FAILED)
        shelf.input(None, js=CHOSEN)
        shelf.input(on.select, [shelf], [state], trigger_mode="always_last", **raw, **quick)
        shelf.change(None, js=SCROLL)

        talk = [chat, kept_turns, message, retry, undo, clear]
        chatting = {
            "js": FOR_WANTED,
            "show_progress": "hidden",
            "concurrency_limit": MAX_CHATS,
            "concurrency_id": "chat",
            **raw,
        }
        to = [shelf, strength, describe, kept_turns]
        message.submit(on.send, [*to, message], [*talk, who], api_visibility="undocumented", **chatting)
        retry.click(on.retry, to, [*talk, who], api_visibility="private", **chatting)
        message.stop(on.stop, None, None, **quick)
        undo.click(None, [chat, kept_turns, message], talk, js=UNDO)
        clear.click(None, [chat, kept_turns, message], talk, js=CLEAR)
        exported = export.click(on.export, [shelf, strength], archive, js=FOR_WANTED, **raw, **private)
        exported.success(None, js=DOWNLOAD, **private)

    return demo.queue(default_concurrency_limit=MAX_THREADS - MAX_CHATS, max_size=256, api_open=False)


def launch(demo: gr.Blocks, host: str = "127.0.0.1", port: int | None = None) -> str:
    """Serves the page and returns its address; `OSError` if it cannot be had. Nothing of it leaves this machine."""
    host = host.removeprefix("[").removesuffix("]")
    check_address(host, port)
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
        max_threads=MAX_THREADS,
        max_file_size=1,  # nothing on the page takes a file
        state_session_capacity=1000,
        theme=THEME,
        css=read_style(),
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
